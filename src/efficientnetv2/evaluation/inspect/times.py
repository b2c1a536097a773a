"""Pictures of one moment, or of times that splits share."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from efficientnetv2.base.errors import InputError
from efficientnetv2.data.manifest import Manifest
from efficientnetv2.data.times import said, time_column, times_of
from efficientnetv2.evaluation.inspect.found import Finding, Section, share, splits_of

# Times of day that are so close may be one burst of a camera. Ours.
_NEAR = pd.Timedelta(hours=1)

Bools = npt.NDArray[np.bool_]


def check_column(manifest: Manifest, column: str | None) -> None:
    """Refuse a column in which there is no time, before hours of looking at pictures.

    Args:
        manifest: of the pictures.
        column: as for ``by_time``.

    Raises:
        InputError: it was asked for and is not there, or nothing in it is a time.
    """
    name = time_column(manifest, column)
    if column is not None and name is not None and not times_of(manifest, name).notna().any():
        raise InputError(
            f"--time-column {column}: nothing in it is a number, such as a year, or a date such as 2016-05-31. Name "
            "another column."
        )


def by_time(manifest: Manifest, *, column: str | None = None) -> Section:
    """Pictures of one moment, and splits that share their times.

    Args:
        manifest: of the pictures.
        column: that holds the time: numbers such as years, or dates. None takes a likely one, if there is any.

    Raises:
        InputError: as of ``check_column``.
    """
    check_column(manifest, column)
    name = time_column(manifest, column)
    if name is None:
        return Section({})
    times = times_of(manifest, name)
    known = times.notna().to_numpy()
    if not known.any():
        return Section({})
    split = splits_of(manifest)
    timed = known & _of_day(times)
    of_day = bool(timed.any())
    heeded = timed if of_day else known
    findings = []
    shared = {}
    for part in sorted(set(split) - {"train"}):
        asking = (split == part) & heeded
        shared[part] = _shared(times[asking], times[(split == "train") & heeded], of_day=of_day)
        if shared[part]:
            findings.append(_across(part, name, share(shared[part], int(asking.sum())), of_day=of_day))
    burst = _in_bursts(times[timed]) if of_day else 0
    if burst:
        findings.append(
            Finding(
                "time",
                "doubtful",
                f"{share(burst, len(manifest))} were taken within an hour of another, by column {name}.",
                "Those of one scene belong to one side of a split: name what they share with --group-column.",
            )
        )
    if not known.all():
        findings.append(_timeless(manifest, name, known))
    facts = {
        "column": name,
        "first": said(times[known].min()),
        "last": said(times[known].max()),
        "known": int(known.sum()),
        "shared_with_training": shared,
        "within_an_hour": burst,
    }
    return Section(facts, findings)


def _of_day(times: pd.Series[Any]) -> Bools:
    """(N,) whether the time of day is known, not a year or a date alone, which reads like its midnight."""
    if not pd.api.types.is_datetime64_any_dtype(times):
        return np.zeros(len(times), dtype=bool)
    return np.asarray(times.notna() & (times != times.dt.normalize()), dtype=bool)


def _shared(asking: pd.Series[Any], training: pd.Series[Any], *, of_day: bool) -> int:
    """How many have the time of a training picture, or by times of day one within an hour of it."""
    if not of_day:
        return int(asking.isin(list(set(training))).sum())
    moments = np.sort(training.dt.tz_localize(None).to_numpy())
    asked = asking.dt.tz_localize(None).to_numpy()
    first = np.searchsorted(moments, asked - _NEAR.to_timedelta64(), side="left")
    last = np.searchsorted(moments, asked + _NEAR.to_timedelta64(), side="right")
    return int((last > first).sum())


def _in_bursts(times: pd.Series[Any]) -> int:
    """How many pictures have another within an hour, of those whose times of day are known."""
    gaps = (times.sort_values().diff() <= _NEAR).to_numpy()
    return int((gaps | np.append(gaps[1:], False)).sum())


def _across(part: str, name: str, pictures: str, *, of_day: bool) -> Finding:
    if of_day:
        return Finding(
            "time_across_splits",
            "doubtful",
            f"{pictures} in {part} were taken within an hour of a training picture, by column {name}.",
            "A burst in two splits is learnt and then asked for: put each whole into one, or split by time.",
        )
    return Finding(
        "time_across_splits",
        "note",
        f"{pictures} in {part} share their {name} with training pictures.",
        f"The figure on them says nothing of a later {name}. To ask for that, split by time.",
    )


def _timeless(manifest: Manifest, name: str, known: Bools) -> Finding:
    lost = np.flatnonzero(~known)
    return Finding(
        "no_time",
        "note",
        f"{share(len(lost), len(manifest))} have no {name}.",
        "To split by time, fill it in.",
        tuple((int(row),) for row in lost),
    )
