"""``evaluate`` and ``predict`` beyond the figures: calibration, silence, costs, slices, comparison with another run."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from tests.command_line import TINY, effnetv2
from tests.conftest import COLORS, paint
from tests.messages import mentions

from efficientnetv2.models import model_file
from efficientnetv2.models.provenance import Calibration

pytestmark = pytest.mark.slow  # a run of five epochs comes before the first


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with minival of 60 images on a table with years; a third of its labels are drawn at random."""
    place = tmp_path_factory.mktemp("honest")
    generator, rows = np.random.default_rng(0), []
    for number in range(360):
        name = list(COLORS)[number % 3]
        paint(place / f"{number:03d}.jpg", COLORS[name], number, px=32)
        label = str(generator.choice(list(COLORS))) if generator.random() < 1 / 3 else name
        split = ("train", "train", "train", "minival", "val", "test")[number // 3 % 6]
        year = 2010 + number % 2
        rows.append((f"{number:03d}.jpg", label, split, year, f"id {number}"))
    table = pd.DataFrame(rows, columns=["path", "label", "split", "year", "note"])
    table.to_csv(place / "all.csv", index=False)
    words = (*TINY, "--epochs", "5", "--weights", "none", "--set", "minival=60")
    done = effnetv2("train", "all.csv", *words, "--output", "run", cwd=place)
    assert done.returncode == 0, done.stderr
    # The same network, its logits eight times too large: known to be too sure.
    network = model_file.load(place / "run")
    network.calibration = None
    with torch.no_grad():
        network.classifier.weight *= 8
        network.classifier.bias *= 8
    model_file.save(place / "sure.safetensors", network)
    return place


def told(*words, cwd):
    done = effnetv2(*words, "--json", "--device", "cpu", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_run_fits_its_temperature_on_minival_alone(trained):
    report = json.loads((trained / "run/report.json").read_text())
    found = model_file.load(trained / "run").calibration
    assert (found.num_images, found.fitted_on) == (60, "minival")
    assert report["calibration"]["temperature"] == found.temperature
    assert report["calibration"]["fitted_on"] == "minival"
    assert report["sha256"]["model.safetensors"]
    again = told("evaluate", "run", "all.csv", "--split", "val", cwd=trained)
    assert again["ece"] == pytest.approx(report["ece"], abs=1e-6)
    page = (trained / "run/report.html").read_text()
    assert "Are its probabilities reliable?" in page
    assert mentions(page, "60", "minival")
    # What the run says of its images' years, the worst first.
    assert {one["value"] for one in report["slices"]} == {"2010", "2011"}


def test_what_it_has_not_seen_is_without_minival(trained, tmp_path):
    """180 images have trained it, 60 have chosen its weights and its temperature; the model file alone knows it."""
    shutil.copy(trained / "run/model.safetensors", tmp_path / "m.safetensors")
    report = told("evaluate", "m.safetensors", trained / "all.csv", "--split", "all", cwd=tmp_path)
    assert (
        report["num_images"],
        report["num_eval_images_seen_in_training"],
        report["num_eval_images_used_for_selection"],
    ) == (360, 180, 60)
    assert report["unseen"]["num_images"] == 120
    assert mentions(report["notes"][-1], "minival", "temperature")


def test_calibrating_elsewhere_lowers_the_error_on_held_out_pictures(trained, tmp_path):
    """Fitted on minival and val, which did not train it, by the command line; measured on test."""
    table = pd.read_csv(trained / "all.csv")
    table["path"] = [str(trained / path) for path in table["path"]]
    for name, parts in {"fit": ["minival", "val"], "rest": ["test"], "seen": ["train"]}.items():
        table[table["split"].isin(parts)].drop(columns="split").to_csv(tmp_path / f"{name}.csv", index=False)
    before = told("evaluate", trained / "sure.safetensors", "rest.csv", cwd=tmp_path)
    done = effnetv2(
        "evaluate", trained / "sure.safetensors", "fit.csv", "--calibrate", "honest.safetensors", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert mentions(done.stdout, "temperature")
    after = told("evaluate", "honest.safetensors", "rest.csv", cwd=tmp_path)
    assert after["ece"] < before["ece"] - 0.05
    assert after["calibration"]["ece_before"] == pytest.approx(before["ece"], abs=1e-4)
    assert after["top1"] == before["top1"]
    assert model_file.load(tmp_path / "honest.safetensors").calibration.temperature > 2
    refused = effnetv2(
        "evaluate", trained / "sure.safetensors", "seen.csv", "--calibrate", "x.safetensors", cwd=tmp_path
    )
    assert refused.returncode == 2
    assert "trained the model" in refused.stderr


def test_silence_below_a_probability(trained, tmp_path):
    report = told("evaluate", trained / "run", trained / "all.csv", "--split", "test", "--abstain-below", "0.6",
                  "--output", "out", cwd=tmp_path)  # fmt: skip
    answers = pd.read_csv(tmp_path / "out/predictions.csv")
    sure = answers[list(COLORS)].max(axis=1) >= 0.6
    (asked,) = [row for row in report["abstention"]["points"] if row["requested"]]
    assert asked["coverage"] == pytest.approx(sure.mean())
    done = effnetv2("predict", trained / "run", trained / "all.csv", "--abstain-below", "0.6", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    written = pd.read_csv(tmp_path / "predictions.csv", keep_default_na=False)
    silent = written[list(COLORS)].max(axis=1) < 0.6
    assert (written["predicted_label"] == "").equals(silent)
    assert ("left to a person" in done.stdout) == silent.any()


def test_a_parquet_column_of_categories_with_an_empty_cell_is_cut_too(trained, tmp_path):
    table = pd.read_csv(trained / "all.csv").query("split == 'val'").assign(split="test")
    table["path"] = [str(trained / path) for path in table["path"]]
    table["region"] = pd.Categorical([None, *["north", "south"] * len(table)][: len(table)])
    table.to_parquet(tmp_path / "val.parquet")
    report = told("evaluate", trained / "run", "val.parquet", "--split", "test", cwd=tmp_path)
    regions = [one["value"] for one in report["slices"] if one["column"] == "region"]
    assert set(regions) == {"north", "south", "(empty)"}


def test_costs_slices_and_another_run_beside(trained, tmp_path):
    names = sorted(COLORS)
    lines = [",".join(["true", *names, "abstain"])]
    lines += [",".join([one, *("0" if one == two else "1" for two in names), "0.2"]) for one in names]
    (tmp_path / "costs.csv").write_text("\n".join(lines) + "\n")
    words = (trained / "all.csv", "--split", "val", "--costs", "costs.csv", "--slices", "year")
    report = told("evaluate", trained / "run", *words, "--baseline", trained / "run", "--output", "all", cwd=tmp_path)
    assert report["costs"]["most_probable"] == pytest.approx(1 - report["top1"])
    assert report["costs"]["cheapest"] <= report["costs"]["most_probable"]
    page = (tmp_path / "all/report.html").read_text()
    assert "Costs of errors" in page
    assert "year" in page


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--slices", "yeer"], ("--slices", "all.csv")),
        (["--slices", "note"], ("--slices", "column")),
        (["--costs", "none.csv"], ("--costs", "none.csv", "CSV")),
        (["--costs", "few.csv"], ("--costs", "few.csv", "green")),
        (["--costs", "less.csv"], ("green", "red", "'-1'")),
        (["--costs", "other.csv"], ("--costs", "other.csv", "purple")),
        (["--costs", "two.csv"], ("abstain", "0.1", "0.2")),
        (["--baseline", "."], ("predictions.csv",)),
        (["--calibrate", "m.pt"], ("--calibrate", "m.pt")),
        (["--calibrate", "run/model.safetensors"], ("--calibrate", "run/model.safetensors", "new")),
        (["--calibrate", "m.safetensors", "--split", "train"], ("images of train trained the model",)),
        (["--baseline", "elsewhere"], ("--baseline",)),
        (["--abstain-below", "80"], ("between 0 and 1",)),
        (["--tta", "all"], ("--tta", "all")),
        (["--calibrate", "m.safetensors", "--tta", "d4"], ("--tta",)),
        (["--calibrate", "m.safetensors", "--image-size", "48"], ("--image-size",)),
        (["--slices", "longer_side_px"], ("--slices", "longer_side_px")),
    ],
)
def test_what_cannot_be_is_refused_before_a_picture_is_answered(words, sentence, trained):
    head = "true,blue,green,red,abstain\n"
    (trained / "few.csv").write_text(head + "blue,0,1,1,1\nred,1,1,0,1\n")
    (trained / "less.csv").write_text(head + "blue,0,1,1,1\ngreen,1,0,1,1\nred,1,-1,0,1\n")
    (trained / "other.csv").write_text(head + "purple,0,1,1,1\n")
    (trained / "two.csv").write_text(head + "blue,0,1,1,0.1\ngreen,1,0,1,0.2\nred,1,1,0,0.1\n")
    (trained / "elsewhere").mkdir(exist_ok=True)
    (trained / "elsewhere/predictions.csv").write_text("path,label,true_label\nother.jpg,red,red\n")
    done = effnetv2("evaluate", "run", "all.csv", *words, cwd=trained)
    assert done.returncode == 2
    assert "evaluating at" not in done.stdout
    assert mentions(" ".join(done.stderr.split()), *sentence)


def test_a_new_run_begins_without_the_temperature_of_its_weights(trained, tmp_path):
    network = model_file.load(trained / "run")
    network.calibration = Calibration(3.0, 50, "elsewhere")
    model_file.save(tmp_path / "warm.safetensors", network)
    words = ("train", trained / "all.csv", *TINY, "--weights", "warm.safetensors", "--set", "minival=null")
    done = effnetv2(*words, "--output", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert model_file.load(tmp_path / "run").calibration is None
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert "temperature" not in report["calibration"]
    assert report["linear_probe_f1"]
    assert (tmp_path / "run/probe/predictions.csv").is_file()
    assert report["data_scaling_curve"]["points"][-1]["num_images"] == 180
    assert "Would more labels help?" in (tmp_path / "run/report.html").read_text()


def test_eight_views_beside_the_models_own(trained, tmp_path):
    """As of the same model file with these views in it; the difference to one view is paired."""
    words = (trained / "all.csv", "--split", "test")
    own = told("evaluate", trained / "run", *words, cwd=tmp_path)
    eight = told("evaluate", trained / "run", *words, "--tta", "d4", "--output", "eight", cwd=tmp_path)
    assert (own["tta"], eight["tta"]) == ("none", "d4")
    assert "tta_comparison" not in own
    difference = eight["tta_comparison"]["top1"]
    assert difference["value"] == pytest.approx(eight["top1"] - own["top1"])
    assert difference["low"] <= difference["value"] <= difference["high"]
    page = " ".join((tmp_path / "eight/report.html").read_text().split())
    assert mentions(page, "means", "eight flips and rotations")
    assert "Is it better with test-time augmentation?" in page

    network = model_file.load(trained / "run")
    network.preprocessing = replace(network.preprocessing, tta="d4")
    model_file.save(tmp_path / "eight.safetensors", network)
    kept = told("evaluate", "eight.safetensors", *words, cwd=tmp_path)
    assert (kept["tta"], kept["top1"]) == ("d4", eight["top1"])
    assert "tta_comparison" not in kept
    once = told("evaluate", "eight.safetensors", *words, "--tta", "none", cwd=tmp_path)
    assert (once["tta"], once["top1"]) == ("none", own["top1"])

    done = effnetv2("predict", trained / "run", trained / "all.csv", "--tta", "d4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    names = list(COLORS)
    answers = pd.read_csv(tmp_path / "eight/predictions.csv").set_index("path")
    written = pd.read_csv(tmp_path / "predictions.csv").set_index("path").loc[answers.index]
    assert written[names].to_numpy() == pytest.approx(answers[names].to_numpy(), abs=1e-5)


def test_pictures_of_two_sizes_are_cut_by_them(trained, tmp_path):
    rows = []
    for number in range(40):
        name, px = list(COLORS)[number % 3], (32, 80)[number % 2]
        paint(tmp_path / f"{number}.jpg", COLORS[name], 1000 + number, px=px)
        rows.append((f"{number}.jpg", name, 2010 + number % 4 // 2))
    pd.DataFrame(rows, columns=["path", "label", "year"]).to_csv(tmp_path / "sizes.csv", index=False)
    whole = told("evaluate", trained / "run", "sizes.csv", cwd=tmp_path)
    assert {(one["column"], one["value"], one["num_images"]) for one in whole["slices"]} == {
        ("longer_side_px", "32", 20), ("longer_side_px", "80", 20), ("year", "2010", 20), ("year", "2011", 20),
    }  # fmt: skip
    asked = told("evaluate", trained / "run", "sizes.csv", "--slices", "longer_side_px", cwd=tmp_path)
    assert {one["column"] for one in asked["slices"]} == {"longer_side_px"}
    assert "slices" not in told("evaluate", trained / "run", "sizes.csv", "--slices", "none", cwd=tmp_path)
