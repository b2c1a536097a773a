"""What is measured of one network in a search, as it was: no reward, nothing normalised."""

from __future__ import annotations

import math
from typing import Any

from pydantic import ConfigDict, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass

from efficientnetv2.nas.plain import checked


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
