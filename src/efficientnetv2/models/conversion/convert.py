"""Weights of others into our network, and our network into theirs.

>>> imported = read("tf_efficientnetv2_s.safetensors")  # doctest: +SKIP
>>> imported.network.preprocessing.image_px  # doctest: +SKIP
384
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from efficientnetv2.models.conversion import keras_export, metadata, timm, torchvision
from efficientnetv2.models.conversion import reading as reading
from efficientnetv2.models.conversion.detect import TITLES, DetectedModel, detect, published_name
from efficientnetv2.models.conversion.metadata import NOTHING_TOLD, UserMetadata
from efficientnetv2.models.conversion.raw import RawWeights, Source
from efficientnetv2.models.efficientnet import EfficientNet
from efficientnetv2.models.safetensors_io import negative_variances
from efficientnetv2.utils.errors import InputError, some

Target = Literal["timm", "torchvision", "keras"]
TARGETS: tuple[str, ...] = get_args(Target)


@dataclass(frozen=True, eq=False)
class ConvertedModel:
    """A network out of a foreign file.

    Args:
        network: with its weights in float32, its preprocessing and its class names, in evaluation mode.
        source: whose file it was.
        name: of the published network.
        theirs: what the source calls it.
        notes: what was stated and what was assumed, a sentence each.
    """

    network: EfficientNet
    source: Source
    name: str
    theirs: str
    notes: tuple[str, ...]

    @property
    def title(self) -> str:
        """The source as a person says it."""
        return TITLES[self.source]


def read(
    path: str | Path,
    *,
    model: str | None = None,
    told: UserMetadata = NOTHING_TOLD,
    used: Sequence[str] = metadata.FIELDS,
) -> ConvertedModel:
    """Our network with the weights of a foreign file, recognised from the file itself.

    Args:
        path: see ``models.conversion.reading.read``.
        model: what the source calls the network, where the file does not say, e.g. ``efficientnetv2_s`` for
            timm's with symmetric padding; None as the file says, or timm's ``tf_`` network. Files of Keras and
            of the authors need none; one that is given has to be right.
        told: of the preprocessing and the classes, which goes before all that the file says.
        used: fields of the preprocessing that the caller goes by; of others the notes say nothing.

    Raises:
        InputError: the file can't be read, holds another network, lacks tensors or has some left over, holds
            NaN, or states something that does not fit together. Nothing is half loaded.
    """
    raw = _named(reading.read(path))
    notes = list(raw.notes)
    meant = None if model is None else published_name(raw, model)
    told_model = False
    if model is not None and raw.source in ("timm", "torchvision"):
        if raw.model not in (None, model, model.partition(".")[0]):
            raise InputError(
                f"{raw.path} says that it is {raw.model}, but --model says {model}. Leave it out."
            )
        told_model = raw.model is None
        raw = replace(raw, model=model)
    found = detect(raw, told=told_model)
    if meant not in (None, found.name):
        raise InputError(f"{raw.path} holds {found.name}, but --model says {model}. Leave it out.")
    notes += found.notes
    if found.own_head:
        raw = replace(raw, class_names=())
    weights = _weights(raw, found, notes)
    words = metadata.fitting(raw, found, notes)
    preprocessing = metadata.preprocessing(raw, found, words, told, notes, used)
    class_names = metadata.class_names(raw, found.num_classes, words, told, notes)
    with torch.device("meta"):
        network = EfficientNet(
            found.architecture, num_classes=found.num_classes, in_channels=found.in_channels
        )
    network.load_state_dict(weights, assign=True)
    network.preprocessing, network.class_names = preprocessing, class_names
    if words is not None:
        network.answer, network.recipe = words.answer, words.recipe
        network.metrics = metadata.valid_metrics(words.metrics, words.preprocessing, preprocessing, notes)
    return ConvertedModel(network.eval(), raw.source, found.name, found.theirs, tuple(notes))


def _named(raw: RawWeights) -> RawWeights:
    """With what timm calls the network, where only this package has written that into the file."""
    if (
        raw.source != "timm"
        or raw.model is not None
        or raw.carried is None
        or raw.carried.architecture is None
    ):
        return raw
    try:
        return replace(raw, model=timm.model_name(raw.carried.architecture)[0])
    except InputError:  # timm has none of that kind, so those tensors are another's
        return raw


def write(path: str | Path, network: EfficientNet, to: Target) -> tuple[str, ...]:
    """Write a network for others.

    Args:
        path: timm: a folder, or a file .safetensors or .pth; torchvision: .pth or .safetensors; Keras: see
            ``models.conversion.keras_export.write``.
        network: with its preprocessing and class names.
        to: for whom.

    Returns:
        What of the network others do not see in such a file, a sentence each. ``read`` gives all of it back.

    Raises:
        InputError: they have no network that would give the same answers.
    """
    path, pooling = Path(path), network.architecture.pooling
    if pooling != "mean":
        raise InputError(
            f"{path} was not written: this network pools its last maps as '{pooling}', and {TITLES[to]}'s take the "
            "mean over the whole of them ('mean'), so its classifier fits none. Only a model file of ours can hold "
            "it; for theirs, train with pooling 'mean'."
        )
    try:
        if to == "timm":
            timm.write(path, network)
        elif to == "torchvision":
            torchvision.write(path, network)
        else:
            keras_export.write(path, network)
    except InputError as error:
        raise InputError(f"{path} was not written: {str(error).rstrip('.')}.") from error
    return tuple(_alone(path, network, to))


def _alone(path: Path, network: EfficientNet, to: Target) -> Iterator[str]:
    """What of the network this package alone reads out of a file for others."""
    preprocessing = network.preprocessing
    tensors_alone = to == "torchvision" or (to == "timm" and path.suffix in timm.SUFFIXES)
    numbers = tuple(str(number) for number in range(network.num_classes))
    if network.class_names not in ((), numbers) and (tensors_alone or to == "keras"):
        yield f"the class names: {TITLES[to]} does not see them in the file; this package does"
    if tensors_alone:
        yield (
            f"the preprocessing: {TITLES[to]} does not see it in the file, this package does; size, framing, "
            "interpolation, mean and std must be told to whoever else loads it"
        )
    elif to == "keras":
        kept = "size, mean and std are" if not path.name.endswith(".weights.h5") else "mean and std are"
        yield (
            f"the preprocessing: {kept} in the network; the rest Keras does not see in the file, this package does. "
            f"Give Keras pictures of {preprocessing.image_px} px that are framed already"
        )
    elif there := timm.lost_crop(preprocessing):
        yield (
            f"crop_fraction {preprocessing.crop_fraction:.6g} is {there:.6g} in timm, which resizes to whole pixels"
        )
    if network.answer == "sigmoid" and to != "keras":
        yield (
            f"that it answers each class by itself: {TITLES[to]} does not see it in the file, this package does; "
            "whoever else loads it has to take the sigmoid of its outputs"
        )
    if preprocessing.bands is not None:
        yield (
            f"the rule for raster bands ({preprocessing.bands.listed}): {TITLES[to]} does not see it in the file, this "
            "package does; whoever else loads it has to make the values of these bands 0 to 255 by it"
        )
    if preprocessing.views != "one":
        yield f"the views ('{preprocessing.views}'): others look at a picture once; this package does as before"


def _weights(raw: RawWeights, found: DetectedModel, notes: list[str]) -> dict[str, Tensor]:
    """Float32 copies under our names, all finite."""
    weights, kinds = {}, set()
    for ours, theirs in found.tensor_names.items():
        tensor = raw.tensors[theirs]
        if ours.endswith("num_batches_tracked"):
            weights[ours] = tensor.to(torch.int64, copy=True).reshape(())
            continue
        if not tensor.is_floating_point():
            raise InputError(
                f"{raw.path}: '{theirs}' (ours: {ours}) holds {_kind(tensor)} numbers, not floating-point ones. "
                "Quantised and complex weights cannot be read: give the file from before."
            )
        kinds.add(_kind(tensor))
        weights[ours] = tensor.to(torch.float32, copy=True).contiguous()
    broken = [found.tensor_names[ours] for ours, tensor in weights.items() if not tensor.isfinite().all()]
    if broken:
        raise InputError(
            f"{raw.path}: {len(broken)} of {len(weights)} tensors hold NaN or infinity ({some(broken, 3)}). "
            "Those weights give no answers: take the file of another step, or fetch it again."
        )
    if negative := [found.tensor_names[ours] for ours in negative_variances(weights)]:
        raise InputError(
            f"{raw.path}: {len(negative)} of its variances have values below 0 ({some(negative, 3)}), which no "
            "batch-norm comes to. Take the weights from before whatever changed them, or fetch them again."
        )
    for ours in [ours for ours in weights if ours.endswith("running_var")]:
        weights.setdefault(ours.replace("running_var", "num_batches_tracked"), torch.tensor(0))
    if kinds != {"float32"}:
        rounded = " (rounded)" * ("float64" in kinds)
        notes.append(f"the file's numbers are {' and '.join(sorted(kinds))}; here they are float32{rounded}")
    return weights


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
