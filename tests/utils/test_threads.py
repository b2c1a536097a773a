"""OpenMP says itself how its threads wait, where it is asked to as it is loaded."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from efficientnetv2.utils.cpu import limit_openmp_spin

# It ends as soon as it has seen that there is nothing, which is after PyTorch was imported.
PROGRAM = ("-m", "efficientnetv2", "train", "nowhere")


def said(*program: str, **environment: str) -> list[str]:
    """What GNU's OpenMP prints of GOMP_SPINCOUNT, once for each copy of it that a program loads."""
    plain = {
        name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
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
    default = set(said("-c", "import torch; torch.ones(4)"))
    assert default
    assert "10000" not in default
    assert set(said(*PROGRAM)) == {"10000"}
    assert set(said(*PROGRAM, GOMP_SPINCOUNT="77")) == {"77"}
    assert "10000" not in said(*PROGRAM, OMP_WAIT_POLICY="active")


def test_what_the_user_has_said_stays():
    for theirs in ({"OMP_WAIT_POLICY": "passive"}, {"GOMP_SPINCOUNT": "5"}):
        environment = dict(theirs)
        limit_openmp_spin(environment)
        assert environment == theirs
