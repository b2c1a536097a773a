"""Estimate what a training run takes: `efficientnetv2.estimate`."""

from __future__ import annotations

import time
from typing import Any, Unpack

import pandas as pd
import torch

from efficientnetv2.commands.plan_job import plan_and_tell
from efficientnetv2.commands.within import refuse_run_within
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.workflows.arguments import (
    Overrides,
    PathLike,
    api,
    notes_screen,
    refuse_launched,
    run_arguments,
)
from efficientnetv2.workflows.results import html_table


class Estimate:
    """Time, memory and disk of a training run that has not begun.

    Args:
        report: What `effnetv2 plan --json` prints.
    """

    def __init__(self, report: dict[str, Any]) -> None:
        self.report = report

    @property
    def seconds(self) -> float:
        """Time of the whole run."""
        total: float = self.report["seconds"]
        return total

    @property
    def memory_bytes(self) -> int:
        """Largest memory in use at a time, on the device that trains."""
        return int(self.report["memory_bytes"])

    @property
    def disk_bytes(self) -> int:
        """Disk that the folder of the run takes at its fullest."""
        return sum(self.report["disk_bytes"].values())

    @property
    def stages(self) -> pd.DataFrame:
        """A row per stage of progressive learning: image size, steps, images per second, memory, seconds."""
        return pd.DataFrame(self.report["stages"])

    @property
    def other_seconds(self) -> dict[str, float]:
        """Time outside the training steps, such as validation and the report."""
        return dict(self.report["others_s"])

    @property
    def notes(self) -> list[str]:
        """What was chosen for the run, a sentence each."""
        return list(self.report["chosen"])

    def __repr__(self) -> str:
        return f"Estimate(seconds={self.seconds:.0f}, memory_bytes={self.memory_bytes}, disk_bytes={self.disk_bytes})"

    def _repr_html_(self) -> str:
        stages = self.stages
        rows = stages.map(lambda value: f"{value:,.6g}").to_numpy().tolist()
        return html_table(repr(self), list(stages.columns), rows)


@api
def estimate(
    data: PathLike,
    *,
    output: PathLike | None = None,
    recipe: PathLike | Recipe | None = None,
    device: str | torch.device = "auto",
    workers: int | None = None,
    **overrides: Unpack[Overrides],
) -> Estimate:
    """Estimate time, memory and disk of a run from a few measured steps of each image size.

    It takes at most 90 seconds on two slow cores, after each image was checked, and leaves nothing behind.

    Example::

        import efficientnetv2 as ev2

        cost = ev2.estimate("photos/", model="efficientnetv2_b0", weights="none", epochs=2, image_size=64)
        print(cost.seconds, cost.memory_bytes, cost.disk_bytes)
        print(cost.stages)

    Args:
        data: Dataset, see `train`.
        output: Folder where the run would go.
        recipe: Recipe, see `train`.
        device: Device to train on, see `train`.
        workers: Processes that read images, see `train`.
        overrides: Hyperparameters, and how ``data`` is read; see `train`.

    Raises:
        InputError: What `train` would refuse before its first step.
    """
    began = time.monotonic()
    refuse_launched("estimate")
    words, source, place = run_arguments(
        estimate, data, recipe, overrides, output=output, device=device, workers=workers
    )
    refuse_run_within(source.data, place.out, "plan")
    return Estimate(plan_and_tell(words, source, place, notes_screen(), began=began))
