"""RandAugment (arXiv:1909.13719) and AutoAugment (arXiv:1805.09501): random operations, different for each image.

The strength of an operation is a level: 10 is the full range of most operations, the paper of EfficientNetV2 goes to
25. RandAugment has two presets:

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
from efficientnetv2.transforms.tensor_ops import (
    Floats,
    Ids,
    apply_by_group,
    as_ids,
    from_rows,
    on_device,
    to_rows,
    where,
)
from efficientnetv2.utils.errors import InputError, pluralize
from efficientnetv2.utils.random_key import Key

RandAugmentPreset = Literal["released", "monotone"]
#: ``any`` draws from all operations; ``possible`` leaves out those that stretch, invert or coarsen each channel by
#: itself, after which colors are none that a camera sees: for satellites, whose colors are evidence. Ours.
Colors = Literal["any", "possible"]
# From m = level / 10, a sign of -1 or 1 (both per image), and the shorter side in pixels to strengths.
Formula = Callable[[Floats, Floats, int], Floats]


class Arguments(NamedTuple):
    """Arguments of an operation for its n images: (n,) float tensors; ``y`` and ``x``, in [0, 1), place a hole."""

    strength: Tensor
    y: Tensor
    x: Tensor


Apply = Callable[[Tensor, Arguments], Tensor]


@dataclass(frozen=True)
class Operation:
    """A function of images, with the names of its formulas. ``released_apply``: if the release computes otherwise."""

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
    return from_rows(where(geometric.hole_mask(images, *arguments), fill, values), images.shape[1])


def _whole(values: Floats, low: int, high: int) -> Floats:
    # A hair is added so that 0.3 / 10 * 100 is 3, not 2.
    cut: Floats = np.clip(np.floor(values + 1e-9), low, high)
    return cut


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
    Operation("AutoContrast", _plain(color.autocontrast),     "none",           "none"),
    Operation("Equalize",     _plain(color.equalize),         "none",           "none"),
    Operation("Invert",       _plain(color.invert),           "none",           "none"),
    Operation("Rotate",       _strong(geometric.rotate),      "rotate",         "rotate"),
    Operation("Posterize",    _strong(color.posterize),       "posterize",      "posterize_away"),
    Operation("Solarize",     _strong(color.solarize),        "solarize",       "solarize_away"),
    Operation("Color",        _strong(color.saturation),      "enhance",        "enhance_away"),
    Operation("Contrast",     _strong(color.contrast),        "enhance",        "enhance_away",
              released_apply=_strong(color.released_contrast)),
    Operation("Brightness",   _strong(color.brightness),      "enhance",        "enhance_away"),
    Operation("Sharpness",    _strong(color.sharpness),       "enhance",        "enhance_away"),
    Operation("ShearX",       _strong(geometric.shear_x),     "shear",          "shear"),
    Operation("ShearY",       _strong(geometric.shear_y),     "shear",          "shear"),
    Operation("TranslateX",   _strong(geometric.translate_x), "translate",      "translate_share"),
    Operation("TranslateY",   _strong(geometric.translate_y), "translate",      "translate_share"),
    Operation("Cutout",       _cut,                           "cutout",         "cutout_share"),
    Operation("SolarizeAdd",  _strong(color.solarize_add),    "solarize_add",   "solarize_add"),
)
# fmt: on
_NAMES = [operation.name for operation in OPERATIONS]
_IMPOSSIBLE = {"AutoContrast", "Equalize", "Invert", "Posterize", "Solarize", "SolarizeAdd"}
# These know a gray, which is made of red, green and blue.
_OF_RGB = {"Color", "Contrast"}


def operation_names(channels: int, colors: Colors = "any") -> tuple[str, ...]:
    """Names of the operations that images of so many channels get.

    Bands of a raster are evidence by their proportions: none that change each channel by itself. Ours.
    """
    left_out = _IMPOSSIBLE if colors == "possible" or channels != RGB else set()
    left_out = left_out if channels == RGB else left_out | _OF_RGB
    return tuple(name for name in _NAMES if name not in left_out)


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

    ``magnitude`` is the level, one for all or (N,). Strengths out of an operation's range are cut to it.
    """
    level = np.asarray(magnitude.cpu() if isinstance(magnitude, Tensor) else magnitude, dtype=np.float64)
    if not (np.isfinite(level).all() and (level >= 0).all()):
        raise InputError(f"RandAugment's magnitude is {magnitude}, but must be at least 0 (10: full range).")
    m = np.broadcast_to(level / 10, len(images))
    # Per image and layer: which operation, its sign, the row and the column of its hole.
    draws = key.uniform_rows(as_ids(ids), layers * 4).reshape(len(images), layers, 4)
    drawn = np.array([_NAMES.index(name) for name in operation_names(images.shape[1], colors)])
    for layer in range(layers):
        operation, signs, places = draws[:, layer, 0], draws[:, layer, 1], draws[:, layer, 2:]
        which = drawn[(operation * len(drawn)).astype(np.int64)]
        sign = np.where(signs < 0.5, -1.0, 1.0)
        strength = np.zeros(len(images))
        for index in np.unique(which):
            rows = which == index
            strength[rows] = OPERATIONS[index].formula(preset)(m[rows], sign[rows], min(images.shape[2:]))
        images = _apply_operations(images, which, strength, places, preset)
    return images


def _apply_operations(
    images: Tensor, which: Ids, strength: Floats, places: Floats, preset: RandAugmentPreset
) -> Tensor:
    """Apply one of ``OPERATIONS`` to every image; negative leaves it as it is. (N, 2) row and column of a hole."""
    arguments = on_device(np.column_stack([strength, places]), images)

    def apply(group: int, rows: Tensor, part: Tensor) -> Tensor:
        operation = OPERATIONS[group]
        function = (preset == "released" and operation.released_apply) or operation.apply
        return function(part, Arguments(*arguments.index_select(0, rows).unbind(1)))

    return apply_by_group(images, which, apply)


# The authors of EfficientNetV2 train B0 to B3 with this policy, which differs from the published ImageNet policy.
# Formulas are those of the preset ``released``, but translation is 250 pixels at level 10, whatever the image's size.
# Source: google/automl, efficientnetv2 (autoaugment, policy ``v0``).
# fmt: off
POLICY: tuple[tuple[tuple[str, float, int], tuple[str, float, int]], ...] = (
    #  first:       share, level     second:       share, level
    (("Equalize",     0.8,  1),     ("ShearY",       0.8,  4)),
    (("Color",        0.4,  9),     ("Equalize",     0.6,  3)),
    (("Color",        0.4,  1),     ("Rotate",       0.6,  8)),
    (("Solarize",     0.8,  3),     ("Equalize",     0.4,  7)),
    (("Solarize",     0.4,  2),     ("Solarize",     0.6,  2)),
    (("Color",        0.2,  0),     ("Equalize",     0.8,  8)),
    (("Equalize",     0.4,  8),     ("SolarizeAdd",  0.8,  3)),
    (("ShearX",       0.2,  9),     ("Rotate",       0.6,  8)),
    (("Color",        0.6,  1),     ("Equalize",     1.0,  2)),
    (("Invert",       0.4,  9),     ("Rotate",       0.6,  0)),
    (("Equalize",     1.0,  9),     ("ShearY",       0.6,  3)),
    (("Color",        0.4,  7),     ("Equalize",     0.6,  0)),
    (("Posterize",    0.4,  6),     ("AutoContrast", 0.4,  7)),
    (("Solarize",     0.6,  8),     ("Color",        0.6,  9)),
    (("Solarize",     0.2,  4),     ("Rotate",       0.8,  9)),
    (("Rotate",       1.0,  7),     ("TranslateY",   0.8,  9)),
    (("ShearX",       0.0,  0),     ("Solarize",     0.8,  4)),
    (("ShearY",       0.8,  0),     ("Color",        0.6,  4)),
    (("Color",        1.0,  0),     ("Rotate",       0.6,  2)),
    (("Equalize",     0.8,  4),     ("Equalize",     0.0,  8)),
    (("Equalize",     1.0,  4),     ("AutoContrast", 0.6,  2)),
    (("ShearY",       0.4,  7),     ("SolarizeAdd",  0.6,  7)),
    (("Posterize",    0.8,  2),     ("Solarize",     0.6, 10)),
    (("Solarize",     0.6,  8),     ("Equalize",     0.6,  1)),
    (("Color",        0.8,  6),     ("Rotate",       0.4,  5)),
)
# fmt: on
_TRANSLATION_PX = 250


def require_rgb(channels: int) -> None:
    """Raise InputError unless images have three channels."""
    if channels != RGB:
        fix = "Set `augment.autoaugment=false`."
        raise InputError(f"AutoAugment needs RGB, but images have {pluralize(channels, 'channel')}. {fix}")


def autoaugment(images: Tensor, *, key: Key, ids: npt.ArrayLike) -> Tensor:
    """Apply one of the policy's pairs, drawn uniformly, to every (3, H, W) image."""
    require_rgb(images.shape[1])
    nowhere = np.zeros((len(images), 2))  # no operation of the policy makes a hole
    for which, strength in draw_pairs(key, ids):
        images = _apply_operations(images, which, strength, nowhere, "released")
    return images


def draw_pairs(key: Key, ids: npt.ArrayLike) -> list[tuple[Ids, Floats]]:
    """The first and second operation of each image: (N,) positions in ``OPERATIONS``, -1 for none, and strengths."""
    draws = key.uniform_rows(as_ids(ids), 5)  # which pair; of each of the two whether it takes place, and its sign
    pair = (draws[:, 0] * len(POLICY)).astype(np.int64)
    chosen = []
    for turn in (0, 1):
        happens, signs = draws[:, 1 + 2 * turn], draws[:, 2 + 2 * turn]
        entries = [entry[turn] for entry in POLICY]
        which = np.array([_NAMES.index(name) for name, _, _ in entries])[pair]
        share = np.array([share for _, share, _ in entries])[pair]
        both = [[_strength(name, level, sign) for sign in (-1.0, 1.0)] for name, _, level in entries]
        strength = np.array(both)[pair, (signs >= 0.5).astype(np.int64)]
        chosen.append((np.where(happens < share, which, -1), strength))
    return chosen


def _strength(name: str, level: int, sign: float) -> float:
    m = np.array([level / 10])
    if name.startswith("Translate"):
        return float(sign * _TRANSLATION_PX * m[0])
    formula = OPERATIONS[_NAMES.index(name)].formula("released")
    return float(formula(m, np.array([sign]), 1)[0])  # the released formulas do not look at the size
