"""Images as a page or a contact sheet shows them; the contrast of very dark or bright ones is stretched."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from PIL import Image, ImageOps

from efficientnetv2.evaluation.html import data_uri
from efficientnetv2.evaluation.plot_style import label_text

# Longer side in pixels. Ours.
_THUMBNAIL_PX = 160
# Mean brightness, of 255, outside which little is visible on a screen. Ours.
DARK, BRIGHT = 40.0, 215.0
CONTRAST_NOTE = "Each image is shown with its contrast stretched."
# Contact sheet: side of an image in inches, font size, letters of a caption line and number of lines. Ours.
_SIDE_IN, _FONT_SIZE = 1.45, 7
_CAPTION_LETTERS, _CAPTION_LINES = 24, 3
# Fonts of Linux, Windows and macOS with letters that matplotlib's font lacks.
_FURTHER_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans Thai", "Noto Sans Devanagari", "Noto Sans Arabic",
    "WenQuanYi Zen Hei", "Microsoft YaHei", "Leelawadee UI", "Nirmala UI", "PingFang SC", "Thonburi",
    "Devanagari Sangam MN", "Arial Unicode MS",
)  # fmt: skip

ImageLike = Image.Image | npt.NDArray[np.uint8]


def is_low_contrast(images: Iterable[ImageLike | None]) -> bool:
    """Whether the median image is nearly black or nearly white; False for none."""
    brightness = []
    for image in images:
        if image is not None:
            tiny = _pillow(image).convert("L").resize((16, 16), Image.Resampling.BOX)
            brightness.append(float(np.asarray(tiny).mean()))
    return bool(brightness) and not DARK <= float(np.median(brightness)) <= BRIGHT


def encode_thumbnail(
    image: ImageLike | None, *, stretched: bool = False, px: int = _THUMBNAIL_PX, quality: int = 80
) -> str | None:
    """A copy with a longer side of up to ``px``, as a JPEG data URI; ``stretched`` in contrast. None for None."""
    if image is None:
        return None
    copy = _pillow(image).convert("RGB")
    if stretched:
        copy.thumbnail((2 * px, 2 * px))
        copy = ImageOps.autocontrast(copy, cutoff=1, preserve_tone=True)
    copy.thumbnail((px, px))
    jpeg = io.BytesIO()
    copy.save(jpeg, format="JPEG", quality=quality)
    return data_uri(jpeg.getvalue(), "image/jpeg")


def shrink(image: Image.Image) -> Image.Image:
    """Shrink an image in place to what ``encode_thumbnail`` needs: dozens of whole images would be gigabytes."""
    image.thumbnail((2 * _THUMBNAIL_PX, 2 * _THUMBNAIL_PX))
    return image


def _pillow(image: ImageLike) -> Image.Image:
    return image if isinstance(image, Image.Image) else Image.fromarray(image)


def stretch_contrast(images: Sequence[npt.NDArray[np.uint8]], by: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.uint8]]:
    """(H, W, 3) images with the contrast that ``by`` needs, so that their brightness stays comparable.

    The gray levels from the 1st to the 99th percentile of ``by`` are stretched. An image with a median above them, such
    as a negative, stays as it is.
    """
    low, high = np.percentile(_gray(by), (1, 99))
    levels = (np.arange(256) - low) * 255 / max(high - low, 1.0)
    table = levels.round().clip(0, 255).astype(np.uint8)
    return [table[each] if np.median(_gray(each)) <= high else each for each in images]


def _gray(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.fromarray(image).convert("L"))


@dataclass(frozen=True, eq=False)
class ImageRow:
    """A row of a contact sheet: (S, S, 3) images with a caption each."""

    title: str
    images: Sequence[npt.NDArray[np.uint8]]
    captions: Sequence[str]


def draw_rows(rows: Sequence[ImageRow]) -> Figure:
    """A contact sheet of rows with equally many images, pixels unsmoothed."""
    columns = len(rows[0].images)
    width = max(columns * (_SIDE_IN + 0.08), 3.5)
    figure = Figure(figsize=(width, len(rows) * (_SIDE_IN + 0.5)), layout="constrained")
    installed = {font.name for font in fontManager.ttflist}
    fonts = ["DejaVu Sans", *(name for name in _FURTHER_FONTS if name in installed)]
    parts = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
    for row, part in zip(rows, parts, strict=True):
        part.suptitle(row.title, x=0.01, ha="left", fontsize=_FONT_SIZE + 2)
        for place, ax in enumerate(part.subplots(1, columns, squeeze=False)[0]):
            ax.imshow(row.images[place], interpolation="nearest")
            # Operations below each other.
            lines = row.captions[place].replace(" + ", "\n+ ").split("\n")
            caption = [label_text(each, letters=_CAPTION_LETTERS, lines=_CAPTION_LINES) for each in lines]
            ax.set_xlabel("\n".join(caption), fontsize=_FONT_SIZE, fontfamily=fonts)
            ax.set_xticks([])
            ax.set_yticks([])
            ax.spines[:].set_visible(False)
    return figure
