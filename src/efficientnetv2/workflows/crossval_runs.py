"""The runs of a cross-validation: in each fold what chooses, then what answers; each is an ordinary run of ``train``.

The first run of its kind, and from its weights, settles the recipe (what suits the machine, how many epochs fit); all
later ones repeat it, but for the seed.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections import ChainMap
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.data_module import SharedDataset
from efficientnetv2.data.dataset import ImageDataset, load_dataset
from efficientnetv2.data.folds import Folds
from efficientnetv2.data.records import Ints
from efficientnetv2.evaluation.crossval import FoldScore
from efficientnetv2.metrics.multilabel import MACRO_METRICS, compute_metrics, macro_metric
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.training.callbacks import Callback
from efficientnetv2.training.overrides import TrainOverrides
from efficientnetv2.training.recipe_io import read_recipe as read_recipe
from efficientnetv2.training.run_dir import RunLog, quarantine, read_skipped
from efficientnetv2.training.run_options import RunOptions
from efficientnetv2.utils.errors import InputError, count_of, duration
from efficientnetv2.utils.io import read_object, write_atomically, write_text_atomically
from efficientnetv2.utils.logs import attached, hushed
from efficientnetv2.utils.probability import Answer
from efficientnetv2.workflows.batch_predict import SKIPPED
from efficientnetv2.workflows.crossval_config import Plan, with_further
from efficientnetv2.workflows.predictions_io import read_predictions
from efficientnetv2.workflows.train import trained

_logger = logging.getLogger(__name__)

# Of --minutes, what goes into runs; the rest is for measuring, the probe and the reports. Ours.
_FOR_RUNS = 0.9


def run_name(number: int, member: int = 0) -> str:
    """Of the run that answers a fold, seen from the folder; ``fold2_member3`` of the third that answers the second.

    Args:
        number: of the fold, from 0.
        member: of the networks that answer it together, from 0.
    """
    return f"fold{number + 1}" + (f"_member{member + 1}" if member else "")


def told_of(folder: Path, number: int) -> dict[str, Any]:
    """What the tries of a fold have come to: ``scores`` by try, ``seconds`` of all, ``pictures`` of the fold.

    Args:
        folder: of the folds.
        number: of the fold, from 0.
    """
    file = folder / "choosing" / f"fold{number + 1}.json"
    return read_object(
        file, "scores", "seconds", fix="Remove it, and --resume tries this fold's settings again."
    )


def preprocessing_of_first(folder: Path) -> Preprocessing:
    """How the first fold's network looks at images.

    Args:
        folder: Of the folds.

    Raises:
        InputError: The file that says so is damaged.
    """
    run = folder / run_name(0)
    fix = f"Remove {run}, and --resume trains it again."
    return Preprocessing.from_json(
        read_object(run / "beginning.json", "preprocessing", fix=fix)["preprocessing"]
    )


def scores_of(folder: Path, plan: Plan, number: int) -> tuple[float, ...]:
    """What each try reached inside a fold's training pictures; empty where nothing is chosen.

    Args:
        folder: of the folds.
        plan: of them.
        number: of the fold, from 0; its tries are done.
    """
    if not plan.chooses:
        return ()
    scores = told_of(folder, number)["scores"]
    return tuple(scores[name] for name in plan.tries)


def answerers(plan: Plan, scores: tuple[float, ...]) -> tuple[int | None, ...]:
    """The tries whose networks answer a fold together, the best first; None is the recipe as it is.

    Args:
        plan: of the folds.
        scores: of ``scores_of``.
    """
    if scores:
        return tuple(np.argsort(-np.array(scores), kind="stable")[: plan.members].tolist())
    return tuple(range(plan.members)) if plan.tries else (None,) * plan.members


def tried_with(folder: Path, attempt: int) -> list[Path]:
    """The recipes that choosing runs of this try have settled: of the first fold's weights, then of others."""
    first = folder / "choosing" / f"try{attempt + 1}.yaml"
    return [file for file in (first, *sorted(first.parent.glob(f"{first.stem}_fold*.yaml"))) if file.exists()]


def answered_with(folder: Path, plan: Plan, attempt: int | None) -> list[Path]:
    """The recipes of the runs that answer folds with this try, and were begun."""
    found = []
    for number in range(plan.folds):
        begun = [folder / run_name(number, member) / "recipe.yaml" for member in range(plan.members)]
        if not begun[0].exists():
            continue  # nor have its tries come to anything
        tries = answerers(plan, scores_of(folder, plan, number))
        found += [file for file, own in zip(begun, tries, strict=True) if own == attempt and file.exists()]
    return found


def minutes_of(
    asked: float | None, plan: Plan, dealt: Folds, number: int, first: Path, *, choosing: bool
) -> float | None:
    """What of ``--minutes`` is a run's own: as much of them as the fold has of all folds' training pictures.

    For later folds repeat, on more pictures or fewer, the epochs that the first finds to fit.

    Args:
        asked: ``--minutes``; None for none.
        plan: of the folds.
        dealt: the folds.
        number: of the run's fold, from 0.
        first: folder of the folds that were begun first.
        choosing: whether the run is a try's.

    Raises:
        InputError: the tries, whose length is set, leave nothing.
    """
    if asked is None or (choosing and plan.tries_timed):
        return None
    pictures = [len(part.train_rows) for part in dealt.parts]
    minutes, kinds = asked * _FOR_RUNS, plan.runs // plan.folds
    if plan.chooses and plan.tries_timed:
        sides = kinds // (plan.members + len(plan.tries))
        kinds = sides * plan.members
        tried = told_of(first, 0)
        spent = sides * sum(pictures) * tried["seconds"] / tried["pictures"] / 60
        minutes -= spent
        if minutes <= 0:
            raise InputError(
                f"--minutes {asked:g}: with {' '.join(plan.try_settings)} the tries of all folds take about "
                f"{spent:.3g} minutes, as measured in the first, and leave nothing for the folds themselves. Give "
                "more minutes or shorter tries (--try-set), and another --out."
            )
    return minutes / kinds * pictures[number] / sum(pictures)


# Of one run: report, answers (n, K), their rows (n,) in the whole dataset; row and reason of what it could not read.
_Ran = tuple[dict[str, Any], npt.NDArray[np.float64], Ints, dict[int, str]]


@dataclass(frozen=True, eq=False)
class Answered:
    """What one fold's network answered, or its networks together.

    Args:
        score: figures of the answers.
        rows: (n,) of the pictures in the whole dataset.
        probabilities: (n, K); of several networks the mean.
        answer: what they are.
        scores: of each try, on what chose; empty without a choice.
        unread: row in the whole dataset and reason of what its runs could not read; so of each picture that they
            were to answer and have not.
    """

    score: FoldScore
    rows: Ints
    probabilities: npt.NDArray[np.float64]
    answer: Answer
    scores: tuple[float, ...] = ()
    unread: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Runs:
    """What all runs of a cross-validation have in common.

    Args:
        words: about the recipe; ``minutes`` is for all runs together.
        plan: of the folds.
        place: where and how to run.
        dataset: of all pictures, readable.
        contents: (N,) equal for identical files.
        seed: of the recipe.
        bands: of rasters, as ``--bands`` says them.
        nodata: Missing data of rasters, as ``--nodata`` says it.
        callbacks: called in every run.
    """

    words: TrainOverrides
    plan: Plan
    place: RunOptions
    dataset: ImageDataset
    contents: Ints
    seed: int
    bands: str | None = None
    nodata: str | None = None
    callbacks: Sequence[Callback] = ()

    def answer(self, dealt: Folds, folder: Path, what: str) -> list[Answered]:
        """Every fold, in order; what is done already is only read.

        Args:
            dealt: the folds.
            folder: for their runs.
            what: to call a fold.
        """
        return [self._fold(dealt, number, folder, what) for number in range(len(dealt.parts))]

    def _fold(self, dealt: Folds, number: int, folder: Path, what: str) -> Answered:
        part, called = dealt.parts[number], f"{what} {number + 1} of {len(dealt.parts)}"
        if not (folder / run_name(number) / "report.json").exists():
            span = f" ({part.note})" if part.note else ""
            learning, answering = count_of(len(part.train_rows), "picture"), f"{len(part.val_rows):,}"
            _logger.info(f"{called}: learns from {learning}, answers {answering}{span}.")
        scores = self._scores(dealt, number, folder, called)
        tries = answerers(self.plan, scores)
        runs = [
            self._member(dealt, number, folder, place, attempt, called) for place, attempt in enumerate(tries)
        ]
        reports, given, everyone, unread = zip(*runs, strict=True)
        names = [run_name(number, place) for place in range(len(tries))]
        rows, probabilities = everyone[0], _together(given, everyone, [folder / name for name in names])
        recipes = [read_recipe(folder / name / "recipe.yaml") for name in names]
        answer = recipes[0].answer(self.dataset.separator)
        figures = compute_metrics(self.dataset.targets[rows], probabilities, self.dataset.class_names, answer)
        figure, mean = macro_metric(figures)
        score = FoldScore(
            number=number,
            note=part.note,
            learning=len(part.train_rows),
            answering=len(rows),
            top1=figures.top1,
            mean=mean,
            epochs=reports[0]["epochs"],
            seconds=round(sum(report["wall_s"] for report in reports), 2),
            weights=tuple(dict.fromkeys(recipe.weights for recipe in recipes)),
            chosen=tuple(self.plan.name_of(attempt) for attempt in tries if attempt is not None),
        )
        chose = f", with {'; '.join(score.chosen)}" if scores else ""
        _logger.info(
            f"{called}: {MACRO_METRICS[figure]} {mean:.3f}, top-1 {score.top1:.1%} on "
            f"{count_of(len(rows), 'picture')} ({duration(score.seconds)}{chose})."
        )
        return Answered(score, rows, probabilities, answer, scores, dict(ChainMap(*unread)))

    def _member(
        self, dealt: Folds, number: int, folder: Path, place: int, attempt: int | None, called: str
    ) -> _Ran:
        """One of the networks that answer a fold; without tries they differ in their seed alone."""
        part, words = dealt.parts[number], self._words(dealt, number, folder, attempt)
        if attempt is None and place:
            # Last, for the user's own settings may say a seed; and what the first began from is not chosen again.
            first = read_recipe(folder / run_name(number) / "recipe.yaml")
            words = replace(
                words, weights=first.weights, settings=(*words.settings, f"seed={self.seed + place}")
            )
        settled = self._settled(folder, attempt)
        return self._run(
            dealt, folder, run_name(number, place), part.train_rows, part.val_rows, words, settled, called
        )

    def _scores(self, dealt: Folds, number: int, folder: Path, called: str) -> tuple[float, ...]:
        """What each try reached inside the fold's training pictures; runs that have told it are removed."""
        if not self.plan.chooses:
            return ()
        choosing = folder / "choosing"
        if not (choosing / f"fold{number + 1}.json").exists():
            self._choose(dealt, number, folder, called)
        for place in range(len(self.plan.tries)):
            shutil.rmtree(choosing / f"fold{number + 1}_try{place + 1}", ignore_errors=True)
        return scores_of(folder, self.plan, number)

    def _choose(self, dealt: Folds, number: int, folder: Path, called: str) -> None:
        """Train each try on a part of the fold's training pictures; write down what it reached, and in what time."""
        choosing = folder / "choosing"
        learning, asked = self.plan.parted(self.dataset, self.contents, dealt, number, self.seed)
        scores: dict[str, float] = {}
        seconds = 0.0
        for place, name in enumerate(self.plan.tries):
            run = f"fold{number + 1}_try{place + 1}"
            words = self._words(dealt, number, folder, place, choosing=True)
            settled = self._settled(folder, place, choosing=True)
            report, *_ = self._run(dealt, choosing, run, learning, asked, words, settled, called)
            figure, scores[name] = _mean_of(report)
            seconds += report["wall_s"]
            _logger.info(
                f"{called}, choosing: {MACRO_METRICS[figure]} {scores[name]:.3f} with "
                f"{self.plan.name_of(place)} ({duration(report['wall_s'])})."
            )
            recipe, there = (choosing / run / "recipe.yaml").read_text("utf-8"), tried_with(folder, place)
            if recipe not in [file.read_text("utf-8") for file in there]:
                fold = f"_fold{number + 1}" if there else ""
                write_text_atomically(choosing / f"try{place + 1}{fold}.yaml", recipe)
        told = {"scores": scores, "seconds": seconds, "pictures": len(dealt.parts[number].train_rows)}
        write_text_atomically(choosing / f"fold{number + 1}.json", json.dumps(told, indent=1) + "\n")

    def _words(
        self, dealt: Folds, number: int, folder: Path, attempt: int | None, *, choosing: bool = False
    ) -> TrainOverrides:
        """The user's words, with the settings of a try and this run's part of the minutes."""
        further = () if attempt is None else self.plan.settings_of(attempt, choosing=choosing)
        first = self.place.out or folder
        minutes = minutes_of(self.words.minutes, self.plan, dealt, number, first, choosing=choosing)
        return replace(with_further(self.words, further), minutes=minutes)

    def _settled(self, folder: Path, attempt: int | None, *, choosing: bool = False) -> tuple[Path, ...]:
        """The recipes that runs of this kind have settled before, in the order in which they are looked through."""
        # Folds that were dealt otherwise repeat what the first ones settled.
        places = dict.fromkeys((folder, self.place.out or folder))
        if choosing and attempt is not None:
            return tuple(file for place in places for file in tried_with(place, attempt))
        return tuple(file for place in places for file in answered_with(place, self.plan, attempt))

    def _run(
        self,
        dealt: Folds,
        folder: Path,
        name: str,
        learning: Ints,
        answering: Ints,
        words: TrainOverrides,
        settled: tuple[Path, ...],
        called: str,
    ) -> _Ran:
        """One run: its report, its answers (n, K) to the pictures of the rows (n,), and what it could not read."""
        rows = np.concatenate([learning, answering])
        file = self._table(dealt, folder / "pictures" / f"{name}.csv", rows, len(learning))
        path = folder / name
        begun = (path / "recipe.yaml").exists()
        if begun:  # it goes on with what it has settled itself
            words, settled = TrainOverrides(recipe=str(path / "recipe.yaml"), cache=self.words.cache), ()
        place = replace(self.place, out=path, resume=begun, probe=False, settled=settled)
        source = DataConfig(
            str(file), label_separator=self.dataset.separator, bands=self.bands, nodata=self.nodata
        )
        try:
            own = load_dataset(file, label_separator=self.dataset.separator)
            place = replace(
                place,
                common=SharedDataset.of(self.dataset, [one.train_rows for one in dealt.parts], own, rows),
            )
            log, first = RunLog(), not begun and not settled  # further runs say what the first has said
            with nullcontext() if first else hushed(), attached(log):
                trained(words, source, place, log, callbacks=self.callbacks)
        except InputError as error:
            raise InputError(self._explained(str(error), called, words)) from error
        return self._ran(path, {one: int(row) for one, row in zip(own.paths, rows, strict=True)}, answering)

    def _ran(self, path: Path, place_of: Mapping[str, int], answering: Ints) -> _Ran:
        """What a finished run found.

        Args:
            path: its folder.
            place_of: where a picture of its table stands in the dataset.
            answering: (n,) rows of the dataset that it was to answer.
        """
        if not (path / "predictions.csv").exists():
            raise InputError(
                f"{path}: the run has finished, but its answers are not there any more. Remove that folder, and it is "
                "trained again."
            )
        report = read_object(
            path / "report.json", "top1", fix=f"Remove {path}, and --resume trains it again."
        )
        answer = read_recipe(path / "recipe.yaml").answer(self.dataset.separator)
        paths, probabilities = read_predictions(path / "predictions.csv", self.dataset.class_names, answer)
        answered = np.array([place_of[one] for one in paths], dtype=np.int64)
        unread = {int(row): "it was not answered" for row in np.setdiff1d(answering, answered)}
        recorded = read_skipped(path / SKIPPED)
        if recorded is None:
            _logger.info(quarantine(path / SKIPPED, "Why images of this run were skipped is not known."))
        unread |= {place_of[one]: why for one, why in recorded or () if one in place_of}
        return report, probabilities, answered, unread

    def _explained(self, message: str, called: str, words: TrainOverrides) -> str:
        if self.words.minutes is None or words.minutes is None:
            return f"{called}: {message}"
        return (
            f"{called}: {message} (--minutes {self.words.minutes:g} is for all {self.plan.runs} runs; this one gets "
            f"{words.minutes:.3g} minutes.)"
        )

    def _table(self, dealt: Folds, file: Path, rows: Ints, learning: int) -> Path:
        """The pictures of a run, marked as train and val, with what was kept whole; written anew each time."""
        split = np.array(["train"] * learning + ["val"] * (len(rows) - learning), dtype=object)
        file.parent.mkdir(parents=True, exist_ok=True)
        # Beside it paths are relative to its folder, so the temporary file has to lie there too: it does.
        write_atomically(file, dealt.with_clusters(self.dataset).select(rows).with_split(split).to_csv)
        return file


def _mean_of(report: dict[str, Any]) -> tuple[str, float]:
    """The figure of a report in which each class counts alike."""
    name = next(name for name in MACRO_METRICS if name in report)
    return name, float(report[name])


def _together(
    given: Sequence[npt.NDArray[np.float64]], rows: Sequence[Ints], folders: Sequence[Path]
) -> npt.NDArray[np.float64]:
    """The mean of what networks answered to the same pictures.

    Args:
        given: (n, K) each.
        rows: (n,) of the pictures, each.
        folders: of their runs.

    Raises:
        InputError: to other pictures; some have become unreadable, or readable, meanwhile.
    """
    for own, folder in zip(rows, folders, strict=True):
        if not np.array_equal(own, rows[0]):
            raise InputError(
                f"{folder}: it has answered {count_of(len(own), 'picture')}, but {folders[0]} {len(rows[0]):,}: some "
                "have become unreadable, or readable again, between the two. Mend the pictures, remove whichever of "
                "the two folders was made without them, and go on with --resume: it is trained again."
            )
    mean: npt.NDArray[np.float64] = np.mean(given, axis=0)
    return mean
