"""Export a model for other runtimes, and prove that it predicts the same: `efficientnetv2.export`."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

import numpy as np

from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.exporters import classify, runtimes
from efficientnetv2.exporters.graph import ExportGraph, InputKind, class_names, metadata, write_program
from efficientnetv2.exporters.onnx import write_onnx
from efficientnetv2.exporters.openvino import write_openvino
from efficientnetv2.exporters.triton import triton_config
from efficientnetv2.exporters.verify import Agreement, verify
from efficientnetv2.inference.predict import require_image_channels
from efficientnetv2.models import model_file
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.training.seen_images import find_run
from efficientnetv2.utils.errors import InputError, pluralize
from efficientnetv2.utils.io import write_text_atomically
from efficientnetv2.utils.legacy import run_file
from efficientnetv2.workflows.arguments import PathLike, api, choice, number, path_of, path_text

_logger = logging.getLogger(__name__)

Format = Literal["onnx", "openvino", "torch", "triton"]
_NAMES = {"onnx": "model.onnx", "openvino": "model_openvino", "torch": "model.pt2", "triton": "model_triton"}
_WRITERS: dict[str, Callable[..., None]] = {"onnx": write_onnx, "openvino": write_openvino, "torch": write_program}


@dataclass(frozen=True)
class Export:
    """An exported model.

    Example::

        import efficientnetv2 as ev2

        exported = ev2.export("runs/mine")
        exported.path, exported.size_bytes, exported.agreement.label_agreement

    Attributes:
        path: The file, or the folder of a format that has several files.
        format: See `export`.
        runtime: Package and version that ran it.
        size_bytes: Of all files.
        agreement: How it compares with the original.
    """

    path: Path
    format: Format
    runtime: str
    size_bytes: int
    agreement: Agreement

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "path": str(self.path),
            "format": self.format,
            "runtime": self.runtime,
            "size_bytes": self.size_bytes,
            **asdict(self.agreement),
        }


@api
def export(
    model: PathLike,
    format: Format = "onnx",
    output: PathLike | None = None,
    *,
    input: InputKind = "float",
    half: bool = False,
    data: PathLike | None = None,
    num_images: int = 200,
    overwrite: bool = False,
) -> Export:
    """Export a model, and check that its own runtime predicts the same from image file to label.

    Class names and preprocessing travel in the file; an ensemble and test-time augmentation become part of it.
    Beside ONNX files `classify.py` shows how to use them without this package.

    Example::

        import efficientnetv2 as ev2

        exported = ev2.export("runs/mine")
        exported.path, exported.agreement.label_agreement

    Args:
        model: A run, a cross-validation, or the path of one or of a model file.
        format: "onnx"; "openvino" (folder with model.xml); "torch" (a `torch.export` program, .pt2); or "triton" (a
            model repository that Triton, KServe and OpenVINO Model Server serve).
        output: File or folder to write. Default: beside the model file.
        input: "float" takes normalized images (N, C, S, S); "uint8" takes images of any size, (N, H, W, C), and
            resizes and normalizes them in the model.
        half: Store weights in half precision.
        data: Images to compare on, as `predict` takes them. Default: the validation images of the run.
        num_images: Number of images to compare on, at most.
        overwrite: Replace the output if it exists.

    Raises:
        InputError: The exported model predicts differently; or an argument that the caller can fix.
    """
    path = Path(path_text("model", model))
    choice("format", format, get_args(Format))
    choice("input", input, get_args(InputKind))
    number("num_images", num_images, 1)
    if format == "torch" and (input == "uint8" or half):
        raise InputError("`format` torch takes normalized float images in float32. Leave `input` and `half` out.")
    network = model_file.load(path)
    require_image_channels(network, path)
    target = path_of("output", output) or (path if path.is_dir() else path.parent) / _NAMES[format]
    if target.exists() and not overwrite:
        raise InputError(f"{target} exists. Give another `output`, or replace it with `overwrite=True`.")
    dataset = _images(network, path, data, num_images)
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as folder:
        made = Path(folder) / target.name
        file = _write(network, made, format, input, half=half)
        _logger.info(f"Comparing on {pluralize(len(dataset), 'image')} from {dataset.source}.")
        runtime = runtimes.OPEN[_engine(format)](file)
        agreement = verify(network, runtime, dataset, half=half)
        size = sum(part.stat().st_size for part in ([made] if made.is_file() else made.rglob("*")) if part.is_file())
        if target.is_dir():
            shutil.rmtree(target)
        made.replace(target)
    if format == "onnx" and network.preprocessing.bands is None:
        write_text_atomically(target.with_name("classify.py"), Path(classify.__file__).read_text(encoding="utf-8"))
    return Export(target, format, runtime.name, size, agreement)


def _engine(format: Format) -> str:
    return "onnx" if format == "triton" else format


def _write(network: Network, target: Path, format: Format, input_kind: InputKind, *, half: bool) -> Path:
    """Write a format; returns the file that its runtime opens."""
    file = target
    if format == "openvino":
        file = target / "model.xml"
    elif format == "triton":
        file = target / "efficientnetv2" / "1" / "model.onnx"
    file.parent.mkdir(parents=True, exist_ok=True)
    about = metadata(network, input_kind)
    _WRITERS[_engine(format)](ExportGraph(network), file, input_kind=input_kind, half=half, metadata=about)
    if format == "triton":
        folder = file.parent.parent
        (folder / "config.pbtxt").write_text(triton_config(folder.name, network, input_kind), encoding="utf-8")
        (folder / "labels.txt").write_text("\n".join([*class_names(network), ""]), encoding="utf-8")
    return file


def _images(network: Network, model: Path, data: PathLike | None, most: int) -> ImageDataset:
    """Images to compare on: those given, or the validation images of the run."""
    run = find_run(model)
    if data is not None:
        dataset = DataConfig(path_text("data", data)).read(require_labels=False, for_training=False)
    elif run is not None:
        dataset = ImageDataset.from_csv(run_file(run, "dataset.csv"), root=run.absolute(), source=str(run))
        held_out = [split for split in ("val", "test", "train") if (dataset.split == split).any()]
        dataset = dataset.subset(held_out[0]) if held_out else dataset
    else:
        raise InputError(
            f"{model} is not in the folder of its run, so there are no images to compare on. Name some with `data`."
        )
    rows = np.unique(np.linspace(0, len(dataset) - 1, min(most, len(dataset))).round().astype(np.int64))
    return replace(dataset.select(rows), bands=network.preprocessing.bands)
