"""The recorded study: what is in its table, that it goes on where it was, and what is worked out from it."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from benchmarks import search_found, search_record
from tests.conftest import COLOURS, paint

from efficientnetv2.arch.cost import cost
from efficientnetv2.search.measurement import Measurement
from efficientnetv2.search.reward import Reward
from efficientnetv2.search.spaces import small


def test_pictures_are_shares_of_the_classes_and_always_the_same(class_folders):
    for number in range(16, 32):
        paint(class_folders / "red" / f"red_{number}.jpg", COLOURS["red"], number)
    first, second = (search_record.some_pictures(str(class_folders), 32) for _ in range(2))
    assert first.digest() == second.digest()
    assert np.bincount(first.labels).tolist() == [8, 8, 16], "of blue, green and red: as there are"
    assert {name: int((first.split == name).sum()) for name in set(first.split)} == {
        "train": 26,
        "minival": 6,
    }


def test_more_networks_begin_with_the_same_ones():
    space = small()
    few, many = search_record.drawn(space, 5), search_record.drawn(space, 12)
    assert many[:5] == few
    assert len(set(many)) == 12


@pytest.mark.slow
def test_a_record_goes_on_where_it_was(class_folders, tmp_path):
    table = tmp_path / "record.csv"

    def run(networks: int, *more: str) -> str:
        words = [
            sys.executable, "-m", "benchmarks.search_record", class_folders, "--pictures", "48", "--networks", networks,
            "--set", "epochs=1", "--set", "progressive.image_px=32", "--set", "batch_images=8", "--table", table,
            "--scratch", tmp_path / "scratch", *more,
        ]  # fmt: skip
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run(2).count(" of 2: ") == 2
    first = table.read_text().splitlines()
    said = run(3, "--longer", "2", "--longer-epochs", "2")
    assert said.count(" of 3: ") == 1
    assert "Kendall's tau of 2 networks" in said
    assert table.read_text().splitlines()[:3] == first
    rows = list(csv.DictReader(table.read_text().splitlines()))
    space, about = small(), json.loads(table.with_suffix(".json").read_text())
    for row, point in zip(rows, search_record.drawn(space, 3), strict=True):
        counted = cost(space.decode(point), image_px=32, num_classes=3).total
        assert int(row["parameters"]) == counted.parameters
        assert {name: row[name] for name, _ in space.decisions} == {
            name: str(value) for name, value in space.choices(point).items()
        }
    assert about["counts"] == {"train": 38, "choosing": 10}
    assert Measurement.from_json(about["backbone"]).step_seconds > 0


def test_agreement_is_kendalls_tau_with_its_interval():
    ranks = [{"top1": place / 20, "longer": place / 20} for place in range(20)]
    assert search_record.agreement(ranks)[0] == pytest.approx(1)
    swapped = [{"top1": 0.1, "longer": 0.2}, {"top1": 0.2, "longer": 0.1}, {"top1": 0.3, "longer": 0.3}]
    tau, low, high = search_record.agreement(swapped)
    assert tau == pytest.approx(1 / 3), "two pairs of three agree, one does not"
    assert low < tau < high


def test_the_smallest_network_has_no_smaller_one_in_the_space():
    space = small()
    least = cost(search_found.smallest(space), image_px=64, num_classes=10).total.parameters
    for point in search_record.drawn(space, 300):
        assert cost(space.decode(point), image_px=64, num_classes=10).total.parameters >= least


def test_the_table_takes_differences_seed_by_seed():
    base = Measurement(1_000_000, 1, top1=0.5, step_seconds=0.1)
    runs = {
        "V2-B0": [replace(base, top1=top1) for top1 in (0.5, 0.6, 0.7)],
        "found": [replace(base, top1=top1 + 0.1, step_seconds=0.2) for top1 in (0.5, 0.6, 0.7)],
    }
    rows = search_found.compared(runs)
    assert rows["V2-B0"]["reward"] == pytest.approx(0.6), "over itself its reward is its accuracy"
    slower = Reward().of(replace(base, top1=1.0, step_seconds=0.2), base)
    assert rows["found"]["minus_v2b0"] == pytest.approx(
        [0.6 * slower - 0.5, 0.7 * slower - 0.6, 0.8 * slower - 0.7]
    )
