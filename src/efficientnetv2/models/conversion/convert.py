"""Weights of timm, torchvision, Keras and the authors into our model, and our model into files of theirs.

>>> read("tf_efficientnetv2_s.safetensors").network.preprocessing.image_px  # doctest: +SKIP
384
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from efficientnetv2.models import pretrained
from efficientnetv2.models.conversion import keras_export, metadata, pytorch_export, reading, timm
from efficientnetv2.models.conversion.detect import TITLES, DetectedModel, detect, published_name
from efficientnetv2.models.conversion.metadata import NO_USER_METADATA, UserMetadata
from efficientnetv2.models.conversion.raw import RawWeights, Source
from efficientnetv2.models.efficientnet import EfficientNet
from efficientnetv2.models.safetensors_io import negative_variances
from efficientnetv2.utils.errors import InputError, shorten

Target = Literal["timm", "torchvision", "keras"]
TARGETS: tuple[str, ...] = get_args(Target)


@dataclass(frozen=True, eq=False)
class ConvertedModel:
    """A model from a file of another library.

    Args:
        network: In evaluation mode, weights in float32, with preprocessing and class names.
        source: The library.
        name: Of the published model.
        theirs: The library's name of the model.
        notes: What was stated and what was assumed, a sentence each.
    """

    network: EfficientNet
    source: Source
    name: str
    theirs: str
    notes: tuple[str, ...]

    @property
    def title(self) -> str:
        """The library's name for people."""
        return TITLES[self.source]


def read(
    path: str | Path,
    *,
    model: str | None = None,
    user: UserMetadata = NO_USER_METADATA,
    used: Sequence[str] = metadata.FIELDS,
) -> ConvertedModel:
    """Our model with the weights of another library's file, recognized by its tensors.

    Args:
        path: See ``models.conversion.reading.read``.
        model: The library's name of the model, if the file does not state it, such as ``efficientnetv2_s`` for timm's
            symmetric padding. None is as the file states, or timm's ``tf_`` model.
        user: Preprocessing and class names that override the file's.
        used: Fields of the preprocessing that the caller uses. Notes mention no others.

    Raises:
        InputError: The file cannot be read, holds another model, has missing or extra tensors or NaN, or states
            something inconsistent.
    """
    raw = _with_embedded_name(reading.read(path))
    notes = list(raw.notes)
    meant = None if model is None else published_name(raw, model)
    named_by_user = False
    if model is not None and raw.source in ("timm", "torchvision"):
        if raw.model not in (None, model, model.partition(".")[0]):
            raise InputError(
                f"{raw.path} says that it is {raw.model}, but --model says {model}. Leave it out."
            )
        named_by_user = raw.model is None
        raw = replace(raw, model=model)
    found = detect(raw, named_by_user=named_by_user)
    if meant not in (None, found.name):
        raise InputError(f"{raw.path} holds {found.name}, but --model says {model}. Leave it out.")
    notes += found.notes
    if found.own_head:
        raw = replace(raw, class_names=())
    weights = _weights(raw, found, notes)
    header = metadata.embedded_header(raw, found, notes)
    preprocessing = metadata.preprocessing(raw, found, header, user, notes, used)
    class_names = metadata.class_names(raw, found.num_classes, header, user, notes)
    with torch.device("meta"):
        network = EfficientNet(
            found.architecture, num_classes=found.num_classes, in_channels=found.in_channels
        )
    network.load_state_dict(weights, assign=True)
    network.preprocessing, network.class_names = preprocessing, class_names
    if header is not None:
        network.answer, network.recipe = header.answer, header.recipe
        network.metrics = metadata.valid_metrics(header.metrics, header.preprocessing, preprocessing, notes)
    return ConvertedModel(network.eval(), raw.source, found.name, found.theirs, tuple(notes))


def read_pretrained(path: Path, name: str) -> EfficientNet:
    """The model of a file of pretrained weights: ``read_pretrained(hub.fetch(name), name)``.

    Args:
        name: One of ``pretrained.names()``.

    Raises:
        InputError: The file does not hold the weights of that name.
    """
    entry = pretrained.about(name)
    network = read(path, model=entry.their_model).network
    if network.num_classes != entry.num_classes:
        raise InputError(
            f"{path} has {network.num_classes} outputs, but '{name}' has {entry.num_classes}: it is another "
            "file. Remove it, and try again."
        )
    network.preprocessing = entry.preprocessing
    return network


def _with_embedded_name(raw: RawWeights) -> RawWeights:
    """With timm's name of the model, if only the embedded header states it."""
    if (
        raw.source != "timm"
        or raw.model is not None
        or raw.carried is None
        or raw.carried.architecture is None
    ):
        return raw
    try:
        return replace(raw, model=timm.model_name(raw.carried.architecture)[0])
    except InputError:  # timm has no such model, so the tensors are of another one
        return raw


def write(path: str | Path, network: EfficientNet, to: Target) -> tuple[str, ...]:
    """Write a model for another library.

    Args:
        path: For timm a directory, or a file ``.safetensors`` or ``.pth``; for torchvision ``.pth`` or
            ``.safetensors``; for Keras see ``models.conversion.keras_export.write``.

    Returns:
        What the library does not see in the file, a sentence each. ``read`` gives all of it back.

    Raises:
        InputError: The library has no model with the same outputs.
    """
    path, pooling = Path(path), network.architecture.pooling
    if pooling != "mean":
        raise InputError(
            f"{path} was not written: this network pools its last maps as '{pooling}', and {TITLES[to]}'s take the "
            "mean over the whole of them ('mean'), so its classifier fits none. Only a model file of ours can hold "
            "it; for theirs, train with pooling 'mean'."
        )
    writers = {
        "timm": pytorch_export.write_timm,
        "torchvision": pytorch_export.write_torchvision,
        "keras": keras_export.write,
    }
    try:
        writers[to](path, network)
    except InputError as error:
        raise InputError(f"{path} was not written: {str(error).rstrip('.')}.") from error
    return tuple(_lost(path, network, to))


def _lost(path: Path, network: EfficientNet, to: Target) -> Iterator[str]:
    """What only this package reads from the file."""
    preprocessing = network.preprocessing
    only_tensors = to == "torchvision" or (to == "timm" and path.suffix in pytorch_export.SUFFIXES)
    numbers = tuple(str(number) for number in range(network.num_classes))
    if network.class_names not in ((), numbers) and (only_tensors or to == "keras"):
        yield f"the class names: {TITLES[to]} does not see them in the file; this package does"
    if only_tensors:
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
    elif rounded := pytorch_export.rounded_crop(preprocessing):
        yield (
            f"crop_fraction {preprocessing.crop_fraction:.6g} is {rounded:.6g} in timm, which resizes to whole pixels"
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
    weights, dtypes = {}, set()
    for ours, theirs in found.tensor_names.items():
        tensor = raw.tensors[theirs]
        if ours.endswith("num_batches_tracked"):
            weights[ours] = tensor.to(torch.int64, copy=True).reshape(())
            continue
        dtype = str(tensor.dtype).removeprefix("torch.")
        if not tensor.is_floating_point():
            raise InputError(
                f"{raw.path}: '{theirs}' (ours: {ours}) holds {dtype} numbers, not floating-point ones. "
                "Quantised and complex weights cannot be read: give the file from before."
            )
        dtypes.add(dtype)
        weights[ours] = tensor.to(torch.float32, copy=True).contiguous()
    bad = [found.tensor_names[ours] for ours, tensor in weights.items() if not tensor.isfinite().all()]
    if bad:
        raise InputError(
            f"{raw.path}: {len(bad)} of {len(weights)} tensors hold NaN or infinity ({shorten(bad, 3)}). "
            "Those weights give no answers: take the file of another step, or fetch it again."
        )
    if negative := [found.tensor_names[ours] for ours in negative_variances(weights)]:
        raise InputError(
            f"{raw.path}: {len(negative)} of its variances have values below 0 ({shorten(negative, 3)}), which no "
            "batch-norm comes to. Take the weights from before whatever changed them, or fetch them again."
        )
    for ours in [ours for ours in weights if ours.endswith("running_var")]:
        weights.setdefault(ours.replace("running_var", "num_batches_tracked"), torch.tensor(0))
    if dtypes != {"float32"}:
        rounded = " (rounded)" * ("float64" in dtypes)
        notes.append(f"the file's numbers are {' and '.join(sorted(dtypes))}; here they are float32{rounded}")
    return weights
