"""A run on shards is the run on the files they were packed from, killed and resumed or not."""

from __future__ import annotations

import random
import time

import pytest
from tests.command_line import effnetv2
from tests.faults.test_kill_and_resume import WORDS, bits, kill_in_the_middle, start, steps_done
from tests.messages import mentions


@pytest.mark.slow
def test_a_run_on_shards_killed_and_resumed_ends_with_the_bits_of_the_run_on_files(class_folders, tmp_path):
    done = effnetv2(
        "data", "pack", class_folders, tmp_path / "packed", "--shard-images", "7", "--seed", "3", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    run = tmp_path / "killed"
    process = start(tmp_path / "packed", run, 2)  # the first kill: once there is something to go on from
    while steps_done(run) < 2 and process.goes_on():
        time.sleep(0.01)
    process.kill()
    for seed in range(2):
        kill_in_the_middle(tmp_path / "packed", run, 2, random.Random(seed))
        assert not (run / "model.safetensors").exists(), "it was killed too late to mean anything"
    words = (*WORDS, "--workers", 0)
    done = effnetv2("train", tmp_path / "packed", *words, "--output", run, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert mentions(done.stdout, "from step")
    done = effnetv2("train", class_folders, *words, "--output", tmp_path / "on_files", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert bits(run) == bits(tmp_path / "on_files")
