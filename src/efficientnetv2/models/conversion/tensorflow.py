"""Checkpoints of google/automl (V2) and tensorflow/tpu (V1), written by TensorFlow's Saver.

A variable is called ``efficientnetv2-s/blocks_3/conv2d_1/kernel``: model, block, layer. Within a block, convolutions
and batch-norms are numbered in the order of computation; the depthwise convolution and squeeze-excite have names of
their own. Most variables have a moving average (``.../ExponentialMovingAverage``), with which the published accuracy
was reached.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from efficientnetv2.architectures.registry import NAMES
from efficientnetv2.architectures.spec import Architecture, Block, blocks
from efficientnetv2.models.conversion.raw import RawWeights
from efficientnetv2.models.conversion.tensors import Kind, to_torch
from efficientnetv2.utils.errors import InputError, did_you_mean, error_summary
from efficientnetv2.utils.optional_deps import import_optional

# Read once, when TensorFlow is loaded: only errors; and no oneDNN kernels, which it announces at any level.
# Nothing is computed with it here.
_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "0"}


@contextmanager
def loading_tensorflow() -> Iterator[None]:
    """Around any import of TensorFlow, or of Keras, which imports it on any backend.

    Triton, which PyTorch imports late (with torchvision, with the first optimizer), aborts the process if TensorFlow
    2.21 was imported before it. So Triton is imported first.
    """
    changed: set[str] = set()
    if "tensorflow" not in sys.modules and find_spec("tensorflow") is not None:
        if "triton" not in sys.modules and find_spec("triton") is not None:
            importlib.import_module("triton")
        changed = {name for name in _QUIET if name not in os.environ}
        os.environ.update({name: _QUIET[name] for name in changed})
    try:
        yield
    finally:
        for name in changed:
            os.environ.pop(name, None)


_AVERAGE = "/ExponentialMovingAverage"
# The network's scope, if any, and the variable within it.
_VARIABLE = re.compile(r"(?:(.*?)/)?((?:stem|blocks_\d+|head|dense)/.+)")
_LEAVES = frozenset({"kernel", "depthwise_kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance"})
_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
# What TensorFlow 2's tf.train.Checkpoint adds to every name.
_OBJECT_BASED = "/.ATTRIBUTES/VARIABLE_VALUE"


def opens(path: Path) -> bool:
    """Whether a path is a checkpoint: its prefix, its ``.index`` file, or a directory with a ``checkpoint`` file."""
    if path.is_dir():
        return (path / "checkpoint").is_file()
    return path.with_name(f"{_prefix_name(path)}.index").is_file()


def tensor_names(architecture: Architecture) -> dict[str, str]:
    """Tensor names from ours to a checkpoint's without scope, classifier included, without ``num_batches_tracked``."""
    names = _convolution("stem", "stem/conv2d/kernel", "stem/tpu_batch_normalization")
    for index, block in enumerate(blocks(architecture)):
        names |= _block(f"blocks.{index}", f"blocks_{index}", block)
    names |= _convolution("head", "head/conv2d/kernel", "head/tpu_batch_normalization")
    return names | {f"classifier.{o}": f"head/dense/{t}" for o, t in (("weight", "kernel"), ("bias", "bias"))}


def published_name(model: str) -> str:
    """The published model of our name or the authors' (``efficientnetv2-s``). Raises InputError if there is none."""
    names = {name: name for name in NAMES} | {name.replace("_", "-"): name for name in NAMES}
    if model not in names:
        raise InputError(
            f"'{model}' is none of the authors' networks{did_you_mean(model, names)} Known: {', '.join(NAMES)}."
        )
    return names[model]


def read(path: str | Path, *, ema: bool = True) -> RawWeights:
    """Read a checkpoint.

    Args:
        path: Prefix (``model.ckpt-1234``), ``.index`` file, or a directory with a ``checkpoint`` file (reads the
            latest).
        ema: Take the moving average of each variable that has one.

    Returns:
        Tensors under the authors' names without scope (see ``tensor_names``), in PyTorch's layout, without the
        optimizer's variables and the step.

    Raises:
        InputError: TensorFlow is not installed, there is no checkpoint, or it is of another family.
    """
    path = Path(path)
    prefix = _prefix(path)
    with loading_tensorflow():
        tensorflow = import_optional("tensorflow", "tensorflow", f"Reading {path}, a TensorFlow checkpoint,")
        try:
            reader = tensorflow.train.load_checkpoint(str(prefix))
            known = reader.get_variable_to_shape_map()
        # TensorFlow's own errors have no common base of ours to name: anything here is a bad file.
        except Exception as error:
            raise _unreadable(path, error) from error
        chosen, scopes, averaged = _chosen(path, known, ema)
        try:
            tensors = {name: to_torch(reader.get_tensor(key), _kind(name)) for name, key in chosen.items()}
        except Exception as error:
            raise _unreadable(path, error) from error
    notes = [_said(len(chosen), averaged, ema)]
    left = sum(1 for key in known if not _is_ours(key))
    if left:
        notes.append(f"{left} variables of the optimizer and of the run are left aside")
    return RawWeights(path, "tensorflow", tensors, model=min(scopes, default=None), notes=tuple(notes))


def _prefix_name(path: Path) -> str:
    return re.sub(r"\.(index|meta|data-\d{5}-of-\d{5})$", "", path.name)


def _prefix(path: Path) -> Path:
    """Prefix of the checkpoint that is meant."""
    if path.is_dir():
        state = path / "checkpoint"
        text = state.read_text(encoding="utf-8", errors="replace") if state.is_file() else ""
        latest = re.search(r'^model_checkpoint_path:\s*"([^"]+)"', text, re.MULTILINE)
        if latest is None:
            raise InputError(f"{path} has no file 'checkpoint' that names the latest one. Give its prefix.")
        # Written on another machine or moved since: only the name still holds.
        path = path / re.split(r"[/\\]", latest[1])[-1]
    if not _prefix_name(path):
        raise InputError(
            f"{path}: the checkpoint's files have endings but no name, which TensorFlow takes for their folder. Put "
            "one and the same name before all of them (model.index, model.data-00000-of-00001), and give that."
        )
    prefix = path.with_name(_prefix_name(path))
    if not prefix.with_name(f"{prefix.name}.index").is_file():
        raise InputError(f"{prefix} is no checkpoint: there is no '{prefix.name}.index' beside it.")
    return prefix


def _chosen(path: Path, known: Mapping[str, Any], ema: bool) -> tuple[dict[str, str], set[str], int]:
    """The variable to read for every name, their scopes, and the number of moving averages."""
    if any(key.endswith(_OBJECT_BASED) for key in known):
        raise InputError(
            f"{path} was written by tf.train.Checkpoint, which names variables by Python attributes; only "
            "checkpoints of the authors' training, made by tf.compat.v1.train.Saver, are read. Load it with "
            "the authors' code, and save it so."
        )
    chosen: dict[str, str] = {}
    scopes, averaged = set(), 0
    for key in sorted(known):
        match = _VARIABLE.fullmatch(key.removesuffix(_AVERAGE))
        if match is None or not _is_ours(key) or (key.endswith(_AVERAGE) and not ema):
            continue
        name = f"head/{match[2]}" if match[2].startswith("dense/") else match[2]
        # A moving average sorts behind its variable, and takes its place.
        if name in chosen and chosen[name] != key.removesuffix(_AVERAGE):
            raise InputError(
                f"{path} holds both '{chosen[name]}' and '{key}'; which one is meant can't be told."
            )
        chosen[name] = key
        scopes |= {match[1].split("/")[0]} if match[1] else set()
        averaged += key.endswith(_AVERAGE)
    if not chosen:
        raise InputError(
            f"{path} holds none of the variables of an EfficientNet (such as 'stem/conv2d/kernel')"
            f"{'' if ema else ' but moving averages, which were not asked for'}."
        )
    return chosen, scopes, averaged


def _is_ours(key: str) -> bool:
    name = key.removesuffix(_AVERAGE)
    return name.rpartition("/")[2] in _LEAVES and _VARIABLE.fullmatch(name) is not None


def _said(read: int, averaged: int, ema: bool) -> str:
    if averaged == read:
        return "the moving averages (EMA) of all variables are read"
    if averaged:
        return f"the moving averages (EMA) of {averaged} variables are read; the other {read - averaged} have none"
    return "the variables themselves are read" + ("; there are no moving averages" if ema else "")


def _kind(name: str) -> Kind:
    leaf = name.rpartition("/")[2]
    if leaf not in ("kernel", "depthwise_kernel"):
        return "vector"
    if "depthwise_conv2d" in name:
        return "depthwise"
    return "dense" if name == "head/dense/kernel" else "convolution"


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path} can't be read as a TensorFlow checkpoint; it may be cut short ({error_summary(error)})."
    )


def _convolution(ours: str, kernel: str, norm: str) -> dict[str, str]:
    return {f"{ours}.conv.weight": kernel} | {f"{ours}.norm.{o}": f"{norm}/{t}" for o, t in _NORM.items()}


def _block(ours: str, scope: str, block: Block) -> dict[str, str]:
    """Convolutions except the depthwise one are ``conv2d``, ``conv2d_1``; batch-norms are numbered too."""
    parts = (
        ["expand"] * (block.kind == "mbconv" and block.expands) + ["spatial"] + ["project"] * block.projects
    )
    names: dict[str, str] = {}
    convolutions = 0
    for norms, part in enumerate(parts):
        if part == "spatial" and block.kind == "mbconv":
            kernel = "depthwise_conv2d/depthwise_kernel"
        else:
            kernel = f"{_counted('conv2d', convolutions)}/kernel"
            convolutions += 1
        norm = _counted("tpu_batch_normalization", norms)
        names |= _convolution(f"{ours}.{part}", f"{scope}/{kernel}", f"{scope}/{norm}")
    if block.se_channels is not None:
        for number, part in enumerate(("reduce", "expand")):
            layer = f"{scope}/se/{_counted('conv2d', number)}"
            names |= {
                f"{ours}.se.{part}.weight": f"{layer}/kernel",
                f"{ours}.se.{part}.bias": f"{layer}/bias",
            }
    return names


def _counted(name: str, number: int) -> str:
    return f"{name}_{number}" if number else name
