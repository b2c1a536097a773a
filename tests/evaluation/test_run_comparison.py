"""Two runs compared image by image."""

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
from efficientnetv2.training.run_dir import lock_run_dir
from efficientnetv2.utils.errors import InputError


def _run(name, right, seconds):
    rows = ({"kind": "train", "step": 1, "train_s": seconds, "image_size": 64},)
    predictions = pd.DataFrame({"predicted_label": ["a" if is_right else "b" for is_right in right], "true_label": "a"})
    predictions.index = pd.Index([f"{number}.jpg" for number in range(len(right))])
    return FinishedRun(name, {"wall_s": 99.0}, rows, predictions)


def with_locations(run, locations):
    """The run with the location of each image as its cluster."""
    return replace(run, predictions=run.predictions.assign(cluster=locations.map(str)))


def test_difference_is_computed_on_the_same_images():
    """100 images: 70 right in both runs, 10 only in the first, 4 only in the second, 16 in neither."""
    fixed = _run("fixed", [True] * 80 + [False] * 20, 20.0)
    growing = _run("growing", [True] * 70 + [False] * 10 + [True] * 4 + [False] * 16, 10.0)
    found = compare_runs(growing, fixed)
    assert found.over.top1.value == pytest.approx(-0.06)
    assert (found.over.num_images, found.time_ratio) == (100, 0.5)
    # The difference is a sum of 100 draws of -1, 0, 1 with variance 0.14 - 0.06 squared: 2 * 0.0369 wide.
    deviation = ((0.14 - 0.06**2) / 100) ** 0.5
    assert found.over.top1.low == pytest.approx(-0.06 - 1.96 * deviation, abs=0.008)
    assert found.over.top1.high == pytest.approx(-0.06 + 1.96 * deviation, abs=0.008)


def test_interval_is_binomial_if_only_one_run_is_ever_right():
    found = compare_runs(_run("one", [True] * 30 + [False] * 70, 1.0), _run("none", [False] * 100, 1.0)).over.top1
    assert 100 * found.low == pytest.approx(binom(100, 0.3).ppf(0.025), abs=1)
    assert 100 * found.high == pytest.approx(binom(100, 0.3).ppf(0.975), abs=1)


def test_images_of_a_location_are_resampled_together():
    """Ten locations of ten images, all right or all wrong: ten independent draws, not a hundred."""
    one, other = _run("one", [True] * 70 + [False] * 30, 1.0), _run("none", [False] * 100, 1.0)
    locations = pd.Series([number // 10 for number in range(100)], index=one.predictions.index)
    found = compare_runs(one, with_locations(other, locations)).over
    assert found.num_clusters == 10
    wider = t(9).ppf(0.975) / 1.96 * (10 / 9) ** 0.5  # few locations: t quantile and small-sample factor
    assert 100 * found.top1.low == pytest.approx(70 - wider * (70 - 10 * binom(10, 0.7).ppf(0.025)), abs=1)
    assert found.top1.high == 1
    assert compare_runs(one, other).over.num_clusters is None


def test_interval_does_not_depend_on_the_order_of_runs_or_images(tmp_path):
    """Also for the run that has the locations."""
    rng = np.random.default_rng(0)
    one, other = (_run(name, rng.random(120) < right, 1.0) for name, right in (("a", 0.6), ("b", 0.5)))
    locations = pd.Series(rng.integers(12, size=120), index=one.predictions.index)
    found = compare_runs(with_locations(one, locations), other).over
    swapped = compare_runs(other, with_locations(one, locations)).over
    for name in ("top1", "macro_f1", "balanced_accuracy"):
        forward, backward = getattr(found, name), getattr(swapped, name)
        assert (forward.value, forward.low, forward.high) == (-backward.value, -backward.high, -backward.low)
    shuffled = replace(other, predictions=other.predictions.sample(frac=1, random_state=1))
    assert compare_runs(with_locations(one, locations), shuffled).over == found
    assert compare_runs(one, with_locations(other, locations)).over == found
    assert compare_runs(with_locations(one, (locations + 5) % 12), other).over == found
    coarser = locations // 3
    assert compare_runs(with_locations(one, coarser), with_locations(other, locations)).over.num_clusters == 4
    alone = compare_predictions(one.predictions, other.predictions, clusters=locations)
    assert alone == found
    assert compare_runs(one, other).over != found


def test_few_locations_do_not_narrow_the_interval():
    one, other = _run("one", [True, False] * 50, 1.0), _run("none", [False] * 100, 1.0)
    alone = compare_runs(one, other).over
    halves = pd.Series([number // 50 for number in range(100)], index=one.predictions.index)
    found = compare_runs(with_locations(one, halves), other).over
    assert alone.top1.low > 0
    assert (found.top1.low, found.top1.high, found.num_clusters) == (0, alone.top1.high, 2)
    assert compare_runs(with_locations(one, 0 * halves), other).over.num_clusters is None


def test_equal_predictions_have_no_difference():
    found = compare_runs(_run("a", [True, False], 1.0), _run("b", [True, False], 1.0)).over.top1
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


def test_runs_without_common_images_are_not_compared():
    one = _run("a", [True, False], 1.0)
    assert compare_runs(one, _run("b", [True], 1.0)) is None


def test_same_images_are_found_under_other_paths():
    """A run names them by their folder, an evaluation of its dataset.csv by paths from there."""
    run = replace(_run("a", [True, False], 1.0), root="/data/photos")
    there = run.predictions.set_axis(["../../photos/0.jpg", "/data/photos/1.jpg"])
    evaluation = replace(run, name="b", predictions=there, root="/data/runs/one")
    found = compare_runs(run, evaluation).over
    assert (found.top1.value, found.by_name) == (0, "")
    other = compare_runs(run, replace(run, root="/data/others")).over
    assert mentions(other.by_name, "by name", "/data/photos", "/data/others")
    few = replace(_evaluated("c", 2, 3, 0), root="/data/photos")
    elsewhere = few.predictions.set_axis([f"../{path}" for path in few.predictions.index])
    same = replace(few, predictions=elsewhere, root="/data/photos/more")
    more = replace(few, predictions=few.predictions[1:])
    assert compare_unpaired(same, more).shared == 2


def test_same_images_are_found_behind_a_link(tmp_path):
    """A run knows its folder without links, an evaluation of its dataset.csv the paths that were given."""
    (tmp_path / "disk/photos").mkdir(parents=True)
    (tmp_path / "data").symlink_to("disk")
    run = replace(_run("a", [True, False], 1.0), root=str(tmp_path / "disk/photos"))
    there = run.predictions.set_axis(["../../data/photos/0.jpg", f"{tmp_path}/data/photos/1.jpg"])
    found = compare_runs(run, replace(run, name="b", predictions=there, root=str(tmp_path / "runs/a"))).over
    assert (found.num_images, found.by_name) == (2, "")
    absolute = run.predictions.set_axis([f"{tmp_path}/data/photos/{number}.jpg" for number in (0, 1)])
    assert compare_runs(run, replace(run, name="c", predictions=absolute, root="")).over.by_name == ""


def _evaluated(name, right, count, first):
    """An evaluation of separate images with a Wilson interval, as in a report."""
    run = _run(name, [True] * right + [False] * (count - right), 1.0)
    predictions = run.predictions.set_axis([f"{first + number}.jpg" for number in range(count)])
    low, high = wilson_interval(right / count, count)
    return replace(run, predictions=predictions, report={"top1": right / count, "intervals": {"top1": [low, high]}})


def test_runs_on_different_images_are_independent_samples():
    """Newcombe's example, method 10: 56 of 70 and 48 of 80 differ by 0.2 (0.0524 to 0.3339)."""
    found = compare_unpaired(_evaluated("a", 56, 70, 0), _evaluated("b", 48, 80, 70))
    top1 = found.metrics["top1"]
    assert (top1.value, top1.low, top1.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)
    assert (found.images, found.shared, found.optimistic) == ((70, 80), 0, "")
    both = compare_unpaired(_evaluated("a", 56, 70, 0), _evaluated("b", 48, 80, 60))
    assert both.shared == 10
    assert mentions(both.describe("a", "b"), "10 images are in both")
    sites = [
        replace(run, root=f"/data/{run.name}") for run in (_evaluated("a", 56, 70, 0), _evaluated("b", 48, 80, 60))
    ]
    assert mentions(compare_unpaired(*sites).describe("a", "b"), "10 images have the same name", "If they are the same")
    other = _evaluated("c", 5, 9, 500)
    assert compare_unpaired(other, replace(other, predictions=other.predictions.assign(true_label="z"))) is None


def write_run(folder, predictions=None, **report):
    """The predictions and the report of a finished run; by default of two images."""
    folder.mkdir()
    if predictions is None:
        predictions = {"path": ["a", "b"], "predicted_label": ["x", "y"], "true_label": ["x", "y"]}
    pd.DataFrame(predictions).to_csv(folder / "predictions.csv", index=False)
    report = {"top1": 1.0, "macro_f1": 1.0, "intervals": {"top1": [0.3, 1.0]}, "wall_s": 1.0} | report
    (folder / "report.json").write_text(json.dumps(report))


@pytest.mark.parametrize("as_json", [False, True])
def test_different_images_are_compared_with_an_interval(as_json, tmp_path, capsys):
    for number, name in enumerate(("run", "evaluation")):
        paths = [f"{number}{image}.jpg" for image in range(20)]
        predicted, true = ["x"] * (15 - number) + ["y"] * (5 + number), ["x"] * 10 + ["y"] * 10
        top1 = 0.75 - 0.05 * number
        predictions = {"path": paths, "predicted_label": predicted, "true_label": true}
        write_run(tmp_path / name, predictions, top1=top1, intervals={"top1": [top1 - 0.2, top1 + 0.1]})
    compare([tmp_path / "run", tmp_path / "evaluation"], None, as_json)
    output = capsys.readouterr().out
    if as_json:
        (found,) = json.loads(output)["unpaired"]
        assert found["metrics"]["top1"]["value"] == pytest.approx(-0.05)
    else:
        assert mentions(output, "20", "image")
        assert mentions(output, "top-1", "-5.0", "-27.4", "+17.4")


def test_runs_without_images_are_not_compared():
    assert compare_runs(_run("a", [], 1.0), _run("b", [], 1.0)) is None


def test_train_s_is_the_wall_time_without_history():
    assert FinishedRun("old", {"wall_s": 99.0, "run": "runs/old"}, (), pd.DataFrame()).train_s == 99.0


def test_every_class_has_its_difference():
    """All labels are 'a'. Right: 90 and 80 of 100, so F1 is 2 * 90 / 190 and 2 * 80 / 180."""
    found = compare_runs(
        _run("one", [True] * 90 + [False] * 10, 1.0), _run("other", [True] * 80 + [False] * 20, 1.0)
    ).over
    assert list(found.f1) == ["a"]
    assert found.f1["a"].value == pytest.approx(180 / 190 - 160 / 180)
    assert found.macro_f1 == found.f1["a"]
    assert found.f1["a"].certain


def test_evaluation_has_no_training_time():
    """Its wall time is prediction time, and its report names no run."""
    run = _run("run", [True, False], 1.0)
    evaluation = replace(run, name="evaluation", history=())
    assert evaluation.train_s is None
    assert compare_runs(run, evaluation).time_ratio is compare_runs(evaluation, run).time_ratio is None


def test_folds_by_another_rule_give_a_warning(tmp_path, capsys):
    for name, rule in (("one", "place"), ("like_one", "place"), ("other", "class")):
        write_run(tmp_path / name, split_by=rule)
    compare([tmp_path / "one", tmp_path / "like_one", tmp_path / "other"])
    output = " ".join(capsys.readouterr().out.split())
    assert mentions(output, "warning", "other", "class", "one", "place")
    assert "the folds of like_one" not in output


def test_folds_by_another_rule_give_a_warning_also_for_other_images(tmp_path, capsys):
    """Folds by time never predict the first period."""
    predictions = {"path": ["a", "b", "c"], "predicted_label": ["x", "y", "y"], "true_label": ["x", "y", "x"]}
    write_run(tmp_path / "one", predictions, split_by="class")
    write_run(tmp_path / "other", split_by="time")
    compare([tmp_path / "one", tmp_path / "other"])
    output = " ".join(capsys.readouterr().out.split())
    assert mentions(output, "independent samples")
    assert mentions(output, "warning", "other", "time", "one", "class")


def test_images_of_other_folders_are_compared_by_name(tmp_path, capsys):
    for name, data in (("one", "photos_2023"), ("like_one", "photos_2023"), ("other", "photos_2024")):
        write_run(tmp_path / name)
        dataset = pd.DataFrame({"path": [f"../{data}/a", f"../{data}/b"], "label": ["x", "y"], "split": "val"})
        dataset.to_csv(tmp_path / name / "dataset.csv", index=False)
    compare([tmp_path / "one", tmp_path / "like_one", tmp_path / "other"])
    output = "".join(capsys.readouterr().out.split())
    sentence = f"Compared by name: the images are in {tmp_path}/photos_2024 and in {tmp_path}/photos_2023."
    assert output.count("Comparedbyname") == 1
    assert "".join(sentence.split()) in output


def test_optimistic_metrics_give_a_warning(tmp_path, capsys):
    """The ensemble of all folds was trained on the images; out-of-fold models were not."""
    for name, optimistic in (("folds", False), ("run", False), ("ensemble", True), ("resumed", True)):
        write_run(tmp_path / name, optimistic=optimistic)
    write_run(tmp_path / "older")

    def output_of(*names, as_json=False):
        compare([tmp_path / name for name in names], as_json=as_json)
        return " ".join(capsys.readouterr().out.split())

    assert "optimistic" not in output_of("folds", "run")
    for order in (("folds", "ensemble"), ("ensemble", "folds")):
        assert mentions(output_of(*order), "warning", "ensemble", "optimistic")
    both = output_of("ensemble", "resumed")
    assert mentions(both, "warning", "resumed", "ensemble")
    rows = json.loads(output_of("folds", "ensemble", as_json=True))["runs"]
    assert {row["run"]: row["optimistic"] for row in rows} == {"folds": False, "ensemble": True}
    rows = json.loads(output_of("older", "folds", as_json=True))["runs"]
    assert rows[0]["optimistic"] is None


def test_running_run_is_not_reported_as_stopped(tmp_path):
    with lock_run_dir(tmp_path), pytest.raises(InputError, match=mentioning("report.json")) as error:
        FinishedRun.read(tmp_path, "here")
    assert "--resume" not in str(error.value)
    stopped = tmp_path / "a run"
    with pytest.raises(InputError, match=mentioning("does not exist", "Give the folder of a finished run")):
        FinishedRun.read(stopped, "here")
    stopped.mkdir()
    with pytest.raises(InputError, match=mentioning("not the folder of a finished run", "report.json")) as error:
        FinishedRun.read(stopped, "here")
    assert f"--output '{stopped}' --resume" in str(error.value)


def test_damaged_report_is_rejected_by_name(tmp_path):
    (tmp_path / "report.json").write_text('{"top1": 0.')
    (tmp_path / "predictions.csv").write_text("path,label,true_label\n")
    with pytest.raises(InputError, match=r"report.json.*(is damaged|can't be read)"):
        FinishedRun.read(tmp_path, "run")
