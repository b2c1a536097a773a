"""Record a study to learn from: random networks of the small space, each trained by one proxy recipe, and timed.

Run: python -m benchmarks.search_record DATA [--pictures 3000] [--networks 200] [--longer 20] [--workers 2] [--retime]

For instance on Imagenette: 200 networks, 5 epochs of 3,000 images of 64 px, some hours on 2 cores. Of the images
a fifth chooses (each class its share) and the others train; those that DATA gives as val or test are not looked at, and
none of those used may be a copy of one. The networks are drawn by a fixed key, each once. A network's row is written as
soon as it is known: the table results/search_record.csv has a column for each decision and what was measured,
search_record.json next to it what all rows have in common. A run that is stopped goes on where it was, on any machine.
What crashes says nothing of its network (somebody has killed it) and is not written down: run it again, and it is tried
again. Five in a row end the run: then it is no accident.

--longer N trains N of them, spread evenly over the ranks of their accuracy, for --longer-epochs with another seed; they
answer the same images. --workers N trains N networks at once, each on its share of the processor, for one core each
gives more images a second than all for one.

When all are trained their steps are timed, one after the other, on all of the processor (``benchmarks.search_steps``).
That belongs to one machine and one version of the code; --retime does it again where another one has done it.

--record writes into summary.json, each with its 95 % interval: how far the proxy's ranks hold (Kendall's tau; bootstrap
over networks); how well the sum over blocks foretells a step as it was measured first (the median error, bootstrap; the
share of networks where it lies within 15 %, Wilson; rows timed before the first was kept are of the step that stands,
measured again where the two disagreed, which flatters); and, of those steps that are measured once more, in which share
that is within the stated spread of the one that stands. Nothing is written of a table that lacks some of what was asked
for; a claim that an earlier table made and this one does not is taken out.
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

# Of those trained longer: with the trials' own, ranks would hold for the luck of it too.
LONGER_SEED = 1
# So many crashes in a row are no accident; as few networks tell nothing of a share. Ours.
CRASHED_IN_A_ROW, _FEWEST = 5, 20
TABLE = RESULTS / "search_record.csv"
# The claims, as they are told.
CALLED = {
    "search_step_foretold_error": "Step foretold by its blocks, median error of {n} networks",
    "search_step_twice_within_spread": "Step measured twice within its spread, share of {n} networks",
    "search_proxy_tau_ratio": "Kendall's tau of {n} networks trained longer",
}


def tried(space: Space, point: Point, proxy: ProxyTask) -> dict[str, Any]:
    """A network's row, but for its name."""
    began = time.perf_counter()
    network = space.decode(point)
    outcome = run_trial(network, proxy)
    found = to_measurement(network, proxy, outcome)
    plain = found.to_json()
    return {name: short(plain[name]) for name in MEASURED if name in plain} | {
        **dict.fromkeys(("step_foretold", "step_first_seconds", "step_first_spread")),
        "seconds": round(time.perf_counter() - began, 1),
        "curve": " ".join(f"{one.top1:.4f}" for one in outcome.epochs),
        "failure": None if found.failure is None else " ".join(found.failure.split())[:200],
    }


def crashed(found: dict[str, Any]) -> bool:
    """Whether a trial says nothing of its network: its process has ended before it did."""
    return (found["failure"] or "").startswith("crashed")


def crashes(before: int, found: dict[str, Any]) -> int:
    """How many trials in a row have crashed by now.

    Raises:
        SystemExit: so many that it can't be their networks.
    """
    if not crashed(found):
        return 0
    if before + 1 == CRASHED_IN_A_ROW:
        raise SystemExit(
            f"{CRASHED_IN_A_ROW} trials in a row have crashed; the last: {found['failure']}. Mend it, then run it "
            "again to go on."
        )
    return before + 1


def fill(kept: Record, points: Sequence[Point], proxy: ProxyTask, workers: int = 1) -> None:
    """Try those networks that have no row yet."""
    done, in_a_row = {int(row["number"]) for row in kept.rows()}, 0
    missing = [number for number in range(len(points)) if number not in done]
    with closing(at_once(missing, lambda number: tried(kept.space, points[number], proxy), workers)) as rows:
        for number, found in rows:
            if not crashed(found):
                kept.add(number, points[number], found)
            became = found["failure"] or f"{found['top1']:.1%}"
            print(f"{number + 1} of {len(points)}: {became} in {found['seconds']:.0f} s", flush=True)
            in_a_row = crashes(in_a_row, found)


def chosen(kept: Record, count: int) -> list[dict[str, str]]:
    """The rows of those to train longer: spread evenly over the ranks of their accuracy."""
    rows = sorted((row for row in kept.rows() if row["top1"]), key=lambda row: float(row["top1"]))
    return [rows[place] for place in np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)]


def longer(kept: Record, proxy: ProxyTask, count: int, epochs: float, workers: int = 1) -> list[dict[str, Any]]:
    """Train some of the recorded networks for longer; what is done is kept next to the table.

    Returns:
        Those that did not fail.
    """
    done, rows, points = kept.trained_longer(), chosen(kept, count), kept.points()
    proxy = replace(proxy, recipe=proxy.recipe.model_copy(update={"epochs": epochs}), seeds=(LONGER_SEED,))
    in_a_row = 0
    wanted = {int(row["number"]): float(row["top1"]) for row in rows}
    there = {one["number"] for one in done if one["epochs"] == epochs}
    missing = [number for number in wanted if number not in there]
    with closing(at_once(missing, lambda number: tried(kept.space, points[number], proxy), workers)) as trials:
        for number, found in trials:
            if not crashed(found):
                top1 = {"top1": wanted[number], "longer": found["top1"]}
                done.append({"number": number, "epochs": epochs, **top1})
                write_text_atomically(kept.longer, json.dumps(done, indent=1) + "\n")
            became = found["failure"] or f"{found['top1']:.1%}"
            print(f"network {number}: {wanted[number]:.1%}, longer {became}", flush=True)
            in_a_row = crashes(in_a_row, found)
    mine = [one for one in done if one["number"] in wanted and one["epochs"] == epochs]
    return [one for one in mine if one["longer"] is not None]


def refuse_torn(kept: Record, networks: int, count: int, epochs: float) -> None:
    """Nothing is said of a table that lacks some of what was asked for.

    Args:
        kept: the table.
        networks: that it was to have.
        count: of those to be trained longer.
        epochs: of theirs.

    Raises:
        SystemExit: says how many are missing.
    """
    rows = {int(row["number"]) for row in kept.rows()}
    there = {one["number"] for one in kept.trained_longer() if one["epochs"] == epochs}
    missing = sum(number not in rows for number in range(networks))
    pairs = sum(int(row["number"]) not in there for row in chosen(kept, count))
    if missing or pairs:
        raise SystemExit(
            f"{missing} of {networks} networks and {pairs} of those to be trained longer have crashed, and are "
            f"missing in {kept.table}. Run it again to try them again."
        )


def agreement(pairs: Sequence[dict[str, Any]]) -> tuple[float, float, float]:
    """Kendall's tau between the proxy's accuracies and longer training's, and its 95 % interval."""
    trials, long = (np.array([one[name] for one in pairs]) for name in ("top1", "longer"))
    return rank_agreement(trials, long)


def claims(
    rows: Sequence[dict[str, str]], pairs: Sequence[dict[str, Any]], again: Sequence[dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """What a table says, by the names of its claims, as ``record`` takes it.

    Args:
        rows: of the table.
        pairs: of those trained longer.
        again: of those whose steps were measured a second time.
    """
    errors, held = step_errors(rows), twice(rows, again)
    said: dict[str, dict[str, Any]] = {}
    if len(errors) >= _FEWEST:
        low, high = median_interval(errors)
        middle = {"value": statistics.median(errors), "unit": "fraction", "low": low, "high": high}
        said["search_step_foretold_error"] = middle | {"n": len(errors)}
    if held:
        said["search_step_twice_within_spread"] = _share(held)
    if all(len({one[name] for one in pairs}) > 1 for name in ("top1", "longer")):  # equals have no order to agree on
        tau, low, high = agreement(pairs)
        said["search_proxy_tau_ratio"] = {
            "value": tau, "unit": "ratio", "low": low, "high": high, "n": len(pairs),
        }  # fmt: skip
    return said


def _share(yes: Sequence[bool]) -> dict[str, Any]:
    share = sum(yes) / len(yes)
    low, high = wilson_interval(share, len(yes))
    return {"value": share, "unit": "fraction", "low": low, "high": high, "n": len(yes)}


def main() -> None:
    """Record what is missing, then say what the table holds."""
    options = _options()
    keep_freed_memory()  # as the program does
    options.scratch.mkdir(parents=True, exist_ok=True)
    space = small_space()
    kept, points = Record(options.table, space), drawn(space, options.networks)
    dataset = some_pictures(options.data, options.pictures)
    refuse_copies(load_dataset(options.data), dataset)
    asked = asked_recipe(options.settings)
    recipe = settled_recipe(asked, dataset.subset("train"), space, kept.about)
    proxy = proxy_of(dataset, recipe, options.scratch)
    common = in_common(space, asked, dataset, proxy)
    kept.begin(
        {name: common[name] for name in GONE_ON_WITH}
        | {
            "recipe": proxy.recipe.to_json(),
            "counts": {"train": len(proxy.train), "choosing": len(proxy.selection)},
            "command": command(options),
        }
    )
    shared = replace(sharing(proxy, options.workers), step_time="unmeasured")
    fill(kept, points, shared, options.workers)
    refuse_torn(kept, len(points), 0, 0.0)
    pairs = longer(kept, shared, options.longer, options.longer_epochs, options.workers) if options.longer else []
    refuse_torn(kept, len(points), options.longer, options.longer_epochs)
    doubtful = timed(kept, proxy, {name: common[name] for name in TIMED_BY}, retime=options.retime)
    tell(claims(kept.rows(), pairs, kept.timed_twice()), doubtful, options)


def tell(said: dict[str, dict[str, Any]], doubtful: Sequence[int], options: argparse.Namespace) -> None:
    """What a table says, on the screen and in the summary.

    Raises:
        SystemExit: some steps are in doubt, so that nothing is recorded.
    """
    for name, one in said.items():
        print(f"{CALLED[name].format(n=one['n'])}: {one['value']:.3g} ({one['low']:.3g} to {one['high']:.3g})")
    if doubtful:
        numbers = ", ".join(map(str, doubtful))
        print(f"The steps of networks {numbers} are neither the sum of their parts nor twice the same.")
    if options.record:
        if doubtful:
            raise SystemExit("Nothing is recorded. Run it again while nothing else computes here.")
        for name, one in said.items():
            record(name, **one, command=command(options))
        for name in CALLED.keys() - said.keys():
            forget(name)  # it would be of another table


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--pictures", type=int, default=3000)
    parser.add_argument("--networks", type=int, default=200)
    parser.add_argument("--set", dest="settings", action="append", default=[], help="of proxy_small")
    parser.add_argument("--longer", type=int, default=0, metavar="N")
    parser.add_argument("--longer-epochs", type=float, default=25.0)
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="networks tried at once")
    parser.add_argument("--retime", action="store_true", help="time all steps anew, on this machine")
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--scratch", type=Path, default=Path("runs/search_record"))
    parser.add_argument("--record", action="store_true", help="write the claims into summary.json")
    return parser.parse_args()


def command(options: argparse.Namespace) -> str:
    """As one types it."""
    given = f"--pictures {options.pictures} --networks {options.networks}"
    more = "".join(f" --set {one}" for one in options.settings)
    longer = f" --longer {options.longer} --longer-epochs {options.longer_epochs:g}" * bool(options.longer)
    workers = f" --workers {options.workers}" * (options.workers > 1)
    table = f" --table {as_typed(options.table)}" * (options.table.resolve() != TABLE.resolve())
    return f"python -m benchmarks.search_record IMAGENETTE {given}{more}{longer}{workers}{table} --record"


if __name__ == "__main__":
    main()
