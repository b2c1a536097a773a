"""Evaluate a model on labeled images: `efficientnetv2.evaluate`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from efficientnetv2.data.config import DataConfig, report_notes
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.records import SPLITS
from efficientnetv2.evaluation.clusters import evaluation_clusters
from efficientnetv2.evaluation.plots import SizeCurve
from efficientnetv2.evaluation.predictions import PairedDifference
from efficientnetv2.evaluation.report_metadata import ReportMetadata
from efficientnetv2.inference.predict import Predictions, require_classes, require_image_channels
from efficientnetv2.models import model_file
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.models.ensemble import member_calibrations
from efficientnetv2.models.memory_profile import infer_shapes
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.utils.device import workers_for
from efficientnetv2.utils.distributed import broadcast_from_main, process_group, world_from_env
from efficientnetv2.utils.errors import InputError, did_you_mean
from efficientnetv2.utils.logs import silenced
from efficientnetv2.utils.shell import command_line
from efficientnetv2.workflows.arguments import (
    TTA,
    PathLike,
    api,
    number,
    path_of,
    path_text,
    refuse_launched,
    source_of,
    views_of,
)
from efficientnetv2.workflows.batch_predict import (
    SKIPPED,
    PredictionJob,
    device_for_rank,
    log_unreadable,
    refuse_swapped_arguments,
    run_prediction,
    skipped_summary,
    write_skipped,
)
from efficientnetv2.workflows.evaluate_options import (
    EvaluateOptions,
    check_calibration,
    require_unseen,
    write_calibrated,
)
from efficientnetv2.workflows.evaluation_result import EvaluationResult, file_hashes, library_versions
from efficientnetv2.workflows.explain import explain_predictions
from efficientnetv2.workflows.label_alignment import align_labels
from efficientnetv2.workflows.leakage import (
    TrainOverlap,
    UnseenMetrics,
    find_run,
    train_overlap,
    unseen_metrics,
)
from efficientnetv2.workflows.report_folder import report_folder
from efficientnetv2.workflows.report_sections import Known, Wanted
from efficientnetv2.workflows.results import Evaluation
from efficientnetv2.workflows.test_time_augmentation import (
    for_own_views,
    one_size,
    over_own,
    several_sizes,
    size_curve,
    views_asked,
)

_logger = logging.getLogger(__name__)

_SPLITS = (*SPLITS, "all")


def evaluate_and_report(
    model: str,
    source: DataConfig,
    *,
    split: str | None,
    out: Path | None,
    device: str,
    workers: int | None,
    strict: bool,
    image_px: int | None = None,
    sizes: str | None = None,
    views: str | None = None,
    asking: EvaluateOptions = EvaluateOptions(),  # noqa: B008 - frozen
    on_result: Callable[[EvaluationResult, SizeCurve | None], None] = lambda outcome, sizes: None,
) -> EvaluationResult | None:
    """Evaluate a model and report, alone or as one of many processes.

    Args:
        model: a model file or run folder.
        source: of the pictures.
        split: of them; None takes the one that is meant for it.
        out: folder for the report; None writes none.
        device: as ``--device`` says it.
        workers: processes that read pictures; None chooses by the machine.
        strict: refuse the first unreadable picture.
        image_px: at which the pictures are seen; None is as the model file says.
        sizes: further ones, to compare, as ``--sizes`` gives them; None compares none.
        views: how each is looked at, as ``--views`` says it; None is as the model file says.
        asking: what else is asked.
        on_result: gets the metrics before the report is written: a full disk loses none.

    Returns:
        The metrics and predictions; None on every process but the first.

    Raises:
        InputError: anything a user can mend.
    """
    world, outcome = world_from_env(), None
    with process_group(world, mend="Run it again."), ExitStack() as kept:
        if not world.is_main_process:
            kept.enter_context(silenced())
        if out is not None and world.is_main_process:
            kept.enter_context(report_folder(out, source.data))
        on = device_for_rank(device, world)
        readers = workers_for(workers, on, sharing=world.local_size)
        asked, name, looking, compared, wanted = broadcast_from_main(
            world, lambda: _asked(model, source, split, strict, image_px, sizes, views, asking)
        )
        answers_at = partial(run_prediction, asked, device=on, workers=readers, strict=strict, world=world)
        px, own = looking.image_px, asked.network.preprocessing.views
        answers = {
            size: answers_at(f"evaluating at {size} px", preprocessing=replace(looking, image_px=size))
            for size in dict.fromkeys((px, *compared))
        }
        # One look more beside eight; eight beside one would be most of the work.
        beside = None
        if looking.views != own == "one" and asked.dataset.separator is None:
            beside, _ = answers_at("evaluating with its own view", preprocessing=replace(looking, views=own))
        if world.is_main_process:
            predictions, seconds = answers[px]
            looked_at = asked.dataset.select(predictions.samples)
            known = _known(model, asked.network, looked_at)
            whole = evaluation_clusters(find_run(Path(model)), looked_at)
            facts = _facts(model, source, asked, name, known, predictions, seconds)
            chosen_by = (known.pictures or 0) + known.chose == len(looked_at)
            may_choose = facts.on_training_split or name == "minival" or chosen_by
            curve = size_curve(answers, compared, asked.network, may_choose=may_choose) if compared else None
            gained = over_own(predictions, beside, asked.dataset, asked.network.class_names, whole)
            fresh = (
                unseen_metrics(predictions, known, asked.network.class_names, whole)
                if _chose(asked, name) is None
                else None
            )
            facts = replace(facts, views=looking.views, others=_others(px, curve, gained, fresh))
            there = Known(
                asked.network.calibration,
                member_calibrations(asked.network),
                views=gained,
                unseen=None if fresh is None else fresh.words,
                whole=whole,
            )
            outcome = _report(asked, predictions, facts, wanted, there, curve, out, on_result)
            if asking.calibrate is not None:
                write_calibrated(asking.calibrate, asked.network, predictions, known, name)
        return outcome


def _asked(
    model: str,
    source: DataConfig,
    split: str | None,
    strict: bool,
    image_px: int | None,
    sizes: str | None,
    views: str | None,
    asking: EvaluateOptions,
) -> tuple[PredictionJob, str, Preprocessing, tuple[int, ...], Wanted]:
    """The network, the pictures for it, their name, how they are seen, at which sizes, and what else is asked."""
    compared = () if sizes is None else several_sizes(sizes)
    refuse_swapped_arguments(model, source.data, "evaluate")
    network = model_file.load(model)
    own = network.preprocessing
    px = own.image_px if image_px is None else one_size(image_px, "--image-px")
    looking = replace(own, image_px=px, views=views_asked(views, own.views))
    require_classes(network, model)
    require_image_channels(network, model)
    if network.answer == "sigmoid" and source.label_separator is None:
        raise InputError(
            f"{model} answers each class by itself (sigmoid), maybe several or none, and is compared with all labels "
            "of a picture. Say what stands between these in the label column, even where each has one, as "
            "--label-separator ';'."
        )
    part, name = _part(source.read(for_training=False), split)
    part = replace(part, bands=network.preprocessing.bands)
    part = align_labels(part, network.class_names, model, merge=source.labels == "casefold")
    if compared and part.separator is not None:
        raise InputError(
            "--sizes compares answers of one label, but these pictures have several. Leave it out."
        )
    for size in sorted({px, *compared} - {own.image_px}):  # of its own size it has answered many
        infer_shapes(network, in_channels=network.in_channels, image_px=size)
    wanted = asking.wanted(part, network.class_names)
    if asking.calibrate is not None:
        check_calibration(asking.calibrate, network, part, name, looking)
        # Before hours of answers; the report asks again, of the pictures that could be read.
        require_unseen(asking.calibrate, train_overlap(Path(model), network.trained_on, part), name)
    for_own_views(network, looking)
    asked = PredictionJob(network, part, report_notes(part, strict=strict))
    return asked, name, looking, compared, wanted


def _known(model: str, network: Network, looked_at: ImageDataset) -> TrainOverlap:
    """Whether the pictures trained the model: to find out is no reason to lose their answers."""
    try:
        return train_overlap(Path(model), network.trained_on, looked_at)
    except InputError as error:
        _logger.info(f"What is in the pictures can't be looked up any more: {error}")
        return TrainOverlap(None, exact=False, of=len(looked_at))


def _facts(
    model: str,
    source: DataConfig,
    asked: PredictionJob,
    name: str,
    known: TrainOverlap,
    predictions: Predictions,
    seconds: float,
) -> ReportMetadata:
    recipe = asked.network.recipe
    # Of a training split of which nothing is known there is nothing to ask: its figures are called optimistic.
    note = None if known.pictures is None and name in ("train", "minival") else known.note
    chose = _chose(asked, name)
    notes = [note, chose or known.choosing, _fitted(asked, name, some_chose=known.chose > known.chose_before)]
    return ReportMetadata(
        data=source.data,
        evaluated_on=name,
        selected_on=name if chose else None,
        chose=known.chose,
        trained_on=known.pictures if known.pictures or known.none else None,
        notes=[one for one in notes if one],
        model=model,
        command=command_line(),
        versions=library_versions(),
        recipe=recipe or None,
        seed=recipe.get("seed"),
        epochs=_epochs(asked.network),
        wall_s=round(seconds, 2),
        images_per_s=round(len(predictions.samples) / seconds, 1),
        skipped=len(predictions.unreadable),
        hashes=file_hashes(Path(model), Path(model) / model_file.NAME),
    )


def _epochs(network: Network) -> float | None:
    """That trained the network, as far as its file says: the recipe knows only how many were planned."""
    planned = None if network.metrics.get("stopped_early") else network.recipe.get("epochs")
    epochs = network.metrics.get("epochs", planned)
    return epochs if isinstance(epochs, (int, float)) else None


def _chose(asked: PredictionJob, name: str) -> str | None:
    """A sentence where the pictures chose the weights; known by what they are called alone, not by their contents."""
    return "These pictures chose its weights." if name == asked.network.metrics.get("selected_on") else None


def _fitted(asked: PredictionJob, name: str, *, some_chose: bool = False) -> str | None:
    """A sentence where the temperature was fitted on these pictures: on some of minival, or, by name alone, on all."""
    members = member_calibrations(asked.network)
    whose = "A temperature of its members" if members else "Its temperature"
    fitted_on = {one.fitted_on for one in (asked.network.calibration, *members) if one is not None}
    if some_chose and "minival" in fitted_on:
        return f"{whose} was fitted on those of minival: the calibration error is optimistic."
    if name in fitted_on:
        return f"{whose} was fitted on {name}: if on these pictures, the calibration error is optimistic."
    return None


def _others(
    px: int, curve: SizeCurve | None, gained: PairedDifference | None, fresh: UnseenMetrics | None
) -> dict[str, Any]:
    """Further keys of ``report.json``."""
    return {
        "image_px": px,
        **({} if curve is None else {"sizes": curve.to_json()}),
        **({} if gained is None else {"views_compared": asdict(gained)}),
        **({} if fresh is None else {"unseen": fresh.told}),
    }


def _report(
    asked: PredictionJob,
    predictions: Predictions,
    facts: ReportMetadata,
    wanted: Wanted,
    known: Known,
    curve: SizeCurve | None,
    out: Path | None,
    on_result: Callable[[EvaluationResult, SizeCurve | None], None],
) -> EvaluationResult:
    part, unreadable = asked.dataset, predictions.unreadable
    log_unreadable(part, unreadable, asked.damage)
    if out is not None:
        names, as_seen = asked.network.class_names, asked.network.preprocessing
        px = int(facts.others["image_px"])
        sections = explain_predictions(asked.network, predictions, part, names, replace(as_seen, image_px=px))
        known = replace(known, sections=sections)
    outcome = EvaluationResult(
        predictions, part, asked.network.class_names, facts, wanted=wanted, known=known
    )
    on_result(outcome, curve)
    if out is not None:
        write_skipped(out / SKIPPED, [(part.paths[row], why) for row, why in unreadable])
        outcome.write(out, sizes=curve)
    if not facts.optimistic:  # else it has been said with that
        for note in facts.notes:
            _logger.info(note)
    if unreadable:
        _logger.info(skipped_summary(part, unreadable, None if out is None else out / SKIPPED))
    if out is not None:
        _logger.info(f"Report: {out / 'report.html'}")
    return outcome


def _part(dataset: ImageDataset, split: str | None) -> tuple[ImageDataset, str]:
    """The pictures to evaluate on, and what to call them."""
    if split is None:
        split = next((name for name in ("test", "val") if (dataset.split == name).any()), "all")
    if split not in _SPLITS:
        raise InputError(
            f"--split is '{split}', but is one of {', '.join(_SPLITS)}{did_you_mean(split, _SPLITS)}"
        )
    return (dataset, "all pictures") if split == "all" else (dataset.subset(split), split)


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
    outcome = evaluate_and_report(
        path_text("model", model),
        source_of(data, table),
        split=split,
        out=folder,
        device=str(device),
        workers=number("workers", workers, 0),
        strict=strict,
        image_px=number("image_size", image_size, 1),
        sizes=",".join(map(str, sizes)) or None,
        views=views_of(tta),
        asking=EvaluateOptions(
            None if slices is None else ",".join(slices) or "none",
            path_of("costs", costs),
            number("abstain_below", abstain_below, 0, 1, whole=False),
            path_of("baseline", baseline),
            path_of("calibrate", calibrate),
        ),
    )
    assert outcome is not None, "this is the only process"
    return Evaluation(folder, outcome.to_json(), outcome.table())
