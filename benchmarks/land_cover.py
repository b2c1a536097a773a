"""Cross-validated land cover, on spatial and on stratified folds: effect of the initial weights and of class balancing.

Run: python -m benchmarks.land_cover PICTURES.csv WEIGHTS AERIAL [--workers 2] [--only STEP ...]

PICTURES.csv has columns path, label, latitude and longitude. WEIGHTS were trained on ImageNet. AERIAL is a folder of
aerial images for pretraining. Steps:

pretrain   Train V2-B0 on AERIAL, from scratch and from WEIGHTS. Only what another step needs.
best       In each fold, choose the three best pairs of weights and balancing inside its training images, with small
           trainings. Train these at full size and average their predictions on the fold. Both types of folds. This is
           the result to quote.
wide       All initial weights (none, WEIGHTS, aerial, both), with and without balancing, small (128 px, 4 epochs), on
           5 spatial and 5 stratified folds, with the linear probe and the most frequent class
balancing  All types of balancing, from WEIGHTS, small, 3 seeds, spatial folds

Claims, from ``best``: ``land_cover_macro_f1_spatial``, ``land_cover_top1_spatial``, and the same with ``_stratified``.

A stopped run resumes from --output. Results of cross-validations are saved in results/land_cover/ and are not repeated.
pretrain and best need one call, or the same --output. Each saved result has digests of its pretrained weights. Results
of the steps are in results/land_cover.json. --workers N runs N cross-validations at a time, each with its part of the
processor, because nothing is timed.
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
FROM_SCRATCH = ("epochs=16",)  # without weights, four epochs are too few
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


Requested = dict[tuple[Any, ...], Validation]


def best_asked(work: Work) -> Requested:
    """Type of folds -> cross-validation that chooses weights and balancing inside the training folds, small."""
    tries = tuple(f"weights={start} {class_sampling}" for start in work.starts.values() for class_sampling in BALANCED)
    overrides, options = (
        work.words(work.weights, work.full),
        {"tries": tries, "try_settings": work.small, "members": work.members},
    )
    return {(split,): Validation(f"best/{split}", overrides, split, options) for split in SPLITS}


def wide_asked(work: Work) -> Requested:
    """Type of folds, weights and balancing -> cross-validation. Training from scratch is slowest and comes last."""
    requested: Requested = {}
    for (name, start), split, class_sampling in product([*work.starts.items(), ("scratch", "none")], SPLITS, BALANCED):
        epochs = FROM_SCRATCH if start == "none" else ()
        overrides = work.words(start, [*work.small, *epochs, *HARDLY_VALIDATED, class_sampling])
        requested[split, name, class_sampling] = Validation(
            f"wide/{split}/{name}_{_slug(class_sampling)}", overrides, split
        )
    return requested


def balancing_asked(work: Work) -> Requested:
    """Balancing and seed -> cross-validation from ImageNet weights. Shares runs with the step wide."""
    requested: Requested = {}
    for class_sampling, seed in product(BALANCING, range(SEEDS)):
        shared = class_sampling in BALANCED and seed == 0
        name = (
            f"wide/spatial/imagenet_{_slug(class_sampling)}" if shared else f"balancing/{_slug(class_sampling)}_{seed}"
        )
        overrides = work.words(work.weights, [*work.small, *HARDLY_VALIDATED, *class_sampling.split()], seed)
        requested[class_sampling, seed] = Validation(name, overrides, "spatial", probe=shared)
    return requested


PLANS = {"best": best_asked, "wide": wide_asked, "balancing": balancing_asked}


def results_of(name: str, found: dict[tuple[Any, ...], dict[str, Any]]) -> dict[str, Any]:
    """The results of a step, as they are saved."""
    if name == "balancing":
        return gains({key: report["macro_f1"] for key, report in found.items()})
    results: dict[str, Any] = {}
    for (split, *rest), report in found.items():
        if rest:
            results.setdefault(split, {})[" ".join(rest)] = report
        else:
            results[split] = report
    return results


def gains(scores: dict[tuple[Any, ...], float]) -> dict[str, Any]:
    """Macro-F1 of each balancing and seed, and its difference to no balancing with the same seed.

    Args:
        scores: Macro-F1 by balancing and seed.
    """
    results = {}
    for class_sampling in dict.fromkeys(key for key, _ in scores):
        seeds = [seed for key, seed in scores if key == class_sampling]
        differences = [scores[class_sampling, seed] - scores[BALANCING[0], seed] for seed in seeds]
        results[class_sampling] = {
            "macro_f1": [scores[class_sampling, seed] for seed in seeds],
            "gain": statistics.fmean(differences),
            "gain_interval": interval(differences) if len(set(differences)) > 1 else (differences[0], differences[0]),
        }
    return results


def pretrain(work: Work, steps: Sequence[str], requested: dict[str, Requested]) -> None:
    """Make missing pretrained weights that are needed, and at the same time run ``wide`` from WEIGHTS.

    Raises:
        SystemExit: Weights are needed, but ``pretrain`` is not among the steps.
    """
    remaining = [
        validation
        for validations in requested.values()
        for validation in validations.values()
        if not work.is_kept(validation)
    ]
    needed = {name for validation in remaining for name in work.pretrained_of(validation)}
    missing = [name for name in PRETRAINING if name in needed and not work.model_of(name).exists()]
    if missing and "pretrain" not in steps:
        raise SystemExit(f"{work.out / 'pretrained'} lacks {' and '.join(missing)}: add pretrain to --only.")
    if missing:
        independent = [
            validation
            for key, validation in requested.get("wide", {}).items()
            if "imagenet" in key and validation in remaining
        ]
        each(piece, work, [*missing, *independent])


def claim(found: dict[str, Any], command: str) -> None:
    """Record the results to quote."""
    for split, result in found.items():
        for metric in ("macro_f1", "top1"):
            low, high = result["intervals"][metric]
            record(
                f"land_cover_{metric}_{split}", result[metric], unit="F1" if metric == "macro_f1" else "fraction",
                low=low, high=high, n=FOLDS, command=command, on=machines([result]),
            )  # fmt: skip


def _slug(overrides: str) -> str:
    return overrides.replace(" ", "_").replace("=", "-").replace(".", "-")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures")
    parser.add_argument("weights")
    parser.add_argument("aerial")
    parser.add_argument("--output", type=Path, default=Path("runs/land_cover_folds"))
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="cross-validations at once")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=STEPS)
    options = parser.parse_args(arguments)
    run(Work(options.pictures, options.weights, options.aerial, options.output, workers=options.workers), options.only)


def run(work: Work, steps: Sequence[str] = STEPS) -> None:
    """Run the steps, and save the results after each."""
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
    requested = {name: plan(work) for name, plan in PLANS.items() if name in steps}
    pretrain(work, steps, requested)
    saved: dict[str, Any] = {}
    for name, validations in requested.items():
        reports = each(piece, work, list(validations.values()))
        # Read again: another process may have finished another step.
        saved = json.loads(file.read_text()) if file.exists() else {}
        saved[name] = results_of(name, dict(zip(validations, reports, strict=True)))
        write_text_atomically(file, json.dumps(saved, indent=1) + "\n")
    if "best" in steps:
        claim(saved["best"], "python -m benchmarks.land_cover PICTURES.csv WEIGHTS AERIAL")
    print(json.dumps({name: saved[name] for name in steps if name in saved}, indent=1))


if __name__ == "__main__":
    keep_freed_memory()  # as the program does
    main()
