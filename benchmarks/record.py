"""Recorded results: raw files next to ``results/summary.json``, the only file that claims are quoted from.

Run: python -m benchmarks.record NAME RUN_FOLDER [RUN_FOLDER ...] --on HARDWARE

Copies the recipe, curve and report of each run to ``results/NAME/``, with several runs to ``results/NAME/NUMBER/``.
Files of an earlier record there are deleted. Writes ``NAME_top1`` and ``NAME_wall_s``, with HARDWARE and the versions
from the reports. Several runs must have the same recipe and different seeds. The interval of one run is over its images
(Wilson). The interval of several runs is over the mean of the seeds (Student's t).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
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

from efficientnetv2.utils.benchmark import TimingStats
from efficientnetv2.utils.device import device_title
from efficientnetv2.utils.io import write_text_atomically
from efficientnetv2.utils.random_key import Key

RESULTS = Path(__file__).parent / "results"
SUMMARY = RESULTS / "summary.json"
# Plots of the documentation.
IMAGES = Path(__file__).parents[1] / "docs/images"


NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}  # environment of runs whose records name the processor alone
NAMED = ("efficientnetv2", "torch", "torchvision", "pillow")  # each claim has the versions of these packages


def read(file: Path) -> Any:
    """Read a JSON record."""
    return json.loads(file.read_text(encoding="utf-8"))


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
    """Write one claim to the summary.

    Args:
        name: Name of the claim.
        value: Value. Accuracies are fractions; names ending in ``_gain`` are in points.
        unit: ``fraction``, ``s``, ``ratio``, ``points``, ...
        low: Low end of the 95 % interval, or for a ratio of the spread over rounds.
        high: High end of the interval or spread.
        n: Number of runs or rounds.
        command: Command that prints the value.
        on: Hardware of the measurement. Empty means this machine.
        versions: Versions of the packages in ``NAMED`` at the measurement. None means the installed versions.
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
        "versions": dict(versions) if versions is not None else installed(),
        "date": date.today().isoformat(),
    }
    RESULTS.mkdir(exist_ok=True)
    write_text_atomically(SUMMARY, json.dumps(dict(sorted(summary.items())), indent=2) + "\n")


def installed(*more: str) -> dict[str, str]:
    """Return the installed versions of the packages in ``NAMED`` and of ``more``."""
    return {package: version(package) for package in (*NAMED, *more)}


def record_spread(name: str, spread: TimingStats, *, unit: str, command: str, **more: Any) -> None:
    """Write a median over rounds with its quartiles. ``more`` are further arguments of ``record``."""
    spans = {"low": spread.low, "high": spread.high, "n": spread.rounds}
    record(name, spread.median, unit=unit, command=command, **spans, **more)


def forget(name: str) -> None:
    """Delete a claim from the summary, if it is there."""
    summary = json.loads(SUMMARY.read_text()) if SUMMARY.exists() else {}
    if summary.pop(name, None) is not None:
        write_text_atomically(SUMMARY, json.dumps(summary, indent=2) + "\n")


def hardware(device: torch.device | None = None) -> str:
    """Describe this machine.

    Args:
        device: Device of the computation. A device other than the CPU is named before the machine.
    """
    cpuinfo = Path("/proc/cpuinfo")
    name = processor(cpuinfo.read_text()) if cpuinfo.exists() else ""
    machine = f"{os.cpu_count()} cores, {name or platform.processor() or platform.machine()}"
    return machine if device is None or device.type == "cpu" else f"{device_title(device)}; {machine}"


def without_avx512() -> str:
    """Return the suffix of speed claims on an x86 processor without AVX-512: "_without_avx512", else ""."""
    return "_without_avx512" if torch.backends.cpu.get_cpu_capability() == "AVX2" else ""


def processor(cpuinfo: str) -> str:
    """Return the name of a processor with family and model. Virtual machines share a name across generations.

    Args:
        cpuinfo: Content of /proc/cpuinfo. Without a name in it, the result is "".
    """
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())  # values of the first core
    if "model name" not in fields:
        return ""
    generation = f" (family {fields['cpu family']}, model {fields['model']})" if "cpu family" in fields else ""
    flags = fields.get("flags", "").split()
    vectors = " with AVX-512" if "avx512f" in flags else " with AVX2" if "avx2" in flags else ""
    return fields["model name"] + generation + vectors


def as_typed(file: Path) -> str:
    """Return the path of a results file from the top of the repository, or only the name of another file."""
    return f"benchmarks/results/{file.name}" if file.resolve().parent == RESULTS.resolve() else file.name


def interval(values: list[float]) -> tuple[float, float]:
    """Compute the 95 % interval of the mean of several runs."""
    half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values) - half, statistics.mean(values) + half


def median_interval(values: list[float]) -> tuple[float, float]:
    """Compute the 95 % interval of a median (bootstrap)."""
    draws = Key.of(0).fold("median").generator().integers(len(values), size=(2_000, len(values)))
    low, high = np.quantile(np.median(np.array(values)[draws], axis=1), [0.025, 0.975])
    return float(low), float(high)


def begun(about: Path, common: dict, same: Sequence[str], advice: str) -> dict:
    """Return the stored conditions of a measurement that can be resumed. A new measurement stores them.

    Args:
        about: File of the conditions.
        common: Conditions of this call.
        same: Names in ``common`` that must not change. A value that is absent in the file counts as None.
        advice: What to do for other conditions.

    Raises:
        SystemExit: A condition has changed.
    """
    if not about.exists():
        write_text_atomically(about, json.dumps(common, indent=1) + "\n")
        return common
    stored: dict = json.loads(about.read_text(encoding="utf-8"))
    refuse_foreign_file(about, stored, {name: common[name] for name in same}, advice)
    return stored


def refuse_foreign_file(file: Path, stored: Mapping[str, Any], requested: Mapping[str, Any], advice: str) -> None:
    """Check that a stored file has the requested conditions.

    Args:
        file: The stored file.
        stored: Its conditions. Names that it lacks are not checked.
        requested: Requested conditions.
        advice: What to do for other conditions.

    Raises:
        SystemExit: A condition differs.
    """
    if differing := [
        name for name in requested if name in stored and _compact(stored[name]) != _compact(requested[name])
    ]:
        raise SystemExit(f"{file} is of another {', '.join(differing)}; {advice}.")


def _compact(of: Any) -> Any:
    """Drop None values in dictionaries: fields that were added later are absent in old files."""
    if not isinstance(of, dict):
        return of
    return {name: _compact(value) for name, value in of.items() if value is not None}


def keep(run: Path, target: Path, *, renamed: Mapping[str, str] | None = None) -> dict:
    """Copy the small files of a run, and return its report.

    Args:
        run: Folder of the run. Missing files are skipped; a cross-validation has fewer files.
        target: Folder for the copies.
        renamed: Further paths of this machine and their replacements.
    """
    target.mkdir(parents=True, exist_ok=True)
    # Paths of this machine do not belong in a record.
    places = {**(renamed or {}), f"{run.absolute().parent}/": "runs/"}
    for name in ("recipe.yaml", "metrics.jsonl", "report.json", "log.txt"):
        if (run / name).exists():
            text = (run / name).read_text(encoding="utf-8")
            for place, replacement in places.items():
                text = text.replace(place, replacement)
            (target / name).write_text(text, encoding="utf-8")
    return json.loads((target / "report.json").read_text())


def versions_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return the versions of the packages in ``NAMED`` over some runs, as text.

    Args:
        rows: Rows with ``versions``. Old rows have none.
    """
    found = [row.get("versions", {}) for row in rows]
    return {name: " and ".join(sorted({one.get(name, "not kept") for one in found})) for name in NAMED}


def _refuse_others(runs: Sequence[Path]) -> None:
    """Check that several runs have the same recipe and different seeds.

    Raises:
        SystemExit: They do not.
    """
    reports = [json.loads((run / "report.json").read_text(encoding="utf-8")) for run in runs]
    recipes = [{**one["recipe"], "seed": None} for one in reports]
    if differing := [run for run, recipe in zip(runs, recipes, strict=True) if recipe != recipes[0]]:
        raise SystemExit(f"{differing[0]} has another recipe than {runs[0]}: one figure is of one.")
    if len({one["seed"] for one in reports}) < len(runs):
        raise SystemExit(f"Two of {', '.join(map(str, runs))} have one seed: they are one run.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--on", required=True, help="hardware of the runs")
    parser.add_argument("--command", help="command of the runs; default: from the report")
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
