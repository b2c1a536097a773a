"""What is tried to find others' best settings: timm's optimizer, rate, then part by part; torchvision's rate."""

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
# What is tried in turn, the first of each being what the trials before it had. Ours.
_SCHEDULES = {
    "cosine, warm-up 1": ("--sched", "cosine", "--warmup-epochs", "1"),
    "cosine, warm-up 2": ("--sched", "cosine", "--warmup-epochs", "2"),
    "linear, warm-up 1": ("--sched", "poly", "--decay-rate", "1", "--warmup-epochs", "1"),
}
_LIGHT = ("--scale", "0.35", "1.0", "--drop", "0.1", "--drop-path", "0.1")
_STRENGTHS = {
    "light": _LIGHT,
    "none": ("--scale", "0.35", "1.0"),
    # With a warm-up: after so few updates an average without one is still a quarter what it began with.
    "average": (*_LIGHT, "--model-ema", "--model-ema-decay", "0.998", "--model-ema-warmup"),
    "the paper's": ("--aa", "rand-m6-mstd0.5", "--drop", "0.2", "--drop-path", "0.2"),
}
_PARTS = {"schedule": _SCHEDULES, "strength": _STRENGTHS, "batch": {size: ("-b", size) for size in ("64", "32")}}


def tuned_timm(timm: Timm, top1: Scores) -> tuple[float, Timm]:
    """The best that was tried, and its top-1: optimizer, rate, then part by part.

    Args:
        timm: without these.
        top1: of a stage and its sides by label.
    """
    timm = untuned(timm)
    kinds = {kind: _optimizing(timm, kind, 1) for kind in _OPTIMIZERS}
    scores = top1("optimizer", kinds)
    kind = max(scores, key=lambda one: scores[one])
    best = _of_best_rate(timm, kind, scores[kind], top1)
    for part, choices in _PARTS.items():
        others = list(choices.items())[1:]
        best = _better(best, top1, part, {label: best[1].with_part(part, words) for label, words in others})
    return best


def untuned(timm: Timm) -> Timm:
    """The same with the first choice of every part."""
    for part, choices in _PARTS.items():
        timm = timm.with_part(part, next(iter(choices.values())))
    return _optimizing(timm, next(iter(_OPTIMIZERS)), 1)


def at_first_rate(timm: Timm) -> Timm:
    """The same at the rate that tuning begins with, which is chosen before all other parts.

    Args:
        timm: tuned.
    """
    kinds = (kind for kind, words in _OPTIMIZERS.items() if words[1] == timm.parts["optimizer"][1])
    return _optimizing(timm, next(kinds), 1)


def _of_best_rate(timm: Timm, kind: str, own: float, top1: Scores) -> tuple[float, Timm]:
    """With half and twice the optimizer's own rate, and further rates as ``beyond_ends`` has them."""

    def scores(*factors: float) -> dict[float, float]:
        sides = {f"{_RATES[kind] * factor:g}": _optimizing(timm, kind, factor) for factor in factors}
        return dict(zip(factors, top1("rate", sides).values(), strict=True))

    found = beyond_ends({1.0: own} | scores(0.5, 2), lambda factor: scores(factor)[factor])
    best = max(found, key=lambda factor: found[factor])
    return found[best], _optimizing(timm, kind, best)


def beyond_ends(found: Mapping[float, float], score: Callable[[float], float]) -> dict[float, float]:
    """Scores by rate, with half of the least or twice the largest, until the best lies between others.

    Args:
        found: of some rates.
        score: of a further one.
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


def _optimizing(timm: Timm, kind: str, factor: float) -> Timm:
    return timm.with_part("optimizer", (*_OPTIMIZERS[kind], "--lr", f"{_RATES[kind] * factor:g}"))


def link_tuning_images(options: argparse.Namespace) -> None:
    """Make OUT/tuning of images of train alone: some in train/ to fit, others in val/ to choose by."""
    dataset = load_dataset(str(options.pictures))
    fit = min(options.tune_pictures, int((dataset.split == "train").sum()) * 3 // 4)
    order = np.random.default_rng(_TUNING).permutation(rows_of(dataset, "train", fit + options.tune_answers, _TUNING))
    link_folders(dataset, order[:fit], order[fit:], options.output / "tuning")


def tried_run(options: argparse.Namespace, name: str, side: Timm | Reference, seed: int = 0) -> dict[str, Any]:
    """A run of tuning on the images of ``link_tuning_images``, kept in OUT/tried."""
    pictures, of = options.output / "tuning", {"epochs": options.tune_epochs, "seed": seed}
    found = once(
        options.output / "tried" / f"{name.replace(' ', '_').replace(',', '')}.json",
        partial(side.trained, pictures, **of),
        side.asked(pictures, **of),
    )
    print(f"tuning {name}: {found['top1']:.1%} in {found['train_s']:.0f} s", flush=True)
    return found


def tune(options: argparse.Namespace, sizes: Sequence[str] = ()) -> dict[str, Any]:
    """Try what ``benchmarks.time_to_accuracy`` says; what was found, and the words chosen.

    Args:
        options: its.
        sizes: words of timm's size schedule; torchvision's recipe, which has none, is then left out.
    """
    link_tuning_images(options)
    timm, speeds, on = _quickest(options)  # with all cores to itself
    timm = timm.with_part("sizes", sizes) if sizes else timm
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // options.at_once))  # of the runs
    tried: dict[str, float] = {}

    def kept(name: str, side: Timm | Reference) -> float:
        return float(tried_run(options, name, side)["top1"])

    # Each run is a process of its own.
    with ThreadPoolExecutor(options.at_once) as pool, ThreadPoolExecutor(1) as waiting:

        def top1(stage: str, sides: Mapping[str, Timm]) -> dict[str, float]:
            runs = {label: pool.submit(kept, f"timm_{stage}_{label}", side) for label, side in sides.items()}
            found = {label: run.result() for label, run in runs.items()}
            tried.update({f"{stage}: {label}": reached for label, reached in found.items()})
            return found

        def of_rate(lr: float) -> Future[float]:
            return pool.submit(kept, f"torchvision_{lr:g}", Reference(options.image_size, lr, as_timm(timm)))

        def of_torchvision(rates: Sequence[float]) -> dict[float, float]:
            runs = {lr: of_rate(lr) for lr in rates}
            return beyond_ends({lr: run.result() for lr, run in runs.items()}, lambda lr: of_rate(lr).result())

        # The last is its own, 0.5 for 1,024 images. Waits next to timm's, so that no core is idle.
        theirs = None if sizes else waiting.submit(of_torchvision, (0.0078, 0.0156, 0.03125))
        best, tuned = tuned_timm(timm, top1)
        rates = {} if theirs is None else theirs.result()
    found = {
        "regime": regime_of(options),
        "timm": {"quick": tuned.quick, "parts": tuned.parts, "top1": best, "tried": tried, "speeds": speeds, "on": on},
    }
    return found | ({"torchvision": {"lr": max(rates, key=lambda lr: rates[lr]), "tried": rates}} if rates else {})


def regime_of(options: argparse.Namespace) -> dict[str, int]:
    """What the sides are tuned in.

    Args:
        options: of ``benchmarks.time_to_accuracy``.
    """
    names = ("image_size", "tune_epochs", "tune_pictures", "tune_answers")
    return {name: getattr(options, name) for name in names}


def as_timm(timm: Timm) -> tuple[str, ...]:
    """The numbers and the workers with which timm's script was fastest, in the words of the reference recipe.

    Args:
        timm: with these.
    """
    workers = ("--workers", timm.quick[timm.quick.index("-j") + 1])
    return (*workers, "--bf16") if "bfloat16" in timm.quick else workers


def here() -> str:
    """The machine and the torch that speeds are of."""
    return f"{hardware()}, torch {torch.__version__}"


def _quickest(options: argparse.Namespace) -> tuple[Timm, dict[str, float], str]:
    """Timm's script with the words that make its updates fastest here, images a second of all, where "here" is."""

    def tried() -> dict[str, Any]:
        asked = Namespace(
            pictures=options.pictures, script=options.script, image_size=options.image_size, batch_size=64,
            tune_updates=options.tune_updates,
        )  # fmt: skip
        return {"speeds": {"|".join(name): 1 / one for name, one in epoch.Timm(asked).tuned().items()}}

    on = here()
    asked = {"on": on, "tune_updates": options.tune_updates}
    speeds: dict[str, float] = once(options.output / "tried" / "timm_updates.json", tried, asked)["speeds"]
    kind, workers = max(speeds, key=lambda name: speeds[name]).split("|")
    return Timm(options.script, options.image_size, (*epoch.BEST[kind], "-j", workers)), speeds, on
