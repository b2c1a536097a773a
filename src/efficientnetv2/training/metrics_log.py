"""Rows of training metrics in ``metrics.jsonl``, progress between them, and totals over the rows."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import psutil

from efficientnetv2.training.callbacks import RunContext
from efficientnetv2.training.loop import StepOutput
from efficientnetv2.training.run_setup import log_steps

# Seconds after which progress is reported though no row is due: in a day's run, rows are minutes apart. Ours.
_PROGRESS_S = 10.0


class MetricsLog:
    """Writes a row when one is due, and reports progress to the callbacks.

    A row counts the time of training alone: neither compiling nor what runs within ``paused``. ``saved`` is the
    ``state_dict`` of an earlier part of the run.
    """

    def __init__(self, context: RunContext, saved: Mapping[str, Any]) -> None:
        self._context = context
        self._rows = sorted(log_steps(context.setup.recipe, context.setup.length))
        row = saved.get("row", {"images": 0, "train_s": 0.0, "data_wait_s": 0.0})
        self._images: int = row["images"]
        self._data_wait_s: float = row["data_wait_s"]
        self._earlier_s: float = row["train_s"]
        now = time.perf_counter()
        self._last_progress = now
        self._run_start: float = now - saved.get("seconds", 0.0)
        self._row_start = now - self._earlier_s

    @property
    def seconds(self) -> float:
        """Wall time of the run so far, over all resumed parts; validation and saving included."""
        return time.perf_counter() - self._run_start

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        train_s = time.perf_counter() - self._row_start
        row = {"images": self._images, "train_s": train_s, "data_wait_s": self._data_wait_s}
        return {"seconds": self.seconds, "row": row}

    def start(self) -> None:
        """Training starts here; what was before, such as compiling, does not count."""
        self._row_start = time.perf_counter() - self._earlier_s

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within, time does not count as training."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._row_start += time.perf_counter() - began

    def add(self, output: StepOutput) -> None:
        """Count a step."""
        self._images += output.images
        self._data_wait_s += output.data_wait_s

    def is_due(self, step: int) -> bool:
        """Whether a row is due after a step."""
        return self._context.plan.passes(step, self._rows)

    @property
    def is_empty(self) -> bool:
        """Whether no step has been done since the last row."""
        return self._images == 0

    def write(self, output: StepOutput) -> None:
        """Write a row, and report progress."""
        now = time.perf_counter()
        train_s, loss = max(1e-9, now - self._row_start), float(output.loss)
        images_per_s = self._images / train_s
        settings = {name: value for name, value in output.setting.to_json().items() if name != "extra"}
        self._context.setup.folder.record(
            {
                "kind": "train",
                "step": self._context.state.step,
                "epoch": self._context.epoch,
                "loss": loss if math.isfinite(loss) else None,  # in fp16, a step may overflow
                "lr": output.lr,
                **settings,
                "images_per_s": round(images_per_s, 2),
                "train_s": round(train_s, 4),
                "data_wait_s": round(self._data_wait_s, 4),
                "seconds": round(self.seconds, 2),
                "memory_mb": round(psutil.Process().memory_info().rss / 2**20, 1),
            }
        )
        # Reset only after the row is written: a row that fails is part of the next one.
        self._row_start, self._images, self._data_wait_s = now, 0, 0.0
        self._report(output, images_per_s)

    def report_if_due(self, output: StepOutput) -> None:
        """Report progress between two rows."""
        now = time.perf_counter()
        if now - self._last_progress > _PROGRESS_S:
            self._report(output, self._images / max(1e-9, now - self._row_start))

    def _report(self, output: StepOutput, images_per_s: float) -> None:
        step, plan, recipe = self._context.state.step, self._context.plan, self._context.setup.recipe
        left_s = 0.0
        if step < plan.steps:  # at the current speed, in proportion to the pixels
            ahead = np.linspace(step, plan.steps - 1, num=min(64, plan.steps - step)).astype(int)
            settings = [
                recipe.progressive.at(plan.scheduled_step(int(later)), total_steps=plan.scheduled) for later in ahead
            ]
            pixels = float(np.mean([setting.image_size**2 for setting in settings]))
            images = (plan.steps - step) * recipe.batch_size
            left_s = images / images_per_s * pixels / output.setting.image_size**2
        loss = float(output.loss)
        self._context.notify(
            lambda callback: callback.on_log(step, plan.steps, output.setting, loss, images_per_s, left_s)
        )
        self._last_progress = time.perf_counter()


def data_wait_fraction(history: Sequence[Mapping[str, Any]]) -> float | None:
    """Fraction of the training time that the loop waited for images; None before the first row."""
    seconds = training_seconds(history)
    return sum(row["data_wait_s"] for row in history if row["kind"] == "train") / seconds if seconds else None


def training_seconds(history: Sequence[Mapping[str, Any]]) -> float:
    """Wall time of the steps, waiting for images included, validation and saving not."""
    return sum(float(row["train_s"]) for row in history if row["kind"] == "train")
