"""Answers read again from predictions.csv, and two of them compared."""

from __future__ import annotations

import pandas as pd
import pytest
from tests.messages import mentioning, mentions

from efficientnetv2.evaluation.predictions import compare_predictions, load_predictions
from efficientnetv2.evaluation.summary import ReportContext, summary_lines
from efficientnetv2.utils.errors import InputError


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
    answers = pd.DataFrame(
        {"predicted_label": "x", "true_label": "x"}, index=[f"{row}.jpg" for row in range(20)]
    )
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
