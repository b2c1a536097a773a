"""A safetensors file read once, without a second copy, and checked against its SHA-256 meanwhile."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from efficientnetv2.models import model_card
from efficientnetv2.models.conversion import keras_files
from efficientnetv2.utils.errors import InputError, some
from efficientnetv2.utils.io import write_atomically

# Of the 20 number formats of safetensors, those that weights and counters of networks come in.
_KINDS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
# Large enough to keep threads from waiting for each other, small beside any network. Ours.
_CHUNK_BYTES = 8 * 2**20

UNKNOWN_SHA256 = "0" * 64  # as long as one, and holds its place


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies.

    Args:
        dtype: its numbers.
        shape: its sides.
        start: its first byte, counted from the start of the file.
        end: the byte after its last.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class TensorFile:
    """A safetensors file of which only the header has been read.

    Args:
        path: of the file.
        metadata: free words.
        entries: of every tensor.
        data_start: where the header ends.
    """

    path: Path
    metadata: dict[str, str]
    entries: dict[str, Entry]
    data_start: int

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor, in memory of its own.

        Raises:
            InputError: the file has become shorter since its header was read.
        """
        with open(self.path, "rb", buffering=0) as file:
            places = sorted(self.entries.items(), key=lambda item: item[1].start)
            return {name: self._tensor(file, entry) for name, entry in places}

    def _tensor(self, file: BinaryIO, entry: Entry) -> Tensor:
        tensor = torch.empty(entry.shape, dtype=entry.dtype)
        file.seek(entry.start)
        space = tensor.reshape(-1).view(torch.uint8).numpy().data
        while len(space):
            count = file.readinto(space)  # type: ignore[attr-defined]
            if not count:
                raise InputError(f"{self.path} became shorter while it was read. Read it again.")
            space = space[count:]
        return tensor

    def sha256(self) -> str:
        """Of names, kinds, shapes and places of the tensors, and of their bytes as they lie in the file."""
        digest = hashlib.sha256()
        for name, entry in sorted(self.entries.items()):
            place = f"{entry.start - self.data_start} {entry.end - self.data_start}"
            digest.update(f"{name} {entry.dtype} {list(entry.shape)} {place}\n".encode())
        chunk = bytearray(_CHUNK_BYTES)
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self.data_start)
            while count := file.readinto(chunk):
                digest.update(memoryview(chunk)[:count])
        return digest.hexdigest()


def read_header(path: Path) -> TensorFile:
    """Read the header of a safetensors file.

    Raises:
        InputError: it is no safetensors file, not a whole one, or holds numbers of an unusual kind.
    """
    try:
        with safe_open(path, framework="pt") as checked:  # whether all of it fits together
            metadata = checked.metadata() or {}
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            listed = json.loads(file.read(length))
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a model file: {_why_unreadable(path, error)}") from error
    listed.pop("__metadata__", None)
    strange = [f"{name} ({row['dtype']})" for name, row in listed.items() if row["dtype"] not in _KINDS]
    if strange:
        raise InputError(f"{path} holds numbers of a kind that no network here has: {some(strange)}.")
    start = 8 + length
    entries = {
        name: Entry(
            _KINDS[row["dtype"]], tuple(row["shape"]), *(start + place for place in row["data_offsets"])
        )
        for name, row in listed.items()
    }
    return TensorFile(path, metadata, entries, start)


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, whole or not at all, with its SHA-256 among the metadata.

    Args:
        path: of the file.
        tensors: contiguous, on the CPU, none sharing memory with another.
        metadata: the last ``UNKNOWN_SHA256`` in it is replaced by the SHA-256 of what was written.

    Raises:
        InputError: it can't be written.
    """

    def fill(partial: Path) -> None:
        save_file(dict(tensors), partial, dict(metadata))
        written = read_header(partial)
        # Which order the tensors lie in is for the library to say, so the sum is known only afterwards.
        with open(partial, "rb+") as file:
            place = file.read(written.data_start).rindex(UNKNOWN_SHA256.encode())
            file.seek(place)
            file.write(written.sha256().encode())

    try:
        write_atomically(path, fill)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path} could not be written ({error}). Make room, or give another folder to write to."
        ) from error


def to_half(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Kernels and matrices in float16, each value within 1/2048 of itself (or 3e-8); all else as it is.

    Those are nearly all of a network's bytes. Biases and what batch-norms have stay, for there a small error is one in
    every picture's every pixel, and variances may be too small or too large for float16.

    Args:
        tensors: by name; those with a single side or none stay, as do whole numbers.

    Raises:
        InputError: a weight is too large for float16.
    """
    half = {
        name: tensor.half() if tensor.is_floating_point() and tensor.ndim > 1 else tensor
        for name, tensor in tensors.items()
    }
    if lost := nonfinite_tensors(half):
        most = torch.finfo(torch.float16).max
        raise InputError(
            f"half precision holds numbers up to {most:,.0f}, but there are greater ones in {some(lost, 3)}. Keep "
            "these weights in float32."
        )
    return half


def nonfinite_tensors(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinity."""
    # A sum is not finite if one of its terms is not: many times faster than asking each. It may also be too
    # large for its format, so then each is asked.
    floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    doubtful = [name for name, tensor in floats.items() if not tensor.sum().isfinite()]
    return [name for name in doubtful if not floats[name].isfinite().all()]


def negative_variances(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the batch-norm variances that are below 0, so that no picture has an answer.

    Args:
        tensors: under the names that PyTorch's modules have them by.
    """
    return [
        name for name, tensor in tensors.items() if name.endswith("running_var") and bool((tensor < 0).any())
    ]


def sha256_by_name(tensors: Mapping[str, Tensor]) -> str:
    """Of names, kinds, shapes and bytes in the order of names: what files of format 1 hold."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _why_unreadable(path: Path, error: Exception) -> str:
    with open(path, "rb") as file:
        start = file.read(9)
    if keras_files.opens(path):
        return f"it is a Keras file. {model_card.conversion_hint(path)}"
    if start[8:] != b"{" and (start[:2] == b"PK" or start[:1] == b"\x80"):
        return (
            "it is a PyTorch pickle, which could run any code when opened; convert runs none. "
            + model_card.conversion_hint(path)
        )
    cut = not start or "incomplete" in str(error) or "invalid header length" in str(error)
    if cut:
        return f"it is incomplete ({path.stat().st_size:,} bytes). Copy it again from where it came."
    return f"it is not a safetensors file ({error}). Give a model file (model.safetensors) or a run folder."
