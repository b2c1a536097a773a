"""Reading and writing predictions.csv, and paired differences of two files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tests.messages import mentioning, mentions

from efficientnetv2.evaluation.baseline_warnings import summary_lines
from efficientnetv2.evaluation.predictions import (
    compare_predictions,
    load_predictions,
    predictions_table,
    read_predictions,
    saved_clusters,
    write_predictions,
)
from efficientnetv2.evaluation.report_metadata import ReportContext
from efficientnetv2.inference.predict import Predictions
from efficientnetv2.utils.errors import InputError
from efficientnetv2.workflows.results import Result


def written_table(folder, rows):
    folder.mkdir()
    pd.DataFrame(rows, columns=["path", "predicted_label", "true_label"]).to_csv(
        folder / "predictions.csv", index=False
    )
    return folder


def test_only_images_in_both_files_are_compared(tmp_path):
    """b, c and d: two right against one, so top-1 is better by 1/3; both recalls of x differ by 1/2."""
    first = written_table(tmp_path / "one", [("a", "x", "y"), ("b", "x", "x"), ("c", "x", "x"), ("d", "x", "NA")])
    second = written_table(tmp_path / "two", [("d", "y", "NA"), ("c", "y", "x"), ("b", "x", "x"), ("e", "x", "x")])
    difference = compare_predictions(load_predictions(first), load_predictions(second))
    assert difference.num_images == 3
    assert difference.top1.value == pytest.approx(1 / 3)
    assert list(difference.f1) == ["NA", "x"]
    assert difference.f1["x"].value == pytest.approx(4 / 5 - 2 / 3)


@pytest.mark.parametrize(("num_clusters", "warned"), [(9, True), (10, False)])
def test_few_clusters_are_reported(num_clusters, warned):
    predictions = pd.DataFrame({"predicted_label": "x", "true_label": "x"}, index=[f"{row}.jpg" for row in range(20)])
    clusters = pd.Series([row % num_clusters for row in range(20)], index=predictions.index)
    found = compare_predictions(predictions, predictions, clusters=clusters)
    (line,) = summary_lines(ReportContext(last=("before", found)))
    assert ("With only 9 clusters, nothing is certain unless six or more differ." in line) is warned
    assert mentions(line, num_clusters, "clusters")
    assert "places" not in line, "clusters may be images with their copies"


def test_clustering_with_a_single_cluster_on_the_common_images_is_not_used():
    """The earlier run knows sites, all common images are of one; the new one knows 4 patients there."""
    names = [f"{row}.jpg" for row in range(20)]
    new = pd.DataFrame({"predicted_label": "x", "true_label": "x"}, index=names)
    patients = pd.Series(np.arange(20) % 4, index=names)
    found = compare_predictions(new, new.assign(cluster="site a"), clusters=patients)
    assert found.num_clusters == 4


def test_no_common_images_or_other_labels(tmp_path):
    first, second = (load_predictions(written_table(tmp_path / name, [(name, "x", "x")])) for name in "ab")
    assert compare_predictions(first, second) is None
    other_labels = load_predictions(written_table(tmp_path / "c", [("a", "x", "y")]))
    with pytest.raises(InputError, match=mentioning("'x'", "'y'", "1")):
        compare_predictions(first, other_labels)


def test_file_without_predictions_is_rejected(tmp_path):
    with pytest.raises(InputError, match=mentioning("predictions.csv")):
        load_predictions(tmp_path)
    pd.DataFrame({"path": ["a"], "predicted_label": ["x"]}).to_csv(tmp_path / "predictions.csv")
    with pytest.raises(InputError, match=mentioning("true_label", "column")):
        load_predictions(tmp_path)


@pytest.mark.parametrize("content", [b"", b"path,label,true_label\n\xff,x,x\n"])
def test_damaged_file_is_rejected_by_name(content, tmp_path):
    (tmp_path / "predictions.csv").write_bytes(content)
    with pytest.raises(InputError, match=mentioning("predictions.csv")):
        load_predictions(tmp_path)


def written_predictions(tmp_path, probabilities, names, **options):
    logits = torch.tensor(probabilities, dtype=torch.float32).log()
    predictions = Predictions(np.arange(len(logits)), np.zeros(len(logits), dtype=np.int64), logits)
    paths = [f"{row}.jpg" for row in range(len(logits))]
    write_predictions(tmp_path / "predictions.csv", predictions_table(predictions, paths, names, **options))
    return pd.read_csv(tmp_path / "predictions.csv")


def test_each_class_has_a_column_even_if_called_path(tmp_path):
    table = written_predictions(tmp_path, [[0.2, 0.8], [0.6, 0.4]], ["cat", "path"])
    assert table.columns.tolist() == ["path", "predicted_label", "probability", "cat", "probability of path"]
    assert table["probability"].tolist() == pytest.approx([0.8, 0.6])
    assert table["predicted_label"].tolist() == ["path", "cat"]
    assert table["cat"].tolist() == pytest.approx([0.2, 0.6])


def test_true_label_is_next_to_the_prediction(tmp_path):
    table = written_predictions(tmp_path, [[0.2, 0.8], [0.6, 0.4]], ["cat", "true_label"], true_labels=["cat", "cat"])
    assert table.columns.tolist() == [
        "path", "predicted_label", "probability", "true_label", "cat", "probability of true_label",
    ]  # fmt: skip
    assert table["true_label"].tolist() == ["cat", "cat"]
    assert table["predicted_label"].tolist() == ["true_label", "cat"]


def test_clusters_are_the_last_column_and_are_read_back(tmp_path):
    """A class named "cluster" keeps its column; cluster ids are renumbered."""
    names, probabilities = ["cat", "cluster"], [[0.2, 0.8], [0.6, 0.4], [0.7, 0.3]]
    table = written_predictions(tmp_path, probabilities, names, true_labels=["cat"] * 3, clusters=np.array([7, 3, 7]))
    assert table.columns.tolist() == [
        "path", "predicted_label", "probability", "true_label", "cat", "probability of cluster", "cluster",
    ]  # fmt: skip
    clusters = saved_clusters(load_predictions(tmp_path))
    assert clusters.to_dict() == {"0.jpg": 0, "1.jpg": 1, "2.jpg": 0}
    _, read = read_predictions(tmp_path / "predictions.csv", names)
    assert read[:, 1].tolist() == pytest.approx([0.8, 0.4, 0.3])
    written_predictions(tmp_path, probabilities, names, true_labels=["cat"] * 3)
    assert saved_clusters(load_predictions(tmp_path)) is None


RESERVED = [
    "path", "predicted_label", "probability", "true_label", "cluster", "unknown_score", "is_unknown",
    *(f"predicted_label_{place}" for place in range(2, 6)), "probability of path",
]  # fmt: skip


@pytest.mark.parametrize("labeled", [False, True])
def test_class_may_have_the_name_of_any_column(labeled, tmp_path):
    names, expected = ["cat", *RESERVED], np.random.default_rng(0).dirichlet(np.ones(len(RESERVED) + 1), 3)
    known = {"true_labels": ["cat"] * 3, "clusters": np.array([7, 3, 7])} if labeled else {}
    table = written_predictions(tmp_path, expected, names, **known)
    assert table.columns.is_unique
    assert table["probability"].tolist() == pytest.approx(expected.max(axis=1).tolist(), abs=1e-5)
    assert table["path"].tolist() == ["0.jpg", "1.jpg", "2.jpg"]
    assert ("true_label" in table) == ("cluster" in table) == labeled
    assert Result(tmp_path).predictions["probability of predicted_label_2"].dtype == np.float64
    paths, found = read_predictions(tmp_path / "predictions.csv", names)
    assert paths == ["0.jpg", "1.jpg", "2.jpg"]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_column_of_another_class_is_not_used_for_a_missing_class(tmp_path):
    written_predictions(tmp_path, [[0.2, 0.8]], ["cat", "path"], true_labels=["cat"])
    _, found = read_predictions(tmp_path / "predictions.csv", ["cat", "path", "probability of path"])
    assert found[0].tolist() == pytest.approx([0.2, 0.8, 0.0])


def test_class_without_a_column_has_probability_zero(tmp_path):
    written_predictions(tmp_path, [[0.2, 0.8]], ["cat", "dog"], true_labels=["cat"])
    _, found = read_predictions(tmp_path / "predictions.csv", ["cat", "dog", *RESERVED])
    assert found[0].tolist() == pytest.approx([0.2, 0.8] + [0] * len(RESERVED))


def test_locked_file_is_saved_under_another_name(tmp_path, monkeypatch):
    """On Windows a spreadsheet locks an open file. With a full disk no file is left."""
    os_replace, files = os.replace, ("predictions.csv", "predictions_2.csv")

    def locked(source, target):
        if Path(target).name in files[:1]:
            raise PermissionError(13, "Permission denied", str(target))
        os_replace(source, target)

    (tmp_path / "predictions.csv").write_text("before")
    monkeypatch.setattr(os, "replace", locked)
    with pytest.raises(InputError, match=mentioning("predictions_2.csv")):
        written_predictions(tmp_path, [[0.2, 0.8]], ["cat", "dog"])
    assert (tmp_path / "predictions.csv").read_text() == "before"
    assert pd.read_csv(tmp_path / "predictions_2.csv")["predicted_label"].tolist() == ["dog"]

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match=mentioning("predictions.csv", "No space left on device", "room", "resume")):
        written_predictions(tmp_path, [[0.2, 0.8]], ["cat", "dog"])
    assert sorted(file.name for file in tmp_path.iterdir()) == list(files)


def test_many_classes_are_written_as_the_top_five(tmp_path):
    """21,843 classes and 100,000 images would be 2 billion numbers."""
    probabilities = np.full((2, 1001), 0.1 / 996)
    probabilities[0, [7, 1000, 3, 500, 20]] = [0.3, 0.25, 0.2, 0.1, 0.05]
    probabilities[1, [0, 1, 2, 3, 4]] = [0.05, 0.1, 0.2, 0.25, 0.3]
    table = written_predictions(tmp_path, probabilities, [f"c{number}" for number in range(1001)])
    ends = ("", "_2", "_3", "_4", "_5")
    assert table.columns.tolist() == [
        "path",
        *(f"{name}{end}" for end in ends for name in ("predicted_label", "probability")),
    ]
    assert [[row[f"predicted_label{end}"] for end in ends] for _, row in table.iterrows()] == [
        ["c7", "c1000", "c3", "c500", "c20"],
        ["c4", "c3", "c2", "c1", "c0"],
    ]
    assert table.loc[0, "probability_5"] == pytest.approx(0.05)


def test_table_of_a_thousand_classes_gives_no_warning(tmp_path):
    """Warnings are errors here, and pandas warns of many columns added one by one."""
    names = [f"c{number}" for number in range(1000)]
    table = written_predictions(tmp_path, np.full((2, 1000), 0.001), names)
    assert table.columns.tolist() == ["path", "predicted_label", "probability", *names]
    assert table.loc[1, "c999"] == pytest.approx(0.001)
