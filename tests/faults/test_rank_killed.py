"""One of several processes is killed under torchrun: the run finishes with the same result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from benchmarks.logged_train import samples_by_group
from tests.cli.test_train_together import ARGS, losses

ROOT = Path(__file__).parents[2]


def torchrun(processes: int, run: Path, data: Path, *more: str) -> subprocess.Popen[bytes]:
    args = ["train", str(data), *ARGS, "--epochs", "6", "--output", str(run)]
    return subprocess.Popen(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), *more,
            "-m", "benchmarks.logged_train", f"{run}_log", *args,
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.slow
def test_run_under_torchrun_finishes_after_a_rank_is_killed(class_folders, tmp_path):
    uninterrupted = torchrun(2, tmp_path / "whole", class_folders)
    _, error = uninterrupted.communicate(timeout=300)
    assert uninterrupted.returncode == 0, error
    process = torchrun(2, tmp_path / "killed", class_folders, "--max-restarts", "1")
    metrics = tmp_path / "killed/metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 8:
        time.sleep(0.02)
        assert process.poll() is None, process.stderr.read()
    (second,) = (one for one in psutil.Process(process.pid).children() if one.environ().get("RANK") == "1")
    second.kill()
    output, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert b"Started again by the same launch (restart 1)" in output
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    expected = samples_by_group(tmp_path / "whole_log")
    assert all(len(times) == 1 for times in expected.values())
    assert samples_by_group(tmp_path / "killed_log") == expected
    assert json.loads((tmp_path / "killed/report.json").read_text())["processes"] == 2
