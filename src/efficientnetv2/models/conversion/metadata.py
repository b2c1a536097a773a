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
from efficientnetv2.utils.errors import InputError, error_summary, pluralize
from efficientnetv2.utils.optional_deps import import_torchvision
from efficientnetv2.utils.shell import shell_join

_IMAGENET_CLASSES = 1000
# Fields that notes mention; the crop belongs to the framing, and views are ours alone.
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

    def apply_to(self, base: Preprocessing) -> Preprocessing:
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
                    f"{name} has {pluralize(len(fields[name]), 'value')}, but the network takes pictures of "
                    f"{pluralize(base.channels, 'channel')}. Give one for each."
                )
        try:
            return Preprocessing.from_json(base.to_json() | fields)
        except ValidationError as error:
            raise InputError(error_summary(error)) from error

    def class_names_or(self, num_classes: int, usual: tuple[str, ...]) -> tuple[str, ...]:
        """The user's class names, or ``usual``.

        Raises:
            InputError: There is no classifier, another number of names than outputs, or two equal names.
        """
        if self.class_names is None:
            return usual
        if not num_classes:
            raise InputError(
                f"{pluralize(len(self.class_names), 'class name')} are given, but these weights have no classifier: "
                "there are no outputs to name. Leave the names out; training gives the weights a classifier, named by "
                "its data (effnetv2 train DATA --weights FILE)."
            )
        if len(self.class_names) != num_classes:
            raise InputError(
                f"{len(self.class_names)} class names are given, but the network has {num_classes} outputs. Give one "
                "for each, in their order."
            )
        if len(set(self.class_names)) != num_classes:
            duplicate = next(name for name in self.class_names if self.class_names.count(name) > 1)
            raise InputError(
                f"the class name '{duplicate}' is given twice. Each output needs a name of its own."
            )
        return self.class_names


NO_USER_METADATA = UserMetadata()


def embedded_header(raw: RawWeights, found: DetectedModel, notes: list[str]) -> Header | None:
    """The embedded header, if it belongs to the detected model."""
    header = raw.carried
    if header is None:
        return None
    embedded = (header.architecture, header.num_classes, header.in_channels)
    if embedded != (found.architecture, found.num_classes, found.in_channels):
        notes.append(
            f"what this package once wrote into the file is of another network ({header.num_classes} classes, "
            f"{pluralize(header.in_channels, 'channel')}) and is passed over"
        )
        return None
    return header


def preprocessing(
    raw: RawWeights,
    found: DetectedModel,
    header: Header | None,
    user: UserMetadata,
    notes: list[str],
    used: Sequence[str] = FIELDS,
) -> Preprocessing:
    """The preprocessing as the user, the embedded header or the file states it, or as assumed.

    Args:
        raw: The file.
        found: Its model.
        header: The embedded header.
        user: The user's values.
        notes: A sentence each is added.
        used: Fields that the caller uses. Notes mention no others.
    """
    if header is not None:
        return user.apply_to(_embedded_preprocessing(raw, found, header, user, notes))
    usual, origin = _documented_preprocessing(raw, found)
    base = usual if raw.preprocessing is None else raw.preprocessing
    notes += _origin_notes(raw, base, user, used, origin)
    return user.apply_to(_with_channels(base, found, user, notes))


def _embedded_preprocessing(
    raw: RawWeights, found: DetectedModel, header: Header, user: UserMetadata, notes: list[str]
) -> Preprocessing:
    """The embedded preprocessing, except for fields that the file itself states differently since."""
    changed_fields: dict[str, str] = {}
    if raw.preprocessing is not None:
        stated = _with_channels(raw.preprocessing, found, user, notes)
        changed_fields = embedded_metadata.contradictions(header, stated, raw.stated)
    if raw.preprocessing is None or not changed_fields:
        notes.append("preprocessing: as this package wrote it into the file")
        return header.preprocessing
    notes.append(
        f"the preprocessing was changed since this package wrote the file: {'; '.join(changed_fields.values())}; all "
        "else is as it was written"
    )
    changed = set(changed_fields)
    if changed & {"image_px", "framing"}:  # what is cut belongs to these
        changed |= {"crop_fraction"} & set(raw.stated)
    return replace(header.preprocessing, **{name: getattr(stated, name) for name in changed})


def _with_channels(
    base: Preprocessing, found: DetectedModel, user: UserMetadata, notes: list[str]
) -> Preprocessing:
    """With a mean and std for each channel of the model; a note says if they had to repeat."""
    if base.channels != found.in_channels and not {"mean", "std"} <= user.preprocessing.keys():
        notes.append(
            f"its mean and std are for {pluralize(base.channels, 'channel')}, the network has "
            f"{found.in_channels}: they repeat in turn, and are averaged for one channel"
        )
    return base.with_channels(found.in_channels)


def _documented_preprocessing(raw: RawWeights, found: DetectedModel) -> tuple[Preprocessing, str]:
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


def _origin_notes(
    raw: RawWeights, base: Preprocessing, user: UserMetadata, used: Sequence[str], origin: str
) -> list[str]:
    """Notes on what was stated and what was assumed."""
    notes = []
    stated = [name for name in used if name in raw.stated]
    assumed = [name for name in used if name not in raw.stated and name not in user.preprocessing]
    if len(stated) == len(used):
        notes.append("preprocessing: as the file states it")
    elif stated:
        notes.append(f"preprocessing: {_join(stated)} as the file states")
    if assumed:
        values = _join([_value(base, name) for name in assumed])
        options = [f"--{name.replace('_', '-')}" for name in assumed]
        notes.append(
            f"preprocessing: the file states no {_join(assumed, 'or')}; assumed as of {origin}: {values}. If its "
            f"pictures were prepared otherwise: effnetv2 convert {_shell_path(raw.path)} OUT with "
            f"{_join(options, 'or')}"
        )
    return notes


def _value(base: Preprocessing, name: str) -> str:
    if name == "framing" and base.framing == "crop":
        return f"framing crop ({base.crop_fraction:.3g} of the shorter side)"
    value = getattr(base, name)
    return (
        f"{name} {' '.join(f'{one:.4g}' for one in value)}" if isinstance(value, tuple) else f"{name} {value}"
    )


def _join(names: Sequence[str], last: str = "and") -> str:
    return f" {last} ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _shell_path(path: Path) -> str:
    """The path as the user typed it: for a hub directory, the directory."""
    return shell_join([str(path.parent if (path.parent / timm.CONFIG).is_file() else path)])


def class_names(
    raw: RawWeights, num_classes: int, header: Header | None, user: UserMetadata, notes: list[str]
) -> tuple[str, ...]:
    """The class names as the user, the file or the embedded header states them, or as assumed.

    Raises:
        InputError: Another number of names than outputs.
    """
    if raw.class_names and len(raw.class_names) != num_classes and user.class_names is None:
        raise InputError(
            f"{raw.path}: {len(raw.class_names)} class names are stated for it, but it has {num_classes} outputs. "
            "Correct the names, or give others with effnetv2 convert --class-names."
        )
    if user.class_names is not None:
        return user.class_names_or(num_classes, ())
    if raw.class_names:
        return _distinct(raw.class_names)
    if header is not None:
        return header.class_names
    if num_classes == _IMAGENET_CLASSES:
        notes.append("class names: ImageNet's, for there are 1000 outputs and the file states no names")
        return imagenet_class_names()
    if num_classes:
        notes.append(
            f"class names: '0' to '{num_classes - 1}', for the file states none. To name them: effnetv2 convert "
            f"{_shell_path(raw.path)} OUT --class-names NAMES.txt"
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


def apply_metadata(network: Network, user: UserMetadata) -> list[str]:
    """Set the user's preprocessing and class names of a model in place. Returns notes, a sentence each."""
    notes: list[str] = []
    before, network.preprocessing = network.preprocessing, user.apply_to(network.preprocessing)
    network.class_names = user.class_names_or(network.num_classes, network.class_names)
    network.metrics = valid_metrics(network.metrics, before, network.preprocessing, notes)
    if network.calibration is not None and before != network.preprocessing:
        network.calibration = None
        notes.append("the temperature was fitted with another preprocessing and is left out")
    return notes


def imagenet_class_names() -> tuple[str, ...]:
    """The 1000 classes of ImageNet-1k in their usual order, made distinct."""
    return _distinct(import_torchvision("models").EfficientNet_B0_Weights.DEFAULT.meta["categories"])


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
