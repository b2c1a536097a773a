"""Results of a cross-validation: clusters for intervals, training images and times."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.data.test_splits import dataset
from tests.messages import mentions

from efficientnetv2.data.folds import assign_folds, time_folds
from efficientnetv2.inference.predict import Predictions
from efficientnetv2.workflows import crossval_report
from efficientnetv2.workflows.crossval_config import CrossValConfig
from efficientnetv2.workflows.crossval_report import CrossValResults


def test_training_images_per_class_are_the_mean_over_folds():
    """As in the reports of the runs: without selection images and unreadable images."""
    data = dataset(np.repeat([0, 1], [30, 12]))
    reports = [
        {"train_images_per_class": {"c0": 20, "c1": 8}},
        {"train_images_per_class": {"c0": 18, "c1": 7}},
        {"train_images_per_class": {"c0": 19}},
    ]
    assert crossval_report._train_images_per_class(data, reports) == {"c0": 19, "c1": 5}


def test_folds_that_kept_the_initial_model_are_counted():
    reports = [{"kept_model": "start"}, {"kept_model": "trained"}, {"kept_model": "start"}, {}]
    (line,) = crossval_report._kept_start_notes(reports)
    assert mentions(line, "2", "4", "training")
    assert crossval_report._kept_start_notes(reports[1::2]) == []


def clusters_of(folder, data, dealt, rows):
    predictions = Predictions(rows, data.labels[rows], torch.zeros(len(rows), 2))
    results = CrossValResults(folder, SimpleNamespace(dataset=data), dealt, (), None, None, ())
    results.__dict__["predictions"] = predictions
    return results.clusters()


# Four fields at each of six locations. Two locations are neighbors across the border of a one-degree block.
PLACES = {"latitude": np.repeat([0.5, 2.5, 4.98, 5.01, 8.5, 9.5], 8), "longitude": 100.5}
GROUPS = {"group": [f"field {row // 2}" for row in range(48)]}


@pytest.mark.parametrize(
    ("by", "columns", "drawn", "count"),
    [
        ("place", PLACES, "places", 6),
        ("place", PLACES | GROUPS, "places and groups", 6),
        ("group", PLACES | GROUPS, "groups", 24),
        ("auto", PLACES, "places", 6),
        ("auto", GROUPS, "groups", 24),
        ("class", GROUPS, None, 24),
        ("time", {"year": np.arange(48) // 12}, None, 18),
    ],
)
def test_clusters_and_their_name_follow_the_split(by, columns, drawn, count, tmp_path):
    """By class and by time, clusters are identical files (here each twice) and have no name."""
    data = dataset(np.arange(48) % 2, **columns)
    contents = (np.arange(48) // 4 * 2 + np.arange(48) % 2) if drawn is None else np.arange(48)
    if by == "time":
        dealt = time_folds(data, k=3, column="year", contents=contents)
    else:
        dealt = assign_folds(data, k=3, seed=0, contents=contents, by=by)
    dealt.with_folds(data).to_csv(tmp_path / "dataset.csv")
    rows = np.concatenate([part.val_rows for part in dealt.parts])
    pooled = np.sort(rows)
    found = clusters_of(tmp_path, data, dealt, pooled)
    assert found.unit == drawn
    assert len(np.unique(found.clusters)) == count
    assert np.array_equal(found.clusters, dealt.clusters[pooled])


def test_groups_within_time_periods_are_clusters_as_in_compare(tmp_path):
    """Each field has images of one year, so folds by time do not divide it."""
    data = dataset(np.arange(48) % 2, year=np.arange(48) // 12, **GROUPS)
    dealt = time_folds(data, k=3, column="year")
    dealt.with_folds(data).to_csv(tmp_path / "dataset.csv")
    rows = np.concatenate([part.val_rows for part in dealt.parts])
    pooled = np.sort(rows)
    found = clusters_of(tmp_path, data, dealt, pooled)
    assert found.unit == "groups"
    assert len(np.unique(found.clusters)) == len(rows) / 2


def test_training_time_includes_candidates_and_both_splits(tmp_path):
    """Two folds take 10 s each, and their candidates 3 s and 4 s. By another split, 20 s each, and 5 s and 6 s."""

    def folds_of(folder, seconds, *tried):
        (folder / "selection").mkdir(parents=True)
        for number, taken in enumerate(tried):
            (folder / f"selection/fold{number + 1}.json").write_text(json.dumps({"scores": {}, "seconds": taken}))
        return [SimpleNamespace(score=SimpleNamespace(seconds=seconds)) for _ in tried]

    folds = folds_of(tmp_path, 10.0, 3.0, 4.0)
    again = folds_of(tmp_path / "otherwise", 20.0, 5.0, 6.0)
    chooses, plain = CrossValConfig(folds=2, tries=("", "class_sampling=equal")), CrossValConfig(folds=2)
    for config, other, expected in ((plain, None, 20), (chooses, None, 27), (plain, again, 60), (chooses, again, 78)):
        trainer = SimpleNamespace(config=config)
        results = CrossValResults(tmp_path, trainer, None, folds, None, other, ())
        assert results.train_seconds() == expected


def test_images_that_trained_or_selected_the_initial_weights_are_counted(tmp_path):
    """The most of the runs of a fold, summed over the folds."""

    def fold(*uses):
        facts = {"recipe": {}, "model": "m", "auto_choices": [], "epochs": 1.0, "train_images_per_class": {}}
        names = ("num_eval_images_seen_in_training", "num_eval_images_used_for_selection")
        reports = [facts | dict(zip(names, each, strict=True)) for each in uses]
        return SimpleNamespace(reports=reports, score=SimpleNamespace(seconds=1.0), unreadable={})

    (tmp_path / "crossval.json").write_text(json.dumps({"command": "x"}))
    data = dataset(np.arange(6) % 2)
    trainer = SimpleNamespace(dataset=data, config=CrossValConfig(folds=2), seed=0)
    every = [fold((2, 1), (1, 0)), fold((1, 0), (1, 0))]
    results = CrossValResults(tmp_path, trainer, SimpleNamespace(note="By class."), every, None, None, ())
    results.__dict__["predictions"] = Predictions(np.arange(6), data.labels, torch.zeros(6, 2))
    found = results.metadata(None, "", {}, {})
    assert (found.num_eval_images_seen_in_training, found.num_eval_images_used_for_selection) == (3, 1)
    assert found.optimistic
    assert mentions(found.notes[0], "6", "3", "1")
