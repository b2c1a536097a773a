"""Engines that compute a model's logits: PyTorch, or the exported graph in onnxruntime or OpenVINO."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import get_args

import torch
from torch import Tensor

from efficientnetv2.exporters import formats
from efficientnetv2.exporters.graph import Encoding, ExportGraph
from efficientnetv2.exporters.onnx import write_onnx
from efficientnetv2.inference.predict import Compute, Engine, PickEngine, eval_mode, predict
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.utils.device import lower_precision, place
from efficientnetv2.utils.errors import InputError, error_summary
from efficientnetv2.utils.probability import probabilities

_logger = logging.getLogger(__name__)

# From an ONNX file and the number of images of most batches.
_OPEN: dict[Engine, Callable[[Path, int], formats.Session]] = {
    "openvino": formats.open_openvino,
    "onnxruntime": lambda file, _: formats.open_onnx(file),
    "openvino-bf16": partial(formats.open_openvino, precision="bf16"),
}
# Those that `auto` chooses from.
EXACT: tuple[Engine, ...] = ("openvino", "onnxruntime")
# With fewer images `auto` keeps PyTorch: the export may take longer than it saves. Ours, not measured.
_MIN_IMAGES = 5_000
# Largest difference of a probability, or of a score of unknown images, that counts as equal. Ours, as of an export.
_TOLERANCE = 1e-3
# The same where layers compute in bfloat16, with 8 significant bits. Ours.
_BF16_TOLERANCE = 0.05
# `auto` leaves PyTorch only for an engine that is so many times as fast, as timings vary. Ours.
_GAIN = 1.1


def engine_picker(engine: Engine, device: torch.device) -> PickEngine | None:
    """A function that picks what computes, for `inference.predict.predict`; None is always PyTorch.

    ``auto`` takes the fastest installed engine that agrees with PyTorch on the first batch, for many images on a CPU.
    Raises InputError for an unknown engine or the wrong device; later, if it is not installed or PyTorch disagrees.
    """
    if engine_on(device, engine) == "torch":
        return None
    # By model and preprocessing; the graph has the weights of that moment.
    picked: dict[tuple[Network, Preprocessing], Compute | None] = {}
    lock = Lock()  # a service may share a predictor between threads

    def pick(
        network: Network, preprocessing: Preprocessing, first_batch: Tensor, num_images: int | None
    ) -> Compute | None:
        key = (network, preprocessing)
        with lock:
            if key not in picked:
                _, picked[key] = choose_engine(engine, *key, lambda: first_batch, num_images)
        return picked[key]

    return pick


def engine_on(device: torch.device, engine: Engine) -> Engine:
    """The engine for a device; ``auto`` is PyTorch except on a CPU. Raises InputError as ``engine_picker``."""
    if engine not in get_args(Engine):
        raise InputError(f"`engine` must be one of {', '.join(get_args(Engine))}, not {engine!r}.")
    if device.type == "cpu":
        if engine == "openvino-bf16" and lower_precision(device) != "bf16":
            raise InputError(
                "`engine` openvino-bf16 needs a processor with AVX512_BF16 or AMX, and this one has neither. Use "
                "`engine=openvino`."
            )
        return engine
    if engine not in ("auto", "torch"):
        raise InputError(f"`engine` {engine} computes on the CPU, and the device is {device}. Use `device=cpu`.")
    return "torch"


def choose_engine(
    engine: Engine,
    network: Network,
    preprocessing: Preprocessing,
    read: Callable[[], Tensor | None],
    num_images: int | None,
) -> tuple[Engine, Compute | None]:
    """The engine, and what it computes with; None is PyTorch. ``auto`` takes PyTorch for few images.

    ``read`` gives a batch (n, C, S, S) uint8 to try engines on, or None without images. ``num_images`` may be unknown.
    Raises InputError if the engine is not installed, fails or disagrees with PyTorch.
    """
    installed = [name for name in EXACT if all(map(find_spec, (name, "onnx", "onnxscript")))]
    is_few = num_images is not None and num_images < _MIN_IMAGES
    if engine == "torch" or (engine == "auto" and (is_few or not installed)) or (batch := read()) is None:
        return "torch", None
    trial = _Trial(network, preprocessing, batch)
    return trial.fastest(installed) if engine == "auto" else (engine, trial.required(engine))


def open_engine(engine: Engine, network: Network, preprocessing: Preprocessing, batch_size: int) -> Compute | None:
    """What an engine that another process has chosen computes with. Raises InputError."""
    if engine == "torch":
        return None
    with formats.failures_as_input_errors(f"`engine` {engine}", "Use `engine=torch`."):
        return _open([engine], network, preprocessing, batch_size)[engine]


@dataclass(frozen=True, eq=False)
class _Trial:
    """Engines for a model, tried on its first batch (n, C, S, S) uint8."""

    network: Network
    preprocessing: Preprocessing
    batch: Tensor

    def required(self, name: Engine) -> Compute:
        """An engine by name. Raises InputError if it is not installed, fails or disagrees."""
        with formats.failures_as_input_errors(f"`engine` {name}", "Use `engine=torch`."):
            compute = _open([name], self.network, self.preprocessing, len(self.batch))[name]
            difference = self._difference(compute)
        if not difference <= (_BF16_TOLERANCE if name == "openvino-bf16" else _TOLERANCE):  # NaN differs
            raise InputError(
                f"`engine` {name} differs from PyTorch by {difference:.2g} on the first batch. Use `engine=torch`."
            )
        _logger.info(f"Engine: {name} (largest difference from PyTorch on the first batch: {difference:.1g}).")
        return compute

    def fastest(self, names: Sequence[Engine]) -> tuple[Engine, Compute | None]:
        """The fastest engine that agrees, or PyTorch."""
        try:
            engines = _open(names, self.network, self.preprocessing, len(self.batch))
            differences = {name: self._difference(compute) for name, compute in engines.items()}
        except Exception as error:  # an engine is an optimization: PyTorch computes every model
            _logger.info(f"Engine: torch (the export failed: {error_summary(error)}).")
            return "torch", None
        wrong = [f"{name} differs by {value:.1g}" for name, value in differences.items() if not value <= _TOLERANCE]
        seconds = {
            name: _seconds(lambda compute=compute: compute(self.batch))  # type: ignore[misc]
            for name, compute in engines.items()
            if differences[name] <= _TOLERANCE
        }
        own = _seconds(self._expected)
        best = min(seconds, key=seconds.__getitem__, default=None)
        if best is None or own < _GAIN * seconds[best]:
            _logger.info(f"Engine: torch ({', '.join(wrong) or 'no other is faster'} on the first batch).")
            return "torch", None
        _logger.info(
            f"Engine: {best} ({own / seconds[best]:.1f} times as fast as torch on the first batch; largest difference "
            f"from PyTorch {differences[best]:.1g})."
        )
        return best, engines[best]

    def _expected(self) -> Tensor:
        return predict(self.network, [self.batch], preprocessing=self.preprocessing, unknown=True)

    def _difference(self, compute: Compute) -> float:
        """The largest one, of a probability or of a score of unknown images."""
        classes = self.network.num_classes
        found, expected = (
            torch.cat([probabilities(outputs[:, :classes], self.network.activation), outputs[:, classes:]], dim=1)
            for outputs in (compute(self.batch), self._expected())
        )
        return float((found - expected).abs().max())


def _open(
    names: Sequence[Engine], network: Network, preprocessing: Preprocessing, batch_size: int
) -> dict[Engine, Compute]:
    def compute(session: formats.Session) -> Compute:
        return lambda images: torch.from_numpy(session.run(images.permute(0, 2, 3, 1).contiguous().numpy())[0])

    place(network, torch.device("cpu"))
    # OpenVINO may keep the file open.
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder, eval_mode(network):
        file = Path(folder) / "model.onnx"
        write_onnx(ExportGraph(network, preprocessing, for_engine=True), file, Encoding(), {})
        return {name: compute(_OPEN[name](file, batch_size)) for name in names}


def _seconds(run: Callable[[], object]) -> float:
    run()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
