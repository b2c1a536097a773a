"""Adaptive against vanilla regularization: what differs between the arms, what is chosen, claimed and recorded."""

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


def recipe(order, kind, strength="strong"):
    return with_overrides(get_recipe("quick"), cell(order, kind, "run", strength, REGIME, 60, "cpu").settings)


@pytest.mark.parametrize("order", [GROWING, RANDOM])
def test_the_kinds_differ_in_nothing_but_where_regularization_begins(order):
    vanilla, grows = recipe(order, VANILLA), recipe(order, ADAPTIVE)
    assert vanilla.model_copy(update={"progressive": grows.progressive}) == grows
    stages = {kind: [made.progressive.stage(number) for number in range(4)] for kind, made in
              ((VANILLA, vanilla), (ADAPTIVE, grows))}  # fmt: skip
    assert [stage.image_size for stage in stages[VANILLA]] == [48, 64, 80, 96]
    assert [stage.image_size for stage in stages[ADAPTIVE]] == [48, 64, 80, 96]
    assert [(stage.randaugment, stage.dropout) for stage in stages[VANILLA]] == [(15, 0.3)] * 4
    assert [stage.randaugment for stage in stages[ADAPTIVE]] == pytest.approx([5, 25 / 3, 35 / 3, 15], abs=1e-3)
    assert [stage.dropout for stage in stages[ADAPTIVE]] == pytest.approx([0.1, 0.5 / 3, 0.7 / 3, 0.3], abs=1e-3)
    assert stages[VANILLA][-1] == stages[ADAPTIVE][-1]


def test_sizes_are_drawn_as_often_as_in_table_13():
    assert recipe(RANDOM, VANILLA).progressive.random_draws == 350 // 8 + 1 == 44
    assert recipe(GROWING, VANILLA).progressive.random_draws is None


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Runs that are best with strength "light" where regularization stands still, and with "middle" where it grows."""
    learns, asked = [], []
    drawn = lambda dataset, split, count, seed: [  # noqa: E731
        {"train": 0, "val": 100_000}[split] + seed + row for row in range(count or 9)
    ]
    monkeypatch.setattr(regimes, "rows_of", drawn)
    monkeypatch.setattr(regimes, "write_pictures", lambda file, *parts: learns.append(parts[1:]) or file)

    def found(runs, cell, seed):
        made = with_overrides(get_recipe("quick"), cell.settings).progressive
        grows = made.stage(0).randaugment != made.last.randaugment
        asked.append((made.order, grows, made.last.randaugment, seed, runs.source.data))
        best = 10 if grows else 5
        return {"top1": 0.5 + 0.01 * grows - abs((made.last.randaugment or 0) - best) / 100 + seed / 100}

    monkeypatch.setattr(adaptive, "measured", found)
    return Runs(DataConfig("x"), 2, "none", "cpu", tmp_path, print), asked, learns


def test_each_arm_is_tuned_by_itself_and_adaptive_regularization_is_some(runs):
    together, asked, learns = runs
    arms = tuned(None, REGIME, together, [GROWING, RANDOM])["arms"]
    assert {order: {kind: one["chosen"] for kind, one in kinds.items()} for order, kinds in arms.items()} == {
        order: {VANILLA: "light", ADAPTIVE: "middle"} for order in (GROWING, RANDOM)
    }
    # 5 points below the best is hopeless, so that nothing is stronger than "middle" without growing.
    assert list(arms[GROWING][VANILLA]["tried"]) == ["none", "slight", "light", "middle"]
    assert list(arms[GROWING][ADAPTIVE]["tried"]) == ["light", "middle", "strong"]
    (fitting, choosing), *more = learns
    assert not more
    assert not set(fitting) & set(choosing)
    assert (len(fitting), len(choosing)) == (1000, 2000)
    assert {data.rsplit("/")[-1] for *_, data in asked} == {"tuning.csv"}


def test_one_order_alone_is_tuned_with_the_same_tries(runs):
    together, asked, _ = runs
    whole = tuned(None, REGIME, together, [GROWING, RANDOM])["arms"]
    asked.clear()
    assert tuned(None, REGIME, together, [RANDOM])["arms"] == {RANDOM: whole[RANDOM]}
    assert {order for order, *_ in asked} == {"random"}


def test_every_seed_has_pictures_of_its_own_which_all_arms_share(runs):
    together, asked, learns = runs
    choices = {order: {VANILLA: "none", ADAPTIVE: "middle"} for order in (GROWING, RANDOM)}
    found = compared(None, REGIME, choices, together, [GROWING, RANDOM])
    assert [len(rows) for kinds in found.values() for rows in kinds.values()] == [2] * 4
    assert {(seed, data.rsplit("/")[-1]) for *_, seed, data in asked} == {(0, "pictures_0.csv"), (1, "pictures_1.csv")}
    (learning, answering), (others, again) = learns
    assert learning[0] != others[0]
    assert answering == again
    assert min(answering) >= 100_000
    assert {name: (figure.value, figure.n) for name, figure in claims(found).items()} == {
        "adaptive_top1_gain_b0_imagenette": (pytest.approx(6.0), 2),
        "adaptive_top1_gain_b0_imagenette_random_resize": (pytest.approx(6.0), 2),
    }


def rows(*top1):
    return [{"top1": one, "train_s": 60.0, "hardware": f"{number + 2} cores"} for number, one in enumerate(top1)]


def test_a_record_is_table_13_beside_the_papers(tmp_path, monkeypatch):
    for module, name in ((adaptive, "RESULTS"), (paper_page, "RECORDS")):
        monkeypatch.setattr(module, name, tmp_path)
    monkeypatch.setattr(record, "SUMMARY", tmp_path / "summary.json")
    (tmp_path / "summary.json").write_text("{}")
    monkeypatch.setattr(paper_page, "write", lambda: None)
    found = {order: {VANILLA: rows(0.5, 0.52), ADAPTIVE: rows(0.53, 0.53)} for order in (GROWING, RANDOM)}
    choices = {order: {VANILLA: "none", ADAPTIVE: "light"} for order in (GROWING, RANDOM)}
    adaptive._record(found, {"arms": {}}, choices, 2)
    made = Table.from_json(kept := json.loads((tmp_path / "13_small.json").read_text()))
    first = made.rows[0]
    assert (first.paper["vanilla"].mean, first.paper["adaptive"].mean) == (84.3, 85.1)
    assert (first.ours["vanilla"].mean, first.ours["adaptive"].mean) == (pytest.approx(51), pytest.approx(53))
    assert kept["command"] == "python -m benchmarks.adaptive IMAGENETTE --seeds 2"
    assert "growing, vanilla: none; growing, adaptive: light; random, vanilla: none" in kept["ours"]
    assert mentions(kept["ours"], "RandAugment", "5", "0.1")
    assert mentions(kept["ours"], "1.4", "44")
    claim = json.loads((tmp_path / "summary.json").read_text())["adaptive_top1_gain_b0_imagenette"]
    on = "2 cores and 3 cores"  # of the machines that the runs were made on, not of that which records
    assert (claim["n"], claim["hardware"], kept["hardware"]) == (2, on, on)


def test_table_12_has_the_sides_that_were_tuned():
    found = {"fixed": rows(0.6, 0.62), "progressive": rows(0.61, 0.65)}
    regime = replace(REGIMES["resnet50"], seeds=2)
    made = small_tables.table_12(found, {"fixed": "none 0.002", "progressive": "light 0.002"}, regime)
    assert [row.name for row in made.rows] == [
        "resnet50_224", "resnet50_380", "resnet152_380", "efficientnet_b4", "efficientnet_b5",
    ]  # fmt: skip
    first, second = made.rows[:2]
    assert first.ours["progressive, top-1 %"].values == pytest.approx((61, 65))
    assert first.ours["baseline, minutes"].values == (1.0, 1.0)
    assert first.paper["progressive, hours"].mean == 3.5
    assert second.ours["baseline, top-1 %"].why == "not run at scale small"
    assert "all pictures of Imagenette for 6 epochs, sizes between 48 and 96 px, 2 seeds" in made.ours_note
    assert "baseline: none 0.002; progressive: light 0.002" in made.ours_note
