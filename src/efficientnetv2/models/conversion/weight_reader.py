"""Read the tensors of a weight file. Its content decides on the format, never its name.

Nothing in a file is executed: pickles are read with PyTorch's ``weights_only``.
"""

from __future__ import annotations

import argparse
import contextlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from efficientnetv2.models import model_header
from efficientnetv2.models.conversion import keras, keras_files, tensorflow_checkpoint, timm_config
from efficientnetv2.models.conversion.weight_file import WeightFile, parse_header
from efficientnetv2.models.model_header import CARRIED
from efficientnetv2.utils.errors import InputError, error_summary, shorten

# The first convolution of timm and torchvision, which shows the prefix of a model within a module.
_STEMS = ("conv_stem.weight", "features.0.0.weight")
_WRAPPERS = {"module", "_orig_mod"}  # prefixes of DistributedDataParallel and torch.compile
_HUB_WEIGHTS = (timm_config.WEIGHTS, "pytorch_model.bin")

# Where trainers keep the weights in a checkpoint, best first: averaged weights are preferred.
_AVERAGED = ("state_dict_ema", "model_ema")
_KEYS = (*_AVERAGED, "state_dict", "model")
_GENERIC_ARCH = "efficientnet"  # timm's trainer writes this if it was not given the model's name
_MAX_DEPTH = 8  # Ours: real checkpoints nest two or three deep, a hostile one may contain itself

_SAVE_TENSORS = (
    "In the program that wrote it, save the tensors alone: torch.save(model.state_dict(), FILE), or "
    "safetensors.torch.save_file(model.state_dict(), FILE)."
)


def read(path: str | Path) -> WeightFile:
    """The tensors of another library's file, and what it states about them.

    A safetensors file, a PyTorch pickle, a hub directory of timm (config.json and the weights), a Keras file
    (.weights.h5, .h5, .keras) or a TensorFlow checkpoint (its prefix, its .index or its directory). Raises InputError
    for no such file, an unknown format, a damaged file, or one that would have to run code.
    """
    path = Path(path)
    config, weights = path / timm_config.CONFIG, None
    if path.name in _HUB_WEIGHTS and path.is_file() and timm_config.is_config(path.with_name(timm_config.CONFIG)):
        config, weights = path.with_name(timm_config.CONFIG), path  # the file of a hub directory
    if config.is_file():
        weights = weights or next((path / name for name in _HUB_WEIGHTS if (path / name).is_file()), None)
        if weights is None:
            raise InputError(f"{path} has a config.json but no {timm_config.WEIGHTS}. Download the weights too.")
        fields, notes = timm_config.read_config(config)
        found = _read_tensors(weights)
        return replace(found, source="timm", notes=(*found.notes, *notes), **fields)
    if tensorflow_checkpoint.opens(path):
        return tensorflow_checkpoint.read(path)
    if path.is_dir():
        raise InputError(f"{path} has neither config.json (timm) nor 'checkpoint' (TensorFlow). Give the weight file.")
    if not path.is_file():
        raise InputError(f"{path} does not exist. Give a weight file, or the folder of one.")
    return keras.read(path) if keras_files.opens(path) else _read_tensors(path)


def is_model_file(path: str | Path) -> bool:
    """Whether a path is a model file of this package, or a directory with one; it may be damaged."""
    path = Path(path)
    file = path / timm_config.WEIGHTS if path.is_dir() and not (path / timm_config.CONFIG).is_file() else path
    try:
        with safe_open(file, framework="pt") as opened:
            return model_header.has_header(opened.metadata() or {})
    except (OSError, SafetensorError):
        return False


def _read_tensors(path: Path) -> WeightFile:
    """A safetensors file or a pickle, without the prefix of a module that holds the model."""
    with open(path, "rb") as file:
        start = file.read(9)
    # A safetensors file begins with the length of its header, which may be any bytes, and goes on with "{".
    zipped = start.startswith(b"PK")
    pickled = start[8:] != b"{" and (zipped or start.startswith(b"\x80"))
    found = _read_pickle(path, zipped=zipped) if pickled else _read_safetensors(path)
    if not any(stem in found.tensors for stem in _STEMS):
        found = _remove_prefix(found)
    torchvision = any(name.startswith("features.") for name in found.tensors)
    return replace(found, source="torchvision" if torchvision else "timm")


def _remove_prefix(found: WeightFile) -> WeightFile:
    """Without the prefix of a module that holds the model, such as Lightning's, and without other tensors."""
    prefixes = sorted(
        {name.removesuffix(stem) for name in found.tensors for stem in _STEMS if name.endswith(f".{stem}")}
    )
    if not prefixes:
        return found
    if len(prefixes) > 1:
        raise InputError(f"{found.path} holds {len(prefixes)} models: {shorten(prefixes)}. Save the tensors of one.")
    prefix, notes = prefixes[0], list(found.notes)
    if not set(prefix.rstrip(".").split(".")) <= _WRAPPERS:
        notes.append(f"the model's tensors are those whose names begin with '{prefix}'")
    if outside := [name for name in found.tensors if not name.startswith(prefix)]:
        notes.append(f"tensors outside of the model are left out: {shorten(outside, 3)}")
    inside = {name: tensor for name, tensor in found.tensors.items() if name.startswith(prefix)}
    tensors = {name.removeprefix(prefix): tensor for name, tensor in inside.items()}
    return replace(found, tensors=tensors, notes=tuple(notes))


def _read_safetensors(path: Path) -> WeightFile:
    """Tensors in the file's memory map."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if model_header.has_header(metadata):
                raise InputError(f"{path} is a model file of this package: efficientnetv2.load reads it.")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read: {_why_unreadable(path, error)}") from error
    header = parse_header(path, metadata.get(CARRIED))
    return WeightFile(path, "timm", tensors, model=metadata.get("architecture"), header=header)


def _why_unreadable(path: Path, error: Exception) -> str:
    text, size = error_summary(error), f"{path.stat().st_size:,} bytes"
    if "incomplete" in text or "invalid header length" in text or "too small" in text:
        return f"it is incomplete ({size}; {text}). Copy it again from its source."
    return f"it is neither safetensors, a PyTorch pickle, HDF5 nor .keras ({text}; {size}). Give a weight file."


def _read_pickle(path: Path, *, zipped: bool) -> WeightFile:
    """The tensors of a pickle, from the dictionary in it that holds the weights to use."""
    size = f"{path.stat().st_size:,} bytes"
    if zipped:
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except Exception as error:  # a damaged archive can raise anything
            raise InputError(
                f"{path} is an incomplete or damaged archive ({size}; {error_summary(error)}). Copy it again."
            ) from error
        if any("/code/" in name for name in names):
            raise InputError(f"{path} is a TorchScript archive, a program, and is not run. {_SAVE_TENSORS}")
    # torch.load takes a file of this suffix for another format, but reads an open file by its content.
    misnamed = path.suffix == ".safetensors"
    try:
        with contextlib.ExitStack() as stack, warnings.catch_warnings():
            # On pickle protocols and storage types; if they matter, an error follows.
            warnings.simplefilter("ignore", UserWarning)
            # timm's trainer saves its options in a Namespace, which runs no code of the file.
            stack.enter_context(torch.serialization.safe_globals([argparse.Namespace]))
            source = stack.enter_context(open(path, "rb")) if misnamed else path
            loaded = torch.load(source, map_location="cpu", weights_only=True, mmap=zipped and not misnamed)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)|(Unsupported operand \d+)", str(error))
        what = f" ('{found[1] or found[2]}')" if found else ""
        raise InputError(
            f"{path} is a pickle that holds more than plain tensors{what}. To open it could run code. {_SAVE_TENSORS}"
        ) from error
    except Exception as error:  # a damaged file can raise anything
        raise InputError(f"{path} is incomplete or damaged ({error_summary(error)}; {size}). Copy it again.") from error
    return _state_dict(path, loaded)


def _state_dict(path: Path, loaded: Any) -> WeightFile:
    """The tensors to use within a loaded checkpoint."""
    model: str | None = None
    notes: list[str] = []
    for _ in range(_MAX_DEPTH):
        if not isinstance(loaded, Mapping):
            break
        arch = loaded.get("arch")
        if isinstance(arch, str) and arch != _GENERIC_ARCH and ":" not in arch:  # not hf-hub:OWNER/NAME, local-dir:PATH
            model = arch
        keys = [key for key in _KEYS if isinstance(loaded.get(key), Mapping)]
        if not keys:
            break
        if keys[0] in _AVERAGED:
            last = f", not the last ones ('{keys[-1]}')" if keys[-1] not in _AVERAGED else ""
            notes.append(f"the averaged weights ('{keys[0]}') are read{last}")
        loaded = loaded[keys[0]]
    else:
        raise InputError(f"{path} nests more than {_MAX_DEPTH} dictionaries ('{keys[0]}'). {_SAVE_TENSORS}")
    if not isinstance(loaded, Mapping) or not loaded:
        raise InputError(f"{path} holds a {type(loaded).__name__}, not a state dict. {_SAVE_TENSORS}")
    if others := [name for name, value in loaded.items() if not isinstance(value, Tensor)]:
        raise InputError(
            f"{path} holds more than tensors ({shorten(others)}), and none of {', '.join(_KEYS)}. {_SAVE_TENSORS}"
        )
    tensors = {str(name): value.detach() for name, value in loaded.items()}
    _check_storage(path, tensors)
    tensors.pop("n_averaged", None)  # step counter of torch's AveragedModel
    metadata = getattr(loaded, "_metadata", None)
    header = parse_header(path, metadata.get(CARRIED) if isinstance(metadata, Mapping) else None)
    return WeightFile(path, "timm", tensors, model=model, header=header, notes=tuple(notes))


def _check_storage(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse sparse and meta tensors, and those that repeat a few bytes: a copy of them would fill the memory."""
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_meta:
            kind = "a tensor without values" if tensor.is_meta else "a sparse tensor"
            raise InputError(f"{path}: '{name}' is {kind}. {_SAVE_TENSORS}")
        stored, shown = tensor.untyped_storage().nbytes(), tensor.numel() * tensor.itemsize
        if shown > stored:
            raise InputError(
                f"{path}: '{name}' is {list(tensor.shape)}, {shown:,} bytes, but only {stored:,} bytes are stored. "
                f"Call contiguous() on each tensor. {_SAVE_TENSORS}"
            )
