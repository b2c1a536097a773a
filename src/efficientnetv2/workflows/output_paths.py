"""Results lie outside the pictures that they are made from, or the next reading takes them for some of these.

Nor do they take the place of the table that these are read from.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from efficientnetv2.data.builtin_datasets import is_cifar_folder
from efficientnetv2.data.image_folder import lists_images
from efficientnetv2.data.shards.open import is_shards
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.shell import rank_and_world_size, shell_join

RUNS = Path("runs")


def lies_within(data: str, out: Path) -> bool:
    """Whether a place lies in DATA, or is DATA.

    Args:
        data: as the user gave it; only a folder can hold anything.
        out: there or not.
    """
    source = Path(os.path.expanduser(data))
    return source.is_dir() and out.resolve().is_relative_to(source.resolve())


def refuse_within(data: str, out: Path, called: str, *, verb: str | None = None) -> None:
    """Refuse a folder for results that would become a class of DATA, or hold pictures of one.

    Beside ``train/`` and ``val/``, in a folder of shards and beside a table anything may lie.

    Args:
        data: as the user gave it.
        out: folder to write into.
        called: what the user calls it by: ``--out``.
        verb: that writes there by itself, below where the user is; None where the user gave the folder.

    Raises:
        InputError: it lies among the class folders.
    """
    source = Path(os.path.expanduser(data))
    if not lies_within(data, out) or is_shards(data) or is_cifar_folder(source):
        return
    if not lists_images(source, out):
        return
    if verb is None or not Path.cwd().is_relative_to(source.resolve()):
        raise InputError(
            f"{called} {out} lies in DATA {data}, whose folders are its classes: what is written there would become "
            "part of what it is made from. Give a folder outside."
        )
    raise InputError(_within_here(source.resolve(), out, called, verb))


def refuse_run_within(data: str, out: Path | None, verb: str) -> None:
    """Refuse a run's folder by its place alone, before anything that takes time to load.

    Args:
        data: as the user gave it.
        out: folder of the run; None is one in ``runs/``.
        verb: that begins it.

    Raises:
        InputError: it lies among the class folders.
    """
    if rank_and_world_size() is None:  # else the first process says it for all of them, later
        refuse_within(data, out or RUNS, "--out", verb=verb if out is None else None)


def _within_here(source: Path, out: Path, called: str, verb: str) -> str:
    """That the user stands in DATA, and from where the command works.

    Args:
        source: DATA, without links.
        out: where the verb writes by itself.
        called: the option that says another place.
        verb: of the command.
    """
    place = f"to {out.parts[0]}/ here" if out.parts else "here"
    here = "DATA itself" if Path.cwd() == source else f"within DATA {source}"
    up = os.path.relpath(source.parent)
    folders = "one folder" if up == ".." else "to where it lies"
    return (
        f"Results would go {place}, but here is {here}, whose folders are its classes. Go up {folders} (cd {up}) and "
        f"name it: effnetv2 {verb} {shell_join([source.name])}/. Or say {called}."
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
