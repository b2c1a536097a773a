"""Findings of a dataset check: sentences with the images that they are about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.records import Ints
from efficientnetv2.utils.errors import pluralize

Severity = Literal["wrong", "doubtful", "note"]
_SEVERITIES: tuple[Severity, ...] = ("wrong", "doubtful", "note")


@dataclass(frozen=True)
class Issue:
    """One finding. The fields are keys of ``inspection.json``.

    Attributes:
        kind: Identifier of its kind.
        severity: ``wrong`` biases a metric or a training; ``doubtful`` needs a look; ``note`` is information.
        advice: What to do; '' for nothing.
        groups: Rows of the dataset: single images, pairs, or larger groups.
        captions: A text for each group, or empty.
    """

    kind: str
    severity: Severity
    sentence: str
    advice: str = ""
    groups: tuple[tuple[int, ...], ...] = ()
    captions: tuple[str, ...] = ()


@dataclass(frozen=True)
class CheckSection:
    """A part of the check: values for programs, and findings in any order."""

    facts: Mapping[str, Any]
    findings: Sequence[Issue] = ()


def by_severity(findings: Sequence[Issue]) -> list[Issue]:
    """The most severe first."""
    return sorted(findings, key=lambda each: _SEVERITIES.index(each.severity))


def single_rows(rows: Iterable[Any]) -> tuple[tuple[int, ...], ...]:
    """Rows as groups of one image each."""
    return tuple((int(row),) for row in rows)


def crosses_splits(dataset: ImageDataset, rows: Sequence[int]) -> bool:
    """Whether these images are in more than one split; images without a split count as ``train``."""
    return len({dataset.split[row] or "train" for row in rows}) > 1


def labels_differ(dataset: ImageDataset, rows: Sequence[int]) -> bool:
    """Whether these images have different sets of labels; images without a label agree with all."""
    known = {frozenset(np.atleast_1d(dataset.targets[row]).tolist()) - {-1} for row in rows}
    return len(known - {frozenset()}) > 1


def share_text(part: int, of: int) -> str:
    """``330 of 1,044 images (32 %)``, ``6 of 9,999 images (under 1 %)``."""
    percent = 100 * part / max(1, of)
    shown = "under 1" if 0 < percent < 0.5 else f"{percent:.0f}"
    return f"{part:,} of {pluralize(of, 'image')} ({shown} %)"


def count_groups(groups: Sequence[Sequence[int]]) -> str:
    """``1 pair``, ``3 pairs``; ``2 groups`` if one is larger than a pair."""
    pairs = all(len(group) == 2 for group in groups)
    return pluralize(len(groups), "pair" if pairs else "group")


def split_names(dataset: ImageDataset) -> npt.NDArray[np.object_]:
    """(N,) splits; images without a split are ``train``."""
    return np.where(dataset.in_train, "train", dataset.split)


def connected_groups(count: int, groups: Sequence[Sequence[int]]) -> Ints:
    """(count,) ids of the connected components of rows that belong together."""
    edges = [(group[0], other) for group in groups for other in group[1:]]
    rows, columns = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(count, count))
    ids: Ints = connected_components(graph, directed=False)[1].astype(np.int64)
    return ids
