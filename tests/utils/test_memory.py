"""What allocators really say when memory runs out."""

from __future__ import annotations

import errno
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from tests.messages import mentioning

from efficientnetv2.utils import memory
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.memory import (
    GIB,
    MemoryBudget,
    PeakMemory,
    free_bytes,
    in_use_bytes,
    is_out_of_memory,
    limit_memory,
    peak_bytes,
    release_memory,
    reset_peak_memory,
)

CPU = torch.device("cpu")
TOO_MUCH = 1 << 60  # bytes: more than any machine has


@pytest.mark.parametrize(
    "allocate",
    [lambda: torch.empty(TOO_MUCH, dtype=torch.uint8), lambda: np.empty(TOO_MUCH, dtype=np.uint8)],
    ids=["torch", "numpy"],
)
def test_a_failed_allocation_is_recognized(allocate):
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        allocate()
    assert is_out_of_memory(caught.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_failed_allocation_on_the_gpu_is_recognized():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
    assert is_out_of_memory(caught.value)


def test_other_errors_are_not():
    with pytest.raises(RuntimeError) as caught:
        torch.ones(2) @ torch.ones(3)
    assert not is_out_of_memory(caught.value)
    assert not is_out_of_memory(ValueError("out of memory"))


def test_a_process_that_the_system_has_no_memory_to_begin_is_a_want_of_memory():
    assert is_out_of_memory(OSError(errno.ENOMEM, "Cannot allocate memory"))
    assert not is_out_of_memory(OSError(errno.ENOSPC, "No space left on device"))


def container(root, *, limit, usage, cache, version=2):
    names = ("memory.max", "memory.current", "inactive_file")
    if version == 1:
        root = root / "memory"
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    root.mkdir(parents=True, exist_ok=True)
    (root / names[0]).write_text(f"{limit}\n")
    (root / names[1]).write_text(f"{usage}\n")
    (root / "memory.stat").write_text(f"anon 1\n{names[2]} {cache}\n")


@pytest.mark.parametrize("version", [1, 2])
def test_a_containers_limit_counts_and_its_cache_of_files_is_free(tmp_path, version):
    """100 MB allowed, 90 taken, 30 of these for files that can be dropped: 40 free."""
    container(tmp_path, limit=100_000_000, usage=90_000_000, cache=30_000_000, version=version)
    assert free_bytes(CPU, root=tmp_path) == 40_000_000


@pytest.mark.parametrize("version", [1, 2])
def test_a_jobs_limit_counts_wherever_it_stands_above_the_process(version, tmp_path):
    """As Slurm and systemd set it: the root has none, the job one, the step within it none."""
    root = tmp_path / "cgroup"
    container(root, limit="max" if version == 2 else 10**18, usage=1, cache=0, version=version)
    job = root / ("memory" if version == 1 else ".") / "slurm/job_7"
    (job / "step_0").mkdir(parents=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for folder, most in ((job, "100000000"), (job / "step_0", "max" if version == 2 else str(10**18))):
        (folder / names[0]).write_text(most)
        (folder / names[1]).write_text("70000000")
        (folder / "memory.stat").write_text("anon 1\n")
    own = tmp_path / "own"
    own.write_text("0::/slurm/job_7/step_0\n" if version == 2 else "5:cpu,memory:/slurm/job_7/step_0\n0::/\n")
    assert free_bytes(CPU, root=root, own=own) == 30_000_000
    own.write_text("0::/../outside\n")  # as a container sees a group that is not within its own
    assert free_bytes(CPU, root=root, own=own) > 30_000_000


def test_without_a_containers_limit_the_machines_memory_counts(tmp_path):
    container(tmp_path, limit="max", usage=90_000_000, cache=0)
    available = psutil.virtual_memory().available
    assert free_bytes(CPU, root=tmp_path) == pytest.approx(available, rel=0.1)
    assert free_bytes(CPU, root=tmp_path / "none") == pytest.approx(available, rel=0.1)


def test_a_stated_limit_is_of_all_that_the_process_takes(tmp_path):
    taken = in_use_bytes(CPU)
    left = free_bytes(CPU, taken / GIB + 0.5, root=tmp_path)
    assert left == pytest.approx(0.5 * GIB, rel=0.1)
    assert free_bytes(CPU, 0.001, root=tmp_path) < 0


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a CPU's peak is the process's for life")
def test_a_peak_that_is_forgotten_begins_at_what_is_in_use():
    before = in_use_bytes(CPU)
    block = np.ones(300_000_000, dtype=np.uint8)
    assert peak_bytes(CPU) - before > 270_000_000
    del block
    assert peak_bytes(CPU) - before > 270_000_000
    reset_peak_memory(CPU)
    now = in_use_bytes(CPU)  # less than before, where what other tests have left was given back
    assert peak_bytes(CPU) - now < 50_000_000
    block = np.ones(200_000_000, dtype=np.uint8)
    assert 170_000_000 < peak_bytes(CPU) - now < 270_000_000
    del block


def test_a_peak_is_seen_although_it_has_gone():
    """300 MB until they have been seen, then nothing: the peak has them, the memory in use afterwards has not."""
    before = in_use_bytes(CPU)
    with PeakMemory(CPU) as peak:
        block = np.ones(300_000_000, dtype=np.uint8)
        until = time.monotonic() + 60
        while peak.bytes - before < 270_000_000 and time.monotonic() < until:
            time.sleep(0.01)
        del block
        time.sleep(0.05)  # for further looks
    assert peak.bytes - before == pytest.approx(300_000_000, rel=0.1)
    release_memory(CPU)
    assert in_use_bytes(CPU) - before < 100_000_000


@pytest.mark.parametrize("gib", [0, -1, float("nan"), float("inf")])
def test_a_limit_of_nothing_is_refused(gib):
    with pytest.raises(InputError, match="memory_gib"):
        limit_memory(CPU, gib)


@pytest.mark.parametrize(("device", "number"), [("cuda", 2), ("cuda:1", 1)])
def test_a_gpu_s_limit_is_set_by_its_number(device, number, monkeypatch):
    """``cuda`` alone, as ``--device auto`` gives it, is the current one; PyTorch's allocator asks for a number."""
    told = []
    gpus = SimpleNamespace(total_memory=8 * GIB)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpus)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *given: told.append(given))
    limit_memory(torch.device(device), 6)
    limit_memory(torch.device(device), 12)
    assert told == [(0.75, number), (1.0, number)]


@pytest.fixture
def free_gib(monkeypatch):
    """A machine of 8 GiB."""
    monkeypatch.setattr(memory, "free_bytes", lambda device, *, sharing: 8 * GIB // sharing)
    return 8


def most_together(shared, gib, threads=6):
    """The most threads that are at work at a time, each taking so much."""
    lock, now, most = threading.Lock(), [0], [0]

    def work(_):
        with shared.take(int(gib * GIB)):
            with lock:
                now[0] += 1
                most[0] = max(most[0], now[0])
            time.sleep(0.02)
            with lock:
                now[0] -= 1

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))
    return most[0]


def meet(shared, gib, threads):
    """Threads that each take so much meet, or this fails."""
    barrier = threading.Barrier(threads)

    def work(_):
        with shared.take(int(gib * GIB)):
            barrier.wait(timeout=60)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))


@pytest.mark.parametrize(("gib", "together"), [(1.0, 4), (2.0, 2), (3.0, 1), (7.0, 1)])
def test_threads_take_no_more_memory_together_than_their_share(free_gib, gib, together):
    shared = MemoryBudget(small=0, share=0.5)
    assert most_together(shared, gib) <= together
    meet(shared, gib, together)


def test_little_is_not_counted_and_more_than_there_is_is_refused(free_gib):
    shared = MemoryBudget(small=2 * GIB, share=0.1)
    meet(shared, 2.0, 6)
    with pytest.raises(MemoryError, match=mentioning("9.0", "GiB", "8.0")), shared.take(9 * GIB):
        pass
    assert most_together(shared, 7.0, threads=2) == 1  # who was refused holds nothing
