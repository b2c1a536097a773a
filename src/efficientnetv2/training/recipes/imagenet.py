"""ImageNet-1k from scratch: as the paper says, and as the authors' code does."""

from __future__ import annotations

from dataclasses import replace

from efficientnetv2.architectures.registry import published
from efficientnetv2.progressive.presets import paper, released
from efficientnetv2.progressive.schedule import Progressive
from efficientnetv2.training.recipe import Optimizer, Recipe, Schedule
from efficientnetv2.training.recipes import imagenet
from efficientnetv2.transforms.pipeline import AugmentPlan

# Batch-norm momentum, as Keras counts it: arXiv:2104.00298, section 5.1, and google/automl, efficientnetv2.
_PAPER, _RELEASED = 0.99, 0.9
# Pictures of train that are held out to choose by, from the same places; the released code's are its other shards.
_MINIVAL = {"paper": 25_000, "released": 25_021}
# Smallest share of a picture's area that training crops keep, in the released code: preprocessing.py for S to XL;
# preprocess_legacy.py for B0 to B3 begins at 0.08, but draws anew what covers less than 0.1 of the picture.
_CROP_AREA_MIN, _LEGACY_CROP_AREA_MIN = 0.05, 0.1
_RANDAUGMENT = AugmentPlan(flip="horizontal", randaugment_preset="released")
_AUTOAUGMENT = AugmentPlan(flip="horizontal", autoaugment=True)


def _from_scratch(
    name: str,
    progressive: Progressive,
    *,
    batch_norm_momentum: float,
    augment: AugmentPlan = _RANDAUGMENT,
    crop_area_min: float = _CROP_AREA_MIN,
) -> Recipe:
    """What all of them share; ``name`` is the network's and, after the last ``_``, whose settings these are.

    arXiv:2104.00298, section 5.1 and the released code agree on: RMSprop with decay and momentum 0.9, weight
    decay 1e-5, batch 4096, learning rate up to 0.256, times 0.97 each 2.4 epochs, 350 epochs, EMA 0.9999. Epsilon
    0.001, five epochs of warm-up and the smallest crops (of S to L 5 % of the area, of B0 to B3 10 %) are the released
    code's; the paper does not say.
    Evaluation: the size and framing that the released network was published with; training's crops have an aspect of
    3/4 to 4/3 in pixels, as in the released code, also where evaluation squeezes the whole picture. Minival, and early
    stopping by it, are section 5.1's. How long it waits for a better figure the paper does not say: here training
    goes to its end, and the weights kept are those after the epoch that was best on minival.
    """
    model, _, form = name.rpartition("_")
    evaluation = published(model).preprocessing
    return Recipe(
        name=name,
        made_for="imagenet1k",
        model=model,
        weights="none",
        epochs=350,
        batch_images=4096,
        progressive=progressive,
        optimizer=Optimizer(
            kind="rmsprop", lr=0.256, weight_decay=1e-5, momentum=0.9, decay=0.9, epsilon=1e-3
        ),
        schedule=Schedule(kind="staircase", warmup_epochs=5, factor=0.97, every_epochs=2.4),
        ema_decay=0.9999,
        batch_norm_momentum=batch_norm_momentum,
        framing=evaluation.framing,
        crop_framing="crop",
        crop_fraction=evaluation.crop_fraction,
        eval_px=evaluation.image_px,
        crop_area_min=crop_area_min,
        augment=augment,
        minival=_MINIVAL[form],
    )


def _as_in_the_paper(name: str) -> Recipe:
    return _from_scratch(name, paper(name.rpartition("_")[0]), batch_norm_momentum=_PAPER)


def _as_released(name: str) -> Recipe:
    return _from_scratch(name, released(name.rpartition("_")[0]), batch_norm_momentum=_RELEASED)


def _small_in_the_paper(name: str) -> Recipe:
    """B0 to B3 at one size: section 6.1 trains them without progressive learning."""
    growing = released(name.rpartition("_")[0])
    # What would grow stands at its end; as plain numbers, so that nobody reads a ramp where there is one stage.
    fixed = replace(growing, stages=1, image_px=float(growing.last.image_px))
    return _from_scratch(
        name,
        fixed,
        batch_norm_momentum=_PAPER,
        augment=_AUTOAUGMENT,
        crop_area_min=_LEGACY_CROP_AREA_MIN,
    )


def _small_as_released(name: str) -> Recipe:
    return _from_scratch(
        name,
        released(name.rpartition("_")[0]),
        batch_norm_momentum=_RELEASED,
        augment=_AUTOAUGMENT,
        crop_area_min=_LEGACY_CROP_AREA_MIN,
    )


def efficientnetv2_s_paper() -> Recipe:
    """EfficientNetV2-S on ImageNet-1k in the paper's form: 128 to 300 px, dropout grows too.

    Run: effnetv2 train IMAGENET --recipe efficientnetv2_s_paper
    Cost and result: 7.1 hours on 32 TPUv3 cores, 83.9 % top-1 at 384 px (the paper's Table 7); ours is
        still to be measured.
    Source: arXiv:2104.00298, section 5.1 and Table 6.
    Ours: the smallest crop (5 % of the area), label smoothing, warm-up and RandAugment's operations follow the released
        code, where the paper is silent; training goes to its end and keeps the weights that were best on minival,
        where the paper stops early by it and does not say when; crops, resizing and batch-norm as for
        efficientnetv2_s_released.
    """
    return _as_in_the_paper("efficientnetv2_s_paper")


def efficientnetv2_m_paper() -> Recipe:
    """EfficientNetV2-M on ImageNet-1k in the paper's form: 128 to 380 px, RandAugment to 20, mixup to 0.2.

    Run: effnetv2 train IMAGENET --recipe efficientnetv2_m_paper
    Cost and result: 13 hours on 32 TPUv3 cores, 85.1 % top-1 at 480 px (the paper's Table 7); ours is
        still to be measured.
    Source: arXiv:2104.00298, section 5.1 and Table 6.
    Ours: as for S.
    """
    return _as_in_the_paper("efficientnetv2_m_paper")


def efficientnetv2_l_paper() -> Recipe:
    """EfficientNetV2-L on ImageNet-1k in the paper's form: 128 to 380 px, RandAugment to 25, mixup to 0.4.

    Run: effnetv2 train IMAGENET --recipe efficientnetv2_l_paper
    Cost and result: 24 hours on 32 TPUv3 cores, 85.7 % top-1 at 480 px (the paper's Table 7); ours is
        still to be measured.
    Source: arXiv:2104.00298, section 5.1 and Table 6.
    Ours: as for S.
    """
    return _as_in_the_paper("efficientnetv2_l_paper")


def efficientnetv2_b0_paper() -> Recipe:
    """EfficientNetV2-B0 on ImageNet-1k in the paper's form: 192 px throughout.

    Run: effnetv2 train IMAGENET --recipe efficientnetv2_b0_paper
    Cost and result: 78.7 % top-1 at 224 px (the paper's Table 11, which gives no hours); ours is not measured.
        Foretold for this machine: effnetv2 plan IMAGENET --recipe efficientnetv2_b0_paper
    Source: arXiv:2104.00298, sections 5.1 and 6.1: no progressive learning.
    Ours: the size, dropout and AutoAugment are those at the end of the released code's schedule, where the paper is
        silent; so is the smallest crop, as for efficientnetv2_b0_released; else as for efficientnetv2_s_paper.
    """
    return _small_in_the_paper("efficientnetv2_b0_paper")


def efficientnetv2_b1_paper() -> Recipe:
    """EfficientNetV2-B1 on ImageNet-1k in the paper's form: 192 px throughout.

    Run: effnetv2 train IMAGENET --recipe efficientnetv2_b1_paper
    Cost and result: 79.8 % top-1 at 240 px (the paper's Table 11, which gives no hours); ours is not measured.
        Foretold for this machine: effnetv2 plan IMAGENET --recipe efficientnetv2_b1_paper
    Source: as for B0.
    Ours: as for B0.
    """
    return _small_in_the_paper("efficientnetv2_b1_paper")


def efficientnetv2_b2_paper() -> Recipe:
    """EfficientNetV2-B2 on ImageNet-1k in the paper's form: 208 px throughout.

    Run: effnetv2 train IMAGENET --recipe efficientnetv2_b2_paper
    Cost and result: the paper gives neither hours nor top-1 for B2; ours is not measured.
        Foretold for this machine: effnetv2 plan IMAGENET --recipe efficientnetv2_b2_paper
    Source: as for B0.
    Ours: as for B0.
    """
    return _small_in_the_paper("efficientnetv2_b2_paper")


def efficientnetv2_b3_paper() -> Recipe:
    """EfficientNetV2-B3 on ImageNet-1k in the paper's form: 240 px throughout.

    Run: effnetv2 train IMAGENET --recipe efficientnetv2_b3_paper
    Cost and result: 82.1 % top-1 at 300 px (the paper's Table 11, which gives no hours); ours is not measured.
        Foretold for this machine: effnetv2 plan IMAGENET --recipe efficientnetv2_b3_paper
    Source: as for B0.
    Ours: as for B0.
    """
    return _small_in_the_paper("efficientnetv2_b3_paper")


def efficientnetv2_s_released() -> Recipe:
    """EfficientNetV2-S on ImageNet-1k as the authors' code trains it: 171 to 300 px, dropout fixed.

    Run: effnetv2 train IMAGENET --recipe efficientnetv2_s_released
    Cost and result: the authors give no hours; 83.9 % top-1 at 384 px (their checkpoint); ours is not measured.
        NVIDIA's trainer (DeepLearningExamples) took this network to 83.93 % in 14 hours on 8 A100.
        Foretold for this machine: effnetv2 plan IMAGENET --recipe efficientnetv2_s_released
    Source: google/automl, efficientnetv2: sizes, RandAugment 5 to 10, dropout 0.2, batch-norm momentum 0.9.
    Ours: the weights kept are those that were best on minival, where theirs archives those that were best on the
        pictures that it evaluates on, by default ImageNet's val; operations that run over their range from level 10 on
        are held at its end; of crops the area is uniform, where in TensorFlow the height is; pictures are resized with
        antialiasing, where theirs are without; batch-norm shares the statistics of a group of pictures (group_images),
        where theirs pools those of up to eight TPU cores: 1,024 pictures of a batch on 32.
    """
    return _as_released("efficientnetv2_s_released")


def efficientnetv2_m_released() -> Recipe:
    """EfficientNetV2-M on ImageNet-1k as the authors' code trains it: 192 to 384 px, dropout fixed.

    Run: effnetv2 train IMAGENET --recipe efficientnetv2_m_released
    Cost and result: the authors give no hours; 85.2 % top-1 at 480 px (their checkpoint); ours is not measured.
        Foretold for this machine: effnetv2 plan IMAGENET --recipe efficientnetv2_m_released
    Source: google/automl, efficientnetv2: sizes, RandAugment 5 to 15, mixup and CutMix to 0.2, dropout 0.3.
    Ours: as for S.
    """
    return _as_released("efficientnetv2_m_released")


def efficientnetv2_l_released() -> Recipe:
    """EfficientNetV2-L on ImageNet-1k as the authors' code trains it: 192 to 384 px, dropout fixed.

    Run: effnetv2 train IMAGENET --recipe efficientnetv2_l_released
    Cost and result: the authors give no hours; 85.7 % top-1 at 480 px (their checkpoint); ours is not measured.
        Foretold for this machine: effnetv2 plan IMAGENET --recipe efficientnetv2_l_released
    Source: google/automl, efficientnetv2: sizes, RandAugment 5 to 20, mixup and CutMix to 0.5, dropout 0.4.
    Ours: as for S.
    """
    return _as_released("efficientnetv2_l_released")


def efficientnetv2_b0_released() -> Recipe:
    """EfficientNetV2-B0 on ImageNet-1k as the authors' code trains it: 144 to 192 px, AutoAugment.

    Run: effnetv2 train IMAGENET --recipe efficientnetv2_b0_released
    Cost and result: the authors give no hours; 78.7 % top-1 at 224 px (their checkpoint); ours is not measured.
        Foretold for this machine: effnetv2 plan IMAGENET --recipe efficientnetv2_b0_released
    Source: google/automl, efficientnetv2: four stages, AutoAugment's policy v0, dropout 0.2, crops of at least 10 % of
        the area (preprocess_legacy.py: from 8 % on, but what covers less than a tenth of the picture is drawn anew).
    Ours: as for S, but for RandAugment's operations.
    """
    return _small_as_released("efficientnetv2_b0_released")


def efficientnetv2_b1_released() -> Recipe:
    """EfficientNetV2-B1 on ImageNet-1k as the authors' code trains it: 144 to 192 px, AutoAugment.

    Run: effnetv2 train IMAGENET --recipe efficientnetv2_b1_released
    Cost and result: the authors give no hours; 79.8 % top-1 at 240 px (their checkpoint); ours is not measured.
        Foretold for this machine: effnetv2 plan IMAGENET --recipe efficientnetv2_b1_released
    Source: as for B0.
    Ours: as for B0.
    """
    return _small_as_released("efficientnetv2_b1_released")


def efficientnetv2_b2_released() -> Recipe:
    """EfficientNetV2-B2 on ImageNet-1k as the authors' code trains it: 148 to 208 px, AutoAugment.

    Run: effnetv2 train IMAGENET --recipe efficientnetv2_b2_released
    Cost and result: the authors give no hours; 80.5 % top-1 at 260 px (their checkpoint); ours is not measured.
        Foretold for this machine: effnetv2 plan IMAGENET --recipe efficientnetv2_b2_released
    Source: as for B0; dropout 0.3.
    Ours: as for B0.
    """
    return _small_as_released("efficientnetv2_b2_released")


def efficientnetv2_b3_released() -> Recipe:
    """EfficientNetV2-B3 on ImageNet-1k as the authors' code trains it: 156 to 240 px, AutoAugment.

    Run: effnetv2 train IMAGENET --recipe efficientnetv2_b3_released
    Cost and result: the authors give no hours; 82.1 % top-1 at 300 px (their checkpoint); ours is not measured.
        Foretold for this machine: effnetv2 plan IMAGENET --recipe efficientnetv2_b3_released
    Source: as for B0; dropout 0.3.
    Ours: as for B0.
    """
    return _small_as_released("efficientnetv2_b3_released")


# Section 5.2 and main.py of google/automl agree; 30 epochs, the paper's other choice, are --epochs 30.
_EPOCHS = 60.0
# Section 5.2. The released code takes 100,357, the first 16 of its files.
_VALIDATION_IMAGES = 100_000


def _in_the_paper(name: str, base: Recipe) -> Recipe:
    """Section 5.2: the settings of ImageNet-1k, but for the epochs, the cosine, and the pictures held out."""
    return base.model_copy(
        update={
            "name": name,
            "made_for": "imagenet21k",
            "epochs": _EPOCHS,
            "schedule": Schedule(kind="cosine", warmup_epochs=base.schedule.warmup_epochs),
            "holdout": _VALIDATION_IMAGES,
            "minival": None,
        }
    )


def imagenet21k_s_paper() -> Recipe:
    """EfficientNetV2-S on ImageNet-21k in the paper's form: 60 epochs, cosine, sizes as on ImageNet-1k.

    Run: effnetv2 train IMAGENET21K.csv --label-separator ";" --recipe imagenet21k_s_paper
    Cost and result: 9 hours on 32 TPUv3 cores together with fine-tuning (imagenet_from_21k_s_paper), which then
        reaches 84.9 % top-1 on ImageNet-1k (the paper's Table 7); ours is not measured.
    Source: arXiv:2104.00298, section 5.2: "60 or 30" epochs (--epochs 30), cosine, 21,841 classes, several labels of a
        picture normalised to sum 1, 100,000 pictures held out, all else as in section 5.1.
    Ours: which size takes 60 epochs and which 30, on which the paper is silent; the last moving average is kept; the
        pictures held out are stratified by class, so classes of one picture need a val split of your own; crops,
        warm-up, RandAugment's operations and batch-norm as for efficientnetv2_s_paper.
    """
    return _in_the_paper("imagenet21k_s_paper", imagenet.efficientnetv2_s_paper())


def imagenet21k_m_paper() -> Recipe:
    """EfficientNetV2-M on ImageNet-21k in the paper's form: 60 epochs, cosine, sizes as on ImageNet-1k.

    Run: effnetv2 train IMAGENET21K.csv --label-separator ";" --recipe imagenet21k_m_paper
    Cost and result: 15 hours on 32 TPUv3 cores together with fine-tuning, which then reaches 86.2 % top-1 on
        ImageNet-1k (the paper's Table 7); ours is not measured.
    Source: as for S.
    Ours: as for S.
    """
    return _in_the_paper("imagenet21k_m_paper", imagenet.efficientnetv2_m_paper())


def imagenet21k_l_paper() -> Recipe:
    """EfficientNetV2-L on ImageNet-21k in the paper's form: 60 epochs, cosine, sizes as on ImageNet-1k.

    Run: effnetv2 train IMAGENET21K.csv --label-separator ";" --recipe imagenet21k_l_paper
    Cost and result: 26 hours on 32 TPUv3 cores together with fine-tuning, which then reaches 86.8 % top-1 on
        ImageNet-1k (the paper's Table 7); ours is not measured.
    Source: as for S.
    Ours: as for S.
    """
    return _in_the_paper("imagenet21k_l_paper", imagenet.efficientnetv2_l_paper())


def imagenet21k_xl_paper() -> Recipe:
    """EfficientNetV2-XL on ImageNet-21k in the paper's form: 60 epochs, cosine, L's sizes and regularization.

    Run: effnetv2 train IMAGENET21K.csv --label-separator ";" --recipe imagenet21k_xl_paper
    Cost and result: 45 hours on 32 TPUv3 cores together with fine-tuning, which then reaches 87.3 % top-1 on
        ImageNet-1k (the paper's Table 7); ours is not measured.
    Source: as for S.
    Ours: as for S; and the settings of L, since Table 6 has no row for XL.
    """
    evaluation = published("efficientnetv2_xl").preprocessing
    base = imagenet.efficientnetv2_l_paper().model_copy(
        update={
            "model": "efficientnetv2_xl",
            "eval_px": evaluation.image_px,
            "framing": evaluation.framing,
            "crop_fraction": evaluation.crop_fraction,
        }
    )
    return _in_the_paper("imagenet21k_xl_paper", base)


def imagenet21k_released() -> Recipe:
    """ImageNet-21k as the authors' code trains it: 224 px throughout, hardly any regularization, 60 epochs, cosine.

    Run: effnetv2 train IMAGENET21K.csv --label-separator ";" --recipe imagenet21k_released --model efficientnetv2_s
    Cost and result: the authors give no hours; their checkpoints, fine-tuned, reach 84.9 % top-1 on ImageNet-1k for S
        (their README; 84.3 % as timm measured it); ours is not measured.
        Foretold for this machine: effnetv2 plan IMAGENET21K.csv --label-separator ";" --recipe imagenet21k_released
    Source: google/automl, efficientnetv2 (imagenet21k): one size, learning rate 0.008 for each 256 pictures, one epoch
        of warm-up, no dropout, no stochastic depth, no label smoothing, nothing but crops and flips; 21,843 classes,
        several labels of a picture normalised to sum 1.
    Ours: 100,000 pictures are held out, by class, where theirs are the 100,357 of its first files, so classes of one
        picture need a val split of your own; the cosine begins where warm-up ends; all other pictures are trained on
        and the last moving average is kept, where theirs leaves 25,089 more out (its minival, files 16 to 19) and
        archives the weights that were best on those that it evaluates on; crops, resizing and batch-norm as for
        efficientnetv2_s_released.
    """
    return Recipe(
        name="imagenet21k_released",
        made_for="imagenet21k",
        model="efficientnetv2_s",
        weights="none",
        epochs=_EPOCHS,
        batch_images=4096,
        progressive=Progressive(image_px=224),
        optimizer=Optimizer(
            kind="rmsprop", lr=0.128, weight_decay=1e-5, momentum=0.9, decay=0.9, epsilon=1e-3
        ),
        schedule=Schedule(kind="cosine", warmup_epochs=1),
        ema_decay=0.9999,
        batch_norm_momentum=0.9,
        framing="crop",
        crop_fraction=224 / (224 + 32),
        eval_px=224,
        crop_area_min=0.05,
        augment=AugmentPlan(flip="horizontal"),
        holdout=_VALIDATION_IMAGES,
    )
