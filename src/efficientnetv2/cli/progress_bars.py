"""Progress bars of training runs."""

from __future__ import annotations

from rich.progress import TaskProgressColumn

from efficientnetv2.cli.console import Bar, Screen
from efficientnetv2.progressive.schedule import StepSettings
from efficientnetv2.training.callbacks import Callback, describe_step
from efficientnetv2.utils.errors import format_duration


class TrainingBar(Bar, Callback):
    """A progress bar of training runs: throughput, current image size and regularization, time left."""

    def __init__(self, screen: Screen) -> None:
        super().__init__(screen, TaskProgressColumn())

    def on_train_start(self, step: int, num_steps: int) -> None:
        """Show the bar."""
        self.update()

    def on_log(
        self, step: int, num_steps: int, settings: StepSettings, loss: float, images_per_s: float, seconds_left: float
    ) -> None:
        """Show how far the run has come."""
        what = describe_step(settings, loss)
        speed, left = f"{images_per_s:.0f} images/s", f"{format_duration(seconds_left)} left"
        self.update(completed=step, total=num_steps, what=what, speed=speed, left=left)
        if step < num_steps and self.line_is_due():
            self.screen.say(f"{step / num_steps:.0%}: {what}, {speed}, {left}")

    def on_train_end(self, step: int) -> None:
        """Take the bar away."""
        self.__exit__()
