"""``--weights auto`` where several starts are at hand: a linear probe of each, inside the training split, decides."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import StratifiedGroupKFold

from efficientnetv2.base.errors import count_of
from efficientnetv2.base.keys import Key
from efficientnetv2.commands.beginning import RUNS, Decided, Place
from efficientnetv2.commands.foretold import preprocessing_of
from efficientnetv2.commands.prepare import Prepared
from efficientnetv2.commands.screen import Screen
from efficientnetv2.commands.words import Words, begin_recipe
from efficientnetv2.data.levels import levels_of
from efficientnetv2.data.listing import Ints
from efficientnetv2.data.manifest import Manifest
from efficientnetv2.inference.predict import Embeddings, embed_manifest
from efficientnetv2.inference.probe import USUAL_STRENGTH, fitted, macro_f1, multiply_adds
from efficientnetv2.training.folder import new_folder
from efficientnetv2.training.named import Found
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.start import start

_FOLDS = 3
# Pictures and classes that are compared on, at most: for each start about 10 s on two cores, with V2-B0 at 224 px.
# Starts that differ by so little that more would be needed to tell them apart are as good as each other. Ours.
_MOST_PICTURES, _MOST_CLASSES = 1_000, 60
# So many of these for each of --minutes: about a tenth of the time for three starts. Ours.
_PICTURES_A_MINUTE = 150
# Multiply-adds of a start on a CPU, at most: larger networks look at fewer pictures. Ours.
_MOST_MULTIPLY_ADDS = 1.2e12
# But no fewer than these. Ours.
_LEAST_PICTURES, _LEAST_OF_A_CLASS = 100, 4


@dataclass(frozen=True, eq=False)
class _Task:
    """What every start is asked.

    Args:
        pictures: some of train.
        folds: rows of them to learn from and to answer.
        kept: what no fold takes apart, in words.
    """

    pictures: Manifest
    folds: list[tuple[Ints, Ints]]
    kept: str


def chosen(
    known: Decided,
    words: Words,
    prepared: Prepared,
    device: torch.device,
    workers: int,
    place: Place,
    screen: Screen,
) -> Decided:
    """Choose among the starts at hand, if there is more than one; else nothing changes.

    Each start's features of the same training pictures are classified linearly, cross-validated, with groups, places
    and identical files whole. The best figure wins; of equals what promises most. Pictures of val and test are not
    looked at. What is left undone: pictures of several labels, which a linear probe does not answer, and too few.

    Args:
        known: of the run, so far with the first start.
        words: about the recipe.
        prepared: the pictures.
        device: to compute on.
        workers: processes that read pictures.
        place: of the run.
        screen: shows progress.

    Returns:
        The run with the start chosen: with another recipe and another folder, where it is begun from scratch after
        all.
    """
    if len(known.starts) < 2 or prepared.manifest.separator is not None:
        return known
    if known.recipe.weights != known.starts[0].word:
        return known  # --set weights has named others
    began = time.perf_counter()
    recipe = known.recipe.model_copy(
        update={
            "eval_px": known.recipe.eval_px or known.recipe.progressive.last.image_px,
            "eval_views": "one",
        }
    )
    task = _task(recipe, prepared, words.minutes, device)
    if task is None:
        return known
    names = {"top1": "top-1", "macro_f1": "macro-F1"}
    figures = []
    with screen.counting("comparing weights", len(known.starts) * len(task.pictures)) as counted:
        for number, found in enumerate(known.starts):
            before = number * len(task.pictures)
            figures.append(_figure(found, recipe, task, device, workers, _shifted(counted, before)))
    best = int(np.argmax(figures))  # the first of equals
    winner = known.starts[best]
    note = (
        f"Weights: {winner.word}, chosen among {len(figures)} starts by linear probes inside the training split: "
        f"{names[recipe.chosen_by]} {_listed(known.starts, figures)}, on {count_of(len(task.pictures), 'picture')} in "
        f"{_FOLDS} folds{task.kept} ({time.perf_counter() - began:.0f} s). To choose yourself: --weights NAME, FILE or "
        "none."
    )
    say = screen.say if best else lambda line: None
    settled, notes = begin_recipe(words, device, say, found=replace(winner, note=note))
    assert (settled.holdout, settled.minival, settled.seed) == (recipe.holdout, recipe.minival, recipe.seed)
    moved = place.out is None and settled.name != recipe.name
    return replace(
        known,
        path=new_folder(RUNS, settled.name) if moved else known.path,
        recipe=settled,
        chosen=tuple(notes),
        compared=_plain(known.starts, figures, recipe, task),
    )


def _task(recipe: Recipe, prepared: Prepared, minutes: float | None, device: torch.device) -> _Task | None:
    """The pictures and folds; None where there are too few."""
    train = prepared.train
    key = Key.of(recipe.seed).fold("starts")
    classes = min(len(train.class_names), _MOST_CLASSES)
    most = float(_MOST_PICTURES)
    if minutes is not None:
        most = min(most, _PICTURES_A_MINUTE * minutes)
    if device.type == "cpu":
        scratch = recipe.model_copy(update={"weights": "none"})
        network = start(
            scratch, class_names=train.class_names, device=device, in_channels=train.channels
        ).network
        assert recipe.eval_px is not None
        most = min(most, _MOST_MULTIPLY_ADDS / multiply_adds(network, recipe.eval_px))
    rows = _drawn(train.labels, int(max(most, _LEAST_PICTURES, _LEAST_OF_A_CLASS * classes)), key)
    pictures = train.select(rows)
    counts = np.bincount(pictures.labels)
    if counts.max() < _FOLDS or (counts > 0).sum() < 2:
        return None
    contents = prepared.contents[prepared.manifest.split == "train"][rows]
    return _dealt(pictures, contents, key)


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


def _dealt(pictures: Manifest, contents: Ints, key: Key) -> _Task:
    """Folds that take nothing apart that belongs together, as far as each then learns every class."""
    labels = pictures.labels
    levels = levels_of(pictures, contents)
    for level in levels:
        if len(np.unique(level.clusters)) < _FOLDS and level is not levels[-1]:
            continue
        splitter = StratifiedGroupKFold(
            _FOLDS, shuffle=True, random_state=key.fold("folds").torch_seed() % 2**32
        )
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # a class may have fewer pictures than there are folds
            folds = list(splitter.split(labels, labels, level.clusters))
        if all(len(np.unique(labels[learning])) == len(np.unique(labels)) for learning, _ in folds):
            break
    whole = [f"places of {level.block:g}°"] if level.block is not None else []
    whole += ["groups"] if level.groups else []
    return _Task(pictures, folds, f", {' and '.join(whole)} kept whole" if whole else "")


def _figure(
    found: Found,
    recipe: Recipe,
    task: _Task,
    device: torch.device,
    workers: int,
    progress: Callable[[int], object],
) -> float:
    """What linear probes on the features of a start reach, on all folds together."""
    pictures, balanced = task.pictures, recipe.balance is not None
    begun = start(
        recipe.model_copy(update={"weights": found.word}),
        class_names=pictures.class_names,
        device=device,
        in_channels=pictures.channels,
    )
    embedded = embed_manifest(
        begun.network,
        pictures,
        preprocessing=preprocessing_of(recipe, begun.network, pictures),
        device=device,
        workers=workers,
        progress=progress,
    )
    answers = _answers(embedded, task.folds, balanced=balanced)
    known = answers >= 0
    if recipe.chosen_by == "macro_f1":
        return macro_f1(embedded.labels[known], answers[known])
    return float((embedded.labels[known] == answers[known]).mean())


def _answers(embedded: Embeddings, folds: list[tuple[Ints, Ints]], *, balanced: bool) -> Ints:
    """(n,) classes; -1 where no fold has two classes to learn."""
    answers = np.full(len(embedded.labels), -1, dtype=np.int64)
    for learning, answering in folds:
        taught, asked = (np.isin(embedded.samples, rows) for rows in (learning, answering))
        if asked.any() and len(np.unique(embedded.labels[taught])) > 1:
            probe = fitted(embedded.vectors[taught], embedded.labels[taught], USUAL_STRENGTH, balanced)
            answers[asked] = probe.predict(embedded.vectors[asked])
    return answers


def _listed(starts: Sequence[Found], figures: Sequence[float]) -> str:
    return ", ".join(f"{figure:.3f} for {found.title}" for found, figure in zip(starts, figures, strict=True))


def _plain(starts: Sequence[Found], figures: Sequence[float], recipe: Recipe, task: _Task) -> dict[str, Any]:
    return {
        "figure": recipe.chosen_by,
        "pictures": len(task.pictures),
        "folds": _FOLDS,
        "starts": [
            {"weights": found.word, "value": round(figure, 4)}
            for found, figure in zip(starts, figures, strict=True)
        ],
    }


def _shifted(progress: Callable[[int], object], before: int) -> Callable[[int], object]:
    return lambda done: progress(before + done)
