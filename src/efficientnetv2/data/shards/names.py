"""How shards are called: patterns with braces and stars, folders and URLs."""

from __future__ import annotations

import os
import re
from pathlib import Path

from efficientnetv2.base.errors import InputError

INDEX = "index.parquet"
SUFFIX = ".tar"

_COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")
#: Why such a one can't be read, to follow its name.
COMPRESSED = (
    "is compressed, so no picture can be read out of its middle; pictures are compressed themselves and gain nothing "
    "by it. Unpack it to a plain .tar."
)
# The innermost pair of braces: a range of numbers or a list of words.
_BRACES = re.compile(r"\{([^{}]*)\}")
# A path into a shard: the first tar in it is the shard.
_WITHIN = re.compile(r"(.+?\.tar)#(.+)", re.DOTALL | re.IGNORECASE)
_NUMBERS = re.compile(r"(\d+)\.\.(\d+)")
# A mistyped range should not fill the memory. Ours; ImageNet-21k in shards of 100 MB has 14,000.
_MOST_SHARDS = 1_000_000


def is_url(data: str) -> bool:
    """Whether DATA lies in a store of another machine (``s3://…``, ``https://…``)."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", data) is not None


def shard_of(path: str) -> tuple[str, str] | None:
    """The tar, and the name within it, of a path into a shard (``../a/train-0.tar#its/own.jpg``), or None."""
    match = _WITHIN.fullmatch(path)
    return (match[1], match[2]) if match else None


def is_pattern(data: str) -> bool:
    """Whether DATA names tars: one, or several with braces or stars.

    Raises:
        InputError: they are compressed ones.
    """
    if is_compressed(data):
        raise InputError(f"'{data}' {COMPRESSED}")
    return data.lower().endswith(SUFFIX)


def is_compressed(name: str) -> bool:
    """Whether a file is called as a compressed tar is."""
    return name.lower().endswith(_COMPRESSED)


def expanded(pattern: str) -> list[str]:
    """The names that braces stand for, in their order: ``train-{000..002}.tar``, ``{train,val}-0.tar``.

    As bash and WebDataset have it; a number keeps the leading zeros of the range's first one.

    Raises:
        InputError: a range runs backwards or is absurdly long.
    """
    braces = _BRACES.search(pattern)
    if braces is None:
        return [pattern]
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    words = _words(braces[1], pattern)
    return [name for word in words for name in expanded(before + word + after)]


def _words(inside: str, pattern: str) -> list[str]:
    numbers = _NUMBERS.fullmatch(inside)
    if numbers is None:
        return inside.split(",")
    first, last = int(numbers[1]), int(numbers[2])
    if not first <= last < first + _MOST_SHARDS:
        raise InputError(
            f"'{pattern}': {{{inside}}} counts from {first} to {last}, but a range goes upwards and names at most "
            f"{_MOST_SHARDS} shards. Write the smaller number first."
        )
    return [f"{number:0{len(numbers[1])}d}" for number in range(first, last + 1)]


def parted(data: str) -> tuple[str, str]:
    """The folder or URL that shards lie in, absolute and without a slash at its end, and the last part of DATA.

    Args:
        data: a pattern whose folders have neither braces nor stars, but for those that are called so.

    Raises:
        InputError: a folder of the pattern has some.
    """
    base, _, name = data.replace("\\", "/").rpartition("/") if not is_url(data) else data.rpartition("/")
    called_so = not is_url(data) and Path(os.path.expanduser(base)).is_dir()
    if not called_so and any(sign in base for sign in "{}*[]"):
        raise InputError(
            f"'{data}': braces and stars stand in the name of a shard, not in its folder '{base}'. "
            "Give the shards of one folder."
        )
    return (base if is_url(data) else Path(os.path.expanduser(base or ".")).absolute().as_posix()), name
