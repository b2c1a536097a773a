"""Images as a page or a contact sheet shows them; the contrast of very dark or bright ones is stretched."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from PIL import Image, ImageOps

from efficientnetv2.evaluation.html import THUMBNAIL_PX, thumbnail
from efficientnetv2.evaluation.plot_style import label_text

# Mean brightness, of 255, outside which little is visible on a screen. Ours.
DARK, BRIGHT = 40.0, 215.0
CONTRAST_NOTE = "Each image is shown with its contrast stretched."

ImageLike = Image.Image | npt.NDArray[np.uint8]


def is_low_contrast(images: Iterable[ImageLike | None]) -> bool:
    """Whether the median image is nearly black or nearly white; False for none."""
    known = [float(np.asarray(_tiny(each)).mean()) for each in images if each is not None]
    return bool(known) and not DARK <= float(np.median(known)) <= BRIGHT


def encode_thumbnail(
    picture: ImageLike | None, *, dim: bool, px: int = THUMBNAIL_PX, quality: int = 80
) -> str | None:
    """A small copy of an image, of longer side up to ``px``, as a data URI; ``dim`` stretches its contrast."""
    return thumbnail(_stretched(picture, 2 * px) if dim and picture is not None else picture, px, quality)


def shrink(picture: Image.Image) -> Image.Image:
    """Shrink an image in place to what ``encode_thumbnail`` needs: dozens of whole images would be gigabytes."""
    picture.thumbnail((2 * THUMBNAIL_PX, 2 * THUMBNAIL_PX))
    return picture


def stretch_contrast(
    images: Sequence[npt.NDArray[np.uint8]], by: npt.NDArray[np.uint8]
) -> list[npt.NDArray[np.uint8]]:
    """(H, W, 3) images with the contrast that ``by`` needs, so that their brightness stays comparable.

    The gray levels from the 1st to the 99th percentile of ``by`` are stretched. An image with a median above them, such
    as a negative, stays as it is.
    """
    low, high = np.percentile(_gray(by), (1, 99))
    levels = (np.arange(256) - low) * 255 / max(high - low, 1.0)
    table = levels.round().clip(0, 255).astype(np.uint8)
    return [table[each] if np.median(_gray(each)) <= high else each for each in images]


def _gray(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.fromarray(picture).convert("L"))


def _stretched(picture: ImageLike, px: int) -> Image.Image:
    """A small copy with stretched contrast and unchanged hues."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image = image.convert("RGB")
    image.thumbnail((px, px))
    return ImageOps.autocontrast(image, cutoff=1, preserve_tone=True)


def _tiny(picture: ImageLike) -> Image.Image:
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    return image.convert("L").resize((16, 16), Image.Resampling.BOX)


# Contact sheet: side of an image in inches, font size, letters of a caption line and number of lines. Ours.
_SIDE_IN = 1.45
_LETTERS = 7
_CAPTION = (24, 3)
# Fonts of Linux, Windows and macOS with letters that matplotlib's font lacks.
_FURTHER_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans Thai", "Noto Sans Devanagari", "Noto Sans Arabic",
    "WenQuanYi Zen Hei", "Microsoft YaHei", "Leelawadee UI", "Nirmala UI", "PingFang SC", "Thonburi",
    "Devanagari Sangam MN", "Arial Unicode MS",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class ImageRow:
    """A row of a contact sheet: a title, (S, S, 3) images, and a caption for each."""

    words: str
    images: Sequence[npt.NDArray[np.uint8]]
    captions: Sequence[str]


def draw_rows(rows: Sequence[ImageRow]) -> Figure:
    """A contact sheet of rows with equally many images, pixels unsmoothed."""
    columns = len(rows[0].images)
    width = max(columns * (_SIDE_IN + 0.08), 3.5)
    figure = Figure(figsize=(width, len(rows) * (_SIDE_IN + 0.5)), layout="constrained")
    fonts = _fonts()
    parts = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
    for row, part in zip(rows, parts, strict=True):
        part.suptitle(row.words, x=0.01, ha="left", fontsize=_LETTERS + 2)
        for place, ax in enumerate(part.subplots(1, columns, squeeze=False)[0]):
            # Unsmoothed: the coarseness of an image is to be visible.
            ax.imshow(row.images[place], interpolation="nearest")
            ax.set_xlabel(_caption(row.captions[place]), fontsize=_LETTERS, fontfamily=fonts)
            ax.set_xticks([])
            ax.set_yticks([])
            for spine in ax.spines.values():
                spine.set_visible(False)
    return figure


def _caption(text: str) -> str:
    """Operations below each other; a long name in lines as wide as its image."""
    letters, most = _CAPTION
    first, *others = text.split(" + ")
    return "\n".join(
        label_text(each, letters=letters, lines=most) for each in (first, *(f"+ {each}" for each in others))
    )


def _fonts() -> list[str]:
    """Matplotlib's font, then installed fonts with further letters."""
    installed = {font.name for font in fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in _FURTHER_FONTS if name in installed)]
