"""The networks that a search chooses from, as data: what may be decided about each stage of a backbone.

A *decision* is one choice, such as ``stage2.kind``; a *point* is one index into the options of each decision; every
point decodes to an ``Architecture`` that can be built. Where a stage is removed (0 layers), what else its decisions
say changes nothing: the *canonical* point of a network has index 0 there, and only canonical points are counted,
drawn and neighbours, so that each network is one point.

Source: the factorised space of arXiv:2104.00298, section 3.3 (after MnasNet, arXiv:1807.11626): per stage the
operator, its kernel, its expansion and the number of layers, around the channels and strides of a backbone.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from efficientnetv2.architectures.spec import Architecture, Stage
from efficientnetv2.nas.stage_choices import FIELDS, Decision, Option, Point, StageChoices, listed, made
from efficientnetv2.utils.errors import InputError, first_error
from efficientnetv2.utils.rng import Key

Value = TypeVar("Value")


def checked(kind: type[Value], plain: Any, what: str) -> Value:
    """A value as if it had been made by hand.

    Args:
        kind: of the value: a pydantic dataclass.
        plain: what JSON gave.
        what: the message begins with it: ``a search space``.

    Raises:
        InputError: an unknown field, or a value out of range; says where.
    """
    try:
        return TypeAdapter(kind).validate_python(plain)
    except ValidationError as error:
        raise InputError(f"{what} cannot be read: {first_error(error.errors())}.") from error


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Space:
    """The networks around a backbone; itself one of them.

    A stage may be removed only where its stride is 1, so that every network of a space halves the picture as often
    as its backbone; and of stages with stride 1 that follow each other only one, so that a network is one point.

    Args:
        backbone: gives stem, head, padding, batch-norm and each stage's stride.
        stages: what may be decided, for each stage of the backbone.

    Raises:
        pydantic.ValidationError: stages that do not go with the backbone, a stage that cannot be removed, a backbone
            that is none of the networks, or nothing to decide.
    """

    backbone: Architecture
    stages: tuple[StageChoices, ...]

    @model_validator(mode="after")
    def _possible(self) -> Space:
        there = len(self.backbone.stages)
        if len(self.stages) != there:
            raise ValueError(f"there are choices for {len(self.stages)} stages, but the backbone has {there}")
        for run in _runs([stage.stride for stage in self.backbone.stages]):
            removable = [index for index in run if self.stages[index].removable]
            for index in removable:
                if self.backbone.stages[index].stride != 1:
                    raise ValueError(
                        f"stage {index + 1} may have 0 layers, but has stride 2: without it the maps of all stages "
                        "after it would be twice as wide. Only stages with stride 1 can be removed"
                    )
            if len(removable) > 1:
                raise ValueError(
                    f"stages {listed(index + 1 for index in removable)} may have 0 layers, but of stages with stride "
                    "1 that follow each other only one can be removed: else one network would be several points"
                )
        if all(stage.removable for stage in self.stages):
            raise ValueError("every stage may have 0 layers, but a network has at least one: keep one")
        if not self.decisions:
            raise ValueError("every field has a single option, so there is nothing to search")
        try:
            self.encode(self.backbone)
        except InputError as error:
            raise ValueError(f"the backbone is none of the networks of its space: {error}") from error
        return self

    @cached_property
    def decisions(self) -> tuple[Decision, ...]:
        """What a search decides, stage by stage; a field with one option is none."""
        return tuple(
            Decision(f"stage{number}.{field}", options)
            for number, stage in enumerate(self.stages, 1)
            for field, options in stage.decided.items()
        )

    @property
    def count(self) -> int:
        """How many different architectures there are, exactly."""
        return math.prod(len(stage.parts) for stage in self.stages)

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that two spaces share only if they are equal, their options' order included."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def choices(self, point: Point) -> dict[str, Option]:
        """What a point says, by name: ``{"stage2.kind": "fused", ...}``.

        Raises:
            InputError: no point of this space.
        """
        if len(point) != len(self.decisions):
            raise InputError(
                f"a point of this space has {len(self.decisions)} numbers, one for each decision, but there are "
                f"{len(point)}"
            )
        for index, decision in zip(point, self.decisions, strict=True):
            if not 0 <= index < len(decision.options):
                raise InputError(
                    f"{decision.name} has {len(decision.options)} options (0 to {len(decision.options) - 1}), but the "
                    f"point has {index} there"
                )
        return {one.name: one.options[index] for index, one in zip(point, self.decisions, strict=True)}

    def point(self, choices: Mapping[str, Option]) -> Point:
        """The canonical point of choices by name.

        Raises:
            InputError: a decision is missing, is none of this space, or has no such option.
        """
        names = {decision.name for decision in self.decisions}
        if wrong := sorted(names ^ set(choices)):
            state = "is missing" if wrong[0] in names else "is no decision of this space"
            raise InputError(f"'{wrong[0]}' {state}; decisions: {', '.join(sorted(names))}")
        for name, options in self.decisions:
            if choices[name] not in options:
                raise InputError(f"{name} is {choices[name]}, but is one of {listed(options)}")
        point = tuple(options.index(choices[name]) for name, options in self.decisions)
        return self.canonical(point)

    def canonical(self, point: Point) -> Point:
        """The one point that stands for its network: index 0 wherever a removed stage's decision is.

        Raises:
            InputError: no point of this space.
        """
        self.choices(point)
        return tuple(
            itertools.chain.from_iterable(map(StageChoices.canonical, self.stages, self._parts(point)))
        )

    def effective(self, point: Point) -> tuple[bool, ...]:
        """Which decisions of a point have an effect: all, but those of a removed stage other than that it is.

        Raises:
            InputError: no point of this space.
        """
        self.choices(point)
        pairs = zip(self.stages, self._parts(point), strict=True)
        return tuple(itertools.chain.from_iterable(choices.effective(part) for choices, part in pairs))

    def decode(self, point: Point) -> Architecture:
        """The network of a point, canonical or not.

        Raises:
            InputError: no point of this space.
        """
        self.choices(point)
        stages = []
        for choices, stage, part in zip(self.stages, self.backbone.stages, self._parts(point), strict=True):
            values = choices.values(part)
            if values["layers"] != 0:
                stages.append(made(values, stride=stage.stride))
        return replace(self.backbone, stages=tuple(stages))

    def encode(self, architecture: Architecture) -> Point:
        """The canonical point of a network: ``decode`` gives the network back.

        Raises:
            InputError: it is none of this space; says where they part.
        """
        for field in ("stem_channels", "head_channels", "padding", "batch_norm_epsilon", "pooling"):
            found, wanted = getattr(architecture, field), getattr(self.backbone, field)
            if found != wanted:
                raise InputError(f"{field} is {found}, but {wanted} in every network of this space")
        aligned = enumerate(zip(self.stages, self._aligned(architecture), strict=True), 1)
        return tuple(
            itertools.chain.from_iterable(choices.part(stage, number) for number, (choices, stage) in aligned)
        )

    def sample(self, key: Key) -> Point:
        """A canonical point, every network as likely as every other."""
        generator = key.generator()
        parts = (stage.parts[generator.integers(len(stage.parts))] for stage in self.stages)
        return tuple(itertools.chain.from_iterable(parts))

    def points(self) -> Iterator[Point]:
        """Every network once, in a fixed order; there are ``count``."""
        for parts in itertools.product(*(stage.parts for stage in self.stages)):
            yield tuple(itertools.chain.from_iterable(parts))

    def neighbours(self, point: Point) -> tuple[Point, ...]:
        """The canonical points one decision away.

        Removing a stage is one decision, so a removed stage comes back by one too, with whatever its others say:
        a point is its neighbours' neighbour.

        Raises:
            InputError: no point of this space.
        """
        parts = self._parts(self.canonical(point))
        found: list[Point] = []
        for place, (choices, part) in enumerate(zip(self.stages, parts, strict=True)):
            for other in choices.near(part):
                found.append(tuple(itertools.chain(*parts[:place], other, *parts[place + 1 :])))
        return tuple(found)

    def describe(self) -> str:
        """A line for each stage with its options, and how many networks there are."""
        lines = []
        for number, (choices, stage) in enumerate(zip(self.stages, self.backbone.stages, strict=True), 1):
            fields = [
                f"{field} {listed(options)}" for field, options in choices.options.items() if field != "se"
            ]
            squeezed = "" if choices.se == "by kind" else f", squeeze-excite {listed(choices.se)}"
            lines.append(f"stage {number}, stride {stage.stride}: {', '.join(fields)}{squeezed}")
        return "\n".join([*lines, f"{self.count:,} networks, {len(self.decisions)} decisions"])

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; ``from_json`` gives an equal ``Space``."""
        plain: dict[str, Any] = TypeAdapter(Space).dump_python(self, mode="json")
        return plain

    @classmethod
    def from_json(cls, plain: Any) -> Space:
        """Checked as if it had been made by hand.

        Raises:
            InputError: an unknown field, or a value out of range; says where.
        """
        return checked(cls, plain, "a search space")

    def _parts(self, point: Point) -> list[Point]:
        """A point, stage by stage."""
        rest = iter(point)
        return [tuple(itertools.islice(rest, len(stage.decided))) for stage in self.stages]

    def _aligned(self, architecture: Architecture) -> list[Stage | None]:
        """The network's stages beside those of the backbone; None where one is removed."""
        ours = _runs([stage.stride for stage in self.backbone.stages])
        theirs = _runs([stage.stride for stage in architecture.stages])
        if len(ours) != len(theirs):
            raise InputError(
                f"it has strides {listed(stage.stride for stage in architecture.stages)}, but this space's networks "
                f"{listed(stage.stride for stage in self.backbone.stages)}"
            )
        aligned: list[Stage | None] = []
        for our, their in zip(ours, theirs, strict=True):
            stages: list[Stage | None] = [architecture.stages[index] for index in their]
            removable = [index - our[0] for index in our if self.stages[index].removable]
            if len(our) == len(their) + 1 and removable:
                stages.insert(removable[0], None)
            if len(stages) != len(our):
                raise InputError(
                    f"it has {len(their)} stages where this space has {listed(index + 1 for index in our)} "
                    f"({'of which one' if removable else 'of which none'} can be removed)"
                )
            aligned += stages
        return aligned


def _runs(strides: Iterable[int]) -> list[list[int]]:
    """Indices of stages, a new run with each stride of 2; the first run may be empty."""
    runs: list[list[int]] = [[]]
    for index, stride in enumerate(strides):
        if stride != 1:
            runs.append([])
        runs[-1].append(index)
    return runs


def difference(here: Space, there: Space) -> str | None:
    """Where two spaces part, in words; None if they are equal.

    Args:
        here: what is asked for.
        there: what a study has.
    """
    for field in (name for name in here.backbone.to_json() if name != "stages"):
        mine, other = getattr(here.backbone, field), getattr(there.backbone, field)
        if mine != other:
            return f"the backbone's {field} is {mine} here and {other} there"
    if len(here.stages) != len(there.stages):
        return f"{len(here.stages)} stages here and {len(there.stages)} there"
    for number, (mine, other) in enumerate(zip(here.stages, there.stages, strict=True), 1):
        for field in FIELDS:
            if mine.options[field] != other.options[field]:
                return (
                    f"stage {number}: {field} is one of {listed(mine.options[field])} here and "
                    f"{listed(other.options[field])} there"
                )
    return None if here == there else "the backbone's own stages differ"


def require_room(space: Space, image_px: int) -> None:
    """Refuse pictures that the networks of a space would shrink to nothing.

    Args:
        space: to search.
        image_px: side of the smallest pictures that a trial shows its network.

    Raises:
        InputError: the picture is smaller than the networks' stride.
    """
    stride = space.backbone.stride
    if image_px < stride:
        raise InputError(
            f"pictures of {image_px} px are smaller than the stride of this space's networks, {stride}: their last "
            f"maps would be less than one pixel. Take pictures of {stride} px or more, or a backbone with fewer "
            "strides of 2."
        )


def other_version(begun: str | None, here: str) -> str | None:
    """What to say where a study goes on with another version of the package; None if it is the same.

    Args:
        begun: the version that measured the backbone; None where it was not written down.
        here: this one.
    """
    if begun == here:
        return None
    return (
        f"The study was begun with efficientnetv2 {begun or 'of an earlier version'} and goes on with {here}; steps "
        "are told at the pace of the backbone's as it was then. If some blocks have become faster or slower since and "
        "others not, rewards of before and after do not compare: begin another study for those that do."
    )
