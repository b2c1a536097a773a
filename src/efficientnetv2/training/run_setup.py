"""The setup of a run (network, datasets, device, folder): its steps, its loading, what the kept model predicts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.loader import TrainingImages, decode_threads
from efficientnetv2.data.readers import Reader
from efficientnetv2.data.sampler import TrainSampler
from efficientnetv2.data.splits import image_labels
from efficientnetv2.inference.predict import Predictions, Runtime, predict_dataset
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.preprocessing import Bands, Preprocessing
from efficientnetv2.progressive.schedule import StepPlan
from efficientnetv2.training.microbatch import ONE_GROUP_PER_PASS, MicrobatchPlan
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.run_dir import RunDir
from efficientnetv2.training.train_state import TrainState
from efficientnetv2.utils.distributed import SINGLE_PROCESS, World
from efficientnetv2.utils.errors import InputError, pluralize
from efficientnetv2.utils.probability import Activation
from efficientnetv2.utils.random_key import Key

_logger = logging.getLogger(__name__)

# Share of the images of an evaluation that may be unreadable: beyond it storage is down. Ours.
_MOST_UNREADABLE = 0.5
# Log rows in a run: enough for a curve, few enough that reading the loss costs nothing. Ours.
_LOG_ROWS = 200


@dataclass(frozen=True)
class ImageCounts:
    """Number of images of a run: to train on, to evaluate on, and to select the weights by."""

    train: int
    val: int
    minival: int = 0


@dataclass(frozen=True)
class RunLength:
    """Number of steps of a run, and of an epoch, which need not end with a step."""

    steps: int
    steps_per_epoch: float

    @classmethod
    def of(cls, recipe: Recipe, images: int) -> RunLength:
        """Length of a resolved recipe on a number of training images."""
        steps = max(1, round(float(recipe.epochs) * images / recipe.batch_size))
        return cls(steps, images / recipe.batch_size)


@dataclass(frozen=True)
class RunSetup:
    """What to run, on what, where."""

    recipe: Recipe  # Resolved
    # Initial model; of a resumed run, one of the same shape. Any ``Network``, so your own wrapped module too.
    network: Network
    train: ImageDataset
    val: ImageDataset  # Images that give the metrics: those of val, or of test
    preprocessing: Preprocessing  # Of evaluation, and of the model file
    folder: RunDir
    device: torch.device
    workers: int  # Processes that read images
    microbatches: MicrobatchPlan = ONE_GROUP_PER_PASS
    strict: bool = False  # Whether an unreadable image ends the run
    world: World = SINGLE_PROCESS  # Processes that run it together, each with its own setup
    reader: Reader | None = None  # Reads the training images; None reads the files
    minival: ImageDataset | None = None  # Images that select the weights. None keeps the last ones.

    @property
    def activation(self) -> Activation:
        """Activation of the head; the trainer sets it."""
        return self.recipe.activation(self.train.separator)

    @property
    def length(self) -> RunLength:
        """Steps, and steps per epoch."""
        return RunLength.of(self.recipe, len(self.train))

    @property
    def eval_split(self) -> str:
        """Name of the split of ``val``: test, or else val."""
        return "test" if (self.val.split == "test").all() else "val"

    @property
    def image_counts(self) -> ImageCounts:
        """Number of images of each part."""
        return ImageCounts(len(self.train), len(self.val), 0 if self.minival is None else len(self.minival))

    @property
    def start(self) -> str:
        """Name of the initial model for users if it can classify; '' if it can't."""
        if self.recipe.weights == "none":
            return ""
        if self.network.class_names:
            return "the given model"
        return "the linear probe of the initial weights" if self.recipe.head_init == "linear_probe" else ""

    @property
    def key(self) -> Key:
        """Key of everything random in the run."""
        return Key.of(self.recipe.seed)

    def predict(
        self,
        state: TrainState,
        part: ImageDataset,
        *,
        once: bool = False,
        progress: Callable[[int], object] | None = None,
    ) -> Predictions:
        """Predictions of the model that would be kept now; unreadable images are counted, listed and skipped.

        Every process predicts its share; the first gets all predictions, the others none. ``once`` leaves out test-time
        augmentation; ``progress`` is called after every batch.

        Raises InputError if all of them, or more than half, can't be read (``strict``: any). In the first process.
        """
        predictions = self.predict_readable(state, part, once=once, progress=progress)
        unreadable = [(part.paths[row], reason) for row, reason in predictions.unreadable]
        if not unreadable:
            return predictions
        first = ": ".join(unreadable[0])
        if self.strict:
            raise InputError(f"{first}. Repair it or leave out `strict`, then continue with `resume`.")
        # One is no outage, however few there are: damage within a shard shows when it is read, not before.
        if len(unreadable) > min(len(part) - 1, max(1, _MOST_UNREADABLE * len(part))):
            raise InputError(
                f"{len(unreadable):,} of the {pluralize(len(part), 'image')} to be evaluated can't be read any more, "
                f"above the limit of {_MOST_UNREADABLE:.0%}. The first is {first}. Restore them, then continue "
                "with `resume`."
            )
        new = [path for path, reason in unreadable if self.folder.skip(path, reason)]
        if new:
            _logger.info(f"Skipped {len(new):,} of {pluralize(len(part), 'image')} to be evaluated, such as {new[0]}.")
        return predictions

    def predict_readable(
        self, state: TrainState, part: ImageDataset, *, once: bool, progress: Callable[[int], object] | None = None
    ) -> Predictions:
        """The same predictions, however many images can't be read."""
        return predict_dataset(
            eval_network(state),
            part,
            preprocessing=replace(self.preprocessing, tta="none") if once else self.preprocessing,
            runtime=Runtime(self.device, self.workers, world=self.world),
            progress=progress,
        )


def eval_preprocessing(recipe: Recipe, network: Network, bands: Bands | None) -> Preprocessing:
    """The preprocessing of the weights, with size, crop mode and views of the recipe. ``bands`` are of rasters."""
    assert recipe.eval_image_size is not None, "resolve_recipe() comes first"
    return replace(
        network.preprocessing.seeing(bands),
        image_size=recipe.eval_image_size,
        crop_mode=recipe.crop_mode,
        crop_pct=recipe.crop_pct,
        tta=recipe.tta,
    )


def eval_network(state: TrainState) -> Network:
    """The model that is evaluated and saved."""
    assert isinstance(state.eval_network, Network)
    return state.eval_network


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
        world=setup.world,
        beta=recipe.effective_beta,
        plan=plan,
        sizes=np.bincount(image_labels(setup.train)[1], minlength=len(setup.train.class_names)),
    )


def validation_steps(recipe: Recipe, length: RunLength) -> frozenset[int]:
    """The steps before a validation: each stage's end, and every ``val_interval_epochs`` unless a stage ends near.

    Near is within half an interval after the step, or a tenth before it. Ours.
    """
    every = max(1, round(recipe.val_interval_epochs * length.steps_per_epoch))
    ends = recipe.progressive.stage_ends(length.steps)
    between = range(every, length.steps, every)
    near = {step for step in between for end in ends if -every / 10 < end - step < every / 2}
    return frozenset(ends) | frozenset(between) - near


def log_steps(recipe: Recipe, length: RunLength) -> frozenset[int]:
    """The steps before a log row: evenly spaced, and each stage's end."""
    every = max(1, length.steps // _LOG_ROWS)
    return frozenset(range(every, length.steps + 1, every)) | frozenset(recipe.progressive.stage_ends(length.steps))
