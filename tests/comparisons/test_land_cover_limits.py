"""What limits the figure on land cover, worked by hand on eight images."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from benchmarks import land_cover_limits
from benchmarks.land_cover_limits import Answers, both_wrong, classes, limits, neighbors, years

KM = 1 / 111.2  # of a degree of latitude


@pytest.fixture
def folder(tmp_path):
    """Four pairs of images, 2 km apart within a pair; of two classes, "a" only before 2012 in the first two."""
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
    # By place pairs stay whole; at random the third is parted.
    for kind, fold, wrong in (
        ("spatial", [1, 1, 1, 1, 2, 2, 2, 2], {1, 4, 5}),
        ("stratified", [1, 1, 1, 1, 1, 2, 2, 2], {4, 5, 7}),
    ):
        own = tmp_path / "best" / kind
        own.mkdir(parents=True)
        table.assign(fold=fold).to_csv(own / "dataset.csv", index=False)
        sure = [0.1 if row in wrong else 0.9 for row in range(8)]
        of_a = [one if label == "a" else 1 - one for one, label in zip(sure, table["label"], strict=True)]
        answers = {"path": [f"{row}.jpg" for row in range(8)], "a": of_a, "b": [1 - one for one in of_a]}
        pd.DataFrame(answers).to_csv(own / "predictions.csv", index=False)
        (own / "report.json").write_text(json.dumps({"data_scaling_curve": None}))
    return tmp_path


def counts(share):
    return share.part, share.of


def test_mistakes_that_both_make(folder):
    one, other = (Answers.read(folder / "best" / kind) for kind in land_cover_limits.KINDS)
    found = both_wrong(one, other)
    assert found["wrong"] == [3, 3]
    assert (found["wrong_in_both"], found["with_the_same_answer"]) == (2, 2)
    assert found["if_independent"] == pytest.approx(3 / 8 * 3 / 8 * 8)


def test_neighbors_of_another_label(folder):
    """The third pair is of two classes; both of its images are answered wrongly."""
    found = neighbors(Answers.read(folder / "best/spatial"))
    assert counts(found["near"]) == (8, 8)
    assert counts(found["nearest_has_the_label"]) == (6, 8)
    assert counts(found["top1_where_it_has"]) == (5, 6)
    assert counts(found["top1_where_it_has_not"]) == (0, 2)
    assert counts(found["top1_learnt_near"]) == (0, 0)
    parted = neighbors(Answers.read(folder / "best/stratified"))
    assert counts(parted["top1_learnt_near"]) == (0, 2)
    assert counts(parted["top1_not_learnt_near"]) == (5, 6)


def test_years_and_classes(folder):
    given = Answers.read(folder / "best/spatial")
    found = years(given)
    assert counts(found["before_2012"]) == (1, 3)
    assert counts(found["from_2012"]) == (4, 5)
    assert counts(found["a"]["from_2012"]) == (0, 1)
    of_a = classes(given)["a"]
    assert (counts(of_a["recall"]), counts(of_a["precision"])) == ((1, 3), (1, 2))
    assert of_a["called"] == {"a": 1, "b": 2}


def test_all_of_it_is_plain_json(folder):
    found = land_cover_limits._plain(limits(folder))
    assert json.loads(json.dumps(found)) == found
    assert set(found) == {"both", "spatial", "stratified"}
    assert found["spatial"]["neighbours"]["near"]["value"] == 1


def test_answers_of_other_pictures_are_refused(folder):
    file = folder / "best/spatial/predictions.csv"
    pd.read_csv(file).iloc[::-1].to_csv(file, index=False)
    with pytest.raises(AssertionError, match="of other pictures"):
        Answers.read(folder / "best/spatial")
