"""A run on shards equals the run on their files, whether or not it is killed and resumed."""

from __future__ import annotations

import random
import time

import pytest
from tests.command_line import effnetv2
from tests.faults.test_kill_and_resume import ARGS, bits, kill_in_the_middle, start, steps_done
from tests.messages import mentions


@pytest.mark.slow
def test_run_on_shards_resumes_to_the_same_bits_as_the_run_on_files(class_folders, tmp_path):
    done = effnetv2(
        "data", "pack", class_folders, tmp_path / "packed", "--shard-images", "7", "--seed", "3", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    run = tmp_path / "killed"
    process = start(tmp_path / "packed", run, 2)  # first kill: after a step that can be resumed
    while steps_done(run) < 2 and process.is_running():
        time.sleep(0.01)
    process.kill()
    for seed in range(2):
        kill_in_the_middle(tmp_path / "packed", run, 2, random.Random(seed))
        assert not (run / "model.safetensors").exists(), "it was killed too late to mean anything"
    args = (*ARGS, "--workers", 0)
    done = effnetv2("train", tmp_path / "packed", *args, "--output", run, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert mentions(done.stdout, "from step")
    done = effnetv2("train", class_folders, *args, "--output", tmp_path / "on_files", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert bits(run) == bits(tmp_path / "on_files")
