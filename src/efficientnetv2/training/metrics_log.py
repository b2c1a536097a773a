"""What the rows of ``metrics.jsonl`` come to."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from torch.utils.tensorboard import SummaryWriter


def data_wait_fraction(history: Sequence[Mapping[str, Any]]) -> float | None:
    """The share of the training time in which the loop waited for pictures; None before the first row.

    Validation and saving count neither as training nor as waiting.

    Args:
        history: rows of ``metrics.jsonl``.
    """
    seconds = training_seconds(history)
    return sum(row["waited_s"] for row in history if row["kind"] == "train") / seconds if seconds else None


def training_seconds(history: Sequence[Mapping[str, Any]]) -> float:
    """Wall time of the steps, waiting for pictures included; without validation and saving.

    Args:
        history: rows of ``metrics.jsonl``.
    """
    return sum(float(row["train_s"]) for row in history if row["kind"] == "train")


# Where TensorFlow is installed TensorBoard imports it, which takes seconds and does not go well beside PyTorch in every
# process. A module of this name is its own switch against that, and has to be there before the writer is imported.
sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))


__all__ = ["SummaryWriter"]
