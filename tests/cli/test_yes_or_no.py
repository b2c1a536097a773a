"""Pictures of several labels, each class answered by itself, through the command line: from marks to sets of labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file
from tests.cli.test_bad_input import refused
from tests.command_line import NETWORK, effnetv2, killed_at
from tests.conftest import paint
from tests.messages import mentions

from efficientnetv2.inference.predictor import Predictor
from efficientnetv2.models import model_file

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
    """A table of marked pictures, and new ones of which no network has seen any; some of those have no mark."""
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
    """The paper's form learns the same pictures, and gives those without a mark labels all the same."""
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
