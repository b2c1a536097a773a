"""What a cross-validation was begun with, kept in its folder, so that a stopped one goes on as it began."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import Field, asdict, fields
from pathlib import Path
from typing import Any

from efficientnetv2.arch.spec import Architecture
from efficientnetv2.base.errors import InputError
from efficientnetv2.base.files import write_text_atomically
from efficientnetv2.commands.crossval_plan import Plan
from efficientnetv2.commands.source import Source
from efficientnetv2.commands.words import Words

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
    model = words.model
    plain = {
        "command": command,
        "words": asdict(words) | ({"model": model.to_json()} if isinstance(model, Architecture) else {}),
        "plan": asdict(plan),
        "source": asdict(source),
        "digest": digest,
    }
    write_text_atomically(folder / FILE, json.dumps(plain, indent=1) + "\n")


def begun_with(folder: Path, words: Words, plan: Plan, source: Source) -> tuple[Words, Plan, Source, str]:
    """What a cross-validation was begun with; whatever is said again has to be the same.

    But for the rule of the folds (``by``): two of them may come to the same folds, which only dealing them shows.

    Args:
        folder: of it.
        words: said now.
        plan: said now.
        source: said now.

    Returns:
        Words, plan, how the pictures' table is read, and digest as they were; DATA itself is what is said now, for from
        elsewhere the same place may be called otherwise.

    Raises:
        InputError: something else is asked for, or the file can't be read.
    """
    try:
        plain = json.loads((folder / FILE).read_text(encoding="utf-8"))
        said = _tuples(plain["words"])
        if isinstance(said["model"], dict):
            said["model"] = Architecture.from_json(said["model"])
        before = Words(**said), Plan(**_tuples(plain["plan"]))
        read = Source(**plain["source"] | {"data": source.data})
        digest = str(plain["digest"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder / FILE} cannot be read: {error}. Begin anew with another --out."
        ) from error
    differing = [
        *_differing(before[0], words, fields(words)),
        *_differing(before[1], plan, [one for one in fields(plan) if one.name != "by"]),
        *_differing(read, source, fields(source)),
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


def _differing(there: object, now: object, of: Sequence[Field[Any]]) -> list[str]:
    """What is said now, is not what would be taken unsaid, and is not what was said before."""
    return [
        f"{one.name} is {getattr(there, one.name)} there, {getattr(now, one.name)} here"
        for one in of
        if getattr(now, one.name) not in (one.default, getattr(there, one.name))
    ]


def _tuples(plain: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}
