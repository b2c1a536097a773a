"""Adaptive and constant regularization: recipes of the arms, tuning, comparison and record."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from benchmarks import adaptive, record, regimes, small_tables
from benchmarks.adaptive import ADAPTIVE, GROWING, RANDOM, REGIME, VANILLA, cell, claims, compared, tuned
from benchmarks.paper import page as paper_page
from benchmarks.paper.runs import Runs
from benchmarks.paper.table import Table
from benchmarks.regimes import REGIMES
from tests.messages import mentions
from tests.recipes import with_overrides

from efficientnetv2.data.config import DataConfig
from efficientnetv2.training.recipes import get_recipe


def recipe(order, mode, strength="strong"):
    return with_overrides(get_recipe("quick"), cell(order, mode, "run", strength, REGIME, 60, "cpu").settings)


@pytest.mark.parametrize("order", [GROWING, RANDOM])
def test_arms_differ_only_in_the_initial_regularization(order):
    vanilla, adaptive = recipe(order, VANILLA), recipe(order, ADAPTIVE)
    assert vanilla.model_copy(update={"progressive": adaptive.progressive}) == adaptive
    stages = {mode: [recipe_.progressive.stage(number) for number in range(4)] for mode, recipe_ in
              ((VANILLA, vanilla), (ADAPTIVE, adaptive))}  # fmt: skip
    assert [stage.image_size for stage in stages[VANILLA]] == [48, 64, 80, 96]
    assert [stage.image_size for stage in stages[ADAPTIVE]] == [48, 64, 80, 96]
    assert [(stage.randaugment, stage.dropout) for stage in stages[VANILLA]] == [(15, 0.3)] * 4
    assert [stage.randaugment for stage in stages[ADAPTIVE]] == pytest.approx([5, 25 / 3, 35 / 3, 15], abs=1e-3)
    assert [stage.dropout for stage in stages[ADAPTIVE]] == pytest.approx([0.1, 0.5 / 3, 0.7 / 3, 0.3], abs=1e-3)
    assert stages[VANILLA][-1] == stages[ADAPTIVE][-1]


def test_random_sizes_are_drawn_as_often_as_in_table_13():
    assert recipe(RANDOM, VANILLA).progressive.random_draws == 350 // 8 + 1 == 44
    assert recipe(GROWING, VANILLA).progressive.random_draws is None


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Runs that are best with "light" under constant and with "middle" under adaptive regularization."""
    image_parts, requests = [], []
    rows_of = lambda dataset, split, count, seed: [  # noqa: E731
        {"train": 0, "val": 100_000}[split] + seed + row for row in range(count or 9)
    ]
    monkeypatch.setattr(regimes, "rows_of", rows_of)
    monkeypatch.setattr(regimes, "write_pictures", lambda file, *parts: image_parts.append(parts[1:]) or file)

    def fake_run(runs, cell, seed):
        schedule = with_overrides(get_recipe("quick"), cell.settings).progressive
        is_adaptive = schedule.stage(0).randaugment != schedule.last.randaugment
        requests.append((schedule.order, is_adaptive, schedule.last.randaugment, seed, runs.source.data))
        best = 10 if is_adaptive else 5
        return {"top1": 0.5 + 0.01 * is_adaptive - abs((schedule.last.randaugment or 0) - best) / 100 + seed / 100}

    monkeypatch.setattr(adaptive, "measured", fake_run)
    return Runs(DataConfig("x"), 2, "none", "cpu", tmp_path, print), requests, image_parts


def test_each_arm_is_tuned_separately(runs):
    all_runs, requests, image_parts = runs
    arms = tuned(None, REGIME, all_runs, [GROWING, RANDOM])["arms"]
    assert {order: {mode: arm["chosen"] for mode, arm in modes.items()} for order, modes in arms.items()} == {
        order: {VANILLA: "light", ADAPTIVE: "middle"} for order in (GROWING, RANDOM)
    }
    # 5 points below the best stops the search, so "middle" is the strongest constant regularization.
    assert list(arms[GROWING][VANILLA]["tried"]) == ["none", "slight", "light", "middle"]
    assert list(arms[GROWING][ADAPTIVE]["tried"]) == ["light", "middle", "strong"]
    (train, selection), *more = image_parts
    assert not more
    assert not set(train) & set(selection)
    assert (len(train), len(selection)) == (1000, 2000)
    assert {data.rsplit("/")[-1] for *_, data in requests} == {"tuning.csv"}


def test_single_order_is_tuned_with_the_same_candidates(runs):
    all_runs, requests, _ = runs
    both = tuned(None, REGIME, all_runs, [GROWING, RANDOM])["arms"]
    requests.clear()
    assert tuned(None, REGIME, all_runs, [RANDOM])["arms"] == {RANDOM: both[RANDOM]}
    assert {order for order, *_ in requests} == {"random"}


def test_every_seed_has_other_images_shared_by_all_arms(runs):
    all_runs, requests, image_parts = runs
    choices = {order: {VANILLA: "none", ADAPTIVE: "middle"} for order in (GROWING, RANDOM)}
    found = compared(None, REGIME, choices, all_runs, [GROWING, RANDOM])
    assert [len(rows) for modes in found.values() for rows in modes.values()] == [2] * 4
    assert {(seed, data.rsplit("/")[-1]) for *_, seed, data in requests} == {
        (0, "pictures_0.csv"),
        (1, "pictures_1.csv"),
    }
    (train, val), (other_train, other_val) = image_parts
    assert train[0] != other_train[0]
    assert val == other_val
    assert min(val) >= 100_000
    assert {name: (claim.value, claim.n) for name, claim in claims(found).items()} == {
        "adaptive_top1_gain_b0_imagenette": (pytest.approx(6.0), 2),
        "adaptive_top1_gain_b0_imagenette_random_resize": (pytest.approx(6.0), 2),
    }


def measured_rows(*top1):
    return [{"top1": value, "train_s": 60.0, "hardware": f"{number + 2} cores"} for number, value in enumerate(top1)]


def test_record_is_table_13_with_the_values_of_the_paper(tmp_path, monkeypatch):
    for module, name in ((adaptive, "RESULTS"), (paper_page, "RECORDS")):
        monkeypatch.setattr(module, name, tmp_path)
    monkeypatch.setattr(record, "SUMMARY", tmp_path / "summary.json")
    (tmp_path / "summary.json").write_text("{}")
    monkeypatch.setattr(paper_page, "write", lambda: None)
    found = {
        order: {VANILLA: measured_rows(0.5, 0.52), ADAPTIVE: measured_rows(0.53, 0.53)} for order in (GROWING, RANDOM)
    }
    choices = {order: {VANILLA: "none", ADAPTIVE: "light"} for order in (GROWING, RANDOM)}
    adaptive._record(found, {"arms": {}}, choices, 2)
    table = Table.from_json(record_ := json.loads((tmp_path / "13_small.json").read_text()))
    first = table.rows[0]
    assert (first.paper["vanilla"].mean, first.paper["adaptive"].mean) == (84.3, 85.1)
    assert (first.ours["vanilla"].mean, first.ours["adaptive"].mean) == (pytest.approx(51), pytest.approx(53))
    assert record_["command"] == "python -m benchmarks.adaptive IMAGENETTE --seeds 2"
    assert "growing, vanilla: none; growing, adaptive: light; random, vanilla: none" in record_["ours"]
    assert mentions(record_["ours"], "RandAugment", "5", "0.1")
    assert mentions(record_["ours"], "1.4", "44")
    claim = json.loads((tmp_path / "summary.json").read_text())["adaptive_top1_gain_b0_imagenette"]
    on = "2 cores and 3 cores"  # the hardware of the runs, not of the machine that records them
    assert (claim["n"], claim["hardware"], record_["hardware"]) == (2, on, on)


def test_table_12_has_the_tuned_arms():
    found = {"fixed": measured_rows(0.6, 0.62), "progressive": measured_rows(0.61, 0.65)}
    regime = replace(REGIMES["resnet50"], seeds=2)
    table = small_tables.table_12(found, {"fixed": "none 0.002", "progressive": "light 0.002"}, regime)
    assert [row.name for row in table.rows] == [
        "resnet50_224", "resnet50_380", "resnet152_380", "efficientnet_b4", "efficientnet_b5",
    ]  # fmt: skip
    first, second = table.rows[:2]
    assert first.ours["progressive, top-1 %"].values == pytest.approx((61, 65))
    assert first.ours["baseline, minutes"].values == (1.0, 1.0)
    assert first.paper["progressive, hours"].mean == 3.5
    assert second.ours["baseline, top-1 %"].why == "not run at scale small"
    assert "all pictures of Imagenette for 6 epochs, sizes between 48 and 96 px, 2 seeds" in table.ours_note
    assert "baseline: none 0.002; progressive: light 0.002" in table.ours_note
