"""Training from scratch with other programs: timm's train script, and programs with the options of ``Program``."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.utils.io import write_text_atomically

# Log line of an update: its number, the number of updates, mean seconds of an update of the epoch so far.
_UPDATE = re.compile(r"Train: \d+ \[ *(\d+)/(\d+) .*?\(([\d.]+)s,")
_SUFFIXES = (".png", ".jpg", ".jpeg")  # that timm finds. Source: IMG_EXTENSIONS of timm 1.0.31


@dataclass(frozen=True)
class Timm:
    """A training run of timm's script.

    Args:
        script: train.py of timm's repository.
        image_size: Image size of training and evaluation.
        quick: Arguments that make it faster (memory format, precision, workers).
        parts: Arguments by part, such as the optimizer. A later part with the same name replaces the earlier part.
    """

    script: Path
    image_size: int
    quick: tuple[str, ...] = ()
    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def with_part(self, name: str, arguments: Sequence[str]) -> Timm:
        """Return a copy with other arguments for one part."""
        return replace(self, parts=self.parts | {name: tuple(arguments)})

    def command(self, images: Path, *, epochs: int, seed: int, output: Path) -> list[str]:
        """Return the command line."""
        classes = sum(folder.is_dir() for folder in (images / "train").iterdir())
        arguments = [
            sys.executable, self.script, images, "--model", "tf_efficientnetv2_b0", "--num-classes", classes,
            "--input-size", 3, self.image_size, self.image_size, "--epochs", epochs, "--val-interval", epochs,
            "--sched-on-updates", "--device", "cpu", "--log-interval", 1_000_000, "--checkpoint-hist", 1,
            "--seed", seed, "--output", output, *self.quick,
        ]  # fmt: skip
        return [str(word) for word in (*arguments, *(word for part in self.parts.values() for word in part))]

    def asked(self, images: Path, *, epochs: int, seed: int) -> dict[str, Any]:
        """Return what decides a run except the images: epochs, arguments, digest of the script, version of timm."""
        command = self.command(images, epochs=epochs, seed=seed, output=Path("OUT"))
        return {"epochs": epochs, "words": command[3:], **self.script_version()}

    def script_version(self) -> dict[str, str]:
        """Return the digest of the script and the version of timm."""
        return {"script_sha256": hashlib.sha256(self.script.read_bytes()).hexdigest(), "timm": version("timm")}

    def trained(self, images: Path, *, epochs: int, seed: int) -> dict[str, Any]:
        """Train; return the final ``top1`` on val, ``train_s`` of the updates of all epochs, and ``spans``.

        ``spans`` is the beginning of the first update and the end of the last update, by ``time.perf_counter``.

        Raises:
            RuntimeError: The script failed.
        """
        with tempfile.TemporaryDirectory() as folder:
            command = self.command(images, epochs=epochs, seed=seed, output=Path(folder))
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
                assert process.stdout is not None
                lines = [(time.perf_counter(), line) for line in process.stdout]
            log = "".join(line for _, line in lines)
            if process.returncode or not _UPDATE.search(log):
                raise RuntimeError(log[-2000:])
            (summary,) = Path(folder).glob("*/summary.csv")
            return {"top1": top1_of(summary), "train_s": round(seconds_of(log), 2), "spans": [span_of(lines)]}


@dataclass(frozen=True)
class Program:
    """A training run of another program (``benchmarks/leaderboard_recipe.py`` is an example).

    Args:
        image_size: Image size of training and evaluation.
        lr: Peak learning rate.
        quick: Arguments that make it faster (precision, workers).
        command: Command. It takes the folder of images, and writes top-1 and seconds to ``--output``.
    """

    image_size: int
    lr: float
    quick: tuple[str, ...]
    command: tuple[str, ...]

    def asked(self, images: Path, *, epochs: int, seed: int) -> dict[str, Any]:
        """Return what decides a run except the images: ``epochs``, and the arguments (``words``)."""
        arguments = (
            "--epochs", epochs, "--lr", self.lr, "--image-size", self.image_size, "--seed", seed, *self.quick,
        )  # fmt: skip
        return {"epochs": epochs, "words": [str(word) for word in arguments]}

    def trained(self, images: Path, *, epochs: int, seed: int) -> dict[str, Any]:
        """Train; return the final ``top1`` on val, ``train_s`` of all updates, their ``spans``, and more.

        Raises:
            CalledProcessError: The program failed.
        """
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "found.json"
            arguments = self.asked(images, epochs=epochs, seed=seed)["words"]
            subprocess.run([*self.command, str(images), "--output", str(out), *arguments], check=True)
            found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
            return found


def seconds_of(log: str) -> float:
    """Sum the seconds of the updates of all epochs, from the last log line of each epoch."""
    lines = [found for line in log.splitlines() if (found := _UPDATE.search(line)) is not None]
    return sum(int(one[2]) * float(one[3]) for one in lines if int(one[1]) + 1 == int(one[2]))


def span_of(lines: Iterable[tuple[float, str]]) -> tuple[float, float]:
    """Return when training began and ended, from log lines with their times."""
    updates = [(at, found) for at, line in lines if (found := _UPDATE.search(line)) is not None]
    (first, update), (last, _) = updates[0], updates[-1]
    return first - float(update[3]), last  # a line follows its update


def top1_of(summary: Path) -> float:
    """Return the top-1 of the last evaluation as a fraction, of the moving average if there is one."""
    with summary.open(newline="") as file:
        return float(list(csv.DictReader(file))[-1]["eval_top1"]) / 100


def once(file: Path, make: Callable[[], dict[str, Any]], conditions: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the content of a results file. Without a file, compute the results and write them.

    Args:
        file: Results file of a run or a measurement.
        make: Function that computes the results.
        conditions: Conditions of the results. The file stores them too.

    Raises:
        SystemExit: A stored condition differs. Conditions that an old file lacks are not checked.
    """
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(file, json.dumps({**make(), **(conditions or {})}, indent=1) + "\n")
    stored: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    for name, value in (conditions or {}).items():
        if stored.get(name, value) != value:
            raise SystemExit(
                f"{file} is of a run with {name} {_text(stored[name])}; asked for is {_text(value)}. Move it away, or "
                "give another folder (--output)."
            )
    return stored


def _text(value: Any) -> str:
    return " ".join(value) if isinstance(value, list) else str(value)


def link_folders(dataset: ImageDataset, train_rows: np.ndarray, val_rows: np.ndarray, out: Path) -> Path:
    """Make train/ and val/ with a folder of links per class, as other scripts read them."""
    for split, rows in (("train", train_rows), ("val", val_rows)):
        for row in rows:
            path = Path(dataset.root) / dataset.paths[row]
            suffix = path.suffix if path.suffix.lower() in _SUFFIXES else ".jpg"  # Pillow reads by content
            link = out / split / dataset.class_names[dataset.labels[row]] / f"{row}{suffix}"
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(path.absolute())
    return out
