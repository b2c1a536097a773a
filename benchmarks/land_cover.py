"""Land cover, cross-validated in new places and among like images: what each start and each way of balancing gives.

Run: python -m benchmarks.land_cover PICTURES.csv WEIGHTS AERIAL [--workers 2] [--only STEP ...]

PICTURES.csv has columns path, label, latitude and longitude; WEIGHTS were trained on ImageNet; AERIAL is a folder of
aerial images to learn from first. Steps:

pretrain   V2-B0 on AERIAL: from scratch, and from WEIGHTS; only what another step still needs
best       in every fold the three pairs of start and balancing that are best inside its training images, small; their
           networks, trained at full size, answer the fold together. Both kinds of folds. This is the figure to quote.
wide       every start (from scratch, WEIGHTS, aerial, both), with and without balancing, small (128 px, 4 epochs), on
           5 folds by spatial blocks and on 5 stratified ones; next to each the linear probe and the most frequent class
balancing  every way of balancing, from WEIGHTS, small, 3 seeds, by spatial blocks

A stopped run goes on from --output; what a cross-validation came to is kept under results/land_cover/ and not done
again, for all of it may take longer than a sitting: pretrain and best want one, or --output kept; what is kept says by
a digest which pretrained weights it began with. With `best` done the claims go into results/summary.json; what a step
came to goes into results/land_cover.json. --workers N runs N cross-validations at once, each on its share of the
processor: nothing here is a time.
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

from benchmarks.arms import HARDLY_VALIDATED, machines
from benchmarks.land_cover_runs import FOLDS, PRETRAINING, SPLITS, Validation, Work, each, piece
from benchmarks.record import RESULTS, begun, interval, record

from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.utils.io import write_text_atomically
from efficientnetv2.utils.processes import keep_freed_memory

STEPS = ("pretrain", "best", "wide", "balancing")
SEEDS = 3
FROM_SCRATCH = ("epochs=16",)  # of the same images; without weights four epochs are nothing
BALANCED = ("class_sampling=null", "class_sampling=equal")
BALANCING = (
    "class_sampling=null",
    "class_sampling=sqrt",
    "class_sampling=effective",
    "class_sampling=equal",
    "class_sampling=equal progressive.randaugment=2",
    "class_sampling=equal minority_randaugment_scale=2 progressive.randaugment=2",
    "class_sampling=null class_weights=equal",
    "class_sampling=null class_weights=effective",
    "class_sampling=null logit_adjustment=1",
)


Asked = dict[tuple[Any, ...], Validation]


def best_asked(work: Work) -> Asked:
    """By the kind of folds: starts and balancing chosen inside the training folds, small; full size answers."""
    tries = tuple(f"weights={start} {class_sampling}" for start in work.starts.values() for class_sampling in BALANCED)
    words, more = (
        work.words(work.weights, work.full),
        {"tries": tries, "try_settings": work.small, "members": work.members},
    )
    return {(split,): Validation(f"best/{split}", words, split, more) for split in SPLITS}


def wide_asked(work: Work) -> Asked:
    """By the kind of folds, start and balancing; from scratch, which takes longest, comes last."""
    asked: Asked = {}
    for (name, start), split, class_sampling in product([*work.starts.items(), ("scratch", "none")], SPLITS, BALANCED):
        longer = FROM_SCRATCH if start == "none" else ()
        words = work.words(start, [*work.small, *longer, *HARDLY_VALIDATED, class_sampling])
        asked[split, name, class_sampling] = Validation(f"wide/{split}/{name}_{_slug(class_sampling)}", words, split)
    return asked


def balancing_asked(work: Work) -> Asked:
    """By the way of balancing and the seed, from ImageNet's weights; what the wide comparison has too is the same."""
    asked: Asked = {}
    for class_sampling, seed in product(BALANCING, range(SEEDS)):
        shared = class_sampling in BALANCED and seed == 0
        name = (
            f"wide/spatial/imagenet_{_slug(class_sampling)}" if shared else f"balancing/{_slug(class_sampling)}_{seed}"
        )
        words = work.words(work.weights, [*work.small, *HARDLY_VALIDATED, *class_sampling.split()], seed)
        asked[class_sampling, seed] = Validation(name, words, "spatial", probe=shared)
    return asked


ASKED = {"best": best_asked, "wide": wide_asked, "balancing": balancing_asked}


def told_of(name: str, found: dict[tuple[Any, ...], dict[str, Any]]) -> dict[str, Any]:
    """What a step came to, as it is kept."""
    if name == "balancing":
        return gains({key: report["macro_f1"] for key, report in found.items()})
    told: dict[str, Any] = {}
    for (split, *rest), report in found.items():
        if rest:
            told.setdefault(split, {})[" ".join(rest)] = report
        else:
            told[split] = report
    return told


def gains(scores: dict[tuple[Any, ...], float]) -> dict[str, Any]:
    """By the way of balancing: macro-F1 of every seed, and what that is over no balancing with the same seed.

    Args:
        scores: by way and seed.
    """
    told = {}
    for class_sampling in dict.fromkeys(way for way, _ in scores):
        seeds = [seed for way, seed in scores if way == class_sampling]
        over = [scores[class_sampling, seed] - scores[BALANCING[0], seed] for seed in seeds]
        told[class_sampling] = {
            "macro_f1": [scores[class_sampling, seed] for seed in seeds],
            "gain": statistics.fmean(over),
            "gain_interval": interval(over) if len(set(over)) > 1 else (over[0], over[0]),
        }
    return told


def pretrain(work: Work, steps: Sequence[str], asked: dict[str, Asked]) -> None:
    """What is not there of the pretrained starts and is still needed; next to it what needs none, for it takes a core.

    Raises:
        SystemExit: it is needed, but ``pretrain`` is not among the steps.
    """
    left = [one for ones in asked.values() for one in ones.values() if not work.is_kept(one)]
    needed = {name for one in left for name in work.pretrained_of(one)}
    missing = [name for name in PRETRAINING if name in needed and not work.model_of(name).exists()]
    if missing and "pretrain" not in steps:
        raise SystemExit(f"{work.out / 'pretrained'} lacks {' and '.join(missing)}: add pretrain to --only.")
    if missing:
        beside = [one for key, one in asked.get("wide", {}).items() if "imagenet" in key and one in left]
        each(piece, work, [*missing, *beside])


def claim(found: dict[str, Any], command: str) -> None:
    """The figures to quote."""
    for split, one in found.items():
        for figure in ("macro_f1", "top1"):
            low, high = one["intervals"][figure]
            record(
                f"land_cover_{figure}_{split}", one[figure], unit="F1" if figure == "macro_f1" else "fraction",
                low=low, high=high, n=FOLDS, command=command, on=machines([one]),
            )  # fmt: skip


def _slug(settings: str) -> str:
    return settings.replace(" ", "_").replace("=", "-").replace(".", "-")


def main(words: Sequence[str] | None = None) -> None:
    """The steps, in order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures")
    parser.add_argument("weights")
    parser.add_argument("aerial")
    parser.add_argument("--output", type=Path, default=Path("runs/land_cover_folds"))
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="cross-validations at once")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=STEPS)
    given = parser.parse_args(words)
    run(Work(given.pictures, given.weights, given.aerial, given.output, workers=given.workers), given.only)


def run(work: Work, steps: Sequence[str] = STEPS) -> None:
    """So many of the steps; what they come to is kept after each."""
    work.kept.mkdir(parents=True, exist_ok=True)
    common = {
        "pictures": load_dataset(work.pictures).digest(),
        "weights": hashlib.blake2b(Path(work.weights).read_bytes(), digest_size=16).hexdigest(),
        "aerial": load_dataset(work.aerial).digest(),
        "settings": [*work.always, *work.small, *work.full, *FROM_SCRATCH, *HARDLY_VALIDATED],
        "members": work.members,
        "pretraining": {name: list(settings) for name, settings in PRETRAINING.items()},
    }
    file = RESULTS / "land_cover.json"
    begun(work.kept / "about.json", common, tuple(common), f"move {work.kept} and {file.name} away")
    asked = {name: of(work) for name, of in ASKED.items() if name in steps}
    pretrain(work, steps, asked)
    kept: dict[str, Any] = {}
    for name, ones in asked.items():
        reports = each(piece, work, list(ones.values()))
        # Read again: another process may have done another step meanwhile.
        kept = json.loads(file.read_text()) if file.exists() else {}
        kept[name] = told_of(name, dict(zip(ones, reports, strict=True)))
        write_text_atomically(file, json.dumps(kept, indent=1) + "\n")
    if "best" in steps:
        claim(kept["best"], "python -m benchmarks.land_cover PICTURES.csv WEIGHTS AERIAL")
    print(json.dumps({name: kept[name] for name in steps if name in kept}, indent=1))


if __name__ == "__main__":
    keep_freed_memory()  # as the program does
    main()
