"""What a reader of folders or tables found, before any rule was applied to it.

Every source of pictures (class folders, a CSV, a packed file, a standard set) becomes the same table:
``path``, ``label``, ``split`` and whatever other columns the source had.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from efficientnetv2.data.image_formats import FORMATS
from efficientnetv2.data.shards.index import ShardSet, is_url
from efficientnetv2.utils.errors import InputError, escaped

Ints = npt.NDArray[np.int64]

SPLITS = ("train", "minival", "val", "test")
# Cells that hold nothing, the space around them aside: what a missing number looks like once it is text among them.
BLANK = ("", "nan", "NaN")
# Beside their own names, what sets call them that others have published.
_FURTHER = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}
_SPLIT_WORDS = {name: name for name in SPLITS} | _FURTHER
# What published datasets write behind such a word: trainset, testdata. Ours.
_SPLIT_ENDINGS = re.compile(r"(set|data|images|imgs|pics)$")
# Folders of systems, in lower case: thumbnails and bins of NAS boxes (Synology, QNAP), Windows, macOS and ext4. Ours.
_SYSTEM_FOLDERS = frozenset(
    (
        "@eadir", "@tmp", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", ".@__thumb", "$recycle.bin",
        "recycler", "system volume information", "lost+found", "lost.dir", "__macosx",
    )
)  # fmt: skip
_PACKED = re.compile(r"(.*\.bin)#(\d+)", re.DOTALL)


def parse_split(word: str) -> str | None:
    """The split that a folder's or a cell's word means (``Valid`` is val, ``Training`` train), or None."""
    return _SPLIT_WORDS.get(word.strip().casefold())


def split_in_name(name: str) -> str | None:
    """The one split that the words of a file's or folder's name tell (``seg_train``, ``test-set``), or None."""
    words = re.split(r"[^a-z]+", name.casefold())
    splits = {parse_split(word) or parse_split(_SPLIT_ENDINGS.sub("", word)) for word in words} - {None}
    return splits.pop() if len(splits) == 1 else None


def is_system_folder(name: str) -> bool:
    """Whether a system, and no person, made a folder of that name: a bin, thumbnails, what a file check found."""
    return name.casefold() in _SYSTEM_FOLDERS


def packed_record(path: str) -> tuple[str, int] | None:
    """File and record number of a picture packed into a binary file (``test.bin#12``), or None."""
    match = _PACKED.fullmatch(path)
    return (match[1], int(match[2])) if match else None


@lru_cache(maxsize=1)
def image_extensions() -> frozenset[str]:
    """Lower-case suffixes, with their dot, of the formats that are opened; loads Pillow's plugins."""
    known = (*FORMATS, "MPO")  # JPEGs of several views, of which the first is read
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in known)


def is_image(name: str) -> bool:
    """Whether a file is called as a picture is; what it holds is another question (``data.validate``)."""
    return os.path.splitext(name)[1].lower() in image_extensions()


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageRecords:
    """Pictures with their labels and splits.

    Args:
        root: absolute folder, or URL, that relative paths start from.
        source: what the user gave, for messages.
        table: a row per picture, index 0 to N-1, columns ``path`` (relative to root where possible,
            forward slashes; ``file.bin#12`` for a packed picture), ``label`` (text, or NaN), ``split``
            ('', 'train', 'minival', 'val' or 'test'), then the source's other columns (``group`` and
            ``latitude``, ``longitude`` are used by ``data.splits``). A picture in a shard is called
            ``train-000003.tar#its/own/path.jpg``, and the columns of ``shards.index`` say where it stands.
        rows: (N,) row numbers in the user's file, whose header is row 1; None for folders.
        notes: sentences the user should read, about what was left out or merged.
        standard: name of the published data set whose splits these are, or None.
        shards: the tars that the pictures stand in; None where they are files.
        passed_over: files that may be pictures of a kind that is not opened here: suffix -> folder below ``root``
            ('' for ``root``) -> how many.
    """

    root: Path | str
    source: str
    table: pd.DataFrame
    rows: Ints | None = None
    notes: tuple[str, ...] = ()
    standard: str | None = None
    shards: ShardSet | None = None
    passed_over: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.table)

    def __getstate__(self) -> dict[str, Any]:
        # Without what was derived: lists of millions of paths need not travel to other processes.
        return {one.name: getattr(self, one.name) for one in fields(self)}

    @cached_property
    def paths(self) -> list[str]:
        """(N) paths as the user gave them."""
        return self.table["path"].tolist()

    @cached_property
    def _path_cells(self) -> Any:
        """The column of paths as the table holds it: to look it up takes longer than all else of a file's name."""
        return self.table["path"].array

    @cached_property
    def split(self) -> npt.NDArray[np.object_]:
        """(N,) names of splits, '' where none was given."""
        codes, names = pd.factorize(
            self.table["split"]
        )  # a name is then one object, not one for each picture
        split: npt.NDArray[np.object_] = np.array(names, dtype=object)[codes]
        return split

    @property
    def in_train(self) -> npt.NDArray[np.bool_]:
        """(N,) whether a picture is for training: split 'train' or none, since nothing set it aside."""
        return np.isin(self.split, ("train", ""))

    def select(self, indices: npt.ArrayLike) -> Self:
        """The pictures at these indices, in their order; of a dataset, with all its classes."""
        chosen = np.asarray(indices, dtype=np.int64)
        rows = None if self.rows is None else self.rows[chosen]
        return replace(self, table=self.table.iloc[chosen].reset_index(drop=True), rows=rows)

    def file(self, index: int) -> str:
        """Absolute path that can be opened, or a name for a picture within a larger file: ``/…/file.bin#12``."""
        # Not from ``paths``, of which each process that reads pictures would make a list of its own.
        path = str(self._path_cells[index])
        if is_url(path):
            return path
        return f"{self.root}/{path}" if isinstance(self.root, str) else os.path.join(self.root, path)

    def where(self, index: int) -> str:
        """How a message names a picture: ``train.csv, row 214``, or its path."""
        if self.rows is None:
            return escaped(self.paths[index])
        return f"{Path(self.source).name}, row {self.rows[index]}"

    @property
    def unit(self) -> str:
        """What a message counts: rows of a table, or pictures."""
        return "pictures" if self.rows is None else "rows"


def records_table(paths: Sequence[str], labels: Sequence[str | float], splits: Sequence[str]) -> pd.DataFrame:
    """The three columns every listing has.

    Raises:
        InputError: a file name is not valid text.
    """
    try:
        return pd.DataFrame(
            {
                "path": pd.Series(paths, dtype=None if len(paths) else object),
                "label": pd.Series(labels, dtype=None if len(labels) else object),
                "split": pd.Series(splits, dtype=None if len(splits) else object),
            }
        )
    except UnicodeEncodeError as error:
        raise _unlistable(error.object) from None


def validate_path_text(place: str) -> None:
    """Refuse a folder whose name no table can hold, before the work whose table it is to stand in.

    Args:
        place: its path, or a part of it.

    Raises:
        InputError: it is not valid text.
    """
    try:
        place.encode()
    except UnicodeEncodeError:
        raise _unlistable(place) from None


def _unlistable(name: str) -> InputError:
    return InputError(f"{name!a}: the file's name is not valid UTF-8, so no table can hold it. Rename it.")
