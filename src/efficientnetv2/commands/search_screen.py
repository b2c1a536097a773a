"""What a person sees of a search: a line for every trial, and how far it is."""

from __future__ import annotations

from collections.abc import Callable
from textwrap import shorten

from rich.progress import MofNCompleteColumn

from efficientnetv2.arch.spec import Architecture
from efficientnetv2.base.errors import count_of
from efficientnetv2.commands.screen import Screen, StandingBar, duration
from efficientnetv2.nas.measurement import Measurement
from efficientnetv2.nas.told import EpochTold, StepTold
from efficientnetv2.nas.work import Standing

_REASON = 160  # letters of why a trial failed; the rest stands in the log


class StudyBar(StandingBar):
    """A progress bar of a study: trials done, the largest reward, time left; and a line for each trial.

    Args:
        screen: to write on.
        note: takes each line too, for the log.
    """

    def __init__(self, screen: Screen, note: Callable[[str], None]) -> None:
        super().__init__(screen, MofNCompleteColumn())
        self._note = note

    def say(self, line: str) -> None:
        """A sentence."""
        self.screen.say(line)
        self._note(line)

    def stands(self, standing: Standing) -> None:
        """After every trial."""
        left = "" if standing.seconds_left is None else f"about {duration(standing.seconds_left)} left"
        self._bar.update(
            self._task,
            completed=standing.done,
            total=standing.target,
            beside="" if standing.best is None else f"best {standing.best:.4f}",
            left=left,
        )

    def began(self, number: int, architecture: Architecture) -> None:
        """A trial is being tried."""
        layers = sum(stage.layers for stage in architecture.stages)
        self._bar.update(self._task, what=f"trial {number}, {count_of(layers, 'layer')}: measuring")

    def told(self, number: int, one: StepTold | EpochTold) -> None:
        """Something is known of it."""
        if isinstance(one, StepTold):
            what = f"trial {number}: {1000 * one.time.median:.3g} ms a step"
        else:
            what = f"trial {number}: epoch {one.epoch:.3g}, top-1 {one.top1:.1%}"
        self._bar.update(self._task, what=what)

    def ended(self, number: int, found: Measurement, reward: float, *, stopped: bool) -> None:
        """It has ended."""
        if found.failure is not None:
            self._note(f"Trial {number} failed: {found.failure}")
            reason = shorten(found.failed_because, _REASON, placeholder=" ... (log.txt)")
            self.screen.say(f"Trial {number} failed: {reason}")
            return
        self.say(f"Trial {number}: {figures(found)}; reward {reward:.4f}{', stopped early' * stopped}.")


def figures(found: Measurement) -> str:
    """What was measured of a network, in a line."""
    step = "" if found.step_seconds is None else f", {1000 * found.step_seconds:.3g} ms a step"
    seen_s = found.inference_seconds
    seen = "" if seen_s is None else f", {1000 * seen_s:.3g} ms a picture at inference"
    top1 = "top-1 unknown" if found.top1 is None else f"top-1 {found.top1:.1%}"
    return f"{top1}{step}{seen}, {found.parameters / 1e6:.3g} M parameters"
