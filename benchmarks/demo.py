"""What ``effnetv2 demo`` comes to and how long it takes, over several seeds.

Run: python -m benchmarks.demo [--seeds 5] [--output runs/demo_seeds]

Each seed is a process of its own, on all cores; its wall time is that of the whole story, from typing to the prompt.
Figures are those of the cross-validation by place: every image answered once, by a network that had not been there.
The interval is that of the mean over seeds (Student's t); that of the images is wider and stands in each report. A
seed that has been run already is not run again, unless by other code or versions or on other hardware. Raw records:
results/land_cover_demo/SEED.
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
FIGURES = {"top1": "fraction", "macro_f1": "F1", "wall_s": "s"}
COMMAND = "effnetv2 demo --seed S, S from 0 to {last}"


def made_by() -> dict[str, Any]:
    """What a seed's figures are of, next to the seed."""
    return {"hardware": hardware(), "versions": {name: version(name) for name in NAMED}, "code": code()}


def told(seed: int, out: Path, by: dict[str, Any]) -> dict[str, float]:
    """The figures of one seed, run if need be.

    Args:
        seed: of the demo.
        out: its folder; what others left there, or what does not say by whom it was made, is replaced.
        by: as ``made_by`` has it.
    """
    file = out / "took.json"
    took = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if differing := [name for name in by if took.get(name) != by[name]]:
        if took:
            print(f"{out} is of another {', '.join(differing)}: run again.", flush=True)
        shutil.rmtree(out, ignore_errors=True)
        words = ["demo", "--seed", str(seed), "--output", str(out)]
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-m", "efficientnetv2", *words], cwd=ROOT, check=True)
        took = {"wall_s": round(time.perf_counter() - begun, 2), **by}
        file.write_text(json.dumps(took))
    report = json.loads((out / "folds/report.json").read_text(encoding="utf-8"))
    return {name: report[name] for name in ("top1", "macro_f1")} | {"wall_s": took["wall_s"]}


def claims(each: list[dict[str, float]]) -> dict[str, tuple[float, float, float]]:
    """The mean of each figure with its interval."""
    values = {name: [one[name] for one in each] for name in FIGURES}
    return {name: (statistics.fmean(found), *interval(found)) for name, found in values.items()}


def main() -> None:
    """Run, keep, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="at least 2")
    parser.add_argument("--output", type=Path, default=ROOT / "runs/demo_seeds")
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error(f"--seeds {options.seeds}: an interval over seeds takes at least 2")
    target, by = RESULTS / "land_cover_demo", made_by()
    each = [told(seed, options.output.absolute() / str(seed), by) for seed in range(options.seeds)]
    said = claims(each)  # before the record of earlier ones is gone
    shutil.rmtree(target, ignore_errors=True)
    for seed in range(options.seeds):
        run = options.output.absolute() / str(seed)
        here = {f"{ROOT.absolute()}/": ""}
        keep(run, target / str(seed), renamed=here)
        keep(run / "folds", target / str(seed) / "folds", renamed=here)
    for name, (mean, low, high) in said.items():
        record(
            f"land_cover_demo_{name}", mean, unit=FIGURES[name], low=low, high=high, n=len(each),
            command=COMMAND.format(last=options.seeds - 1), on=by["hardware"], versions=by["versions"],
        )  # fmt: skip
        print(f"land_cover_demo_{name}: {mean:.4f} ({low:.4f} to {high:.4f}), n = {len(each)}")


if __name__ == "__main__":
    main()
