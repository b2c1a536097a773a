"""Read the tensors of a PyTorch pickle without running code from it."""

from __future__ import annotations

import argparse
import contextlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from efficientnetv2.models.conversion.raw import Tensors
from efficientnetv2.models.model_card import CARRIED
from efficientnetv2.utils.errors import InputError, error_summary, shorten

# Where trainers keep the weights in a checkpoint, best first: averaged weights are those to use.
_AVERAGED = ("state_dict_ema", "model_ema")
_KEYS = (*_AVERAGED, "state_dict", "model")
_GENERIC_ARCH = "efficientnet"  # timm's trainer writes this if it was not given the model's name
_MAX_DEPTH = 8  # Ours: real checkpoints nest two or three deep, a hostile one may contain itself

_SAVE_TENSORS = (
    "In the program that it came from, save the tensors alone: torch.save(model.state_dict(), FILE), or "
    "safetensors.torch.save_file(model.state_dict(), FILE)."
)


def read_pickle(path: Path) -> Tensors:
    """The tensors of a pickle, from the dictionary in it that holds the weights to use.

    Raises:
        InputError: It is damaged, holds other things than tensors, or would have to run code.
    """
    with open(path, "rb") as file:
        zipped = file.read(2) == b"PK"
    size = f"{path.stat().st_size:,} bytes"
    if zipped:
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except Exception as error:  # a damaged archive can raise anything
            raise InputError(
                f"{path} is an incomplete or damaged archive ({size}; {error_summary(error)}). "
                "Copy it again from where it came."
            ) from error
        if any("/code/" in name for name in names):
            raise InputError(
                f"{path} is a TorchScript archive, a program with its weights, and no program is run here. "
                + _SAVE_TENSORS
            )
    # torch.load takes a file of this suffix for another format, but reads an open file by its content.
    misnamed = path.suffix == ".safetensors"
    try:
        with contextlib.ExitStack() as stack, warnings.catch_warnings():
            # On pickle protocols and storage types; if they matter, an error follows.
            warnings.simplefilter("ignore", UserWarning)
            # timm's trainer saves its options in a Namespace, which runs no code of the file.
            stack.enter_context(torch.serialization.safe_globals([argparse.Namespace]))
            file_or_path = stack.enter_context(open(path, "rb")) if misnamed else path
            loaded = torch.load(
                file_or_path, map_location="cpu", weights_only=True, mmap=zipped and not misnamed
            )
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)|(Unsupported operand \d+)", str(error))
        what = f" ('{wanted[1] or wanted[2]}')" if wanted else ""
        raise InputError(
            f"{path} is a pickle that holds more than plain tensors{what}; to open it could run code from the file, "
            "so it was not opened. " + _SAVE_TENSORS
        ) from error
    except Exception as error:  # a damaged file can raise anything
        raise InputError(
            f"{path} cannot be read as a PyTorch file ({error_summary(error)}; {size}): it is "
            "incomplete or damaged. Copy it again from where it came."
        ) from error
    return _state_dict(path, loaded)


def _state_dict(path: Path, loaded: Any) -> Tensors:
    """The tensors to use within a loaded checkpoint."""
    model: str | None = None
    notes: list[str] = []
    for _ in range(_MAX_DEPTH):
        if not isinstance(loaded, Mapping):
            break
        if isinstance(loaded.get("arch"), str) and loaded["arch"] != _GENERIC_ARCH:
            model = loaded["arch"]
        keys = [key for key in _KEYS if isinstance(loaded.get(key), Mapping)]
        if not keys:
            break
        if keys[0] in _AVERAGED:
            notes.append(
                f"the averaged weights ('{keys[0]}') are read"
                + (f", not the last ones ('{keys[-1]}')" if keys[-1] not in _AVERAGED else "")
            )
        loaded = loaded[keys[0]]
    else:
        raise InputError(
            f"{path} has {_MAX_DEPTH} dictionaries one in another ('{keys[0]}' in the last), or one that holds itself. "
            + _SAVE_TENSORS
        )
    if not isinstance(loaded, Mapping) or not loaded:
        raise InputError(f"{path} holds a {type(loaded).__name__}, not a state dict. " + _SAVE_TENSORS)
    if others := [name for name, value in loaded.items() if not isinstance(value, Tensor)]:
        raise InputError(
            f"{path} holds other things than tensors ({shorten(others)}), and none of {', '.join(_KEYS)}. "
            + _SAVE_TENSORS
        )
    tensors = {str(name): value.detach() for name, value in loaded.items()}
    _check_storage(path, tensors)
    tensors.pop("n_averaged", None)  # step counter of torch's AveragedModel
    metadata = getattr(loaded, "_metadata", None)
    text = metadata.get(CARRIED) if isinstance(metadata, Mapping) else None
    return Tensors(tensors, model, text, tuple(notes))


def _check_storage(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse sparse and meta tensors, and those that repeat a few bytes: a copy of them would fill the memory."""
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_meta:
            kind = "a tensor without values" if tensor.is_meta else "a sparse tensor"
            raise InputError(f"{path}: '{name}' is {kind}, of which no weights are made. {_SAVE_TENSORS}")
        stored, shown = tensor.untyped_storage().nbytes(), tensor.numel() * tensor.itemsize
        if shown > stored:
            raise InputError(
                f"{path}: '{name}' is {list(tensor.shape)}, {shown:,} bytes, but holds {stored:,} of them, again and "
                "again, as weights never are. In the program that it came from, save what it holds: "
                "torch.save({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, FILE)."
            )
