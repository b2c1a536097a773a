"""From DATA to the listing of a set of shards.

::

    shards/                                   a folder with index.parquet, or with nothing but tars
    shards/index.parquet                      the index itself
    shards/train-{000000..000146}.tar         some of the tars; stars do too
    https://example.org/shards/               the same in a store that fsspec knows
    s3://bucket/shards/train-*.tar
"""

from __future__ import annotations

import fnmatch
import io
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from efficientnetv2.data.multilabel import join_lists
from efficientnetv2.data.records import ImageRecords, ReadOptions, is_image, is_system_folder
from efficientnetv2.data.shards.index import (
    CHECKSUM,
    COMPRESSED,
    CONTENT,
    INDEX,
    LIST,
    PLACE,
    SUFFIX,
    Index,
    ShardSet,
    expanded,
    is_compressed,
    is_index,
    is_pattern,
    is_url,
    load,
    parted,
    shard_of,
)
from efficientnetv2.data.shards.scan import kept_scan
from efficientnetv2.data.shards.storage import Store, store_at
from efficientnetv2.utils.errors import InputError, count_of, did_you_mean, some


def is_shards(data: str) -> bool:
    """Whether DATA is a set of shards, rather than a folder or table of pictures.

    A folder is one if our index lies in it, or tars and neither sub-folders nor pictures.

    Raises:
        InputError: it is one of compressed shards.
    """
    if is_url(data) or is_pattern(data):
        return True
    place = Path(os.path.expanduser(data))
    if place.is_dir():
        return ((place / INDEX).is_file() and is_index(place / INDEX)) or _only_tars(place)
    return place.suffix.lower() == ".parquet" and place.is_file() and is_index(place)


def read_shards(data: str, options: ReadOptions) -> ImageRecords:
    """List the images of a set of shards.

    Labels come from the column of the index, else from that field of the samples' ``.json``, else from ``.cls``.

    Raises:
        InputError: There are no such shards, their index is unusable, labels are missing or are lists where an image
            has one label, or a store cannot be reached.
    """
    base, names = _named(data)
    records = read_named(base, names, data, options.label_column, options.group_column)
    records = _joined(records, options.label_separator, options.strict)
    within = _folders_within(records)
    if within and options.require_labels:
        raise InputError(f"{data} {within}")
    if options.require_labels and records.shards is not None:
        _refuse_unlabelled(records.shards)
    if within and options.strict:
        return replace(records, notes=(*records.notes, f"No image has a label: {data} {within}"))
    return records


def _folders_within(listing: ImageRecords) -> str:
    """The end of a sentence on tars of class folders, as ``tar cf photos.tar photos/`` makes them; '' for others."""
    if not listing.table["label"].isna().all():
        return ""
    folders = {path.partition("#")[2].rpartition("/")[0].removeprefix("./") for path in listing.paths}
    if "" in folders or len(folders) < 2:
        return ""
    return (
        f"holds images in folders ({some(sorted(folders), 3)}), but no labels as shards have them. Unpack it and give "
        "the folder. Or pack the folder then: effnetv2 shards FOLDER OUT"
    )


def read_named(
    base: str, names: list[str], data: str, label_column: str, group_column: str | None
) -> ImageRecords:
    """The pictures of the shards of one folder or URL, labelled or not; lists of labels are left in a column.

    Args:
        base: folder or URL.
        names: of the shards there, with stars or without; none means all.
        data: what the user gave, for messages.
        label_column: see ``read_shards``.
        group_column: see ``read_shards``.

    Raises:
        InputError: there are no such shards, their index is of no use, or a store can't be reached.
    """
    store = store_at(base)
    index = _index(store, names)
    notes: tuple[str, ...] = ()
    if index is None:
        names = _spelled_out(store, names or [f"*{SUFFIX}"], data)
        index, note = kept_scan(store, names, label_column=label_column, group_column=group_column)
        notes = (note,)
    else:
        index = _with_columns(index, data, label_column, group_column)
    if not len(index.table):
        raise InputError(f"{data}: there is no picture in {some(shard.name for shard in index.shards)}.")
    return ImageRecords(
        root=base if is_url(base) else Path(base),
        source=data,
        table=_called(index),
        notes=notes,
        standard=index.standard,
        shards=ShardSet(base, index.shards),
    )


def _named(data: str) -> tuple[str, list[str]]:
    """Folder or URL of the shards, and their names as far as DATA tells them; none means all."""
    if is_pattern(data):
        base, name = parted(data)
        return base, expanded(name)
    if data.lower().endswith(".parquet"):
        base, name = parted(data)
        if name != INDEX:
            raise InputError(
                f"'{data}': the index of shards is called {INDEX} and lies beside them. Rename it."
            )
        return base, []
    return parted(f"{data.rstrip('/')}/")[0], []


def _index(store: Store, names: list[str]) -> Index | None:
    """The index that lies beside the shards, of these alone; None if there is none or it is not about them."""
    try:
        with store.open(INDEX) as stream:
            index = load(io.BytesIO(stream.read()), f"{store.base}/{INDEX}")
    except FileNotFoundError:
        return None
    if not names:
        return index
    known = {shard.name: number for number, shard in enumerate(index.shards)}
    wanted = [name for one in names for name in (fnmatch.filter(known, one) if _starred(one) else [one])]
    strange = [name for name in wanted if name not in known]
    if len(strange) == len(wanted):
        return None
    if strange:
        raise InputError(
            f"{store.base}/{INDEX} lists {some(known, 2)}, but not {some(strange, 3)}"
            f"{did_you_mean(strange[0], known)} Name only shards that it lists, or write it anew."
        )
    chosen = index.table["shard"].isin([known[name] for name in wanted])
    return replace(index, table=index.table[chosen].reset_index(drop=True))


def _spelled_out(store: Store, names: list[str], data: str) -> list[str]:
    """Names without stars, each once.

    Raises:
        InputError: there is none.
    """
    found = [name for one in names for name in (store.matching(one) if _starred(one) else [one])]
    if not found or all(stat is None for stat in store.stats(found)):
        there = store.matching(f"*{SUFFIX}")
        near = (
            did_you_mean(names[0], there)
            if there
            else f"; {store.base} shows neither {INDEX} nor a {SUFFIX}."
        )
        raise InputError(
            f"{data}: there are no such shards{near} Give a folder or URL with {INDEX}, or name the shards: "
            "train-{000000..000146}.tar"
        )
    return list(dict.fromkeys(found))


def _joined(listing: ImageRecords, separator: str | None, strict: bool) -> ImageRecords:
    """The listing with lists of labels as text, as in a table.

    Raises:
        InputError: what ``several.from_lists`` refuses.
    """
    if LIST not in listing.table:
        return listing
    cells = [
        json.loads(several) if isinstance(several, str) else label
        for label, several in zip(listing.table["label"], listing.table[LIST], strict=True)
    ]
    labels = join_lists(pd.Series(cells, dtype=object), separator, where=listing.where, checked=strict)
    return replace(listing, table=listing.table.drop(columns=LIST).assign(label=labels))


def _refuse_unlabelled(shards: ShardSet) -> None:
    lacking = [shard for shard in shards.shards if shard.lacks]
    if lacking:
        more = f" So it is in {count_of(len(lacking) - 1, 'further shard')}." if len(lacking) > 1 else ""
        raise InputError(
            f"{shards.base}/{lacking[0].name} lacks labels: {lacking[0].lacks}.{more} Pack it anew with a label for "
            "every picture (.cls, or a field of .json that --label-column names), or without the pictures that have "
            "none."
        )


def _with_columns(index: Index, data: str, label_column: str, group_column: str | None) -> Index:
    """The index with the columns of other names in their places."""
    table = index.table
    for role, column in (("label", label_column), ("group", group_column)):
        if column is None or column == role:
            continue
        if column not in table:
            raise InputError(
                f"{data} has no column '{column}'{did_you_mean(column, table.columns)} Its columns are "
                f"{some(table.columns, 20)}. Name the one that holds the {role} with --{role}-column."
            )
        table = table.assign(**{role: table[column].map(str, na_action="ignore")})
    return replace(index, table=table)


def _called(index: Index) -> pd.DataFrame:
    """The table of a listing: a picture's path begins with its shard, and its split is never missing."""
    names = np.array([f"{shard.name}#" for shard in index.shards], dtype=object)
    prefixes = pd.Series(names[index.table["shard"].to_numpy()], index=index.table.index, dtype="str")
    table = index.table.assign(path=prefixes + index.table["path"], split=index.table["split"].fillna(""))
    if (
        "group" in table and table["group"].notna().any()
    ):  # as in a table: 'P17 ' is P17, and a blank one none
        groups = table["group"].map(str, na_action="ignore").str.strip()
        table["group"] = groups.where(groups != "")
    first = ["path", "label", "split"]
    return table[first + [column for column in table.columns if column not in first]]


def _starred(name: str) -> bool:
    return any(sign in name for sign in "*?[")


def _only_tars(folder: Path) -> bool:
    """Whether tars lie in a folder, and neither class folders nor pictures.

    Raises:
        InputError: all of them are compressed.
    """
    with os.scandir(folder) as entries:
        shown = [one for one in entries if not (one.name.startswith(".") or is_system_folder(one.name))]
    if any(entry.is_dir() or is_image(entry.name) for entry in shown):
        return False
    if any(entry.name.lower().endswith(SUFFIX) for entry in shown):
        return True
    compressed = sorted(entry.name for entry in shown if is_compressed(entry.name))
    if compressed:
        raise InputError(f"'{folder / compressed[0]}' {COMPRESSED}")
    return False


# What an index adds to the columns of a dataset.
_WRITTEN = (*PLACE, CONTENT, CHECKSUM)


def lists_shards(table: pd.DataFrame) -> bool:
    """Whether the paths of a table point into shards: its first one does."""
    return len(table) > 0 and shard_of(table["path"].iloc[0]) is not None


def read_listed(listing: ImageRecords) -> ImageRecords:
    """The pictures of a table whose paths point into shards, with their places there.

    Where they stand is what the shards' own index says, or their headers; labels, splits and all else are the
    table's.

    Args:
        listing: of a table; its paths start from its root, or are URLs.

    Raises:
        InputError: a path points elsewhere than the others, or to nothing; or what ``read_shards`` refuses.
    """
    parts = _parts(listing)
    # Per shard, since they are few: where it lies, and what it is called there.
    tars = {tar: parted(_absolute(tar, listing.root)) for tar in {tar for tar, _ in parts}}
    bases = sorted({base for base, _ in tars.values()})
    if len(bases) > 1:
        raise InputError(
            f"{listing.source} points into shards of {len(bases)} folders ({some(bases, 2)}). Give those of one folder "
            "in one table."
        )
    there = read_named(bases[0], sorted({name for _, name in tars.values()}), listing.source, "label", None)
    wanted = [f"{tars[tar][1]}#{inner}" for tar, inner in parts]
    places = _places(listing, there, wanted)
    found = there.table.iloc[places].reset_index(drop=True)
    stands = {name: found[name] for name in _WRITTEN if name in found}
    own = listing.table.drop(columns=[*_WRITTEN], errors="ignore")
    return replace(
        listing,
        root=there.root,
        table=own.assign(path=found["path"], **stands),
        notes=(*listing.notes, *there.notes),
        shards=there.shards,
    )


def _parts(listing: ImageRecords) -> list[tuple[str, str]]:
    """Shard and name within it of every row.

    Raises:
        InputError: a path is another.
    """
    parts = []
    for row, path in enumerate(listing.paths):
        part = shard_of(path)
        if part is None:
            raise InputError(
                f"{listing.where(row)}: '{path}' is a file, but '{listing.paths[0]}' ({listing.where(0)}) stands in a "
                "shard. Give files and shards in tables of their own."
            )
        parts.append(part)
    return parts


def _absolute(tar: str, root: Path | str) -> str:
    if is_url(tar):
        return tar
    folder, name = os.path.split(os.path.join(root, tar))
    short, real = os.path.normpath(folder), os.path.realpath(folder)
    # From a folder that a link leads to, the way up is another than its name says.
    return os.path.join(short if os.path.realpath(short) == real else real, name)


def _places(listing: ImageRecords, there: ImageRecords, wanted: list[str]) -> npt.NDArray[np.intp]:
    """The row of each wanted picture among those that are there.

    Raises:
        InputError: there is none, or there are two.
    """
    index = pd.Index(there.table["path"])
    if not index.is_unique:
        twice = index[index.duplicated()][0]
        raise InputError(
            f"{listing.source}: the shards of {there.root} hold two pictures called '{twice}', so a table can't tell "
            "them apart. Give the shards themselves."
        )
    places: npt.NDArray[np.intp] = index.get_indexer(pd.Index(wanted))
    strange = np.flatnonzero(places < 0)
    if len(strange):
        row = int(strange[0])
        shards = there.shards.shards if there.shards is not None else ()
        damage = next(
            (f"; it {one.damage}" for one in shards if wanted[row].startswith(f"{one.name}#") and one.damage),
            "",
        )
        raise InputError(
            f"{listing.where(row)}: '{wanted[row]}' is not in the shards of {there.root}{damage}. So it is with "
            f"{len(strange)} of {len(listing)} rows. Bring back the shards that the table is of, or leave those rows "
            "out."
        )
    return places
