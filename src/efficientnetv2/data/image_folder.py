"""Folders of images: one sub-folder per class, with or without train/, val/ and test/ above them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from efficientnetv2.data.open_image import is_folder, is_image
from efficientnetv2.data.records import (
    ImageRecords,
    Layout,
    ReadOptions,
    parse_split,
    records_table,
    split_in_name,
    visible_entries,
    walk_files,
)
from efficientnetv2.utils.errors import InputError, pluralize, shorten
from efficientnetv2.utils.shell import shell_join

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")
# Files that are often stored with images: text, tables, metadata and leftovers of systems. A note names any other
# skipped file: it may be an image in a format that is not supported. Ours.
_IGNORED_SUFFIXES = frozenset(
    (
        *TABLE_SUFFIXES, ".txt", ".md", ".rst", ".html", ".htm", ".pdf", ".doc", ".docx", ".xls", ".xlsx", ".json",
        ".jsonl", ".yaml", ".yml", ".xml", ".log", ".aae", ".xmp", ".thm", ".tfw", ".jgw", ".pgw", ".wld", ".prj",
        ".ovr", ".vrt", ".geojson", ".db", ".ini", ".lnk", ".url", ".py", ".ipynb", ".sh",
    )
)  # fmt: skip
# From this many folders with this many sub-folder names in common, folders look like splits. Ours.
_SHARED_NAMES = 2
_MAX_SUFFIXES = 5  # that a note names
_ARCHIVES = frozenset((".zip", ".rar", ".7z", ".gz", ".tgz", ".bz2", ".xz"))


def read_folder(folder: Path, source: str, options: ReadOptions) -> ImageRecords:
    """List a folder of class folders, of splits of class folders, or (labels not required) of images.

    Images are found at any depth below a class folder; hidden files and folders are skipped. With ``options.strict``,
    images next to class folders or splits are skipped. Otherwise, without ``options.require_labels``, their presence
    lists every image without label and split.
    Raises InputError where images or class folders are missing, or sub-folders may be classes as well as splits.
    """
    labeled, strict, is_auto = options.require_labels, options.strict, options.layout == "auto"
    listing = _Listing(folder, source, options)
    folders, loose = _contents(folder)
    if is_auto and labeled:
        _refuse_table(folder, source, folders)
    splits = _find_splits(folder, folders, options.layout)
    if options.layout == "splits" and not splits:
        raise InputError(
            f"`layout=splits`: no sub-folder of {source} names a split ({shorten(folders)}). Call them train, val and "
            "test."
        )
    if splits:
        others = _with_images(folder, [name for name in folders if name not in splits]) + loose
        if others and not labeled and not strict:
            listing.add_tree("", np.nan, "")
        else:
            listing.add_splits(splits, others)
        return listing.records()
    if is_auto and (labeled or strict):
        _refuse_ambiguous(folder, source, folders)
    if loose and not labeled and not (strict and len(_with_images(folder, folders)) > 1):
        listing.add_tree("", np.nan, "")
        return listing.records()
    if not folders and labeled and loose:
        raise InputError(_no_classes(source, loose))
    empty = listing.add_classes(folders)
    if not labeled:
        listing.skip_files("")
    if loose:
        listing.notes.append(f"Skipped next to the class folders of {source}: {shorten(loose)}.")
    if is_auto and (labeled or strict):
        listing.split_within_classes()
        listing.note_nesting()
        if called := [name for name in folders if parse_split(name) and name not in empty]:
            listing.notes.append(
                f"Read {shorten(called)} as {'a class' if len(called) == 1 else 'classes'}. If these images have no "
                f"class, move them out of {source}."
            )
    if empty and (strict or options.allow_empty_classes):
        listing.notes.append(f"Skipped the class folders {shorten(empty)}, which hold no image.")
    return listing.records()


def lists_images(folder: Path, place: Path) -> bool:
    """Whether images written to ``place`` would be read with those of ``folder``."""
    outer, inner = folder.resolve(), place.resolve()
    if not inner.is_relative_to(outer):
        return False
    parts = inner.relative_to(outer).parts
    if any(part.startswith(".") for part in parts):
        return False
    folders, _ = _contents(folder)
    splits = _find_splits(folder, folders, "auto")
    return parts[0] in splits if splits and parts else bool(folders)


class _Listing:
    def __init__(self, folder: Path, source: str, options: ReadOptions) -> None:
        self.folder, self.source, self.options = folder, source, options
        self.rows: list[tuple[str, str | float, str]] = []  # path, label, split
        self.skipped: Counter[tuple[str, str]] = Counter()  # (suffix, folder) -> files that are not images
        self.notes: list[str] = []

    def add_tree(self, below: str, label: str | float, split: str) -> int:
        """Add images at any depth below a sub-folder. Returns their number."""
        paths = list(walk_files(str(self.folder / below), f"{below}/" if below else ""))
        images = [path for path in paths if is_image(path)]
        self.rows += [(path, label, split) for path in images]
        self._count_others(paths, below)
        return len(images)

    def skip_files(self, below: str) -> None:
        """Count the files of a folder that are not images."""
        entries = visible_entries(str(self.folder / below))
        self._count_others([entry.name for entry in entries if not is_folder(entry)], below)

    def _count_others(self, paths: list[str], below: str) -> None:
        suffixes = (os.path.splitext(path)[1].lower() for path in paths if not is_image(path))
        for key, count in Counter((suffix, below) for suffix in suffixes).items():
            self.skipped[key] = max(self.skipped[key], count)  # the top level is counted twice

    def add_classes(self, classes: list[str], below: str = "", split: str = "") -> list[str]:
        """Add class folders. Returns those without an image; refuses them where they are trained on."""
        prefix = f"{below}/" if below else ""
        empty = [name for name in classes if not self.add_tree(prefix + name, name, split)]
        options = self.options
        if empty and options.require_labels and not options.allow_empty_classes and split in ("", "train"):
            within = {prefix + name for name in empty}
            skipped = {key: count for key, count in self.skipped.items() if key[1] in within}
            place = os.path.join(self.source, below)
            note = _format_unsupported(_unsupported(skipped), place)
            others = len(classes) - len(empty)
            fix = ", or leave out such classes with `min_images_per_class=1`" if others > 1 else ""
            raise InputError(f"{place}: the class folders {shorten(empty)} hold no image. {note}Add images{fix}.")
        return empty

    def add_splits(self, splits: dict[str, str], others: list[str]) -> None:
        labeled = self.options.require_labels
        if unusual := [f"'{name}' as {split}" for name, split in splits.items() if not parse_split(name)]:
            self.notes.append(
                f"Read the sub-folders of {self.source} as splits: {', '.join(unusual)}. If they are classes, use "
                "`layout=classes`."
            )
        if others:
            self.notes.append(f"Skipped next to the splits of {self.source}: {shorten(others)}.")
        inner = {name: _inner(self.folder, name) for name in splits}
        contents = {name: _contents(self.folder / inner[name]) for name in splits}
        trained = {cls.casefold() for name, split in splits.items() if split == "train" for cls in contents[name][0]}
        for key, split in splits.items():
            name, (classes, loose) = inner[key], contents[key]
            place = os.path.join(self.source, name)
            # A test folder without classes: only images, or one folder that is not named like a training class.
            one_other = len(classes) == 1 and classes[0].casefold() not in trained
            if split == "test" and trained and ((loose and not classes) or one_other):
                self._add_unlabeled_test(name, classes, loose)
                continue
            if not classes and loose and labeled:
                raise InputError(f"{_no_classes(place, loose)} If {name} is a class, use `layout=classes`.")
            self.add_classes(classes, name, split)
            skips_loose = labeled or (self.options.strict and _with_images(self.folder / name, classes))
            if skips_loose and loose:
                self.notes.append(f"Skipped next to the class folders of {place}: {shorten(loose)}.")
            elif not skips_loose:
                self.rows += [(f"{name}/{path}", np.nan, split) for path in loose]
                self.skip_files(name)

    def _add_unlabeled_test(self, name: str, classes: list[str], loose: list[str]) -> None:
        images = [*loose]
        for cls in classes:
            images += filter(is_image, walk_files(str(self.folder / name / cls), f"{cls}/"))
        if not self.options.require_labels:
            self.rows += [(f"{name}/{path}", np.nan, "test") for path in images]
            self.skip_files(name)
        elif images:
            place = os.path.join(self.source, name)
            self.notes.append(
                f"Skipped {pluralize(len(images), 'image')} of {place}, which has no folders of the training classes. "
                f"Predict them: {shell_join(['effnetv2', 'predict', 'RUN', place])}"
            )

    def split_within_classes(self) -> None:
        """``cat/train/1.jpg``: where every class folder holds nothing but splits, images get these splits."""
        inner = [path.split("/")[1] if path.count("/") > 1 else "" for path, _, _ in self.rows]
        splits = {name: parse_split(name) or "" for name in inner}
        outside = [row[0] for row, name in zip(self.rows, inner, strict=True) if not splits[name]]
        folders: dict[str, set[str]] = {}  # within each class folder
        for (path, _, _), name in zip(self.rows, inner, strict=True):
            folders.setdefault(path.split("/")[0], set()).add(name)
        named = sorted(name for name in splits if splits[name])
        in_each = all(any(splits[name] for name in names) for names in folders.values())
        if outside and in_each and len({splits[name] for name in named}) > 1:
            raise InputError(
                f"{self.source}: the class folders have the folders {shorten(named)}, but {outside[0]} "
                f"({pluralize(len(outside), 'such image')}) is in none of them. Move it into one, or use "
                "`layout=classes` to ignore these folders."
            )
        if all(splits.values()) and len(set(splits.values())) > 1:
            self.rows = [(row[0], row[1], splits[name]) for row, name in zip(self.rows, inner, strict=True)]
            self.notes.append(f"Read the folders {shorten(sorted(splits))} within each class folder as splits.")

    def note_nesting(self) -> None:
        """A note if the folders may be one level too high: within each class folder all images are in sub-folders."""
        if any(split or path.count("/") < 2 for path, _, split in self.rows):
            return
        inner = sorted({tuple(path.split("/", 2)[:2]) for path, _, _ in self.rows})
        counts = Counter(outer for outer, _ in inner)
        outer = max(counts, key=lambda name: counts[name], default="")
        if counts[outer] < 2 or all(parse_split(name) for _, name in inner):
            return
        names = [name for folder, name in inner if folder == outer]
        self.notes.append(
            f"The images of each class folder of {self.source} are in sub-folders, in '{outer}' {shorten(names, 3)}. "
            f"If these are the classes, give {os.path.join(self.source, outer)}; else use `layout=classes`."
        )

    def records(self) -> ImageRecords:
        """The records. Raises InputError if there are none."""
        if not self.rows:
            self.skip_files("")
        unsupported = _unsupported(self.skipped)
        note = _format_unsupported(unsupported, self.source)
        if not self.rows:
            fix = "with one sub-folder per class" if self.options.require_labels else "of images"
            raise InputError(f"{self.source} holds no images. {note}Give a folder {fix}, a table, or shards.")
        notes = [*self.notes, *filter(None, [note.strip()])]
        paths, labels, splits = zip(*self.rows, strict=True)
        return ImageRecords(
            root=self.folder,
            source=self.source,
            table=records_table(paths, labels, splits),
            notes=tuple(notes),
            unsupported_files=unsupported,
        )


def _find_splits(folder: Path, folders: list[str], layout: Layout) -> dict[str, str]:
    """Sub-folder -> split. Empty where the sub-folders are classes."""
    if layout == "classes":
        return {}
    named = _named_as_splits(folders)
    if not named or layout == "splits":
        return named
    exact = [name for name in named if parse_split(name)]
    contents = {name: _contents(folder / _inner(folder, name)) for name in named}
    classes = {name: found[0] for name, found in contents.items()}
    if len(named) == len(folders) and (
        len(exact) == len(named) or (len(set(named.values())) > 1 and not any(classes.values()))
    ):
        return named
    if any(classes[name] for name in exact) and (
        len({named[name] for name in exact}) > 1
        or not _with_images(folder, [name for name in folders if name not in named])
    ):
        return named
    # Names that only contain the word of a split need the same classes in train and in the other splits.
    trained = {cls for name, split in named.items() if split == "train" for cls in classes[name]}
    agree = [
        trained & set(classes[name]) or (split == "test" and contents[name][1] and not classes[name])
        for name, split in named.items()
        if split != "train"
    ]
    return named if trained and agree and all(agree) else {}


def _named_as_splits(folders: list[str]) -> dict[str, str]:
    """Sub-folder -> split of its name. A name that only contains the word must be the only one for that split."""
    exact = {name: split for name in folders if (split := parse_split(name))}
    like = {name: split for name in folders if name not in exact and (split := split_in_name(name))}
    claimed = Counter([*set(exact.values()), *like.values()])
    named = exact | {name: split for name, split in like.items() if claimed[split] == 1}
    return {name: named[name] for name in folders if name in named}


def _inner(folder: Path, name: str) -> str:
    """``test/test`` where zip files unpack to a folder that holds nothing but a folder of its own name."""
    return f"{name}/{name}" if _contents(folder / name) == ([name], []) else name


def _refuse_ambiguous(folder: Path, source: str, folders: list[str]) -> None:
    named = [name for name in folders if parse_split(name) and _contents(folder / name)[0]]
    if named and (others := _with_images(folder, [name for name in folders if name not in named])):
        raise _ambiguous(source, [*named, *others], _contents(folder / named[0])[0])
    alike: list[str] = []
    shared: set[str] = set()
    for name in folders:  # stops at the first class folder of images, since opening all of them may take long
        classes, loose = _contents(folder / name)
        if classes:
            shared = shared & set(classes) if alike else set(classes)
            alike.append(name)
        if loose or (alike and len(shared) < _SHARED_NAMES):
            return
    if len(alike) >= _SHARED_NAMES and not all(map(parse_split, shared)) and _with_images(folder, alike):
        raise _ambiguous(source, alike, sorted(shared))


def _ambiguous(source: str, names: list[str], inner: list[str]) -> InputError:
    return InputError(
        f"{source}: the sub-folders {shorten(names)} may be classes, or splits of the classes {shorten(inner)}. "
        "If they are classes, use `layout=classes`; else call the splits train, val and test, and use `layout=splits`."
    )


def _refuse_table(folder: Path, source: str, folders: list[str]) -> None:
    """Refuse flat folders of images next to a table: the table lists the images, the folders are not classes."""
    names = (entry.name for entry in visible_entries(str(folder)) if not is_folder(entry))
    tables = [name for name in names if name.lower().endswith(TABLE_SUFFIXES)]
    if not tables:
        return
    exact = [name for name in folders if parse_split(name)]
    flat = folders if len(folders) == 1 or all(map(split_in_name, folders)) else exact
    if flat and not any(_contents(folder / name)[0] for name in flat):
        tables.sort(key=lambda name: split_in_name(name) != "train")  # before a sample submission
        raise InputError(
            f"{source}: {shorten(flat)} hold no class folders, but there is a table. Give "
            f"{os.path.join(source, tables[0])}, or use `layout=classes` if each sub-folder is a class."
        )


def _with_images(folder: Path, names: list[str]) -> list[str]:
    def holds_image(name: str) -> bool:
        try:
            return any(map(is_image, walk_files(str(folder / name), "")))
        except InputError:  # no permission, such as lost+found of a disk
            return False

    return [name for name in names if holds_image(name)]


def _contents(folder: Path) -> tuple[list[str], list[str]]:
    entries = visible_entries(str(folder))
    folders = [entry.name for entry in entries if is_folder(entry)]
    return folders, [entry.name for entry in entries if is_image(entry.name) and not is_folder(entry)]


def _unsupported(skipped: Mapping[tuple[str, str], int]) -> dict[str, dict[str, int]]:
    """Skipped files that may be images: suffix -> folder -> count, the commonest suffix first."""
    counts: dict[str, dict[str, int]] = {}
    for (suffix, folder), count in skipped.items():
        if suffix not in _IGNORED_SUFFIXES:
            counts.setdefault(suffix, {})[folder] = count
    return dict(sorted(counts.items(), key=lambda item: -sum(item[1].values())))


def _format_unsupported(unsupported: Mapping[str, Mapping[str, int]], place: str) -> str:
    """A sentence on skipped files and a space; empty for none."""
    counts = [
        f"{pluralize(sum(folders.values()), 'file')} {suffix or 'without a suffix'}"
        for suffix, folders in list(unsupported.items())[:_MAX_SUFFIXES]
    ]
    others = ", and others" if len(unsupported) > _MAX_SUFFIXES else ""
    fixes = ["convert images to JPEG"] if unsupported.keys() - _ARCHIVES else []
    fixes += ["unpack archives"] if unsupported.keys() & _ARCHIVES else []
    return f"Skipped in {place}: {', '.join(counts)}{others}; {' and '.join(fixes)}. " if counts else ""


def _no_classes(place: str, images: list[str]) -> str:
    return (
        f"{place} holds {pluralize(len(images), 'image')} but no class folders. Sort them into one sub-folder per "
        "class, or give a table of paths and labels."
    )
