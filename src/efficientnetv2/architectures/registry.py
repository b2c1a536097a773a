"""The published models: six tables, and twelve more by compound scaling; and files of other architectures.

Tables: arXiv:2104.00298 (Table 4) and google/automl, efficientnetv2, for V2; arXiv:1905.11946 (Table 1) for V1. S is
that of the released code and of Table 4 (21.5 million parameters); the 24 million of the paper's Table 11 are of an
earlier S.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import yaml
from pydantic import ValidationError

from efficientnetv2.architectures.spec import Architecture, Stage, fused_mbconv, mbconv
from efficientnetv2.preprocessing import SYMMETRIC_MEAN, SYMMETRIC_STD, Preprocessing
from efficientnetv2.utils.errors import InputError, did_you_mean, first_error
from efficientnetv2.utils.io import read_yaml, write_text_atomically

Rounding = Literal["v1", "v2"]


def round_channels(channels: float, *, rounding: Rounding) -> int:
    """The multiple of 8 nearest to a scaled channel count, at least 8.

    ``v2`` rounds halves up; ``v1`` takes the next multiple where rounding would lose more than a tenth.

    Source: google/automl, efficientnetv2 (``v2``) and tensorflow/tpu, efficientnet (``v1``).
    """
    rounded = max(8, int(channels + 4) // 8 * 8)
    if rounding == "v1" and rounded < 0.9 * channels:
        rounded += 8
    return rounded


def scale(base: Architecture, *, width: float, depth: float, rounding: Rounding) -> Architecture:
    """Scale an architecture's channels (stem, stages, head) by ``width`` and the layers of its stages by ``depth``.

    Source: arXiv:1905.11946, section 3.3; roundings as the released code.
    """
    for name, value in (("width", width), ("depth", depth)):
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{name} is {value:g}, but must be finite and above 0.")

    def wide(channels: int) -> int:
        return round_channels(channels * width, rounding=rounding)

    def deep(layers: int) -> int:
        # 2.2 * 25 is 55.00000000000001: the noise of floating point must not add a layer.
        return math.ceil(round(layers * depth, 9))

    return replace(
        base,
        stem_channels=wide(base.stem_channels),
        stages=tuple(replace(stage, channels=wide(stage.channels), layers=deep(stage.layers)) for stage in base.stages),
        head_channels=wide(base.head_channels),
    )


# fmt: off
EFFICIENTNETV2_B0 = Architecture(
    stem_channels=32,
    stages=(
        #      operator                          stride  channels  layers
        Stage(fused_mbconv(expand=1, kernel=3),              1,       16,      1),
        Stage(fused_mbconv(expand=4, kernel=3),              2,       32,      2),
        Stage(fused_mbconv(expand=4, kernel=3),              2,       48,      2),
        Stage(mbconv(expand=4, kernel=3, se=0.25),    2,       96,      3),
        Stage(mbconv(expand=6, kernel=3, se=0.25),    1,      112,      5),
        Stage(mbconv(expand=6, kernel=3, se=0.25),    2,      192,      8),
    ),
    head_channels=1280,
)

EFFICIENTNETV2_S = Architecture(
    stem_channels=24,
    stages=(
        Stage(fused_mbconv(expand=1, kernel=3),              1,       24,      2),
        Stage(fused_mbconv(expand=4, kernel=3),              2,       48,      4),
        Stage(fused_mbconv(expand=4, kernel=3),              2,       64,      4),
        Stage(mbconv(expand=4, kernel=3, se=0.25),    2,      128,      6),
        Stage(mbconv(expand=6, kernel=3, se=0.25),    1,      160,      9),
        Stage(mbconv(expand=6, kernel=3, se=0.25),    2,      256,     15),
    ),
    head_channels=1280,
)

EFFICIENTNETV2_M = Architecture(
    stem_channels=24,
    stages=(
        Stage(fused_mbconv(expand=1, kernel=3),              1,       24,      3),
        Stage(fused_mbconv(expand=4, kernel=3),              2,       48,      5),
        Stage(fused_mbconv(expand=4, kernel=3),              2,       80,      5),
        Stage(mbconv(expand=4, kernel=3, se=0.25),    2,      160,      7),
        Stage(mbconv(expand=6, kernel=3, se=0.25),    1,      176,     14),
        Stage(mbconv(expand=6, kernel=3, se=0.25),    2,      304,     18),
        Stage(mbconv(expand=6, kernel=3, se=0.25),    1,      512,      5),
    ),
    head_channels=1280,
)

EFFICIENTNETV2_L = Architecture(
    stem_channels=32,
    stages=(
        Stage(fused_mbconv(expand=1, kernel=3),              1,       32,      4),
        Stage(fused_mbconv(expand=4, kernel=3),              2,       64,      7),
        Stage(fused_mbconv(expand=4, kernel=3),              2,       96,      7),
        Stage(mbconv(expand=4, kernel=3, se=0.25),    2,      192,     10),
        Stage(mbconv(expand=6, kernel=3, se=0.25),    1,      224,     19),
        Stage(mbconv(expand=6, kernel=3, se=0.25),    2,      384,     25),
        Stage(mbconv(expand=6, kernel=3, se=0.25),    1,      640,      7),
    ),
    head_channels=1280,
)

EFFICIENTNETV2_XL = Architecture(
    stem_channels=32,
    stages=(
        Stage(fused_mbconv(expand=1, kernel=3),              1,       32,      4),
        Stage(fused_mbconv(expand=4, kernel=3),              2,       64,      8),
        Stage(fused_mbconv(expand=4, kernel=3),              2,       96,      8),
        Stage(mbconv(expand=4, kernel=3, se=0.25),    2,      192,     16),
        Stage(mbconv(expand=6, kernel=3, se=0.25),    1,      256,     24),
        Stage(mbconv(expand=6, kernel=3, se=0.25),    2,      512,     32),
        Stage(mbconv(expand=6, kernel=3, se=0.25),    1,      640,      8),
    ),
    head_channels=1280,
)

EFFICIENTNET_B0 = Architecture(
    stem_channels=32,
    stages=(
        Stage(mbconv(expand=1, kernel=3, se=0.25),    1,       16,      1),
        Stage(mbconv(expand=6, kernel=3, se=0.25),    2,       24,      2),
        Stage(mbconv(expand=6, kernel=5, se=0.25),    2,       40,      2),
        Stage(mbconv(expand=6, kernel=3, se=0.25),    2,       80,      3),
        Stage(mbconv(expand=6, kernel=5, se=0.25),    1,      112,      3),
        Stage(mbconv(expand=6, kernel=5, se=0.25),    2,      192,      4),
        Stage(mbconv(expand=6, kernel=3, se=0.25),    1,      320,      1),
    ),
    head_channels=1280,
)
# fmt: on


@dataclass(frozen=True)
class Published:
    """A published model."""

    name: str
    architecture: Architecture
    eval_image_size: int
    dropout: float  # before the classifier, as released (fixed over the run)
    preprocessing: Preprocessing  # of evaluation, as released


def get_model_info(name: str) -> Published:
    """A published model by name. Raises InputError for another name, with the nearest."""
    if name not in _TABLE:
        raise InputError(f"there is no published model '{name}'{did_you_mean(name, NAMES)} Known: {', '.join(NAMES)}.")
    return _TABLE[name]


def get_architecture(name: str) -> Architecture:
    """The architecture of a published model, one of ``list_models()``. Raises InputError for another name.

    Example::

        import efficientnetv2 as ev2

        ev2.get_architecture("efficientnetv2_s").head_channels  # 1280
    """
    return get_model_info(name).architecture


def published_shape(architecture: Architecture) -> str | None:
    """The published model of this shape, whatever its padding and epsilon."""
    for name in NAMES:
        table = get_architecture(name)
        if replace(architecture, padding=table.padding, batch_norm_epsilon=table.batch_norm_epsilon) == table:
            return name
    return None


def _crop_pct(eval_image_size: int) -> float:
    """The released code's ``crop_pct``: it leaves 32 px, to two digits as timm 1.0.31 (B6: 0.943, 0.942)."""
    return eval_image_size / (eval_image_size + 32)


def _imagenet(eval_image_size: int) -> Preprocessing:
    """V1 and V2-B0 to B3: ImageNet's mean and standard deviation, bicubic, center crop."""
    return Preprocessing(image_size=eval_image_size, crop_mode="center", crop_pct=_crop_pct(eval_image_size))


def _symmetric(eval_image_size: int) -> Preprocessing:
    """S to XL: (x - 128) / 128, bilinear; from 320 px on the whole image is squeezed."""
    # The release resizes there without antialiasing, which ours has: enlarged images are the same.
    squash = eval_image_size >= 320
    return Preprocessing(
        image_size=eval_image_size,
        crop_mode="squash" if squash else "center",
        crop_pct=1.0 if squash else _crop_pct(eval_image_size),
        interpolation="bilinear",
        mean=SYMMETRIC_MEAN,
        std=SYMMETRIC_STD,
    )


_v1 = partial(scale, EFFICIENTNET_B0, rounding="v1")
_v2 = partial(scale, EFFICIENTNETV2_B0, rounding="v2")

# Scaling coefficients, sizes and dropout as the released code of the two papers has them.
# fmt: off
_ROWS: tuple[tuple[str, Architecture, int, float, Callable[[int], Preprocessing]], ...] = (
    #                     table                        eval drop  evaluation
    ("efficientnetv2_b0", EFFICIENTNETV2_B0,           224, 0.2, _imagenet),
    ("efficientnetv2_b1", _v2(width=1.0, depth=1.1),   240, 0.2, _imagenet),
    ("efficientnetv2_b2", _v2(width=1.1, depth=1.2),   260, 0.3, _imagenet),
    ("efficientnetv2_b3", _v2(width=1.2, depth=1.4),   300, 0.3, _imagenet),
    ("efficientnetv2_s",  EFFICIENTNETV2_S,            384, 0.2, _symmetric),
    ("efficientnetv2_m",  EFFICIENTNETV2_M,            480, 0.3, _symmetric),
    ("efficientnetv2_l",  EFFICIENTNETV2_L,            480, 0.4, _symmetric),
    ("efficientnetv2_xl", EFFICIENTNETV2_XL,           512, 0.4, _symmetric),
    ("efficientnet_b0",   EFFICIENTNET_B0,             224, 0.2, _imagenet),
    ("efficientnet_b1",   _v1(width=1.0, depth=1.1),   240, 0.2, _imagenet),
    ("efficientnet_b2",   _v1(width=1.1, depth=1.2),   260, 0.3, _imagenet),
    ("efficientnet_b3",   _v1(width=1.2, depth=1.4),   300, 0.3, _imagenet),
    ("efficientnet_b4",   _v1(width=1.4, depth=1.8),   380, 0.4, _imagenet),
    ("efficientnet_b5",   _v1(width=1.6, depth=2.2),   456, 0.4, _imagenet),
    ("efficientnet_b6",   _v1(width=1.8, depth=2.6),   528, 0.5, _imagenet),
    ("efficientnet_b7",   _v1(width=2.0, depth=3.1),   600, 0.5, _imagenet),
    ("efficientnet_b8",   _v1(width=2.2, depth=3.6),   672, 0.5, _imagenet),
    ("efficientnet_l2",   _v1(width=4.3, depth=5.3),   800, 0.5, _imagenet),
)
# fmt: on
_TABLE = {
    name: Published(name, table, px, dropout, preprocessing(px)) for name, table, px, dropout, preprocessing in _ROWS
}

NAMES: tuple[str, ...] = tuple(_TABLE)


def is_architecture_file(word: str) -> bool:
    """Whether a model name is such a file's, existing or not."""
    return Path(word).suffix.lower() in (".yaml", ".yml", ".json")


def write_architecture(path: Path, architecture: Architecture, *, comment: str = "") -> None:
    """Write an architecture; a JSON file has no comment. Raises InputError if the file can't be written."""
    plain = architecture.to_json()
    if path.suffix.lower() == ".json":
        text = json.dumps(plain, indent=1) + "\n"
    else:
        text = "".join(f"# {line}\n" for line in comment.splitlines())
        stages = plain.pop("stages")
        text += yaml.safe_dump(plain, sort_keys=False) + "stages:\n"
        for stage in stages:
            text += f"- {yaml.safe_dump(stage, sort_keys=False, default_flow_style=True, width=200)}"
    try:
        write_text_atomically(path, text)
    except OSError as error:
        raise InputError(f"`output` {path}: {error.strerror or error}. Give a file in a folder that exists.") from error


def read_architecture(path: Path) -> Architecture:
    """The architecture of a YAML or JSON file. Raises InputError if there is none; names the wrong field."""
    plain = read_yaml(path, "`model`")
    try:
        return Architecture.from_json(plain)
    except ValidationError as error:
        raise InputError(
            f"`model` {path} is not an architecture: {first_error(error.errors())}. Give a file of effnetv2 search "
            "export."
        ) from error
