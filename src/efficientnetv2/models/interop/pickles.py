"""PyTorch pickles, read with ``weights_only`` alone: nothing that they hold is executed."""

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

from efficientnetv2.base.errors import InputError, some
from efficientnetv2.models.header import CARRIED
from efficientnetv2.models.interop.raw import Tensors

# Where training programs keep the weights in a checkpoint, best first: averaged ones are those to use.
_AVERAGED = ("state_dict_ema", "model_ema")
_NESTS = (*_AVERAGED, "state_dict", "model")
_CLASS = "efficientnet"  # what timm's trainer calls all of them, where it was not told the network's name
_DEEPEST = 8  # nests within nests; ours: none has more than two or three, and a hostile one holds itself

_SAVE_TENSORS = (
    "In the program that it came from, save the tensors alone: torch.save(model.state_dict(), FILE), or "
    "safetensors.torch.save_file(model.state_dict(), FILE)."
)


def read(path: Path) -> Tensors:
    """The tensors of a pickle, of whichever dictionary in it holds the weights to use.

    Raises:
        InputError: it is damaged, holds other things than tensors, or would have to run code.
    """
    with open(path, "rb") as file:
        zipped = file.read(2) == b"PK"
    if zipped and any("/code/" in name for name in _members(path)):
        raise InputError(
            f"{path} is a TorchScript archive, a program with its weights, and no program is run here. "
            + _SAVE_TENSORS
        )
    # By its name, torch.load takes this ending for another kind of file; what has no name it reads as what it is.
    misnamed = path.suffix == ".safetensors"
    try:
        with contextlib.ExitStack() as opened, warnings.catch_warnings():
            # Of a protocol that the safe reader may not know, of a kind of storage that is no longer in use: where
            # it matters, an error follows.
            warnings.simplefilter("ignore", UserWarning)
            # timm's trainer keeps its options in one: a bag of named values, whose making runs no code of the file.
            opened.enter_context(torch.serialization.safe_globals([argparse.Namespace]))
            file_or_path = opened.enter_context(open(path, "rb")) if misnamed else path
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
    except Exception as error:  # a damaged file raises whatever its damage hits
        raise InputError(
            f"{path} cannot be read as a PyTorch file ({_first_line(error)}; {path.stat().st_size:,} bytes): it is "
            "incomplete or damaged. Copy it again from where it came."
        ) from error
    return _state_dict(path, loaded)


def _state_dict(path: Path, loaded: Any) -> Tensors:
    model: str | None = None
    notes: list[str] = []
    for _ in range(_DEEPEST):
        if not isinstance(loaded, Mapping):
            break
        if isinstance(loaded.get("arch"), str) and loaded["arch"] != _CLASS:
            model = loaded["arch"]
        nests = [nest for nest in _NESTS if isinstance(loaded.get(nest), Mapping)]
        if not nests:
            break
        if nests[0] in _AVERAGED:
            notes.append(
                f"the averaged weights ('{nests[0]}') are read"
                + (f", not the last ones ('{nests[-1]}')" if nests[-1] not in _AVERAGED else "")
            )
        loaded = loaded[nests[0]]
    else:
        raise InputError(
            f"{path} has {_DEEPEST} dictionaries one in another ('{nests[0]}' in the last), or one that holds itself. "
            + _SAVE_TENSORS
        )
    if not isinstance(loaded, Mapping) or not loaded:
        raise InputError(f"{path} holds a {type(loaded).__name__}, not a state dict. " + _SAVE_TENSORS)
    others = [name for name, value in loaded.items() if not isinstance(value, Tensor)]
    if others:
        raise InputError(
            f"{path} holds other things than tensors ({some(others)}), and none of {', '.join(_NESTS)}. "
            + _SAVE_TENSORS
        )
    tensors = {str(name): value.detach() for name, value in loaded.items()}
    _refuse_repeating(path, tensors)
    tensors.pop("n_averaged", None)  # how many steps torch's AveragedModel has averaged
    beside = getattr(loaded, "_metadata", None)
    text = beside.get(CARRIED) if isinstance(beside, Mapping) else None
    return Tensors(tensors, model, text, tuple(notes))


def _refuse_repeating(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that show the same bytes again and again: of a small file the first copy would fill all memory.

    And those that hold their values otherwise than weights do, or none.
    """
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_meta:
            held = "a tensor without values" if tensor.is_meta else "a sparse tensor"
            raise InputError(f"{path}: '{name}' is {held}, of which no weights are made. {_SAVE_TENSORS}")
        there, shown = tensor.untyped_storage().nbytes(), tensor.numel() * tensor.itemsize
        if shown > there:
            raise InputError(
                f"{path}: '{name}' is {list(tensor.shape)}, {shown:,} bytes, but holds {there:,} of them, again and "
                "again, as weights never are. In the program that it came from, save what it holds: "
                "torch.save({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, FILE)."
            )


def _members(path: Path) -> list[str]:
    """Names in a zip archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except Exception as error:  # a damaged archive raises whatever its damage hits
        raise InputError(
            f"{path} is an incomplete or damaged archive ({path.stat().st_size:,} bytes; {_first_line(error)}). "
            "Copy it again from where it came."
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
