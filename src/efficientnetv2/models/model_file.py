"""Model files: one safetensors file with the weights, the architecture, the preprocessing and the class names.

Weights are plain tensors; everything else is JSON in the file's metadata (``model_card``). Nothing in it is executed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from efficientnetv2.models import model_card, pretrained, provenance, safetensors_io
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.models.empty_model import describe_changes, describe_differences, empty_network, module_of
from efficientnetv2.models.ensemble import Ensemble, ensemble_members
from efficientnetv2.models.model_card import Header, conversion_hint
from efficientnetv2.models.provenance import Calibration, TrainingFingerprint
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.utils.errors import InputError, error_summary, shorten

SUFFIX = ".safetensors"
NAME = f"model{SUFFIX}"  # in a run directory
_COPY_AGAIN = "The file was damaged or changed: copy it again from its source."


def save(
    path: str | Path,
    network: Network,
    *,
    preprocessing: Preprocessing | None = None,
    class_names: Sequence[str] | None = None,
    recipe: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    trained_on: TrainingFingerprint | None = None,
    half: bool = False,
) -> None:
    """Write a model file, whole or not at all. Arguments that are None are taken from the model.

    Weights keep their names; those of a wrapped model have the names of its module. A weight that has several names is
    written under each, and is one weight again when loaded.

    Args:
        path: Ends in .safetensors.
        network: On any device. Layers that were replaced after ``create`` are refused, since ``load`` could not build
            them: use ``adapt`` for other classes or channels.
        class_names: Of the outputs, in order, all different.
        recipe: Plain JSON values.
        metrics: Plain JSON values.
        trained_on: A sample of the training images.
        half: Store kernels and matrices in float16, half the bytes. ``load`` gives float32 again, each weight within
            1/2048 of its value, or 3e-8 where that is more. The model itself does not change.

    Raises:
        InputError: A weight is NaN, infinite or too large for ``half``; names or channels do not fit the model; recipe
            or metrics are not JSON; it is an ensemble; a layer was replaced; or the file cannot be written.

    Example::

        ev2.save("model.safetensors", network, class_names=("cat", "dog"))
    """
    if not (isinstance(path, str | os.PathLike) and isinstance(network, Network)):
        raise InputError(
            "save takes the path first, then the network; given were "
            f"{type(path).__name__} and {type(network).__name__}. A module becomes a network by "
            "efficientnetv2.create(module)."
        )
    path = Path(path)
    try:
        if path.suffix != SUFFIX:
            raise InputError(f"a model file ends in {SUFFIX}. Name it so.")
        tensors = _independent(module_of(network).state_dict())
        safetensors_io.check_values(
            tensors, "the weights are damaged", fix="Train again with a lower learning rate."
        )
        if half:
            tensors = safetensors_io.to_half(tensors)
        header = Header.of(
            network, preprocessing=preprocessing, class_names=class_names, recipe=recipe, metrics=metrics
        )
        if header.can_be_built and (different := describe_changes(path, header, network, tensors)):
            raise InputError(
                "layers were changed after the network was created, and load could not build them again "
                f"({different}). For other classes or channels: efficientnetv2.adapt(network, num_classes=N). To keep "
                "these weights: torch.save(network.state_dict(), FILE)."
            )
    except InputError as error:
        raise InputError(f"{path} was not written: {error}") from error
    fingerprint = network.trained_on if trained_on is None else trained_on
    metadata = header.metadata()
    if fingerprint is not None:
        metadata[provenance.KEY] = fingerprint.to_json()
    if network.calibration is not None:
        metadata[provenance.CALIBRATION_KEY] = network.calibration.to_json()
    safetensors_io.write(path, tensors, metadata)


def load(
    path: str | os.PathLike[str], device: str | torch.device = "cpu", *, network: nn.Module | None = None
) -> Network:
    """The model of a model file, in evaluation mode. Weights in half precision become float32.

    Args:
        path: A model file, a run directory, or a directory of model files that form an ensemble.
        device: Where the weights go.
        network: The module as it was saved, if it is neither ours nor a timm or torchvision model by name. It is
            wrapped, and its weights change only if the file is valid.

    Raises:
        InputError: No such file, not a model file, written by a newer version, or damaged; no such device; or
            ``network`` is given for an ensemble.

    Example::

        network = ev2.load("runs/photos")
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter if PyTorch was built without it
        raise InputError(
            f"device is {str(device)!r}, but PyTorch cannot use it here ({error_summary(error)}). Give 'cpu'."
        ) from error
    if members := ensemble_members(Path(path)):
        if network is not None:
            raise InputError(
                f"{path} is an ensemble of {len(members)} models, and network is one module. Leave network out, or "
                f"load a member: {members[0]}"
            )
        # The model file of a run is called by its directory.
        names = [member.parent.name if member.name == NAME else member.name for member in members]
        return Ensemble([load(member, device) for member in members], names)
    path = _file(Path(path))
    file = safetensors_io.read_header(path)
    header, written = model_card.read(path, file.metadata)
    # Hash while building: both take about as long, mostly outside the interpreter.
    with ThreadPoolExecutor(1) as executor:
        hashing = executor.submit(file.sha256) if written > 1 else None
        if network is not None and not header.can_be_built:
            # Before it is wrapped, which changes its convolutions.
            given = module_of(network) if isinstance(network, Network) else network
            if different := describe_differences(given.state_dict(), file.entries):
                raise InputError(
                    f"{path}: its weights are not those of the given module: {different}. Give the module as it was "
                    "saved."
                )
        result = empty_network(path, header, file.entries, network)
        module = module_of(result)
        if different := describe_differences(module.state_dict(), file.entries):
            raise InputError(f"{path}: the weights do not fit its architecture: {different}. {_COPY_AGAIN}")
        tensors = file.tensors()
        safetensors_io.check_values(tensors, str(path), fix="Copy the file again, or take another.")
        found = hashing.result() if hashing else safetensors_io.sha256_by_name(tensors)
    if found != header.sha256:
        raise InputError(
            f"{path}: the weights are not those that were saved (their SHA-256 differs). {_COPY_AGAIN}"
        )
    module.load_state_dict(_state_dict(path, module, tensors, device), assign=True)
    if torch.device(device).type != "cpu":
        result.to(device)  # tensors that a state dict does not hold
    result.preprocessing, result.class_names = header.preprocessing, header.class_names
    result.answer, result.recipe, result.metrics = header.answer, header.recipe, header.metrics
    if (text := file.metadata.get(provenance.KEY)) is not None:
        fingerprint = model_card.parse_entry(path, text, provenance.KEY, TrainingFingerprint.from_json)
        selected = header.metrics.get("selected_on") == "minival"
        result.trained_on = fingerprint.with_minival() if selected else fingerprint
    result.calibration = _calibration(path, file.metadata)
    return result.eval()


@dataclass(frozen=True)
class ModelDescription:
    """What a model file says besides its weights."""

    header: Header
    calibration: Calibration | None


def describe(path: str | Path) -> ModelDescription:
    """What a model file or run directory says of its model, without reading weights. Raises InputError as ``load``."""
    path = _file(Path(path))
    metadata = safetensors_io.read_header(path).metadata
    return ModelDescription(model_card.read(path, metadata)[0], _calibration(path, metadata))


def _calibration(path: Path, metadata: Mapping[str, str]) -> Calibration | None:
    text = metadata.get(provenance.CALIBRATION_KEY)
    return (
        None
        if text is None
        else model_card.parse_entry(path, text, provenance.CALIBRATION_KEY, Calibration.from_json)
    )


def _file(path: Path) -> Path:
    """The model file at a path or in a run directory."""
    if path.is_dir() and ((path / "config.json").is_file() or (path / "checkpoint").is_file()):
        raise InputError(f"{path} is a folder of weights, not a run folder. {conversion_hint(path)}")
    if path.is_dir():
        if not (path / NAME).is_file():
            inside = sorted(str(file.parent) for file in path.glob(f"*/{NAME}"))
            runs = f" Folders in it do: {shorten(inside, 3)}." if inside else ""
            raise InputError(
                f"{path} holds no {NAME}.{runs} Give a run folder whose training has ended, or a file."
            )
        return path / NAME
    if path.is_file():
        return path
    if path.with_name(f"{path.name}.index").is_file():
        raise InputError(f"{path} is a TensorFlow checkpoint, not a model file. {conversion_hint(path)}")
    if str(path) in pretrained.weight_names():
        raise InputError(
            f"{path} is a name of pretrained weights, not a file. To train from them: effnetv2 train DATA --weights "
            f"{path}. To write a model file, in Python: efficientnetv2.save('{path}.safetensors', "
            f"efficientnetv2.create('{path}'))."
        )
    raise InputError(f"{path} does not exist. Give a model file ({NAME}) or a run folder.")


def _independent(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, contiguous, none sharing memory with another."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, weight in weights.items():
        tensor = weight.detach().cpu().contiguous()
        if (address := tensor.untyped_storage().data_ptr()) in seen:
            tensor = tensor.clone()
        seen.add(address)
        tensors[name] = tensor
    return tensors


def _state_dict(
    path: Path, module: nn.Module, tensors: Mapping[str, Tensor], device: str | torch.device
) -> dict[str, Tensor]:
    """The file's tensors as parameters and buffers of a module; a weight of several names stays one weight."""
    first: dict[int, str] = {}
    weights: dict[str, Tensor] = {}
    for name, old in module.state_dict(keep_vars=True).items():
        same = first.setdefault(id(old), name)
        if same != name:
            if not torch.equal(tensors[same], tensors[name]):
                raise InputError(
                    f"{path}: '{same}' and '{name}' are one weight of the network, but differ in the file. Give the "
                    "module as it was saved."
                )
            weights[name] = weights[same]
            continue
        value = tensors[name].to(device, old.dtype)
        is_parameter = isinstance(old, nn.Parameter)
        weights[name] = nn.Parameter(value, requires_grad=old.requires_grad) if is_parameter else value
    return weights
