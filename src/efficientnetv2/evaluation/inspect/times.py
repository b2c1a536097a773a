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


def by_time(manifest: Manifest, *, column: str | None = None) -> Section:
    """Pictures of one moment, and splits that share their times.

    Args:
        manifest: of the pictures.
        column: that holds the time: numbers such as years, or dates. None takes a likely one, if there is any.

    Raises:
        InputError: there is no such column, or nothing in it is a time.
    """
    name = time_column(manifest, column)
    if name is None:
        return Section({})
    times = times_of(manifest, name)
    known = times.notna().to_numpy()
    if not known.any():
        if column is None:
            return Section({})
        raise InputError(
            f"--time-column {column}: nothing in it is a number, such as a year, or a date such as 2016-05-31. Name "
            "another column."
        )
    split = splits_of(manifest)
    findings = []
    shared = {}
    for part in sorted(set(split) - {"train"}):
        asking = (split == part) & known
        moments = set(times[(split == "train") & known])
        shared[part] = int(times[asking].isin(list(moments)).sum())
        if shared[part]:
            findings.append(
                Finding(
                    "time_across_splits",
                    "note",
                    f"{share(shared[part], int(asking.sum()))} in {part} share their {name} with training pictures.",
                    f"The figure on them says nothing of a later {name}. To ask for that, split by time.",
                )
            )
    burst = _in_bursts(times[known])
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


def _in_bursts(times: pd.Series[Any]) -> int:
    """How many pictures have another within an hour; 0 where times of day are not known."""
    if not pd.api.types.is_datetime64_any_dtype(times) or (times == times.dt.normalize()).all():
        return 0
    gaps = (times.sort_values().diff() <= _NEAR).to_numpy()
    return int((gaps | np.append(gaps[1:], False)).sum())


def _timeless(manifest: Manifest, name: str, known: Bools) -> Finding:
    lost = np.flatnonzero(~known)
    return Finding(
        "no_time",
        "note",
        f"{share(len(lost), len(manifest))} have no {name}.",
        "To split by time, fill it in.",
        tuple((int(row),) for row in lost),
    )
