"""How every drawing of a run looks: its colours, its letters, and what it is written as."""

from __future__ import annotations

import io

from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH_IN = 5.8  # narrow, so that its letters stay legible on a phone
INK = {False: "#333333", True: "#d0d0d0"}
GRID = {False: "#dddddd", True: "#444444"}
# Okabe and Ito's colours, told apart by all eyes, on light and on dark.
COLOURS = {
    False: ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000"),
    True: ("#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#ffffff"),
}
_DOTS_PER_INCH = 144  # of a picture for a page that is not ours


def plain(ax: Axes, words: str, *, dark: bool) -> None:
    """A panel without a frame, its name above it: beside it there is no room.

    Args:
        ax: drawn already.
        words: its name.
        dark: light letters, for a dark page.
    """
    ax.set_title(words, loc="left", fontsize=9, color=INK[dark], pad=3)
    ax.tick_params(colors=INK[dark], labelsize=9)
    ax.grid(color=GRID[dark], linewidth=0.6)
    ax.set_axisbelow(True)
    for spine in ax.spines.values():
        spine.set_visible(False)


def svg(figure: Figure) -> bytes:
    """For the report; its background is the page's."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return file.getvalue()


def png(figure: Figure) -> bytes:
    """For everywhere else, on white."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DOTS_PER_INCH, facecolor="white")
    return file.getvalue()
