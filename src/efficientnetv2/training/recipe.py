"""What decides a run: one frozen, checked value, written as YAML beside every run.

A recipe is made by a function of ``training.recipes`` and changed by ``--set a.b=c``. Fields that say
"auto" are settled before the first step (``training.auto_config``), so that the recipe in a run folder holds
nothing left to decide, and resuming decides nothing anew. ``minival: auto`` stays where images were set aside: its rule
sets the same ones aside again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from efficientnetv2.architectures.spec import Architecture, Pooling
from efficientnetv2.data.imagenet import Published
from efficientnetv2.data.sampler import BETA, Balance
from efficientnetv2.data.splits import EvalSplit
from efficientnetv2.preprocessing import Framing, Views
from efficientnetv2.progressive.schedule import Progressive
from efficientnetv2.transforms.pipeline import AugmentPlan
from efficientnetv2.utils.device import Precision
from efficientnetv2.utils.probability import Answer


class StrictModel(BaseModel):
    """A frozen value whose fields are checked; a name that is none of them is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Optimizer(StrictModel):
    """How gradients become steps.

    Args:
        kind: ``rmsprop`` in TensorFlow's form (epsilon inside the root, mean square starting at 1),
            ``sgd`` with Nesterov's momentum, or ``adamw``.
        lr: peak learning rate, at the recipe's ``batch_images``.
        weight_decay: of weights; biases and norms are never decayed. With ``rmsprop`` and ``sgd``
            it is L2 in the loss, with ``adamw`` decoupled.
        momentum: of ``rmsprop`` and ``sgd``; beta 1 of ``adamw``.
        decay: of the running mean square: rho of ``rmsprop``, beta 2 of ``adamw``.
        epsilon: of ``rmsprop`` and ``adamw``.
        clip_norm: gradients of a greater norm are scaled down to it; None is off.
        head_lr: the classifier's learning rate over the trunk's.
        layer_decay: with L groups of layers (``models.adapt.layer_groups``), group i learns at ``layer_decay **
            (L - 1 - i)`` of the rate: less than 1 lets the layers near the picture move less.
        unfreeze: share of the run by which all layers learn. Group i has a rate of 0 until ``unfreeze * (L - 1 - i) /
            (L - 1)`` of it, so the head learns from the beginning and the stem last; batch-norm's statistics move all
            the while. None lets all learn from the beginning. Source: arXiv:1801.06146, section 3.3, a group per epoch.
    """

    kind: Literal["rmsprop", "sgd", "adamw"]
    lr: float = Field(gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    decay: float = Field(default=0.9, ge=0, lt=1)
    epsilon: float = Field(default=1e-8, gt=0)
    clip_norm: float | None = Field(default=None, gt=0)
    head_lr: float = Field(default=1.0, gt=0)
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    unfreeze: float | None = Field(default=None, gt=0, lt=1)


class Schedule(StrictModel):
    """The learning rate over the run, as a share of its peak: warm-up, then the shape.

    Args:
        kind: ``cosine`` down to ``final``, ``staircase`` (times ``factor`` each ``every_epochs``),
            or ``constant``.
        warmup_epochs: of linear growth from 0.
        warmup_share: of the run that warm-up takes at most, so that a short run reaches its peak too.
        final: with ``cosine``, share of the peak at the end.
        factor: of the staircase: what the rate is multiplied by at each of its steps.
        every_epochs: of the staircase: from one of its steps to the next.
    """

    kind: Literal["cosine", "staircase", "constant"]
    warmup_epochs: float = Field(default=0.0, ge=0)
    warmup_share: float = Field(default=1.0, gt=0, le=1)
    final: float = Field(default=0.0, ge=0, le=1)
    factor: float = Field(default=0.97, gt=0, le=1)
    every_epochs: float = Field(default=2.4, gt=0)


# Of epochs and of a batch's pictures: beyond, it is a slip of the keyboard. Ours.
MAX_COUNT = 1_000_000
# Side of a picture at evaluation: beyond, it is another such slip. Ours.
_MOST_PX = 4096

# Of a schedule that does not name them, in a recipe: off. Elsewhere they stay as the network was built.
DEFAULT_RATES = {"dropout": 0.0, "drop_path": 0.0}


class Recipe(StrictModel):
    """Everything that decides a run, the data aside.

    Args:
        name: of the function that made it.
        made_for: the published set whose pictures it wants: missing classes are refused, wrong counts named before the
            run (``data.imagenet``). None takes any.
        model: a published network's name, one of another library ("timm:resnet50"), or an architecture;
            ``auto`` is that of the weights, or chosen by the machine.
        weights: to start from: ``none``, ``auto`` (the best that can be had), a name (``efficientnetv2_s.in1k``),
            or a file; see ``training.initial_weights``.
        initialisation: of what no weights are given for: ``released``, or ``calm``, where residual blocks begin
            as their shortcuts and the classifier at 0 (``models.blocks.calm``).
        classifier: that given weights get for classes of one's own: ``fresh`` (see ``initialisation``), or ``probe``,
            the linear probe's, so that training begins where the probe ends (arXiv:2202.10054); ``auto`` is the
            probe's where there is a probe. Several classifiers of one network begin fresh in any case.
        pooling: see ``architectures.spec.Architecture``. None is as the weights have it, else ``mean``.
        freeze_stages: the stem and so many stages keep the weights given; with ``all`` everything but the classifier
            does. See ``models.adapt.freeze``.
        frozen_statistics: batch-norm keeps the statistics of the weights given, as in evaluation.
        recompute_stages: the activations of so many first stages are not kept but computed again in the backward pass:
            less memory, their forward pass twice, the same result. Of this project's networks only.
        epochs: passes over the training pictures; ``auto`` settles it by their number.
        epochs_auto: with ``auto``: pictures to see in all, and the least and most epochs.
        steps: of the run, where it is not the epochs that are given; settled to the epochs that they make.
        batch_images: pictures per step.
        group_images: pictures that share batch-norm statistics and mixing partners; divides
            ``batch_images``. None settles it to the largest divisor that fits into memory.
        progressive: image size and regularization over the run. A recipe says how much of both kinds of dropout there
            is: dropout and drop_path that are not named, or null, are 0.
        enlarge: how many times larger than it is stored a picture is trained on at most. Where the last size is more
            than so many times the pictures' own (the median of their shorter sides), all sizes are scaled down to
            that, at least to 64 px, before the first step, and this is settled to null; so it is where a size was
            asked for. null scales nothing.
        time_shares: of each stage in the training time, ``equal`` or one number per stage, in proportion. Before the
            first step it is measured how long steps of each size take, and ``progressive.shares`` is settled to what
            comes out so; where that is given too, it is taken for measured before. None lets ``progressive.shares``
            count in steps.
        optimizer, schedule: see there.
        ema_decay: of the moving average of weights and batch-norm statistics; None is off. Early
            on it is capped by (1 + step) / (10 + step), as in the released code.
        batch_norm_momentum: share of the old running statistics kept per step, as the paper and Keras
            count it (PyTorch's own number is 1 minus this).
        framing: how a picture that is not square meets the square; see ``preprocessing.Preprocessing``.
        crop_framing: the same of training's random crops, where they differ: ``crop`` draws their aspect in pixels,
            whatever shape the picture has; see ``data.decode.train_picture``. None is as ``framing``.
        crop_fraction: with framing ``crop``, what the centre square at evaluation keeps of the shorter side.
        eval_px: side of the picture at evaluation; None takes the training size of the last stage.
        eval_px_tried: sizes that minival is seen at after training, beside ``eval_px``: the one at which the figure of
            ``chosen_by`` is highest is that of the model file, and val is answered at it. ``auto`` tries some from the
            last training size on, up to half as large again; None tries no other.
        eval_views: how a picture is looked at in evaluation; see ``preprocessing.Preprocessing.views``.
        crop_area_min: smallest share of the picture's area that a training crop keeps.
        cache_detail: None decodes each picture anew whenever it is drawn. Else it is decoded once and kept at a size
            from which this share of the random crops has all pixels, (0, 1]; see ``data.image_cache.CacheSpec``;
            where it is kept is ``--cache``'s affair.
        augment: kinds of augmentation, over the whole run; how strong is the schedule's affair.
        several_labels: how pictures of several labels each are learnt: ``sigmoid`` answers each class by itself, yes
            from a probability of 0.5 on (binary cross-entropy; ``class_weights`` and ``logit_adjustment`` are then
            refused); ``softmax`` gives the labels of a picture equal shares of 1, as the paper does on ImageNet-21k.
            For pictures of one label each it is of no effect, and refused where it is said.
        balance: how often each class is drawn: ``equal``, ``effective`` or ``sqrt`` bring rare ones forward, null draws
            every picture once an epoch; see ``data.sampler``.
        class_weights: how much a picture of each class counts in the loss, likewise; beside ``balance`` both act.
        effective_beta: of ``effective``, 0 to 1: how soon further pictures of a class tell nothing new.
        logit_adjustment: temperature of the logit adjustment, 1 in the paper: logits are trained with the logarithm of
            their classes' shares added, so that without it no class is preferred. null is off.
        rare_randaugment: RandAugment's magnitude for pictures of classes that ``balance`` repeats, over that of others.
        answered: which pictures the figure, and the curve, are of: ``val``, kept out of training; or ``test``, by which
            nothing is chosen, while all others are trained on, those given as val too. Without any of test it is val.
        holdout: share of the training pictures that becomes ``val`` where no split is given; from 2, about how many.
        minival: of the training images a number, or below 1 a share, that is not trained on but chooses: the weights
            kept are those of the validation that was best on it. ``auto`` takes a twentieth where there are enough
            images, and keeps the better of start and last weights; with too few images it is settled to null. None
            keeps the last weights. See ``data.minival``.
        chosen_by: the figure that is to be best on minival.
        patience: training ends after so many validations on minival without a better figure, those before the last
            stage not counted: what stands still there moves again with larger pictures. None trains to the end.
        validate_epochs: how often the curve of validation figures gets a point (besides each stage's end).
        validate_images: at most so many pictures of val for that curve, drawn by class; its last point is of all. With
            minival the curve is of all of minival, and val is not looked at before the end.
        checkpoint_minutes: between checkpoints (besides each stage's end); 0 writes one at every step.
        sync_batch_norm: on several GPUs, statistics of batch-norm are those of all processes' pictures of a pass, for
            groups that are too small on one GPU. The result then depends on the number of processes.
        precision: of the network's multiplications: ``fp32``, ``bf16``, or ``fp16`` with scaled losses; weights and
            optimizer are fp32 in each. ``auto`` takes 16 bits where they measure a tenth faster, and in runs too short
            to measure where the machine has them (``training.precision``).
        compile: whether ``torch.compile`` makes the network faster first; ``auto`` tries it in runs of an hour or more,
            and keeps it where it pays.
        seed: of everything random.
    """

    name: str
    made_for: Published | None = None
    model: str | Architecture = "auto"
    weights: str = "auto"
    initialisation: Literal["released", "calm"] = "released"
    classifier: Literal["fresh", "probe", "auto"] = "fresh"
    pooling: Pooling | None = None
    freeze_stages: Annotated[int, Field(ge=0)] | Literal["all"] = 0
    frozen_statistics: bool = False
    recompute_stages: int = Field(default=0, ge=0)
    epochs: Annotated[float, Field(gt=0, le=MAX_COUNT)] | Literal["auto"] = "auto"
    epochs_auto: tuple[int, float, float] = (100_000, 10.0, 100.0)
    steps: int | None = Field(default=None, ge=1)
    batch_images: int = Field(default=32, ge=1, le=MAX_COUNT)
    group_images: int | None = Field(default=None, ge=1)
    progressive: Progressive
    enlarge: float | None = Field(default=None, ge=1)
    time_shares: Literal["equal"] | tuple[float, ...] | None = None
    optimizer: Optimizer
    schedule: Schedule
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    batch_norm_momentum: float = Field(default=0.9, ge=0, lt=1)
    framing: Framing = "whole"
    crop_framing: Framing | None = None
    crop_fraction: float = Field(default=1.0, gt=0, le=1)
    eval_px: int | None = Field(default=None, ge=1, le=_MOST_PX)
    eval_px_tried: (
        Literal["auto"]
        | Annotated[tuple[Annotated[int, Field(ge=1, le=_MOST_PX)], ...], Field(min_length=1)]
        | None
    ) = None
    eval_views: Views = "one"
    crop_area_min: float = Field(default=0.35, gt=0, le=1)
    cache_detail: float | None = Field(default=None, gt=0, le=1)
    augment: AugmentPlan = AugmentPlan()
    several_labels: Answer = "softmax"
    balance: Balance | None = None
    class_weights: Balance | None = None
    effective_beta: float = Field(default=BETA, ge=0, lt=1)
    logit_adjustment: float | None = Field(default=None, gt=0)
    rare_randaugment: float = Field(default=1.0, ge=1)
    answered: EvalSplit = "val"
    holdout: Annotated[int, Field(ge=2)] | Annotated[float, Field(gt=0, lt=1)] = 0.2
    minival: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)] | Literal["auto"] | None = None
    chosen_by: Literal["top1", "macro_f1"] = "top1"
    patience: int | None = Field(default=None, ge=1)
    validate_epochs: float = Field(default=1.0, gt=0)
    validate_images: int = Field(default=512, ge=1)
    checkpoint_minutes: float = Field(default=5.0, ge=0)
    sync_batch_norm: bool = False
    precision: Precision | Literal["auto"] = "auto"
    compile: bool | Literal["auto"] = "auto"
    seed: int = 0

    def answer(self, separator: str | None) -> Answer:
        """What a network that it trains is to answer.

        Args:
            separator: of the labels of a picture; None where each has one.
        """
        return "softmax" if separator is None else self.several_labels

    @property
    def train_framing(self) -> Framing:
        """How training's crops meet the square."""
        return self.crop_framing or self.framing

    @field_validator("progressive", mode="after")
    @classmethod
    def _says_both_rates(cls, progressive: Progressive) -> Progressive:
        """What a network was built with may differ from library to library; a run is decided by its recipe."""
        said: dict[str, Any] = {
            name: rate for name, rate in DEFAULT_RATES.items() if getattr(progressive, name) is None
        }
        return replace(progressive, **said)

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.epochs != "auto" and self.steps is not None:
            raise ValueError(
                f"epochs is {self.epochs:g} and steps is {self.steps}, but only one of them says how long a run is: "
                "set epochs to auto or steps to null"
            )
        if self.patience is not None and self.minival is None:
            raise ValueError(
                f"patience is {self.patience}, but only minival may end training, and it is off, for a figure on val "
                "that val has chosen is no figure: set minival (0.1 is a tenth of train), or patience to null"
            )
        if self.eval_px_tried is not None and self.minival is None:
            tried = self.eval_px_tried if self.eval_px_tried == "auto" else list(self.eval_px_tried)
            raise ValueError(
                f"eval_px_tried is {tried}, but only minival may choose among sizes, and it is off, "
                "for val may not choose what its figure is of: set minival (0.1 is a tenth of train), or eval_px_tried "
                "to null"
            )
        if self.crop_fraction < 1 and self.framing == "pad":
            raise ValueError(f"crop_fraction is {self.crop_fraction:g}, but framing 'pad' cuts nothing off")
        if self.group_images is not None and self.batch_images % self.group_images:
            most = min(self.group_images, self.batch_images)
            fits = max(n for n in range(1, most + 1) if self.batch_images % n == 0)
            raise ValueError(
                f"group_images is {self.group_images}, which does not divide batch_images "
                f"({self.batch_images}); the next smaller that does is {fits}"
            )
        if self.time_shares is not None:
            _refuse_untimed(self.progressive, self.time_shares)
        if self.rare_randaugment != 1 and (self.balance is None or self.progressive.randaugment is None):
            off = "balance" if self.balance is None else "progressive.randaugment"
            raise ValueError(
                f"rare_randaugment is {self.rare_randaugment:g}, but {off} is off, so that there is nothing to make "
                f"stronger: set {off}, or rare_randaugment to 1"
            )
        if self.augment.autoaugment and self.progressive.randaugment is not None:
            raise ValueError(
                "augment.autoaugment and progressive.randaugment are both on, but each replaces the other: set "
                "augment.autoaugment to false or progressive.randaugment to null"
            )
        if self.progressive.others:
            raise ValueError(
                f"progressive.others names {sorted(self.progressive.others)}, which this loop does not "
                "apply; they are for a training loop of one's own"
            )
        return self

    def to_yaml(self) -> str:
        """The recipe as text for people; ``checked.read`` gives an equal one."""
        return yaml.safe_dump(self.to_json(), sort_keys=False, width=100)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return self.model_dump(mode="json")


def _refuse_untimed(progressive: Progressive, time_shares: Literal["equal"] | tuple[float, ...]) -> None:
    """Refuse shares of the time where there are no stages that could have them, or others than there are.

    Raises:
        ValueError: with the rule.
    """
    if progressive.changes_always:
        why = "order is random" if progressive.order == "random" else "something grows at every step"
        raise ValueError(
            f"time_shares is {time_shares}, but of progressive {why}, so that there are no stages to share the time"
        )
    if time_shares != "equal" and (len(time_shares) != progressive.stages or min(time_shares) <= 0):
        raise ValueError(
            f"time_shares is {time_shares}, but names one share above 0 for each of {progressive.stages} stages"
        )
