"""Preprocessing and class names of converted weights, and where each value comes from.

In this order: the user, the header that this package embedded, the file in its own format, the documentation of its
source. Notes say what was assumed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from efficientnetv2.architectures.registry import published
from efficientnetv2.models.conversion import embedded_metadata, timm, torchvision
from efficientnetv2.models.conversion.detect import DetectedModel, is_tf
from efficientnetv2.models.conversion.raw import RawWeights
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.models.model_card import Header
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.utils.errors import InputError, count_of, error_summary
from efficientnetv2.utils.optional_deps import of_torchvision
from efficientnetv2.utils.shell import typed

_IMAGENET_CLASSES = 1000
# Fields that notes mention; the crop is told with the framing, and views are ours alone.
FIELDS = ("image_px", "framing", "interpolation", "mean", "std")


@dataclass(frozen=True)
class UserMetadata:
    """What the user says of a model.

    Args:
        preprocessing: Values by field of ``Preprocessing``.
        class_names: Of the outputs, in order; None says nothing.
    """

    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None

    def prepared(self, base: Preprocessing) -> Preprocessing:
        """``base`` with the user's values.

        A framing without a ``crop_fraction`` keeps the whole image, except "crop", which keeps that of ``base``.

        Raises:
            InputError: An invalid value, or a mean or std for another number of channels.
        """
        fields = dict(self.preprocessing)
        if fields.get("framing") in ("whole", "pad"):
            fields.setdefault("crop_fraction", 1.0)
        if fields.get("framing", base.framing) == "pad" and fields.get("crop_fraction", 1.0) != 1:
            raise InputError(
                f"crop_fraction is {fields['crop_fraction']:g}, but a padded picture is kept whole. Leave it out, or "
                "give another framing."
            )
        for name in ("mean", "std"):
            if name in fields and len(fields[name]) != base.channels:
                raise InputError(
                    f"{name} has {count_of(len(fields[name]), 'value')}, but the network takes pictures of "
                    f"{count_of(base.channels, 'channel')}. Give one for each."
                )
        try:
            return Preprocessing.from_json(base.to_json() | fields)
        except ValidationError as error:
            raise InputError(error_summary(error)) from error

    def named(self, num_classes: int, usual: tuple[str, ...]) -> tuple[str, ...]:
        """The user's class names, or ``usual``.

        Raises:
            InputError: There is no classifier, another number of names than outputs, or two equal names.
        """
        if self.class_names is None:
            return usual
        if not num_classes:
            raise InputError(
                f"{count_of(len(self.class_names), 'class name')} are given, but these weights have no classifier: "
                "there are no outputs to name. Leave the names out; training gives the weights a classifier, named by "
                "its data (effnetv2 train DATA --weights FILE)."
            )
        if len(self.class_names) != num_classes:
            raise InputError(
                f"{len(self.class_names)} class names are given, but the network has {num_classes} outputs. Give one "
                "for each, in their order."
            )
        if len(set(self.class_names)) != num_classes:
            twice = next(name for name in self.class_names if self.class_names.count(name) > 1)
            raise InputError(f"the class name '{twice}' is given twice. Each output needs a name of its own.")
        return self.class_names


NOTHING_TOLD = UserMetadata()


def fitting(raw: RawWeights, found: DetectedModel, notes: list[str]) -> Header | None:
    """The embedded header, if it belongs to the detected model."""
    words = raw.carried
    if words is None:
        return None
    there = (words.architecture, words.num_classes, words.in_channels)
    if there != (found.architecture, found.num_classes, found.in_channels):
        notes.append(
            f"what this package once wrote into the file is of another network ({words.num_classes} classes, "
            f"{count_of(words.in_channels, 'channel')}) and is passed over"
        )
        return None
    return words


def preprocessing(
    raw: RawWeights,
    found: DetectedModel,
    words: Header | None,
    told: UserMetadata,
    notes: list[str],
    used: Sequence[str] = FIELDS,
) -> Preprocessing:
    """The preprocessing as the user, the embedded header or the file states it, or as assumed.

    Args:
        raw: The file.
        found: Its model.
        words: The embedded header.
        told: The user's values.
        notes: A sentence each is added.
        used: Fields that the caller uses. Notes mention no others.
    """
    if words is not None:
        return told.prepared(_as_carried(raw, found, words, told, notes))
    usual, origin = _usual(raw, found)
    base = usual if raw.preprocessing is None else raw.preprocessing
    notes += _origins(raw, base, told, used, origin)
    return told.prepared(_of_channels(base, found, told, notes))


def _as_carried(
    raw: RawWeights, found: DetectedModel, words: Header, told: UserMetadata, notes: list[str]
) -> Preprocessing:
    """The embedded preprocessing, except for fields that the file itself states differently since."""
    differing: dict[str, str] = {}
    if raw.preprocessing is not None:
        stated = _of_channels(raw.preprocessing, found, told, notes)
        differing = embedded_metadata.contradictions(words, stated, raw.stated)
    if raw.preprocessing is None or not differing:
        notes.append("preprocessing: as this package wrote it into the file")
        return words.preprocessing
    notes.append(
        f"the preprocessing was changed since this package wrote the file: {'; '.join(differing.values())}; all else "
        "is as it was written"
    )
    changed = set(differing)
    if changed & {"image_px", "framing"}:  # what is cut belongs to these
        changed |= {"crop_fraction"} & set(raw.stated)
    return replace(words.preprocessing, **{name: getattr(stated, name) for name in changed})


def _of_channels(
    base: Preprocessing, found: DetectedModel, told: UserMetadata, notes: list[str]
) -> Preprocessing:
    """With a mean and std for each channel of the model; a note says if they had to repeat."""
    if base.channels != found.in_channels and not {"mean", "std"} <= told.preprocessing.keys():
        notes.append(
            f"its mean and std are for {count_of(base.channels, 'channel')}, the network has {found.in_channels}: they "
            "repeat in turn, and are averaged for one channel"
        )
    return base.with_channels(found.in_channels)


def _usual(raw: RawWeights, found: DetectedModel) -> tuple[Preprocessing, str]:
    """The preprocessing that a model's source documents, and whose it is."""
    if raw.source == "timm":
        usual, weights = timm.default_preprocessing(
            found.name, tf=is_tf(raw), tag=timm.tag_of(raw.model or ""), num_classes=found.num_classes
        )
        return usual, f"timm's {weights}"
    if raw.source == "torchvision":
        usual, weights = torchvision.default_preprocessing(found.name)
        return usual, f"torchvision's {weights}"
    return published(found.name).preprocessing, f"the published {found.name}"


def _origins(
    raw: RawWeights, base: Preprocessing, told: UserMetadata, used: Sequence[str], origin: str
) -> list[str]:
    """Notes on what was stated and what was assumed."""
    notes = []
    stated = [name for name in used if name in raw.stated]
    assumed = [name for name in used if name not in raw.stated and name not in told.preprocessing]
    if len(stated) == len(used):
        notes.append("preprocessing: as the file states it")
    elif stated:
        notes.append(f"preprocessing: {_list(stated)} as the file states")
    if assumed:
        values = _list([_value(base, name) for name in assumed])
        options = [f"--{name.replace('_', '-')}" for name in assumed]
        notes.append(
            f"preprocessing: the file states no {_list(assumed, 'or')}; assumed as of {origin}: {values}. If its "
            f"pictures were prepared otherwise: effnetv2 convert {_word(raw.path)} OUT with {_list(options, 'or')}"
        )
    return notes


def _value(base: Preprocessing, name: str) -> str:
    if name == "framing" and base.framing == "crop":
        return f"framing crop ({base.crop_fraction:.3g} of the shorter side)"
    value = getattr(base, name)
    return (
        f"{name} {' '.join(f'{one:.4g}' for one in value)}" if isinstance(value, tuple) else f"{name} {value}"
    )


def _list(words: Sequence[str], last: str = "and") -> str:
    return f" {last} ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _word(path: Path) -> str:
    """The path as the user typed it: for a hub directory, the directory."""
    return typed([str(path.parent if (path.parent / timm.CONFIG).is_file() else path)])


def class_names(
    raw: RawWeights, num_classes: int, words: Header | None, told: UserMetadata, notes: list[str]
) -> tuple[str, ...]:
    """The class names as the user, the file or the embedded header states them, or as assumed.

    Raises:
        InputError: Another number of names than outputs.
    """
    if raw.class_names and len(raw.class_names) != num_classes and told.class_names is None:
        raise InputError(
            f"{raw.path}: {len(raw.class_names)} class names are stated for it, but it has {num_classes} outputs. "
            "Correct the names, or give others with effnetv2 convert --class-names."
        )
    if told.class_names is not None:
        return told.named(num_classes, ())
    if raw.class_names:
        return _distinct(raw.class_names)
    if words is not None:
        return words.class_names
    if num_classes == _IMAGENET_CLASSES:
        notes.append("class names: ImageNet's, for there are 1000 outputs and the file states no names")
        return imagenet_class_names()
    if num_classes:
        notes.append(
            f"class names: '0' to '{num_classes - 1}', for the file states none. To name them: effnetv2 convert "
            f"{_word(raw.path)} OUT --class-names NAMES.txt"
        )
    return tuple(str(number) for number in range(num_classes))


def valid_metrics(
    metrics: dict[str, Any], before: Preprocessing, after: Preprocessing, notes: list[str]
) -> dict[str, Any]:
    """The metrics, unless the preprocessing differs from the one they were measured with."""
    if not metrics or before == after:
        return metrics
    notes.append("the metrics were reached with another preprocessing and are left out")
    return {name: value for name, value in metrics.items() if name == "epochs"}  # does not depend on images


def apply_metadata(network: Network, told: UserMetadata) -> list[str]:
    """Set the user's preprocessing and class names of a model in place. Returns notes, a sentence each."""
    notes: list[str] = []
    before, network.preprocessing = network.preprocessing, told.prepared(network.preprocessing)
    network.class_names = told.named(network.num_classes, network.class_names)
    network.metrics = valid_metrics(network.metrics, before, network.preprocessing, notes)
    if network.calibration is not None and before != network.preprocessing:
        network.calibration = None
        notes.append("the temperature was fitted with another preprocessing and is left out")
    return notes


def imagenet_class_names() -> tuple[str, ...]:
    """The 1000 classes of ImageNet-1k in their usual order, made distinct."""
    return _distinct(of_torchvision("models").EfficientNet_B0_Weights.DEFAULT.meta["categories"])


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
