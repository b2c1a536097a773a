"""The dataset: which pictures there are, with which labels, in which split.

::

    dataset = read("train.csv")            # or a folder, a Parquet file, "cifar10"
    dataset.class_names                    # ('grassland', 'plantation', ...)
    dataset.subset("train").labels         # int64 class ids
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from efficientnetv2.data import builtin_datasets, image_folder, label_rules, multilabel, table
from efficientnetv2.data import table as tables
from efficientnetv2.data.augmented_copies import AUGMENTED_FROM, is_copy
from efficientnetv2.data.csv_dialect import write_table
from efficientnetv2.data.records import SPLITS, ImageRecords, Ints, is_image, validate_path_text
from efficientnetv2.data.shards import open
from efficientnetv2.data.shards.index import is_url
from efficientnetv2.preprocessing import RGB, Bands
from efficientnetv2.utils.errors import InputError, count_of, did_you_mean, some

# What pictures and their tables often come in that is not read, and what makes it so. Ours.
_FIRST = {
    **dict.fromkeys((".zip", ".rar", ".7z"), "Unpack it first, and give the folder."),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "Save its sheet as CSV in UTF-8 first, and give that."),
}


def read_records(
    data: str,
    *,
    path_column: str,
    label_column: str,
    group_column: str | None,
    label_separator: str | None,
    require_labels: bool,
    strict: bool,
    layout: image_folder.Layout = "auto",
    empty_classes: bool = False,
) -> ImageRecords:
    """What DATA lists, as it stands there; no rule but those of its kind is applied yet.

    Args:
        data: as ``load_dataset`` has it, and likewise:
        path_column: of a table.
        label_column: of a table or shards.
        group_column: of a table.
        label_separator: of a table or shards.
        require_labels: False for prediction.
        strict: take the labels that there are as training would.
        layout: of a folder: what its sub-folders are.
        empty_classes: leave out class folders without an image instead of refusing them.

    Raises:
        InputError: there is no such DATA, it is of no kind that is read, or what is of its kind is refused.
    """
    if layout != "auto" and not _is_plain_folder(data):
        raise InputError(
            f"--layout {layout}: {data} is no folder of images. Give a folder, or leave the option out."
        )
    if open.is_shards(data):
        if path_column != "path":
            raise InputError(
                f"{data} is a set of shards, which know their pictures. Leave --path-column {path_column} out."
            )
        return open.read_shards(
            data, label_column=label_column, group_column=group_column, require_labels=require_labels,
            label_separator=label_separator, strict_labels=strict,
        )  # fmt: skip
    place = Path(os.path.expanduser(data)).absolute()
    named = {"--path-column": path_column != "path", "--label-column": label_column != "label"}
    named["--group-column"] = group_column is not None
    if place.is_dir():
        _refuse_columns(f"{data} is a folder", named)
        if builtin_datasets.is_cifar_folder(place):
            return builtin_datasets.read_cifar_folder(place, data)
        return image_folder.read_folder(
            place,
            data,
            require_labels=require_labels,
            classes_first=strict,
            layout=layout,
            empty_classes=empty_classes,
        )
    if not place.is_file():
        if data in builtin_datasets.BUILTIN_NAMES:
            _refuse_columns(f"{data} is a standard set", named)
            return builtin_datasets.read_builtin(data)
        if set("*?[") & set(data):
            raise InputError(
                f"data path '{data}' does not exist, and patterns of images are not expanded. Give their folder "
                f"({place.parent}), or a CSV file with a column path."
            )
        beside = os.listdir(place.parent) if place.parent.is_dir() else []
        near = did_you_mean(place.name, [*beside, *builtin_datasets.BUILTIN_NAMES])
        what = "a folder" if require_labels else "a picture, a folder of pictures"
        raise InputError(
            f"data path '{data}' does not exist{near} Give {what}, a CSV or Parquet file, shards, "
            f"or one of the standard sets {', '.join(builtin_datasets.BUILTIN_NAMES)}."
        )
    if place.suffix.lower() in image_folder.TABLE_SUFFIXES:
        return table.read_table(
            place, data, path_column=path_column, label_column=label_column, group_column=group_column,
            require_labels=require_labels, label_separator=label_separator, strict_labels=strict,
        )  # fmt: skip
    if not is_image(place.name):
        fix = _FIRST.get(place.suffix.lower(), "If it is a picture, convert it to JPEG first.")
        raise InputError(
            f"'{data}' is neither a folder, a CSV, TSV or Parquet file, nor a picture of a kind that is opened here. "
            f"{fix}"
        )
    if require_labels:
        raise InputError(
            f"'{data}' is a single picture without a label. Give a folder or a table of labelled ones."
        )
    _refuse_columns(f"{data} is a picture", named)
    return image_folder.read_single_image(place, data)


def _is_plain_folder(data: str) -> bool:
    place = Path(os.path.expanduser(data))
    return place.is_dir() and not open.is_shards(data) and not builtin_datasets.is_cifar_folder(place)


def _refuse_columns(what: str, named: Mapping[str, bool]) -> None:
    """Refuse options that name columns where there are none: nobody is to believe that they were heeded.

    Args:
        what: DATA is, as the beginning of a message.
        named: option -> whether it names a column.
    """
    if said := [option for option, given in named.items() if given]:
        raise InputError(f"{what}, which has no columns. Give a table, or leave {' and '.join(said)} out.")


# Classes that are left out and named in a note. Ours.
_CLASSES_NAMED = 20


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageDataset(ImageRecords):
    """A listing that passed the rules, and the classes its labels are.

    Args:
        class_names: sorted; a label's class id is its place here.
        separator: of the labels in a cell, where an image may have several (``data.multilabel``); None if one.
        bands: how the rasters among the pictures are read (``data.bands``); None takes all for ordinary pictures.
        root, source, table, rows, notes, standard, shards, passed_over: see ``ImageRecords``.
    """

    class_names: tuple[str, ...]
    separator: str | None = None
    bands: Bands | None = None

    @property
    def channels(self) -> int:
        """Of its pictures, as they are read."""
        return RGB if self.bands is None else self.bands.channels

    @cached_property
    def targets(self) -> Ints:
        """Class ids that the network is to answer, -1 where unlabelled. Read-only.

        (N,) where a picture has one label. Where it may have several (N, M): those of the fewest pictures first,
        -1 behind the last of a picture.
        """
        if self.separator is None:
            return self.labels
        ids = multilabel.class_ids(self.table["label"], self.class_names, self.separator)
        ids.flags.writeable = False
        return ids

    @cached_property
    def labels(self) -> Ints:
        """(N,) class ids, -1 where unlabelled; of several labels the first, see ``targets``. Read-only."""
        if self.separator is not None:
            return self.targets[:, 0]
        codes, labels = pd.factorize(self.table["label"])
        known = {name: number for number, name in enumerate(self.class_names)}
        ids = np.array([*(known.get(label, -1) for label in labels), -1], dtype=np.int64)[codes]
        ids.flags.writeable = False
        return ids

    def subset(self, split: str) -> Self:
        """The pictures of one split, classes unchanged: an id means the same in every split.

        Raises:
            InputError: no such split, or nothing in it.
        """
        if split not in SPLITS:
            raise InputError(
                f"'{split}' is no split{did_you_mean(split, SPLITS)} There are train, minival, val and test."
            )
        rows = np.flatnonzero(self.split == split)
        if not len(rows):
            there = ", ".join(
                f"{name or 'no split'} {number:,}" for name, number in Counter(self.split).items()
            )
            raise InputError(f"{self.source} has no pictures in {split}; there are: {there}.")
        return self.select(rows)

    def renamed(self, change: Callable[[str], str]) -> Self:
        """The same pictures, their classes called otherwise: two that come to one name become one."""
        table = self.table.assign(label=multilabel.map_labels(self.table["label"], change, self.separator))
        return replace(
            self, table=table, class_names=tuple(sorted({change(name) for name in self.class_names}))
        )

    def with_split(self, split: npt.NDArray[np.object_]) -> Self:
        """The same pictures in other splits: (N,) names."""
        return replace(self, table=self.table.assign(split=split.tolist()))

    def digest(self) -> str:
        """32 hexadecimal digits of paths, labels and splits in their order: other data, other digits."""
        # Of pictures without any label the column is of numbers, which a text does not go into.
        columns = (self.table[name].astype(object).fillna("") for name in ("path", "label", "split"))
        content = hashlib.blake2b(digest_size=16)
        for column in columns:
            content.update(f"{len(column)}\0".encode())
            content.update("\0".join(column).encode())  # no path holds a NUL
        return content.hexdigest()

    def to_csv(self, path: str | Path) -> None:
        """Write all columns, relative paths as seen from the file's folder.

        Other processes see the whole file or none. Read it with ``load_dataset``, or ``from_csv`` to skip the checks.
        """
        table = self.seen_from(Path(path))
        write_table(Path(path), table)

    def seen_from(self, file: Path) -> pd.DataFrame:
        """The table as a file of that name holds it: relative paths from its folder.

        Raises:
            InputError: the way from there has a name that is not valid text.
        """
        prefix = _prefix(file, self.root)
        validate_path_text(prefix)

        def seen(name: str) -> str:
            return name if os.path.isabs(name) or is_url(name) else prefix + name

        table = self.table.assign(path=[seen(name) for name in self.paths])
        if AUGMENTED_FROM in table and self.shards is None:  # in shards these are the names within
            made = is_copy(self)
            table[AUGMENTED_FROM] = table[AUGMENTED_FROM].astype(object)
            table.loc[made, AUGMENTED_FROM] = [seen(name) for name in table.loc[made, AUGMENTED_FROM]]
        return table

    @classmethod
    def from_csv(
        cls, path: str | Path, *, root: Path | str, source: str, separator: str | None = None
    ) -> ImageDataset:
        """What ``to_csv`` wrote, without checking it again: equal digest, equal class ids.

        Args:
            path: of the run's ``manifest.csv``.
            root: folder or URL that the dataset's paths started from.
            source: what the user had given.
            separator: of the dataset that was written.

        Raises:
            InputError: there is no such file, or it is no dataset.
        """
        text = dict.fromkeys(("path", "label", "split", "group", AUGMENTED_FROM), str)
        try:
            table = pd.read_csv(path, dtype=text, keep_default_na=False, na_values=[""], low_memory=False)
            table["split"] = table["split"].fillna("")
            prefix = _prefix(Path(path), root)
            for column in {"path", AUGMENTED_FROM} & set(table.columns):
                table[column] = table[column].str.removeprefix(prefix)
            names = _class_names(table["label"], separator)
        except FileNotFoundError:
            raise InputError(f"{path} does not exist: the run has no manifest. Start a new run.") from None
        except (KeyError, ValueError) as error:
            raise InputError(f"{path} is no manifest of a run: {error}. Start a new run.") from None
        return cls(root=root, source=source, table=table, class_names=names, separator=separator)


def load_dataset(
    data: str | Path,
    *,
    path_column: str = "path",
    label_column: str = "label",
    group_column: str | None = None,
    labels: label_rules.Spelling = "exact",
    label_separator: str | None = None,
    require_labels: bool = True,
    for_training: bool = True,
    strict_labels: bool | None = None,
    heeded: Sequence[str] = SPLITS,
    layout: image_folder.Layout = "auto",
    min_images_per_class: int = 0,
) -> ImageDataset:
    """The dataset of a folder, a table, a packed set, a picture, or a standard set.

    Args:
        data: a folder with a sub-folder per class; a folder with train/ (training/), val/ (valid/, validation/) and
            test/ (testing/) of class folders; a CSV, TSV or Parquet file; shards, as a folder, URL, index or pattern
            (``shards.opening``); a folder of CIFAR binary files; the name
            of a standard set (``standard.NAMES``). Without ``require_labels`` also a folder of pictures,
            a table without labels, or one picture.
        path_column: of a table.
        label_column: of a table; in shards without an index, of their JSON members.
        group_column: of a table, or as above: pictures of one group (a patient, a site) are never split up.
            An empty group is a group of its own. A column called ``group`` is taken unasked.
        labels: ``casefold`` merges labels that differ only by case, surrounding space or the encoding of their
            letters (``rules.folded``).
        label_separator: of a table or shards: what stands between the labels of a picture that has several
            (``data.multilabel``). None takes a cell for one label.
        layout: Meaning of the sub-folders of a folder: ``classes``, ``splits``, or ``auto``, which goes by their names
            and contents, and refuses what may be either.
        min_images_per_class: Classes with fewer training images are left out, with a note. Their images in other splits
            are left out too.
        require_labels: False for prediction: labels are then taken where they are, and not checked.
        for_training: False for evaluation: one class, or no train part, will do.
        strict_labels: take the labels that there are as training would: refuse those that are ``rules.folded``
            alike, pass over pictures beside class folders; None where labels are required.
        heeded: splits that count, before any rule is applied; a picture of another is taken as one of none.

    Returns:
        Pictures in the order of the table, or of the folders' and files' names. A row whose split is empty
        stays so; ``splits.with_holdout`` counts it as train, since nothing set it aside.

    Raises:
        InputError: what ``rules``, ``tables``, ``several`` and ``folders`` refuse; or, for training, a name in ``data``
            that is not valid text.
    """
    tables.validate_columns(path_column, label_column, group_column)
    if for_training:  # a run lists its pictures, by their way from its folder
        validate_path_text(str(data))
    strict = require_labels if strict_labels is None else strict_labels
    listing = read_records(
        str(data),
        path_column=path_column,
        label_column=label_column,
        group_column=group_column,
        label_separator=label_separator,
        require_labels=require_labels,
        strict=strict,
        layout=layout,
        empty_classes=min_images_per_class > 0 or (require_labels and not for_training),
    )
    unheeded = ~np.isin(listing.split, ("", *heeded))
    if unheeded.any():
        split = np.where(unheeded, "", listing.split).tolist()
        listing = replace(listing, table=listing.table.assign(split=split))
    if require_labels:
        label_rules.validate_labeled(listing)
    # The rules about labels look at each picture once for each of its labels.
    taken = None if label_separator is None else multilabel.split_labels(listing, label_separator)
    by_label = listing if taken is None else taken.listing
    spelled, note = label_rules.merge_spellings(by_label, labels, strict=strict)
    by_label = replace(by_label, table=by_label.table.assign(label=spelled))
    listed = listing.rows is not None or listing.shards is not None  # folders hold one label each
    asked = strict and taken is None and listed
    unsaid = multilabel.unseparated_hint(spelled.dropna().unique()) if asked else None
    notes = (*listing.notes, *(one for one in (note, unsaid) if one is not None))
    cells = spelled if taken is None else multilabel.join_labels(spelled, taken, str(label_separator))
    listing = replace(listing, table=listing.table.assign(label=cells), notes=notes)
    if min_images_per_class > 0:
        listing, by_label = _without_scarce(listing, by_label, min_images_per_class, label_separator)
    if listing.shards is None or listing.rows is not None:  # an index was refused if two rows had one place
        label_rules.validate_unique_paths(listing)
    if require_labels and for_training:
        label_rules.validate_labels_not_blank(listing)
        label_rules.validate_places(listing)
        label_rules.validate_train_split(by_label)
        label_rules.validate_two_classes(by_label)
    fields = {name: getattr(listing, name) for name in ImageRecords.__dataclass_fields__}
    names = _class_names(by_label.table["label"], None)
    return ImageDataset(**fields, class_names=names, separator=label_separator)


def _without_scarce(
    listing: ImageRecords, by_label: ImageRecords, least: int, separator: str | None
) -> tuple[ImageRecords, ImageRecords]:
    """Both without the classes that have fewer training images, and with a note on what is left out."""
    labels = by_label.table["label"]
    counts = labels[by_label.in_train].value_counts().reindex(labels.dropna().unique(), fill_value=0)
    scarce = sorted(str(name) for name in counts.index[counts < least])
    if not scarce:
        return listing, by_label
    if len(scarce) == len(counts):
        raise InputError(
            f"--min-images-per-class {least}: every class of {listing.source} has fewer training images. The largest "
            f"has {counts.max():,}. Give a smaller number."
        )
    by_label = by_label.select(np.flatnonzero(~labels.isin(scarce)))
    cells = listing.table["label"]
    if separator is None:
        left = ~cells.isin(scarce)
    else:
        rest = {
            cell: separator.join(label for label in cell.split(separator) if label not in scarce)
            for cell in cells.dropna().unique()
        }
        cells = cells.map(rest)
        left = cells != ""
    note = (
        f"Left out {count_of(len(scarce), 'class')} with fewer than {count_of(least, 'training image')} each "
        f"({count_of(int((~left).sum()), 'image')}): {some(scarce, _CLASSES_NAMED)}."
    )
    listing = replace(listing, table=listing.table.assign(label=cells), notes=(*listing.notes, note))
    return listing.select(np.flatnonzero(left)), by_label


def _class_names(cells: pd.Series[str], separator: str | None) -> tuple[str, ...]:
    distinct = cells.dropna().unique()
    labels = (
        distinct if separator is None else [label for cell in distinct for label in cell.split(separator)]
    )
    return tuple(sorted(set(labels)))


def _prefix(file: Path, root: Path | str) -> str:
    """What stands before a path under ``root`` when it is written from the folder of ``file``."""
    if isinstance(root, str):
        return f"{root}/"
    folder = file.absolute().parent
    try:
        way = os.path.relpath(root, folder)
        # From a folder that a link leads to, the way up is another than its name says.
        if os.path.realpath(folder / way) != os.path.realpath(root):
            way = os.path.relpath(root, os.path.realpath(folder))
        prefix = Path(way).as_posix()
    except ValueError:  # Windows: on another drive
        prefix = root.as_posix()
    return "" if prefix == "." else prefix.rstrip("/") + "/"
