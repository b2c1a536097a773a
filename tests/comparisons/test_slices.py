"""Programs in slices: one runs at each moment, and its time does not contain that of the others."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from functools import partial

import pytest
from benchmarks import slices
from benchmarks.slices import Run, run_in_slices
from tests.messages import mentioning

WORK_S, TICK_S = 1.2, 0.01


def work(ticks_file, seconds):
    """Sleep in ticks, and store when each tick was. A child process of the program does the ticks."""
    code = (
        "import sys, time\n"
        "with open(sys.argv[1], 'w', buffering=1) as file:\n"
        "    for _ in range(int(sys.argv[2])):\n"
        f"        time.sleep({TICK_S})\n"
        "        print(time.perf_counter(), file=file)\n"
    )
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, str(ticks_file), str(round(seconds / TICK_S))], check=True)
    return {"top1": 0.5, "spans": [(began, time.perf_counter())]}


def failing():
    raise ValueError("of this run")


@pytest.fixture(autouse=True)
def _short_pace(monkeypatch):
    monkeypatch.setattr(slices, "_PACE_S", 0.01)


def test_one_program_runs_at_each_moment_with_its_children(tmp_path):
    names = ("short", "long")
    runs = [
        Run(tmp_path / "rows" / f"{name}.json", partial(work, tmp_path / name, seconds), {"seed": 3}, 1.0)
        for name, seconds in zip(names, (WORK_S, 2 * WORK_S), strict=True)
    ]
    run_in_slices(runs, slice_s=0.2)
    rows = [json.loads(run.file.read_text()) for run in runs]
    assert [(row["file"], row["seed"]) for row in rows] == [("short.json", 3), ("long.json", 3)]
    assert all("spans" not in row and row["pace"][0] > 0 and row["versions"]["torch"] for row in rows)
    # A child's start is in its span too; nothing of the other program is.
    for row, seconds in zip(rows, (WORK_S, 2 * WORK_S), strict=True):
        assert 0.9 * seconds < row["train_s"] < seconds + WORK_S / 2
    ticks = sorted((float(line), name) for name in names for line in (tmp_path / name).read_text().split())
    turns = [name for name, _ in itertools.groupby(ticks, key=lambda tick: tick[1])]
    assert 4 <= len(turns) <= sum(row["slices"] for row in rows) + 1, "a few long turns, never both at once"


def test_failing_program_does_not_end_the_others(tmp_path, capfd):
    runs = [
        Run(tmp_path / "good.json", partial(work, tmp_path / "ticks", WORK_S), {}, 1.0),
        Run(tmp_path / "bad.json", failing, {}, 1.0),
    ]
    with pytest.raises(SystemExit, match=mentioning("bad")):
        run_in_slices(runs, slice_s=0.5)
    assert "of this run" in capfd.readouterr().err
    assert [file.name for file in tmp_path.glob("*.json")] == ["good.json"]


def test_stopped_program_leaves_no_process(tmp_path, monkeypatch):
    """Ctrl-C after the first slice, when both are stopped."""
    started = []

    def pace(seconds):
        if len(started) > 1 and started[0].slices:
            raise KeyboardInterrupt
        return 1.0

    class Started(slices._Process):
        def __post_init__(self):
            super().__post_init__()
            started.append(self)

    monkeypatch.setattr(slices, "pace", pace)
    monkeypatch.setattr(slices, "_Process", Started)
    runs = [Run(tmp_path / f"{name}.json", partial(time.sleep, 60), {}, 1.0) for name in "ab"]
    with pytest.raises(KeyboardInterrupt):
        run_in_slices(runs, slice_s=0.3)
    for one in started:
        with pytest.raises(ProcessLookupError):
            os.killpg(one.process.pid, 0)


def test_time_and_pace_by_hand():
    """Two epochs, from 2 to 5 and from 6 to 9, in slices from 0 to 3, 4 to 7 and 20 to 30."""
    found = slices.time_and_pace([(0, 3, 100.0), (4, 7, 200.0), (20, 30, 900.0)], [(2, 5), (6, 9)])
    assert found == {"train_s": 3.0, "pace": [pytest.approx((100 + 2 * 200) / 3, abs=0.01)], "slices": 2}
    with pytest.raises(ValueError, match="No slice"):
        slices.time_and_pace([(0, 1, 100.0)], [(2, 5)])
