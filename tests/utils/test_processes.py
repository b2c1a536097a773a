"""Freed memory is kept, as page faults show, and waiting threads of OpenMP sleep soon."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from efficientnetv2.utils.processes import limit_openmp_spin

pytestmark = pytest.mark.skipif(sys.platform != "linux" or not os.confstr("CS_GNU_LIBC_VERSION"), reason="needs glibc")

# Blocks as a network's activations are: 4 of 16 MiB and 2 of 64, written and freed again and again.
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


def test_what_is_freed_is_used_again_without_asking_the_system():
    done, kept = said("keep")
    (freed,) = said("plain")
    assert done == "True"
    pages = 5 * (4 * 2**24 + 2 * 2**26) // os.sysconf("SC_PAGE_SIZE")
    assert int(kept) < 0.05 * pages
    assert int(freed) > 0.5 * pages, "else there was nothing to keep"


@pytest.mark.parametrize(
    "theirs", [{"MALLOC_TRIM_THRESHOLD_": "65536"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=65536"}]
)
def test_what_the_user_has_set_stays(theirs):
    assert said("keep", **theirs)[0] == "False"


# It ends as soon as it has seen that there is nothing, which is after PyTorch was imported.
PROGRAM = ("-m", "efficientnetv2", "train", "nowhere")


def setting_of(*program: str, **environment: str) -> list[str]:
    """What GNU's OpenMP prints of GOMP_SPINCOUNT, once for each copy of it that a program loads."""
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
def test_the_programs_threads_do_not_wait_long_where_the_user_has_not_said_how():
    # Torch's own is among them, and each copy reads the same environment.
    default = set(setting_of("-c", "import torch; torch.ones(4)"))
    assert default
    assert "10000" not in default
    assert set(setting_of(*PROGRAM)) == {"10000"}
    assert set(setting_of(*PROGRAM, GOMP_SPINCOUNT="77")) == {"77"}
    assert "10000" not in setting_of(*PROGRAM, OMP_WAIT_POLICY="active")


def test_what_the_user_has_said_stays():
    for theirs in ({"OMP_WAIT_POLICY": "passive"}, {"GOMP_SPINCOUNT": "5"}):
        environment = dict(theirs)
        limit_openmp_spin(environment)
        assert environment == theirs
