"""Tuning of other programs: timm's optimizer, learning rate, then part by part; its progressive schedule."""

from __future__ import annotations

import argparse
import json
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks import epoch
from benchmarks.arms import refuse_other_regime, rows_of
from benchmarks.in_turn import mean_top1
from benchmarks.peers_training import Timm, link_folders, once
from benchmarks.record import hardware, read

from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.utils.io import write_text_atomically

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
# Sizes of the progressive schedule as fractions of the largest size, and further arguments. Ours.
SIZES: Mapping[str, tuple[tuple[float, ...], tuple[str, ...]]] = {
    "three from half": ((0.5, 0.75, 1), ()),
    "three from half, in order": (
        (0.5, 0.75, 1),
        ("--train-size-schedule-spread", "0", "--train-size-random-mix", "0"),
    ),
    "five from half": ((0.5, 0.625, 0.75, 0.875, 1), ()),
    "three from three quarters": ((0.75, 0.875, 1), ()),
}
NEARLY = 0.01  # a faster run this close to the best is taken: ours, one standard error of 2,000 images
_COMPILED = "--torchcompile"
_PARTS = {"schedule": _SCHEDULES, "strength": _STRENGTHS, "batch": {size: ("-b", size) for size in ("64", "32")}}


def tuned_timm(timm: Timm, top1: Scores) -> tuple[float, Timm]:
    """Return the best configuration that was tried, with its top-1: optimizer, learning rate, then part by part.

    Args:
        timm: Script without these parts.
        top1: Function that returns top-1 by label, from a stage and its candidates by label.
    """
    timm = _untuned(timm)
    optimizers = {optimizer: _optimizing(timm, optimizer, 1) for optimizer in _OPTIMIZERS}
    scores = top1("optimizer", optimizers)
    optimizer = max(scores, key=lambda one: scores[one])
    best = _of_best_rate(timm, optimizer, scores[optimizer], top1)
    for part, choices in _PARTS.items():
        others = list(choices.items())[1:]
        best = _better(best, top1, part, {label: best[1].with_part(part, arguments) for label, arguments in others})
    return best


def _untuned(timm: Timm) -> Timm:
    """Return a copy with the first choice of each part."""
    for part, choices in _PARTS.items():
        timm = timm.with_part(part, next(iter(choices.values())))
    return _optimizing(timm, next(iter(_OPTIMIZERS)), 1)


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


def size_schedule(label: str, image_size: int) -> tuple[str, ...]:
    """Arguments of timm's script for sizes of ``SIZES``."""
    fractions, more = SIZES[label]
    sizes = (str(round(image_size * fraction)) for fraction in fractions)
    return ("--train-img-sizes", *sizes, "--train-size-schedule", "progressive", *more)


def first_rate(timm: Timm) -> float:
    """Return the learning rate that tuning started from."""
    optimizer = timm.parts["optimizer"][1]
    return next(_RATES[name] for name, arguments in _OPTIMIZERS.items() if arguments[1] == optimizer)


def rate_of(timm: Timm) -> float:
    """Return the learning rate."""
    return float(timm.parts["optimizer"][-1])


def with_rate(timm: Timm, rate: float) -> Timm:
    """Return a copy with another learning rate."""
    return timm.with_part("optimizer", (*timm.parts["optimizer"][:-1], f"{rate:g}"))


def with_warmup(timm: Timm, share: float) -> Timm:
    """Return a copy with this share of its epochs of warm-up, at least one: timm takes whole epochs."""
    *others, epochs = timm.parts["schedule"]
    return timm.with_part("schedule", (*others, str(max(1, round(share * int(epochs))))))


def with_values_of_quick(timm: Timm) -> Timm:
    """Return a copy with the values of recipe ``quick`` in timm's options, and the sizes that it has.

    Timm has no option for residual blocks that start as their shortcuts, for dropout that grows with the size, and for
    preprocessing that stretches images to squares. It takes whole epochs of warm-up.
    """
    recipe = get_recipe("quick")
    optimizer, progressive = recipe.optimizer, recipe.progressive
    parts = {
        "optimizer": (
            *_OPTIMIZERS["adamw"][:4], "--opt-betas", optimizer.momentum, optimizer.beta2,
            "--weight-decay", optimizer.weight_decay, "--lr", optimizer.lr,
        ),
        "schedule": ("--sched", recipe.schedule.name, "--warmup-epochs", round(recipe.schedule.warmup_epochs)),
        "clipping": ("--clip-grad", optimizer.clip_norm),
        "head": ("--head-init-scale", 0),
        "batch": ("-b", recipe.batch_size),
        "strength": (
            "--scale", recipe.crop_scale_min, 1, "--color-jitter", recipe.augment.color,
            "--drop", progressive.dropout.end, "--smoothing", progressive.label_smoothing,
            "--model-ema", "--model-ema-decay", recipe.ema_decay, "--model-ema-warmup",
        ),
    }  # fmt: skip
    for part, arguments in parts.items():
        timm = timm.with_part(part, [str(word) for word in arguments])
    return timm


def _optimizing(timm: Timm, optimizer: str, factor: float) -> Timm:
    return timm.with_part("optimizer", (*_OPTIMIZERS[optimizer], "--lr", f"{_RATES[optimizer] * factor:g}"))


def link_tuning_images(options: argparse.Namespace) -> None:
    """Make OUT/tuning from images of train: images to fit in train/, images to choose by in val/."""
    dataset = load_dataset(str(options.pictures))
    fit = min(options.tune_pictures, int((dataset.split == "train").sum()) * 3 // 4)
    order = np.random.default_rng(_TUNING).permutation(rows_of(dataset, "train", fit + options.tune_answers, _TUNING))
    link_folders(dataset, order[:fit], order[fit:], options.output / "tuning")


def tried_run(options: argparse.Namespace, name: str, side: Timm, seed: int = 0) -> dict[str, Any]:
    """Run a tuning candidate on the images of ``link_tuning_images``; OUT/tried stores the results."""
    images, of = options.output / "tuning", {"epochs": options.tune_epochs, "seed": seed}
    found = once(
        options.output / "tried" / f"{name.replace(' ', '_').replace(',', '')}.json",
        partial(side.trained, images, **of),
        side.asked(images, **of),
    )
    print(f"tuning {name}: {found['top1']:.1%} in {found['train_s']:.0f} s", flush=True)
    return found


def tune_schedule(options: argparse.Namespace, timm: Timm) -> dict[str, Any]:
    """Tune the learning rate, the sizes and compilation of timm's progressive schedule.

    Args:
        options: Options of ``benchmarks.time_to_accuracy``.
        timm: Script, tuned for a constant size.

    Returns:
        The chosen arguments (``quick``, ``parts``), and what was tried.
    """
    first, *others = SIZES
    sized = timm.with_part("sizes", size_schedule(first, options.image_size))

    def run_at(rate: float) -> dict[str, Any]:
        return tried_run(options, f"progressive rate {rate:g}", with_rate(sized, rate))

    def top1_at(rate: float) -> float:
        return float(run_at(rate)["top1"])

    rate = rate_of(timm)
    found = beyond_ends({one: top1_at(one) for one in (rate, rate / 2)}, top1_at)
    best = max(found, key=lambda one: found[one])
    at_best = with_rate(timm, best)
    sides = {label: at_best.with_part("sizes", size_schedule(label, options.image_size)) for label in SIZES}
    rows = {first: run_at(best)} | {label: tried_run(options, f"sizes {label}", sides[label]) for label in others}
    enough = max(row["top1"] for row in rows.values()) - NEARLY
    label = min((label for label in rows if rows[label]["top1"] >= enough), key=lambda label: rows[label]["train_s"])
    side = sides[label]
    if _COMPILED in side.quick:
        plain = replace(side, quick=tuple(word for word in side.quick if word != _COMPILED))
        rows["not compiled"] = tried_run(options, "not compiled", plain)
        side = plain if rows["not compiled"]["train_s"] < rows[label]["train_s"] else side
    tried = {name: [row["top1"], row["train_s"]] for name, row in rows.items()}
    return {"quick": side.quick, "parts": side.parts, "sizes": label, "sizes_tried": tried, "rates_tried": found}


def tune(options: argparse.Namespace) -> None:
    """Tune timm as ``benchmarks.time_to_accuracy`` describes. OUT/tuned.json stores each stage; it is not repeated."""
    link_tuning_images(options)
    file = options.output / "tuned.json"
    chosen: dict[str, Any] = read(file) if file.exists() else {"regime": regime_of_timm(options)}
    refuse_other_regime(file, chosen, regime_of_timm(options))

    def stage(name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if name not in chosen:
            chosen[name] = make()
            write_text_atomically(file, json.dumps(chosen, indent=1) + "\n")
        return chosen[name]

    fastest = Timm(options.script, options.image_size, tuple(stage("fastest", lambda: quickest(options))["quick"]))
    parts = stage("parts", lambda: _tune_parts(options, fastest))["parts"]
    stage("timm", lambda: _tune_rate(options, replace(fastest, parts=parts)))
    stage("timm_progressive", lambda: tune_schedule(options, timm_of(chosen["timm"], options)))


def tune_speed(options: argparse.Namespace, first: Path, sides: Sequence[str]) -> None:
    """Write OUT/tuned.json: the choices in ``first``, with the arguments that are the fastest on this machine."""
    chosen = read(first)
    refuse_other_regime(first, chosen, regime_of_timm(options))
    fastest = quickest(options)
    here = {side: {**chosen[side], "quick": fastest["quick"]} for side in sides}
    chosen.pop("comment")
    write_text_atomically(
        options.output / "tuned.json", json.dumps({**chosen, "fastest": fastest, **here}, indent=1) + "\n"
    )


def _tune_parts(options: argparse.Namespace, timm: Timm) -> dict[str, Any]:
    tried: dict[str, float] = {}

    def top1(part: str, sides: Mapping[str, Timm]) -> dict[str, float]:
        found = {label: tried_run(options, f"timm_{part}_{label}", side)["top1"] for label, side in sides.items()}
        tried.update({f"{part}: {label}": reached for label, reached in found.items()})
        return found

    best, side = tuned_timm(timm, top1)
    return {"top1": best, "parts": side.parts, "tried": tried}


def _tune_rate(options: argparse.Namespace, timm: Timm) -> dict[str, Any]:
    """Choose between the tuned rate and the first rate, then whether to clip gradients, each by two more seeds."""

    def top1(label: str, side: Timm) -> float:
        return mean_top1(tried_run(options, f"{label} seed {seed}", side, seed) for seed in (1, 2))

    sides = {f"rate {rate:g}": with_rate(timm, rate) for rate in (rate_of(timm), first_rate(timm))}
    tried = {label: top1(label, side) for label, side in sides.items()}
    best = sides[max(tried, key=lambda label: tried[label])]
    sides["clipped"] = best.with_part("clipping", ("--clip-grad", "1"))
    tried["clipped"] = top1("clipped", sides["clipped"])
    side = sides[max(tried, key=lambda label: tried[label])]
    return {"quick": side.quick, "parts": side.parts, "tried": tried}


def timm_of(chosen: Mapping[str, Any], options: argparse.Namespace) -> Timm:
    """Return timm's script with the arguments that a stage of tuning chose."""
    parts = {name: tuple(arguments) for name, arguments in chosen["parts"].items()}
    return Timm(options.script, options.image_size, tuple(chosen["quick"]), parts)


def regime_of_timm(options: argparse.Namespace) -> dict[str, Any]:
    """Return the conditions of tuning, with the script and the version of timm.

    Args:
        options: Options of ``benchmarks.time_to_accuracy``.
    """
    names = ("image_size", "tune_epochs", "tune_pictures", "tune_answers", "tune_updates")
    of_timm = Timm(options.script, options.image_size).script_version()
    return {**of_timm, **{name: getattr(options, name) for name in names}}


def here() -> str:
    """Return the machine and the version of torch, on which speeds depend."""
    return f"{hardware()}, torch {torch.__version__}"


def quickest(options: argparse.Namespace) -> dict[str, Any]:
    """Return the fastest arguments of timm's script (``quick``), images/s of all of them, and the machine."""

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
    return {"quick": (*epoch.BEST[form], "-j", workers), "speeds": speeds, "on": on}
