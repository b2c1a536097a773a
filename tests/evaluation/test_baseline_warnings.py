"""Warnings and notes of a report, also for few images and for models no better than a baseline."""

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
from efficientnetv2.evaluation.baseline_warnings import majority_warning, probe_evaluated_images, probe_warning
from efficientnetv2.evaluation.distribution_shift import TrainDistance, train_distance
from efficientnetv2.evaluation.html import render
from efficientnetv2.evaluation.predictions import PairedDifference
from efficientnetv2.evaluation.report_metadata import ReportMetadata
from efficientnetv2.evaluation.report_sections import worst_slice
from efficientnetv2.metrics.classification import classification_metrics
from efficientnetv2.metrics.confidence_intervals import Difference
from efficientnetv2.metrics.metric_intervals import bootstrap_intervals
from efficientnetv2.metrics.subgroups import SliceMetrics
from efficientnetv2.utils.random_key import Key


def two_class_metrics(right, num_images):
    predictions = np.zeros(num_images, dtype=int)
    predictions[right:] = 1
    return classification_metrics(np.zeros(num_images, dtype=int), np.eye(2)[predictions], ("oak", "elm"))


def dataset_notes(metrics, metadata):
    page = render("dataset.html.j2", metrics=metrics, metadata=metadata)
    return [re.sub("<[^>]+>", "", note) for note in re.findall(r"<li>(.*?)</li>", page)]


@pytest.mark.parametrize(
    ("interval", "expected"), [((0.6, 0.8), None), ((0.4, 0.6), "not clearly better"), ((0.1, 0.3), "worse than that")]
)
def test_majority_baseline_is_beaten_or_not(interval, expected):
    metrics = classification_metrics([0, 0, 1, 1], np.eye(2)[[0, 1, 0, 1]], ("oak", "elm"))
    warning = majority_warning(metrics, {"top1": interval})
    assert (warning is None) if expected is None else (expected in warning)


def test_balanced_accuracy_counts_for_rare_classes():
    """Top-1 is 91.8 % and the majority class has 95 %, while 48 of 50 elms are found."""
    true = np.repeat([0, 1], [950, 50])
    predictions = np.repeat([0, 1, 1, 0], [870, 80, 48, 2])
    found = classification_metrics(true, np.eye(2)[predictions], ("oak", "elm"))
    warning = majority_warning(found, bootstrap_intervals(found, key=Key.of(0), draws=100))
    assert mentions(warning, "93.8", "50.0")
    swapped = classification_metrics(true, np.eye(2)[np.repeat([0, 1, 1, 0], [400, 550, 20, 30])], ("oak", "elm"))
    warning = majority_warning(swapped, bootstrap_intervals(swapped, key=Key.of(0), draws=100))
    assert mentions(warning, "not", "separate", "50.0")
    # 70 of 100 oaks and 4 of 10 elms: slightly better than one class, but not significantly.
    few = classification_metrics(
        np.repeat([0, 1], [100, 10]), np.eye(2)[np.repeat([0, 1, 1, 0], [70, 30, 4, 6])], ("oak", "elm")
    )
    warning = majority_warning(few, bootstrap_intervals(few, key=Key.of(0), draws=100))
    assert mentions(warning, "55.0", "50.0")
    intervals = bootstrap_intervals(two_class_metrics(300, 500), key=Key.of(0), draws=100)  # only oaks
    assert majority_warning(two_class_metrics(300, 500), intervals) == "The model is worse than that."


def test_split_phrase_names_the_evaluated_images():
    assert ReportMetadata("x", "val", num_train_images=5).split_phrase.endswith(", kept out of training")
    assert "training" not in ReportMetadata("x", "val").split_phrase  # unknown in an evaluation
    assert mentions(ReportMetadata("x", "out-of-fold").split_phrase, "a model", "out-of-fold")
    assert mentions(ReportMetadata("x", "out-of-fold", ensemble_size=3).split_phrase, "3 models together")
    assert ReportMetadata("x", "else").split_phrase == "images of split else"
    assert ReportMetadata("x", "train").split_phrase == "training images"
    assert ReportMetadata("x", "train", num_eval_images_seen_in_training=0).split_phrase == "images of split train"


def test_dataset_notes_have_the_sizes():
    support = dict(pd.Series({"oak": 12, "elm": 3}))  # numpy integers, as from value_counts
    notes = dataset_notes(
        two_class_metrics(4, 5),
        ReportMetadata("x", "val", num_train_images=15, train_images_per_class=support, num_skipped=1),
    )
    assert mentions(notes[0], "15", "5", "val", "2")
    assert mentions(notes[1], "3", "elm", "12", "oak", "training", "4.0")
    assert mentions(notes[-1], "1", "read")
    lost = replace(ReportMetadata("x", "val", num_train_images=14, num_skipped=3), num_train_lost=1)
    assert mentions(dataset_notes(two_class_metrics(4, 5), lost)[-1], "3", "1", "training")
    balanced = ReportMetadata("x", "val", train_images_per_class=dict(pd.Series({"oak": 3, "elm": 3})))
    assert mentions(dataset_notes(two_class_metrics(4, 5), balanced)[1], "3")
    assert mentions(dataset_notes(two_class_metrics(4, 5), ReportMetadata("x", "test"))[0], "5", "test", "2")


def test_classes_without_images_are_listed_separately():
    """Without evaluation images or without training images (value_counts has no zero)."""
    notes = dataset_notes(two_class_metrics(4, 5), ReportMetadata("x", "test"))
    assert mentions(notes[1], "5", "elm")
    notes_of_training = dataset_notes(
        two_class_metrics(4, 5), ReportMetadata("x", "val", train_images_per_class=dict(pd.Series({"oak": 12})))
    )
    assert mentions(notes_of_training[1], "12", "elm")
    three = classification_metrics([0, 0, 0, 1], np.eye(3)[[0, 0, 0, 1]], ("oak", "elm", "ash"))
    notes_of_three = dataset_notes(three, ReportMetadata("x", "test"))[1]
    assert mentions(notes_of_three, "1", "elm", "3", "oak", "3.0", "ash")


def dataset(tmp_path, **columns):
    table = pd.DataFrame({"path": [f"{row}.jpg" for row in range(4)], "label": list("abab"), **columns})
    table["split"] = ["train", "train", "val", "val"]
    for path in table["path"]:
        (tmp_path / path).touch()
    table.to_csv(tmp_path / "images.csv", index=False)
    return load_dataset(str(tmp_path / "images.csv"))


def test_distance_is_on_the_sphere(tmp_path):
    """A degree of latitude is 111.2 km; 0.01° is near."""
    found = train_distance(dataset(tmp_path, latitude=[0, 9, 0.01, 1.0], longitude=[0, 9, 0, 0]), "val")
    assert (found.by, found.known, found.near) == ("place", 2, 1)
    assert found.median_km == pytest.approx((1.112 + 111.195) / 2, rel=1e-3)


def test_groups_with_training_images_are_counted(tmp_path):
    assert train_distance(dataset(tmp_path, group=["p", "q", "q", "r"]), "val") == TrainDistance("group", 2, 1)
    # An image without a group is a separate group: half of the images, not all.
    assert train_distance(dataset(tmp_path, group=["p", "q", "q", None]), "val") == TrainDistance("group", 2, 1)
    assert train_distance(dataset(tmp_path, group=["p", "q", None, None]), "val") is None
    assert train_distance(dataset(tmp_path), "val") is None


def test_many_groups_are_looked_up_quickly(tmp_path):
    """64,000 images in nearly as many groups: comparing all pairs would take 10^9 comparisons."""
    small = dataset(tmp_path)
    table = pd.concat([small.table] * 16_000, ignore_index=True)
    table["group"] = [f"g{row}" for row in range(len(table) - 2)] + ["g0", "g1"]
    started = time.process_time()
    assert train_distance(replace(small, table=table), "val") == TrainDistance("group", 32_000, 2)
    assert time.process_time() - started < 5


def test_locations_and_groups_are_both_reported(tmp_path):
    """Far from all training images, but in a group with training images."""
    columns = {"latitude": [0, 9, 40, 50.0], "longitude": [0, 9, 0, 0.0], "group": ["p", "q", "q", "r"]}
    found = train_distance(dataset(tmp_path, **columns), "val")
    assert (found.by, found.near, found.groups) == ("place", 0, TrainDistance("group", 2, 1))
    assert not found.new
    blank = train_distance(dataset(tmp_path, **columns | {"group": [None] * 4}), "val")
    assert blank.groups is None
    assert blank.new


@pytest.mark.parametrize("count", [1, 3])
def test_slices_below_the_rest_are_counted(count):
    below = [
        SliceMetrics("year", str(2010 + k), 40, 0.5 + k, 0.4, 0.6, 0.5, small=False, below=True) for k in range(count)
    ]
    assert mentions(worst_slice(below), "2010", "40", "50.0", str(count))


def test_probe_of_fewer_images_is_compared_on_these():
    """The model has 80.5 % on all images and 83 % on the 500 images of the probe. The probe has 81.0 %."""
    metrics = SimpleNamespace(top1=0.805, macro_f1=0.8, num_images=2_000)
    metadata = ReportMetadata("x", "val", linear_probe_top1=0.81, linear_probe_macro_f1=0.8)
    difference = Difference(0.02, 0.0, 0.04)
    better = PairedDifference(500, difference, difference, difference, {})
    assert "has not beaten" in probe_warning(metrics, metadata)
    assert probe_warning(metrics, metadata, better) is None
    assert probe_evaluated_images(metrics, better) == "500 of these images"
    assert probe_evaluated_images(metrics, replace(better, num_images=2_000)) is None
    worse = replace(better, macro_f1=Difference(-0.01, -0.03, 0.01))
    assert mentions(probe_warning(metrics, metadata, worse), "macro-F1", "79.0", "80.0", "500")


@pytest.mark.parametrize(
    ("num_images", "num_available", "evaluated_on", "numbers"),
    [
        (5000, 40_000, "val", ("5,000", "40,000", "top-1")),
        (8000, 32_000, "out-of-fold", ("32,000", "top-1")),
        (5000, 5000, "val", ("top-1",)),
        (None, None, "val", ("top-1",)),
    ],
)
def test_warning_names_the_training_images_of_the_probe(num_images, num_available, evaluated_on, numbers):
    metrics = SimpleNamespace(top1=0.7, macro_f1=0.7, num_images=2_000)
    metadata = ReportMetadata(
        "x", evaluated_on, linear_probe_top1=0.8, linear_probe_macro_f1=0.8, linear_probe_num_images=num_images,
        linear_probe_num_available=num_available,
    )  # fmt: skip
    assert mentions(probe_warning(metrics, metadata), *numbers)


def test_kept_initial_model_is_not_compared_with_itself():
    metrics = SimpleNamespace(top1=0.8, macro_f1=0.8, num_images=2_000)
    metadata = ReportMetadata(
        "x", "val", linear_probe_top1=0.8, linear_probe_macro_f1=0.8, kept_model="start", kept_reason="Kept: the probe."
    )
    assert probe_warning(metrics, metadata) == "Kept: the probe."
