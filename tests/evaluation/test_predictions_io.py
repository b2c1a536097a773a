"""predictions.csv: a column for each class, or of very many the most probable."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tests.messages import mentioning

from efficientnetv2.evaluation.predictions import load_predictions, saved_clusters
from efficientnetv2.evaluation.predictions_io import predictions_table, read_predictions, write_predictions
from efficientnetv2.inference.predict import Predictions
from efficientnetv2.utils.errors import InputError


def written(tmp_path, probabilities, names, **more):
    logits = torch.tensor(probabilities, dtype=torch.float32).log()
    predictions = Predictions(np.arange(len(logits)), np.zeros(len(logits), dtype=np.int64), logits)
    paths = [f"{row}.jpg" for row in range(len(logits))]
    write_predictions(tmp_path / "predictions.csv", predictions_table(predictions, paths, names, **more))
    return pd.read_csv(tmp_path / "predictions.csv")


def test_each_class_has_a_column_even_one_called_path(tmp_path):
    table = written(tmp_path, [[0.2, 0.8], [0.6, 0.4]], ["cat", "path"])
    assert table.columns.tolist() == ["path", "predicted_label", "probability", "cat", "probability of path"]
    assert table["probability"].tolist() == pytest.approx([0.8, 0.6])
    assert table["predicted_label"].tolist() == ["path", "cat"]
    assert table["cat"].tolist() == pytest.approx([0.2, 0.6])


def test_the_true_label_stands_beside_the_answer(tmp_path):
    table = written(tmp_path, [[0.2, 0.8], [0.6, 0.4]], ["cat", "true_label"], true_labels=["cat", "cat"])
    assert table.columns.tolist() == [
        "path", "predicted_label", "probability", "true_label", "cat", "probability of true_label",
    ]  # fmt: skip
    assert table["true_label"].tolist() == ["cat", "cat"]
    assert table["predicted_label"].tolist() == ["true_label", "cat"]


def test_what_chance_drew_whole_stands_last_and_is_read_again(tmp_path):
    """Beside a class of that name, which keeps its own column; places are read as numbers of any kind."""
    names, pictures = ["cat", "cluster"], [[0.2, 0.8], [0.6, 0.4], [0.7, 0.3]]
    table = written(tmp_path, pictures, names, true_labels=["cat"] * 3, clusters=np.array([7, 3, 7]))
    assert table.columns.tolist() == [
        "path", "predicted_label", "probability", "true_label", "cat", "probability of cluster", "cluster",
    ]  # fmt: skip
    whole = saved_clusters(load_predictions(tmp_path))
    assert whole.to_dict() == {"0.jpg": 0, "1.jpg": 1, "2.jpg": 0}
    _, shares = read_predictions(tmp_path / "predictions.csv", names)
    assert shares[:, 1].tolist() == pytest.approx([0.8, 0.4, 0.3])
    written(tmp_path, pictures, names, true_labels=["cat"] * 3)
    assert saved_clusters(load_predictions(tmp_path)) is None


@pytest.mark.parametrize("before", [False, True])
def test_a_table_is_read_with_and_without_the_probability_of_the_label(before, tmp_path):
    """Version 0.1 wrote none, so that a class of that name had its column."""
    names = ["cat", "probability"]
    table = written(tmp_path, [[0.2, 0.8], [0.6, 0.4]], names, true_labels=["cat"] * 2)
    if before:
        table = table.drop(columns="probability").rename(
            columns={"probability of probability": "probability"}
        )
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
        written(tmp_path, [[0.2, 0.8]], ["cat", "dog"])
    assert (tmp_path / "predictions.csv").read_text() == "before"
    assert pd.read_csv(tmp_path / "predictions_2.csv")["predicted_label"].tolist() == ["dog"]

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match=mentioning("predictions.csv", "No space left on device")):
        written(tmp_path, [[0.2, 0.8]], ["cat", "dog"])
    assert sorted(file.name for file in tmp_path.iterdir()) == list(files)


def test_of_very_many_classes_the_five_most_probable_are_written(tmp_path):
    """21,843 classes and 100,000 pictures would be 2 billion numbers."""
    probabilities = np.full((2, 1001), 0.1 / 996)
    probabilities[0, [7, 1000, 3, 500, 20]] = [0.3, 0.25, 0.2, 0.1, 0.05]
    probabilities[1, [0, 1, 2, 3, 4]] = [0.05, 0.1, 0.2, 0.25, 0.3]
    table = written(tmp_path, probabilities, [f"c{number}" for number in range(1001)])
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
    table = written(tmp_path, np.full((2, 1000), 0.001), names)
    assert table.columns.tolist() == ["path", "predicted_label", "probability", *names]
    assert table.loc[1, "c999"] == pytest.approx(0.001)
