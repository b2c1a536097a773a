"""The benchmark of a GPU, without one: what is claimed of whom."""

from __future__ import annotations

import json
import time

import pytest
import torch
from benchmarks import gpu, record
from benchmarks.train_step import Workload
from torch.utils.data import Dataset

from efficientnetv2.data.loader import PREFETCH, iter_batches
from efficientnetv2.utils.benchmark import TimingStats


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Where figures go instead of the repository's own."""
    for module in (gpu, record):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(record, "SUMMARY", tmp_path / "summary.json")
    return tmp_path


def test_a_claim_names_the_gpu_and_the_machine_that_it_is_in(results, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A GPU")
    gpu.keep({"gpu_busy_share": TimingStats.of([0.9, 1.0])}, {}, 2)
    on = f"A GPU, torch {torch.__version__}; {record.hardware()}"
    assert json.loads((results / "summary.json").read_text())["gpu_busy_share"]["hardware"] == on
    assert json.loads((results / "gpu.json").read_text())["hardware"] == on


STEP_S, WORKERS = 0.02, 2


class _Slow(Dataset):
    """Of two workers together a batch comes every two steps."""

    def __getitem__(self, request):
        time.sleep(2 * STEP_S * WORKERS)
        return torch.zeros(1)


def test_the_share_is_that_of_reading_and_not_of_what_was_read_ahead(class_folders, monkeypatch):
    """In memory a step takes 20 ms; from files its batch comes after 40 ms, though many wait when the turn begins."""

    def steps(batches):
        for _ in batches:
            time.sleep(STEP_S)
            yield gpu_step

    class gpu_step:  # noqa: N801 - stands for what a step gives
        loss = torch.zeros(())

    reads = []

    def read(pictures, requests, *, workers, pin_memory):
        reads.append(requests)
        return iter_batches(_Slow(), requests, workers, pin_memory)

    monkeypatch.setattr(gpu.os, "sched_getaffinity", lambda process: set(range(WORKERS)))
    monkeypatch.setattr(gpu, "our_losses", lambda work, recipe: (one.loss for one in steps(iter(int, 1))))
    monkeypatch.setattr(gpu, "training_batches", read)
    monkeypatch.setattr(gpu, "our_steps", lambda work, recipe, read, labels: steps(read(iter(range(10**6)))))
    work = Workload("efficientnetv2_b0", 32, 4, rate=0.1, device=torch.device("cpu"), num_classes=3)
    found = gpu.shares(work, class_folders, rounds=3)
    assert found["gpu_busy_share"].median == pytest.approx(0.5, abs=0.12)
    assert len(reads) == 4, "workers begin anew with every turn"


def test_nothing_is_read_between_two_turns():
    """Of a turn of three steps two batches are left out; then the next turn's are asked for, and no others."""
    asked = []

    def read(requests):
        for request in requests:
            asked.append(request)
            yield request

    coming = gpu.in_turns(read, ahead=2, steps=3)(range(100))
    assert [next(coming) for _ in range(3)] == [2, 3, 4]
    assert asked == [0, 1, 2, 3, 4]
    assert next(coming) == 7


def test_turns_count_as_long_as_all_that_is_read_ahead(class_folders, monkeypatch):
    given = []
    monkeypatch.setattr(gpu.os, "sched_getaffinity", lambda process: set(range(16)))
    monkeypatch.setattr(gpu, "our_steps", lambda *words: iter(()))
    monkeypatch.setattr(gpu, "our_losses", lambda *words: iter(()))

    def timed(loops, *, steps, rounds, wait):
        given.append(steps)
        return {name: [1.0] for name in loops}

    monkeypatch.setattr(gpu, "timed", timed)
    gpu.shares(Workload("efficientnetv2_b0", 32, 4, 0.1, torch.device("cpu"), 3), class_folders, rounds=1)
    assert given == [16 * PREFETCH]
