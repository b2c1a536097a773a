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
import re
import tarfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any, NamedTuple

import pandas as pd

from efficientnetv2.data.open_image import is_image
from efficientnetv2.data.records import ReadOptions, parse_split, split_in_name, validate_path_text
from efficientnetv2.data.shards.index import LABEL_LIST, VERSION, Shard, ShardIndex, load_index, save_index
from efficientnetv2.data.shards.storage import Store
from efficientnetv2.utils.errors import InputError, pluralize, shorten
from efficientnetv2.utils.io import cache_folder, is_unused
from efficientnetv2.utils.logs import progress

_MAX_FAULTS = 3  # of a shard that a message lists
_THREADS = 8  # shards that are read at a time
_BLOCK = tarfile.BLOCKSIZE
# Known fields of a JSON member.
_KNOWN = ("path", "label", "split", "group", "latitude", "longitude", "augmented_from")
# Maximum size of a member with a label or JSON. Ours.
_MAX_TEXT_BYTES = 1_000_000
# Version of the rules below: kept scans of other versions are ignored.
_RULES = 9


class _Sample(NamedTuple):
    """Members of one key: values by column without the label, and its label in ``.json`` and in ``.cls``."""

    key: str
    member: str  # name of the image
    columns: dict[str, Any]
    in_json: Any  # a label, a list of labels, or None
    in_cls: str | None  # '' if it is empty, None if it is missing or not used
    has_json: bool


@dataclass
class _Tar:
    """Samples with an image, and faults. ``unread``: could not be read to its end, perhaps only this time."""

    samples: list[_Sample] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)
    lacks: str = ""
    unread: bool = False


class _Member(NamedTuple):
    """A member of a tar, and its content if it is text."""

    info: tarfile.TarInfo
    text: bytes


class _DamagedMemberError(Exception):
    """A damaged text member, with its name."""


def cached_scan(store: Store, names: list[str], options: ReadOptions) -> tuple[ShardIndex, str]:
    """Result of ``scan``, kept from the first time that these tars were read to their ends; and a sentence on it."""
    stats = list(zip(names, store.stats(names), strict=True))
    about = json.dumps([store.base, stats, options.label_column, options.group_column, options.strict, VERSION, _RULES])
    digest = hashlib.blake2b(about.encode(), digest_size=16).hexdigest()
    file = cache_folder("shards") / f"{digest}.parquet"
    shards = pluralize(len(names), "shard")
    with suppress(InputError):  # missing, damaged, or of another user
        index = load_index(file, str(file))
        with suppress(OSError):  # used today
            os.utime(file)
        return index, f"Index of {shards}, read once from the headers: {file}"
    index, unread = scan(store, names, options)
    what = f"Read the headers of {shards}: {pluralize(len(index.table), 'image')}"
    if unread:  # perhaps a network share was away for a moment
        return index, f"{what}; the index is not saved, because {shorten(unread)} could not be read."
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        for other in filter(is_unused, file.parent.glob("*.parquet")):
            if re.fullmatch(r"[0-9a-f]{32}", other.stem):  # not the index of a user's dataset
                other.unlink(missing_ok=True)
        save_index(index, file)
    except OSError as error:
        return index, f"{what}; the index is not saved ({error.strerror or error})."
    return index, f"{what}. Index saved in {file}"


def scan(store: Store, names: list[str], options: ReadOptions) -> tuple[ShardIndex, list[str]]:
    """Read the headers of tars, and name those that could not be read to their end, perhaps only this time.

    Labels and groups are in the given columns of ``.json``. If no sample has a label there, ``.cls`` has the label. The
    split is that of the ``.json`` or of the tar's name (``imagenet-train-0001.tar``). Damaged tars give the images that
    were readable with their label. Raises InputError if a member occurs twice, or a sample has two images.
    """
    given = {options.label_column: "label"}
    if options.group_column is not None:
        given[options.group_column] = "group"
    roles = {name: name for name in _KNOWN if name not in given.values()} | given
    tars = []
    with ThreadPoolExecutor(_THREADS) as pool, progress("reading headers", len(names), "shards") as update:
        for tar in pool.map(lambda name: _scan_tar(store, name, roles, strict=options.strict), names):
            tars.append(tar)
            update(len(tars))
    # Our own tars have the class name in .json and its number in .cls. An image that lost one member must not get the
    # other's label.
    samples = [sample for tar in tars for sample in tar.samples]
    source = "cls" if any(sample.in_cls for sample in samples) else "nowhere"
    if any(sample.in_json is not None for sample in samples):
        source = "json"
    tables = []
    for number, tar in enumerate(tars):
        _make_paths_unique(tar, names[number])
        tables.append(pd.DataFrame(_labeled_rows(tar, source, options.label_column)).assign(shard=number))
        tar.samples.clear()  # samples of millions of images take gigabytes, tables much less
    del samples
    shards = []
    for name, stat, tar, table in zip(names, store.stats(names), tars, tables, strict=True):
        more = len(tar.damage) - _MAX_FAULTS
        faults = tar.damage[:_MAX_FAULTS] + ([f"and has {pluralize(more, 'more fault')}"] if more > 0 else [])
        shards.append(Shard(name, stat.bytes if stat else 0, len(table), "; ".join(faults), tar.lacks))
    filled = [table for table in tables if len(table)]
    columns = ["path", "label", "split", "shard", "shard_offset", "shard_bytes"]
    table = pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=columns)
    unread = [name for name, tar in zip(names, tars, strict=True) if tar.unread]
    return ShardIndex(table, tuple(shards)), unread


def _make_paths_unique(tar: _Tar, name: str) -> None:
    """Name images by their members if ``.json`` repeats a path, as of several folders. Raises InputError for copies."""
    if len({sample.columns["path"] for sample in tar.samples}) == len(tar.samples):
        return
    for sample in tar.samples:
        if "augmented_from" in sample.columns:
            raise InputError(
                f"{name}: '{sample.key}.json' has augmented_from, but samples of this tar have equal paths. Give them "
                "different paths."
            )
        sample.columns["path"] = sample.member


def _labeled_rows(tar: _Tar, source: str, label_field: str) -> list[dict[str, Any]]:
    """Rows of a tar's images. In a damaged tar, those without a label have lost it and are left out."""
    rows, without = [], list[_Sample]()
    for sample in tar.samples:
        label = sample.in_json if source == "json" else sample.in_cls or None
        if label is None:
            without.append(sample)
        if isinstance(label, list):
            rows.append(sample.columns | {"label": None, LABEL_LIST: json.dumps(label)})
        elif label is not None or not tar.damage or source == "nowhere":
            rows.append(sample.columns | {"label": None if label is None else str(label)})
    if not without:
        return rows
    first = without[0]
    if source == "cls":
        why = f"{first.key}.cls is empty" if first.in_cls == "" else f"there is no {first.key}.cls"
    elif first.has_json:
        why = f"{first.key}.json has no field '{label_field}'"
    else:
        why = f"there is no {first.key}.json"
    why += "" if source == "nowhere" else ", which the other images have"
    if tar.damage and source != "nowhere":
        lost = shorten((sample.key for sample in without), 3)
        tar.damage.insert(0, f"has lost the labels of {lost} ({why})")
    else:
        tar.lacks = why + (f" ({len(without)} such images)" if len(without) > 1 else "")
    return rows


def _scan_tar(store: Store, name: str, roles: Mapping[str, str], *, strict: bool) -> _Tar:
    tar = _Tar()
    try:
        with store.open(name) as stream:
            for key, members in _group_by_key(_members(stream, tar.damage), name):
                try:
                    sample = _sample(name, key, members, roles, strict=strict)
                except _DamagedMemberError as error:
                    tar.damage.append(f"holds a damaged {error}")
                    continue
                if sample is not None:
                    tar.samples.append(sample)
    except FileNotFoundError:
        tar.damage.append("is missing")
    except OSError as error:
        tar.unread = True
        tar.damage.append(f"can't be read ({(error.strerror or str(error)).lower()})")
    return tar


def _members(stream: IO[bytes], damage: list[str]) -> Iterator[_Member]:
    """Members with readable headers. After a damaged header, the next intact one is searched."""
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    end = 0  # of the previous member, in whole blocks
    try:
        # Zeros do not count as the end, so that nothing after a damaged header is lost.
        tar = tarfile.open(fileobj=stream, mode="r:", ignore_zeros=True)  # noqa: SIM115 - the stream is closed
        while (info := tar.next()) is not None:
            if info.offset != end and not _is_header(stream, end):
                damage.append(f"has a damaged header at byte {end}")
            if info.offset_data + info.size > size:
                break
            end = info.offset_data + -(-info.size // _BLOCK) * _BLOCK
            tar.members = []  # type: ignore[attr-defined]  # it would keep them all
            text = b""
            if info.name.lower().endswith((".cls", ".json")) and info.size <= _MAX_TEXT_BYTES:
                stream.seek(info.offset_data)
                text = stream.read(info.size)
            yield _Member(info, text)
    except tarfile.TarError:
        pass  # the end is checked below
    stream.seek(end)
    if end + 2 * _BLOCK > size or any(stream.read(2 * _BLOCK)):
        damage.append(f"is cut short or damaged after byte {end}")


def _is_header(stream: IO[bytes], start: int) -> bool:
    """Whether there is an intact header, of a type that tarfile skips."""
    stream.seek(start)
    try:
        tarfile.TarInfo.frombuf(stream.read(_BLOCK), tarfile.ENCODING, "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _group_by_key(found: Iterator[_Member], name: str) -> Iterator[tuple[str, dict[str, _Member]]]:
    """Key and members, by extension, of each sample."""
    seen: set[str] = set()
    key, members = "", dict[str, _Member]()
    for member in found:
        folder, slash, last = member.info.name.removeprefix("./").rpartition("/")
        stem, _, extension = last.partition(".")
        extension = extension.lower()
        if not member.info.isreg() or not stem or not extension:  # folders, hidden files
            continue
        if folder + slash + stem != key:
            if members:
                yield key, members
            key, members = folder + slash + stem, {}
        if extension in members or (not members and key in seen):
            twice = f"member '{member.info.name}'" if members else f"key '{key}'"
            raise InputError(f"{name}: the {twice} occurs twice. Pack members of a sample once, in a row.")
        seen.add(key)
        members[extension] = member
    if members:
        yield key, members


def _sample(
    name: str, key: str, members: Mapping[str, _Member], roles: Mapping[str, str], *, strict: bool
) -> _Sample | None:
    """The sample, or None without an image. Raises InputError for several images, _DamagedMemberError for bad text."""
    images = [extension for extension in members if is_image(f"x.{extension}")]
    if not images:
        return None
    validate_path_text(f"{name}#{key}.{images[0]}")
    plain = [extension for extension in images if "." not in extension]  # jpg, but not left.png
    if len(images) > 1 and len(plain) != 1:
        found = f"{len(images)} images ({', '.join(images)})"
        raise InputError(f"{name}: the sample '{key}' has {found}. Pack one image per sample.")
    extension = plain[0] if plain else images[0]
    facts: Any = {}
    if "json" in members:
        try:
            facts = json.loads(text := members["json"].text)
            if b"\\u" in text:
                json.dumps(facts, ensure_ascii=False).encode()  # half a surrogate pair is no text
        except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, or nested without end
            raise _DamagedMemberError(f"{key}.json") from error
    facts = facts if isinstance(facts, dict) else {}
    known = {role: facts[field] for field, role in roles.items() if _is_given(facts.get(field))}
    in_json = known.pop("label", None)
    known |= {column: str(known[column]) for column in ("path", "group", "augmented_from") if column in known}
    _validate_facts(known, name, key, strict=strict)
    in_cls = None
    if "cls" in members and roles.get("label") == "label":
        in_cls = members["cls"].text.decode(errors="surrogateescape").strip()
        if not in_cls.isprintable():  # zeros of a lost block, or no UTF-8
            raise _DamagedMemberError(f"{key}.cls")
    image = members[extension].info
    place = {"shard_offset": image.offset_data, "shard_bytes": image.size}
    member = image.name.removeprefix("./")
    columns = {"path": member, "split": split_in_name(name) or "", **place}
    return _Sample(key, member, columns | known, None if in_json == [] else in_json, in_cls, "json" in members)


def _is_given(value: Any) -> bool:
    """Whether a value of a JSON member is one: not empty, and not NaN, which Python writes for a missing number."""
    return value not in (None, "") and value == value


def _validate_facts(known: dict[str, Any], name: str, key: str, *, strict: bool) -> None:
    """Normalize split and degrees in place. Invalid ones raise InputError if ``strict``, and are left out otherwise."""
    where = f"{name}: the sample '{key}' has the"
    if "split" in known:
        split = parse_split(str(known["split"]))
        if split is None and strict:
            raise InputError(f"{where} split '{known['split']}', but must have train, val or test.")
        known["split"] = split or ""
    for axis, limit in (("latitude", 90), ("longitude", 180)):
        if axis in known:
            try:
                degrees = float(known[axis])
            except (TypeError, ValueError):
                degrees = math.inf
            is_valid = abs(degrees) <= limit
            if strict and not is_valid:
                raise InputError(f"{where} {axis} {known[axis]!r}, but it must be -{limit} to {limit}.")
            known[axis] = degrees if is_valid else math.nan
