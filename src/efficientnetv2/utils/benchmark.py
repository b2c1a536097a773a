"""Benchmarks: warmed-up, interleaved, repeated timings, and a lock by which a process measures alone on its machine.

Calls of the same round meet the same conditions, so a ratio is taken round by round.
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

from filelock import FileLock, Timeout

from efficientnetv2.utils.errors import InputError


@dataclass(frozen=True)
class TimingStats:
    """Median and quartiles over rounds."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: list[float]) -> TimingStats:
        """From at least one value."""
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
    """Seconds of some calls by name, one per round. The order is reversed with every round.

    ``wait`` is called before each reading of the clock, see ``utils.device.synchronizer``.
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
    """How many times as fast ``of`` is as ``to``, round by round."""
    return TimingStats.of([theirs / ours for ours, theirs in zip(seconds[of], seconds[to], strict=True)])


def boot_id() -> str:
    """This machine since its last start, as a name for a folder: machines of a cluster may share a home folder."""
    file = Path("/proc/sys/kernel/random/boot_id")
    text = file.read_text(encoding="ascii").strip() if file.exists() else f"{uuid.getnode():x}"
    return text.replace("-", "")[:16]


class MachineLock:
    """Lets processes of a machine work together, or one measure while the others wait. All have the same ``folder``."""

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            fix = "Name a folder that can be written with EFFNETV2_CACHE=FOLDER"
            raise InputError(f"{folder}: {error.strerror or error}. {fix}.") from error
        self.folder = folder
        self._exclusive = FileLock(folder / "quiet.lock")
        self._busy = FileLock(folder / f"busy_{os.getpid()}_{secrets.token_hex(4)}.lock")

    @contextmanager
    def working(self) -> Iterator[None]:
        """Within the block, this process computes: who wants to measure waits until it ends or pauses."""
        self._begin()
        try:
            yield
        finally:
            self._busy.release()
            Path(self._busy.lock_file).unlink(missing_ok=True)

    def pause(self) -> None:
        """While working: wait if a process wants to measure, until it is done."""
        try:
            self._exclusive.acquire(timeout=0)
            self._exclusive.release()
        except Timeout:
            self._busy.release()
            self._begin()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Within the block, every other process waits. Not to be entered while working."""
        with self._exclusive:
            for file in self.folder.glob("busy_*.lock"):
                other = FileLock(file)
                with other, contextlib.suppress(OSError):  # Its holder has paused, or has died.
                    file.unlink()
            yield

    def _begin(self) -> None:
        """Take the own lock while nobody measures; whoever wants to afterward finds it held."""
        with self._exclusive:
            self._busy.acquire()
