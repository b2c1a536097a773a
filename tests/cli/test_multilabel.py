"""Pictures of several labels through the command line: trained, resumed, evaluated, packed, planned."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score
from tests.cli.test_bad_input import refused
from tests.command_line import TINY, effnetv2
from tests.conftest import COLORS, paint
from tests.messages import mentions

from efficientnetv2.models import model_file

SCRATCH = (*TINY, "--weights", "none", "--label-separator", ";")


def drawn(folder):
    """Sixteen pictures each of red, green and blue; the first two are warm or cold besides, red and blue bright."""
    more = {"red": "warm;bright", "green": "cold", "blue": "bright"}
    rows = []
    for color, rgb in COLORS.items():
        for number in range(16):
            path = paint(folder / "pictures" / f"{color}{number}.jpg", rgb, number)
            rows.append({"path": str(path.relative_to(folder)), "label": f"{more[color]};{color}"})
    pd.DataFrame(rows).to_csv(folder / "pictures.csv", index=False)
    return folder / "pictures.csv"


@pytest.fixture
def table(tmp_path):
    return drawn(tmp_path)


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """A folder with such a table and a run on it."""
    place = tmp_path_factory.mktemp("learnt")
    done = effnetv2("train", drawn(place), *SCRATCH, "--output", "run", cwd=place)
    assert done.returncode == 0, done.stderr
    return place


def test_the_whole_way_as_the_paper_learns_them(table, tmp_path):
    """Labels share a probability of 1; each class by itself: ``test_yes_or_no``."""
    shared = (*SCRATCH, "--set", "multilabel=softmax")
    done = effnetv2("train", table, *shared, "--output", tmp_path / "run", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert json.loads(done.stdout)["top1"] == report["top1"]
    assert set(report["class_names"]) == {"red", "green", "blue", "warm", "cold", "bright"}
    assert {"macro_f1", "confusion", "balanced_accuracy"}.isdisjoint(report)
    assert 0 < report["mean_average_precision"] <= 1
    assert set(report["intervals"]) == {"top1", "top5", "mean_average_precision", "f1_micro", "f1_macro"}
    assert 0 < report["f1_macro"] <= 1
    assert report["majority_class"] == "bright"
    page = (tmp_path / "run/report.html").read_text()
    assert "mean average precision" in page
    assert "micro-F1" in page
    assert "Confusion matrix" not in page
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all(0 < row["mean_average_precision"] <= 1 for row in rows if row["kind"] == "val")
    assert model_file.load(tmp_path / "run").num_classes == 6

    evaluated = effnetv2(
        "evaluate", tmp_path / "run", tmp_path / "run/dataset.csv", "--split", "val", "--json",
        "--label-separator", ";", "--workers", "0", cwd=tmp_path,
    )  # fmt: skip
    assert evaluated.returncode == 0, evaluated.stderr
    again = json.loads(evaluated.stdout)
    for name in ("top1", "top5", "mean_average_precision", "f1_micro", "f1_macro"):
        assert again[name] == pytest.approx(report[name], abs=1e-6), name

    predicted = effnetv2("predict", tmp_path / "run", table, "--workers", "0", cwd=tmp_path)
    assert predicted.returncode == 0, predicted.stderr
    answers = pd.read_csv(tmp_path / "predictions.csv")
    shares = answers.drop(columns=["path", "predicted_label", "probability"])
    assert np.allclose(shares.sum(axis=1), 1, atol=1e-4)
    assert set(answers["predicted_label"]) <= set(shares.columns), "one each"

    several = effnetv2(
        "predict", tmp_path / "run", table, "--workers", "0", "--label-separator", ";", "--output", "several.csv",
        cwd=tmp_path,
    )  # fmt: skip
    assert several.returncode == 0, several.stderr
    given = pd.read_csv(tmp_path / "several.csv")
    assert given.drop(columns="predicted_label").equals(answers.drop(columns="predicted_label"))
    for cell, (_, row) in zip(given["predicted_label"], shares.iterrows(), strict=True):
        enough = row[row >= row.max() / 2].sort_values(ascending=False, kind="stable")
        assert cell == ";".join(enough.index), "half of the largest share, the most probable first"
    within = ("predict", tmp_path / "run", table, "--label-separator", "r")
    refused(effnetv2(*within, cwd=tmp_path), "bright", "class", "'|'")

    refused(effnetv2("evaluate", tmp_path / "run", table, cwd=tmp_path), "row 34", "bright;blue", "no class")
    compared = ("evaluate", tmp_path / "run", table, "--label-separator", ";", "--eval-sizes", "32,64")
    refused(effnetv2(*compared, cwd=tmp_path), "--eval-sizes", "label")
    (tmp_path / "run/model.safetensors").unlink()  # so that the run is not finished
    go_on = ("train", table, "--output", tmp_path / "run", "--resume", "--workers", "0")
    refused(effnetv2(*go_on, cwd=tmp_path), "--label-separator", "';'")
    resumed = effnetv2(*go_on, "--label-separator", ";", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    run = tmp_path / "run"
    assert json.loads((run / "report.json").read_text())["top1"] == report["top1"]
    refused(effnetv2("compare", run, run, cwd=tmp_path), "one label per image")


def test_shards_train_as_the_table_does(table, tmp_path):
    """The same pictures in the same order with the same targets: the same losses."""
    words = ("--label-separator", ";")
    packed = effnetv2("data", "pack", table, tmp_path / "shards", *words, cwd=tmp_path)
    assert packed.returncode == 0, packed.stderr
    command = " ".join(packed.stdout.split()).partition("Train on them with: ")[2]
    assert shlex.split(command) == ["effnetv2", "train", str(tmp_path / "shards"), *words]
    losses = []
    for data in (table, tmp_path / "shards"):
        out = tmp_path / f"run of {data.name}"
        done = effnetv2("train", data, *SCRATCH, "--output", out, "--set", "precision=fp32", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        losses.append([row["loss"] for row in rows if row["kind"] == "train"])
    assert losses[0] == losses[1]


def test_cross_validated(table, tmp_path):
    """Each picture is answered once, by a network that had not seen it; the figures are those of several labels."""
    words = ("crossval", table, *SCRATCH, "--folds", "2", "--output", tmp_path / "folds", "--json")
    done = effnetv2(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    pooled = pd.read_csv(tmp_path / "folds/predictions.csv")
    assert sorted(pooled["path"]) == sorted(pd.read_csv(table)["path"])
    assert {"macro_f1", "confusion"}.isdisjoint(report)
    names = report["class_names"]
    hot = np.array([[name in cell.split(";") for name in names] for cell in pooled["true_label"]])
    shares = pooled[names].to_numpy()
    assert report["mean_average_precision"] == pytest.approx(average_precision_score(hot, shares), abs=0.01)
    low, high = report["intervals"]["mean_average_precision"]
    assert low <= report["mean_average_precision"] <= high
    each = [one["mean"] for one in report["folds"]]
    assert report["fold_mean"]["mean_average_precision"]["mean"] == pytest.approx(np.mean(each))
    page = (tmp_path / "folds/report.html").read_text()
    assert '<h2 id="folds">' in page
    predicted = effnetv2("predict", tmp_path / "folds", table, "--workers", "0", cwd=tmp_path)
    assert predicted.returncode == 0, predicted.stderr


def test_what_is_evaluated_may_be_spelled_otherwise(learnt):
    table = learnt / "otherwise.csv"
    table.write_text((learnt / "pictures.csv").read_text().replace("bright", "Bright"))
    words = ("evaluate", learnt / "run", table, "--label-separator", ";", "--workers", "0")
    refused(effnetv2(*words, cwd=learnt), "row 2", "Bright", "no class")
    done = effnetv2(*words, "--labels", "casefold", "--json", cwd=learnt)
    assert done.returncode == 0, done.stderr
    assert "bright" in json.loads(done.stdout)["per_class"]


def test_plan_and_weights_without_a_probe(learnt, tmp_path):
    table = learnt / "pictures.csv"
    words = [*TINY, "--weights", learnt / "run", "--label-separator", ";"]
    plan = effnetv2("train", "--dry-run", table, *words, "--json", cwd=tmp_path)
    assert plan.returncode == 0, plan.stderr
    assert "linear probe" not in json.loads(plan.stdout)["others_s"]
    further = effnetv2("train", table, *words, "--verbose", "--output", tmp_path / "further", cwd=tmp_path)
    assert further.returncode == 0, further.stderr
    assert mentions(further.stdout, "classifier")


def test_pictures_with_one_label_are_told(class_folders, tmp_path):
    done = effnetv2("train", class_folders, *SCRATCH, "--output", tmp_path / "run", cwd=tmp_path)
    refused(done, "--label-separator", "';'", "one label")
    assert not (tmp_path / "run").exists()
