"""RandAugment: a few random operations per image, all of one strength (arXiv:1909.13719).

The strength is a real number, the level: 10 is the full range of most operations, the paper of EfficientNetV2 goes to
25. The table below has two presets:

- ``released``: the formulas of the authors' code (google/automl, efficientnetv2). Some weaken as the level grows
  (posterize, solarize), the enhancing ones are the identity at level 5, and translation and holes are in pixels
  whatever the image's size. Contrast differs, see ``released_contrast``.
- ``monotone``: ours. Everything is the identity at level 0 (except the three operations without a strength), grows
  with the level and with the image; at 300 px, the training size of EfficientNetV2-S, translation and holes are those
  of ``released``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from efficientnetv2.preprocessing import RGB
from efficientnetv2.transforms import color, geometric
from efficientnetv2.transforms.cutout import hole_mask
from efficientnetv2.transforms.per_sample import (
    Floats,
    apply_by_group,
    as_ids,
    from_rows,
    on_device,
    to_rows,
    where,
)
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.rng import Key

RandAugmentPreset = Literal["released", "monotone"]
#: ``any`` draws from all operations; ``possible`` leaves out those that stretch, invert or coarsen each channel by
#: itself, after which colors are none that a camera sees: for satellites, whose colors are evidence. Ours.
Colors = Literal["any", "possible"]
Formula = Callable[[Floats, Floats, int], Floats]
# Per picture and layer: which operation, its sign, the row and the column of its hole.
_DRAWS = 4


class Arguments(NamedTuple):
    """Arguments of an operation for its n images: (n,) float tensors; ``y`` and ``x``, in [0, 1), place a hole."""

    strength: Tensor
    y: Tensor
    x: Tensor


Apply = Callable[[Tensor, Arguments], Tensor]


@dataclass(frozen=True)
class Operation:
    """One row of the table.

    Args:
        apply: From (n, C, H, W) uint8 images and their arguments to the changed images.
        released: From m = level / 10, a sign of -1 or 1 (both per image) and the shorter side in pixels to the
            strength.
        monotone: The same, ours.
        released_apply: If the release computes otherwise than ``apply``.
    """

    name: str
    apply: Apply
    released: str
    monotone: str
    released_apply: Apply | None = None

    def formula(self, preset: RandAugmentPreset) -> Formula:
        """From (n,) levels, signs and the shorter side to (n,) strengths."""
        return _FORMULAS[self.released if preset == "released" else self.monotone]


def _plain(function: Callable[[Tensor], Tensor]) -> Apply:
    return lambda images, _arguments: function(images)


def _strong(function: Callable[[Tensor, Tensor], Tensor]) -> Apply:
    return lambda images, arguments: function(images, arguments.strength)


def _cut(images: Tensor, arguments: Arguments) -> Tensor:
    values = to_rows(images)
    fill = torch.full_like(values[:1, :1, :1], geometric.FILL)
    return from_rows(where(hole_mask(images, *arguments), fill, values), images.shape[1])


def _whole(values: Floats, low: int, high: int) -> Floats:
    # A hair is added so that 0.3 / 10 * 100 is 3, not 2.
    cut: Floats = np.clip(np.floor(values + 1e-9), low, high)
    return cut


# From m = level / 10, a sign and the shorter side in pixels.
_FORMULAS: dict[str, Formula] = {
    "none": lambda m, sign, px: np.zeros_like(m),
    "rotate": lambda m, sign, px: sign * 30 * m,  # degrees
    "shear": lambda m, sign, px: sign * 0.3 * m,
    "solarize_add": lambda m, sign, px: np.minimum(255, np.floor(110 * m)),
    "enhance": lambda m, sign, px: 1.8 * m + 0.1,
    # Not below 0.1, the least of the released formula: at 0 an image would be gone.
    "enhance_away": lambda m, sign, px: np.maximum(0.1, 1 + sign * 0.9 * m),
    # Bits kept. Not 0: where the released code shifts a byte by 8, TensorFlow shifts by 7, the most that it can.
    "posterize": lambda m, sign, px: _whole(4 * m, 1, 8),
    "posterize_away": lambda m, sign, px: _whole(8 - 4 * m, 1, 8),
    "solarize": lambda m, sign, px: _whole(256 * m, 0, 256),  # threshold
    "solarize_away": lambda m, sign, px: _whole(256 * (1 - m), 0, 256),
    "translate": lambda m, sign, px: sign * 100 * m,  # pixels
    "translate_share": lambda m, sign, px: sign * (100 / 300) * px * m,
    "cutout": lambda m, sign, px: _whole(40 * m, 0, 1 << 20),  # pixels each way
    "cutout_share": lambda m, sign, px: _whole((40 / 300) * px * m, 0, 1 << 20),
}


# fmt: off
OPERATIONS = (
    #         name            applied                         released          monotone
    Operation("AutoContrast", _plain(color.autocontrast),    "none",            "none"),
    Operation("Equalize",     _plain(color.equalize),        "none",            "none"),
    Operation("Invert",       _plain(color.invert),          "none",            "none"),
    Operation("Rotate",       _strong(geometric.rotate),       "rotate",          "rotate"),
    Operation("Posterize",    _strong(color.posterize),      "posterize",       "posterize_away"),
    Operation("Solarize",     _strong(color.solarize),       "solarize",        "solarize_away"),
    Operation("Color",        _strong(color.saturation),     "enhance",         "enhance_away"),
    Operation("Contrast",     _strong(color.contrast),       "enhance",         "enhance_away",
              released_apply=_strong(color.released_contrast)),
    Operation("Brightness",   _strong(color.brightness),     "enhance",         "enhance_away"),
    Operation("Sharpness",    _strong(color.sharpness),      "enhance",         "enhance_away"),
    Operation("ShearX",       _strong(geometric.shear_x),      "shear",           "shear"),
    Operation("ShearY",       _strong(geometric.shear_y),      "shear",           "shear"),
    Operation("TranslateX",   _strong(geometric.translate_x),  "translate",       "translate_share"),
    Operation("TranslateY",   _strong(geometric.translate_y),  "translate",       "translate_share"),
    Operation("Cutout",       _cut,                           "cutout",          "cutout_share"),
    Operation("SolarizeAdd",  _strong(color.solarize_add),   "solarize_add",    "solarize_add"),
)
# fmt: on
_IMPOSSIBLE = {"AutoContrast", "Equalize", "Invert", "Posterize", "Solarize", "SolarizeAdd"}
# These know a gray, which is made of red, green and blue.
_OF_RGB = {"Color", "Contrast"}


def _drawn(colors: Colors, channels: int) -> npt.NDArray[np.int64]:
    """Positions in ``OPERATIONS`` of those that are drawn from.

    Bands of a raster are evidence by their proportions, so operations that change each channel by itself are left out
    for other than three channels, whatever ``colors`` says. Ours.
    """
    left_out: set[str] = set()
    if colors == "possible" or channels != RGB:
        left_out |= _IMPOSSIBLE
    if channels != RGB:
        left_out |= _OF_RGB
    return np.array([i for i, one in enumerate(OPERATIONS) if one.name not in left_out])


def operation_names(channels: int, colors: Colors = "any") -> tuple[str, ...]:
    """Names of the operations that images of so many channels get."""
    return tuple(OPERATIONS[i].name for i in _drawn(colors, channels))


def randaugment(
    images: Tensor,
    *,
    magnitude: float | Tensor,
    key: Key,
    ids: npt.ArrayLike,
    preset: RandAugmentPreset = "released",
    layers: int = 2,
    colors: Colors = "any",
) -> Tensor:
    """Apply ``layers`` operations one after another, each drawn uniformly, to every image.

    Args:
        magnitude: The level, at least 0, one for all or (N,). Strengths out of an operation's range are cut to it (in
            ``released``, posterize would keep 10 bits at level 25).
        preset: Column of the table; see the module.
        layers: Operations per image; 2 as released.
        colors: The operations to draw from; ``any`` as released. Fewer for other than three channels.

    Raises:
        InputError: A level below 0 or not finite.
    """
    level = np.asarray(magnitude.cpu() if isinstance(magnitude, Tensor) else magnitude, dtype=np.float64)
    if not (np.isfinite(level).all() and (level >= 0).all()):
        raise InputError(f"RandAugment's magnitude is {magnitude}, but is 0 or more (10 is the full range).")
    m = np.broadcast_to(level / 10, len(images))
    draws = key.uniform_rows(as_ids(ids), layers * _DRAWS).reshape(len(images), layers, _DRAWS)
    among = _drawn(colors, images.shape[1])
    for layer in range(layers):
        images = _one_layer(images, m, draws[:, layer], preset, among)
    return images


def _one_layer(
    images: Tensor, m: Floats, draws: Floats, preset: RandAugmentPreset, among: npt.NDArray[np.int64]
) -> Tensor:
    which = among[(draws[:, 0] * len(among)).astype(np.int64)]
    sign = np.where(draws[:, 1] < 0.5, -1.0, 1.0)
    px = min(images.shape[2:])
    strength = np.zeros(len(images))
    for index in np.unique(which):
        rows = which == index
        strength[rows] = OPERATIONS[index].formula(preset)(m[rows], sign[rows], px)
    return apply_operations(images, which, strength, draws[:, 2:4], preset)


def apply_operations(
    images: Tensor,
    which: npt.NDArray[np.int64],
    strength: Floats,
    places: Floats,
    preset: RandAugmentPreset,
) -> Tensor:
    """Apply one operation to every image.

    Args:
        which: (N,) positions in ``OPERATIONS``; negative leaves the image as it is.
        strength: (N,) what the operation's formula gave.
        places: (N, 2) in [0, 1): row and column of a hole.
    """
    arguments = on_device(np.column_stack([strength, places]), images)

    def apply(group: int, rows: Tensor, part: Tensor) -> Tensor:
        operation = OPERATIONS[group]
        function = (preset == "released" and operation.released_apply) or operation.apply
        return function(part, Arguments(*arguments.index_select(0, rows).unbind(1)))

    return apply_by_group(images, which, apply)
