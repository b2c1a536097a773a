"""``--weights auto`` where several starts are at hand: a linear probe of each, inside the training split, decides."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from efficientnetv2.data.data_module import DataModule
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.groups import groupings
from efficientnetv2.data.records import Ints
from efficientnetv2.inference.linear_probe import (
    DEFAULT_STRENGTH,
    fit_classifier,
    macro_f1,
    multiply_adds,
    strictest_grouping,
)
from efficientnetv2.inference.predict import embed_dataset
from efficientnetv2.metrics.paired_tests import paired_difference
from efficientnetv2.training.auto_config import limit_upscaling
from efficientnetv2.training.initial_weights import WeightsCandidate, build_initial_model
from efficientnetv2.training.overrides import TrainOverrides, requested_recipe, validate_requested_sizes
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.run_config import eval_preprocessing
from efficientnetv2.training.run_lock import new_run_path
from efficientnetv2.training.run_options import RunOptions
from efficientnetv2.training.time_budget import StartupBudget
from efficientnetv2.utils.errors import InputError, pluralize
from efficientnetv2.utils.logs import as_details, silenced
from efficientnetv2.utils.progress import progress
from efficientnetv2.utils.rng import Key
from efficientnetv2.workflows.output_paths import RUNS
from efficientnetv2.workflows.run_options import Decided

_logger = logging.getLogger(__name__)

_FOLDS = 3
# Pictures and classes that are compared on, at most: for each start about 10 s on two cores, with V2-B0 at 224 px.
# Starts that differ by so little that more would be needed to tell them apart: the one that promises most. Ours.
_MOST_PICTURES, _MOST_CLASSES = 1_000, 60
# So many of these for each of --minutes: about a tenth of the time for three starts. Ours.
_PICTURES_A_MINUTE = 150
# Multiply-adds of a start on a CPU, at most: larger networks look at fewer pictures. Ours.
_MOST_MULTIPLY_ADDS = 1.2e12
# But no fewer than these. Ours.
_LEAST_PICTURES, _LEAST_OF_A_CLASS = 100, 4
# Share of the time that is left before the first step. Comparing stops where it takes this many times its share. Ours.
_SHARE, _LATE = 0.4, 1.5
# Images that are embedded to know how long one takes. Ours.
_FEW = 24


@dataclass(frozen=True, eq=False)
class _Task:
    """What every start is asked.

    Args:
        pictures: some of train.
        folds: rows of them to learn from and to answer.
        clusters: (n,) equal where pictures belong together: no fold takes them apart, and chance draws them as one too.
        kept: what no fold takes apart, in words.
        figure: ``top1`` or ``macro_f1``.
        key: of the draws.
    """

    pictures: ImageDataset
    folds: list[tuple[Ints, Ints]]
    clusters: Ints
    kept: str
    figure: str
    key: Key

    def value(self, answers: Ints) -> float:
        """The figure of answers to the pictures; -1 stands for none."""
        known = answers >= 0
        if self.figure == "macro_f1":
            return macro_f1(self.pictures.labels[known], answers[known])
        return float((self.pictures.labels[known] == answers[known]).mean())

    def better(self, one: Ints, other: Ints) -> bool:
        """Whether one answers better than the other by more than chance in the choice of pictures explains."""
        known = (one >= 0) & (other >= 0)
        if not known.any():
            return False
        difference = paired_difference(
            self.pictures.labels[known],
            one[known],
            other[known],
            self.clusters[known],
            len(self.pictures.class_names),
            key=self.key.fold("difference"),
        )[self.figure]
        return difference.low > 0


def chosen(
    known: Decided,
    words: TrainOverrides,
    prepared: DataModule,
    device: torch.device,
    workers: int,
    place: RunOptions,
    budget: StartupBudget | None = None,
) -> Decided:
    """Choose among the starts at hand, if there is more than one; else nothing changes.

    Each start's features of the same training pictures are classified linearly, cross-validated, with groups, places
    and identical files whole. A start gives way to one that promises less only where that one answers better by more
    than chance explains, for features that begin alike serve training the better the more they have seen. The bundled
    weights have seen aerial images alone, so they have to be better than random ones by more than chance. Pictures of
    val and test are not looked at. What is left undone: pictures of several labels, which a linear probe does not
    answer, and too few.

    Args:
        known: of the run, so far with the first start.
        words: about the recipe.
        prepared: the pictures.
        device: to compute on.
        workers: processes that read pictures.
        place: of the run.
        budget: Time before the first step, of which comparing takes a part at most. Fewer images are compared then, or
            the first start is taken. None compares as many as the minutes allow.

    Returns:
        The run with the start chosen: with another recipe and another folder, where it is begun from scratch after
        all.
    """
    if len(known.starts) < 2 or prepared.dataset.separator is not None:
        return known
    if known.recipe.weights != known.starts[0].word:
        return known  # --set weights has named others
    starts, unfit = _fitting(known.starts, words, device)
    known = replace(known, starts=starts, chosen=(*known.chosen, *unfit))
    if len(starts) < 2:
        return known
    began, within_s = time.perf_counter(), None if budget is None else _SHARE * budget.left_s
    # Starts are compared at the size that the run will have, which is less where pictures are stored small.
    recipe, _ = limit_upscaling(known.recipe, prepared.stored_px if known.recipe.enlarge else None)
    eval_px = recipe.eval_px or recipe.progressive.last.image_px
    recipe = recipe.model_copy(update={"eval_px": eval_px, "eval_views": "one"})
    most = None
    if within_s is not None:
        image_s = _image_s(starts[0], recipe, prepared, device, workers)
        most = int((within_s - (time.perf_counter() - began)) / (len(starts) * image_s))
        if most < _LEAST_PICTURES:
            return _uncompared(known)
    task = _task(recipe, prepared, words.minutes, device, most)
    if task is None:
        return known
    names = {"top1": "top-1", "macro_f1": "macro-F1"}
    answers: list[Ints] = []
    _logger.debug(
        f"Comparing {len(known.starts)} starts by linear probes, on "
        f"{pluralize(len(task.pictures), 'training picture')} each. Without it: --weights NAME, FILE or none."
    )
    ends = None if within_s is None else began + _LATE * within_s
    with progress("comparing weights", len(known.starts) * len(task.pictures)) as counted:
        for number, found in enumerate(known.starts):
            before = number * len(task.pictures)
            try:
                answers.append(
                    _answers(found, recipe, task, device, workers, _shifted(counted, before, ends))
                )
            except _LateError:
                return _uncompared(known)
    figures = [task.value(one) for one in answers]
    best = 0
    for number, one in enumerate(answers):
        best = number if task.better(one, answers[best]) else best
    best, why = _from_scratch(known.starts, answers, task, best)
    why = why or _said(best, figures)
    winner = known.starts[best]
    note = (
        f"Weights: {winner.word}, chosen among {len(figures)} starts by linear probes inside the training split: "
        f"{names[task.figure]} {_listed(known.starts, figures)}, on {pluralize(len(task.pictures), 'picture')} in "
        f"{_FOLDS} folds{task.kept}{why} ({time.perf_counter() - began:.0f} s). To choose yourself: "
        "--weights NAME, FILE or none."
    )
    with as_details() if best else silenced():  # what the first says is known
        settled, notes = requested_recipe(words, device, found=replace(winner, note=note))
    lacking = [f"Not compared, but promising more: {one.lacking}" for one in known.starts if one.lacking]
    assert (settled.holdout, settled.minival, settled.seed) == (recipe.holdout, recipe.minival, recipe.seed)
    moved = place.out is None and settled.name != recipe.name
    return replace(
        known,
        path=new_run_path(RUNS, settled.name) if moved else known.path,
        recipe=settled,
        chosen=(*notes, *lacking, *unfit),
        compared=_plain(known.starts, figures, task),
    )


class _LateError(Exception):
    """Comparing takes longer than its part of the time."""


def _uncompared(known: Decided) -> Decided:
    """The run with its first start, where the time is too short to compare."""
    note = (
        f"Weights: {known.starts[0].word}, not compared with other starts (too little time). To choose yourself: "
        "--weights NAME, FILE or none."
    )
    return replace(known, chosen=(*known.chosen, note))


def _image_s(
    found: WeightsCandidate, recipe: Recipe, prepared: DataModule, device: torch.device, workers: int
) -> float:
    """Seconds to embed one training image, from a few of them."""
    train = prepared.train
    few = train.select(np.unique(np.linspace(0, len(train) - 1, _FEW).astype(np.int64)))
    network = build_initial_model(
        recipe.model_copy(update={"weights": found.word}),
        class_names=train.class_names,
        device=device,
        in_channels=train.channels,
    ).network
    preprocessing = eval_preprocessing(recipe, network, train.bands)
    began = time.perf_counter()
    embed_dataset(network, few, preprocessing=preprocessing, device=device, workers=workers)
    return (time.perf_counter() - began) / len(few)


def _fitting(
    starts: Sequence[WeightsCandidate], words: TrainOverrides, device: torch.device
) -> tuple[tuple[WeightsCandidate, ...], list[str]]:
    """The starts whose recipes the words fit, and a sentence on each other one: it could win, but not be begun."""
    fitting, unfit = [], []
    for found in starts:
        try:
            with silenced():
                recipe, _ = requested_recipe(words, device, found=found)
            validate_requested_sizes(recipe, device, [found.word])
            fitting.append(found)
        except InputError as error:
            unfit.append(f"Weights: {found.title} left out of the comparison. Of its recipe: {error}")
    return tuple(fitting), unfit


def _task(
    recipe: Recipe,
    prepared: DataModule,
    minutes: float | None,
    device: torch.device,
    within: int | None = None,
) -> _Task | None:
    """The pictures and folds; None where there are too few. In the time there are at most ``within`` images."""
    train = prepared.train
    key = Key.of(recipe.seed).fold("starts")
    classes = min(len(train.class_names), _MOST_CLASSES)
    most = float(_MOST_PICTURES)
    if minutes is not None:
        most = min(most, _PICTURES_A_MINUTE * minutes)
    if device.type == "cpu":
        scratch = recipe.model_copy(update={"weights": "none"})
        network = build_initial_model(
            scratch, class_names=train.class_names, device=device, in_channels=train.channels
        ).network
        assert recipe.eval_px is not None
        most = min(most, _MOST_MULTIPLY_ADDS / multiply_adds(network, recipe.eval_px))
    most = max(most, _LEAST_PICTURES, _LEAST_OF_A_CLASS * classes)
    rows = _drawn(train.labels, int(most if within is None else min(most, within)), key)
    pictures = train.select(rows)
    counts = np.bincount(pictures.labels)
    if counts.max() < _FOLDS or (counts > 0).sum() < 2:
        return None
    contents = prepared.contents[prepared.dataset.split == "train"][rows]
    return _dealt(pictures, contents, recipe.chosen_by, key)


def _drawn(labels: Ints, most: int, key: Key) -> Ints:
    """Rows of so many pictures, ascending: some of each class, the others as they come."""
    generator = key.fold("pictures").generator()
    order = generator.permutation(len(labels))
    there = generator.permutation(np.unique(labels))[:_MOST_CLASSES]
    order = order[np.isin(labels[order], there)]
    place_in_class = pd.Series(labels[order]).groupby(labels[order]).cumcount().to_numpy()
    first = np.argsort(place_in_class >= _LEAST_OF_A_CLASS, kind="stable")
    rows: Ints = np.sort(order[first][:most]).astype(np.int64)
    return rows


def _dealt(pictures: ImageDataset, contents: Ints, figure: str, key: Key) -> _Task:
    """Folds that take nothing apart that belongs together, as far as each then learns every class."""
    level, folds = strictest_grouping(groupings(pictures, contents), pictures.labels, parts=_FOLDS, key=key)
    whole = [f"places of {level.block:g}°"] if level.block is not None else []
    whole += ["groups"] if level.groups else []
    kept = f", {' and '.join(whole)} kept whole" if whole else ""
    return _Task(pictures, folds, level.clusters, kept, figure, key)


def _answers(
    found: WeightsCandidate,
    recipe: Recipe,
    task: _Task,
    device: torch.device,
    workers: int,
    progress: Callable[[int], object],
) -> Ints:
    """(n,) classes that linear probes on the features of a start answer; -1 where there is no answer."""
    pictures, balanced = task.pictures, recipe.balance is not None
    begun = build_initial_model(
        recipe.model_copy(update={"weights": found.word}),
        class_names=pictures.class_names,
        device=device,
        in_channels=pictures.channels,
    )
    embedded = embed_dataset(
        begun.network,
        pictures,
        preprocessing=eval_preprocessing(recipe, begun.network, pictures.bands),
        device=device,
        workers=workers,
        progress=progress,
    )
    answers = np.full(len(pictures), -1, dtype=np.int64)
    for learning, answering in task.folds:
        taught, asked = (np.isin(embedded.samples, rows) for rows in (learning, answering))
        if asked.any() and len(np.unique(embedded.labels[taught])) > 1:
            probe = fit_classifier(
                embedded.vectors[taught], embedded.labels[taught], DEFAULT_STRENGTH, balanced
            )
            answers[embedded.samples[asked]] = probe.predict(embedded.vectors[asked])
    return answers


def _from_scratch(
    starts: Sequence[WeightsCandidate], answers: Sequence[Ints], task: _Task, best: int
) -> tuple[int, str]:
    """Random weights in the place of bundled ones that are not clearly better, and why; else the same start."""
    scratch = next((number for number, found in enumerate(starts) if found.word == "none"), None)
    if scratch is None or not starts[best].bundled or task.better(answers[best], answers[scratch]):
        return best, ""
    return scratch, f"; {starts[best].title} is not better than that by more than chance explains"


def _said(best: int, figures: Sequence[float]) -> str:
    """Why one has won whose figure is not the highest, where it is not."""
    if figures[best] >= max(figures):
        return ""
    return "; chosen although lower: the difference is within what chance explains"


def _listed(starts: Sequence[WeightsCandidate], figures: Sequence[float]) -> str:
    return ", ".join(f"{figure:.1%} for {found.title}" for found, figure in zip(starts, figures, strict=True))


def _plain(starts: Sequence[WeightsCandidate], figures: Sequence[float], task: _Task) -> dict[str, Any]:
    return {
        "figure": task.figure,
        "pictures": len(task.pictures),
        "folds": _FOLDS,
        "starts": [
            {"weights": found.word, "value": round(figure, 4)}
            for found, figure in zip(starts, figures, strict=True)
        ],
    }


def _shifted(progress: Callable[[int], object], before: int, ends: float | None) -> Callable[[int], object]:
    """Progress of one start among all; raises ``_LateError`` after a time by ``time.perf_counter()``."""

    def shifted(done: int) -> None:
        progress(before + done)
        if ends is not None and time.perf_counter() > ends:
            raise _LateError

    return shifted
