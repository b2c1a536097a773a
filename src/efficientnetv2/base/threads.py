"""How long a thread that waits for others of its program keeps a core.

PyTorch shares a layer among threads, one for each core, and all wait for the last of them. With GNU's OpenMP who waits
goes round a loop first, before it sleeps. Beside another busy program it holds a core that way which the thread it
waits for could have.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

# Rounds of that loop; GNU's default is 300,000. Ours: on two cores 10,000 cost an undisturbed step nothing, 1,000 made
# it half as long again; beside two busy programs 10,000 were 1.8 times as fast as the default (one machine;
# benchmarks/results/step_tried.md).
_ROUNDS = 10_000
_THEIRS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def share_cores(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let threads that wait give their core to other programs soon. To be called before PyTorch is imported.

    Whoever has said how threads wait (``OMP_WAIT_POLICY``, ``GOMP_SPINCOUNT``) keeps it. Other kinds of OpenMP than
    GNU's, as on macOS and Windows, take no notice.

    Args:
        environment: of this process and those that it starts.
    """
    if not any(name in environment for name in _THEIRS):
        environment["GOMP_SPINCOUNT"] = str(_ROUNDS)
