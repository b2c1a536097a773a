"""Labeled images as every source lists them (folders, tables, shards), before any rule is applied."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from efficientnetv2.data.open_image import is_folder
from efficientnetv2.data.shards.index import ShardSet, is_url, shard_of
from efficientnetv2.utils.errors import InputError, did_you_mean, escape_controls, pluralize, shorten

_logger = logging.getLogger(__name__)

Ints = npt.NDArray[np.int64]

#: Meaning of the sub-folders of a folder. ``auto`` goes by their names and contents.
Layout = Literal["auto", "classes", "splits"]

SPLITS = ("train", "minival", "val", "test")
# Cells without a value. A missing number becomes "nan" in a column of text.
BLANK = ("", "nan", "NaN")
# Names that published datasets give to splits, besides ours.
_SPLIT_WORDS = {name: name for name in SPLITS} | {
    "training": "train", "valid": "val", "validation": "val", "testing": "test"
}  # fmt: skip
# Published datasets append these to the name of a split: trainset, testdata. Ours.
_SPLIT_ENDINGS = re.compile(r"(set|data|images|imgs|pics)$")
# Folders of systems, in lower case: thumbnails and bins of NAS boxes (Synology, QNAP), Windows, macOS and ext4. Ours.
_SYSTEM_FOLDERS = frozenset(
    (
        "@eadir", "@tmp", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", ".@__thumb", "$recycle.bin",
        "recycler", "system volume information", "lost+found", "lost.dir", "__macosx",
    )
)  # fmt: skip
# Column of augmented copies: the path of the original, or empty. Splits keep a copy with its original, and metrics
# are of originals only.
AUGMENTED_FROM = "augmented_from"


def parse_split(word: str) -> str | None:
    """The split that a word means (``Valid`` is val, ``Training`` train), or None."""
    return _SPLIT_WORDS.get(word.strip().casefold())


def split_in_name(name: str) -> str | None:
    """The only split that the words of a name mean (``seg_train``, ``test-set``), or None."""
    words = re.split(r"[^a-z]+", name.casefold())
    splits = {parse_split(word) or parse_split(_SPLIT_ENDINGS.sub("", word)) for word in words} - {None}
    return splits.pop() if len(splits) == 1 else None


def walk_files(folder: str, prefix: str, links: tuple[str, ...] = ()) -> Iterator[str]:
    """Files at any depth as ``prefix`` + path with forward slashes, sorted by name.

    ``links`` holds the real folders of the symbolic links above: a link back to one of them would never end.
    """
    for entry in visible_entries(folder):
        if is_folder(entry):
            onward = links
            if entry.is_symlink():
                onward = (*links, os.path.realpath(folder))
                target = os.path.realpath(entry.path)
                if any(Path(inner).is_relative_to(target) for inner in onward):
                    continue
            yield from walk_files(entry.path, f"{prefix}{entry.name}/", onward)
        else:
            yield prefix + entry.name


def visible_entries(folder: str) -> list[os.DirEntry[str]]:
    """Entries of a folder, sorted, without hidden ones and system folders."""
    try:
        with os.scandir(folder) as entries:
            visible = [e for e in entries if not (e.name.startswith(".") or e.name.casefold() in _SYSTEM_FOLDERS)]
    except PermissionError:
        raise InputError(f"{folder} may not be read: permission denied. Change its permissions.") from None
    return sorted(visible, key=lambda entry: entry.name)


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How a source is read; see ``dataset.load_dataset``. strict: apply the rules of training to existing labels."""

    path_column: str = "path"
    label_column: str = "label"
    group_column: str | None = None
    label_separator: str | None = None
    require_labels: bool = True
    strict: bool = True
    layout: Layout = "auto"
    allow_empty_classes: bool = False


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageRecords:
    """Images with their labels and splits, as listed by a source.

    ``root`` is the absolute folder, or URL, of relative paths; ``source`` the user's input, for messages. ``table`` has
    index 0 to N-1, the columns ``path`` (relative to root where possible), ``label`` (text or NaN) and ``split`` ('' or
    one of SPLITS), then others; splits use ``group``, ``latitude`` and ``longitude``. Paths into shards are
    ``train-000003.tar#its/own/path.jpg``. ``rows`` are (N,) row numbers in the user's file, whose header is row 1.
    ``published`` names the published dataset of these splits. ``unsupported_files`` counts skipped files: extension ->
    folder below root -> count.
    """

    root: Path | str
    source: str
    table: pd.DataFrame
    rows: Ints | None = None
    notes: tuple[str, ...] = ()
    published: str | None = None
    shards: ShardSet | None = None
    unsupported_files: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.table)

    def __getstate__(self) -> dict[str, Any]:
        # Without cached properties: lists of millions of paths need not travel to other processes.
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def paths(self) -> list[str]:
        """(N) paths as the user gave them."""
        return self.table["path"].tolist()

    @cached_property
    def _path_cells(self) -> Any:
        # Looking up this column takes longer than the rest of ``file``.
        return self.table["path"].array

    @cached_property
    def split(self) -> npt.NDArray[np.object_]:
        """(N,) names of splits, '' for none."""
        codes, names = pd.factorize(self.table["split"])  # one object per name, not per image
        split: npt.NDArray[np.object_] = np.array(names, dtype=object)[codes]
        return split

    @property
    def in_train(self) -> npt.NDArray[np.bool_]:
        """(N,) whether an image is for training: split 'train' or none."""
        return np.isin(self.split, ("train", ""))

    def select(self, indices: npt.ArrayLike) -> Self:
        """Images at these indices, in this order, or where a mask is true, with all classes."""
        chosen = np.asarray(indices)
        chosen = np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(np.int64)
        rows = None if self.rows is None else self.rows[chosen]
        return replace(self, table=self.table.iloc[chosen].reset_index(drop=True), rows=rows)

    def file(self, index: int) -> str:
        """Absolute path or URL of an image. Images in a shard: ``/…/train-000003.tar#its/own/path.jpg``."""
        # Not from ``paths``: each process that reads images would make its own list.
        path = str(self._path_cells[index])
        if is_url(path):
            return path
        return f"{self.root}/{path}" if isinstance(self.root, str) else os.path.join(self.root, path)

    def where(self, index: int) -> str:
        """Location of an image for messages: ``train.csv, row 214``, or its path."""
        if self.rows is None:
            return escape_controls(self.paths[index])
        return f"{Path(self.source).name}, row {self.rows[index]}"

    def count(self, number: int) -> str:
        """A number in messages: of rows of a table, or of images."""
        return pluralize(number, "image" if self.rows is None else "row")


def missing_column(source: str, column: str, columns: Iterable[object], role: str) -> InputError:
    """The error for a column that a table lacks. ``role``: what it should hold, as in `label_column`."""
    names = [str(name) for name in columns]
    return InputError(
        f"{source} has no column '{column}'{did_you_mean(column, names)} Its columns are {shorten(names, 20)}. Name "
        f"the one that holds the {role} with `{role}_column`."
    )


def records_table(paths: Sequence[str], labels: Sequence[str | float], splits: Sequence[str]) -> pd.DataFrame:
    """The columns path, label and split. Raises InputError if a path is not valid text."""
    columns = {"path": paths, "label": labels, "split": splits}
    try:
        return pd.DataFrame(
            {name: pd.Series(cells, dtype=None if len(cells) else object) for name, cells in columns.items()}
        )
    except UnicodeEncodeError as error:
        validate_path_text(error.object)
        raise


def validate_path_text(path: str) -> None:
    """Raise InputError if a path is not valid text, so that no table can hold it."""
    try:
        path.encode()
    except UnicodeEncodeError:
        raise InputError(f"{path!a}: the file name is not valid UTF-8. Rename the file.") from None


def is_copy(records: ImageRecords) -> npt.NDArray[np.bool_]:
    """(N,) whether an image is an augmented copy."""
    if AUGMENTED_FROM not in records.table:
        return np.zeros(len(records), dtype=bool)
    origin = records.table[AUGMENTED_FROM]
    return np.array(origin.notna() & (origin.astype("string").fillna("") != ""), dtype=bool)


def copy_groups(records: ImageRecords) -> Ints | None:
    """(N,) numbers, equal for an image, its copies and their copies. None without copies."""
    copies = is_copy(records)
    if not copies.any():
        return None
    paths = records.table["path"].astype(object)
    origins = np.where(copies, records.table[AUGMENTED_FROM].astype(object), paths)
    places = ((path, shard_of(path)) for path in (*paths, *origins))
    unpacked = np.array([path if place is None else place[1] for path, place in places], dtype=object)
    names, _ = pd.factorize(unpacked)
    own, theirs = names[: len(paths)], names[len(paths) :]
    origin = np.arange(len(names), dtype=np.int64)
    origin[own] = theirs
    for _ in range(len(own).bit_length()):  # each pass looks back twice as far
        origin = origin[origin]
    numbers: Ints = pd.factorize(origin[own])[0].astype(np.int64)
    return numbers


def validate_copies(records: ImageRecords) -> None:
    """Raise InputError if a copy has another split or label than its original. Warns if none has an original."""
    groups = copy_groups(records)
    if groups is None:
        return
    copies = is_copy(records)
    if not np.isin(groups[copies], groups[~copies]).any():
        first = records.table[AUGMENTED_FROM].iloc[int(np.flatnonzero(copies)[0])]
        _logger.warning(
            f"No copy names an image of this table in {AUGMENTED_FROM} (the first: '{first}'), so a copy and its "
            "original may be in different splits. Write the paths of originals as in the column of paths."
        )
    split = np.where(records.in_train, "train", records.split)
    num_splits = pd.Series(split).groupby(groups).transform("nunique").to_numpy()
    divided = np.flatnonzero(num_splits > 1)
    if len(divided):
        row = int(next((index for index in divided if copies[index]), divided[0]))
        raise InputError(
            f"{records.where(row)}: '{records.paths[row]}' is in {split[row]}, but its original "
            f"'{records.table[AUGMENTED_FROM].iloc[row]}' or another copy is not. Put all of them into one split."
        )
    labels = pd.Series(records.table["label"].fillna("").to_numpy()).groupby(groups)
    if len(differ := np.flatnonzero(copies & (labels.transform("nunique").to_numpy() > 1))):
        row = int(differ[0])
        raise InputError(
            f"{records.where(row)}: the copy '{records.paths[row]}' and its original or another copy have different "
            f"labels ({pluralize(len(differ), 'such image')}). Correct the labels of all, or balance the corrected "
            "images again."
        )
