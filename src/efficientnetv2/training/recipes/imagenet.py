"""ImageNet-1k and 21k from scratch, as in the paper and in the official code (google/automl); the paper's Table 12."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from efficientnetv2.architectures.registry import get_model_info
from efficientnetv2.progressive.presets import paper_schedule, released_schedule
from efficientnetv2.progressive.schedule import Ramp
from efficientnetv2.training.recipe import NamedRecipe, Optimizer, Recipe, Schedule
from efficientnetv2.transforms.pipeline import AugmentPlan

# Batch-norm momentum as in Keras. Source: arXiv:2104.00298, section 5.1, and google/automl, efficientnetv2.
_BATCH_NORM_MOMENTUM = {"paper": 0.99, "released": 0.9}
# Training images held out for selection, from the same places. The released code takes other files.
_MINIVAL = {"paper": 25_000, "released": 25_021}
# Smallest fraction of the image area in a training crop, in the released code: preprocessing.py for S to XL.
# preprocess_legacy.py for B0 to B3 starts at 0.08, but draws again what covers less than 0.1 of the image.
_CROP_SCALE_MIN, _LEGACY_CROP_SCALE_MIN = 0.05, 0.1
_RANDAUGMENT = AugmentPlan(flip="horizontal", randaugment_preset="released")
_AUTOAUGMENT = AugmentPlan(flip="horizontal", autoaugment=True)
# Section 5.2 and main.py of google/automl agree. The paper's other choice, 30, is --epochs 30.
_EPOCHS_21K = 60.0
# Section 5.2. The released code takes 100,357, its first 16 files.
_VALIDATION_IMAGES_21K = 100_000
_RMSPROP = Optimizer(name="rmsprop", lr=0.256, weight_decay=1e-5, epsilon=1e-3)


def _from_scratch(size: str, form: Literal["paper", "released"]) -> Recipe:
    """ImageNet-1k from scratch.

    arXiv:2104.00298, section 5.1, and the released code agree on: RMSprop with decay and momentum 0.9, weight decay
    1e-5, batch 4096, learning rate up to 0.256, times 0.97 each 2.4 epochs, 350 epochs, EMA 0.9999. From the released
    code alone, where the paper is silent: epsilon 0.001, five epochs of warm-up, the smallest crops, crops with an
    aspect ratio of 3/4 to 4/3 in pixels. Evaluation has the size and crop mode of the released model. Minival and early
    stopping are section 5.1's; as it gives no patience, training goes to its end and keeps the epoch that is best on
    minival. B0 to B3 of the paper have one size (section 6.1), the last of the released schedule.
    """
    model = f"efficientnetv2_{size}"
    is_small = size.startswith("b")
    evaluation = get_model_info(model).preprocessing
    progressive = released_schedule(model) if is_small or form == "released" else paper_schedule(model)
    if is_small and form == "paper":
        progressive = replace(progressive, stages=1, image_size=float(progressive.last.image_size))
    return Recipe(
        name=f"{model}_{form}",
        expected_dataset="imagenet1k",
        model=model,
        weights="none",
        epochs=350,
        batch_size=4096,
        progressive=progressive,
        optimizer=_RMSPROP,
        schedule=Schedule(name="staircase", warmup_epochs=5),
        ema_decay=0.9999,
        batch_norm_momentum=_BATCH_NORM_MOMENTUM[form],
        crop_mode=evaluation.crop_mode,
        train_crop_mode="center",
        crop_pct=evaluation.crop_pct,
        eval_image_size=evaluation.image_size,
        crop_scale_min=_LEGACY_CROP_SCALE_MIN if is_small else _CROP_SCALE_MIN,
        augment=_AUTOAUGMENT if is_small else _RANDAUGMENT,
        minival=_MINIVAL[form],
    )


def _imagenet21k(size: str) -> Recipe:
    """Section 5.2: as ImageNet-1k, but for epochs, cosine and held-out images. XL, which Table 6 lacks, as L."""
    evaluation = get_model_info(f"efficientnetv2_{size}").preprocessing
    base = _from_scratch("l" if size == "xl" else size, "paper")
    return base.model_copy(
        update={
            "name": f"imagenet21k_{size}_paper",
            "expected_dataset": "imagenet21k",
            "model": f"efficientnetv2_{size}",
            "eval_image_size": evaluation.image_size,
            "crop_mode": evaluation.crop_mode,
            "crop_pct": evaluation.crop_pct,
            "epochs": _EPOCHS_21K,
            "schedule": Schedule(name="cosine", warmup_epochs=base.schedule.warmup_epochs),
            "val_fraction": _VALIDATION_IMAGES_21K,
            "minival": None,
        }
    )


_IMAGENET21K_RELEASED = Recipe(
    name="imagenet21k_released",
    expected_dataset="imagenet21k",
    model="efficientnetv2_s",
    weights="none",
    epochs=_EPOCHS_21K,
    batch_size=4096,
    progressive={"image_size": 224},
    optimizer=_RMSPROP.model_copy(update={"lr": 0.128}),
    schedule=Schedule(name="cosine", warmup_epochs=1),
    ema_decay=0.9999,
    batch_norm_momentum=0.9,
    crop_mode="center",
    crop_pct=224 / (224 + 32),
    eval_image_size=224,
    crop_scale_min=_CROP_SCALE_MIN,
    augment=AugmentPlan(flip="horizontal"),
    val_fraction=_VALIDATION_IMAGES_21K,
)
S_PAPER = _from_scratch("s", "paper")

_OURS = (
    "images are resized with antialiasing, in the official code without; crops have a uniform area, in TensorFlow a "
    "uniform height; batch-norm shares the statistics of a group of images (ghost_batch_size), in the official code "
    "of up to eight TPU cores: 1,024 images of a batch on 32 cores."
)
_CLAMP = (
    "Operations of RandAugment stop at the end of their range: from magnitude 10 on, solarize changes nothing (its "
    "threshold is at most 256), and from 20 on posterize neither (it keeps at most 8 bits)."
)
_OURS_PAPER = (
    "where the paper is silent, as in the released code: the smallest crop (5 % of the area), label smoothing, "
    "warm-up, RandAugment's operations. Training goes to its end and keeps the weights that are best on minival; the "
    f"paper stops early by minival and does not state when. {_CLAMP} Further, {_OURS}"
)
_OURS_SMALL_PAPER = (
    "where the paper is silent: size, dropout, AutoAugment and the smallest crop (10 % of the area) are those at the "
    f"end of the released schedule. Training keeps the weights that are best on minival. Further, {_OURS}"
)
_OURS_RELEASED = (
    "the weights that are best on minival are kept; the official code archives those that are best on the images it "
    "evaluates on, by default ImageNet's val. Operations of {} stop at the end of their range: posterize keeps at "
    "most 8 bits, and the threshold of solarize is at most 256. "
    f"{_OURS}"
)
_CROPS_SMALL = (
    ", crops of at least 10 % of the area (preprocess_legacy.py: from 8 %, but what is below 10 % is redrawn)"
)
_NVIDIA = " NVIDIA's trainer (DeepLearningExamples) reached 83.93 % with this model in 14 hours on 8 A100."
_TABLE_7, _TABLE_11 = " (the paper's Table 7)", " (the paper's Table 11, which gives no hours)"
# size, sizes and what grows, result
_PAPER = [
    ("s", "128 to 300 px, dropout grows too", f"7.1 hours on 32 TPUv3 cores, 83.9 % top-1 at 384 px{_TABLE_7}"),
    ("m", "128 to 380 px, RandAugment to 20, mixup to 0.2",
     f"13 hours on 32 TPUv3 cores, 85.1 % top-1 at 480 px{_TABLE_7}"),
    ("l", "128 to 380 px, RandAugment to 25, mixup to 0.4",
     f"24 hours on 32 TPUv3 cores, 85.7 % top-1 at 480 px{_TABLE_7}"),
    ("b0", "192 px throughout", f"78.7 % top-1 at 224 px{_TABLE_11}"),
    ("b1", "192 px throughout", f"79.8 % top-1 at 240 px{_TABLE_11}"),
    ("b2", "208 px throughout", "the paper gives neither hours nor top-1 for B2"),
    ("b3", "240 px throughout", f"82.1 % top-1 at 300 px{_TABLE_11}"),
]  # fmt: skip
# size, sizes, top-1 of the authors' checkpoint, its image size, other settings, further results
_RELEASED = [
    ("s", "171 to 300", 83.9, 384, "RandAugment 5 to 10, dropout 0.2, batch-norm momentum 0.9", _NVIDIA),
    ("m", "192 to 384", 85.2, 480, "RandAugment 5 to 15, mixup and CutMix to 0.2, dropout 0.3", ""),
    ("l", "192 to 384", 85.7, 480, "RandAugment 5 to 20, mixup and CutMix to 0.5, dropout 0.4", ""),
    ("b0", "144 to 192", 78.7, 224, f"AutoAugment's policy v0, dropout 0.2{_CROPS_SMALL}", ""),
    ("b1", "144 to 192", 79.8, 240, f"AutoAugment's policy v0, dropout 0.2{_CROPS_SMALL}", ""),
    ("b2", "148 to 208", 80.5, 260, f"AutoAugment's policy v0, dropout 0.3{_CROPS_SMALL}", ""),
    ("b3", "156 to 240", 82.1, 300, f"AutoAugment's policy v0, dropout 0.3{_CROPS_SMALL}", ""),
]
# size, sizes, hours, top-1
_IMAGENET21K = [
    ("s", "sizes as on ImageNet-1k", 9, 84.9),
    ("m", "sizes as on ImageNet-1k", 15, 86.2),
    ("l", "sizes as on ImageNet-1k", 26, 86.8),
    ("xl", "training sizes and regularization of L, evaluation at 512 px (official code)", 45, 87.3),
]

RECIPES = [
    *(
        NamedRecipe(
            _from_scratch(size, "paper"),
            title=f"EfficientNetV2-{size.upper()} on ImageNet-1k as in the paper: {growth}.",
            result=f"{result}; ours is not measured.",
            has_cost=size[0] != "b",
            source="arXiv:2104.00298, "
            + ("sections 5.1 and 6.1: no progressive learning." if size[0] == "b" else "section 5.1 and Table 6."),
            ours=_OURS_SMALL_PAPER if size[0] == "b" else _OURS_PAPER,
        )
        for size, growth, result in _PAPER
    ),
    *(
        NamedRecipe(
            _from_scratch(size, "released"),
            title=f"EfficientNetV2-{size.upper()} on ImageNet-1k as in the official code: {sizes} px, "
            f"{'AutoAugment' if size[0] == 'b' else 'dropout fixed'}.",
            result=f"the authors give no hours; {top1} % top-1 at {image_size} px (their checkpoint); ours is not "
            f"measured.{further}",
            source=f"google/automl, efficientnetv2: four stages, {settings}.",
            ours=_OURS_RELEASED.format("AutoAugment" if size[0] == "b" else "RandAugment"),
        )
        for size, sizes, top1, image_size, settings, further in _RELEASED
    ),
    *(
        NamedRecipe(
            _imagenet21k(size),
            title=f"EfficientNetV2-{size.upper()} on ImageNet-21k as in the paper: 60 epochs, cosine, {sizes}.",
            data='IMAGENET21K.csv --label-separator ";"',
            result=f"{hours} hours on 32 TPUv3 cores together with fine-tuning (imagenet_from_21k_{size}_paper), which "
            f"then reaches {top1} % top-1 on ImageNet-1k (the paper's Table 7); ours is not measured.",
            has_cost=True,
            source='arXiv:2104.00298, section 5.2: "60 or 30" epochs (--epochs 30), cosine, 21,841 classes, the '
            "labels of an image normalized to sum 1, 100,000 images held out, all else as in section 5.1.",
            ours="the epochs of each size (the paper does not state which takes 60 and which 30); the last moving "
            "average is kept; the held-out images are stratified by class, so classes of one image need your own val "
            "split; crops, warm-up, RandAugment's operations and batch-norm as in efficientnetv2_s_paper.",
        )
        for size, sizes, hours, top1 in _IMAGENET21K
    ),
    NamedRecipe(
        _IMAGENET21K_RELEASED,
        title="ImageNet-21k as in the official code: 224 px throughout, little regularization, 60 epochs, cosine.",
        data='IMAGENET21K.csv --label-separator ";"',
        run=" --model efficientnetv2_s",
        result="the authors give no hours; their checkpoints, fine-tuned, reach 84.9 % top-1 on ImageNet-1k for S "
        "(their README; 84.3 % as timm measured it); ours is not measured.",
        source="google/automl, efficientnetv2 (imagenet21k): one size, learning rate 0.008 for each 256 images, one "
        "epoch of warm-up, no dropout, no stochastic depth, no label smoothing, only crops and flips; 21,843 classes, "
        "the labels of an image normalized to sum 1.",
        ours="100,000 images are held out, stratified by class, in the official code the 100,357 of its first files, "
        "so classes of one image need your own val split; the cosine starts where warm-up ends; all other images are "
        "trained on and the last moving average is kept. The official code leaves 25,089 more out (its minival, files "
        "16 to 19) and archives the weights that are best on its evaluation images. Crops, resizing and batch-norm as "
        "in efficientnetv2_s_released.",
    ),
]


# Progressive learning of other models: the paper's Table 12.
_RESNET = (
    " Without the dropout and the stochastic depth (section 5.1: survival 0.8), as torchvision's ResNets have no "
    "modules for them."
)
_RESNET50 = (
    " In small, with recipe quick on Imagenette from 48 to 96 px: 1.49 times (1.38 to 1.61) as fast as 96 px "
    "throughout, at -0.6 points of top-1 (-4.0 to +2.8), 3 seeds (benchmarks/results/summary.json, "
    "progressive_speedup_ and progressive_top1_gain_resnet50_imagenette)."
)
_B4 = (
    " The module is torchvision's: it pads on all sides, and its batch-norm has an epsilon of 1e-5 (official code: "
    "1e-3)."
)
# name, title, model, last image size, drop_path, result of Table 12 (fixed size -> progressive), measured by us, ours
_TABLE_12 = [
    ("resnet50_224", "ResNet-50", "torchvision:resnet50", 224, 0.0,
     "78.1 -> 78.4 % top-1, 4.9 -> 3.5 hours", _RESNET50, _RESNET),
    ("resnet50_380", "ResNet-50", "torchvision:resnet50", 380, 0.0,
     "80.0 -> 80.3 % top-1, 14.3 -> 5.8 hours", _RESNET50, _RESNET),
    ("resnet152_380", "ResNet-152", "torchvision:resnet152", 380, 0.0,
     "82.4 -> 82.9 % top-1, 15.5 -> 7.2 hours", "", _RESNET),
    ("efficientnet_b4", "EfficientNet-B4", "torchvision:efficientnet_b4", 380, 0.2,
     "82.9 -> 83.1 % top-1, 20.8 -> 9.4 hours", "", _B4),
    ("efficientnet_b5", "EfficientNet-B5", "timm:tf_efficientnet_b5", 456, 0.2,
     "83.7 -> 84.0 % top-1, 42.9 -> 15.2 hours", "", ""),
]  # fmt: skip


def _progressive(name: str, model: str, image_size: int, drop_path: float) -> Recipe:
    """A model of Table 12, which gives accuracies and hours only.

    Ours: optimizer, schedule and minival of the paper's section 5.1, S's row of Table 6 for RandAugment and dropout,
    sizes from 128 px to the model's own. The baseline is ``--set progressive.stages=1``.
    """
    return S_PAPER.model_copy(
        update={
            "name": name,
            "model": model,
            "progressive": replace(S_PAPER.progressive, image_size=Ramp(128, image_size), drop_path=drop_path),
            "crop_mode": "center",
            "train_crop_mode": None,
            "crop_pct": image_size / (image_size + 32),  # the margin of the released code
            "eval_image_size": image_size,
        }
    )


OTHER_MODEL_RECIPES = [
    NamedRecipe(
        _progressive(f"{name}_progressive", model, image_size, drop_path),
        title=f"{title} on ImageNet-1k, growing to {image_size} px.",
        run=". The module is timm's: install the extra timm." if model.startswith("timm:") else "",
        has_cost=True,
        result=f"{result} on 32 TPUv3 cores (the paper's Table 12); ours is not measured on ImageNet.{measured}",
        source="arXiv:2104.00298, section 6.2 and Table 12.",
        ours="all hyperparameters, as the paper gives none here. They are those of its section 5.1 and of S in Table "
        f"6. {_CLAMP}{ours}",
    )
    for name, title, model, image_size, drop_path, result, measured, ours in _TABLE_12
]
