"""Weights of timm, torchvision, Keras and the authors into our model, and our model into files of theirs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from efficientnetv2.models import pretrained
from efficientnetv2.models.conversion import metadata, timm_config, weight_reader
from efficientnetv2.models.conversion.detect import DetectedModel, detect, named, published_name
from efficientnetv2.models.conversion.layouts import COUNTER, TITLES
from efficientnetv2.models.conversion.metadata import NO_USER_METADATA, UserMetadata
from efficientnetv2.models.conversion.weight_file import WeightFile
from efficientnetv2.models.conversion.weight_writer import (
    STATE_DICT_SUFFIXES,
    rounded_crop,
    write_keras,
    write_timm,
    write_torchvision,
)
from efficientnetv2.models.efficientnet import EfficientNet, Network
from efficientnetv2.models.safetensors_io import check_values
from efficientnetv2.models.wrapped_model import WrappedModel
from efficientnetv2.utils.errors import InputError

Target = Literal["timm", "torchvision", "keras"]
TARGETS: tuple[str, ...] = get_args(Target)


@dataclass(frozen=True, eq=False)
class ConvertedModel:
    """A model from a file of another library, in evaluation mode, with weights in float32."""

    network: EfficientNet
    title: str  # the library's name for people
    name: str  # of the published model
    theirs: str  # the library's name of the model
    notes: tuple[str, ...]  # what was stated and what was assumed


def read(
    path: str | Path,
    *,
    model: str | None = None,
    user: UserMetadata = NO_USER_METADATA,
    used: Sequence[str] = metadata.FIELDS,
) -> ConvertedModel:
    """Our model with the weights of another library's file, recognized by its tensors.

    ``model`` is the library's name of the model if the file does not state it, such as ``efficientnetv2_s`` for timm's
    symmetric padding. ``user`` overrides what the file states. Notes mention the fields ``used`` of the preprocessing.
    Raises InputError if the file cannot be read, holds another model, lacks tensors or has extra ones, or holds NaN.
    """
    file = weight_reader.read(path)
    if file.source == "timm" and file.model is None and (stated := file.header):
        with suppress(InputError):  # timm has no such model, so the tensors are of another one
            if stated.architecture:
                file = replace(file, model=timm_config.model_name(stated.architecture)[0])
            elif stated.foreign and stated.foreign.startswith("timm:"):
                file = replace(file, model=stated.foreign.removeprefix("timm:"))
    if file.model and not file.stated and file.source in ("timm", "torchvision"):
        try:
            published_name(file.source, file.model)
        except InputError:  # a name of the user's own, or that of a wrapper, such as distributeddataparallel
            file = replace(file, model=None)
    notes = list(file.notes)
    wanted = None if model is None else named(file.path, file.source, model)
    named_by_user = False
    if model is not None and file.source in ("timm", "torchvision"):
        if file.model not in (None, model, model.partition(".")[0]):
            raise InputError(f"{file.path} is {file.model}, but `model` is {model}. Leave it out.")
        named_by_user = file.model is None
        file = replace(file, model=model)
    found = detect(file, named_by_user=named_by_user)
    if wanted not in (None, found.name):
        raise InputError(f"{file.path} holds {found.name}, but `model` is {model}. Leave it out.")
    notes += found.notes
    if found.other_head:
        file = replace(file, class_names=())
    weights = _weights(file, found, notes)
    header = metadata.matching_header(file, found, notes)
    preprocessing = metadata.preprocessing(file, found, header, user, notes, used)
    trains = used != metadata.FIELDS
    class_names = metadata.class_names(file, found.num_classes, header, user, notes, trains=trains)
    with torch.device("meta"):
        network = EfficientNet(found.architecture, num_classes=found.num_classes, in_channels=found.in_channels)
    network.load_state_dict(weights, assign=True)
    network.preprocessing, network.class_names = preprocessing, class_names
    if file.activation is not None:
        network.activation = file.activation
    elif (  # training has its own
        header is None and not trains and found.num_classes not in (0, metadata.IMAGENET_CLASSES)
    ):
        notes.append("the file does not state its activation: softmax, one label per image")
    if header is not None:
        network.activation, network.recipe = header.activation, header.recipe
        network.metrics = metadata.valid_metrics(header.metrics, header.preprocessing, preprocessing, notes)
    return ConvertedModel(network.eval(), TITLES[file.source], found.name, found.theirs, tuple(notes))


def name_of_download(path: Path) -> str | None:
    """The name of pretrained weights that a file is named after, if the file states no preprocessing of its own."""
    if path.stem not in pretrained.weight_names() or path.suffix not in STATE_DICT_SUFFIXES:
        return None
    file = weight_reader.read(path)
    return path.stem if file.header is None and file.preprocessing is None else None


def read_pretrained(path: Path, name: str) -> EfficientNet:
    """The model of a downloaded file of pretrained weights. Raises InputError if it holds other weights."""
    entry = pretrained.get_weights(name)
    network = read(path, model=entry.their_model).network
    if network.num_classes != entry.num_classes:
        raise InputError(
            f"{path} has {network.num_classes} outputs, but '{name}' has {entry.num_classes}. Remove it, or rename it "
            "if it holds other weights."
        )
    network.preprocessing = entry.preprocessing
    return network


def _weights(file: WeightFile, found: DetectedModel, notes: list[str]) -> dict[str, Tensor]:
    """Float32 copies under our names, all finite."""
    weights, dtypes = {}, set()
    for ours, theirs in found.tensor_names.items():
        tensor = file.tensors[theirs]
        if ours.endswith(COUNTER):
            weights[ours] = tensor.to(torch.int64, copy=True).reshape(())
            continue
        dtype = str(tensor.dtype).removeprefix("torch.")
        if not tensor.is_floating_point():
            raise InputError(
                f"{file.path}: '{theirs}' (here: {ours}) holds {dtype} numbers. Give the file from before it was "
                "quantized."
            )
        dtypes.add(dtype)
        weights[ours] = tensor.to(torch.float32, copy=True).contiguous()
    fix = "Take the file of another step, or download it again."
    check_values(weights, str(file.path), fix=fix, names=found.tensor_names)
    for ours in [ours for ours in weights if ours.endswith("running_var")]:
        weights.setdefault(ours.replace("running_var", COUNTER), torch.tensor(0))
    if dtypes != {"float32"}:
        rounded = " (rounded)" * ("float64" in dtypes)
        notes.append(f"the file's numbers are {' and '.join(sorted(dtypes))}; here they are float32{rounded}")
    return weights


def write(path: str | Path, network: EfficientNet | WrappedModel, to: Target) -> tuple[str, ...]:
    """Write a model for another library. Returns what the library does not see in the file; ``read`` sees all of it.

    ``path`` is for timm a directory, or a file ``.safetensors`` or ``.pth``; for torchvision ``.pth`` or
    ``.safetensors``; for Keras see ``weight_writer.write_keras``. Raises InputError if the library has no model with
    the same outputs.
    """
    path = Path(path)
    writers = {"timm": write_timm, "torchvision": write_torchvision, "keras": write_keras}
    try:
        if isinstance(network, WrappedModel):
            if to != "timm":
                raise InputError(f"{TITLES[to]} has no model '{network.display_name()}'")
            write_timm(path, network)
        elif (global_pool := network.architecture.global_pool) != "avg":
            raise InputError(f"{TITLES[to]} has no global_pool '{global_pool}'. Train with `global_pool=avg`")
        else:
            writers[to](path, network)
    except InputError as error:
        raise InputError(f"{path} was not written: {str(error).rstrip('.')}.") from error
    return tuple(_unseen_metadata(path, network, to))


def _unseen_metadata(path: Path, network: Network, to: Target) -> Iterator[str]:
    """What only this package reads from the file."""
    preprocessing, unseen = network.preprocessing, f"{TITLES[to]} does not see it in the file"
    only_tensors = to == "torchvision" or (to == "timm" and path.suffix in STATE_DICT_SUFFIXES)
    numbers = tuple(str(number) for number in range(network.num_classes))
    if network.class_names not in ((), numbers) and (only_tensors or to == "keras"):
        yield f"the class names: {unseen}"
    if only_tensors:
        yield f"the preprocessing: {unseen}; it needs image_size, crop_mode, interpolation, mean and std"
    elif to == "keras":
        stored = "mean and std are" if path.name.endswith(".weights.h5") else "size, mean and std are"
        yield (
            f"the preprocessing: {stored} in the model; of the rest, {unseen}. Give Keras cropped images of "
            f"{preprocessing.image_size} px"
        )
    elif rounded := rounded_crop(preprocessing):
        yield f"crop_pct {preprocessing.crop_pct:.6g} is {rounded:.6g} in timm, which resizes to whole pixels"
    if network.activation == "sigmoid" and not (to == "keras" and not path.name.endswith(".weights.h5")):
        fix = (
            "build the model with classifier_activation='sigmoid'"
            if to == "keras"
            else "apply the sigmoid to its outputs"
        )
        yield f"each class has its own probability: {unseen}; {fix}"
    if preprocessing.bands is not None:
        yield f"the rule for raster bands ({preprocessing.bands.listed}): {unseen}; scale them to 0 to 255 there"
    if preprocessing.tta != "none":
        yield f"the test-time augmentation (tta '{preprocessing.tta}'): {unseen}"
