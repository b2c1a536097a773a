"""What a cross-validation was begun with, kept in its folder, so that a stopped one goes on as it began."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import Field, asdict, fields, replace
from pathlib import Path
from typing import Any

import torch

from efficientnetv2.arch.spec import Architecture
from efficientnetv2.base.errors import InputError
from efficientnetv2.base.files import write_text_atomically
from efficientnetv2.commands.crossval_plan import Plan
from efficientnetv2.commands.source import Source
from efficientnetv2.commands.words import Words, begin_recipe
from efficientnetv2.training.changes import differences
from efficientnetv2.training.checked import checked
from efficientnetv2.training.recipe import Recipe

FILE = "crossval.json"


def remember(folder: Path, words: Words, plan: Plan, source: Source, digest: str, command: str) -> None:
    """Write down what a cross-validation was begun with.

    Args:
        folder: of it.
        words: about the recipe.
        plan: of the folds.
        source: of the pictures.
        digest: of the pictures and their folds.
        command: as one types it.
    """
    # What stood in files stands here whole: the folds go on without these, and as they began.
    whole = {
        name: value.to_json()
        for name in ("model", "recipe")
        if isinstance(value := getattr(words, name), Architecture | Recipe)
    }
    plain = {
        "command": command,
        "words": asdict(words) | whole,
        "plan": asdict(plan),
        "source": asdict(source),
        "digest": digest,
    }
    write_text_atomically(folder / FILE, json.dumps(plain, indent=1) + "\n")


def begun_with(
    folder: Path, words: Words, plan: Plan, source: Source, device: torch.device, said: Collection[str] = ()
) -> tuple[Words, Plan, Source, str]:
    """What a cross-validation was begun with; whatever is said again has to be the same.

    But for the rule of the folds (``by``), of which two may come to the same folds, as only dealing them shows; and for
    words that come to the same recipe.

    Args:
        folder: of it.
        words: said now.
        plan: said now.
        source: said now.
        device: to train on; which network is the default depends on it.
        said: names of what was typed, so that a default that was is told from one that was not.

    Returns:
        Words, plan, how the pictures' table is read, and digest as they were; DATA itself is what is said now, for from
        elsewhere the same place may be called otherwise.

    Raises:
        InputError: something else is asked for, or the file can't be read.
    """
    try:
        plain = json.loads((folder / FILE).read_text(encoding="utf-8"))
        there = _tuples(plain["words"])
        if isinstance(there["model"], dict):
            there["model"] = Architecture.from_json(there["model"])
        if isinstance(there["recipe"], dict):
            there["recipe"] = checked(there["recipe"], where=str(folder / FILE))
        before = Words(**there), Plan(**_tuples(plain["plan"]))
        read = Source(**plain["source"] | {"data": source.data})
        digest = str(plain["digest"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder / FILE} cannot be read: {error}. Begin anew with another --out."
        ) from error
    differing = [
        *_differing(before[0], words, () if _same_recipe(before[0], words, device) else fields(words), said),
        *_differing(before[1], plan, [one for one in fields(plan) if one.name != "by"], said),
        *_differing(read, source, fields(source), said),
    ]
    if differing:
        raise begun_otherwise(folder, differing)
    return *before, read, digest


def begun_otherwise(folder: Path, differing: Sequence[str]) -> InputError:
    """Why folds can't be gone on with.

    Args:
        folder: of the cross-validation.
        differing: what is said now, beside what was said before.
    """
    return InputError(
        f"--resume: the folds in {folder} were begun otherwise: {'; '.join(differing)}. Leave those words out to go on "
        "with them, or give another --out to begin anew."
    )


def _same_recipe(before: Words, now: Words, device: torch.device) -> bool:
    """Whether words that are said again, in place of those before, come to the recipe of these."""
    said = {one.name: value for one in fields(now) if (value := getattr(now, one.name)) != one.default}
    try:
        again = replace(before, **said)
        if again == before:
            return True
        if (again.minutes, again.cache) != (before.minutes, before.cache):  # which no recipe holds
            return False
        there, here = (begin_recipe(words, device, lambda line: None)[0] for words in (before, again))
    except InputError:
        return False
    return there == here


def _differing(there: object, now: object, of: Sequence[Field[Any]], said: Collection[str]) -> list[str]:
    """What is said now, and is not what was said before."""
    told = []
    for one in of:
        before, here = getattr(there, one.name), getattr(now, one.name)
        if here == before or (here == one.default and one.name not in said):
            continue
        if isinstance(before, Recipe) and isinstance(here, Recipe):
            told += differences(before, here)
        else:
            told.append(f"{one.name} is {_called(before)} there, {_called(here)} here")
    return told


def _called(value: object) -> object:
    return f"a file with {value.name}" if isinstance(value, Recipe) else value


def _tuples(plain: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}
