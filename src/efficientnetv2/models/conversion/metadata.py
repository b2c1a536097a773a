"""Preprocessing and class names of converted weights: of the user, the embedded header, the file, or its source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from pydantic import ValidationError

from efficientnetv2.architectures.registry import get_model_info
from efficientnetv2.models.conversion import timm_config, torchvision_config
from efficientnetv2.models.conversion.detect import DetectedModel, is_tf
from efficientnetv2.models.conversion.weight_file import WeightFile
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.models.model_header import Header
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.utils.errors import InputError, error_summary, pluralize
from efficientnetv2.utils.optional_deps import import_torchvision
from efficientnetv2.utils.shell import shell_join

IMAGENET_CLASSES = 1000
_TOLERANCE = 1e-5  # for values that Keras keeps as 32-bit floats. Ours
# Fields that notes mention; the crop belongs to the crop mode, and tta is ours alone.
FIELDS = ("image_size", "crop_mode", "interpolation", "mean", "std")


@dataclass(frozen=True)
class UserMetadata:
    """Facts that the user gives about a model: fields of ``Preprocessing``, and the names of the outputs."""

    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None

    def apply_to(self, base: Preprocessing) -> Preprocessing:
        """``base`` with the user's values. Raises InputError for an invalid value.

        A crop mode without a ``crop_pct`` keeps the whole image, except "center", which keeps that of ``base``.
        """
        fields = dict(self.preprocessing)
        if fields.get("crop_mode") in ("squash", "border"):
            fields.setdefault("crop_pct", 1.0)
        if fields.get("crop_mode", base.crop_mode) == "border" and fields.get("crop_pct", 1.0) != 1:
            raise InputError(
                f"`crop_pct` is {fields['crop_pct']:g}, but `crop_mode` border keeps the whole image. Leave it out."
            )
        for name in {"mean", "std"} & fields.keys():
            if len(fields[name]) != base.channels:
                raise InputError(
                    f"`{name}` has {pluralize(len(fields[name]), 'value')}, but the model has "
                    f"{pluralize(base.channels, 'channel')}. Give one value for each."
                )
        try:
            return Preprocessing.from_json(base.to_json() | fields)
        except ValidationError as error:
            raise InputError(error_summary(error)) from error

    def class_names_or(self, num_classes: int, default: tuple[str, ...]) -> tuple[str, ...]:
        """The user's class names, or ``default``. Raises InputError if they do not fit the outputs."""
        names = self.class_names
        if names is None:
            return default
        if not num_classes:
            raise InputError(
                f"{pluralize(len(names), 'class name')} are given, but the weights have no classifier. Leave them out."
            )
        if len(names) != num_classes:
            raise InputError(
                f"{len(names)} class names are given, but the model has {num_classes} outputs. Give one for each."
            )
        if len(set(names)) != num_classes:
            duplicate = next(name for name in names if names.count(name) > 1)
            raise InputError(f"the class name '{duplicate}' is given twice. Give each output its own name.")
        return names


NO_USER_METADATA = UserMetadata()


def matching_header(file: WeightFile, found: DetectedModel, notes: list[str]) -> Header | None:
    """The embedded header, if it belongs to the detected model."""
    header = file.header
    if header is None:
        return None
    is_same = header.architecture == found.architecture or header.foreign == f"timm:{found.theirs}"
    if not is_same or (header.num_classes, header.in_channels) != (found.num_classes, found.in_channels):
        notes.append(
            f"the metadata of this package in the file is of another model ({header.num_classes} classes, "
            f"{pluralize(header.in_channels, 'channel')}) and is ignored"
        )
        return None
    return header


def preprocessing(
    file: WeightFile,
    found: DetectedModel,
    header: Header | None,
    user: UserMetadata,
    notes: list[str],
    used: Sequence[str],
) -> Preprocessing:
    """As the user, the embedded header or the file states it, or as assumed. Notes mention only ``used`` fields."""
    if header is not None:
        return user.apply_to(_embedded_preprocessing(file, found, header, user, notes))
    documented, origin = _documented_preprocessing(file, found)
    base = documented if file.preprocessing is None else file.preprocessing
    stated = [name for name in used if name in file.stated]
    assumed = [name for name in used if name not in file.stated and name not in user.preprocessing]
    if stated:
        notes.append(f"preprocessing: {_join(stated)} as the file states")
    if assumed:
        options = _join([f"--{name.replace('_', '-')}" for name in assumed], "or")
        notes.append(
            f"preprocessing: the file states no {_join(assumed, 'or')}; assumed as of {origin}: "
            f"{_join([_value(base, name) for name in assumed])}. To change it: effnetv2 convert {_shell_path(file)} "
            f"OUT with {options}"
        )
    return user.apply_to(_with_channels(base, found, user, notes))


def _embedded_preprocessing(
    file: WeightFile, found: DetectedModel, header: Header, user: UserMetadata, notes: list[str]
) -> Preprocessing:
    """The embedded preprocessing, except for fields that the file itself states differently since."""
    embedded, changed = header.preprocessing, []
    if file.preprocessing is not None:
        stated = _with_channels(file.preprocessing, found, user, notes)
        changed = [name for name in file.stated if not _same_value(name, embedded, stated)]
    if not changed:
        notes.append("preprocessing: as this package wrote it into the file")
        return embedded
    values = "; ".join(f"{name} {getattr(stated, name)}, not {getattr(embedded, name)}" for name in changed)
    notes.append(f"the preprocessing was changed since this package wrote the file: {values}")
    if {"image_size", "crop_mode"} & set(changed) and "crop_pct" in file.stated:  # the crop belongs to these
        changed.append("crop_pct")
    return replace(embedded, **{name: getattr(stated, name) for name in changed})


def _same_value(name: str, embedded: Preprocessing, stated: Preprocessing) -> bool:
    """As precisely as the file can state it: timm in whole pixels, Keras in 32-bit floats."""
    if name == "crop_pct":
        return round(embedded.image_size / embedded.crop_pct) == round(stated.image_size / stated.crop_pct)
    ours, theirs = getattr(embedded, name), getattr(stated, name)
    if name in ("mean", "std"):
        return len(ours) == len(theirs) and np.allclose(ours, theirs, rtol=_TOLERANCE, atol=_TOLERANCE)
    return bool(ours == theirs)


def _with_channels(base: Preprocessing, found: DetectedModel, user: UserMetadata, notes: list[str]) -> Preprocessing:
    """With a mean and std for each channel of the model; a note reports it if they had to repeat."""
    if base.channels != found.in_channels and not {"mean", "std"} <= user.preprocessing.keys():
        notes.append(
            f"mean and std are for {pluralize(base.channels, 'channel')}, the model has {found.in_channels}: they "
            "repeat in turn, and are averaged for one channel"
        )
    return base.with_channels(found.in_channels)


def _documented_preprocessing(file: WeightFile, found: DetectedModel) -> tuple[Preprocessing, str]:
    """The preprocessing that a model's source documents, and the name of the weights."""
    if file.source == "timm":
        documented, weights = timm_config.default_preprocessing(
            found.name, tf=is_tf(file), tag=timm_config.tag_of(file.model or ""), num_classes=found.num_classes
        )
        return documented, f"timm's {weights}"
    if file.source == "torchvision":
        documented, weights = torchvision_config.default_preprocessing(found.name)
        return documented, f"torchvision's {weights}"
    return get_model_info(found.name).preprocessing, f"the published {found.name}"


def _value(base: Preprocessing, name: str) -> str:
    value = getattr(base, name)
    if isinstance(value, tuple):
        return f"{name} {' '.join(f'{number:.4g}' for number in value)}"
    crop = f" ({base.crop_pct:.3g} of the shorter side)" if value == "center" else ""
    return f"{name} {value}{crop}"


def _join(names: Sequence[str], last: str = "and") -> str:
    return f" {last} ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _shell_path(file: WeightFile) -> str:
    """The path as the user typed it: for a hub directory, the directory."""
    folder = file.path.parent
    return shell_join([str(folder if (folder / timm_config.CONFIG).is_file() else file.path)])


def class_names(
    file: WeightFile, num_classes: int, header: Header | None, user: UserMetadata, notes: list[str], *, trains: bool
) -> tuple[str, ...]:
    """As the user, the file or the embedded header states them, or as assumed. Raises InputError for another number.

    To train (``trains``), numbers are not assumed: they would equal the labels 0, 1, ... of other classes.
    """
    if user.class_names is not None:
        return user.class_names_or(num_classes, ())
    if file.class_names and len(file.class_names) != num_classes:
        raise InputError(
            f"{file.path}: {len(file.class_names)} class names are stated for {num_classes} outputs. Correct them, or "
            "give `class_names`."
        )
    if file.class_names:
        return _distinct(file.class_names)
    if header is not None:
        return header.class_names
    if num_classes == IMAGENET_CLASSES:
        notes.append("class names: ImageNet's, since there are 1000 outputs and the file states no names")
        return imagenet_class_names()
    assumed = () if trains else tuple(str(number) for number in range(num_classes))
    if num_classes:
        names = f"'0' to '{num_classes - 1}'" if assumed else "none"
        notes.append(
            f"class names: {names}, since the file states none. To name them: effnetv2 convert {_shell_path(file)} OUT "
            "--class-names NAMES.txt"
        )
    return assumed


def imagenet_class_names() -> tuple[str, ...]:
    """English names of the 1,000 classes of ImageNet-1k, as torchvision has them, in the order of their WordNet ids."""
    return _distinct(import_torchvision("models").EfficientNet_B0_Weights.DEFAULT.meta["categories"])


def valid_metrics(
    metrics: dict[str, Any], before: Preprocessing, after: Preprocessing, notes: list[str]
) -> dict[str, Any]:
    """The metrics, unless the preprocessing differs from the one they were measured with."""
    if not metrics or before == after:
        return metrics
    notes.append("the metrics were measured with another preprocessing and are left out")
    return {name: value for name, value in metrics.items() if name == "epochs"}  # does not depend on images


def apply_metadata(network: Network, user: UserMetadata) -> list[str]:
    """Set the user's preprocessing and class names of a model in place. Returns notes."""
    notes: list[str] = []
    before, network.preprocessing = network.preprocessing, user.apply_to(network.preprocessing)
    network.class_names = user.class_names_or(network.num_classes, network.class_names)
    network.metrics = valid_metrics(network.metrics, before, network.preprocessing, notes)
    if network.calibration is not None and before != network.preprocessing:
        network.calibration = None
        notes.append("the temperature was fitted with another preprocessing and is left out")
    # It sees one view of an image.
    if network.unknown is not None and replace(before, tta=network.preprocessing.tta) != network.preprocessing:
        network.unknown = None
        notes.append("the detector of unknown images was fitted with another preprocessing and is left out")
    return notes


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """The second of two equal names becomes ``name (2)``."""
    distinct: dict[str, None] = {}
    for name in names:
        number, free = 1, name
        while free in distinct:
            number += 1
            free = f"{name} ({number})"
        distinct[free] = None
    return tuple(distinct)
