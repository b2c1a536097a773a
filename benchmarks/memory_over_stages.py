"""Whether memory grows over stages and epochs.

Run: python benchmarks/memory_over_stages.py [--record]

V2-B0 trains through four stages (64, 96, 112, 128 px), and through all four again and again in one process. What one
pass needs is taken in the first; a leak would show as growth from the second pass to the last.
"""

from __future__ import annotations

import argparse

import numpy as np
import psutil
import torch

from efficientnetv2.base.keys import Key
from efficientnetv2.base.preprocessing import Preprocessing
from efficientnetv2.data.loader import Batch
from efficientnetv2.data.sampling import Request
from efficientnetv2.inference.accelerate import place
from efficientnetv2.models.create import create
from efficientnetv2.progressive import Progressive, Ramp
from efficientnetv2.training.loop import train
from efficientnetv2.training.recipe import checked
from efficientnetv2.training.recipes import named
from efficientnetv2.training.state import Length, begin

BATCH, PASSES, STEPS = 32, 5, 4
CPU = torch.device("cpu")


def requests(plan: Progressive):
    """Every stage of every pass, a few steps each."""
    samples = np.arange(BATCH, dtype=np.int64)
    for step in range(PASSES * plan.stages * STEPS):
        setting = plan.stage(step // STEPS % plan.stages)
        yield Request(step, 0, setting, samples, np.full(BATCH, step, dtype=np.int64))


def pictures(request: Request) -> Batch:
    """Noise of the size asked for."""
    px = request.setting.image_px
    noise = np.random.default_rng(request.step).integers(0, 256, (BATCH, px, px, 3), dtype=np.uint8)
    return Batch(request, torch.from_numpy(noise).permute(0, 3, 1, 2), torch.arange(BATCH) % 10, ())


def main() -> None:
    """Train, and look at the memory after every pass."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", action="store_true", help="write results/summary.json")
    options = parser.parse_args()
    plan = Progressive(
        stages=4, image_px=Ramp(64, 128), px_multiple=16, dropout=Ramp(0, 0.3), randaugment=Ramp(5, 15)
    )
    changes = {"model": "efficientnetv2_b0", "epochs": 1, "batch_images": BATCH, "group_images": BATCH}
    changes |= {"precision": "fp32", "compile": False}
    recipe = checked(named("quick").to_json() | changes | {"progressive": plan.to_json()}, where="benchmark")
    state = begin(place(create("efficientnetv2_b0", num_classes=10), CPU), recipe)
    steps = train(
        state,
        map(pictures, requests(plan)),
        recipe=recipe,
        preprocessing=Preprocessing(image_px=128),
        length=Length(PASSES * plan.stages * STEPS, steps_per_epoch=plan.stages * STEPS),
        num_classes=10,
        key=Key.of(0),
        device=CPU,
    )
    memory: list[float] = []
    for done in steps:
        if (done.step + 1) % STEPS == 0:
            memory.append(psutil.Process().memory_info().rss / 2**20)
    passes = [memory[first : first + plan.stages] for first in range(0, len(memory), plan.stages)]
    sizes = [plan.stage(stage).image_px for stage in range(plan.stages)]
    for number, one in enumerate(passes):
        print(
            f"pass {number}: "
            + ", ".join(f"{mb:.0f} MB at {px} px" for mb, px in zip(one, sizes, strict=True))
        )
    growth = max(passes[-1]) / max(passes[1])
    print(f"memory_last_pass_over_second_ratio: {growth:.3f}")
    if options.record:
        from record import record

        ratios = [max(one) / max(passes[1]) for one in passes[1:]]
        record(
            "memory_last_pass_over_second_ratio",
            growth,
            unit="ratio",
            low=min(ratios),
            high=max(ratios),
            n=PASSES - 1,
            command="python benchmarks/memory_over_stages.py",
        )


if __name__ == "__main__":
    main()
