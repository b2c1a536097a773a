"""Speeds side by side: warmed up, alternating, repeated; a ratio and its spread rather than a time.

Single times of a shared machine mean little. What runs in the same round meets the same machine, so the ratio is
taken round by round, and its median and its quartiles are told.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import statistics
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout


@dataclass(frozen=True)
class TimingStats:
    """A median with the quartiles around it.

    Args:
        median: of the rounds.
        low: lower quartile.
        high: upper quartile.
        rounds: how many.
    """

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: list[float]) -> TimingStats:
        """Of one value per round, at least one."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high, len(values))

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g})"


def interleave(
    sides: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int = 1,
    wait: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Time some pieces of work, one after the other, again and again.

    The order turns round with every round, so that nobody always follows the same one.

    Args:
        sides: name -> a call that does the work once.
        rounds: that count, ≥ 1.
        warmup: rounds before them that do not.
        wait: called before each reading of the clock; for a GPU, what waits until it is done.

    Returns:
        Name -> seconds, one per round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(warmup + rounds):
        order = list(sides) if number % 2 == 0 else list(sides)[::-1]
        for name in order:
            wait()
            began = time.perf_counter()
            sides[name]()
            wait()
            if number >= warmup:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def speed_ratio(seconds: Mapping[str, list[float]], *, of: str, to: str) -> TimingStats:
    """How many times as fast one side is as another, round by round.

    Args:
        seconds: of ``interleave``.
        of: the side that is praised.
        to: the side it is compared with.
    """
    return TimingStats.of([theirs / ours for ours, theirs in zip(seconds[of], seconds[to], strict=True)])


def synchronizer(device: torch.device) -> Callable[[], object]:
    """What waits until a device has done what it was told; a CPU has."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return torch.mps.synchronize if device.type == "mps" else lambda: None


def boot_id() -> str:
    """This machine as one can call a folder: by how its system was started, which no other's has been.

    A home may be shared by all machines of a cluster, which do not disturb each other.
    """
    started = Path("/proc/sys/kernel/random/boot_id")
    known = started.read_text(encoding="ascii").strip() if started.exists() else f"{uuid.getnode():x}"
    return known.replace("-", "")[:16]


class MachineLock:
    """The agreement of the processes of one machine that measure and work by turns.

    Args:
        folder: on a disk of that machine, the same for all of them; made if need be.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._wanted = FileLock(folder / "quiet.lock")
        self._busy = FileLock(folder / f"busy_{os.getpid()}_{secrets.token_hex(4)}.lock")

    @contextmanager
    def working(self) -> Iterator[None]:
        """Within, this process computes; whoever wants quiet waits until it ends or pauses."""
        self._begin()
        try:
            yield
        finally:
            self._busy.release()
            Path(self._busy.lock_file).unlink(missing_ok=True)

    def pause(self) -> None:
        """While working: wait if anybody wants quiet, until they have measured."""
        if not self._is_wanted():
            return
        self._busy.release()
        self._begin()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Within, every other process of the agreement waits. Not to be called while working."""
        with self._wanted:
            for file in self.folder.glob("busy_*.lock"):
                other = FileLock(file)
                with other, contextlib.suppress(OSError):  # its holder has paused, or has died
                    file.unlink()
            yield

    def _begin(self) -> None:
        """Take the own lock at a moment when nobody wants quiet; who asks afterwards finds it held."""
        with self._wanted:
            self._busy.acquire()

    def _is_wanted(self) -> bool:
        with contextlib.suppress(Timeout):
            self._wanted.acquire(timeout=0)
            self._wanted.release()
            return False
        return True
