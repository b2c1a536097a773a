"""Detect the published model in a weight file by the names and shapes of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from efficientnetv2.architectures.registry import NAMES, architecture
from efficientnetv2.architectures.spec import Architecture
from efficientnetv2.models.conversion import keras, tensorflow, timm, torchvision
from efficientnetv2.models.conversion.raw import RawWeights, Source
from efficientnetv2.models.efficientnet import EfficientNet
from efficientnetv2.utils.errors import InputError, pluralize, shorten

TITLES = {"timm": "timm", "torchvision": "torchvision", "keras": "Keras", "tensorflow": "the authors' code"}
_COUNTER = "num_batches_tracked"  # unused in evaluation; some files leave it out


@dataclass(frozen=True)
class DetectedModel:
    """The model in a file.

    Args:
        name: One of ``architectures.registry.NAMES``.
        theirs: The library's name.
        architecture: With the library's padding and epsilon.
        num_classes: 0 without a classifier.
        tensor_names: From ours to the file's, for all tensors of the model.
        notes: What had to be assumed.
        own_head: The file's tensors of a head that models here do not have; the model comes without a classifier.
    """

    name: str
    theirs: str
    architecture: Architecture
    num_classes: int
    in_channels: int
    tensor_names: dict[str, str]
    notes: tuple[str, ...] = ()
    own_head: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Fit:
    """How well a file's tensors are those of a published model; ``extra`` has the file's names, the others ours."""

    name: str
    names: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    fitting: int
    missing: list[str]
    extra: list[str]  # theirs
    wrong: list[str]

    @property
    def faults(self) -> int:
        return len(self.missing) + len(self.extra) + len(self.wrong)


def tensor_names(source: Source, table: Architecture) -> dict[str, str]:
    """Tensor names of an architecture from ours to a library's."""
    modules = {"timm": timm, "torchvision": torchvision, "keras": keras, "tensorflow": tensorflow}
    names: dict[str, str] = modules[source].tensor_names(table)
    return names


def detect(raw: RawWeights, *, named_by_user: bool = False) -> DetectedModel:
    """The published model with these tensors, whatever its classes and input channels.

    Args:
        named_by_user: Whether the user, and not the file, has named the model.

    Raises:
        InputError: No published model, or tensors that are missing, left over or of a wrong shape, by both names.
    """
    if raw.source == "timm":
        timm.refuse_rw(raw.path, raw.tensors)
    stated, named = _stated(raw), "--model" if named_by_user else "it"
    fit = _best(raw, NAMES if stated is None else (stated,))
    known = len(raw.tensors) - len(fit.extra)
    if 2 * fit.fitting < len(raw.tensors) or not known:
        raise InputError(
            f"{raw.path}: its {len(raw.tensors)} tensors ({shorten(raw.tensors, 3)}) are not those of "
            + (
                f"{raw.model}, which {named} names"
                if stated
                else "any published EfficientNet or EfficientNetV2"
            )
            + f" ({fit.fitting} have the name and the shape of {fit.name}'s). "
            + (
                "Leave --model out, so that it is recognised from the file."
                if named_by_user
                else "Other networks of timm and torchvision are had by name: create('timm:NAME'), "
                "create('torchvision:NAME')."
            )
        )
    own_head = _own_head(raw, fit)
    if fit.faults and not own_head:
        raise InputError(f"{raw.path}: its tensors are not quite those of {fit.name}: {_listed(raw, fit)}.")
    names = {
        ours: theirs for ours, theirs in fit.names.items() if theirs in raw.tensors and theirs not in own_head
    }
    stem = raw.tensors[names["stem.conv.weight"]]
    head = raw.tensors[names["classifier.weight"]] if "classifier.weight" in names else None
    if head is not None:
        _check_classifier(raw, names, head)
    table, theirs, notes = _own(raw, fit.name)
    if own_head:
        notes = (
            *notes,
            f"its head is of another kind ({shorten(own_head)}) and is left out: the network comes without a "
            "classifier, which effnetv2 train --weights puts on",
        )
    return DetectedModel(
        name=fit.name,
        theirs=theirs,
        architecture=table,
        num_classes=0 if head is None else head.shape[0],
        in_channels=stem.shape[1],
        tensor_names=names,
        notes=notes,
        own_head=own_head,
    )


def published_name(raw: RawWeights, model: str) -> str:
    """The published model that a library means by a name. Raises InputError if there is none."""
    try:
        if raw.source == "timm":
            return timm.published_name(model)[0]
        by_source = {"torchvision": torchvision, "keras": keras, "tensorflow": tensorflow}
        name: str = by_source[raw.source].published_name(model)
        return name
    except InputError as error:
        raise InputError(f"{raw.path}: {error}") from error


def is_tf(raw: RawWeights) -> bool:
    """Whether a timm file is of a ``tf_`` network, or does not say."""
    return raw.model is None or timm.published_name(raw.model)[1]


def _check_classifier(raw: RawWeights, names: Mapping[str, str], weight: Tensor) -> None:
    """Refuse a weight and a bias for different numbers of classes."""
    bias = raw.tensors[names["classifier.bias"]]
    if len(bias) != len(weight):
        raise InputError(
            f"{raw.path}: its classifier has weights for {pluralize(len(weight), 'class')} "
            f"({names['classifier.weight']}), but biases for {len(bias):,} ({names['classifier.bias']}). Give the file "
            "from before one of them was changed."
        )


def _stated(raw: RawWeights) -> str | None:
    """The published name, if the file states one that can be relied on."""
    if raw.model is None or raw.source not in ("timm", "torchvision"):
        return None
    return published_name(raw, raw.model)


def _own(raw: RawWeights, name: str) -> tuple[Architecture, str, tuple[str, ...]]:
    """The library's architecture, its name, and what was assumed."""
    notes: tuple[str, ...] = ()
    if raw.source == "timm":
        tf = is_tf(raw)
        table, theirs = timm.architecture_of(name, tf=tf), f"tf_{name}" if tf else name
        if raw.model is None and timm.has_plain(name):
            notes = (
                f"the file does not say whether it is timm's tf_{name} (TensorFlow's padding) or {name} "
                f"(symmetric padding): read as tf_{name}. For the other one: effnetv2 convert FILE OUT --model {name}",
            )
    elif raw.source == "torchvision":
        if name not in torchvision.MODELS:
            raise InputError(f"{raw.path}: torchvision has no {name}, whose tensors these are.")
        table, theirs = torchvision.architecture_of(name), torchvision.MODELS[name]
    else:
        table, theirs = architecture(name), raw.model or name
    if raw.batch_norm_epsilon is not None:
        table = replace(table, batch_norm_epsilon=raw.batch_norm_epsilon)
    return table, theirs, notes


def _best(raw: RawWeights, candidates: tuple[str, ...]) -> _Fit:
    """The best fitting model."""
    tables = {name: tensor_names(raw.source, architecture(name)) for name in candidates}
    found = {name for name in raw.tensors if not name.endswith(_COUNTER)}
    # Building shapes takes time, so models with exactly these names go first.
    likely = [name for name, names in tables.items() if found == _needed(names, found)]
    fits = [_fit(raw.tensors, name, tables[name]) for name in likely]
    if not any(fit.faults == 0 for fit in fits):
        fits += [_fit(raw.tensors, name, tables[name]) for name in candidates if name not in likely]
    return max(fits, key=lambda fit: (fit.fitting, -fit.faults))


def _own_head(raw: RawWeights, fit: _Fit) -> tuple[str, ...]:
    """Tensors of a head that models here do not have; () if other parts do not fit either."""
    head = [theirs for ours, theirs in fit.names.items() if ours.startswith("classifier.")]
    trunk = {_part(theirs) for ours, theirs in fit.names.items() if theirs not in head}
    elsewhere = [ours for ours in (*fit.missing, *fit.wrong) if not ours.startswith("classifier.")]
    if elsewhere or not fit.extra or any(_part(name) in trunk for name in fit.extra):
        return ()
    there = [name for name in head if name in raw.tensors]
    within = any(_part(name) in map(_part, head) for name in fit.extra)
    # Unknown tensors next to a classifier that fits are not a head.
    return (*there, *fit.extra) if within or not there else ()


def _part(name: str) -> str:
    """The part of a model that a tensor belongs to: the first word of its name."""
    return name.partition(".")[0]


def _needed(names: Mapping[str, str], found: set[str]) -> set[str]:
    """Names that a file must have: no counters, and the classifier wholly or not at all."""
    head = {theirs for ours, theirs in names.items() if ours.startswith("classifier.")}
    rest = {theirs for ours, theirs in names.items() if not ours.endswith(_COUNTER)}
    return rest if head & found else rest - head


def _fit(tensors: Mapping[str, Tensor], name: str, names: dict[str, str]) -> _Fit:
    with torch.device("meta"):
        network = EfficientNet(architecture(name))
    shapes = {ours: tuple(tensor.shape) for ours, tensor in network.state_dict().items() if ours in names}
    needed = _needed(names, set(tensors))
    known = set(names.values())
    present = [ours for ours in shapes if names[ours] in tensors]
    wrong = [ours for ours in present if not _alike(ours, shapes[ours], tuple(tensors[names[ours]].shape))]
    return _Fit(
        name=name,
        names=names,
        shapes=shapes,
        fitting=len(present) - len(wrong),
        missing=[ours for ours in shapes if names[ours] in needed and names[ours] not in tensors],
        extra=[theirs for theirs in tensors if theirs not in known],
        wrong=wrong,
    )


def _alike(ours: str, expected: tuple[int, ...], found: tuple[int, ...]) -> bool:
    """Whether a shape is right; the numbers of classes and input channels are free."""
    free = {"classifier.weight": 0, "classifier.bias": 0, "stem.conv.weight": 1}.get(ours)
    return len(expected) == len(found) and all(
        one == other or (axis == free and other > 0)
        for axis, (one, other) in enumerate(zip(expected, found, strict=True))
    )


def _listed(raw: RawWeights, fit: _Fit) -> str:
    """Tensors that are missing, left over and of a wrong shape, by both names."""

    def both(ours: str) -> str:
        return f"{fit.names[ours]} (ours: {ours})"

    total = len(_needed(fit.names, set(raw.tensors)))
    parts = []
    if fit.missing:
        parts.append(f"{len(fit.missing)} of {total} missing: {shorten(map(both, fit.missing))}")
    if fit.extra:
        parts.append(f"{len(fit.extra)} left over, unknown to it: {shorten(fit.extra)}")
    if fit.wrong:
        shown = [
            f"{both(ours)} is {list(raw.tensors[fit.names[ours]].shape)}, expected {list(fit.shapes[ours])}"
            for ours in fit.wrong
        ]
        parts.append(f"{len(fit.wrong)} of a wrong shape: {shorten(shown)}")
    return "; ".join(parts)
