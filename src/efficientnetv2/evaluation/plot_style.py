"""Style of all plots: colors, line breaks in names, and file formats."""

from __future__ import annotations

import io
import re
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, product
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from PIL import Image

WIDTH_IN = 5.8  # narrow, so that its letters stay legible on a phone
INK = "#333333"
GRID = "#dddddd"
# Source: Okabe and Ito, for color blindness; not quite black, since matplotlib omits #000000.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#010101")
_STROKES = ("-", "--", ":", "-.")
# Their replacements on a dark page.
ON_DARK = {
    INK: "#d0d0d0", GRID: "#444444", "#0072b2": "#56b4e9", "#d55e00": "#e69f00", "#010101": "#ffffff",
}  # fmt: skip
_DOTS_PER_INCH = 144
_FONTS: tuple[Literal["font.family", "font.sans-serif", "font.serif"], ...] = (
    "font.family", "font.sans-serif", "font.serif"
)  # fmt: skip
# Where a name may break.
_PIECES = re.compile(r"(?<=[\s_/.-])(?![\s_/.-])")
# Width of a Chinese, Japanese or Korean letter, in ordinary letters. Ours, from looking at pages.
_WIDE = 1.7


@contextmanager
def default_style() -> Iterator[None]:
    """Draw as matplotlib does by default, whatever style a notebook has set. Also a decorator.

    Fonts stay: they may be those that have the letters of the class names.
    """
    fonts = {name: matplotlib.rcParams[name] for name in _FONTS}  # not all items: that chooses a backend
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        for name, value in fonts.items():
            matplotlib.rcParams[name] = value
        yield


def line_styles() -> Iterator[tuple[str, str]]:
    """Color and style of one line after another; the first twenty differ."""
    return cycle((color, stroke) for stroke, color in product(_STROKES, COLORS))


def label_text(name: str, *, letters: float = 30, lines: int = 2) -> str:
    """A name (run, class, column) for a plot, in up to ``lines`` lines of ``letters`` ordinary letters.

    Escapes what matplotlib reads as a formula (dollars) or as hidden from the legend (a leading underscore).
    """
    text = "\n".join(wrap_name(name, letters, lines)).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def single_plot(height_in: float) -> tuple[Figure, Axes]:
    """A figure of the page's width with one panel."""
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    return figure, figure.subplots()


def draw_band(
    ax: Axes,
    x: Sequence[float] | npt.NDArray[np.floating[Any]],
    fractions: Sequence[tuple[float, float, float]],
    **line: Any,
) -> None:
    """A line in percent with its 95 % intervals: value, low and high of each point as fractions."""
    values, low, high = (100 * np.array(each) for each in zip(*fractions, strict=True))
    ax.fill_between(x, low, high, color=COLORS[0], alpha=0.2, linewidth=0)
    ax.plot(x, values, color=COLORS[0], **line)


def mark_vertical(ax: Axes, x: float, text: str, *, top: bool = False) -> None:
    """A dotted vertical line with a text at its foot or its top."""
    ax.axvline(x, color=INK, linewidth=0.6, linestyle=":")
    ax.annotate(
        text, (x, float(top)), xycoords=("data", "axes fraction"), xytext=(3, -9 if top else 3),
        textcoords="offset points", fontsize=8, color=INK,
    )  # fmt: skip


def style_axes(ax: Axes, title: str) -> None:
    """Style drawn axes: no frame, a grid, and a title on top, since there is no room at the side."""
    ax.set_title(title, loc="left", fontsize=9, color=INK, pad=3)
    ax.tick_params(colors=INK, labelsize=9)
    ax.grid(color=GRID, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[:].set_visible(False)


def svg(figure: Figure) -> bytes:
    """An SVG for our pages: transparent, with colors that follow the page's light or dark scheme."""
    file = io.BytesIO()
    figure.set_facecolor("none")
    for panel in figure.axes:
        panel.set_facecolor("none")
    with _missing_glyphs_ignored():
        if (engine := figure.get_layout_engine()) is not None:
            engine.execute(figure)
            figure.set_layout_engine("none")
        # Figure.savefig would draw everything twice.
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})  # type: ignore[no-untyped-call]
    rules = [
        f'[style*="{what}: {light}"] {{ {what}: {dark} !important }}'
        for light, dark in ON_DARK.items()
        for what in ("stroke", "fill")
    ]
    dark_style = "\n@media (prefers-color-scheme: dark) {\n" + "\n".join(rules) + "\n}\n"
    return file.getvalue().replace(b"</style>", dark_style.encode() + b"</style>", 1)


def png(figure: Figure, *, title: str | None = None) -> bytes:
    """A PNG on white, with a title in its metadata."""
    file = io.BytesIO()
    with _missing_glyphs_ignored():
        figure.savefig(file, format="png", dpi=_DOTS_PER_INCH, facecolor="white", metadata={"Title": title})
    return file.getvalue()


def is_titled(file: Path, title: str | None) -> bool:
    """Whether ``png`` made a file with this title."""
    try:
        with Image.open(file, formats=["PNG"]) as image:
            return bool(image.info.get("Title") == title)
    except OSError:  # also Pillow's error for a file that is not an image
        return False


@contextmanager
def _missing_glyphs_ignored() -> Iterator[None]:
    """Letters that no installed font has become boxes, without a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


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
