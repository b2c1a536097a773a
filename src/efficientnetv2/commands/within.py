"""Results lie outside the pictures that they are made from, or the next reading takes them for some of these.

Nor do they take the place of the table that these are read from.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from efficientnetv2.base.errors import InputError
from efficientnetv2.data.cifar import is_packed
from efficientnetv2.data.folders import takes_in
from efficientnetv2.data.shards.opening import is_shards


def lies_within(data: str, out: Path) -> bool:
    """Whether a place lies in DATA, or is DATA.

    Args:
        data: as the user gave it; only a folder can hold anything.
        out: there or not.
    """
    source = Path(os.path.expanduser(data))
    return source.is_dir() and out.resolve().is_relative_to(source.resolve())


def refuse_within(data: str, out: Path, called: str) -> None:
    """Refuse a folder for results that would become a class of DATA, or hold pictures of one.

    Beside ``train/`` and ``val/``, in a folder of shards and beside a table anything may lie.

    Args:
        data: as the user gave it.
        out: folder to write into.
        called: what the user calls it by: ``--out``.

    Raises:
        InputError: it lies among the class folders.
    """
    source = Path(os.path.expanduser(data))
    if not lies_within(data, out) or is_shards(data) or is_packed(source):
        return
    if takes_in(source, out):
        raise InputError(
            f"{called} {out} lies in DATA {data}, whose folders are its classes: what is written there would become "
            "part of what it is made from. Give a folder outside."
        )


def refuse_replaced(data: str, out: Path, names: Iterable[str], called: str) -> None:
    """Refuse a folder where a result would be written over DATA itself, such as a table called as a run calls its own.

    Args:
        data: as the user gave it.
        out: folder to write into.
        names: of all that may be written there.
        called: what the user calls it by: ``--out``.

    Raises:
        InputError: DATA is one of these, or lies in one.
    """
    source, folder = Path(os.path.expanduser(data)), out.resolve()
    if not source.exists() or not source.resolve().is_relative_to(folder):
        return
    parts = source.resolve().relative_to(folder).parts
    if parts and parts[0] in names:
        raise InputError(
            f"{called} {out}: DATA {data} lies there as {parts[0]}, which would be written over. Give another folder, "
            "or move DATA out of it."
        )
