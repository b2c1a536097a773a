"""How a cross-validation ends: intervals of pictures that hang together, and what its folds learnt from."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.data.test_splits import manifest
from tests.metrics.test_resampling import answered

from efficientnetv2.base.keys import Key
from efficientnetv2.commands import crossval_report
from efficientnetv2.commands.crossval_plan import Plan
from efficientnetv2.commands.outcome import Outcome
from efficientnetv2.data.folds import folds
from efficientnetv2.evaluation.apart import Apart
from efficientnetv2.evaluation.crossval import CrossValidation
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
    answered = [SimpleNamespace(unread={}) for _ in dealt.parts]
    assert crossval_report._learnt(data, dealt, answered) == {"c0": 20, "c1": 8}
    for part, one in zip(dealt.parts, answered, strict=True):  # three of the second class in each run
        one.unread = dict.fromkeys(part.learning[data.labels[part.learning] == 1][:3].tolist(), "is empty")
    assert crossval_report._learnt(data, dealt, answered) == {"c0": 20, "c1": 5}


def test_copies_tell_nothing_new_of_the_first_five_either():
    """Six classes, of which chance leaves one out of the five: eight copies each are one draw of it."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 6, 100)
    labels, logits = np.repeat(labels, 8), np.repeat(generator.normal(size=(100, 6)), 8, axis=0)
    data = manifest(labels)
    predictions = Predictions(np.arange(800), labels, torch.from_numpy(logits).float())
    outcome = Outcome(predictions, data, data.class_names, Facts("x", "out-of-fold"))
    low, high = outcome.intervals["top5"]
    crossval_report._widen(outcome, predictions, np.repeat(np.arange(100), 8), Key.of(0))
    widened = outcome.intervals["top5"]
    assert widened[0] < outcome.figures.top5 < widened[1]
    assert widened[1] - widened[0] > 2 * (high - low)


@pytest.mark.parametrize(
    ("by", "apart", "drawn"),
    [
        ("place", Apart("place", 9, 0, 50.0), "places"),
        ("place", Apart("place", 9, 1, 50.0, Apart("group", 9, 0)), "places and groups"),
        ("group", Apart("group", 9, 0), "groups"),
        ("auto", Apart("place", 9, 9, 1.0, Apart("group", 9, 0)), "groups"),
        ("auto", Apart("group", 9, 1), None),
        ("class", Apart("group", 9, 0), None),
        ("time", None, None),
    ],
)
def test_what_the_folds_kept_whole_is_said_to_be_drawn_so(by, apart, drawn):
    assert crossval_report._drawn_whole(CrossValidation(by, "", "macro_f1", [], apart=apart)) == drawn


def test_the_time_is_that_of_all_training(tmp_path):
    """Two folds take 10 s each, and their tries 3 s and 4 s; dealt otherwise 20 s each, and their tries 5 s and 6 s."""

    def folds_of(folder, seconds, *tried):
        (folder / "choosing").mkdir(parents=True)
        for number, taken in enumerate(tried):
            (folder / f"choosing/fold{number + 1}.json").write_text(json.dumps({"seconds": taken}))
        return [SimpleNamespace(score=SimpleNamespace(seconds=seconds)) for _ in tried]

    answered = folds_of(tmp_path, 10.0, 3.0, 4.0)
    again = folds_of(tmp_path / "otherwise", 20.0, 5.0, 6.0)
    chooses, plain = Plan(folds=2, tries=("", "balance=equal")), Plan(folds=2)
    assert crossval_report._seconds(tmp_path, plain, answered, None) == 20.0
    assert crossval_report._seconds(tmp_path, chooses, answered, None) == 27.0
    assert crossval_report._seconds(tmp_path, plain, answered, again) == 60.0
    assert crossval_report._seconds(tmp_path, chooses, answered, again) == 78.0
