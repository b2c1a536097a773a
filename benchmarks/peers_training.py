"""Others' trainings from scratch: timm's train script, by its command line, and torchvision's reference recipe."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.utils.io import write_text_atomically

# The line of an epoch's last update, and the mean seconds of its updates.
_LAST = re.compile(r"Train: \d+ \[ *(\d+)/(\d+) .*?\(([\d.]+)s,")


@dataclass(frozen=True)
class Timm:
    """A training by timm's script.

    Args:
        script: train.py of timm's repository.
        image_size: of training and evaluation.
        quick: words that make it faster (memory format, precision, workers).
        parts: words by what they decide; a later part of the same name takes the place of the earlier.
    """

    script: Path
    image_size: int
    quick: tuple[str, ...] = ()
    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def with_part(self, name: str, words: Sequence[str]) -> Timm:
        """The same with other words for one part."""
        return replace(self, parts=self.parts | {name: tuple(words)})

    def command(self, pictures: Path, *, epochs: int, seed: int, output: Path) -> list[str]:
        """What a user would type."""
        classes = sum(folder.is_dir() for folder in (pictures / "train").iterdir())
        words = [
            sys.executable, self.script, pictures, "--model", "tf_efficientnetv2_b0", "--num-classes", classes,
            "--input-size", 3, self.image_size, self.image_size, "--epochs", epochs, "--val-interval", epochs,
            "--sched-on-updates", "--device", "cpu", "--log-interval", 1_000_000, "--checkpoint-hist", 1,
            "--seed", seed, "--output", output, *self.quick,
        ]  # fmt: skip
        return [str(word) for word in (*words, *(word for part in self.parts.values() for word in part))]

    def asked(self, pictures: Path, *, epochs: int, seed: int) -> dict[str, Any]:
        """What decides a run except the images: epochs, words after script and images, script, version of timm."""
        command = self.command(pictures, epochs=epochs, seed=seed, output=Path("OUT"))
        script = hashlib.sha256(Path(self.script).read_bytes()).hexdigest()
        return {"epochs": epochs, "words": command[3:], "script_sha256": script, "timm": version("timm")}

    def trained(self, pictures: Path, *, epochs: int, seed: int) -> dict[str, Any]:
        """``top1`` on val at the end, ``train_s`` of the updates of all epochs."""
        with tempfile.TemporaryDirectory() as folder:
            command = self.command(pictures, epochs=epochs, seed=seed, output=Path(folder))
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            if done.returncode:
                raise RuntimeError(done.stdout[-2000:])
            (summary,) = Path(folder).glob("*/summary.csv")
            return {"top1": top1_of(summary), "train_s": round(seconds_of(done.stdout), 2)}


@dataclass(frozen=True)
class Reference:
    """A training by torchvision's reference recipe (``benchmarks.reference_recipe``), or another with its words.

    Args:
        image_size: of training and evaluation.
        lr: peak learning rate.
        quick: words that make it faster (precision, workers).
        program: that is run.
    """

    image_size: int
    lr: float
    quick: tuple[str, ...] = ()
    program: tuple[str, ...] = (sys.executable, "-m", "benchmarks.reference_recipe")

    def asked(self, pictures: Path, *, epochs: int, seed: int) -> dict[str, Any]:
        """What decides a run but for the images: ``epochs``, and the ``words`` after them."""
        words = (
            "--epochs", epochs, "--lr", self.lr, "--image-size", self.image_size, "--seed", seed, *self.quick,
        )  # fmt: skip
        return {"epochs": epochs, "words": [str(word) for word in words]}

    def trained(self, pictures: Path, *, epochs: int, seed: int) -> dict[str, Any]:
        """``top1`` on val at the end, ``train_s`` of the updates of all epochs, and what else the program writes."""
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "found.json"
            words = self.asked(pictures, epochs=epochs, seed=seed)["words"]
            subprocess.run([*self.program, str(pictures), "--output", str(out), *words], check=True)
            found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
            return found


def seconds_of(log: str) -> float:
    """Of the updates of all epochs, from the last line of each."""
    lines = [found for line in log.splitlines() if (found := _LAST.search(line)) is not None]
    return sum(int(one[2]) * float(one[3]) for one in lines if int(one[1]) + 1 == int(one[2]))


def top1_of(summary: Path) -> float:
    """Of the last evaluation, as a fraction; of the moving average where there is one."""
    with summary.open(newline="") as file:
        return float(list(csv.DictReader(file))[-1]["eval_top1"]) / 100


def once(file: Path, make: Callable[[], dict[str, Any]], asked: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a file keeps; made and kept where there is none.

    Args:
        file: of a run or a measurement.
        make: it.
        asked: what decided it, and what it says of itself.

    Raises:
        SystemExit: what is kept was asked otherwise. What it does not say is not looked at: it was kept before that
            was told.
    """
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(file, json.dumps({**make(), **(asked or {})}, indent=1) + "\n")
    kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    for name, value in (asked or {}).items():
        if kept.get(name, value) != value:
            raise SystemExit(
                f"{file} is of a run with {name} {_words(kept[name])}; asked for is {_words(value)}. Move it away, or "
                "give another folder (--output)."
            )
    return kept


def _words(value: Any) -> str:
    return " ".join(value) if isinstance(value, list) else str(value)


def link_folders(dataset: ImageDataset, learning: np.ndarray, answering: np.ndarray, out: Path) -> Path:
    """train/ and val/ with a folder per class, of links to the images: what others' scripts read."""
    for split, rows in (("train", learning), ("val", answering)):
        for row in rows:
            path = Path(dataset.root) / dataset.paths[row]
            link = out / split / dataset.class_names[dataset.labels[row]] / f"{row}{path.suffix}"
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(path.absolute())
    return out
