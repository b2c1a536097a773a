"""Training step on a GPU compared with timm, and the effect of RandAugment and of reading files on its speed.

Run: python -m benchmarks.gpu [--only s_300] [--record]    (make bench-gpu)

Needs one CUDA device. The benchmark makes its own images. The sides are those of ``benchmarks.train_step``: timm in its
usual form, with channels-last memory, with AMP, this also compiled, without and with CUDA graphs; and ours with "auto"
and CUDA graphs. With ``--cudnn-benchmark``, cuDNN measures its algorithms for all sides. Then ours is timed alone, in
turn: a batch from memory, the same with RandAugment, and JPEG files read by one worker per core, with RandAugment.
Files are read only in their own turn, and batches that were read before the timed steps are discarded. Compiling takes
minutes. Each part (s_300, b0_192, m_384, shares) is recorded when it ends. Claims:

- ``gpu_step_*_vs_timm_best``: speed of ours / speed of the fastest timm side
- ``gpu_randaugment_share``: fraction of a step that RandAugment adds
- ``gpu_busy_share``: speed from files / speed from memory, both with RandAugment

``--try-out`` tests the program on a CPU with tiny images. Its results mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.record import RESULTS, hardware, installed, record_spread
from benchmarks.train_step import OURS, Reader, Workload, our_losses, our_recipe, our_steps, time_steps
from PIL import Image
from torch import Tensor

from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.data.loader import PREFETCH, Batch, TrainingImages, training_batches
from efficientnetv2.data.sampler import BatchRequest
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.utils.benchmark import TimingStats
from efficientnetv2.utils.device import synchronizer
from efficientnetv2.utils.random_key import Key

CASES = {
    "s_300": ("efficientnetv2_s", 300, 128),
    "b0_192": ("efficientnetv2_b0", 192, 512),
    "m_384": ("efficientnetv2_m", 384, 64),
}
_SHARES = "shares"
MAGNITUDE = 15.0  # RandAugment at the end of the paper's schedule for S
STEPS_A_ROUND = 10
_ROUNDS = 9


def paint(folder: Path, count: int) -> None:
    """Write JPEG files of 500 x 375 px with smooth noise, about as large as photos."""
    generator = np.random.default_rng(0)
    for index in range(count):
        class_folder = folder / f"class_{index % 8}"
        class_folder.mkdir(exist_ok=True)
        coarse = generator.integers(0, 256, (47, 63, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((500, 375)).save(class_folder / f"{index}.jpg", quality=90)


def in_turns(read: Reader, *, ahead: int, steps: int) -> Reader:
    """Batches for turns of ``steps`` batches. Nothing is read between turns.

    Args:
        read: Makes batches of requests. Worker processes read ahead.
        ahead: Number of batches that are read ahead. Each turn discards as many first, so its own batches are read
            during the turn.
        steps: Batches of a turn.
    """

    def read_in_turns(requests: Iterable[BatchRequest]) -> Iterator[Batch]:
        remaining = iter(requests)
        while True:
            yield from islice(read(islice(remaining, ahead + steps)), ahead, None)

    return read_in_turns


def timed(
    loops: Mapping[str, Iterator[Tensor]], *, steps: int, rounds: int, wait: Callable[[], object]
) -> dict[str, list[float]]:
    """Seconds of ``steps`` steps of each loop, in turn. The first step of a turn and the first round are not timed.

    Args:
        loops: Name -> iterator that makes a step for each loss.
        steps: Timed steps of a turn.
        rounds: Timed rounds.
        wait: Waits for the device.
    """
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(1 + rounds):
        for name in list(loops) if number % 2 == 0 else list(loops)[::-1]:
            next(loops[name])
            wait()
            began = time.perf_counter()
            for _ in range(steps):
                next(loops[name])
            wait()
            if number:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def shares(work: Workload, folder: Path, *, rounds: int) -> dict[str, TimingStats]:
    """Fraction of a step that RandAugment adds, and speed from files / speed from memory."""
    recipe, _ = our_recipe(work)
    strong = recipe.model_copy(update={"progressive": replace(recipe.progressive, randaugment=MAGNITUDE)})
    dataset = load_dataset(str(folder))
    images = TrainingImages(
        dataset, Preprocessing(image_size=work.image_size), recipe.crop_scale_min, Key.of(0), threads=1
    )
    workers = len(os.sched_getaffinity(0))
    ahead = PREFETCH * workers
    steps = max(STEPS_A_ROUND, ahead)  # workers finish together, so few batches give random times

    def files(requests: Iterable[BatchRequest]) -> Iterable[Batch]:
        return training_batches(images, requests, workers=workers, pin_memory=work.device.type == "cuda")

    reading = in_turns(files, ahead=ahead, steps=1 + steps)
    loops = {
        "memory": our_losses(work, recipe),
        "memory, RandAugment": our_losses(work, strong),
        "files, RandAugment": (step.loss for step in our_steps(work, strong, reading, dataset.labels)),
    }
    seconds = timed(loops, steps=steps, rounds=rounds, wait=synchronizer(work.device))
    from_memory, with_randaugment, from_files = seconds.values()
    return {
        "gpu_randaugment_share": TimingStats.of(
            [1 - fast / slow for fast, slow in zip(from_memory, with_randaugment, strict=True)]
        ),
        "gpu_busy_share": TimingStats.of(
            [min(1.0, fast / slow) for fast, slow in zip(with_randaugment, from_files, strict=True)]
        ),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=_ROUNDS)
    parser.add_argument("--only", choices=[*CASES, _SHARES], action="append")
    parser.add_argument("--cudnn-benchmark", action="store_true", help="let cuDNN measure its algorithms")
    parser.add_argument("--record", action="store_true", help="write results/summary.json and gpu.json")
    parser.add_argument("--try-out", action="store_true", help="test the program on a CPU with tiny images")
    options = parser.parse_args()
    if not options.try_out and not torch.cuda.is_available():
        print("There is no CUDA device here: nothing was measured. See whether it works with --try-out.")
        return 1
    device = torch.device("cpu" if options.try_out else "cuda")
    torch.backends.cudnn.benchmark = options.cudnn_benchmark
    flags = [f"--only {name}" for name in options.only or ()] + ["--cudnn-benchmark"] * options.cudnn_benchmark
    failed = False
    for part in options.only or [*CASES, _SHARES]:
        model, px, batch = ("efficientnetv2_b0", 32, 8) if options.try_out else CASES.get(part, CASES["s_300"])
        work = Workload(model, px, batch, rate=0.1, device=device)
        try:
            found, raw = measure(part, work, rounds=options.rounds, tiny=options.try_out)
        except torch.OutOfMemoryError as error:
            print(f"{part}: skipped, for this GPU has too little memory ({str(error).splitlines()[0]})", flush=True)
            found, raw, failed = {}, {}, True
        for name, spread in found.items():
            print(f"{name}: {spread}", flush=True)
        if options.record and found and not options.try_out:
            keep(found, raw, options.rounds, flags)
        torch.cuda.empty_cache()
    return int(failed)


def measure(part: str, work: Workload, *, rounds: int, tiny: bool) -> tuple[dict[str, TimingStats], dict[str, Any]]:
    """The claims of a part, and the raw results of a case by its name."""
    if part == _SHARES:
        with tempfile.TemporaryDirectory() as folder:
            paint(Path(folder), 64 if tiny else 2048)
            return shares(work, Path(folder), rounds=rounds), {}
    measured = time_steps(work, rounds=rounds, compiled=not tiny, say=print, libraries=("timm",))
    print(part, *measured.lines(), sep="\n", flush=True)
    best = measured.fastest("timm")
    return {f"gpu_step_{part}_vs_timm_best": measured.ahead_of(best)}, {part: {"best": best} | measured.to_json()}


def keep(found: dict[str, TimingStats], raw: dict, rounds: int, flags: Sequence[str] = ()) -> None:
    """Record the claims and write the raw seconds."""
    on, suffix = hardware(torch.device("cuda")), "_cudnn_benchmark" if "--cudnn-benchmark" in flags else ""
    more = "".join(f" {flag}" for flag in flags) + ("" if rounds == _ROUNDS else f" --rounds {rounds}")
    for name, spread in found.items():
        unit = "ratio" if "_vs_" in name else "fraction"
        record_spread(
            name + suffix,
            spread,
            unit=unit,
            command=f"python -m benchmarks.gpu{more}",
            on=on,
            versions=installed("timm"),
        )
    file = RESULTS / "gpu.json"
    saved = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    earlier = saved.get(OURS, {}) if saved.get("hardware") == on else {}
    cases = earlier | {case + suffix: row for case, row in raw.items()}
    file.write_text(json.dumps({"hardware": on, OURS: cases}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
