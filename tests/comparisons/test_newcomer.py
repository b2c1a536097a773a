"""Comparison with other tools: what is recorded of predictions and times, and the number of epochs of a peer."""

from __future__ import annotations

import json
import sys

import numpy as np
import pandas as pd
import pytest
from benchmarks import newcomer, newcomer_sides, record

from efficientnetv2.evaluation.predictions import compare_predictions, save_predictions


def predictions(true, predicted):
    """As ``load_predictions`` returns them, a letter each."""
    columns = {"predicted_label": list(predicted), "true_label": list(true)}
    return pd.DataFrame(columns, index=pd.Index([f"{row}.png" for row in range(len(true))], name="path"))


def test_the_difference_is_the_mean_over_seeds():
    true = "aaaabbbb"
    ours = [predictions(true, "aaaabbbb"), predictions(true, "aaaabbba")]
    theirs = [predictions(true, "aaabbbbb"), predictions(true, "bbaabbaa")]
    found = newcomer.differences(ours, theirs)
    assert found["top1"]["value"] == pytest.approx(100 * ((8 - 7) + (7 - 4)) / 2 / 8)
    assert found["top1_by_seed"] == pytest.approx({"value": 25, "low": 12.5, "high": 37.5, "n": 2})
    assert found["top1"]["n"] == 8


def test_equal_seeds_add_no_certainty():
    """Three runs with equal predictions are one run: the interval is as wide."""
    draw = np.random.default_rng(0)
    true, mine, other = ("".join(draw.choice(list("abc"), 60)) for _ in range(3))
    once = compare_predictions(predictions(true, mine), predictions(true, other))
    thrice = newcomer.differences([predictions(true, mine)] * 3, [predictions(true, other)] * 3)
    width = once.top1.high - once.top1.low
    assert thrice["top1"]["high"] - thrice["top1"]["low"] == pytest.approx(100 * width, rel=0.15)
    assert thrice["top1"]["value"] == pytest.approx(100 * once.top1.value)


def test_groups_of_the_test_images_are_drawn_whole():
    """Four groups of equal images: as uncertain as four images."""
    true, mine, other = "a" * 40 + "b" * 40, "a" * 60 + "b" * 20, "b" * 20 + "a" * 20 + "b" * 40
    groups = [str(row // 20) for row in range(80)]
    ours, theirs = predictions(true, mine), predictions(true, other)
    single = newcomer.differences([ours], [theirs])["top1"]
    grouped = newcomer.differences([ours.assign(cluster=groups)], [theirs])["top1"]
    assert grouped["value"] == pytest.approx(single["value"])
    assert grouped["high"] - grouped["low"] > 2 * (single["high"] - single["low"])


def test_a_peer_gets_the_number_of_epochs_nearest_to_its_minutes(monkeypatch):
    job = newcomer_sides.Job("", "", "", "", minutes=2, seed=0)
    monkeypatch.setattr(newcomer_sides, "BEGAN", 100)
    monkeypatch.setattr(newcomer_sides.time, "monotonic", lambda: 150)
    assert job.epochs(20, pilot_s=40) == 6  # 110 s are left: the pilot is free
    assert job.epochs(1000, pilot_s=40) == 1


def test_an_epoch_of_timm_is_timed_without_waiting_for_its_end():
    line = "Train: 0 [   {}/50 (  2%)]  Loss: 2.3 (2.3)  Time: {}s, 64.0/s  (0.9s, 64.0/s)  LR: 1e-05  Data: 0.1 (0.1)"
    script = (
        "import itertools, time\n"
        f"for step in itertools.count(): print({line!r}.format(step, 0.5 if step else 9), flush=True); time.sleep(0.01)"
    )
    assert newcomer_sides._epoch_s([sys.executable, "-c", script]) == pytest.approx(50 * 0.5)


def test_claims_are_recorded_and_a_missing_peer_is_named(tmp_path, monkeypatch, capsys):
    def run(folder, wrong, **facts):
        true = ["a", "b"] * 10
        predicted = ["b" if row in wrong else label for row, label in enumerate(true)]
        paths = [f"{row}.png" for row in range(20)]
        table = pd.DataFrame({"path": paths, "predicted_label": predicted, "true_label": true})
        save_predictions(folder, table)
        return {**facts, "hardware": "a machine", "versions": {}}

    asked = []

    def peer(side, python, job):
        asked.append((side, job.seed))
        return run(tmp_path / job.out, {0, 2}, wall_s=50 + job.seed)

    def ours(task, folder, checkout, cores):
        asked.append(("ours", task.seed))
        return run(folder / "test", {0}, wall_s=60)

    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(record, "SUMMARY", tmp_path / "summary.json")
    monkeypatch.setattr(newcomer, "prepare", lambda task, folder: dict.fromkeys(("images", "test", "weights"), ""))
    monkeypatch.setattr(newcomer, "run_peer", peer)
    monkeypatch.setattr(newcomer, "train", ours)
    monkeypatch.setitem(newcomer._LIBRARIES, "autogluon", "a_library_that_is_not_installed")
    words = ["tiny=TRAIN,TEST", "--minutes", "1", "--seeds", "2", "--sides", "probe", "autogluon", "timm", "--record"]
    monkeypatch.setattr(sys, "argv", ["newcomer", *words, "--output", str(tmp_path / "out")])
    newcomer.main()
    printed = capsys.readouterr().out
    assert "autogluon: not measured" in printed
    assert "timm: not measured (no --timm-train)" in printed
    assert asked == [("ours", 0), ("probe", 0), ("probe", 1), ("ours", 1)]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["newcomer_tiny_offline_1min_minus_probe_top1"]["value"] == pytest.approx(5)
    assert summary["newcomer_tiny_offline_1min_minus_probe_top1"]["hardware"] == "a machine"
    wall = summary["newcomer_tiny_offline_1min_probe_wall_s"]
    assert (wall["low"], wall["value"], wall["high"]) == (50, 50.5, 51)
    newcomer.main()
    assert [side for side, _ in asked[4:]] == ["ours", "ours"], "a finished run of a peer is only read"
