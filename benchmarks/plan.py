"""Error of the training time that ``effnetv2 train --dry-run`` estimates.

Run: python -m benchmarks.plan DATA [--weights auto|NAME|FILE] [--rounds 3] [--only quick|finetune] [--record]

Two recipes with V2-B0 on the CPU: quick from scratch (48 to 96 px), and finetune from given weights (96 to 160 px, with
its linear probe). Each round estimates and then runs each recipe, in separate processes. The machine must be idle
otherwise.

- ``plan_error_quick``, ``plan_error_finetune``: median of abs(estimated / measured wall time of the process − 1), with
  the lowest and the highest round as ends.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.record import RESULTS, hardware, record

MODEL = ("--model", "efficientnetv2_b0", "--device", "cpu")
QUICK = (
    "--recipe", "quick", "--weights", "none", "--epochs", "16",
    "--set", "progressive.image_size={start: 48, end: 96}", "--set", "progressive.size_multiple=16",
)  # fmt: skip
FINETUNE = ("--recipe", "finetune", "--epochs", "4", "--image-size", "160")


def effnetv2(*arguments: str) -> tuple[str, float]:
    """Run a command; return its output and its wall time in seconds."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "efficientnetv2", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"effnetv2 {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")
    return done.stdout, time.perf_counter() - began


def planned_and_run(data: Path, arguments: tuple[str, ...]) -> dict:
    """Estimate and run once; return both times."""
    output, plan_s = effnetv2("train", "--dry-run", str(data), *arguments, "--json")
    plan = json.loads(output)
    with tempfile.TemporaryDirectory() as folder:
        report, run_s = effnetv2("train", str(data), *arguments, "--output", f"{folder}/run", "--json")
        lines = (Path(folder) / "run/metrics.jsonl").read_text().splitlines()
        rows = [row for row in map(json.loads, lines) if row["kind"] == "train"]
        training_s = {stage["image_size"]: 0.0 for stage in plan["stages"]}
        for row in rows:
            training_s[row["image_size"]] += row["train_s"]
    return {
        "foretold_s": plan["seconds"],
        "measured_s": run_s,
        "plan_took_s": plan_s,
        "foretold_others_s": plan["others_s"],
        "foretold_training_s": {str(one["image_size"]): one["seconds"] for one in plan["stages"]},
        "measured_training_s": {str(px): seconds for px, seconds in training_s.items()},
        "measured_wall_s_of_report": json.loads(report)["wall_s"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", default="auto", help="initial weights of finetune")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("quick", "finetune"))
    parser.add_argument("--record", action="store_true", help="write results/summary.json and plan.json")
    options = parser.parse_args()
    if options.record and (options.only or options.weights == "auto"):
        parser.error("--record is for both recipes, finetune from a file (--weights FILE): so the page says.")
    recipes = {"quick": (*MODEL, *QUICK), "finetune": (*MODEL, *FINETUNE, "--weights", options.weights)}
    if options.only:
        recipes = {options.only: recipes[options.only]}
    results: dict[str, list[dict]] = {name: [] for name in recipes}
    for _ in range(options.rounds):
        for name, arguments in recipes.items():
            one = planned_and_run(options.data, arguments)
            results[name].append(one)
            error = one["foretold_s"] / one["measured_s"] - 1
            print(
                f"{name}: foretold {one['foretold_s']:.1f} s, took {one['measured_s']:.1f} s ({error:+.1%})", flush=True
            )
    for name, rounds in results.items():
        errors = [abs(one["foretold_s"] / one["measured_s"] - 1) for one in rounds]
        print(f"plan_error_{name}: {statistics.median(errors):.3f} ({min(errors):.3f} to {max(errors):.3f})")
        if options.record:
            record(
                f"plan_error_{name}",
                statistics.median(errors),
                unit="fraction",
                low=min(errors),
                high=max(errors),
                n=len(errors),
                command=f"python -m benchmarks.plan DATA --weights FILE --rounds {options.rounds} --record",
            )
    if options.record:
        raw = {"when": time.strftime("%Y-%m-%d"), "hardware": hardware(), "rounds": results}
        (RESULTS / "plan.json").write_text(json.dumps(raw, indent=1) + "\n")


if __name__ == "__main__":
    main()
