"""Exported files in their own runtimes: arrays in, calibrated logits and probabilities out.

They compute on the CPU with as many threads as PyTorch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch

from efficientnetv2.exporters.graph import OUTPUTS, Floats
from efficientnetv2.utils.errors import InputError, error_summary
from efficientnetv2.utils.optional_deps import import_optional


@dataclass(frozen=True)
class Session:
    """An exported file that is ready to compute.

    Attributes:
        name: Package and version.
        run: Images, as the file takes them, to logits (N, K) and probabilities (N, K). Threads may share it.
        metadata: See `graph.metadata`.
    """

    name: str
    run: Callable[[npt.NDArray[Any]], tuple[Floats, Floats]]
    metadata: Mapping[str, str]


@contextmanager
def failures_as_input_errors(what: str, fix: str) -> Iterator[None]:
    """Raise InputError where a library fails in the block, whose errors have types of their own; OSError passes."""
    try:
        yield
    except (InputError, OSError):
        raise
    except Exception as error:
        raise InputError(f"{what} fails for this model ({error_summary(error)}). {fix}") from error


def open_onnx(path: Path) -> Session:
    """An ONNX file in onnxruntime."""
    ort = import_optional("onnxruntime", "onnx", "Running an ONNX file")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(images: npt.NDArray[Any]) -> tuple[Floats, Floats]:
        logits, shares = session.run(list(OUTPUTS), {"images": images})
        return logits, shares

    return Session(f"onnxruntime {ort.__version__}", run, session.get_modelmeta().custom_metadata_map)


def open_openvino(path: Path) -> Session:
    """An OpenVINO model, or an ONNX file, in OpenVINO. Float layers compute in float32."""
    openvino = import_optional("openvino", "openvino", "Running an OpenVINO model")
    core = openvino.Core()
    model = core.read_model(path)
    compiled = core.compile_model(
        model,
        "CPU",
        {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        },
    )

    def run(images: npt.NDArray[Any]) -> tuple[Floats, Floats]:
        found = compiled.create_infer_request().infer(images)  # the model's own request is for one thread
        return found[OUTPUTS[0]], found[OUTPUTS[1]]

    ours = ["model_info", "efficientnetv2"]
    info = json.loads(model.get_rt_info(ours).value) if model.has_rt_info(ours) else {}
    return Session(f"openvino {openvino.__version__.split('-')[0]}", run, info)


def open_program(path: Path) -> Session:
    """A `torch.export` program."""
    extra = {"metadata.json": ""}
    module = torch.export.load(path, extra_files=extra).module()

    def run(images: npt.NDArray[Any]) -> tuple[Floats, Floats]:
        with torch.inference_mode():
            logits, shares = module(torch.from_numpy(images))
        return logits.numpy(), shares.numpy()

    return Session(f"torch {torch.__version__}", run, json.loads(extra["metadata.json"]))


OPEN: dict[str, Callable[[Path], Session]] = {"onnx": open_onnx, "openvino": open_openvino, "torch": open_program}
