"""Index tars that have no index: read their headers once, and keep the result.

As in WebDataset, members of one key are a sample. The key is the name up to the first dot of its last part:
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
from efficientnetv2.data.shards.index import LABEL_LIST, VERSION, Shard, ShardIndex, load_index, save_index
from efficientnetv2.data.shards.storage import Store
from efficientnetv2.utils.errors import InputError, pluralize, shorten
from efficientnetv2.utils.io import cache_folder, is_unused

# Faults of a shard that a message lists. Ours.
_MAX_FAULTS = 3

LabelSource = Literal["json", "cls", "nowhere"]


@dataclass(frozen=True, slots=True)
class ScannedSample:
    """Members of one key.

    Args:
        key: The key.
        facts: Values by column, without the label.
        in_json: Label in ``.json``, or a list of labels, or None.
        in_cls: Label in ``.cls``, '' if it is empty. None if it is missing or not used.
        has_json: Whether there is a ``.json``.
    """

    key: str
    facts: dict[str, Any]
    in_json: Any
    in_cls: str | None
    has_json: bool


@dataclass
class ScannedTar:
    """Content of one tar.

    Args:
        samples: Samples with an image.
        damage: Faults of the tar, as texts that follow its name.
        lacks: Why images have no label, or ''.
        unread: The tar exists but could not be read to its end, perhaps only this time.
    """

    samples: list[ScannedSample] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)
    lacks: str = ""
    unread: bool = False

    @property
    def damage_text(self) -> str:
        """The first faults in one text, or ''."""
        more = len(self.damage) - _MAX_FAULTS
        return "; ".join(self.damage[:_MAX_FAULTS]) + (
            f"; and has {pluralize(more, 'more fault')}" if more > 0 else ""
        )


def label_source(tars: Sequence[ScannedTar]) -> LabelSource:
    """Where the images of a set have their labels: in ``.json`` if any has one there, else in ``.cls``.

    Our own tars have the class name in ``.json`` and its number in ``.cls``. An image that lost one member must not get
    the other's label.
    """
    samples = [sample for tar in tars for sample in tar.samples]
    if any(sample.in_json is not None for sample in samples):
        return "json"
    return "cls" if any(sample.in_cls for sample in samples) else "nowhere"


def labeled_rows(tar: ScannedTar, place: LabelSource, label_field: str) -> list[dict[str, Any]]:
    """Rows of a tar's images, with their labels.

    In a damaged tar, images without a label have lost it and are left out; ``tar.damage`` reports it. In an intact tar
    they have none; ``tar.lacks`` reports it.
    """
    rows, without = [], list[ScannedSample]()
    for sample in tar.samples:
        label = sample.in_json if place == "json" else sample.in_cls or None
        if label is None:
            without.append(sample)
        if label is not None or not tar.damage or place == "nowhere":
            rows.append(sample.facts | _label_columns(label))
    if without:
        why = _missing_label(without[0], place, label_field)
        if tar.damage and place != "nowhere":
            tar.damage.insert(0, f"has lost the labels of {shorten((one.key for one in without), 3)} ({why})")
        else:
            tar.lacks = why + (f" ({len(without)} such images)" if len(without) > 1 else "")
    return rows


def _label_columns(label: Any) -> dict[str, str | None]:
    """A label, or a list of labels, as columns of an index."""
    if isinstance(label, list):
        return {"label": None, LABEL_LIST: json.dumps(label)}
    return {"label": None if label is None else str(label)}


def _missing_label(sample: ScannedSample, place: LabelSource, label_field: str) -> str:
    """Why an image has no label."""
    if place == "cls":
        what = f"{sample.key}.cls is empty" if sample.in_cls == "" else f"there is no {sample.key}.cls"
    elif sample.has_json:
        what = f"{sample.key}.json has no field '{label_field}'"
    else:
        what = f"there is no {sample.key}.json"
    return what if place == "nowhere" else f"{what}, where the others have theirs"


# Shards that are read at a time. Ours.
_THREADS = 8
_BLOCK = tarfile.BLOCKSIZE
# Known fields of a JSON member.
_KNOWN = ("path", "label", "split", "group", "latitude", "longitude", "augmented_from")
# Maximum size of a member with a label or JSON. Ours.
_MAX_TEXT_BYTES = 1_000_000
# Version of the rules below: kept scans of other versions are ignored.
_RULES = 6


def cached_scan(
    store: Store, names: list[str], *, label_column: str, group_column: str | None
) -> tuple[ShardIndex, str]:
    """Result of ``scan``, kept from the first time that these tars were read to their ends; and a sentence on it."""
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
    shards = pluralize(len(names), "shard")
    if file.is_file():
        with suppress(OSError):  # used today
            os.utime(file)
        return load_index(file, str(file)), f"Index of {shards}, read once from the headers: {file}"
    index, unread = scan(store, names, label_column=label_column, group_column=group_column)
    what = f"Read the headers of {shards}: {pluralize(len(index.table), 'image')}"
    if unread:  # perhaps a network share was away for a moment
        return index, f"{what}; not kept for the next time, since {shorten(unread)} could not be read."
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        for other in filter(is_unused, file.parent.glob("*.parquet")):
            other.unlink(missing_ok=True)
        save_index(index, file)
    except OSError as error:
        return index, f"{what}; not kept for the next time ({error.strerror or error})."
    return index, f"{what}, kept for the next time in {file}"


def scan(
    store: Store, names: list[str], *, label_column: str, group_column: str | None
) -> tuple[ShardIndex, list[str]]:
    """Read the headers of tars.

    Args:
        store: Store of the tars.
        names: Names of the tars.
        label_column: Field of ``.json`` with the label, or a list of labels. If no sample has it, ``.cls`` has the
            label.
        group_column: Field of ``.json`` with the group. A field ``group`` is used without being named.

    Returns:
        Images in the order of the tars, with the split of their ``.json`` or of the tar's name
        (``imagenet-train-0001.tar``). Damaged tars give the images that were readable with their label. And the names
        of tars that could not be read to their end, perhaps only this time.

    Raises:
        InputError: A member occurs twice, or a sample has two images.
    """
    given = {label_column: "label"} | ({} if group_column is None else {group_column: "group"})
    roles = {name: name for name in _KNOWN if name not in given.values()} | given
    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(lambda name: _scan_tar(store, name, roles), names))
    place = label_source(found)
    tables = []
    for number, one in enumerate(found):
        tables.append(pd.DataFrame(labeled_rows(one, place, label_column)).assign(shard=number))
        one.samples.clear()  # samples of millions of images take gigabytes, tables much less
    shards = tuple(
        Shard(name, stat.bytes if stat else 0, len(table), one.damage_text, one.lacks)
        for name, stat, one, table in zip(names, store.stats(names), found, tables, strict=True)
    )
    filled = [table for table in tables if len(table)]
    columns = ["path", "label", "split", "shard", "shard_offset", "shard_bytes"]
    index = ShardIndex(
        pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=columns), shards
    )
    return index, [name for name, one in zip(names, found, strict=True) if one.unread]


def _scan_tar(store: Store, name: str, roles: Mapping[str, str]) -> ScannedTar:
    result = ScannedTar()
    try:
        with store.open(name) as stream:
            for key, members in _samples(stream, name, result):
                try:
                    sample = _sample(name, key, members, roles)
                except _DamagedMemberError as error:
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


class _DamagedMemberError(Exception):
    """A damaged text member, with its name."""


@dataclass(frozen=True)
class _Member:
    """Place of a member in its tar, and its content if it is text."""

    offset: int
    size: int
    text: bytes = b""


def _samples(stream: IO[bytes], name: str, result: ScannedTar) -> Iterator[tuple[str, dict[str, _Member]]]:
    """Key and members, by extension, of each sample. Damage goes to ``result``."""
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
                    f"{name}: the key '{key}' occurs twice, so an image could not be told from another. "
                    "Members of one sample follow each other, and each key is used once: pack it anew."
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
    if extension in ("cls", "json") and info.size <= _MAX_TEXT_BYTES:
        stream.seek(info.offset_data)
        text = stream.read(info.size)
    return _Member(info.offset_data, info.size, text)


def _members(stream: IO[bytes], result: ScannedTar) -> Iterator[tarfile.TarInfo]:
    """Readable headers. After a damaged header, the next intact one is searched."""
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    end = 0  # of the previous member, in whole blocks
    try:
        # Zeros do not count as the end, so that nothing after a damaged header is lost.
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
        pass  # the end is checked below
    if end + 2 * _BLOCK > size or not _is_end(stream, end):
        result.damage.append(f"is cut short or damaged behind byte {end}")


def _is_header(stream: IO[bytes], start: int) -> bool:
    """Whether there is an intact header, of a type that tarfile skips."""
    stream.seek(start)
    try:
        tarfile.TarInfo.frombuf(stream.read(_BLOCK), tarfile.ENCODING, "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _is_end(stream: IO[bytes], start: int) -> bool:
    """Whether the end mark of a tar is there."""
    stream.seek(start)
    return not any(stream.read(2 * _BLOCK))


def _sample(
    name: str, key: str, members: Mapping[str, _Member], roles: Mapping[str, str]
) -> ScannedSample | None:
    """The sample, or None without an image. Raises InputError for several images, _DamagedMemberError for bad text."""
    images = [extension for extension in members if is_image(f"x.{extension}")]
    plain = [extension for extension in images if "." not in extension]  # jpg, but not left.png
    if len(images) > 1 and len(plain) != 1:
        raise InputError(
            f"{name}: the sample '{key}' has {len(images)} images ({', '.join(images)}), and none of them is the "
            "one to be labeled. Pack one image per sample."
        )
    if not images:
        return None
    extension = plain[0] if plain else images[0]
    facts = _parse_json(key, members["json"].text) if "json" in members else {}
    known = {role: facts[field] for field, role in roles.items() if facts.get(field) not in (None, "")}
    in_json = known.pop("label", None)
    if in_json == []:
        in_json = None
    for column in ("group", "augmented_from"):
        if column in known:
            known[column] = str(known[column])
    _validate_facts(known, name, key)
    in_cls = (
        _decode_label(key, members["cls"].text)
        if "cls" in members and roles.get("label") == "label"
        else None
    )
    place = members[extension]
    columns = {
        "path": f"{key}.{extension}",
        "split": split_in_name(name) or "",
        "shard_offset": place.offset,
        "shard_bytes": place.size,
    }
    return ScannedSample(key, columns | known, in_json, in_cls, "json" in members)


def _validate_facts(known: dict[str, Any], name: str, key: str) -> None:
    """Normalize the split, latitude and longitude in place. Raises InputError for invalid values."""
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


def _parse_json(key: str, text: bytes) -> dict[str, Any]:
    try:
        facts = json.loads(text)
    except ValueError as error:  # no JSON, or no UTF-8
        raise _DamagedMemberError(f"{key}.json") from error
    return facts if isinstance(facts, dict) else {}


def _decode_label(key: str, text: bytes) -> str:
    try:
        word = text.decode().strip()
    except UnicodeDecodeError as error:
        raise _DamagedMemberError(f"{key}.cls") from error
    if not word.isprintable():  # zeros of a lost block
        raise _DamagedMemberError(f"{key}.cls")
    return word
