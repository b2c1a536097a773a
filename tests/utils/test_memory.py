"""Out-of-memory errors, free memory, peaks and shared memory budgets."""

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

from efficientnetv2.utils import memory, processes
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
def test_failed_allocation_is_out_of_memory(allocate):
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        allocate()
    assert is_out_of_memory(caught.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_failed_gpu_allocation_is_out_of_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
    assert is_out_of_memory(caught.value)


def test_other_errors_are_not_out_of_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.ones(2) @ torch.ones(3)
    assert not is_out_of_memory(caught.value)
    assert not is_out_of_memory(ValueError("out of memory"))


def test_enomem_is_out_of_memory():
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
def test_container_limit_counts_without_its_file_cache(tmp_path, version, monkeypatch):
    """100 MB allowed, 90 MB used, of which 30 MB are reclaimable file cache: 40 MB free."""
    container(tmp_path, limit=100_000_000, usage=90_000_000, cache=30_000_000, version=version)
    monkeypatch.setattr(processes, "CGROUPS", tmp_path)
    assert free_bytes(CPU) == 40_000_000


@pytest.mark.parametrize("version", [1, 2])
def test_job_limit_above_the_process_counts(version, tmp_path, monkeypatch):
    """As Slurm and systemd set it: only the job has a limit, not the root and not the step."""
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
    monkeypatch.setattr(processes, "CGROUPS", root)
    monkeypatch.setattr(processes, "OWN_CGROUPS", own)
    own.write_text("0::/slurm/job_7/step_0\n" if version == 2 else "5:cpu,memory:/slurm/job_7/step_0\n0::/\n")
    assert free_bytes(CPU) == 30_000_000
    own.write_text("0::/../outside\n")  # as in a container for a group outside it
    assert free_bytes(CPU) > 30_000_000


def test_machine_memory_counts_without_a_container_limit(tmp_path, monkeypatch):
    container(tmp_path, limit="max", usage=90_000_000, cache=0)
    available = psutil.virtual_memory().available
    for root in (tmp_path, tmp_path / "none"):
        monkeypatch.setattr(processes, "CGROUPS", root)
        assert free_bytes(CPU) == pytest.approx(available, rel=0.1)


def test_given_limit_includes_memory_in_use(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "CGROUPS", tmp_path)
    taken = in_use_bytes(CPU)
    left = free_bytes(CPU, taken / GIB + 0.5)
    assert left == pytest.approx(0.5 * GIB, rel=0.1)
    assert free_bytes(CPU, 0.001) < 0


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a CPU's peak is the process's for life")
def test_reset_peak_starts_at_the_memory_in_use():
    before = in_use_bytes(CPU)
    block = np.ones(300_000_000, dtype=np.uint8)
    assert peak_bytes(CPU) - before > 270_000_000
    del block
    assert peak_bytes(CPU) - before > 270_000_000
    reset_peak_memory(CPU)
    now = in_use_bytes(CPU)  # less than before if memory of other tests was released
    assert peak_bytes(CPU) - now < 50_000_000
    block = np.ones(200_000_000, dtype=np.uint8)
    assert 170_000_000 < peak_bytes(CPU) - now < 270_000_000
    del block


def test_peak_includes_released_memory():
    """300 MB until they are measured, then released. The peak includes them, the memory in use does not."""
    before = in_use_bytes(CPU)
    with PeakMemory(CPU) as peak:
        block = np.ones(300_000_000, dtype=np.uint8)
        until = time.monotonic() + 60
        while peak.bytes - before < 270_000_000 and time.monotonic() < until:
            time.sleep(0.01)
        del block
        time.sleep(0.05)  # for further measurements
    assert peak.bytes - before == pytest.approx(300_000_000, rel=0.1)
    release_memory(CPU)
    assert in_use_bytes(CPU) - before < 100_000_000


@pytest.mark.parametrize("gib", [0, -1, float("nan"), float("inf")])
def test_invalid_limit_is_rejected(gib):
    with pytest.raises(InputError, match="memory_gib"):
        limit_memory(CPU, gib)


@pytest.mark.parametrize(("device", "number"), [("cuda", 2), ("cuda:1", 1)])
def test_gpu_limit_is_set_by_device_number(device, number, monkeypatch):
    """``cuda`` without a number is the current device. PyTorch's allocator needs a number."""
    calls = []
    monkeypatch.setattr(memory, "_limited", set())
    gpus = SimpleNamespace(total_memory=8 * GIB)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpus)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *given: calls.append(given))
    limit_memory(torch.device(device), 6)
    limit_memory(torch.device(device), 12)
    assert calls == [(0.75, number), (1.0, number)]


def test_gpu_limit_of_an_earlier_run_ends(monkeypatch):
    calls = []
    monkeypatch.setattr(memory, "_limited", set())
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=8 * GIB))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *given: calls.append(given))
    gpu = torch.device("cuda:1")
    limit_memory(gpu, None)
    assert not calls, "a fraction that the user has set stays"
    limit_memory(gpu, 4)
    limit_memory(gpu, None)
    assert calls == [(0.5, 1), (1.0, 1)]


@pytest.fixture
def free_gib(monkeypatch):
    """A machine of 8 GiB."""
    monkeypatch.setattr(memory, "free_bytes", lambda device, *, sharing: 8 * GIB // sharing)
    return 8


def most_together(shared, gib, threads=6):
    """The largest number of concurrent threads that take ``gib`` each."""
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
    """Check that so many threads can take ``gib`` each at the same time."""
    barrier = threading.Barrier(threads)

    def work(_):
        with shared.take(int(gib * GIB)):
            barrier.wait(timeout=60)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))


@pytest.mark.parametrize(("gib", "together"), [(1.0, 4), (2.0, 2), (3.0, 1), (7.0, 1)])
def test_threads_together_take_at_most_the_budget(free_gib, gib, together):
    shared = MemoryBudget(small=0, share=0.5)
    assert most_together(shared, gib) <= together
    meet(shared, gib, together)


def test_small_requests_do_not_count_and_too_large_ones_are_rejected(free_gib):
    shared = MemoryBudget(small=2 * GIB, share=0.1)
    meet(shared, 2.0, 6)
    with pytest.raises(MemoryError, match=mentioning("9.0", "GiB", "8.0")), shared.take(9 * GIB):
        pass
    assert most_together(shared, 7.0, threads=2) == 1  # a rejected request holds nothing
