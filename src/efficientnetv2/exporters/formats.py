"""The formats of exported models: how each is written, and what runs it."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from efficientnetv2.exporters.graph import OUTPUTS, Encoding, ExportGraph, Floats, InputKind, Precision, metadata
from efficientnetv2.exporters.mobile import quiet, write_coreml, write_executorch, write_litert
from efficientnetv2.exporters.onnx import write_onnx
from efficientnetv2.exporters.openvino import openvino_core, write_openvino
from efficientnetv2.models.efficientnet import Network, output_names
from efficientnetv2.utils.errors import InputError, error_summary
from efficientnetv2.utils.io import entry_names
from efficientnetv2.utils.optional_deps import import_optional

Format = Literal["onnx", "openvino", "torch", "triton", "web", "litert", "executorch", "coreml"]
#: Name of the file or folder next to the model file.
NAMES: dict[Format, str] = {
    "onnx": "model.onnx", "openvino": "model_openvino", "torch": "model.pt2", "triton": "model_triton",
    "web": "model_web", "litert": "model.tflite", "executorch": "model.pte", "coreml": "model.mlpackage",
}  # fmt: skip
_PACKAGES: dict[tuple[Format, Precision], tuple[str, ...]] = {
    ("torch", "float32"): (),
    ("onnx", "float32"): ("onnx", "onnxscript", "onnxruntime"),
    ("onnx", "float16"): ("onnx", "onnxscript", "onnxruntime"),
    ("onnx", "int8"): ("onnx", "onnxscript", "onnxruntime"),
    ("openvino", "float32"): ("onnx", "onnxscript", "openvino"),
    ("openvino", "float16"): ("onnx", "onnxscript", "openvino"),
    ("openvino", "int8"): ("onnx", "onnxscript", "openvino", "nncf"),
    ("litert", "float32"): ("litert_torch", "ai_edge_litert"),
    ("executorch", "float32"): ("executorch",),
}
# Formats that take less than raw images and all precisions.
_INPUTS: dict[Format, tuple[InputKind, ...]] = {"torch": ("float",), "litert": ("float",), "executorch": ("float",)}
_PRECISIONS: dict[Format, tuple[Precision, ...]] = {
    "torch": ("float32",), "litert": ("float32",), "executorch": ("float32",), "coreml": ("float32", "float16"),
}  # fmt: skip
# Requests that Triton computes together, at most, and microseconds that they wait for each other. Ours.
_MAX_BATCH, _MAX_DELAY_US = 64, 2000
# A number of images that is free, for OpenVINO.
_ANY = -1
# The model in a model repository.
_SERVED = "efficientnetv2"
# Files of the formats that are folders of several files, as patterns.
_FILES: dict[Format, tuple[str, ...]] = {
    "openvino": ("model.xml", "model.bin"),
    "triton": (f"{_SERVED}/config.pbtxt", f"{_SERVED}/labels.txt", f"{_SERVED}/1/model.onnx"),
    "web": ("index.html", "worker.js", "model.json", "model.onnx", "onnxruntime-web/*"),
}  # fmt: skip
# The one of them that a runtime opens. Other formats are a single file or package.
_OPENED: dict[Format, str] = {"openvino": "model.xml", "triton": f"{_SERVED}/1/model.onnx", "web": "model.onnx"}


@dataclass(frozen=True)
class Session:
    """An exported file that is ready to compute, on the CPU with as many threads as PyTorch."""

    name: str  # package and version
    # Images, as the file takes them, to logits (N, K) and probabilities (N, K). Threads may share it.
    run: Callable[[npt.NDArray[Any]], tuple[Floats, Floats]]
    metadata: Mapping[str, str]  # see ``graph.metadata``


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


def open_openvino(path: Path, batch: int = _ANY, precision: Literal["f32", "bf16"] = "f32") -> Session:
    """An OpenVINO model, or an ONNX file, in OpenVINO. Float layers compute in ``precision``.

    Batches of ``batch`` images have a graph of their own, which is 3 % faster than one for any number (measured).
    """
    openvino = import_optional("openvino", "openvino", "Running an OpenVINO model")
    core = openvino_core()
    model, lock = core.read_model(path), Lock()
    config = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }

    @cache
    def compiled(images: int) -> Any:
        graph = model.clone()
        graph.reshape([images, *graph.input().partial_shape[1:]])
        return core.compile_model(graph, "CPU", config)

    compiled(batch)
    free: dict[int, list[Any]] = {batch: [], _ANY: []}  # a request is for one thread, and takes milliseconds to create

    def run(images: npt.NDArray[Any]) -> tuple[Floats, Floats]:
        kind = batch if len(images) == batch else _ANY
        try:
            request = free[kind].pop()
        except IndexError:
            with lock:
                request = compiled(kind).create_infer_request()
        found = request.infer(images)
        free[kind].append(request)
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


def open_litert(path: Path) -> Session:
    """A LiteRT file in its interpreter."""
    module = import_optional("ai_edge_litert.interpreter", "mobile", "Running a LiteRT file")
    interpreter = module.Interpreter(str(path), num_threads=torch.get_num_threads())
    compute = interpreter.get_signature_runner()

    def run(image: npt.NDArray[Any]) -> tuple[Floats, Floats]:
        found = compute(images=np.ascontiguousarray(image.transpose(0, 2, 3, 1)))
        return found[OUTPUTS[0]], found[OUTPUTS[1]]

    with zipfile.ZipFile(path) as archive:
        info = json.loads(archive.read("metadata.json"))
    return Session(f"LiteRT {version('ai-edge-litert')}", _one_by_one(run), info)


def open_executorch(path: Path) -> Session:
    """An ExecuTorch program in its runtime."""
    with quiet():
        runtime = import_optional("executorch.runtime", "mobile", "Running an ExecuTorch program")
        library = import_optional("executorch.extension.pybindings.portable_lib", "mobile", "Setting its threads")
    if hasattr(library, "_unsafe_reset_threadpool"):  # private; without it, ExecuTorch chooses its threads
        library._unsafe_reset_threadpool(torch.get_num_threads())
    program = runtime.Runtime.get().load_program(path)
    (info,) = program.load_method("metadata").execute(())
    method = program.load_method("forward")

    def run(image: npt.NDArray[Any]) -> tuple[Floats, Floats]:
        logits, shares = method.execute((torch.from_numpy(image),))
        return logits.numpy(), shares.numpy()

    return Session(f"ExecuTorch {version('executorch')}", _one_by_one(run), json.loads(info))


def _one_by_one(run: Callable[[npt.NDArray[Any]], tuple[Floats, Floats]]) -> Callable[..., tuple[Floats, Floats]]:
    """Run a file of one image on any number, in one thread at a time."""
    lock = Lock()

    def run_all(images: npt.NDArray[Any]) -> tuple[Floats, Floats]:
        some = images if len(images) else np.zeros((1, *images.shape[1:]), images.dtype)  # for the number of classes
        with lock:
            logits, shares = zip(*(run(some[row : row + 1]) for row in range(len(some))), strict=True)
        return np.concatenate(logits)[: len(images)], np.concatenate(shares)[: len(images)]

    return run_all


OPEN: dict[str, Callable[[Path], Session]] = {
    "onnx": open_onnx, "openvino": open_openvino, "torch": open_program, "litert": open_litert,
    "executorch": open_executorch,
}  # fmt: skip


def _write_program(graph: ExportGraph, path: Path, encoding: Encoding, metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Write a program for normalized float32 images; the number of images is free."""
    shapes = ({0: torch.export.Dim("batch")},)
    try:
        program = torch.export.export(graph.contiguous(), (graph.sample(),), dynamic_shapes=shapes)
    except Exception as error:  # PyTorch raises nearly everything where it cannot trace
        name = graph.network.display_name()
        raise InputError(f"PyTorch cannot trace {name} ({error_summary(error)}). Export another model.") from error
    torch.export.save(program, path, extra_files={"metadata.json": json.dumps(dict(metadata))})
    return ()


_WRITERS: dict[Format, Callable[..., tuple[str, ...]]] = {
    "onnx": write_onnx, "openvino": write_openvino, "torch": _write_program, "triton": write_onnx, "web": write_onnx,
    "litert": write_litert, "executorch": write_executorch, "coreml": write_coreml,
}  # fmt: skip


def require_supported(format: Format, input: InputKind, precision: Precision) -> None:
    """Raise InputError for an input or a precision that a format does not take."""
    if input not in _INPUTS.get(format, (input,)):
        raise InputError(f"`format={format}` takes normalized images. Leave `input` out, or use `format=onnx`.")
    if precision not in _PRECISIONS.get(format, (precision,)):
        option = "half" if precision == "float16" else precision
        raise InputError(f"`format={format}` does not support `{option}`. Leave it out, or use `format=onnx`.")


def installed() -> list[tuple[Format, Precision]]:
    """The formats and precisions that can run here; the file of triton and web is that of onnx."""
    return [variant for variant, packages in _PACKAGES.items() if all(map(find_spec, packages))]


def write(network: Network, target: Path, format: Format, encoding: Encoding) -> tuple[Path, tuple[str, ...]]:
    """Write a format; returns the file for its runtime and the layers that int8 leaves in float. Raises InputError."""
    require_supported(format, encoding.input, encoding.precision)
    file = target / _OPENED.get(format, "")
    file.parent.mkdir(parents=True, exist_ok=True)
    with _failures(format):
        in_float = _WRITERS[format](ExportGraph(network), file, encoding, metadata(network, encoding.input))
    if format == "triton":
        folder = file.parent.parent
        (folder / "config.pbtxt").write_text(_triton_config(network, encoding.input), encoding="utf-8", newline="\n")
        (folder / "labels.txt").write_text("\n".join([*output_names(network), ""]), encoding="utf-8", newline="\n")
    return file, in_float


def open_session(format: Format, file: Path) -> Session:
    """A file of ``write`` in its own runtime. Where that fails, also later, it raises InputError."""
    with _failures(format):
        session = OPEN["onnx" if format in ("triton", "web") else format](file)

    def run(images: npt.NDArray[Any]) -> tuple[Floats, Floats]:
        with _failures(format):
            return session.run(images)

    return replace(session, run=run)


def _failures(format: Format) -> AbstractContextManager[None]:
    return failures_as_input_errors(f"format {format}", "Use another `format`.")


def is_export(path: Path, format: Format) -> bool:
    """Whether a file or folder can be an earlier export in this format, and so may be replaced."""
    if format == "openvino":
        return (path / "model.xml").is_file()
    if format == "triton":
        return (path / _SERVED / "config.pbtxt").is_file()
    if format == "web":
        return (path / "model.onnx").is_file() and (path / "onnxruntime-web").is_dir()
    if format == "coreml":
        return path.suffix == Path(NAMES[format]).suffix and (path / "Manifest.json").is_file()
    return path.is_file() and path.suffix == Path(NAMES[format]).suffix


def foreign_files(path: Path, format: Format) -> list[str]:
    """Files in the folder of an export that no export writes, relative to it."""
    if format not in _FILES:
        return []
    files = [Path(root, name) for root, _, _ in os.walk(path) for name in entry_names(Path(root))]
    found = sorted(file.relative_to(path).as_posix() for file in files if not file.is_dir())
    return [name for name in found if not any(fnmatchcase(name, pattern) for pattern in _FILES[format])]


def _triton_config(network: Network, input_kind: InputKind) -> str:
    """``config.pbtxt``. Source: triton-inference-server/server, docs/user_guide/model_configuration.md."""
    own = network.preprocessing
    if input_kind == "uint8":
        kind, dims = "TYPE_UINT8", f"-1, -1, {own.channels}"
    else:
        kind, dims = "TYPE_FP32", f"{own.channels}, {own.image_size}, {own.image_size}"
    outputs = ",\n".join(
        f'  {{ name: "{output}", data_type: TYPE_FP32, dims: [ {network.num_classes} ], label_filename: "labels.txt" }}'
        for output in OUTPUTS
    )
    return f"""name: "{_SERVED}"
backend: "onnxruntime"
max_batch_size: {_MAX_BATCH}
input [
  {{ name: "images", data_type: {kind}, dims: [ {dims} ] }}
]
output [
{outputs}
]
dynamic_batching {{ max_queue_delay_microseconds: {_MAX_DELAY_US} }}
"""
