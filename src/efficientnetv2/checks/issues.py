"""Issues that a dataset check reports: sentences with the images that they are about."""

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

# The most severe first: ``wrong`` biases a metric or a training; ``doubtful`` needs a look; ``note`` is information.
Severity = Literal["wrong", "doubtful", "note"]

_REMOVE_FROM_SPLIT = "Remove them from one of the splits: copies of training images make metrics too high."
_INSPECT_LABELS = "At least one label is wrong, or the image shows several things. Inspect them."
_STRETCH = "If they were made from other values (reflectances, 16 bits), stretch all images alike when you make them."
_GROUP = (
    "Give them one value in a column of a table of the images, and name it in `group_column`, so that no split divides "
    "them."
)
# Severity of each kind of issue, and what to do.
_CATALOG: Mapping[str, tuple[Severity, str]] = {
    "ignored_files": ("doubtful", "If they are images, convert them to JPEG: they are not read and not counted."),
    "no_labels": ("note", "Create one sub-folder per class."),
    "unlabeled": (
        "wrong",
        "Training refuses them. Fill in the labels, or list these images in a separate table and rank them: effnetv2 "
        "predict MODEL TABLE --rank OUT.csv",
    ),
    "one_class": ("wrong", "Training needs two classes. Add another, or give the parent of the class folders."),
    "small_class": ("doubtful", ""),
    "imbalance": ("note", ""),
    "same_across_splits": ("wrong", _REMOVE_FROM_SPLIT),
    "near_across_splits": ("doubtful", _REMOVE_FROM_SPLIT),
    "same_other_label": ("wrong", _INSPECT_LABELS),
    "near_other_label": ("doubtful", _INSPECT_LABELS),
    "same_image": ("note", "Automatic splits keep equal files together."),
    "near_image": ("note", _GROUP),
    "lookalike_across_splits": ("doubtful", "Inspect them, and put them into one split: they bias the evaluation."),
    "lookalike_other_label": ("doubtful", "Inspect them: one label may be wrong."),
    "lookalike": ("note", _GROUP),
    "label": ("doubtful", ""),
    "trained_weights": (
        "doubtful",
        "Most wrong labels among them are missed, for the model has learned them. Use weights of other images.",
    ),
    "unchecked_labels": ("note", "Add images of other objects or places: duplicates, scenes and groups count once."),
    "unreadable": ("wrong", "Repair or remove them. Training skips up to 5 %."),
    "flat": ("doubtful", "Inspect them, and remove those without content."),
    "tiny": ("doubtful", "They show little. Use the original images if they were made smaller."),
    "long": ("note", "Choose `crop_mode`: squash distorts them, center cuts their ends off, border pads them."),
    "enlarged": ("doubtful", ""),
    "dark": ("note", _STRETCH),
    "bright": ("note", _STRETCH),
    "giveaway": ("doubtful", "A model may learn that instead of the content. Convert all images to one form."),
    "place_across_splits": (
        "doubtful",
        "Their metrics do not hold for new locations. Without this split, training holds out spatial blocks.",
    ),
    "place": ("doubtful", "A random split divides neighbors. Training holds out spatial blocks if all are located."),
    "no_place": ("wrong", "Fill them in, or remove both columns: training refuses a dataset that is located in part."),
    "half_a_place": ("wrong", ""),
    "group_across_splits": (
        "wrong",
        "Put each group into one split: groups with training images make metrics too high.",
    ),
    "group_tells_label": ("note", "A model may recognize the group, not the class. Keep each group in one split."),
    "no_group": ("note", ""),
    "time_across_splits": ("note", ""),
    "time": ("doubtful", "Images of one scene belong into one split: name what they share in `group_column`."),
    "no_time": ("note", "To split by time, fill it in."),
    "damaged_shard": ("wrong", "Restore the shard."),
}  # fmt: skip


@dataclass(frozen=True)
class Issue:
    """An issue of a dataset."""

    kind: str
    severity: Severity
    sentence: str
    advice: str = ""
    groups: tuple[tuple[int, ...], ...] = ()  # rows of the dataset: single images, pairs, or larger groups
    captions: tuple[str, ...] = ()  # a text for each group


def issue(
    kind: str,
    sentence: str,
    groups: Iterable[Sequence[int]] = (),
    captions: Iterable[str] = (),
    *,
    advice: str | None = None,
    severity: Severity | None = None,
) -> Issue:
    """An issue with the severity and the advice of its kind, unless others are given."""
    usual_severity, usual_advice = _CATALOG[kind]
    rows = tuple(tuple(group) for group in groups)
    return Issue(
        kind,
        severity or usual_severity,
        sentence,
        usual_advice if advice is None else advice,
        rows,
        tuple(captions) or ("",) * len(rows),
    )


@dataclass(frozen=True)
class CheckSection:
    """A part of the check: values for programs, and issues in any order."""

    facts: Mapping[str, Any]
    issues: Sequence[Issue] = ()


def single_rows(rows: Iterable[Any]) -> list[tuple[int]]:
    """Rows as groups of one image each."""
    return [(int(row),) for row in rows]


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
