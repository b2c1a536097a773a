"""The options that several commands share, said once."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar, get_args, get_origin, get_type_hints

import typer
from typer.models import OptionInfo

from efficientnetv2.progressive.schedule import IMAGE_PX

if TYPE_CHECKING:
    from efficientnetv2.data.config import DataConfig
    from efficientnetv2.training.overrides import TrainOverrides
    from efficientnetv2.training.run_options import RunOptions


def between(least: float, most: float = math.inf, *, rule: str | None = None) -> Callable[[Any], Any]:
    """A check of a number given as an option, or of several, for its ``callback``.

    Typer's own ``min`` and ``max`` do not say what was given, and let infinity through.

    Args:
        least: that it may be.
        most: likewise.
        rule: what is said of it; None says these two.
    """
    if rule is None:
        rule = f"at least {least:,}" if most == math.inf else f"between {least:,} and {most:,}"

    def check(value: Any) -> Any:
        for one in value if isinstance(value, list) else [value]:
            if one is not None and (not least <= one <= most or one == math.inf):
                raise typer.BadParameter(f"it is {one:,}, but has to be {rule}.")
        return value

    return check


# Every published network halves a picture five times; only one of one's own may take less.
LAST_PX = f"between 32, the least that the networks take, and {IMAGE_PX[1]:,}"

Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="A folder with one sub-folder per class (or train/ and val/ of them), a CSV, TSV or Parquet file with "
        "path and label columns, shards (a folder, URL or pattern of tars), or the name of a standard set such as "
        "cifar10.",
        show_default=False,
    ),
]
Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="A model.safetensors, or the folder of a run.", show_default=False),
]
PathColumn = Annotated[str, typer.Option(help="Column of a table that names the picture.")]
LabelColumn = Annotated[str, typer.Option(help="Column of a table that holds the label.")]
GroupColumn = Annotated[
    str | None,
    typer.Option(
        help="Column of a table whose equal values belong together (a patient, a film): they stay on one side of a "
        "split, and intervals draw them as a whole. (Default: a column called group, if there is one.)",
        show_default=False,
    ),
]
Labels = Annotated[
    str,
    typer.Option(
        metavar="exact|casefold",
        help="casefold merges labels that differ only by case, by spaces around them, or by how Unicode encodes "
        "their letters.",
    ),
]
LabelSeparator = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="A picture may have several labels: what stands between them in the label column, such as ';'. "
        "(Default: each has one.)",
        show_default=False,
    ),
]
FolderLayout = Annotated[
    str,
    typer.Option(metavar="auto|classes|splits", help="What the sub-folders of DATA are."),
]
MinImagesPerClass = Annotated[
    int,
    typer.Option(
        callback=between(0), help="Leave out classes with fewer training images.", show_default="keep all"
    ),
]
BandsSeen = Annotated[
    str | None,
    typer.Option(
        metavar="N,N,...|all",
        help="Of rasters (GeoTIFF): the bands that are seen, from 1, as 4,3,2 (as red, green and blue), 1,2,3,4,8 or "
        "all. (Default: those that the rasters call red, green and blue; where they do not, all.)",
        show_default=False,
    ),
]
NoData = Annotated[
    str | None,
    typer.Option(
        "--nodata",
        metavar="VALUE,...|none",
        help="Values of rasters that mean missing data. (Default: declared or found.)",
        show_default=False,
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Workers = Annotated[
    int | None,
    typer.Option(
        callback=between(0),
        help="Processes that read pictures. (Default: by the machine.)",
        show_default=False,
    ),
]
MemoryGib = Annotated[
    float | None,
    typer.Option(
        help="What training may take of the memory, in GiB: of the GPU's, or without one of this process's. "
        "(Default: what there is.)",
        show_default=False,
    ),
]
Views = Annotated[
    str | None,
    typer.Option(
        metavar="one|symmetries",
        help="How each picture is looked at: as it is, or in all eight flips and turns of the square, which takes "
        "eight times as long; the probabilities are averaged. (Default: the model file's.)",
        show_default=False,
    ),
]
AbstainBelow = Annotated[
    float | None,
    typer.Option(
        metavar="P",
        callback=between(0, 1),
        help="Leave pictures to a person whose most probable class has less than this.",
        show_default=False,
    ),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Stop at the first unreadable picture instead of skipping it.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON on stdout, all else on stderr.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", help="Show every choice on the screen, not in log.txt alone.")
]

# What decides a run; see RecipeOptions.
Network = Annotated[
    str | None,
    typer.Option(
        help="A published network (effnetv2 models), one of another library (timm:resnet50, torchvision:resnet50), or "
        "a file with a table (effnetv2 search export). (Default: that of the weights; else efficientnetv2_b0, with an "
        "NVIDIA or AMD GPU _s.)",
        show_default=False,
    ),
]
RecipeName = Annotated[
    str | None,
    typer.Option(
        help="A named recipe (effnetv2 recipes), a recipe.yaml, or a run folder. (Default: finetune with weights, "
        "else quick.)",
        show_default=False,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="auto|none|NAME|FILE",
        help="To start from: a name (effnetv2 models --pretrained), a model file or run folder, or weights of "
        "timm, torchvision, Keras or the authors. (Default: auto, which compares those at hand.)",
        show_default=False,
    ),
]
Epochs = Annotated[
    float | None,
    typer.Option(
        help="Passes over the pictures. (Default: the recipe's. finetune: 10; quick: until 100,000 pictures are seen, "
        "10 to 100.)",
        show_default=False,
    ),
]
Minutes = Annotated[
    float | None,
    typer.Option(
        help="Train as long as fits into this time, from the command to the report. (Default: the epochs decide.)",
        show_default=False,
    ),
]
ImagePx = Annotated[
    int | None,
    typer.Option(
        callback=between(*IMAGE_PX, rule=LAST_PX),
        help="Picture size of the last stage; earlier ones scale. (Default: the recipe's; quick 128, finetune 224, "
        "less where pictures are stored small.)",
        show_default=False,
    ),
]
BatchImages = Annotated[
    int | None,
    typer.Option(
        callback=between(1, 1_000_000),
        help="Pictures a step; the learning rate follows. (Default: the recipe's; quick and finetune: 32.)",
        show_default=False,
    ),
]
Framing = Annotated[
    str | None,
    typer.Option(
        metavar="whole|crop|pad",
        help="How a picture becomes a square: whole squeezes it (nothing is cut off), crop cuts the centre, pad adds "
        "margins. (Default: the recipe's; quick and finetune: whole.)",
        show_default=False,
    ),
]
Cache = Annotated[
    str | None,
    typer.Option(
        metavar="ram|disk",
        help="Decode each picture once and keep it, shrunk to what crops need: in memory for this run, or on disk "
        "for later ones too. (Default: decode it each time.)",
        show_default=False,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        help="Number that fixes everything random. (Default: 0, or that of a recipe.yaml.)",
        show_default=False,
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="A.B=C",
        help="Any other field of the recipe (effnetv2 recipes --fields says what there is); may be repeated.",
        show_default=False,
    ),
]
RunOut = Annotated[
    Path | None,
    typer.Option(help="Folder of the run. (Default: a new one under runs/.)", show_default=False),
]


@dataclass(frozen=True)
class RecipeOptions:
    """What decides a run: of ``train``, of ``plan``, which foretells it, and of ``crossval``, which repeats it.

    See ``cli.options``.
    """

    panel: ClassVar[str] = "What decides the run"
    model: Network = None
    recipe: RecipeName = None
    weights: Weights = None
    epochs: Epochs = None
    minutes: Minutes = None
    image_px: ImagePx = None
    batch_images: BatchImages = None
    framing: Framing = None
    cache: Cache = None
    seed: Seed = None
    settings: Settings = None

    def words(self) -> TrainOverrides:
        """For whoever makes a recipe of them.

        Raises:
            InputError: two of them contradict each other, or a value out of range.
        """
        from efficientnetv2.training.overrides import TrainOverrides

        said = {field.name: getattr(self, field.name) for field in fields(self)}
        return TrainOverrides(**said | {"settings": tuple(self.settings or ())})


@dataclass(frozen=True)
class TableOptions:
    """How the labels of DATA are read."""

    panel: ClassVar[str] = "How DATA is read"
    path_column: PathColumn = "path"
    label_column: LabelColumn = "label"
    group_column: GroupColumn = None
    labels: Labels = "exact"
    label_separator: LabelSeparator = None
    bands: BandsSeen = None
    nodata: NoData = None
    layout: FolderLayout = "auto"
    min_images_per_class: MinImagesPerClass = 0

    def source(self, data: str) -> DataConfig:
        """DATA and how to read it."""
        from efficientnetv2.data.config import DataConfig

        return DataConfig(data, **{field.name: getattr(self, field.name) for field in fields(self)})


@dataclass(frozen=True)
class OneLabelOptions(TableOptions):
    """The same for what takes pictures of one label each: several are refused in words, and not offered."""

    label_separator: Annotated[str | None, typer.Option(hidden=True)] = None


@dataclass(frozen=True)
class MachineOptions:
    """What a run takes of the machine, and how it answers."""

    panel: ClassVar[str] = "The machine"
    device: Device = "auto"
    workers: Workers = None
    memory_gib: MemoryGib = None
    strict: Strict = False
    as_json: Json = False
    verbose: Verbose = False

    def place(self, out: Path | None, *, resume: bool = False, against: Path | None = None) -> RunOptions:
        """Where and how to run."""
        from efficientnetv2.training.run_options import RunOptions

        return RunOptions(
            out, resume, self.device, self.workers, self.memory_gib, self.strict, against=against
        )


Answer = TypeVar("Answer")


def spread(command: Callable[..., Answer]) -> Callable[..., Answer]:
    """The command as typer is to see it: each parameter that is a dataclass becomes an option for each of its fields.

    In ``--help`` the options of one dataclass stand together, under its ``panel``.

    Args:
        command: its parameters are annotated as typer wants them, or with a dataclass whose fields are; every field has
            a default and the name of no other option.
    """
    hints = get_type_hints(command, include_extras=True)
    groups = {
        name: hints[name] for name in inspect.signature(command).parameters if _is_group(hints.get(name))
    }
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in groups:
            parameters += _options_of(groups[name])
        else:
            parameters.append(parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def gathered(**given: Any) -> Answer:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in dataclasses.fields(group)})
        return command(**given)

    gathered.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    gathered.__annotations__ = {one.name: one.annotation for one in parameters}
    return gathered


def _is_group(hint: Any) -> bool:
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def _options_of(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=_in_panel(hints[field.name], group.panel),
        )
        for field in dataclasses.fields(group)
    ]


def _in_panel(hint: Any, panel: str) -> Any:
    """The annotation with its option under a heading of ``--help``."""
    assert get_origin(hint) is Annotated, hint
    kind, *notes = get_args(hint)
    placed = []
    for note in notes:
        if isinstance(note, OptionInfo):
            note = copy.copy(note)
            note.rich_help_panel = panel
        placed.append(note)
    return Annotated[kind, *placed]
