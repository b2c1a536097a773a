"""``evaluate`` and ``predict``: calibration, abstention, costs, slices, TTA, and the comparison with a baseline."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from tests.command_line import TINY, run_json, run_ok, run_refused
from tests.conftest import COLORS, paint
from tests.messages import mentions

from efficientnetv2.models import model_file
from efficientnetv2.models.provenance import Calibration

pytestmark = pytest.mark.slow  # the fixture trains five epochs


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with 60 minival images on a table with years; a third of the labels is random."""
    folder = tmp_path_factory.mktemp("evaluation")
    generator, rows = np.random.default_rng(0), []
    for number in range(360):
        name = list(COLORS)[number % 3]
        paint(folder / f"{number:03d}.jpg", COLORS[name], number, px=32)
        label = str(generator.choice(list(COLORS))) if generator.random() < 1 / 3 else name
        split = ("train", "train", "train", "minival", "val", "test")[number // 3 % 6]
        year = 2010 + number % 2
        rows.append((f"{number:03d}.jpg", label, split, year, f"id {number}"))
    table = pd.DataFrame(rows, columns=["path", "label", "split", "year", "note"])
    table.to_csv(folder / "all.csv", index=False)
    args = (*TINY, "--epochs", "5", "--weights", "none", "--set", "minival=60")
    run_ok("train", "all.csv", *args, "--output", "run", cwd=folder)
    # The same model with eight times larger logits: overconfident.
    model = model_file.load(folder / "run")
    model.calibration = None
    with torch.no_grad():
        model.classifier.weight *= 8
        model.classifier.bias *= 8
    model_file.save(folder / "overconfident.safetensors", model)
    return folder


def evaluate(*args, cwd):
    return run_json("evaluate", *args, "--device", "cpu", cwd=cwd)


def test_temperature_is_fitted_on_minival_only(trained):
    report = json.loads((trained / "run/report.json").read_text())
    found = model_file.load(trained / "run").calibration
    assert (found.num_images, found.fitted_on) == (60, "minival")
    assert report["calibration"]["temperature"] == found.temperature
    assert report["calibration"]["fitted_on"] == "minival"
    assert report["sha256"]["model.safetensors"]
    again = evaluate("run", "all.csv", "--split", "val", cwd=trained)
    assert again["ece"] == pytest.approx(report["ece"], abs=1e-6)
    page = (trained / "run/report.html").read_text()
    assert "Are its probabilities reliable?" in page
    assert mentions(page, "60", "minival")
    # Slices by the year column.
    assert {one["value"] for one in report["slices"]} == {"2010", "2011"}


def test_unseen_images_exclude_minival(trained, tmp_path):
    """180 images trained the model, 60 selected its weights and temperature; the model file has this information."""
    shutil.copy(trained / "run/model.safetensors", tmp_path / "m.safetensors")
    report = evaluate("m.safetensors", trained / "all.csv", "--split", "all", cwd=tmp_path)
    counts = ("num_images", "num_eval_images_seen_in_training", "num_eval_images_used_for_selection")
    assert tuple(report[name] for name in counts) == (360, 180, 60)
    assert report["unseen"]["num_images"] == 120
    assert mentions(report["notes"][-1], "minival", "temperature")


def test_minival_of_other_images_did_not_select_the_model(trained, tmp_path):
    for number in range(30):
        paint(tmp_path / f"{number}.jpg", COLORS["red"], 1000 + number, px=32)
    rows = [(f"{number}.jpg", "red", "minival") for number in range(30)]
    pd.DataFrame(rows, columns=["path", "label", "split"]).to_csv(tmp_path / "other.csv", index=False)
    report = evaluate(trained / "run", "other.csv", "--split", "minival", cwd=tmp_path)
    assert not report["optimistic"]
    assert evaluate(trained / "run", trained / "all.csv", "--split", "minival", cwd=tmp_path)["optimistic"]


def test_report_at_another_size_states_it(trained, tmp_path):
    evaluate(
        trained / "overconfident.safetensors", trained / "all.csv", "--image-size", 96, "--output", "out", cwd=tmp_path
    )
    page = (tmp_path / "out/report.html").read_text()
    assert mentions(page, "metrics here are at 96 px", "effnetv2 convert MODEL OUT.safetensors --image-size 96")
    assert mentions(re.sub("<[^>]+>", "", page), "then effnetv2 evaluate OUT.safetensors DATA --calibrate")


def test_calibration_lowers_the_error_on_test_images(trained, tmp_path):
    """Fitted with ``--calibrate`` on minival and val, measured on test."""
    table = pd.read_csv(trained / "all.csv")
    table["path"] = [str(trained / path) for path in table["path"]]
    for name, parts in {"fit": ["minival", "val"], "rest": ["test"], "seen": ["train"]}.items():
        table[table["split"].isin(parts)].drop(columns="split").to_csv(tmp_path / f"{name}.csv", index=False)
    before = evaluate(trained / "overconfident.safetensors", "rest.csv", cwd=tmp_path)
    done = run_ok(
        "evaluate", trained / "overconfident.safetensors", "fit.csv", "--calibrate", "calibrated.safetensors",
        cwd=tmp_path,
    )  # fmt: skip
    assert mentions(done.stdout, "temperature")
    after = evaluate("calibrated.safetensors", "rest.csv", cwd=tmp_path)
    assert after["ece"] < before["ece"] - 0.05
    assert after["calibration"]["ece_before"] == pytest.approx(before["ece"], abs=1e-4)
    assert after["top1"] == before["top1"]
    assert model_file.load(tmp_path / "calibrated.safetensors").calibration.temperature > 2
    refused = run_refused(
        "evaluate", trained / "overconfident.safetensors", "seen.csv", "--calibrate", "x.safetensors", cwd=tmp_path
    )
    assert "trained the model" in refused.stderr


def test_abstention_below_a_probability(trained, tmp_path):
    args = (trained / "run", trained / "all.csv", "--split", "test", "--abstain-below", "0.6", "--output", "out")
    report = evaluate(*args, cwd=tmp_path)
    shown = run_ok("evaluate", *args[:-2], cwd=tmp_path).stdout
    assert mentions(shown, "have a probability of 0.6 or more")
    predictions = pd.read_csv(tmp_path / "out/predictions.csv")
    is_confident = predictions[list(COLORS)].max(axis=1) >= 0.6
    (requested,) = [row for row in report["abstention"]["points"] if row["requested"]]
    assert requested["coverage"] == pytest.approx(is_confident.mean())
    done = run_ok("predict", trained / "run", trained / "all.csv", "--abstain-below", "0.6", cwd=tmp_path)
    written = pd.read_csv(tmp_path / "predictions.csv", keep_default_na=False)
    is_abstained = written[list(COLORS)].max(axis=1) < 0.6
    assert (written["predicted_label"] == "").equals(is_abstained)
    assert ("abstained" in done.stdout) == is_abstained.any()


def test_categorical_column_with_an_empty_cell_is_sliced(trained, tmp_path):
    table = pd.read_csv(trained / "all.csv").query("split == 'val'").assign(split="test")
    table["path"] = [str(trained / path) for path in table["path"]]
    table["region"] = pd.Categorical([None, *["north", "south"] * len(table)][: len(table)])
    table.to_parquet(tmp_path / "val.parquet")
    report = evaluate(trained / "run", "val.parquet", "--split", "test", cwd=tmp_path)
    regions = [one["value"] for one in report["slices"] if one["column"] == "region"]
    assert set(regions) == {"north", "south", "(empty)"}


def test_costs_slices_and_baseline_together(trained, tmp_path):
    names = sorted(COLORS)
    lines = [",".join(["true", *names, "abstain"])]
    lines += [",".join([one, *("0" if one == two else "1" for two in names), "0.2"]) for one in names]
    (tmp_path / "costs.csv").write_text("\n".join(lines) + "\n")
    args = (trained / "all.csv", "--split", "val", "--costs", "costs.csv", "--slices", "year,year")
    shown = run_ok("evaluate", trained / "run", *args, cwd=tmp_path).stdout
    assert mentions(shown, "The mean cost of an image is")
    report = evaluate(trained / "run", *args, "--baseline", trained / "run", "--output", "all", cwd=tmp_path)
    assert report["costs"]["most_probable"] == pytest.approx(1 - report["top1"])
    assert report["costs"]["cheapest"] <= report["costs"]["most_probable"]
    page = (tmp_path / "all/report.html").read_text()
    assert "Costs of errors" in page
    assert "year" in page


def test_column_group_beside_the_group_column_is_a_subgroup(trained, tmp_path):
    table = pd.read_csv(trained / "all.csv").assign(group=lambda table: np.where(table.index % 2, "treated", "control"))
    table["patient"] = np.arange(len(table)) // 2
    table.assign(path=[str((trained / path).resolve()) for path in table["path"]]).to_csv(tmp_path / "all.csv")
    args = ("all.csv", "--split", "val", "--group-column", "patient", "--slices", "group")
    report = evaluate(trained / "run", *args, "--output", "grouped", cwd=tmp_path)
    assert {one["value"] for one in report["slices"]} == {"control", "treated"}


def test_subgroups_may_be_those_of_the_group_column(trained, tmp_path):
    args = (trained / "all.csv", "--split", "val", "--group-column", "year", "--slices", "year")
    report = evaluate(trained / "run", *args, "--output", "grouped", cwd=tmp_path)
    assert {one["column"] for one in report["slices"]} == {"group"}


@pytest.mark.parametrize(
    ("args", "facts"),
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
def test_invalid_options_are_refused_before_predicting(args, facts, trained):
    head = "true,blue,green,red,abstain\n"
    (trained / "few.csv").write_text(head + "blue,0,1,1,1\nred,1,1,0,1\n")
    (trained / "less.csv").write_text(head + "blue,0,1,1,1\ngreen,1,0,1,1\nred,1,-1,0,1\n")
    (trained / "other.csv").write_text(head + "purple,0,1,1,1\n")
    (trained / "two.csv").write_text(head + "blue,0,1,1,0.1\ngreen,1,0,1,0.2\nred,1,1,0,0.1\n")
    (trained / "elsewhere").mkdir(exist_ok=True)
    (trained / "elsewhere/predictions.csv").write_text("path,label,true_label\nother.jpg,red,red\n")
    done = run_refused("evaluate", "run", "all.csv", *args, cwd=trained)
    assert "evaluating at" not in done.stdout
    assert mentions(" ".join(done.stderr.split()), *facts)


def test_new_run_ignores_the_temperature_of_its_weights(trained, tmp_path):
    model = model_file.load(trained / "run")
    model.calibration = Calibration(3.0, 50, "elsewhere")
    model_file.save(tmp_path / "warm.safetensors", model)
    args = ("train", trained / "all.csv", *TINY, "--weights", "warm.safetensors", "--set", "minival=null")
    run_ok(*args, "--output", "run", cwd=tmp_path)
    assert model_file.load(tmp_path / "run").calibration is None
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert "temperature" not in report["calibration"]
    assert report["linear_probe_f1"]
    assert (tmp_path / "run/probe/predictions.csv").is_file()
    assert report["data_scaling_curve"]["points"][-1]["num_images"] == 180
    assert "Would more labels help?" in (tmp_path / "run/report.html").read_text()


def test_tta_is_compared_with_a_single_view(trained, tmp_path):
    """As if the model file had TTA; the difference to one view is paired."""
    args = (trained / "all.csv", "--split", "test")
    single = evaluate(trained / "run", *args, cwd=tmp_path)
    eight = evaluate(trained / "run", *args, "--tta", "d4", "--output", "eight", cwd=tmp_path)
    assert (single["tta"], eight["tta"]) == ("none", "d4")
    assert "tta_comparison" not in single
    difference = eight["tta_comparison"]["top1"]
    assert difference["value"] == pytest.approx(eight["top1"] - single["top1"])
    assert difference["low"] <= difference["value"] <= difference["high"]
    page = " ".join((tmp_path / "eight/report.html").read_text().split())
    assert mentions(page, "means", "eight flips and rotations")
    assert "Is it better with test-time augmentation?" in page

    model = model_file.load(trained / "run")
    model.preprocessing = replace(model.preprocessing, tta="d4")
    model_file.save(tmp_path / "eight.safetensors", model)
    saved = evaluate("eight.safetensors", *args, cwd=tmp_path)
    assert (saved["tta"], saved["top1"]) == ("d4", eight["top1"])
    assert "tta_comparison" not in saved
    without = evaluate("eight.safetensors", *args, "--tta", "none", cwd=tmp_path)
    assert (without["tta"], without["top1"]) == ("none", single["top1"])

    run_ok("predict", trained / "run", trained / "all.csv", "--tta", "d4", cwd=tmp_path)
    names = list(COLORS)
    predictions = pd.read_csv(tmp_path / "eight/predictions.csv").set_index("path")
    written = pd.read_csv(tmp_path / "predictions.csv").set_index("path").loc[predictions.index]
    assert written[names].to_numpy() == pytest.approx(predictions[names].to_numpy(), abs=1e-5)


def test_images_of_two_sizes_are_sliced_by_size(trained, tmp_path):
    rows = []
    for number in range(40):
        name, px = list(COLORS)[number % 3], (32, 80)[number % 2]
        paint(tmp_path / f"{number}.jpg", COLORS[name], 1000 + number, px=px)
        rows.append((f"{number}.jpg", name, 2010 + number % 4 // 2))
    pd.DataFrame(rows, columns=["path", "label", "year"]).to_csv(tmp_path / "sizes.csv")  # with row numbers
    default = evaluate(trained / "run", "sizes.csv", cwd=tmp_path)
    assert {(one["column"], one["value"], one["num_images"]) for one in default["slices"]} == {
        ("longer_side_px", "32", 20), ("longer_side_px", "80", 20), ("year", "2010", 20), ("year", "2011", 20),
    }  # fmt: skip
    by_size = evaluate(trained / "run", "sizes.csv", "--slices", "longer_side_px", cwd=tmp_path)
    assert {one["column"] for one in by_size["slices"]} == {"longer_side_px"}
    assert "slices" not in evaluate(trained / "run", "sizes.csv", "--slices", "none", cwd=tmp_path)
