"""Where results may go: not inside the dataset, not over its table, not over a file that is no such result."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from efficientnetv2.data.builtin_datasets import is_cifar_folder
from efficientnetv2.data.dataset import refuse_missing
from efficientnetv2.data.image_folder import lists_images
from efficientnetv2.data.shards.records import is_shards
from efficientnetv2.training.run_paths import RUNS
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.processes import rank_and_world_size
from efficientnetv2.utils.shell import shell_join

_logger = logging.getLogger(__name__)


def is_inside_data(data: str, path: Path) -> bool:
    """Whether a path, which need not exist, is in the folder of a dataset."""
    source = Path(os.path.expanduser(data))
    return source.is_dir() and path.resolve().is_relative_to(source.resolve())


def refuse_inside_data(data: str, out: Path, option: str, *, command: str | None = None) -> None:
    """Refuse results in a class folder of the dataset, where they would become a part of it.

    Next to ``train/`` and ``val/``, in a folder of shards or next to a table, any file is valid. ``option`` gives
    ``out``; where the user gave none, ``command`` has chosen it in the working directory.
    """
    source = Path(os.path.expanduser(data))
    if not is_inside_data(data, out) or is_shards(data) or is_cifar_folder(source):
        return
    if not lists_images(source, out):
        return
    subject, fix = f"{option} {out}", "Give a folder outside."
    if command is not None:
        subject = f"the folder of the results, {out},"
    if command is not None and Path.cwd().is_relative_to(source.resolve()):
        up = os.path.relpath(source.resolve().parent)
        name = shell_join([source.resolve().name])
        fix = f"Use: cd {up} && effnetv2 {command} {name}/. Or give {option}."
    raise InputError(f"{subject} is in DATA {data}, whose folders are its classes. {fix}")


def validate_run_paths(data: str, out: Path | None, command: str) -> None:
    """Refuse missing data, and a run directory (None: in ``runs/``) in it, before anything is loaded or downloaded."""
    if rank_and_world_size() is None:  # else the first process reports it for all, later
        refuse_missing(data)
        refuse_inside_data(data, out or RUNS, "`output`", command=command if out is None else None)


def refuse_replacing_data(data: str, out: Path, names: Iterable[str], option: str) -> None:
    """Refuse a folder where a result, of one of these names, would replace the dataset itself."""
    source, folder = Path(os.path.expanduser(data)), out.resolve()
    if not source.exists() or not source.resolve().is_relative_to(folder):
        return
    parts = source.resolve().relative_to(folder).parts
    if parts and parts[0] in names:
        raise InputError(f"{option} {out} would replace {parts[0]}, DATA {data}. Give another folder.")


def note_replaced(file: Path) -> None:
    """Log that a file will be replaced, if it exists."""
    if file.exists():
        _logger.info(f"{file} exists and will be replaced.")


def refuse_foreign_file(
    file: Path, option: str, is_ours: Callable[[Path], bool], why: str, fix: str = "Give another name, or remove it"
) -> None:
    """Refuse to replace a file that, by its content, the same command has not written; ``why`` follows its name."""
    if file.exists() and not is_ours(file):
        raise InputError(f"{option} {file} exists, and {why}. {fix}.")
