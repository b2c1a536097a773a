"""Folders of runs: whether one is free for a new run, what a new one is called, which was begun last."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path

from efficientnetv2.base.errors import InputError, some
from efficientnetv2.base.typed import typed
from efficientnetv2.training.folder import LOCK, RunFolder


def refuse_occupied(path: Path) -> None:
    """A new run's folder is new, empty, or what is left of a run that never began; an inspection may lie in it.

    A table called ``manifest.csv`` may be anybody's: only beside the beginning of a run is it a run's.

    Raises:
        InputError: it holds a run, or something else.
    """
    if (path / "recipe.yaml").exists():
        if RunFolder(path, lambda line: None).finished:
            raise InputError(f"--out {path} holds a run already, which has finished. Give another folder.")
        go_on = typed(["effnetv2", "train", "DATA", "--out", str(path), "--resume"])  # whatever verb asks
        raise InputError(
            f"--out {path} holds a run already. Go on with it by --resume ({go_on}), or give another folder."
        )
    ours = {"probe", "against", "inspection", LOCK}
    if _is_beginning(path / "beginning.json"):
        ours |= {"beginning.json", "log.txt", "manifest.csv", "skipped.csv"}
    there = [file.name for file in path.iterdir()] if path.is_dir() else []
    others = [name for name in there if name not in ours and not name.endswith(".partial")]
    if others:
        raise InputError(
            f"--out {path} holds something that is no run ({some(others, 3)}). Give another folder."
        )


def _is_beginning(file: Path) -> bool:
    """Whether a run has written it."""
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(plain, dict) and {"command", "preprocessing"} <= plain.keys()


def new_folder(runs: Path, name: str) -> Path:
    """A folder under ``runs`` that is not there yet: name, date and a number if need be."""
    stem = f"{datetime.now():%Y%m%d-%H%M%S}_{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}"
    for number in range(1000):
        path = runs / (stem if number == 0 else f"{stem}_{number}")
        if not path.exists():
            return path
    raise InputError(f"{runs} holds a thousand runs of this second; give --out.")


def newest(runs: Path) -> Path | None:
    """The run that was begun or went on last; None if there is none."""
    recipes = newest_first(runs)
    return recipes[0].parent if recipes else None


def newest_first(runs: Path) -> list[Path]:
    """The ``recipe.yaml`` of every run; first that of the run that was begun or went on last."""

    def touched(recipe: Path) -> float:
        metrics = recipe.with_name("metrics.jsonl")
        return max(path.stat().st_mtime for path in (recipe, metrics) if path.exists())

    return sorted(runs.glob("*/recipe.yaml"), key=touched, reverse=True)
