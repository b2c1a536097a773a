"""Multi-label images through the command line: trained, resumed, evaluated, packed, planned."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score
from tests.cli.test_bad_input import refused
from tests.command_line import NETWORK, TINY, effnetv2, killed_at, run_json, run_ok
from tests.conftest import COLORS, paint
from tests.messages import mentions

from efficientnetv2.inference.predictor import Predictor
from efficientnetv2.models import model_file

SCRATCH = (*TINY, "--weights", "none", "--label-separator", ";")


def write_table(folder):
    """A table of 16 images each of red, green and blue, with warm or cold or bright as further labels."""
    further = {"red": "warm;bright", "green": "cold", "blue": "bright"}
    rows = []
    for color, rgb in COLORS.items():
        for number in range(16):
            path = paint(folder / "pictures" / f"{color}{number}.jpg", rgb, number)
            rows.append({"path": str(path.relative_to(folder)), "label": f"{further[color]};{color}"})
    pd.DataFrame(rows).to_csv(folder / "pictures.csv", index=False)
    return folder / "pictures.csv"


@pytest.fixture
def table(tmp_path):
    return write_table(tmp_path)


@pytest.fixture(scope="module")
def trained_folder(tmp_path_factory):
    """A folder with such a table and a run on it."""
    folder = tmp_path_factory.mktemp("trained")
    run_ok("train", write_table(folder), *SCRATCH, "--output", "run", cwd=folder)
    return folder


def test_softmax_as_in_the_paper_through_all_commands(table, tmp_path):
    """The labels share a probability of 1; the tests with marks below use independent classes."""
    shared = (*SCRATCH, "--set", "multilabel=softmax")
    done = run_ok("train", table, *shared, "--output", tmp_path / "run", "--json", cwd=tmp_path)
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

    evaluated = run_ok(
        "evaluate", tmp_path / "run", tmp_path / "run/dataset.csv", "--split", "val", "--json",
        "--label-separator", ";", "--workers", "0", cwd=tmp_path,
    )  # fmt: skip
    again = json.loads(evaluated.stdout)
    for name in ("top1", "top5", "mean_average_precision", "f1_micro", "f1_macro"):
        assert again[name] == pytest.approx(report[name], abs=1e-6), name

    run_ok("predict", tmp_path / "run", table, "--workers", "0", cwd=tmp_path)
    predictions = pd.read_csv(tmp_path / "predictions.csv")
    probabilities = predictions.drop(columns=["path", "predicted_label", "probability"])
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-4)
    assert set(predictions["predicted_label"]) <= set(probabilities.columns), "one label per image"

    run_ok(
        "predict", tmp_path / "run", table, "--workers", "0", "--label-separator", ";", "--output", "multilabel.csv",
        cwd=tmp_path,
    )  # fmt: skip
    multilabel_table = pd.read_csv(tmp_path / "multilabel.csv")
    assert multilabel_table.drop(columns="predicted_label").equals(predictions.drop(columns="predicted_label"))
    for found in (multilabel_table, pd.read_csv(tmp_path / "run/predictions.csv")):
        for cell, (_, row) in zip(found["predicted_label"], found[report["class_names"]].iterrows(), strict=True):
            enough = row[row >= row.max() / 2].sort_values(ascending=False, kind="stable")
            assert cell == ";".join(enough.index), "at least half of the largest probability, in descending order"
    conflicting = ("predict", tmp_path / "run", table, "--label-separator", "r")
    refused(effnetv2(*conflicting, cwd=tmp_path), "bright", "class", "'|'")

    refused(
        effnetv2("evaluate", tmp_path / "run", table, cwd=tmp_path),
        "row 34", "bright;blue", "none of the 3 labels", "--label-separator ';'"
    )  # fmt: skip
    compared = ("evaluate", tmp_path / "run", table, "--label-separator", ";", "--eval-sizes", "32,64")
    refused(effnetv2(*compared, cwd=tmp_path), "--eval-sizes", "label")
    (tmp_path / "run/model.safetensors").unlink()  # as in an unfinished run
    resume = ("train", table, "--output", tmp_path / "run", "--resume", "--workers", "0")
    # Before the images are read: as one label each, a combination of labels may be in one image only.
    refused(effnetv2("train", tmp_path / "none", *resume[2:], cwd=tmp_path), "--label-separator", "';'")
    run_ok(*resume, "--label-separator", ";", cwd=tmp_path)
    run = tmp_path / "run"
    assert json.loads((run / "report.json").read_text())["top1"] == report["top1"]
    refused(effnetv2("compare", run, run, cwd=tmp_path), "one label per image")


def test_shards_and_table_train_equally(table, tmp_path):
    """The same images, order and targets give the same losses."""
    args = ("--label-separator", ";")
    packed = run_ok("data", "pack", table, tmp_path / "shards", *args, cwd=tmp_path)
    command = " ".join(packed.stdout.split()).partition("Train on them with: ")[2]
    assert shlex.split(command) == ["effnetv2", "train", str(tmp_path / "shards"), *args]
    losses = []
    for data in (table, tmp_path / "shards"):
        out = tmp_path / f"run of {data.name}"
        run_ok("train", data, *SCRATCH, "--output", out, "--set", "precision=fp32", cwd=tmp_path)
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        losses.append([row["loss"] for row in rows if row["kind"] == "train"])
    assert losses[0] == losses[1]


def test_cross_validation_has_multilabel_metrics(table, tmp_path):
    report = run_json("crossval", table, *SCRATCH, "--folds", "2", "--output", tmp_path / "folds", cwd=tmp_path)
    pooled = pd.read_csv(tmp_path / "folds/predictions.csv")
    assert sorted(pooled["path"]) == sorted(pd.read_csv(table)["path"])
    assert {"macro_f1", "confusion"}.isdisjoint(report)
    names = report["class_names"]
    is_label = np.array([[name in cell.split(";") for name in names] for cell in pooled["true_label"]])
    probabilities = pooled[names].to_numpy()
    assert report["mean_average_precision"] == pytest.approx(average_precision_score(is_label, probabilities), abs=0.01)
    low, high = report["intervals"]["mean_average_precision"]
    assert low <= report["mean_average_precision"] <= high
    each = [one["mean"] for one in report["folds"]]
    assert report["fold_mean"]["mean_average_precision"]["mean"] == pytest.approx(np.mean(each))
    page = (tmp_path / "folds/report.html").read_text()
    assert '<h2 id="folds">' in page
    run_ok("predict", tmp_path / "folds", table, "--workers", "0", cwd=tmp_path)


def test_evaluate_merges_spellings_on_request(trained_folder):
    table = trained_folder / "other_case.csv"
    table.write_text((trained_folder / "pictures.csv").read_text().replace("bright", "Bright"))
    args = ("evaluate", trained_folder / "run", table, "--label-separator", ";", "--workers", "0")
    refused(effnetv2(*args, cwd=trained_folder), "row 2", "Bright", "not a class")
    done = run_ok(*args, "--labels", "casefold", "--json", cwd=trained_folder)
    assert "bright" in json.loads(done.stdout)["per_class"]


def test_weights_are_used_without_a_linear_probe(trained_folder, tmp_path):
    table = trained_folder / "pictures.csv"
    args = [*TINY, "--weights", trained_folder / "run", "--label-separator", ";"]
    plan = run_ok("train", "--dry-run", table, *args, "--json", cwd=tmp_path)
    assert "linear probe" not in json.loads(plan.stdout)["others_s"]
    further = run_ok("train", table, *args, "--verbose", "--output", tmp_path / "further", cwd=tmp_path)
    assert mentions(further.stdout, "classifier")


def test_single_label_images_with_a_separator_are_refused(class_folders, tmp_path):
    done = effnetv2("train", class_folders, *SCRATCH, "--output", tmp_path / "run", cwd=tmp_path)
    refused(done, "--label-separator", "';'", "one label")
    assert not (tmp_path / "run").exists()


SEPARATED = ("--label-separator", ";")
# No augmentation, so that all marks are visible in every step. No training image is without a mark: its predictions are
# between those of the marks, and their distance from 0.5 depends on the seed.
TRAIN = (
    "--recipe", "quick", "--model", NETWORK, "--weights", "none", "--epochs", "20", "--batch-size", "8",
    "--workers", "0", "--device", "cpu", "--set", "progressive.stages=1", "--set", "progressive.image_size=32",
    "--set", "augment.flip=none", "--set", "crop_scale_min=1", "--set", "ema_decay=0.9", "--set", "optimizer.lr=0.004",
    "--set", "val_interval_epochs=20", "--set", "precision=fp32", "--seed", "5",
)  # fmt: skip
MARKS = {"red": (slice(16), slice(16)), "green": (slice(16), slice(16, 32)), "blue": (slice(16, 32), slice(16))}
LABEL_SETS = ("red", "green", "blue", "red;green", "red;blue", "green;blue", "red;green;blue")


def write_marked(path: Path, labels: str, seed: int) -> Path:
    """Gray noise with a colored corner for each label."""
    pixels = np.random.default_rng(seed).integers(90, 140, (32, 32, 3), dtype=np.uint8)
    for channel, (name, corner) in enumerate(MARKS.items()):
        if name in labels.split(";"):
            pixels[corner] //= 4
            pixels[(*corner, channel)] = 230
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def marks(tmp_path_factory):
    """A table of marked images, and new images for prediction, some without a mark."""
    folder = tmp_path_factory.mktemp("marks")
    rows = [{"path": f"{number}.png", "label": LABEL_SETS[number % 7]} for number in range(84)]
    for number, row in enumerate(rows):
        write_marked(folder / row["path"], row["label"], number)
    pd.DataFrame(rows).to_csv(folder / "marks.csv", index=False)
    for number, labels in enumerate(("", *LABEL_SETS) * 2):
        write_marked(folder / "new" / f"{number:02}.png", labels, 1000 + number)
    return folder


EXPECTED = [set(labels.split(";")) - {""} for labels in ("", *LABEL_SETS) * 2]


def train(marks, out, *args):
    done = run_ok("train", marks / "marks.csv", *SEPARATED, *TRAIN, *args, "--verbose", "--output", out, cwd=marks)
    return done.stdout


@pytest.fixture(scope="module")
def run(marks):
    output = train(marks, marks / "run")
    assert "each class is independent" in output
    return marks / "run"


def predict(marks, model, *args):
    done = run_ok("predict", model, marks / "new", "--workers", "0", "--output", marks / "out.csv", *args, cwd=marks)
    return done.stdout, pd.read_csv(marks / "out.csv", keep_default_na=False)


def label_sets(table):
    return [set(cell.split(";")) - {""} for cell in table["predicted_label"]]


def test_each_mark_is_predicted_and_none_without_marks(marks, run):
    output, table = predict(marks, run, *SEPARATED)
    assert label_sets(table) == EXPECTED
    assert "16 images: " in output
    assert "without a label 2" in output
    probabilities = table[["blue", "green", "red"]].to_numpy()
    assert probabilities.sum(axis=1).max() > 2, "the probabilities are independent"
    for cell, (_, row) in zip(table["predicted_label"], table[["blue", "green", "red"]].iterrows(), strict=True):
        enough = row[row >= 0.5].sort_values(ascending=False, kind="stable")
        assert cell == ";".join(enough.index), "at least 0.5, in descending order"
    _, single_label = predict(marks, run)
    assert single_label.drop(columns="predicted_label").equals(table.drop(columns="predicted_label"))
    assert (single_label["predicted_label"].map(len) > 0).all(), "without a separator, the most probable class"


def test_softmax_cannot_predict_no_label(marks):
    """The paper's softmax learns the same images, but always predicts a label."""
    output = train(marks, marks / "softmax_run", "--set", "multilabel=softmax")
    assert "share a probability of 1" in output
    _, table = predict(marks, marks / "softmax_run", *SEPARATED)
    assert np.allclose(table[["blue", "green", "red"]].sum(axis=1), 1, atol=1e-4)
    found = label_sets(table)
    assert [found[row] == wanted for row, wanted in enumerate(EXPECTED) if wanted] == [True] * 14
    assert all(found[row] for row, wanted in enumerate(EXPECTED) if not wanted)


def test_predictor_returns_all_labels(marks, run):
    images = sorted((marks / "new").glob("*.png"))
    predictions = Predictor(run)(images)
    assert [set(one.labels) for one in predictions] == EXPECTED
    both = predictions[4]  # red;green
    assert both.labels == tuple(sorted(both.labels, key=lambda name: -both.probabilities[name]))
    assert (both.label, both.probability) == (both.labels[0], both.probabilities[both.labels[0]])


def test_evaluate_uses_the_activation_of_the_model(marks, run):
    report = json.loads((run / "report.json").read_text())
    assert (report["activation"], report["recipe"]["multilabel"]) == ("sigmoid", "sigmoid")
    assert report["f1_micro"] == report["f1_macro"] == 1.0
    page = (run / "report.html").read_text()
    assert mentions(page, "0.5", "probab")
    assert mentions(page, "most probable class", "correct")
    args = ("evaluate", run, run / "dataset.csv", "--split", "val", "--workers", "0")
    again = run_json(*args, *SEPARATED, cwd=marks)
    for name in ("top1", "mean_average_precision", "f1_micro", "ece"):
        assert again[name] == pytest.approx(report[name], abs=1e-5), name
    assert again["activation"] == "sigmoid"
    refused(effnetv2(*args, cwd=marks), "(sigmoid)", "--label-separator ';'")


def test_rank_refuses_sigmoid_models(marks, run):
    ranked = ("predict", run, marks / "new", "--rank", marks / "next.csv")
    refused(effnetv2(*ranked, cwd=marks), "(sigmoid)", "--rank")


def test_killed_run_resumes_to_the_same_bits(marks, run, tmp_path):
    args = ("train", marks / "marks.csv", *SEPARATED, "--output", tmp_path / "run")
    frequent = ("--set", "checkpoint_minutes=0", "--set", "val_interval_epochs=10")
    killed_at("efficientnetv2.training.validation:compute_metrics", *args, *TRAIN, *frequent, cwd=marks)
    assert list((tmp_path / "run").rglob("*step*")), "the run was killed after its first steps"
    done = run_ok(*args, "--resume", "--workers", "0", "--device", "cpu", cwd=marks)
    assert mentions(done.stdout, "from step")
    uninterrupted, resumed = load_file(run / "model.safetensors"), load_file(tmp_path / "run/model.safetensors")
    assert all(bool((uninterrupted[name] == resumed[name]).all()) for name in uninterrupted)
    assert model_file.load(tmp_path / "run").activation == "sigmoid"


def test_run_of_an_earlier_version_resumes_with_softmax(marks, tmp_path):
    out = tmp_path / "older"
    train(marks, out, "--set", "multilabel=softmax", "--epochs", "1")
    (out / "model.safetensors").unlink()
    recipe = yaml.safe_load((out / "recipe.yaml").read_text())
    del recipe["multilabel"]
    (out / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run_ok("train", marks / "marks.csv", *SEPARATED, "--output", out, "--resume", "--workers", "0", cwd=marks)
    assert model_file.load(out).activation == "softmax"


def test_weights_of_either_activation_can_be_fine_tuned(marks, run, tmp_path):
    """The recipe of the run decides the activation, not its initial weights."""
    args = [*TRAIN, "--weights", str(run), "--epochs", "1"]
    for activation in ("softmax", "sigmoid"):
        out = tmp_path / activation
        run_ok(
            "train", marks / "marks.csv", *SEPARATED, *args, "--set", f"multilabel={activation}", "--output", out,
            cwd=marks,
        )  # fmt: skip
        assert model_file.load(out).activation == activation


def test_models_of_the_folds_predict_as_an_ensemble(marks, tmp_path):
    args = ("crossval", marks / "marks.csv", *SEPARATED, *TRAIN, "--folds", "2", "--output", tmp_path / "folds")
    report = run_json(*args, cwd=marks)
    pooled = pd.read_csv(tmp_path / "folds/predictions.csv")
    of_folds = pd.concat(pd.read_csv(tmp_path / f"folds/fold{number}/predictions.csv") for number in (1, 2))
    of_folds = of_folds.assign(path=of_folds["path"].map(lambda path: Path(path).name)).set_index("path")
    for _, row in pooled.iterrows():
        expected = of_folds.loc[Path(row["path"]).name, ["blue", "green", "red"]]
        assert np.allclose(row[["blue", "green", "red"]].astype(float), expected.astype(float), atol=2e-6)
    assert report["activation"] == "sigmoid"
    assert report["f1_micro"] > 0.9
    names = ["blue", "green", "red"]
    _, table = predict(marks, tmp_path / "folds", *SEPARATED)
    each = [predict(marks, tmp_path / f"folds/fold{number}")[1][names].to_numpy() for number in (1, 2)]
    assert np.allclose(table[names], np.mean(each, axis=0), atol=1e-5)
    assert label_sets(table) == [{name for name in names if row[name] >= 0.5} for _, row in table.iterrows()]
    tried = ("--candidate", "multilabel=softmax", "--candidate", "multilabel=sigmoid")
    refused(effnetv2(*args[:-1], tmp_path / "tried", *tried, cwd=marks), "multilabel=softmax", "predict alike", "--set")


def test_incompatible_options_are_refused_before_training(marks, tmp_path):
    args = ("train", marks / "marks.csv", *SEPARATED, *TRAIN, "--output", tmp_path / "run")
    for setting, value in (("class_weights", "sqrt"), ("logit_adjustment", "1.0")):
        refused(
            effnetv2(*args, "--set", f"{setting}={value}", cwd=marks),
            f"{setting} is {value}", "multilabel sigmoid", f"{setting}=null", "class_sampling=sqrt",
        )  # fmt: skip
    for name in ("red", "green"):
        for number in range(4):
            paint(tmp_path / "folders" / name / f"{number}.jpg", (200, 30, 30), number)
    single_label = ("train", tmp_path / "folders", *TRAIN, "--output", tmp_path / "run")
    refused(
        effnetv2(*single_label, "--set", "multilabel=softmax", cwd=marks),
        "--set multilabel=softmax", "one label", "--label-separator",
    )  # fmt: skip
    assert not (tmp_path / "run").exists()
