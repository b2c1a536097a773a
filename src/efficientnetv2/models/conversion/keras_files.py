"""Read Keras files with h5py only: nothing in a file is executed, no link out of it is followed.

The content decides between three layouts:

* ``.weights.h5`` of Keras 3: ``layers/conv2d_3/vars/0``. Layers are numbered by class; some versions add an attribute
  ``name`` with the layer's own name. TensorFlow's Keras 2.13 to 2.15 has ``_layer_checkpoint_dependencies`` for
  ``layers``.
* ``.keras``: a zip file with a ``model.weights.h5`` of this kind and the model's description, ``config.json``.
* Legacy ``.h5``: ``stem_conv/stem_conv/kernel``, by the layers' own names. A whole model has them under
  ``model_weights`` and its description in the attribute ``model_config``.
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

from efficientnetv2.models.model_card import CARRIED
from efficientnetv2.utils.errors import InputError, error_summary
from efficientnetv2.utils.optional_deps import import_optional

_MAGIC = b"\x89HDF\r\n\x1a\n"
_WEIGHTS = "model.weights.h5"
_CONFIG = "config.json"
_METADATA = "metadata.json"
# Where a layer's weights lie in Keras 3's layout; the last class name and number before them is the layer's.
_VARS = re.compile(r"(?:(.*)/)?(?:layers|_layer_checkpoint_dependencies)/([^/]+)/vars$")
_NUMBERED = re.compile(r"(.+?)(?:_(\d+))?$")
# Ours: what is declared is at most so many times what is stored, so that a small file can't fill the memory.
_MOST_EXPANSION = 200
_FREE_BYTES = 1 << 26
# How older ones call the kernel of a depthwise convolution.
_OLD_NAMES = {"depthwise_kernel": "kernel"}


@dataclass(frozen=True, eq=False)
class Stored:
    """A layer of the file.

    Args:
        container: Of a model within a model; "" at the top.
        layer_class: As Keras spells it (``conv2d``); "" if the file does not say.
        number: Among the layers of its class in the container, from 0.
        name: Its own name; "" if the file does not say.
        arrays: By number ("0") or name ("kernel").
    """

    container: str
    layer_class: str
    number: int
    name: str
    arrays: dict[str, npt.NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Contents:
    """A whole file.

    Args:
        layers: In no order.
        config: The model's description; None in a file of weights.
        complete: Whether layers without weights are listed too.
        carried: The embedded header's text; None without one.
    """

    layers: tuple[Stored, ...]
    config: dict[str, Any] | None
    complete: bool
    carried: Any = None


def opens(path: Path) -> bool:
    """Whether a file is HDF5, or a zip file with Keras' weights."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        magic = file.read(len(_MAGIC))
    if magic == _MAGIC:
        return True
    try:
        if not zipfile.is_zipfile(path):
            return False
        with zipfile.ZipFile(path) as archive:
            return _WEIGHTS in archive.namelist()
    except Exception:  # a damaged archive raises whatever its damage hits
        return False  # and the reader of the other archives says so


def contents(path: Path) -> Contents:
    """Read a whole file.

    Raises:
        InputError: It cannot be read, is cut short, links out of itself, or declares far more than it stores.
    """
    h5py = import_optional("h5py", "keras", f"Reading {path}, a Keras file,")
    try:
        if not zipfile.is_zipfile(path):
            with h5py.File(path, "r") as file:
                return replace(_contents(path, file, h5py, None), carried=_carried(path, file, h5py))
        with zipfile.ZipFile(path) as archive:
            if _WEIGHTS not in archive.namelist():
                raise InputError(f"{path} holds no '{_WEIGHTS}', so it is not a Keras file.")
            config = _member(path, archive, _CONFIG) if _CONFIG in archive.namelist() else None
            metadata = _member(path, archive, _METADATA) if _METADATA in archive.namelist() else None
            with h5py.File(io.BytesIO(_member(path, archive, _WEIGHTS)), "r") as file:
                found = _contents(path, file, h5py, config)
            return replace(found, carried=(_parsed(path, metadata, f"its {_METADATA}") or {}).get(CARRIED))
    except InputError:
        raise
    except Exception as error:  # a damaged file raises whatever its damage hits
        raise InputError(
            f"{path} can't be read as a Keras file; it may be cut short ({error_summary(error)}). Fetch or save it "
            "again."
        ) from error


def carry(path: Path, text: str) -> None:
    """Embed a header's text into a file that Keras has just written, where Keras does not look."""
    if not zipfile.is_zipfile(path):
        h5py = import_optional("h5py", "keras", f"Writing {path} for Keras")
        with h5py.File(path, "r+") as file:
            # No attribute: those hold 64 kB at most, and 21,843 class names are more.
            file.create_dataset(CARRIED, data=np.frombuffer(text.encode(), np.uint8))
        return
    # Into a member that is there already: for one more, Keras would unpack the whole archive to the disk.
    whole = path.with_name(f"{path.name}.whole")
    with zipfile.ZipFile(path) as there, zipfile.ZipFile(whole, "w") as here:
        for info in there.infolist():
            if info.filename == _METADATA:
                plain = json.loads(there.read(info)) | {CARRIED: text}
                here.writestr(info, json.dumps(plain))
                continue
            with there.open(info) as source, here.open(info, "w") as target:
                shutil.copyfileobj(source, target)
    os.replace(whole, path)


def _carried(path: Path, file: Any, h5py: Any) -> str | None:
    if CARRIED not in file:
        return None
    try:
        return _array(path, file, CARRIED, h5py).tobytes().decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: '{CARRIED}' is no text ({error}). Save the file again.") from error


def _member(path: Path, archive: zipfile.ZipFile, name: str) -> bytes:
    info = archive.getinfo(name)
    _check_expansion(path, name, info.file_size, info.compress_size)
    return archive.read(info)


def _contents(path: Path, file: Any, h5py: Any, config: Any) -> Contents:
    if "layers" in file or "_layer_checkpoint_dependencies" in file:
        found = _numbered(path, file, h5py)
        return Contents(tuple(found), _parsed(path, config), any(not layer.arrays for layer in found))
    root = file.get("model_weights", file)
    if not isinstance(root, h5py.Group):
        raise InputError(f"{path}: 'model_weights' is not a group, so this is not a file that Keras wrote.")
    found = _named(path, root, h5py)
    description = file.attrs.get("model_config") if config is None else config
    # Of a network within a network the legacy layout lists what has weights alone.
    complete = all(layer.name in root for layer in found)
    return Contents(tuple(found), _parsed(path, description), complete)


def _numbered(path: Path, file: Any, h5py: Any) -> list[Stored]:
    """Keras 3's layout, without the optimizer, seeds and metrics."""
    found = []

    def visit(name: str, group: Any) -> None:
        match = _VARS.fullmatch(name)
        if match is None or not isinstance(group, h5py.Group):
            return
        numbered = _NUMBERED.fullmatch(match[2])
        assert numbered is not None
        own_name = group.attrs.get("name", "")
        arrays = {key: _array(path, group, key, h5py) for key in group}
        layer = Stored(
            match[1] or "",
            numbered[1],
            int(numbered[2] or 0),
            own_name if isinstance(own_name, str) else "",
            arrays,
        )
        found.append(layer)

    file.visititems(visit)  # follows no soft or external link
    return found


def _named(path: Path, root: Any, h5py: Any) -> list[Stored]:
    """The legacy layout."""
    found = {name: Stored("", "", 0, name) for name in root if isinstance(root.get(name), h5py.Group)}

    def visit(name: str, item: Any) -> None:
        parts = name.split("/")
        if not isinstance(item, h5py.Dataset) or len(parts) < 2 or "optimizer_weights" in parts:
            return
        layer, leaf = parts[-2], parts[-1].partition(":")[0]
        stored = found.setdefault(layer, Stored("", "", 0, layer))
        stored.arrays[_OLD_NAMES.get(leaf, leaf)] = _array(path, item.parent, parts[-1], h5py)

    root.visititems(visit)  # follows no soft or external link
    return list(found.values())


def _array(path: Path, group: Any, key: str, h5py: Any) -> npt.NDArray[Any]:
    """One dataset, unless it lies outside of the file or holds no numbers."""
    link = group.get(key, getlink=True)
    dataset = group[key] if isinstance(link, h5py.HardLink) else None
    if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
        raise InputError(
            f"{path}: '{group.name}/{key}' points out of the file; only what lies in the file itself is read. "
            "Save the network again with Keras."
        )
    if dataset.shape is None or not _holds_numbers(dataset.dtype):
        raise InputError(
            f"{path}: '{dataset.name}' holds no numbers ({dataset.dtype}), so this is not a file of weights that "
            "Keras wrote. Give the one that it did."
        )
    stored = dataset.id.get_storage_size()
    _check_expansion(path, dataset.name, int(np.prod(dataset.shape)) * dataset.dtype.itemsize, stored)
    array: npt.NDArray[Any] = np.asarray(dataset[()])
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _holds_numbers(dtype: np.dtype[Any]) -> bool:
    """Whether PyTorch has these numbers too; two nameless bytes are bfloat16."""
    if dtype.kind == "V":
        return dtype.itemsize == 2 and dtype.names is None and dtype.subdtype is None
    return dtype.kind in "fiub" and dtype.itemsize <= 8


def _check_expansion(path: Path, name: str, declared: int, stored: int) -> None:
    if declared > _FREE_BYTES and declared > _MOST_EXPANSION * stored:
        raise InputError(
            f"{path}: '{name}' declares {declared:,} bytes, but {stored:,} are stored; such a file would fill "
            "the memory with nothing, and is not read."
        )


def _parsed(path: Path, text: Any, what: str = "the network's description") -> dict[str, Any] | None:
    if text is None:
        return None
    if not isinstance(text, bytes | str):
        raise InputError(f"{path}: {what} is no text. Save it again with Keras.")
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: {what} is not JSON ({error}). Save it again.") from error
    if not isinstance(parsed, dict):
        raise InputError(f"{path}: {what} is not a JSON object. Save it again with Keras.")
    return parsed
