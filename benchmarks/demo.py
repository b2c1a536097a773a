"""The result of ``effnetv2 demo`` and its time, over several seeds.

Run: python -m benchmarks.demo [--seeds 5] [--output runs/demo_seeds]

Each seed is a process of its own, on all cores. Its wall time is from the command to the end. The metrics are those of
the 500 validation images, which select nothing. The intervals are of the mean over seeds (Student's t). A seed that has
been run already is not run again, unless the code, the versions or the hardware changed. Raw records:
results/demo/SEED.

- ``demo_macro_f1``, ``demo_top1``, ``demo_wall_s``.
- ``demo_macro_f1_minus_probe``: minus that of the linear probe on the bundled weights, on the same images.
- ``demo_top1_minus_majority``: minus the share of the largest class.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.record import NAMED, RESULTS, hardware, interval, keep, record
from benchmarks.search_trials import code

ROOT = Path(__file__).parents[1]
UNITS = {
    "top1": "fraction",
    "macro_f1": "F1",
    "macro_f1_minus_probe": "F1",
    "top1_minus_majority": "fraction",
    "wall_s": "s",
}
COMMAND = "effnetv2 demo --seed S, S from 0 to {last}"


def made_by() -> dict[str, Any]:
    """Hardware, versions and code of a seed's result."""
    return {"hardware": hardware(), "versions": {name: version(name) for name in NAMED}, "code": code()}


def result_of(seed: int, out: Path, by: dict[str, Any]) -> dict[str, float]:
    """The result of one seed, run if need be. What other code left in its folder is replaced."""
    file = out / "took.json"
    took = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if differing := [name for name in by if took.get(name) != by[name]]:
        if took:
            print(f"{out} is of another {', '.join(differing)}: run again.", flush=True)
        shutil.rmtree(out, ignore_errors=True)
        words = ["demo", "--seed", str(seed), "--output", str(out)]
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "efficientnetv2", *words], cwd=ROOT, check=True)
        took = {"wall_s": round(time.perf_counter() - began, 2), **by}
        file.write_text(json.dumps(took))
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return {
        "top1": report["top1"],
        "macro_f1": report["macro_f1"],
        "macro_f1_minus_probe": report["macro_f1"] - report["linear_probe_macro_f1"],
        "top1_minus_majority": report["top1"] - report["majority_top1"],
        "wall_s": took["wall_s"],
    }


def claims(each: list[dict[str, float]]) -> dict[str, tuple[float, float, float]]:
    """The mean of each value with its interval."""
    values = {name: [one[name] for one in each] for name in UNITS}
    return {name: (statistics.fmean(found), *interval(found)) for name, found in values.items()}


def main() -> None:
    """Run, keep, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="at least 2")
    parser.add_argument("--output", type=Path, default=ROOT / "runs/demo_seeds")
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error(f"--seeds {options.seeds}: an interval over seeds takes at least 2")
    target, by = RESULTS / "demo", made_by()
    each = [result_of(seed, options.output.absolute() / str(seed), by) for seed in range(options.seeds)]
    for seed, one in enumerate(each):
        print(f"seed {seed}: " + ", ".join(f"{name} {value:.3f}" for name, value in one.items()))
    found = claims(each)  # before the record of earlier ones is gone
    shutil.rmtree(target, ignore_errors=True)
    for seed in range(options.seeds):
        keep(options.output.absolute() / str(seed), target / str(seed), renamed={f"{ROOT.absolute()}/": ""})
    for name, (mean, low, high) in found.items():
        record(
            f"demo_{name}", mean, unit=UNITS[name], low=low, high=high, n=len(each),
            command=COMMAND.format(last=options.seeds - 1), on=by["hardware"], versions=by["versions"],
        )  # fmt: skip
        print(f"demo_{name}: {mean:.4f} ({low:.4f} to {high:.4f}), n = {len(each)}")


if __name__ == "__main__":
    main()
