"""What is kept of a run."""

from __future__ import annotations

import pytest

from efficientnetv2.training.books import input_wait_share


def test_the_share_of_waiting_is_of_all_training_time_not_a_mean_of_shares():
    """1 s of 2, then 1 s of 8: 2 s of 10. Validation rows have no part in it."""
    rows = [
        {"kind": "train", "train_s": 2.0, "waited_s": 1.0},
        {"kind": "val", "top1": 0.5},
        {"kind": "train", "train_s": 8.0, "waited_s": 1.0},
    ]
    assert input_wait_share(rows) == pytest.approx(0.2)
    assert input_wait_share([]) is None
