"""Changing a recipe from the command line, and telling two recipes apart."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Collection, Sequence
from typing import Any

from efficientnetv2.base import yaml_text
from efficientnetv2.base.errors import InputError, cut, did_you_mean, short
from efficientnetv2.training.checked import checked, fields_at, values_of
from efficientnetv2.training.fields import field_meant
from efficientnetv2.training.recipe import Recipe

_SHOWN = 200  # of a long value in a message. Ours
_RAMP = "{start, end, continuous}"  # among what a field takes
# One number, and no part of one: nothing is given back for the sake of a second.
_NUMBER = r"(\d++(?:\.\d++)?+|(?<!\.)\.\d++)"
_TWO_NUMBERS = re.compile(rf"[^\d.]*+{_NUMBER}(?:\.\.|[^\d.])+?{_NUMBER}[^\d.]*+")
_DECIMAL_COMMA = re.compile(r"0,\d+|\d+,0\d*")  # 0,3 or 1,024: one number in another way of writing
_SIXTIES = re.compile(r"\d+(?::[\d.]+)+")


def with_settings(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """A recipe with fields changed by ``a.b=c``; see ``set_fields``.

    Raises:
        InputError: an unknown field (with the nearest name), a wrong value.
    """
    where = " ".join(f"--set {cut(setting, _SHOWN)}" for setting in settings)
    return checked(set_fields(recipe.to_json(), settings), where=where or recipe.name)


def set_fields(plain: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
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
        known = fields_at(parents)
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
    meant = field_meant(name.strip())
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
    if two is None or named or isinstance(value, int | float) or _RAMP not in (values_of(name) or ""):
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
        known = fields_at(parents[:depth])
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
        return text.strip() if _SIXTIES.fullmatch(text.strip()) else yaml_text.parse(text, short(text))


def differences(old: Recipe, new: Recipe, *, leave_open: Collection[str] = ()) -> list[str]:
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
