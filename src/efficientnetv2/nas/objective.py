"""What is measured of one architecture in a search, and the reward computed from it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass

from efficientnetv2.nas.stage_choices import validate_json
from efficientnetv2.utils.errors import InputError

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Exponent = Annotated[float, Field(le=0, allow_inf_nan=False)]  # Above 0, a higher cost would be rewarded.
_COSTS = {
    "step_seconds": ("S", "the time of a training step"),
    "parameters": ("P", "the number of parameters"),
    "inference_seconds": ("I", "the time of an image at inference"),
    "peak_memory_bytes": ("M", "the peak memory of training"),
}


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Measurement:
    """One trial's architecture as it was measured, nothing normalized.

    ``multiply_adds`` are for one image at the evaluation size. ``top1`` is the mean over ``seeds``, in [0, 1], on the
    selection images. ``step_spread`` is the interquartile range of the step time over its median. ``failure`` has a
    kind (diverged, out of memory, crashed) and a reason, which may have several lines.
    Raises pydantic.ValidationError: a value out of range, or ``top1`` missing without a failure.
    """

    parameters: int = Field(gt=0)
    multiply_adds: int = Field(gt=0)
    top1: Annotated[float, Field(ge=0, le=1)] | None = None
    step_seconds: _Positive | None = None
    step_spread: _NonNegative | None = None
    inference_seconds: _Positive | None = None
    peak_memory_bytes: Annotated[int, Field(gt=0)] | None = None
    epochs: _NonNegative = 0.0
    seeds: tuple[int, ...] = ()
    failure: str | None = None

    @model_validator(mode="after")
    def _validate(self) -> Measurement:
        if self.failure is None and self.top1 is None:
            raise ValueError("top1 is missing, but no failure is given: give one of them")
        return self

    @property
    def failure_line(self) -> str:
        """The failure in one line: the last one of a traceback, else the first; empty without a failure."""
        lines = [line.strip() for line in (self.failure or "").splitlines() if line.strip()]
        if not lines:
            return ""
        before, traceback, _ = lines[0].partition("Traceback (")
        return f"{before}{lines[-1]}" if traceback else lines[0]

    def __str__(self) -> str:
        step = "" if self.step_seconds is None else f", {1000 * self.step_seconds:.3g} ms a step"
        inference_s = self.inference_seconds
        inference = "" if inference_s is None else f", {1000 * inference_s:.3g} ms an image at inference"
        top1 = "top-1 unknown" if self.top1 is None else f"top-1 {self.top1:.1%}"
        return f"{top1}{step}{inference}, {self.parameters / 1e6:.3g} M parameters"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` is the inverse."""
        plain: dict[str, Any] = TypeAdapter(Measurement).dump_python(self, mode="json")
        return plain

    @classmethod
    def from_json(cls, plain: Any) -> Measurement:
        """Validate plain values. Raises InputError, which names the field."""
        return validate_json(cls, plain, "a measurement")


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Reward:
    """Accuracy times powers of the costs of an architecture: A · S^w · P^v.

    The fields are the exponents of costs of a `Measurement`, each relative to the backbone's; 0 leaves a cost out. With
    the paper's w, doubling the step time multiplies the reward by 2^-0.07 = 0.953.

    Source: arXiv:2104.00298, section 3.3, for A, S, P, w and v. That "normalized" means "relative to the backbone" is
    our reading; the last two exponents are ours.
    """

    step_seconds: _Exponent = -0.07
    parameters: _Exponent = -0.05
    inference_seconds: _Exponent = 0.0
    peak_memory_bytes: _Exponent = 0.0

    def compute(self, measurement: Measurement, backbone: Measurement) -> float:
        """The reward of an architecture, 0 where it failed. The backbone's is its accuracy. Raises InputError."""
        if measurement.failure is not None or measurement.top1 is None:
            return 0.0
        reward = measurement.top1
        for name, exponent in self.to_json().items():
            if exponent == 0:
                continue
            cost, reference = getattr(measurement, name), getattr(backbone, name)
            if cost is None or reference is None:
                raise InputError(
                    f"the reward counts {name}, which was not measured of the "
                    f"{'network' if cost is None else 'backbone'}. Set its exponent to 0."
                )
            reward *= (float(cost) / float(reference)) ** exponent
        return reward

    def __str__(self) -> str:
        """The formula: ``A · S^-0.07 · P^-0.05``."""
        return " · ".join(["A", *(f"{_COSTS[name][0]}^{power:g}" for name, power in self.to_json().items() if power)])

    @property
    def costs(self) -> dict[str, str]:
        """The letters of the formula other than A, and what they are."""
        return dict(_COSTS[name] for name, power in self.to_json().items() if power)

    def to_json(self) -> dict[str, float]:
        """The exponents by field."""
        return asdict(self)
