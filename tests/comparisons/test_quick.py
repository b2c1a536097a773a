"""Results of recipe quick after 10 epochs: runs, claims and plot."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from itertools import pairwise

import pytest
from benchmarks import quick, record
from benchmarks.paper.runs import Cell, Runs
from benchmarks.quick import FIXED, GROWING, arms, asked, claims
from tests.command_line import TINY
from tests.messages import mentions
from tests.recipes import with_overrides

from efficientnetv2.data.config import DataConfig
from efficientnetv2.training.recipes import get_recipe


def test_arms_differ_from_the_recipe_only_in_the_sizes():
    recipes = {arm: with_overrides(get_recipe("quick"), cell.settings) for arm, cell in arms(10).items()}
    assert [recipes[GROWING].progressive.stage(number).image_size for number in range(4)] == [64, 96, 96, 128]
    assert recipes[FIXED].progressive.stage(0) == recipes[FIXED].progressive.last == recipes[GROWING].progressive.last
    quick_recipe = get_recipe("quick")
    assert recipes[GROWING] == quick_recipe.model_copy(update={"epochs": 10.0})
    one_stage = replace(quick_recipe.progressive, stages=1)
    assert recipes[FIXED] == quick_recipe.model_copy(update={"epochs": 10.0, "progressive": one_stage})


def test_claims_by_hand():
    rows = [{"top1": top1, "wall_s": seconds} for top1, seconds in ((0.79, 900.0), (0.81, 1000.0))]
    found = claims({GROWING: rows, FIXED: rows[:1]})
    values = {name: (pytest.approx(claim.value), claim.n, unit) for name, (claim, unit) in found.items()}
    assert values == {
        "quick_b0_imagenette_10ep_top1": (0.80, 2, "fraction"),
        "quick_b0_imagenette_10ep_wall_s": (950.0, 2, "s"),
        "quick_b0_imagenette_10ep_fixed_top1": (0.79, 1, "fraction"),
        "quick_b0_imagenette_10ep_fixed_wall_s": (900.0, 1, "s"),
    }
    two_seeds = found["quick_b0_imagenette_10ep_top1"][0]
    assert two_seeds.low < 0.79 < 0.81 < two_seeds.high
    one_seed = found["quick_b0_imagenette_10ep_fixed_top1"][0]
    assert one_seed.low == one_seed.high == 0.79


def test_result_is_saved_without_the_run_folder(class_folders, tmp_path):
    """A clone has the metrics and the curve, but not the run."""
    runs = Runs(DataConfig(str(class_folders)), 1, "none", "cpu", tmp_path / "out", lambda line: None)
    settings = [value for flag, value in pairwise(TINY) if flag == "--set"]
    cell = Cell("growing", "run", "quick", "efficientnetv2_b0", ("epochs=2", *settings))
    found = asked(runs, cell, 0)
    folder = runs.folder(cell, 0)
    assert found["precision"] in ("fp32", "bf16")
    last = [row for row in found["curve"] if row["kind"] == "val"][-1]
    assert last["top1"] == json.loads((folder / "report.json").read_text())["top1"]
    for file in folder.rglob("*"):
        if file.is_file() and file.name not in ("measured.json", "curve.json"):
            file.unlink()
    assert asked(runs, cell, 0) == found


def test_other_epochs_are_not_recorded(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["quick", "images", "--epochs", "1", "--record"])
    with pytest.raises(SystemExit):
        quick.main()
    assert mentions(capsys.readouterr().err, "--record", "10", "epoch")


def test_record_has_every_seed_and_the_plot_the_first(monkeypatch, tmp_path):
    for module in (quick, record):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(record, "SUMMARY", tmp_path / "summary.json")
    monkeypatch.setattr(quick, "IMAGES", tmp_path)
    curve = [
        {"kind": "train", "step": 1, "epoch": 1.0, "image_size": 64, "train_s": 60.0},
        {"kind": "val", "step": 1, "epoch": 1.0, "top1": 0.5},
    ]
    common = {"hardware": "2 cores", "versions": {"torch": "1.0"}}
    rows = [{"top1": 0.8, "wall_s": 900.0, "curve": curve, **common}] * 2
    quick.write({GROWING: rows, FIXED: rows}, claims({GROWING: rows, FIXED: rows}))
    saved = json.loads((tmp_path / "quick.json").read_text())
    assert {arm: len(runs) for arm, runs in saved["arms"].items()} == {GROWING: 2, FIXED: 2}
    claim = json.loads((tmp_path / "summary.json").read_text())["quick_b0_imagenette_10ep_top1"]
    assert claim["command"] == "python -m benchmarks.quick IMAGENETTE --seeds 2 --record"
    assert (claim["n"], claim["hardware"], claim["versions"]["torch"]) == (2, "2 cores", "1.0")
    assert (tmp_path / quick.FIGURE).stat().st_size > 0
