"""Engines that compute a model's logits: PyTorch, or the exported graph in onnxruntime or OpenVINO."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from efficientnetv2.exporters import runtimes
from efficientnetv2.exporters.graph import ExportGraph, metadata
from efficientnetv2.exporters.onnx import write_onnx
from efficientnetv2.inference.predict import Compute, PickEngine, predict
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.transforms.pipeline import normalize
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.io import cache_folder, write_atomically
from efficientnetv2.utils.probability import probabilities

_logger = logging.getLogger(__name__)

Engine = Literal["auto", "torch", "onnxruntime", "openvino"]

# `auto` prefers the first installed one: on CPUs it was the fastest, see benchmarks/results. Ours.
_CPU_ENGINES: dict[str, Callable[[Path], runtimes.Runtime]] = {
    "openvino": runtimes.open_openvino,
    "onnxruntime": runtimes.open_onnx,
}
# Fewer images are predicted before an export is done. Ours, from seconds per export and images per second.
_MIN_IMAGES = 1_000
# Largest difference of a probability that counts as equal. Ours.
_TOLERANCE = 1e-3


def engine_picker(name: Engine, device: torch.device) -> PickEngine | None:
    """A function that picks what computes, for `inference.predict.predict`; None is always PyTorch.

    ``auto`` takes an installed engine for many images on a CPU, if it agrees with PyTorch on the first batch and is
    faster there.

    Raises:
        InputError: The engine computes on a CPU only; later, that it is not installed or disagrees with PyTorch.
    """
    if name == "torch" or (name == "auto" and device.type != "cpu"):
        return None
    if device.type != "cpu":
        raise InputError(f"`engine` {name} computes on the CPU, and the device is {device}. Use `device=cpu`.")
    return _automatic if name == "auto" else partial(_required, name)


def _required(
    name: str, network: Network, preprocessing: Preprocessing, first_batch: Tensor, num_images: int
) -> Compute:
    compute = _open(name, network, preprocessing)
    if (difference := _difference(compute, network, preprocessing, first_batch)) > _TOLERANCE:
        raise InputError(
            f"`engine` {name} differs from PyTorch by {difference:.2g} in a probability. Use `engine=torch`."
        )
    return compute


def _automatic(network: Network, preprocessing: Preprocessing, first_batch: Tensor, num_images: int) -> Compute | None:
    installed = [name for name in _CPU_ENGINES if all(map(find_spec, (name, "onnx", "onnxscript")))]
    if num_images < _MIN_IMAGES or not installed:
        return None
    name = installed[0]
    try:
        compute = _open(name, network, preprocessing)
        difference = _difference(compute, network, preprocessing, first_batch)
    except Exception as error:  # an engine is an optimization: PyTorch computes every model
        _logger.info(f"Engine: torch ({name} failed: {type(error).__name__}).")
        return None
    if difference > _TOLERANCE:
        _logger.info(f"Engine: torch ({name} differs by {difference:.2g} in a probability).")
        return None
    slow = _seconds(lambda: predict(network, [first_batch], preprocessing=preprocessing))
    fast = _seconds(lambda: compute(first_batch))
    if fast >= slow:
        _logger.info(f"Engine: torch ({name} is not faster here).")
        return None
    _logger.info(f"Engine: {name} ({slow / fast:.1f} times as fast as torch on the first batch).")
    return compute


def _open(name: str, network: Network, preprocessing: Preprocessing) -> Compute:
    """An engine on the exported graph, which is kept for the next time."""
    file = cache_folder("engines") / f"{_key(network, preprocessing)}.onnx"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        own, network.preprocessing = network.preprocessing, preprocessing
        try:
            about, graph = metadata(network, "float"), ExportGraph(network)
            write_atomically(file, lambda part: write_onnx(graph, part, input_kind="float", half=False, metadata=about))
        finally:
            network.preprocessing = own
    runtime = _CPU_ENGINES[name](file)

    def compute(images: Tensor) -> Tensor:
        inputs = normalize(images, mean=preprocessing.mean, std=preprocessing.std).contiguous()
        return torch.from_numpy(runtime.run(inputs.numpy())[0])

    return compute


def _key(network: Network, preprocessing: Preprocessing) -> str:
    """Equal for equal weights, structure and preprocessing."""
    digest = blake2b(digest_size=16)
    calibrations = [part.calibration for part in network.modules() if isinstance(part, Network)]
    digest.update(f"{torch.__version__} {preprocessing!r} {network.activation} {calibrations!r} {network!r}".encode())
    for weight in network.state_dict().values():
        digest.update(weight.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _difference(compute: Compute, network: Network, preprocessing: Preprocessing, images: Tensor) -> float:
    expected = predict(network, [images], preprocessing=preprocessing)
    shares = (probabilities(logits, network.activation) for logits in (compute(images), expected))
    found, wanted = shares
    return float((found - wanted).abs().max())


def _seconds(run: Callable[[], object]) -> float:
    run()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
