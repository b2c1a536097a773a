"""Requests per second, latency and memory of ``effnetv2 serve`` on loopback, under the load tool hey.

Run: python -m benchmarks.server_load [--rounds 5] [--seconds 10] [--record]    (Debian package: hey)

V2-B0 with random weights predicts a JPEG file of 500x375 px that each request sends. hey uses some time of the same
cores. Servers take turns; each is warmed up. Intervals are quartiles over the rounds.

- ``server_batching_speedup``: 32 clients at a time; ``--batch-size 32`` / ``--batch-size 1``, both with OpenVINO.
  ``server_torch_batching_speedup`` is the same with PyTorch.
- ``server_vs_fastapi``: OpenVINO with batching / ``benchmarks.plain_server``: FastAPI and PyTorch without batching.
  ``server_torch_vs_fastapi`` is the same with ``--engine torch``.
- ``server_p50_ms``, ``server_p99_ms``, ``server_fastapi_p50_ms``, ``server_fastapi_p99_ms``: latencies at 32 clients.
- ``server_overload_*``: 1,024 clients send at least 3 times the requests per second that the server can serve. ``429``:
  fraction that is refused with status 429. ``lost``: number with another status than 200 or 429, or without response.
  ``p99_ms``: latency of the served requests. ``memory``: peak of the resident memory / its size before all overload.

A measurement is not recorded if the pace of the machine before and after differs by more than a tenth.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from benchmarks.in_turn import at_steady_pace
from benchmarks.load_tool import Load, forget_peak, load, memory_mib, server
from benchmarks.predict_files import drawn, write_images
from benchmarks.record import installed, record_spread

import efficientnetv2 as ev2
from efficientnetv2.models import model_file
from efficientnetv2.utils.benchmark import TimingStats

Claims = dict[str, tuple[str, list[float]]]  # unit, and a value per round
ROUNDS, SECONDS = 5, 10.0
CLIENTS, CROWD, QUEUE = 32, 1024, 256
OVERLOAD = 3.0  # times the requests per second that the server can serve
SERVERS = {
    "batching": ("--engine", "openvino", "--batch-size", CLIENTS),
    "single": ("--engine", "openvino", "--batch-size", 1),
    "torch": ("--engine", "torch", "--batch-size", CLIENTS),
    "torch_single": ("--engine", "torch", "--batch-size", 1),
}


def in_turn(ports: Mapping[str, int], image: Path, rounds: int, seconds: float) -> dict[str, list[Load]]:
    """Return loads of each server, one per round and of about these seconds, in reverse order in every second round."""
    rates = {name: load(port, image, CLIENTS, "-z", "3s").served_per_s for name, port in ports.items()}
    loads: dict[str, list[Load]] = {name: [] for name in ports}
    for number in range(rounds):
        for name in list(ports)[:: -1 if number % 2 else 1]:
            count = CLIENTS * max(2, round(rates[name] * seconds / CLIENTS))
            loads[name].append(load(ports[name], image, CLIENTS, number=count))
    return loads


def overload(pid: int, port: int, image: Path, served_per_s: float, rounds: int, seconds: float) -> Claims:
    """Load a server with more requests than it can serve."""
    # Clients of queued images wait. The other clients send at this rate.
    rate = 1.1 * OVERLOAD * served_per_s / (CROWD - QUEUE)
    number = CROWD * max(2, round(1.1 * OVERLOAD * served_per_s * seconds / CROWD))
    before, loads, memory = memory_mib(pid, "VmRSS"), [], []
    for _ in range(rounds):
        forget_peak(pid)
        loads.append(load(port, image, CROWD, "-q", rate, number=number))
        memory.append(memory_mib(pid, "VmHWM") / before)
    offered = [one.num_sent / one.wall_s / served_per_s for one in loads]
    after = memory_mib(pid, "VmRSS")
    print(
        f"overload: {np.median(offered):.1f} times the requests; memory {before:.0f} MiB before, {after:.0f} MiB after"
    )
    if min(offered) < OVERLOAD:
        print(f"overload: {min(offered):.1f} times the requests are fewer than {OVERLOAD:g}. Give more --seconds.")
        return {}
    return {
        "server_overload_429": ("fraction", [float((one.statuses == 429).mean()) for one in loads]),
        "server_overload_lost": ("requests", [float(one.num_lost) for one in loads]),
        "server_overload_p99_ms": ("ms", [one.latency_ms(99) for one in loads]),
        "server_overload_memory": ("ratio", memory),
    }


def claims(loads: Mapping[str, Sequence[Load]]) -> Claims:
    """Compute ratios of requests per second, and latencies, from the loads of each server."""

    def ratio(one: str, other: str) -> tuple[str, list[float]]:
        pairs = zip(loads[one], loads[other], strict=True)
        return "ratio", [own.served_per_s / its.served_per_s for own, its in pairs]

    found: Claims = {
        "server_batching_speedup": ratio("batching", "single"),
        "server_torch_batching_speedup": ratio("torch", "torch_single"),
        "server_vs_fastapi": ratio("batching", "fastapi"),
        "server_torch_vs_fastapi": ratio("torch", "fastapi"),
    }
    for name, side in (("server", "batching"), ("server_fastapi", "fastapi")):
        for percent in (50, 99):
            found[f"{name}_p{percent}_ms"] = "ms", [one.latency_ms(percent) for one in loads[side]]
    return found


def measure(rounds: int, seconds: float) -> Claims:
    with TemporaryDirectory() as folder, ExitStack() as stack:
        model, image = Path(folder) / "b0.safetensors", Path(folder) / "images/000000.jpg"
        network = ev2.create("efficientnetv2_b0")
        model_file.save(model, network, class_names=[str(k) for k in range(network.num_classes)])
        write_images(image.parent, 1, drawn(1))
        own = ("efficientnetv2", "serve", model, "--device", "cpu", "--queue", QUEUE)
        commands = {name: (*own, *more, "--port") for name, more in SERVERS.items()}
        commands["fastapi"] = ("benchmarks.plain_server", model)
        servers = {name: stack.enter_context(server(*command)) for name, command in commands.items()}
        loads = in_turn({name: port for name, (_, port) in servers.items()}, image, rounds, seconds)
        for name, sent in loads.items():
            print(f"{name}: {np.median([one.served_per_s for one in sent]):.0f} requests/s")
            if lost := sum(int((one.statuses != 200).sum()) + one.num_lost for one in sent):
                raise SystemExit(f"{name}: {lost} requests were not served.")
        capacity = float(np.median([one.served_per_s for one in loads["batching"]]))
        return claims(loads) | overload(*servers["batching"], image, capacity, rounds, seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="approximate seconds of a load")
    parser.add_argument("--record", action="store_true", help="write results/summary.json")
    options = parser.parse_args()
    if shutil.which("hey") is None:
        parser.error("the load tool hey is not installed. Debian: apt-get install hey")
    found, is_steady = at_steady_pace(partial(measure, options.rounds, options.seconds))
    tool = subprocess.run(["dpkg-query", "-W", "-f=${Version}", "hey"], capture_output=True, text=True, check=False)
    packages = installed("openvino", "fastapi", "uvicorn")
    rounds = "" if options.rounds == ROUNDS else f" --rounds {options.rounds}"
    seconds = "" if options.seconds == SECONDS else f" --seconds {options.seconds:g}"
    for name, (unit, values) in found.items():
        spread = TimingStats.of(values)
        print(f"{name}: {spread} {unit}, n = {spread.rounds}")
        if options.record and is_steady:
            record_spread(
                name,
                spread,
                unit=unit,
                command=f"python -m benchmarks.server_load{rounds}{seconds} --record",
                versions={**packages, "hey": tool.stdout or "unknown"},
            )
    return 0 if is_steady else 1


if __name__ == "__main__":
    raise SystemExit(main())
