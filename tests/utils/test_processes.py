"""Freed memory is kept by the process, and waiting OpenMP threads sleep soon."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from efficientnetv2.utils import processes
from efficientnetv2.utils.processes import cores, limit_openmp

pytestmark = pytest.mark.skipif(sys.platform != "linux" or not os.confstr("CS_GNU_LIBC_VERSION"), reason="needs glibc")

# Sizes of activations: 4 blocks of 16 MiB and 2 of 64 MiB, written and freed repeatedly.
FAULTS = """
import resource, sys
from efficientnetv2.utils.processes import keep_freed_memory
if sys.argv[1] == "keep":
    print(keep_freed_memory())
def blocks():
    return [b"x" * 2**24 for _ in range(4)] + [b"x" * 2**26 for _ in range(2)]
blocks()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    blocks()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def said(word: str, **environment: str) -> list[str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, word], env=plain | environment, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_freed_memory_is_reused_without_page_faults():
    done, kept = said("keep")
    (freed,) = said("plain")
    assert done == "True"
    pages = 5 * (4 * 2**24 + 2 * 2**26) // os.sysconf("SC_PAGE_SIZE")
    assert int(kept) < 0.05 * pages
    assert int(freed) > 0.5 * pages, "else there was nothing to keep"


@pytest.mark.parametrize(
    "theirs", [{"MALLOC_TRIM_THRESHOLD_": "65536"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=65536"}]
)
def test_allocator_options_of_the_user_are_kept(theirs):
    assert said("keep", **theirs)[0] == "False"


# It ends with an error for the missing folder, after the import of PyTorch.
PROGRAM = ("-m", "efficientnetv2", "train", "nowhere")
# ``main`` without a command, which would import more than PyTorch.
MAIN = ("-c", "from efficientnetv2.cli import main; main.app = lambda: None; main.main(); import torch; torch.ones(4)")


def setting_of(*program: str, **environment: str) -> list[str]:
    """The values of GOMP_SPINCOUNT that GNU's OpenMP prints, one for each loaded copy."""
    plain = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, *program],
        env=plain | {"OMP_DISPLAY_ENV": "VERBOSE"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return re.findall(r"GOMP_SPINCOUNT = '(\w+)'", done.stderr)


@pytest.mark.skipif(sys.platform != "linux", reason="needs GNU's OpenMP")
def test_spin_count_is_limited_unless_the_user_set_it():
    # Each copy of OpenMP reads the same environment, also that of PyTorch.
    default = set(setting_of("-c", "import torch; torch.ones(4)"))
    assert default
    assert "10000" not in default
    assert set(setting_of(*PROGRAM)) == {"10000"}
    assert set(setting_of(*MAIN, GOMP_SPINCOUNT="77")) == {"77"}
    assert "10000" not in setting_of(*MAIN, OMP_WAIT_POLICY="active")


def test_openmp_options_of_the_user_are_kept(monkeypatch):
    monkeypatch.setattr(processes, "cores", processes._affinity)  # no quota of a container
    for theirs in ({"OMP_WAIT_POLICY": "passive"}, {"GOMP_SPINCOUNT": "5"}):
        environment = dict(theirs)
        limit_openmp(environment)
        assert environment == theirs


@pytest.mark.parametrize(("quota", "expected"), [("50000", 1), ("200000", 2), ("210000", 3), ("max", 8), ("-1", 8)])
@pytest.mark.parametrize("version", [1, 2])
def test_quota_of_a_container_limits_the_cores(version, quota, expected, tmp_path, monkeypatch):
    """As of ``docker run --cpus``, in periods of 100 ms; in the group of the process, or in one above."""
    monkeypatch.setattr(processes, "_affinity", lambda: 8)
    (tmp_path / "own").write_text("0::/job/step\n" if version == 2 else "5:cpu,cpuacct:/job/step\n0::/\n")
    job = tmp_path / "cgroup" / ("job" if version == 2 else "cpu/job")
    job.mkdir(parents=True)
    if version == 2:
        (job / "cpu.max").write_text(f"{quota} 100000\n")
    else:
        (job / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        (job / "cpu.cfs_period_us").write_text("100000\n")
    monkeypatch.setattr(processes, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(processes, "OWN_CGROUPS", tmp_path / "own")
    assert cores() == expected


def test_openmp_has_as_many_threads_as_the_quota_unless_the_user_set_them(monkeypatch):
    monkeypatch.setattr(processes, "_affinity", lambda: 8)
    for quota, theirs, expected in ((2, {}, "2"), (8, {}, None), (2, {"OMP_NUM_THREADS": "5"}, "5")):
        monkeypatch.setattr(processes, "cores", lambda quota=quota: quota)
        environment = dict(theirs)
        limit_openmp(environment)
        assert environment.get("OMP_NUM_THREADS") == expected
