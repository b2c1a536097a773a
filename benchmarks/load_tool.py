"""Servers as processes, and loads of requests from the tool hey."""

from __future__ import annotations

import csv
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Load:
    """Responses to a load.

    Attributes:
        num_sent: Number of requests.
        statuses: (n,) status of each response.
        latencies: (n,) seconds of each response.
        wall_s: Seconds from the first request to the last response.
    """

    num_sent: int
    statuses: np.ndarray
    latencies: np.ndarray
    wall_s: float

    @property
    def served_per_s(self) -> float:
        """Responses with status 200 per second."""
        return float((self.statuses == 200).sum()) / self.wall_s

    @property
    def num_lost(self) -> int:
        """Requests without response, or with another status than 200 and 429."""
        return self.num_sent - int(np.isin(self.statuses, (200, 429)).sum())

    def latency_ms(self, percent: float) -> float:
        """A percentile of the latency of responses with status 200."""
        return 1000 * float(np.percentile(self.latencies[self.statuses == 200], percent))


def parsed(table: str, num_sent: int | None = None) -> Load:
    """Parse the table of ``hey -o csv``. ``num_sent`` None: all requests got a response."""
    rows = list(csv.DictReader(table.splitlines()))
    latencies = np.array([float(row["response-time"]) for row in rows])
    starts = np.array([float(row["offset"]) for row in rows])
    statuses = np.array([int(row["status-code"]) for row in rows])
    return Load(num_sent or len(rows), statuses, latencies, float((starts + latencies).max() - starts.min()))


def load(port: int, image: Path, clients: int, *bounds: object, number: int | None = None) -> Load:
    """Send a load. ``bounds`` are further options of hey. Fails after ten minutes."""
    count = () if number is None else ("-n", number)
    command = ("hey", "-o", "csv", "-m", "POST", "-T", "image/jpeg", "-D", image, "-c", clients, "-t", 60, *count)
    arguments = [*map(str, (*command, *bounds)), f"http://127.0.0.1:{port}/predict"]
    return parsed(subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=600).stdout, number)


@contextmanager
def server(*command: object) -> Iterator[tuple[int, int]]:
    """Start a server whose command ends with its port. Yields process id and port."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", *map(str, command), str(port)], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/openapi.json", timeout=5):
                yield process.pid, port
                return
            time.sleep(0.2)
        raise SystemExit(f"{' '.join(map(str, command))} did not start.")
    finally:
        process.terminate()
        process.wait(timeout=60)


def memory_mib(pid: int, key: str) -> float:
    """Memory of a process in MiB: ``VmRSS`` (resident) or ``VmHWM`` (peak)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def forget_peak(pid: int) -> None:
    """Reset the peak of the resident memory. Source: proc(5), clear_refs."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
