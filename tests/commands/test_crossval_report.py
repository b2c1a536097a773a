"""How a cross-validation ends: intervals of pictures that hang together, and what its folds learnt from."""

from __future__ import annotations

import numpy as np
import torch
from tests.data.test_splits import manifest
from tests.metrics.test_resampling import answered

from efficientnetv2.base.keys import Key
from efficientnetv2.commands import crossval_report
from efficientnetv2.commands.outcome import Outcome
from efficientnetv2.data.folds import folds
from efficientnetv2.evaluation.report import Facts
from efficientnetv2.inference.predict import Predictions


def test_copies_of_pictures_tell_nothing_new_of_a_class_either():
    """Of eight copies each, drawn as one, every interval is about √8 times as wide as of as many pictures."""
    labels, answers, places = (np.repeat(each, 8) for each in (*answered(0, 150, 0.6), np.arange(150)))
    data = manifest(labels)
    predictions = Predictions(np.arange(1200), labels, torch.eye(3)[answers] * 9)
    outcome = Outcome(predictions, data, data.class_names, Facts("x", "out-of-fold"))
    apart = dict(outcome.intervals)
    crossval_report._widen(outcome, predictions, places, Key.of(0))
    assert {"f1:c2", "recall:c2", "precision:c2"} <= set(apart)
    for name, (low, high) in apart.items():
        together = outcome.intervals[name]
        assert together[1] - together[0] > 2 * (high - low), name


def test_what_there_is_of_a_class_to_learn_from_is_the_mean_over_the_folds():
    data = manifest(np.repeat([0, 1], [30, 12]))
    dealt = folds(data, k=3, seed=0, contents=np.arange(42), by="class")
    assert crossval_report._learnt(data, dealt) == {"c0": 20, "c1": 8}
