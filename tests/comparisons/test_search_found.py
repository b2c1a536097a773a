"""The complete search: from images to the record of the architecture."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import mean

import pytest
from benchmarks import record, search_found, search_trials
from benchmarks.search_table import MEASURED, Record
from tests.conftest import COLORS, paint

from efficientnetv2.nas.objective import Measurement
from efficientnetv2.nas.space import small_space

SETTINGS = ["epochs=1", "progressive.image_size=32", "batch_size=8"]
TRIALS = 2


def write_table(images: Path, folder: Path) -> Path:
    """A table of two models, as if recorded on these images and this machine."""
    space, used = small_space(), search_trials.some_pictures(str(images), 48)
    requested, table = search_trials.asked_recipe(SETTINGS), folder / "record.csv"
    recipe = search_trials.settled_recipe(requested, used.subset("train"), space, table.with_suffix(".json"))
    common = search_trials.in_common(space, requested, used, search_trials.proxy_of(used, recipe, folder))
    backbone = Measurement(1_000_000, 1, step_seconds=0.1, failure="not trained").to_json()
    about = common | {"recipe": recipe.to_json(), "backbone": backbone}
    table.with_suffix(".json").write_text(json.dumps(about))
    for number, point in enumerate(search_trials.drawn(space, TRIALS)):
        values = {"top1": 0.5 + 0.1 * number, "step_seconds": 0.1, "parameters": 1_000_000}
        Record(table, space).add(number, point, dict.fromkeys(MEASURED) | values)
    return table


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recorded", "workers"), [(False, 1), (True, 2)], ids=["two studies", "a study of two workers and a table"]
)
def test_search_is_recorded(recorded, workers, tmp_path, monkeypatch):
    """48 images, one or two trials per sampler, one epoch; the number of random trials is recorded."""
    images, results = tmp_path / "images", tmp_path / "results"
    for name, color in COLORS.items():
        for number in range(20):
            split = "train" if number < 16 else "val"
            paint(images / split / name / f"{name}_{number}.jpg", color, number)
    results.mkdir()
    for module in (search_found, record):
        monkeypatch.setattr(module, "RESULTS", results)
    monkeypatch.setattr(record, "SUMMARY", results / "summary.json")
    monkeypatch.setattr(search_found, "SEEDS", (1, 2))
    trials = TRIALS if recorded else 1
    monkeypatch.setattr(search_found, "ENDLESS", trials)
    args: list[object] = [images, "--pictures", 48, "--minutes", 60, "--full-epochs", 1, "--record"]
    args += ["--output", tmp_path / "out", "--workers", workers]
    args += [option for setting in SETTINGS for option in ("--set", setting)]
    if recorded:
        args += ["--recorded", write_table(images, tmp_path)]
    monkeypatch.setattr(sys, "argv", ["search_found", *map(str, args)])
    result, train = Measurement(1_000_000, 1, top1=0.5, step_seconds=0.1), search_found.trained

    def trained(architecture, proxy, seed):
        """With a table, one of the two seeds is trained, two architectures at a time."""
        return train(architecture, proxy, seed) if recorded and seed == 1 else result

    monkeypatch.setattr(search_found, "trained", trained)
    search_found.main()
    saved = json.loads((results / "search_found.json").read_text())
    assert saved["trials"] == {"policy": trials, "random": trials}
    assert saved["recorded"] == ("record.csv" if recorded else None)
    assert list(saved["networks"]) == ["found", "random search's best", "V2-B0", "smallest"]
    assert saved["networks"]["V2-B0"]["minus_v2b0"] == [0, 0]
    found = saved["networks"]["found"]
    assert 0 < found["top1"] <= 1
    claim = json.loads((results / "summary.json").read_text())["search_found_minus_v2b0_reward"]
    assert (claim["value"], claim["n"]) == (pytest.approx(mean(found["minus_v2b0"])), 2)
    assert claim["low"] <= claim["value"] <= claim["high"]
    assert ("--recorded record.csv" in claim["command"]) == recorded
