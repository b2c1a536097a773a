"""Errors that a user can mend: each names the value, the rule and the fix."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# Kinds of wrong values, as pydantic calls them, and what is right.
_KINDS = {
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


# What a terminal obeys instead of showing: control characters, and those that turn the direction of text. A file's name
# or a label may hold any. Source: Unicode 15, general category Cc and property Bidi_Control.
_CONTROLS = [
    *range(32),
    *range(127, 160),
    0x200E,
    0x200F,
    0x61C,
    *range(0x202A, 0x202F),
    *range(0x2066, 0x206A),
]
_ESCAPES = {code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" for code in _CONTROLS}
_ESCAPES_IN_LINES = {code: sign for code, sign in _ESCAPES.items() if chr(code) not in "\n\t"}


class InputError(ValueError):
    """Wrong use or wrong input. The command line prints its message alone and exits with 2.

    The message says what was found (with file and row), which rule it breaks, and what to do.
    """


class DivergedError(InputError):
    """Training has diverged: the loss or the answers are no numbers."""


class MemoryShortError(InputError):
    """There is less memory than a run needs at least."""


class ReaderKilledError(InputError):
    """A process that reads pictures was killed, most likely for want of memory."""


class OtherProcessError(Exception):
    """Another process of the same run has failed and says why; this one ends without a word."""


def non_finite_error(broken: int, of: int, first: int) -> DivergedError:
    """The error for a network whose numbers come to nothing: NaN or infinity.

    Args:
        broken: how many pictures have no answer.
        of: of how many that were looked at.
        first: place of the first one, from 0.
    """
    return DivergedError(
        f"the network answers {broken} of {of} pictures (first, number {first}) with NaN or infinity, so its weights "
        "are of no use. If they were trained here, the training diverged: train again with a lower learning rate. If "
        "they were given, the file is damaged or was not made for this network: fetch it again, or take another."
    )


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown word: ``; did you mean 'x'?``, or a full stop."""
    names = {str(name).casefold(): name for name in known}
    near = difflib.get_close_matches(word.casefold(), list(names), n=1, cutoff=0.6)
    return f"; did you mean '{names[near[0]]}'?" if near else "."


def format_rule(problem: Mapping[str, Any]) -> str:
    """What a value has to be: ``has to be a whole number``; a rule of our own as it was said.

    Args:
        problem: one of pydantic's ``ValidationError.errors()``.
    """
    kind, facts = problem["type"], problem.get("ctx", {})
    if kind == "literal_error":
        return f"has to be {facts['expected']}"
    if kind in _BOUNDS:
        word, name = _BOUNDS[kind]
        bound = float(facts[name])
        return f"has to be {word} {f'{bound:,.0f}' if bound.is_integer() else f'{bound:g}'}"
    if kind in _KINDS:
        return f"has to be {_KINDS[kind]}"
    return str(problem["msg"]).removeprefix("Value error, ")


def short_repr(value: object, most: int = 60) -> str:
    """A value as Python writes it, cut where it is long: ``'9999…'`` of a text of a thousand digits."""
    if isinstance(value, str):
        return repr(truncate(value, most))
    return _digits(value, most) if isinstance(value, int) else truncate(repr(value), most)


def truncate(text: str, most: int = 60) -> str:
    """The beginning of a long text, with a sign that it goes on."""
    return text if len(text) <= most else f"{text[:most]}…"


def _digits(number: int, most: int) -> str:
    """The decimal digits of a number, of a very long one a power of ten: Python refuses to write more than 4,300."""
    bits = number.bit_length()
    return str(number) if bits <= 4 * most else f"{'-' * (number < 0)}10^{int(bits * math.log10(2))}"


def first_error(problems: Sequence[Mapping[str, Any]]) -> str:
    """The first of them with its place, in a line: ``stages.0.stride: has to be a whole number``.

    Args:
        problems: pydantic's ``ValidationError.errors()``.
    """
    where = ".".join(str(part) for part in problems[0]["loc"])
    return f"{where}: {format_rule(problems[0])}" if where else format_rule(problems[0])


def error_summary(error: Exception) -> str:
    """The first complaint of an error in one line; of pydantic's ``ValidationError`` with its field."""
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
    """Text for a terminal, its control characters spelled out, as the one that begins a command is.

    Args:
        text: of any origin.
        lines: keep line ends and tabs, as text of several lines has them.
    """
    return text.translate(_ESCAPES_IN_LINES if lines else _ESCAPES)


def shorten(names: Iterable[object], most: int = 5) -> str:
    """The first few names, escaped and quoted, and how many more there are: ``'a', 'b' and 3 more``."""
    names = list(names)
    shown = ", ".join(f"'{escape_controls(str(name))}'" for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def format_duration(seconds: float) -> str:
    """Seconds as people say them: ``42 s``, ``3 min 20 s``, ``2 h 05 min``."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
