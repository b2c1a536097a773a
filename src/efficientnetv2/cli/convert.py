"""``effnetv2 convert``: weights of others into a model file, and model files into theirs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from efficientnetv2.cli import options
from efficientnetv2.cli.console import Screen, print_json
from efficientnetv2.progressive.schedule import IMAGE_PX
from efficientnetv2.utils.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from efficientnetv2.models.conversion.metadata import UserMetadata
    from efficientnetv2.models.efficientnet import Network


_CHOICES = {
    "framing": ("whole", "crop", "pad"),
    "interpolation": ("bilinear", "bicubic"),
    "views": ("one", "symmetries"),
}


def told(class_names: str | None, **fields: Any) -> UserMetadata:
    """What the user said; None where nothing was said.

    Args:
        class_names: see ``names``.
        fields: of ``Preprocessing``; mean and std as text, "0.5,0.5,0.5".

    Raises:
        InputError: a word that means nothing.
    """
    from efficientnetv2.models.conversion.metadata import UserMetadata

    said = {name: value for name, value in fields.items() if value is not None}
    for name, choices in _CHOICES.items():
        if name in said and said[name] not in choices:
            raise InputError(
                f"--{name} is '{said[name]}', but is one of {', '.join(choices)}{did_you_mean(said[name], choices)}"
            )
    for name in {"mean", "std"} & said.keys():
        said[name] = _numbers(name, said[name])
    if not 0 < said.get("crop_fraction", 1) <= 1:
        raise InputError(
            f"--crop-fraction is {said['crop_fraction']:g}, but is a share of the shorter side: above 0, at most 1. "
            "Divide a percentage by 100."
        )
    return UserMetadata(said, None if class_names is None else names(class_names))


def names(word: str) -> tuple[str, ...]:
    """Class names in the order of the outputs.

    Args:
        word: names with commas between them; or a file: of text with a name on each line, or of JSON with a list of
            names, or an object from number to name or from name to number.

    Raises:
        InputError: no such file, or one that holds something else.
    """
    path = Path(word)
    if not os.path.isfile(word):  # unlike Path's own, it takes names that are longer than any file's
        if "," not in word and path.suffix in (".txt", ".json"):
            raise InputError(
                f"--class-names {word}: there is no such file. Give one with a name on each line, or the names with "
                "commas between."
            )
        return tuple(name.strip() for name in word.split(",") if name.strip())
    try:
        text = path.read_text(encoding="utf-8-sig")
        listed = _of_json(path, json.loads(text)) if text.lstrip()[:1] in ("[", "{") else text.splitlines()
    except ValueError as error:  # no JSON, or no UTF-8
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"--class-names {path}: it is neither JSON nor text in UTF-8 ({str(error).splitlines()[0]}). Give a name "
            "on each line, or a JSON list of names."
        ) from error
    return tuple(name.strip() for name in listed if name.strip())


def _of_json(path: Path, plain: Any) -> list[str]:
    """Names of a list, or of an object that numbers them either way."""
    if isinstance(plain, dict):
        numbered = {key: value for key, value in plain.items() if isinstance(value, str) and key.isdecimal()}
        turned = {str(value): key for key, value in plain.items() if type(value) is int}
        rows = next((way for way in (numbered, turned) if len(way) == len(plain)), None)
        if rows is not None and sorted(map(int, rows)) == list(range(len(rows))):
            return [rows[key] for key in sorted(rows, key=int)]
        raise InputError(
            f"--class-names {path}: its JSON object does not number the names from 0, each once. Give "
            '{"0": "oak", "1": "elm"}, {"oak": 0, "elm": 1} or ["oak", "elm"].'
        )
    if not isinstance(plain, list) or not all(isinstance(name, str) for name in plain):
        raise InputError(f'--class-names {path}: its JSON is no list of names. Give ["oak", "elm"].')
    return plain


def _numbers(name: str, word: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in word.split(","))
    except ValueError as error:
        raise InputError(
            f"--{name} is '{word}', but is a number for each channel with commas between, as 0.485,0.456,0.406."
        ) from error
    least = "above 0, " if name == "std" else ""
    if not all(abs(number) <= 1 and (name == "mean" or number > 0) for number in numbers):
        raise InputError(
            f"--{name} is '{word}', but is of values in [0, 1], and so {least}at most 1. Divide one that is of values "
            "from 0 to 255 by 255."
        )
    return numbers


_PADDINGS = {"same": 'TensorFlow\'s "same"', "symmetric": "symmetric"}
_FRAMINGS = {"whole": "whole picture squeezed", "crop": "centre square cut", "pad": "padded to a square"}
_ONNX = ". For ONNX, use Python: torch.onnx.export(efficientnetv2.load('IN').eval(), ...)"
_PANEL = "What IN does not state, or states wrongly"


def _option(help: str, metavar: str | None = None, callback: Callable[..., Any] | None = None) -> Any:
    """Of the preprocessing."""
    return typer.Option(
        help=help, metavar=metavar, callback=callback, show_default=False, rich_help_panel=_PANEL
    )


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN",
            help="A model file or run folder of ours; or weights of timm (file, or hub folder with config.json), "
            "torchvision, Keras (.weights.h5, .h5, .keras) or the authors' TensorFlow code (checkpoint).",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT",
            help="Without --to a model file of ours. For timm a folder, or .safetensors or .pth; for torchvision "
            ".pth or .safetensors; for Keras .weights.h5, .h5 or .keras.",
            show_default=False,
        ),
    ],
    to: Annotated[
        str | None,
        typer.Option(
            metavar="timm|torchvision|keras",
            help="For whom. (Default: our model file.)",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What IN's own side calls the network, where the file does not say: efficientnetv2_s for timm's "
            "with symmetric padding. (Default: as recognised; timm's tf_ network.)",
            show_default=False,
        ),
    ] = None,
    class_names: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|NAME,NAME,...",
            help="Of the outputs, in their order: a text file with a name on each line, a JSON file with a list, or "
            "the names with commas between.",
            show_default=False,
            rich_help_panel=_PANEL,
        ),
    ] = None,
    image_px: Annotated[
        int | None,
        _option("Side of the square that the network looks at.", callback=options.between(*IMAGE_PX)),
    ] = None,
    framing: Annotated[
        str | None,
        _option(
            "whole squeezes the picture into it, crop cuts the centre square, pad adds margins.",
            "whole|crop|pad",
        ),
    ] = None,
    crop_fraction: Annotated[float | None, _option("Of the shorter side, that crop keeps: 0 to 1.")] = None,
    interpolation: Annotated[str | None, _option("Of the resize.", "bilinear|bicubic")] = None,
    mean: Annotated[
        str | None, _option("Of each channel, of values in [0, 1]: 0.485,0.456,0.406.", "X,X,X")
    ] = None,
    std: Annotated[str | None, _option("Likewise: 0.229,0.224,0.225.", "X,X,X")] = None,
    views: Annotated[
        str | None, _option("symmetries averages over the eight flips and turns.", "one|symmetries")
    ] = None,
    half: Annotated[
        bool,
        typer.Option(
            "--half",
            help="Keep kernels and matrices of OUT in half precision: a model file of half the size, to share. It is "
            "read, and computes, in float32 again.",
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
    as_json: options.Json = False,
) -> None:
    """Convert weights between this package, timm, torchvision, Keras and the authors' checkpoints.

    What IN is, is recognised from the file itself. Preprocessing and class names come along; what IN does not state of
    them can be told, and what had to be assumed is said.

    Examples:
    - `effnetv2 convert tf_efficientnetv2_s.safetensors s.safetensors`
    - `effnetv2 convert efficientnet_v2_s-dd5fe13b.pth s.safetensors`
    - `effnetv2 convert runs/demo for_timm --to timm`
    - `effnetv2 convert runs/demo small.safetensors --half`
    - `effnetv2 convert trees.keras trees.safetensors --class-names oak,elm,ash --framing whole`
    """
    from efficientnetv2.models import model_file
    from efficientnetv2.models.conversion import convert as interop
    from efficientnetv2.models.efficientnet import EfficientNet
    from efficientnetv2.utils.errors import InputError, did_you_mean

    if to is not None and to not in interop.TARGETS:
        raise InputError(
            f"--to: invalid value '{to}' (choose from {', '.join(interop.TARGETS)})"
            + (_ONNX if to == "onnx" else did_you_mean(to, interop.TARGETS))
        )
    if half and to is not None:
        raise InputError(
            f"--half is of our own model file, but --to is {to}: what others' programs make of half precision is "
            "theirs to say. Leave one of them out."
        )
    _check_places(source, out, to, overwrite=overwrite)
    said = told(
        class_names,
        image_px=image_px,
        framing=framing,
        crop_fraction=crop_fraction,
        interpolation=interpolation,
        mean=mean,
        std=std,
        views=views,
    )
    network, recognised, notes = _load(source, model, to, said)
    screen = Screen(quiet=as_json)
    for line in (f"Recognised: {recognised}.", *_described(network), *map(_sentence, notes)):
        screen.say(line)
    if to is None:
        model_file.save(
            out,
            network,
            preprocessing=network.preprocessing,
            class_names=network.class_names,
            recipe=network.recipe,
            metrics=network.metrics,
            half=half,
        )
        if half:
            notes = (*notes, _halved(out, network))
            screen.say(_sentence(notes[-1]))
    else:
        assert isinstance(network, EfficientNet)  # of others none is written for others
        alone = interop.write(out, network, cast("Literal['timm', 'torchvision', 'keras']", to))
        alone = (*alone, *_uncalibrated(network, to))
        notes = (*notes, *alone)
        for line in map(_sentence, alone):
            screen.say(line)
    screen.say(f"Written to {out}.")
    if to == "timm" and out.is_dir():
        screen.say(f'In timm: timm.create_model("local-dir:{out}", pretrained=True)')
    if as_json:
        print_json(
            {
                "recognised": recognised,
                "architecture": network.architecture.to_json() if isinstance(network, EfficientNet) else None,
                "num_classes": network.num_classes,
                "in_channels": network.in_channels,
                "preprocessing": network.preprocessing.to_json(),
                "class_names": list(network.class_names),
                "notes": list(notes),
                "to": to,
                "out": str(out),
            }
        )


def _check_places(source: Path, out: Path, to: str | None, *, overwrite: bool) -> None:
    from efficientnetv2.models.conversion.reading import is_model_file
    from efficientnetv2.models.model_file import NAME
    from efficientnetv2.models.pretrained import names
    from efficientnetv2.utils.errors import InputError

    if not source.exists() and str(source) in names():
        raise InputError(
            f"IN {source}: that is a name of pretrained weights, and no file is called so. To train from them: "
            f"effnetv2 train DATA --weights {source}. To have them as a model file, in Python: "
            f"efficientnetv2.save('{out}', efficientnetv2.create('{source}'))."
        )
    if not out.absolute().parent.is_dir():
        raise InputError(f"OUT {out}: there is no folder {out.parent}. Make it, or give another place.")
    own = [file for file in (source, source / NAME) if file.exists()]  # of a folder its weights
    if out.exists() and any(map(out.samefile, own)):
        raise InputError(f"OUT {out} is IN itself. Give another place.")
    if out.exists() and not overwrite and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"OUT {out} exists. Give another place, or --overwrite to replace it.")
    if to == "timm" and out.is_dir() and is_model_file(out):
        raise InputError(
            f"OUT {out} holds a model file of ours, {NAME}, in whose place timm's would stand. Give another folder."
        )
    if to is None and (out.is_dir() or out.suffix != ".safetensors"):
        raise InputError(
            f"OUT {out}: a model file ends in .safetensors. Name it so, or say --to timm, torchvision or keras."
        )


def _load(
    source: Path, model: str | None, to: str | None, said: UserMetadata
) -> tuple[Network, str, Sequence[str]]:
    """The network, what it was recognised as, and what there is to say about that."""
    from efficientnetv2.models import model_file
    from efficientnetv2.models.conversion import convert as interop
    from efficientnetv2.models.conversion.metadata import apply_metadata
    from efficientnetv2.models.conversion.reading import is_model_file
    from efficientnetv2.models.efficientnet import EfficientNet
    from efficientnetv2.models.ensemble import ensemble_members
    from efficientnetv2.utils.errors import InputError
    from efficientnetv2.workflows.crossval_config import CROSSVAL_JSON

    if ensemble_members(source) or (source / CROSSVAL_JSON).is_file():
        raise InputError(
            f"IN {source} is the folder of a cross-validation, each of whose folds has a network of its own, but a "
            f"file holds one. Give the run of a fold: {source / 'fold1'}."
        )
    if is_model_file(source) or (source / "recipe.yaml").is_file():  # a run that has not ended is told so
        if model is not None:
            raise InputError(f"--model {model}: {source} is a model file, which says itself what it is.")
        ours = model_file.load(source)
        if to is not None and not isinstance(ours, EfficientNet):
            raise InputError(
                f"{source} is a model file of a network that is none of ours: its own package reads and writes its "
                "weights. Leave --to out to change what the file says, or to halve it."
            )
        return ours, "a model file of this package", apply_metadata(ours, said)
    imported = interop.read(source, model=model, user=said)
    return imported.network, f"{imported.theirs} of {imported.title}", imported.notes


def _uncalibrated(network: Network, to: str) -> list[str]:
    """That the temperature stays behind, and how to have it there."""
    if network.calibration is None:
        return []
    temperature = network.calibration.temperature
    there = "probabilities are those of the bare logits; divide these by it to have ours"
    if to == "keras" and network.answer == "softmax":  # whose networks end with it
        there = f"outputs are probabilities; take each to the power {1 / temperature:.4g} and divide by the sum of all"
    elif to == "keras":
        there = "outputs are probabilities; divide log(p / (1 - p)) of each by it and take the sigmoid again"
    return [
        f"the temperature of {temperature:.4g} has no place in a file for {to}: there {there}. No answer is another by "
        "it"
    ]


def _described(network: Network) -> list[str]:
    """Padding, preprocessing and classes, a line each."""
    from efficientnetv2.utils.errors import shorten

    preprocessing = network.preprocessing
    mean, std = (" ".join(f"{one:.4g}" for one in many) for many in (preprocessing.mean, preprocessing.std))
    framing = _FRAMINGS[preprocessing.framing]
    if preprocessing.framing == "crop":
        framing += f" of {preprocessing.crop_fraction:.3g} of the shorter side"
    elif preprocessing.crop_fraction < 1:
        framing = f"the middle {preprocessing.crop_fraction:.3g} of each side squeezed"
    classes = (
        f"{network.num_classes}: {shorten(network.class_names, 3)}"
        if network.num_classes
        else "no classifier"
    )
    return [
        *_kind(network),
        f"Preprocessing: {preprocessing.image_px} px, {framing}, {preprocessing.interpolation}, "
        f"mean {mean}, std {std}.",
        f"Classes: {classes}. Input channels: {network.in_channels}.",
    ]


def _kind(network: Network) -> list[str]:
    """Which of the networks of one shape it is; of others, whose."""
    from efficientnetv2.models.efficientnet import EfficientNet
    from efficientnetv2.models.wrappers import WrappedModel

    if isinstance(network, EfficientNet):
        table = network.architecture
        return [f"Padding: {_PADDINGS[table.padding]}; batch-norm epsilon {table.batch_norm_epsilon:g}."]
    return [f"Network: {network.source}."] if isinstance(network, WrappedModel) else []


def _halved(out: Path, network: Network) -> str:
    """What half precision saves, and what it changes, in a sentence."""
    before = sum(weight.numel() * weight.element_size() for weight in network.state_dict().values())
    return (
        "kernels and matrices are in half precision, each weight within 1/2048 of what it was (or 3e-8): "
        f"{out.stat().st_size / 1e6:.1f} MB instead of {before / 1e6:.1f} MB"
    )


def _sentence(note: str) -> str:
    return f"Note: {note.rstrip('.')}."
