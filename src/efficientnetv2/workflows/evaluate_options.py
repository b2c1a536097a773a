"""The options of an evaluation, checked before an image is predicted: classes, costs, calibration, output folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from efficientnetv2.data.config import DataConfig, report_notes
from efficientnetv2.data.csv_dialect import match_names, read_cells
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.imagenet_check import imagenet_ids
from efficientnetv2.data.label_rules import normalize_label, separator_between
from efficientnetv2.data.records import SPLITS
from efficientnetv2.data.shards.index import INDEX_NAME
from efficientnetv2.evaluation.html import is_page
from efficientnetv2.evaluation.predictions import (
    PREDICTIONS_CSV,
    SKIPPED,
    csv_columns,
    is_skipped_csv,
    load_predictions,
)
from efficientnetv2.evaluation.report_sections import ReportOptions, validate_slices
from efficientnetv2.evaluation.run_comparison import PreviousRun
from efficientnetv2.metrics.calibration import MIN_TEMPERATURE_IMAGES
from efficientnetv2.metrics.cost_sensitive import ErrorCosts
from efficientnetv2.models.conversion.metadata import imagenet_class_names
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.models.ensemble import Ensemble, ensemble_members
from efficientnetv2.models.output_shapes import infer_shapes
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.progressive.schedule import IMAGE_SIZE
from efficientnetv2.training.run_dir import REPORT_FILES, RUN_MARKERS
from efficientnetv2.training.seen_images import TrainOverlap, train_overlap
from efficientnetv2.utils.errors import InputError, did_you_mean, pluralize, shorten
from efficientnetv2.utils.io import check_writable_file, output_dir
from efficientnetv2.utils.shell import shell_join
from efficientnetv2.workflows.arguments import (
    choice,
    note_replaced,
    refuse_foreign_file,
    refuse_inside_data,
    refuse_replacing_data,
)
from efficientnetv2.workflows.batch_predict import PredictionJob, load_predictor, remove_unfit_calibration, with_tta

# Column of the cost of leaving an image to a person.
_ABSTAIN = "abstain"
# The stride of the models, and the largest size of a recipe; and the most sizes, each a pass over the images. Ours.
_MIN_SIZE, _MAX_SIZE, _MAX_SIZES = 32, IMAGE_SIZE[1], 32


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of an evaluation by their names, besides those of data and ``InferenceOptions``."""

    split: str | None = None
    out: Path | None = None
    image_size: int | None = None
    sizes: str | None = None
    tta: str | None = None
    slices: str | None = None
    costs: Path | None = None
    abstain_below: float | None = None
    calibrate: Path | None = None
    baseline: Path | None = None


@dataclass(frozen=True, eq=False)
class ResolvedEvaluation:
    """An evaluation with its options checked, and model and data loaded."""

    model: str
    data: str
    job: PredictionJob
    split: str
    sizes: tuple[int, ...]
    report: ReportOptions
    options: EvaluateOptions


def resolve_evaluation(model: str, data: DataConfig, options: EvaluateOptions, *, strict: bool) -> ResolvedEvaluation:
    """Check the options, and load the model and the dataset."""
    sizes = () if options.sizes is None else parse_sizes(options.sizes)
    network = load_predictor(model, data.data, "evaluate")
    default = network.preprocessing
    px = default.image_size if options.image_size is None else _check_size("image_size", options.image_size)
    preprocessing = with_tta(replace(default, image_size=px), options.tta)
    if network.activation == "sigmoid" and data.label_separator is None:
        raise InputError(
            f"{model} predicts each class independently (sigmoid), and is compared with all labels of an image. Give a "
            "table of labels, and the text between these, even if each image has one: `label_separator=;`."
        )
    dataset, split = _select_split(data.read(for_training=False), options.split)
    dataset = replace(dataset, bands=default.bands)
    dataset = align_labels(dataset, network.class_names, model, merge=data.labels == "casefold")
    if dataset.separator is not None:
        for name in ("sizes", "costs", "baseline", "calibrate"):
            if getattr(options, name) is not None:
                raise InputError(f"`{name}` is for images with one label, but these have several. Leave it out.")
    for size in sorted({px, *sizes} - {default.image_size}):
        infer_shapes(network, in_channels=network.in_channels, image_size=size)
    report = _report_options(options, dataset, network.class_names, data.group_column)
    if options.calibrate is not None:
        check_calibration(options.calibrate, network, dataset, split, preprocessing)
        # Checked again at the end, for the images that could be read.
        require_unseen(options.calibrate, train_overlap(Path(model), network.trained_on, dataset), split)
    remove_unfit_calibration(network, preprocessing)
    job = PredictionJob(network, dataset, report_notes(dataset, strict=strict), preprocessing)
    return ResolvedEvaluation(model, data.data, job, split, sizes, report, options)


def _check_size(name: str, px: int) -> int:
    if not _MIN_SIZE <= px <= _MAX_SIZE:
        raise InputError(f"`{name}`: invalid value '{px}' (choose {_MIN_SIZE} to {_MAX_SIZE} pixels).")
    return px


def parse_sizes(text: str) -> tuple[int, ...]:
    """Image sizes such as ``96,128,160``, ascending. Raises InputError."""
    try:
        sizes = {int(word) for word in text.split(",")}
    except ValueError as error:
        raise InputError(f"`sizes`: invalid value '{text}'. Give pixels with commas, as 96,128,160.") from error
    if len(sizes) > _MAX_SIZES:
        raise InputError(
            f"`sizes` has {len(sizes)} sizes, but each is a pass over all images. Give at most {_MAX_SIZES}."
        )
    return tuple(sorted(_check_size("sizes", px) for px in sizes))


def _select_split(dataset: ImageDataset, split: str | None) -> tuple[ImageDataset, str]:
    if split is None:
        split = next((name for name in ("test", "val") if (dataset.split == name).any()), "all")
    choice("split", split, (*SPLITS, "all"))
    return (dataset, "all images") if split == "all" else (dataset.subset(split), split)


def _report_options(
    options: EvaluateOptions, dataset: ImageDataset, class_names: Sequence[str], group_column: str | None
) -> ReportOptions:
    slices: tuple[str, ...] | None = None
    if options.slices is not None:
        slices = () if options.slices == "none" else tuple(dict.fromkeys(map(str.strip, options.slices.split(","))))
    if slices:
        # As the table was read: beside another column of groups, one of the name "group" is "group_given".
        other = "group_given" if group_column is not None and "group_given" in dataset.table else "group"
        slices = tuple({"group": other, group_column: "group"}.get(name, name) for name in slices)
        validate_slices(dataset, slices)
    costs = None if options.costs is None else read_cost_matrix(options.costs, class_names)
    baseline = None
    if options.baseline is not None:
        baseline = PreviousRun.for_images(options.baseline, load_predictions(options.baseline), dataset)
    return ReportOptions(slices, costs, options.abstain_below, baseline)


def align_labels(dataset: ImageDataset, class_names: tuple[str, ...], model: str, *, merge: bool) -> ImageDataset:
    """The labeled dataset with the class ids of a model. With ``merge`` other labels match by ``normalize_label``."""
    dataset = name_imagenet_classes(dataset, class_names)
    if merge:
        _refuse_ambiguous(dataset, class_names, model)
        spelled = {normalize_label(name): name for name in class_names} | {name: name for name in class_names}
        dataset = dataset.map_classes(lambda label: spelled.get(label, spelled.get(normalize_label(label), label)))
    present = {dataset.class_names[label] for label in np.unique(dataset.targets) if label >= 0}
    if unknown := sorted(present - set(class_names)):
        raise _unknown_labels_error(dataset, class_names, model, unknown, num_present=len(present))
    return replace(dataset, class_names=class_names)


def name_imagenet_classes(dataset: ImageDataset, class_names: tuple[str, ...]) -> ImageDataset:
    """The dataset with the English names of an ImageNet model in place of WordNet ids, as ImageNet's folders have."""
    ids, labels = imagenet_ids(), set(dataset.class_names)
    if labels and len(class_names) == len(ids) and labels <= set(ids) and class_names == imagenet_class_names():
        name_of = dict(zip(ids, class_names, strict=True))
        return dataset.map_classes(lambda label: name_of[label])
    return dataset


def _folder_of_classes(dataset: ImageDataset, class_names: frozenset[str]) -> str | None:
    """The folder within a dataset of folders whose sub-folders are named like the classes."""
    if dataset.shards is not None or not Path(dataset.source).is_dir():
        return None
    for path in dataset.paths:
        parts = path.split("/")[:-1]
        for place in range(1, len(parts)):
            if parts[place] in class_names:
                return os.path.join(dataset.source, *parts[:place])
    return None


def _unknown_labels_error(
    dataset: ImageDataset, class_names: tuple[str, ...], model: str, unknown: list[str], *, num_present: int
) -> InputError:
    unknown_text = f"{_first_with(dataset, unknown[0])}: label {shorten(unknown)} is not"
    if len(unknown) == num_present > 1:
        unknown_text = f"{_first_with(dataset, unknown[0])}: none of the {num_present} labels ({shorten(unknown)}) is"
    separator = None if dataset.separator is not None else separator_between(class_names, unknown[0])
    if separator is not None:
        fix = f"If an image may have several labels, use `label_separator={separator}`."
    elif {normalize_label(name) for name in unknown} <= {normalize_label(name) for name in class_names}:
        fix = "They differ only by case, space or how their letters are encoded. Merge them: `labels=casefold`."
    elif len(unknown) < num_present:
        ids = [dataset.class_names.index(name) for name in unknown]
        count = int(np.isin(dataset.targets, ids).reshape(len(dataset), -1).any(axis=1).sum())
        fix = f"Correct the labels of these {pluralize(count, 'image')}, or remove their rows or folders."
    elif folder := _folder_of_classes(dataset, frozenset(class_names)):
        fix = f"Folders within the dataset have the names of its classes: give {folder}."
    elif ensemble_members(Path(model)):  # convert takes single networks
        fix = "Rename the labels of the table."
    else:
        rename = shell_join(["effnetv2", "convert", model, "NAMED.safetensors", "--class-names", "NAMES.txt"])
        fix = f"If its classes have other names, one on each line of a file: {rename}"
    return InputError(
        f"{unknown_text} a class of {model}, which has {shorten(class_names, 10)}"
        f"{did_you_mean(unknown[0], class_names)} {fix}"
    )


def _refuse_ambiguous(dataset: ImageDataset, class_names: tuple[str, ...], model: str) -> None:
    """Refuse a label that is no class as it is spelled, but normalizes like two of them."""
    by_form: dict[str, list[str]] = {}
    for name in class_names:
        by_form.setdefault(normalize_label(name), []).append(name)
    for place, label in enumerate(dataset.class_names):
        alike = by_form.get(normalize_label(label), [])
        if label not in alike and len(alike) > 1 and (dataset.targets == place).any():
            raise InputError(
                f"{_first_with(dataset, label)}: label '{label}' may be {shorten(alike)}, two classes of {model}. "
                "Correct the label to one of them."
            )


def _first_with(dataset: ImageDataset, label: str) -> str:
    """Where the first image with a label is."""
    place = dataset.class_names.index(label)
    return dataset.where(int(np.argwhere(dataset.targets == place)[0, 0]))


def check_calibration(
    out: Path, network: Network, dataset: ImageDataset, split: str, preprocessing: Preprocessing
) -> None:
    """Refuse what cannot be calibrated before any image is predicted."""
    if out.suffix != ".safetensors" or out.exists():
        raise InputError(f"`calibrate` {out} must be a new file whose name ends in .safetensors.")
    check_writable_file(out, "`calibrate`", such_as="calibrated.safetensors")
    if isinstance(network, Ensemble):
        raise InputError(f"`calibrate` {out}: the model is an ensemble. Give the file of a single model.")
    for name in ("tta", "image_size"):
        value, default = getattr(preprocessing, name), getattr(network.preprocessing, name)
        if value != default:
            raise InputError(
                f"`calibrate` {out}: the temperature is for the model's {name} {default}, not for `{name}={value}`. "
                "Leave it out, or change the model first with effnetv2 convert."
            )
    if len(dataset) < MIN_TEMPERATURE_IMAGES:
        raise InputError(
            f"`calibrate` {out}: {split} has {pluralize(len(dataset), 'image')}, but a temperature needs "
            f"{MIN_TEMPERATURE_IMAGES} or more. Give more."
        )


def require_unseen(out: Path, overlap: TrainOverlap, split: str) -> None:
    """Refuse images that trained the model; those of ``train`` did, unless it is known of each that it did not."""
    if overlap.num_trained or (split == "train" and not overlap.none_trained):
        raise InputError(
            f"`calibrate` {out}: images of {split} trained the model, which is more confident on them. Give other "
            "images."
        )


def read_cost_matrix(file: Path, class_names: Sequence[str]) -> ErrorCosts:
    """Costs by true class (rows) and predicted class (columns); ``abstain`` costs an image left to a person."""
    form = f"Give a CSV with a row and a column for each class, and perhaps a column {_ABSTAIN}."
    try:
        table = read_cells(file)
    except (OSError, ValueError) as error:
        raise InputError(f"`costs` {file} is not a CSV ({error}). {form}") from error
    table = table.set_index(table.columns[0])
    has_abstain = _ABSTAIN not in class_names  # else the column is that of the class
    columns = [*class_names, _ABSTAIN] if has_abstain else class_names
    table.index = pd.Index(match_names(table.index.astype(str).str.strip(), class_names))
    table.columns = pd.Index(match_names(table.columns.astype(str).str.strip(), columns))
    for what, names, known in (("row", table.index, class_names), ("column", table.columns, columns)):
        for problem, found in (
            ("is not a class of the model", [name for name in names if name not in known]),
            ("is missing", [name for name in class_names if name not in names]),
            ("is there twice", names[names.duplicated()].tolist()),
        ):
            if found:
                raise InputError(f"`costs` {file}: the {what} '{found[0]}' {problem}. {form}")
    costs = table.apply(pd.to_numeric, errors="coerce")
    invalid = np.argwhere(~(np.isfinite(costs) & (costs >= 0)).to_numpy())
    if len(invalid):
        row, column = invalid[0].tolist()
        raise InputError(
            f"`costs` {file}: the cost of predicting '{table.columns[column]}' for '{table.index[row]}' is "
            f"'{table.iat[row, column]!s}'. Give a number of at least 0, with a decimal point."
        )
    abstain = costs[_ABSTAIN].unique() if has_abstain and _ABSTAIN in costs else []
    if len(abstain) > 1:
        raise InputError(
            f"`costs` {file}: {_ABSTAIN} is {shorten([f'{value:g}' for value in abstain])}, but a person costs the "
            "same for every class. Give one value."
        )
    order = list(class_names)
    return ErrorCosts(costs.loc[order, order].to_numpy(dtype=np.float64), float(abstain[0]) if len(abstain) else None)


def report_folder(out: Path, data: str) -> AbstractContextManager[None]:
    """The folder of the report, made before the work and removed if that fails; ``data`` may lie there."""
    if any((out / name).is_file() for name in RUN_MARKERS):
        raise InputError(f"`output` {out} is the folder of a run, whose own report would be lost. Give another folder.")
    refuse_inside_data(data, out, "`output`")
    refuse_replacing_data(data, out, (*REPORT_FILES, SKIPPED), "`output`")
    if (out / INDEX_NAME).is_file():
        raise InputError(f"`output` {out} is a folder of shards with their own {SKIPPED}. Give another folder.")
    for name, (is_ours, other) in _OURS.items():
        refuse_foreign_file(out / name, f"`output` {out}:", is_ours, f"is {other}")
    note_replaced(out / "report.html")
    return output_dir(out, "`output`")


# Of what is written, how an earlier one of ours is recognized, and what another file is not.
_OURS: dict[str, tuple[Callable[[Path], bool], str]] = {
    PREDICTIONS_CSV: (
        lambda file: {"path", "predicted_label", "true_label"} <= set(csv_columns(file)),
        "no table of an evaluation's predictions",
    ),
    SKIPPED: (is_skipped_csv, "no list of what could not be read"),
    "report.json": (lambda file: b'"evaluated_on"' in file.read_bytes(), "no report of effnetv2"),
    "report.html": (is_page, "no report of effnetv2"),
}
