"""List the images of shards, from the data argument of a user.

::

    shards/                                   a folder with index.parquet, or with nothing but tars
    shards/index.parquet                      the index itself
    shards/train-{000000..000146}.tar         some of the tars, also with stars
    https://example.org/shards/               the same in a remote store
"""

from __future__ import annotations

import fnmatch
import io
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from efficientnetv2.data.label_rules import join_lists
from efficientnetv2.data.open_image import is_folder, is_image
from efficientnetv2.data.records import ImageRecords, ReadOptions, missing_column, visible_entries
from efficientnetv2.data.shards import index as shard_index
from efficientnetv2.data.shards.index import INDEX_NAME, SUFFIX, ShardIndex, ShardSet, is_url, split_location
from efficientnetv2.data.shards.scan import cached_scan
from efficientnetv2.data.shards.storage import Store, store_at
from efficientnetv2.utils.errors import InputError, did_you_mean, pluralize, shorten

# What an index adds to the columns of a dataset.
_INDEX_COLUMNS = [*shard_index.PLACE, shard_index.CONTENT, shard_index.CHECKSUM]


# Of a URL: files that hold or list images, but not as shards do.
_OTHER_FILES = (".csv", ".tsv", ".zip")


def is_shards(data: str) -> bool:
    """Whether data are shards. A folder is one with our index, or with tars and neither sub-folders nor images."""
    if is_url(data) or shard_index.is_pattern(data):
        return True
    place = Path(os.path.expanduser(data))
    index = place / INDEX_NAME if place.is_dir() else place
    if index.suffix.lower() == ".parquet" and index.is_file() and shard_index.is_index(index):
        return True
    if not place.is_dir():
        return False
    shown = visible_entries(str(place))
    if any(is_folder(entry) or is_image(entry.name) for entry in shown):
        return False
    if any(entry.name.lower().endswith(SUFFIX) for entry in shown):
        return True
    if compressed := sorted(entry.name for entry in shown if shard_index.is_compressed(entry.name)):
        raise InputError(f"'{place / compressed[0]}' {shard_index.COMPRESSED}")
    return False


Records = TypeVar("Records", bound=ImageRecords)


def read_shards(data: str, options: ReadOptions) -> ImageRecords:
    """List the images of a set of shards.

    Labels come from the column of the index, else from that field of the samples' ``.json``, else from ``.cls``.
    """
    names: list[str] = []
    last = data.rstrip("/").rpartition("/")[2].lower()
    if is_url(data) and (is_image(last) or last.endswith(_OTHER_FILES)):
        raise InputError(f"'{data}' names a file, and only shards are read from URLs. Download it first.")
    if shard_index.is_pattern(data):
        base, name = split_location(data)
        names = shard_index.expand_braces(name)
    elif data.lower().endswith(".parquet"):
        base, name = split_location(data)
        if name != INDEX_NAME:
            raise InputError(
                f"'{data}': the index of shards must be called {INDEX_NAME}. Rename it, or download a table of images."
            )
    else:
        base = split_location(f"{data.rstrip('/')}/")[0]
    records = _list_store(base, names, data, options)
    if shard_index.LABEL_LIST in records.table:
        lists = records.table[shard_index.LABEL_LIST]
        cells = [
            json.loads(several) if isinstance(several, str) else label
            for label, several in zip(records.table["label"], lists, strict=True)
        ]
        series = pd.Series(cells, dtype=object)
        labels = join_lists(series, options.label_separator, where=records.where, checked=options.strict)
        records = replace(records, table=records.table.drop(columns=lists.name).assign(label=labels))
    unlabeled = _unlabeled_folders(records)
    if options.require_labels:
        if unlabeled:
            raise InputError(f"{data} {unlabeled}")
        assert records.shards is not None
        if lacking := [shard for shard in records.shards.shards if shard.lacks]:
            more = f" So do {pluralize(len(lacking) - 1, 'further shard')}." if len(lacking) > 1 else ""
            raise InputError(
                f"{base}/{lacking[0].name} lacks labels: {lacking[0].lacks}.{more} Pack it again with a label for "
                "every image (.cls, or a field of .json that `label_column` names)."
            )
    elif unlabeled and options.strict:
        return replace(records, notes=(*records.notes, f"No image has a label: {data} {unlabeled}"))
    return records


def _unlabeled_folders(records: ImageRecords) -> str:
    """A text on tars of class folders, as ``tar cf photos.tar photos/`` makes them. '' for others."""
    if not records.table["label"].isna().all():
        return ""
    folders = {path.partition("#")[2].rpartition("/")[0].removeprefix("./") for path in records.paths}
    if "" in folders or len(folders) < 2:
        return ""
    return (
        f"holds images in folders ({shorten(sorted(folders), 3)}), but no labels as shards have them. Unpack it, or "
        "pack the folder: effnetv2 data pack FOLDER OUT"
    )


def points_into_shards(table: pd.DataFrame) -> bool:
    """Whether a path of a table points into a shard."""
    paths = table["path"][table["path"].str.contains(f"{SUFFIX}#", case=False, regex=False)]
    return any(shard_index.shard_of(path) is not None for path in paths)


def locate_paths(records: Records) -> Records:
    """Records of a table whose paths point into shards, with their places from the shards' index or headers."""
    parts = []
    for row, path in enumerate(records.paths):
        part = shard_index.shard_of(path)
        if part is None:
            inside = next(path for path in records.paths if shard_index.shard_of(path) is not None)
            fault = f"'{path}' is a file, but '{inside}' is in a shard"
            fix = "Give the files of all images, or put all images into shards: effnetv2 data pack"
            raise InputError(f"{records.where(row)}: {fault}. {fix}")
        parts.append(part)
    # Folder and name of each shard, which are few.
    tars = {tar: split_location(_absolute(tar, records.root)) for tar in {tar for tar, _ in parts}}
    bases = sorted({base for base, _ in tars.values()})
    if len(bases) > 1:
        where = f"{len(bases)} folders ({shorten(bases, 2)})"
        raise InputError(f"{records.source} points into shards of {where}. Give those of one folder.")
    there = _list_store(bases[0], sorted({name for _, name in tars.values()}), records.source, ReadOptions())
    paths = pd.Index(there.table["path"])
    if not paths.is_unique:
        twice = paths[paths.duplicated()][0]
        raise InputError(f"{records.source}: the shards of {there.root} hold '{twice}' twice. Rename one.")
    wanted = [f"{tars[tar][1]}#{inner}" for tar, inner in parts]
    places = paths.get_indexer(pd.Index(wanted))
    if (places < 0).any():  # a list of members, as tar prints it, can have ./ before names
        plain = [name.replace("#./", "#", 1) for name in wanted]
        places = np.where(places < 0, paths.get_indexer(pd.Index(plain)), places)
    if len(missing := np.flatnonzero(places < 0)):
        row = int(missing[0])
        shards = there.shards.shards if there.shards is not None else ()
        named = [shard for shard in shards if wanted[row].startswith(f"{shard.name}#") and shard.damage]
        damage = f"; it {named[0].damage}" if named else ""
        raise InputError(
            f"{records.where(row)}: '{wanted[row]}' is not in the shards of {there.root}{damage} ({len(missing)} of "
            f"{pluralize(len(records), 'row')} are missing). Restore the shards, or leave these rows out."
        )
    found = there.table.iloc[places].reset_index(drop=True)
    table = records.table.drop(columns=_INDEX_COLUMNS, errors="ignore")
    table = table.assign(**{name: found[name] for name in ("path", *_INDEX_COLUMNS) if name in found})
    notes = (*records.notes, *there.notes)
    return replace(records, root=there.root, table=table, notes=notes, shards=there.shards)


def _absolute(tar: str, root: Path | str) -> str:
    if is_url(tar):
        return tar
    folder, name = os.path.split(os.path.join(root, tar))
    short, real = os.path.normpath(folder), os.path.realpath(folder)
    # Through a symbolic link, ``..`` leads elsewhere than the names suggest.
    return os.path.join(short if os.path.realpath(short) == real else real, name)


def _list_store(base: str, names: list[str], data: str, options: ReadOptions) -> ImageRecords:
    """Images of the shards of one folder or URL, of all without names, which may have stars. Lists of labels stay."""
    store = store_at(base)
    index = _load_index(store, names)
    notes: tuple[str, ...] = ()
    if index is None:
        index, note = cached_scan(store, _expand_stars(store, names or [f"*{SUFFIX}"], data), options)
        table, notes = index.table, (note,)
    else:
        table = _with_columns(index.table, data, options)
    if not len(table):
        raise InputError(f"{data}: there is no image in {shorten(shard.name for shard in index.shards)}.")
    if options.group_column is not None and "group" not in table:
        raise InputError(
            f"{data}: no .json of these shards has the field '{options.group_column}'. Name the field that holds the "
            "group with `group_column`."
        )
    prefixes = np.array([f"{shard.name}#" for shard in index.shards], dtype=object)[table["shard"].to_numpy()]
    paths = pd.Series(prefixes, index=table.index, dtype="str") + table["path"]
    table = table.assign(path=paths, split=table["split"].fillna(""))
    if "group" in table and table["group"].notna().any():  # as in tables: 'P17 ' is P17, blank is none
        groups = table["group"].map(str, na_action="ignore").str.strip()
        table["group"] = groups.where(groups != "")
    first = ["path", "label", "split"]
    return ImageRecords(
        root=base if is_url(base) else Path(base),
        source=data,
        table=table[first + [column for column in table.columns if column not in first]],
        notes=notes,
        published=index.published,
        shards=ShardSet(base, index.shards),
    )


def _load_index(store: Store, names: list[str]) -> ShardIndex | None:
    """The part of the index for these shards. None if there is no index, or not for them."""
    try:
        with store.open(INDEX_NAME) as stream:
            index = shard_index.load_index(io.BytesIO(stream.read()), f"{store.base}/{INDEX_NAME}")
    except FileNotFoundError:
        return None
    if not names:
        return index
    known = {shard.name: number for number, shard in enumerate(index.shards)}
    matched = [fnmatch.filter(known, name) if _has_stars(name) else [name] for name in names]
    wanted = [name for several in matched for name in several]
    unknown = [name for name in wanted if name not in known]
    if len(unknown) == len(wanted):
        return None
    if unknown:
        near = did_you_mean(unknown[0], known)
        raise InputError(f"{store.base}/{INDEX_NAME} lacks {shorten(unknown, 3)}{near} Name those it lists.")
    chosen = index.table["shard"].isin([known[name] for name in wanted])
    return replace(index, table=index.table[chosen].reset_index(drop=True))


def _expand_stars(store: Store, names: list[str], data: str) -> list[str]:
    """Distinct names without stars. Raises InputError if there are none."""
    matched = [store.matching(name) if _has_stars(name) else [name] for name in names]
    found = list(dict.fromkeys(name for several in matched for name in several))
    if not found or all(stat is None for stat in store.stats(found)):
        there = store.matching(f"*{SUFFIX}")
        if store.refused and not there:
            raise InputError(
                f"{data}: no shards can be read ({store.refused}). Check the link and the credentials, or name the "
                "shards: 'train-{000000..000146}.tar'"
            )
        raise InputError(
            f"{data}: there are no such shards{did_you_mean(names[0], there)} Give a folder or URL with {INDEX_NAME}, "
            "or name the shards: 'train-{000000..000146}.tar'"
        )
    return found


def _has_stars(name: str) -> bool:
    return any(sign in name for sign in "*?[")


def _with_columns(table: pd.DataFrame, data: str, options: ReadOptions) -> pd.DataFrame:
    """The table of an index with the given columns as label and group."""
    for role, column in (("label", options.label_column), ("group", options.group_column)):
        if column is None or column == role:
            continue
        if column not in table:
            raise missing_column(data, column, table.columns, role)
        table = table.assign(**{role: table[column].map(str, na_action="ignore")})
    return table
