"""Datasets of labeled images with splits, loaded from a folder, a table, shards or a built-in dataset.

`ImageDataset` is a table of images. The torch `Dataset` that decodes them for training is `loader.TrainingImages`.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Self, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from efficientnetv2.data import builtin_datasets, image_folder, label_rules, table
from efficientnetv2.data.csv_dialect import with_numbers, write_table
from efficientnetv2.data.open_image import is_image
from efficientnetv2.data.records import (
    AUGMENTED_FROM,
    SPLITS,
    ImageRecords,
    Ints,
    Layout,
    ReadOptions,
    is_copy,
    records_table,
    validate_path_text,
)
from efficientnetv2.data.shards.index import is_url
from efficientnetv2.data.shards.records import is_shards, read_shards
from efficientnetv2.preprocessing import RGB, Bands
from efficientnetv2.utils.errors import InputError, did_you_mean, pluralize, shorten

# Fixes for common files that are not supported. Ours.
_FIXES = {
    **dict.fromkeys((".zip", ".rar", ".7z"), "Unpack it first, and give the folder."),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "Save its sheet as CSV in UTF-8 first, and give that."),
}
# Classes that a note names. Ours.
_MAX_NAMED = 20


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageDataset(ImageRecords):
    """Images with validated labels, sorted class names (a class id is an index into them), and splits.

    ``separator`` is the text between the labels of one image, None for one label per image. Without ``bands``, Pillow
    reads every image.
    """

    class_names: tuple[str, ...]
    separator: str | None = None
    bands: Bands | None = None

    @property
    def channels(self) -> int:
        """Number of channels of an image."""
        return RGB if self.bands is None else self.bands.channels

    @cached_property
    def targets(self) -> Ints:
        """Class ids, -1 for none, read-only: (N,), or (N, M) for several labels, the rarest class first."""
        if self.separator is None:
            return self.labels
        ids = label_rules.class_ids(self.table["label"], self.class_names, self.separator)
        ids.flags.writeable = False
        return ids

    @cached_property
    def labels(self) -> Ints:
        """(N,) class ids, -1 for none. The first label of a multi-label image. Read-only."""
        if self.separator is not None:
            return self.targets[:, 0]
        codes, labels = pd.factorize(self.table["label"])
        known = {name: number for number, name in enumerate(self.class_names)}
        ids = np.array([*(known.get(label, -1) for label in labels), -1], dtype=np.int64)[codes]
        ids.flags.writeable = False
        return ids

    def subset(self, split: str) -> Self:
        """Images of one split. Class ids stay the same. Raises InputError for an unknown or empty split."""
        if split not in SPLITS:
            raise InputError(f"'{split}' is not a split{did_you_mean(split, SPLITS)}")
        rows = np.flatnonzero(self.split == split)
        if not len(rows):
            counts = ", ".join(f"{name or 'no split'} {n:,}" for name, n in Counter(self.split).items())
            raise InputError(f"{self.source} has no images in {split}; there are: {counts}.")
        return self.select(rows)

    def map_classes(self, change: Callable[[str], str]) -> Self:
        """Rename classes. Classes that get the same name become one."""
        labels = label_rules.map_labels(self.table["label"], change, self.separator)
        names = tuple(sorted({change(name) for name in self.class_names}))
        return replace(self, table=self.table.assign(label=labels), class_names=names)

    def with_split(self, split: npt.NDArray[np.object_]) -> Self:
        """Replace the splits by these (N,) names."""
        return replace(self, table=self.table.assign(split=split.tolist()))

    def digest(self) -> str:
        """32 hexadecimal digits of paths, labels and splits in their order."""
        # A column of missing labels is numeric: it takes no text before it is of objects.
        content = hashlib.blake2b(digest_size=16)
        for column in (self.table[name].astype(object).fillna("") for name in ("path", "label", "split")):
            content.update(f"{len(column)}\0".encode())
            content.update("\0".join(column).encode())  # no path contains a NUL
        return content.hexdigest()

    def to_csv(self, path: str | Path) -> None:
        """Write all columns atomically, with paths relative to the file's folder."""
        write_table(Path(path), self.relative_to(Path(path)))

    def relative_to(self, file: Path) -> pd.DataFrame:
        """The table with paths relative to the folder of a file. Raises InputError if a path is not valid text."""
        prefix = _prefix(file, self.root)
        validate_path_text(prefix)

        def relative(name: str) -> str:
            return name if os.path.isabs(name) or is_url(name) else prefix + name

        table = self.table.assign(path=[relative(name) for name in self.paths])
        if AUGMENTED_FROM in table and self.shards is None:  # in shards these are names within the tar
            copies = is_copy(self)
            table[AUGMENTED_FROM] = table[AUGMENTED_FROM].astype(object)
            table.loc[copies, AUGMENTED_FROM] = [relative(name) for name in table.loc[copies, AUGMENTED_FROM]]
        return table

    @classmethod
    def from_csv(cls, path: str | Path, *, root: Path | str, source: str, separator: str | None = None) -> ImageDataset:
        """Read a file of ``to_csv``, without validation. Digest and class ids stay the same. Raises InputError."""
        try:
            table = pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""])
            table = with_numbers(table, ("path", "label", "split", "group", AUGMENTED_FROM))
            table["split"] = table["split"].fillna("")
            prefix = _prefix(Path(path), root)
            for column in {"path", AUGMENTED_FROM} & set(table.columns):
                table[column] = table[column].str.removeprefix(prefix)
            cells = table["label"].dropna().unique()
            labels = cells if separator is None else [label for cell in cells for label in cell.split(separator)]
        except (FileNotFoundError, KeyError, ValueError) as error:
            raise InputError(f"{path} is not the image table of a run ({error}). Start a new run.") from None
        names = tuple(sorted(set(labels)))
        return cls(root=root, source=source, table=table, class_names=names, separator=separator)


def validate_choices(labels: str, layout: str) -> None:
    """Refuse unknown values of ``load_dataset``. Raises InputError."""
    for name, value, choices in (
        ("labels", labels, get_args(label_rules.Spelling)),
        ("layout", layout, get_args(Layout)),
    ):
        if value not in choices:
            raise InputError(f"`{name}` is '{value}', but must be one of {', '.join(choices)}.")


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
    use_splits: Sequence[str] = SPLITS,
    layout: Layout = "auto",
    min_images_per_class: int = 0,
) -> ImageDataset:
    """Load a dataset and validate it.

    Example::

        import efficientnetv2 as ev2

        dataset = ev2.load_dataset("photos/")  # or a CSV or Parquet file, shards, "cifar10"
        len(dataset), dataset.class_names
        dataset.labels  # int64 class ids

    Args:
        data: A folder with one sub-folder per class. Or a folder with train/, val/ and test/ of class folders. Or a
            CSV, TSV or Parquet file, shards (``shards.records``), or the name of a built-in dataset. Without
            ``require_labels`` also a folder of images, or one image.
        path_column: Column of paths in a table.
        label_column: Column of labels in a table, or field of the JSON members of shards.
        group_column: Column of groups (a patient, a site) that splits keep together. A column ``group`` is used
            without being named. An image without a group is alone.
        labels: ``casefold`` merges labels that differ by case, surrounding space or Unicode form.
        label_separator: Text between the labels of one image. None: one label per image.
        require_labels: False for prediction. Labels are then read where present, and not checked.
        for_training: False for evaluation. Then one class, or no training split, is enough.
        strict_labels: Apply the rules of training to existing labels. None is as ``require_labels``.
        use_splits: Given splits that count. Images of other splits become images without a split.
        layout: Meaning of the sub-folders of a folder.
        min_images_per_class: Skip classes with fewer training images, with a note.

    Returns:
        Images in the order of the table, or of the names of folders and files. Missing splits stay empty;
        ``splits.with_holdout`` takes these images as training images.

    Raises:
        InputError: The data are missing or break a rule. The message names file, row, rule and fix.
    """
    if not isinstance(data, str | os.PathLike):
        raise InputError(f"`data` is a {type(data).__name__}, not a path. Write a table to a file: table.to_csv(PATH).")
    table.validate_columns(path_column, label_column, group_column)
    validate_choices(labels, layout)
    if for_training:  # a run writes the paths of its images to a table
        validate_path_text(str(data))
    options = ReadOptions(
        path_column=path_column,
        label_column=label_column,
        group_column=group_column,
        label_separator=label_separator,
        require_labels=require_labels,
        strict=require_labels if strict_labels is None else strict_labels,
        layout=layout,
        allow_empty_classes=min_images_per_class > 0 or (require_labels and not for_training),
    )
    records = _read(str(data), options)
    unused = ~np.isin(records.split, ("", *use_splits))
    if unused.any():
        split = np.where(unused, "", records.split).tolist()
        records = replace(records, table=records.table.assign(split=split))
    if require_labels:
        label_rules.validate_labeled(records)
    records, by_label = _clean_labels(records, options, labels)
    if min_images_per_class > 0:
        records, by_label = _without_small_classes(records, by_label, min_images_per_class, label_separator)
    if records.shards is None or records.rows is not None:  # indexes of shards have unique paths
        label_rules.validate_unique_paths(records)
    if require_labels and for_training:
        label_rules.validate_places(records)
        hint = None if label_separator is not None else label_rules.separator_hint(records, by_label.table["label"])
        label_rules.validate_train_split(by_label, hint)
        label_rules.validate_classes(by_label)
    values = {field.name: getattr(records, field.name) for field in fields(ImageRecords)}
    names = tuple(sorted(by_label.table["label"].dropna().unique()))
    return ImageDataset(**values, class_names=names, separator=label_separator)


def refuse_missing(data: str) -> None:
    """Refuse labeled data that is neither a file, a folder, shards nor a built-in dataset."""
    path = Path(os.path.expanduser(data)).absolute()
    if not (is_shards(data) or path.exists() or data in builtin_datasets.BUILTIN_NAMES):
        raise _missing_data(data, path, needs_labels=True)


def _read(data: str, options: ReadOptions) -> ImageRecords:
    path = Path(os.path.expanduser(data)).absolute()
    in_shards = is_shards(data)
    # The names of shards may be longer than a path can be.
    if options.layout != "auto" and (in_shards or not path.is_dir()):
        raise InputError(f"`layout={options.layout}`: {data} is not a folder of images. Leave it out.")
    if in_shards:
        if options.path_column != "path":
            raise InputError(f"{data} holds shards, which list their images. Leave `path_column` out.")
        return read_shards(data, options)
    if path.is_dir():
        _refuse_columns(data, options)
        return image_folder.read_folder(path, data, options)
    if not path.is_file():
        if data in builtin_datasets.BUILTIN_NAMES:
            _refuse_columns(data, options)
            return builtin_datasets.read_builtin(data)
        raise _missing_data(data, path, needs_labels=options.require_labels)
    if path.suffix.lower() in image_folder.TABLE_SUFFIXES:
        return table.read_table(path, data, options)
    if not is_image(path.name):
        fix = _FIXES.get(path.suffix.lower(), "If it is an image, convert it to JPEG first.")
        raise InputError(f"'{data}' is not a folder, a CSV, TSV or Parquet file, or a supported image. {fix}")
    if options.require_labels:
        raise InputError(f"'{data}' is an image without a label. Give a folder or a table of labeled images.")
    _refuse_columns(data, options)
    return ImageRecords(root=path.parent, source=data, table=records_table([path.name], [np.nan], [""]))


def _missing_data(data: str, path: Path, *, needs_labels: bool) -> InputError:
    neighbors = os.listdir(path.parent) if path.parent.is_dir() else []
    near = did_you_mean(path.name, neighbors, os.path.dirname(data.rstrip(f"/{os.sep}")))
    if near == ".":
        near = did_you_mean(path.name, builtin_datasets.BUILTIN_NAMES)
    image = "" if needs_labels else "an image, "
    return InputError(
        f"data path '{data}' does not exist{near} Give a folder, a CSV or Parquet file, shards, {image}or a built-in "
        f"dataset: {', '.join(builtin_datasets.BUILTIN_NAMES)}."
    )


def _refuse_columns(data: str, options: ReadOptions) -> None:
    for name in ("path_column", "label_column", "group_column"):
        if getattr(options, name) != getattr(ReadOptions, name):
            raise InputError(f"{data} has no columns. Give a table, or leave `{name}` out.")


def _clean_labels(
    records: ImageRecords, options: ReadOptions, spelling: label_rules.Spelling
) -> tuple[ImageRecords, ImageRecords]:
    """Records with normalized labels, and the same with one row per label of an image."""
    separator, notes = options.label_separator, [*records.notes]
    by_label = records if separator is None else label_rules.split_labels(records, separator)
    labels, note = label_rules.merge_spellings(by_label, spelling, strict=options.strict)
    notes += [note] if note else []
    notes += label_rules.separator_notes(records, labels, separator) if options.strict else []
    if separator is None:
        cells = labels
    else:
        pairs = by_label.table[["label"]].assign(to=labels).drop_duplicates()
        spelled = dict(zip(pairs["label"], pairs["to"], strict=True))
        cells = label_rules.join_labels(records.table["label"], spelled, separator)
    by_label = replace(by_label, table=by_label.table.assign(label=labels))
    return replace(records, table=records.table.assign(label=cells), notes=tuple(notes)), by_label


def _without_small_classes(
    records: ImageRecords, by_label: ImageRecords, minimum: int, separator: str | None
) -> tuple[ImageRecords, ImageRecords]:
    labels = by_label.table["label"]
    counts = labels[by_label.in_train].value_counts().reindex(labels.dropna().unique(), fill_value=0)
    small = sorted(str(name) for name in counts.index[counts < minimum])
    if not small:
        return records, by_label
    if len(small) == len(counts):
        raise InputError(
            f"`min_images_per_class={minimum}`: the largest class of {records.source} has {counts.max():,} training "
            "images. Use a smaller number."
        )
    by_label = by_label.select(np.flatnonzero(~labels.isin(small)))
    cells = records.table["label"]
    if separator is None:
        keep = ~cells.isin(small)
    else:
        left_out = set(small)
        reduced = {
            cell: separator.join(label for label in cell.split(separator) if label not in left_out)
            for cell in cells.dropna().unique()
        }
        cells = cells.map(reduced)
        keep = cells != ""
    note = (
        f"Left out {pluralize(len(small), 'class')} with fewer than {pluralize(minimum, 'training image')} each "
        f"({pluralize(int((~keep).sum()), 'image')}): {shorten(small, _MAX_NAMED)}."
    )
    records = replace(records, table=records.table.assign(label=cells), notes=(*records.notes, note))
    return records.select(np.flatnonzero(keep)), by_label


def _prefix(file: Path, root: Path | str) -> str:
    """Text before the paths below ``root`` in a table that is written to ``file``."""
    if isinstance(root, str):
        return f"{root}/"
    folder = file.absolute().parent
    try:
        relative = os.path.relpath(root, folder)
        # Through a symbolic link, ``..`` leads elsewhere than the names suggest.
        if os.path.realpath(folder / relative) != os.path.realpath(root):
            relative = os.path.relpath(root, os.path.realpath(folder))
        prefix = Path(relative).as_posix()
    except ValueError:  # Windows: another drive
        prefix = root.as_posix()
    return "" if prefix == "." else prefix.rstrip("/") + "/"


def resolved_files(dataset: ImageDataset) -> list[str]:
    """(N) files of the images without links."""
    # Once for each folder: for each of a million images it would take tens of seconds, and on a network share longer.
    folder_of = lru_cache(maxsize=None)(os.path.realpath)

    @cache
    def links_in(folder: str) -> frozenset[str]:
        try:
            with os.scandir(folder) as entries:
                return frozenset(entry.name for entry in entries if entry.is_symlink())
        except OSError:  # a tar, or a folder that has gone
            return frozenset()

    def resolved(path: str) -> str:
        folder, name = os.path.split(path)
        file = os.path.join(folder_of(folder), name)
        return os.path.realpath(file) if name in links_in(folder_of(folder)) else file

    return [resolved(dataset.file(row)) for row in range(len(dataset))]
