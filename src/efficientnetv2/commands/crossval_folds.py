"""The runs of a cross-validation: in each fold what chooses, then what answers; each is an ordinary run of ``train``.

The first run of its kind settles the recipe (what suits the machine, how many epochs fit); all later ones repeat it.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from efficientnetv2.base.errors import InputError, count_of
from efficientnetv2.base.files import write_atomically, write_text_atomically
from efficientnetv2.commands.beginning import Place
from efficientnetv2.commands.crossval_plan import Plan
from efficientnetv2.commands.prepare import Source
from efficientnetv2.commands.screen import Screen, duration
from efficientnetv2.commands.tables import read_predictions
from efficientnetv2.commands.train_job import trained
from efficientnetv2.commands.words import Words
from efficientnetv2.data.folds import Folds
from efficientnetv2.data.listing import Ints
from efficientnetv2.data.manifest import Manifest, read
from efficientnetv2.evaluation.crossval import FoldScore
from efficientnetv2.metrics.several import MEANS_OVER_CLASSES

# Of --minutes, what goes into runs; the rest is for measuring, the probe and the reports. Ours.
_FOR_RUNS = 0.9


@dataclass(frozen=True, eq=False)
class Answered:
    """What one fold's network answered.

    Args:
        score: its figures.
        rows: (n,) of the pictures in the whole manifest.
        probabilities: (n, K).
        scores: of each try, on what chose; empty without a choice.
    """

    score: FoldScore
    rows: Ints
    probabilities: npt.NDArray[np.float64]
    scores: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Runs:
    """What all runs of a cross-validation have in common.

    Args:
        words: about the recipe; ``minutes`` is for all runs together.
        plan: of the folds.
        place: where and how to run.
        manifest: of all pictures, readable.
        contents: (N,) equal for identical files.
        seed: of the recipe.
        screen: gets lines and bars.
        bands: of rasters, as ``--bands`` says them.
    """

    words: Words
    plan: Plan
    place: Place
    manifest: Manifest
    contents: Ints
    seed: int
    screen: Screen
    bands: str | None = None

    def answer(self, dealt: Folds, folder: Path, what: str) -> list[Answered]:
        """Every fold, in order; what is done already is only read.

        Args:
            dealt: the folds.
            folder: for their runs.
            what: to call a fold.
        """
        return [self._fold(dealt, number, folder, what) for number in range(len(dealt.parts))]

    def _fold(self, dealt: Folds, number: int, folder: Path, what: str) -> Answered:
        part = dealt.parts[number]
        called = f"{what} {number + 1} of {len(dealt.parts)}"
        if not (folder / f"fold{number + 1}" / "report.json").exists():
            span = f" ({part.note})" if part.note else ""
            learning, answering = count_of(len(part.learning), "picture"), f"{len(part.answering):,}"
            self.screen.say(f"{called}: learns from {learning}, answers {answering}{span}.")
        scores = self._scores(dealt, number, folder, called)
        best = int(np.argmax(scores)) if scores else None
        report, probabilities, rows = self._run(
            folder, f"fold{number + 1}", part.learning, part.answering, self._repeated(folder, best), called
        )
        name, mean = _mean_of(report)
        score = FoldScore(
            number=number,
            note=part.note,
            learning=len(part.learning),
            answering=len(rows),
            top1=report["top1"],
            mean=mean,
            epochs=report["epochs"],
            seconds=report["wall_s"],
            chosen=None if best is None else self.plan.name_of(best),
        )
        chose = f", with {score.chosen}" if score.chosen else ""
        self.screen.say(
            f"{called}: {MEANS_OVER_CLASSES[name]} {mean:.3f}, top-1 {score.top1:.1%} on "
            f"{count_of(len(rows), 'picture')} ({duration(score.seconds)}{chose})."
        )
        return Answered(score, rows, probabilities, scores)

    def _scores(self, dealt: Folds, number: int, folder: Path, called: str) -> tuple[float, ...]:
        """What each try reached inside the fold's training pictures; runs that have told it are removed."""
        if not self.plan.tries:
            return ()
        told = folder / "choosing" / f"fold{number + 1}.json"
        if not told.exists():
            learning, choosing = self.plan.parted(self.manifest, self.contents, dealt, number, self.seed)
            scores = {}
            for place, name in enumerate(self.plan.tries):
                run = f"fold{number + 1}_try{place + 1}"
                words = self._repeated(folder, place, choosing=True)
                report, _, _ = self._run(told.parent, run, learning, choosing, words, called)
                figure, scores[name] = _mean_of(report)
                self.screen.say(
                    f"{called}, choosing: {MEANS_OVER_CLASSES[figure]} {scores[name]:.3f} with "
                    f"{self.plan.name_of(place)} ({duration(report['wall_s'])})."
                )
                settled = told.parent / f"try{place + 1}.yaml"
                if not settled.exists():
                    write_text_atomically(settled, (told.parent / run / "recipe.yaml").read_text("utf-8"))
            write_text_atomically(told, json.dumps(scores, indent=1) + "\n")
        for place in range(len(self.plan.tries)):
            shutil.rmtree(told.parent / f"fold{number + 1}_try{place + 1}", ignore_errors=True)
        scores = json.loads(told.read_text(encoding="utf-8"))
        return tuple(scores[name] for name in self.plan.tries)

    def _repeated(self, folder: Path, attempt: int | None, *, choosing: bool = False) -> Words:
        """The words of a run: of the first of its kind the user's, then the recipe that this one settled."""
        # Folds that were dealt otherwise repeat what the first ones settled.
        for place in dict.fromkeys((folder, self.place.out or folder)):
            tried = place / "choosing" / f"try{(attempt or 0) + 1}.yaml"
            settled = tried if choosing else self._answered_with(place, attempt)
            if settled is not None and settled.exists():
                return Words(recipe=str(settled), cache=self.words.cache)
        further = () if attempt is None else self.plan.settings_of(attempt, choosing=choosing)
        words = replace(self.words, settings=(*self.words.settings, *further))
        if any(setting.partition("=")[0].strip() in ("epochs", "steps") for setting in further):
            return replace(words, minutes=None)
        if words.minutes is not None:
            return replace(words, minutes=words.minutes * _FOR_RUNS / self.plan.runs)
        return words

    def _answered_with(self, folder: Path, attempt: int | None) -> Path | None:
        """The recipe of the first fold that chose this try, and was begun."""
        for number in range(self.plan.folds):
            recipe = folder / f"fold{number + 1}" / "recipe.yaml"
            if not recipe.exists():
                continue
            if attempt is None:
                return recipe
            told = folder / "choosing" / f"fold{number + 1}.json"
            scores = list(json.loads(told.read_text(encoding="utf-8")).values())
            if int(np.argmax(scores)) == attempt:
                return recipe
        return None

    def _run(
        self, folder: Path, name: str, learning: Ints, answering: Ints, words: Words, called: str
    ) -> tuple[dict[str, Any], npt.NDArray[np.float64], Ints]:
        """One run: its report, and its answers (n, K) to the pictures of the rows (n,)."""
        rows = np.concatenate([learning, answering])
        file = self._table(folder / "pictures" / f"{name}.csv", rows, len(learning))
        path = folder / name
        begun = (path / "recipe.yaml").exists()
        own = words.recipe_file is None or words.recipe_file == path / "recipe.yaml"
        place = replace(self.place, out=path, resume=begun, as_json=False, probe=False)
        source = Source(str(file), label_separator=self.manifest.separator, bands=self.bands)
        try:
            trained(words, source, place, _Aside(self.screen, speaking=own and not begun))
        except InputError as error:
            raise InputError(self._explained(str(error), called, words)) from error
        if not (path / "predictions.csv").exists():
            raise InputError(
                f"{path}: the run has finished, but its answers are not there any more. Remove that folder, and it is "
                "trained again."
            )
        report = json.loads((path / "report.json").read_text(encoding="utf-8"))
        paths, probabilities = read_predictions(path / "predictions.csv", self.manifest.class_names)
        place_of = dict(
            zip(read(file, label_separator=self.manifest.separator).paths, rows.tolist(), strict=True)
        )
        return report, probabilities, np.array([place_of[one] for one in paths], dtype=np.int64)

    def _explained(self, message: str, called: str, words: Words) -> str:
        if self.words.minutes is None or words.minutes is None:
            return f"{called}: {message}"
        return (
            f"{called}: {message} (--minutes {self.words.minutes:g} is for all {self.plan.runs} runs: "
            f"{words.minutes:.3g} each.)"
        )

    def _table(self, file: Path, rows: Ints, learning: int) -> Path:
        """The pictures of a run, marked as train and val."""
        if not file.exists():
            split = np.array(["train"] * learning + ["val"] * (len(rows) - learning), dtype=object)
            file.parent.mkdir(parents=True, exist_ok=True)
            # Beside it paths are relative to its folder, so the temporary file has to lie there too: it does.
            write_atomically(file, self.manifest.select(rows).with_split(split).to_csv)
        return file


class _Aside(Screen):
    """The screen of a run among many: its bars, and its lines only where nobody has said the like before.

    Args:
        screen: of the whole.
        speaking: let lines through.
    """

    def __init__(self, screen: Screen, *, speaking: bool) -> None:
        super().__init__(mute=True)
        self.notes, self._speaking = screen.notes, speaking

    def say(self, line: str) -> None:
        """A line, if this run may speak."""
        if self._speaking:
            super().say(line)


def _mean_of(report: dict[str, Any]) -> tuple[str, float]:
    """The figure of a report in which each class counts alike."""
    name = next(name for name in MEANS_OVER_CLASSES if name in report)
    return name, float(report[name])
