"""Detect the published model in a weight file by the names and shapes of its tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from efficientnetv2.architectures.registry import NAMES, get_architecture
from efficientnetv2.architectures.spec import Architecture
from efficientnetv2.models.conversion import keras, timm_config, torchvision_config
from efficientnetv2.models.conversion.layouts import COUNTER, TITLES, Source, fits, shapes, tensor_names
from efficientnetv2.models.conversion.weight_file import WeightFile
from efficientnetv2.utils.errors import InputError, did_you_mean, pluralize, shorten


@dataclass(frozen=True)
class DetectedModel:
    """The model in a file."""

    name: str
    theirs: str  # the library's name
    architecture: Architecture  # with the library's padding and epsilon
    num_classes: int  # 0 without a classifier
    in_channels: int
    tensor_names: dict[str, str]  # from ours to the file's
    notes: tuple[str, ...] = ()
    # The file's tensors of a head that models here do not have; the model comes without a classifier.
    other_head: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Match:
    """How well a file's tensors are those of a published model; ``extra`` has the file's names, the others ours."""

    name: str
    names: dict[str, str]
    expected: dict[str, tuple[int, ...]]
    fitting: int
    missing: list[str]
    extra: list[str]
    wrong: list[str]

    @property
    def faults(self) -> int:
        return len(self.missing) + len(self.extra) + len(self.wrong)


def published_name(source: Source, model: str) -> str:
    """The published model that a library means by a name. Raises InputError if there is none."""
    if source == "timm":
        return timm_config.published_name(model)[0]
    aliases = {
        "torchvision": {theirs: ours for ours, theirs in torchvision_config.MODELS.items()},
        "keras": keras.ALIASES,
        "tensorflow": {name: name for name in NAMES} | {name.replace("_", "-"): name for name in NAMES},
    }[source]
    if model not in aliases:
        raise InputError(
            f"'{model}' is not one of the {TITLES[source]} models that can be read{did_you_mean(model, aliases)} "
            f"Known: {', '.join(aliases)}."
        )
    return aliases[model]


def named(path: Path, source: Source, model: str) -> str:
    """``published_name``, with the file in the error."""
    try:
        return published_name(source, model)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def is_tf(file: WeightFile) -> bool:
    """Whether a timm file is of a ``tf_`` model, or may be."""
    return file.model is None or timm_config.published_name(file.model)[1]


def detect(file: WeightFile, *, named_by_user: bool = False) -> DetectedModel:
    """The published model with these tensors, whatever its classes and input channels.

    Raises InputError for no published model, or tensors that are missing, left over or of a wrong shape, by both names.
    """
    if file.source == "timm":
        timm_config.refuse_rw(file.path, file.tensors)
    stated = None
    if file.model is not None and file.source in ("timm", "torchvision"):
        stated = named(file.path, file.source, file.model)
    match = max(
        (_match(file, name) for name in (NAMES if stated is None else (stated,))),
        key=lambda match: (match.fitting, -match.faults),
    )
    if 2 * match.fitting < len(file.tensors) or len(match.extra) == len(file.tensors):
        models = file.model if stated else "a published EfficientNet or EfficientNetV2"
        fix = "Leave `model` out." if named_by_user else "Use create('timm:NAME') or create('torchvision:NAME')."
        if not named_by_user and any(name.endswith("stem.conv.weight") for name in file.tensors):
            fix = "If they are of a model of this package: load_state_dict into it, then efficientnetv2.save."
        raise InputError(
            f"{file.path}: its {len(file.tensors)} tensors ({shorten(file.tensors, 3)}) do not have the names of "
            f"{models} in timm, torchvision, Keras or google/automl ({match.fitting} fit {match.name}). {fix}"
        )
    other_head = _other_head(file, match)
    if match.faults and not other_head:
        raise InputError(f"{file.path}: its tensors are not those of {match.name}: {_faults(file, match)}.")
    names = {
        ours: theirs for ours, theirs in match.names.items() if theirs in file.tensors and theirs not in other_head
    }
    table, theirs, notes = _library_model(file, match.name)
    if (layer := _single_layer(file, match, other_head)) is not None:
        names |= {f"classifier.{kind}": f"{layer}.{kind}" for kind in ("weight", "bias")}
        notes.append(f"the only layer of its head, '{layer}', is read as the classifier")
        other_head = ()
    if other_head:
        notes.append(f"its head differs ({shorten(other_head)}) and is left out, so the model has no classifier")
    return DetectedModel(
        name=match.name,
        theirs=theirs,
        architecture=table,
        num_classes=_num_classes(file, names),
        in_channels=file.tensors[names["stem.conv.weight"]].shape[1],
        tensor_names=names,
        notes=tuple(notes),
        other_head=other_head,
    )


def _match(file: WeightFile, name: str) -> _Match:
    names = tensor_names(file.source, get_architecture(name))
    expected = {ours: shape for ours, shape in shapes(get_architecture(name)).items() if ours in names}
    head = {theirs for ours, theirs in names.items() if ours.startswith("classifier.")}
    # A file may leave out counters, and the classifier as a whole.
    optional = set() if head & file.tensors.keys() else head
    missing, present = [], []
    for ours, theirs in names.items():
        if theirs in file.tensors:
            present.append(ours)
        elif theirs not in optional and not ours.endswith(COUNTER):
            missing.append(ours)
    known = set(names.values())
    wrong = [ours for ours in present if not fits(file.tensors[names[ours]].shape, expected[ours])]
    extra = [theirs for theirs in file.tensors if theirs not in known]
    return _Match(name, names, expected, len(present) - len(wrong), missing, extra, wrong)


def _other_head(file: WeightFile, match: _Match) -> tuple[str, ...]:
    """Tensors of a head that models here do not have; () if other parts do not fit either."""

    def part(name: str) -> str:
        return name.partition(".")[0]

    head = [theirs for ours, theirs in match.names.items() if ours.startswith("classifier.")]
    trunk = {part(theirs) for theirs in match.names.values() if theirs not in head}
    faulty = [ours for ours in (*match.missing, *match.wrong) if not ours.startswith("classifier.")]
    if faulty or not match.extra or any(part(name) in trunk for name in match.extra):
        return ()
    present = [name for name in head if name in file.tensors]
    within = any(part(name) in map(part, head) for name in match.extra)
    # Unknown tensors next to a classifier that fits are not a head.
    return (*present, *match.extra) if within or not present else ()


def _single_layer(file: WeightFile, match: _Match, head: tuple[str, ...]) -> str | None:
    """The name of the linear layer that is all of a head and takes the embedding. None for other heads."""
    layer = head[0].rpartition(".")[0] if head else ""
    if {*head} != {f"{layer}.weight", f"{layer}.bias"}:
        return None
    weight, bias = (tuple(file.tensors[f"{layer}.{kind}"].shape) for kind in ("weight", "bias"))
    width = match.expected["classifier.weight"][1]
    return layer if weight == (*bias, width) and len(bias) == 1 else None


def _faults(file: WeightFile, match: _Match) -> str:
    """Tensors that are missing, left over and of a wrong shape, by both names."""

    def both(ours: str) -> str:
        return f"{match.names[ours]} (ours: {ours})"

    needed = len(match.missing) + sum(
        theirs in file.tensors and not ours.endswith(COUNTER) for ours, theirs in match.names.items()
    )
    wrong = [
        f"{both(ours)} is {list(file.tensors[match.names[ours]].shape)}, expected {list(match.expected[ours])}"
        for ours in match.wrong
    ]
    parts = {
        f"{len(match.missing)} of {needed} missing": list(map(both, match.missing)),
        f"{len(match.extra)} left over": match.extra,
        f"{len(wrong)} of a wrong shape": wrong,
    }
    return "; ".join(f"{title}: {shorten(names)}" for title, names in parts.items() if names)


def _num_classes(file: WeightFile, names: dict[str, str]) -> int:
    if "classifier.weight" not in names:
        return 0
    weight, bias = names["classifier.weight"], names["classifier.bias"]
    classes, biases = len(file.tensors[weight]), len(file.tensors[bias])
    if classes != biases:
        raise InputError(
            f"{file.path}: its classifier has {weight} for {pluralize(classes, 'class')}, but {bias} for {biases:,}. "
            "Give the file from before the classifier was changed."
        )
    return classes


def _library_model(file: WeightFile, name: str) -> tuple[Architecture, str, list[str]]:
    """The library's architecture, its name, and what was assumed."""
    notes = []
    if file.source == "timm":
        tf = is_tf(file)
        table, theirs = timm_config.architecture_of(name, tf=tf), f"tf_{name}" if tf else name
        if file.model is None and name in timm_config.PLAIN:
            notes.append(
                f"read as timm's tf_{name} (TensorFlow's padding), since the file names no model. For {name} "
                f"(symmetric padding): effnetv2 convert FILE OUT --model {name}"
            )
    elif file.source == "torchvision":
        if name not in torchvision_config.MODELS:
            raise InputError(f"{file.path}: torchvision has no {name}, whose tensors these are.")
        table, theirs = torchvision_config.architecture_of(name), torchvision_config.MODELS[name]
    else:
        table, theirs = get_architecture(name), file.model or name
    if file.batch_norm_epsilon is not None:
        table = replace(table, batch_norm_epsilon=file.batch_norm_epsilon)
    return table, theirs, notes
