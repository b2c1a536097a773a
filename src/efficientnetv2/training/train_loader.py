"""What a run loads for its training steps: its images with their crops, and the order of their requests."""

from __future__ import annotations

from dataclasses import replace

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.loader import TrainingImages, decode_threads
from efficientnetv2.data.readers import Reader
from efficientnetv2.data.sampler import TrainSampler
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.progressive.schedule import StepPlan
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.run_setup import RunSetup
from efficientnetv2.utils.random_key import Key


def training_images(
    train: ImageDataset, preprocessing: Preprocessing, recipe: Recipe, *, workers: int = 0, reader: Reader | None = None
) -> TrainingImages:
    """The images with the crops of a recipe. Without a ``reader`` their files are read."""
    return TrainingImages(
        train,
        replace(preprocessing, crop_mode=recipe.random_crop_mode),
        recipe.crop_scale_min,
        Key.of(recipe.seed),
        threads=decode_threads(workers),
        reader=reader,
    )


def train_sampler(setup: RunSetup, *, steps: int, first_step: int = 0, plan: StepPlan | None = None) -> TrainSampler:
    """The requests of a run, from ``first_step`` on; see ``TrainSampler``."""
    recipe = setup.recipe
    return TrainSampler(
        labels=setup.train.labels,
        progressive=recipe.progressive,
        steps=steps,
        batch_size=recipe.batch_size,
        ghost_batch_size=recipe.group_size,
        class_sampling=recipe.class_sampling,
        key=setup.key,
        first_step=first_step,
        rank=setup.world.rank,
        world=setup.world.size,
        beta=recipe.effective_beta,
        plan=plan,
    )
