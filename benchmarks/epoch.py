"""An epoch of training next to an epoch of timm's own train script: the same images, network, size and strength.

Run: python -m benchmarks.epoch PICTURES TIMM_TRAIN_PY [--rounds 3] [--record]

PICTURES has train/ and val/ with a folder per class (Imagenette); TIMM_TRAIN_PY is the train.py of timm's repository,
which the package does not contain. Each side is its own program, as a user starts it; they take turns.

- timm documented: RMSprop, RandAugment rand-m9-mstd0.5, dropout and drop-path 0.2, EMA, 4 workers: the command that
  timm's documentation gives for EfficientNet, in fp32 because its --amp asks for a GPU; without random erasing.
- timm best: the fastest, over some updates, of channels-last, bf16, compiling, and 0 to 2 workers, each with AdamW
  fused, which is the optimizer of ours; timm's own RMSprop goes over its tensors one by one.
- ours: ``effnetv2 train`` with RandAugment of the same magnitude and number, dropout, drop-path and EMA, as it comes.

An epoch's time is the mean time of its updates after the first ones (start-up, compiling and measuring are not in it)
times their number. ``input_wait_share`` is the share of it that our loop waited for images.
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

from benchmarks.record import RESULTS, hardware, record_spread

from efficientnetv2.utils.benchmark import TimingStats

_LINE = re.compile(r"Train: \d+ \[ *(\d+)/(\d+) .*?Time: ([\d.]+)s")
# Updates at the beginning that do not count: compiling and the first images. Ours.
_WARM_UP = 5
_ROUNDS = 2
BEST = {
    "channels-last": ["--channels-last"],
    "channels-last bf16": ["--channels-last", "--amp", "--amp-dtype", "bfloat16"],
    "channels-last bf16 compiled": ["--channels-last", "--amp", "--amp-dtype", "bfloat16", "--torchcompile"],
}
# Of those that are timed; a word that comes later holds.
FUSED = ["--opt", "adamw", "--opt-kwargs", "fused=True"]


def timm_command(script: Path, pictures: Path, px: int, batch: int, classes: int, more: Sequence[str]) -> list[str]:
    """Timm's script as its documentation trains EfficientNet, an epoch of it."""
    words = [
        sys.executable, script, pictures, "--model", "tf_efficientnetv2_b0", "--num-classes", classes,
        "--input-size", 3, px, px, "-b", batch, "--epochs", 1, "--sched", "step", "--decay-epochs", 2.4,
        "--decay-rate", 0.97, "--opt", "rmsproptf", "--opt-eps", 0.001, "--warmup-epochs", 0, "--lr", 0.004,
        "--weight-decay", 1e-5, "--drop", 0.2, "--drop-path", 0.2, "--model-ema", "--model-ema-decay", 0.9999,
        "--aa", "rand-m9-mstd0.5", "--device", "cpu", "--log-interval", 1, "--seed", 0,
    ]  # fmt: skip
    return [str(word) for word in (*words, *more)]


def timm_updates(command: list[str], most: int | None) -> list[float]:
    """Seconds of each update after the first ones; stopped after ``most``."""
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [*command, "--output", folder], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        seconds, lines = [], []
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            found = _LINE.search(line)
            if found is None:
                continue
            if int(found[1]) >= _WARM_UP:
                seconds.append(float(found[3]))
            if int(found[1]) + 1 == int(found[2]) or (most is not None and len(seconds) >= most):
                break
        process.kill()
        process.wait()
        if not seconds:
            raise RuntimeError("".join(lines[-20:]))
        return seconds


def our_epoch(pictures: Path, px: int, batch: int) -> tuple[float, float, dict]:
    """Seconds per image of an epoch, the share of it that waits for images, and what the run chose."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        settings = {
            "progressive.stages": 1, "progressive.randaugment": 9, "progressive.dropout": 0.2,
            "progressive.drop_path": 0.2, "crop_scale_min": 0.08, "val_max_images": 64, "checkpoint_minutes": 60,
        }  # fmt: skip
        words = [
            sys.executable, "-m", "efficientnetv2", "train", pictures, "--model", "efficientnetv2_b0",
            "--recipe", "quick", "--weights", "none", "--epochs", 1, "--image-size", px, "--batch-size", batch,
            "--device", "cpu", "--output", out,
        ]  # fmt: skip
        for name, value in settings.items():
            words += ["--set", f"{name}={value}"]
        subprocess.run([str(word) for word in words], check=True, capture_output=True)
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
        options: of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.classes = sum(folder.is_dir() for folder in (options.pictures / "train").iterdir())

    def seconds_per_image(self, more: Sequence[str], most: int | None) -> float:
        """Of an epoch, or of so many updates of it."""
        px, batch = self.options.image_size, self.options.batch_size
        command = timm_command(self.options.script, self.options.pictures, px, batch, self.classes, more)
        seconds = timm_updates(command, most)
        return sum(seconds) / len(seconds) / batch

    def tuned(self) -> dict[tuple[str, str], float]:
        """(kind, workers) -> seconds per image; compiling is tried with the workers that were best without."""
        tried: dict[tuple[str, str], float] = {}
        for kind, words in BEST.items():
            quickest = min(tried, key=lambda one: tried[one])[1] if tried else ""
            for workers in [quickest] if "compiled" in kind else ["0", "1", "2"]:
                seconds = self.seconds_per_image([*FUSED, *words, "-j", workers], self.options.tune_updates)
                tried[kind, workers] = seconds
                print(f"tuning timm: {kind}, {workers} workers: {1 / seconds:.1f} images/s", flush=True)
        return tried


def asked() -> argparse.Namespace:
    """The words of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("script", type=Path, help="train.py of timm's repository")
    parser.add_argument("--rounds", type=int, default=_ROUNDS)
    parser.add_argument("--record", action="store_true", help="write results/summary.json and epoch.json")
    other = parser.add_argument_group("another measurement, to see that it runs; not to be recorded")
    other.add_argument("--image-size", type=int, default=128)
    other.add_argument("--batch-size", type=int, default=64)
    other.add_argument("--updates", type=int, help="at most so many of timm's per epoch; all otherwise")
    other.add_argument("--tune-updates", type=int, default=12, help="per setting that is tried for timm best")
    options = parser.parse_args()
    names = ("image_size", "batch_size", "updates", "tune_updates")
    if options.record and any(getattr(options, name) != parser.get_default(name) for name in names):
        parser.error("--record is for whole epochs at 128 px and batches of 64, and 12 updates to tune by.")
    return options


def main() -> None:
    options = asked()
    images = sum(1 for path in (options.pictures / "train").rglob("*") if path.is_file())
    timm = Timm(options)
    tried = timm.tuned()
    best = min(tried, key=lambda one: tried[one])
    sides = {"timm documented": ["-j", "4"], "timm best": [*FUSED, *BEST[best[0]], "-j", best[1]]}
    per_image: dict[str, list[float]] = {"timm documented": [], "timm best": [], "ours": []}
    waits, chosen = [], {}
    for _ in range(options.rounds):
        for side, words in sides.items():
            per_image[side].append(timm.seconds_per_image(words, options.updates))
        seconds, waited, chosen = our_epoch(options.pictures, options.image_size, options.batch_size)
        per_image["ours"].append(seconds)
        waits.append(waited)
        epochs = ", ".join(f"{side} {images * values[-1]:.0f} s" for side, values in per_image.items())
        print(f"{epochs}; ours waited {waited:.1%}", flush=True)
    ratios = {
        f"epoch_vs_timm_train_script{end}": TimingStats.of(
            [theirs / ours for theirs, ours in zip(per_image[side], per_image["ours"], strict=True)]
        )
        for side, end in (("timm documented", ""), ("timm best", "_best"))
    }
    ratios["input_wait_share"] = TimingStats.of(waits)
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
            "seconds_per_epoch": {side: [images * one for one in values] for side, values in per_image.items()},
            "tried_for_timm_best_images_per_s": {" ".join(name): 1 / one for name, one in tried.items()},
            "timm_best": best,
            "ours_chose": chosen,
        }
        _record(ratios, raw, options.rounds)


def _record(spreads: dict[str, TimingStats], raw: dict, rounds: int) -> None:
    more = "" if rounds == _ROUNDS else f" --rounds {rounds}"
    command = f"python -m benchmarks.epoch IMAGENETTE TIMM_TRAIN_PY{more} --record"
    for name, spread in spreads.items():
        unit = "fraction" if name == "input_wait_share" else "ratio"
        record_spread(name, spread, unit=unit, command=command)
    (RESULTS / "epoch.json").write_text(json.dumps(raw, indent=1) + "\n")


if __name__ == "__main__":
    main()
