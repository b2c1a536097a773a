"""Tuning of other programs: timm's optimizer, learning rate, then part by part; torchvision's learning rate."""

from __future__ import annotations

import argparse
import os
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from benchmarks import epoch
from benchmarks.arms import rows_of
from benchmarks.peers_training import Reference, Timm, link_folders, once
from benchmarks.record import hardware

from efficientnetv2.data.dataset import load_dataset

CHOOSING, _TUNING = 2000, 1_000  # images that tuning chooses by, and the seed that draws them
Scores = Callable[[str, Mapping[str, Timm]], Mapping[str, float]]  # top-1 by label, of a stage of tuning
_OPTIMIZERS = {
    "adamw": ("--opt", "adamw", "--opt-kwargs", "fused=True", "--weight-decay", "0.05"),
    "rmsprop": ("--opt", "rmsproptf", "--opt-eps", "0.001", "--weight-decay", "1e-5"),
    "sgd": ("--opt", "sgd", "--weight-decay", "5e-5"),
}
_RATES = {"adamw": 3e-3, "rmsprop": 0.012, "sgd": 0.1}
# Choices of each part. Earlier parts are tuned with the first choice. Ours.
_SCHEDULES = {
    "cosine, warm-up 1": ("--sched", "cosine", "--warmup-epochs", "1"),
    "cosine, warm-up 2": ("--sched", "cosine", "--warmup-epochs", "2"),
    "linear, warm-up 1": ("--sched", "poly", "--decay-rate", "1", "--warmup-epochs", "1"),
}
_LIGHT = ("--scale", "0.35", "1.0", "--drop", "0.1", "--drop-path", "0.1")
_STRENGTHS = {
    "light": _LIGHT,
    "none": ("--scale", "0.35", "1.0"),
    # With a warm-up: without it, a quarter of the average is still the initial weights after these few updates.
    "average": (*_LIGHT, "--model-ema", "--model-ema-decay", "0.998", "--model-ema-warmup"),
    "the paper's": ("--aa", "rand-m6-mstd0.5", "--drop", "0.2", "--drop-path", "0.2"),
}
_PARTS = {"schedule": _SCHEDULES, "strength": _STRENGTHS, "batch": {size: ("-b", size) for size in ("64", "32")}}


def tuned_timm(timm: Timm, top1: Scores) -> tuple[float, Timm]:
    """Return the best configuration that was tried, with its top-1: optimizer, learning rate, then part by part.

    Args:
        timm: Script without these parts.
        top1: Function that returns top-1 by label, from a stage and its candidates by label.
    """
    timm = untuned(timm)
    optimizers = {optimizer: _optimizing(timm, optimizer, 1) for optimizer in _OPTIMIZERS}
    scores = top1("optimizer", optimizers)
    optimizer = max(scores, key=lambda one: scores[one])
    best = _of_best_rate(timm, optimizer, scores[optimizer], top1)
    for part, choices in _PARTS.items():
        others = list(choices.items())[1:]
        best = _better(best, top1, part, {label: best[1].with_part(part, arguments) for label, arguments in others})
    return best


def untuned(timm: Timm) -> Timm:
    """Return a copy with the first choice of each part."""
    for part, choices in _PARTS.items():
        timm = timm.with_part(part, next(iter(choices.values())))
    return _optimizing(timm, next(iter(_OPTIMIZERS)), 1)


def at_first_rate(timm: Timm) -> Timm:
    """Return a copy with the first learning rate of tuning, which is chosen before all other parts.

    Args:
        timm: Tuned script.
    """
    optimizers = (
        optimizer for optimizer, arguments in _OPTIMIZERS.items() if arguments[1] == timm.parts["optimizer"][1]
    )
    return _optimizing(timm, next(optimizers), 1)


def _of_best_rate(timm: Timm, optimizer: str, own: float, top1: Scores) -> tuple[float, Timm]:
    """Try half and twice the default rate of the optimizer, and further rates as in ``beyond_ends``."""

    def scores(*factors: float) -> dict[float, float]:
        sides = {f"{_RATES[optimizer] * factor:g}": _optimizing(timm, optimizer, factor) for factor in factors}
        return dict(zip(factors, top1("rate", sides).values(), strict=True))

    found = beyond_ends({1.0: own} | scores(0.5, 2), lambda factor: scores(factor)[factor])
    best = max(found, key=lambda factor: found[factor])
    return found[best], _optimizing(timm, optimizer, best)


def beyond_ends(found: Mapping[float, float], score: Callable[[float], float]) -> dict[float, float]:
    """Halve the lowest rate or double the highest rate until the best rate is between others; return all scores.

    Args:
        found: Scores by rate.
        score: Function that returns the score of a further rate.
    """
    known = dict(found)
    while True:
        best = max(known, key=lambda rate: known[rate])
        if best not in (min(known), max(known)):
            return known
        further = best / 2 if best == min(known) else best * 2
        known[further] = score(further)


def _better(best: tuple[float, Timm], top1: Scores, stage: str, sides: Mapping[str, Timm]) -> tuple[float, Timm]:
    scores = top1(stage, sides)
    return max([best, *((scores[label], side) for label, side in sides.items())], key=lambda one: one[0])


def _optimizing(timm: Timm, optimizer: str, factor: float) -> Timm:
    return timm.with_part("optimizer", (*_OPTIMIZERS[optimizer], "--lr", f"{_RATES[optimizer] * factor:g}"))


def link_tuning_images(options: argparse.Namespace) -> None:
    """Make OUT/tuning from images of train: images to fit in train/, images to choose by in val/."""
    dataset = load_dataset(str(options.pictures))
    fit = min(options.tune_pictures, int((dataset.split == "train").sum()) * 3 // 4)
    order = np.random.default_rng(_TUNING).permutation(rows_of(dataset, "train", fit + options.tune_answers, _TUNING))
    link_folders(dataset, order[:fit], order[fit:], options.output / "tuning")


def tried_run(options: argparse.Namespace, name: str, side: Timm | Reference, seed: int = 0) -> dict[str, Any]:
    """Run a tuning candidate on the images of ``link_tuning_images``; OUT/tried stores the results."""
    images, of = options.output / "tuning", {"epochs": options.tune_epochs, "seed": seed}
    found = once(
        options.output / "tried" / f"{name.replace(' ', '_').replace(',', '')}.json",
        partial(side.trained, images, **of),
        side.asked(images, **of),
    )
    print(f"tuning {name}: {found['top1']:.1%} in {found['train_s']:.0f} s", flush=True)
    return found


def tune(options: argparse.Namespace) -> dict[str, Any]:
    """Tune the peers as ``benchmarks.time_to_accuracy`` describes; return the scores and the chosen arguments.

    Args:
        options: Options of ``benchmarks.time_to_accuracy``.
    """
    link_tuning_images(options)
    timm, speeds, on = quickest(options)  # alone on all cores
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // options.at_once))  # of the runs
    tried: dict[str, float] = {}

    def top1_of(name: str, side: Timm | Reference) -> float:
        return float(tried_run(options, name, side)["top1"])

    # Each run is a separate process.
    with ThreadPoolExecutor(options.at_once) as pool, ThreadPoolExecutor(1) as waiting:

        def top1(stage: str, sides: Mapping[str, Timm]) -> dict[str, float]:
            runs = {label: pool.submit(top1_of, f"timm_{stage}_{label}", side) for label, side in sides.items()}
            found = {label: run.result() for label, run in runs.items()}
            tried.update({f"{stage}: {label}": reached for label, reached in found.items()})
            return found

        def submit_rate(lr: float) -> Future[float]:
            return pool.submit(top1_of, f"torchvision_{lr:g}", Reference(options.image_size, lr, as_timm(timm)))

        def tune_torchvision(rates: Sequence[float]) -> dict[float, float]:
            runs = {lr: submit_rate(lr) for lr in rates}
            return beyond_ends({lr: run.result() for lr, run in runs.items()}, lambda lr: submit_rate(lr).result())

        # The last rate is the recipe's, 0.5 for 1,024 images. Runs at the same time as timm, so that no core is idle.
        torchvision_rates = waiting.submit(tune_torchvision, (0.0078, 0.0156, 0.03125))
        best, tuned = tuned_timm(timm, top1)
        rates = torchvision_rates.result()
    return {
        "regime": regime_of(options),
        "timm": {"quick": tuned.quick, "parts": tuned.parts, "top1": best, "tried": tried, "speeds": speeds, "on": on},
        "torchvision": {"lr": max(rates, key=lambda lr: rates[lr]), "tried": rates},
    }


def regime_of(options: argparse.Namespace) -> dict[str, int]:
    """Return the conditions of tuning.

    Args:
        options: Options of ``benchmarks.time_to_accuracy``.
    """
    names = ("image_size", "tune_epochs", "tune_pictures", "tune_answers")
    return {name: getattr(options, name) for name in names}


def as_timm(timm: Timm) -> tuple[str, ...]:
    """Return the fastest precision and number of workers of timm as arguments of the reference recipe.

    Args:
        timm: Script with this precision and these workers.
    """
    workers = ("--workers", timm.quick[timm.quick.index("-j") + 1])
    return (*workers, "--bf16") if "bfloat16" in timm.quick else workers


def here() -> str:
    """Return the machine and the version of torch, on which speeds depend."""
    return f"{hardware()}, torch {torch.__version__}"


def quickest(options: argparse.Namespace) -> tuple[Timm, dict[str, float], str]:
    """Return timm's script with the fastest arguments, images/s of all of them, and the machine."""

    def measure() -> dict[str, Any]:
        conditions = Namespace(
            pictures=options.pictures, script=options.script, image_size=options.image_size, batch_size=64,
            tune_updates=options.tune_updates,
        )  # fmt: skip
        return {"speeds": {"|".join(name): 1 / one for name, one in epoch.Timm(conditions).tuned().items()}}

    on = here()
    conditions = {"on": on, "tune_updates": options.tune_updates}
    speeds: dict[str, float] = once(options.output / "tried" / "timm_updates.json", measure, conditions)["speeds"]
    form, workers = max(speeds, key=lambda name: speeds[name]).split("|")
    return Timm(options.script, options.image_size, (*epoch.BEST[form], "-j", workers)), speeds, on
