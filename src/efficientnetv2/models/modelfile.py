"""The model file: one safetensors file that knows its network, its preprocessing and its classes.

Weights are plain tensors; all else is JSON in the file's metadata. Nothing in it is ever executed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from efficientnetv2.arch.spec import Architecture
from efficientnetv2.base.errors import InputError, some
from efficientnetv2.base.files import write_atomically
from efficientnetv2.base.preprocessing import Preprocessing
from efficientnetv2.models.network import EfficientNet

NAME = "model.safetensors"  # in a run folder
FORMAT_VERSION = 1  # raised when an older package could no longer read what we write

_KEY = "efficientnetv2"  # of our JSON among the safetensors metadata


class LoadedNetwork(EfficientNet):
    """A network from a model file, with all that it takes to use it.

    Attributes:
        preprocessing: from any picture to its input.
        class_names: of its outputs, in order.
        recipe: that it was trained by, as plain JSON.
        metrics: what it reached, as plain JSON.
    """

    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    recipe: dict[str, Any]
    metrics: dict[str, Any]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class _Header:
    """The JSON in the metadata."""

    format_version: int
    package_version: str
    architecture: Architecture
    num_classes: Annotated[int, Field(ge=0)]
    in_channels: Annotated[int, Field(ge=1)]
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    recipe: dict[str, Any]
    metrics: dict[str, Any]
    sha256: str

    @model_validator(mode="after")
    def _consistent(self) -> _Header:
        if len(self.class_names) != self.num_classes:
            raise ValueError(f"{len(self.class_names)} class_names for {self.num_classes} outputs")
        if len(set(self.class_names)) != self.num_classes:
            raise ValueError("two of the class_names are the same")
        if self.preprocessing.channels != self.in_channels:
            raise ValueError(
                f"preprocessing of {self.preprocessing.channels} channels for {self.in_channels} in_channels"
            )
        return self


def save(
    path: str | Path,
    network: EfficientNet,
    *,
    preprocessing: Preprocessing,
    class_names: Sequence[str],
    recipe: Mapping[str, Any],
    metrics: Mapping[str, Any],
) -> None:
    """Write a model file, whole or not at all.

    Args:
        path: of the file; its folder exists.
        network: on any device, in any memory order.
        preprocessing: that it was trained with.
        class_names: of its outputs, in order, all different.
        recipe: plain JSON values.
        metrics: plain JSON values.

    Raises:
        InputError: a weight is NaN or infinite, the names or channels do not fit the network, or the file
            can't be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    _check_finite(tensors, f"{path} was not written")
    try:
        header = _Header(
            format_version=FORMAT_VERSION,
            package_version=version("efficientnetv2"),
            architecture=network.architecture,
            num_classes=network.num_classes,
            in_channels=network.in_channels,
            preprocessing=preprocessing,
            class_names=tuple(class_names),
            recipe=dict(recipe),
            metrics=dict(metrics),
            sha256=_sha256(tensors),
        )
    except ValidationError as error:
        raise InputError(f"{path} was not written: {_reason(error)}") from error
    text = json.dumps(TypeAdapter(_Header).dump_python(header, mode="json"), allow_nan=False)
    metadata = {"format": "pt", _KEY: text}
    try:
        write_atomically(path, lambda partial: save_file(tensors, partial, metadata))
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path} could not be written ({error}). Make room, or give another folder to write to."
        ) from error


def load(path: str | Path, device: str | torch.device = "cpu") -> LoadedNetwork:
    """The network of a model file, in evaluation mode.

    Args:
        path: of a model file, or of a run folder.
        device: where its weights go.

    Raises:
        InputError: no such file, not one of ours, written by a newer version, or damaged.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / NAME).is_file():
            raise InputError(
                f"{path} holds no {NAME}. Give a run folder whose training has ended, or a file."
            )
        path = path / NAME
    elif not path.is_file():
        raise InputError(f"{path} does not exist. Give a model file ({NAME}) or a run folder.")
    header, tensors = _read(path)
    network = _empty_network(path, header, len(tensors))
    _check_names(path, network.state_dict(), tensors)
    _check_finite(tensors, str(path))
    if _sha256(tensors) != header.sha256:
        raise InputError(
            f"{path}: the weights are not those that were saved (their SHA-256 differs). The file was "
            "damaged or changed: copy it again from where it came."
        )
    # A copy, for the file's own memory would change with the file.
    network.load_state_dict(
        {name: tensor.to(device, copy=True) for name, tensor in tensors.items()}, assign=True
    )
    network.preprocessing, network.class_names = header.preprocessing, header.class_names
    network.recipe, network.metrics = header.recipe, header.metrics
    return network.eval()


def _read(path: Path) -> tuple[_Header, dict[str, Tensor]]:
    """Metadata, checked, and tensors that lie in the file's memory map, not checked."""
    try:
        with safe_open(path, framework="pt") as file:
            return _header(path, file.metadata() or {}), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read as a model file: {_why_unreadable(path, error)}") from error


def _header(path: Path, metadata: Mapping[str, str]) -> _Header:
    if _KEY not in metadata:
        raise InputError(
            f"{path} is a safetensors file, but not a model file of efficientnetv2: its metadata has no "
            f"'{_KEY}'. To start training from foreign weights, pass it to --weights."
        )
    try:
        plain = json.loads(metadata[_KEY])
        newest = TypeAdapter(int).validate_python(
            plain.get("format_version") if isinstance(plain, dict) else None
        )
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: the metadata '{_KEY}' is damaged ({_reason(error)}).") from error
    if newest > FORMAT_VERSION:
        raise InputError(
            f"{path} has format {newest}, written by efficientnetv2 {plain.get('package_version')}; "
            f"this is {version('efficientnetv2')}, which reads up to {FORMAT_VERSION}. "
            "Upgrade: pip install --upgrade efficientnetv2"
        )
    try:
        return TypeAdapter(_Header).validate_python(plain)
    except ValidationError as error:
        raise InputError(f"{path}: the metadata '{_KEY}' is damaged ({_reason(error)}).") from error


def _empty_network(path: Path, header: _Header, tensors: int) -> LoadedNetwork:
    """The network without memory for its weights: those of the file take their place."""
    layers = sum(stage.layers for stage in header.architecture.stages)
    try:
        if layers > tensors:  # else a hostile file could have us build blocks without end
            raise ValueError(f"{layers} layers, but only {tensors} tensors")
        with torch.device("meta"):
            return LoadedNetwork(
                header.architecture, num_classes=header.num_classes, in_channels=header.in_channels
            )
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{path}: its architecture cannot be built ({_reason(error)}).") from error


def _check_names(path: Path, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    def kind(tensor: Tensor) -> str:
        return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"

    wrong = [
        f"'{name}' is {kind(found[name])}, not {kind(tensor)}"
        for name, tensor in wanted.items()
        if name in found and kind(found[name]) != kind(tensor)
    ]
    missing = [name for name in wanted if name not in found]
    extra = [name for name in found if name not in wanted]
    faults = [f"missing {some(missing)}"] * bool(missing) + [f"unknown {some(extra)}"] * bool(extra)
    if faults or wrong:
        raise InputError(
            f"{path}: the weights do not fit the architecture it names: {'; '.join(faults + wrong[:3])}. "
            "The file was damaged or changed: copy it again from where it came."
        )


def _check_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise InputError(
            f"{what}: {len(broken)} of {len(tensors)} tensors hold NaN or infinity ({some(broken, 3)}). "
            "The training diverged: train again with a lower learning rate."
        )


def _sha256(tensors: Mapping[str, Tensor]) -> str:
    """Of names, kinds, shapes and bytes, whatever order the file keeps them in."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _why_unreadable(path: Path, error: Exception) -> str:
    with open(path, "rb") as file:
        start = file.read(8)
    if start[:2] in (b"PK", b"\x80\x02"):
        return (
            "it is a PyTorch pickle, which could run any code when opened. If you trust it, convert it to "
            "safetensors first."
        )
    cut = not start or "incomplete" in str(error) or "invalid header length" in str(error)
    if cut:
        return f"it is incomplete ({path.stat().st_size:,} bytes). Copy it again from where it came."
    return f"it is not a safetensors file ({error}). Give a model file ({NAME}) or a run folder."


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return f"{where}: {first['msg']}" if where else first["msg"]
    return str(error).splitlines()[0]
