"""Options that several commands share, declared once; a dataclass is a block of them."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_type_hints

import typer

from efficientnetv2.cli.parsing import ADVANCED
from efficientnetv2.preprocessing import TTA, CropMode
from efficientnetv2.progressive.schedule import IMAGE_SIZE

if TYPE_CHECKING:
    from efficientnetv2.data.config import DataConfig
    from efficientnetv2.training.overrides import TrainOverrides
    from efficientnetv2.training.run_request import RunOptions

READING = f"{ADVANCED}: how DATA is read"


def between(least: float, most: float = math.inf) -> Callable[[Any], Any]:
    """A callback that checks the range of a number; typer's own lets infinity through."""
    rule = f"at least {least:,}" if most == math.inf else f"between {least:,} and {most:,}"

    def check(value: Any) -> Any:
        if value is not None and (not least <= value <= most or value == math.inf):
            raise typer.BadParameter(f"invalid value '{value:,}' (must be {rule})")
        return value

    return check


def option(
    help: str,
    metavar: str | None = None,
    *names: str,
    check: Callable[[Any], Any] | None = None,
    panel: str | None = None,
    show_default: bool = True,
) -> Any:
    """An option; `names` are those that do not follow from the parameter."""
    return typer.Option(
        *names, help=help, metavar=metavar, callback=check, rich_help_panel=panel, show_default=show_default
    )


advanced = functools.partial(option, panel=ADVANCED)
reading = functools.partial(option, panel=READING)


def flag(name: str, help: str, panel: str | None = None) -> Any:
    """An option without a value."""
    return typer.Option(name, help=help, rich_help_panel=panel)


def argument(metavar: str, help: str) -> Any:
    """An argument."""
    return typer.Argument(metavar=metavar, help=help, show_default=False)


def expanded(paths: Iterable[str]) -> list[str]:
    """Paths, with those of patterns such as runs/*, which the shells of Windows do not expand."""
    return [one for path in paths for one in ([] if os.path.exists(path) else sorted(glob(path))) or [path]]


_DATA = "A folder with a sub-folder per class, a CSV or Parquet file, shards, or a name such as cifar10."
_TTA = "Test-time augmentation: average over all 8 flips and turns.  [default: the model's]"
_MEMORY = "Memory limit in GiB, of the GPU, or of this process on a CPU."
_STRICT = "Stop at the first unreadable image instead of skipping it."
_TIME = "Column of a year or date.  [default: year, date, datetime, timestamp or time, if present]"

Data = Annotated[str, argument("DATA", _DATA)]
Model = Annotated[
    str, argument("MODEL", "A model.safetensors, a run folder, or pretrained weights such as efficientnetv2_s.in1k.")
]
Device = Annotated[str, option("auto, cpu, cuda, cuda:1 or mps.", "NAME", show_default=False)]
Workers = Annotated[int | None, option("Processes that read images.", "N", check=between(0))]
Strict = Annotated[bool, flag("--strict", _STRICT, panel=ADVANCED)]
Engine = Annotated[
    Literal["auto", "torch", "onnxruntime", "openvino", "openvino-bf16"],
    option("What computes. auto: the fastest installed one, on a CPU.", panel=ADVANCED),
]
Json = Annotated[bool, flag("--json", "Print the result as JSON on stdout.", panel=ADVANCED)]
Tta = Annotated[TTA | None, option(_TTA, "none|d4")]
Settings = Annotated[
    list[str] | None, option("Any field of the recipe; repeatable (recipes --fields).", "A.B=C", "--set")
]
Seed = Annotated[int, option("Random seed.", "N")]
RunOut = Annotated[Path | None, option("Folder of the run.  [default: a new one in runs/]", "FOLDER", "--output")]
Resume = Annotated[bool, flag("--resume", "Resume the run in --output, or the newest in runs/; give DATA again.")]
Half = Annotated[bool, flag("--half", "Store weights in half precision.")]
TimeColumn = Annotated[str | None, advanced(_TIME, "NAME")]
MemoryGib = Annotated[float | None, advanced(_MEMORY, "GIB")]
ImageSize = Annotated[int | None, option("Image size of the last stage.", "PX", check=between(*IMAGE_SIZE))]
BatchSize = Annotated[
    int | None, option("Images per step; the learning rate scales with it.", "N", check=between(1, 1_000_000))
]


@dataclass(frozen=True)
class RecipeOptions:
    """What decides a run of ``train`` or ``crossval``."""

    model: Annotated[
        str | None, option("A name (effnetv2 models), timm:NAME, torchvision:NAME, or a file.", "NAME")
    ] = None
    weights: Annotated[str | None, option("auto, none, a name (models --pretrained), a file, or a run.", "NAME")] = None
    epochs: Annotated[float | None, option("Passes over the training images.", "N")] = None
    minutes: Annotated[float | None, option("Time of the whole run, with its report, instead of --epochs.", "N")] = None
    image_size: ImageSize = None
    batch_size: BatchSize = None
    lr: Annotated[float | None, option("Peak learning rate.", "X", check=between(0))] = None
    seed: Annotated[int | None, option("Random seed.", "N")] = None
    recipe: Annotated[str | None, option("A name (effnetv2 recipes), a recipe.yaml, or a run.", "NAME")] = None
    settings: Settings = None
    crop_mode: Annotated[
        CropMode | None, advanced("How an image becomes a square: squeeze it, cut the center, or add margins.")
    ] = None
    cache: Annotated[
        Literal["ram", "disk"] | None, advanced("Decode each image once, into memory or on disk for later runs.")
    ] = None

    def overrides(self) -> TrainOverrides:
        """The overrides of a recipe."""
        from efficientnetv2.training.overrides import TrainOverrides, with_lr

        given = {field.name: getattr(self, field.name) for field in fields(self)}
        settings = with_lr(given.pop("settings") or (), given.pop("lr"))
        return TrainOverrides(**given, settings=settings)


@dataclass(frozen=True)
class LabeledOptions:
    """How labeled images are read."""

    path_column: Annotated[str, reading("Column of the image path.", "NAME")] = "path"
    label_column: Annotated[str, reading("Column of the label.", "NAME")] = "label"
    group_column: Annotated[
        str | None, reading("Column of groups to keep together, such as patients.  [default: group, if any]", "NAME")
    ] = None
    labels: Annotated[
        Literal["exact", "casefold"],
        reading("casefold merges labels that differ by case, outer spaces or Unicode encoding."),
    ] = "exact"
    label_separator: Annotated[
        str | None, reading('Multi-label images: text between the labels, such as ";".', "TEXT")
    ] = None
    layout: Annotated[Literal["auto", "classes", "splits"], reading("Meaning of the sub-folders of DATA.")] = "auto"

    def data_config(self, data: str) -> DataConfig:
        """DATA and how to read it."""
        from efficientnetv2.data.config import DataConfig

        return DataConfig(data, **{field.name: getattr(self, field.name) for field in fields(self)})


@dataclass(frozen=True)
class CheckOptions(LabeledOptions):
    """How labeled images, also of several bands, are read."""

    bands: Annotated[
        str | None, reading("GeoTIFF: bands to read, from 1, such as 4,3,2.  [default: RGB, else all]", "N,N|all")
    ] = None
    nodata: Annotated[
        str | None,
        reading(
            "GeoTIFF: values that mean missing data, besides the declared one.  [default: found]",
            "X,X|none",
            "--nodata",
        ),
    ] = None


@dataclass(frozen=True)
class TableOptions(CheckOptions):
    """How DATA is read to train on it."""

    min_images_per_class: Annotated[int, reading("Leave out classes with fewer images.", "N", check=between(0))] = 0


@dataclass(frozen=True)
class OneLabelOptions(TableOptions):
    """The same for images of one label each: several are refused by the library, and not offered."""

    label_separator: Annotated[str | None, typer.Option(hidden=True)] = None


@dataclass(frozen=True)
class MachineOptions:
    """What a run takes of the machine, and what it prints."""

    device: Device = "auto"
    workers: Workers = None
    memory_gib: MemoryGib = None
    strict: Strict = False
    as_json: Json = False
    verbose: Annotated[bool, flag("--verbose", "Print the details of log.txt.", panel=ADVANCED)] = False

    def run_options(self, out: Path | None, *, resume: bool = False, baseline: Path | None = None) -> RunOptions:
        """Where and how to run."""
        from efficientnetv2.training.run_request import RunOptions

        return RunOptions(out, resume, self.device, self.workers, self.memory_gib, self.strict, against=baseline)


Result = TypeVar("Result")


def spread(command: Callable[..., Result]) -> Callable[..., Result]:
    """The command as typer reads it: a parameter that is a dataclass becomes an option for each of its fields."""
    hints = get_type_hints(command, include_extras=True)
    blocks: dict[str, Any] = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        block = blocks.get(name)
        if block is None:
            given = [(name, parameter.default, hints[name])]
        else:
            own = get_type_hints(block, include_extras=True)
            given = [(field.name, field.default, own[field.name]) for field in fields(block)]
        parameters += [
            inspect.Parameter(each, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)
            for each, default, hint in given
        ]

    @functools.wraps(command)
    def gathered(**given: Any) -> Result:
        for name, block in blocks.items():
            values = {field.name: given.pop(field.name, field.default) for field in fields(block)}
            given[name] = block(**values)
        return command(**given)

    gathered.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    gathered.__annotations__ = {one.name: one.annotation for one in parameters}
    return gathered
