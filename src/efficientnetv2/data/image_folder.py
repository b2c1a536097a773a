"""Folders of pictures: one sub-folder per class, with or without train/, val/, test/ above them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from efficientnetv2.data.records import (
    ImageRecords,
    is_image,
    is_system_folder,
    parse_split,
    records_table,
    split_in_name,
)
from efficientnetv2.utils.errors import InputError, count_of, some

#: What the sub-folders are: ``classes``, ``splits``, or whichever their names and contents tell (``auto``).
Layout = Literal["auto", "classes", "splits"]

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
# Folders, and names of sub-folders that all of them hold, from which the folders look like parts of a dataset. Ours.
_SHARED_NAMES = 2
# Suffixes that a sentence names. Ours.
_SUFFIXES_NAMED = 5


def read_folder(
    folder: Path,
    source: str,
    *,
    require_labels: bool,
    classes_first: bool = False,
    layout: Layout = "auto",
    empty_classes: bool = False,
) -> ImageRecords:
    """List a folder of class folders, of splits of class folders, or (labels not required) of images.

    Images are found at any depth below a class folder. Hidden files and folders are skipped. A note names skipped
    folders of systems, such as thumbnails and bins, and counts other files by suffix, but not what lies beside images
    anywhere.

    Args:
        folder: Absolute path.
        source: What the user gave, for messages.
        require_labels: False lists images outside class folders and beside splits too, then all without label and
            split.
        classes_first: Skip images that lie beside class folders or splits, as if labels were required.
        layout: What the sub-folders are.
        empty_classes: Leave out a class folder without an image instead of refusing it.

    Raises:
        InputError: no image at all, no class folders where labels are required, a class folder without an image in
            the training part, or sub-folders that may be classes as well as splits.
    """
    folders, loose = _contents(folder)
    if layout == "auto" and require_labels:
        _refuse_table_beside(folder, source, folders)
    splits = _splits(folder, folders, layout)
    if layout == "splits" and not splits:
        raise InputError(
            f"--layout splits: no sub-folder of {source} names a split (its sub-folders: {some(folders)}). "
            "Call them train, val and test."
        )
    if splits:
        beside = _filled(folder, [name for name in folders if name not in splits]) + loose
        if beside and not require_labels and not classes_first:
            return _everything(folder, source)
        return _split_folders(folder, source, splits, beside, require_labels, classes_first, empty_classes)
    if layout == "auto" and (require_labels or classes_first):
        _refuse_ambiguous(folder, source, folders)
    if loose and not require_labels and not (classes_first and len(_filled(folder, folders)) > 1):
        return _everything(folder, source)
    if not folders and require_labels and loose:
        raise InputError(_no_classes(source, len(loose)))
    passed: Passed = Counter()
    found, empty = _classes(folder, folders, passed, prefix="", split="")
    if empty and require_labels and not empty_classes:
        raise InputError(_no_images(source, "", empty, passed))
    passed += _in("", _beside(folder, systems_only=require_labels))
    notes = _left_out(loose, source)
    if layout == "auto" and (require_labels or classes_first):
        found, note = _splits_within(found)
        notes += note
    if empty and (classes_first or empty_classes):
        fix = "Skipped" if empty_classes else "To train, put images into each, or remove the folder"
        notes += (f"No image lies in the class folders {some(empty)}. {fix}.",)
    return _listing(folder, source, found, passed, notes, require_labels=require_labels)


def lists_images(folder: Path, place: Path) -> bool:
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
    splits = _splits(folder, folders, "auto")
    return parts[0] in splits if splits and parts else bool(folders)


def read_single_image(file: Path, source: str) -> ImageRecords:
    """A single picture, unlabelled."""
    return _listing(file.parent, source, [(file.name, np.nan, "")], Counter())


Found = list[tuple[str, str | float, str]]
# Suffix and folder -> files there that are no images that are opened here. A folder of a system stands among the
# suffixes, as its name and a slash, which no suffix has.
Passed = Counter[tuple[str, str]]


def _in(folder: str, counts: Counter[str]) -> Passed:
    """Numbers by suffix, as those of a folder."""
    return Counter({(suffix, folder): count for suffix, count in counts.items()})


def _splits(folder: Path, folders: list[str], layout: Layout) -> dict[str, str]:
    """Sub-folder -> split, of the sub-folders that are splits; none where the sub-folders are classes."""
    named = {} if layout == "classes" else _named_as_splits(folders)
    if not named or layout == "splits":
        return named
    exact = [name for name in named if parse_split(name)]
    classes, loose = {}, {}
    for name in named:
        classes[name], loose[name] = _contents(folder / _inner(folder, name))
    if len(named) == len(folders) and (
        len(exact) == len(named) or (len(set(named.values())) > 1 and not any(classes.values()))
    ):
        return named
    if any(classes[name] for name in exact) and (
        len({named[name] for name in exact}) > 1
        or not _filled(folder, [name for name in folders if name not in named])
    ):
        return named
    # Names that only contain the word of a split are believed where the same classes lie in train and elsewhere.
    learned = {one for name, split in named.items() if split == "train" for one in classes[name]}
    others = [name for name, split in named.items() if split != "train"]
    agree = [
        learned & set(classes[name]) or (named[name] == "test" and loose[name] and not classes[name])
        for name in others
    ]
    return named if learned and agree and all(agree) else {}


def _named_as_splits(folders: list[str]) -> dict[str, str]:
    """Sub-folder -> split that it is called; of those that only contain the word none that another claims too."""
    exact = {name: split for name in folders if (split := parse_split(name))}
    like = {name: split for name in folders if name not in exact and (split := split_in_name(name))}
    claimed = Counter([*set(exact.values()), *like.values()])
    named = exact | {name: split for name, split in like.items() if claimed[split] == 1}
    return {name: named[name] for name in folders if name in named}


def _inner(folder: Path, name: str) -> str:
    """Where a split's folder holds a folder of its own name alone, as zips unpack to ``test/test``, that one."""
    return f"{name}/{name}" if _contents(folder / name) == ([name], []) else name


def _refuse_ambiguous(folder: Path, source: str, folders: list[str]) -> None:
    """Refuse sub-folders that may be classes as well as splits, or parts of a dataset: a guess may lose classes."""
    called_so = [name for name in folders if parse_split(name) and _contents(folder / name)[0]]
    others = [name for name in folders if name not in called_so]
    if called_so and (beside := _filled(folder, others)):
        raise InputError(
            f"{source}: the sub-folder '{called_so[0]}' is a split or a class; {some(beside)} beside it "
            f"{'is' if len(beside) == 1 else 'are'} no split. Pass --layout classes if each sub-folder is a class, or "
            f"--layout splits to read {some(called_so)} alone."
        )
    alike: list[str] = []
    shared: set[str] = set()
    for name in folders:  # the first class folder of images ends this, for to open all may take long
        classes, loose = _contents(folder / name)
        if classes:
            shared = shared & set(classes) if alike else set(classes)
            alike.append(name)
        if loose or (alike and len(shared) < _SHARED_NAMES):
            return
    if len(alike) < _SHARED_NAMES or all(map(parse_split, shared)) or not _filled(folder, alike):
        return
    raise InputError(
        f"{source}: the sub-folders {some(alike)} hold folders of the same names ({some(sorted(shared))}), as the "
        f"splits of a dataset do. Call splits train, val and test. Pass --layout classes if {some(alike, 2)} are the "
        "classes."
    )


def _splits_within(found: Found) -> tuple[Found, tuple[str, ...]]:
    """Class folders that hold nothing but splits, ``cat/train/1.jpg``: their images in these splits, and a note."""
    inner = [path.split("/")[1] if path.count("/") > 1 else "" for path, _, _ in found]
    names = {name: parse_split(name) for name in inner}
    if not all(names.values()) or len(set(names.values())) < 2:
        return found, ()
    placed = [(path, label, names[name] or "") for (path, label, _), name in zip(found, inner, strict=True)]
    return placed, (f"Each class folder holds the splits {some(sorted(names))}: they are taken as given.",)


def _everything(folder: Path, source: str) -> ImageRecords:
    """Every picture, at any depth, unlabelled."""
    passed: Counter[str] = Counter()
    every: Found = [(path, np.nan, "") for path in _walk(str(folder), "", passed)]
    return _listing(folder, source, every, _in("", passed))


def _split_folders(
    folder: Path,
    source: str,
    splits: dict[str, str],
    beside: list[str],
    require_labels: bool,
    classes_first: bool,
    empty_classes: bool,
) -> ImageRecords:
    found: Found = []
    notes: tuple[str, ...] = ()
    passed: Passed = Counter()
    unusual = [f"'{name}' as {split}" for name, split in splits.items() if not parse_split(name)]
    if unusual:
        notes = (
            f"Read the sub-folders of {source} as splits: {', '.join(unusual)}. If they are classes, pass --layout "
            "classes.",
        )
    if beside:
        notes += (f"Passed over, since they lie beside the splits of {source}: {some(beside)}.",)
    inner = {name: _inner(folder, name) for name in splits}
    contents = {name: _contents(folder / inner[name]) for name in splits}
    learned = {
        one.casefold() for name, split in splits.items() if split == "train" for one in contents[name][0]
    }
    for called, split in splits.items():
        name, (classes, loose) = inner[called], contents[called]
        place = os.path.join(source, name)
        if split == "test" and learned and _unlabelled(classes, loose, learned):
            images = [
                *loose,
                *(path for one in classes for path in _walk(str(folder / name / one), f"{one}/", Counter())),
            ]
            if not require_labels:
                found += [(f"{name}/{path}", np.nan, split) for path in images]
                passed += _in(name, _beside(folder / name))
            elif images:
                notes += (
                    f"Skipped {count_of(len(images), 'image')} of {place}: it has no folders of the training classes, "
                    f"so its images have no label. Predict them: effnetv2 predict RUN {place}",
                )
            continue
        if not classes and loose and require_labels:
            fix = " If the sub-folders are classes, pass --layout classes." if unusual else ""
            raise InputError(_no_classes(place, len(loose)) + fix)
        here, empty = _classes(folder / name, classes, passed, prefix=f"{name}/", split=split)
        if (
            empty and require_labels and split == "train" and not empty_classes
        ):  # val and test may lack a class
            raise InputError(_no_images(place, f"{name}/", empty, passed))
        found += here
        if require_labels or (classes_first and _filled(folder / name, classes)):
            notes += _left_out(loose, place)
            passed += _in(name, _beside(folder / name, systems_only=True))
        else:
            found += [(f"{name}/{path}", np.nan, split) for path in loose]
            passed += _in(name, _beside(folder / name))
    passed += _in("", _beside(folder, systems_only=True))
    return _listing(folder, source, found, passed, notes, require_labels=require_labels)


def _unlabelled(classes: list[str], loose: list[str], learned: set[str]) -> bool:
    """Whether a test folder has no classes: images alone, or all of them in one folder that is called like none."""
    return (bool(loose) and not classes) or (len(classes) == 1 and classes[0].casefold() not in learned)


def _filled(folder: Path, names: list[str]) -> list[str]:
    """Those of the sub-folders that hold a picture, at any depth."""

    def holds(name: str) -> bool:
        try:
            return next(_walk(str(folder / name), "", Counter()), None) is not None
        except InputError:  # it may not be read, as the lost+found of a disk
            return False

    return [name for name in names if holds(name)]


def _classes(
    folder: Path, classes: list[str], passed: Passed, *, prefix: str, split: str
) -> tuple[Found, list[str]]:
    """The images of class folders, and the names of those without one."""
    found: Found = []
    empty = []
    for name in classes:
        here: Counter[str] = Counter()
        paths = list(_walk(str(folder / name), f"{prefix}{name}/", here))
        if not paths:
            empty.append(name)
        passed += _in(f"{prefix}{name}", here)
        found += [(path, name, split) for path in paths]
    return found, empty


def _no_images(place: str, prefix: str, empty: list[str], passed: Passed) -> str:
    """The message about class folders without an image."""
    whole = os.path.join(place, empty[0]) if len(empty) == 1 else place
    within = tuple(f"{prefix}{name}" for name in empty)
    there = Counter({key: count for key, count in passed.items() if key[1] in within})
    what = "class folder {} holds" if len(empty) == 1 else "class folders {} hold"
    return (
        f"{whole}: the {what.format(some(empty))} no image. Put images into each, remove the folder, or pass "
        "--min-images-per-class 1 to leave such classes out."
        + "".join(f" {note}" for note in _passed_over(_not_opened(there), whole))
    )


def _listing(
    folder: Path,
    source: str,
    found: Found,
    passed: Passed,
    notes: tuple[str, ...] = (),
    *,
    require_labels: bool = False,
) -> ImageRecords:
    if not found:
        there = _not_opened(passed | _in("", _beside(folder)))
        raise InputError(
            f"{source} holds no images. "
            + (
                "Give a folder with one sub-folder per class, a CSV or Parquet file with a path and a label column, "
                "or the name of a standard set."
                if require_labels
                else "Give an image, a folder of images, a CSV or Parquet file with a path column, or shards."
            )
            + "".join(f" {note}" for note in _passed_over(there, source))
        )
    paths, labels, splits = zip(*found, strict=True)
    return ImageRecords(
        root=folder,
        source=source,
        table=records_table(paths, labels, splits),
        notes=(*notes, *_passed_over(_not_opened(passed), source), *_systems(passed, source)),
        passed_over=_not_opened(passed),
    )


def _contents(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the sub-folders and of the pictures right in a folder, sorted, hidden ones left out."""
    entries = _entries(str(folder))
    folders = [entry.name for entry in entries if _is_folder(entry)]
    return folders, [entry.name for entry in entries if is_image(entry.name) and not _is_folder(entry)]


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
    for entry in _entries(folder, passed):
        if _is_folder(entry):
            onward = way
            if entry.is_symlink():
                onward = (*way, os.path.realpath(folder))
                if _encloses(os.path.realpath(entry.path), onward):
                    continue  # a link to a folder on the way here would lead round for ever
            yield from _walk(entry.path, f"{prefix}{entry.name}/", passed, onward)
        elif is_image(entry.name):
            yield prefix + entry.name
        else:
            passed[_suffix(entry.name)] += 1


def _beside(folder: Path, *, systems_only: bool = False) -> Counter[str]:
    """What lies right in a folder and is skipped: folders of systems, and files by suffix that are no images."""
    passed: Counter[str] = Counter()
    entries = _entries(str(folder), passed)
    if not systems_only:
        passed.update(_suffix(one.name) for one in entries if not _is_folder(one) and not is_image(one.name))
    return passed


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _not_opened(passed: Passed) -> dict[str, dict[str, int]]:
    """Of files that may be pictures: suffix -> folder -> how many; the commonest suffix first."""
    kinds: dict[str, dict[str, int]] = {}
    for (suffix, folder), count in passed.items():
        if suffix not in _BESIDE_PICTURES and not suffix.endswith("/"):
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


def _systems(passed: Passed, place: str) -> tuple[str, ...]:
    """What is said of skipped folders of systems: a sentence, or none."""
    counts: Counter[str] = Counter()
    for (suffix, _), count in passed.items():
        if suffix.endswith("/"):
            counts[suffix[:-1]] += count
    if not counts:
        return ()
    each = ", ".join(f"{count_of(count, 'folder')} '{name}'" for name, count in counts.most_common())
    return (f"Skipped in {place}: {each}, which systems make for thumbnails and deleted files.",)


def _entries(folder: str, passed: Counter[str] | None = None) -> list[os.DirEntry[str]]:
    """What lies right in a folder, sorted, without hidden names and systems' folders, which ``passed`` counts."""
    try:
        with os.scandir(folder) as entries:
            shown = [entry for entry in entries if not entry.name.startswith(".")]
    except PermissionError:
        raise InputError(f"{folder} may not be read: permission denied. Change its permissions.") from None
    if passed is not None:
        passed.update(f"{entry.name}/" for entry in shown if is_system_folder(entry.name))
    return sorted((one for one in shown if not is_system_folder(one.name)), key=lambda entry: entry.name)


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


def _refuse_table_beside(folder: Path, source: str, folders: list[str]) -> None:
    """Flat folders of images with a table beside them are listed by that table; read as classes they would mislead."""
    names = (entry.name for entry in _entries(str(folder)) if not _is_folder(entry))
    tables = [name for name in names if name.lower().endswith(TABLE_SUFFIXES)]
    if not tables:
        return
    exact = [name for name in folders if parse_split(name)]
    called_so = folders if len(folders) == 1 or all(map(split_in_name, folders)) else exact
    if called_so and not any(_contents(folder / name)[0] for name in called_so):
        tables.sort(
            key=lambda name: split_in_name(name) != "train"
        )  # before a sample of what is to be handed in
        more = f" (or {some(tables[1:])})" if len(tables) > 1 else ""
        raise InputError(
            f"{source}: no class folders lie in {some(called_so)}, and a table lies beside. "
            f"Give the table itself: {os.path.join(source, tables[0])}{more}"
            + (". Pass --layout classes if each sub-folder is a class." if len(folders) > 1 else "")
        )
