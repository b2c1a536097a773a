"""Results and time of ``effnetv2 demo`` over several seeds.

Run: python -m benchmarks.demo [--seeds 5] [--output runs/demo_seeds] [--record]

Each seed runs in its own process, on all cores. The wall time is that of the whole command. The metrics are those of
the 500 validation images, which choose nothing. Intervals are for the mean over seeds (Student's t). A finished seed is
repeated only if the code, the versions or the hardware changed. Raw records: results/demo/SEED.

Claims:

- ``demo_macro_f1``, ``demo_top1``, ``demo_wall_s``
- ``demo_macro_f1_minus_probe``: demo − linear probe on the bundled weights, on the same images
- ``demo_top1_minus_majority``: demo − fraction of the largest class, in points

On an x86 processor without AVX-512, the names and the folder of the records end in ``_without_avx512``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.record import NO_GPU, RESULTS, hardware, installed, interval, keep, record, without_avx512
from benchmarks.search_trials import code

ROOT = Path(__file__).parents[1]
UNITS = {
    "top1": "fraction",
    "macro_f1": "F1",
    "macro_f1_minus_probe": "F1",
    "top1_minus_majority": "points",
    "wall_s": "s",
}
COMMAND = "effnetv2 demo --seed S, S from 0 to {last}"


def made_by() -> dict[str, Any]:
    """Hardware, versions and code that a seed's result depends on."""
    return {"hardware": hardware(), "versions": installed(), "code": code()}


def result_of(seed: int, out: Path, made: dict[str, Any]) -> dict[str, float]:
    """The result of a seed. Runs the demo if the folder has no result of this code, and replaces older results."""
    file = out / "took.json"
    saved = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if differing := [name for name in made if saved.get(name) != made[name]]:
        if saved:
            print(f"{out} is of another {', '.join(differing)}: run again.", flush=True)
        shutil.rmtree(out, ignore_errors=True)
        arguments = ["demo", "--seed", str(seed), "--output", str(out)]
        began = time.perf_counter()
        command = [sys.executable, "-m", "efficientnetv2", *arguments]
        subprocess.run(command, cwd=ROOT, check=True, env=os.environ | NO_GPU)
        saved = {"wall_s": round(time.perf_counter() - began, 2), **made}
        file.write_text(json.dumps(saved))
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return {
        "top1": report["top1"],
        "macro_f1": report["macro_f1"],
        "macro_f1_minus_probe": report["macro_f1"] - report["linear_probe_macro_f1"],
        "top1_minus_majority": 100 * (report["top1"] - report["majority_top1"]),
        "wall_s": saved["wall_s"],
    }


def claims(results: list[dict[str, float]]) -> dict[str, tuple[float, float, float]]:
    """Name -> mean and interval."""
    values = {name: [result[name] for result in results] for name in UNITS}
    return {name: (statistics.fmean(column), *interval(column)) for name, column in values.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="at least 2")
    parser.add_argument("--output", type=Path, default=ROOT / "runs/demo_seeds")
    parser.add_argument("--record", action="store_true", help="replace the record in benchmarks/results")
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error(f"--seeds {options.seeds}: an interval over seeds takes at least 2")
    processor = without_avx512()
    target, made = RESULTS / f"demo{processor}", made_by()
    results = [result_of(seed, options.output.absolute() / str(seed), made) for seed in range(options.seeds)]
    for seed, result in enumerate(results):
        print(f"seed {seed}: " + ", ".join(f"{name} {value:.3f}" for name, value in result.items()))
    found = claims(results)  # before the earlier records are deleted
    for name, (mean, low, high) in found.items():
        print(f"demo_{name}{processor}: {mean:.4f} ({low:.4f} to {high:.4f}), n = {len(results)}")
    if not options.record:
        return
    shutil.rmtree(target, ignore_errors=True)
    for seed in range(options.seeds):
        keep(options.output.absolute() / str(seed), target / str(seed), renamed={f"{ROOT.absolute()}/": ""})
    for name, (mean, low, high) in found.items():
        record(
            f"demo_{name}{processor}", mean, unit=UNITS[name], low=low, high=high, n=len(results),
            command=COMMAND.format(last=options.seeds - 1), on=made["hardware"], versions=made["versions"],
        )  # fmt: skip


if __name__ == "__main__":
    main()
