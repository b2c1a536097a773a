"""Changing a recipe from the command line, and telling two recipes apart."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from efficientnetv2.progressive.schedule import Progressive
from efficientnetv2.training.recipe import Optimizer, Recipe, Schedule
from efficientnetv2.training.recipe_fields import all_fields, canonical_field
from efficientnetv2.transforms.pipeline import AugmentPlan
from efficientnetv2.utils import yaml_io
from efficientnetv2.utils.errors import InputError, cut, did_you_mean, rule_of, short

# Among what a field takes (``training.recipe_fields``): what is in brackets, where a number begins, a word to be typed.
_LIST_OR_TABLE = re.compile(r"([\[{].*?[\]}])")
_BEGIN = r"(?:^|(?<=, )|(?<= or ))"
_NUMBER_checked = re.compile(_BEGIN + r"(?=(?:whole )?number)")
_WORD = re.compile(_BEGIN + r"(?!null|text|true|false)\w+(?=, | or |$)")
_LISTS = ("list_type", "tuple_type")  # pydantic's names for what is no list


def read_recipe(file: Path) -> Recipe:
    """Read what ``Recipe.to_yaml`` wrote.

    Raises:
        InputError: no such file, not YAML, or a field that is unknown or out of range.
    """
    return validate_recipe(yaml_io.read(file), where=str(file))


def validate_recipe(plain: Any, *, where: str, said: Mapping[str, str] | None = None) -> Recipe:
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
            meant = canonical_field(name)
            near = did_you_mean(parts[-1], field_names_at(parts[:-1]))
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
            values := accepted_values(name)
        ):
            # Each kind of value that the field takes has a rule that this one breaks; one alone would mislead. And of a
            # list it helps to see how it is written.
            wrong[name] = (f"{name}{shown}", f"has to be {values}")
        wrong.setdefault(name, (f"{name}{shown}", message))
    # Of a ramp that is wrong inside, pydantic also says that it is no number.
    return {
        name: told for name, told in wrong.items() if not any(other.startswith(f"{name}.") for other in wrong)
    }


def accepted_values(name: str) -> str | None:
    """What a field takes, in words that follow ``has to be``; None of what is no field.

    Args:
        name: of the field, with those of the parts that it lies in: ``progressive.image_px``.
    """
    values = next((field.values for field in all_fields() if field.name == name), None)
    if values is None:
        return None
    parts = _LIST_OR_TABLE.split(values)
    parts[::2] = [_WORD.sub(r"'\g<0>'", _NUMBER_checked.sub("a ", part)) for part in parts[::2]]
    return "".join(parts)


def _place_of(location: tuple[int | str, ...], plain: Any) -> list[str]:
    """The names along the way that the values have: pydantic names the members of unions too."""
    parts = []
    for part in location:
        if isinstance(plain, dict) and part in plain:
            parts.append(str(part))
            plain = plain[part]
    return parts or [str(part) for part in location[:1]]


def field_names_at(parts: list[str]) -> list[str]:
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


_SHOWN = 200  # of a long value in a message. Ours
_RAMP = "{start, end, continuous}"  # among what a field takes
# One number, and no part of one: nothing is given back for the sake of a second.
_NUMBER = r"(\d++(?:\.\d++)?+|(?<!\.)\.\d++)"
_TWO_NUMBERS = re.compile(rf"[^\d.]*+{_NUMBER}(?:\.\.|[^\d.])+?{_NUMBER}[^\d.]*+")
_DECIMAL_COMMA = re.compile(r"0,\d+|\d+,0\d*")  # 0,3 or 1,024: one number in another way of writing
_SIXTIES = re.compile(r"\d+(?::[\d.]+)+")


def with_overrides(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """A recipe with fields changed by ``a.b=c``; see ``apply_overrides``.

    Raises:
        InputError: an unknown field (with the nearest name), a wrong value.
    """
    where = " ".join(f"--set {cut(setting, _SHOWN)}" for setting in settings)
    return validate_recipe(apply_overrides(recipe.to_json(), settings), where=where or recipe.name)


def apply_overrides(plain: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """Change fields of a recipe's plain values; each value is read as YAML (numbers, null, {start: 64, end: 128}).

    Args:
        plain: as ``Recipe.to_json`` gives it; unchanged.
        settings: of the form ``name=value`` or ``part.name=value``.

    Returns:
        The changed values, not yet checked.

    Raises:
        InputError: a setting without ``=``, an unknown field (with the nearest name), or text that is not a value.
    """
    changed = copy.deepcopy(plain)
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise InputError(f"--set {setting}: write it as name=value, for instance --set epochs=20")
        *parents, last = name.strip().split(".")
        place = _part_of(changed, parents, setting)
        known = field_names_at(parents)
        if last not in known:
            raise InputError(f"--set {setting}: there is no field '{name}'{_instead(name, text, known)}")
        try:
            place[last] = _value(text)
        except InputError as error:
            _refuse_other_ramps(None, name.strip(), text)
            raise InputError(f"--set {cut(setting, _SHOWN)}: {error}") from error
        _refuse_joined(place[last], name, text)
        _refuse_other_ramps(place[last], name.strip(), text)
    return changed


def _instead(name: str, text: str, known: Sequence[str]) -> str:
    """The end of a sentence on an unknown field: the right option, or where all fields are listed."""
    meant = canonical_field(name.strip())
    if meant is not None:
        return f"; did you mean --set {meant}={text}?"
    near = did_you_mean(name.strip().rpartition(".")[2], known)
    return near if near != "." else ". To list all fields: effnetv2 recipes --fields"


def _refuse_joined(value: Any, name: str, text: str) -> None:
    """Refuse {start:64}, which to YAML is a name without a value."""
    if isinstance(value, dict) and (joined := [key for key in value if ":" in str(key)]):
        spaced = re.sub(r":(?=\S)", ": ", text)
        raise InputError(
            f"--set {name}={text}: '{joined[0]}' is read as one word; a space belongs behind the colon: "
            f'--set "{name}={spaced}"'
        )


def _refuse_other_ramps(value: Any, name: str, text: str) -> None:
    """Refuse two numbers for what may grow (64-128, [64, 128], {start: 64 end: 128}) with the one way to write it."""
    named = isinstance(value, dict) and all(isinstance(key, str) for key in value)
    two = _TWO_NUMBERS.fullmatch(text)
    if two is None or named or isinstance(value, int | float) or _RAMP not in (accepted_values(name) or ""):
        return
    if _DECIMAL_COMMA.fullmatch(text.strip()):
        return
    start, end = sorted(two.groups(), key=float)
    raise InputError(
        f"--set {name}={text}: what grows from {start} to {end} is written "
        f'--set "{name}={{start: {start}, end: {end}}}"'
    )


def _part_of(plain: dict[str, Any], parents: list[str], setting: str) -> dict[str, Any]:
    place = plain
    for depth, part in enumerate(parents):
        known = field_names_at(parents[:depth])
        if part not in known:
            raise InputError(f"--set {setting}: there is no part '{part}'{did_you_mean(part, known)}")
        if not isinstance(place[part], dict):
            whole = ".".join(parents[: depth + 1])
            raise InputError(
                f"--set {setting}: {whole} is {place[part]} and has no parts. Give all of it: "
                f'--set "{whole}={{start: 2, end: 5}}".'
            )
        place = place[part]
    return place


def _value(text: str) -> Any:
    # YAML 1.1 reads 1e-3 as a string; JSON reads it as the number that is meant. And 5:15 as minutes, which are 315.
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text.strip() if _SIXTIES.fullmatch(text.strip()) else yaml_io.parse(text, short(text))


def diff_recipes(old: Recipe, new: Recipe, *, leave_open: Collection[str] = ()) -> list[str]:
    """What differs between two recipes, a line each: ``epochs: 10 there, 20 here``.

    Args:
        old: the one there.
        new: the one here.
        leave_open: fields that differ in nothing where the new one leaves them open (None or "auto").
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
