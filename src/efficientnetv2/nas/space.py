"""The search space as data: what may be decided about each stage of a backbone.

A *decision* is one choice, such as ``stage2.kind``. A *point* is one index into the options of each decision, and
decodes to an `Architecture`. Where a stage is removed, its other decisions have no effect: the *canonical* point has
index 0 there. Only canonical points are counted, sampled and neighbors, so that each architecture is one point.

Source: the factorized space of arXiv:2104.00298, section 3.3 (after MnasNet, arXiv:1807.11626).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

from pydantic import ConfigDict, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass

from efficientnetv2.architectures.registry import EFFICIENTNETV2_B0, get_architecture, scale
from efficientnetv2.architectures.spec import Architecture, Stage
from efficientnetv2.nas.stage_choices import (
    SE,
    Decision,
    Option,
    Point,
    StageChoices,
    build_stage,
    default_se,
    format_options,
    validate_json,
)
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.random_key import Key

# Source: arXiv:2104.00298, section 3.3.
KERNELS = (3, 5)
EXPANDS = (1, 4, 6)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Space:
    """The architectures around a backbone, which is one of them.

    The backbone gives stem, head, padding, batch norm and strides. Only stages of stride 1 can be removed, so that
    every architecture has the backbone's total stride; and of adjacent stages of stride 1 only one, so that an
    architecture is one point.
    Raises pydantic.ValidationError: stages that do not fit the backbone, or nothing to decide.
    """

    backbone: Architecture
    stages: tuple[StageChoices, ...]

    @model_validator(mode="after")
    def _validate(self) -> Space:
        num_stages = len(self.backbone.stages)
        if len(self.stages) != num_stages:
            raise ValueError(f"there are choices for {len(self.stages)} stages, but the backbone has {num_stages}")
        for run in _runs(self.backbone.stages):
            removable = [index for index in run if self.stages[index].removable]
            if len(removable) > 1 or any(self.backbone.stages[index].stride != 1 for index in removable):
                numbers = format_options(index + 1 for index in removable)
                raise ValueError(
                    f"stage {numbers} may have 0 layers, but only one of adjacent stages of stride 1 can be removed, "
                    "and none of stride 2"
                )
        if all(stage.removable for stage in self.stages):
            raise ValueError("every stage may have 0 layers, but an architecture has at least one: keep one")
        if not self.decisions:
            raise ValueError("every field has a single option, so there is nothing to search")
        try:
            self.encode(self.backbone)
        except InputError as error:
            raise ValueError(f"the backbone is not in its own space: {error}") from error
        return self

    @cached_property
    def decisions(self) -> tuple[Decision, ...]:
        """What a search decides, stage by stage."""
        return tuple(
            Decision(f"stage{number}.{field}", options)
            for number, stage in enumerate(self.stages, 1)
            for field, options in stage.decided.items()
        )

    @property
    def count(self) -> int:
        """The exact number of different architectures."""
        return math.prod(len(stage.parts) for stage in self.stages)

    def choices(self, point: Point) -> dict[str, Option]:
        """The options of a point by the decision's name: ``{"stage2.kind": "fused", ...}``."""
        return {name: options[index] for index, (name, options) in zip(point, self.decisions, strict=True)}

    def point(self, choices: Mapping[str, Option]) -> Point:
        """The canonical point of options by name."""
        return self.canonical(tuple(options.index(choices[name]) for name, options in self.decisions))

    def canonical(self, point: Point) -> Point:
        """The canonical point of the same architecture."""
        return tuple(itertools.chain(*map(StageChoices.canonical, self.stages, self._parts(point))))

    def effective(self, point: Point) -> tuple[bool, ...]:
        """Which decisions of a point have an effect."""
        return tuple(itertools.chain(*map(StageChoices.effective, self.stages, self._parts(point))))

    def decode(self, point: Point) -> Architecture:
        """The architecture of a point, canonical or not."""
        stages = []
        for choices, stage, part in zip(self.stages, self.backbone.stages, self._parts(point), strict=True):
            values = choices.values(part)
            if values["layers"] != 0:
                stages.append(build_stage(values, stride=stage.stride))
        return replace(self.backbone, stages=tuple(stages))

    def encode(self, architecture: Architecture) -> Point:
        """The canonical point of an architecture; `decode` is the inverse. Raises InputError with a difference."""
        for field in ("stem_channels", "head_channels", "padding", "batch_norm_epsilon", "global_pool"):
            found, wanted = getattr(architecture, field), getattr(self.backbone, field)
            if found != wanted:
                raise InputError(f"{field} is {found}, but {wanted} in every architecture of this space")
        aligned = enumerate(zip(self.stages, self._align(architecture), strict=True), 1)
        parts = (choices.encode(stage, number) for number, (choices, stage) in aligned)
        return tuple(itertools.chain.from_iterable(parts))

    def sample(self, key: Key) -> Point:
        """A canonical point, drawn uniformly over architectures."""
        generator = key.generator()
        parts = (stage.parts[generator.integers(len(stage.parts))] for stage in self.stages)
        return tuple(itertools.chain.from_iterable(parts))

    def points(self) -> Iterator[Point]:
        """Every canonical point once, in a fixed order."""
        for parts in itertools.product(*(stage.parts for stage in self.stages)):
            yield tuple(itertools.chain.from_iterable(parts))

    def neighbors(self, point: Point) -> tuple[Point, ...]:
        """The canonical points one decision away, a symmetric relation.

        Removing a stage is one decision, so a removed stage also comes back by one, with any of its options.
        """
        parts = self._parts(self.canonical(point))
        return tuple(
            tuple(itertools.chain(*parts[:place], other, *parts[place + 1 :]))
            for place, (choices, part) in enumerate(zip(self.stages, parts, strict=True))
            for other in choices.neighbors(part)
        )

    def describe(self) -> str:
        """A line for each stage with its options, and how many architectures there are."""
        lines = []
        for number, (choices, stage) in enumerate(zip(self.stages, self.backbone.stages, strict=True), 1):
            fields = [
                f"{'squeeze-excite' if field == 'se' else field} {format_options(options)}"
                for field, options in choices.options.items()
                if field != "se" or not isinstance(choices.se, str)
            ]
            lines.append(f"stage {number}, stride {stage.stride}: {', '.join(fields)}")
        return "\n".join([*lines, f"{self.count:,} networks, {len(self.decisions)} decisions"])

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` is the inverse."""
        plain: dict[str, Any] = TypeAdapter(Space).dump_python(self, mode="json")
        return plain

    @classmethod
    def from_json(cls, plain: Any) -> Space:
        """Validate plain values. Raises InputError, which names the field."""
        return validate_json(cls, plain, "a search space")

    def _parts(self, point: Point) -> list[Point]:
        rest = iter(point)
        return [tuple(itertools.islice(rest, len(stage.decided))) for stage in self.stages]

    def _align(self, architecture: Architecture) -> list[Stage | None]:
        """The stages of an architecture in the places of the backbone's; None where one is removed."""
        ours, theirs = _runs(self.backbone.stages), _runs(architecture.stages)
        if len(ours) != len(theirs):
            strides = [format_options(stage.stride for stage in spec.stages) for spec in (architecture, self.backbone)]
            raise InputError(f"it has strides {strides[0]}, but the architectures of this space {strides[1]}")
        aligned: list[Stage | None] = []
        for our, their in zip(ours, theirs, strict=True):
            stages: list[Stage | None] = [architecture.stages[index] for index in their]
            removable = [index - our[0] for index in our if self.stages[index].removable]
            if len(our) == len(their) + 1 and removable:
                stages.insert(removable[0], None)
            if len(stages) != len(our):
                numbers = format_options(index + 1 for index in our)
                most = len(removable) or "none"
                raise InputError(
                    f"it has {len(their)} stages where this space has {numbers} ({most} of them can be removed)"
                )
            aligned += stages
        return aligned


def _runs(stages: Iterable[Stage]) -> list[list[int]]:
    """Indices of stages, a new run at each stride of 2; the first run may be empty."""
    runs: list[list[int]] = [[]]
    for index, stage in enumerate(stages):
        if stage.stride != 1:
            runs.append([])
        runs[-1].append(index)
    return runs


def require_image_size(space: Space, image_size: int) -> None:
    """Refuse an image size below the stride of a space's architectures."""
    stride = space.backbone.stride
    if image_size < stride:
        raise InputError(f"images of {image_size} px are smaller than the stride. Use {stride} px or more.")


def paper_space() -> Space:
    """The paper's space: around EfficientNet-B4, whose channels and strides its architectures keep.

    Source: arXiv:2104.00298, section 3.3. The numbers of layers to choose from are not published: see `space_around`.
    """
    return space_around(get_architecture("efficientnet_b4"))


def space_around(backbone: Architecture) -> Space:
    """The paper's choices around the channels and strides of any architecture, which is in the space too.

    Each stage chooses MBConv or Fused-MBConv, kernel 3 or 5, expansion 1, 4 or 6, and from 1 to twice the backbone's
    layers (ours: with EfficientNet-B4 this includes all of EfficientNetV2-S but its channels). The last of adjacent
    stages of stride 1 can be removed.
    """
    strides = [stage.stride for stage in backbone.stages]
    pairs = zip(strides, [*strides[1:], None], strict=True)
    is_last = [stride == 1 and after != 1 for stride, after in pairs]
    removable = sum(is_last) < len(strides)  # A single stage has to stay.
    choices = []
    for stage, last in zip(backbone.stages, is_last, strict=True):
        operator = stage.operator
        choices.append(
            StageChoices(
                channels=(stage.channels,),
                layers=tuple(range(0 if removable and last else 1, 2 * stage.layers + 1)),
                kernels=tuple(sorted({*KERNELS, operator.kernel})),
                expands=tuple(sorted({*EXPANDS, operator.expand})),
                se="by kind" if operator.se == default_se(operator.kind) else (None, operator.se or SE),
            )
        )
    return Space(backbone, tuple(choices))


def small_space() -> Space:
    """A space for tiny budgets: architectures for images of 64 px that a CPU trains in seconds.

    Around `small_b0`. Decides what matters most at that size: at 64 px the last feature maps are 2 x 2, where a kernel
    of 5 sees no more than one of 3. Ours.
    """
    return Space(
        small_b0(),
        (
            StageChoices(channels=(8,), layers=(1,), kinds=("fused",), kernels=(3,), expands=(1,)),
            StageChoices(channels=(16,), layers=(1, 2), kernels=(3,), expands=(1, 4)),
            StageChoices(channels=(24,), layers=(1, 2), kernels=KERNELS, expands=(1, 4)),
            StageChoices(channels=(48,), layers=(1, 2), kernels=(3,), expands=(1, 4)),
            StageChoices(channels=(56,), layers=(0, 1, 3), kernels=(3,), expands=(1, 6)),
            StageChoices(channels=(96,), layers=(2, 4), kernels=(3,), expands=(1, 6)),
        ),
    )


def small_b0() -> Architecture:
    """EfficientNetV2-B0 at half its width and depth: the backbone of `small_space`."""
    return scale(EFFICIENTNETV2_B0, width=0.5, depth=0.5, rounding="v2")
