"""Read, validate, override and compare recipes."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from efficientnetv2.architectures.spec import Architecture
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.recipe_fields import all_fields, canonical_field, recipe_parts
from efficientnetv2.utils.errors import InputError, did_you_mean, format_rule, short_repr, truncate
from efficientnetv2.utils.io import parse_yaml, read_yaml
from efficientnetv2.utils.legacy import upgrade_recipe

_SHOWN_CHARS = 200  # of a long value in a message. Ours
_SEXAGESIMAL = re.compile(r"\d+(?::[\d.]+)+")


def read_recipe(file: Path) -> Recipe:
    """Read a recipe that ``Recipe.to_yaml`` wrote.

    Raises InputError if the file does not exist, is not YAML, or has an unknown or invalid field.
    """
    return validate_recipe(upgrade_recipe(read_yaml(file)), where=str(file))


def validate_recipe(plain: Any, *, where: str, options: Mapping[str, str] | None = None) -> Recipe:
    """Make a recipe from the plain values of ``Recipe.to_json``.

    Messages name the source of a value: ``where``, or the text that set the field, by field, in ``options``.

    Raises InputError if a field is invalid, or fields contradict each other. The message gives value and rule.
    """
    try:
        return Recipe.model_validate(plain)
    except ValidationError as error:
        problems = _problems(error, plain)
        options = options or {}
        texts = dict.fromkeys(
            text
            for name, (_, rule) in problems.items()
            for field, text in options.items()
            if (_same_branch(name, field) if name else re.search(rf"\b{re.escape(field)}\b", rule))
        )
        # The text of a single wrong field already shows its name and value.
        is_shown = len(problems) == 1 and problems.keys() <= options.keys()
        lines = [rule if is_shown or not value else f"{value}: {rule}" for value, rule in problems.values()]
        raise InputError(f"{' '.join(texts) or where}: " + "; ".join(lines)) from error


def _same_branch(name: str, other: str) -> bool:
    return f"{name}.".startswith(f"{other}.") or f"{other}.".startswith(f"{name}.")


def _problems(error: ValidationError, plain: Any) -> dict[str, tuple[str, str]]:
    """Text 'name = value' and rule of each wrong field; '' is for fields that contradict each other."""
    problems: dict[str, tuple[str, str]] = {}
    for problem in error.errors():
        path, kind, value = _path_of(problem["loc"], plain), problem["type"], problem["input"]
        name = ".".join(path)
        is_missing = kind == "missing" and path[-1:] == [str(problem["loc"][-1])]
        if kind in {"extra_forbidden", "unexpected_keyword_argument"}:
            meant = canonical_field(name)
            near = _did_you_mean(path)
            rule = f"there is no such field{near if meant is None else f'; did you mean {meant}?'}"
        elif kind != "value_error" and not is_missing and (values := accepted_values(name)):
            words = [word for word in re.split(", | or ", values) if re.fullmatch(r"[a-z][\w+-]*", word)]
            near = did_you_mean(value, words).removesuffix(".") if isinstance(value, str) else ""
            rule = f"must be {values}{near}"
        else:
            rule = format_rule(problem)
        is_plain = isinstance(value, int | float | str | bool | None) and name
        problems.setdefault(name, (f"{name} = {short_repr(value)}" if is_plain else name, rule))
    # Of a ramp with a wrong value inside, pydantic also reports that it is not a number.
    return {
        name: problem
        for name, problem in problems.items()
        if not any(other.startswith(f"{name}.") for other in problems)
    }


def accepted_values(name: str) -> str | None:
    """Values that a field accepts, to follow ``must be``; None if there is no such field."""
    values = next((field.values for field in all_fields() if field.name == name), None)
    return None if values is None else re.sub("(whole )?number", r"a \g<0>", values)


def _path_of(location: tuple[int | str, ...], plain: Any) -> list[str]:
    """Field names of pydantic's location, which also names members of unions."""
    path = []
    for part in location:
        if isinstance(plain, dict) and part in plain:
            path.append(str(part))
            plain = plain[part]
    return path or [str(part) for part in location[:1]]


def field_names_at(path: list[str]) -> list[str]:
    """Field names of the recipe (``[]``), of a part (``["optimizer"]``), or of a ramp."""
    part = recipe_parts().get(".".join(path))
    return ["start", "end", "continuous"] if part is None else list(part.__pydantic_fields__)


def _did_you_mean(path: Sequence[str]) -> str:
    """``did_you_mean`` for an unknown field, with the full name of the field that is near it."""
    near = did_you_mean(path[-1], field_names_at(list(path[:-1])))
    return near.replace("'", f"'{'.'.join(path[:-1])}.", 1) if path[:-1] else near


def apply_overrides(plain: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """A copy of a recipe's plain values with fields changed by ``name=value`` or ``part.name=value``, not validated.

    Values are YAML: numbers, null, {start: 64, end: 128}.

    Raises:
        InputError: A text has no ``=``, names an unknown field (the message names the nearest), or has no valid value.
    """
    changed = copy.deepcopy(plain)
    for setting in settings:
        shown = f"`{truncate(setting, _SHOWN_CHARS)}`"
        name, equals, text = (part.strip() for part in setting.partition("="))
        if not equals:
            raise InputError(f"'{truncate(setting, _SHOWN_CHARS)}': write it as name=value, for instance epochs=20.")
        *path, last = name.split(".")
        part = changed
        for depth, step in enumerate(path):
            if step not in part or step not in field_names_at(path[:depth]):
                near = did_you_mean(step, field_names_at(path[:depth]))
                raise InputError(f"{shown}: there is no part '{step}'{near}")
            if not isinstance(part[step], dict):
                raise InputError(
                    f"{shown}: {'.'.join(path[: depth + 1])} is {part[step]} and has no parts. Give all of it."
                )
            part = part[step]
        known = field_names_at(path)
        if last not in known:
            meant = canonical_field(name)
            near = _did_you_mean([*path, last]) if meant is None else f"; did you mean `{meant}={text}`?"
            hint = " To list all fields: effnetv2 recipes --fields" if near == "." else ""
            raise InputError(f"{shown}: there is no field '{name}'{near}{hint}")
        try:
            part[last] = _parse(text)
        except InputError as error:
            raise InputError(f"{shown}: {error}") from error
        if isinstance(part[last], dict) and any(":" in str(key) for key in part[last]):
            raise InputError(f"{shown}: put a space behind each colon, as in {{start: 64, end: 128}}.")
    return changed


def _parse(text: str) -> Any:
    # YAML 1.1 reads 1e-3 as text, which JSON reads as a number, and 5:15 as 315, which we keep as text.
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text if _SEXAGESIMAL.fullmatch(text) else parse_yaml(text, short_repr(text))


def diff_recipes(old: Recipe | Architecture, new: Recipe | Architecture) -> list[str]:
    """Differences of two recipes, or of two architectures, one line each: ``epochs: 10 there, 20 here``."""
    there, here = _flat(old.to_json()), _flat(new.to_json())
    return [
        f"{name}: {there.get(name, 'absent')} there, {here.get(name, 'absent')} here"
        for name in {**there, **here}
        if there.get(name) != here.get(name)
    ]


def _flat(plain: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in plain.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
