"""Progress bars of runs and of studies, which stand below the lines of the log."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TaskProgressColumn, TextColumn

from efficientnetv2.architectures.spec import Architecture
from efficientnetv2.cli.console import Lines, Screen, passing
from efficientnetv2.nas.trial import EpochTold, StepTold
from efficientnetv2.nas.worker import Standing, Watch
from efficientnetv2.progressive.schedule import StepSettings
from efficientnetv2.training.callbacks import Callback
from efficientnetv2.utils.errors import format_duration, pluralize


class StandingBar:
    """A progress bar below the lines that are printed until ``stop``.

    Args:
        screen: Where it stands.
        counted: Column of what is done. Further fields: ``what`` before it, ``beside`` it, and ``left``, the time.
    """

    def __init__(self, screen: Screen, counted: ProgressColumn) -> None:
        self.screen, self._lines = screen, Lines(screen)
        columns = (
            TextColumn("{task.fields[what]}", markup=False),
            BarColumn(bar_width=24),
            counted,
            TextColumn("{task.fields[beside]}", markup=False),
            TextColumn("{task.fields[left]}", markup=False),
        )
        self._bar = passing(screen.notes, columns)
        self._task = self._bar.add_task("", what="starting", beside="", left="", total=None)
        self._bar.start()
        screen._bar = self._bar

    def update(self, **fields: Any) -> None:
        """Show how far the work has come: ``completed`` of ``total``, and fields of the columns."""
        self._bar.update(self._task, **fields)

    def line_is_due(self) -> bool:
        """Whether to print a line in the place of a bar that nobody sees; then none is due for a while."""
        return self._lines.due()

    def stop(self) -> None:
        """Take the bar away."""
        self.screen._bar = None
        self._bar.stop()


class TrainingBar(Callback):
    """A progress bar of training runs: throughput, current image size and regularization, time left."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._bar: StandingBar | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.on_train_end(0)

    def on_train_start(self, step: int, num_steps: int) -> None:
        """Show the bar."""
        self._bar = StandingBar(self._screen, TaskProgressColumn())

    def on_log(
        self,
        step: int,
        num_steps: int,
        settings: StepSettings,
        loss: float,
        images_per_s: float,
        seconds_left: float,
    ) -> None:
        """Show how far the run has come."""
        if self._bar is None:
            return
        dropout = "" if settings.dropout is None else f", dropout {settings.dropout:.2g}"
        augment = "" if settings.randaugment is None else f", RandAugment {settings.randaugment:.3g}"
        mixup = f", mixup {settings.mixup_alpha:.2g}" if settings.mixup_alpha else ""
        what = f"{settings.image_px} px{dropout}{augment}{mixup}, loss {loss:.3f}"
        speed, left = f"{images_per_s:.0f} images/s", f"{format_duration(seconds_left)} left"
        self._bar.update(completed=step, total=num_steps, what=what, beside=speed, left=left)
        if step < num_steps and self._bar.line_is_due():
            self._screen.say(f"{step / num_steps:.0%}: {what}, {speed}, {left}")

    def on_train_end(self, step: int) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class StudyBar(Watch):
    """A progress bar of a study: trials done, the largest reward, time left."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._bar: StandingBar | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def stands(self, standing: Standing) -> None:
        """After every trial."""
        left = "" if standing.seconds_left is None else f"about {format_duration(standing.seconds_left)} left"
        best = "" if standing.best is None else f"best {standing.best:.4f}"
        self._update(completed=standing.done, total=standing.target, beside=best, left=left)

    def began(self, number: int, architecture: Architecture) -> None:
        """A trial is being tried."""
        layers = sum(stage.layers for stage in architecture.stages)
        self._update(what=f"trial {number}, {pluralize(layers, 'layer')}: measuring")

    def told(self, number: int, one: StepTold | EpochTold) -> None:
        """Something is known of it."""
        if isinstance(one, StepTold):
            self._update(what=f"trial {number}: {1000 * one.time.median:.3g} ms a step")
        else:
            self._update(what=f"trial {number}: epoch {one.epoch:.3g}, top-1 {one.top1:.1%}")

    def _update(self, **fields: Any) -> None:
        if self._bar is None:
            self._bar = StandingBar(self._screen, MofNCompleteColumn())
        self._bar.update(**fields)
