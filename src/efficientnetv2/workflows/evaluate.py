"""Evaluate a model on labeled images: `efficientnetv2.evaluate`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch

from efficientnetv2.data.config import DataConfig, report_notes
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.records import SPLITS
from efficientnetv2.evaluation.clusters import evaluation_clusters
from efficientnetv2.evaluation.compare import PreviousRun
from efficientnetv2.evaluation.evaluation_result import EvaluationResult, file_hashes, library_versions
from efficientnetv2.evaluation.explain import explain_predictions
from efficientnetv2.evaluation.html import TemplateSection
from efficientnetv2.evaluation.plots import SizeCurve
from efficientnetv2.evaluation.predictions import SKIPPED, load_predictions, write_skipped
from efficientnetv2.evaluation.report_metadata import ReportMetadata
from efficientnetv2.evaluation.report_sections import ReportInputs, ReportOptions, validate_slices
from efficientnetv2.inference.predict import Predictions, require_classes, require_image_channels
from efficientnetv2.models import model_file
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.models.ensemble import member_calibrations
from efficientnetv2.models.memory_profile import infer_shapes
from efficientnetv2.preprocessing import TTA
from efficientnetv2.training.train_overlap import TrainOverlap, find_run, train_overlap
from efficientnetv2.utils.distributed import broadcast_from_main
from efficientnetv2.utils.errors import InputError, did_you_mean
from efficientnetv2.utils.shell import command_line
from efficientnetv2.workflows.arguments import (
    PathLike,
    api,
    choice,
    number,
    path_of,
    path_text,
    refuse_launched,
    source_of,
)
from efficientnetv2.workflows.batch_predict import (
    InferenceOptions,
    PredictionJob,
    log_skipped_count,
    log_unreadable,
    refuse_swapped_arguments,
    run_prediction,
    start_processes,
)
from efficientnetv2.workflows.calibrate import check_calibration, require_unseen, write_calibrated
from efficientnetv2.workflows.cost_matrix import read_cost_matrix
from efficientnetv2.workflows.label_alignment import align_labels
from efficientnetv2.workflows.leakage import unseen_metrics
from efficientnetv2.workflows.report_folder import report_folder
from efficientnetv2.workflows.results import Evaluation
from efficientnetv2.workflows.test_time_augmentation import (
    compare_views,
    parse_sizes,
    remove_unfit_calibration,
    size_curve,
    tta_or_own,
    validate_size,
)

_logger = logging.getLogger(__name__)

_SPLITS = (*SPLITS, "all")

OnResult = Callable[[EvaluationResult, SizeCurve | None], object]


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of ``effnetv2 evaluate`` by their names, besides those of data and ``InferenceOptions``."""

    split: str | None = None
    out: Path | None = None
    image_size: int | None = None
    sizes: str | None = None
    tta: str | None = None
    slices: str | None = None
    costs: Path | None = None
    abstain_below: float | None = None
    calibrate: Path | None = None
    against: Path | None = None


@dataclass(frozen=True, eq=False)
class _Plan:
    """An evaluation whose options were checked: the main process makes it for all."""

    model: str
    data: str
    job: PredictionJob
    split: str
    sizes: tuple[int, ...]
    report: ReportOptions
    options: EvaluateOptions


def evaluate_and_report(
    model: str,
    data: DataConfig,
    options: EvaluateOptions,
    inference: InferenceOptions,
    on_result: OnResult = lambda result, curve: None,
) -> EvaluationResult | None:
    """Evaluate a model and write its report, by one process or several.

    ``on_result`` is called before the report is written, so that a full disk loses no metrics. Other processes than
    the main one return None.

    Raises:
        InputError: An option, a file or an image that the caller can fix.
    """
    with start_processes(inference) as runtime, ExitStack() as stack:
        if options.out is not None and runtime.world.is_main_process:
            stack.enter_context(report_folder(options.out, data.data))
        plan = broadcast_from_main(
            runtime.world, lambda: _plan(model, data, options, strict=inference.strict)
        )
        job, own = plan.job, plan.job.network.preprocessing
        by_size = {}
        for px in dict.fromkeys((job.preprocessing.image_size, *plan.sizes)):
            sized = replace(job, preprocessing=replace(job.preprocessing, image_size=px))
            by_size[px] = run_prediction(sized, runtime, f"evaluating at {px} px")
        single_view = None
        # A single view more beside eight is cheap; eight more beside one would be most of the work.
        if job.preprocessing.tta != own.tta == "none" and job.dataset.separator is None:
            single = replace(job, preprocessing=replace(job.preprocessing, tta=own.tta))
            single_view, _ = run_prediction(single, runtime, "evaluating with its own view")
        return _report(plan, by_size, single_view, on_result) if runtime.world.is_main_process else None


def _plan(model: str, data: DataConfig, options: EvaluateOptions, *, strict: bool) -> _Plan:
    """Check the options, and load the model and the dataset."""
    sizes = () if options.sizes is None else parse_sizes(options.sizes)
    refuse_swapped_arguments(model, data.data, "evaluate")
    network = model_file.load(model)
    own = network.preprocessing
    px = own.image_size if options.image_size is None else validate_size(options.image_size, "--image-size")
    preprocessing = replace(own, image_size=px, tta=tta_or_own(options.tta, own.tta))
    require_classes(network, model)
    require_image_channels(network, model)
    if network.answer == "sigmoid" and data.label_separator is None:
        raise InputError(
            f"{model} predicts each class independently (sigmoid), and is compared with all labels of an image. Give "
            "the text between these in the label column, even if each image has a single label: --label-separator ';'."
        )
    dataset, split = _select_split(data.read(for_training=False), options.split)
    dataset = replace(dataset, bands=own.bands)
    dataset = align_labels(dataset, network.class_names, model, merge=data.labels == "casefold")
    if sizes and dataset.separator is not None:
        raise InputError("--eval-sizes is for images with one label, but these have several. Leave it out.")
    for size in sorted({px, *sizes} - {own.image_size}):
        infer_shapes(network, in_channels=network.in_channels, image_size=size)
    report = _report_options(options, dataset, network.class_names)
    if options.calibrate is not None:
        check_calibration(options.calibrate, network, dataset, split, preprocessing)
        # Checked again at the end, for the images that could be read.
        require_unseen(options.calibrate, train_overlap(Path(model), network.trained_on, dataset), split)
    remove_unfit_calibration(network, preprocessing)
    job = PredictionJob(network, dataset, report_notes(dataset, strict=strict), preprocessing)
    return _Plan(model, data.data, job, split, sizes, report, options)


def _select_split(dataset: ImageDataset, split: str | None) -> tuple[ImageDataset, str]:
    if split is None:
        split = next((name for name in ("test", "val") if (dataset.split == name).any()), "all")
    if split not in _SPLITS:
        raise InputError(
            f"--split: invalid value '{split}' (choose from {', '.join(_SPLITS)}){did_you_mean(split, _SPLITS)}"
        )
    return (dataset, "all pictures") if split == "all" else (dataset.subset(split), split)


def _report_options(
    options: EvaluateOptions, dataset: ImageDataset, class_names: Sequence[str]
) -> ReportOptions:
    single_label = {
        "--costs": options.costs, "--baseline": options.against, "--calibrate": options.calibrate,
    }  # fmt: skip
    option = next((name for name, value in single_label.items() if value is not None), None)
    if dataset.separator is not None and option is not None:
        raise InputError(f"{option} is for images with one label, but these have several. Leave it out.")
    slices: tuple[str, ...] | None = None
    if options.slices is not None:
        slices = () if options.slices == "none" else tuple(map(str.strip, options.slices.split(",")))
    if slices:
        validate_slices(dataset, slices)
    against = options.against
    return ReportOptions(
        slices,
        None if options.costs is None else read_cost_matrix(options.costs, class_names),
        options.abstain_below,
        None if against is None else PreviousRun.named(against, load_predictions(against), dataset),
    )


def _report(
    plan: _Plan,
    by_size: Mapping[int, tuple[Predictions, float]],
    single_view: Predictions | None,
    on_result: OnResult,
) -> EvaluationResult:
    """Compute the metrics and write the report."""
    job, out = plan.job, plan.options.out
    network, preprocessing = job.network, job.preprocessing
    predictions, seconds = by_size[preprocessing.image_size]
    evaluated = job.dataset.select(predictions.samples)
    overlap = _overlap(plan, evaluated)
    clusters = evaluation_clusters(find_run(Path(plan.model)), evaluated)
    metadata = _metadata(plan, overlap, predictions, seconds)
    curve = None
    if plan.sizes:
        all_seen = (overlap.pictures or 0) + overlap.chose == len(evaluated)
        may_choose = metadata.on_training_split or plan.split == "minival" or all_seen
        curve = size_curve(by_size, plan.sizes, network, may_choose=may_choose)
    view_gain = compare_views(predictions, single_view, job.dataset, network.class_names, clusters)
    unseen = None
    if metadata.selected_on is None:
        unseen = unseen_metrics(predictions, overlap, network.class_names, clusters)
    log_unreadable(job, predictions.unreadable)
    sections: tuple[TemplateSection, ...] = ()
    if out is not None:
        seen_as = replace(network.preprocessing, image_size=preprocessing.image_size)
        sections = explain_predictions(network, predictions, job.dataset, network.class_names, seen_as)
    known = ReportInputs(
        network.calibration,
        member_calibrations(network),
        tta=view_gain,
        unseen=None if unseen is None else unseen.sentence,
        whole=clusters,
        sections=sections,
    )
    others = {
        "image_size": preprocessing.image_size,
        "sizes": None if curve is None else curve.to_json(),
        "views_compared": None if view_gain is None else asdict(view_gain),
        "unseen": None if unseen is None else unseen.values,
    }
    others = {name: value for name, value in others.items() if value is not None}
    metadata = replace(metadata, tta=preprocessing.tta, extra=others)
    result = EvaluationResult(
        predictions, job.dataset, network.class_names, metadata, wanted=plan.report, known=known
    )
    on_result(result, curve)
    if out is not None:
        write_skipped(out / SKIPPED, [(job.dataset.paths[row], why) for row, why in predictions.unreadable])
        result.write(out, sizes=curve)
    if not metadata.optimistic:  # otherwise the summary has said it
        for note in metadata.notes:
            _logger.info(note)
    log_skipped_count(job, predictions.unreadable, None if out is None else out / SKIPPED)
    if out is not None:
        _logger.info(f"Report: {out / 'report.html'}")
    if plan.options.calibrate is not None:
        write_calibrated(plan.options.calibrate, network, predictions, overlap, plan.split)
    return result


def _overlap(plan: _Plan, evaluated: ImageDataset) -> TrainOverlap:
    """Overlap with the training images; a storage that fails by now loses no predictions."""
    try:
        return train_overlap(Path(plan.model), plan.job.network.trained_on, evaluated)
    except InputError as error:
        _logger.info(f"Whether these images trained the model is not known: {error}")
        return TrainOverlap(None, exact=False, of=len(evaluated))


def _metadata(plan: _Plan, overlap: TrainOverlap, predictions: Predictions, seconds: float) -> ReportMetadata:
    network, split = plan.job.network, plan.split
    recipe, metrics = network.recipe, network.metrics
    # Metrics of a training split are called optimistic anyway.
    note = None if overlap.pictures is None and split in ("train", "minival") else overlap.note
    selected = split == metrics.get("selected_on")  # by name, not by contents
    notes = (
        note,
        "These images chose its weights." if selected else overlap.choosing,
        _calibration_note(network, split, overlap),
    )
    return ReportMetadata(
        data=plan.data,
        evaluated_on=split,
        selected_on=split if selected else None,
        num_eval_images_used_for_selection=overlap.chose,
        num_eval_images_seen_in_training=overlap.pictures if overlap.pictures or overlap.none else None,
        notes=[note for note in notes if note],
        model=plan.model,
        command=command_line(),
        versions=library_versions(),
        recipe=recipe or None,
        seed=recipe.get("seed"),
        epochs=_trained_epochs(network),
        wall_s=round(seconds, 2),
        images_per_s=round(len(predictions.samples) / seconds, 1),
        num_skipped=len(predictions.unreadable),
        sha256=file_hashes(Path(plan.model), Path(plan.model) / model_file.NAME),
    )


def _trained_epochs(network: Network) -> float | None:
    """Those planned, for a file of an older version; None if its training stopped early."""
    metrics = network.metrics
    epochs = metrics.get("epochs", None if metrics.get("stopped_early") else network.recipe.get("epochs"))
    return epochs if isinstance(epochs, (int, float)) else None


def _calibration_note(network: Network, split: str, overlap: TrainOverlap) -> str | None:
    """A sentence if the temperature was fitted on some of these images, or on a split of this name."""
    members = member_calibrations(network)
    temperature = "A temperature of its members" if members else "Its temperature"
    fitted_on = {each.fitted_on for each in (network.calibration, *members) if each is not None}
    if overlap.chose > overlap.chose_before and "minival" in fitted_on:
        return f"{temperature} was fitted on those of minival: the calibration error is optimistic."
    if split in fitted_on:
        return (
            f"{temperature} was fitted on {split}: if on these images, the calibration error is optimistic."
        )
    return None


@api
def evaluate(
    model: PathLike,
    data: PathLike,
    *,
    split: Literal["train", "minival", "val", "test", "all"] | None = None,
    output: PathLike | None = None,
    image_size: int | None = None,
    sizes: Sequence[int] = (),
    tta: TTA | None = None,
    slices: Sequence[str] | None = None,
    costs: PathLike | None = None,
    abstain_below: float | None = None,
    calibrate: PathLike | None = None,
    baseline: PathLike | None = None,
    device: str | torch.device = "auto",
    workers: int | None = None,
    strict: bool = False,
    path_column: str = "path",
    label_column: str = "label",
    group_column: str | None = None,
    labels: Literal["exact", "casefold"] = "exact",
    label_separator: str | None = None,
    layout: Literal["auto", "classes", "splits"] = "auto",
) -> Evaluation:
    """Evaluate a model on labeled images that it was not trained on.

    Example::

        import efficientnetv2 as ev2

        result = ev2.evaluate("runs/mine", "test/", output="evaluation/")
        low, high = result.intervals["top1"]
        print(result.metrics["top1"], low, high, result.report_path)

    Args:
        model: A run, a cross-validation, or the path of one or of a model file.
        data: Labeled dataset, see `train`.
        split: Part of the dataset. None takes "test" where there is one, else "val", else all of it.
        output: Folder for the report and the predictions. None writes neither.
        image_size: Image size in pixels. None takes that of the model.
        sizes: Further image sizes to compare.
        tta: Test-time augmentation: "none", or "d4" for all eight flips and rotations. None takes that of the model.
        slices: Columns of the dataset to report metrics by. None takes those with few values or numbers, () none.
        costs: CSV with the cost of each mistake: a row per true class, a column per predicted class.
        abstain_below: Probability below which an image is left to a person.
        calibrate: Model file to write, its temperature fitted on these images.
        baseline: A run, or the folder of another evaluation, to compare with on the same images.
        device: Device to compute on, see `train`.
        workers: Processes that read images, see `train`.
        strict: Stop at the first unreadable image instead of skipping it.
        path_column: Column of a table with the path of the image.
        label_column: Column of a table with the label.
        group_column: Column whose equal values are drawn as a whole by intervals. None takes "group", if there is one.
        labels: "casefold" merges labels that differ only by case, surrounding spaces or Unicode encoding.
        label_separator: Text between the labels of an image that has several.
        layout: Meaning of the sub-folders of ``data``: "auto", "classes" or "splits".

    Raises:
        InputError: An argument, a file or an image that the caller can fix.
    """
    refuse_launched("evaluate")
    table = {
        "path_column": path_column, "label_column": label_column, "group_column": group_column, "labels": labels,
        "label_separator": label_separator, "layout": layout,
    }  # fmt: skip
    folder = path_of("output", output)
    options = EvaluateOptions(
        split=split,
        out=folder,
        image_size=number("image_size", image_size, 1),
        sizes=",".join(map(str, sizes)) or None,
        tta=choice("tta", tta, get_args(TTA)),
        slices=None if slices is None else ",".join(slices) or "none",
        costs=path_of("costs", costs),
        abstain_below=number("abstain_below", abstain_below, 0, 1, whole=False),
        calibrate=path_of("calibrate", calibrate),
        against=path_of("baseline", baseline),
    )
    inference = InferenceOptions(str(device), number("workers", workers, 0), strict)
    result = evaluate_and_report(path_text("model", model), source_of(data, table), options, inference)
    assert result is not None, "this is the only process"
    return Evaluation(folder, result.to_json(), result.table())
