"""Time and memory to load a model file, compared with safetensors alone.

Run: python benchmarks/load.py [--record]

V2-S, 1000 classes. Ours reads the file, checks every tensor (name, shape, NaN, SHA-256) and builds the model. The other
sides, in turn:

- safetensors: build the model, ``load_file``, ``load_state_dict``, as in handwritten code
- bare: the minimum: build on the device meta and assign a copy of ``load_file``, without initialization and checks

Claims: ``load_s_vs_safetensors_ratio``, ``load_s_vs_bare_ratio``: time of ours / time of the other side; and
``load_s_peak_memory_ratio``: memory that ours adds to the peak of a new process / bytes of the weights.
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
    """Load as in handwritten code."""
    model = EfficientNet(get_architecture(NAME))
    model.load_state_dict(load_file(path))
    return model.eval()


def bare(path: Path) -> EfficientNet:
    """Load with the least possible work."""
    with torch.device("meta"):
        model = EfficientNet(get_architecture(NAME))
    model.load_state_dict({name: tensor.clone() for name, tensor in load_file(path).items()}, assign=True)
    return model.eval()


SIDES: dict[str, Callable[[Path], object]] = {"ours": model_file.load, "safetensors": safetensors, "bare": bare}


def added_peak_bytes(side: str, path: Path) -> int:
    """Memory that loading adds to the peak of a new process that has loaded a tiny file before."""
    command = [sys.executable, __file__, "--peak", side, str(path)]
    return int(subprocess.check_output(command, text=True).split()[-1])


def print_added_peak(side: str, path: Path) -> None:
    """Print the added memory, in the new process."""
    with tempfile.TemporaryDirectory() as folder:  # exclude memory for the first use of the libraries
        tiny = Path(folder) / "tiny.safetensors"
        # A tiny model, because freed memory of a large model would be used again without notice.
        architecture = Architecture(8, (Stage(mbconv(expand=2, kernel=3), 2, 8, 1),), 8)
        model_file.save(tiny, EfficientNet(architecture, num_classes=2), class_names=("x", "y"))
        model_file.load(tiny)
        load_file(tiny)
    reset = Path("/proc/self/clear_refs")
    if reset.exists():  # exclude the peak of the tiny file
        reset.write_text("5")
    before = int(_status("VmRSS"))
    model = SIDES[side](path)
    peak = int(_status("VmHWM")) if reset.exists() else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    del model
    print((peak - before) * 1024)


def _status(key: str) -> str:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(key))


def measured(path: Path) -> dict[str, list[float]]:
    """Seconds of each side, in turn, after a warm-up."""
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(ROUNDS + 1):
        for side, load in SIDES.items():
            started = time.perf_counter()
            model = load(path)
            if number:
                times[side].append(time.perf_counter() - started)
            del model
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write results/summary.json")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print_added_peak(options.peak[0], Path(options.peak[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / model_file.NAME
        model = create(NAME)
        model_file.save(path, model, class_names=[str(number) for number in range(1000)])
        weights = sum(tensor.nbytes for tensor in model.state_dict().values())
        del model
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
