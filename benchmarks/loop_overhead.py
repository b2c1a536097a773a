"""Time of a training step compared with a bare PyTorch loop of the same architecture.

Run: python benchmarks/loop_overhead.py [--rounds 7] [--record]

Both sides train V2-B0 on the same images in memory, with the same optimizer. The bare loop has about ten lines: float
batch, cross-entropy, AdamW. Ours does all that ``quick`` does: requests, schedule, flip, soft labels, seeded dropout,
gradient clipping, moving average. Rounds alternate. Claim ``loop_over_bare_loop_ratio``: median time of ours / of the
bare loop. ``--like-with-like`` adds clipping and a moving average to the bare loop.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time

import torch
from torch import nn

from efficientnetv2.data.loader import Batch
from efficientnetv2.data.sampler import TrainSampler
from efficientnetv2.models.factory import create
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.progressive.schedule import ProgressiveSchedule
from efficientnetv2.training.loop import StepContext, train_steps
from efficientnetv2.training.recipe_io import validate_recipe
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.training.run_setup import RunLength
from efficientnetv2.training.train_state import init_state
from efficientnetv2.transforms.pipeline import normalize
from efficientnetv2.utils.device import place
from efficientnetv2.utils.random_key import Key

CPU = torch.device("cpu")
_ROUNDS = 5


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=_ROUNDS)
    parser.add_argument("--record", action="store_true", help="write results/summary.json")
    other = parser.add_argument_group("other measurements, not recorded")
    other.add_argument("--image-size", type=int, default=128)
    other.add_argument("--batch-size", type=int, default=64)
    other.add_argument("--steps", type=int, default=4)
    other.add_argument("--like-with-like", action="store_true")
    options = parser.parse_args()
    names = ("image_size", "batch_size", "steps", "like_with_like")
    if options.record and any(getattr(options, name) != parser.get_default(name) for name in names):
        parser.error("--record is for 4 steps a round at 128 px and batches of 64, and the loop that people write.")
    return options


def main() -> None:
    options = _parsed()
    px, batch = options.image_size, options.batch_size
    image_bytes = torch.randint(0, 256, (batch, px, px, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    labels = torch.arange(batch) % 10
    sides = {"bare": bare(image_bytes, labels, options.like_with_like), "ours": ours(image_bytes, labels, px, batch)}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.rounds + 1):
        for name, steps in sides.items():
            started = time.perf_counter()
            for _ in range(options.steps):
                next(steps)
            times[name].append((time.perf_counter() - started) / options.steps)
    medians = {name: statistics.median(rounds[1:]) for name, rounds in times.items()}
    for name, rounds in times.items():
        spread = f"{min(rounds[1:]) * 1e3:.0f} to {max(rounds[1:]) * 1e3:.0f}"
        print(f"{name}: {medians[name] * 1e3:.0f} ms a step ({spread}), {batch / medians[name]:.1f} images/s")
    ratio = medians["ours"] / medians["bare"]
    print(f"ours over bare: {ratio:.3f}  torch {torch.__version__}, {px} px, batch {batch}")
    if options.record:
        from record import record

        rounds = [one / other for one, other in zip(times["ours"][1:], times["bare"][1:], strict=True)]
        record(
            "loop_over_bare_loop_ratio",
            ratio,
            unit="ratio",
            low=min(*rounds, ratio),
            high=max(*rounds, ratio),
            n=options.rounds,
            command="python benchmarks/loop_overhead.py"
            + ("" if options.rounds == _ROUNDS else f" --rounds {options.rounds}"),
        )


def bare(image_bytes: torch.Tensor, labels: torch.Tensor, like_with_like: bool):
    """A handwritten loop."""
    model = place(create("efficientnetv2_b0", num_classes=10, dropout=0.1, drop_path=0.1), CPU).train()
    average = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    preprocessing = Preprocessing(image_size=image_bytes.shape[-1])
    while True:
        images = normalize(image_bytes, mean=preprocessing.mean, std=preprocessing.std)
        loss = criterion(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        if like_with_like:
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        if like_with_like:
            with torch.no_grad():
                torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 0.01)
        yield


def ours(image_bytes: torch.Tensor, labels: torch.Tensor, px: int, batch: int):
    """The toolkit's loop on the same images."""
    steps = 10_000
    fields = get_recipe("quick").to_json() | {"model": "efficientnetv2_b0", "epochs": steps, "batch_size": batch}
    schedule = ProgressiveSchedule(image_size=px, dropout=0.1, drop_path=0.1, label_smoothing=0.1)
    fields |= {"precision": "fp32", "compile": False}
    recipe = validate_recipe(fields | {"ghost_batch_size": batch, "progressive": schedule.to_json()}, where="benchmark")
    model = place(create("efficientnetv2_b0", num_classes=10), CPU)
    requests = TrainSampler(labels.numpy(), schedule, steps, batch, batch, None, Key.of(0))
    batches = (Batch(request, image_bytes, labels, ()) for request in requests)
    return train_steps(
        init_state(model, recipe),
        batches,
        StepContext(recipe, Preprocessing(image_size=px), num_classes=10, key=Key.of(0), device=CPU),
        length=RunLength(steps, steps_per_epoch=1.0),
    )


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
