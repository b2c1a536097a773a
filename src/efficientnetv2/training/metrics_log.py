"""Totals over the rows of ``metrics.jsonl``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def data_wait_fraction(history: Sequence[Mapping[str, Any]]) -> float | None:
    """Fraction of the training time that the loop waited for images; None before the first row."""
    seconds = training_seconds(history)
    return sum(row["waited_s"] for row in history if row["kind"] == "train") / seconds if seconds else None


def training_seconds(history: Sequence[Mapping[str, Any]]) -> float:
    """Wall time of the steps, waiting for images included, validation and saving not."""
    return sum(float(row["train_s"]) for row in history if row["kind"] == "train")
