"""From the words of a ``convert`` command line to what they say of a network."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efficientnetv2.base.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from efficientnetv2.models.interop.statement import Told

_CHOICES = {
    "framing": ("whole", "crop", "pad"),
    "interpolation": ("bilinear", "bicubic"),
    "views": ("one", "symmetries"),
}


def told(class_names: str | None, **fields: Any) -> Told:
    """What the user said; None where nothing was said.

    Args:
        class_names: see ``names``.
        fields: of ``Preprocessing``; mean and std as text, "0.5,0.5,0.5".

    Raises:
        InputError: a word that means nothing.
    """
    from efficientnetv2.models.interop.statement import Told

    said = {name: value for name, value in fields.items() if value is not None}
    for name, choices in _CHOICES.items():
        if name in said and said[name] not in choices:
            raise InputError(
                f"--{name} is '{said[name]}', but is one of {', '.join(choices)}{did_you_mean(said[name], choices)}"
            )
    for name in {"mean", "std"} & said.keys():
        said[name] = _numbers(name, said[name])
    if not 0 < said.get("crop_fraction", 1) <= 1:
        raise InputError(
            f"--crop-fraction is {said['crop_fraction']:g}, but is a share of the shorter side: above 0, at most 1. "
            "Divide a percentage by 100."
        )
    return Told(said, None if class_names is None else names(class_names))


def names(word: str) -> tuple[str, ...]:
    """Class names in the order of the outputs.

    Args:
        word: names with commas between them; or a file: of text with a name on each line, or of JSON with a list of
            names, or an object from number to name or from name to number.

    Raises:
        InputError: no such file, or one that holds something else.
    """
    path = Path(word)
    if not os.path.isfile(word):  # unlike Path's own, it takes names that are longer than any file's
        if "," not in word and path.suffix in (".txt", ".json"):
            raise InputError(
                f"--class-names {word}: there is no such file. Give one with a name on each line, or the names with "
                "commas between."
            )
        return tuple(name.strip() for name in word.split(",") if name.strip())
    try:
        text = path.read_text(encoding="utf-8-sig")
        listed = _of_json(path, json.loads(text)) if text.lstrip()[:1] in ("[", "{") else text.splitlines()
    except ValueError as error:  # no JSON, or no UTF-8
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"--class-names {path}: it is neither JSON nor text in UTF-8 ({str(error).splitlines()[0]}). Give a name "
            "on each line, or a JSON list of names."
        ) from error
    return tuple(name.strip() for name in listed if name.strip())


def _of_json(path: Path, plain: Any) -> list[str]:
    """Names of a list, or of an object that numbers them either way."""
    if isinstance(plain, dict):
        numbered = {key: value for key, value in plain.items() if isinstance(value, str) and key.isdecimal()}
        turned = {str(value): key for key, value in plain.items() if type(value) is int}
        rows = next((way for way in (numbered, turned) if len(way) == len(plain)), None)
        if rows is not None and sorted(map(int, rows)) == list(range(len(rows))):
            return [rows[key] for key in sorted(rows, key=int)]
        raise InputError(
            f"--class-names {path}: its JSON object does not number the names from 0, each once. Give "
            '{"0": "oak", "1": "elm"}, {"oak": 0, "elm": 1} or ["oak", "elm"].'
        )
    if not isinstance(plain, list) or not all(isinstance(name, str) for name in plain):
        raise InputError(f'--class-names {path}: its JSON is no list of names. Give ["oak", "elm"].')
    return plain


def _numbers(name: str, word: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in word.split(","))
    except ValueError as error:
        raise InputError(
            f"--{name} is '{word}', but is a number for each channel with commas between, as 0.485,0.456,0.406."
        ) from error
    least = "above 0, " if name == "std" else ""
    if not all(abs(number) <= 1 and (name == "mean" or number > 0) for number in numbers):
        raise InputError(
            f"--{name} is '{word}', but is of values in [0, 1], and so {least}at most 1. Divide one that is of values "
            "from 0 to 255 by 255."
        )
    return numbers
