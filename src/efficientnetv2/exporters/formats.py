"""The formats of exported models: how each is written, and what runs it."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from efficientnetv2.exporters import runtimes
from efficientnetv2.exporters.graph import Encoding, ExportGraph, Precision, class_names, metadata
from efficientnetv2.exporters.onnx import write_onnx
from efficientnetv2.exporters.openvino import write_openvino
from efficientnetv2.exporters.program import write_program
from efficientnetv2.exporters.triton import triton_config
from efficientnetv2.models.efficientnet import Network

Format = Literal["onnx", "openvino", "torch", "triton"]
#: Name of the file or folder beside the model file.
NAMES: dict[Format, str] = {
    "onnx": "model.onnx", "openvino": "model_openvino", "torch": "model.pt2", "triton": "model_triton"
}  # fmt: skip
_WRITERS: dict[Format, Callable[..., tuple[str, ...]]] = {
    "onnx": write_onnx, "openvino": write_openvino, "torch": write_program, "triton": write_onnx
}  # fmt: skip
_PACKAGES: dict[tuple[Format, Precision], tuple[str, ...]] = {
    ("torch", "float32"): (),
    ("onnx", "float32"): ("onnx", "onnxscript", "onnxruntime"),
    ("onnx", "float16"): ("onnx", "onnxscript", "onnxruntime"),
    ("onnx", "int8"): ("onnx", "onnxscript", "onnxruntime"),
    ("openvino", "float32"): ("onnx", "onnxscript", "openvino"),
    ("openvino", "float16"): ("onnx", "onnxscript", "openvino"),
    ("openvino", "int8"): ("onnx", "onnxscript", "openvino", "nncf"),
}
# The model in a model repository.
_SERVED = "efficientnetv2"


def installed() -> list[tuple[Format, Precision]]:
    """The formats and precisions whose packages are installed; triton's file is that of onnx."""
    return [variant for variant, packages in _PACKAGES.items() if all(map(find_spec, packages))]


def write(network: Network, target: Path, format: Format, encoding: Encoding) -> tuple[Path, tuple[str, ...]]:
    """Write a format; returns the file that its runtime opens, and the layers that int8 leaves in float."""
    file = target
    if format == "openvino":
        file = target / "model.xml"
    elif format == "triton":
        file = target / _SERVED / "1" / "model.onnx"
    file.parent.mkdir(parents=True, exist_ok=True)
    in_float = _WRITERS[format](ExportGraph(network), file, encoding, metadata(network, encoding.input))
    if format == "triton":
        folder = file.parent.parent
        (folder / "config.pbtxt").write_text(triton_config(_SERVED, network, encoding.input), encoding="utf-8")
        (folder / "labels.txt").write_text("\n".join([*class_names(network), ""]), encoding="utf-8")
    return file, in_float


def open_session(format: Format, file: Path) -> runtimes.Session:
    """A file of ``write`` in its own runtime."""
    return runtimes.OPEN["onnx" if format == "triton" else format](file)


def is_export(path: Path, format: Format) -> bool:
    """Whether a file or folder can be an earlier export in this format, and so may be replaced."""
    if format == "openvino":
        return (path / "model.xml").is_file()
    if format == "triton":
        return (path / _SERVED / "config.pbtxt").is_file()
    return path.is_file() and path.suffix == Path(NAMES[format]).suffix
