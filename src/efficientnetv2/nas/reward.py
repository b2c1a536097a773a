"""What a measured network is worth: one number, to be as large as can be."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

from pydantic import ConfigDict, model_validator
from pydantic.dataclasses import dataclass

from efficientnetv2.base.errors import InputError
from efficientnetv2.nas.measurement import Measurement
from efficientnetv2.nas.plain import checked


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
