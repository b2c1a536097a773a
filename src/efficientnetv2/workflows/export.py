"""Export a model for other runtimes, and prove that it predicts the same: `efficientnetv2.export`."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import numpy as np

from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.image_folder import TABLE_SUFFIXES
from efficientnetv2.data.image_io import Pixels
from efficientnetv2.data.records import Ints
from efficientnetv2.data.shards.records import is_shards, locate_paths, points_into_shards
from efficientnetv2.evaluation.bootstrap_clusters import evaluation_clusters
from efficientnetv2.exporters import classify
from efficientnetv2.exporters.formats import (
    NAMES,
    Format,
    foreign_files,
    is_export,
    open_session,
    require_supported,
    write,
)
from efficientnetv2.exporters.graph import Encoding, InputKind, Precision
from efficientnetv2.exporters.quantize import CALIBRATION, require_calibration
from efficientnetv2.exporters.verify import (
    AccuracyDifference,
    Agreement,
    Compared,
    accuracy_difference,
    check,
    compare,
    read_pixels,
)
from efficientnetv2.exporters.web import read_runtime, write_page
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.models.factory import load_classifier
from efficientnetv2.training.run_dir import RUN_MARKERS
from efficientnetv2.training.seen_images import find_run
from efficientnetv2.training.signals import signals_as_ctrl_c
from efficientnetv2.utils.errors import InputError, pluralize, shorten
from efficientnetv2.utils.io import output_dir, read_object, write_atomically
from efficientnetv2.workflows.arguments import PathLike, api, choice, number, path_of, path_text
from efficientnetv2.workflows.evaluate_options import name_imagenet_classes

_logger = logging.getLogger(__name__)

# Images to compare on; and with int8, whose loss of accuracy needs more for a narrow interval. Ours.
_IMAGES, _INT8_IMAGES = 200, 2_000


@dataclass(frozen=True)
class Export:
    """An exported model.

    Example::

        import efficientnetv2 as ev2

        exported = ev2.export("runs/mine")
        exported.path, exported.size_bytes, exported.agreement

    Attributes:
        path: The file, or the folder of a format that has several files.
        format: See `export`.
        precision: "float32", "float16" or "int8".
        runtime: Package and version that ran it. Empty for Core ML, which runs only on Apple's systems.
        size_bytes: Size of all files.
        agreement: How it compares with the original. None for Core ML, which is not compared.
        accuracy: With int8 and labeled images, the difference of the accuracy; otherwise None.
        float_layers: With int8, the layers that stay in float.
    """

    path: Path
    format: Format
    precision: Precision
    runtime: str
    size_bytes: int
    agreement: Agreement | None
    accuracy: AccuracyDifference | None = None
    float_layers: tuple[str, ...] = ()

    @property
    def verified(self) -> bool:
        """Whether its own runtime predicted the same here."""
        return self.agreement is not None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        plain = asdict(self)
        agreement = plain.pop("agreement") or {}
        return {**plain, **agreement, "path": str(self.path), "verified": self.verified}


@api
def export(
    model: PathLike,
    format: Format = "onnx",
    output: PathLike | None = None,
    *,
    input: InputKind = "float",
    half: bool = False,
    int8: bool = False,
    data: PathLike | None = None,
    calibration: PathLike | None = None,
    num_images: int | None = None,
    runtime: PathLike | None = None,
    overwrite: bool = False,
    path_column: str = "path",
    label_column: str = "label",
) -> Export:
    """Export a model, and check that its own runtime predicts the same from image file to label.

    Class names and preprocessing travel in the file; an ensemble and test-time augmentation become part of it.
    Next to an ONNX file, `classify.py` shows how to use it without this package. A Core ML package is not compared.

    Example::

        import efficientnetv2 as ev2

        exported = ev2.export("runs/mine")
        exported.path, exported.agreement.label_agreement

    Args:
        model: A run, a cross-validation, the path of one or of a model file, or a name of pretrained weights.
        format: "onnx"; "openvino" (folder with model.xml); "torch" (a `torch.export` program, .pt2); "triton" (a
            model repository that Triton, KServe and OpenVINO Model Server serve); "web" (a folder with a web page
            that predicts in the browser); or for phones "litert" (.tflite), "executorch" (.pte) and "coreml"
            (.mlpackage), which take one image at a time.
        output: File or folder to write. Default: next to the model file; of weights by name, the current folder.
        input: "float" takes normalized images (N, C, S, S), one image (1, C, S, S) in "executorch" and "coreml", and
            (1, S, S, C) in "litert". "uint8" takes images of any size, (N, H, W, C), and resizes and normalizes them
            in the model. "web" always takes "uint8". "coreml" with "uint8" takes an image of the model's size, to
            which Apple's Vision framework resizes. "torch", "litert" and "executorch" take only "float".
        half: Store weights in float16; not for "torch", "litert" and "executorch". All but "openvino" also compute in
            float16.
        int8: Quantize weights and activations to 8 bits, for "onnx", "openvino", "triton" and "web". The result has
            the difference of the accuracy.
        data: Images to compare on, as `predict` takes them. Default: the validation images of the run, and if these
            are fewer than 200, also some of the selection set, then some that trained it.
        calibration: Images that give the ranges of the activations for ``int8``, at least 100. Default: 300 training
            images of the run.
        num_images: Number of images to compare on, at most. Default: 200; with ``int8`` 2,000.
        runtime: npm package onnxruntime-web for the format "web": the file of `npm pack`, or its folder.
        overwrite: Replace the output if it is an earlier export.
        path_column, label_column: Columns of a table in ``data`` or ``calibration``, see `predict`.

    Raises:
        InputError: The exported model predicts differently; or an argument that the caller can fix. Nothing is
            written then.
    """
    path = Path(path_text("model", model))
    choice("format", format, get_args(Format))
    choice("input", input, get_args(InputKind))
    number("num_images", num_images, 1)
    if half and int8:
        raise InputError("`half` and `int8` exclude each other. Give one of them.")
    precision: Precision = "float16" if half else "int8" if int8 else "float32"
    require_supported(format, input, precision)
    if format == "coreml" and not (data is None and num_images is None):
        raise InputError("`format=coreml` is not compared with the original. Leave `data` and `num_images` out.")
    if calibration is not None and not int8:
        raise InputError("`calibration` is for `int8`. Give both, or leave it out.")
    if runtime is not None and format != "web":
        raise InputError("`runtime` is for `format=web`. Give both, or leave it out.")
    target = path_of("output", output) or (path if path.is_dir() else path.parent) / NAMES[format]
    other = next((name for name, file in NAMES.items() if target.suffix and Path(file).suffix == target.suffix), format)
    if other != format:
        raise InputError(f"`output` {target} is a name for `format={other}`. Give this format, or another name.")
    _check_target(target, format, overwrite=overwrite)
    if (suffix := Path(NAMES[format]).suffix) and target.suffix != suffix:
        raise InputError(f"`output` {target} must end with {suffix} for `format={format}`. Add it to the name.")
    if not suffix and target.suffix in (".xml", ".bin", ".html"):
        fix = f"Give {target.with_suffix('')}."
        raise InputError(f"`output` {target} is the name of a file, but `format={format}` writes a folder. {fix}")
    runtime_files = read_runtime(path_of("runtime", runtime)) if format == "web" else {}
    network = load_classifier(path)
    if format == "web" and network.preprocessing.bands is not None:
        raise InputError("`format=web` reads no bands of rasters, and this model needs them. Use another `format`.")
    most = num_images or (_INT8_IMAGES if int8 else _IMAGES)
    columns = {"path_column": path_column, "label_column": label_column}
    dataset = None if format == "coreml" else comparison_images(network, path, data, most, **columns)
    input = "uint8" if format == "web" else input
    pixels = calibration_images(network, path, calibration, path_column) if int8 else None
    encoding = Encoding(input, precision, pixels)
    with (
        signals_as_ctrl_c(),
        output_dir(target.parent, "`output`"),
        TemporaryDirectory(
            dir=target.parent, prefix=f".{target.name}.", suffix=".partial", ignore_cleanup_errors=True
        ) as folder,
    ):
        made = Path(folder) / target.name
        file, float_layers = write(network, made, format, encoding)
        if format == "web":
            write_page(made, network, runtime_files)
        engine = ""
        agreement: Agreement | None = None
        accuracy: AccuracyDifference | None = None
        if dataset is None:
            _logger.warning(
                "The Core ML package is not compared with the original. Compare their predictions on a Mac."
            )
        else:
            few = "" if len(dataset) >= _IMAGES else f" Name at least {_IMAGES} with `data` for a stronger proof."
            _logger.info(f"Comparing on {pluralize(len(dataset), 'image')} of {dataset.source}.{few}")
            session = open_session(format, file)
            compared, engine = compare(network, session, dataset), session.name
            del session  # Windows moves no file that is open
            agreement = check(compared, network, dataset, precision)
            if int8:
                note_unknown_labels(network, dataset)
                accuracy = paired_accuracy(network, path, dataset, compared)
        size = size_of(made)
        _replace(target, made, Path(folder) / "before")
        if format == "onnx" and network.preprocessing.bands is None:
            _write_script(_script(target), overwrite=overwrite)
        elif format == "onnx":
            _logger.info("classify.py is not written, because it cannot read raster bands, which this model needs.")
    return Export(target, format, precision, engine, size, agreement, accuracy, float_layers)


def comparison_images(network: Network, model: Path, data: PathLike | None, most: int, **columns: Any) -> ImageDataset:
    """Images to compare on: those given; else of the run, the validation images first."""
    if data is not None:
        text, run = path_text("data", data), find_run(model)
        is_table = _is_table(text)
        # A folder has one label per image.
        separator = _separator(run) if run is not None and (is_table or is_shards(text)) else None
        source = DataConfig(text, label_separator=separator, **(columns if is_table else {}))
        dataset = source.read(require_labels=False, for_training=False)
        dataset = name_imagenet_classes(dataset, network.class_names)
        return _part(network, dataset, _spread(np.arange(len(dataset)), most))
    dataset = _run_dataset(model, "to compare on", "data")
    rows = _spread(np.flatnonzero(dataset.split == "val"), most)
    has_val = len(rows) > 0
    for split in ("minival", "train"):  # the test images are for `evaluate` alone
        lacking = min(most, _IMAGES) - len(rows)
        rows = np.concatenate([rows, _spread(np.flatnonzero(dataset.split == split), lacking)])
    if not has_val and (dataset.split[rows] == "train").any():
        _logger.info("There are no validation images: the comparison is on images that trained the model.")
    return _part(network, dataset, rows)


def _is_table(data: str) -> bool:
    return Path(data).suffix.lower() in TABLE_SUFFIXES and not is_shards(data)


def calibration_images(network: Network, model: Path, data: PathLike | None, path_column: str = "path") -> Pixels:
    """(n, S, S, C) training images of the run, or others, as the model sees them, for int8."""
    if data is not None:
        text = path_text("calibration", data)
        source = DataConfig(text, path_column=path_column if _is_table(text) else "path")
        dataset = source.read(require_labels=False, for_training=False)
        rows = np.arange(len(dataset))
    else:
        dataset = _run_dataset(model, "to calibrate int8 with", "calibration")
        rows = np.flatnonzero(dataset.split == "train")
    require_calibration(len(rows))
    part = _part(network, dataset, _spread(rows, CALIBRATION))
    pixels = [batch for _, batch in read_pixels(network, part)]
    require_calibration(sum(map(len, pixels)))
    return np.concatenate(pixels)


def note_unknown_labels(network: Network, dataset: ImageDataset) -> None:
    """Log labels that are not classes of the model."""
    present = {dataset.class_names[label] for label in np.unique(dataset.targets) if label >= 0}
    if unknown := sorted(present - set(network.class_names)):
        _logger.info(f"Labels that are not classes of the model do not count for the accuracy: {shorten(unknown)}.")


def paired_accuracy(
    network: Network, model: Path, dataset: ImageDataset, compared: Compared
) -> AccuracyDifference | None:
    """The accuracy of an exported model minus that of the model, on validation images where there are some.

    None without labels, also where several labels of an image cannot be told apart.
    """
    if network.activation == "sigmoid" and dataset.separator is None:
        return None
    compared_images = dataset.select(compared.rows)
    rows = np.flatnonzero(compared_images.split == "val")
    if not len(rows):
        rows = np.arange(len(compared_images))
    images = compared_images.select(rows)
    clusters = evaluation_clusters(find_run(model), images)
    units = None if clusters is None else clusters.clusters
    return accuracy_difference(compared.select(rows), network, _targets(network, images), units)


def size_of(made: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(part.stat().st_size for part in ([made] if made.is_file() else made.rglob("*")) if part.is_file())


def _check_target(target: Path, format: Format, *, overwrite: bool) -> None:
    """Refuse an output that cannot be written, or would replace something else."""
    if target.exists() and not overwrite:
        raise InputError(f"`output` {target} exists. Give another one, or replace it with `overwrite=True`.")
    if target.exists() and not is_export(target, format):
        raise InputError(f"`output` {target} exists and is not an export in the format {format}. Give another one.")
    if target.exists() and (others := foreign_files(target, format)):
        raise InputError(
            f"`output` {target} holds other files than an export, which would be lost: {shorten(others)}. Move them, "
            "or give another folder."
        )
    script = _script(target)
    if format == "onnx" and script.exists() and not _is_classify(script):
        raise InputError(f"`output`: {script} exists, and is another program. Rename it, or give another folder.")


def _script(target: Path) -> Path:
    return target.with_name("classify.py")


def _is_classify(script: Path) -> bool:
    first = Path(classify.__file__).read_bytes().partition(b"\n")[0]
    return script.is_file() and script.read_bytes().startswith(first)


def _write_script(script: Path, *, overwrite: bool) -> None:
    content = Path(classify.__file__).read_bytes()
    if script.exists() and not overwrite:
        if script.read_bytes() != content:
            _logger.info(f"{script} differs from the present version and is kept. To replace it, use `overwrite=True`.")
        return
    write_atomically(script, lambda part: part.write_bytes(content))


def _replace(target: Path, made: Path, before: Path) -> None:
    """Put a file or folder in its place; an earlier export goes to ``before``, and returns if that fails."""
    if made.is_file():
        write_atomically(target, made.replace)
        return
    if target.exists():
        target.replace(before)
    try:
        made.replace(target)
    except BaseException:
        if before.exists():
            before.replace(target)
        raise


def _run_dataset(model: Path, purpose: str, argument: str) -> ImageDataset:
    """The images of the run that a model lies in."""
    run = find_run(model)
    if run is None:
        raise InputError(
            f"{model} is not in the folder of its run: images {purpose} are not known. Name some with `{argument}`."
        )
    return ImageDataset.from_csv(run / "dataset.csv", root=run.absolute(), source=str(run), separator=_separator(run))


def _separator(run: Path) -> str | None:
    """The text between the labels of an image of a run."""
    start = next(file for name in RUN_MARKERS if (file := run / name).is_file())
    facts = read_object(start, fix="Copy the run again.")
    separator: str | None = facts.get("source", facts).get("label_separator")  # a cross-validation's is in its source
    return separator


def _spread(rows: Ints, most: int) -> Ints:
    """At most so many of the rows, evenly spread, so that all classes of a sorted dataset are among them."""
    places = np.linspace(0, len(rows) - 1, max(0, min(most, len(rows)))).round().astype(np.int64)
    return rows[np.unique(places)]


def _part(network: Network, dataset: ImageDataset, rows: Ints) -> ImageDataset:
    part = dataset.select(rows)
    if part.shards is None and points_into_shards(part.table):  # the images of a run
        part = locate_paths(part)
    return replace(part, bands=network.preprocessing.bands)


def _targets(network: Network, images: ImageDataset) -> Ints:
    """(n,) or (n, M) classes of the network, -1 for none."""
    known = {name: number for number, name in enumerate(network.class_names)}
    numbers = np.array([*(known.get(name, -1) for name in images.class_names), -1], np.int64)
    return numbers[images.targets]
