"""OpenVINO models (`model.xml` and `.bin`), made from the ONNX graph."""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from efficientnetv2.exporters.graph import Encoding, ExportGraph, InputKind
from efficientnetv2.exporters.onnx import write_onnx
from efficientnetv2.exporters.quantize import quantize_openvino
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.optional_deps import import_optional

# Of Model API. Source: github.com/open-edge-platform/model_api, "resize_type".
_RESIZE_TYPES = {"squash": "standard", "center": "crop", "border": "fit_to_window_letterbox"}


class _SignalStack(ctypes.Structure):
    """Source: sigaltstack(2), stack_t."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@cache
def openvino_core() -> Any:
    """The Core of this process, which stays.

    OpenVINO's CPU plugin gives the thread a stack for signals, and frees it with its Core. With several Cores the
    thread may keep a stack that is freed. The next signal then ends the process.
    """
    return import_optional("openvino", "openvino", "Running an OpenVINO model").Core()


@contextmanager
def keep_signal_stack() -> Iterator[None]:
    """Within, other code may make Cores; afterwards, this thread has the stack for signals that it had before."""
    if sys.platform != "linux":
        yield
        return
    before, sigaltstack = _SignalStack(), ctypes.CDLL(None).sigaltstack
    sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        sigaltstack(ctypes.byref(before), None)


def write_openvino(graph: ExportGraph, path: Path, encoding: Encoding, metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Write ``path``, which ends in .xml, and its weights (.bin). Returns the layers that ``int8`` leaves in float.

    With ``float16`` only the stored weights are float16.
    """
    openvino = import_optional("openvino", "openvino", "Exporting to OpenVINO")
    own = graph.preprocessing
    if encoding.input == "uint8" and (own.crop_mode != "squash" or own.crop_pct != 1):
        raise InputError(
            f"`input` is uint8, which OpenVINO supports without a crop only, and this model has crop_mode "
            f"{own.crop_mode} and crop_pct {own.crop_pct:g}. Use `input=float`, or `format=onnx`."
        )
    with TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        write_onnx(graph, file, Encoding(), metadata)
        model = openvino_core().read_model(file)  # convert_model would send statistics of use
    in_float: tuple[str, ...] = ()
    if encoding.precision == "int8":
        with keep_signal_stack():
            model, in_float = quantize_openvino(model, encoding.calibration, own)
    if encoding.input == "uint8":
        model = _behind_preprocessing(openvino, model, own)
    for name, value in _model_info(own, metadata, encoding.input).items():
        model.set_rt_info(value, ["model_info", name])
    openvino.save_model(model, path, compress_to_fp16=encoding.precision == "float16")
    return in_float


def _behind_preprocessing(openvino: Any, model: Any, own: Preprocessing) -> Any:
    """The model with raw images (N, H, W, C) uint8 as input, resized as Pillow resizes."""
    preprocess = openvino.preprocess
    steps = preprocess.PrePostProcessor(model)
    image = steps.input()
    image.tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC"))
    image.tensor().set_spatial_dynamic_shape()
    image.model().set_layout(openvino.Layout("NCHW"))
    kind = preprocess.ResizeAlgorithm
    resize = kind.RESIZE_BICUBIC_PILLOW if own.interpolation == "bicubic" else kind.RESIZE_BILINEAR_PILLOW
    image.preprocess().resize(resize).convert_element_type(openvino.Type.f32)
    image.preprocess().mean([255 * mean for mean in own.mean]).scale([255 * std for std in own.std])
    return steps.build()


def _model_info(own: Preprocessing, metadata: Mapping[str, str], input_kind: InputKind) -> dict[str, str]:
    """OpenVINO's own keys (labels are separated by blanks there), and all of ours under one."""
    labels = [name.replace(" ", "_") for name in json.loads(metadata["names"])]
    embedded = input_kind == "uint8"
    return {
        "model_type": "Classification",
        "labels": " ".join(labels),
        "mean_values": " ".join("0" if embedded else f"{255 * value:g}" for value in own.mean),
        "scale_values": " ".join("1" if embedded else f"{255 * value:g}" for value in own.std),
        "resize_type": _RESIZE_TYPES[own.crop_mode],
        "multilabel": str(metadata["problem_type"].startswith("multi")),
        "efficientnetv2": json.dumps(dict(metadata)),
    }
