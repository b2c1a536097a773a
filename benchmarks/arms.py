"""Whole runs compared in pairs: the same images and seeds on each side, kept one by one.

What stands here is shared by the scripts that compare trainings; the runs themselves are those of ``benchmarks.paper``,
so that one which was stopped goes on and one which is done is only read.
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

# No validation between but at the ends of stages, where it has to be, and then on few images.
HARDLY_VALIDATED = ("val_interval_epochs=1000", "val_max_images=32")
# Of two runs whose times are compared, how much faster one may have been at the same size. Ours: with nothing else on a
# machine most recorded pairs are within 4 %.
SAME_PACE = 1.1


def same_numbers(device: str) -> tuple[str, ...]:
    """Settings for one kind of numbers and no compiling on every side, whatever measuring would choose.

    Args:
        device: as ``--device`` says it; the 16-bit format of its hardware is taken, fp32 where there is none.
    """
    return f"precision={lower_precision(pick_device(device)) or 'fp32'}", "compile=false"


def refuse_to_record_elsewhere(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """The figures' names say nothing of a device, so they are of the processor.

    Args:
        parser: whose error it is.
        options: with ``record`` and ``device``.

    Raises:
        SystemExit: it would be recorded of another device.
    """
    if options.record and (device := pick_device(options.device).type) != "cpu":
        parser.error(f"--record is for figures of a CPU, and this would be of {device}: add --device cpu.")


def rows_of(dataset: ImageDataset, split: str, count: int | None, seed: int) -> np.ndarray:
    """So many images of a split, stratified by class; all of them with None or where there are fewer."""
    rows = np.flatnonzero(dataset.split == split)
    if count is None or count >= len(rows):
        return rows
    chosen, _ = train_test_split(rows, train_size=count, stratify=dataset.labels[rows], random_state=seed)
    return np.sort(chosen)


def write_pictures(file: Path, dataset: ImageDataset, learning: np.ndarray, answering: np.ndarray) -> Path:
    """A table of images to train on and images to answer, for ``effnetv2 train``."""
    split = np.full(len(dataset), "", dtype=object)
    split[learning], split[answering] = "train", "val"
    file.parent.mkdir(parents=True, exist_ok=True)
    dataset.with_split(split).select(np.concatenate([learning, answering])).to_csv(file)
    return file


def measured(runs: Runs, cell: Cell, seed: int) -> dict[str, Any]:
    """What a run came to: trained, or read where it has been.

    Args:
        runs: what it has in common with the others.
        cell: that is run.
        seed: of the run.

    Returns:
        ``seed``, ``top1``, ``macro_f1``, ``epochs``, ``train_s`` (wall time of the steps, waiting for images
        included), ``wall_s`` (validation and saving too), ``linear_probe_top1`` (where weights were given), ``sizes``:
        for each size of image, ``image_size``, how many ``images`` were trained on and the ``train_s`` that took;
        ``others_cores``: how many processor cores were busy with something else meanwhile, in this sitting;
        ``hardware``, ``versions`` and ``when`` of the run; and ``asked``: what decided it (``Runs.config``). What was
        kept before that was said has neither the latter three nor all that is asked.

    Raises:
        InputError: what is kept is of a run with other words or other images.
    """
    kept = runs.folder(cell, seed) / "measured.json"
    if kept.exists():
        found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        runs.refuse_another(cell, found.get(CONFIG), kept.parent)
        return found
    before = _Busy.now()
    report = runs.report(cell, seed)
    names = ("seed", "top1", "macro_f1", "epochs", "train_s", "wall_s", "linear_probe_top1")
    rows = (runs.folder(cell, seed) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = {name: report[name] for name in names} | {
        "sizes": by_size([json.loads(row) for row in rows]),
        "others_cores": round(before.others(_Busy.now()), 2),
        "hardware": hardware(pick_device(runs.device)),
        "versions": library_versions(),
        "when": time.strftime("%Y-%m-%d"),
        CONFIG: runs.config(cell),
    }
    write_text_atomically(kept, json.dumps(found, indent=1) + "\n")
    return found


def refuse_other_regime(file: Path, tuned: Mapping[str, Any], regime: Mapping[str, Any]) -> None:
    """What was tuned serves the regime that it was tuned in.

    Args:
        file: of what was tuned.
        tuned: what it holds.
        regime: that is asked for.

    Raises:
        SystemExit: it was tuned in another.
    """
    there, here = tuned["regime"], json.loads(json.dumps(regime))
    differing = [
        f"{name} {there.get(name)} there, {value} here" for name, value in here.items() if there.get(name) != value
    ]
    if differing:
        raise SystemExit(
            f"{file} was tuned in another regime: {'; '.join(differing)}. Run the same with --tune first, in a "
            "folder of its own (--output)."
        )


def refuse_incomparable_times(runs: Sequence[Mapping[str, Any]]) -> None:
    """Runs whose times are compared were made on the same kind of machine, and with the same torch.

    Args:
        runs: with ``seed``, ``hardware`` and ``versions``; what was kept before the last was said has none, and is
            not checked by it.

    Raises:
        SystemExit: they were not.
    """
    places = {f"on {row['hardware']}" for row in runs}
    torches = {f"with torch {row['versions']['torch']}" for row in runs if "versions" in row}
    for kinds in (places, torches):
        if len(kinds) > 1:
            raise SystemExit(
                f"Runs with seed {runs[0]['seed']} were made {' and '.join(sorted(kinds))}, so their times do not "
                "compare: delete those of one kind in OUT, and run this again."
            )


def refuse_other_pace(one: Mapping[str, Any], other: Mapping[str, Any], folder: Path) -> None:
    """Two runs of one network whose times are compared were made while the machine computed at the same pace.

    A rented machine may be slower by half for half an hour, though nothing else runs within it. Told by the images a
    second at the largest size, which both train at.

    Args:
        one: with ``seed`` and ``sizes``; what was kept before these were told has none, and is not checked.
        other: The same of the other side.
        folder: of the runs, for the message.

    Raises:
        SystemExit: one was more than a tenth faster there than the other.
    """
    if not (one.get("sizes") and other.get("sizes")):
        return
    paces = [max(row["sizes"], key=lambda size: size["image_size"]) for row in (one, other)]
    a, b = (size["images"] / size["train_s"] for size in paces)
    if paces[0]["image_size"] == paces[1]["image_size"] and max(a, b) > SAME_PACE * min(a, b):
        raise SystemExit(
            f"With seed {one['seed']} one trained {a:.0f} images/s at {paces[0]['image_size']} px, the other {b:.0f}. "
            f"The machine has changed its pace between them, so their times do not compare: delete both in {folder}, "
            "and run this again."
        )


def machines(rows: Iterable[Mapping[str, Any]]) -> str:
    """The hardware that some runs were made on, in words.

    Args:
        rows: with ``hardware``, as ``record.hardware`` gives it; of what was kept before that was said, without.
    """
    return " and ".join(sorted({row.get("hardware", "hardware that was not kept") for row in rows}))


def by_size(history: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """What was trained on at each size of image, and the seconds of that, smallest first.

    Args:
        history: rows of ``metrics.jsonl``; one ends with every stage.
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
    """Seconds since some beginning.

    Args:
        wall: on the clock.
        machine: that all cores together were busy.
        own: of them for this process and its children.
    """

    wall: float
    machine: float
    own: float

    @classmethod
    def now(cls) -> _Busy:
        cpu, mine = psutil.cpu_times(), psutil.Process().cpu_times()
        # What another machine on the same hardware took ("steal") was not idle for us either.
        busy = cpu.user + cpu.system + getattr(cpu, "nice", 0.0) + getattr(cpu, "steal", 0.0)
        own = mine.user + mine.system
        own += getattr(mine, "children_user", 0.0) + getattr(mine, "children_system", 0.0)
        return cls(time.monotonic(), busy, own)

    def others(self, later: _Busy) -> float:
        """Cores that others kept busy, on average, between this moment and a later one."""
        return max(0.0, (later.machine - self.machine) - (later.own - self.own)) / max(1e-9, later.wall - self.wall)


@dataclass(frozen=True)
class Paired:
    """A figure over seeds, or a comparison.

    Args:
        value: mean of the figures, or of the differences in points, or geometric mean of the ratios.
        low, high: its 95 % interval (Student's t, of the logarithms for ratios); the value itself with one seed.
        n: seeds.
    """

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f}), n = {self.n}"


def over_seeds(values: Sequence[float]) -> Paired:
    """The mean of a figure and its interval.

    Args:
        values: one per seed.
    """
    mean = statistics.fmean(values)
    low, high = interval(list(values)) if len(values) > 1 else (mean, mean)
    return Paired(mean, low, high, len(values))


def gain(ours: Sequence[float], theirs: Sequence[float]) -> Paired:
    """Ours less theirs, seed by seed.

    Args:
        ours: in points, one per seed.
        theirs: The same seeds of the other side.
    """
    return over_seeds([mine - other for mine, other in zip(ours, theirs, strict=True)])


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> Paired:
    """How many times ours goes into theirs, seed by seed.

    Args:
        theirs: seconds, one per seed.
        ours: The same seeds of this package.
    """
    logs = [math.log(other) - math.log(mine) for other, mine in zip(theirs, ours, strict=True)]
    found = gain(logs, [0.0] * len(logs))
    return Paired(*(math.exp(one) for one in (found.value, found.low, found.high)), found.n)
