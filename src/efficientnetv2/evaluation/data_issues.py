"""What was found, as data: sentences with the pictures they are about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.records import Ints
from efficientnetv2.utils.errors import count_of

Severity = Literal["wrong", "doubtful", "note"]
SEVERITIES: tuple[Severity, ...] = ("wrong", "doubtful", "note")


@dataclass(frozen=True)
class Finding:
    """One thing to know.

    Args:
        kind: a word for programs; the same for the same kind of finding.
        severity: ``wrong`` spoils a figure or a training; ``doubtful`` wants a person to look; ``note`` is good to
            know.
        sentence: what was found.
        advice: what to do about it; '' where there is nothing to do.
        groups: rows of the dataset that it is about: each alone, pairs, or more that belong together.
        captions: what to say of each group beside paths and labels; empty, or as many.
    """

    kind: str
    severity: Severity
    sentence: str
    advice: str = ""
    groups: tuple[tuple[int, ...], ...] = ()
    captions: tuple[str, ...] = ()


@dataclass(frozen=True)
class CheckSection:
    """A part of the inspection: what was counted, and what was found.

    Args:
        facts: for programs: plain values by their names.
        findings: the gravest first is not asked for; whoever shows them puts them in order.
    """

    facts: Mapping[str, Any]
    findings: Sequence[Finding] = ()


def by_severity(findings: Sequence[Finding]) -> list[Finding]:
    """The gravest first, else as they come."""
    return sorted(findings, key=lambda one: SEVERITIES.index(one.severity))


def crosses_splits(dataset: ImageDataset, rows: Sequence[int]) -> bool:
    """Whether some of these pictures are to be learnt from and some to be judged by, or these in two splits."""
    return len({dataset.split[row] or "train" for row in rows}) > 1


def labels_differ(dataset: ImageDataset, rows: Sequence[int]) -> bool:
    """Whether these pictures have different labels, all that they have; those without one agree with all."""
    known = {frozenset(np.atleast_1d(dataset.targets[row]).tolist()) - {-1} for row in rows}
    return len(known - {frozenset()}) > 1


def share_text(part: int, of: int) -> str:
    """``330 of 1,044 pictures (32 %)``, ``6 of 9,999 pictures (under 1 %)``."""
    hundredths = 100 * part / max(1, of)
    shown = "under 1" if 0 < hundredths < 0.5 else f"{hundredths:.0f}"
    return f"{part:,} of {count_of(of, 'picture')} ({shown} %)"


def count_groups(groups: Sequence[Sequence[int]]) -> str:
    """``1 pair``, ``3 pairs``; ``2 groups`` where one is of more than two."""
    pairs = all(len(group) == 2 for group in groups)
    return count_of(len(groups), "pair" if pairs else "group")


def split_names(dataset: ImageDataset) -> npt.NDArray[np.object_]:
    """(N,) splits, where none was given ``train``, since nothing set the picture aside."""
    return np.where(dataset.in_train, "train", dataset.split)


def connected_groups(count: int, together: Sequence[Sequence[int]]) -> Ints:
    """(count,) numbers, equal for rows that are joined, directly or by others.

    Args:
        count: of the rows.
        together: rows that belong together, two or more each.
    """
    edges = [(group[0], other) for group in together for other in group[1:]]
    rows, columns = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(count, count))
    numbers: Ints = connected_components(graph, directed=False)[1].astype(np.int64)
    return numbers
