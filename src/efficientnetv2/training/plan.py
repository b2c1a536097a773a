"""How long a run will take, from a short measurement on this machine."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass

import numpy as np
import torch

from efficientnetv2.base.errors import InputError
from efficientnetv2.base.keys import Key
from efficientnetv2.base.preprocessing import Preprocessing
from efficientnetv2.data.loader import TrainingPictures, reading_threads
from efficientnetv2.data.manifest import Manifest
from efficientnetv2.data.readers import Reader
from efficientnetv2.data.sampling import Request
from efficientnetv2.inference.accelerate import place
from efficientnetv2.models.network import Network
from efficientnetv2.training.loop import Constants, train_groups
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.state import State, begin

# A step is timed after one that warms up; the fastest of these counts, since disturbances only add. Ours.
_TIMED_STEPS = 3
# Share of the time left for saving, validating and the noise of the machine. Ours, a guess on the safe side.
_OVERHEAD = 0.08


@dataclass(frozen=True)
class StepTime:
    """The time of one training picture at one size, reading it included.

    Args:
        image_px: size.
        seconds_per_image: of a step, over its pictures.
    """

    image_px: int
    seconds_per_image: float


def measure(
    recipe: Recipe, network: Network, manifest: Manifest, device: torch.device, reader: Reader | None = None
) -> list[StepTime]:
    """Time a few steps of each stage, on the first pictures of the manifest.

    Args:
        recipe: with progressive known; epochs may be open.
        network: to train; a copy of it is trained here.
        manifest: training pictures.
        device: to train on.
        reader: of the pictures; None reads the originals.
    """
    network = copy.deepcopy(network)
    place(network, device)
    state = begin(network, recipe)
    network.train()
    preprocessing = Preprocessing(image_px=8, framing=recipe.framing)
    pictures = TrainingPictures(
        manifest,
        preprocessing,
        recipe.crop_area_min,
        Key.of(recipe.seed),
        threads=reading_threads(workers=0),
        reader=reader,
    )
    images = min(recipe.batch_images, recipe.group_images or recipe.batch_images, 64)
    stages = [recipe.progressive.stage(index) for index in range(recipe.progressive.stages)]
    times = []
    for setting in {setting.image_px: setting for setting in stages}.values():
        samples = np.arange(images, dtype=np.int64) % len(manifest)
        request = Request(0, 0, setting, samples, np.zeros_like(samples))
        seconds = [_step(state, pictures, request, recipe, device) for _ in range(1 + _TIMED_STEPS)]
        times.append(StepTime(setting.image_px, min(seconds[1:]) / images))
    return times


def _step(
    state: State,
    pictures: TrainingPictures,
    request: Request,
    recipe: Recipe,
    device: torch.device,
) -> float:
    started = time.perf_counter()
    batch = pictures.batch(request)
    classes = len(pictures.manifest.class_names)
    assert recipe.precision != "auto", "settle() comes first"
    constants = Constants(
        recipe.augment,
        pictures.preprocessing,
        classes,
        Key.of(recipe.seed),
        device,
        groups=1,
        precision=recipe.precision,
        scaler=state.scaler,
    )
    train_groups(state.network, [batch], constants, state.network)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    if state.ema:
        state.ema.update(state.network, 0)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def epochs_within(
    minutes: float,
    recipe: Recipe,
    network: Network,
    manifest: Manifest,
    device: torch.device,
    reader: Reader | None = None,
) -> float:
    """The epochs that fit into so many minutes.

    Args:
        minutes: of the run, from the first step to the last.
        recipe: as for ``measure``.
        network: as for ``measure``.
        manifest: training pictures.
        device: to train on.
        reader: as for ``measure``.

    Raises:
        InputError: not even one step per stage fits.
    """
    seconds = {
        time.image_px: time.seconds_per_image for time in measure(recipe, network, manifest, device, reader)
    }
    plan = recipe.progressive
    per_image = float(np.mean([seconds[plan.stage(index).image_px] for index in range(plan.stages)]))
    epochs = minutes * 60 * (1 - _OVERHEAD) / (per_image * len(manifest))
    if epochs * len(manifest) < plan.stages * recipe.batch_images:
        raise InputError(
            f"--minutes {minutes:g}: one step for each of the {plan.stages} stages takes "
            f"{per_image * recipe.batch_images * plan.stages / 60:.1f} minutes. Give more, or smaller pictures "
            "(--image-px) or a smaller network (--model)."
        )
    return float(f"{epochs:.3g}")
