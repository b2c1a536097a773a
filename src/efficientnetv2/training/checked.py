"""Recipes from plain values and from files, and what is said where a field is wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from efficientnetv2.augment.pipeline import AugmentPlan
from efficientnetv2.base import yaml_text
from efficientnetv2.base.errors import InputError, did_you_mean, rule_of, short
from efficientnetv2.progressive import Progressive
from efficientnetv2.training.fields import every_field, field_meant
from efficientnetv2.training.learning import Optimizer, Schedule
from efficientnetv2.training.recipe import Recipe

# Among what a field takes (``training.fields``): what is in brackets, where a number begins, a word to be typed.
_LIST_OR_TABLE = re.compile(r"([\[{].*?[\]}])")
_BEGIN = r"(?:^|(?<=, )|(?<= or ))"
_NUMBER = re.compile(_BEGIN + r"(?=(?:whole )?number)")
_WORD = re.compile(_BEGIN + r"(?!null|text|true|false)\w+(?=, | or |$)")
_LISTS = ("list_type", "tuple_type")  # pydantic's names for what is no list


def read(file: Path) -> Recipe:
    """Read what ``Recipe.to_yaml`` wrote.

    Raises:
        InputError: no such file, not YAML, or a field that is unknown or out of range.
    """
    return checked(yaml_text.read(file), where=str(file))


def checked(plain: Any, *, where: str, said: Mapping[str, str] | None = None) -> Recipe:
    """A recipe from plain values.

    Args:
        plain: as ``Recipe.to_json`` gives them.
        where: they are from, for the message.
        said: from fields to the words that they were changed by: of wrong fields, and of those that do not go together,
            their own words are named instead.

    Raises:
        InputError: naming each wrong field, its value and the rule.
    """
    try:
        return Recipe.model_validate(plain)
    except ValidationError as error:
        wrong = _complaints(error, plain)
        words = dict.fromkeys(
            word
            for name, (_, rule) in wrong.items()
            for field, word in (said or {}).items()
            if (_of_one_branch(name, field) if name else re.search(rf"\b{re.escape(field)}\b", rule))
        )
        # Where the words are those of the field alone, they have said its name and value.
        told = set(wrong) <= set(said or {}) and len(wrong) == 1
        lines = [rule if told or not what else f"{what}: {rule}" for what, rule in wrong.values()]
        raise InputError(f"{' '.join(words) or where}: " + "; ".join(lines)) from error


def _of_one_branch(one: str, other: str) -> bool:
    """Whether one field is the other, or a part of it."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _complaints(error: ValidationError, plain: Any) -> dict[str, tuple[str, str]]:
    """Of each wrong field, by its name, how it is and the rule; what is wrong with none alone is of ''."""
    wrong: dict[str, tuple[str, str]] = {}
    for problem in error.errors():
        parts = _place_of(problem["loc"], plain)
        name = ".".join(parts)
        message = rule_of(problem)
        if problem["type"] in {"extra_forbidden", "unexpected_keyword_argument"}:
            meant = field_meant(name)
            near = did_you_mean(parts[-1], fields_at(parts[:-1]))
            message = f"there is no such field{near if meant is None else f'; did you mean {meant}?'}"
        value = problem["input"]
        shown = f" = {short(value)}" if isinstance(value, int | float | str | bool | None) and name else ""
        if problem["type"] == "literal_error":
            if name in wrong:  # of a number or a word, both are said
                first = wrong.pop(name)[1].partition("; did you mean")[0]
                word = message.removeprefix("has to be ")
                message = first if word in first else f"{first}, or {word}"
            message += did_you_mean(str(value), re.findall("'(.*?)'", message)).removesuffix(".")
        elif ((name in wrong and wrong[name][1] != message) or problem["type"] in _LISTS) and (
            values := values_of(name)
        ):
            # Each kind of value that the field takes has a rule that this one breaks; one alone would mislead. And of a
            # list it helps to see how it is written.
            wrong[name] = (f"{name}{shown}", f"has to be {values}")
        wrong.setdefault(name, (f"{name}{shown}", message))
    # Of a ramp that is wrong inside, pydantic also says that it is no number.
    return {
        name: told for name, told in wrong.items() if not any(other.startswith(f"{name}.") for other in wrong)
    }


def values_of(name: str) -> str | None:
    """What a field takes, in words that follow ``has to be``; None of what is no field.

    Args:
        name: of the field, with those of the parts that it lies in: ``progressive.image_px``.
    """
    values = next((field.values for field in every_field() if field.name == name), None)
    if values is None:
        return None
    parts = _LIST_OR_TABLE.split(values)
    parts[::2] = [_WORD.sub(r"'\g<0>'", _NUMBER.sub("a ", part)) for part in parts[::2]]
    return "".join(parts)


def _place_of(location: tuple[int | str, ...], plain: Any) -> list[str]:
    """The names along the way that the values have: pydantic names the members of unions too."""
    parts = []
    for part in location:
        if isinstance(plain, dict) and part in plain:
            parts.append(str(part))
            plain = plain[part]
    return parts or [str(part) for part in location[:1]]


def fields_at(parts: list[str]) -> list[str]:
    """Names of the fields at a place of a recipe: of ``[]`` its own, of ``["optimizer"]`` the optimizer's."""
    if not parts:
        return list(Recipe.model_fields)
    names = {
        "optimizer": list(Optimizer.model_fields),
        "schedule": list(Schedule.model_fields),
        "progressive": list(Progressive.__dataclass_fields__),
        "augment": list(AugmentPlan.__dataclass_fields__),
    }
    return (
        names.get(parts[0], ["start", "end", "continuous"])
        if len(parts) == 1
        else ["start", "end", "continuous"]
    )
