"""Exported files in their own runtimes: arrays in, calibrated logits out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from efficientnetv2.utils.optional_deps import import_optional

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Runtime:
    """An exported file that is ready to compute.

    Attributes:
        name: Package and version.
        run: Images, as the file takes them, to logits (N, K) and probabilities (N, K).
        metadata: See `graph.metadata`.
    """

    name: str
    run: Callable[[npt.NDArray[Any]], tuple[Floats, Floats]]
    metadata: Mapping[str, str]


def open_onnx(path: Path, threads: int = 0) -> Runtime:
    """An ONNX file in onnxruntime, on a GPU where the installed package has one. 0 threads: all cores."""
    ort = import_optional("onnxruntime", "onnx", "Running an ONNX file")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = ort.InferenceSession(str(path), options, providers=_providers(ort))

    def run(images: npt.NDArray[Any]) -> tuple[Floats, Floats]:
        logits, shares = session.run(["logits", "probabilities"], {"images": images})
        return logits, shares

    return Runtime(f"onnxruntime {ort.__version__}", run, session.get_modelmeta().custom_metadata_map)


def _providers(ort: Any) -> list[str]:
    known = ort.get_available_providers()
    return [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in known]


def open_openvino(path: Path, threads: int = 0) -> Runtime:
    """An OpenVINO model on the CPU. 0 threads: all cores."""
    openvino = import_optional("openvino", "openvino", "Running an OpenVINO model")
    core = openvino.Core()
    model = core.read_model(path)
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = str(threads)
    compiled = core.compile_model(model, "CPU", settings)

    def run(images: npt.NDArray[Any]) -> tuple[Floats, Floats]:
        found = compiled(images)
        return found["logits"], found["probabilities"]

    info = json.loads(model.get_rt_info(["model_info", "efficientnetv2"]).value)
    return Runtime(f"openvino {openvino.__version__.split('-')[0]}", run, info)


def open_torch(path: Path, threads: int = 0) -> Runtime:
    """A `torch.export` program."""
    import torch

    extra = {"metadata.json": ""}
    module = torch.export.load(path, extra_files=extra).module()

    def run(images: npt.NDArray[Any]) -> tuple[Floats, Floats]:
        with torch.inference_mode():
            logits, shares = module(torch.from_numpy(images))
        return logits.numpy(), shares.numpy()

    return Runtime(f"torch {torch.__version__}", run, json.loads(extra["metadata.json"]))


OPEN: dict[str, Callable[[Path], Runtime]] = {"onnx": open_onnx, "openvino": open_openvino, "torch": open_torch}
