"""Folders of pictures: one sub-folder per class, with or without train/, val/, test/ above them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from efficientnetv2.base.errors import InputError, count_of, some
from efficientnetv2.data.listing import Listing, frame, is_picture, split_named

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")

# What lies beside pictures and is none: text and tables, what says more about a picture (of phones, cameras, rasters,
# annotators), and what systems and people leave. All else is named where it is passed over: a list of what might be a
# picture would leave the next camera's out in silence, and a name too many costs a line. Ours.
_BESIDE_PICTURES = frozenset(
    (
        *TABLE_SUFFIXES, ".txt", ".md", ".rst", ".html", ".htm", ".pdf", ".doc", ".docx", ".xls", ".xlsx", ".json",
        ".jsonl", ".yaml", ".yml", ".xml", ".log", ".aae", ".xmp", ".thm", ".tfw", ".jgw", ".pgw", ".wld", ".prj",
        ".ovr", ".vrt", ".geojson", ".db", ".ini", ".lnk", ".url", ".py", ".ipynb", ".sh",
    )
)  # fmt: skip
# Suffixes that a sentence names. Ours.
_SUFFIXES_NAMED = 5


def read_folder(folder: Path, source: str, *, require_labels: bool, classes_first: bool = False) -> Listing:
    """List a folder of class folders, of splits of class folders, or (labels not required) of pictures.

    Pictures are found at any depth below a class folder; hidden files and folders are passed over. Other files are so
    too, and a note counts them by suffix, but for what lies beside pictures anywhere.

    Args:
        folder: absolute.
        source: what the user gave, for messages.
        require_labels: False lists pictures outside class folders and beside splits too, then all without label and
            split.
        classes_first: but passes over those that lie beside class folders or splits, as if labels were required.

    Raises:
        InputError: no picture at all, no class folders where labels are required, or a class folder
            without a picture in the training part.
    """
    folders, loose = _contents(folder)
    splits = _splits(folder, folders)
    if splits:
        beside = _filled(folder, [name for name in folders if name not in splits]) + loose
        if beside and not require_labels and not classes_first:
            return _everything(folder, source)
        return _split_folders(folder, source, splits, beside, require_labels, classes_first)
    called_so = [name for name in folders if split_named(name)]
    if called_so and require_labels:
        _refuse_table_beside(folder, source, called_so)
    if loose and not require_labels and not (classes_first and len(_filled(folder, folders)) > 1):
        return _everything(folder, source)
    if not folders and require_labels and loose:
        raise InputError(_no_classes(source, len(loose)))
    passed: Passed = Counter()
    found = _classes(folder, source, folders, passed, prefix="", split="", required=require_labels)
    if not require_labels:  # a picture there would have been listed
        passed += _in("", _beside(folder))
    notes = _left_out(loose, source)
    if classes_first and (empty := sorted(set(folders) - {str(label) for _, label, _ in found})):
        notes = (
            *notes,
            f"No picture lies in {some(empty)}: to train, put pictures into it, or remove the folder.",
        )
    return _listing(folder, source, found, passed, notes)


def takes_in(folder: Path, place: Path) -> bool:
    """Whether what is written to a place would be read with the pictures of a folder, or become a class of them.

    Args:
        folder: of pictures.
        place: a folder, there or not.
    """
    whole, there = folder.resolve(), place.resolve()
    if not there.is_relative_to(whole):
        return False
    parts = there.relative_to(whole).parts
    if any(part.startswith(".") for part in parts):
        return False
    folders, _ = _contents(folder)
    splits = _splits(folder, folders)
    return parts[0] in splits if splits and parts else bool(folders)


def read_picture(file: Path, source: str) -> Listing:
    """A single picture, unlabelled."""
    return _listing(file.parent, source, [(file.name, np.nan, "")], Counter())


Found = list[tuple[str, str | float, str]]
# Suffix and folder -> files there that are no pictures that are opened here.
Passed = Counter[tuple[str, str]]


def _in(folder: str, counts: Counter[str]) -> Passed:
    """Numbers by suffix, as those of a folder."""
    return Counter({(suffix, folder): count for suffix, count in counts.items()})


def _splits(folder: Path, folders: list[str]) -> list[str]:
    """Those of the sub-folders that are splits, if any: all are called so, or one called so holds class folders."""
    called_so = [name for name in folders if split_named(name)]
    if len(called_so) == len(folders) or any(_contents(folder / name)[0] for name in called_so):
        return called_so
    return []


def _everything(folder: Path, source: str) -> Listing:
    """Every picture, at any depth, unlabelled."""
    passed: Counter[str] = Counter()
    every: Found = [(path, np.nan, "") for path in _walk(str(folder), "", passed)]
    return _listing(folder, source, every, _in("", passed))


def _split_folders(
    folder: Path,
    source: str,
    splits: list[str],
    beside: list[str],
    require_labels: bool,
    classes_first: bool,
) -> Listing:
    found: Found = []
    notes: tuple[str, ...] = ()
    passed: Passed = Counter()
    if beside:
        notes = (f"Passed over, since they lie beside the splits of {source}: {some(beside)}.",)
    for name in splits:
        split = split_named(name) or ""
        place = os.path.join(source, name)
        classes, loose = _contents(folder / name)
        if not classes and loose and require_labels:
            raise InputError(_no_classes(place, len(loose)))
        required = require_labels and split == "train"  # val and test may lack a class
        found += _classes(
            folder / name, place, classes, passed, prefix=f"{name}/", split=split, required=required
        )
        if require_labels or (classes_first and _filled(folder / name, classes)):
            notes += _left_out(loose, place)
        else:
            found += [(f"{name}/{path}", np.nan, split) for path in loose]
            passed += _in(name, _beside(folder / name))
    return _listing(folder, source, found, passed, notes)


def _filled(folder: Path, names: list[str]) -> list[str]:
    """Those of the sub-folders that hold a picture, at any depth."""

    def holds(name: str) -> bool:
        try:
            return next(_walk(str(folder / name), "", Counter()), None) is not None
        except InputError:  # it may not be read, as the lost+found of a disk
            return False

    return [name for name in names if holds(name)]


def _classes(
    folder: Path,
    place: str,
    classes: list[str],
    passed: Passed,
    *,
    prefix: str,
    split: str,
    required: bool,
) -> Found:
    found: Found = []
    for name in classes:
        here: Counter[str] = Counter()
        paths = list(_walk(str(folder / name), f"{prefix}{name}/", here))
        if required and not paths:
            whole = os.path.join(place, name)
            raise InputError(
                f"{whole}: the class folder '{name}' holds no picture. Put pictures into it, or remove the folder."
                + "".join(f" {note}" for note in _passed_over(_not_opened(_in(name, here)), whole))
            )
        passed += _in(f"{prefix}{name}", here)
        found += [(path, name, split) for path in paths]
    return found


def _listing(folder: Path, source: str, found: Found, passed: Passed, notes: tuple[str, ...] = ()) -> Listing:
    if not found:
        there = _not_opened(passed | _in("", _beside(folder)))
        raise InputError(
            f"{source} holds no pictures. Give a folder with one sub-folder per class, "
            "a CSV or Parquet file with a path and a label column, or the name of a standard set."
            + "".join(f" {note}" for note in _passed_over(there, source))
        )
    paths, labels, splits = zip(*found, strict=True)
    return Listing(
        root=folder,
        source=source,
        table=frame(paths, labels, splits),
        notes=(*notes, *_passed_over(_not_opened(passed), source)),
        passed_over=_not_opened(passed),
    )


def _contents(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the sub-folders and of the pictures right in a folder, sorted, hidden ones left out."""
    entries = _entries(str(folder))
    folders = [entry.name for entry in entries if _is_folder(entry)]
    return folders, [entry.name for entry in entries if is_picture(entry.name) and not _is_folder(entry)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or leads to one; a link that leads round to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _walk(folder: str, prefix: str, passed: Counter[str], way: tuple[str, ...] = ()) -> Iterator[str]:
    """Pictures at any depth, as ``prefix`` + path with forward slashes, in the order of their names.

    Other files are counted in ``passed``, by suffix. ``way`` is where the links on the way to the folder really lie.
    """
    for entry in _entries(folder):
        if _is_folder(entry):
            onward = way
            if entry.is_symlink():
                onward = (*way, os.path.realpath(folder))
                if _encloses(os.path.realpath(entry.path), onward):
                    continue  # a link to a folder on the way here would lead round for ever
            yield from _walk(entry.path, f"{prefix}{entry.name}/", passed, onward)
        elif is_picture(entry.name):
            yield prefix + entry.name
        else:
            passed[_suffix(entry.name)] += 1


def _beside(folder: Path) -> Counter[str]:
    """Of the files right in a folder that are no pictures: how many of each suffix."""
    return Counter(
        _suffix(entry.name)
        for entry in _entries(str(folder))
        if not _is_folder(entry) and not is_picture(entry.name)
    )


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _not_opened(passed: Passed) -> dict[str, dict[str, int]]:
    """Of files that may be pictures: suffix -> folder -> how many; the commonest suffix first."""
    kinds: dict[str, dict[str, int]] = {}
    for (suffix, folder), count in passed.items():
        if suffix not in _BESIDE_PICTURES:
            kinds.setdefault(suffix, {})[folder] = count
    return dict(sorted(kinds.items(), key=lambda kind: -sum(kind[1].values())))


def _passed_over(passed: Mapping[str, Mapping[str, int]], place: str) -> tuple[str, ...]:
    """What is said of files that may be pictures but are not opened: a sentence, or none."""
    kinds = [
        f"{count_of(sum(there.values()), 'file')} {suffix or 'without a suffix'}"
        for suffix, there in passed.items()
    ]
    if not kinds:
        return ()
    more = ", and others" if len(kinds) > _SUFFIXES_NAMED else ""
    return (
        f"Passed over in {place}: {', '.join(kinds[:_SUFFIXES_NAMED])}{more}. Such files are not opened here; if they "
        "are pictures, convert them to JPEG first.",
    )


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            # __MACOSX: the shadow files that macOS puts into ZIP archives.
            shown = [
                entry for entry in entries if not entry.name.startswith(".") and entry.name != "__MACOSX"
            ]
    except PermissionError:
        raise InputError(f"{folder} may not be read: permission denied. Change its permissions.") from None
    return sorted(shown, key=lambda entry: entry.name)


def _encloses(outer: str, folders: tuple[str, ...]) -> bool:
    """Whether a folder is, or lies above, one of others, all by their real paths."""
    start = outer.rstrip(os.sep) + os.sep
    return any(inner == outer or inner.startswith(start) for inner in folders)


def _no_classes(place: str, pictures: int) -> str:
    return (
        f"{place} holds {count_of(pictures, 'picture')} but no class folders, so none has a label. "
        "Sort them into one sub-folder per class, or give a CSV or Parquet file with paths and labels."
    )


def _left_out(loose: list[str], place: str) -> tuple[str, ...]:
    if not loose:
        return ()
    return (f"Left out, since they lie beside the class folders of {place}: {some(loose)}.",)


def _refuse_table_beside(folder: Path, source: str, splits: list[str]) -> None:
    """A flat train/ with a table beside it is listed by that table; read as a class it would mislead."""
    tables = sorted(
        entry.name for entry in _entries(str(folder)) if entry.name.lower().endswith(TABLE_SUFFIXES)
    )
    if tables:
        raise InputError(
            f"{source}: the folder {some(splits)} has no class folders, and a table lies beside it. "
            f"Give the table itself: {os.path.join(source, tables[0])}"
        )
