"""What a run of a cross-validation takes over from those before it: the settled recipe, and its part of the minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from efficientnetv2.base.errors import InputError
from efficientnetv2.base.files import read_object
from efficientnetv2.base.preprocessing import Preprocessing
from efficientnetv2.commands.crossval_plan import Plan
from efficientnetv2.data.folds import Folds

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
    pictures = [len(part.learning) for part in dealt.parts]
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
