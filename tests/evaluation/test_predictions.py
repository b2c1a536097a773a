"""Answers read again from predictions.csv, and two of them compared."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tests.messages import mentioning, mentions

from efficientnetv2.evaluation.predictions import (
    compare_predictions,
    load_predictions,
    predictions_table,
    read_predictions,
    saved_clusters,
    write_predictions,
)
from efficientnetv2.evaluation.report_metadata import ReportContext
from efficientnetv2.evaluation.verdicts import summary_lines
from efficientnetv2.inference.predict import Predictions
from efficientnetv2.utils.errors import InputError
from efficientnetv2.workflows.results import Result


def written(folder, rows):
    folder.mkdir()
    pd.DataFrame(rows, columns=["path", "predicted_label", "true_label"]).to_csv(
        folder / "predictions.csv", index=False
    )
    return folder


def test_only_pictures_that_both_answered_are_compared(tmp_path):
    """b, c and d: two right against one, so a third of top-1 better; of class x both recalls differ by 1/2."""
    one = written(tmp_path / "one", [("a", "x", "y"), ("b", "x", "x"), ("c", "x", "x"), ("d", "x", "NA")])
    other = written(tmp_path / "two", [("d", "y", "NA"), ("c", "y", "x"), ("b", "x", "x"), ("e", "x", "x")])
    found = compare_predictions(load_predictions(one), load_predictions(other))
    assert found.num_images == 3
    assert found.top1.value == pytest.approx(1 / 3)
    assert list(found.f1) == ["NA", "x"]
    assert found.f1["x"].value == pytest.approx(4 / 5 - 2 / 3)


@pytest.mark.parametrize(("places", "told"), [(9, True), (10, False)])
def test_of_few_places_it_is_said_what_they_leave_open(places, told):
    answers = pd.DataFrame({"predicted_label": "x", "true_label": "x"}, index=[f"{row}.jpg" for row in range(20)])
    clusters = pd.Series([row % places for row in range(20)], index=answers.index)
    found = compare_predictions(answers, answers, clusters=clusters)
    (line,) = summary_lines(ReportContext(last=("before", found)))
    assert ("With only 9 clusters, nothing is certain unless six or more differ." in line) is told
    assert mentions(line, places, "clusters")
    assert "places" not in line, "they may be pictures with their copies"


def test_nothing_in_common_is_no_comparison_and_other_labels_are_refused(tmp_path):
    one, two = (load_predictions(written(tmp_path / name, [(name, "x", "x")])) for name in "ab")
    assert compare_predictions(one, two) is None
    three = load_predictions(written(tmp_path / "c", [("a", "x", "y")]))
    with pytest.raises(InputError, match=mentioning("'x'", "'y'", "1")):
        compare_predictions(one, three)


def test_what_is_no_table_of_answers_is_refused(tmp_path):
    with pytest.raises(InputError, match=mentioning("predictions.csv")):
        load_predictions(tmp_path)
    pd.DataFrame({"path": ["a"], "predicted_label": ["x"]}).to_csv(tmp_path / "predictions.csv")
    with pytest.raises(InputError, match=mentioning("true_label", "column")):
        load_predictions(tmp_path)


@pytest.mark.parametrize("content", [b"", b"path,label,true_label\n\xff,x,x\n"])
def test_a_damaged_table_of_answers_is_refused_by_name(content, tmp_path):
    (tmp_path / "predictions.csv").write_bytes(content)
    with pytest.raises(InputError, match=mentioning("predictions.csv")):
        load_predictions(tmp_path)


def written_predictions(tmp_path, probabilities, names, **more):
    logits = torch.tensor(probabilities, dtype=torch.float32).log()
    predictions = Predictions(np.arange(len(logits)), np.zeros(len(logits), dtype=np.int64), logits)
    paths = [f"{row}.jpg" for row in range(len(logits))]
    write_predictions(tmp_path / "predictions.csv", predictions_table(predictions, paths, names, **more))
    return pd.read_csv(tmp_path / "predictions.csv")


def test_each_class_has_a_column_even_one_called_path(tmp_path):
    table = written_predictions(tmp_path, [[0.2, 0.8], [0.6, 0.4]], ["cat", "path"])
    assert table.columns.tolist() == ["path", "predicted_label", "probability", "cat", "probability of path"]
    assert table["probability"].tolist() == pytest.approx([0.8, 0.6])
    assert table["predicted_label"].tolist() == ["path", "cat"]
    assert table["cat"].tolist() == pytest.approx([0.2, 0.6])


def test_the_true_label_stands_beside_the_answer(tmp_path):
    table = written_predictions(tmp_path, [[0.2, 0.8], [0.6, 0.4]], ["cat", "true_label"], true_labels=["cat", "cat"])
    assert table.columns.tolist() == [
        "path", "predicted_label", "probability", "true_label", "cat", "probability of true_label",
    ]  # fmt: skip
    assert table["true_label"].tolist() == ["cat", "cat"]
    assert table["predicted_label"].tolist() == ["true_label", "cat"]


def test_what_chance_drew_whole_stands_last_and_is_read_again(tmp_path):
    """Next to a class of that name, which keeps its own column; places are read as numbers of any kind."""
    names, pictures = ["cat", "cluster"], [[0.2, 0.8], [0.6, 0.4], [0.7, 0.3]]
    table = written_predictions(tmp_path, pictures, names, true_labels=["cat"] * 3, clusters=np.array([7, 3, 7]))
    assert table.columns.tolist() == [
        "path", "predicted_label", "probability", "true_label", "cat", "probability of cluster", "cluster",
    ]  # fmt: skip
    whole = saved_clusters(load_predictions(tmp_path))
    assert whole.to_dict() == {"0.jpg": 0, "1.jpg": 1, "2.jpg": 0}
    _, shares = read_predictions(tmp_path / "predictions.csv", names)
    assert shares[:, 1].tolist() == pytest.approx([0.8, 0.4, 0.3])
    written_predictions(tmp_path, pictures, names, true_labels=["cat"] * 3)
    assert saved_clusters(load_predictions(tmp_path)) is None


RESERVED = [
    "path", "predicted_label", "probability", "true_label", "cluster", "unknown_score", "is_unknown",
    *(f"predicted_label_{place}" for place in range(2, 6)), "probability of path",
]  # fmt: skip


@pytest.mark.parametrize("labeled", [False, True])
def test_a_class_may_have_the_name_of_any_column(labeled, tmp_path):
    names, expected = ["cat", *RESERVED], np.random.default_rng(0).dirichlet(np.ones(len(RESERVED) + 1), 3)
    known = {"true_labels": ["cat"] * 3, "clusters": np.array([7, 3, 7])} if labeled else {}
    table = written_predictions(tmp_path, expected, names, **known)
    assert table.columns.is_unique
    assert table["probability"].tolist() == pytest.approx(expected.max(axis=1).tolist(), abs=1e-5)
    assert table["path"].tolist() == ["0.jpg", "1.jpg", "2.jpg"]
    assert ("true_label" in table) == ("cluster" in table) == labeled
    assert Result(tmp_path).predictions["probability of predicted_label_2"].dtype == np.float64
    _, found = read_predictions(tmp_path / "predictions.csv", names)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_columns_of_classes_whose_names_were_not_reserved_before_are_read(tmp_path):
    names = ["cat", "is_unknown", "predicted_label_2"]
    table = written_predictions(tmp_path, [[0.2, 0.5, 0.3]], names, true_labels=["cat"])
    table.rename(columns=lambda name: name.removeprefix("probability of ")).to_csv(
        tmp_path / "predictions.csv", index=False
    )
    _, found = read_predictions(tmp_path / "predictions.csv", names)
    assert found[0].tolist() == pytest.approx([0.2, 0.5, 0.3])


def test_a_class_without_a_column_has_no_probability_whatever_its_name(tmp_path):
    written_predictions(tmp_path, [[0.2, 0.8]], ["cat", "dog"], true_labels=["cat"])
    _, found = read_predictions(tmp_path / "predictions.csv", ["cat", "dog", *RESERVED])
    assert found[0].tolist() == pytest.approx([0.2, 0.8] + [0] * len(RESERVED))


@pytest.mark.parametrize("before", [False, True])
def test_a_table_is_read_with_and_without_the_probability_of_the_label(before, tmp_path):
    """Version 0.1 wrote none, so that a class of that name had its column."""
    names = ["cat", "probability"]
    table = written_predictions(tmp_path, [[0.2, 0.8], [0.6, 0.4]], names, true_labels=["cat"] * 2)
    if before:
        table = table.drop(columns="probability").rename(columns={"probability of probability": "probability"})
        table.to_csv(tmp_path / "predictions.csv", index=False)
    paths, shares = read_predictions(tmp_path / "predictions.csv", names)
    assert paths == ["0.jpg", "1.jpg"]
    assert shares[:, 1].tolist() == pytest.approx([0.8, 0.4])
    assert load_predictions(tmp_path)["predicted_label"].tolist() == ["probability", "cat"]


def test_answers_that_cannot_be_put_in_place_are_kept_beside_it(tmp_path, monkeypatch):
    """As where a spreadsheet has the file open, on Windows; and where the disk is full nothing is left."""
    replacing, files = os.replace, ("predictions.csv", "predictions_2.csv")

    def locked(source, target):
        if Path(target).name in files[:1]:
            raise PermissionError(13, "Permission denied", str(target))
        replacing(source, target)

    (tmp_path / "predictions.csv").write_text("before")
    monkeypatch.setattr(os, "replace", locked)
    with pytest.raises(InputError, match=mentioning("predictions_2.csv")):
        written_predictions(tmp_path, [[0.2, 0.8]], ["cat", "dog"])
    assert (tmp_path / "predictions.csv").read_text() == "before"
    assert pd.read_csv(tmp_path / "predictions_2.csv")["predicted_label"].tolist() == ["dog"]

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match=mentioning("predictions.csv", "No space left on device")):
        written_predictions(tmp_path, [[0.2, 0.8]], ["cat", "dog"])
    assert sorted(file.name for file in tmp_path.iterdir()) == list(files)


def test_of_very_many_classes_the_five_most_probable_are_written(tmp_path):
    """21,843 classes and 100,000 images would be 2 billion numbers."""
    probabilities = np.full((2, 1001), 0.1 / 996)
    probabilities[0, [7, 1000, 3, 500, 20]] = [0.3, 0.25, 0.2, 0.1, 0.05]
    probabilities[1, [0, 1, 2, 3, 4]] = [0.05, 0.1, 0.2, 0.25, 0.3]
    table = written_predictions(tmp_path, probabilities, [f"c{number}" for number in range(1001)])
    ends = ("", "_2", "_3", "_4", "_5")
    assert table.columns.tolist() == [
        "path",
        *(f"{word}{end}" for end in ends for word in ("predicted_label", "probability")),
    ]
    assert [[row[f"predicted_label{end}"] for end in ends] for _, row in table.iterrows()] == [
        ["c7", "c1000", "c3", "c500", "c20"],
        ["c4", "c3", "c2", "c1", "c0"],
    ]
    assert table.loc[0, "probability_5"] == pytest.approx(0.05)


def test_a_table_of_a_thousand_classes_is_written_without_a_warning(tmp_path):
    """Warnings are errors here; pandas warns of a table that grows by a hundred columns one by one."""
    names = [f"c{number}" for number in range(1000)]
    table = written_predictions(tmp_path, np.full((2, 1000), 0.001), names)
    assert table.columns.tolist() == ["path", "predicted_label", "probability", *names]
    assert table.loc[1, "c999"] == pytest.approx(0.001)
