"""The inputs of the training steps: images as training reads them, the order in which they are drawn, the context."""

from __future__ import annotations

from dataclasses import replace

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.loader import TrainingImages, decode_threads
from efficientnetv2.data.readers import Reader
from efficientnetv2.data.sampler import TrainSampler
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.progressive.schedule import StepPlan
from efficientnetv2.training.class_imbalance import class_terms
from efficientnetv2.training.loop import StepContext
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.run_config import RunConfig
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


def train_sampler(config: RunConfig, *, steps: int, first_step: int = 0, plan: StepPlan | None = None) -> TrainSampler:
    """The requests of a run, from ``first_step`` on; see ``TrainSampler``."""
    recipe = config.recipe
    return TrainSampler(
        labels=config.train.labels,
        progressive=recipe.progressive,
        steps=steps,
        batch_size=recipe.batch_size,
        ghost_batch_size=recipe.group_size,
        class_sampling=recipe.class_sampling,
        key=config.key,
        first_step=first_step,
        rank=config.world.rank,
        world=config.world.size,
        beta=recipe.effective_beta,
        plan=plan,
    )


def step_context(config: RunConfig) -> StepContext:
    """What all steps of a run have in common."""
    classes = len(config.train.class_names)
    return StepContext(
        config.recipe,
        config.preprocessing,
        classes,
        config.key,
        config.device,
        class_terms(config.train.targets, classes, config.recipe),
        activation=config.activation,
    )
