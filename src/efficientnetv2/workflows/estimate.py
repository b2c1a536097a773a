"""Estimate what a training run takes: `efficientnetv2.estimate`."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pandas as pd
import torch

from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.prepared_data import PreparedData
from efficientnetv2.evaluation.bootstrap_clusters import split_clusters
from efficientnetv2.evaluation.evaluation_result import EvaluationResult
from efficientnetv2.evaluation.explain import explain_predictions
from efficientnetv2.evaluation.report_metadata import ReportMetadata
from efficientnetv2.evaluation.report_sections import ReportInputs
from efficientnetv2.inference.linear_probe import max_probe_images
from efficientnetv2.inference.predict import Predictions
from efficientnetv2.models import model_file
from efficientnetv2.training.head_init import probe_s, wants_probe
from efficientnetv2.training.image_cache import CacheEstimate, estimate_cache
from efficientnetv2.training.initial_weights_selection import select_weights
from efficientnetv2.training.overrides import TrainOverrides
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.resolve import add_final_notes, resolve_unmeasured
from efficientnetv2.training.run_dir import RunDir
from efficientnetv2.training.run_estimate import RunEstimate, estimate_run
from efficientnetv2.training.run_request import ResolvedRun, RunOptions, load_run_data
from efficientnetv2.training.run_setup import RunSetup
from efficientnetv2.training.time_budget import (
    LengthBudget,
    measuring_line,
    report_s,
    scratch_dir,
    with_length,
    with_lower_sizes,
)
from efficientnetv2.training.time_limit import BEFORE_SHARE, StartupBudget
from efficientnetv2.training.timing import StepTimings, measure_timings
from efficientnetv2.utils.device import Hardware
from efficientnetv2.utils.memory import limit_memory
from efficientnetv2.workflows.arguments import Overrides, PathLike, api, run_arguments, validate_run_paths
from efficientnetv2.workflows.results import html_table
from efficientnetv2.workflows.train import data_line, pick_hardware, valid_request

_logger = logging.getLogger(__name__)

# Seconds from the command on, without the check of the images, after which nothing more is measured. Ours: on two slow
# cores the estimate is there after 90 s.
_WITHIN_S = 70.0
# Bytes of a report, and of its training curves, which are not drawn to measure. Ours: what was seen.
_REPORT_BYTES, _CURVES_BYTES = 1_000_000, 180_000
# Fraction of the remaining time for measuring steps. Ours.
_TIMING_FRACTION = 0.5
# Seconds of compiling a stage. Ours: what was seen on two cores.
_COMPILE_S = 100.0


class Estimate:
    """Time, memory and disk of a training run that has not begun. ``seconds`` is the time of the whole run.

    Example::

        import efficientnetv2 as ev2

        cost = ev2.estimate("photos/", epochs=10)
        cost.seconds, cost.memory_bytes, cost.disk_bytes
    """

    def __init__(
        self, run: RunEstimate, cache: CacheEstimate | None, device: torch.device, notes: Sequence[str], epochs: float
    ) -> None:
        self.run, self.cache, self.notes, self.epochs = run, cache, list(notes), epochs
        self.seconds = run.seconds
        cached = cache is not None and cache.where == "ram" and device.type == "cpu"
        self._cache_bytes = cache.bytes if cache is not None and cached else 0

    @property
    def memory_bytes(self) -> int:
        """Largest memory in use at a time, on the device that trains; a cache in memory counts on a CPU."""
        return self.run.memory_bytes + self._cache_bytes

    @property
    def disk_bytes(self) -> int:
        """Disk that the folder of the run takes at its fullest."""
        return sum(self.run.disk_bytes.values())

    @property
    def stages(self) -> pd.DataFrame:
        """A row per stage of progressive learning: image size, steps, images per second, memory, seconds."""
        return pd.DataFrame(self.report["stages"])

    @property
    def other_seconds(self) -> dict[str, float]:
        """Time outside the training steps, such as validation and the report."""
        return dict(self.run.others_s)

    @property
    def report(self) -> dict[str, Any]:
        """What `effnetv2 train --dry-run --json` prints."""
        plain = self.run.to_json() | {"memory_bytes": self.memory_bytes, "auto_choices": self.notes}
        if self.cache is not None:
            plain["cache"] = {"where": self.cache.where, "bytes": self.cache.bytes}
        return plain

    def __repr__(self) -> str:
        return f"Estimate(seconds={self.seconds:.0f}, memory_bytes={self.memory_bytes}, disk_bytes={self.disk_bytes})"

    def _repr_html_(self) -> str:
        stages = self.stages
        rows = stages.map(lambda value: f"{value:,.6g}").to_numpy().tolist()
        return html_table(repr(self), list(stages.columns), rows)


def plan_run(
    overrides: TrainOverrides, source: DataConfig, options: RunOptions, *, began: float | None = None
) -> Estimate:
    """Measure a few steps of a run and estimate the rest; nothing is left behind.

    ``began`` is the ``time.monotonic()`` when the command began. None is now.
    """
    budget = StartupBudget(_WITHIN_S, time.monotonic() if began is None else began)
    hardware = pick_hardware(options)
    try:
        return _measured(overrides, source, options, hardware, budget)
    finally:
        limit_memory(hardware.device, None)


def _measured(
    overrides: TrainOverrides, source: DataConfig, options: RunOptions, hardware: Hardware, budget: StartupBudget
) -> Estimate:
    request = valid_request(overrides, source, options, hardware)
    used_s = budget.used_s
    data = load_run_data(request.recipe, source, strict=options.strict)
    budget = replace(budget, seconds=budget.seconds + budget.used_s - used_s)
    request = select_weights(request, data, hardware, budget)
    with scratch_dir(request.path) as folder:
        run = resolve_unmeasured(request, data, hardware, budget, 0.0)
        before_s = {"start-up": budget.used_s - request.comparison_s}
        if request.comparison is not None:
            before_s["comparing weights"] = request.comparison_s
        cache = estimate_cache(overrides.cache, run.recipe, run.data, hardware.device)
        run = replace(run, cache=cache)
        began_s, is_timed = time.perf_counter(), overrides.minutes is not None or run.recipe.measures_stages
        timings = _timings(run, hardware, folder, budget)
        if is_timed:
            before_s["measuring"] = time.perf_counter() - began_s
        if cache is not None:
            before_s["filling the cache"] = cache.seconds
        run, timings = _with_length(run, timings, hardware, before_s)
        notes = [f"{data_line(data.dataset)}.", run.data.split_note, *run.notes]
        setup = run.setup(hardware)
        others_s, report_bytes, note = _other_costs(setup, run.data, timings, folder, budget)
        notes += [note] if note else []
    others_s["start-up"] += before_s.pop("start-up")
    others_s |= before_s
    if overrides.minutes is not None:
        others_s = _within_minutes(others_s, overrides.minutes)
    costs = estimate_run(run.recipe, timings, setup.image_counts, microbatches=run.microbatches)
    disk_bytes = {**costs.disk_bytes, "lists and report": report_bytes}
    costs = replace(costs, others_s={**others_s, **costs.others_s}, disk_bytes=disk_bytes)
    return Estimate(costs, cache, hardware.device, notes, float(run.recipe.epochs))


def _timings(run: ResolvedRun, hardware: Hardware, folder: Path, budget: StartupBudget) -> StepTimings:
    """Timings of the uncompiled model, on images that are cached if all will be; compiling is estimated."""
    minutes, setup = run.request.overrides.minutes, run.setup(hardware)
    _logger.info(measuring_line(run.recipe))
    run_steps = None if minutes is not None or run.recipe.measures_stages else setup.length.steps
    if isinstance(run.cache, CacheEstimate):
        setup = replace(setup, train=run.cache.images)
    timings = measure_timings(
        replace(setup, recipe=run.recipe.model_copy(update={"compile": False})),
        folder,
        run_steps=run_steps,
        is_impossible=LengthBudget.of(run, hardware).is_exceeded,
        within_s=_TIMING_FRACTION * budget.left_s,
    )
    return replace(timings, compile_s=_COMPILE_S * run.recipe.progressive.stages if run.recipe.compile else 0.0)


def _with_length(
    run: ResolvedRun, timings: StepTimings, hardware: Hardware, before_s: Mapping[str, float]
) -> tuple[ResolvedRun, StepTimings]:
    """The run with the sizes, stage lengths and epochs that the timings decide, and its timings."""
    minutes, length = run.request.overrides.minutes, LengthBudget.of(run, hardware)
    if run.recipe.compile:
        note = f"Compiling: about {timings.compile_s / 60:.0f} minutes, estimated. The steps are measured without it."
        run = replace(run, notes=(*run.notes, note))
    if minutes is not None:
        spent_s = sum(_within_minutes(before_s, minutes).values()) + report_s(run.setup(hardware), timings)
        length = replace(length, spent_s=spent_s)
        run, timings = with_lower_sizes(run, length, timings, hardware)
    return add_final_notes(with_length(run, length, timings)), timings


def _within_minutes(others_s: Mapping[str, float], minutes: float) -> dict[str, float]:
    """The same with what a run cuts so that its first step comes after a part of the minutes."""
    cut = {"comparing weights", "measuring", "linear probe"} & others_s.keys()
    kept_s = sum(seconds for what, seconds in others_s.items() if what not in {*cut, "report"})
    left_s, cut_s = max(0.0, 60 * minutes * BEFORE_SHARE - kept_s), sum(others_s[what] for what in cut)
    share = min(1.0, left_s / cut_s) if cut_s else 1.0
    return {what: share * seconds if what in cut else seconds for what, seconds in others_s.items()}


def _other_costs(
    setup: RunSetup, data: PreparedData, timings: StepTimings, scratch: Path, budget: StartupBudget
) -> tuple[dict[str, float], int, str]:
    """Seconds before the first step and after the last, bytes of lists and report, and a note if one is estimated."""
    folder = scratch / "run"
    began = time.perf_counter()
    run = RunDir(folder)
    run.begin(setup.recipe, data.dataset, {})
    run.record({"kind": "train", "step": 1, "epoch": 0.0})  # TensorBoard is imported for it
    run.close()
    seconds = {"start-up": time.perf_counter() - began}
    class_names = setup.train.class_names
    if wants_probe(setup.recipe, setup.network, True, data):
        px, each_s = setup.preprocessing.image_size, timings.curve.each_s
        most = max_probe_images(setup.network, px, len(class_names), setup.device)
        seconds["linear probe"] = probe_s(most, setup.train, min(most, len(setup.val)), setup.network, each_s)
    lists = run.dataset_file.stat().st_size
    if report_s(setup, timings) > budget.left_s:
        seconds["report"] = report_s(setup, timings)
        return seconds, lists + _REPORT_BYTES, "Estimated, for measuring would take too long: the report."
    began = time.perf_counter()
    noise = setup.key.fold("rehearsal").generator()
    logits = torch.from_numpy(noise.standard_normal((len(setup.val), len(class_names)), dtype=np.float32))
    predictions = Predictions(np.arange(len(setup.val)), setup.val.targets, logits, activation=setup.activation)
    model = model_file.load(scratch / model_file.NAME, setup.device)  # of the measured run
    galleries = explain_predictions(model, predictions, setup.val, class_names, model.preprocessing)
    metadata = ReportMetadata(setup.train.source, "val")
    inputs = ReportInputs(sections=galleries, clusters=split_clusters(folder, setup.val.paths))
    result = EvaluationResult(predictions, setup.val, class_names, metadata, inputs=inputs)
    result.write(folder)
    seconds["report"] = time.perf_counter() - began
    written = ("report.json", "report.html", "predictions.csv")
    return seconds, lists + _CURVES_BYTES + sum((folder / name).stat().st_size for name in written), ""


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
        recipe, device, workers, overrides: See `train`.

    Raises:
        InputError: What `train` would refuse before its first step.
    """
    began = time.monotonic()
    request, source, options = run_arguments(
        estimate, data, recipe, overrides, output=output, device=device, workers=workers
    )
    validate_run_paths(source.data, options.out, "train")
    return plan_run(request, source, options, began=began)
