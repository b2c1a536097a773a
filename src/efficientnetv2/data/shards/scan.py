"""The index of tars that have none: their headers are read once, and what was found is kept.

As WebDataset has it, members of one key make a sample, the key being the name up to the first dot of its last part:
``n01440764/10026.jpg`` and ``n01440764/10026.cls``.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any, Literal

import pandas as pd

from efficientnetv2.data.records import is_image, parse_split, split_in_name
from efficientnetv2.data.shards.index import LIST, VERSION, Index, Shard, load, save
from efficientnetv2.data.shards.storage import Store
from efficientnetv2.utils.errors import InputError, count_of, some
from efficientnetv2.utils.io import cache_folder, is_unused

# Faults of a shard that are told one by one. Ours.
_TOLD = 3

Place = Literal["json", "cls", "nowhere"]


@dataclass(frozen=True, slots=True)
class Sample:
    """What members of one key tell.

    Args:
        key: theirs.
        facts: by the columns that they are of, the label aside.
        in_json: the label that ``.json`` gives, or a list of several; None where it gives none.
        in_cls: the label that ``.cls`` gives, '' if it is empty, None if there is none or it is not asked for.
        has_json: whether there is a ``.json``.
    """

    key: str
    facts: dict[str, Any]
    in_json: Any
    in_cls: str | None
    has_json: bool


@dataclass
class Scanned:
    """What one tar holds.

    Args:
        samples: with a picture each.
        damage: what is wrong with the tar, each in words that follow its name.
        lacks: why pictures of it have no label, in a sentence without its end; '' if all have one.
        unread: it is there, but could not be read to its end; perhaps it can another time.
    """

    samples: list[Sample] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)
    lacks: str = ""
    unread: bool = False

    @property
    def told(self) -> str:
        """The damage in a sentence without beginning and end, '' if there is none."""
        more = len(self.damage) - _TOLD
        return "; ".join(self.damage[:_TOLD]) + (
            f"; and has {count_of(more, 'more fault')}" if more > 0 else ""
        )


def place_of_labels(tars: Sequence[Scanned]) -> Place:
    """Where the pictures of a set have their labels.

    Anywhere a ``.json`` gives one, that is the place for all: our own tars have the number of the class in ``.cls``
    beside its name in ``.json``, and a picture that lost the one member must not get the other's for a label.
    """
    samples = [sample for tar in tars for sample in tar.samples]
    if any(sample.in_json is not None for sample in samples):
        return "json"
    return "cls" if any(sample.in_cls for sample in samples) else "nowhere"


def labelled(tar: Scanned, place: Place, label_field: str) -> list[dict[str, Any]]:
    """The facts of a tar's pictures, the label among them; None where it has none, or a list of labels instead.

    In a damaged tar a picture without its label has lost it, and is left out; ``tar.damage`` then says so. In a whole
    one it never had one, which ``tar.lacks`` says.

    Args:
        tar: as it was read.
        place: of the labels of the set.
        label_field: of ``.json``, that gives the label.
    """
    rows, without = [], list[Sample]()
    for sample in tar.samples:
        label = sample.in_json if place == "json" else sample.in_cls or None
        if label is None:
            without.append(sample)
        if label is not None or not tar.damage or place == "nowhere":
            rows.append(sample.facts | _told(label))
    if without:
        why = _why(without[0], place, label_field)
        if tar.damage and place != "nowhere":
            tar.damage.insert(0, f"has lost the labels of {some((one.key for one in without), 3)} ({why})")
        else:
            tar.lacks = why + (f" ({len(without)} such pictures)" if len(without) > 1 else "")
    return rows


def _told(label: Any) -> dict[str, str | None]:
    """A label as columns of an index have it."""
    if isinstance(label, list):
        return {"label": None, LIST: json.dumps(label)}
    return {"label": None if label is None else str(label)}


def _why(sample: Sample, place: Place, label_field: str) -> str:
    """Why a picture has no label."""
    if place == "cls":
        what = f"{sample.key}.cls is empty" if sample.in_cls == "" else f"there is no {sample.key}.cls"
    elif sample.has_json:
        what = f"{sample.key}.json has no field '{label_field}'"
    else:
        what = f"there is no {sample.key}.json"
    return what if place == "nowhere" else f"{what}, where the others have theirs"


# Shards read at a time: waiting for a store costs nothing. Ours.
_THREADS = 8
_BLOCK = tarfile.BLOCKSIZE
# What a JSON member may say that the rest of the package understands.
_KNOWN = ("path", "label", "split", "group", "latitude", "longitude", "augmented_from")
# Larger ones are no label; a class id or a few facts take less. Ours.
_MOST_TEXT_BYTES = 1_000_000
# What is kept of a scan was found by these rules; others get another number.
_RULES = 6


def kept_scan(
    store: Store, names: list[str], *, label_column: str, group_column: str | None
) -> tuple[Index, str]:
    """What ``scan`` found when these tars were first read to their ends, or finds now.

    Returns:
        The index, and a sentence that says where it comes from.

    Raises:
        InputError: what ``scan`` refuses.
    """
    about = [
        store.base,
        list(zip(names, store.stats(names), strict=True)),
        label_column,
        group_column,
        VERSION,
        _RULES,
    ]
    mark = hashlib.blake2b(json.dumps(about).encode(), digest_size=16).hexdigest()
    file = cache_folder("shards") / f"{mark}.parquet"
    shards = count_of(len(names), "shard")
    if file.is_file():
        with suppress(OSError):  # used today
            os.utime(file)
        return load(file, str(file)), f"Index of {shards}, read once from the headers: {file}"
    index, unread = scan(store, names, label_column=label_column, group_column=group_column)
    what = f"Read the headers of {shards}: {count_of(len(index.table), 'picture')}"
    if unread:  # kept, a share that was away for a moment would stay away
        return index, f"{what}; not kept for the next time, since {some(unread)} could not be read."
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        for other in filter(is_unused, file.parent.glob("*.parquet")):
            other.unlink(missing_ok=True)
        save(index, file)
    except OSError as error:  # it can be done again
        return index, f"{what}; not kept for the next time ({error.strerror or error})."
    return index, f"{what}, kept for the next time in {file}"


def scan(
    store: Store, names: list[str], *, label_column: str, group_column: str | None
) -> tuple[Index, list[str]]:
    """Read the headers of tars.

    Args:
        store: that they lie in.
        names: of the tars.
        label_column: field of a sample's ``.json`` that holds the label, or a list of several; where no sample has
            one, ``.cls`` does.
        group_column: field of a sample's ``.json`` that holds the group; a field called ``group`` is taken unasked.

    Returns:
        Pictures in the order of the tars. Their split is the one their ``.json`` or the tar's name gives
        (``imagenet-train-0001.tar``). Of a damaged tar, what could be read with its label, and what is wrong in its
        ``damage``. And the names of tars that are there but could not be read to their end, which says nothing of
        what is in them.

    Raises:
        InputError: a member occurs twice, or a sample has two pictures.
    """
    given = {label_column: "label"} | ({} if group_column is None else {group_column: "group"})
    roles = {name: name for name in _KNOWN if name not in given.values()} | given
    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(lambda name: _scanned(store, name, roles), names))
    place = place_of_labels(found)
    tables = []
    for number, one in enumerate(found):
        tables.append(pd.DataFrame(labelled(one, place, label_column)).assign(shard=number))
        one.samples.clear()  # tar by tar: those of millions of pictures take gigabytes, as tables much less
    shards = tuple(
        Shard(name, stat.bytes if stat else 0, len(table), one.told, one.lacks)
        for name, stat, one, table in zip(names, store.stats(names), found, tables, strict=True)
    )
    filled = [table for table in tables if len(table)]
    columns = ["path", "label", "split", "shard", "shard_offset", "shard_bytes"]
    index = Index(pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=columns), shards)
    return index, [name for name, one in zip(names, found, strict=True) if one.unread]


def _scanned(store: Store, name: str, roles: Mapping[str, str]) -> Scanned:
    result = Scanned()
    try:
        with store.open(name) as stream:
            for key, members in _samples(stream, name, result):
                try:
                    sample = _sample(name, key, members, roles)
                except _Damaged as error:
                    result.damage.append(f"holds a damaged {error}")
                    continue
                if sample is not None:
                    result.samples.append(sample)
    except FileNotFoundError:
        result.damage.append("is missing")
    except OSError as error:
        result.unread = True
        result.damage.append(f"can't be read ({(error.strerror or str(error)).lower()})")
    return result


class _Damaged(Exception):  # noqa: N818 - it names the member
    """A member of text that is none."""


@dataclass(frozen=True)
class _Member:
    """Where a member's content stands in its tar, and the content itself where it is text."""

    offset: int
    size: int
    text: bytes = b""


def _samples(stream: IO[bytes], name: str, result: Scanned) -> Iterator[tuple[str, dict[str, _Member]]]:
    """Key and members, by extension, of each sample; damage goes to ``result``."""
    seen: set[str] = set()
    key, members = "", dict[str, _Member]()
    for info in _members(stream, result):
        folder, slash, last = info.name.removeprefix("./").rpartition("/")
        stem, _, extension = last.partition(".")
        if not info.isreg() or not stem or not extension:  # folders, hidden files
            continue
        if folder + slash + stem != key:
            if members:
                yield key, members
            key, members = folder + slash + stem, {}
            if key in seen:
                raise InputError(
                    f"{name}: the key '{key}' occurs twice, so a picture could not be told from another. "
                    "Members of one sample stand behind each other, and each key is used once: pack it anew."
                )
            seen.add(key)
        if extension.lower() in members:
            raise InputError(
                f"{name}: the member '{info.name}' occurs twice. Pack it anew with each name once."
            )
        members[extension.lower()] = _member(stream, info, extension.lower())
    if members:
        yield key, members


def _member(stream: IO[bytes], info: tarfile.TarInfo, extension: str) -> _Member:
    text = b""
    if extension in ("cls", "json") and info.size <= _MOST_TEXT_BYTES:
        stream.seek(info.offset_data)
        text = stream.read(info.size)
    return _Member(info.offset_data, info.size, text)


def _members(stream: IO[bytes], result: Scanned) -> Iterator[tarfile.TarInfo]:
    """The headers that can be read; behind a damaged one, the next whole one is looked for."""
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    end = 0  # of the member before, rounded up to whole blocks
    try:
        # Zeros are not taken for the end, so that nothing behind a damaged header is lost.
        tar = tarfile.open(fileobj=stream, mode="r:", ignore_zeros=True)  # noqa: SIM115 - the stream is closed
        while (info := tar.next()) is not None:
            if info.offset != end and not _is_header(stream, end):
                result.damage.append(f"has a damaged header at byte {end}")
            if info.offset_data + info.size > size:
                break
            end = info.offset_data + -(-info.size // _BLOCK) * _BLOCK
            tar.members = []  # type: ignore[attr-defined]  # it would keep them all
            yield info
    except tarfile.TarError:
        pass  # how far it goes is judged below
    if end + 2 * _BLOCK > size or not _zeros(stream, end):
        result.damage.append(f"is cut short or damaged behind byte {end}")


def _is_header(stream: IO[bytes], start: int) -> bool:
    """Whether a whole header stands there, of a kind that tarfile passes over."""
    stream.seek(start)
    try:
        tarfile.TarInfo.frombuf(stream.read(_BLOCK), tarfile.ENCODING, "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _zeros(stream: IO[bytes], start: int) -> bool:
    """Whether the mark of a tar's end stands there."""
    stream.seek(start)
    return not any(stream.read(2 * _BLOCK))


def _sample(name: str, key: str, members: Mapping[str, _Member], roles: Mapping[str, str]) -> Sample | None:
    """What is known about a sample's picture; None if it has none.

    Raises:
        InputError: it has several.
        _Damaged: its facts or its label are none.
    """
    pictures = [extension for extension in members if is_image(f"x.{extension}")]
    plain = [extension for extension in pictures if "." not in extension]  # left.png stands beside jpg
    if len(pictures) > 1 and len(plain) != 1:
        raise InputError(
            f"{name}: the sample '{key}' has {len(pictures)} pictures ({', '.join(pictures)}), and none of them is the "
            "one to be labelled. Pack one picture a sample."
        )
    if not pictures:
        return None
    extension = plain[0] if plain else pictures[0]
    facts = _facts(key, members["json"].text) if "json" in members else {}
    known = {role: facts[field] for field, role in roles.items() if facts.get(field) not in (None, "")}
    in_json = known.pop("label", None)
    if in_json == []:
        in_json = None
    for column in ("group", "augmented_from"):
        if column in known:
            known[column] = str(known[column])
    _check(known, name, key)
    in_cls = _word(key, members["cls"].text) if "cls" in members and roles.get("label") == "label" else None
    place = members[extension]
    columns = {
        "path": f"{key}.{extension}",
        "split": split_in_name(name) or "",
        "shard_offset": place.offset,
        "shard_bytes": place.size,
    }
    return Sample(key, columns | known, in_json, in_cls, "json" in members)


def _check(known: dict[str, Any], name: str, key: str) -> None:
    """Take a split by its usual names, and degrees for numbers.

    Raises:
        InputError: they are none.
    """
    if "split" in known:
        split = parse_split(str(known["split"]))
        if split is None:
            raise InputError(
                f"{name}: the sample '{key}' has the split '{known['split']}', which is not one of train, val and "
                "test. Pack it anew."
            )
        known["split"] = split
    for axis, limit in (("latitude", 90), ("longitude", 180)):
        if axis not in known:
            continue
        try:
            known[axis] = float(known[axis])
        except (TypeError, ValueError):
            known[axis] = math.inf
        if not abs(known[axis]) <= limit:
            raise InputError(
                f"{name}: the sample '{key}' has a {axis} that is no number of degrees from -{limit} to {limit}. Pack "
                "it anew."
            )


def _facts(key: str, text: bytes) -> dict[str, Any]:
    try:
        facts = json.loads(text)
    except ValueError as error:  # no JSON, or no UTF-8
        raise _Damaged(f"{key}.json") from error
    return facts if isinstance(facts, dict) else {}


def _word(key: str, text: bytes) -> str:
    try:
        word = text.decode().strip()
    except UnicodeDecodeError as error:
        raise _Damaged(f"{key}.cls") from error
    if not word.isprintable():  # zeros, where a block was lost
        raise _Damaged(f"{key}.cls")
    return word
