"""The step times of a recorded study: those that do not hold are measured again, and how far they hold is told."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pytest
import torch
from benchmarks import search_record, search_steps, search_trials
from benchmarks.search_steps import Step, step_errors, time_again, timed, twice
from benchmarks.search_table import MEASURED, Record
from tests.comparisons.test_search_record import BACKBONE, COMMON, PROXY
from tests.messages import mentioning

from efficientnetv2.nas.objective import Measurement
from efficientnetv2.nas.space import small_space
from efficientnetv2.nas.step_time import StepTimeCache, part_names

PART_S = 0.01


def test_two_measurements_agree_where_their_quartiles_meet():
    """By hand: 98 to 102 ms, and from 101.455 or 102.44 on."""
    first = Step(0.1, 0.04)
    assert first.agrees(Step(0.103, 0.03))
    assert Step(0.103, 0.03).agrees(first)
    assert not first.agrees(Step(0.104, 0.03))


def row(number: int, step: str, spread: str, foretold: str) -> dict[str, str]:
    return {"number": str(number), "step_seconds": step, "step_spread": spread, "step_foretold": foretold}


def pair(number: int, step: float | None, spread: float | None) -> dict:
    return {"number": number, "top1": 0.1 * number, "longer": 0.1 * number, "step_seconds": step, "step_spread": spread}


def test_what_is_told_of_steps_by_hand():
    """Of 20 networks 15 are foretold to 10 %, 5 to 20 %; of two measured twice one agrees; two were not measured."""
    rows = [row(number, "0.1", "0.04", "0.11" if number < 15 else "0.12") for number in range(20)]
    rows += [row(20, "0.1", "0.02", ""), row(21, "", "", "")]
    pairs = [pair(0, 0.103, 0.03), pair(1, 0.11, 0.03), pair(2, None, None), pair(21, 0.1, 0.1)]
    assert step_errors(rows) == pytest.approx([0.1] * 15 + [0.2] * 5)
    assert twice(rows, pairs) == [True, False]
    said = search_record.claims(rows, pairs, pairs)
    found = {name: (one["value"], one["n"]) for name, one in said.items()}
    assert found == {
        "search_step_foretold_error": (pytest.approx(0.1), 20),
        "search_step_twice_within_spread": (0.5, 2),
        "search_proxy_tau_ratio": (pytest.approx(1), 4),
    }
    assert set(search_record.CALLED) == set(said)


def test_how_far_a_step_is_foretold_is_told_of_its_first_measurement():
    """The second was measured because the first disagreed; of a row from before only one is there."""
    first = row(0, "0.1", "0.04", "0.1") | {"step_first_seconds": "0.2", "step_first_spread": "0.05"}
    before = row(1, "0.1", "0.04", "0.12") | {"step_first_seconds": "", "step_first_spread": ""}
    assert step_errors([first, before]) == pytest.approx([0.5, 0.2])


def study(folder, slower: dict[int, float]):
    """Of ten networks: the table, how they were tried, and seconds of each step; in the table some took longer."""
    proxy = replace(PROXY, times=folder / "step_times.json")
    kept = Record(folder / "record.csv", small_space())
    times = StepTimeCache(proxy.times, proxy.recipe, num_classes=proxy.num_classes, device=torch.device(proxy.device))
    sums = {}
    for number, point in enumerate(search_trials.drawn(small_space(), 10)):
        network = small_space().decode(point)
        names = part_names(network, image_size=times.image_size, num_classes=proxy.num_classes)
        times.add(network, dict.fromkeys(names, PART_S))
        sums[network] = PART_S * len(names)
        step = {"step_seconds": sums[network] * slower.get(number, 1.0), "step_spread": 0.01}
        kept.add(number, point, dict.fromkeys(MEASURED) | step)
    return kept, proxy, sums


def again(monkeypatch, sums, factors: list[float]) -> list[int]:
    """Measurements so many times as long as the sum of the parts; which networks they are of."""
    came: list[int] = []

    def untrained(network, proxy):
        came.append(list(sums).index(network))
        step = sums[network] * factors.pop(0)
        return Measurement(1, 1, step_seconds=step, step_spread=0.01, failure="not trained")

    monkeypatch.setattr(search_steps, "untrained", untrained)
    return came


def test_steps_of_a_disturbed_hour_are_measured_again(tmp_path, monkeypatch):
    kept, proxy, sums = study(tmp_path, {3: 2.0, 4: 2.0, 5: 2.0})
    came = again(monkeypatch, sums, [1.02, 1.02, 0.98])
    assert time_again(kept, proxy) == []
    assert came == [3, 4, 5]
    steps = [float(one["step_seconds"]) / seconds for one, seconds in zip(kept.rows(), sums.values(), strict=True)]
    assert steps == pytest.approx([1, 1, 1, 1.02, 1.02, 0.98, 1, 1, 1, 1], rel=1e-5)
    assert time_again(kept, proxy) == [], "nothing is left to measure"


def test_a_step_that_comes_out_twice_alike_is_as_long_as_it_is(tmp_path, monkeypatch):
    kept, proxy, sums = study(tmp_path, {7: 1.3})
    came = again(monkeypatch, sums, [1.3])
    assert time_again(kept, proxy) == []
    assert came == [7]


def test_a_step_that_comes_out_otherwise_each_time_stays_in_doubt(tmp_path, monkeypatch):
    kept, proxy, sums = study(tmp_path, {7: 2.0})
    came = again(monkeypatch, sums, [1.6, 1.3])
    assert time_again(kept, proxy) == [7]
    assert came == [7, 7]
    assert float(kept.rows()[7]["step_seconds"]) == pytest.approx(1.3 * list(sums.values())[7], rel=1e-5)


BY = {name: COMMON[name] for name in search_trials.TIMED_BY}


def test_steps_are_told_at_the_pace_of_the_backbone_that_began_them(tmp_path, monkeypatch):
    """Its step took 100 ms then, however long it takes now."""
    kept, proxy, sums = study(tmp_path, {3: 2.0})
    kept.change(5, step_seconds="", step_spread="", top1=0.5)
    kept.about.write_text(json.dumps(COMMON | {"backbone": BACKBONE}))
    paces = []

    def untrained(network, proxy):
        paces.append(proxy.reference)
        return Measurement(1, 1, step_seconds=sums[network], step_spread=0.01, failure="not trained")

    monkeypatch.setattr(search_steps, "untrained", untrained)
    assert timed(kept, proxy, BY) == []
    assert len(paces) > 2
    assert set(map(id, paces)) == {id(paces[0])}
    assert (paces[0].architecture, paces[0].seconds) == (small_space().backbone, 0.1)
    assert paces[0].recipe == proxy.recipe


def test_a_step_that_is_measured_again_keeps_its_first_measurement(tmp_path, monkeypatch):
    kept, proxy, sums = study(tmp_path, {})
    kept.change(3, step_seconds="", step_spread="", top1=0.5)
    kept.about.write_text(json.dumps(COMMON | {"backbone": BACKBONE}))
    monkeypatch.setattr(search_steps, "_TWICE", 0)
    came = again(monkeypatch, sums, [2.0, 1.0])
    assert timed(kept, proxy, BY) == []
    assert came == [3, 3]
    found, whole = kept.rows()[3], list(sums.values())[3]
    assert float(found["step_seconds"]) == pytest.approx(whole, rel=1e-5)
    assert float(found["step_first_seconds"]) == pytest.approx(2 * whole, rel=1e-5)
    assert float(found["step_first_spread"]) == 0.01
    assert step_errors([found]) == pytest.approx([0.5], rel=1e-4)
    assert kept.rows()[0]["step_first_seconds"] == "", "it was timed before"
    kept.forget_steps()
    assert {row["step_first_seconds"] + row["step_first_spread"] for row in kept.rows()} == {""}


def test_a_table_from_before_first_measurements_were_kept_is_gone_on_with(tmp_path):
    kept, *_ = study(tmp_path, {})
    columns = [name for name in kept.columns if not name.startswith("step_first")]
    rows = kept.rows()
    with kept.table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    assert "step_first_seconds" not in kept.rows()[0]
    kept.change(4, top1=0.5)
    assert kept.rows() == [row | ({"top1": "0.5"} if row["number"] == "4" else {}) for row in rows]


def test_steps_are_gone_on_with_by_the_code_and_machine_that_began_them(tmp_path, monkeypatch):
    kept = Record(tmp_path / "record.csv", small_space())
    kept.about.write_text(json.dumps(COMMON | {"backbone": BACKBONE}))
    assert timed(kept, PROXY, BY) == []
    for name in BY:
        with pytest.raises(SystemExit, match=mentioning(name, "--retime")):
            timed(kept, PROXY, BY | {name: "other"})


def test_every_step_is_timed_and_some_twice_and_all_anew_where_that_is_asked_for(tmp_path, monkeypatch):
    """Ten networks, of which one diverged: nine steps, the sums of their parts; then by another code."""
    kept, proxy, sums = study(tmp_path, {})
    proxy.times.unlink()
    for number in range(10):
        kept.change(number, step_seconds="", step_spread="", top1="" if number == 4 else 0.5)
    kept.about.write_text(json.dumps({"pictures": 3000}))
    monkeypatch.setattr(search_steps, "_TWICE", 3)
    backbone = Measurement.from_json(BACKBONE)
    monkeypatch.setattr(search_steps, "backbone_measured", lambda space, proxy: backbone)
    came: list[int] = []

    def untrained(network, proxy):
        came.append(list(sums).index(network))
        times = StepTimeCache(proxy.times, proxy.recipe, num_classes=proxy.num_classes, device=torch.device("cpu"))
        names = part_names(network, image_size=times.image_size, num_classes=proxy.num_classes)
        times.add(network, dict.fromkeys(names, PART_S))
        return Measurement(1, 1, step_seconds=sums[network], step_spread=0.02, failure="not trained")

    monkeypatch.setattr(search_steps, "untrained", untrained)
    trained = [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert timed(kept, proxy, BY) == []
    assert came == [*trained, 0, 5, 9]
    assert kept.common == {"pictures": 3000, **BY, "backbone": BACKBONE}
    rows = kept.rows()
    steps = [float(rows[number]["step_seconds"]) for number in trained]
    assert steps == pytest.approx([list(sums.values())[number] for number in trained], rel=1e-5)
    assert rows[4]["step_seconds"] == rows[4]["step_first_seconds"] == ""
    assert all(rows[number]["step_first_seconds"] == rows[number]["step_seconds"] for number in trained)
    assert rows[0]["step_foretold"] == "", "nobody else's parts were known"
    assert twice(rows, kept.timed_twice()) == [True] * 3
    assert timed(kept, proxy, BY) == []
    assert len(came) == 12, "nothing is measured again"
    assert timed(kept, proxy, BY | {"code": "other"}, retime=True) == []
    assert came[12:] == came[:12]
    assert kept.common["code"] == "other"


def test_another_line_of_code_is_another_code(tmp_path):
    (tmp_path / "search").mkdir()
    (tmp_path / "search/child.py").write_text("1\n")
    first = search_trials.code(tmp_path)
    (tmp_path / "notes.txt").write_text("no code")
    assert search_trials.code(tmp_path) == first
    (tmp_path / "search/child.py").write_text("2\n")
    assert search_trials.code(tmp_path) != first
