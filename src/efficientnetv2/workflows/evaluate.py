"""Evaluate a model on labeled images: `efficientnetv2.evaluate`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError

from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.evaluation.bootstrap_clusters import Clusters, evaluation_clusters, root_of
from efficientnetv2.evaluation.evaluation_result import EvaluationResult, file_hashes, library_versions
from efficientnetv2.evaluation.explain import explain_predictions
from efficientnetv2.evaluation.html import TemplateSection
from efficientnetv2.evaluation.predictions import SKIPPED, compare_predictions, write_skipped
from efficientnetv2.evaluation.report_metadata import ReportMetadata
from efficientnetv2.evaluation.report_sections import ReportInputs, predictions_frame
from efficientnetv2.evaluation.training_plots import SizeCurve
from efficientnetv2.inference.predict import Engine, Predictions
from efficientnetv2.metrics.calibration import fit_temperature
from efficientnetv2.metrics.classification import size_metrics
from efficientnetv2.metrics.metric_intervals import metric_intervals
from efficientnetv2.metrics.multilabel import MACRO_METRICS, compute_metrics, macro_metric
from efficientnetv2.metrics.subgroups import SMALL_SLICE
from efficientnetv2.models import model_file
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.models.ensemble import Ensemble, member_calibrations
from efficientnetv2.models.provenance import Calibration
from efficientnetv2.preprocessing import TTA
from efficientnetv2.progressive.schedule import ProgressiveSchedule
from efficientnetv2.training.seen_images import TrainOverlap, find_run, train_overlap
from efficientnetv2.utils.distributed import broadcast_from_main
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.random_key import Key
from efficientnetv2.utils.shell import command_line
from efficientnetv2.workflows.arguments import PathLike, api, choice, number, path_of, path_text, source_of
from efficientnetv2.workflows.batch_predict import (
    InferenceOptions,
    engine_of,
    how_to_calibrate,
    log_skipped_count,
    log_unreadable,
    run_prediction,
    start_processes,
)
from efficientnetv2.workflows.evaluate_options import (
    EvaluateOptions,
    ResolvedEvaluation,
    report_folder,
    require_unseen,
    resolve_evaluation,
)
from efficientnetv2.workflows.results import Evaluation

_logger = logging.getLogger(__name__)

OnResult = Callable[[EvaluationResult, SizeCurve | None], object]


def evaluate_and_report(
    model: str,
    data: DataConfig,
    options: EvaluateOptions,
    inference: InferenceOptions,
    on_result: OnResult = lambda result, curve: None,
) -> EvaluationResult | None:
    """Evaluate a model and write its report, by one process or several, of which only the main one returns a result.

    ``on_result`` is called before the report is written, so that a full disk loses no metrics.
    """
    with start_processes(inference) as runtime, ExitStack() as stack:
        if options.out is not None and runtime.world.is_main_process:
            stack.enter_context(report_folder(options.out, data.data))
        evaluation = broadcast_from_main(
            runtime.world, lambda: resolve_evaluation(model, data, options, strict=inference.strict)
        )
        job, own_tta = evaluation.job, evaluation.job.network.preprocessing.tta
        by_size = {}
        for px in dict.fromkeys((job.preprocessing.image_size, *evaluation.sizes)):
            sized = replace(job, preprocessing=replace(job.preprocessing, image_size=px))
            by_size[px] = run_prediction(sized, runtime, f"evaluating at {px} px")
        single_view = None
        # One more view after eight is cheap; eight more after one would be most of the work.
        if job.preprocessing.tta != own_tta == "none" and job.dataset.separator is None:
            single = replace(job, preprocessing=replace(job.preprocessing, tta=own_tta))
            single_view, _ = run_prediction(single, runtime, "evaluating with its own view")
        return _report(evaluation, by_size, single_view, on_result) if runtime.world.is_main_process else None


def _report(
    evaluation: ResolvedEvaluation,
    by_size: Mapping[int, tuple[Predictions, float]],
    single_view: Predictions | None,
    on_result: OnResult,
) -> EvaluationResult:
    """Compute the metrics and write the report."""
    job, out = evaluation.job, evaluation.options.out
    predictions, seconds = by_size[job.preprocessing.image_size]
    evaluated = job.dataset.select(predictions.samples)
    overlap = _overlap(evaluation, evaluated)
    clusters = evaluation_clusters(find_run(Path(evaluation.model)), evaluated)
    metadata = _metadata(evaluation, overlap, predictions, seconds)
    curve = None
    if evaluation.sizes:
        all_seen = (overlap.num_trained or 0) + overlap.num_selected == len(evaluated)
        may_choose = metadata.on_training_split or evaluation.split == "minival" or all_seen
        curve = _size_curve(by_size, evaluation, may_choose=may_choose)
    log_unreadable(job, predictions.unreadable)
    result = _result(evaluation, predictions, single_view, overlap, clusters, metadata, curve)
    on_result(result, curve)
    if out is not None:
        try:  # either may be open elsewhere
            result.write(out, sizes=curve)
        finally:
            write_skipped(out / SKIPPED, [(job.dataset.paths[row], why) for row, why in predictions.unreadable])
    if not metadata.optimistic:  # otherwise the summary has it
        for note in metadata.notes:
            _logger.info(note)
    log_skipped_count(job, predictions.unreadable, None if out is None else out / SKIPPED)
    if out is not None:
        _logger.info(f"Report: {out / 'report.html'}")
    if evaluation.options.calibrate is not None:
        _write_calibrated(evaluation.options.calibrate, job.network, predictions, overlap, evaluation.split)
    return result


def _result(
    evaluation: ResolvedEvaluation,
    predictions: Predictions,
    single_view: Predictions | None,
    overlap: TrainOverlap,
    clusters: Clusters | None,
    metadata: ReportMetadata,
    curve: SizeCurve | None,
) -> EvaluationResult:
    network, dataset, names = (evaluation.job.network, evaluation.job.dataset, evaluation.job.network.class_names)
    preprocessing = evaluation.job.preprocessing
    view_gain = None
    if single_view is not None:
        first, second = (predictions_frame(each, dataset, names) for each in (predictions, single_view))
        by_path = None if clusters is None else clusters.by_path(list(first.index))
        view_gain = compare_predictions(first, second, clusters=by_path)
    unseen = unseen_metrics(predictions, overlap, names, clusters) if metadata.selected_on is None else None
    unseen_sentence, unseen_values = unseen or (None, None)
    sections: tuple[TemplateSection, ...] = ()
    if evaluation.options.out is not None:
        seen_as = replace(network.preprocessing, image_size=preprocessing.image_size)
        sections = explain_predictions(network, predictions, dataset, names, seen_as)
    how_to_scale, own = None, network.preprocessing
    if (preprocessing.image_size, preprocessing.tta) != (own.image_size, own.tta):
        how_to_scale = how_to_calibrate(preprocessing)
        if isinstance(network, Ensemble):
            px, tta = preprocessing.image_size, preprocessing.tta
            how_to_scale = f"train its models with `--set minival=0.1 --set eval_image_size={px} --set tta={tta}`"
    inputs = ReportInputs(
        network.calibration,
        member_calibrations(network),
        how_to_scale,
        tta=view_gain,
        unseen=unseen_sentence,
        clusters=clusters,
        sections=sections,
    )
    others = {
        "data_root": root_of(dataset),
        "image_size": preprocessing.image_size,
        "sizes": None if curve is None else [asdict(point) for point in curve.points],
        "tta_comparison": None if view_gain is None else asdict(view_gain),
        "unseen": unseen_values,
    }
    others = {name: value for name, value in others.items() if value is not None}
    metadata = replace(metadata, tta=preprocessing.tta, extra=others)
    return EvaluationResult(predictions, dataset, names, metadata, options=evaluation.report, inputs=inputs)


def _size_curve(
    by_size: Mapping[int, tuple[Predictions, float]], evaluation: ResolvedEvaluation, *, may_choose: bool
) -> SizeCurve:
    """Metrics at each size. ``may_choose``: the images trained or selected the model, and may choose its size too."""
    network = evaluation.job.network
    trained_px = None
    with suppress(ValidationError):  # of another project, or without a recipe
        schedule = TypeAdapter(ProgressiveSchedule).validate_python(network.recipe.get("progressive"))
        trained_px = schedule.last.image_size
    points = tuple(
        size_metrics(px, found.labels, found.probabilities, network.class_names, seconds)
        for px, (found, seconds) in sorted(by_size.items())
    )
    role: Literal["may select", "shown"] = "may select" if may_choose else "shown"
    own_px, is_ensemble = network.preprocessing.image_size, isinstance(network, Ensemble)
    return SizeCurve(points, own_px, trained_px, role, is_ensemble)


def _overlap(evaluation: ResolvedEvaluation, evaluated: ImageDataset) -> TrainOverlap:
    """Overlap with the training images; a storage that fails by now loses no predictions."""
    try:
        return train_overlap(Path(evaluation.model), evaluation.job.network.trained_on, evaluated)
    except InputError as error:
        _logger.info(f"Whether these images trained the model is not known: {error}")
        return TrainOverlap(None, exact=False, num_images=len(evaluated))


def _metadata(
    evaluation: ResolvedEvaluation, overlap: TrainOverlap, predictions: Predictions, seconds: float
) -> ReportMetadata:
    network, split = evaluation.job.network, evaluation.split
    recipe, metrics = network.recipe, network.metrics
    # Metrics of a training split are called optimistic anyway.
    note = None if overlap.num_trained is None and split in ("train", "minival") else overlap.training_note
    # By name where the contents are not known.
    all_compared = overlap.unseen is not None and not overlap.num_selected
    selected = split == metrics.get("selected_on") and not all_compared
    notes = (
        note,
        "These images chose its weights." if selected else overlap.selection_note,
        _calibration_note(network, split, overlap),
    )
    # Those planned, for a file of an older version; None if its training stopped early.
    epochs = metrics.get("epochs", None if metrics.get("stopped_early") else recipe.get("epochs"))
    return ReportMetadata(
        data=evaluation.data,
        evaluated_on=split,
        selected_on=split if selected else None,
        num_eval_images_used_for_selection=overlap.num_selected,
        num_eval_images_seen_in_training=overlap.num_trained if overlap.num_trained or overlap.none_trained else None,
        notes=[note for note in notes if note],
        model=evaluation.model,
        command=command_line(),
        versions=library_versions(),
        recipe=recipe or None,
        seed=recipe.get("seed"),
        epochs=epochs if isinstance(epochs, (int, float)) else None,
        wall_s=round(seconds, 2),
        images_per_s=round(len(predictions.samples) / seconds, 1),
        num_skipped=len(predictions.unreadable),
        sha256=file_hashes(Path(evaluation.model), Path(evaluation.model) / model_file.NAME),
    )


def _calibration_note(network: Network, split: str, overlap: TrainOverlap) -> str | None:
    """A sentence if the temperature was fitted on some of these images, or on a split of this name."""
    members = member_calibrations(network)
    temperature = "A temperature of its members" if members else "Its temperature"
    fitted_on = {each.fitted_on for each in (network.calibration, *members) if each is not None}
    if overlap.num_selected > overlap.num_selected_before and "minival" in fitted_on:
        return f"{temperature} was fitted on those of minival: the calibration error is optimistic."
    if split in fitted_on:
        return f"{temperature} was fitted on {split}: if on these images, the calibration error is optimistic."
    return None


def unseen_metrics(
    predictions: Predictions, overlap: TrainOverlap, class_names: Sequence[str], clusters: Clusters | None = None
) -> tuple[str, dict[str, Any]] | None:
    """Metrics of the images that neither trained nor selected the model (every member), as a sentence and plain values.

    None if these are all, none, unknown, or fewer than 30.
    """
    rows = overlap.unseen
    if rows is None or not SMALL_SLICE <= len(rows) < overlap.num_images:
        return None
    labels, probabilities = predictions.labels[rows], predictions.probabilities[rows]
    metrics = compute_metrics(labels, probabilities, class_names, predictions.activation)
    ids = None if clusters is None else clusters.clusters[rows]
    found = metric_intervals(metrics, labels, probabilities, clusters=ids, key=Key.of(0).fold("unseen"))
    name, mean = macro_metric(metrics)
    values = {"top1": metrics.top1, name: mean}
    intervals = {metric: found[metric] for metric in values if metric in found}

    def text(metric: str) -> str:
        ends = intervals.get(metric)
        return f"{values[metric]:.1%}" + ("" if ends is None else f" ({ends[0]:.1%} to {ends[1]:.1%})")

    which = "neither trained nor chose it" if overlap.num_selected else "did not train it"
    return (
        f"On the {len(rows):,} of these {overlap.num_images:,} images that {which}: top-1 {text('top1')}, "
        f"{MACRO_METRICS[name]} {text(name)}; 95 % intervals.",
        {"num_images": len(rows), **values, "intervals": intervals},
    )


def _write_calibrated(out: Path, network: Network, predictions: Predictions, overlap: TrainOverlap, split: str) -> None:
    """Write the model with a temperature fitted on these predictions, in which its own temperature is included."""
    require_unseen(out, overlap, split)
    before = 1.0 if network.calibration is None else network.calibration.temperature
    temperature = before * fit_temperature(predictions.labels, predictions.logits.numpy())
    network.calibration = Calibration(temperature, len(predictions.labels), split)
    model_file.save(out, network)
    _logger.info(
        f"Written to {out}: the same model with temperature {temperature:.3g}, fitted on these "
        f"{len(predictions.labels)} images. Evaluate its calibration on others."
    )


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
    engine: Engine = "auto",
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
        model: A run, a cross-validation, the path of one or of a model file, or a name of pretrained weights.
        data: Labeled dataset, see `train`.
        split: Part of the dataset. None takes "test" where there is one, else "val", else all of it.
        output: Folder for the report and the predictions. None writes neither.
        image_size: Image size in pixels. None takes that of the model.
        sizes: Further image sizes to compare.
        tta: Test-time augmentation: "none", or "d4" for all eight flips and rotations. None takes that of the model.
        slices: Columns of the dataset to report metrics by. None takes those with few values or numbers, () none.
        costs: CSV with the cost of each mistake: a row per true class, a column per predicted class.
        abstain_below: Probability below which the model abstains.
        calibrate: Model file to write, its temperature fitted on these images.
        baseline: A run, or the folder of another evaluation, to compare with on the same images.
        engine: What computes: "torch", "onnxruntime", "openvino", "openvino-bf16" (extras), or "auto": for
            5,000 images or more on a CPU, the fastest installed one that agrees with PyTorch.
        device, workers, strict, path_column, label_column, labels, label_separator, layout: See `train`.
        group_column: Column whose equal values intervals draw together. None takes "group", if there is one.

    Raises:
        InputError: An argument, a file or an image that the caller can fix.
    """
    table = {
        "path_column": path_column, "label_column": label_column, "group_column": group_column, "labels": labels,
        "label_separator": label_separator, "layout": layout,
    }  # fmt: skip
    options = EvaluateOptions(
        split=split,
        out=path_of("output", output),
        image_size=number("image_size", image_size, 1),
        sizes=",".join(map(str, np.atleast_1d(() if sizes is None else sizes).tolist())) or None,
        tta=choice("tta", tta, get_args(TTA)),
        slices=None if slices is None else ",".join([slices] if isinstance(slices, str) else slices) or "none",
        costs=path_of("costs", costs),
        abstain_below=number("abstain_below", abstain_below, 0, 1, whole=False),
        calibrate=path_of("calibrate", calibrate),
        baseline=path_of("baseline", baseline),
    )
    inference = InferenceOptions(str(device), number("workers", workers, 0), strict, engine_of(engine))
    result = evaluate_and_report(path_text("model", model), source_of(data, table), options, inference)
    assert result is not None, "this is the only process"
    return Evaluation(options.out, result.to_json(), result.table())
