"""Loading TensorFlow beside PyTorch: without its greetings on the terminal, and without a crash."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

# Read once, when TensorFlow is loaded: only errors; and no oneDNN kernels, which it announces at any level.
# Nothing is computed with it here.
_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "0"}


@contextmanager
def loading_tensorflow() -> Iterator[None]:
    """Around whatever may load TensorFlow (Keras does so too, on any backend, where it is installed).

    Triton, which PyTorch loads late (with torchvision, with the first optimizer), aborts the process if
    TensorFlow 2.21 was loaded before it; the other way round both work. So it is loaded here first.
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
