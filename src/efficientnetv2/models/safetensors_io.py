"""Safetensors files with a SHA-256 of their tensors, which model files are."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from efficientnetv2.models.conversion import keras_files
from efficientnetv2.models.model_header import UNKNOWN_SHA256, conversion_hint
from efficientnetv2.utils.errors import InputError, shorten
from efficientnetv2.utils.io import write_atomically

# Of the 20 number formats of safetensors, those of weights and counters.
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
# Large enough that hashing and reading threads do not wait for each other, small compared with any model. Ours.
_CHUNK_BYTES = 2 * 2**20


@dataclass(frozen=True)
class TensorFile:
    """A safetensors file of which only the header has been read."""

    path: Path
    metadata: dict[str, str]
    entries: dict[str, Tensor]  # without values, on the meta device
    offsets: dict[str, tuple[int, int]]  # start and end of each tensor, in bytes from ``data_start``
    data_start: int

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor, in its own memory: copies out of the map of safetensors peak at twice the memory."""
        tensors = {}
        with open(self.path, "rb", buffering=0) as file:
            for name, (start, _) in sorted(self.offsets.items(), key=lambda item: item[1][0]):
                tensor = tensors[name] = torch.empty_like(self.entries[name], device="cpu")
                file.seek(self.data_start + start)
                space = tensor.reshape(-1).view(torch.uint8).numpy().data
                while len(space):
                    if not (count := file.readinto(space)):
                        raise InputError(f"{self.path} became shorter while it was read. Read it again.")
                    space = space[count:]
        return tensors

    def sha256(self) -> str:
        """Of names, dtypes, shapes and positions of the tensors, and of their bytes in the file."""
        digest = hashlib.sha256()
        for name, entry in sorted(self.entries.items()):
            start, end = self.offsets[name]
            digest.update(f"{name} {entry.dtype} {list(entry.shape)} {start} {end}\n".encode())
        chunk = bytearray(_CHUNK_BYTES)
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self.data_start)
            while count := file.readinto(chunk):
                digest.update(memoryview(chunk)[:count])
        return digest.hexdigest()


def read_header(path: Path) -> TensorFile:
    """Read the header of a safetensors file. Raises InputError if it is not whole, or has an unusual number format."""
    try:
        with safe_open(path, framework="pt") as checked:  # checks that the header fits the file
            metadata = checked.metadata() or {}
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a model file: {_why_unreadable(path, error)}") from error
    header.pop("__metadata__", None)
    if strange := [f"{name} ({row['dtype']})" for name, row in header.items() if row["dtype"] not in _DTYPES]:
        raise InputError(f"{path} holds number formats that no model here has: {shorten(strange)}.")
    entries = {
        name: torch.empty(row["shape"], dtype=_DTYPES[row["dtype"]], device="meta") for name, row in header.items()
    }
    offsets = {name: tuple(row["data_offsets"]) for name, row in header.items()}
    return TensorFile(path, metadata, entries, offsets, 8 + length)


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, whole or not at all; the last ``UNKNOWN_SHA256`` in its metadata becomes the SHA-256.

    Tensors are contiguous, on the CPU, and share no memory. Raises InputError if the file cannot be written.
    """

    def fill(partial: Path) -> None:
        save_file(dict(tensors), partial, dict(metadata))
        written = read_header(partial)
        # The library chooses the order of the tensors, so the hash is known only afterwards.
        with open(partial, "rb+") as file:
            position = file.read(written.data_start).rindex(UNKNOWN_SHA256.encode())
            file.seek(position)
            file.write(written.sha256().encode())

    try:
        write_atomically(path, fill)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} could not be written ({error}). Make room, or give another folder.") from error


def independent(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the CPU, contiguous, none sharing memory with another, as ``save_file`` needs them."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, weight in weights.items():
        tensor = weight.detach().cpu().contiguous()
        if (address := tensor.untyped_storage().data_ptr()) in seen:
            tensor = tensor.clone()
        seen.add(address)
        tensors[name] = tensor
    return tensors


def to_half(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Kernels and matrices in float16, each value within 1/2048 of itself (or 3e-8); all else as it is.

    They are nearly all of a model's bytes. A small error in a bias or batch-norm concerns every pixel.
    """
    half = {
        name: tensor.half() if tensor.is_floating_point() and tensor.ndim > 1 else tensor
        for name, tensor in tensors.items()
    }
    if too_large := _nonfinite(half):
        raise InputError(
            f"half precision holds numbers up to {torch.finfo(torch.float16).max:,.0f}, but {shorten(too_large, 3)} "
            "have larger ones. Keep these weights in float32."
        )
    return half


def check_values(
    tensors: Mapping[str, Tensor], subject: str, *, fix: str, names: Mapping[str, str] | None = None
) -> None:
    """Raise an InputError that names the tensors with NaN, infinity or negative variances, as ``names`` has them."""
    variances = {name: tensor for name, tensor in tensors.items() if name.endswith("running_var")}
    negative = [name for name, tensor in variances.items() if bool((tensor < 0).any())]
    for fault, bad in (
        ("hold NaN or infinity", _nonfinite(tensors)),
        ("are batch-norm variances with values below 0", negative),
    ):
        if bad:
            listed = shorten((names[name] if names else name for name in bad), 3)
            raise InputError(f"{subject}: {len(bad)} of {len(tensors)} tensors {fault} ({listed}). {fix}")


def _nonfinite(tensors: Mapping[str, Tensor]) -> list[str]:
    # A sum is not finite if one of its terms is not, and many times faster than a check of each. It may also overflow.
    floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    doubtful = [name for name, tensor in floats.items() if not tensor.sum().isfinite()]
    return [name for name in doubtful if not floats[name].isfinite().all()]


def sha256_by_name(tensors: Mapping[str, Tensor]) -> str:
    """Of names, dtypes, shapes and bytes in the order of names, as files of format 1 have it."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _why_unreadable(path: Path, error: Exception) -> str:
    if not os.access(path, os.R_OK):
        return "this user may not read it. Change its permissions."
    with open(path, "rb") as file:
        start = file.read(9)
    if keras_files.opens(path):
        return f"it is a Keras file. {conversion_hint(path)}"
    if start[8:] != b"{" and (start[:2] == b"PK" or start[:1] == b"\x80"):
        return f"it is a PyTorch pickle, which could run any code when opened. {conversion_hint(path)}"
    if not start or "incomplete" in str(error) or "invalid header length" in str(error):
        return f"it is incomplete ({path.stat().st_size:,} bytes). Copy it again from its source."
    return f"it is not a safetensors file ({error}). Give a model file (model.safetensors) or a run folder."
