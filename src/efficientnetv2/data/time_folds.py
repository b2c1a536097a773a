"""Folds by time: the past teaches and the next period answers, as it will be in use; the first period only teaches.

scikit-learn's ``TimeSeriesSplit`` serves the same end, but parts pictures of one moment.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from efficientnetv2.base.errors import InputError, count_of
from efficientnetv2.data.copies import families, is_copy
from efficientnetv2.data.folds import Fold, Folds, aside
from efficientnetv2.data.listing import Ints
from efficientnetv2.data.manifest import Manifest
from efficientnetv2.data.times import said, time_column, times_of


def time_folds(manifest: Manifest, *, k: int, column: str, contents: Ints | None = None) -> Folds:
    """The past answers for the future: k folds of k + 1 periods with about as many pictures each.

    Fold i learns from all periods before period i + 1, and answers that. Pictures of one moment never part; a picture
    that is answered is not learnt from under another name.

    Args:
        manifest: labelled; its splits, ``test`` aside, do not count.
        k: 1 or more.
        column: of numbers (a year), or of dates.
        contents: as for ``splits.with_holdout``.

    Raises:
        InputError: there is no such column, a row has no time, there are fewer moments than periods, or a class appears
            only after the first period.
    """
    chosen = np.flatnonzero(manifest.split != "test")
    times = _times(manifest, column)[chosen]
    period = _periods(times, k, column)
    parts = []
    for number in range(1, k + 1):
        span = f"{column} {_span(times[period < number])}, then {_span(times[period == number])}"
        part = _of_period(manifest, chosen, period, number, contents, span)
        if unlearnt := _unlearnt(manifest, part):
            raise InputError(
                f"{manifest.source}: by {column}, {unlearnt} the pictures that fold {number} answers, so that nothing "
                "can be learnt of it. Take fewer folds (--folds), or leave the class out."
            )
        parts.append(part)
    same = np.arange(len(manifest)) if contents is None else np.asarray(contents)
    clusters = np.full(len(manifest), -1, dtype=np.int64)
    clusters[chosen] = pd.factorize(same[chosen])[0]
    note = (
        f"By time, column '{column}': {count_of(k, 'fold')} of {len(chosen)} pictures, each learns from the past and "
        f"answers what comes next; the first {int((period == 0).sum())} only teach."
    )
    return Folds(tuple(parts), f"{note}{aside(manifest)}", clusters, "time")


def time_holdout(manifest: Manifest, *, share: float, column: str, contents: Ints | None = None) -> Fold:
    """The latest pictures answer, all before them teach: one cut, where this share is met most closely.

    As by ``time_folds`` pictures of one moment never part, and what is answered is not learnt from under another name.

    Args:
        manifest: labelled; its splits, ``test`` aside, do not count.
        share: of the pictures that are to answer, between 0 and 1.
        column: as for ``time_folds``.
        contents: as for ``splits.with_holdout``.

    Raises:
        InputError: there is no such column, a row has no time, all have one, or a class appears only after the cut.
            What to do about it depends on what the pictures are, so whoever asks says it.
    """
    chosen = np.flatnonzero(manifest.split != "test")
    times = _times(manifest, column)[chosen]
    moments, counts = np.unique(times, return_counts=True)
    if len(moments) < 2:
        raise InputError(
            f"{manifest.source}: column '{column}' says the same of all of them, so none is later."
        )
    cut = int(np.argmin(np.abs(np.cumsum(counts)[:-1] - (1 - share) * len(chosen))))
    period = (np.searchsorted(moments, times) > cut).astype(np.int64)
    part = _of_period(manifest, chosen, period, 1, contents, f"{column} from {said(moments[cut + 1])}")
    if unlearnt := _unlearnt(manifest, part):
        raise InputError(
            f"{manifest.source}: by {column}, {unlearnt} the latest {count_of(len(part.answering), 'picture')}, so "
            "that nothing can be learnt of it."
        )
    return part


def _of_period(
    manifest: Manifest, chosen: Ints, period: Ints, number: int, contents: Ints | None, note: str
) -> Fold:
    """A period answers, those before it teach, but not what is answered under another name."""
    same = np.arange(len(manifest)) if contents is None else np.asarray(contents)
    family, made = families(manifest), is_copy(manifest)[chosen]
    answering = chosen[(period == number) & ~made]
    past = chosen[period < number]
    learning = past[~np.isin(same[past], same[answering])]
    if family is not None:
        learning = learning[~np.isin(family[learning], family[answering])]
    return Fold(learning, answering, note)


def _times(manifest: Manifest, column: str) -> npt.NDArray[np.object_]:
    """(N,) numbers or dates, which can be put in order."""
    time_column(manifest, column)
    given = manifest.table[column]
    times = times_of(manifest, column)
    wrong = np.flatnonzero(times.isna())
    if len(wrong):
        row = int(wrong[0])
        what = "is empty" if pd.isna(given.iloc[row]) else f"is '{given.iloc[row]}'"
        raise InputError(
            f"{manifest.where(row)}: {column} {what} ({len(wrong)} of {len(manifest)} rows are so), but to split "
            "by time every row needs a number, such as a year, or a date such as 2016-05-31. Fill it in, or leave the "
            "rows out."
        )
    values: npt.NDArray[np.object_] = times.to_numpy(dtype=object)
    return values


def _periods(times: npt.NDArray[np.object_], k: int, column: str) -> Ints:
    """(N,) 0 to k, about as many pictures in each, moments whole."""
    moments, counts = np.unique(times, return_counts=True)
    if k < 1 or len(moments) < k + 1:
        most = len(moments) - 1
        fix = {0: "Take another rule (--by)", 1: "Take 1 fold (--folds)"}.get(
            most, f"Take 1 to {most} folds (--folds)"
        )
        raise InputError(
            f"{count_of(k, 'fold')} by time need {k + 1} periods, but column '{column}' has "
            f"{count_of(len(moments), 'different value')}. {fix}."
        )
    ends = np.cumsum(counts)
    cuts: list[int] = []
    for number in range(1, k + 1):
        first = cuts[-1] + 1 if cuts else 1
        last = len(moments) - (k + 1 - number)  # the later periods need a moment each
        aim = number * ends[-1] / (k + 1)
        cuts.append(min(range(first, last + 1), key=lambda cut: abs(ends[cut - 1] - aim)))
    of_moment = np.searchsorted(cuts, np.arange(len(moments)), side="right")
    period: Ints = of_moment[np.searchsorted(moments, times)].astype(np.int64)
    return period


def _unlearnt(manifest: Manifest, part: Fold) -> str:
    """What keeps a period from being answered, to go on with its name; empty if two classes at least are learnt."""
    unlearnt = np.setdiff1d(
        manifest.targets[part.answering], [*np.unique(manifest.targets[part.learning]), -1]
    )
    if len(unlearnt):
        return f"class '{manifest.class_names[int(unlearnt[0])]}' does not appear before"
    learnt = np.setdiff1d(manifest.targets[part.learning], [-1])
    return "there is one class only before" if len(learnt) < 2 else ""


def _span(times: npt.NDArray[np.object_]) -> str:
    first, last = (said(end) for end in (min(times), max(times)))
    return first if first == last else f"{first} to {last}"
