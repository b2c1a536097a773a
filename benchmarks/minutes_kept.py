"""Does ``effnetv2 train DATA --minutes N`` take N minutes? Is its model better than its start and than version 0.1?

Run: python -m benchmarks.minutes_kept NAME=TRAIN,TEST --minutes 6 20 --start offline --before CHECKOUT [--record]

TRAIN and TEST are folders of class folders (or tables); nothing is tuned on them. CHECKOUT is a clone of an earlier
version, such as 0.1. START is ``offline`` (the weights that ``train`` finds without an internet connection) or a file
of weights.

For each N, both versions train at the same time, each on half of the processors. The earlier version takes longer than
N. The smallest N measures this excess, with the same command on both sides. Then the earlier version gets a shorter
``--minutes``, so that both versions take the same time; with the smallest N it trains alone. Each model predicts TEST
once.

- ``minutes_kept_NAME_START_Nmin_ratio``: wall time from the command to the report / N minutes; 1 is exact.
- ``minutes_kept_NAME_START_Nmin_minus_probe_top1``: trained model − linear probe of its start, in points, on the
  validation images, with the interval of a paired bootstrap. Nothing is chosen on these images.
- ``minutes_kept_NAME_START_Nmin_minus_before_top1``: this version − earlier version in the same time, in points, on
  TEST, with the interval of a paired bootstrap.
- ``minutes_kept_NAME_START_Nmin_minus_before_longer_top1``: this version − earlier version with the same
  ``--minutes``, where the earlier version takes longer (smallest N only).

Finished runs are read again. OUT (results/minutes_kept) has all files; only its ``*.json`` files are committed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.arms import machines
from benchmarks.record import NO_GPU, RESULTS, hardware, record, versions_of

from efficientnetv2.evaluation.predictions import compare_predictions, load_predictions
from efficientnetv2.utils.io import write_text_atomically
from efficientnetv2.workflows.run_report import PROBE_DIR


@dataclass(frozen=True)
class Task:
    """Inputs of a run.

    Args:
        data: Images to train on.
        test: Labeled images that the run does not see.
        minutes: Value of ``--minutes``.
        start: ``offline`` or a file of weights.
        seed: Value of ``--seed``.
    """

    data: str
    test: str
    minutes: float
    start: str
    seed: int = 0


def train(task: Task, folder: Path, checkout: Path | None, cores: set[int]) -> dict[str, Any]:
    """Run ``train``, timed from the command to the report, and predict the test images.

    Args:
        task: Inputs of the run.
        folder: Folder for all files of the run.
        checkout: Clone of another version. None runs this version.
        cores: Processors to run on.
    """
    file = folder.with_name(f"{folder.name}.json")  # the name may have a decimal point
    if file.exists():
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found
    options = [] if task.start == "offline" else ["--weights", task.start]
    options += ["--seed", str(task.seed)] if task.seed else []
    output = "--output" if checkout is None else "--out"  # CHECKOUT has the names of 0.1, here and below
    began = time.monotonic()
    arguments = ["train", task.data, "--minutes", f"{task.minutes:g}", *options]
    _run([*arguments, output, str(folder / "run")], checkout, cores)
    wall_s = time.monotonic() - began
    _run(["evaluate", str(folder / "run"), task.test, output, str(folder / "test")], checkout, cores)
    report = json.loads((folder / "run/report.json").read_text(encoding="utf-8"))
    tested = json.loads((folder / "test/report.json").read_text(encoding="utf-8"))
    plan = report["recipe"]["progressive"]
    last = plan["image_size"] if checkout is None else plan["image_px"]
    row = {
        "minutes": task.minutes,
        "wall_s": round(wall_s, 1),
        "epochs": report["epochs"],
        "image_size": last["end"] if isinstance(last, dict) else last,
        "precision": report["recipe"].get("precision"),
        "weights": Path(report["recipe"]["weights"]).name,
        "top1": report["top1"],
        "probe_top1": report.get("linear_probe_top1" if checkout is None else "linear_probe"),
        "test_top1": tested["top1"],
        "cores": len(cores),
        "hardware": hardware(),
        "versions": report["versions"],
        "when": time.strftime("%Y-%m-%d"),
    }
    if (folder / "run" / PROBE_DIR).is_dir():
        both = compare_predictions(load_predictions(folder / "run"), load_predictions(folder / "run" / PROBE_DIR))
        assert both is not None, "both predict the validation images"
        row["minus_probe"] = {**asdict(both.top1), "images": both.num_images}
    write_text_atomically(file, json.dumps(row, indent=1) + "\n")
    return row


def compared(task: Task, prefix: Path, checkout: Path, excess_s: float | None) -> dict[str, dict[str, Any]]:
    """Run this version, the earlier version in the same time (``before``) and with the same option (``before_longer``).

    Both versions train at the same time, each on half of the processors. ``excess_s``: Seconds that the earlier version
    takes too long. None measures them by ``before_longer``.
    """
    cores = sorted(os.sched_getaffinity(0))
    half = len(cores) // 2
    if not half:
        raise SystemExit("It takes two processors: one for each version.")
    ours, theirs = set(cores[:half]), set(cores[half : 2 * half])

    minutes = task.minutes

    def of(side: str, given_minutes: float, version: Path | None, on: set[int]) -> dict[str, Any]:
        return train(replace(task, minutes=given_minutes), prefix.with_name(f"{prefix.name}_{side}"), version, on)

    def earlier() -> dict[str, dict[str, Any]]:
        longer = {} if excess_s is not None else {"before_longer": of("before_longer", minutes, checkout, theirs)}
        more_s = longer["before_longer"]["wall_s"] - 60 * minutes if excess_s is None else excess_s
        return {"before": of("before", round(max(0.5, minutes - more_s / 60), 2), checkout, theirs)} | longer

    with ThreadPoolExecutor(2) as pool:
        before, now = pool.submit(earlier), pool.submit(of, "now", minutes, None, ours)
    return {"now": now.result()} | before.result()


def _run(arguments: list[str], checkout: Path | None, cores: set[int]) -> None:
    """Run the command line of this version, or of a checkout, on these processors, without a network connection.

    Without a GPU, which the record does not name, and without weights that earlier commands left in a cache.
    """
    pinned = ["taskset", "--cpu-list", ",".join(map(str, sorted(cores)))]
    with tempfile.TemporaryDirectory() as empty:
        env = os.environ | NO_GPU | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": empty, "TORCH_HOME": empty}
        if checkout is not None:
            env["PYTHONPATH"] = str(checkout.resolve() / "src")
        subprocess.run([*pinned, sys.executable, "-m", "efficientnetv2", *arguments], check=True, env=env)


def named_set(text: str) -> tuple[str, str, str]:
    """Parse the argument NAME=TRAIN,TEST."""
    name, _, folders = text.partition("=")
    data, _, test = folders.partition(",")
    if not (name.isidentifier() and data and test):
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=TRAIN,TEST.")
    return name, data, test


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", type=named_set, metavar="NAME=TRAIN,TEST")
    parser.add_argument("--minutes", type=float, nargs="+", default=[6, 20])
    parser.add_argument("--start", default="offline", help="offline, or a file of weights")
    parser.add_argument("--before", type=Path, required=True, help="clone at an earlier version")
    parser.add_argument("--output", type=Path, default=RESULTS / "minutes_kept")
    parser.add_argument("--record", action="store_true", help="write results/summary.json")
    options = parser.parse_args()
    name, data, test = options.set
    start = "offline" if options.start == "offline" else "weights"
    options.output.mkdir(parents=True, exist_ok=True)
    typed = f"python -m benchmarks.minutes_kept {name}=TRAIN,TEST --start {start.replace('weights', 'WEIGHTS')}"
    excess_s, every = None, " ".join(f"{minutes:g}" for minutes in options.minutes)
    for minutes in sorted(options.minutes):
        run_name = f"{name}_{start}_{minutes:g}min"
        task = Task(data, test, minutes, options.start)
        rows = compared(task, options.output / run_name, options.before, excess_s)
        now = rows["now"]
        if "before_longer" in rows:
            excess_s = rows["before_longer"]["wall_s"] - 60 * minutes
        predicted = {side: load_predictions(options.output / f"{run_name}_{side}/test") for side in rows}
        differences = {}
        for side in [side for side in rows if side != "now"]:
            between = compare_predictions(predicted["now"], predicted[side])
            assert between is not None, "both predict the test images"
            differences[f"minus_{side}"] = {**asdict(between.top1), "images": between.num_images}
        if "minus_probe" in now:
            differences["minus_probe"] = now["minus_probe"]
        for side, row in rows.items():
            print(f"{run_name} {side}: {json.dumps({**row, 'hardware': None, 'versions': None})}", flush=True)
        for what, one in differences.items():
            print(
                f"{run_name} {what}: top-1 {100 * one['value']:+.1f} points (95 % CI {100 * one['low']:+.1f} to "
                f"{100 * one['high']:+.1f}, {one['images']} images)"
            )
        if options.record:
            of = {
                "command": f"{typed} --minutes {every} --before CHECKOUT --record",
                "on": machines(list(rows.values())),
                "versions": versions_of(list(rows.values())),
            }
            ratio = now["wall_s"] / (60 * minutes)
            record(f"minutes_kept_{run_name}_ratio", ratio, unit="ratio", low=ratio, high=ratio, n=1, **of)
            for what, one in differences.items():
                points = {end: 100 * one[end] for end in ("value", "low", "high")}
                record(f"minutes_kept_{run_name}_{what}_top1", **points, unit="points", n=one["images"], **of)


if __name__ == "__main__":
    main()
