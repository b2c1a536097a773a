"""What the process in which a network is tried tells its parent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from efficientnetv2.base.timing import Spread

FailureKind = Literal["diverged", "out of memory", "crashed"]


@dataclass(frozen=True)
class StepTold:
    """The training step, which is known before the first one counts.

    Args:
        time: measured, or with three times the same number where it was worked out.
        foretold: the sum over the parts as other networks had them; None where one is new.
        measured: whether this network's own steps were timed.
        inference_seconds: of one picture at inference; None where nobody asks for it.
        at_a_time: groups in a pass of the step.
    """

    time: Spread
    foretold: float | None
    measured: bool
    inference_seconds: float | None = None
    at_a_time: int = 1


@dataclass(frozen=True)
class EpochTold:
    """A point of the validation curve.

    Args:
        seed: which of the runs, from 0.
        epoch: passes over the pictures that it has done.
        top1: on the pictures that choose.
        peak_bytes: the most memory in use while it trained so far; 0 where the device does not tell.
    """

    seed: int
    epoch: float
    top1: float
    peak_bytes: int = 0


@dataclass(frozen=True)
class Trained:
    """All runs are done.

    Args:
        top1: of each seed.
        peak_bytes: the most memory in use while they trained; on a CPU, all that the process takes.
    """

    top1: tuple[float, ...]
    peak_bytes: int


@dataclass(frozen=True)
class Failed:
    """The network can't be trained so.

    Args:
        kind: what happened.
        reason: a sentence.
        peak_bytes: the most memory in use until then.
    """

    kind: FailureKind
    reason: str
    peak_bytes: int


@dataclass(frozen=True)
class Refused:
    """Something is wrong that is not the network's affair: the pictures, the disk, the device.

    Args:
        message: for the user.
    """

    message: str


Told = StepTold | EpochTold | Trained | Failed | Refused
