"""Pictures as a page shows them: those of a set that is nearly black or white with their contrast stretched."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from efficientnetv2.evaluation.page import THUMBNAIL_PX, thumbnail

# Mean brightness, of 255, below and above which people see little in a picture on a screen. Ours.
DARK, BRIGHT = 40.0, 215.0
NOTE = "Each picture is shown with its contrast stretched, so that there is something to see."

Picture = Image.Image | npt.NDArray[np.uint8]


def hard_to_see(pictures: Iterable[Picture | None]) -> bool:
    """Whether the middle one of the pictures is nearly black or nearly white; False of none.

    Args:
        pictures: PIL's, or (H, W, 3) uint8; None is one that cannot be read.
    """
    known = [float(np.asarray(_tiny(one)).mean()) for one in pictures if one is not None]
    return bool(known) and not DARK <= float(np.median(known)) <= BRIGHT


def shown(picture: Picture | None, *, dim: bool, px: int = THUMBNAIL_PX, quality: int = 80) -> str | None:
    """A small copy of a picture as an address; None of None.

    Args:
        picture: of any size.
        dim: stretch its contrast.
        px: of the longer side, at most.
        quality: of the JPEG.
    """
    return thumbnail(_stretched(picture, 2 * px) if dim and picture is not None else picture, px, quality)


def small(picture: Image.Image) -> Image.Image:
    """A picture no larger than ``shown`` needs it: dozens of whole ones, held until the page is written, are gigabytes.

    Args:
        picture: of any size; it is made smaller itself.
    """
    picture.thumbnail((2 * THUMBNAIL_PX, 2 * THUMBNAIL_PX))
    return picture


def stretched_alike(
    pictures: Sequence[npt.NDArray[np.uint8]], by: npt.NDArray[np.uint8]
) -> list[npt.NDArray[np.uint8]]:
    """Pictures with the contrast that one of them needs, so that they can still be told apart by brightness.

    Args:
        pictures: (H, W, 3) uint8 each. One whose median grey level is above those that are spread, such as a negative,
            stays as it is.
        by: the one whose grey levels from the first to the 99th hundredth are spread over all.
    """
    low, high = np.percentile(_grey(by), (1, 99))
    levels = (np.arange(256) - low) * 255 / max(high - low, 1.0)
    table = levels.round().clip(0, 255).astype(np.uint8)
    return [table[one] if np.median(_grey(one)) <= high else one for one in pictures]


def _grey(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.fromarray(picture).convert("L"))


def _stretched(picture: Picture, px: int) -> Image.Image:
    """A small copy with its contrast stretched, hues as they are."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image = image.convert("RGB")
    image.thumbnail((px, px))
    return ImageOps.autocontrast(image, cutoff=1, preserve_tone=True)


def _tiny(picture: Picture) -> Image.Image:
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    return image.convert("L").resize((16, 16), Image.Resampling.BOX)
