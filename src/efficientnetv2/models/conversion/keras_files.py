"""Read Keras files with h5py only: nothing in a file is executed, no link out of it is followed.

Three layouts: ``.weights.h5`` of Keras 3 (``layers/conv2d_3/vars/0``, numbered by class; TensorFlow's Keras 2.13 to
2.15 has ``_layer_checkpoint_dependencies``); ``.keras``, a zip file of such a file and the model's description; legacy
``.h5`` (``stem_conv/stem_conv/kernel``, under ``model_weights`` in a whole model).
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from efficientnetv2.models.model_header import CARRIED
from efficientnetv2.utils.errors import InputError, error_summary
from efficientnetv2.utils.optional_deps import import_optional

_MAGIC = b"\x89HDF\r\n\x1a\n"
_WEIGHTS, _CONFIG, _METADATA = "model.weights.h5", "config.json", "metadata.json"
# Where a layer's weights are in Keras 3's layout; the last class name and number before them is the layer's.
_VARS = re.compile(r"(?:(.*)/)?(?:layers|_layer_checkpoint_dependencies)/([^/]+)/vars$")
_NUMBERED = re.compile(r"(.+?)(?:_(\d+))?$")
# A file declares at most so many times what it stores, so that a small file can't fill the memory. Ours.
_MAX_EXPANSION, _FREE_BYTES = 200, 1 << 26


@dataclass(frozen=True, eq=False)
class StoredLayer:
    """A layer of the file."""

    container: str  # of a model within a model; "" at the top
    layer_class: str  # as Keras spells it (``conv2d``); "" if unknown
    number: int  # among the layers of its class in the container, from 0
    name: str  # "" if unknown
    arrays: dict[str, npt.NDArray[Any]] = field(default_factory=dict)  # by number ("0") or name ("kernel")

    def is_a(self, layer_class: str) -> bool:
        """By class, or by the name that Keras gives by default."""
        if self.layer_class:
            return self.layer_class == layer_class
        return self.name.startswith(layer_class)


@dataclass(frozen=True, eq=False)
class KerasFile:
    """A whole file."""

    layers: tuple[StoredLayer, ...]  # in no order
    config: dict[str, Any] | None  # the model's description; None in a file of weights
    complete: bool  # whether layers without weights are listed too
    header: Any = None  # the text of the embedded header, or its bytes


def opens(path: Path) -> bool:
    """Whether a file is HDF5, or a zip file with Keras' weights."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) == _MAGIC:
            return True
    try:
        if not zipfile.is_zipfile(path):
            return False
        with zipfile.ZipFile(path) as archive:
            return _WEIGHTS in archive.namelist()
    except Exception:  # a damaged archive can raise anything; the reader of pickles reports it
        return False


def read(path: Path) -> KerasFile:
    """Read a whole file. Raises InputError if it is damaged, links out of itself, or declares more than it stores."""
    h5py = import_optional("h5py", "keras", f"Reading {path}, a Keras file,")
    try:
        if not zipfile.is_zipfile(path):
            with h5py.File(path, "r") as file:
                header = _array(path, file, CARRIED, h5py).tobytes() if CARRIED in file else None
                return replace(_read_h5(path, file, h5py, None), header=header)
        with zipfile.ZipFile(path) as archive:
            weights, config, metadata = (_member(path, archive, name) for name in (_WEIGHTS, _CONFIG, _METADATA))
        if weights is None:
            raise InputError(f"{path} holds no '{_WEIGHTS}', so it is not a Keras file.")
        with h5py.File(io.BytesIO(weights), "r") as file:
            found = _read_h5(path, file, h5py, config)
        return replace(found, header=(_parse(path, metadata, _METADATA) or {}).get(CARRIED))
    except InputError:
        raise
    except Exception as error:  # a damaged file can raise anything
        raise InputError(
            f"{path} can't be read as a Keras file; it may be cut short ({error_summary(error)}). Save it again."
        ) from error


def embed(path: Path, text: str) -> None:
    """Embed a header's text into a file that Keras has just written, where Keras does not look."""
    if not zipfile.is_zipfile(path):
        h5py = import_optional("h5py", "keras", f"Writing {path} for Keras")
        with h5py.File(path, "r+") as file:
            # Not an attribute: those hold 64 kB at most, and 21,843 class names are more.
            file.create_dataset(CARRIED, data=np.frombuffer(text.encode(), np.uint8))
        return
    # Into an existing member: with one more, Keras would unpack the whole archive to the disk.
    complete = path.with_name(f"{path.name}.complete")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(complete, "w") as target:
        for info in source.infolist():
            if info.filename == _METADATA:
                target.writestr(info, json.dumps(json.loads(source.read(info)) | {CARRIED: text}))
                continue
            with source.open(info) as member, target.open(info, "w") as copy:
                shutil.copyfileobj(member, copy)
    os.replace(complete, path)


def _member(path: Path, archive: zipfile.ZipFile, name: str) -> bytes | None:
    if name not in archive.namelist():
        return None
    info = archive.getinfo(name)
    _check_expansion(path, name, info.file_size, info.compress_size)
    return archive.read(info)


def _read_h5(path: Path, file: Any, h5py: Any, config: bytes | None) -> KerasFile:
    if "layers" in file or "_layer_checkpoint_dependencies" in file:
        found = _numbered_layers(path, file, h5py)
        return KerasFile(tuple(found), _parse(path, config), any(not layer.arrays for layer in found))
    root = file.get("model_weights", file)
    if not isinstance(root, h5py.Group):
        raise InputError(f"{path}: 'model_weights' is not a group, so Keras did not write this file.")
    found = _named_layers(path, root, h5py)
    description = file.attrs.get("model_config") if config is None else config
    # Of a model within a model, the legacy layout lists only layers with weights.
    return KerasFile(tuple(found), _parse(path, description), all(layer.name in root for layer in found))


def _numbered_layers(path: Path, file: Any, h5py: Any) -> list[StoredLayer]:
    """Keras 3's layout, without the optimizer, seeds and metrics."""
    found = []

    def visit(name: str, group: Any) -> None:
        match = _VARS.fullmatch(name)
        if match is None or not isinstance(group, h5py.Group):
            return
        numbered = _NUMBERED.fullmatch(match[2])
        assert numbered is not None
        stated = group.attrs.get("name", "")
        arrays = {key: _array(path, group, key, h5py) for key in group}
        number, layer_name = int(numbered[2] or 0), stated if isinstance(stated, str) else ""
        found.append(StoredLayer(match[1] or "", numbered[1], number, layer_name, arrays))

    file.visititems(visit)  # follows no soft or external link
    return found


def _named_layers(path: Path, root: Any, h5py: Any) -> list[StoredLayer]:
    """The legacy layout."""
    found = {name: StoredLayer("", "", 0, name) for name in root if isinstance(root.get(name), h5py.Group)}

    def visit(name: str, item: Any) -> None:
        parts = name.split("/")
        if not isinstance(item, h5py.Dataset) or len(parts) < 2 or "optimizer_weights" in parts:
            return
        layer, leaf = parts[-2], parts[-1].partition(":")[0]
        leaf = "kernel" if leaf == "depthwise_kernel" else leaf
        stored = found.setdefault(layer, StoredLayer("", "", 0, layer))
        stored.arrays[leaf] = _array(path, item.parent, parts[-1], h5py)

    root.visititems(visit)  # follows no soft or external link
    return list(found.values())


def _array(path: Path, group: Any, key: str, h5py: Any) -> npt.NDArray[Any]:
    """One dataset, unless it is outside of the file or holds no numbers."""
    link = group.get(key, getlink=True)
    dataset = group[key] if isinstance(link, h5py.HardLink) else None
    if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
        raise InputError(f"{path}: '{group.name}/{key}' points out of the file. Save the model again.")
    if dataset.shape is None or not _holds_numbers(dataset.dtype):
        raise InputError(f"{path}: '{dataset.name}' holds no numbers ({dataset.dtype}). Give a file that Keras wrote.")
    declared = int(np.prod(dataset.shape)) * dataset.dtype.itemsize
    _check_expansion(path, dataset.name, declared, dataset.id.get_storage_size())
    array: npt.NDArray[Any] = np.asarray(dataset[()])
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _holds_numbers(dtype: np.dtype[Any]) -> bool:
    """Whether PyTorch has these numbers too; two nameless bytes are bfloat16."""
    if dtype.kind == "V":
        return dtype.itemsize == 2 and dtype.names is None and dtype.subdtype is None
    return dtype.kind in "fiub" and dtype.itemsize <= 8


def _check_expansion(path: Path, name: str, declared: int, stored: int) -> None:
    if declared > _FREE_BYTES and declared > _MAX_EXPANSION * stored:
        raise InputError(
            f"{path}: '{name}' declares {declared:,} bytes, but stores {stored:,}. Reading it would fill the memory."
        )


def _parse(path: Path, text: Any, what: str = "the model's description") -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        if not isinstance(text, bytes | str):
            raise ValueError("not text")
        parsed = json.loads(text)
        if not isinstance(parsed, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: {what} is not JSON ({error}). Save it again with Keras.") from error
    return parsed
