"""What is measured of one network in a search, as it was: no reward, nothing normalised."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

from pydantic import ConfigDict, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass

from efficientnetv2.nas.space import checked
from efficientnetv2.utils.errors import InputError


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Measurement:
    """One network, tried.

    Args:
        parameters: trainable numbers, the classifier's included.
        multiply_adds: of one picture at the trial's evaluation size.
        top1: share of right answers, in [0, 1], on pictures that neither training nor the final test sees; the mean
            over ``seeds``. None where training failed.
        step_seconds: of one training step, median. None where it could not be measured.
        step_spread: from the lowest to the highest quartile of the sittings in which it was timed, over the median.
        inference_seconds: of one picture at inference, where that was measured.
        peak_memory_bytes: of training, where the device tells.
        epochs: of training; fewer than asked for where a hopeless trial was stopped.
        seeds: of the trainings that ``top1`` is the mean of.
        failure: what went wrong: its kind (diverged, out of memory, crashed) and the reason, which may go on for
            lines; None if nothing did.

    Raises:
        pydantic.ValidationError: a value out of its range, or one that is missing though nothing failed.
    """

    parameters: int
    multiply_adds: int
    top1: float | None = None
    step_seconds: float | None = None
    step_spread: float | None = None
    inference_seconds: float | None = None
    peak_memory_bytes: int | None = None
    epochs: float = 0.0
    seeds: tuple[int, ...] = ()
    failure: str | None = None

    @model_validator(mode="after")
    def _possible(self) -> Measurement:
        for name in ("parameters", "multiply_adds", "step_seconds", "inference_seconds", "peak_memory_bytes"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is {value:g}, but is finite and above 0")
        for name in ("step_spread", "epochs"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value:g}, but is finite and at least 0")
        if self.top1 is not None and not 0 <= self.top1 <= 1:
            raise ValueError(f"top1 is {self.top1:g}, but is a share of right answers, from 0 to 1")
        if self.failure is None and self.top1 is None:
            raise ValueError(
                "top1 is missing, but nothing is said to have failed: give it, or say what failed"
            )
        return self

    @property
    def failed_because(self) -> str:
        """What went wrong, in a line: of a traceback the last one, of anything else the first; empty if nothing did."""
        lines = [line.strip() for line in (self.failure or "").splitlines() if line.strip()]
        if not lines:
            return ""
        before, traceback, _ = lines[0].partition("Traceback (")
        return f"{before}{lines[-1]}" if traceback else lines[0]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; ``from_json`` gives an equal ``Measurement``."""
        plain: dict[str, Any] = TypeAdapter(Measurement).dump_python(self, mode="json")
        return plain

    @classmethod
    def from_json(cls, plain: Any) -> Measurement:
        """Checked as if it had been made by hand.

        Raises:
            InputError: an unknown field, or a value out of range; says which.
        """
        return checked(cls, plain, "a measurement")


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Reward:
    """Accuracy times powers of what a network costs: A · S^w · P^v.

    The fields are exponents, 0 or below, of the costs of a ``Measurement``, each over the backbone's; 0 leaves a cost
    out. Doubling the step time takes the paper's reward times 2^-0.07 = 0.953: a network twice as slow is worth as
    much where its accuracy is 5 % higher, as a ratio.

    Args:
        step_seconds: w: of the time of a training step.
        parameters: v: of the number of parameters.
        inference_seconds: of the time of a picture at inference.
        peak_memory_bytes: of the memory of training.

    Raises:
        pydantic.ValidationError: an exponent above 0, or none that is a number.

    Source: arXiv:2104.00298, section 3.3, for A, S and P, w and v, chosen there so that accuracy and speed balance.
    That "normalized" means "over the backbone's" is our reading; the last two exponents are ours.
    """

    step_seconds: float = -0.07
    parameters: float = -0.05
    inference_seconds: float = 0.0
    peak_memory_bytes: float = 0.0

    @model_validator(mode="after")
    def _possible(self) -> Reward:
        for name, exponent in self.exponents.items():
            if not (math.isfinite(exponent) and exponent <= 0):
                fix = f". Give {-exponent:g}" if math.isfinite(exponent) else ""
                raise ValueError(
                    f"the reward's exponent of {name} is {exponent:g}, but is 0 or below: above 0, costing more would "
                    f"be worth more{fix}"
                )
        return self

    @property
    def exponents(self) -> dict[str, float]:
        """By the name of the measurement's field."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def of(self, measurement: Measurement, backbone: Measurement) -> float:
        """The reward of a network; 0 where it failed, which has no accuracy.

        Args:
            measurement: of the network.
            backbone: measured in the same way on the same device; its own reward is its accuracy.

        Raises:
            InputError: a cost that the reward counts was not measured of the one or of the other.
        """
        if measurement.failure is not None or measurement.top1 is None:
            return 0.0
        worth = measurement.top1
        for name, exponent in self.exponents.items():
            if exponent != 0:
                worth *= (_cost(measurement, name, "network") / _cost(backbone, name, "backbone")) ** exponent
        return worth

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; ``from_json`` gives an equal ``Reward``."""
        return dict(self.exponents)

    @classmethod
    def from_json(cls, plain: Any) -> Reward:
        """Checked as if it had been made by hand.

        Raises:
            InputError: an unknown field, or an exponent out of range.
        """
        return checked(cls, plain, "a reward")


def _cost(measurement: Measurement, name: str, whose: str) -> float:
    value = getattr(measurement, name)
    if value is None:
        raise InputError(
            f"the reward counts {name}, which was not measured of the {whose}: measure it, or give it exponent 0."
        )
    return float(value)


def figures(found: Measurement) -> str:
    """What was measured of a network, in a line."""
    step = "" if found.step_seconds is None else f", {1000 * found.step_seconds:.3g} ms a step"
    seen_s = found.inference_seconds
    seen = "" if seen_s is None else f", {1000 * seen_s:.3g} ms a picture at inference"
    top1 = "top-1 unknown" if found.top1 is None else f"top-1 {found.top1:.1%}"
    return f"{top1}{step}{seen}, {found.parameters / 1e6:.3g} M parameters"
