"""The configuration of a run: one frozen, validated value, written as YAML into every run directory.

A function of ``training.recipes`` makes a recipe and ``--set a.b=c`` changes it. ``training.resolve`` replaces each
"auto" before the first step. Only ``minival: auto`` stays, as its rule gives the same images again on resume.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from efficientnetv2.architectures.spec import Architecture, GlobalPool
from efficientnetv2.data.imagenet_check import Published
from efficientnetv2.data.sampler import DEFAULT_BETA, ClassSampling
from efficientnetv2.data.splits import EvalSplit
from efficientnetv2.preprocessing import MAX_IMAGE_SIZE, TTA, CropMode
from efficientnetv2.progressive.schedule import ProgressiveSchedule, refuse_boolean_numbers
from efficientnetv2.transforms.pipeline import AugmentPlan
from efficientnetv2.utils.device import Precision
from efficientnetv2.utils.probability import Activation

# Upper limit of epochs and of the batch size. More is a typing error. Ours.
MAX_COUNT = 1_000_000
# What a recipe's schedule has where it names no rate. Outside a recipe, the model keeps the rate it was built with.
DEFAULT_RATES = {"dropout": 0.0, "drop_path": 0.0}

Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
ImageSize = Annotated[int, Field(ge=1, le=MAX_IMAGE_SIZE)]


class StrictModel(BaseModel):
    """A frozen value with validated fields. The text below a field is its description (docs/reference/recipe.md)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    _no_boolean_numbers = field_validator("*", mode="before")(refuse_boolean_numbers)


class Optimizer(StrictModel):
    """The optimizer and its hyperparameters."""

    name: Literal["rmsprop", "sgd", "adamw"]
    """`rmsprop` as in TensorFlow (epsilon inside the root, mean square starts at 1), `sgd` with Nesterov momentum, or
    `adamw`.
    """
    lr: float = Field(gt=0)
    """Peak learning rate for a batch of `batch_size`."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay of weights; biases and norms have none. L2 loss with `rmsprop` and `sgd`, decoupled with `adamw`."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of `rmsprop` and `sgd`; beta 1 of `adamw`."""
    beta2: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the running mean square: rho of `rmsprop`, beta 2 of `adamw`."""
    epsilon: float = Field(default=1e-8, gt=0)
    """Epsilon of `rmsprop` and `adamw`."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Largest norm of the gradients; larger ones are scaled down. null is off."""
    head_lr_mult: float = Field(default=1.0, gt=0)
    """Learning rate of the classifier, as a multiple of the backbone's."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Learning rate decay by depth. Of L layer groups (`models.adapt.layer_groups`), group i has the rate times
    `layer_decay ** (L - 1 - i)`. Below 1, layers near the input change less.
    """
    gradual_unfreeze: float | None = Field(default=None, gt=0, lt=1)
    """Gradual unfreezing: fraction of the run after which all layers train; the head starts at once, the stem last.
    null trains all layers from the start. Source: arXiv:1801.06146, section 3.3, one group per epoch.
    """


class Schedule(StrictModel):
    """The learning rate over the run, as a fraction of its peak: warm-up, then the shape."""

    name: Literal["cosine", "staircase", "constant"]
    """`cosine` down to `min_lr_ratio`, `staircase` (times `gamma` every `step_epochs`), or `constant`."""
    warmup_epochs: float = Field(default=0.0, ge=0)
    """Epochs of linear warm-up from 0."""
    max_warmup_fraction: float = Field(default=1.0, gt=0, le=1)
    """Largest fraction of the run for warm-up, so that a short run reaches its peak too."""
    min_lr_ratio: float = Field(default=0.0, ge=0, le=1)
    """Fraction of the peak at the end. For `cosine`."""
    gamma: float = Field(default=0.97, gt=0, le=1)
    """Factor of each decrease of the rate. For `staircase`."""
    step_epochs: float = Field(default=2.4, gt=0)
    """Epochs between two decreases of the rate. For `staircase`."""


class Recipe(StrictModel):
    """All hyperparameters of a run. The data is given apart."""

    name: str
    """Name of the recipe."""
    expected_dataset: Published | None = None
    """Published dataset that the recipe expects. Missing classes of ImageNet-1k are an error, other differences a
    warning. null is any.
    """
    model: str | Architecture = "auto"
    """Name of a published model, of another library's (`timm:resnet50`), or an architecture. `auto` takes the model of
    the weights, or else one that suits the machine.
    """
    weights: str = "auto"
    """Initial weights: `none`, `auto` (the best available), a name (`efficientnetv2_s.in1k`), or a file."""
    init: Literal["default", "zero_residual"] = "default"
    """Initialization of layers without pretrained weights: `default`, or `zero_residual`, where each residual block
    starts as its shortcut and the classifier at 0 (`models.blocks.zero_init_residual`).
    """
    head_init: Literal["random", "linear_probe", "auto"] = "random"
    """Classifier on pretrained weights: `random` (see `init`), or `linear_probe`, that of a linear probe
    (arXiv:2202.10054). `auto` takes the probe, but not with several labels, or with more than 1,666 classes and
    5,000 images. Several classifiers start at random.
    """
    global_pool: GlobalPool | None = None
    """Pooling of the last feature maps: `avg` over all positions, as published, or `avg+center`, which adds the mean
    over the middle third, for a subject at the center. Ours. null keeps that of the weights, or else `avg`.
    """
    freeze_stages: Annotated[int, Field(ge=0)] | Literal["all"] = 0
    """Number of stages, after the stem, that keep the pretrained weights. `all` trains only the classifier."""
    freeze_bn: bool = False
    """Whether batch-norm keeps the statistics of the pretrained weights, as in evaluation."""
    checkpoint_stages: int = Field(default=0, ge=0)
    """Gradient checkpointing: number of first stages whose activations are computed again in the backward pass. Less
    memory, more time, the same result. Only for models of this package.
    """
    epochs: Annotated[float, Field(gt=0, le=MAX_COUNT)] | Literal["auto"] = "auto"
    """Passes over the training images. `auto` depends on their number."""
    auto_epochs: tuple[int, float, float] = (100_000, 10.0, 100.0)
    """For `epochs: auto`: images to see in total, and the fewest and most epochs."""
    steps: Count | None = None
    """Steps of the run, instead of `epochs`; converted into epochs."""
    batch_size: int = Field(default=32, ge=1, le=MAX_COUNT)
    """Batch size: images per step."""
    ghost_batch_size: Count | None = None
    """Ghost batch size: images that share batch-norm statistics and mixing partners. Divides `batch_size`. null takes
    the largest divisor that fits into memory.
    """
    progressive: ProgressiveSchedule
    max_upscale: float | None = Field(default=None, ge=1)
    """Largest upscaling of stored images (median of the shorter sides): all training sizes are scaled down to it, the
    last one to 64 px or more. An explicit size turns this off. null is off.
    """
    stage_time: Literal["equal"] | tuple[float, ...] | None = None
    """Fraction of the training time per stage: `equal` or one number per stage. Steps of each size are timed before the
    run, and `progressive.stage_fractions` (in steps) is set to match, unless it is given. null is off.
    """
    optimizer: Optimizer
    schedule: Schedule
    ema_decay: Fraction | None = None
    """Decay of the moving average (EMA) of weights and batch-norm statistics, early on smaller; null is off."""
    batch_norm_momentum: float = Field(default=0.9, ge=0, lt=1)
    """Fraction of the running statistics kept per step, as in Keras (PyTorch's momentum is 1 minus this)."""
    crop_mode: CropMode = "squash"
    """How an image becomes square: `squash` squeezes the whole image, `center` takes the center square, `border` keeps
    the aspect ratio and fills the rest with the mean.
    """
    train_crop_mode: CropMode | None = None
    """Framing of random training crops; with `center` their aspect ratio is in pixels. null is as `crop_mode`."""
    crop_pct: float = Field(default=1.0, gt=0, le=1)
    """Fraction of the image that is kept at evaluation: of its shorter side with `crop_mode` `center`, of each side
    with `squash`.
    """
    eval_image_size: ImageSize | None = None
    """Image size at evaluation, in pixels. null takes the last training size."""
    eval_image_size_candidates: Literal["auto"] | Annotated[tuple[ImageSize, ...], Field(min_length=1)] | None = None
    """Further image sizes for evaluation, among which minival selects by `monitor` after training. `auto` is up to 1.5
    times the last training size. null is none.
    """
    tta: TTA = "none"
    """Test-time augmentation: `none`, or `d4`, which averages over all eight flips and rotations of the square."""
    crop_scale_min: float = Field(default=0.35, gt=0, le=1)
    """Smallest fraction of the image area in a training crop."""
    cache_resolution: float | None = Field(default=None, gt=0, le=1)
    """Resolution of cached images: the fraction of random crops that keep all their pixels. null caches none."""
    augment: AugmentPlan = AugmentPlan()
    multilabel: Activation = "softmax"
    """Loss for multi-label images: `sigmoid` predicts each class independently, positive from a probability of 0.5 (no
    `class_weights`, no `logit_adjustment`). `softmax` gives the labels of an image equal shares of 1, as in the paper.
    """
    class_sampling: ClassSampling | None = None
    """Class-balanced sampling, which draws rare classes more often. null draws every image once an epoch."""
    class_weights: ClassSampling | None = None
    """Weights of classes in the loss, by the same rules as `class_sampling`. With `class_sampling`, both apply."""
    effective_beta: float = Field(default=DEFAULT_BETA, ge=0, lt=1)
    """Beta of `effective`: how soon more images of a class add nothing new."""
    logit_adjustment: float | None = Field(default=None, gt=0)
    """Temperature of logit adjustment: training adds the log frequency of each class to its logit. null is off."""
    minority_randaugment_scale: float = Field(default=1.0, ge=1)
    """Factor of RandAugment's magnitude for classes that `class_sampling` draws more often."""
    eval_split: EvalSplit = "val"
    """Split that is evaluated: `val`, or `test` if there is one; then all others are trained on, val included."""
    val_fraction: Annotated[int, Field(ge=2)] | Fraction = 0.2
    """Fraction of the training images that becomes `val` where no split is given. From 2, their number."""
    minival: Count | Fraction | Literal["auto"] | None = None
    """Selection set: number, or below 1 fraction, of the training images that are held out to select the best weights.
    `auto` takes a twentieth, and keeps the last weights unless the start is significantly better. null keeps the last.
    """
    monitor: Literal["top1", "macro_f1"] = "top1"
    """Metric on minival that selects the weights."""
    patience: Count | None = None
    """Early stopping: validations in the last stage without a better metric on minival. null trains to the end."""
    val_interval_epochs: float = Field(default=1.0, gt=0)
    """Epochs between validations. Each stage ends with a validation too. With `--minutes`, validations that select
    nothing are left out where they would take more than a tenth of the time.
    """
    val_max_images: int = Field(default=512, ge=1)
    """Most images of val in a validation during training, stratified by class. With minival, that is used instead."""
    checkpoint_minutes: float = Field(default=5.0, ge=0)
    """Minutes between checkpoints. Each stage ends with a checkpoint too. 0 writes one after every step."""
    sync_batch_norm: bool = False
    """Whether all GPUs share batch-norm statistics. The result then depends on the number of processes."""
    precision: Precision | Literal["auto"] = "auto"
    """Precision of the forward and backward pass; weights and optimizer are fp32. `auto` takes 16 bits on a GPU that
    has them, and on a CPU if a test is 10 % faster.
    """
    compile: bool | Literal["auto"] = "auto"
    """Whether to use `torch.compile`. `auto` tries it in runs of an hour or more and keeps it if it saves time."""
    cuda_graphs: bool = True
    """Whether to replay passes on a single NVIDIA GPU from CUDA graphs, which saves the time that Python needs to start
    kernels. This takes memory. In tests, the trained weights had the same bits.
    """
    seed: int = 0
    """Random seed of the run."""

    def activation(self, separator: str | None) -> Activation:
        """Activation of the head. ``separator`` is the label separator of multi-label data."""
        return "softmax" if separator is None else self.multilabel

    @property
    def random_crop_mode(self) -> CropMode:
        """Framing of random training crops."""
        return self.train_crop_mode or self.crop_mode

    @property
    def group_size(self) -> int:
        """Images that share batch-norm statistics: the whole batch where `ghost_batch_size` is open."""
        return self.ghost_batch_size or self.batch_size

    @property
    def num_groups(self) -> int:
        """Groups of a step."""
        return self.batch_size // self.group_size

    @field_validator("progressive", mode="after")
    @classmethod
    def _fill_rates(cls, progressive: ProgressiveSchedule) -> ProgressiveSchedule:
        """The rates that a model is built with differ between libraries, so a recipe always sets them."""
        missing: dict[str, Any] = {
            name: rate for name, rate in DEFAULT_RATES.items() if getattr(progressive, name) is None
        }
        return replace(progressive, **missing)

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.epochs != "auto" and self.steps is not None:
            raise ValueError(
                f"epochs is {self.epochs:g} and steps is {self.steps}: set epochs to auto or steps to null"
            )
        for name in ("patience", "eval_image_size_candidates"):
            value = getattr(self, name)
            if self.minival is None and value is not None:
                raise ValueError(
                    f"{name} is {value}, but minival is off, and val must not select anything: set minival (0.1 is a "
                    f"tenth of train), or {name} to null"
                )
        if self.crop_pct < 1 and self.crop_mode == "border":
            raise ValueError(f"crop_pct is {self.crop_pct:g}, but crop_mode 'border' cuts nothing off")
        if self.ghost_batch_size is not None and self.batch_size % self.ghost_batch_size:
            most = min(self.ghost_batch_size, self.batch_size)
            fits = max(n for n in range(1, most + 1) if self.batch_size % n == 0)
            raise ValueError(
                f"ghost_batch_size is {self.ghost_batch_size}, which does not divide batch_size "
                f"({self.batch_size}); the next smaller that does is {fits}"
            )
        self._validate_stage_time()
        scale, randaugment = self.minority_randaugment_scale, self.progressive.randaugment
        if scale != 1 and (self.class_sampling is None or randaugment is None):
            off = "class_sampling" if self.class_sampling is None else "progressive.randaugment"
            raise ValueError(f"minority_randaugment_scale is {scale:g}, but has no effect without {off}: set {off} too")
        if self.augment.autoaugment and randaugment is not None:
            raise ValueError("augment.autoaugment and progressive.randaugment replace each other: turn one off")
        if self.progressive.extra:
            raise ValueError(
                f"progressive.extra names {sorted(self.progressive.extra)}, which this loop does not apply; they are "
                "for your own training loop"
            )
        return self

    def _validate_stage_time(self) -> None:
        shares, plan = self.stage_time, self.progressive
        if shares is None:
            return
        if plan.changes_always:
            why = "its order is random" if plan.order == "random" else "a value grows at every step"
            raise ValueError(f"stage_time is {shares}, but progressive has no stages: {why}")
        if shares != "equal" and (len(shares) != plan.stages or min(shares) <= 0):
            raise ValueError(
                f"stage_time is {shares}, but must have one share above 0 for each of {plan.stages} stages"
            )

    @property
    def balances_classes(self) -> bool:
        """Whether rare classes count more in training than their images."""
        return not (self.class_sampling is None and self.class_weights is None and self.logit_adjustment is None)

    @property
    def measures_stages(self) -> bool:
        """Whether the lengths of the stages follow from how long their steps take, which is not known yet."""
        return self.stage_time is not None and self.progressive.stage_fractions is None and self.progressive.stages > 1

    def stages(self) -> list[dict[str, Any]]:
        """Image size, regularization and epochs of each stage, as ``effnetv2 recipes NAME`` shows them.

        Epochs are None where they are open: "auto" depends on the number of images, ``stage_time`` on a measurement.
        """
        plan, is_open = self.progressive, self.epochs == "auto" or self.measures_stages
        names = ("image_size", "dropout", "drop_path", "randaugment", "mixup_alpha", "cutmix_alpha", "cutout")
        return [
            {name: getattr(plan.stage(index), name) for name in (*names, "label_smoothing")}
            | {"epochs": None if is_open else float(self.epochs) * plan.weights[index]}
            for index in range(plan.stages)
        ]

    def to_yaml(self) -> str:
        """The recipe as YAML; ``recipe_io.read_recipe`` reads it back."""
        return yaml.safe_dump(self.to_json(), sort_keys=False, width=100)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return self.model_dump(mode="json")


@dataclass(frozen=True)
class NamedRecipe:
    """A recipe, and what ``effnetv2 recipes NAME`` shows of it."""

    recipe: Recipe
    title: str  # One line for the list of recipes
    result: str  # What it reaches, and what it costs where that is known
    source: str  # Where the hyperparameters come from
    ours: str  # What the source leaves open or does in another way
    data: str = "IMAGENET"  # Arguments of ``effnetv2 train`` before ``--recipe``
    run: str = ""  # Text after the command
    has_cost: bool = False  # Whether ``result`` states hours or minutes. If not, the command that estimates is added.

    @property
    def description(self) -> str:
        """Title, command, cost and result, source, and what is ours."""
        command = f"{self.data} --recipe {self.recipe.name}"
        estimate = "" if self.has_cost else f" Estimate for this machine: effnetv2 train --dry-run {command}"
        sections = (
            f"Run: effnetv2 train {command}{self.run}",
            f"Cost and result: {self.result}{estimate}",
            f"Source: {self.source}",
            f"Ours: {self.ours}",
        )
        lines = [textwrap.fill(text, 118, subsequent_indent="    ", break_on_hyphens=False) for text in sections]
        return "\n".join([self.title, "", *lines])
