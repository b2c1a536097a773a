"""Line breaks in class names, paths and commands, for pages and plots."""

from __future__ import annotations

import re
import unicodedata

from markupsafe import Markup, escape

# Where a name may break; and options of a command, which do not break.
_JOINTS = re.compile(r"(?<=\w[_/\\;-])(?![_/\\.,;:=-]|$)|(?<=\w[.,:])(?![_/\\.,;:=\d\s-]|$)")
_OPTION = re.compile(r"(?<![\w-])(--[a-z][a-z-]*)")
# A percent sign behind a number.
_PERCENTAGE = re.compile(r"(?<=\d) ?%(?!\w)")
_PIECES = re.compile(r"(?<=[\s_/.-])(?![\s_/.-])")
# Width of a Chinese, Japanese or Korean letter, in ordinary letters. Ours, from looking at pages.
_WIDE = 1.7


def breakable(name: str) -> Markup:
    """An escaped name or path that may break behind its separators; copied text stays the same."""
    return Markup("<wbr>").join(escape(piece) for piece in _JOINTS.split(name))


def sentence(text: str) -> Markup:
    """An escaped sentence; options (``--weights``) and percentages do not break, names may."""
    return command(_PERCENTAGE.sub("\N{NO-BREAK SPACE}%", text))


def command(text: str) -> Markup:
    """An escaped command; options do not break, names may. Copied text stays the same."""
    parts = _OPTION.split(text)
    return Markup().join(
        Markup('<span class="option">{}</span>').format(part) if place % 2 else breakable(part)
        for place, part in enumerate(parts)
    )


def text_width(text: str) -> float:
    """Approximate width of a text in ordinary letters."""
    letters = [letter for letter in text if unicodedata.category(letter) not in ("Mn", "Me", "Cf")]
    return sum(_WIDE if unicodedata.east_asian_width(letter) in "WF" else 1.0 for letter in letters)


def wrap_name(name: str, letters: float, most: int) -> tuple[str, ...]:
    """A name in at most ``most`` lines of ``letters`` ordinary letters; a longer name ends with an ellipsis."""
    lines = [""]
    for piece in _PIECES.split(name):
        if text_width(lines[-1] + piece.rstrip()) > letters:
            lines.append("")
        for letter in piece:  # a piece wider than a line breaks anywhere
            if text_width(lines[-1] + letter.rstrip()) > letters:
                lines.append("")
            lines[-1] += letter
    lines = [line for line in lines if line] or [""]
    if len(lines) > most:
        last = "".join(lines[most - 1 :])
        while text_width(last) > letters - 1:
            last = last[:-1]
        lines = [*lines[: most - 1], last.rstrip() + "…"]
    return tuple(line.strip() for line in lines)
