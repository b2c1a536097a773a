"""Paired comparisons of whole training runs: both sides share images and seeds.

Functions that several benchmarks share. ``benchmarks.paper`` makes the runs. It resumes stopped runs and reads finished
runs.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from benchmarks.paper.runs import CONFIG, Cell, Runs
from benchmarks.record import hardware, interval
from sklearn.model_selection import train_test_split

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.evaluation.evaluation_result import library_versions
from efficientnetv2.utils.device import lower_precision, pick_device
from efficientnetv2.utils.io import write_text_atomically

# Validate only at the end of each stage, which is required, and on few images.
HARDLY_VALIDATED = ("val_interval_epochs=1000", "val_max_images=32")
# The same, and train on all training images to the last step.
NOTHING_SELECTED = (*HARDLY_VALIDATED, "minival=null")
# Largest ratio of the speeds of two runs at the same image size, if their times are compared. Ours: on an idle machine,
# most recorded pairs are within 4 %.
SAME_PACE = 1.1


def same_numbers(device: str) -> tuple[str, ...]:
    """Overrides that give both sides the same number format and no compilation.

    Args:
        device: Value of ``--device``. Selects its 16-bit format, or fp32 if it has none.
    """
    return f"precision={lower_precision(pick_device(device)) or 'fp32'}", "compile=false"


def refuse_to_record_elsewhere(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse to record results of a device other than the CPU: claim names do not contain a device.

    Args:
        parser: Reports the error.
        options: With ``record`` and ``device``.

    Raises:
        SystemExit: The device is not a CPU.
    """
    if options.record and (device := pick_device(options.device).type) != "cpu":
        parser.error(f"--record is for figures of a CPU, and this would be of {device}: add --device cpu.")


def rows_of(dataset: ImageDataset, split: str, count: int | None, seed: int) -> np.ndarray:
    """Rows of ``count`` images of a split, stratified by class. None or too large a count gives all rows."""
    rows = np.flatnonzero(dataset.split == split)
    if count is None or count >= len(rows):
        return rows
    chosen, _ = train_test_split(rows, train_size=count, stratify=dataset.labels[rows], random_state=seed)
    return np.sort(chosen)


def write_pictures(file: Path, dataset: ImageDataset, train_rows: np.ndarray, val_rows: np.ndarray) -> Path:
    """Write a table of training images (split train) and evaluated images (split val) for ``effnetv2 train``."""
    split = np.full(len(dataset), "", dtype=object)
    split[train_rows], split[val_rows] = "train", "val"
    file.parent.mkdir(parents=True, exist_ok=True)
    dataset.with_split(split).select(np.concatenate([train_rows, val_rows])).to_csv(file)
    return file


def measured(runs: Runs, cell: Cell, seed: int) -> dict[str, Any]:
    """The result of a run: train it, or read it if it is saved.

    Args:
        runs: Options that all runs share.
        cell: The run.
        seed: Seed of the run.

    Returns:
        ``seed``, ``top1``, ``macro_f1``, ``epochs``; ``train_s``: seconds of the steps, with waiting for images;
        ``wall_s``: also with validation and saving; ``linear_probe_top1``, if the run started from weights; ``sizes``:
        for each image size, ``image_size``, the number of trained ``images`` and their ``train_s``; ``others_cores``:
        mean number of cores that other processes used, since the last start; ``asked``: the configuration
        (``Runs.config``); and ``hardware``, ``versions``, ``when``. Older files lack these, and parts of ``asked``.

    Raises:
        InputError: The saved run has another configuration or other images.
    """
    file = runs.folder(cell, seed) / "measured.json"
    if file.exists():
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        runs.refuse_another(cell, found.get(CONFIG), file.parent)
        return found
    start = _Busy.now()
    report = runs.report(cell, seed)
    copied = ("seed", "top1", "macro_f1", "epochs", "train_s", "wall_s", "linear_probe_top1")
    rows = (runs.folder(cell, seed) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = {name: report[name] for name in copied} | {
        "sizes": by_size([json.loads(row) for row in rows]),
        "others_cores": round(start.others(_Busy.now()), 2),
        "hardware": hardware(pick_device(runs.device)),
        "versions": library_versions(),
        "when": time.strftime("%Y-%m-%d"),
        CONFIG: runs.config(cell),
    }
    write_text_atomically(file, json.dumps(found, indent=1) + "\n")
    return found


def refuse_other_regime(file: Path, tuned: Mapping[str, Any], regime: Mapping[str, Any]) -> None:
    """Refuse a tuning result of another regime.

    Args:
        file: Path of the tuning result.
        tuned: Content of the file.
        regime: The requested regime.

    Raises:
        SystemExit: The regimes differ.
    """
    saved, requested = tuned["regime"], json.loads(json.dumps(regime))
    differing = [
        f"{name} {saved.get(name)} there, {value} here" for name, value in requested.items() if saved.get(name) != value
    ]
    if differing:
        raise SystemExit(
            f"{file} was tuned in another regime: {'; '.join(differing)}. Run the same with --tune first, in a "
            "folder of its own (--output)."
        )


def refuse_incomparable_times(runs: Sequence[Mapping[str, Any]]) -> None:
    """Refuse to compare times of different hardware or torch versions.

    Args:
        runs: With ``seed``, ``hardware`` and ``versions``. Older rows lack ``versions``, which are then not checked.

    Raises:
        SystemExit: Hardware or torch version differs.
    """
    places = {f"on {row['hardware']}" for row in runs}
    torches = {f"with torch {row['versions']['torch']}" for row in runs if "versions" in row}
    for values in (places, torches):
        if len(values) > 1:
            raise SystemExit(
                f"Runs with seed {runs[0]['seed']} were made {' and '.join(sorted(values))}, so their times do not "
                "compare: delete those of one kind in OUT, and run this again."
            )


def refuse_other_pace(one: Mapping[str, Any], other: Mapping[str, Any], folder: Path) -> None:
    """Refuse to compare times if the speed of the machine changed between two runs of one architecture.

    A rented machine can be slower by half for half an hour without other load. The check compares images per second
    at the largest size, if both runs have the same largest size.

    Args:
        one: With ``seed`` and ``sizes``. Older rows lack these and are not checked.
        other: Row of the other side.
        folder: Folder of the runs, for the message.

    Raises:
        SystemExit: One run was more than a tenth faster at that size.
    """
    if not (one.get("sizes") and other.get("sizes")):
        return
    ends = [max(row["sizes"], key=lambda size: size["image_size"]) for row in (one, other)]
    a, b = (size["images"] / size["train_s"] for size in ends)
    if ends[0]["image_size"] == ends[1]["image_size"] and max(a, b) > SAME_PACE * min(a, b):
        raise SystemExit(
            f"With seed {one['seed']} one trained {a:.0f} images/s at {ends[0]['image_size']} px, the other {b:.0f}. "
            f"The machine has changed its pace between them, so their times do not compare: delete both in {folder}, "
            "and run this again."
        )


def machines(rows: Iterable[Mapping[str, Any]]) -> str:
    """Description of the hardware of some runs.

    Args:
        rows: With ``hardware``, as ``record.hardware`` returns it. Older rows lack it.
    """
    return " and ".join(sorted({row.get("hardware", "hardware that was not kept") for row in rows}))


def by_size(history: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """Trained images and seconds of each image size, smallest first.

    Args:
        history: Rows of ``metrics.jsonl``. Each stage ends with a row.
    """
    sizes: dict[int, dict[str, float]] = {}
    for row in history:
        if row["kind"] == "train":
            size = sizes.setdefault(row["image_size"], {"image_size": row["image_size"], "images": 0, "train_s": 0.0})
            size["images"] += round(row["images_per_s"] * row["train_s"])
            size["train_s"] = round(size["train_s"] + row["train_s"], 2)
    return [sizes[px] for px in sorted(sizes)]


@dataclass(frozen=True)
class _Busy:
    """Seconds since an arbitrary start.

    Args:
        wall: Wall time.
        machine: Busy time of all cores together.
        own: The part of ``machine`` that this process and its children used.
    """

    wall: float
    machine: float
    own: float

    @classmethod
    def now(cls) -> _Busy:
        cpu, process = psutil.cpu_times(), psutil.Process().cpu_times()
        # Time that other virtual machines took ("steal") counts as busy.
        busy = cpu.user + cpu.system + getattr(cpu, "nice", 0.0) + getattr(cpu, "steal", 0.0)
        own = process.user + process.system
        own += getattr(process, "children_user", 0.0) + getattr(process, "children_system", 0.0)
        return cls(time.monotonic(), busy, own)

    def others(self, later: _Busy) -> float:
        """Mean number of cores that other processes used until a later moment."""
        return max(0.0, (later.machine - self.machine) - (later.own - self.own)) / max(1e-9, later.wall - self.wall)


@dataclass(frozen=True)
class Paired:
    """A mean over seeds, or a paired comparison.

    Args:
        value: Mean of values or of differences in points, or geometric mean of ratios.
        low, high: 95 % interval (Student's t, for ratios of the logarithms). With one seed, the value.
        n: Number of seeds.
    """

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f}), n = {self.n}"


def over_seeds(values: Sequence[float]) -> Paired:
    """Mean and interval of a metric.

    Args:
        values: One per seed.
    """
    mean = statistics.fmean(values)
    low, high = interval(list(values)) if len(values) > 1 else (mean, mean)
    return Paired(mean, low, high, len(values))


def gain(ours: Sequence[float], theirs: Sequence[float]) -> Paired:
    """Mean difference ours − theirs of pairs with the same seed.

    Args:
        ours: Points, one value per seed.
        theirs: Points of the other side, in the same order of seeds.
    """
    return over_seeds([mine - other for mine, other in zip(ours, theirs, strict=True)])


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> Paired:
    """Mean ratio theirs / ours of pairs with the same seed.

    Args:
        theirs: Seconds, one value per seed.
        ours: Seconds of this package, in the same order of seeds.
    """
    logs = [math.log(other) - math.log(mine) for other, mine in zip(theirs, ours, strict=True)]
    found = gain(logs, [0.0] * len(logs))
    return Paired(*(math.exp(one) for one in (found.value, found.low, found.high)), found.n)
