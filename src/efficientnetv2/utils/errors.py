"""Errors that the user can fix, and helpers for their messages."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# pydantic's error types, and what the value must be.
_EXPECTED = {
    **dict.fromkeys(("int_parsing", "int_parsing_size", "int_type", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_parsing", "float_type"), "a number"),
    **dict.fromkeys(("bool_parsing", "bool_type"), "true or false"),
    **dict.fromkeys(("list_type", "tuple_type"), "a list"),
    "finite_number": "a finite number",
    "string_type": "a word",
}
_BOUNDS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
}
# Characters that a terminal obeys: control characters and those that change the direction of text. File names and
# labels may contain them. Source: Unicode 15, general category Cc and property Bidi_Control.
_CONTROLS = [
    *range(32), *range(127, 160), 0x200E, 0x200F, 0x61C, *range(0x202A, 0x202F), *range(0x2066, 0x206A)
]  # fmt: skip
_ESCAPES = {code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" for code in _CONTROLS}
_ESCAPES_IN_LINES = {code: sign for code, sign in _ESCAPES.items() if chr(code) not in "\n\t"}


class InputError(ValueError):
    """Wrong use or wrong input. The command line prints its message alone and exits with 2.

    The message has the problem, its place (file and row, or option), and one fix.

    Example::

        import efficientnetv2 as ev2

        try:
            ev2.train("no_such_folder/")
        except ev2.InputError as error:
            print(error)
    """


class DivergedError(InputError):
    """Training has diverged: the loss or the logits are NaN or infinite."""


class MemoryShortError(InputError):
    """There is less memory than a run needs at least."""


class ReaderKilledError(InputError):
    """A process that reads images was killed, most likely out of memory."""


class OtherProcessError(Exception):
    """Another process of the same run has failed and reports it; this one ends silently."""


def non_finite_error(num_broken: int, num_images: int, first: int) -> DivergedError:
    """The error for a model whose logits are not finite. ``first`` is the place of the first such image, from 0."""
    return DivergedError(
        f"the model's outputs are NaN or infinite for {num_broken} of {num_images} images (first: number {first}), so "
        "its weights are unusable. Train again with a lower learning rate, or use another weights file."
    )


def did_you_mean(word: str, known: Iterable[str], folder: str = "") -> str:
    """The end of a sentence about an unknown word: ``; did you mean 'x'?``, or a full stop.

    ``folder`` is where files of the known names are; it is shown too.
    """
    names = {str(name).casefold(): name for name in known}
    near = difflib.get_close_matches(word.casefold(), list(names), n=1, cutoff=0.6)
    return f"; did you mean '{os.path.join(folder, names[near[0]])}'?" if near else "."


def format_rule(problem: Mapping[str, Any]) -> str:
    """What a value must be, from one of pydantic's ``ValidationError.errors()``: ``must be a whole number``."""
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "literal_error":
        return f"must be {context['expected']}"
    if kind in _BOUNDS:
        word, name = _BOUNDS[kind]
        bound = float(context[name])
        return f"must be {word} {f'{bound:,.0f}' if bound.is_integer() else f'{bound:g}'}"
    if kind in _EXPECTED:
        return f"must be {_EXPECTED[kind]}"
    return str(problem["msg"]).removeprefix("Value error, ")


def short_repr(value: object, most: int = 60) -> str:
    """The ``repr`` of a value, truncated: ``'9999…'`` for a text of a thousand digits."""
    if isinstance(value, int) and value.bit_length() > 4 * most:  # Python refuses to write 4,300 digits.
        return f"{'-' * (value < 0)}10^{int(value.bit_length() * math.log10(2))}"
    return repr(truncate(value, most)) if isinstance(value, str) else truncate(repr(value), most)


def truncate(text: str, most: int = 60) -> str:
    """The beginning of a long text, with an ellipsis."""
    return text if len(text) <= most else f"{text[:most]}…"


def first_error(problems: Sequence[Mapping[str, Any]]) -> str:
    """The first of pydantic's ``ValidationError.errors()``: ``stages.0.stride: must be a whole number``."""
    where = ".".join(str(part) for part in problems[0]["loc"])
    return f"{where}: {format_rule(problems[0])}" if where else format_rule(problems[0])


def error_summary(error: BaseException) -> str:
    """An error in one line; pydantic's ``ValidationError`` with its first field."""
    problems = getattr(error, "errors", None)
    if callable(problems):
        return first_error(problems())
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def pluralize(number: float, noun: str) -> str:
    """A number of things: ``1 epoch``, ``2 epochs``, ``1,000 steps``, ``0.5 epochs``, ``3 classes``."""
    shown = f"{number:g}" if isinstance(number, float) else f"{number:,}"  # numpy's integers are no int
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{shown} {noun}{ending}"


def escape_controls(text: str, *, lines: bool = False) -> str:
    """Text with its control characters escaped, for a terminal; ``lines`` keeps line ends and tabs."""
    return text.translate(_ESCAPES_IN_LINES if lines else _ESCAPES)


def shorten(names: Iterable[object], most: int = 5) -> str:
    """The first names, escaped and quoted, and the number of others: ``'a', 'b' and 3 more``."""
    names = list(names)
    shown = ", ".join(f"'{escape_controls(str(name))}'" for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def format_duration(seconds: float) -> str:
    """A duration: ``42 s``, ``3 min 20 s``, ``2 h 05 min``."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def format_bytes(count: int) -> str:
    """``1.2 GiB``, ``340 MiB``."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{max(1, round(count / 2**20))} MiB"
