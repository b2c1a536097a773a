"""From ImageNet to other sets, as the paper's Table 8 and the authors' code do it; from ImageNet-21k to 1k."""

from __future__ import annotations

from typing import Literal

from efficientnetv2.architectures.registry import published
from efficientnetv2.data.imagenet import Published
from efficientnetv2.data.splits import EvalSplit
from efficientnetv2.progressive.schedule import Progressive
from efficientnetv2.training.recipe import Optimizer, Recipe, Schedule
from efficientnetv2.transforms.pipeline import AugmentPlan

_SCHEDULES = {
    "paper": Schedule(kind="cosine", warmup_epochs=1),
    "released": Schedule(kind="constant", warmup_epochs=1),
}


def _onwards(
    name: str,
    *,
    model: str,
    weights: str,
    weight_decay: float,
    schedule: Schedule,
    epochs: float | None,
    steps: int | None,
    made_for: Published | None = None,
    answered: EvalSplit = "val",
) -> Recipe:
    """What going on from trained weights shares.

    arXiv:2104.00298, section 5.3 and the released code (its ``Ft`` configurations) agree on batch 512, learning
    rate 0.001, cutout and flips. The released code's alone: RMSprop, a warm-up of one epoch, one size, the size of
    evaluation; the whole picture squeezed into the square; no crops, no dropout, survival 0.8, label smoothing 0.1,
    EMA 0.9996, a hole of half the side filled with noise.
    """
    image_px = published(model).preprocessing.image_px
    return Recipe(
        name=name,
        made_for=made_for,
        answered=answered,
        model=model,
        weights=weights,
        epochs="auto" if epochs is None else epochs,
        steps=steps,
        batch_images=512,
        progressive=Progressive(image_px=image_px, cutout=0.5, drop_path=0.2, label_smoothing=0.1),
        optimizer=Optimizer(
            kind="rmsprop", lr=1e-3, weight_decay=weight_decay, momentum=0.9, decay=0.9, epsilon=1e-3
        ),
        schedule=schedule,
        ema_decay=0.9996,
        batch_norm_momentum=0.9,
        framing="whole",
        eval_px=image_px,
        crop_area_min=1.0,
        augment=AugmentPlan(flip="horizontal", cutout_fill="noise"),
    )


def _to_another_set(form: Literal["paper", "released"], weight_decay: float) -> Recipe:
    return _onwards(
        f"transfer_{form}",
        model="efficientnetv2_s",
        weights="efficientnetv2_s.in1k",
        weight_decay=weight_decay,
        schedule=_SCHEDULES[form],
        epochs=None,
        steps=10_000,
        answered="test",
    )


def transfer_paper() -> Recipe:
    """ImageNet weights to CIFAR-10, CIFAR-100, Flowers-102 or Cars, in the paper's form: 10,000 steps, cosine.

    Run: effnetv2 train cifar10 --recipe transfer_paper
        For M and L: --model efficientnetv2_m --weights efficientnetv2_m.in1k --image-px 480 --set eval_px=480
    Cost and result: S reaches 98.7 % on CIFAR-10, 91.5 % on CIFAR-100, 97.9 % on Flowers-102, 93.8 % on Cars; M 99.0,
        92.2, 98.5 and 94.6 %; L 99.1, 92.3, 98.8 and 95.1 % (the paper's Table 8, means of five runs, which gives no
        hours); ours is not measured. In small, V2-B0 on CIFAR-10 at 96 px, 3 epochs in batches of 64: 90.0 %, mean of
        3 seeds (benchmarks/transfer.py); one of them took 24 minutes on 2 cores, AMD EPYC (family 25, model 17) with
        AVX-512, another run beside it.
        Foretold for this machine: effnetv2 plan cifar10 --recipe transfer_paper
    Source: arXiv:2104.00298, section 5.3: batch 512, learning rate 0.001, cosine, no weight decay, cutout; Table 9:
        the figure is of all test pictures, and all others are trained on.
    Ours: section 5.3 says "mostly the same training settings as ImageNet". From those settings this recipe takes the
        optimizer (RMSprop, decay and momentum 0.9, epsilon 0.001), stochastic depth (survival 0.8), label smoothing
        0.1 and batch-norm momentum. It takes from transfer_released what the paper does not say of transfer: one
        image size, whole images without random crops, no dropout, RandAugment or mixup, EMA 0.9996, warm-up of one
        epoch. One run stands for the mean of five, as python -m benchmarks.paper 8 --scale paper makes
        it. The test pictures choose nothing (the last weights are kept), but the curve is of some of them. A set
        without any has a val split, given or held out, in their place.
    """
    return _to_another_set("paper", weight_decay=0.0)


def transfer_released() -> Recipe:
    """ImageNet weights to CIFAR-10 and its like as the authors' code does it: 10,000 steps, a constant rate.

    Run: effnetv2 train cifar10 --recipe transfer_released
        For M and L: --model efficientnetv2_m --weights efficientnetv2_m.in1k --image-px 480 --set eval_px=480
    Cost and result: the authors publish neither hours nor figures of it; ours is not measured.
        Foretold for this machine: effnetv2 plan cifar10 --recipe transfer_released
    Source: google/automl, efficientnetv2 (cifar10Ft and its like): weight decay 1e-5.
    Ours: pictures as for transfer_paper: the figure is of test, and all others are trained on; cutout's noise, resizing
        and batch-norm as for imagenet_from_21k_s_released.
    """
    return _to_another_set("released", weight_decay=1e-5)


def _from_21k(size: Literal["s", "m", "l", "xl"], form: Literal["paper", "released"]) -> Recipe:
    model = f"efficientnetv2_{size}"
    return _onwards(
        f"imagenet_from_21k_{size}_{form}",
        made_for="imagenet1k",
        model=model,
        weights=f"{model}.in21k",
        weight_decay=1e-5,
        schedule=_SCHEDULES[form],
        epochs=15,
        steps=None,
    )


def imagenet_from_21k_s_paper() -> Recipe:
    """EfficientNetV2-S from ImageNet-21k to ImageNet-1k in the paper's form: 384 px, 15 epochs, cosine.

    Run: effnetv2 train IMAGENET --recipe imagenet_from_21k_s_paper
        From weights of one's own (imagenet21k_s_paper): --weights runs/NAME
    Cost and result: 84.9 % top-1; 9 hours on 32 TPUv3 cores together with the pretraining (the paper's Table 7); ours
        is not measured.
        Foretold for this machine, of this part alone: effnetv2 plan IMAGENET --recipe imagenet_from_21k_s_paper
    Source: arXiv:2104.00298, section 5.2.
    Ours: the rest, on which the paper is silent, is as in imagenet_from_21k_s_released.
    """
    return _from_21k("s", "paper")


def imagenet_from_21k_m_paper() -> Recipe:
    """EfficientNetV2-M from ImageNet-21k to ImageNet-1k in the paper's form: 480 px, 15 epochs, cosine.

    Run: effnetv2 train IMAGENET --recipe imagenet_from_21k_m_paper
    Cost and result: 86.2 % top-1; 15 hours on 32 TPUv3 cores together with the pretraining (the paper's Table 7); ours
        is not measured.
        Foretold for this machine, of this part alone: effnetv2 plan IMAGENET --recipe imagenet_from_21k_m_paper
    Source: as for S.
    Ours: as for S.
    """
    return _from_21k("m", "paper")


def imagenet_from_21k_l_paper() -> Recipe:
    """EfficientNetV2-L from ImageNet-21k to ImageNet-1k in the paper's form: 480 px, 15 epochs, cosine.

    Run: effnetv2 train IMAGENET --recipe imagenet_from_21k_l_paper
    Cost and result: 86.8 % top-1; 26 hours on 32 TPUv3 cores together with the pretraining (the paper's Table 7); ours
        is not measured.
        Foretold for this machine, of this part alone: effnetv2 plan IMAGENET --recipe imagenet_from_21k_l_paper
    Source: as for S.
    Ours: as for S.
    """
    return _from_21k("l", "paper")


def imagenet_from_21k_xl_paper() -> Recipe:
    """EfficientNetV2-XL from ImageNet-21k to ImageNet-1k in the paper's form: 512 px, 15 epochs, cosine.

    Run: effnetv2 train IMAGENET --recipe imagenet_from_21k_xl_paper
    Cost and result: 87.3 % top-1; 45 hours on 32 TPUv3 cores together with the pretraining (the paper's Table 7); ours
        is not measured.
        Foretold for this machine, of this part alone: effnetv2 plan IMAGENET --recipe imagenet_from_21k_xl_paper
    Source: as for S.
    Ours: as for S.
    """
    return _from_21k("xl", "paper")


def imagenet_from_21k_s_released() -> Recipe:
    """EfficientNetV2-S from ImageNet-21k to ImageNet-1k as the authors' code does it: 384 px, a constant rate.

    Run: effnetv2 train IMAGENET --recipe imagenet_from_21k_s_released
    Cost and result: the authors give no hours; their checkpoint reaches 84.9 % top-1 (their README), 84.3 % as timm
        measured it; ours is not measured.
        Foretold for this machine: effnetv2 plan IMAGENET --recipe imagenet_from_21k_s_released
    Source: google/automl, efficientnetv2 (imagenetFt).
    Ours: all of train is trained on and the last moving average is kept, where theirs trains on 98 % (1,256,144
        pictures) and archives the weights that were best on the pictures that it evaluates on, by default ImageNet's
        val; cutout's noise is uniform over all values, where theirs is over the brighter half; pictures are resized
        with antialiasing and as the weights want it (timm's: bicubic), where theirs are without and bilinear;
        batch-norm as for efficientnetv2_s_released. 15 epochs of ImageNet are more than the 10,000 steps that theirs
        takes at least.
    """
    return _from_21k("s", "released")


def imagenet_from_21k_m_released() -> Recipe:
    """EfficientNetV2-M from ImageNet-21k to ImageNet-1k as the authors' code does it: 480 px, a constant rate.

    Run: effnetv2 train IMAGENET --recipe imagenet_from_21k_m_released
    Cost and result: the authors give no hours; their checkpoint reaches 86.2 % top-1 (their README), 86.0 % as timm
        measured it; ours is not measured.
        Foretold for this machine: effnetv2 plan IMAGENET --recipe imagenet_from_21k_m_released
    Source: as for S.
    Ours: as for S.
    """
    return _from_21k("m", "released")


def imagenet_from_21k_l_released() -> Recipe:
    """EfficientNetV2-L from ImageNet-21k to ImageNet-1k as the authors' code does it: 480 px, a constant rate.

    Run: effnetv2 train IMAGENET --recipe imagenet_from_21k_l_released
    Cost and result: the authors give no hours; their checkpoint reaches 86.9 % top-1 (their README), 86.8 % as timm
        measured it; ours is not measured.
        Foretold for this machine: effnetv2 plan IMAGENET --recipe imagenet_from_21k_l_released
    Source: as for S.
    Ours: as for S.
    """
    return _from_21k("l", "released")


def imagenet_from_21k_xl_released() -> Recipe:
    """EfficientNetV2-XL from ImageNet-21k to ImageNet-1k as the authors' code does it: 512 px, a constant rate.

    Run: effnetv2 train IMAGENET --recipe imagenet_from_21k_xl_released
    Cost and result: the authors give no hours; their checkpoint reaches 87.2 % top-1 (their README), 86.8 % as timm
        measured it; ours is not measured.
        Foretold for this machine: effnetv2 plan IMAGENET --recipe imagenet_from_21k_xl_released
    Source: as for S.
    Ours: as for S.
    """
    return _from_21k("xl", "released")
