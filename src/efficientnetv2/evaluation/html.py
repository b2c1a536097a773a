"""Rendering of HTML pages and JSON files. A page is one file without scripts; all text is escaped."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from efficientnetv2.evaluation.plot_style import svg
from efficientnetv2.utils.errors import format_duration, pluralize, shorten
from efficientnetv2.utils.logs import spelling

# In the head of every page, to recognize it.
_GENERATOR = "effnetv2"
# Where a name may break, but not within a date; and options of a command, which do not break.
_JOINTS = re.compile(r"(?<=\w[_/\\;-])(?!(?<=\d-)\d)(?![_/\\.,;:=-]|$)|(?<=\w[.,:])(?![_/\\.,;:=\d\s-]|$)")
_OPTION = re.compile(r"(?<![\w-])(--[a-z][a-z-]*)")
# A percent sign behind a number.
_PERCENTAGE = re.compile(r"(?<=\d) ?%(?!\w)")


def render(template: str, **values: Any) -> str:
    """Render a template of ``evaluation/templates``; a missing value is an error."""
    return encodable(_environment().get_template(template).render(**values))


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("efficientnetv2.evaluation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent, "interval": format_interval, "duration": format_duration, "number": number,
        "drawing": figure_uri, "breakable": breakable, "sentence": sentence, "command": command,
        "round_percent": round_percent, "threshold": threshold_text, "anchors": anchors, "headings": headings,
        "pluralize": pluralize, "shorten": shorten,
    }  # fmt: skip
    environment.globals["generator"] = _GENERATOR
    return environment


def is_page(file: Path) -> bool:
    """Whether ``render`` made a file."""
    with file.open("rb") as opened:
        head = opened.read().partition(b"</head>")[0]
    return f'<meta name="generator" content="{_GENERATOR}">'.encode() in head


def figure_uri(figure: Figure) -> str:
    """A figure as an SVG data URI."""
    return data_uri(svg(figure), "image/svg+xml")


def data_uri(contents: bytes, kind: str) -> str:
    """A file as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(contents).decode()}"


def percent(share: float | None) -> str:
    """``93.2 %`` with a no-break space; a dash for None."""
    return "–" if share is None else f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def format_interval(interval: tuple[float, float]) -> str:
    """``91.5 to 94.9 %``."""
    return f"{100 * interval[0]:.1f} to {percent(interval[1])}"


def round_percent(share: float) -> str:
    """``93 %``, for a cell of a table or a requested threshold."""
    return f"{100 * share:.0f}\N{NO-BREAK SPACE}%"


def threshold_text(least: float) -> str:
    """``0.975``: rounded up to three digits, or as many as keep it below 1, which hardly any prediction reaches."""
    rounded = (math.ceil(least * 10**digits - 1e-9) / 10**digits for digits in range(3, 10))
    return f"{next((up for up in rounded if up < 1), least):.9g}"


def number(value: float) -> str:
    """A short number: 300, 0.2, 1,234.5."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}"


def anchors(html: str) -> list[str]:
    """The ids of sections of a page."""
    return re.findall(r'<(?:h2|details) id="([^"]+)">', html)


def headings(html: str) -> list[tuple[str, Markup]]:
    """Id and title of each section, for the contents."""
    return [(name, Markup(title)) for name, title in re.findall(r'<h2 id="([^"]+)">(.*?)</h2>', html)]


def breakable(name: str) -> Markup:
    """An escaped name or path that may break behind its separators; copied text stays the same."""
    return Markup("<wbr>").join(escape(piece) for piece in _JOINTS.split(name))


def sentence(text: str) -> Markup:
    """An escaped sentence with code in backticks; options (``--weights``) and percentages do not break, names may.

    In a command, parameters in backticks become its options.
    """
    shown = re.sub("`[^`\n]+`", lambda quoted: f"`{spelling.get()(quoted[0]).strip('`')}`", text)
    parts = [command(part) for part in _PERCENTAGE.sub("\N{NO-BREAK SPACE}%", shown).split("`")]
    if len(parts) % 2 == 0:  # a backtick of a name
        return Markup("`").join(parts)
    return Markup().join(
        Markup("<code>{}</code>").format(part) if place % 2 else part for place, part in enumerate(parts)
    )


def command(text: str) -> Markup:
    """An escaped command; options do not break, names may. Copied text stays the same."""
    parts = _OPTION.split(text)
    return Markup().join(
        Markup('<span class="option">{}</span>').format(part) if place % 2 else breakable(part)
        for place, part in enumerate(parts)
    )


def json_values(value: Any) -> Any:
    """Plain JSON values; NaN and infinity become None, any other object its text."""
    if isinstance(value, Mapping):
        return {str(key): json_values(each) for key, each in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return json_values(value.tolist())
    if isinstance(value, list | tuple):
        return [json_values(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def json_text(value: Any) -> str:
    """A readable JSON file: a line for each entry and for each row of a table."""
    return encodable(_json(value) + "\n")


def _json(value: Any, depth: int = 0) -> str:
    rows = isinstance(value, list) and bool(value) and all(isinstance(each, list | dict) for each in value)
    if depth < 3 and isinstance(value, dict) and value:
        lines = [f"{json.dumps(key, ensure_ascii=False)}: {_json(each, depth + 1)}" for key, each in value.items()]
        brackets = "{}"
    elif depth < 3 and rows:
        lines = [json.dumps(each, ensure_ascii=False) for each in value]
        brackets = "[]"
    else:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    indent = "\n" + "  " * (depth + 1)
    return brackets[0] + indent + f",{indent}".join(lines) + "\n" + "  " * depth + brackets[1]


def encodable(text: str) -> str:
    r"""Escape bytes of file names that are not UTF-8 (lone surrogates) as ``\udc80``, which JSON reads back."""
    return text.encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True)
class TemplateSection:
    """A section with a template of its own, which reads ``part.NAME``, and the keys that it adds to ``report.json``."""

    template: str
    values: Mapping[str, Any]
    data: Mapping[str, Any] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.values[name]
        except KeyError:
            raise AttributeError(name) from None
