"""Land cover, cross-validated in new places and among like pictures: what each start and each way of balancing gives.

Run: python -m benchmarks.land_cover PICTURES.csv WEIGHTS AERIAL [--workers 2] [--only STEP ...]

PICTURES.csv has columns path, label, latitude and longitude; WEIGHTS were trained on ImageNet; AERIAL is a folder of
aerial pictures to learn from first. Steps:

pretrain   V2-B0 on AERIAL: from scratch, and from WEIGHTS
wide       every start (from scratch, WEIGHTS, aerial, both), with and without balancing, small (128 px, 4 epochs), on
           5 folds by spatial blocks and on 5 stratified ones; beside each the linear probe and the most frequent class
balancing  every way of balancing, from WEIGHTS, small, 3 seeds, by spatial blocks
best       in every fold the start and the balancing that are best inside its training pictures, small; these at full
           size answer the fold. Both kinds of folds. This is the figure to quote.

A stopped run goes on from --out; what a cross-validation came to is kept under results/land_cover/ and not done again,
for all of it may take longer than a sitting. With `best` done the claims go into results/summary.json; what a step came
to goes into results/land_cover.json. --workers N runs N cross-validations at once, each on its share of the processor:
nothing here is a time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.land_cover_runs import (
    FOLDS,
    PRETRAINING,
    SPLITS,
    Validation,
    Work,
    each,
    pretrained,
    validated,
)
from benchmarks.record import RESULTS, begun, interval, record

from efficientnetv2.base.allocator import keep_freed_memory
from efficientnetv2.base.files import write_text_atomically
from efficientnetv2.data.manifest import read

STEPS = ("pretrain", "wide", "balancing", "best")
SEEDS = 3
FROM_SCRATCH = (
    "epochs=16",
    "validate_epochs=16",
)  # of the same pictures; without weights four epochs are nothing
BALANCED = ("balance=null", "balance=equal")
BALANCING = (
    "balance=null",
    "balance=sqrt",
    "balance=effective",
    "balance=equal",
    "balance=equal rare_randaugment=2 progressive.randaugment=2",
    "balance=null class_weights=equal",
    "balance=null class_weights=effective",
    "balance=null logit_adjustment=1",
)


def pretrain(work: Work) -> None:
    """The two starts that have seen aerial pictures."""
    each(pretrained, work, list(PRETRAINING))


def wide(work: Work) -> dict[str, Any]:
    """Every start, with and without balancing, small, on both kinds of folds."""
    starts = {"scratch": "none", **work.starts}
    asked = {}
    for split, (name, start), balance in product(SPLITS, starts.items(), BALANCED):
        longer = FROM_SCRATCH if start == "none" else ()
        words = work.words(start, [*work.small, *longer, balance])
        asked[split, f"{name} {balance}"] = Validation(f"wide/{split}/{name}_{_slug(balance)}", words, split)
    reports = each(validated, work, list(asked.values()))
    found: dict[str, Any] = {}
    for (split, name), report in zip(asked, reports, strict=True):
        found.setdefault(split, {})[name] = report
    return found


def balancing(work: Work) -> dict[str, Any]:
    """Every way of balancing over several seeds, from ImageNet's weights: macro-F1 less that without."""
    asked = {
        (balance, seed): Validation(
            f"balancing/{_slug(balance)}_{seed}",
            work.words(work.weights, [*work.small, *balance.split()], seed),
            "spatial",
        )
        for balance, seed in product(BALANCING, range(SEEDS))
    }
    scores: dict[str, list[float]] = {}
    for (balance, _), report in zip(asked, each(validated, work, list(asked.values())), strict=True):
        scores.setdefault(balance, []).append(report["macro_f1"])
    without = scores[BALANCING[0]]
    return {
        balance: {
            "macro_f1": values,
            "gain": statistics.fmean(gains),
            "gain_interval": interval(gains) if len(set(gains)) > 1 else (gains[0], gains[0]),
        }
        for balance, values in scores.items()
        for gains in [[value - base for value, base in zip(values, without, strict=True)]]
    }


def best(work: Work) -> dict[str, Any]:
    """Start and balancing chosen inside the training folds, small; full size answers."""
    tries = tuple(f"weights={start} {balance}" for start in work.starts.values() for balance in BALANCED)
    words, more = work.words(work.weights, work.full), {"tries": tries, "try_settings": work.small}
    asked = [Validation(f"best/{split}", words, split, more) for split in SPLITS]
    return dict(zip(SPLITS, each(validated, work, asked), strict=True))


def claim(found: dict[str, Any], command: str) -> None:
    """The figures to quote."""
    for split, one in found.items():
        for figure in ("macro_f1", "top1"):
            low, high = one["intervals"][figure]
            record(
                f"land_cover_{figure}_{split}", one[figure], unit="F1" if figure == "macro_f1" else "fraction",
                low=low, high=high, n=FOLDS, command=command,
            )  # fmt: skip


def _slug(settings: str) -> str:
    return settings.replace(" ", "_").replace("=", "-").replace(".", "-")


def main(words: Sequence[str] | None = None) -> None:
    """The steps, in order."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pictures")
    parser.add_argument("weights")
    parser.add_argument("aerial")
    parser.add_argument("--out", type=Path, default=Path("runs/land_cover_folds"))
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="cross-validations at once")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=STEPS)
    given = parser.parse_args(words)
    run(Work(given.pictures, given.weights, given.aerial, given.out, workers=given.workers), given.only)


def run(work: Work, steps: Sequence[str] = STEPS) -> None:
    """So many of the steps; what they come to is kept after each."""
    work.kept.mkdir(parents=True, exist_ok=True)
    common = {
        "pictures": read(work.pictures).digest(),
        "weights": hashlib.blake2b(Path(work.weights).read_bytes(), digest_size=16).hexdigest(),
        "aerial": read(work.aerial).digest(),
        "settings": [*work.always, *work.small, *work.full, *FROM_SCRATCH],
        "pretraining": {name: list(settings) for name, settings in PRETRAINING.items()},
    }
    begun(work.kept / "about.json", common, tuple(common), f"move {work.kept} away")
    file = RESULTS / "land_cover.json"
    kept = json.loads(file.read_text()) if file.exists() else {}
    if "pretrain" in steps:
        pretrain(work)
    for name, step in (("wide", wide), ("balancing", balancing), ("best", best)):
        if name in steps:
            kept[name] = step(work)
            write_text_atomically(file, json.dumps(kept, indent=1) + "\n")
    if "best" in steps:
        claim(kept["best"], "python -m benchmarks.land_cover PICTURES.csv WEIGHTS AERIAL")
    print(json.dumps({name: kept[name] for name in steps if name in kept}, indent=1))


if __name__ == "__main__":
    keep_freed_memory()  # as the program does
    main()
