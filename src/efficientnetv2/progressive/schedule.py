"""Progressive learning with adaptive regularization (Algorithm 1 of arXiv:2104.00298), and the steps of a run in it.

Image size and regularization grow together over a run, as pure functions of the step.
"""

from __future__ import annotations

import math
from bisect import bisect, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, Literal, NamedTuple

from pydantic import ConfigDict, Field, TypeAdapter, ValidationInfo, field_validator, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from efficientnetv2.preprocessing import MAX_IMAGE_SIZE
from efficientnetv2.utils.errors import InputError, pluralize

# Positions are sums of fractions: closer than this they are equal. Ours.
_EQUAL = 1e-6


def refuse_boolean_numbers(cls: Any, value: Any, info: ValidationInfo) -> Any:
    """A validator of fields: Pydantic would take true for 1, and YAML reads off as false."""
    if isinstance(value, bool) and "bool" not in str(cls.__pydantic_fields__[str(info.field_name)].annotation):
        raise PydanticCustomError("boolean", "must not be true or false")
    return value


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Ramp:
    """A quantity that goes linearly from ``start`` at the first stage to ``end`` at the last.

    With ``continuous``, it grows at every step instead of once per stage.

    Example::

        import efficientnetv2 as ev2

        schedule = ev2.ProgressiveSchedule(stages=2, image_size=224, dropout=ev2.Ramp(0.1, 0.3))
        schedule.stage(0).dropout, schedule.last.dropout  # (0.1, 0.3)
    """

    start: float
    end: float
    continuous: bool = False

    _no_boolean_numbers = field_validator("*", mode="before")(refuse_boolean_numbers)

    def at(self, fraction: float) -> float:
        """The value at a fraction of the way, 0 to 1."""
        return self.start + (self.end - self.start) * fraction


Quantity = Ramp | float


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class StepSettings:
    """The values of one step. They travel with the batch, from the sampler to the loss.

    Example::

        import efficientnetv2 as ev2

        settings = ev2.StepSettings(image_size=224, randaugment=10, dropout=0.2)
        ev2.apply_regularization(ev2.create("efficientnetv2_b0"), settings)

    Args:
        image_size: Height and width of the training images.
        randaugment: Magnitude, 0 to 30 (10 is the full range of most operations); None is off.
        mixup_alpha: Of Beta(alpha, alpha); 0 is off.
        cutmix_alpha: Of Beta(alpha, alpha); 0 is off.
        cutout: Side of the hole over the image's side, 0 to 1; 0 is off.
        dropout: Before the classifier; None is as the model was built, in a recipe 0.
        drop_path: Stochastic depth: the drop rate of block i of N (from 0) is i / N times this value; in models of
            other libraries, the last block has all of it. None as of ``dropout``.
        label_smoothing: Fraction of the label that is spread over all classes.
        extra: Further quantities, for your own training loop.
    """

    image_size: int
    randaugment: float | None = None
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    cutout: float = 0.0
    dropout: float | None = None
    drop_path: float | None = None
    label_smoothing: float = 0.0
    extra: dict[str, float] = Field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        plain: dict[str, Any] = TypeAdapter(StepSettings).dump_python(self, mode="json")
        return plain


# What a value may be. The upper end of RandAugment's magnitude is that of the common implementations
# (the paper goes to 25).
IMAGE_SIZE = (1, MAX_IMAGE_SIZE)
RANGES = {
    "image_size": IMAGE_SIZE,
    "randaugment": (0, 30),
    "mixup_alpha": (0, 100),
    "cutmix_alpha": (0, 100),
    "cutout": (0, 1),
    "dropout": (0, 0.99),
    "drop_path": (0, 0.99),
    "label_smoothing": (0, 0.99),
}


@dataclass(frozen=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class ProgressiveSchedule:
    """M stages of N/M steps: ``S_i = S_0 + (S_e - S_0) * i/(M-1)``, for the size and for each regularizer.

    A plain number holds for the whole run; a ``Ramp`` grows. With one stage every ramp is at its end, unless it is
    continuous. In random order, stages are drawn at random and the regularizers follow the size (arXiv:2104.00298,
    Table 13).

    Example::

        import efficientnetv2 as ev2

        schedule = ev2.ProgressiveSchedule(stages=4, image_size=ev2.Ramp(128, 224), randaugment=ev2.Ramp(5, 10))
        schedule.at(step=1_000, total_steps=4_000).image_size  # 160

    Raises:
        pydantic.ValidationError: A value outside its range, a ramp that falls, or no stage.

    Source: arXiv:2104.00298, Algorithm 1.
    """

    image_size: Quantity
    """Size of the training images, in pixels."""
    stages: int = Field(default=1, ge=1)
    """Number of stages, M."""
    size_multiple: int = Field(default=1, ge=1)
    """Sizes are rounded to a multiple of this."""
    stage_fractions: tuple[float, ...] | None = None
    """Share of the steps per stage, above 0, in proportion. null is equal shares."""
    order: Literal["growing", "random"] = "growing"
    """`growing` goes from the first stage to the last, `random` draws stages at random."""
    random_draws: int | None = Field(default=None, ge=1)
    """For `random`: number of draws over the run (Table 13's every 8 of 350 epochs: 44). null draws at every step."""
    seed: int | None = None
    """For `random`: seed of the draws. null is the recipe's seed, or 0 outside a recipe."""
    randaugment: Quantity | None = None
    """Magnitude of RandAugment, 0 to 30 (10 is the full range of most operations). null is off."""
    mixup_alpha: Quantity = 0.0
    """Alpha of mixup's Beta(alpha, alpha). 0 is off."""
    cutmix_alpha: Quantity = 0.0
    """Alpha of CutMix's Beta(alpha, alpha). 0 is off."""
    cutout: Quantity = 0.0
    """Side of the hole as a fraction of the image's, 0 to 1. 0 is off."""
    dropout: Quantity | None = None
    """Dropout rate before the classifier. null keeps that of the model; in a recipe it is 0."""
    drop_path: Quantity | None = None
    """Stochastic depth: the drop rate of block i of N (from 0) is i / N times this value. In models of other libraries,
    the last block has all of it. null keeps that of the model; in a recipe it is 0.
    """
    label_smoothing: Quantity = 0.0
    """Fraction of the label that is spread over all classes."""
    extra: dict[str, Quantity] = Field(default_factory=dict)
    """Further quantities by name for your own training loop; they may also fall. A recipe has none."""

    _no_boolean_numbers = field_validator("*", mode="before")(refuse_boolean_numbers)

    @model_validator(mode="after")
    def _in_range(self) -> ProgressiveSchedule:
        if self.stage_fractions is not None and not _one_each(self.stage_fractions, self.stages):
            raise ValueError(
                f"stage_fractions is {self.stage_fractions}, but must have one value above 0 for each of "
                f"{self.stages} stages"
            )
        if self.order == "random" and (self.stage_fractions is not None or self.continuous):
            raise ValueError("order is random, but stage_fractions and continuous ramps need order 'growing'")
        if self.order == "growing" and self.random_draws is not None:
            raise ValueError(f"random_draws is {self.random_draws}, but only order 'random' draws stages")
        for name, (low, high) in RANGES.items():
            quantity = getattr(self, name)
            ends = (quantity.start, quantity.end) if isinstance(quantity, Ramp) else (quantity,)
            for value in ends:
                if value is not None and not low <= value <= high:
                    raise ValueError(f"{name} is {value:g}, but must be between {low:g} and {high:g}")
            if isinstance(quantity, Ramp) and quantity.start > quantity.end:
                start, end = f"{quantity.start:g}", f"{quantity.end:g}"
                raise ValueError(f"{name} goes from {start} down to {end}: swap them ({{start: {end}, end: {start}}})")
        return self

    def at(self, step: int, *, total_steps: int) -> StepSettings:
        """The values of one step, from 0, of a run of ``total_steps``; in random order a stage may get none.

        Raises:
            InputError: The step is outside the run, or there are more growing stages than steps.
        """
        if self.order == "growing" and total_steps < self.stages:
            raise InputError(
                f"{self.stages} stages do not fit into {pluralize(total_steps, 'step')}: each needs at least one. "
                "Train longer, with smaller batches, or with `progressive.stages=1`."
            )
        if not 0 <= step < total_steps:
            raise InputError(
                f"step {step} is outside a run of {pluralize(total_steps, 'step')} (0 to {total_steps - 1})"
            )
        stage = self._stage_at(step, total_steps)
        return self._setting(stage, run_fraction=step / (total_steps - 1) if total_steps > 1 else 1.0)

    def stage_ends(self, total_steps: int) -> list[int]:
        """The steps after which a stage ends, in order; the last is the run's end.

        A schedule that always changes is one stage.
        """
        return [total_steps] if self.changes_always else self._first_steps(total_steps)[1:]

    @property
    def weights(self) -> tuple[float, ...]:
        """Each stage's fraction of the steps; they sum to 1."""
        stage_fractions = self.stage_fractions or (1.0,) * self.stages
        return tuple(share / sum(stage_fractions) for share in stage_fractions)

    def stage(self, index: int) -> StepSettings:
        """The values at the first step of a stage; with continuous ramps those of a long run. Raises InputError."""
        if not 0 <= index < self.stages:
            raise InputError(f"stage {index} does not exist: there are {self.stages}, from 0")
        return self._setting(index, run_fraction=sum(self.weights[:index]))

    @property
    def last(self) -> StepSettings:
        """The values where every ramp ends: of the last step, or in random order of the last stage."""
        return self._setting(self.stages - 1, run_fraction=1.0)

    @property
    def continuous(self) -> bool:
        """Whether anything grows at every step, so that no two steps have the same values."""
        quantities = [*vars(self).values(), *self.extra.values()]
        return any(isinstance(quantity, Ramp) and quantity.continuous for quantity in quantities)

    @property
    def changes_always(self) -> bool:
        """Whether the run has no stages with an end."""
        return self.continuous or self.order == "random"

    def with_image_size(self, end_px: int) -> ProgressiveSchedule:
        """The same schedule, its sizes scaled so that the last stage trains at ``end_px``."""
        multiple = self.size_multiple if end_px % self.size_multiple == 0 else 1
        size = self.image_size
        if not isinstance(size, Ramp) or size.start == size.end:
            return replace(self, image_size=float(end_px), size_multiple=multiple)
        start = max(multiple, size.start * end_px / size.end)
        return replace(self, image_size=Ramp(start, end_px, size.continuous), size_multiple=multiple)

    def with_stage_times(
        self, step_s: Sequence[float], stage_time: Sequence[float] | None = None
    ) -> ProgressiveSchedule:
        """The same schedule with stages so long that each takes its fraction of the time (``stage_time``, or equal).

        ``step_s`` are the measured seconds of a step of each stage. Raises InputError for another number of values.

        Source: ours. Algorithm 1 gives every stage as many steps, so that the largest images take most of the time.
        """
        wanted = (1.0,) * self.stages if stage_time is None else tuple(stage_time)
        for name, values in (("step_s", tuple(step_s)), ("stage_time", wanted)):
            if not _one_each(values, self.stages):
                raise InputError(f"{name} is {values}, but must have a value above 0 for each of {self.stages} stages.")
        steps = [share / seconds for share, seconds in zip(wanted, step_s, strict=True)]
        # Four digits: a recipe is read by people, and no measurement is better.
        return replace(self, stage_fractions=tuple(float(f"{count / sum(steps):.4g}") for count in steps))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        plain: dict[str, Any] = TypeAdapter(ProgressiveSchedule).dump_python(self, mode="json")
        return plain

    def _first_steps(self, steps: int) -> list[int]:
        """The first step of each stage, then ``steps``; every stage has at least one."""
        if self.stage_fractions is None:
            return [-(-stage * steps // self.stages) for stage in range(self.stages)] + [steps]
        first = [round(share * steps) for share in accumulate(self.weights, initial=0.0)]
        for stage in range(1, self.stages):
            first[stage] = min(max(first[stage], first[stage - 1] + 1), steps - (self.stages - stage))
        return first

    def _stage_at(self, step: int, steps: int) -> int:
        if self.order == "random":
            turn = step if self.random_draws is None else step * self.random_draws // steps
            from efficientnetv2.utils.random_key import Key  # numpy would delay the help of commands

            return int(Key.of(self.seed or 0).fold("stage", turn).generator().integers(self.stages))
        return bisect(self._first_steps(steps), step, hi=self.stages) - 1

    def _setting(self, stage: int, run_fraction: float) -> StepSettings:
        stage_fraction = stage / (self.stages - 1) if self.stages > 1 else 1.0

        def now(quantity: Quantity) -> float:
            if not isinstance(quantity, Ramp):
                return float(quantity)
            return quantity.at(run_fraction if quantity.continuous else stage_fraction)

        regularizers: dict[str, Any] = {
            name: None if (quantity := getattr(self, name)) is None else now(quantity)
            for name in RANGES
            if name != "image_size"
        }
        return StepSettings(
            image_size=max(self.size_multiple, round(now(self.image_size) / self.size_multiple) * self.size_multiple),
            extra={name: now(quantity) for name, quantity in self.extra.items()},
            **regularizers,
        )


def _one_each(values: Sequence[float], stages: int) -> bool:
    """Whether there is a finite number above 0 for each stage."""
    return len(values) == stages and all(0 < value < math.inf for value in values)


class Revision(NamedTuple):
    """Another number of steps for the rest of a run."""

    decided: int  # Steps done when the revision was made
    step: int  # Steps done from which it holds
    steps: int  # Of the whole run


class StepPlan:
    """How many steps a run has, and the position of each step in the recipe's schedule.

    Image size, regularization and learning rate are functions of the position, 0 to ``scheduled``. Without a revision,
    step ``n`` has position ``n``. A revision changes how fast later steps pass through the rest of the schedule;
    positions never jump and never go back. Steps whose images were ``requested`` can't be revised.

    Example:
        >>> plan = StepPlan(100)
        >>> plan.revise(Revision(decided=50, step=50, steps=75))  # half as many steps for the second half
        >>> plan.steps, plan.position(50), plan.position(60), plan.position(75)
        (75, 50.0, 70.0, 100.0)
    """

    def __init__(self, scheduled: int, revisions: Iterable[Revision] = ()) -> None:
        self.scheduled = scheduled
        self.revisions: list[Revision] = []
        self.requested = 0
        self._parts: list[tuple[int, float, int]] = [(0, 0.0, scheduled)]  # first step, its position, steps
        for revision in revisions:
            self.revise(revision)

    @property
    def steps(self) -> int:
        """Number of steps of the whole run, as planned now."""
        return self._parts[-1][2]

    def position(self, step: int) -> float:
        """Position in the schedule after ``step`` steps, from 0 to ``scheduled``."""
        first, begin, steps = self._parts[bisect_right(self._parts, step, key=lambda part: part[0]) - 1]
        if step >= steps:
            return float(self.scheduled)
        return begin + (self.scheduled - begin) * (step - first) / (steps - first)

    def scheduled_step(self, step: int) -> int:
        """The step of the schedule that a step of the run, from 0, takes its values from."""
        return min(self.scheduled - 1, math.floor(self.position(step) + _EQUAL))

    def passes(self, step: int, moments: Sequence[int]) -> bool:
        """Whether the run reaches one of some ascending positions with the last of ``step`` steps."""
        before, after = (self.position(one) + _EQUAL for one in (step - 1, step))
        return bisect_right(moments, after) > bisect_right(moments, before)

    def revise(self, revision: Revision) -> None:
        """Add a revision. Raises ValueError if it changes steps before an earlier one, or ends the run too soon."""
        if revision.step < self._parts[-1][0] or revision.steps < max(1, revision.step):
            raise ValueError(f"{revision} does not follow {self._parts[-1]}")
        begin = self.position(revision.step)
        self._parts = [part for part in self._parts if part[0] < revision.step]
        self._parts.append((revision.step, begin, revision.steps))
        self.revisions.append(revision)
