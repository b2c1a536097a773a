"""Progressive learning for models other than EfficientNetV2: the paper's Table 12."""

from __future__ import annotations

from efficientnetv2.progressive.schedule import ProgressiveSchedule, Ramp
from efficientnetv2.training.recipe import Optimizer, Recipe, Schedule
from efficientnetv2.training.recipes.named_recipe import NamedRecipe
from efficientnetv2.transforms.pipeline import AugmentPlan

_RESNET = " Without the dropout, as torchvision's ResNets have no module for it."
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
    (
        "resnet50_224", "ResNet-50", "torchvision:resnet50", 224, 0.0,
        "78.1 -> 78.4 % top-1, 4.9 -> 3.5 hours", _RESNET50, _RESNET,
    ),
    (
        "resnet50_380", "ResNet-50", "torchvision:resnet50", 380, 0.0,
        "80.0 -> 80.3 % top-1, 14.3 -> 5.8 hours", _RESNET50, _RESNET,
    ),
    (
        "resnet152_380", "ResNet-152", "torchvision:resnet152", 380, 0.0,
        "82.4 -> 82.9 % top-1, 15.5 -> 7.2 hours", "", _RESNET,
    ),
    (
        "efficientnet_b4", "EfficientNet-B4", "torchvision:efficientnet_b4", 380, 0.2,
        "82.9 -> 83.1 % top-1, 20.8 -> 9.4 hours", "", _B4,
    ),
    (
        "efficientnet_b5", "EfficientNet-B5", "timm:tf_efficientnet_b5", 456, 0.2,
        "83.7 -> 84.0 % top-1, 42.9 -> 15.2 hours", "", "",
    ),
]  # fmt: skip


def _progressive(name: str, model: str, image_size: int, drop_path: float) -> Recipe:
    """A model of Table 12, which gives accuracies and hours only.

    Ours: optimizer, schedule and minival of the paper's section 5.1, S's row of Table 6 for RandAugment and dropout,
    sizes from 128 px to the model's own. The baseline is ``--set progressive.stages=1``.
    """
    return Recipe(
        name=name,
        expected_dataset="imagenet1k",
        model=model,
        weights="none",
        epochs=350,
        batch_size=4096,
        progressive=ProgressiveSchedule(
            stages=4,
            image_size=Ramp(128, image_size),
            randaugment=Ramp(5, 15),
            dropout=Ramp(0.1, 0.3),
            drop_path=drop_path,
            label_smoothing=0.1,
        ),
        optimizer=Optimizer(
            name="rmsprop", lr=0.256, weight_decay=1e-5, momentum=0.9, beta2=0.9, epsilon=1e-3
        ),
        schedule=Schedule(name="staircase", warmup_epochs=5, gamma=0.97, step_epochs=2.4),
        ema_decay=0.9999,
        batch_norm_momentum=0.99,
        crop_mode="center",
        crop_pct=image_size / (image_size + 32),  # the margin of the released code
        eval_image_size=image_size,
        crop_scale_min=0.05,
        augment=AugmentPlan(flip="horizontal", randaugment_preset="released"),
        minival=25_000,
    )


RECIPES = [
    NamedRecipe(
        _progressive(f"{name}_progressive", model, image_size, drop_path),
        title=f"{title} on ImageNet-1k, growing to {image_size} px.",
        run=". The module is timm's: install the extra timm." if model.startswith("timm:") else "",
        has_cost=True,
        result=f"{result} on 32 TPUv3 cores (the paper's Table 12); ours is not measured on ImageNet.{measured}",
        source="arXiv:2104.00298, section 6.2 and Table 12.",
        ours="all hyperparameters, as the paper gives none here. They are those of its section 5.1 and of S in Table 6."
        + ours,
    )
    for name, title, model, image_size, drop_path, result, measured, ours in _TABLE_12
]
