"""Training in several processes computes what one process computes, also when it is killed and resumed.

Run: python -m benchmarks.processes [--record]

V2-B0 trains for 30 steps of 32 images in 4 groups, in fp32 on the CPU, over two image sizes with dropout, stochastic
depth, RandAugment and mixup:

- one: in one process.
- two: in two processes.
- resumed: in two processes, killed and resumed in one, killed and resumed in three, killed and resumed in two.
- rank_killed: in two processes, of which one is killed; torchrun starts both again.

``processes_NAME_loss_difference`` is the largest difference of the losses of a step from those of "one".
``processes_NAME_groups_differing`` is the number of groups of all steps with other samples than in "one".

The optimizer is SGD. Adam divides gradients by their size, even gradients that are zero except for rounding. With Adam,
two orders of addition differ sooner (losses by ten times as much after 30 steps, in a rough trial).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from benchmarks.logged_train import samples_by_group
from benchmarks.record import record
from PIL import Image

STEPS = 30
ARGUMENTS = (
    "--model", "efficientnetv2_b0", "--recipe", "quick", "--weights", "none", "--device", "cpu", "--workers", "0",
    "--set", "epochs=auto", "--set", f"steps={STEPS}", "--set", "batch_size=32", "--set", "ghost_batch_size=8",
    "--set", "optimizer={name: sgd, lr: 0.01}",
    "--set", "precision=fp32", "--set", "checkpoint_minutes=0", "--set", "val_interval_epochs=100",
    "--set", "progressive={stages: 2, image_size: {start: 64, end: 96}, dropout: 0.2, drop_path: 0.2, "
    "randaugment: {start: 5, end: 10}, mixup_alpha: {start: 0, end: 0.2}}",
)  # fmt: skip
COLORS = {"red": (200, 60, 60), "green": (60, 190, 60), "blue": (50, 70, 200), "grey": (128, 128, 128)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write results/summary.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        paint(place / "pictures")
        losses, samples = {}, {}
        for name, go in (
            ("one", lambda at: finish(at, 1)),
            ("two", lambda at: finish(at, 2)),
            ("resumed", killed_and_resumed),
            ("rank_killed", rank_killed),
        ):
            started = time.perf_counter()
            go(place / name)
            losses[name], samples[name] = losses_of(place / name), samples_by_group(place / f"{name}_log")
            print(f"{name}: {len(losses[name])} steps in {time.perf_counter() - started:.0f} s", flush=True)
    for name in ("two", "resumed", "rank_killed"):
        num_differing = differing(samples["one"], samples[name])
        differences = np.abs(np.subtract(losses[name], losses["one"]))
        print(f"{name}: losses differ by at most {differences.max():.1e}, {num_differing} of {STEPS * 4} groups differ")
        if options.record:
            keep(f"processes_{name}", float(differences.max()), num_differing)


def keep(name: str, value: float, num: int) -> None:
    command = "python -m benchmarks.processes"
    record(f"{name}_loss_difference", value, unit="loss", low=value, high=value, n=STEPS, command=command)
    record(f"{name}_groups_differing", num, unit="groups", low=num, high=num, n=STEPS * 4, command=command)


def paint(folder: Path) -> None:
    """Write 256 noisy images of four colors."""
    for label, color in COLORS.items():
        (folder / label).mkdir(parents=True)
        for number in range(64):
            noise = np.random.default_rng([number, *color]).integers(-40, 40, (96, 96, 3))
            pixels = (np.array(color) + noise).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number:02d}.jpg")


def started(run: Path, processes: int, *more: str, restarts: int = 0) -> subprocess.Popen[bytes]:
    """Start the run under torchrun, in a separate process group."""
    return subprocess.Popen(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--max-restarts",
            str(restarts), "-m", "benchmarks.logged_train", f"{run}_log", "train", str(run.parent / "pictures"),
            *ARGUMENTS, "--output", str(run), *more,
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(run: Path, processes: int, *more: str) -> None:
    """Run to the end."""
    ended(started(run, processes, *more))


def ended(process: subprocess.Popen[bytes]) -> None:
    """Wait for the end of the process, and print its errors if it fails."""
    _, error = process.communicate()
    if process.returncode:
        raise SystemExit(error.decode())


def killed_and_resumed(run: Path) -> None:
    """Run in two, one, three and two processes, each time killed without warning except the last."""
    for number, processes in enumerate((2, 1, 3)):
        process = started(run, processes, *(["--resume"] if number else []))
        wait_for(run, STEPS * (number + 1) // 4, process)
        for one in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            one.kill()
        process.communicate()
    finish(run, 2, "--resume")


def rank_killed(run: Path) -> None:
    """Run in two processes, and kill the second in the middle; torchrun starts both again."""
    process = started(run, 2, restarts=1)
    wait_for(run, STEPS // 2, process)
    (second,) = (one for one in psutil.Process(process.pid).children() if one.environ().get("RANK") == "1")
    second.send_signal(signal.SIGKILL)
    ended(process)


def wait_for(run: Path, steps: int, process: subprocess.Popen[bytes]) -> None:
    """Wait for this number of steps."""
    while not (run / "metrics.jsonl").exists() or len(losses_of(run)) < steps:
        time.sleep(0.05)
        if process.poll() is not None:
            ended(process)
            raise SystemExit("it has ended before it could be killed")


def losses_of(run: Path) -> list[float]:
    """Read the loss of each finished step."""
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return [row["loss"] for row in rows if row["kind"] == "train"]


def differing(one: dict, other: dict) -> int:
    """Count groups with missing, duplicate or other samples. The first run has each group once."""
    assert len(one) == STEPS * 4
    assert all(len(times) == 1 for times in one.values())
    return sum(one.get(place) != other.get(place) for place in one.keys() | other.keys())


if __name__ == "__main__":
    main()
