"""The GPU benchmark, simulated without a GPU."""

from __future__ import annotations

import json
import time

import pytest
import torch
from benchmarks import gpu, record
from benchmarks.train_step import Workload
from tests.messages import mentions
from torch.utils.data import Dataset

from efficientnetv2.data.loader import PREFETCH, iter_batches
from efficientnetv2.utils.benchmark import TimingStats


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A temporary results folder."""
    for module in (gpu, record):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(record, "SUMMARY", tmp_path / "summary.json")
    return tmp_path


def test_claim_names_the_gpu_and_the_machine(results, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A GPU")
    gpu.keep({"gpu_busy_share": TimingStats.of([0.9, 1.0])}, {}, 2)
    on = f"A GPU, torch {torch.__version__}; {record.hardware()}"
    assert json.loads((results / "summary.json").read_text())["gpu_busy_share"]["hardware"] == on
    assert json.loads((results / "gpu.json").read_text())["hardware"] == on


def test_cases_of_several_calls_are_kept(results, monkeypatch):
    """A case takes more than ten minutes, so each may have its own call."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A GPU")
    for case, flags in (("s_300", []), ("b0_192", []), ("b0_192", ["--cudnn-benchmark"])):
        gpu.keep({f"gpu_step_{case}_vs_timm_best": TimingStats.of([1.1])}, {case: {}}, 2, flags)
    cases = ["s_300", "b0_192", "b0_192_cudnn_benchmark"]
    assert list(json.loads((results / "gpu.json").read_text())[gpu.OURS]) == cases
    claims = json.loads((results / "summary.json").read_text())
    assert "timm" in claims["gpu_step_s_300_vs_timm_best"]["versions"]
    assert len(claims) == 3


STEP_S, WORKERS = 0.02, 2


class _Slow(Dataset):
    """A dataset whose two workers together load a batch every two steps."""

    def __getitem__(self, request):
        time.sleep(2 * STEP_S * WORKERS)
        return torch.zeros(1)


def test_busy_share_excludes_prefetched_batches(class_folders, monkeypatch):
    """A step takes 20 ms in memory and 40 ms from files, although batches are prefetched before a turn."""

    def steps(batches):
        for _ in batches:
            time.sleep(STEP_S)
            yield gpu_step

    class gpu_step:  # noqa: N801 - the result of a step
        loss = torch.zeros(())

    reads = []

    def read(images, requests, *, workers, pin_memory):
        reads.append(requests)
        return iter_batches(_Slow(), requests, workers, pin_memory)

    monkeypatch.setattr(gpu.os, "sched_getaffinity", lambda process: set(range(WORKERS)))
    monkeypatch.setattr(gpu, "our_losses", lambda work, recipe: (step.loss for step in steps(iter(int, 1))))
    monkeypatch.setattr(gpu, "training_batches", read)
    monkeypatch.setattr(gpu, "our_steps", lambda work, recipe, read, labels: steps(read(iter(range(10**6)))))
    work = Workload("efficientnetv2_b0", 32, 4, rate=0.1, device=torch.device("cpu"), num_classes=3)
    found = gpu.shares(work, class_folders, rounds=3)
    assert found["gpu_busy_share"].median == pytest.approx(0.5, abs=0.12)
    assert len(reads) == 4, "new workers for every turn"


def test_part_that_needs_too_much_memory_is_skipped(monkeypatch, capsys):
    def measure(part, work, *, rounds, tiny):
        if part == "b0_192":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return {f"gpu_step_{part}": "1.2"}, {}

    monkeypatch.setattr(gpu, "measure", measure)
    monkeypatch.setattr(gpu.sys, "argv", ["gpu", "--try-out", "--only", "b0_192", "--only", "s_300"])
    assert gpu.main() == 1
    assert mentions(capsys.readouterr().out, "b0_192", "skipped", "memory")


def test_nothing_is_read_between_two_turns():
    """Two of three batches per turn are prefetched and skipped. Then the batches of the next turn are requested."""
    handled = []

    def read(requests):
        for request in requests:
            handled.append(request)
            yield request

    batches = gpu.in_turns(read, ahead=2, steps=3)(range(100))
    assert [next(batches) for _ in range(3)] == [2, 3, 4]
    assert handled == [0, 1, 2, 3, 4]
    assert next(batches) == 7


def test_turns_are_as_long_as_the_prefetched_batches(class_folders, monkeypatch):
    num_steps = []
    monkeypatch.setattr(gpu.os, "sched_getaffinity", lambda process: set(range(16)))
    monkeypatch.setattr(gpu, "our_steps", lambda *_: iter(()))
    monkeypatch.setattr(gpu, "our_losses", lambda *_: iter(()))

    def timed(loops, *, steps, rounds, wait):
        num_steps.append(steps)
        return {name: [1.0] for name in loops}

    monkeypatch.setattr(gpu, "timed", timed)
    gpu.shares(Workload("efficientnetv2_b0", 32, 4, 0.1, torch.device("cpu"), 3), class_folders, rounds=1)
    assert num_steps == [16 * PREFETCH]
