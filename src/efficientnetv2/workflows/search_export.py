"""Write an architecture of a study as a file, unchanged or scaled up as the paper scaled S to M."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from efficientnetv2.architectures.registry import is_architecture_file, round_channels, scale, write_architecture
from efficientnetv2.architectures.spec import Architecture
from efficientnetv2.nas.results import TrialRow
from efficientnetv2.training.overrides import TrainOverrides, requested_recipe
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.logs import silenced
from efficientnetv2.utils.shell import option_args, shell_join
from efficientnetv2.workflows.search_config import PRESETS
from efficientnetv2.workflows.search_report import LoadedStudy

_logger = logging.getLogger(__name__)

MAX_EVAL_IMAGE_SIZE = 480  # Source: arXiv:2104.00298, section 3.3.
# Largest phi of compound scaling, about a million times the multiply-adds. Ours; the largest published EfficientNet,
# L2, is 4.3 = 1.1**15.3 times as wide as B0 (arXiv:1911.04252).
MAX_PHI = 20
# Recipes that train what a search of the paper's preset finds, as it is and grown to the size of M and L.
_PAPER_RECIPE, _GROWN_RECIPES = "efficientnetv2_s_paper", {"m": "efficientnetv2_m_paper", "l": "efficientnetv2_l_paper"}
TRAIN_FRACTION = 0.8  # "About 20 % smaller": Table 6 has 300 px for 384 (S) and 380 px for 480 (M, L).


def export_trial(
    path: Path, storage: str | None, wait: float, *, out: Path | None, trial: int | None, grown_by: str | None
) -> None:
    """Write the architecture of a trial as a file. None as ``trial`` is the best."""
    if grown_by is not None:
        parse_scaling(grown_by)  # Refused before the study is read.
    read = LoadedStudy.of(path, storage, wait)
    architecture, comment, scaled = _scaled_trial(read, read.row(trial), grown_by)
    target = out or path / "found.yaml"
    if out is None:
        read.folder.make()
    elif not is_architecture_file(str(out)):
        raise InputError(f"`output` {out} must end in .yaml, .yml or .json, so that train recognizes it.")
    if target.exists():
        raise InputError(f"`output` {target} exists, and may have been edited. Give another name, or remove it.")
    write_architecture(target, architecture, comment=comment)
    _logger.info(f"{comment}.")
    _logger.info(f"Written: {target}")
    split_file = read.folder.split_file
    if split_file.exists():
        command = ["effnetv2", "train", str(split_file), "--model", str(target), *_size_args(scaled)]
        # The split file does not have how the search reads rasters.
        nodata = read.folder.source().nodata if read.folder.file.exists() else None
        command += option_args(bands=",".join(map(str, read.study.config.bands)) or None, nodata=nodata)
        # Without minival, the selection images of the search would not be trained on.
        command += ["--set", "minival=0.1"]
        _logger.info(f"Train it fully, judged by images that the search did not see: {shell_join(command)}")
        if _is_of_paper(read):
            recipe = _GROWN_RECIPES.get(str(grown_by).lower(), _PAPER_RECIPE)
            _logger.info(f"On ImageNet, add `--recipe {recipe}`: 350 epochs instead of a short training.")


def _scaled_trial(
    read: LoadedStudy, row: TrialRow, grown_by: str | None
) -> tuple[Architecture, str, ScaledArchitecture | None]:
    """The architecture of a trial as it is written, the comment of its file, and its scaling."""
    config = read.study.config
    architecture = config.space.decode(row.point)
    comment = f"Trial {row.number} of the search {read.study.name}: {row.measurement}; reward {row.reward:.4f}"
    if grown_by is None:
        return architecture, comment, None
    # Trials of the paper's search have smaller images than the network that is found.
    recipe = get_recipe(_PAPER_RECIPE) if _is_of_paper(read) else config.recipe
    eval_image_size = recipe.eval_image_size or recipe.progressive.last.image_size
    scaled = scale_up(architecture, parse_scaling(grown_by), eval_image_size=eval_image_size)
    sizes = f"for images of {scaled.eval_image_size} px, which training ends at {scaled.train_image_size} px for"
    return scaled.architecture, f"{comment}.\nGrown by {grown_by}: {sizes}", scaled


def _is_of_paper(read: LoadedStudy) -> bool:
    return read.study.config.recipe.name == PRESETS["paper"].recipe


def _size_args(scaled: ScaledArchitecture | None) -> list[str]:
    """The image sizes of a scaled architecture, as arguments of ``train``; none below its stride."""
    if scaled is None:
        return []
    train_image_size, stride = scaled.train_image_size, scaled.architecture.stride
    with silenced():
        overrides = TrainOverrides(model=scaled.architecture, image_size=train_image_size)
        recipe, _ = requested_recipe(overrides, torch.device("cpu"))
    args = ["--image-size", str(train_image_size), "--set", f"eval_image_size={scaled.eval_image_size}"]
    if recipe.progressive.stage(0).image_size < stride:
        args += ["--set", f"progressive.image_size={{start: {stride}, end: {train_image_size}}}"]
    return args


@dataclass(frozen=True)
class Scaling:
    """Factors, at least 1, by which an architecture grows. The head stays, as in S, M and L."""

    width: float  # times the channels of stem and stages, rounded to multiples of 8
    depth: float  # times the layers of each stage, rounded up
    px: float  # times the image size at inference, up to ``MAX_EVAL_IMAGE_SIZE``
    more_layers: tuple[int, ...] = ()  # added to the last stages after that; the last number is of the last stage
    new_layers: int = 0  # of a stage added at the end, with the last one's operator and stride 1
    new_width: float = 2.0  # channels of the added stage over those of the base's last stage


# Fitted to the published tables, from which the added layers and the seventh stage are read off.
TO_M = Scaling(width=1.08, depth=7 / 6, px=1.25, more_layers=(3, 0), new_layers=5, new_width=2.0)
TO_L = Scaling(width=1.49, depth=5 / 3, px=1.25, more_layers=(4, 0), new_layers=7, new_width=2.5)


def compound_scaling(phi: float) -> Scaling:
    """EfficientNet's compound scaling: each 1 of phi (0 to ``MAX_PHI``) about doubles the multiply-adds.

    Source: arXiv:1905.11946, section 3.3: 1.2, 1.1 and 1.15 to the power of phi for depth, width and size.
    """
    return Scaling(width=1.1**phi, depth=1.2**phi, px=1.15**phi)


def parse_scaling(text: str) -> Scaling:
    """``m``, ``l``, or a number, the phi of `compound_scaling`. Raises InputError."""
    named = {"m": TO_M, "l": TO_L}
    if text.lower() in named:
        return named[text.lower()]
    try:
        phi = float(text)
    except ValueError:
        phi = math.nan
    if not 0 <= phi <= MAX_PHI:
        raise InputError(
            f"`grow` {text} must be m or l (about as EfficientNetV2-M and L grew from S), or the phi of compound "
            f"scaling, from 0 to {MAX_PHI}."
        )
    return compound_scaling(phi)


@dataclass(frozen=True)
class ScaledArchitecture:
    """A larger architecture, and its image sizes at inference and at the end of training."""

    architecture: Architecture
    eval_image_size: int
    train_image_size: int


def scale_up(base: Architecture, scaling: Scaling, *, eval_image_size: int) -> ScaledArchitecture:
    """A larger architecture by the paper's rules; ``eval_image_size`` is the base's image size at inference."""
    if len(scaling.more_layers) > len(base.stages):
        raise InputError(
            f"layers are added to {len(scaling.more_layers)} stages, but the architecture has {len(base.stages)}"
        )
    scaled = scale(base, width=scaling.width, depth=scaling.depth, rounding="v2")
    stages = list(scaled.stages)
    for place, more in enumerate(reversed(scaling.more_layers), 1):
        stages[-place] = replace(stages[-place], layers=stages[-place].layers + more)
    if scaling.new_layers:
        channels = round_channels(scaling.new_width * base.stages[-1].channels, rounding="v2")
        stages.append(replace(stages[-1], stride=1, channels=channels, layers=scaling.new_layers))
    architecture = replace(scaled, stages=tuple(stages), head_channels=base.head_channels)
    larger = max(eval_image_size, min(MAX_EVAL_IMAGE_SIZE, round(scaling.px * eval_image_size / 8) * 8))
    return ScaledArchitecture(architecture, larger, max(architecture.stride, train_size_for(larger)))


def train_size_for(eval_image_size: int) -> int:
    """The last image size of training: 20 % below that of inference, rounded down to a multiple of 20 from 100 on.

    Source: arXiv:2104.00298, Table 6, whose sizes of S, M and L this gives. The multiple of 20 is ours.
    """
    px = round(TRAIN_FRACTION * eval_image_size, 6)
    return max(1, int(px // 20 * 20 if px >= 100 else px // 1))
