"""Read the tensors of a weight file. Its content decides on the format, never its name.

Nothing in a file is executed: pickles are read with PyTorch's ``weights_only``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from efficientnetv2.models import model_card
from efficientnetv2.models.conversion import embedded_metadata, keras, tensorflow, timm
from efficientnetv2.models.conversion.pickles import read_pickle
from efficientnetv2.models.conversion.raw import RawWeights, Source, Tensors
from efficientnetv2.models.model_card import CARRIED
from efficientnetv2.utils.errors import InputError, shorten

# The first convolution, by which the names of a whole network are known: timm's, torchvision's.
_STEMS = ("conv_stem.weight", "features.0.0.weight")
_WRAPPERS = {"module", "_orig_mod"}  # of DistributedDataParallel and of torch.compile

_PICKLED = "pytorch_model.bin"  # weights of a hub folder, in older ones

# Arguments of timm's networks that change nothing in evaluation, or that the tensors' shapes say as well.
_HARMLESS = {"in_chans", "num_classes", "drop_rate", "drop_path_rate", "img_size", "global_pool"}


def read(path: str | Path) -> RawWeights:
    """The tensors of another library's file, and what it states about them.

    Args:
        path: A safetensors file, a PyTorch pickle, a hub directory of timm (config.json and the weights), a Keras file
            (.weights.h5, .h5, .keras) or a TensorFlow checkpoint (its prefix, its .index or its directory).

    Raises:
        InputError: No such file, an unknown format, damaged, or one that would have to run code.
    """
    path = Path(path)
    if path.is_dir() and (path / timm.CONFIG).is_file():
        return _hub_folder(path)
    if tensorflow.opens(path):
        return tensorflow.read(path)
    if path.is_dir():
        raise InputError(
            f"{path} is a folder with neither config.json (timm's) nor 'checkpoint' (TensorFlow's) in it. "
            "Give the weight file."
        )
    if not path.is_file():
        raise InputError(f"{path} does not exist. Give a weight file, or the folder of one.")
    return _file(path)


def is_model_file(path: str | Path) -> bool:
    """Whether a path is a model file of this package, or a directory with one; it may be damaged."""
    path = Path(path)
    file = path / timm.WEIGHTS if path.is_dir() and not (path / timm.CONFIG).is_file() else path
    try:
        with safe_open(file, framework="pt") as opened:
            return model_card.is_ours(opened.metadata() or {})
    except (OSError, SafetensorError):
        return False


def _file(path: Path) -> RawWeights:
    with open(path, "rb") as file:
        start = file.read(9)
    if keras.opens(path):
        return keras.read(path)
    # A safetensors file begins with the length of its header, which may look like anything, and goes on with that.
    pickled = start[8:] != b"{" and (start.startswith(b"PK") or start[:1] == b"\x80")
    found = _unwrapped(path, read_pickle(path) if pickled else _safetensors(path))
    return RawWeights(
        path=path,
        source=_source(found.tensors),
        tensors=found.tensors,
        model=found.model,
        carried=embedded_metadata.parse(path, found.carried),
        notes=found.notes,
    )


def _unwrapped(path: Path, found: Tensors) -> Tensors:
    """Without the prefix of a module that holds the model, such as Lightning's, and without tensors beside it."""
    if any(stem in found.tensors for stem in _STEMS):
        return found
    prefixes = sorted(
        {name.removesuffix(stem) for name in found.tensors for stem in _STEMS if name.endswith(f".{stem}")}
    )
    if not prefixes:
        return found
    if len(prefixes) > 1:
        raise InputError(
            f"{path} holds {len(prefixes)} networks: their tensors begin with {shorten(prefixes)}. Save those of one "
            "network alone."
        )
    prefix, notes = prefixes[0], list(found.notes)
    if not set(prefix.rstrip(".").split(".")) <= _WRAPPERS:
        notes.append(f"the network's tensors are those whose names begin with '{prefix}'")
    if outside := [name for name in found.tensors if not name.startswith(prefix)]:
        notes.append(f"tensors beside the network are left out: {shorten(outside, 3)}")
    tensors = {
        name.removeprefix(prefix): tensor for name, tensor in found.tensors.items() if name.startswith(prefix)
    }
    return replace(found, tensors=tensors, notes=tuple(notes))


def _source(tensors: Mapping[str, Tensor]) -> Source:
    return "torchvision" if any(name.startswith("features.") for name in tensors) else "timm"


def _safetensors(path: Path) -> Tensors:
    """Tensors in the file's memory map."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if model_card.is_ours(metadata):
                raise InputError(
                    f"{path} is a model file of this package, not a foreign one: efficientnetv2.load reads it."
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read: {_why(path, error)}") from error
    return Tensors(tensors, metadata.get("architecture"), metadata.get(CARRIED))


def _why(path: Path, error: Exception) -> str:
    text, size = str(error).splitlines()[0], f"{path.stat().st_size:,} bytes"
    with open(path, "rb") as file:
        begins_so = file.read(9)[8:] == b"{"  # after the length of its header
    if begins_so and ("TooLarge" in text or "too large" in text):
        return (
            f"its first bytes declare a header larger than any real one ({text}). It is no safetensors file."
        )
    if "incomplete" in text or "invalid header length" in text or "too small" in text:
        return f"it is incomplete ({size}; {text}). Copy it again from where it came."
    return (
        f"it is neither safetensors, a PyTorch pickle, HDF5 nor a .keras archive ({text}; {size}). Give the "
        "file that timm, torchvision, Keras or TensorFlow wrote."
    )


def _hub_folder(folder: Path) -> RawWeights:
    """A directory as on timm's hub; config.json states the model, its preprocessing and its classes."""
    stating = folder / timm.CONFIG
    config = _config(stating)
    if (folder / timm.WEIGHTS).is_file():
        path = folder / timm.WEIGHTS
        found = _unwrapped(path, _safetensors(path))
    elif (folder / _PICKLED).is_file():
        path = folder / _PICKLED
        found = _unwrapped(path, read_pickle(path))
    else:
        raise InputError(f"{folder} has a config.json but no {timm.WEIGHTS} beside it. Fetch that one too.")
    stated = config.get("pretrained_cfg", config)
    epsilon = _epsilon(config, stating)
    preprocessing, differences = timm.stated_preprocessing(stated, stating)
    return RawWeights(
        path=path,
        source="timm",
        tensors=found.tensors,
        model=config["architecture"],
        batch_norm_epsilon=epsilon,
        preprocessing=preprocessing,
        stated=timm.STATED,
        class_names=_labels(config, stated, stating),
        carried=embedded_metadata.parse(path, found.carried),
        notes=(*found.notes, *differences),
    )


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}). Fetch it again, or take it away.") from error
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        raise InputError(f"{path} names no 'architecture', as timm's do. Give the weight file by itself.")
    if not isinstance(config.get("pretrained_cfg", {}), dict):
        raise InputError(
            f"{path}: pretrained_cfg is no object, as timm's are. Give the weight file by itself."
        )
    return config


def _epsilon(config: Mapping[str, Any], path: Path) -> float | None:
    """Batch-norm's epsilon if timm's model arguments state one; other arguments that matter are refused."""
    arguments = config.get("model_args") or {}
    if not isinstance(arguments, dict):
        raise InputError(f"{path}: model_args is no object, as timm's are. Correct it, or take it away.")
    unknown = sorted(set(arguments) - _HARMLESS - {"bn_eps"})
    if arguments.get("global_pool", "avg") != "avg":
        unknown.append("global_pool")
    if unknown:
        raise InputError(
            f"{path}: model_args changes the network by {shorten(unknown)}, which cannot be followed here. Use it "
            "through timm itself."
        )
    epsilon = arguments.get("bn_eps")
    if epsilon is None:
        return None
    if type(epsilon) not in (int, float) or not (math.isfinite(epsilon) and epsilon > 0):
        raise InputError(
            f"{path}: model_args says bn_eps {epsilon!r}, but batch-norm's epsilon is a finite number above 0. "
            "Correct it, or take it away."
        )
    return float(epsilon)


def _labels(config: Mapping[str, Any], stated: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """Class names in the order of the outputs; () if none are stated."""
    labels = config.get("label_names") or stated.get("label_names") or stated.get("labels") or ()
    if isinstance(labels, Mapping):  # timm allows {"0": name, ...}
        try:
            labels = [labels[number] for number in sorted(labels, key=int)]
        except ValueError as error:
            raise InputError(f"{path}: label_names has a key that is no number ({error}).") from error
    if not isinstance(labels, (list, tuple)) or not all(isinstance(label, str) for label in labels):
        raise InputError(f"{path}: label_names is no list of names. Correct it, or take it away.")
    return tuple(labels)
