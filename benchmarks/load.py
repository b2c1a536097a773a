"""How long a model file takes to load, and how much memory, next to safetensors' own read of it.

Run: python benchmarks/load.py [--record]

V2-S, 1000 classes. Ours reads, checks every tensor (names, shapes, NaN, SHA-256) and builds. Next to it, in turn:

- safetensors: building the network as usual, ``load_file``, ``load_state_dict``: what one writes by hand;
- bare: the least that could be: building on the device meta, ``load_file`` copied into memory of its own, assigned;
  nothing drawn and nothing checked.

Memory: what loading adds to the peak of a fresh process, over the bytes of the weights.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from efficientnetv2.architectures.registry import get_architecture
from efficientnetv2.architectures.spec import Architecture, Stage, mbconv
from efficientnetv2.models import model_file
from efficientnetv2.models.efficientnet import EfficientNet
from efficientnetv2.models.factory import create

NAME, ROUNDS = "efficientnetv2_s", 15


def safetensors(path: Path) -> EfficientNet:
    """As one writes it by hand."""
    network = EfficientNet(get_architecture(NAME))
    network.load_state_dict(load_file(path))
    return network.eval()


def bare(path: Path) -> EfficientNet:
    """The least that could be."""
    with torch.device("meta"):
        network = EfficientNet(get_architecture(NAME))
    network.load_state_dict({name: tensor.clone() for name, tensor in load_file(path).items()}, assign=True)
    return network.eval()


SIDES: dict[str, Callable[[Path], object]] = {"ours": model_file.load, "safetensors": safetensors, "bare": bare}


def added_peak_bytes(side: str, path: Path) -> int:
    """What loading adds to the peak memory of a fresh process that has loaded a tiny file before."""
    command = [sys.executable, __file__, "--peak", side, str(path)]
    return int(subprocess.check_output(command, text=True).split()[-1])


def print_added_peak(side: str, path: Path) -> None:
    """In the fresh process."""
    with tempfile.TemporaryDirectory() as folder:  # what the first use of the libraries takes is not the file's
        tiny = Path(folder) / "tiny.safetensors"
        # A small network: memory of a large one, once freed, would be taken again unseen.
        table = Architecture(8, (Stage(mbconv(expand=2, kernel=3), 2, 8, 1),), 8)
        model_file.save(tiny, EfficientNet(table, num_classes=1), class_names=("x",))
        model_file.load(tiny)
        load_file(tiny)
    reset = Path("/proc/self/clear_refs")
    if reset.exists():  # the peak so far was that of making the tiny file
        reset.write_text("5")
    before = int(_status("VmRSS"))
    network = SIDES[side](path)
    peak = int(_status("VmHWM")) if reset.exists() else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    del network
    print((peak - before) * 1024)


def _status(key: str) -> str:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(key))


def measured(path: Path) -> dict[str, list[float]]:
    """Seconds of every side, in turn, warmed up."""
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(ROUNDS + 1):
        for side, load in SIDES.items():
            started = time.perf_counter()
            network = load(path)
            if number:
                times[side].append(time.perf_counter() - started)
            del network
    return times


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write results/summary.json")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print_added_peak(options.peak[0], Path(options.peak[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / model_file.NAME
        network = create(NAME)
        model_file.save(path, network, class_names=[str(number) for number in range(1000)])
        weights = sum(tensor.nbytes for tensor in network.state_dict().values())
        del network
        times = measured(path)
        peaks = {side: added_peak_bytes(side, path) / weights for side in SIDES}
    for side, seconds in times.items():
        low, *_, high = sorted(seconds)
        print(
            f"{side}: {statistics.median(seconds) * 1e3:.0f} ms ({low * 1e3:.0f} to {high * 1e3:.0f}), "
            f"peak {peaks[side]:.2f} of the weights' {weights / 2**20:.0f} MiB"
        )
    claims = {}
    for side in ("safetensors", "bare"):
        ratios = sorted(ours / other for ours, other in zip(times["ours"], times[side], strict=True))
        claims[f"load_s_vs_{side}_ratio"] = (statistics.median(ratios), ratios[1], ratios[-2], ROUNDS)
    claims["load_s_peak_memory_ratio"] = (peaks["ours"], peaks["ours"], peaks["ours"], 1)
    for name, (value, low, high, n) in claims.items():
        print(f"{name}: {value:.2f} ({low:.2f} to {high:.2f})")
        if options.record:
            from record import record

            record(name, value, unit="ratio", low=low, high=high, n=n, command="python benchmarks/load.py")


if __name__ == "__main__":
    main()
