"""A sheet of pictures to label next, the first first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from efficientnetv2.evaluation import seeing
from efficientnetv2.evaluation.page import rendered


@dataclass(frozen=True, eq=False)
class Ranked:
    """A picture on the sheet.

    Args:
        path: as in the manifest.
        label: what it is taken for.
        probability: of that.
        second: what it is taken for next.
        picture: of any size; None shows none.
    """

    path: str
    label: str
    probability: float
    second: str
    picture: Image.Image | None = None


def sheet(shown: Sequence[Ranked], *, pictures: int, diverse: int, command: str) -> str:
    """The page.

    Args:
        shown: the first pictures of the ranking.
        pictures: that were ranked.
        diverse: how many of the first were chosen for being unlike each other too.
        command: that gives it again.
    """
    dim = seeing.hard_to_see(one.picture for one in shown)
    return rendered(
        "to_label.html.j2",
        shown=[(one, seeing.shown(one.picture, dim=dim)) for one in shown],
        stretched=seeing.NOTE if dim else None,
        pictures=pictures,
        diverse=diverse,
        command=command,
    )
