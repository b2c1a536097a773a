"""Estimate what a training run takes: `efficientnetv2.estimate`."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pandas as pd
import torch

from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.data_module import DataModule
from efficientnetv2.evaluation.clusters import split_clusters
from efficientnetv2.evaluation.report_metadata import ReportMetadata
from efficientnetv2.inference.linear_probe import fit_probe, max_probe_images, sample_training_rows
from efficientnetv2.inference.predict import Embeddings, Predictions
from efficientnetv2.models import model_file
from efficientnetv2.models.hub import DownloadError
from efficientnetv2.training.estimate import RunEstimate, estimate_run
from efficientnetv2.training.overrides import TrainOverrides, sets_sizes
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.run_config import RunConfig, eval_preprocessing
from efficientnetv2.training.run_dir import RunDir
from efficientnetv2.training.run_options import RunOptions
from efficientnetv2.training.schedule_points import log_steps, validation_steps
from efficientnetv2.training.time_budget import BEFORE_SHARE, StartupBudget
from efficientnetv2.training.timing import StepTimings, measure_timings
from efficientnetv2.utils.device import pick_own_device, workers_for
from efficientnetv2.utils.distributed import SINGLE_PROCESS
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.memory import limit_memory
from efficientnetv2.utils.rng import Key
from efficientnetv2.workflows.arguments import (
    Overrides,
    PathLike,
    api,
    refuse_launched,
    run_arguments,
)
from efficientnetv2.workflows.auto_config import agreed, last_notes, looked_at, refuse_words, unprobed
from efficientnetv2.workflows.evaluation_result import EvaluationResult
from efficientnetv2.workflows.explain import explain_predictions
from efficientnetv2.workflows.image_cache import Foreseen, foreseen
from efficientnetv2.workflows.linear_probe import probe_s
from efficientnetv2.workflows.output_paths import refuse_run_within
from efficientnetv2.workflows.report_sections import Known
from efficientnetv2.workflows.results import html_table
from efficientnetv2.workflows.run_options import decided
from efficientnetv2.workflows.time_budget import (
    in_vain,
    job_of,
    lowered_by,
    report_s,
    scratch,
    settled_by,
    still_so,
    to_be_measured,
    to_measure,
)
from efficientnetv2.workflows.weights_selection import chosen

_logger = logging.getLogger(__name__)

# The classifier of the linear probe is rehearsed on so many embeddings; its time grows with their number. Ours.
_PROBED = 500
# Seconds from the command on after which nothing more is measured, and the share of what is left by then that measuring
# steps may take. Ours: on two slow cores the plan is there after 90 s.
_WITHIN_S, _MEASURING = 70.0, 0.5
# Seconds of compiling for each stage, and bytes of a report. Ours: what was seen on two cores.
_COMPILE_S, _REPORT_BYTES = 100.0, 1_000_000


@dataclass(frozen=True, eq=False)
class RunPlan:
    """What a run will take.

    Args:
        estimate: of its steps, and of all else.
        cache: of decoded pictures; None where it has none.
        device: that it trains on.
        notes: what was chosen, and why, a sentence each.
        epochs: that it trains.
    """

    estimate: RunEstimate
    cache: Foreseen | None
    device: torch.device
    notes: tuple[str, ...]
    epochs: float

    @property
    def memory_bytes(self) -> int:
        """Of the device; a cache in memory is in the processor's."""
        cached = self.cache is not None and self.cache.where == "ram" and self.device.type == "cpu"
        return self.estimate.memory_bytes + (self.cache.bytes if self.cache is not None and cached else 0)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        plain = self.estimate.to_json() | {"memory_bytes": self.memory_bytes, "chosen": list(self.notes)}
        if self.cache is not None:
            plain["cache"] = {"where": self.cache.where, "bytes": self.cache.bytes}
        return plain


def plan_run(
    words: TrainOverrides, source: DataConfig, place: RunOptions, *, began: float | None = None
) -> RunPlan:
    """Measure a few steps of a run, and foretell the rest; nothing is left behind.

    Args:
        words: about the recipe.
        source: of the pictures.
        place: where and how the run would run.
        began: ``time.monotonic()`` when the command began. None is now.

    Raises:
        InputError: anything that ``train`` would refuse before its first step.
    """
    budget = StartupBudget(_WITHIN_S, time.monotonic() if began is None else began)
    device = pick_own_device(place.device, 0, 1)
    if place.memory_gib is not None:
        limit_memory(device, place.memory_gib)
    workers = workers_for(place.workers, device)
    known = decided(words, place, device, SINGLE_PROCESS)
    refuse_words(known, words, source, place, "train")
    prepared = looked_at(known.recipe, source, place)
    before = time.perf_counter()
    known = chosen(known, words, prepared, device, workers, place, budget)
    choosing_s = time.perf_counter() - before
    try:
        settling = agreed(
            known, words, prepared, device, place, budget=budget, workers=workers, compiles=False
        )
    except DownloadError as error:
        raise InputError(f"{error}{_without_them(known.recipe, words)}") from error
    settled, prepared = settling.settled, settling.prepared
    begun_s = budget.used_s - choosing_s
    job = job_of(settled, prepared, known.path, device, workers)
    notes = [prepared.split_note, *settling.notes]
    kept = foreseen(words.cache, settled.recipe, prepared, device)
    _logger.info(to_measure(job.recipe, words.minutes, whole=True))
    spent_s = 0.0 if kept is None else kept.seconds
    with scratch(known.path) as folder:
        before = time.perf_counter()
        plain = replace(job, recipe=job.recipe.model_copy(update={"compile": False}))
        rates = measure_timings(
            plain if kept is None else replace(plain, train=kept.pictures, reader=kept.reader),
            folder,
            run_steps=None if to_be_measured(words.minutes, settled.recipe) else job.length.steps,
            in_vain=in_vain(words.minutes, job, spent_s=spent_s),
            within_s=_MEASURING * budget.left_s,
        )
        measuring_s = time.perf_counter() - before
        if job.recipe.compile:
            rates = replace(rates, compile_s=_COMPILE_S * job.recipe.progressive.stages)
            notes.append(
                f"Compiling: about {rates.compile_s / 60:.0f} minutes, estimated. The steps are measured without it."
            )
        if words.minutes is not None:  # as ``train`` divides them
            spent_s = min(60 * words.minutes * BEFORE_SHARE, budget.used_s + spent_s) + report_s(job, rates)
            if not sets_sizes(words):
                stored_px = prepared.stored_px
                recipe, rates, lower = lowered_by(rates, job, words.minutes, stored_px, spent_s=spent_s)
                job, notes = replace(job, recipe=recipe), [*notes, *lower]
                preprocessing = eval_preprocessing(recipe, settled.network, prepared.dataset.bands)
                job = replace(job, preprocessing=preprocessing)
                settling = replace(settling, preprocessing=preprocessing)
        recipe, further = settled_by(rates, job, words.minutes, spent_s=spent_s)
        job, notes = replace(job, recipe=recipe), [*still_so(notes, words.minutes), *further]
        notes += last_notes(recipe, settling, known, prepared)
        notes += unprobed(recipe, place, prepared)
        others_s, disk, estimated = _around(job, prepared, rates, folder, budget)
        if estimated:
            notes.append(f"Estimated, for measuring would take too long: {' and '.join(estimated)}.")
    others_s["start-up"] += begun_s
    if known.compared is not None:
        others_s["comparing weights"] = choosing_s
    if to_be_measured(words.minutes, settled.recipe):
        others_s["measuring"] = measuring_s
    if kept is not None:
        others_s["filling the cache"] = kept.seconds
    if words.minutes is not None:
        others_s = _within_minutes(others_s, words.minutes)
    foretold = _whole(job, rates, others_s, disk)
    assert job.recipe.epochs != "auto", "resolve_recipe() has done so"
    return RunPlan(foretold, kept, device, tuple(notes), float(job.recipe.epochs))


def _without_them(recipe: Recipe, words: TrainOverrides) -> str:
    """How a plan is had without the weights that a recipe begins with, in a sentence.

    Empty where its steps would be others: with layers or statistics that are kept they take less, and without the
    name of a recipe ``--weights none`` means another.
    """
    if words.recipe is None or recipe.freeze_stages or recipe.frozen_statistics:
        return ""
    network = recipe.weights.partition(".")[0]
    model = f"--model {network} " if recipe.model == "auto" else ""
    return (
        f" To plan without them: {model}--weights none foretells the same steps, and all but a linear probe of the "
        "weights."
    )


def _within_minutes(others_s: Mapping[str, float], minutes: float) -> dict[str, float]:
    """What comes before the first step, cut to the part of the minutes that ``train`` gives to it."""
    after = {"report"}
    before_s = sum(seconds for what, seconds in others_s.items() if what not in after)
    share = min(1.0, 60 * minutes * BEFORE_SHARE / before_s)
    return {what: seconds if what in after else share * seconds for what, seconds in others_s.items()}


def _whole(
    job: RunConfig, rates: StepTimings, others_s: Mapping[str, float], disk: Mapping[str, int]
) -> RunEstimate:
    run = estimate_run(
        job.recipe,
        rates,
        job.image_counts,
        microbatches=job.microbatches,
    )
    return replace(run, others_s={**others_s, **run.others_s}, disk_bytes={**run.disk_bytes, **disk})


def _around(
    job: RunConfig, prepared: DataModule, rates: StepTimings, scratch: Path, budget: StartupBudget
) -> tuple[dict[str, float], dict[str, int], list[str]]:
    """What the run does before its first step and after its last, and what it notes between: seconds, and bytes.

    In the folder lies the model file that was written when the run was measured. What there is no time to rehearse is
    estimated, and named.
    """
    estimated = []
    folder = scratch / "run"
    began = time.perf_counter()
    run = RunDir(folder)
    run.begin(job.recipe, prepared.dataset, {})
    history = _rows(job)
    for row in history:
        run.record(row)  # TensorBoard is imported for the first
    run.close()
    seconds = {"start-up": time.perf_counter() - began}
    lists = run.manifest_file.stat().st_size
    if job.recipe.weights != "none" and job.train.separator is None:
        most = max_probe_images(
            job.network, job.preprocessing.image_px, len(job.train.class_names), job.device
        )
        if probe_s(_PROBED, job.train, job.val, job.network, 0.0) < budget.left_s:
            seconds["linear probe"] = _probe_s(job, rates)
        else:
            seconds["linear probe"] = probe_s(most, job.train, job.val, job.network, rates.curve.each_s)
            estimated.append("the linear probe")
    if report_s(job, rates) > budget.left_s:
        seconds["report"] = report_s(job, rates)
        return seconds, {"lists and report": lists + _REPORT_BYTES}, [*estimated, "the report"]
    began = time.perf_counter()
    logits = torch.from_numpy(_noise(job, len(job.val), len(job.train.class_names)))
    predictions = Predictions(np.arange(len(job.val)), job.val.targets, logits, answer=job.answer)
    kept = model_file.load(scratch / model_file.NAME, job.device)
    galleries = explain_predictions(kept, predictions, job.val, job.train.class_names, kept.preprocessing)
    facts = ReportMetadata(job.train.source, "val")
    known = Known(sections=galleries, whole=split_clusters(folder, job.val.paths))
    outcome = EvaluationResult(predictions, job.val, job.train.class_names, facts, known=known)
    outcome.write(folder, history=history)
    seconds["report"] = time.perf_counter() - began
    written = sum(
        (folder / name).stat().st_size for name in ("report.json", "report.html", "predictions.csv")
    )
    return seconds, {"lists and report": lists + written}, estimated


def _rows(job: RunConfig) -> list[dict[str, Any]]:
    """Rows of figures such as the run's will be, to be written and drawn; what nobody knows yet is noise."""
    recipe, length = job.recipe, job.length
    rows: list[dict[str, Any]] = []
    for kind, steps, unknown in (
        (
            "train",
            log_steps(recipe, length),
            ("loss", "lr", "images_per_s", "train_s", "waited_s", "seconds"),
        ),
        ("val", validation_steps(recipe, length), ("top1", "macro_f1")),
    ):
        for step, noise in zip(sorted(steps), _noise(job, len(steps), len(unknown)).tolist(), strict=True):
            setting = (
                recipe.progressive.at(step - 1, total_steps=length.steps).to_json() if kind == "train" else {}
            )
            known = {name: value for name, value in setting.items() if name != "others"}
            begun = {"kind": kind, "step": step, "epoch": step / length.steps_per_epoch}
            rows.append(begun | known | dict(zip(unknown, noise, strict=True)))
    return sorted(rows, key=lambda row: row["step"])


def _probe_s(job: RunConfig, rates: StepTimings) -> float:
    """Of the linear probe: pictures embedded, then a classifier fitted to noise of the same shape."""
    classes = len(job.train.class_names)
    most = max_probe_images(job.network, job.preprocessing.image_px, classes, job.device)
    learning = min(len(job.train), most)
    some = min(learning, _PROBED)
    labels = job.train.labels[sample_training_rows(job.train.labels, some, job.key.fold("rehearsal"))]
    vectors = _noise(job, len(labels), job.network.embed_dim)
    began = time.perf_counter()
    fit_probe(
        Embeddings(np.arange(len(labels)), labels, vectors),
        key=job.key.fold("probe"),
        balanced=job.recipe.balance is not None,
    )
    fitting_s = (time.perf_counter() - began) * learning / len(labels)
    return rates.curve.seconds(learning) + rates.curve.seconds(min(len(job.val), most)) + fitting_s


def _noise(job: RunConfig, rows: int, columns: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    key: Key = job.key.fold("rehearsal")
    return key.generator().standard_normal((rows, columns), dtype=np.float32)


class Estimate:
    """Time, memory and disk of a training run that has not begun.

    Args:
        report: What `effnetv2 train --dry-run --json` prints.
    """

    def __init__(self, report: dict[str, Any]) -> None:
        self.report = report

    @property
    def seconds(self) -> float:
        """Time of the whole run."""
        total: float = self.report["seconds"]
        return total

    @property
    def memory_bytes(self) -> int:
        """Largest memory in use at a time, on the device that trains."""
        return int(self.report["memory_bytes"])

    @property
    def disk_bytes(self) -> int:
        """Disk that the folder of the run takes at its fullest."""
        return sum(self.report["disk_bytes"].values())

    @property
    def stages(self) -> pd.DataFrame:
        """A row per stage of progressive learning: image size, steps, images per second, memory, seconds."""
        return pd.DataFrame(self.report["stages"])

    @property
    def other_seconds(self) -> dict[str, float]:
        """Time outside the training steps, such as validation and the report."""
        return dict(self.report["others_s"])

    @property
    def notes(self) -> list[str]:
        """What was chosen for the run, a sentence each."""
        return list(self.report["chosen"])

    def __repr__(self) -> str:
        return f"Estimate(seconds={self.seconds:.0f}, memory_bytes={self.memory_bytes}, disk_bytes={self.disk_bytes})"

    def _repr_html_(self) -> str:
        stages = self.stages
        rows = stages.map(lambda value: f"{value:,.6g}").to_numpy().tolist()
        return html_table(repr(self), list(stages.columns), rows)


@api
def estimate(
    data: PathLike,
    *,
    output: PathLike | None = None,
    recipe: PathLike | Recipe | None = None,
    device: str | torch.device = "auto",
    workers: int | None = None,
    **overrides: Unpack[Overrides],
) -> Estimate:
    """Estimate time, memory and disk of a run from a few measured steps of each image size.

    It takes at most 90 seconds on two slow cores, after each image was checked, and leaves nothing behind.

    Example::

        import efficientnetv2 as ev2

        cost = ev2.estimate("photos/", model="efficientnetv2_b0", weights="none", epochs=2, image_size=64)
        print(cost.seconds, cost.memory_bytes, cost.disk_bytes)
        print(cost.stages)

    Args:
        data: Dataset, see `train`.
        output: Folder where the run would go.
        recipe: Recipe, see `train`.
        device: Device to train on, see `train`.
        workers: Processes that read images, see `train`.
        overrides: Hyperparameters, and how ``data`` is read; see `train`.

    Raises:
        InputError: What `train` would refuse before its first step.
    """
    began = time.monotonic()
    refuse_launched("estimate")
    words, source, place = run_arguments(
        estimate, data, recipe, overrides, output=output, device=device, workers=workers
    )
    refuse_run_within(source.data, place.out, "train")
    return Estimate(plan_run(words, source, place, began=began).to_json())
