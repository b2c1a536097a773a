"""Whether many processes compute what one does, killed and resumed too.

Run: python -m benchmarks.processes [--record]

V2-B0 trains for 30 steps of 32 images in 4 groups, in fp32 on the CPU, over two image sizes with dropout,
stochastic depth, RandAugment and mixup: by one process; by two; by two, killed and resumed by one, killed and resumed
by three, killed and resumed by two; and by two of which one is killed, with torchrun starting them again. Compared are
the losses of all steps, and the samples of every group of every step.

The optimizer is SGD: Adam divides gradients that are zero but for rounding by their own size, so that with it two
orders of addition part sooner (losses by ten times as much after 30 steps, in a rough trial).
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
WORDS = (
    "--model", "efficientnetv2_b0", "--recipe", "quick", "--weights", "none", "--device", "cpu", "--workers", "0",
    "--set", "epochs=auto", "--set", f"steps={STEPS}", "--set", "batch_size=32", "--set", "ghost_batch_size=8",
    "--set", "optimizer={name: sgd, lr: 0.01}",
    "--set", "precision=fp32", "--set", "checkpoint_minutes=0", "--set", "val_interval_epochs=100",
    "--set", "progressive={stages: 2, image_size: {start: 64, end: 96}, dropout: 0.2, drop_path: 0.2, "
    "randaugment: {start: 5, end: 10}, mixup_alpha: {start: 0, end: 0.2}}",
)  # fmt: skip
COLORS = {"red": (200, 60, 60), "green": (60, 190, 60), "blue": (50, 70, 200), "grey": (128, 128, 128)}


def main() -> None:
    """Run them all, compare, print."""
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
        wrong = differing(samples["one"], samples[name])
        apart = np.abs(np.subtract(losses[name], losses["one"]))
        print(f"{name}: losses differ by at most {apart.max():.1e}, {wrong} of {STEPS * 4} groups differ")
        if options.record:
            keep(f"processes_{name}", float(apart.max()), wrong)


def keep(name: str, apart: float, wrong: int) -> None:
    command = "python -m benchmarks.processes"
    record(f"{name}_loss_difference", apart, unit="loss", low=apart, high=apart, n=STEPS, command=command)
    record(f"{name}_groups_differing", wrong, unit="groups", low=wrong, high=wrong, n=STEPS * 4, command=command)


def paint(folder: Path) -> None:
    """256 noisy images of four colours."""
    for label, color in COLORS.items():
        (folder / label).mkdir(parents=True)
        for number in range(64):
            noise = np.random.default_rng([number, *color]).integers(-40, 40, (96, 96, 3))
            pixels = (np.array(color) + noise).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number:02d}.jpg")


def started(run: Path, processes: int, *more: str, restarts: int = 0) -> subprocess.Popen[bytes]:
    """The run under torchrun, in a process group of its own."""
    return subprocess.Popen(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--max-restarts",
            str(restarts), "-m", "benchmarks.logged_train", f"{run}_log", "train", str(run.parent / "pictures"),
            *WORDS, "--output", str(run), *more,
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(run: Path, processes: int, *more: str) -> None:
    """The run to its end."""
    ended(started(run, processes, *more))


def ended(process: subprocess.Popen[bytes]) -> None:
    """Wait for it; what it said if it failed."""
    _, error = process.communicate()
    if process.returncode:
        raise SystemExit(error.decode())


def killed_and_resumed(run: Path) -> None:
    """By two, one, three and two processes, all of them killed in between without warning."""
    for number, processes in enumerate((2, 1, 3)):
        process = started(run, processes, *(["--resume"] if number else []))
        wait_for(run, STEPS * (number + 1) // 4, process)
        for one in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            one.kill()
        process.communicate()
    finish(run, 2, "--resume")


def rank_killed(run: Path) -> None:
    """By two processes, the second of which is killed half-way; torchrun starts both again."""
    process = started(run, 2, restarts=1)
    wait_for(run, STEPS // 2, process)
    (second,) = (one for one in psutil.Process(process.pid).children() if one.environ().get("RANK") == "1")
    second.send_signal(signal.SIGKILL)
    ended(process)


def wait_for(run: Path, steps: int, process: subprocess.Popen[bytes]) -> None:
    """Until so many steps are done."""
    while not (run / "metrics.jsonl").exists() or len(losses_of(run)) < steps:
        time.sleep(0.05)
        if process.poll() is not None:
            ended(process)
            raise SystemExit("it has ended before it could be killed")


def losses_of(run: Path) -> list[float]:
    """The loss of every step done."""
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return [row["loss"] for row in rows if row["kind"] == "train"]


def differing(one: dict, other: dict) -> int:
    """Groups whose samples are lost, double or others; the first has every group once."""
    assert len(one) == STEPS * 4
    assert all(len(times) == 1 for times in one.values())
    return sum(one.get(place) != other.get(place) for place in one.keys() | other.keys())


if __name__ == "__main__":
    main()
