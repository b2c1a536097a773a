"""Conversion of weights between this package, timm, torchvision, Keras and the authors' checkpoints."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np

from efficientnetv2.models import model_file
from efficientnetv2.models.conversion import convert as conversion
from efficientnetv2.models.conversion.convert import TARGETS, Target
from efficientnetv2.models.conversion.metadata import UserMetadata, apply_metadata
from efficientnetv2.models.conversion.weight_reader import is_model_file
from efficientnetv2.models.efficientnet import EfficientNet, Network
from efficientnetv2.models.ensemble import ensemble_members
from efficientnetv2.models.output_shapes import infer_shapes
from efficientnetv2.models.pretrained import weight_names
from efficientnetv2.models.wrapped_model import WrappedModel
from efficientnetv2.preprocessing import TTA, CropMode
from efficientnetv2.utils.errors import InputError, shorten
from efficientnetv2.utils.io import entry_names
from efficientnetv2.utils.shell import shell_join
from efficientnetv2.workflows.arguments import PathLike, api, choice, path_text
from efficientnetv2.workflows.crossval_config import CROSSVAL_JSON

_CHOICES = {"crop_mode": get_args(CropMode), "interpolation": ("bilinear", "bicubic"), "tta": get_args(TTA)}
_PADDINGS = {"same": 'TensorFlow\'s "same"', "symmetric": "symmetric"}
_CROP_MODES = {"squash": "squeezed to a square", "center": "center square", "border": "padded to a square"}


@dataclass(frozen=True, eq=False)
class Conversion:
    """A converted file.

    Example::

        import efficientnetv2 as ev2

        conversion = ev2.convert("runs/demo", "for_timm", to="timm")
        print(conversion.notes)

    Attributes:
        to: Library that it is for; None is this package.
        recognized: What the input was.
        notes: What was assumed, and what was lost, a sentence each.
    """

    output: Path
    to: str | None
    recognized: str
    network: Network = field(repr=False)
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        network = self.network
        return {
            "recognized": self.recognized,
            "architecture": network.architecture.to_json() if isinstance(network, EfficientNet) else None,
            "num_classes": network.num_classes,
            "in_channels": network.in_channels,
            "preprocessing": network.preprocessing.to_json(),
            "class_names": list(network.class_names),
            "notes": list(self.notes),
            "to": self.to,
            "out": str(self.output),
        }


@api
def convert(
    source: PathLike,
    output: PathLike,
    *,
    to: Target | None = None,
    model: str | None = None,
    class_names: PathLike | Sequence[str] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    half: bool = False,
    overwrite: bool = False,
) -> Conversion:
    """Convert weights of another library into a model file, or a model file into weights of another library.

    The input is recognized by its tensors. Preprocessing and class names are taken along.

    Example::

        import efficientnetv2 as ev2

        ev2.convert("runs/demo", "for_timm", to="timm")

    Args:
        source: A model file or run; or weights of timm (a file, or a folder with config.json), torchvision, Keras
            (.weights.h5, .h5, .keras), or a TensorFlow checkpoint of the authors.
        output: A .safetensors file. For timm a folder, .safetensors or .pth; for torchvision .pth or .safetensors;
            for Keras .weights.h5, .h5 or .keras.
        to: Library that will read the output: "timm", "torchvision" or "keras". None writes a model file.
        model: The other library's name of the model, if the file does not state it.
        class_names: Class names in the order of the outputs; or a file with a name per line, or a JSON list.
        preprocessing: Fields of `Preprocessing` that the input does not state, or states wrongly.
        half: Store kernels and matrices of a model file in half precision.
        overwrite: Replace the output if it exists.

    Raises:
        InputError: The input cannot be read or converted, or the output cannot be written.
    """
    path, out = Path(path_text("source", source)), Path(path_text("output", output))
    if str(to) in ("onnx", "openvino", "torch", "triton"):
        raise InputError(f"`to` must be one of {', '.join(TARGETS)}, not '{to}'. Use efficientnetv2.export.")
    choice("to", to, TARGETS)
    if half and to is not None:
        raise InputError(f"`half` is for a model file of this package, not for {to}. Leave it out.")
    _check_paths(path, out, to, overwrite=overwrite)
    user = user_metadata(class_names, preprocessing or {})
    network, recognized, notes = _load(path, model, to, user)
    if "image_size" in user.preprocessing:
        infer_shapes(network, in_channels=network.in_channels, image_size=network.preprocessing.image_size)
    if to is None:
        model_file.save(out, network, half=half)
        notes = [*notes, *([_half_note(out, network)] if half else [])]
    else:
        assert isinstance(network, EfficientNet | WrappedModel)  # _load refuses others
        notes = [*notes, *conversion.write(out, network, to), *temperature_notes(network, to)]
    return Conversion(out, to, recognized, network, tuple(notes))


def user_metadata(class_names: PathLike | Sequence[str] | None, preprocessing: Mapping[str, Any]) -> UserMetadata:
    """Class names and preprocessing of the caller; InputError for an invalid value."""
    if not isinstance(preprocessing, Mapping):
        raise InputError(f"`preprocessing` must be fields such as {{'image_size': 224}}, not {preprocessing!r}.")
    for name, choices in _CHOICES.items():
        choice(name, preprocessing.get(name), choices)
    for name in {"mean", "std"} & preprocessing.keys():
        try:
            values = tuple(map(float, preprocessing[name]))
        except (TypeError, ValueError) as error:
            raise InputError(f"`{name}` must have a number per channel, not {preprocessing[name]!r}.") from error
        if not all(abs(value) <= 1 and (name == "mean" or value > 0) for value in values):
            rule = "at most 1" if name == "mean" else "above 0 and at most 1"
            given = ",".join(f"{value:g}" for value in values)
            raise InputError(f"`{name}={given}` must be {rule} per channel. Divide by 255.")
    fraction = preprocessing.get("crop_pct", 1)
    if isinstance(fraction, bool) or not isinstance(fraction, int | float | np.number):
        raise InputError(f"`crop_pct` must be a number, not {fraction!r}.")
    if not 0 < fraction <= 1:
        raise InputError(f"`crop_pct={fraction:g}` must be above 0 and at most 1, not a percentage.")
    if isinstance(class_names, str | os.PathLike):
        class_names = read_class_names(os.path.expanduser(class_names))
    return UserMetadata(dict(preprocessing), None if class_names is None else tuple(class_names))


def read_class_names(text: str) -> tuple[str, ...]:
    """Class names from text with commas, or from a file of lines, a JSON list, or a JSON object that numbers them."""
    path = Path(text)
    if not os.path.isfile(text):  # unlike Path's own, it takes text that is longer than any file's name
        if "," not in text and path.suffix in (".txt", ".json"):
            raise InputError(f"`class_names`: file {text} does not exist. Give one, or names with commas.")
        return tuple(name.strip() for name in text.split(",") if name.strip())
    try:
        content = path.read_text(encoding="utf-8-sig")
        is_json = content.lstrip()[:1] in ("[", "{")
        plain = json.loads(content) if is_json else content.splitlines()
    except ValueError as error:  # no JSON, or no UTF-8
        reason = str(error).splitlines()[0]
        fix = "Give a name per line, or a JSON list."
        raise InputError(f"`class_names`: {path} is neither JSON nor text in UTF-8 ({reason}). {fix}") from error
    return tuple(name.strip() for name in _from_json(path, plain) if name.strip())


def _from_json(path: Path, plain: Any) -> list[str]:
    """Names of a list, or of an object from number to name or from name to number."""
    if isinstance(plain, dict):
        by_number = {key: value for key, value in plain.items() if isinstance(value, str) and key.isdecimal()}
        by_name = {str(value): key for key, value in plain.items() if type(value) is int}
        rows = next((found for found in (by_number, by_name) if len(found) == len(plain)), None)
        if rows is not None and sorted(map(int, rows)) == list(range(len(rows))):
            return [rows[key] for key in sorted(rows, key=int)]
        fix = 'Give {"0": "oak", "1": "elm"}, {"oak": 0, "elm": 1} or ["oak", "elm"].'
        raise InputError(f"`class_names`: {path} does not number the names from 0, each once. {fix}")
    if not isinstance(plain, list) or not all(isinstance(name, str) for name in plain):
        raise InputError(f'`class_names`: the JSON in {path} is not a list of names. Give ["oak", "elm"].')
    return plain


def _check_paths(source: Path, out: Path, to: str | None, *, overwrite: bool) -> None:
    """Refuse a place that cannot be written to, or that holds something else."""
    if not source.exists() and str(source) in weight_names():
        raise InputError(
            f"`source` {source} is a name of pretrained weights. To train from them: effnetv2 train DATA --weights "
            f"{source}. For a file, in Python: efficientnetv2.save('{out}', efficientnetv2.create('{source}'))."
        )
    inputs = [file for file in (source, source / model_file.NAME) if file.exists()]  # of a folder its weights
    problem = None
    if not out.absolute().parent.is_dir():
        problem = f": there is no folder {out.parent}. Make it, or give another place."
    elif out.exists() and any(map(out.samefile, inputs)):
        problem = " is `source` itself. Give another place."
    elif out.exists() and not overwrite and not (out.is_dir() and not entry_names(out)):
        problem = " exists. Give another place, or `overwrite=True` to replace it."
    elif to == "timm" and out.is_dir() and is_model_file(out):
        problem = f" has a model file of this package, {model_file.NAME}. Give another folder."
    elif out.suffix in (".onnx", ".pt2", ".engine"):
        problem = f": convert does not write this format. Use: {shell_join(['effnetv2', 'export', str(source)])}"
    elif to is None and (out.is_dir() or out.suffix != ".safetensors"):
        problem = " must end in .safetensors, as a model file. For another library, give `to`."
    if problem:
        raise InputError(f"`output` {out}{problem}")


def _load(source: Path, model: str | None, to: str | None, user: UserMetadata) -> tuple[Network, str, Sequence[str]]:
    """The model, what it was recognized as, and notes."""
    if ensemble_members(source) or (source / CROSSVAL_JSON).is_file():
        raise InputError(f"`source` {source} has a model per fold. Give a fold: {source / 'fold1'}.")
    # A run that is not finished is refused there.
    if is_model_file(source) or (source / "recipe.yaml").is_file():
        if model is not None:
            raise InputError(f"`model`: {source} is a model file, which states it. Leave the option out.")
        network = model_file.load(source)
        is_of_timm = isinstance(network, WrappedModel) and str(network.source).startswith("timm:")
        if to is not None and not isinstance(network, EfficientNet) and not (to == "timm" and is_of_timm):
            raise InputError(f"`to={to}`: {source} has a model of another library already. Leave it out.")
        return network, "a model file of this package", apply_metadata(network, user)
    if model is None and source.is_file() and (name := conversion.name_of_download(source)) is not None:
        network = conversion.read_pretrained(source, name)
        return network, f"the pretrained weights {name}", apply_metadata(network, user)
    found = conversion.read(source, model=model, user=user)
    return found.network, f"{found.theirs} of {found.title}", found.notes


def temperature_notes(network: Network, to: str) -> list[str]:
    """That a calibrated model's temperature is not in the file, and how to apply it."""
    if network.calibration is None:
        return []
    temperature = network.calibration.temperature
    advice = "probabilities are those of the bare logits; divide the logits by it"
    if to == "keras" and network.activation == "softmax":  # Keras' models end with it
        power = f"{1 / temperature:.4g}"
        advice = f"outputs are probabilities; take each to the power {power} and divide by their sum"
    elif to == "keras":
        advice = "outputs are probabilities; divide log(p / (1 - p)) of each by it and take the sigmoid again"
    return [
        f"the temperature of {temperature:.4g} is not in a file for {to}: there {advice}. No predicted class changes"
    ]


def _half_note(out: Path, network: Network) -> str:
    """What half precision saves, and what it changes."""
    before = sum(weight.numel() * weight.element_size() for weight in network.state_dict().values())
    return (
        "kernels and matrices are in half precision, each weight within 1/2048 of its value (or 3e-8): "
        f"{out.stat().st_size / 1e6:.1f} MB instead of {before / 1e6:.1f} MB"
    )


def describe_network(network: Network) -> Iterator[str]:
    """Padding, preprocessing and classes of a model, a line each."""
    if isinstance(network, EfficientNet):
        table = network.architecture
        yield f"Padding: {_PADDINGS[table.padding]}; batch-norm epsilon {table.batch_norm_epsilon:g}."
    elif isinstance(network, WrappedModel):
        yield f"Model: {network.source}."
    images = network.preprocessing
    mean, std = (" ".join(f"{value:.4g}" for value in values) for values in (images.mean, images.std))
    crop_mode = _CROP_MODES[images.crop_mode]
    if images.crop_mode == "center":
        crop_mode += f" of {images.crop_pct:.3g} of the shorter side"
    elif images.crop_pct < 1:
        crop_mode = f"the middle {images.crop_pct:.3g} of each side, squeezed"
    yield f"Preprocessing: {images.image_size} px, {crop_mode}, {images.interpolation}, mean {mean}, std {std}."
    classes = f"{network.num_classes}: {shorten(network.class_names, 3)}" if network.num_classes else "no classifier"
    yield f"Classes: {classes}. Input channels: {network.in_channels}."
