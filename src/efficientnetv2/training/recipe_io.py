"""Read, validate, override and compare recipes."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.recipe_fields import all_fields, canonical_field, recipe_parts
from efficientnetv2.utils.errors import InputError, did_you_mean, format_rule, short_repr, truncate
from efficientnetv2.utils.io import parse_yaml, read_yaml
from efficientnetv2.utils.legacy import upgrade_recipe

_SHOWN_CHARS = 200  # of a long value in a message. Ours
# Parts of the accepted values in words (``training.recipe_fields``): lists and objects, numbers, literal words.
_LIST_OR_OBJECT = re.compile(r"([\[{].*?[\]}])")
_START = r"(?:^|(?<=, )|(?<= or ))"
_NUMBER_WORDS = re.compile(_START + r"(?=(?:whole )?number)")
_LITERAL = re.compile(_START + r"(?!null|text|true|false)\w+(?=, | or |$)")
_RAMP = "{start, end, continuous}"
_LIST_ERRORS = ("list_type", "tuple_type")  # pydantic's error types
# One whole number: possessive, so that it never gives back digits for a second one.
_NUMBER = r"(\d++(?:\.\d++)?+|(?<!\.)\.\d++)"
_TWO_NUMBERS = re.compile(rf"[^\d.]*+{_NUMBER}(?:\.\.|[^\d.])+?{_NUMBER}[^\d.]*+")
_DECIMAL_COMMA = re.compile(r"0,\d+|\d+,0\d*")  # 0,3 or 1,024: one number
_SEXAGESIMAL = re.compile(r"\d+(?::[\d.]+)+")


def read_recipe(file: Path) -> Recipe:
    """Read a recipe that ``Recipe.to_yaml`` wrote.

    Raises:
        InputError: The file does not exist, is not YAML, or has an unknown or invalid field.
    """
    return validate_recipe(upgrade_recipe(read_yaml(file)), where=str(file))


def validate_recipe(plain: Any, *, where: str, options: Mapping[str, str] | None = None) -> Recipe:
    """Make a recipe from plain values.

    Args:
        plain: Values as ``Recipe.to_json`` gives them.
        where: Where the values come from, for messages.
        options: Command-line text that set each field. Messages name it instead of ``where``.

    Raises:
        InputError: A field is invalid, or fields contradict each other. The message gives value and rule.
    """
    try:
        return Recipe.model_validate(plain)
    except ValidationError as error:
        problems = _problems(error, plain)
        texts = dict.fromkeys(
            text
            for name, (_, rule) in problems.items()
            for field, text in (options or {}).items()
            if (_same_branch(name, field) if name else re.search(rf"\b{re.escape(field)}\b", rule))
        )
        # The text of a single wrong field already shows its name and value.
        is_shown = set(problems) <= set(options or {}) and len(problems) == 1
        lines = [rule if is_shown or not value else f"{value}: {rule}" for value, rule in problems.values()]
        raise InputError(f"{' '.join(texts) or where}: " + "; ".join(lines)) from error


def _same_branch(name: str, other: str) -> bool:
    return f"{name}.".startswith(f"{other}.") or f"{other}.".startswith(f"{name}.")


def _problems(error: ValidationError, plain: Any) -> dict[str, tuple[str, str]]:
    """Text 'name = value' and rule of each wrong field; '' is for fields that contradict each other."""
    problems: dict[str, tuple[str, str]] = {}
    for problem in error.errors():
        path = _path_of(problem["loc"], plain)
        name = ".".join(path)
        rule = format_rule(problem)
        if problem["type"] in {"extra_forbidden", "unexpected_keyword_argument"}:
            meant = canonical_field(name)
            near = did_you_mean(path[-1], field_names_at(path[:-1]))
            rule = f"there is no such field{near if meant is None else f'; did you mean {meant}?'}"
        value = problem["input"]
        shown = (
            f" = {short_repr(value)}" if isinstance(value, int | float | str | bool | None) and name else ""
        )
        if problem["type"] == "literal_error":
            if name in problems:  # the field takes a number or a word: state both
                number_rule = problems.pop(name)[1].partition("; did you mean")[0]
                word = rule.removeprefix("has to be ")
                rule = number_rule if word in number_rule else f"{number_rule}, or {word}"
            rule += did_you_mean(str(value), re.findall("'(.*?)'", rule)).removesuffix(".")
        elif ((name in problems and problems[name][1] != rule) or problem["type"] in _LIST_ERRORS) and (
            values := accepted_values(name)
        ):
            # The rule of one alternative alone would mislead, and for a list the syntax helps.
            problems[name] = (f"{name}{shown}", f"has to be {values}")
        problems.setdefault(name, (f"{name}{shown}", rule))
    # Of a ramp with a wrong value inside, pydantic also reports that it is not a number.
    return {
        name: problem
        for name, problem in problems.items()
        if not any(other.startswith(f"{name}.") for other in problems)
    }


def accepted_values(name: str) -> str | None:
    """Values that a field accepts, to follow ``has to be``; None if there is no such field."""
    values = next((field.values for field in all_fields() if field.name == name), None)
    if values is None:
        return None
    parts = _LIST_OR_OBJECT.split(values)
    parts[::2] = [_LITERAL.sub(r"'\g<0>'", _NUMBER_WORDS.sub("a ", part)) for part in parts[::2]]
    return "".join(parts)


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


def with_overrides(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """A recipe with fields changed by ``a.b=c``; see ``apply_overrides``.

    Raises:
        InputError: A field is unknown (the message names the nearest) or a value is invalid.
    """
    where = " ".join(f"--set {truncate(setting, _SHOWN_CHARS)}" for setting in settings)
    return validate_recipe(apply_overrides(recipe.to_json(), settings), where=where or recipe.name)


def apply_overrides(plain: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """A copy of a recipe's plain values with fields changed, not yet validated.

    Args:
        plain: Values as ``Recipe.to_json`` gives them.
        settings: Texts ``name=value`` or ``part.name=value``. Values are YAML: numbers, null, {start: 64, end: 128}.

    Raises:
        InputError: A text has no ``=``, names an unknown field (the message names the nearest), or has no valid value.
    """
    changed = copy.deepcopy(plain)
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise InputError(f"--set {setting}: write it as name=value, for instance --set epochs=20")
        *path, last = name.strip().split(".")
        part = _part_at(changed, path, setting)
        known = field_names_at(path)
        if last not in known:
            raise InputError(f"--set {setting}: there is no field '{name}'{_suggestion(name, text, known)}")
        try:
            part[last] = _parse(text)
        except InputError as error:
            _refuse_other_ramps(None, name.strip(), text)
            raise InputError(f"--set {truncate(setting, _SHOWN_CHARS)}: {error}") from error
        _refuse_missing_space(part[last], name, text)
        _refuse_other_ramps(part[last], name.strip(), text)
    return changed


def _suggestion(name: str, text: str, known: Sequence[str]) -> str:
    meant = canonical_field(name.strip())
    if meant is not None:
        return f"; did you mean --set {meant}={text}?"
    near = did_you_mean(name.strip().rpartition(".")[2], known)
    return near if near != "." else ". To list all fields: effnetv2 recipes --fields"


def _refuse_missing_space(value: Any, name: str, text: str) -> None:
    """Refuse {start:64}, which YAML reads as a key without a value."""
    if isinstance(value, dict) and (joined := [key for key in value if ":" in str(key)]):
        spaced = re.sub(r":(?=\S)", ": ", text)
        raise InputError(
            f"--set {name}={text}: '{joined[0]}' is read as one word. Put a space behind the colon: "
            f'--set "{name}={spaced}"'
        )


def _refuse_other_ramps(value: Any, name: str, text: str) -> None:
    """Refuse two numbers where a ramp is possible: 64-128, [64, 128], {start: 64 end: 128}."""
    is_object = isinstance(value, dict) and all(isinstance(key, str) for key in value)
    two = _TWO_NUMBERS.fullmatch(text)
    if (
        two is None
        or is_object
        or isinstance(value, int | float)
        or _RAMP not in (accepted_values(name) or "")
    ):
        return
    if _DECIMAL_COMMA.fullmatch(text.strip()):
        return
    start, end = sorted(two.groups(), key=float)
    raise InputError(
        f"--set {name}={text}: a value that grows from {start} to {end} is written "
        f'--set "{name}={{start: {start}, end: {end}}}"'
    )


def _part_at(plain: dict[str, Any], path: list[str], setting: str) -> dict[str, Any]:
    part = plain
    for depth, name in enumerate(path):
        known = field_names_at(path[:depth])
        if name not in known:
            raise InputError(f"--set {setting}: there is no part '{name}'{did_you_mean(name, known)}")
        if not isinstance(part[name], dict):
            whole = ".".join(path[: depth + 1])
            raise InputError(
                f"--set {setting}: {whole} is {part[name]} and has no parts. Give all of it: "
                f'--set "{whole}={{start: 2, end: 5}}".'
            )
        part = part[name]
    return part


def _parse(text: str) -> Any:
    # YAML 1.1 reads 1e-3 as text, which JSON reads as a number, and 5:15 as 315, which we keep as text.
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text.strip() if _SEXAGESIMAL.fullmatch(text.strip()) else parse_yaml(text, short_repr(text))


def diff_recipes(old: Recipe, new: Recipe, *, leave_open: Collection[str] = ()) -> list[str]:
    """Differences of two recipes, one line each: ``epochs: 10 there, 20 here``.

    Fields in ``leave_open`` do not count where the new recipe has None or "auto".
    """
    there, here = _flat(old.to_json()), _flat(new.to_json())
    return [
        f"{name}: {there.get(name, 'absent')} there, {here.get(name, 'absent')} here"
        for name in {**there, **here}
        if there.get(name) != here.get(name) and not (name in leave_open and here.get(name) in (None, "auto"))
    ]


def _flat(plain: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in plain.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
