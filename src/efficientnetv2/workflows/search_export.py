"""What ``search export`` does: write a network found as a file, and say how it is trained."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import torch

from efficientnetv2.architectures import io
from efficientnetv2.architectures.registry import round_channels, scale
from efficientnetv2.architectures.spec import Architecture
from efficientnetv2.nas.objective import figures
from efficientnetv2.nas.results import Row, best
from efficientnetv2.training.overrides import TrainOverrides, requested_recipe
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.logs import silenced
from efficientnetv2.utils.shell import shell_join
from efficientnetv2.workflows.outputs import refuse_others, tell_replaced
from efficientnetv2.workflows.search_report import Read

_logger = logging.getLogger(__name__)

MOST_PX = 480  # at inference: arXiv:2104.00298, section 3.3
# Of compound scaling: about a million times the multiply-adds. Ours; the largest EfficientNet published, L2, is 4.3 =
# 1.1**15.3 times as wide as B0 (arXiv:1911.04252).
MOST_PHI = 20
TRAIN_SHARE = 0.8  # "about 20 % smaller": Table 6 has 300 px for 384 (S) and 380 px for 480 (M, L)


@dataclass(frozen=True)
class Growth:
    """How much larger a network becomes.

    Args:
        width: times the channels of stem and stages, rounded to multiples of 8. The head stays, as in S, M and L.
        depth: times the layers of each stage, rounded up.
        px: times the side of the pictures at inference, of which there are at most ``MOST_PX``.
        more_layers: added to the last stages of the base after that; the last number is of the last stage.
        new_layers: of a stage that is added at the end, its operator that of the last one, its stride 1; 0 for none.
        new_width: its channels over those of the base's last stage.

    Raises:
        InputError: a coefficient below 1, or a negative number of layers.
    """

    width: float
    depth: float
    px: float
    more_layers: tuple[int, ...] = ()
    new_layers: int = 0
    new_width: float = 2.0

    def __post_init__(self) -> None:
        for name in ("width", "depth", "px", "new_width"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 1):
                raise InputError(f"{name} is {value:g}, but a network grows: give 1 or more")
        for layers in (*self.more_layers, self.new_layers):
            if layers < 0:
                raise InputError(f"{layers} layers cannot be added: give 0 or more")


# Fitted, see above. The layers added to stage 5, and the seventh stage, are read off the published tables.
TO_M = Growth(width=1.08, depth=7 / 6, px=1.25, more_layers=(3, 0), new_layers=5, new_width=2.0)
TO_L = Growth(width=1.49, depth=5 / 3, px=1.25, more_layers=(4, 0), new_layers=7, new_width=2.5)
# Of the published M and L, by the number of the stage: what S and the coefficient do not give.
M_CHANNELS: Mapping[int, int] = MappingProxyType({3: 80, 4: 160, 6: 304})
L_CHANNELS: Mapping[int, int] = MappingProxyType({2: 64, 5: 224})


def compound(phi: float) -> Growth:
    """EfficientNet's compound scaling: each step of phi about doubles the multiply-adds.

    Args:
        phi: 0 changes nothing; at most ``MOST_PHI``.

    Raises:
        InputError: phi below 0, or so large that it can only be a mistake.

    Source: arXiv:1905.11946, section 3.3: 1.2, 1.1 and 1.15 to the power of phi for depth, width and size.
    """
    if not 0 <= phi <= MOST_PHI:
        raise InputError(
            f"phi is {phi:g}, but is from 0 to {MOST_PHI}: compound scaling makes larger networks, and each 1 of it "
            "about doubles the multiply-adds"
        )
    return Growth(width=1.1**phi, depth=1.2**phi, px=1.15**phi)


def growth_of(word: str) -> Growth:
    """A growth by a word: ``m``, ``l``, or a number, the phi of ``compound``.

    Raises:
        InputError: none of them.
    """
    named = {"m": TO_M, "l": TO_L}
    if word.lower() in named:
        return named[word.lower()]
    try:
        return compound(float(word))
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"'{word}' is no way to grow: give m or l, which make of a network what became of EfficientNetV2-S, or "
            f"the phi of compound scaling, a number from 0 to {MOST_PHI}"
        ) from error


@dataclass(frozen=True)
class Grown:
    """A larger network, and the pictures it is for.

    Args:
        architecture: the table.
        eval_px: side of the pictures at inference.
        train_px: side of the largest ones in training; at least the network's stride.
    """

    architecture: Architecture
    eval_px: int
    train_px: int


def grow(
    base: Architecture, growth: Growth, *, eval_px: int, channels: Mapping[int, int] | None = None
) -> Grown:
    """A larger network by the paper's rules.

    Args:
        base: a found network, say.
        growth: how much larger: ``TO_M``, ``TO_L``, ``compound(phi)`` or one's own.
        eval_px: side of the base's pictures at inference.
        channels: of stages by their numbers, from 1, in place of those that the width coefficient gives.

    Raises:
        InputError: layers are added to more stages than there are, or channels are given of a stage that is not there.
    """
    if len(growth.more_layers) > len(base.stages):
        raise InputError(
            f"layers are added to {len(growth.more_layers)} stages, but the network has {len(base.stages)}"
        )
    scaled = scale(base, width=growth.width, depth=growth.depth, rounding="v2")
    stages = list(scaled.stages)
    for place, more in enumerate(reversed(growth.more_layers), 1):
        stages[-place] = replace(stages[-place], layers=stages[-place].layers + more)
    if growth.new_layers:
        wide = round_channels(growth.new_width * base.stages[-1].channels, rounding="v2")
        stages.append(replace(stages[-1], stride=1, channels=wide, layers=growth.new_layers))
    for number, wide in (channels or {}).items():
        if not 1 <= number <= len(stages):
            raise InputError(
                f"channels are given of stage {number}, but the grown network has {len(stages)} stages"
            )
        stages[number - 1] = replace(stages[number - 1], channels=wide)
    architecture = replace(scaled, stages=tuple(stages), head_channels=base.head_channels)
    larger_px = min(MOST_PX, round(growth.px * eval_px / 8) * 8)
    return Grown(architecture, larger_px, max(architecture.stride, training_px(larger_px)))


def training_px(eval_px: int) -> int:
    """Side of the largest pictures in training: 20 % below that of inference, down to a multiple of 20 where it can.

    Args:
        eval_px: of inference.

    Source: arXiv:2104.00298, Table 6, whose sizes of S, M and L this gives. The multiple of 20 is ours.
    """
    px = round(TRAIN_SHARE * eval_px, 6)
    return max(1, int(px // 20 * 20 if px >= 100 else px // 1))


# The head of a file that was written here: whose network it is, and how it was grown.
_WRITTEN = re.compile(r"# Trial (?P<trial>\d+) of the search [^\n]*(?:\n# Grown by (?P<grown>\S+): )?")


def export_found(
    path: Path, storage: str | None, wait: float, *, out: Path | None, trial: int | None, grown_by: str | None
) -> None:
    """Write a network as a file.

    Raises:
        InputError: there is no study, no such trial, no such way to grow, the file can't be written, or the study's own
            has been changed by hand.
    """
    if grown_by is not None:
        growth_of(grown_by)  # refused before the study is read
    read = Read.of(path, storage, wait)
    if trial is None:
        row = best(read.rows)[0]
    else:
        row = next((one for one in read.rows if one.number == trial), None) or _missing(trial, read)
    network, told, larger = _exported(read, row, grown_by)
    target = _place(read, out)
    tell_replaced(target)
    io.write(target, network, comment=told)
    _logger.info(f"{told}.")
    _logger.info(f"Written: {target}")
    if read.folder.pictures_file.exists():
        sized = [] if larger is None else _sizes(larger)
        words = ["effnetv2", "train", str(read.folder.pictures_file), "--model", str(target), *sized]
        words += _bands(read)
        # Else those that chose among networks, which the table calls minival, would be left aside.
        words += ["--set", "minival=0.1"]
        _logger.info(f"Train it fully, judged by pictures that the search did not see: {shell_join(words)}")


def _exported(read: Read, row: Row, grown_by: str | None) -> tuple[Architecture, str, Grown | None]:
    """The network of a trial as it is written, what its file says of it, and what it was grown to."""
    plan = read.study.plan
    network = plan.space.decode(row.point)
    told = f"Trial {row.number} of the search {read.study.name}: {figures(row.measurement)}; reward {row.reward:.4f}"
    if grown_by is None:
        return network, told, None
    eval_px = plan.recipe.eval_px or plan.recipe.progressive.last.image_px
    larger = grow(network, growth_of(grown_by), eval_px=eval_px)
    sizes = f"for pictures of {larger.eval_px} px, which training ends at {larger.train_px} px for"
    return larger.architecture, f"{told}.\nGrown by {grown_by}: {sizes}", larger


def _bands(read: Read) -> list[str]:
    """Words of ``train`` for the bands that the networks were compared on; the list of pictures does not say them."""
    bands = read.study.plan.bands
    if bands is None and read.folder.file.exists():  # begun before plans kept them
        said = read.folder.source().bands
    else:
        said = ",".join(map(str, bands or ())) or None
    return [] if said is None else ["--bands", said]


def _sizes(grown: Grown) -> list[str]:
    """Words of ``train`` for the pictures of a larger network; they begin at its stride where they would below it."""
    train_px, stride = grown.train_px, grown.architecture.stride
    words = TrainOverrides(model=grown.architecture, image_px=train_px)
    with silenced():
        recipe, _ = requested_recipe(words, torch.device("cpu"))
    said = ["--image-px", str(train_px), "--set", f"eval_px={grown.eval_px}"]
    if recipe.progressive.stage(0).image_px < stride:
        said += ["--set", f"progressive.image_px={{start: {stride}, end: {train_px}}}"]
    return said


def _place(read: Read, out: Path | None) -> Path:
    why = "a network's table may have been changed by hand"
    if out is None:
        folder = read.folder
        folder.make()  # of a study that other machines work for there may be none here
        found = folder.path / "found.yaml"
        if found.exists() and not _as_written(read, found):
            raise InputError(
                f"{found} is not as it was exported: {why}, and would be lost. Give another file (--out), or remove it."
            )
        return found
    if not io.is_architecture_file(str(out)):
        raise InputError(
            f"--out {out}: give a file that ends in .yaml, .yml or .json, so that train knows it."
        )
    refuse_others(out, "--out", lambda file: False, why)
    return out


def _as_written(read: Read, file: Path) -> bool:
    """Whether a file is to the letter what an export of the trial that its head names writes."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    head = _WRITTEN.match(text)
    row = None if head is None else next((one for one in read.rows if str(one.number) == head["trial"]), None)
    if head is None or row is None:
        return False
    try:
        network, told, _ = _exported(read, row, head["grown"])
    except InputError:  # no such way to grow
        return False
    return text == io.text_of(network, comment=told)


def _missing(trial: int, read: Read) -> Row:
    numbers = [row.number for row in read.rows]
    there = f"0 to {max(numbers)}" if numbers else "none"
    raise InputError(f"--trial {trial}: no such trial has ended; there are {there}.")
