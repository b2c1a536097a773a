"""Checkpoints of google/automl (V2) and tensorflow/tpu (V1), written by TensorFlow's Saver.

A variable is called ``efficientnetv2-s/blocks_3/conv2d_1/kernel``: model, block, layer.
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

from efficientnetv2.models.conversion.layouts import AxisOrder, to_torch
from efficientnetv2.models.conversion.weight_file import WeightFile
from efficientnetv2.utils.errors import InputError, error_summary
from efficientnetv2.utils.optional_deps import import_optional

# Read once, when TensorFlow is loaded: only errors, and no oneDNN kernels, which it announces at any level.
_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "0"}

_AVERAGE = "/ExponentialMovingAverage"
# The model's scope, if any, and the variable within it.
_VARIABLE = re.compile(r"(?:(.*?)/)?((?:stem|blocks_\d+|head|dense)/.+)")
_LEAVES = frozenset({"kernel", "depthwise_kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance"})
_OBJECT_BASED = "/.ATTRIBUTES/VARIABLE_VALUE"  # TensorFlow 2's tf.train.Checkpoint adds it to every name


@contextmanager
def loading_tensorflow() -> Iterator[None]:
    """Around any import of TensorFlow, or of Keras, which imports it on any backend.

    Triton, which PyTorch imports late, aborts the process if TensorFlow 2.21 was imported before it: import it first.
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


def opens(path: Path) -> bool:
    """Whether a path is a checkpoint: its prefix, its ``.index`` file, or a directory with a ``checkpoint`` file."""
    if path.is_dir():
        return (path / "checkpoint").is_file()
    return path.with_name(f"{_prefix_name(path)}.index").is_file()


def read(path: Path) -> WeightFile:
    """Read a checkpoint: its prefix (``model.ckpt-1234``), ``.index`` file, or directory (the latest one).

    Tensors have the authors' names without scope. Each variable's moving average is taken if it has one. Raises
    InputError if TensorFlow is not installed, there is no checkpoint, or it is of another family.
    """
    prefix = _prefix(path)
    with loading_tensorflow():
        tensorflow = import_optional("tensorflow", "tensorflow", f"Reading {path}, a TensorFlow checkpoint,")
        try:
            reader = tensorflow.train.load_checkpoint(str(prefix))
            known = reader.get_variable_to_shape_map()
            variables, scopes = _variables(path, known)
            tensors = {name: to_torch(reader.get_tensor(key), _axis_order(name)) for name, key in variables.items()}
        except InputError:
            raise
        except Exception as error:  # TensorFlow's errors have no common base
            raise InputError(
                f"{path} can't be read as a TensorFlow checkpoint; it may be cut short ({error_summary(error)})."
            ) from error
    notes = ["the variables are read; there are no moving averages"]
    if averaged := sum(key.endswith(_AVERAGE) for key in variables.values()):
        without = len(variables) - averaged
        others = f"; the other {without} have none" if without else ""
        notes = [f"the moving averages (EMA) of {averaged} variables are read{others}"]
    if ignored := sum(not _is_ours(key) for key in known):
        notes.append(f"{ignored} variables of the optimizer and of the run are left out")
    return WeightFile(path, "tensorflow", tensors, model=min(scopes, default=None), notes=tuple(notes))


def _prefix_name(path: Path) -> str:
    return re.sub(r"\.(index|meta|data-\d{5}-of-\d{5})$", "", path.name)


def _prefix(path: Path) -> Path:
    if path.is_dir():
        state = path / "checkpoint"
        text = state.read_text(encoding="utf-8", errors="replace") if state.is_file() else ""
        latest = re.search(r'^model_checkpoint_path:\s*"([^"]+)"', text, re.MULTILINE)
        if latest is None:
            raise InputError(f"{path} has no file 'checkpoint' that names the latest one. Give its prefix.")
        # Written on another machine or moved since: only the name still holds.
        path = path / re.split(r"[/\\]", latest[1])[-1]
    if not _prefix_name(path):
        raise InputError(f"{path}: the checkpoint's files have no name. Rename them (model.index, ...), and give that.")
    prefix = path.with_name(_prefix_name(path))
    if not prefix.with_name(f"{prefix.name}.index").is_file():
        raise InputError(f"{prefix} is not a checkpoint: it has no '{prefix.name}.index'.")
    return prefix


def _variables(path: Path, known: Mapping[str, Any]) -> tuple[dict[str, str], set[str]]:
    """The variable to read for every name, and their scopes."""
    if any(key.endswith(_OBJECT_BASED) for key in known):
        raise InputError(f"{path} was written by tf.train.Checkpoint. Save it with tf.compat.v1.train.Saver.")
    variables: dict[str, str] = {}
    scopes = set()
    for key in sorted(known):
        match = _VARIABLE.fullmatch(key.removesuffix(_AVERAGE))
        if match is None or not _is_ours(key):
            continue
        name = f"head/{match[2]}" if match[2].startswith("dense/") else match[2]
        # A moving average sorts behind its variable, and replaces it.
        if name in variables and variables[name] != key.removesuffix(_AVERAGE):
            raise InputError(f"{path} holds two models: '{variables[name]}' and '{key}'. Save one of them.")
        variables[name] = key
        scopes |= {match[1].split("/")[0]} if match[1] else set()
    if not variables:
        raise InputError(f"{path} holds no variables of an EfficientNet, such as 'stem/conv2d/kernel'.")
    return variables, scopes


def _is_ours(key: str) -> bool:
    name = key.removesuffix(_AVERAGE)
    return name.rpartition("/")[2] in _LEAVES and _VARIABLE.fullmatch(name) is not None


def _axis_order(name: str) -> AxisOrder:
    if name.rpartition("/")[2] not in ("kernel", "depthwise_kernel"):
        return "vector"
    if "depthwise_conv2d" in name:
        return "depthwise"
    return "dense" if name == "head/dense/kernel" else "convolution"
