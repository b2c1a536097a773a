"""Figures at several sizes, from answers that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from efficientnetv2.inference.predict import Predictions
from efficientnetv2.inference.resolutions import SizeMetrics, best_size, evaluate_sizes


def _answers(called):
    """Four pictures, two of each class, and what they are called."""
    logits = 10.0 * torch.eye(2)[list(called)]
    return Predictions(np.arange(4), np.array([0, 0, 1, 1]), logits)


def test_each_size_has_the_figures_of_its_answers():
    """3 of 4 right in 2 s, with F1 of 2/3 and 4/5; then all of them in 8 s."""
    asked = []

    def answer(px):
        asked.append(px)
        return {64: (_answers([0, 1, 1, 1]), 2.0), 128: (_answers([0, 0, 1, 1]), 8.0)}[px]

    small, large = evaluate_sizes(answer, (64, 128), ("cat", "dog"))
    assert asked == [64, 128]
    assert (small.image_size, small.top1, small.images_per_s) == (64, 0.75, 2.0)
    assert small.macro_f1 == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert (large.image_size, large.top1, large.images_per_s) == (128, 1.0, 0.5)
    # Wilson's interval of 3 of 4: (0.75 + z²/8 ± z sqrt(0.1875/4 + z²/64)) / (1 + z²/4) with z = 1.96
    assert (small.low, small.high) == pytest.approx((0.3006, 0.9544), abs=1e-4)


def test_the_best_is_by_the_figure_that_counts_and_of_equal_ones_the_fastest():
    points = [
        SizeMetrics(px, top1, 0.0, 1.0, macro_f1, 1.0)
        for px, top1, macro_f1 in ((96, 0.7, 0.6), (128, 0.8, 0.5), (160, 0.8, 0.6))
    ]
    assert best_size(points).image_size == 128
    assert best_size(points, "macro_f1").image_size == 96
