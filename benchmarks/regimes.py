"""How much is trained where two ways of training are compared on Imagenette, and how each is tuned."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from benchmarks.arms import rows_of, write_pictures
from benchmarks.paper.runs import Runs

from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.dataset import ImageDataset


@dataclass(frozen=True)
class Regime:
    """How much is trained of what.

    Args:
        claimed: ends the names of what is claimed of it.
        images: to train on; None is all.
        epochs: over them.
        answers: images of val to answer; None is all.
        tune_pictures, tune_epochs: as images and epochs, of tuning.
        tune_answers: images of train to choose by.
        model: that is trained.
        image_size: at the end; the beginning is half of it.
        size_multiple: of which sizes are; None is the recipe's.
        batch_size: images a step.
        shares: of the steps, one per stage of progressive, to choose from, with equally many; quicker ones last.
        seeds: how often.
    """

    claimed: str
    pictures: int | None
    epochs: float
    tune_pictures: int
    tune_epochs: float
    tune_answers: int = 2000
    answers: int | None = None
    model: str = "efficientnetv2_b0"
    image_size: int = 128
    size_multiple: int | None = None
    batch_size: int = 32
    shares: tuple[tuple[int, ...], ...] = ()
    seeds: int = 5


# Ours: five seeds of the paper's regime take about 95 minutes on two cores that train 125 images of 128 px a second.
# A short run is tuned on a quarter of its images for twice the epochs: half the steps. Of a step of 32 images at
# 64 px a third does not depend on their size (optimizer, reading), so that batches of 32 and stages of equally many
# steps were 1.31 to 1.46 times as fast as fixed (results/equal_steps_tried.md); hence the paper's regime.
REGIMES = {
    "paper": Regime(
        claimed="b0_imagenette",
        pictures=1000,
        epochs=60,
        tune_pictures=1000,
        tune_epochs=60,
        batch_size=64,
        shares=((3, 2, 2, 2), (2, 1, 1, 1)),
    ),
    "short": Regime(claimed="b0_imagenette_short", pictures=None, epochs=10, tune_pictures=2400, tune_epochs=20),
    # Table 12's form: a network of another family, few epochs over all images.
    "resnet50": Regime(
        claimed="resnet50_imagenette",
        pictures=None,
        epochs=6,
        tune_pictures=2400,
        tune_epochs=12,
        model="torchvision:resnet50",
        image_size=96,
        size_multiple=16,
        batch_size=64,
        shares=((3, 2, 2, 2), (2, 1, 1, 1)),
        seeds=3,
    ),
}
# At the end of the run: magnitude of RandAugment, dropout. The strongest are S's in Table 6; slight is what light comes
# to on average over a run in which it grows from a third.
STRENGTHS: Mapping[str, tuple[float, float]] = {
    "none": (0, 0.0),
    "slight": (10 / 3, 0.2 / 3),
    "light": (5, 0.1),
    "middle": (10, 0.2),
    "strong": (15, 0.3),
}
HOPELESS = 0.03  # so far below the best, a stronger regularization won't be the best: ours, 3 standard errors of tuning
_TUNING = 1_000  # seed of what tuning draws; no seed of the comparison


def strengths(*, growing: bool) -> list[str]:
    """Those to try, weakest first: what stands still is given the average of what grows, too.

    Args:
        growing: with the size of the images.
    """
    return [name for name in STRENGTHS if name != "slight" or not growing]


def regularized(strength: str, *, growing: bool) -> tuple[str, ...]:
    """Settings of a strength: at its end throughout, or growing from a third of it.

    Args:
        strength: of ``STRENGTHS``.
        growing: with the size of the images.
    """
    magnitude, dropout = STRENGTHS[strength]
    values = {"dropout": dropout} | ({"randaugment": magnitude} if magnitude else {})
    return tuple(
        f"progressive.{name}={{start: {value / 3 if growing else value:.4f}, end: {round(value, 4)}}}"
        for name, value in values.items()
    )


def try_strengths(strengths: Iterable[str], top1: Callable[[str], float]) -> dict[str, float]:
    """Stronger and stronger until one is hopeless; strength -> top-1.

    Args:
        strengths: by name, weakest first.
        top1: of a run with one.
    """
    tried: dict[str, float] = {}
    for name in strengths:
        tried[name] = top1(name)
        if tried[name] < max(tried.values()) - HOPELESS:
            break
    return tried


def to_tune(dataset: ImageDataset, regime: Regime, runs: Runs) -> Runs:
    """The runs of tuning, on images of train alone: some to fit, others to choose by.

    Args:
        dataset: of all images.
        regime: how many.
        runs: of the comparison; those of tuning lie in ``tuning/`` of its folder.
    """
    within = rows_of(dataset, "train", regime.tune_pictures + regime.tune_answers, _TUNING)
    order = np.random.default_rng(_TUNING).permutation(within)
    fitting, choosing = np.sort(order[: regime.tune_pictures]), np.sort(order[regime.tune_pictures :])
    file = write_pictures(runs.out / "tuning.csv", dataset, fitting, choosing)
    return replace(runs, source=DataConfig(str(file)), out=runs.out / "tuning")


def each_seed(dataset: ImageDataset, regime: Regime, runs: Runs) -> Iterator[tuple[int, Runs]]:
    """The seeds of a comparison, each with images of its own to learn from, and all with the same to answer.

    Args:
        dataset: of all images.
        regime: how many.
        runs: of the comparison; those of its arms lie in ``arms/`` of its folder.
    """
    answering = rows_of(dataset, "val", regime.answers, 0)
    for seed in range(runs.seeds):
        learning = rows_of(dataset, "train", regime.pictures, seed)
        file = write_pictures(runs.out / f"pictures_{seed}.csv", dataset, learning, answering)
        yield seed, replace(runs, source=DataConfig(str(file)), out=runs.out / "arms")


def add_smaller(parser: argparse.ArgumentParser) -> None:
    """Options that make a regime smaller."""
    group = parser.add_argument_group("smaller, to see that it runs; not to be recorded")
    for name in ("num-train-images", "answers", "image-size"):
        group.add_argument(f"--{name}", type=int)
    group.add_argument("--epochs", type=float)


def smaller(regime: Regime, options: argparse.Namespace) -> Regime:
    """A regime with what was said in the options of ``add_smaller``."""
    changes: dict[str, Any] = {}
    if options.num_train_images is not None:
        changes |= {"pictures": options.num_train_images, "tune_pictures": options.num_train_images}
    if options.epochs is not None:
        changes |= {"epochs": options.epochs, "tune_epochs": options.epochs}
    if options.answers is not None:
        changes |= {"answers": options.answers, "tune_answers": options.answers}
    if options.image_size is not None:
        changes["image_size"] = options.image_size
    return replace(regime, **changes)
