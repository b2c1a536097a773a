"""Progress bar of a study."""

from __future__ import annotations

from rich.progress import MofNCompleteColumn

from efficientnetv2.architectures.spec import Architecture
from efficientnetv2.cli.console import Bar, Screen
from efficientnetv2.nas.trial import EpochDone, StepTimed
from efficientnetv2.nas.worker import SearchCallback, StudyProgress
from efficientnetv2.utils.errors import format_duration, pluralize


class StudyBar(Bar, SearchCallback):
    """A progress bar of a study: trials done, the largest reward, time left."""

    def __init__(self, screen: Screen) -> None:
        super().__init__(screen, MofNCompleteColumn())

    def on_progress(self, progress: StudyProgress) -> None:
        """After every trial."""
        left = "" if progress.seconds_left is None else f"about {format_duration(progress.seconds_left)} left"
        best = "" if progress.best is None else f"best {progress.best:.4f}"
        self.update(completed=progress.done, total=progress.target, speed=best, left=left)

    def on_trial_start(self, number: int, architecture: Architecture) -> None:
        """A trial is being tried."""
        layers = sum(stage.layers for stage in architecture.stages)
        self.update(what=f"trial {number}, {pluralize(layers, 'layer')}: measuring")

    def on_message(self, number: int, one: StepTimed | EpochDone) -> None:
        """Something is known of it."""
        if isinstance(one, StepTimed):
            self.update(what=f"trial {number}: {1000 * one.time.median:.3g} ms a step")
        else:
            self.update(what=f"trial {number}: epoch {one.epoch:.3g}, top-1 {one.top1:.1%}")
