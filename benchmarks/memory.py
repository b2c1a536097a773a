"""Training in limited memory, and growth of memory over stages and epochs.

Run: python -m benchmarks.memory [--only limit|flat] [--limit-gib 2.5] [--record]

limit: V2-S trains on the command line through four stages (128, 185, 243, 300 px), 16 images per step in 8 groups,
without a limit and under a limit. Compared are the losses of each step (fp32), the number of groups at a time, and the
peak memory of the limited process.

- ``memory_limited_loss_difference``: largest difference of the losses.
- ``memory_limited_groups_at_300px``: groups at a time under the limit.
- ``memory_limited_peak_over_limit_ratio``: peak memory / limit.

flat: V2-B0 trains in one process through four stages (64, 96, 112, 128 px), ten times. The first pass allocates what a
pass needs. A leak is growth from the second pass to the last.

- ``memory_last_pass_over_second_ratio``: memory in the last pass / memory in the second pass.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from benchmarks.record import record
from PIL import Image

from efficientnetv2.data.loader import Batch
from efficientnetv2.data.sampler import BatchRequest
from efficientnetv2.models.factory import create
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.progressive.schedule import ProgressiveSchedule, Ramp
from efficientnetv2.training.loop import StepContext, train_steps
from efficientnetv2.training.recipe_io import validate_recipe
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.training.run_setup import RunLength
from efficientnetv2.training.train_state import init_state
from efficientnetv2.utils.device import place
from efficientnetv2.utils.memory import GIB
from efficientnetv2.utils.random_key import Key

COMMAND = "python -m benchmarks.memory"
CPU = torch.device("cpu")
# Arguments of both runs of "limit": 32 training images, 2 steps an epoch, 4 epochs: 2 steps a stage.
ARGUMENTS = (
    "--recipe", "quick", "--model", "efficientnetv2_s", "--device", "cpu", "--workers", "0", "--epochs", "4",
    "--batch-size", "16", "--set", "ghost_batch_size=2", "--set", "precision=fp32", "--set", "compile=false",
    "--set", "progressive={stages: 4, image_size: {start: 128, end: 300}, dropout: {start: 0.1, end: 0.3}}",
)  # fmt: skip
BATCH, PASSES, STEPS = 32, 10, 4


def limited(limit_gib: float, *, write: bool) -> None:
    """Run without and with the limit, one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        data = pictures_in(Path(folder) / "pictures")
        free_losses, free_groups, free_peak = run(data, Path(folder) / "free")
        losses, groups, peak = run(data, Path(folder) / "limited", "--memory-gib", str(limit_gib))
    print(f"free: groups at a time {free_groups}, {free_peak:.2f} GiB at most")
    print(f"limit of {limit_gib:g} GiB: groups at a time {groups}, {peak:.2f} GiB at most")
    assert len(losses) == len(free_losses) == 8, "a row for every step"
    differences = [abs(one - other) for one, other in zip(losses, free_losses, strict=True)]
    print(f"memory_limited_loss_difference: {max(differences):.1e}")
    lowest, highest = min(groups.values()), max(groups.values())
    print(f"memory_limited_groups_at_300px: {lowest} (at 128 px {highest})")
    print(f"memory_limited_peak_over_limit_ratio: {peak / limit_gib:.2f}")
    if write:
        command = f"{COMMAND} --only limit --limit-gib {limit_gib:g}"
        for name, value, unit, spread in (
            ("memory_limited_loss_difference", max(differences), "loss", differences),
            ("memory_limited_groups_at_300px", lowest, "groups", [lowest]),
            ("memory_limited_peak_over_limit_ratio", peak / limit_gib, "ratio", [peak / limit_gib]),
        ):
            low, high = min(spread), max(spread)
            record(name, value, unit=unit, low=low, high=high, n=len(spread), command=command)


def pictures_in(folder: Path) -> Path:
    """Write 40 noisy images of two colors. Validation takes 8 of them."""
    for number in range(40):
        name, color = (("red", (190, 60, 60)), ("blue", (60, 60, 190)))[number % 2]
        noise = np.random.default_rng(number).integers(-40, 40, (320, 320, 3))
        (folder / name).mkdir(parents=True, exist_ok=True)
        array = (np.array(color) + noise).clip(0, 255).astype(np.uint8)
        Image.fromarray(array).save(folder / name / f"{number}.jpg")
    return folder


def run(data: Path, out: Path, *more: str) -> tuple[list[float], dict[str, int], float]:
    """Run the command line; return the losses, the groups at a time, and the peak memory in GiB."""
    arguments = ["train", str(data), *ARGUMENTS, "--output", str(out), *more]
    process = subprocess.Popen([sys.executable, "-m", "efficientnetv2", *arguments], stdout=subprocess.DEVNULL)
    peak = 0
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            peak = max(peak, watched.memory_info().rss)
        except psutil.NoSuchProcess:
            break
        time.sleep(0.005)
    if process.wait() != 0:
        raise SystemExit(f"effnetv2 {' '.join(arguments)} ended with {process.returncode}")
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    groups = json.loads((out / "run.json").read_text())["microbatches"]
    return [row["loss"] for row in rows if row["kind"] == "train"], groups, peak / GIB


def requests(plan: ProgressiveSchedule):
    """Yield a few steps for each stage of each pass."""
    samples = np.arange(BATCH, dtype=np.int64)
    for step in range(PASSES * plan.stages * STEPS):
        setting = plan.stage(step // STEPS % plan.stages)
        yield BatchRequest(step, 0, setting, samples, np.full(BATCH, step, dtype=np.int64))


def noise(request: BatchRequest) -> Batch:
    """Make a batch of noise at the requested size."""
    px = request.setting.image_size
    array = np.random.default_rng(request.step).integers(0, 256, (BATCH, px, px, 3), dtype=np.uint8)
    return Batch(request, torch.from_numpy(array).permute(0, 3, 1, 2), torch.arange(BATCH) % 10, ())


def flat(*, write: bool) -> None:
    """Train, and read the memory after each pass."""
    plan = ProgressiveSchedule(
        stages=4, image_size=Ramp(64, 128), size_multiple=16, dropout=Ramp(0, 0.3), drop_path=0, randaugment=Ramp(5, 15)
    )
    changes = {
        "model": "efficientnetv2_b0", "epochs": PASSES, "batch_size": BATCH, "ghost_batch_size": BATCH,
        "precision": "fp32", "compile": False, "progressive": plan.to_json(),
    }  # fmt: skip
    recipe = validate_recipe(get_recipe("quick").to_json() | changes, where="benchmark")
    steps = train_steps(
        init_state(place(create("efficientnetv2_b0", num_classes=10), CPU), recipe),
        map(noise, requests(plan)),
        StepContext(recipe, Preprocessing(image_size=128), num_classes=10, key=Key.of(0), device=CPU),
        length=RunLength(PASSES * plan.stages * STEPS, steps_per_epoch=plan.stages * STEPS),
    )
    memory = [psutil.Process().memory_info().rss / 2**20 for done in steps if (done.step + 1) % STEPS == 0]
    passes = [memory[first : first + plan.stages] for first in range(0, len(memory), plan.stages)]
    sizes = [plan.stage(stage).image_size for stage in range(plan.stages)]
    for number, one in enumerate(passes):
        sizes_and_mb = (f"{mb:.0f} MB at {px} px" for mb, px in zip(one, sizes, strict=True))
        print(f"pass {number}: {', '.join(sizes_and_mb)}")
    ratios = [max(one) / max(passes[1]) for one in passes[1:]]
    print(f"memory_last_pass_over_second_ratio: {ratios[-1]:.3f}")
    if write:
        record(
            "memory_last_pass_over_second_ratio",
            ratios[-1],
            unit="ratio",
            low=min(ratios),
            high=max(ratios),
            n=PASSES - 1,
            command=f"{COMMAND} --only flat",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("limit", "flat"))
    parser.add_argument("--limit-gib", type=float, default=2.5)
    parser.add_argument("--record", action="store_true", help="write results/summary.json")
    options = parser.parse_args()
    if options.only != "flat":
        limited(options.limit_gib, write=options.record)
    if options.only != "limit":
        flat(write=options.record)


if __name__ == "__main__":
    main()
