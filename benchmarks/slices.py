"""Run training programs at the same time, one at each moment, in slices of some seconds.

A rented machine can change its speed by a third within a minute. Programs that alternate every few seconds are slowed
equally; programs that run one after the other are not. Between two slices, all processes are stopped (SIGSTOP) and the
pace of the machine is measured.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from efficientnetv2.training.signals import signals_as_ctrl_c
from efficientnetv2.utils.io import write_text_atomically
from efficientnetv2.utils.processes import keep_freed_memory

_SLICE_S, _PACE_S = 15.0, 0.5
_MESSAGE_S = 300.0


def pace(seconds: float = 3.0) -> float:
    """Products of two matrices of 512 x 512 per second: the median over these seconds.

    They allocate little: how fast large blocks are allocated depends on what the process has done before.
    """
    import torch  # here, as a program may not need it

    matrix = torch.randn(512, 512)
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 5 or time.perf_counter() - began < seconds:
        before = time.perf_counter()
        matrix @ matrix
        times.append(time.perf_counter() - before)
    return 1 / statistics.median(times)


@dataclass(frozen=True)
class Run:
    """A training run.

    Args:
        file: File of its row.
        make: Trains, and returns the row with ``top1`` and ``spans``: when its training began and ended, by
            ``time.perf_counter``, for each part of the training. It must be picklable.
        conditions: What decides the run. The row stores it too.
        expected_s: Approximate seconds of training. Each run gets time in proportion, so that all end together.
    """

    file: Path
    make: Callable[[], dict[str, Any]]
    conditions: Mapping[str, Any]
    expected_s: float


@dataclass
class _Process:
    """A run in a session of its own, stopped, with its slices so far: beginning, end, pace."""

    run: Run
    folder: Path
    slices: list[tuple[float, float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.row_file = self.folder / self.run.file.name
        work = pickle.dumps((self.run.make, self.row_file))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.slices"], stdin=subprocess.PIPE, start_new_session=True,
            env={**os.environ, "TMPDIR": str(self.folder)},
        )  # fmt: skip
        self.send(signal.SIGSTOP)
        assert self.process.stdin is not None
        with self.process.stdin as pipe:
            pipe.write(work)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process and to all processes that it started."""
        with suppress(ProcessLookupError):  # it has ended
            os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """End the process and all processes that it started."""
        self.send(signal.SIGKILL)
        self.process.wait()

    def active_s(self) -> float:
        """Seconds of all slices."""
        return sum(end - began for began, end, _ in self.slices)

    def run_for(self, seconds: float) -> bool:
        """Run for these seconds at most. Returns whether the program has ended."""
        self.send(signal.SIGCONT)
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGSTOP)
            return False
        self.kill()  # what it started and left
        return True

    def write_row(self) -> None:
        """Write the row of a program that has ended, with its time and the pace of the machine."""
        from benchmarks.record import hardware  # these import PyTorch

        from efficientnetv2.evaluation.evaluation_result import library_versions

        row = json.loads(self.row_file.read_text(encoding="utf-8"))
        row |= time_and_pace(self.slices, row.pop("spans"))
        row["versions"] = library_versions() | row.get("versions", {})
        row |= {"hardware": hardware(), "when": time.strftime("%Y-%m-%d"), "file": self.run.file.name}
        self.run.file.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(self.run.file, json.dumps({**row, **self.run.conditions}, indent=1) + "\n")
        print(
            f"{self.run.file.stem}: top-1 {row['top1']:.1%}, {row['train_s'] / 60:.1f} min of training in "
            f"{row['slices']} slices, {row['pace'][0]:.0f} products/s",
            flush=True,
        )


def time_and_pace(slices: Iterable[tuple[float, float, float]], spans: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Return ``train_s``, the seconds of the slices within the spans, their mean ``pace``, and how many they are.

    Args:
        slices: Beginning, end and pace of each.
        spans: Beginning and end of each.

    Raises:
        ValueError: No slice is within a span.
    """
    within = [
        (seconds, pace)
        for began, end, pace in slices
        if (seconds := sum(max(0.0, min(end, to) - max(began, since)) for since, to in spans)) > 0
    ]
    if not within:
        raise ValueError(f"No slice is within the training, {spans}.")
    train_s = sum(seconds for seconds, _ in within)
    pace = sum(seconds * pace for seconds, pace in within) / train_s
    return {"train_s": round(train_s, 2), "pace": [round(pace, 2)], "slices": len(within)}


def run_in_slices(runs: Sequence[Run], slice_s: float = _SLICE_S) -> None:
    """Train, and write the rows.

    ``train_s`` of a row is the time in its ``spans`` when it was not stopped, and ``pace`` the mean pace in this time.

    Args:
        runs: Each with another file.
        slice_s: Seconds of a slice.

    Raises:
        SystemExit: A run failed. The rows of the others are written.
    """
    processes: list[_Process] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, signals_as_ctrl_c():
        try:
            for run in runs:
                processes.append(_Process(run, Path(folder)))
            failed = _take_slices(processes, slice_s)
        finally:
            for process in processes:
                process.kill()
    if failed:
        raise SystemExit(f"{', '.join(failed)} failed: see the output above.")


def _take_slices(processes: Sequence[_Process], slice_s: float) -> list[str]:
    """Until all have ended, run the one that is the furthest from its end. Returns the names of those that failed."""
    going, failed = list(processes), []
    before, last_message = pace(_PACE_S), time.monotonic()
    while going:
        process = min(going, key=lambda one: one.active_s() / one.run.expected_s)
        began = time.perf_counter()
        has_ended = process.run_for(slice_s)
        end = time.perf_counter()
        after = pace(_PACE_S)
        process.slices.append((began, end, (before + after) / 2))
        before = after
        if has_ended:
            going.remove(process)
            if process.process.returncode:
                failed.append(process.run.file.stem)
            else:
                process.write_row()
        if going and time.monotonic() - last_message > _MESSAGE_S:
            last_message = time.monotonic()
            print(", ".join(f"{one.run.file.stem} {one.active_s() / 60:.0f} min" for one in going), flush=True)
    return failed


def main() -> None:
    make, row = pickle.load(sys.stdin.buffer)
    row.write_text(json.dumps(make()), encoding="utf-8")


if __name__ == "__main__":
    keep_freed_memory()  # as the command line does
    main()
