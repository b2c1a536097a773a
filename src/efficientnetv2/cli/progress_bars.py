"""Progress bars of training runs."""

from __future__ import annotations

from typing import Any, Self

from rich.progress import ProgressColumn, TaskProgressColumn

from efficientnetv2.cli.console import Bar, Screen
from efficientnetv2.progressive.schedule import StepSettings
from efficientnetv2.training.callbacks import Callback, describe_step
from efficientnetv2.utils.errors import format_duration


class LazyBar:
    """A bar that is shown from its first update until its block ends."""

    counter: type[ProgressColumn]

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._bar: Bar | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.__exit__()
            self._bar = None

    def _shown(self, **fields: Any) -> Bar:
        if self._bar is None:
            self._bar = Bar(self._screen, self.counter()).__enter__()
        self._bar.update(**fields)
        return self._bar


class TrainingBar(LazyBar, Callback):
    """A progress bar of training runs: throughput, current image size and regularization, time left."""

    counter = TaskProgressColumn

    def on_train_start(self, step: int, num_steps: int) -> None:
        """Show the bar."""
        self._shown()

    def on_log(
        self, step: int, num_steps: int, settings: StepSettings, loss: float, images_per_s: float, seconds_left: float
    ) -> None:
        """Show how far the run has come."""
        what = describe_step(settings, loss)
        speed, left = f"{images_per_s:.0f} images/s", f"{format_duration(seconds_left)} left"
        bar = self._shown(completed=step, total=num_steps, what=what, speed=speed, left=left)
        if step < num_steps and bar.line_is_due():
            self._screen.say(f"{step / num_steps:.0%}: {what}, {speed}, {left}")

    def on_train_end(self, step: int) -> None:
        """Take the bar away."""
        self.__exit__()
