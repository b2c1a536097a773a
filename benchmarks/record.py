"""Keep what was measured: raw records next to ``results/summary.json``, the one file that claims are quoted from.

Run: python -m benchmarks.record NAME RUN_FOLDER [RUN_FOLDER ...] --on HARDWARE

Copies recipe, curve and report of each run to ``results/NAME/`` (``results/NAME/NUMBER/`` with several; what an earlier
record left there goes) and writes ``NAME_top1`` and ``NAME_wall_s``, on the hardware that is named and with the
versions of the runs' reports. Several runs have to be of one recipe, each with a seed of its own. With one run the
interval is that of its images (Wilson); with several it is that of the mean over seeds (Student's t).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import statistics
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student

from efficientnetv2.utils import legacy
from efficientnetv2.utils.benchmark import TimingStats
from efficientnetv2.utils.device import device_title
from efficientnetv2.utils.io import write_text_atomically
from efficientnetv2.utils.random_key import Key

RESULTS = Path(__file__).parent / "results"
SUMMARY = RESULTS / "summary.json"
# Plots of the documentation.
IMAGES = Path(__file__).parents[1] / "docs/images"


NAMED = ("efficientnetv2", "torch", "torchvision", "pillow")  # whose versions stand next to every claim


# A setting as ``--set`` takes it, within any text.
_SETTING = re.compile(r"(?<![\w.-])((?:\w+\.)?)(\w+)=([\w+]*)")


def read(file: Path) -> Any:
    """A JSON record. Those made by version 0.1 are translated to the words of today."""
    return _upgraded(json.loads(file.read_text(encoding="utf-8")))


def _upgraded(plain: Any) -> Any:
    if isinstance(plain, str):
        return _SETTING.sub(_upgraded_setting, plain)
    if isinstance(plain, list):
        return [_upgraded(item) for item in plain]
    if not isinstance(plain, dict):
        return plain
    if plain.keys() & {"optimizer", "interpolation", "per_class"}:  # a recipe, preprocessing or report
        return legacy.upgrade(plain)
    # Other words of one part may be words of a record's own.
    names = {key: next(iter(legacy.upgrade({key: None}))) if "_" in key else key for key in plain}
    return {_upgraded(names[key]): _upgraded(item) for key, item in plain.items()}


def _upgraded_setting(match: re.Match[str]) -> str:
    part, key, value = match.groups()
    [(name, word)] = legacy.upgrade({key: value}, part.rstrip(".")).items()
    return f"{part}{name}={word}"


def record(
    name: str,
    value: float,
    *,
    unit: str,
    low: float,
    high: float,
    n: int,
    command: str,
    on: str = "",
    versions: Mapping[str, str] | None = None,
) -> None:
    """Write one claim into the summary.

    Args:
        name: of the claim.
        value: accuracies as fractions; names ending in ``_gain`` in points.
        unit: ``fraction``, ``s``, ``ratio``, ``points``, ...
        low: of the 95 % interval, or of the spread over rounds for a ratio.
        high: of the same.
        n: how many runs or rounds.
        command: that prints it.
        on: the hardware that it was measured on, where that may be another than this.
        versions: of ``NAMED``, with which it was measured, where these may be others than those of now.
    """
    summary = json.loads(SUMMARY.read_text()) if SUMMARY.exists() else {}
    summary[name] = {
        "value": value,
        "unit": unit,
        "low": low,
        "high": high,
        "n": n,
        "command": command,
        "hardware": on or hardware(),
        "versions": dict(versions) if versions is not None else {one: version(one) for one in NAMED},
        "date": date.today().isoformat(),
    }
    RESULTS.mkdir(exist_ok=True)
    write_text_atomically(SUMMARY, json.dumps(dict(sorted(summary.items())), indent=2) + "\n")


def record_spread(name: str, spread: TimingStats, *, unit: str, command: str, **more: Any) -> None:
    """Write a median over rounds with its quartiles; ``more`` as ``record`` takes it."""
    spans = {"low": spread.low, "high": spread.high, "n": spread.rounds}
    record(name, spread.median, unit=unit, command=command, **spans, **more)


def forget(name: str) -> None:
    """Take a claim out of the summary that a later measurement does not make any more; none is there to begin with."""
    summary = json.loads(SUMMARY.read_text()) if SUMMARY.exists() else {}
    if summary.pop(name, None) is not None:
        write_text_atomically(SUMMARY, json.dumps(summary, indent=2) + "\n")


def hardware(device: torch.device | None = None) -> str:
    """What this machine is, as far as it says so.

    Args:
        device: that computed; one that is no CPU is named before the machine that it is in.
    """
    cpuinfo = Path("/proc/cpuinfo")
    told = processor(cpuinfo.read_text()) if cpuinfo.exists() else ""
    machine = f"{os.cpu_count()} cores, {told or platform.processor() or platform.machine()}"
    return machine if device is None or device.type == "cpu" else f"{device_title(device)}; {machine}"


def processor(cpuinfo: str) -> str:
    """A processor's name; its family and model too, for virtual machines call several generations alike.

    Args:
        cpuinfo: as Linux tells it; "" is answered where no name is in it.
    """
    told: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        told.setdefault(name.strip(), value.strip())  # of the first core
    if "model name" not in told:
        return ""
    generation = f" (family {told['cpu family']}, model {told['model']})" if "cpu family" in told else ""
    vectors = " with AVX-512" if "avx512f" in told.get("flags", "").split() else ""
    return told["model name"] + generation + vectors


def as_typed(file: Path) -> str:
    """A file of the results as one types it at the top of the repository; of another place its name alone."""
    return f"benchmarks/results/{file.name}" if file.resolve().parent == RESULTS.resolve() else file.name


def interval(values: list[float]) -> tuple[float, float]:
    """95 % interval of the mean of several runs."""
    half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values) - half, statistics.mean(values) + half


def median_interval(values: list[float]) -> tuple[float, float]:
    """The ends of a median's 95 % interval (bootstrap)."""
    draws = Key.of(0).fold("median").generator().integers(len(values), size=(2_000, len(values)))
    low, high = np.quantile(np.median(np.array(values)[draws], axis=1), [0.025, 0.975])
    return float(low), float(high)


def begun(about: Path, common: dict, same: Sequence[str], advice: str) -> dict:
    """What a measurement that may be stopped and gone on with was begun with; written down if it begins now.

    Args:
        about: the file that says it.
        common: what it is to be begun with.
        same: names in it that have to be as they were; a setting that was not there then was None.
        advice: for whoever wants others.

    Raises:
        SystemExit: they are not.
    """
    if not about.exists():
        write_text_atomically(about, json.dumps(common, indent=1) + "\n")
        return common
    there: dict = json.loads(about.read_text(encoding="utf-8"))
    refuse_foreign_file(about, there, {name: common[name] for name in same}, advice)
    return there


def refuse_foreign_file(file: Path, there: Mapping[str, Any], asked: Mapping[str, Any], advice: str) -> None:
    """What is kept is what is asked for.

    Args:
        file: that keeps it.
        there: what it says; what was kept before something was said of it is not checked by that.
        asked: that has to be the same.
        advice: for whoever wants others.

    Raises:
        SystemExit: it is not.
    """
    if differing := [name for name in asked if name in there and _said(there[name]) != _said(asked[name])]:
        raise SystemExit(f"{file} is of another {', '.join(differing)}; {advice}.")


def _said(of: Any) -> Any:
    """What a value says: settings that came later are not there, and those that say nothing are None."""
    if not isinstance(of, dict):
        return of
    return {name: _said(value) for name, value in of.items() if value is not None}


def keep(run: Path, target: Path, *, renamed: Mapping[str, str] | None = None) -> dict:
    """Copy what is worth keeping of a run; its report.

    Args:
        run: its folder; what a cross-validation has not of a run's files is left out.
        target: for the copies.
        renamed: other paths of this machine, and what to write in their place.
    """
    target.mkdir(parents=True, exist_ok=True)
    # Where the run lay on this machine is nobody's business.
    places = {**(renamed or {}), f"{run.absolute().parent}/": "runs/"}
    for name in ("recipe.yaml", "metrics.jsonl", "report.json", "log.txt"):
        if (run / name).exists():
            text = (run / name).read_text(encoding="utf-8")
            for place, called in places.items():
                text = text.replace(place, called)
            (target / name).write_text(text, encoding="utf-8")
    return json.loads((target / "report.json").read_text())


def versions_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Those of ``NAMED`` that some runs were made with, in words.

    Args:
        rows: with ``versions``; what was kept before that was said has none.
    """
    kept = [row.get("versions", {}) for row in rows]
    return {name: " and ".join(sorted({one.get(name, "not kept") for one in kept})) for name in NAMED}


def _refuse_others(runs: Sequence[Path]) -> None:
    """Several runs are of one recipe and of different seeds.

    Raises:
        SystemExit: they are not.
    """
    reports = [json.loads((run / "report.json").read_text(encoding="utf-8")) for run in runs]
    recipes = [{**one["recipe"], "seed": None} for one in reports]
    if other := [run for run, recipe in zip(runs, recipes, strict=True) if recipe != recipes[0]]:
        raise SystemExit(f"{other[0]} has another recipe than {runs[0]}: one figure is of one.")
    if len({one["seed"] for one in reports}) < len(runs):
        raise SystemExit(f"Two of {', '.join(map(str, runs))} have one seed: they are one run.")


def main() -> None:
    """Record runs of one kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--on", required=True, help="the hardware of the runs, which need not be this")
    parser.add_argument("--command", help="as one types it; taken from the run's report if left out")
    options = parser.parse_args()
    several = len(options.runs) > 1
    _refuse_others(options.runs)
    target = RESULTS / options.name
    shutil.rmtree(target, ignore_errors=True)
    reports = [keep(run, target / (str(number) if several else "")) for number, run in enumerate(options.runs)]
    command = options.command or reports[0]["command"]
    for key, unit in (("top1", "fraction"), ("wall_s", "s")):
        values = [report[key] for report in reports]
        low, high = interval(values) if several else reports[0]["intervals"].get(key, (values[0], values[0]))
        record(
            f"{options.name}_{key}",
            statistics.mean(values),
            unit=unit,
            low=low,
            high=high,
            n=len(values),
            command=command,
            on=options.on,
            versions=versions_of(reports),
        )
        print(
            f"{options.name}_{key}: {statistics.mean(values):.4f} {unit} ({low:.4f} to {high:.4f}), n = {len(values)}"
        )


if __name__ == "__main__":
    main()
