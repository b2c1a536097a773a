"""AutoAugment: for each image one of 25 learned pairs of operations (arXiv:1805.09501).

The policy is the one that the authors of EfficientNetV2 train B0 to B3 with, which differs from the published ImageNet
policy. Formulas are those of RandAugment's preset ``released``, but translation is 250 pixels at level 10.

Source: google/automl, efficientnetv2 (autoaugment, policy ``v0``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from efficientnetv2.preprocessing import RGB
from efficientnetv2.transforms.per_sample import Floats, as_ids
from efficientnetv2.transforms.randaugment import OPERATIONS, apply_operations
from efficientnetv2.utils.errors import InputError, pluralize
from efficientnetv2.utils.rng import Key

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
_TRANSLATION_PX = 250  # at level 10, whatever the image's size: as released

_NAMES = [operation.name for operation in OPERATIONS]
# Per picture: which pair; of each of the two whether it takes place, and its sign.
_DRAWS = 5


@dataclass(frozen=True)
class PairOperation:
    """One of the two operations of every image.

    Args:
        which: (N,) positions in ``randaugment.OPERATIONS``; -1 for none.
        strength: (N,) argument of the operation.
    """

    which: npt.NDArray[np.int64]
    strength: Floats


def draw_pairs(key: Key, ids: npt.ArrayLike) -> tuple[PairOperation, PairOperation]:
    """The first and second operation of each image."""
    draws = key.uniform_rows(as_ids(ids), _DRAWS)
    pair = (draws[:, 0] * len(POLICY)).astype(np.int64)
    return _chosen(pair, 0, draws[:, 1:3]), _chosen(pair, 1, draws[:, 3:5])


def _chosen(pair: npt.NDArray[np.int64], turn: int, draws: Floats) -> PairOperation:
    which = np.array([_NAMES.index(entry[turn][0]) for entry in POLICY])[pair]
    share = np.array([entry[turn][1] for entry in POLICY])[pair]
    table = [[_strength(*entry[turn], sign) for sign in (-1.0, 1.0)] for entry in POLICY]
    strength = np.array(table)[pair, (draws[:, 1] >= 0.5).astype(np.int64)]
    return PairOperation(np.where(draws[:, 0] < share, which, -1), strength)


def _strength(name: str, _share: float, level: int, sign: float) -> float:
    m = np.array([level / 10])
    if name.startswith("Translate"):
        return float(sign * _TRANSLATION_PX * m[0])
    formula = OPERATIONS[_NAMES.index(name)].formula("released")
    return float(formula(m, np.array([sign]), 1)[0])  # the released formulas do not look at the size


def require_rgb(channels: int) -> None:
    """Raise InputError unless images have three channels."""
    if channels != RGB:
        raise InputError(
            f"AutoAugment works on red, green and blue, but these images have {pluralize(channels, 'channel')}. "
            "Switch it off (--set augment.autoaugment=false)."
        )


def autoaugment(images: Tensor, *, key: Key, ids: npt.ArrayLike) -> Tensor:
    """Apply one of the policy's pairs, drawn uniformly, to every (3, H, W) image."""
    require_rgb(images.shape[1])
    nowhere = np.zeros((len(images), 2))  # no operation of the policy makes a hole
    for chosen in draw_pairs(key, ids):
        images = apply_operations(images, chosen.which, chosen.strength, nowhere, "released")
    return images
