"""Folders of images: one sub-folder per class, with or without train/, val/ and test/ above them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from efficientnetv2.data.records import (
    ImageRecords,
    Layout,
    ReadOptions,
    is_image,
    is_system_folder,
    parse_split,
    records_table,
    split_in_name,
)
from efficientnetv2.utils.errors import InputError, pluralize, shorten

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")

# Files that are often stored with images: text, tables, metadata of cameras, rasters and annotators, and leftovers of
# systems. A note names any other skipped file: it may be an image in a format that is not supported. Ours.
_IGNORED_SUFFIXES = frozenset(
    (
        *TABLE_SUFFIXES, ".txt", ".md", ".rst", ".html", ".htm", ".pdf", ".doc", ".docx", ".xls", ".xlsx", ".json",
        ".jsonl", ".yaml", ".yml", ".xml", ".log", ".aae", ".xmp", ".thm", ".tfw", ".jgw", ".pgw", ".wld", ".prj",
        ".ovr", ".vrt", ".geojson", ".db", ".ini", ".lnk", ".url", ".py", ".ipynb", ".sh",
    )
)  # fmt: skip
# From this many folders with this many sub-folder names in common, folders look like splits. Ours.
_SHARED_NAMES = 2
# Suffixes that a note names. Ours.
_MAX_SUFFIXES = 5

# (path, label, split) of each image.
Rows = list[tuple[str, str | float, str]]
# (suffix, folder) -> skipped files. System folders count under their name and a slash, which no suffix has.
Skipped = Counter[tuple[str, str]]


def read_folder(folder: Path, source: str, options: ReadOptions) -> ImageRecords:
    """List a folder of class folders, of splits of class folders, or (labels not required) of images.

    Images are found at any depth below a class folder. Hidden files and folders are skipped. Notes name skipped system
    folders and files that may be images in other formats.

    With ``options.strict``, images next to class folders or splits are skipped. Otherwise, without
    ``options.require_labels``, their presence lists every image without label and split.

    Raises:
        InputError: There is no image, no class folder where labels are required, a class folder without a training
            image, or sub-folders that may be classes as well as splits.
    """
    layout, labeled = options.layout, options.require_labels
    folders, loose = _contents(folder)
    if layout == "auto" and labeled:
        _refuse_table(folder, source, folders)
    splits = _find_splits(folder, folders, layout)
    if layout == "splits" and not splits:
        raise InputError(
            f"--layout splits: no sub-folder of {source} names a split (its sub-folders: {shorten(folders)}). "
            "Call them train, val and test."
        )
    if splits:
        others = _with_images(folder, [name for name in folders if name not in splits]) + loose
        if others and not labeled and not options.strict:
            return _unlabeled(folder, source)
        return _read_splits(folder, source, splits, others, options)
    if layout == "auto" and (labeled or options.strict):
        _refuse_ambiguous(folder, source, folders)
    if loose and not labeled and not (options.strict and len(_with_images(folder, folders)) > 1):
        return _unlabeled(folder, source)
    if not folders and labeled and loose:
        raise InputError(_no_classes(source, len(loose)))
    skipped: Skipped = Counter()
    rows, empty = _read_classes(folder, folders, skipped, prefix="", split="")
    if empty and labeled and not options.allow_empty_classes:
        raise InputError(_no_images(source, "", empty, skipped))
    skipped += _in("", _skipped_here(folder, systems_only=labeled))
    notes = _loose_note(loose, source)
    if layout == "auto" and (labeled or options.strict):
        rows, note = _splits_within_classes(rows)
        notes += note
    if empty and (options.strict or options.allow_empty_classes):
        fix = (
            "Skipped"
            if options.allow_empty_classes
            else "To train, put images into each, or remove the folder"
        )
        notes += (f"No image lies in the class folders {shorten(empty)}. {fix}.",)
    return _records(folder, source, rows, skipped, notes, require_labels=labeled)


def read_single_image(file: Path, source: str) -> ImageRecords:
    """One image without a label."""
    return _records(file.parent, source, [(file.name, np.nan, "")], Counter())


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


def _find_splits(folder: Path, folders: list[str], layout: Layout) -> dict[str, str]:
    """Sub-folder -> split. Empty where the sub-folders are classes."""
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
        or not _with_images(folder, [name for name in folders if name not in named])
    ):
        return named
    # Names that only contain the word of a split need the same classes in train and in the other splits.
    trained = {one for name, split in named.items() if split == "train" for one in classes[name]}
    others = [name for name, split in named.items() if split != "train"]
    agree = [
        trained & set(classes[name]) or (named[name] == "test" and loose[name] and not classes[name])
        for name in others
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
    """Refuse sub-folders that may be classes as well as splits: a guess may lose classes."""
    split_names = [name for name in folders if parse_split(name) and _contents(folder / name)[0]]
    others = [name for name in folders if name not in split_names]
    if split_names and (near := _with_images(folder, others)):
        raise InputError(
            f"{source}: the sub-folder '{split_names[0]}' is a split or a class; {shorten(near)} beside it "
            f"{'is' if len(near) == 1 else 'are'} no split. Pass --layout classes if each sub-folder is a class, or "
            f"--layout splits to read {shorten(split_names)} alone."
        )
    alike: list[str] = []
    shared: set[str] = set()
    for name in folders:  # stops at the first class folder of images, since opening all of them may take long
        classes, loose = _contents(folder / name)
        if classes:
            shared = shared & set(classes) if alike else set(classes)
            alike.append(name)
        if loose or (alike and len(shared) < _SHARED_NAMES):
            return
    if len(alike) < _SHARED_NAMES or all(map(parse_split, shared)) or not _with_images(folder, alike):
        return
    raise InputError(
        f"{source}: the sub-folders {shorten(alike)} hold folders of the same names ({shorten(sorted(shared))}), "
        "as the "
        f"splits of a dataset do. Call splits train, val and test. Pass --layout classes if {shorten(alike, 2)} "
        "are the classes."
    )


def _refuse_table(folder: Path, source: str, folders: list[str]) -> None:
    """Refuse flat folders of images next to a table: the table lists the images, the folders are not classes."""
    names = (entry.name for entry in _entries(str(folder)) if not _is_folder(entry))
    tables = [name for name in names if name.lower().endswith(TABLE_SUFFIXES)]
    if not tables:
        return
    exact = [name for name in folders if parse_split(name)]
    flat = folders if len(folders) == 1 or all(map(split_in_name, folders)) else exact
    if flat and not any(_contents(folder / name)[0] for name in flat):
        tables.sort(key=lambda name: split_in_name(name) != "train")  # before a sample submission
        more = f" (or {shorten(tables[1:])})" if len(tables) > 1 else ""
        raise InputError(
            f"{source}: no class folders lie in {shorten(flat)}, and a table lies beside. "
            f"Give the table itself: {os.path.join(source, tables[0])}{more}"
            + (". Pass --layout classes if each sub-folder is a class." if len(folders) > 1 else "")
        )


def _splits_within_classes(rows: Rows) -> tuple[Rows, tuple[str, ...]]:
    """``cat/train/1.jpg``: where every class folder holds nothing but splits, images get these splits, with a note."""
    inner = [path.split("/")[1] if path.count("/") > 1 else "" for path, _, _ in rows]
    names = {name: parse_split(name) for name in inner}
    if not all(names.values()) or len(set(names.values())) < 2:
        return rows, ()
    placed = [(path, label, names[name] or "") for (path, label, _), name in zip(rows, inner, strict=True)]
    return placed, (f"Each class folder holds the splits {shorten(sorted(names))}: they are taken as given.",)


def _unlabeled(folder: Path, source: str) -> ImageRecords:
    """Every image at any depth, without label and split."""
    skipped: Counter[str] = Counter()
    rows: Rows = [(path, np.nan, "") for path in _walk(str(folder), "", skipped)]
    return _records(folder, source, rows, _in("", skipped))


def _read_splits(
    folder: Path, source: str, splits: dict[str, str], others: list[str], options: ReadOptions
) -> ImageRecords:
    rows: Rows = []
    skipped: Skipped = Counter()
    notes: tuple[str, ...] = ()
    unusual = [f"'{name}' as {split}" for name, split in splits.items() if not parse_split(name)]
    if unusual:
        notes = (
            f"Read the sub-folders of {source} as splits: {', '.join(unusual)}. If they are classes, pass --layout "
            "classes.",
        )
    if others:
        notes += (f"Passed over, since they lie beside the splits of {source}: {shorten(others)}.",)
    inner = {name: _inner(folder, name) for name in splits}
    contents = {name: _contents(folder / inner[name]) for name in splits}
    trained = {
        one.casefold() for name, split in splits.items() if split == "train" for one in contents[name][0]
    }
    for key, split in splits.items():
        name, (classes, loose) = inner[key], contents[key]
        place = os.path.join(source, name)
        if split == "test" and trained and _is_unlabeled_test(classes, loose, trained):
            images = [*loose]
            for one in classes:
                images += _walk(str(folder / name / one), f"{one}/", Counter())
            if not options.require_labels:
                rows += [(f"{name}/{path}", np.nan, split) for path in images]
                skipped += _in(name, _skipped_here(folder / name))
            elif images:
                notes += (
                    f"Skipped {pluralize(len(images), 'image')} of {place}: it has no folders of the training classes, "
                    f"so its images have no label. Predict them: effnetv2 predict RUN {place}",
                )
            continue
        if not classes and loose and options.require_labels:
            fix = " If the sub-folders are classes, pass --layout classes." if unusual else ""
            raise InputError(_no_classes(place, len(loose)) + fix)
        found, empty = _read_classes(folder / name, classes, skipped, prefix=f"{name}/", split=split)
        if empty and options.require_labels and split == "train" and not options.allow_empty_classes:
            raise InputError(_no_images(place, f"{name}/", empty, skipped))
        rows += found
        if options.require_labels or (options.strict and _with_images(folder / name, classes)):
            notes += _loose_note(loose, place)
            skipped += _in(name, _skipped_here(folder / name, systems_only=True))
        else:
            rows += [(f"{name}/{path}", np.nan, split) for path in loose]
            skipped += _in(name, _skipped_here(folder / name))
    skipped += _in("", _skipped_here(folder, systems_only=True))
    return _records(folder, source, rows, skipped, notes, require_labels=options.require_labels)


def _is_unlabeled_test(classes: list[str], loose: list[str], trained: set[str]) -> bool:
    """Whether a test folder has no classes: only images, or one folder that is not named like a training class."""
    return (bool(loose) and not classes) or (len(classes) == 1 and classes[0].casefold() not in trained)


def _with_images(folder: Path, names: list[str]) -> list[str]:
    """Sub-folders that hold an image, at any depth."""

    def holds_image(name: str) -> bool:
        try:
            return next(_walk(str(folder / name), "", Counter()), None) is not None
        except InputError:  # no permission, such as lost+found of a disk
            return False

    return [name for name in names if holds_image(name)]


def _read_classes(
    folder: Path, classes: list[str], skipped: Skipped, *, prefix: str, split: str
) -> tuple[Rows, list[str]]:
    """Images of class folders, and class folders without an image."""
    rows: Rows = []
    empty = []
    for name in classes:
        here: Counter[str] = Counter()
        paths = list(_walk(str(folder / name), f"{prefix}{name}/", here))
        if not paths:
            empty.append(name)
        skipped += _in(f"{prefix}{name}", here)
        rows += [(path, name, split) for path in paths]
    return rows, empty


def _records(
    folder: Path,
    source: str,
    rows: Rows,
    skipped: Skipped,
    notes: tuple[str, ...] = (),
    *,
    require_labels: bool = False,
) -> ImageRecords:
    if not rows:
        unsupported = _unsupported(skipped | _in("", _skipped_here(folder)))
        raise InputError(
            f"{source} holds no images. "
            + (
                "Give a folder with one sub-folder per class, a CSV or Parquet file with a path and a label column, "
                "or the name of a built-in dataset."
                if require_labels
                else "Give an image, a folder of images, a CSV or Parquet file with a path column, or shards."
            )
            + "".join(f" {note}" for note in _unsupported_note(unsupported, source))
        )
    paths, labels, splits = zip(*rows, strict=True)
    unsupported = _unsupported(skipped)
    return ImageRecords(
        root=folder,
        source=source,
        table=records_table(paths, labels, splits),
        notes=(*notes, *_unsupported_note(unsupported, source), *_systems_note(skipped, source)),
        unsupported_files=unsupported,
    )


def _walk(folder: str, prefix: str, skipped: Counter[str], links: tuple[str, ...] = ()) -> Iterator[str]:
    """Images at any depth as ``prefix`` + path with forward slashes, sorted by name; other files are counted.

    ``links`` holds the real folders of the symbolic links above: a link back to one of them would never end.
    """
    for entry in _entries(folder, skipped):
        if _is_folder(entry):
            onward = links
            if entry.is_symlink():
                onward = (*links, os.path.realpath(folder))
                if _encloses(os.path.realpath(entry.path), onward):
                    continue
            yield from _walk(entry.path, f"{prefix}{entry.name}/", skipped, onward)
        elif is_image(entry.name):
            yield prefix + entry.name
        else:
            skipped[_suffix(entry.name)] += 1


def _encloses(outer: str, folders: tuple[str, ...]) -> bool:
    """Whether a folder is, or contains, one of others. All are real paths."""
    start = outer.rstrip(os.sep) + os.sep
    return any(inner == outer or inner.startswith(start) for inner in folders)


def _entries(folder: str, skipped: Counter[str] | None = None) -> list[os.DirEntry[str]]:
    """Entries of a folder, sorted, without hidden ones and system folders, which ``skipped`` counts."""
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
    except PermissionError:
        raise InputError(f"{folder} may not be read: permission denied. Change its permissions.") from None
    if skipped is not None:
        skipped.update(f"{entry.name}/" for entry in visible if is_system_folder(entry.name))
    return sorted((one for one in visible if not is_system_folder(one.name)), key=lambda entry: entry.name)


def _contents(folder: Path) -> tuple[list[str], list[str]]:
    """Sorted names of the sub-folders and of the images of a folder, without hidden ones."""
    entries = _entries(str(folder))
    folders = [entry.name for entry in entries if _is_folder(entry)]
    return folders, [entry.name for entry in entries if is_image(entry.name) and not _is_folder(entry)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder, also through a link. A circular link is not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _skipped_here(folder: Path, *, systems_only: bool = False) -> Counter[str]:
    """System folders of a folder, and its files that are not images, by suffix."""
    skipped: Counter[str] = Counter()
    entries = _entries(str(folder), skipped)
    if not systems_only:
        skipped.update(_suffix(one.name) for one in entries if not _is_folder(one) and not is_image(one.name))
    return skipped


def _in(folder: str, counts: Counter[str]) -> Skipped:
    return Counter({(suffix, folder): count for suffix, count in counts.items()})


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _unsupported(skipped: Skipped) -> dict[str, dict[str, int]]:
    """Skipped files that may be images: suffix -> folder -> count, the commonest suffix first."""
    counts: dict[str, dict[str, int]] = {}
    for (suffix, folder), count in skipped.items():
        if suffix not in _IGNORED_SUFFIXES and not suffix.endswith("/"):
            counts.setdefault(suffix, {})[folder] = count
    return dict(sorted(counts.items(), key=lambda item: -sum(item[1].values())))


def _unsupported_note(unsupported: Mapping[str, Mapping[str, int]], place: str) -> tuple[str, ...]:
    counts = [
        f"{pluralize(sum(folders.values()), 'file')} {suffix or 'without a suffix'}"
        for suffix, folders in unsupported.items()
    ]
    if not counts:
        return ()
    more = ", and others" if len(counts) > _MAX_SUFFIXES else ""
    return (
        f"Passed over in {place}: {', '.join(counts[:_MAX_SUFFIXES])}{more}. These formats are not supported. If the "
        "files are images, convert them to JPEG first.",
    )


def _systems_note(skipped: Skipped, place: str) -> tuple[str, ...]:
    counts: Counter[str] = Counter()
    for (suffix, _), count in skipped.items():
        if suffix.endswith("/"):
            counts[suffix[:-1]] += count
    if not counts:
        return ()
    each = ", ".join(f"{pluralize(count, 'folder')} '{name}'" for name, count in counts.most_common())
    return (f"Skipped in {place}: {each}, which systems make for thumbnails and deleted files.",)


def _loose_note(loose: list[str], place: str) -> tuple[str, ...]:
    return (
        (f"Left out, since they lie beside the class folders of {place}: {shorten(loose)}.",) if loose else ()
    )


def _no_classes(place: str, images: int) -> str:
    return (
        f"{place} holds {pluralize(images, 'image')} but no class folders, so none has a label. "
        "Sort them into one sub-folder per class, or give a CSV or Parquet file with paths and labels."
    )


def _no_images(place: str, prefix: str, empty: list[str], skipped: Skipped) -> str:
    whole = os.path.join(place, empty[0]) if len(empty) == 1 else place
    within = tuple(f"{prefix}{name}" for name in empty)
    unsupported = _unsupported(Counter({key: count for key, count in skipped.items() if key[1] in within}))
    what = "class folder {} holds" if len(empty) == 1 else "class folders {} hold"
    return (
        f"{whole}: the {what.format(shorten(empty))} no image. Put images into each, remove the folder, or pass "
        "--min-images-per-class 1 to leave such classes out."
        + "".join(f" {note}" for note in _unsupported_note(unsupported, whole))
    )
