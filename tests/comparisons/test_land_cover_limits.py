"""Limits of the accuracy on land cover, by hand on eight images."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from benchmarks import land_cover_limits
from benchmarks.land_cover_limits import Answers, both_wrong, classes, limits, neighbors, years

KM = 1 / 111.2  # of a degree of latitude


@pytest.fixture
def folder(tmp_path):
    """Four pairs of images, 2 km apart in a pair, of two classes; "a" only before 2012 in the first two pairs."""
    table = pd.DataFrame(
        {
            "path": [f"../../{number}.jpg" for number in range(8)],
            "label": list("aabbabbb"),
            "split": "train",
            "latitude": [pair + side * 2 * KM for pair in (0.0, 1.0, 2.0, 3.0) for side in (0, 1)],
            "longitude": 10.0,
            "year": [2001, 2001, 2013, 2013, 2013, 2001, 2013, 2013],
        }
    )
    # Folds by place keep pairs together; random folds divide the third pair.
    for split, fold, wrong in (
        ("spatial", [1, 1, 1, 1, 2, 2, 2, 2], {1, 4, 5}),
        ("stratified", [1, 1, 1, 1, 1, 2, 2, 2], {4, 5, 7}),
    ):
        run = tmp_path / "best" / split
        run.mkdir(parents=True)
        table.assign(fold=fold).to_csv(run / "dataset.csv", index=False)
        confidence = [0.1 if row in wrong else 0.9 for row in range(8)]
        of_a = [share if label == "a" else 1 - share for share, label in zip(confidence, table["label"], strict=True)]
        predictions = {"path": [f"{row}.jpg" for row in range(8)], "a": of_a, "b": [1 - share for share in of_a]}
        pd.DataFrame(predictions).to_csv(run / "predictions.csv", index=False)
        (run / "report.json").write_text(json.dumps({"data_scaling_curve": None}))
    return tmp_path


def counts(share):
    return share.part, share.of


def test_errors_of_both_runs(folder):
    first, second = (Answers.read(folder / "best" / kind) for kind in land_cover_limits.KINDS)
    found = both_wrong(first, second)
    assert found["wrong"] == [3, 3]
    assert (found["wrong_in_both"], found["with_the_same_answer"]) == (2, 2)
    assert found["if_independent"] == pytest.approx(3 / 8 * 3 / 8 * 8)


def test_neighbors_with_another_label(folder):
    """The third pair is of two classes; both images are predicted wrongly."""
    found = neighbors(Answers.read(folder / "best/spatial"))
    assert counts(found["near"]) == (8, 8)
    assert counts(found["nearest_has_the_label"]) == (6, 8)
    assert counts(found["top1_where_it_has"]) == (5, 6)
    assert counts(found["top1_where_it_has_not"]) == (0, 2)
    assert counts(found["top1_learnt_near"]) == (0, 0)
    stratified = neighbors(Answers.read(folder / "best/stratified"))
    assert counts(stratified["top1_learnt_near"]) == (0, 2)
    assert counts(stratified["top1_not_learnt_near"]) == (5, 6)


def test_years_and_classes(folder):
    predictions = Answers.read(folder / "best/spatial")
    found = years(predictions)
    assert counts(found["before_2012"]) == (1, 3)
    assert counts(found["from_2012"]) == (4, 5)
    assert counts(found["a"]["from_2012"]) == (0, 1)
    of_a = classes(predictions)["a"]
    assert (counts(of_a["recall"]), counts(of_a["precision"])) == ((1, 3), (1, 2))
    assert of_a["called"] == {"a": 1, "b": 2}


def test_result_is_plain_json(folder):
    found = land_cover_limits._plain(limits(folder))
    assert json.loads(json.dumps(found)) == found
    assert set(found) == {"both", "spatial", "stratified"}
    assert found["spatial"]["neighbours"]["near"]["value"] == 1


def test_predictions_of_other_images_are_rejected(folder):
    file = folder / "best/spatial/predictions.csv"
    pd.read_csv(file).iloc[::-1].to_csv(file, index=False)
    with pytest.raises(AssertionError, match="of other pictures"):
        Answers.read(folder / "best/spatial")
