"""From ImageNet to other sets, as the paper's Table 8 and the authors' code do it."""

from __future__ import annotations

from efficientnetv2.augment.pipeline import AugmentPlan
from efficientnetv2.data.imagenet import Published
from efficientnetv2.data.splits import Answered
from efficientnetv2.progressive import Progressive
from efficientnetv2.training.learning import Optimizer, Schedule
from efficientnetv2.training.recipe import Recipe


def _onwards(
    name: str,
    *,
    weights: str,
    weight_decay: float,
    schedule: Schedule,
    epochs: float | None,
    steps: int | None,
    made_for: Published | None = None,
    answered: Answered = "val",
) -> Recipe:
    """What going on from trained weights shares.

    arXiv:2104.00298, section 5.3 and the released code (its ``Ft`` configurations) agree on batch 512, learning
    rate 0.001, cutout and flips. The released code's alone: RMSprop, a warm-up of one epoch, one size, the size of
    evaluation; the whole picture squeezed into the square; no crops, no dropout, survival 0.8, label smoothing 0.1,
    EMA 0.9996, a hole of half the side filled with noise.
    """
    return Recipe(
        name=name,
        made_for=made_for,
        answered=answered,
        model="efficientnetv2_s",
        weights=weights,
        epochs="auto" if epochs is None else epochs,
        steps=steps,
        batch_images=512,
        progressive=Progressive(image_px=384, cutout=0.5, drop_path=0.2, label_smoothing=0.1),
        optimizer=Optimizer(
            kind="rmsprop", lr=1e-3, weight_decay=weight_decay, momentum=0.9, decay=0.9, epsilon=1e-3
        ),
        schedule=schedule,
        ema_decay=0.9996,
        batch_norm_momentum=0.9,
        framing="whole",
        eval_px=384,
        crop_area_min=1.0,
        augment=AugmentPlan(flip="horizontal", cutout_fill="noise"),
    )


_COSINE = Schedule(kind="cosine", warmup_epochs=1)
_CONSTANT = Schedule(kind="constant", warmup_epochs=1)


def transfer_paper() -> Recipe:
    """ImageNet weights to CIFAR-10, CIFAR-100, Flowers-102 or Cars, in the paper's form: 10,000 steps, cosine.

    Run: effnetv2 train cifar10 --recipe transfer_paper --weights efficientnetv2_s.in1k
    Cost and result: S reaches 98.7 % on CIFAR-10, 91.5 % on CIFAR-100, 97.9 % on Flowers-102, 93.8 % on Cars (the
        paper's Table 8, means of five runs); ours is not measured.
    Source: arXiv:2104.00298, section 5.3: batch 512, learning rate 0.001, cosine, no weight decay, cutout; Table 9:
        the figure is of all test pictures, and all others are trained on.
    Ours: the rest, on which the paper is silent, is as in the released code; one run instead of the mean of five. The
        test pictures choose nothing (the last weights are kept), but the curve is of some of them. A set without any
        has a val split, given or held out, in their place.
    """
    weights = "efficientnetv2_s.in1k"
    return _onwards(
        "transfer_paper",
        weights=weights,
        weight_decay=0.0,
        schedule=_COSINE,
        epochs=None,
        steps=10_000,
        answered="test",
    )


def transfer_released() -> Recipe:
    """ImageNet weights to CIFAR-10 and its like as the authors' code does it: 10,000 steps, a constant rate.

    Run: effnetv2 train cifar10 --recipe transfer_released --weights efficientnetv2_s.in1k
    Cost and result: the authors publish no figures of it; ours is not measured.
    Source: google/automl, efficientnetv2 (cifar10Ft and its like): weight decay 1e-5.
    Ours: pictures as for transfer_paper: the figure is of test, and all others are trained on.
    """
    weights = "efficientnetv2_s.in1k"
    return _onwards(
        "transfer_released",
        weights=weights,
        weight_decay=1e-5,
        schedule=_CONSTANT,
        epochs=None,
        steps=10_000,
        answered="test",
    )


def imagenet_from_21k_paper() -> Recipe:
    """ImageNet-21k weights to ImageNet-1k in the paper's form: 15 epochs, cosine.

    Run: effnetv2 train IMAGENET --recipe imagenet_from_21k_paper --model efficientnetv2_s
    Cost and result: 84.9 % top-1 for S, 86.2 % for M, 86.8 % for L, 87.3 % for XL; with the pretraining 9, 15, 26 and
        45 hours on 32 TPUv3 cores (the paper's Table 7); ours is not measured.
        For M, L and XL add --weights efficientnetv2_m.in21k and so on, and their evaluation sizes by --image-px.
    Source: arXiv:2104.00298, section 5.2.
    Ours: the rest, on which the paper is silent, is as in the released code.
    """
    weights = "efficientnetv2_s.in21k"
    return _onwards(
        "imagenet_from_21k_paper",
        made_for="imagenet1k",
        weights=weights,
        weight_decay=1e-5,
        schedule=_COSINE,
        epochs=15,
        steps=None,
    )


def imagenet_from_21k_released() -> Recipe:
    """ImageNet-21k weights to ImageNet-1k as the authors' code does it: 15 epochs at a constant rate.

    Run: effnetv2 train IMAGENET --recipe imagenet_from_21k_released --model efficientnetv2_s
    Cost and result: the authors give no hours; 84.9 % top-1 for S (their checkpoint); ours is not measured.
    Source: google/automl, efficientnetv2 (imagenetFt).
    Ours: nothing known; 15 epochs of ImageNet are more than the 10,000 steps that theirs takes at least.
    """
    weights = "efficientnetv2_s.in21k"
    return _onwards(
        "imagenet_from_21k_released",
        made_for="imagenet1k",
        weights=weights,
        weight_decay=1e-5,
        schedule=_CONSTANT,
        epochs=15,
        steps=None,
    )
