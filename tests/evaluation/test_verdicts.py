"""What a report says first is true of the figures, also of few images, of a network that learnt nothing."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from tests.messages import mentions

from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.evaluation.generalization import TrainDistance, train_distance
from efficientnetv2.evaluation.html import render
from efficientnetv2.evaluation.predictions import PairedDifference
from efficientnetv2.evaluation.report_metadata import ReportMetadata
from efficientnetv2.evaluation.report_sections import worst_slice
from efficientnetv2.evaluation.verdicts import majority_warning, probe_evaluated_images, probe_warning
from efficientnetv2.metrics.classification import classification_metrics
from efficientnetv2.metrics.confidence_intervals import Difference
from efficientnetv2.metrics.metric_intervals import bootstrap_intervals
from efficientnetv2.metrics.subgroups import SliceMetrics
from efficientnetv2.utils.random_key import Key


def shown(right, pictures):
    answers = np.zeros(pictures, dtype=int)
    answers[right:] = 1
    return classification_metrics(np.zeros(pictures, dtype=int), np.eye(2)[answers], ("oak", "elm"))


def dataset_notes(metrics, metadata):
    page = render("dataset.html.j2", metrics=metrics, metadata=metadata)
    return [re.sub("<[^>]+>", "", note) for note in re.findall(r"<li>(.*?)</li>", page)]


@pytest.mark.parametrize(
    ("interval", "words"), [((0.6, 0.8), None), ((0.4, 0.6), "not clearly better"), ((0.1, 0.3), "worse than that")]
)
def test_the_majority_is_beaten_or_not_or_wins(interval, words):
    even = classification_metrics([0, 0, 1, 1], np.eye(2)[[0, 1, 0, 1]], ("oak", "elm"))
    said = majority_warning(even, {"top1": interval})
    assert (said is None) if words is None else (words in said)


def test_rare_classes_told_apart_at_the_cost_of_the_frequent_one_are_learnt():
    """91.8 % right where always answering oak has 95 %; but 48 of 50 elms are found."""
    true = np.repeat([0, 1], [950, 50])
    answers = np.repeat([0, 1, 1, 0], [870, 80, 48, 2])
    found = classification_metrics(true, np.eye(2)[answers], ("oak", "elm"))
    said = majority_warning(found, bootstrap_intervals(found, key=Key.of(0), draws=100))
    assert mentions(said, "93.8", "50.0")
    swapped = classification_metrics(true, np.eye(2)[np.repeat([0, 1, 1, 0], [400, 550, 20, 30])], ("oak", "elm"))
    said = majority_warning(swapped, bootstrap_intervals(swapped, key=Key.of(0), draws=100))
    assert mentions(said, "not", "separate", "50.0")
    # 70 of 100 oaks and 4 of 10 elms: a little better than one answer, which ten elms cannot show.
    few = classification_metrics(
        np.repeat([0, 1], [100, 10]), np.eye(2)[np.repeat([0, 1, 1, 0], [70, 30, 4, 6])], ("oak", "elm")
    )
    said = majority_warning(few, bootstrap_intervals(few, key=Key.of(0), draws=100))
    assert mentions(said, "55.0", "50.0")
    one = bootstrap_intervals(shown(300, 500), key=Key.of(0), draws=100)  # of oaks alone, nobody can do better than oak
    assert majority_warning(shown(300, 500), one) == "The model is worse than that."


def test_evaluated_images_are_called_what_they_are():
    assert ReportMetadata("x", "val", num_train_images=5).split_phrase.endswith(", kept out of training")
    assert "training" not in ReportMetadata("x", "val").split_phrase  # an evaluation does not know
    assert mentions(ReportMetadata("x", "out-of-fold").split_phrase, "a model", "out-of-fold")
    assert mentions(ReportMetadata("x", "out-of-fold", ensemble_size=3).split_phrase, "3 models together")
    assert ReportMetadata("x", "else").split_phrase == "images of split else"
    assert ReportMetadata("x", "train").split_phrase == "training images"
    assert ReportMetadata("x", "train", num_eval_images_seen_in_training=0).split_phrase == "images of split train"


def test_the_set_is_described_by_its_sizes():
    support = dict(pd.Series({"oak": 12, "elm": 3}))  # as value_counts gives it
    said = dataset_notes(
        shown(4, 5), ReportMetadata("x", "val", num_train_images=15, train_images_per_class=support, num_skipped=1)
    )
    assert mentions(said[0], "15", "5", "val", "2")
    assert mentions(said[1], "3", "elm", "12", "oak", "training", "4.0")
    assert mentions(said[-1], "1", "read")
    lost = replace(ReportMetadata("x", "val", num_train_images=14, num_skipped=3), num_train_lost=1)
    assert mentions(dataset_notes(shown(4, 5), lost)[-1], "3", "1", "training")
    even = ReportMetadata("x", "val", train_images_per_class=dict(pd.Series({"oak": 3, "elm": 3})))
    assert mentions(dataset_notes(shown(4, 5), even)[1], "3")
    assert mentions(dataset_notes(shown(4, 5), ReportMetadata("x", "test"))[0], "5", "test", "2")


def test_classes_without_a_picture_are_not_counted_as_the_others():
    """Of elm there is nothing to measure on; or, as value_counts has it, nothing to learn from."""
    measured = dataset_notes(shown(4, 5), ReportMetadata("x", "test"))
    assert mentions(measured[1], "5", "elm")
    learnt = dataset_notes(shown(4, 5), ReportMetadata("x", "val", train_images_per_class=dict(pd.Series({"oak": 12}))))
    assert mentions(learnt[1], "12", "elm")
    three = classification_metrics([0, 0, 0, 1], np.eye(3)[[0, 0, 0, 1]], ("oak", "elm", "ash"))
    said = dataset_notes(three, ReportMetadata("x", "test"))[1]
    assert mentions(said, "1", "elm", "3", "oak", "3.0", "ash")


def dataset(tmp_path, **columns):
    table = pd.DataFrame({"path": [f"{row}.jpg" for row in range(4)], "label": list("abab"), **columns})
    table["split"] = ["train", "train", "val", "val"]
    for path in table["path"]:
        (tmp_path / path).touch()
    table.to_csv(tmp_path / "pictures.csv", index=False)
    return load_dataset(str(tmp_path / "pictures.csv"))


def test_distances_are_those_of_the_sphere(tmp_path):
    """A degree of latitude is 111.2 km; a hundredth of it is near."""
    found = train_distance(dataset(tmp_path, latitude=[0, 9, 0.01, 1.0], longitude=[0, 9, 0, 0]), "val")
    assert (found.by, found.known, found.near) == ("place", 2, 1)
    assert found.median_km == pytest.approx((1.112 + 111.195) / 2, rel=1e-3)


def test_groups_that_were_learnt_from_are_counted(tmp_path):
    assert train_distance(dataset(tmp_path, group=["p", "q", "q", "r"]), "val") == TrainDistance("group", 2, 1)
    # One without a group counts as a group of its own: a half was learnt from, not all.
    assert train_distance(dataset(tmp_path, group=["p", "q", "q", None]), "val") == TrainDistance("group", 2, 1)
    assert train_distance(dataset(tmp_path, group=["p", "q", None, None]), "val") is None
    assert train_distance(dataset(tmp_path), "val") is None


def test_groups_of_many_pictures_are_quickly_looked_up(tmp_path):
    """64,000 images, nearly each a group of its own: text by text this would be 10^9 comparisons."""
    few = dataset(tmp_path)
    table = pd.concat([few.table] * 16_000, ignore_index=True)
    table["group"] = [f"g{row}" for row in range(len(table) - 2)] + ["g0", "g1"]
    begun = time.process_time()
    assert train_distance(replace(few, table=table), "val") == TrainDistance("group", 32_000, 2)
    assert time.process_time() - begun < 5


def test_of_places_and_groups_both_are_said(tmp_path):
    """Far from all that was learnt from, but of a group with some of it."""
    columns = {"latitude": [0, 9, 40, 50.0], "longitude": [0, 9, 0, 0.0], "group": ["p", "q", "q", "r"]}
    found = train_distance(dataset(tmp_path, **columns), "val")
    assert (found.by, found.near, found.groups) == ("place", 0, TrainDistance("group", 2, 1))
    assert not found.new
    blank = train_distance(dataset(tmp_path, **columns | {"group": [None] * 4}), "val")
    assert blank.groups is None
    assert blank.new


@pytest.mark.parametrize("count", [1, 3])
def test_slices_that_are_worse_are_counted(count):
    below = [
        SliceMetrics("year", str(2010 + k), 40, 0.5 + k, 0.4, 0.6, 0.5, small=False, below=True) for k in range(count)
    ]
    assert mentions(worst_slice(below), "2010", "40", "50.0", str(count))


def test_a_probe_of_fewer_pictures_is_compared_on_these():
    """80.5 % of all against the probe's 81.0 % of 500, of which the network has 83 %."""
    figures = SimpleNamespace(top1=0.805, macro_f1=0.8, num_images=2_000)
    facts = ReportMetadata("x", "val", linear_probe_top1=0.81, linear_probe_macro_f1=0.8)
    even = Difference(0.02, 0.0, 0.04)
    better = PairedDifference(500, even, even, even, {})
    assert "has not beaten" in probe_warning(figures, facts)
    assert probe_warning(figures, facts, better) is None
    assert probe_evaluated_images(figures, better) == "500 of these images"
    assert probe_evaluated_images(figures, replace(better, num_images=2_000)) is None
    worse = replace(better, macro_f1=Difference(-0.01, -0.03, 0.01))
    assert mentions(probe_warning(figures, facts, worse), "macro-F1", "79.0", "80.0", "500")


@pytest.mark.parametrize(
    ("learnt", "there", "on", "said"),
    [
        (5000, 40_000, "val", ("5,000", "40,000", "top-1")),
        (8000, 32_000, "out-of-fold", ("32,000", "top-1")),
        (5000, 5000, "val", ("top-1",)),
        (None, None, "val", ("top-1",)),
    ],
)
def test_training_that_lost_to_a_probe_of_few_pictures_is_told_of_how_few(learnt, there, on, said):
    figures = SimpleNamespace(top1=0.7, macro_f1=0.7, num_images=2_000)
    facts = ReportMetadata(
        "x", on, linear_probe_top1=0.8, linear_probe_macro_f1=0.8, linear_probe_num_images=learnt,
        linear_probe_num_available=there,
    )  # fmt: skip
    assert mentions(probe_warning(figures, facts), *said)


def test_a_kept_start_is_not_said_to_have_lost_to_itself():
    figures = SimpleNamespace(top1=0.8, macro_f1=0.8, num_images=2_000)
    facts = ReportMetadata(
        "x", "val", linear_probe_top1=0.8, linear_probe_macro_f1=0.8, kept_model="start", kept_reason="Kept: the probe."
    )
    assert probe_warning(figures, facts) == "Kept: the probe."
