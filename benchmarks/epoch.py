"""Time of a training epoch compared with timm's train script: same images, architecture, image size and augmentation.

Run: python -m benchmarks.epoch PICTURES TIMM_TRAIN_PY [--rounds 3] [--record]

PICTURES has train/ and val/ with a folder per class (Imagenette). TIMM_TRAIN_PY is train.py of timm's repository, which
the package of timm does not contain. Each side runs as its own program, as a user starts it. The sides take turns.

- timm documented: the command that timm's documentation gives for EfficientNet: RMSprop, RandAugment rand-m9-mstd0.5,
  dropout and drop-path 0.2, EMA, 4 workers. It runs in fp32, because --amp needs a GPU, and without random erasing.
- timm best: the fastest, over some updates, of channels-last, bf16, compilation, and 0 to 2 workers. All use fused
  AdamW, the optimizer of ours. timm's own RMSprop updates its tensors one by one.
- ours: ``effnetv2 train`` with RandAugment of the same magnitude and number of operations, dropout, drop-path and EMA.

The time of an epoch is the mean time of an update times the number of updates. The mean excludes the first updates
(start, compilation, timing). Claims:

- ``epoch_vs_timm_train_script``, ``epoch_vs_timm_train_script_best``: time of timm / time of ours
- ``input_wait_share``: fraction of our epoch that waits for images

The names end in ``_without_avx512`` on an x86 processor without AVX-512.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.record import RESULTS, hardware, installed, record_spread, without_avx512

from efficientnetv2.utils.benchmark import TimingStats

_LINE = re.compile(r"Train: \d+ \[ *(\d+)/(\d+) .*?Time: ([\d.]+)s")
# Excluded first updates: compilation and the first images. Ours.
_WARM_UP = 5
_ROUNDS = 2
BEST = {
    "channels-last": ["--channels-last"],
    "channels-last bf16": ["--channels-last", "--amp", "--amp-dtype", "bfloat16"],
    "channels-last compiled": ["--channels-last", "--torchcompile"],
    "channels-last bf16 compiled": ["--channels-last", "--amp", "--amp-dtype", "bfloat16", "--torchcompile"],
}
# Options of all timed variants. A later option overrides an earlier one.
FUSED = ["--opt", "adamw", "--opt-kwargs", "fused=True"]


def timm_command(script: Path, images: Path, px: int, batch: int, classes: int, more: Sequence[str]) -> list[str]:
    """One epoch of timm's script, with the documented options for EfficientNet."""
    arguments = [
        sys.executable, script, images, "--model", "tf_efficientnetv2_b0", "--num-classes", classes,
        "--input-size", 3, px, px, "-b", batch, "--epochs", 1, "--sched", "step", "--decay-epochs", 2.4,
        "--decay-rate", 0.97, "--opt", "rmsproptf", "--opt-eps", 0.001, "--warmup-epochs", 0, "--lr", 0.004,
        "--weight-decay", 1e-5, "--drop", 0.2, "--drop-path", 0.2, "--model-ema", "--model-ema-decay", 0.9999,
        "--aa", "rand-m9-mstd0.5", "--device", "cpu", "--log-interval", 1, "--seed", 0,
    ]  # fmt: skip
    return [str(argument) for argument in (*arguments, *more)]


def timm_updates(command: list[str], most: int | None) -> list[float]:
    """Seconds of each update after the first ones. Stops after ``most`` updates."""
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [*command, "--output", folder], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        seconds, lines = [], []
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            match = _LINE.search(line)
            if match is None:
                continue
            if int(match[1]) >= _WARM_UP:
                seconds.append(float(match[3]))
            if int(match[1]) + 1 == int(match[2]) or (most is not None and len(seconds) >= most):
                break
        process.kill()
        process.wait()
        if not seconds:
            raise RuntimeError("".join(lines[-20:]))
        return seconds


def our_epoch(images_folder: Path, px: int, batch: int) -> tuple[float, float, dict]:
    """Seconds per image of an epoch, the fraction that waits for images, and the recipe values that the run chose."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        overrides = {
            "progressive.stages": 1, "progressive.randaugment": 9, "progressive.dropout": 0.2,
            "progressive.drop_path": 0.2, "crop_scale_min": 0.08, "val_max_images": 64, "checkpoint_minutes": 60,
        }  # fmt: skip
        arguments = [
            sys.executable, "-m", "efficientnetv2", "train", images_folder, "--model", "efficientnetv2_b0",
            "--recipe", "quick", "--weights", "none", "--epochs", 1, "--image-size", px, "--batch-size", batch,
            "--device", "cpu", "--output", out,
        ]  # fmt: skip
        for name, value in overrides.items():
            arguments += ["--set", f"{name}={value}"]
        subprocess.run([str(argument) for argument in arguments], check=True, capture_output=True)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        rows = [line for line in lines if line["kind"] == "train"]
        first = next(index for index, row in enumerate(rows) if row["step"] >= _WARM_UP)
        counted = rows[first + 1 :]
        seconds = sum(row["train_s"] for row in counted)
        images = (counted[-1]["step"] - rows[first]["step"]) * batch
        report = json.loads((out / "report.json").read_text())
        chosen = {name: report["recipe"].get(name) for name in ("precision", "compile", "ghost_batch_size")}
        return seconds / images, sum(row["data_wait_s"] for row in counted) / seconds, chosen


class Timm:
    """timm's script on these images.

    Args:
        options: Options of the command.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.classes = sum(folder.is_dir() for folder in (options.pictures / "train").iterdir())

    def seconds_per_image(self, more: Sequence[str], most: int | None) -> float:
        """Seconds per image of an epoch, or of its first ``most`` timed updates."""
        px, batch = self.options.image_size, self.options.batch_size
        command = timm_command(self.options.script, self.options.pictures, px, batch, self.classes, more)
        seconds = timm_updates(command, most)
        return sum(seconds) / len(seconds) / batch

    def tuned(self) -> dict[tuple[str, str], float]:
        """(variant, workers) -> seconds per image. Compilation is tried with the fastest number of workers only."""
        tried: dict[tuple[str, str], float] = {}
        for variant, arguments in BEST.items():
            quickest = min(tried, key=lambda pair: tried[pair])[1] if tried else ""
            for workers in [quickest] if "compiled" in variant else ["0", "1", "2"]:
                seconds = self.seconds_per_image([*FUSED, *arguments, "-j", workers], self.options.tune_updates)
                tried[variant, workers] = seconds
                print(f"tuning timm: {variant}, {workers} workers: {1 / seconds:.1f} images/s", flush=True)
        return tried


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("script", type=Path, help="train.py of timm's repository")
    parser.add_argument("--rounds", type=int, default=_ROUNDS)
    parser.add_argument("--record", action="store_true", help="write results/summary.json and epoch.json")
    other = parser.add_argument_group("smaller measurements, to test the program; not recorded")
    other.add_argument("--image-size", type=int, default=128)
    other.add_argument("--batch-size", type=int, default=64)
    other.add_argument("--updates", type=int, help="largest number of timm updates per epoch (default: all)")
    other.add_argument("--tune-updates", type=int, default=12, help="updates per variant of timm best")
    options = parser.parse_args()
    names = ("image_size", "batch_size", "updates", "tune_updates")
    if options.record and any(getattr(options, name) != parser.get_default(name) for name in names):
        parser.error("--record is for whole epochs at 128 px and batches of 64, and 12 updates to tune by.")
    return options


def main() -> None:
    options = _parsed()
    images = sum(1 for path in (options.pictures / "train").rglob("*") if path.is_file())
    timm = Timm(options)
    tried = timm.tuned()
    best = min(tried, key=lambda value: tried[value])
    sides = {"timm documented": ["-j", "4"], "timm best": [*FUSED, *BEST[best[0]], "-j", best[1]]}
    per_image: dict[str, list[float]] = {"timm documented": [], "timm best": [], "ours": []}
    waits, chosen = [], {}
    for _ in range(options.rounds):
        for side, arguments in sides.items():
            per_image[side].append(timm.seconds_per_image(arguments, options.updates))
        seconds, wait, chosen = our_epoch(options.pictures, options.image_size, options.batch_size)
        per_image["ours"].append(seconds)
        waits.append(wait)
        epochs = ", ".join(f"{side} {images * values[-1]:.0f} s" for side, values in per_image.items())
        print(f"{epochs}; ours waited {wait:.1%}", flush=True)
    ratios = {
        f"epoch_vs_timm_train_script{suffix}{without_avx512()}": TimingStats.of(
            [theirs / ours for theirs, ours in zip(per_image[side], per_image["ours"], strict=True)]
        )
        for side, suffix in (("timm documented", ""), ("timm best", "_best"))
    }
    ratios[f"input_wait_share{without_avx512()}"] = TimingStats.of(waits)
    print(f"timm best: {', '.join(best)} workers; ours: {chosen}; {images:,} pictures")
    for name, spread in ratios.items():
        print(f"{name}: {spread}")
    if options.record:
        raw = {
            "when": time.strftime("%Y-%m-%d"),
            "hardware": hardware(),
            "images": images,
            "image_size": options.image_size,
            "batch_size": options.batch_size,
            "seconds_per_epoch": {side: [images * value for value in values] for side, values in per_image.items()},
            "tried_for_timm_best_images_per_s": {" ".join(name): 1 / value for name, value in tried.items()},
            "timm_best": best,
            "ours_chose": chosen,
        }
        _record(ratios, raw, options.rounds)


def _record(spreads: dict[str, TimingStats], raw: dict, rounds: int) -> None:
    more = "" if rounds == _ROUNDS else f" --rounds {rounds}"
    command = f"python -m benchmarks.epoch IMAGENETTE TIMM_TRAIN_PY{more} --record"
    for name, spread in spreads.items():
        unit = "fraction" if name.startswith("input_wait_share") else "ratio"
        record_spread(name, spread, unit=unit, command=command, versions=installed("timm"))
    (RESULTS / f"epoch{without_avx512()}.json").write_text(json.dumps(raw, indent=1) + "\n")


if __name__ == "__main__":
    main()
