"""Two runs against each other, image by image."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, t
from tests.messages import mentioning, mentions

from efficientnetv2.cli.compare import compare
from efficientnetv2.evaluation.predictions import compare_predictions
from efficientnetv2.evaluation.run_comparison import FinishedRun, compare_runs, compare_unpaired
from efficientnetv2.metrics.confidence_intervals import wilson_interval
from efficientnetv2.training.run_paths import lock_run_dir
from efficientnetv2.utils.errors import InputError


def _run(name, right, seconds):
    rows = ({"kind": "train", "step": 1, "train_s": seconds, "image_size": 64},)
    answers = pd.DataFrame({"predicted_label": ["a" if one else "b" for one in right], "true_label": "a"})
    answers.index = pd.Index([f"{number}.jpg" for number in range(len(right))])
    return FinishedRun(name, {"wall_s": 99.0}, rows, answers)


def placed(run, places):
    """The run, its report knowing where each image was taken."""
    return replace(run, predictions=run.predictions.assign(cluster=places.map(str)))


def test_a_gain_is_that_of_the_same_images():
    """100 images: 70 right with both, 10 only with the first, 4 only with the second, 16 with neither."""
    over = _run("fixed", [True] * 80 + [False] * 20, 20.0)
    one = _run("growing", [True] * 70 + [False] * 10 + [True] * 4 + [False] * 16, 10.0)
    found = compare_runs(one, over)
    assert found.over.top1.value == pytest.approx(-0.06)
    assert (found.over.num_images, found.time_ratio) == (100, 0.5)
    # The difference is a sum of 100 draws of -1, 0, 1 with variance 0.14 - 0.06 squared: 2 * 0.0369 wide.
    deviation = ((0.14 - 0.06**2) / 100) ** 0.5
    assert found.over.top1.low == pytest.approx(-0.06 - 1.96 * deviation, abs=0.008)
    assert found.over.top1.high == pytest.approx(-0.06 + 1.96 * deviation, abs=0.008)


def test_where_only_one_is_better_the_interval_is_the_binomial_one():
    found = compare_runs(_run("one", [True] * 30 + [False] * 70, 1.0), _run("none", [False] * 100, 1.0)).over.top1
    assert 100 * found.low == pytest.approx(binom(100, 0.3).ppf(0.025), abs=1)
    assert 100 * found.high == pytest.approx(binom(100, 0.3).ppf(0.975), abs=1)


def test_pictures_of_a_place_are_drawn_as_one():
    """Ten places of ten images each, right or wrong as a whole: ten draws of a coin, not a hundred."""
    one, other = _run("one", [True] * 70 + [False] * 30, 1.0), _run("none", [False] * 100, 1.0)
    places = pd.Series([number // 10 for number in range(100)], index=one.predictions.index)
    found = compare_runs(one, placed(other, places)).over
    assert found.num_clusters == 10
    wider = t(9).ppf(0.975) / 1.96 * (10 / 9) ** 0.5  # ten places say little of how much places differ
    assert 100 * found.top1.low == pytest.approx(70 - wider * (70 - 10 * binom(10, 0.7).ppf(0.025)), abs=1)
    assert found.top1.high == 1
    assert compare_runs(one, other).over.num_clusters is None


def test_two_runs_have_one_interval_between_them(tmp_path):
    """Whichever is compared with which, whoever knows the places, however they list their images."""
    draw = np.random.default_rng(0)
    one, other = (_run(name, draw.random(120) < right, 1.0) for name, right in (("a", 0.6), ("b", 0.5)))
    places = pd.Series(draw.integers(12, size=120), index=one.predictions.index)
    found = compare_runs(placed(one, places), other).over
    backwards = compare_runs(other, placed(one, places)).over
    for name in ("top1", "macro_f1", "balanced_accuracy"):
        this, that = getattr(found, name), getattr(backwards, name)
        assert (this.value, this.low, this.high) == (-that.value, -that.high, -that.low)
    shuffled = replace(other, predictions=other.predictions.sample(frac=1, random_state=1))
    assert compare_runs(placed(one, places), shuffled).over == found
    assert compare_runs(one, placed(other, places)).over == found
    assert compare_runs(placed(one, (places + 5) % 12), other).over == found
    coarser = places // 3
    assert compare_runs(placed(one, coarser), placed(other, places)).over.num_clusters == 4
    alone = compare_predictions(one.predictions, other.predictions, clusters=places)
    assert alone == found
    assert compare_runs(one, other).over != found


def test_few_places_make_no_interval_narrower_and_nothing_certain():
    one, other = _run("one", [True, False] * 50, 1.0), _run("none", [False] * 100, 1.0)
    alone = compare_runs(one, other).over
    halves = pd.Series([number // 50 for number in range(100)], index=one.predictions.index)
    found = compare_runs(placed(one, halves), other).over
    assert alone.top1.low > 0
    assert (found.top1.low, found.top1.high, found.num_clusters) == (0, alone.top1.high, 2)
    assert compare_runs(placed(one, 0 * halves), other).over.num_clusters is None


def test_the_same_answers_differ_in_nothing():
    found = compare_runs(_run("a", [True, False], 1.0), _run("b", [True, False], 1.0)).over.top1
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


def test_other_pictures_are_not_compared():
    one = _run("a", [True, False], 1.0)
    assert compare_runs(one, _run("b", [True], 1.0)) is None


def _evaluated(name, right, of, first):
    """An evaluation of its own images with Wilson's interval, as a report has it."""
    run = _run(name, [True] * right + [False] * (of - right), 1.0)
    answers = run.predictions.set_axis([f"{first + number}.jpg" for number in range(of)])
    low, high = wilson_interval(right / of, of)
    return replace(run, predictions=answers, report={"top1": right / of, "intervals": {"top1": [low, high]}})


def test_runs_on_different_images_are_two_independent_samples():
    """Newcombe's own example, method 10: 56 of 70 and 48 of 80 differ by 0.2 (0.0524 to 0.3339)."""
    found = compare_unpaired(_evaluated("a", 56, 70, 0), _evaluated("b", 48, 80, 70))
    top1 = found.metrics["top1"]
    assert (top1.value, top1.low, top1.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)
    assert (found.images, found.shared, found.optimistic) == ((70, 80), 0, "")
    assert compare_unpaired(_evaluated("a", 56, 70, 0), _evaluated("b", 48, 80, 60)).shared == 10
    other = _evaluated("c", 5, 9, 500)
    assert compare_unpaired(other, replace(other, predictions=other.predictions.assign(true_label="z"))) is None


@pytest.mark.parametrize("as_json", [False, True])
def test_different_images_are_compared_with_an_interval(as_json, tmp_path, capsys):
    for number, name in enumerate(("run", "evaluation")):
        paths = [f"{number}{image}.jpg" for image in range(20)]
        answers = pd.DataFrame({"path": paths, "predicted_label": ["x"] * (15 - number) + ["y"] * (5 + number)})
        (tmp_path / name).mkdir()
        answers.assign(true_label=["x"] * 10 + ["y"] * 10).to_csv(tmp_path / name / "predictions.csv", index=False)
        top1 = 0.75 - 0.05 * number
        told = {"top1": top1, "macro_f1": top1, "wall_s": 1.0, "intervals": {"top1": [top1 - 0.2, top1 + 0.1]}}
        (tmp_path / name / "report.json").write_text(json.dumps(told))
    compare([tmp_path / "run", tmp_path / "evaluation"], None, as_json)
    said = capsys.readouterr().out
    if as_json:
        (found,) = json.loads(said)["unpaired"]
        assert found["metrics"]["top1"]["value"] == pytest.approx(-0.05)
    else:
        assert mentions(said, "20", "image")
        assert mentions(said, "top-1", "-5.0", "-27.4", "+17.4")


def test_runs_without_an_image_are_not_compared():
    assert compare_runs(_run("a", [], 1.0), _run("b", [], 1.0)) is None


def test_without_rows_of_training_the_whole_time_counts():
    assert FinishedRun("old", {"wall_s": 99.0, "run": "runs/old"}, (), pd.DataFrame()).train_s == 99.0


def test_every_class_has_its_difference():
    """All are 'a': of the one 90 are called so, of the other 80, so F1 is 2 * 90 / 190 and 2 * 80 / 180."""
    found = compare_runs(
        _run("one", [True] * 90 + [False] * 10, 1.0), _run("other", [True] * 80 + [False] * 20, 1.0)
    ).over
    assert list(found.f1) == ["a"]
    assert found.f1["a"].value == pytest.approx(180 / 190 - 160 / 180)
    assert found.macro_f1 == found.f1["a"]
    assert found.f1["a"].certain


def test_an_evaluation_has_no_training_time():
    """Its report's seconds are those of answering; its report names no run."""
    run = _run("run", [True, False], 1.0)
    alone = replace(run, name="evaluation", history=())
    assert alone.train_s is None
    assert compare_runs(run, alone).time_ratio is compare_runs(alone, run).time_ratio is None


def test_of_folds_by_another_rule_it_is_said_that_they_are(tmp_path, capsys):
    for name, rule in (("one", "place"), ("like_one", "place"), ("other", "class")):
        answers = pd.DataFrame({"path": ["a", "b"], "predicted_label": ["x", "y"], "true_label": ["x", "y"]})
        (tmp_path / name).mkdir()
        answers.to_csv(tmp_path / name / "predictions.csv", index=False)
        told = {"top1": 1.0, "macro_f1": 1.0, "intervals": {"top1": [0.3, 1.0]}, "wall_s": 1.0, "split_by": rule}
        (tmp_path / name / "report.json").write_text(json.dumps(told))
    compare([tmp_path / "one", tmp_path / "like_one", tmp_path / "other"])
    said = " ".join(capsys.readouterr().out.split())
    assert mentions(said, "warning", "other", "class", "one", "place")
    assert "the folds of like_one" not in said


def test_of_pictures_in_other_folders_it_is_said_that_their_names_are_the_same(tmp_path, capsys):
    for name, data in (("one", "photos_2023"), ("like_one", "photos_2023"), ("other", "photos_2024")):
        (tmp_path / name).mkdir()
        answers = pd.DataFrame({"path": ["a", "b"], "predicted_label": ["x", "y"], "true_label": ["x", "y"]})
        answers.to_csv(tmp_path / name / "predictions.csv", index=False)
        dataset = pd.DataFrame({"path": [f"../{data}/{one}" for one in "ab"], "label": ["x", "y"], "split": "val"})
        dataset.to_csv(tmp_path / name / "dataset.csv", index=False)
        told = {"top1": 1.0, "macro_f1": 1.0, "intervals": {"top1": [0.3, 1.0]}, "wall_s": 1.0}
        (tmp_path / name / "report.json").write_text(json.dumps(told))
    compare([tmp_path / "one", tmp_path / "like_one", tmp_path / "other"])
    said = "".join(capsys.readouterr().out.split())
    sentence = f"Compared by name: the images are in {tmp_path}/photos_2024 and in {tmp_path}/photos_2023."
    assert said.count("Comparedbyname") == 1
    assert "".join(sentence.split()) in said


def test_of_figures_that_are_optimistic_by_their_report_it_is_said_that_they_are(tmp_path, capsys):
    """The folds' networks together have learnt what they are asked; each fold's alone has not."""
    for name, optimistic in (("folds", False), ("run", False), ("ensemble", True), ("resumed", True)):
        answers = pd.DataFrame({"path": ["a", "b"], "predicted_label": ["x", "y"], "true_label": ["x", "y"]})
        (tmp_path / name).mkdir()
        answers.to_csv(tmp_path / name / "predictions.csv", index=False)
        told = {"top1": 1.0, "macro_f1": 1.0, "intervals": {"top1": [0.3, 1.0]}, "wall_s": 1.0}
        (tmp_path / name / "report.json").write_text(json.dumps(told | {"optimistic": optimistic}))

    def said(*names, as_json=False):
        compare([tmp_path / name for name in names], as_json=as_json)
        return " ".join(capsys.readouterr().out.split())

    assert "optimistic" not in said("folds", "run")
    for order in (("folds", "ensemble"), ("ensemble", "folds")):
        assert mentions(said(*order), "warning", "ensemble", "optimistic")
    both = said("ensemble", "resumed")
    assert mentions(both, "warning", "resumed", "ensemble")
    rows = json.loads(said("folds", "ensemble", as_json=True))["runs"]
    assert {row["run"]: row["optimistic"] for row in rows} == {"folds": False, "ensemble": True}
    (tmp_path / "run/report.json").write_text(json.dumps(told))  # of an older version
    rows = json.loads(said("run", "folds", as_json=True))["runs"]
    assert rows[0]["optimistic"] is None


def test_a_run_that_is_under_way_is_not_called_stopped(tmp_path):
    with lock_run_dir(tmp_path), pytest.raises(InputError, match=mentioning("report.json")) as said:
        FinishedRun.read(tmp_path, "here")
    assert "--resume" not in str(said.value)
    stopped = tmp_path / "a run"
    with pytest.raises(InputError, match=mentioning("not the folder of a finished run", "report.json")) as said:
        FinishedRun.read(stopped, "here")
    assert f"--output '{stopped}' --resume" in str(said.value)


def test_a_damaged_report_is_refused_by_name(tmp_path):
    (tmp_path / "report.json").write_text('{"top1": 0.')
    (tmp_path / "predictions.csv").write_text("path,label,true_label\n")
    with pytest.raises(InputError, match=r"report.json.*(is damaged|can't be read)"):
        FinishedRun.read(tmp_path, "run")
