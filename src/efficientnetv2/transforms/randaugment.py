"""RandAugment: a few random operations per picture, all of one strength (arXiv:1909.13719).

The strength is a real number, the level: 10 is the full range of most operations, the paper of
EfficientNetV2 goes to 25. The table below says what a level means to each operation, in two presets:

- ``released``: the formulas of the authors' code (google/automl, efficientnetv2). Some weaken as the
  level grows (posterize, solarize), the enhancing ones are the identity at level 5, and translation and
  holes are in pixels whatever the picture's size. Contrast has a quirk, see ``released_contrast``.
- ``monotone``: ours. Everything is the identity at level 0 (the three operations without a strength
  aside), grows with the level and with the picture; at 300 px, the training size of EfficientNetV2-S,
  translation and holes are those of ``released``.
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
from efficientnetv2.transforms.cutout import hole
from efficientnetv2.transforms.per_sample import Floats, as_ids, by_group, choose, lines, on_device, pictures
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.rng import Key

RandAugmentPreset = Literal["released", "monotone"]
#: ``any`` draws from all operations; ``possible`` leaves out those that stretch, invert or coarsen each channel by
#: itself, after which colours are none that a camera sees: for satellites, whose colours are evidence. Ours.
Colours = Literal["any", "possible"]
Formula = Callable[[Floats, Floats, int], Floats]
# Per picture and layer: which operation, its sign, the row and the column of its hole.
_DRAWS = 4


class Arguments(NamedTuple):
    """What an operation gets for its n pictures: (n,) float tensors on their device.

    ``strength`` is what the table's formula gives; ``y`` and ``x``, in [0, 1), say where a hole lies.
    """

    strength: Tensor
    y: Tensor
    x: Tensor


Apply = Callable[[Tensor, Arguments], Tensor]


@dataclass(frozen=True)
class Operation:
    """One row of the table: a name, what it does, and what a level means to it.

    Args:
        name: as in the released code.
        apply: from (n, C, H, W) uint8 pictures and their arguments to the changed pictures.
        released: from m = level / 10, a sign of -1 or 1 (both per picture) and the shorter side in
            pixels to the strength.
        monotone: the same, ours.
        released_apply: where the release computes otherwise than ``apply``.
    """

    name: str
    apply: Apply
    released: Formula
    monotone: Formula
    released_apply: Apply | None = None


def _plain(function: Callable[[Tensor], Tensor]) -> Apply:
    return lambda images, _arguments: function(images)


def _strong(function: Callable[[Tensor, Tensor], Tensor]) -> Apply:
    return lambda images, arguments: function(images, arguments.strength)


def _cut(images: Tensor, arguments: Arguments) -> Tensor:
    values = lines(images)
    fill = torch.full_like(values[:1, :1, :1], geometric.FILL)
    return pictures(choose(hole(images, *arguments), fill, values), images.shape[1])


def _none(m: Floats, sign: Floats, px: int) -> Floats:
    return np.zeros_like(m)


def _rotate(m: Floats, sign: Floats, px: int) -> Floats:
    return sign * 30 * m  # degrees


def _shear(m: Floats, sign: Floats, px: int) -> Floats:
    return sign * 0.3 * m


def _solarize_add(m: Floats, sign: Floats, px: int) -> Floats:
    return np.minimum(255, np.floor(110 * m))


def _whole(values: Floats, low: int, high: int) -> Floats:
    # A hair is added so that 0.3 / 10 * 100 is 3, not 2.
    cut: Floats = np.clip(np.floor(values + 1e-9), low, high)
    return cut


def _enhance(m: Floats, sign: Floats, px: int) -> Floats:
    return 1.8 * m + 0.1


def _enhance_away(m: Floats, sign: Floats, px: int) -> Floats:
    # Not below 0.1, the least of the released formula: at 0 a picture would be gone.
    return np.maximum(0.1, 1 + sign * 0.9 * m)


def _posterize(m: Floats, sign: Floats, px: int) -> Floats:
    # Bits kept. Not 0: where the released code shifts a byte by 8, TensorFlow shifts by 7, the most that it can.
    return _whole(4 * m, 1, 8)


def _posterize_away(m: Floats, sign: Floats, px: int) -> Floats:
    return _whole(8 - 4 * m, 1, 8)


def _solarize(m: Floats, sign: Floats, px: int) -> Floats:
    return _whole(256 * m, 0, 256)  # threshold


def _solarize_away(m: Floats, sign: Floats, px: int) -> Floats:
    return _whole(256 * (1 - m), 0, 256)


def _translate(m: Floats, sign: Floats, px: int) -> Floats:
    return sign * 100 * m  # pixels


def _translate_share(m: Floats, sign: Floats, px: int) -> Floats:
    return sign * (100 / 300) * px * m


def _cutout(m: Floats, sign: Floats, px: int) -> Floats:
    return _whole(40 * m, 0, 1 << 20)  # pixels each way


def _cutout_share(m: Floats, sign: Floats, px: int) -> Floats:
    return _whole((40 / 300) * px * m, 0, 1 << 20)


# fmt: off
OPERATIONS = (
    #         name            applied                         released          monotone
    Operation("AutoContrast", _plain(color.autocontrast),    _none,            _none),
    Operation("Equalize",     _plain(color.equalize),        _none,            _none),
    Operation("Invert",       _plain(color.invert),          _none,            _none),
    Operation("Rotate",       _strong(geometric.rotate),       _rotate,          _rotate),
    Operation("Posterize",    _strong(color.posterize),      _posterize,       _posterize_away),
    Operation("Solarize",     _strong(color.solarize),       _solarize,        _solarize_away),
    Operation("Color",        _strong(color.saturation),     _enhance,         _enhance_away),
    Operation("Contrast",     _strong(color.contrast),       _enhance,         _enhance_away,
              released_apply=_strong(color.released_contrast)),
    Operation("Brightness",   _strong(color.brightness),     _enhance,         _enhance_away),
    Operation("Sharpness",    _strong(color.sharpness),      _enhance,         _enhance_away),
    Operation("ShearX",       _strong(geometric.shear_x),      _shear,           _shear),
    Operation("ShearY",       _strong(geometric.shear_y),      _shear,           _shear),
    Operation("TranslateX",   _strong(geometric.translate_x),  _translate,       _translate_share),
    Operation("TranslateY",   _strong(geometric.translate_y),  _translate,       _translate_share),
    Operation("Cutout",       _cut,                           _cutout,          _cutout_share),
    Operation("SolarizeAdd",  _strong(color.solarize_add),   _solarize_add,    _solarize_add),
)
# fmt: on
_IMPOSSIBLE = {"AutoContrast", "Equalize", "Invert", "Posterize", "Solarize", "SolarizeAdd"}
# These know a grey, which is made of red, green and blue.
_OF_RGB = {"Color", "Contrast"}


def _drawn(colours: Colours, channels: int) -> npt.NDArray[np.int64]:
    """Positions in ``OPERATIONS`` of those that are drawn from.

    Bands of a raster are evidence by how they stand to each other, so what changes each by itself is left out there
    whatever ``colours`` says. Ours.
    """
    left_out: set[str] = set()
    if colours == "possible" or channels != RGB:
        left_out |= _IMPOSSIBLE
    if channels != RGB:
        left_out |= _OF_RGB
    return np.array([i for i, one in enumerate(OPERATIONS) if one.name not in left_out])


def names_for(channels: int, colours: Colours = "any") -> tuple[str, ...]:
    """Names of the operations that pictures of so many channels get."""
    return tuple(OPERATIONS[i].name for i in _drawn(colours, channels))


def randaugment(
    images: Tensor,
    *,
    magnitude: float | Tensor,
    key: Key,
    ids: npt.ArrayLike,
    preset: RandAugmentPreset = "released",
    layers: int = 2,
    colours: Colours = "any",
) -> Tensor:
    """Apply ``layers`` operations one after the other, each drawn uniformly from those there are, to every picture.

    Args:
        images: (N, C, H, W) uint8; unchanged. Of other than three channels, operations that know colours or change
            each channel by itself are not drawn (``names_for``).
        magnitude: the level, ≥ 0, one for all or (N,). Where a formula runs over (in ``released``
            posterize would keep 10 bits at level 25), it is cut to its range.
        key: of this purpose.
        ids: (N,) draw ids; a picture's operations depend on the key and its id alone.
        preset: which column of the table; see the module.
        layers: operations per picture; fewer are the first of more. 2 as released.
        colours: which operations there are; ``any`` as released.

    Returns:
        (N, C, H, W) uint8.

    Raises:
        InputError: a level below 0 or not finite.
    """
    level = np.asarray(magnitude.cpu() if isinstance(magnitude, Tensor) else magnitude, dtype=np.float64)
    if not (np.isfinite(level).all() and (level >= 0).all()):
        raise InputError(f"RandAugment's magnitude is {magnitude}, but is 0 or more (10 is the full range).")
    m = np.broadcast_to(level / 10, len(images))
    draws = key.uniform_rows(as_ids(ids), layers * _DRAWS).reshape(len(images), layers, _DRAWS)
    among = _drawn(colours, images.shape[1])
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
        formula: Formula = getattr(OPERATIONS[index], preset)
        strength[rows] = formula(m[rows], sign[rows], px)
    return operate(images, which, strength, draws[:, 2:4], preset)


def operate(
    images: Tensor,
    which: npt.NDArray[np.int64],
    strength: Floats,
    places: Floats,
    preset: RandAugmentPreset,
) -> Tensor:
    """One operation for every picture.

    Args:
        images: (N, C, H, W) uint8; unchanged.
        which: (N,) positions in ``OPERATIONS``; negative leaves the picture as it is.
        strength: (N,) what the operation's formula gave.
        places: (N, 2) in [0, 1): row and column of a hole.
        preset: whose operation it is, where the two differ.

    Returns:
        (N, C, H, W) uint8.
    """
    arguments = on_device(np.column_stack([strength, places]), images)

    def apply(group: int, rows: Tensor, part: Tensor) -> Tensor:
        operation = OPERATIONS[group]
        function = (preset == "released" and operation.released_apply) or operation.apply
        return function(part, Arguments(*arguments.index_select(0, rows).unbind(1)))

    return by_group(images, which, apply)
