"""Step times of a recorded study: uncertain step times are measured again, and errors are reported."""

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


def test_measurements_agree_if_their_quartiles_overlap():
    """By hand: 98 to 102 ms, and from 101.455 or 102.44 ms."""
    first = Step(0.1, 0.04)
    assert first.agrees(Step(0.103, 0.03))
    assert Step(0.103, 0.03).agrees(first)
    assert not first.agrees(Step(0.104, 0.03))


def row(number: int, step: str, spread: str, predicted: str) -> dict[str, str]:
    return {"number": str(number), "step_seconds": step, "step_spread": spread, "step_foretold": predicted}


def pair(number: int, step: float | None, spread: float | None) -> dict:
    return {"number": number, "top1": 0.1 * number, "longer": 0.1 * number, "step_seconds": step, "step_spread": spread}


def test_claims_of_step_times_by_hand():
    """15 of 20 steps are predicted within 10 %, 5 within 20 %; one of two repeated steps agrees."""
    rows = [row(number, "0.1", "0.04", "0.11" if number < 15 else "0.12") for number in range(20)]
    rows += [row(20, "0.1", "0.02", ""), row(21, "", "", "")]
    pairs = [pair(0, 0.103, 0.03), pair(1, 0.11, 0.03), pair(2, None, None), pair(21, 0.1, 0.1)]
    assert step_errors(rows) == pytest.approx([0.1] * 15 + [0.2] * 5)
    assert twice(rows, pairs) == [True, False]
    results = search_record.claims(rows, pairs, pairs)
    found = {name: (claim["value"], claim["n"]) for name, claim in results.items()}
    assert found == {
        "search_step_foretold_error": (pytest.approx(0.1), 20),
        "search_step_twice_within_spread": (0.5, 2),
        "search_proxy_tau_ratio": (pytest.approx(1), 4),
    }
    assert set(search_record.CALLED) == set(results)


def test_error_is_computed_from_the_first_measurement():
    """The second step was measured because the first disagreed. Older rows have only one measurement."""
    first = row(0, "0.1", "0.04", "0.1") | {"step_first_seconds": "0.2", "step_first_spread": "0.05"}
    older = row(1, "0.1", "0.04", "0.12") | {"step_first_seconds": "", "step_first_spread": ""}
    assert step_errors([first, older]) == pytest.approx([0.5, 0.2])


def study(folder, factors: dict[int, float]):
    """Ten models: the table, the proxy, and seconds of each step; some step times in the table are longer."""
    proxy = replace(PROXY, times=folder / "step_times.json")
    record_ = Record(folder / "record.csv", small_space())
    times = StepTimeCache(proxy.times, proxy.recipe, num_classes=proxy.num_classes, device=torch.device(proxy.device))
    sums = {}
    for number, point in enumerate(search_trials.drawn(small_space(), 10)):
        architecture = small_space().decode(point)
        names = part_names(architecture, image_size=times.image_size, num_classes=proxy.num_classes)
        times.add(architecture, dict.fromkeys(names, PART_S))
        sums[architecture] = PART_S * len(names)
        step = {"step_seconds": sums[architecture] * factors.get(number, 1.0), "step_spread": 0.01}
        record_.add(number, point, dict.fromkeys(MEASURED) | step)
    return record_, proxy, sums


def simulate_steps(monkeypatch, sums, factors: list[float]) -> list[int]:
    """Step times as multiples of the sum of the parts; returns the numbers of the measured models."""
    measured: list[int] = []

    def untrained(architecture, proxy):
        measured.append(list(sums).index(architecture))
        step = sums[architecture] * factors.pop(0)
        return Measurement(1, 1, step_seconds=step, step_spread=0.01, failure="not trained")

    monkeypatch.setattr(search_steps, "untrained", untrained)
    return measured


def test_steps_of_a_busy_hour_are_measured_again(tmp_path, monkeypatch):
    record_, proxy, sums = study(tmp_path, {3: 2.0, 4: 2.0, 5: 2.0})
    measured = simulate_steps(monkeypatch, sums, [1.02, 1.02, 0.98])
    assert time_again(record_, proxy) == []
    assert measured == [3, 4, 5]
    steps = [float(row_["step_seconds"]) / seconds for row_, seconds in zip(record_.rows(), sums.values(), strict=True)]
    assert steps == pytest.approx([1, 1, 1, 1.02, 1.02, 0.98, 1, 1, 1, 1], rel=1e-5)
    assert time_again(record_, proxy) == [], "nothing to measure"


def test_step_with_two_equal_measurements_is_accepted(tmp_path, monkeypatch):
    record_, proxy, sums = study(tmp_path, {7: 1.3})
    measured = simulate_steps(monkeypatch, sums, [1.3])
    assert time_again(record_, proxy) == []
    assert measured == [7]


def test_step_with_three_different_measurements_is_uncertain(tmp_path, monkeypatch):
    record_, proxy, sums = study(tmp_path, {7: 2.0})
    measured = simulate_steps(monkeypatch, sums, [1.6, 1.3])
    assert time_again(record_, proxy) == [7]
    assert measured == [7, 7]
    assert float(record_.rows()[7]["step_seconds"]) == pytest.approx(1.3 * list(sums.values())[7], rel=1e-5)


TIMED_BY = {name: COMMON[name] for name in search_trials.TIMED_BY}


def test_steps_are_relative_to_the_first_measured_backbone(tmp_path, monkeypatch):
    """Its step took 100 ms then, independent of its time now."""
    record_, proxy, sums = study(tmp_path, {3: 2.0})
    record_.change(5, step_seconds="", step_spread="", top1=0.5)
    record_.about.write_text(json.dumps(COMMON | {"backbone": BACKBONE}))
    references = []

    def untrained(architecture, proxy):
        references.append(proxy.reference)
        return Measurement(1, 1, step_seconds=sums[architecture], step_spread=0.01, failure="not trained")

    monkeypatch.setattr(search_steps, "untrained", untrained)
    assert timed(record_, proxy, TIMED_BY) == []
    assert len(references) > 2
    assert set(map(id, references)) == {id(references[0])}
    assert (references[0].architecture, references[0].seconds) == (small_space().backbone, 0.1)
    assert references[0].recipe == proxy.recipe


def test_repeated_step_keeps_its_first_measurement(tmp_path, monkeypatch):
    record_, proxy, sums = study(tmp_path, {})
    record_.change(3, step_seconds="", step_spread="", top1=0.5)
    record_.about.write_text(json.dumps(COMMON | {"backbone": BACKBONE}))
    monkeypatch.setattr(search_steps, "_TWICE", 0)
    measured = simulate_steps(monkeypatch, sums, [2.0, 1.0])
    assert timed(record_, proxy, TIMED_BY) == []
    assert measured == [3, 3]
    found, seconds = record_.rows()[3], list(sums.values())[3]
    assert float(found["step_seconds"]) == pytest.approx(seconds, rel=1e-5)
    assert float(found["step_first_seconds"]) == pytest.approx(2 * seconds, rel=1e-5)
    assert float(found["step_first_spread"]) == 0.01
    assert step_errors([found]) == pytest.approx([0.5], rel=1e-4)
    assert record_.rows()[0]["step_first_seconds"] == "", "timed earlier"
    record_.forget_steps()
    assert {row["step_first_seconds"] + row["step_first_spread"] for row in record_.rows()} == {""}


def test_table_of_an_older_version_is_continued(tmp_path):
    record_, *_ = study(tmp_path, {})
    columns = [name for name in record_.columns if not name.startswith("step_first")]
    rows = record_.rows()
    with record_.table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    assert "step_first_seconds" not in record_.rows()[0]
    record_.change(4, top1=0.5)
    assert record_.rows() == [row | ({"top1": "0.5"} if row["number"] == "4" else {}) for row in rows]


def test_steps_are_continued_only_by_the_same_code_and_machine(tmp_path, monkeypatch):
    record_ = Record(tmp_path / "record.csv", small_space())
    record_.about.write_text(json.dumps(COMMON | {"backbone": BACKBONE}))
    assert timed(record_, PROXY, TIMED_BY) == []
    for name in TIMED_BY:
        with pytest.raises(SystemExit, match=mentioning(name, "--retime")):
            timed(record_, PROXY, TIMED_BY | {name: "other"})


def test_every_step_is_timed_and_some_twice(tmp_path, monkeypatch):
    """Ten models, one of them diverged: nine steps. With other code and --retime all are timed again."""
    record_, proxy, sums = study(tmp_path, {})
    proxy.times.unlink()
    for number in range(10):
        record_.change(number, step_seconds="", step_spread="", top1="" if number == 4 else 0.5)
    record_.about.write_text(json.dumps({"pictures": 3000}))
    monkeypatch.setattr(search_steps, "_TWICE", 3)
    backbone = Measurement.from_json(BACKBONE)
    monkeypatch.setattr(search_steps, "backbone_measured", lambda space, proxy: backbone)
    measured: list[int] = []

    def untrained(architecture, proxy):
        measured.append(list(sums).index(architecture))
        times = StepTimeCache(proxy.times, proxy.recipe, num_classes=proxy.num_classes, device=torch.device("cpu"))
        names = part_names(architecture, image_size=times.image_size, num_classes=proxy.num_classes)
        times.add(architecture, dict.fromkeys(names, PART_S))
        return Measurement(1, 1, step_seconds=sums[architecture], step_spread=0.02, failure="not trained")

    monkeypatch.setattr(search_steps, "untrained", untrained)
    trained = [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert timed(record_, proxy, TIMED_BY) == []
    assert measured == [*trained, 0, 5, 9]
    assert record_.common == {"pictures": 3000, **TIMED_BY, "backbone": BACKBONE}
    rows = record_.rows()
    steps = [float(rows[number]["step_seconds"]) for number in trained]
    assert steps == pytest.approx([list(sums.values())[number] for number in trained], rel=1e-5)
    assert rows[4]["step_seconds"] == rows[4]["step_first_seconds"] == ""
    assert all(rows[number]["step_first_seconds"] == rows[number]["step_seconds"] for number in trained)
    assert rows[0]["step_foretold"] == "", "no parts of other models were known"
    assert twice(rows, record_.timed_twice()) == [True] * 3
    assert timed(record_, proxy, TIMED_BY) == []
    assert len(measured) == 12, "no step is repeated"
    assert timed(record_, proxy, TIMED_BY | {"code": "other"}, retime=True) == []
    assert measured[12:] == measured[:12]
    assert record_.common["code"] == "other"


def test_changed_code_has_another_hash(tmp_path):
    (tmp_path / "search").mkdir()
    (tmp_path / "search/child.py").write_text("1\n")
    first = search_trials.code(tmp_path)
    (tmp_path / "notes.txt").write_text("not code")
    assert search_trials.code(tmp_path) == first
    (tmp_path / "search/child.py").write_text("2\n")
    assert search_trials.code(tmp_path) != first
