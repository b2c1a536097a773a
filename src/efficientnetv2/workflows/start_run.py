"""What a run leaves before its first step: all that is settled written into its folder, its weights probed."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from efficientnetv2.data.augmented_copies import is_copy
from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.data_module import DataModule
from efficientnetv2.inference.linear_probe import ProbeMetrics, max_probe_images
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.training.auto_config import UNUSED_PREFIX
from efficientnetv2.training.ddp import parallel_speed
from efficientnetv2.training.early_stopping import unused_patience
from efficientnetv2.training.initial_weights import model_title
from efficientnetv2.training.overrides import TrainOverrides, sets_sizes
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.run_config import eval_preprocessing
from efficientnetv2.training.run_dir import RunDir
from efficientnetv2.training.run_options import RunOptions
from efficientnetv2.training.time_budget import BEFORE_SHARE, StartupBudget, TimeLimit
from efficientnetv2.training.timing import measure_timings
from efficientnetv2.training.train_state import RunLength
from efficientnetv2.utils.distributed import World
from efficientnetv2.utils.errors import pluralize
from efficientnetv2.utils.logs import as_details
from efficientnetv2.utils.progress import progress
from efficientnetv2.utils.shell import command_line
from efficientnetv2.workflows.auto_config import Agreed, agreed, last_notes, probes, unprobed
from efficientnetv2.workflows.image_cache import Cached, cached
from efficientnetv2.workflows.linear_probe import images_within, keep, least_images, probed
from efficientnetv2.workflows.run_options import Decided
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

_logger = logging.getLogger(__name__)

# Share of the time that is left before the first step which measuring steps may take. Ours.
_MEASURING = 0.4
_WEIGHTS = "Weights: "  # what a note on them begins with


def begin(
    decided: Decided,
    words: TrainOverrides,
    prepared: DataModule,
    device: torch.device,
    workers: int,
    place: RunOptions,
    world: World,
    budget: StartupBudget | None = None,
) -> tuple[RunDir, Recipe, Network, Cached | None]:
    """Settle the recipe, then write into the folder, which is claimed: what is refused leaves nothing behind."""
    path = decided.path
    settling = agreed(decided, words, prepared, device, place, world, budget=budget, workers=workers)
    recipe, network, prepared = settling.settled.recipe, settling.settled.network, settling.prepared
    pictures = cached(words.cache, recipe, prepared, device, world)
    chosen = [*settling.notes, *([] if pictures is None else [pictures.note])]
    weights, model = model_lines(recipe, chosen, device)
    _logger.info(weights)
    _logger.info(model)
    warnings = set(settling.seen.lines)
    told = 0  # of the notes
    limit, probe_images = None, None
    if to_be_measured(words.minutes, recipe):
        # What is settled by then is said before the measurement, which takes a while.
        chosen = still_so(chosen, words.minutes)
        _tell(chosen, warnings, shown=weights)
        told = len(chosen)
        recipe, notes, limit, probe_images = _by_measuring(
            settling, decided, words, prepared, pictures, device, workers, place, world, budget
        )
        settling = replace(
            settling, preprocessing=eval_preprocessing(recipe, network, prepared.dataset.bands)
        )
        chosen += notes
    chosen += last_notes(recipe, settling, decided, prepared)
    warnings |= set(unused_patience(recipe, RunLength.of(recipe, len(prepared.train))))
    _tell([*chosen, *unprobed(recipe, place, prepared)][told:], warnings, shown=weights)
    _logger.info(length_line(recipe, len(prepared.train), words.minutes, path))
    beginning = _beginning(settling, decided, words, prepared, chosen, pictures, world)
    if probe_images is not None:
        beginning["probe_images"] = probe_images
    if probes(recipe, place, probe_images) and prepared.dataset.separator is None:
        fit = probed(network, prepared, settling.preprocessing, recipe, device, workers, probe_images)
        network.to("cpu")  # other processes get it from here, each for its own device
        # Else it begins with the classifier of the weights.
        begins_there = recipe.classifier == "probe" and not network.class_names
        _logger.debug(_reached(fit.metrics, prepared, begins_there=begins_there))
        if place.probe:
            labelled, balanced = int((~is_copy(prepared.train)).sum()), recipe.balance is not None
            beginning |= keep(fit, path, labelled=labelled, balanced=balanced, seed=recipe.seed)
    if decided.against is not None:
        beginning |= decided.against.keep(path)
    if limit is not None:
        beginning["time_limit"] = limit.to_json()
    folder = RunDir(path)
    folder.begin(recipe, prepared.dataset, beginning)
    for skipped_path, reason in prepared.skipped:
        folder.skip(skipped_path, reason)
    if prepared.skipped:
        _logger.info(f"What could not be read is listed in {folder.skipped_file}.")
    return folder, recipe, network, pictures


def _by_measuring(
    settling: Agreed,
    decided: Decided,
    words: TrainOverrides,
    prepared: DataModule,
    pictures: Cached | None,
    device: torch.device,
    workers: int,
    place: RunOptions,
    world: World,
    budget: StartupBudget | None,
) -> tuple[Recipe, list[str], TimeLimit | None, int | None]:
    """The recipe with what its steps' time decides, a sentence on each choice, and with a budget its further limits.

    These are the time of the whole run, and how many images the linear probe may look at (None: all).
    """
    recipe, minutes = settling.settled.recipe, words.minutes
    if minutes is None:
        budget = None
    _logger.debug(to_measure(recipe, minutes, whole=budget is not None))
    reader, spent_s = (None, 0.0) if pictures is None else (pictures.reader, pictures.seconds)
    job = job_of(settling.settled, prepared, decided.path, device, workers, reader)
    # The run compiles; its pace is measured again under way.
    plain = job if budget is None else replace(job, recipe=recipe.model_copy(update={"compile": False}))
    if budget is not None:
        spent_s = budget.used_s
    lost = in_vain(minutes, job, spent_s=spent_s, world=world)
    within_s = None if budget is None else _MEASURING * budget.left_s
    with scratch(decided.path) as beside, progress("measuring steps", None), as_details():
        rates = measure_timings(plain, beside, in_vain=lost, within_s=within_s)
    if budget is None or minutes is None:
        return *settled_by(rates, job, minutes, spent_s=spent_s, world=world), None, None
    notes, probe_images, probe_s = list[str](), None, 0.0
    if not sets_sizes(words):
        besides_s = 60 * minutes * BEFORE_SHARE + report_s(job, rates)
        recipe, rates, notes = lowered_by(
            rates, job, minutes, prepared.stored_px, spent_s=besides_s, world=world
        )
        job = replace(job, recipe=recipe)
    if probes(recipe, place) and prepared.dataset.separator is None:
        probe_s = budget.left_s
        network, px = settling.settled.network, recipe.eval_px or settling.preprocessing.image_px
        most = max_probe_images(network, px, len(prepared.train.class_names), device)
        probe_images = images_within(probe_s, prepared, network, rates.curve.each_s, most)
        if probe_images is not None and probe_images < least_images(prepared):
            recipe, probe_images, probe_s = recipe.model_copy(update={"classifier": "fresh"}), 0, 0.0
            notes.append(
                f"No linear probe of the given weights (--minutes {minutes:g} leaves no time for it)."
            )
    after_s = report_s(job, rates)
    job = replace(job, recipe=recipe)
    recipe, further = settled_by(rates, job, minutes, spent_s=budget.used_s + probe_s + after_s, world=world)
    groups = recipe.batch_images // (recipe.group_images or recipe.batch_images)
    shared = rates.shared(parallel_speed(world, device), groups)
    limit = TimeLimit(60 * minutes, after_s, shared, began=budget.began)
    return recipe, [*notes, *further], limit, probe_images


def _beginning(
    settling: Agreed,
    decided: Decided,
    words: TrainOverrides,
    prepared: DataModule,
    chosen: list[str],
    pictures: Cached | None,
    world: World,
) -> dict[str, Any]:
    """What the run's folder says of its beginning, but for its probe and the run that it is compared with."""
    network = settling.settled.network
    beginning: dict[str, Any] = {
        "command": command_line(),
        "launch": world.launch,
        "chosen": chosen,
        "preprocessing": settling.preprocessing.to_json(),
        "groups_at_a_time": settling.settled.microbatches.to_json(),
    }
    if settling.seen.flattering:
        beginning["seen_before"] = settling.seen.to_json()
    if settling.seen.chooser:
        beginning["minival_unused"] = True
    if network.trained_on is not None:  # for a resumed run, whose weights are its checkpoint's
        beginning["weights_trained_on"] = network.trained_on.to_json()
    if decided.compared is not None:
        beginning["weights_compared"] = decided.compared
    if pictures is not None:
        beginning["cache"], beginning["cache_px"] = words.cache, pictures.image_px
    if prepared.dataset.separator is not None:
        beginning["label_separator"] = prepared.dataset.separator
    return beginning


def _tell(notes: Sequence[str], warnings: Collection[str], *, shown: str) -> None:
    """The notes on what was chosen, as details; warnings are shown in any case, and one note has been shown.

    What was lowered or left out for want of time (``--minutes``) is shown as well.
    """
    for note in notes:
        if note in warnings or note.startswith(UNUSED_PREFIX) or "--minutes" in note:
            _logger.info(note)
        elif note != shown:
            _logger.debug(note)


def data_lines(source: DataConfig, prepared: DataModule) -> list[str]:
    """The images and their split, a line each.

    Args:
        source: of the images.
        prepared: the images.
    """
    dataset, note = prepared.dataset, prepared.split_note
    images, classes = pluralize(len(dataset), "image"), pluralize(len(dataset.class_names), "class")
    return [f"Data: {source.data}, {images} of {classes}", f"Split: {note[:1].lower()}{note[1:]}"]


def model_lines(recipe: Recipe, notes: Sequence[str], device: torch.device) -> list[str]:
    """The weights and the model, a line each.

    Args:
        recipe: settled but for its length.
        notes: on what was chosen.
        device: to train on.
    """
    weights = next((note for note in notes if note.startswith(_WEIGHTS)), f"{_WEIGHTS}{recipe.weights}")
    if weights == f"{_WEIGHTS}none":
        weights += " (training from scratch)"
    schedule = recipe.progressive
    first, last = schedule.stage(0).image_px, schedule.last.image_px
    px = f"{last} px" if first == last else f"{first} to {last} px in {pluralize(schedule.stages, 'stage')}"
    how = f"batch size {recipe.batch_images}, {recipe.precision} on {device.type}"
    return [weights, f"Model: {model_title(recipe.model)}, {px} ({how})"]


def length_line(recipe: Recipe, images: int, minutes: float | None, path: Path) -> str:
    """How long a run trains, and where its details are.

    Args:
        recipe: settled.
        images: that are trained on.
        minutes: that the run may take; None where the epochs decide.
        path: of its folder.
    """
    steps = pluralize(RunLength.of(recipe, images).steps, "step")
    within = "" if minutes is None else f", within {pluralize(minutes, 'minute')}"
    return (
        f"Length: {pluralize(float(recipe.epochs), 'epoch')}, {steps}{within} (details: {path / 'log.txt'})"
    )


def _reached(probe: ProbeMetrics, prepared: DataModule, *, begins_there: bool) -> str:
    """What the probe reaches, in words."""
    learnt, there = probe.train_pictures, len(prepared.train)
    fewer = f", learnt from {learnt:,} of {pluralize(there, 'training picture')}" if learnt < there else ""
    return (
        f"Linear probe on the given weights as they came: top-1 {probe.top1:.1%}, macro-F1 {probe.macro_f1:.1%} on "
        f"{pluralize(probe.pictures, f'{prepared.answered} picture')}{fewer} ({probe.seconds:.0f} s). Training "
        f"{'begins there, and ' if begins_there else ''}has to beat that."
    )
