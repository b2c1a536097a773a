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

from efficientnetv2.arch.published import published
from efficientnetv2.base.errors import InputError, some
from efficientnetv2.base.preprocessing import Preprocessing
from efficientnetv2.models.interop import keras, timm, torchvision
from efficientnetv2.models.interop import read as reading
from efficientnetv2.models.interop.raw import Raw, Source
from efficientnetv2.models.interop.recognise import TITLES, Recognised, is_tf, published_name, recognise
from efficientnetv2.models.network import EfficientNet

Target = Literal["timm", "torchvision", "keras"]
TARGETS: tuple[str, ...] = get_args(Target)

_IMAGENET_CLASSES = 1000


@dataclass(frozen=True, eq=False)
class Imported:
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


def read(path: str | Path, *, model: str | None = None) -> Imported:
    """Our network with the weights of a foreign file, recognised from the file itself.

    Args:
        path: see ``models.interop.read.read``.
        model: what the source calls the network, where the file does not say, e.g. ``efficientnetv2_s`` for
            timm's with symmetric padding; None as the file says, or timm's ``tf_`` network. Files of Keras and
            of the authors need none; one that is given has to be right.

    Raises:
        InputError: the file can't be read, holds another network, lacks tensors or has some left over, holds
            NaN, or states something that does not fit together. Nothing is half loaded.
    """
    raw = reading.read(path)
    notes = list(raw.notes)
    told = None if model is None else published_name(raw, model)
    if model is not None and raw.source in ("timm", "torchvision"):
        if raw.model not in (None, model):
            raise InputError(
                f"{raw.path} says that it is {raw.model}, but --model says {model}. Leave it out."
            )
        raw = replace(raw, model=model)
    found = recognise(raw)
    if told not in (None, found.name):
        raise InputError(f"{raw.path} holds {found.name}, but --model says {model}. Leave it out.")
    notes += found.notes
    weights = _weights(raw, found, notes)
    preprocessing = _preprocessing(raw, found, notes)
    class_names = _class_names(raw, found.num_classes, notes)
    with torch.device("meta"):
        network = EfficientNet(
            found.architecture, num_classes=found.num_classes, in_channels=found.in_channels
        )
    network.load_state_dict(weights, assign=True)
    network.preprocessing, network.class_names = preprocessing, class_names
    network.recipe, network.metrics = {}, {}
    return Imported(network.eval(), raw.source, found.name, found.theirs, tuple(notes))


def write(path: str | Path, network: EfficientNet, to: Target) -> tuple[str, ...]:
    """Write a network for others.

    Args:
        path: timm: a folder, or a file .safetensors or .pth; torchvision: .pth or .safetensors; Keras: see
            ``models.interop.keras.write``.
        network: with its preprocessing and class names.
        to: for whom.

    Returns:
        What of the network such a file cannot hold, a sentence each.

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
            keras.write(path, network)
    except InputError as error:
        raise InputError(f"{path} was not written: {str(error).rstrip('.')}.") from error
    return tuple(_lost(path, network, to))


def _lost(path: Path, network: EfficientNet, to: Target) -> Iterator[str]:
    """What is in the network and not in a file for others."""
    preprocessing = network.preprocessing
    tensors_alone = to == "torchvision" or (to == "timm" and path.suffix in timm.SUFFIXES)
    numbers = tuple(str(number) for number in range(network.num_classes))
    if network.class_names != numbers and (tensors_alone or to == "keras"):
        yield "the class names are not in the file, which cannot hold them"
    if tensors_alone:
        yield (
            "the preprocessing is not in the file, which holds tensors alone: size, framing, interpolation, mean and "
            "std must be told to whoever loads it"
        )
    elif to == "keras":
        kept = "size, mean and std are" if not path.name.endswith(".weights.h5") else "mean and std are"
        yield (
            f"of the preprocessing, {kept} in the network; framing and interpolation are not in the file, so Keras "
            f"must be given pictures of {preprocessing.image_px} px that are framed already"
        )
    elif there := timm.lost_crop(preprocessing):
        yield (
            f"crop_fraction {preprocessing.crop_fraction:.6g} becomes {there:.6g}, for timm resizes to whole pixels"
        )
    if preprocessing.views != "one":
        yield f"the views ('{preprocessing.views}') are not in the file: others look at a picture once"
    if network.recipe:
        yield "the recipe that it was trained by is not in the file"
    if network.metrics:
        yield "the metrics that it reached are not in the file"


def _weights(raw: Raw, found: Recognised, notes: list[str]) -> dict[str, Tensor]:
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
                "Quantised weights cannot be read: give the file from before."
            )
        kinds.add(_kind(tensor))
        weights[ours] = tensor.to(torch.float32, copy=True).contiguous()
    broken = [found.tensor_names[ours] for ours, tensor in weights.items() if not tensor.isfinite().all()]
    if broken:
        raise InputError(
            f"{raw.path}: {len(broken)} of {len(weights)} tensors hold NaN or infinity ({some(broken, 3)}). "
            "Those weights give no answers: take the file of another step, or fetch it again."
        )
    for ours in [ours for ours in weights if ours.endswith("running_var")]:
        weights.setdefault(ours.replace("running_var", "num_batches_tracked"), torch.tensor(0))
    if kinds != {"float32"}:
        rounded = " (rounded)" * ("float64" in kinds)
        notes.append(f"the file's numbers are {' and '.join(sorted(kinds))}; here they are float32{rounded}")
    return weights


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _preprocessing(raw: Raw, found: Recognised, notes: list[str]) -> Preprocessing:
    """As the file states it, else as its source documents it for this network; and from where."""
    if raw.preprocessing is not None:
        preprocessing, origin = raw.preprocessing, "as the file states it"
    elif raw.source == "timm":
        preprocessing = timm.default_preprocessing(found.name, tf=is_tf(raw))
        origin = f"that of timm's {found.theirs}, for the file states none"
    elif raw.source == "torchvision":
        preprocessing, weights = torchvision.default_preprocessing(found.name)
        origin = f"that of torchvision's {weights}, for the file states none"
    else:
        preprocessing = published(found.name).preprocessing
        origin = f"that of the published {found.name}, for the file states none"
    notes.append(f"preprocessing: {origin}")
    if preprocessing.channels != found.in_channels:
        notes.append(
            f"its mean and std are for {preprocessing.channels} channels, the network has {found.in_channels}: they "
            "repeat in turn, and are averaged for one channel"
        )
    return preprocessing.with_channels(found.in_channels)


def _class_names(raw: Raw, num_classes: int, notes: list[str]) -> tuple[str, ...]:
    if raw.class_names and len(raw.class_names) != num_classes:
        raise InputError(
            f"{raw.path}: {len(raw.class_names)} class names are stated for it, but it has {num_classes} outputs. "
            "Correct the names, or take them away."
        )
    if raw.class_names:
        return _distinct(raw.class_names)
    if num_classes == _IMAGENET_CLASSES:
        notes.append("class names: ImageNet's, for there are 1000 outputs and the file states no names")
        return imagenet_class_names()
    if num_classes:
        notes.append(f"class names: '0' to '{num_classes - 1}', for the file states none")
    return tuple(str(number) for number in range(num_classes))


def imagenet_class_names() -> tuple[str, ...]:
    """The 1000 classes of ImageNet-1k in their usual order, all different."""
    from torchvision.models import EfficientNet_B0_Weights

    return _distinct(EfficientNet_B0_Weights.DEFAULT.meta["categories"])


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
