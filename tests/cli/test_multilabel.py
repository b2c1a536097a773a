"""Images of several labels through the command line: trained, resumed, evaluated, packed, planned."""

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
from tests.command_line import NETWORK, TINY, effnetv2, killed_at
from tests.conftest import COLORS, paint
from tests.messages import mentions

from efficientnetv2.inference.predictor import Predictor
from efficientnetv2.models import model_file

SCRATCH = (*TINY, "--weights", "none", "--label-separator", ";")


def drawn(folder):
    """Sixteen images each of red, green and blue; the first two are warm or cold besides, red and blue bright."""
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
    """Labels share a probability of 1; each class by itself: below."""
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

    refused(effnetv2("evaluate", tmp_path / "run", table, cwd=tmp_path), "row 34", "bright;blue", "not a class")
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
    """The same images in the same order with the same targets: the same losses."""
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
    """Each image is answered once, by a network that had not seen it; the figures are those of several labels."""
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
    refused(effnetv2(*words, cwd=learnt), "row 2", "Bright", "not a class")
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


SEPARATED = ("--label-separator", ";")
# Nothing but the marks, whole and in their places, in every step. An image without a mark is in no step: what the
# network gives it lies between the marks' probabilities, farther from a half with some seeds than with others.
TRAIN = (
    "--recipe", "quick", "--model", NETWORK, "--weights", "none", "--epochs", "20", "--batch-size", "8",
    "--workers", "0", "--device", "cpu", "--set", "progressive.stages=1", "--set", "progressive.image_size=32",
    "--set", "augment.flip=none", "--set", "crop_scale_min=1", "--set", "ema_decay=0.9", "--set", "optimizer.lr=0.004",
    "--set", "val_interval_epochs=20", "--set", "precision=fp32", "--seed", "5",
)  # fmt: skip
MARKS = {"red": (slice(16), slice(16)), "green": (slice(16), slice(16, 32)), "blue": (slice(16, 32), slice(16))}
SETS = ("red", "green", "blue", "red;green", "red;blue", "green;blue", "red;green;blue")


def marked(path: Path, labels: str, seed: int) -> Path:
    """Gray noise with a corner of each of the colors."""
    pixels = np.random.default_rng(seed).integers(90, 140, (32, 32, 3), dtype=np.uint8)
    for channel, (name, place) in enumerate(MARKS.items()):
        if name in labels.split(";"):
            pixels[place] //= 4
            pixels[(*place, channel)] = 230
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A table of marked images, and new ones of which no network has seen any; some of those have no mark."""
    folder = tmp_path_factory.mktemp("marks")
    rows = [{"path": f"{number}.png", "label": SETS[number % 7]} for number in range(84)]
    for number, row in enumerate(rows):
        marked(folder / row["path"], row["label"], number)
    pd.DataFrame(rows).to_csv(folder / "marks.csv", index=False)
    for number, labels in enumerate(("", *SETS) * 2):
        marked(folder / "new" / f"{number:02}.png", labels, 1000 + number)
    return folder


WANTED = [set(labels.split(";")) - {""} for labels in ("", *SETS) * 2]


def trained(place, out, *words):
    done = effnetv2("train", place / "marks.csv", *SEPARATED, *TRAIN, *words, "--verbose", "--output", out, cwd=place)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def run(place):
    said = trained(place, place / "run")
    assert "each class is independent" in said
    return place / "run"


def predicted(place, model, *words):
    done = effnetv2("predict", model, place / "new", "--workers", "0", "--output", place / "out.csv", *words, cwd=place)
    assert done.returncode == 0, done.stderr
    return done.stdout, pd.read_csv(place / "out.csv", keep_default_na=False)


def sets(table):
    return [set(cell.split(";")) - {""} for cell in table["predicted_label"]]


def test_a_picture_is_given_each_of_its_marks_and_one_without_any_no_label(place, run):
    said, table = predicted(place, run, *SEPARATED)
    assert sets(table) == WANTED
    assert "16 images: " in said
    assert "without a label 2" in said
    shares = table[["blue", "green", "red"]].to_numpy()
    assert shares.sum(axis=1).max() > 2, "each class has a probability of its own"
    for cell, (_, row) in zip(table["predicted_label"], table[["blue", "green", "red"]].iterrows(), strict=True):
        enough = row[row >= 0.5].sort_values(ascending=False, kind="stable")
        assert cell == ";".join(enough.index), "from a half on, the most probable first"
    _, one_each = predicted(place, run)
    assert one_each.drop(columns="predicted_label").equals(table.drop(columns="predicted_label"))
    assert (one_each["predicted_label"].map(len) > 0).all(), "not asked for several, each gets the most probable"


def test_that_is_what_shares_of_one_cannot_say(place):
    """The paper's form learns the same images, and gives those without a mark labels all the same."""
    said = trained(place, place / "shares", "--set", "multilabel=softmax")
    assert "share a probability of 1" in said
    _, table = predicted(place, place / "shares", *SEPARATED)
    assert np.allclose(table[["blue", "green", "red"]].sum(axis=1), 1, atol=1e-4)
    found = sets(table)
    assert [found[row] == wanted for row, wanted in enumerate(WANTED) if wanted] == [True] * 14
    assert all(found[row] for row, wanted in enumerate(WANTED) if not wanted)


def test_the_same_from_python(place, run):
    pictures = sorted((place / "new").glob("*.png"))
    answers = Predictor(run)(pictures)
    assert [set(one.labels) for one in answers] == WANTED
    both = answers[4]  # red;green
    assert both.labels == tuple(sorted(both.labels, key=lambda name: -both.probabilities[name]))
    assert (both.label, both.probability) == (both.labels[0], both.probabilities[both.labels[0]])


def test_evaluated_as_it_was_trained(place, run):
    report = json.loads((run / "report.json").read_text())
    assert (report["activation"], report["recipe"]["multilabel"]) == ("sigmoid", "sigmoid")
    assert report["f1_micro"] == report["f1_macro"] == 1.0
    page = (run / "report.html").read_text()
    assert mentions(page, "0.5", "probab")
    assert mentions(page, "most probable class", "correct")
    words = ("evaluate", run, run / "dataset.csv", "--split", "val", "--workers", "0")
    done = effnetv2(*words, *SEPARATED, "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout)
    for name in ("top1", "mean_average_precision", "f1_micro", "ece"):
        assert again[name] == pytest.approx(report[name], abs=1e-5), name
    assert again["activation"] == "sigmoid"
    refused(effnetv2(*words, cwd=place), "(sigmoid)", "--label-separator ';'")


def test_what_to_label_next_wants_one_doubt_for_all_classes(place, run):
    ranked = ("predict", run, place / "new", "--rank", place / "next.csv")
    refused(effnetv2(*ranked, cwd=place), "(sigmoid)", "--rank")


def test_killed_on_its_way_it_ends_with_the_same_bits(place, run, tmp_path):
    words = ("train", place / "marks.csv", *SEPARATED, "--output", tmp_path / "run")
    every = ("--set", "checkpoint_minutes=0", "--set", "val_interval_epochs=10")
    killed_at("efficientnetv2.training.validation:compute_metrics", *words, *TRAIN, *every, cwd=place)
    assert list((tmp_path / "run").rglob("*step*")), "it was killed behind its first steps"
    done = effnetv2(*words, "--resume", "--workers", "0", "--device", "cpu", cwd=place)
    assert done.returncode == 0, done.stderr
    assert mentions(done.stdout, "from step")
    through, again = load_file(run / "model.safetensors"), load_file(tmp_path / "run/model.safetensors")
    assert all(bool((through[name] == again[name]).all()) for name in through)
    assert model_file.load(tmp_path / "run").activation == "sigmoid"


def test_a_run_begun_before_there_was_a_choice_goes_on_with_shares(place, tmp_path):
    out = tmp_path / "older"
    trained(place, out, "--set", "multilabel=softmax", "--epochs", "1")
    (out / "model.safetensors").unlink()
    recipe = yaml.safe_load((out / "recipe.yaml").read_text())
    del recipe["multilabel"]
    (out / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    done = effnetv2("train", place / "marks.csv", *SEPARATED, "--output", out, "--resume", "--workers", "0", cwd=place)
    assert done.returncode == 0, done.stderr
    assert model_file.load(out).activation == "softmax"


def test_weights_learn_shares_and_yes_or_no_in_turn(place, run, tmp_path):
    """What its answers mean is the run's affair, not that of the weights it began with."""
    words = [*TRAIN, "--weights", str(run), "--epochs", "1"]
    for how in ("softmax", "sigmoid"):
        out = tmp_path / how
        done = effnetv2(
            "train", place / "marks.csv", *SEPARATED, *words, "--set", f"multilabel={how}", "--output", out, cwd=place
        )
        assert done.returncode == 0, done.stderr
        assert model_file.load(out).activation == how


def test_folds_answer_together(place, tmp_path):
    words = ("crossval", place / "marks.csv", *SEPARATED, *TRAIN, "--folds", "2", "--output", tmp_path / "folds")
    done = effnetv2(*words, "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    pooled = pd.read_csv(tmp_path / "folds/predictions.csv")
    own = pd.concat(pd.read_csv(tmp_path / f"folds/fold{number}/predictions.csv") for number in (1, 2))
    own = own.assign(path=own["path"].map(lambda path: Path(path).name)).set_index("path")
    for _, row in pooled.iterrows():
        there = own.loc[Path(row["path"]).name, ["blue", "green", "red"]]
        assert np.allclose(row[["blue", "green", "red"]].astype(float), there.astype(float), atol=2e-6)
    assert report["activation"] == "sigmoid"
    assert report["f1_micro"] > 0.9
    names = ["blue", "green", "red"]
    _, table = predicted(place, tmp_path / "folds", *SEPARATED)
    each = [predicted(place, tmp_path / f"folds/fold{number}")[1][names].to_numpy() for number in (1, 2)]
    assert np.allclose(table[names], np.mean(each, axis=0), atol=1e-5)
    assert sets(table) == [{name for name in names if row[name] >= 0.5} for _, row in table.iterrows()]
    tried = ("--candidate", "multilabel=softmax", "--candidate", "multilabel=sigmoid")
    refused(
        effnetv2(*words[:-1], tmp_path / "tried", *tried, cwd=place), "multilabel=softmax", "predict alike", "--set"
    )


def test_what_does_not_go_together_is_refused_before_the_run(place, tmp_path):
    begin = ("train", place / "marks.csv", *SEPARATED, *TRAIN, "--output", tmp_path / "run")
    for setting, value in (("class_weights", "sqrt"), ("logit_adjustment", "1.0")):
        refused(
            effnetv2(*begin, "--set", f"{setting}={value}", cwd=place),
            f"{setting} is {value}", "multilabel sigmoid", f"{setting}=null", "class_sampling=sqrt",
        )  # fmt: skip
    for name in ("red", "green"):
        for number in range(4):
            paint(tmp_path / "folders" / name / f"{number}.jpg", (200, 30, 30), number)
    one_each = ("train", tmp_path / "folders", *TRAIN, "--output", tmp_path / "run")
    refused(
        effnetv2(*one_each, "--set", "multilabel=softmax", cwd=place),
        "--set multilabel=softmax", "one label", "--label-separator",
    )  # fmt: skip
    assert not (tmp_path / "run").exists()
