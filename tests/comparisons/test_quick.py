"""What recipe quick reaches in 10 epochs: what is run, claimed and drawn."""

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


def test_both_ways_are_the_recipe_as_it_comes_but_for_the_sizes():
    made = {way: with_overrides(get_recipe("quick"), cell.settings) for way, cell in arms(10).items()}
    assert [made[GROWING].progressive.stage(number).image_size for number in range(4)] == [64, 96, 96, 128]
    assert made[FIXED].progressive.stage(0) == made[FIXED].progressive.last == made[GROWING].progressive.last
    own = get_recipe("quick")
    assert made[GROWING] == own.model_copy(update={"epochs": 10.0})
    one_stage = replace(own.progressive, stages=1)
    assert made[FIXED] == own.model_copy(update={"epochs": 10.0, "progressive": one_stage})


def test_the_claims_by_hand():
    rows = [{"top1": top1, "wall_s": seconds} for top1, seconds in ((0.79, 900.0), (0.81, 1000.0))]
    found = claims({GROWING: rows, FIXED: rows[:1]})
    told = {name: (pytest.approx(one.value), one.n, unit) for name, (one, unit) in found.items()}
    assert told == {
        "quick_b0_imagenette_10ep_top1": (0.80, 2, "fraction"),
        "quick_b0_imagenette_10ep_wall_s": (950.0, 2, "s"),
        "quick_b0_imagenette_10ep_fixed_top1": (0.79, 1, "fraction"),
        "quick_b0_imagenette_10ep_fixed_wall_s": (900.0, 1, "s"),
    }
    of_two = found["quick_b0_imagenette_10ep_top1"][0]
    assert of_two.low < 0.79 < 0.81 < of_two.high
    of_one = found["quick_b0_imagenette_10ep_fixed_top1"][0]
    assert of_one.low == of_one.high == 0.79


def test_what_a_run_came_to_is_kept_without_its_folder(class_folders, tmp_path):
    """Of what a clone has: the figures and the curve, not the run."""
    runs = Runs(DataConfig(str(class_folders)), 1, "none", "cpu", tmp_path / "out", lambda line: None)
    settings = [word for flag, word in pairwise(TINY) if flag == "--set"]
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


def test_another_length_is_not_recorded(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["quick", "pictures", "--epochs", "1", "--record"])
    with pytest.raises(SystemExit):
        quick.main()
    assert mentions(capsys.readouterr().err, "--record", "10", "epoch")


def test_the_record_holds_every_seed_and_the_drawing_the_first(monkeypatch, tmp_path):
    for room in (quick, record):
        monkeypatch.setattr(room, "RESULTS", tmp_path)
    monkeypatch.setattr(record, "SUMMARY", tmp_path / "summary.json")
    monkeypatch.setattr(quick, "IMAGES", tmp_path)
    curve = [
        {"kind": "train", "step": 1, "epoch": 1.0, "image_size": 64, "train_s": 60.0},
        {"kind": "val", "step": 1, "epoch": 1.0, "top1": 0.5},
    ]
    words = {"hardware": "2 cores", "versions": {"torch": "1.0"}}
    rows = [{"top1": 0.8, "wall_s": 900.0, "curve": curve, **words}] * 2
    quick.write({GROWING: rows, FIXED: rows}, claims({GROWING: rows, FIXED: rows}))
    kept = json.loads((tmp_path / "quick.json").read_text())
    assert {way: len(of) for way, of in kept["arms"].items()} == {GROWING: 2, FIXED: 2}
    told = json.loads((tmp_path / "summary.json").read_text())["quick_b0_imagenette_10ep_top1"]
    assert told["command"] == "python -m benchmarks.quick IMAGENETTE --seeds 2 --record"
    assert (told["n"], told["hardware"], told["versions"]["torch"]) == (2, "2 cores", "1.0")
    assert (tmp_path / quick.FIGURE).stat().st_size > 0
