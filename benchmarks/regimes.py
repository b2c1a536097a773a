"""Sizes of the comparisons of training methods on Imagenette, and their tuning."""

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
    """Size of a comparison.

    Args:
        claimed: End of the claim names.
        pictures: Number of training images. None means all.
        epochs: Number of epochs.
        tune_pictures: Number of training images in tuning.
        tune_epochs: Number of epochs in tuning.
        tune_answers: Number of images of train to choose by.
        answers: Number of evaluated images of val. None means all.
        model: Name of the architecture.
        image_size: Final image size; the first is half of it.
        size_multiple: Image sizes are multiples of it. None takes the recipe's value.
        batch_size: Images per step.
        shares: Candidates for relative numbers of steps of the stages, next to equal numbers; faster candidates last.
        seeds: Number of seeds.
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


# Ours. Five seeds of regime paper take about 95 minutes on two cores that train 125 images/s at 128 px. Regime short is
# tuned on a quarter of its images for twice the epochs: half the steps. A third of the time of a step of 32 images at
# 64 px does not depend on the image size (optimizer, reading). So batches of 32 with equal stages were 1.31 to 1.46
# times as fast as fixed (results/equal_steps_tried.md), and regime paper has batches of 64 and longer first stages.
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
    # As in Table 12: an architecture of another family, few epochs over all images.
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
# Magnitude of RandAugment and dropout at the end of the run. "strong" is S in Table 6. "slight" is the mean of "light"
# over a run in which it grows from a third.
STRENGTHS: Mapping[str, tuple[float, float]] = {
    "none": (0, 0.0),
    "slight": (10 / 3, 0.2 / 3),
    "light": (5, 0.1),
    "middle": (10, 0.2),
    "strong": (15, 0.3),
}
HOPELESS = 0.03  # stop this far below the best: ours, 3 standard errors of tuning
_TUNING = 1_000  # seed of the images of tuning; not a seed of the comparison


def strengths(*, growing: bool) -> list[str]:
    """Return the strengths to try, weakest first. Constant regularization also tries the mean of growing "light".

    Args:
        growing: Regularization grows with the image size.
    """
    return [name for name in STRENGTHS if name != "slight" or not growing]


def regularized(strength: str, *, growing: bool) -> tuple[str, ...]:
    """Return the config overrides of a strength: the final value throughout, or growing from a third of it.

    Args:
        strength: Name in ``STRENGTHS``.
        growing: Regularization grows with the image size.
    """
    magnitude, dropout = STRENGTHS[strength]
    values = {"dropout": dropout} | ({"randaugment": magnitude} if magnitude else {})
    return tuple(
        f"progressive.{name}={{start: {value / 3 if growing else value:.4f}, end: {round(value, 4)}}}"
        for name, value in values.items()
    )


def try_strengths(strengths: Iterable[str], top1: Callable[[str], float]) -> dict[str, float]:
    """Try stronger regularization until it is far below the best; return top-1 by strength.

    Args:
        strengths: Names, weakest first.
        top1: Function that trains with a strength and returns top-1.
    """
    tried: dict[str, float] = {}
    for name in strengths:
        tried[name] = top1(name)
        if tried[name] < max(tried.values()) - HOPELESS:
            break
    return tried


def to_tune(dataset: ImageDataset, regime: Regime, runs: Runs) -> Runs:
    """Return the runs of tuning, on images of train: some to fit, others to choose by.

    Args:
        dataset: All images.
        regime: Numbers of images.
        runs: Runs of the comparison. Tuning uses ``tuning/`` in their folder.
    """
    rows = rows_of(dataset, "train", regime.tune_pictures + regime.tune_answers, _TUNING)
    order = np.random.default_rng(_TUNING).permutation(rows)
    fit_rows, val_rows = np.sort(order[: regime.tune_pictures]), np.sort(order[regime.tune_pictures :])
    file = write_pictures(runs.out / "tuning.csv", dataset, fit_rows, val_rows)
    return replace(runs, source=DataConfig(str(file)), out=runs.out / "tuning")


def each_seed(dataset: ImageDataset, regime: Regime, runs: Runs) -> Iterator[tuple[int, Runs]]:
    """Yield the seeds of a comparison, with other training images for each seed and the same evaluated images.

    Args:
        dataset: All images.
        regime: Numbers of images.
        runs: Runs of the comparison. The arms use ``arms/`` in their folder.
    """
    eval_rows = rows_of(dataset, "val", regime.answers, 0)
    for seed in range(runs.seeds):
        train_rows = rows_of(dataset, "train", regime.pictures, seed)
        file = write_pictures(runs.out / f"pictures_{seed}.csv", dataset, train_rows, eval_rows)
        yield seed, replace(runs, source=DataConfig(str(file)), out=runs.out / "arms")


def add_smaller(parser: argparse.ArgumentParser) -> None:
    """Add options that make a regime smaller."""
    group = parser.add_argument_group("smaller, to see that it runs; not to be recorded")
    for name in ("num-train-images", "answers", "image-size"):
        group.add_argument(f"--{name}", type=int)
    group.add_argument("--epochs", type=float)


def smaller(regime: Regime, options: argparse.Namespace) -> Regime:
    """Return a regime with the options of ``add_smaller``."""
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
