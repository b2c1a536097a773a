"""Record a study for a surrogate: random architectures of the small space, each trained by one proxy recipe, and timed.

Run: python -m benchmarks.search_record DATA [--pictures 3000] [--networks 200] [--longer 20] [--workers 2] [--retime]

Example: Imagenette, 200 architectures, 5 epochs of 3,000 images at 64 px, some hours on 2 cores. A fifth of the images
chooses (stratified by class); the others train. Images of val and test of DATA are not used, and no used image may be a
duplicate of one of them. A fixed key draws the architectures without repetition. Each row is written when it is
finished: results/search_record.csv has a column per decision, and the measurements. search_record.json has the values
that all rows share. A stopped run resumes, on any machine. A crash of a process is not a result of its architecture and
is not written; the next run tries it again. Five crashes in a row end the run.

--longer N trains N architectures, spread evenly over the ranks of accuracy, for --longer-epochs with another seed, on
the same images. --workers N trains N architectures at the same time, each with its share of the processor: one core
each gives more images/s than all cores for one.

After training, the steps are timed one after the other, on the whole processor (``benchmarks.search_steps``). All step
times are of one machine and one version of the code. --retime times them again on another machine or version.

--record writes claims with 95 % intervals to summary.json:

- ``search_proxy_tau_ratio``: Kendall's tau between proxy accuracy and accuracy of longer training (bootstrap over
  architectures).
- ``search_step_foretold_error``: median error of the step time that is estimated as the sum over blocks, against the
  first measurement (bootstrap). Old rows have only the final measurement, which was repeated where the two disagreed.
  This makes the error smaller.
- ``search_step_twice_within_spread``: fraction of the steps with a second measurement where both agree within the
  stated spread (Wilson).

Nothing is written for an incomplete table. A claim of an earlier table that this table does not have is deleted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.at_once import at_once
from benchmarks.record import RESULTS, as_typed, forget, median_interval, record
from benchmarks.search_steps import step_errors, timed, twice
from benchmarks.search_table import MEASURED, Record, short
from benchmarks.search_trials import (
    GONE_ON_WITH,
    TIMED_BY,
    asked_recipe,
    drawn,
    in_common,
    proxy_of,
    refuse_copies,
    settled_recipe,
    sharing,
    some_pictures,
)
from benchmarks.surrogate import rank_agreement

from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.metrics.confidence_intervals import wilson_interval
from efficientnetv2.nas.proxy_task import ProxyTask
from efficientnetv2.nas.space import Space, small_space
from efficientnetv2.nas.stage_choices import Point
from efficientnetv2.nas.trial import to_measurement
from efficientnetv2.nas.trial_process import run_trial
from efficientnetv2.utils.io import write_text_atomically
from efficientnetv2.utils.processes import keep_freed_memory

# Seed of longer training. With the seed of the trials, ranks would agree partly by chance.
LONGER_SEED = 1
# Crashes in a row that end the run; minimum number of steps for an error. Ours.
CRASHED_IN_A_ROW, _FEWEST = 5, 20
TABLE = RESULTS / "search_record.csv"
# Printed names of the claims.
CALLED = {
    "search_step_foretold_error": "Step foretold by its blocks, median error of {n} networks",
    "search_step_twice_within_spread": "Step measured twice within its spread, share of {n} networks",
    "search_proxy_tau_ratio": "Kendall's tau of {n} networks trained longer",
}


def tried(space: Space, point: Point, proxy: ProxyTask) -> dict[str, Any]:
    """Train an architecture; return its row without number and decisions."""
    began = time.perf_counter()
    architecture = space.decode(point)
    outcome = run_trial(architecture, proxy)
    found = to_measurement(architecture, proxy, outcome)
    plain = found.to_json()
    return {name: short(plain[name]) for name in MEASURED if name in plain} | {
        **dict.fromkeys(("step_foretold", "step_first_seconds", "step_first_spread")),
        "seconds": round(time.perf_counter() - began, 1),
        "curve": " ".join(f"{one.top1:.4f}" for one in outcome.epochs),
        "failure": None if found.failure is None else " ".join(found.failure.split())[:200],
    }


def crashed(found: dict[str, Any]) -> bool:
    """Check whether the process of a trial crashed. This is not a result of its architecture."""
    return (found["failure"] or "").startswith("crashed")


def crashes(before: int, found: dict[str, Any]) -> int:
    """Count the crashed trials in a row.

    Raises:
        SystemExit: There are too many for an accident.
    """
    if not crashed(found):
        return 0
    if before + 1 == CRASHED_IN_A_ROW:
        raise SystemExit(
            f"{CRASHED_IN_A_ROW} trials in a row have crashed; the last: {found['failure']}. Mend it, then run it "
            "again to go on."
        )
    return before + 1


def fill(study: Record, points: Sequence[Point], proxy: ProxyTask, workers: int = 1) -> None:
    """Train the architectures without a row."""
    done, in_a_row = {int(row["number"]) for row in study.rows()}, 0
    missing = [number for number in range(len(points)) if number not in done]
    with closing(at_once(missing, lambda number: tried(study.space, points[number], proxy), workers)) as rows:
        for number, found in rows:
            if not crashed(found):
                study.add(number, points[number], found)
            result = found["failure"] or f"{found['top1']:.1%}"
            print(f"{number + 1} of {len(points)}: {result} in {found['seconds']:.0f} s", flush=True)
            in_a_row = crashes(in_a_row, found)


def chosen(study: Record, count: int) -> list[dict[str, str]]:
    """Return the rows to train longer, spread evenly over the ranks of accuracy."""
    rows = sorted((row for row in study.rows() if row["top1"]), key=lambda row: float(row["top1"]))
    return [rows[place] for place in np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)]


def longer(study: Record, proxy: ProxyTask, count: int, epochs: float, workers: int = 1) -> list[dict[str, Any]]:
    """Train some recorded architectures longer. A file next to the table stores the results.

    Returns:
        Results that did not fail.
    """
    done, rows, points = study.trained_longer(), chosen(study, count), study.points()
    proxy = replace(proxy, recipe=proxy.recipe.model_copy(update={"epochs": epochs}), seeds=(LONGER_SEED,))
    in_a_row = 0
    wanted = {int(row["number"]): float(row["top1"]) for row in rows}
    finished = {one["number"] for one in done if one["epochs"] == epochs}
    missing = [number for number in wanted if number not in finished]
    with closing(at_once(missing, lambda number: tried(study.space, points[number], proxy), workers)) as trials:
        for number, found in trials:
            if not crashed(found):
                top1 = {"top1": wanted[number], "longer": found["top1"]}
                done.append({"number": number, "epochs": epochs, **top1})
                write_text_atomically(study.longer, json.dumps(done, indent=1) + "\n")
            result = found["failure"] or f"{found['top1']:.1%}"
            print(f"network {number}: {wanted[number]:.1%}, longer {result}", flush=True)
            in_a_row = crashes(in_a_row, found)
    results = [one for one in done if one["number"] in wanted and one["epochs"] == epochs]
    return [one for one in results if one["longer"] is not None]


def refuse_torn(study: Record, networks: int, count: int, epochs: float) -> None:
    """Check that a table is complete.

    Args:
        study: Table.
        networks: Requested number of architectures.
        count: Requested number of architectures with longer training.
        epochs: Epochs of the longer training.

    Raises:
        SystemExit: Some are missing. The message has the numbers.
    """
    rows = {int(row["number"]) for row in study.rows()}
    finished = {one["number"] for one in study.trained_longer() if one["epochs"] == epochs}
    missing = sum(number not in rows for number in range(networks))
    pairs = sum(int(row["number"]) not in finished for row in chosen(study, count))
    if missing or pairs:
        raise SystemExit(
            f"{missing} of {networks} networks and {pairs} of those to be trained longer have crashed, and are "
            f"missing in {study.table}. Run it again to try them again."
        )


def agreement(pairs: Sequence[dict[str, Any]]) -> tuple[float, float, float]:
    """Compute Kendall's tau between accuracies of the proxy and of longer training, with its 95 % interval."""
    trials, long = (np.array([one[name] for one in pairs]) for name in ("top1", "longer"))
    return rank_agreement(trials, long)


def claims(
    rows: Sequence[dict[str, str]], pairs: Sequence[dict[str, Any]], again: Sequence[dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Return the claims of a table by name, as arguments of ``record``.

    Args:
        rows: Rows of the table.
        pairs: Results of longer training.
        again: Second measurements of steps.
    """
    errors, agreed = step_errors(rows), twice(rows, again)
    claimed: dict[str, dict[str, Any]] = {}
    if len(errors) >= _FEWEST:
        low, high = median_interval(errors)
        middle = {"value": statistics.median(errors), "unit": "fraction", "low": low, "high": high}
        claimed["search_step_foretold_error"] = middle | {"n": len(errors)}
    if agreed:
        claimed["search_step_twice_within_spread"] = _share(agreed)
    if all(len({one[name] for one in pairs}) > 1 for name in ("top1", "longer")):  # equal values have no ranks
        tau, low, high = agreement(pairs)
        claimed["search_proxy_tau_ratio"] = {
            "value": tau, "unit": "ratio", "low": low, "high": high, "n": len(pairs),
        }  # fmt: skip
    return claimed


def _share(yes: Sequence[bool]) -> dict[str, Any]:
    share = sum(yes) / len(yes)
    low, high = wilson_interval(share, len(yes))
    return {"value": share, "unit": "fraction", "low": low, "high": high, "n": len(yes)}


def main() -> None:
    options = _options()
    keep_freed_memory()  # as the command line does
    options.scratch.mkdir(parents=True, exist_ok=True)
    space = small_space()
    study, points = Record(options.table, space), drawn(space, options.networks)
    dataset = some_pictures(options.data, options.pictures)
    refuse_copies(load_dataset(options.data), dataset)
    requested = asked_recipe(options.settings)
    recipe = settled_recipe(requested, dataset.subset("train"), space, study.about)
    proxy = proxy_of(dataset, recipe, options.scratch)
    common = in_common(space, requested, dataset, proxy)
    study.begin(
        {name: common[name] for name in GONE_ON_WITH}
        | {
            "recipe": proxy.recipe.to_json(),
            "counts": {"train": len(proxy.train), "choosing": len(proxy.selection)},
            "command": command(options),
        }
    )
    shared = replace(sharing(proxy, options.workers), step_time="unmeasured")
    fill(study, points, shared, options.workers)
    refuse_torn(study, len(points), 0, 0.0)
    pairs = longer(study, shared, options.longer, options.longer_epochs, options.workers) if options.longer else []
    refuse_torn(study, len(points), options.longer, options.longer_epochs)
    doubtful = timed(study, proxy, {name: common[name] for name in TIMED_BY}, retime=options.retime)
    tell(claims(study.rows(), pairs, study.timed_twice()), doubtful, options)


def tell(claimed: dict[str, dict[str, Any]], doubtful: Sequence[int], options: argparse.Namespace) -> None:
    """Print the claims, and write them to the summary with --record.

    Raises:
        SystemExit: Some steps are in doubt. Nothing is recorded.
    """
    for name, one in claimed.items():
        print(f"{CALLED[name].format(n=one['n'])}: {one['value']:.3g} ({one['low']:.3g} to {one['high']:.3g})")
    if doubtful:
        numbers = ", ".join(map(str, doubtful))
        print(f"The steps of networks {numbers} are neither the sum of their parts nor twice the same.")
    if options.record:
        if doubtful:
            raise SystemExit("Nothing is recorded. Run it again while nothing else computes here.")
        for name, one in claimed.items():
            record(name, **one, command=command(options))
        for name in CALLED.keys() - claimed.keys():
            forget(name)  # it is from another table


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--pictures", type=int, default=3000)
    parser.add_argument("--networks", type=int, default=200)
    parser.add_argument("--set", dest="settings", action="append", default=[], help="override of proxy_small")
    parser.add_argument("--longer", type=int, default=0, metavar="N")
    parser.add_argument("--longer-epochs", type=float, default=25.0)
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="trials at the same time")
    parser.add_argument("--retime", action="store_true", help="time all steps again, on this machine")
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--scratch", type=Path, default=Path("runs/search_record"))
    parser.add_argument("--record", action="store_true", help="write the claims into summary.json")
    return parser.parse_args()


def command(options: argparse.Namespace) -> str:
    """Return the command line."""
    arguments = f"--pictures {options.pictures} --networks {options.networks}"
    more = "".join(f" --set {one}" for one in options.settings)
    longer = f" --longer {options.longer} --longer-epochs {options.longer_epochs:g}" * bool(options.longer)
    workers = f" --workers {options.workers}" * (options.workers > 1)
    table = f" --table {as_typed(options.table)}" * (options.table.resolve() != TABLE.resolve())
    return f"python -m benchmarks.search_record IMAGENETTE {arguments}{more}{longer}{workers}{table} --record"


if __name__ == "__main__":
    main()
