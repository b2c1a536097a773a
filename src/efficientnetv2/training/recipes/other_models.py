"""Progressive learning for networks that are not EfficientNetV2: the paper's Table 12."""

from __future__ import annotations

from efficientnetv2.progressive.schedule import Progressive, Ramp
from efficientnetv2.training.recipe import Optimizer, Recipe, Schedule
from efficientnetv2.transforms.pipeline import AugmentPlan


def _progressive(name: str, *, model: str, image_px: int, drop_path: float = 0.0) -> Recipe:
    """What the recipes of Table 12 share.

    The paper gives accuracies and hours, not the settings. Ours: optimizer, schedule and minival of its section 5.1,
    S's row of Table 6 for RandAugment and dropout, sizes from 128 px to the network's own. ``--set
    progressive.stages=1`` is the baseline: everything at its end throughout.
    """
    return Recipe(
        name=name,
        made_for="imagenet1k",
        model=model,
        weights="none",
        epochs=350,
        batch_images=4096,
        progressive=Progressive(
            stages=4,
            image_px=Ramp(128, image_px),
            randaugment=Ramp(5, 15),
            dropout=Ramp(0.1, 0.3),
            drop_path=drop_path,
            label_smoothing=0.1,
        ),
        optimizer=Optimizer(
            kind="rmsprop", lr=0.256, weight_decay=1e-5, momentum=0.9, decay=0.9, epsilon=1e-3
        ),
        schedule=Schedule(kind="staircase", warmup_epochs=5, factor=0.97, every_epochs=2.4),
        ema_decay=0.9999,
        batch_norm_momentum=0.99,
        framing="crop",
        crop_fraction=image_px / (image_px + 32),  # the released code's margin
        eval_px=image_px,
        crop_area_min=0.05,
        augment=AugmentPlan(flip="horizontal", randaugment_preset="released"),
        minival=25_000,
    )


def resnet50_224_progressive() -> Recipe:
    """ResNet-50 on ImageNet-1k, growing to 224 px.

    Run: effnetv2 train IMAGENET --recipe resnet50_224_progressive
    Cost and result: 78.1 -> 78.4 % top-1, 4.9 -> 3.5 hours on 32 TPUv3 cores (the paper's Table 12); ours is
        not measured on ImageNet. In small, by recipe quick on Imagenette from 48 to 96 px: 1.49 times (1.38 to
        1.61) as fast as 96 px throughout, at -0.6 points of top-1 (-4.0 to +2.8), 3 seeds
        (benchmarks/results/summary.json, progressive_speedup_ and progressive_top1_gain_resnet50_imagenette).
    Source: arXiv:2104.00298, section 6.2 and Table 12.
    Ours: all settings: the paper names none here. They are those of its section 5.1, and S's of Table 6, but for
        dropout, for which torchvision's ResNets have no module.
    """
    return _progressive("resnet50_224_progressive", model="torchvision:resnet50", image_px=224)


def resnet50_380_progressive() -> Recipe:
    """ResNet-50 on ImageNet-1k, growing to 380 px.

    Run: effnetv2 train IMAGENET --recipe resnet50_380_progressive
    Cost and result: 80.0 -> 80.3 % top-1, 14.3 -> 5.8 hours on 32 TPUv3 cores (the paper's Table 12); ours is
        not measured on ImageNet. In small, by recipe quick on Imagenette from 48 to 96 px: 1.49 times (1.38 to
        1.61) as fast as 96 px throughout, at -0.6 points of top-1 (-4.0 to +2.8), 3 seeds
        (benchmarks/results/summary.json, progressive_speedup_ and progressive_top1_gain_resnet50_imagenette).
    Source: arXiv:2104.00298, section 6.2 and Table 12.
    Ours: all settings: the paper names none here. They are those of its section 5.1, and S's of Table 6, but for
        dropout, for which torchvision's ResNets have no module.
    """
    return _progressive("resnet50_380_progressive", model="torchvision:resnet50", image_px=380)


def resnet152_380_progressive() -> Recipe:
    """ResNet-152 on ImageNet-1k, growing to 380 px.

    Run: effnetv2 train IMAGENET --recipe resnet152_380_progressive
    Cost and result: 82.4 -> 82.9 % top-1, 15.5 -> 7.2 hours on 32 TPUv3 cores (the paper's Table 12); ours is
        not measured.
    Source: arXiv:2104.00298, section 6.2 and Table 12.
    Ours: all settings: the paper names none here. They are those of its section 5.1, and S's of Table 6, but for
        dropout, for which torchvision's ResNets have no module.
    """
    return _progressive("resnet152_380_progressive", model="torchvision:resnet152", image_px=380)


def efficientnet_b4_progressive() -> Recipe:
    """EfficientNet-B4 on ImageNet-1k, growing to 380 px.

    Run: effnetv2 train IMAGENET --recipe efficientnet_b4_progressive
    Cost and result: 82.9 -> 83.1 % top-1, 20.8 -> 9.4 hours on 32 TPUv3 cores (the paper's Table 12); ours is
        not measured.
    Source: arXiv:2104.00298, section 6.2 and Table 12.
    Ours: all settings: the paper names none here. They are those of its section 5.1, and S's of Table 6. The
        module is torchvision's: it pads on all sides, and its batch-norm has an epsilon of 1e-5 (the authors': 1e-3).
    """
    return _progressive(
        "efficientnet_b4_progressive", model="torchvision:efficientnet_b4", image_px=380, drop_path=0.2
    )


def efficientnet_b5_progressive() -> Recipe:
    """EfficientNet-B5 on ImageNet-1k, growing to 456 px.

    Run: effnetv2 train IMAGENET --recipe efficientnet_b5_progressive
        The module is timm's, which comes with the extra timm.
    Cost and result: 83.7 -> 84.0 % top-1, 42.9 -> 15.2 hours on 32 TPUv3 cores (the paper's Table 12); ours is
        not measured.
    Source: arXiv:2104.00298, section 6.2 and Table 12.
    Ours: all settings: the paper names none here. They are those of its section 5.1, and S's of Table 6.
    """
    return _progressive(
        "efficientnet_b5_progressive", model="timm:tf_efficientnet_b5", image_px=456, drop_path=0.2
    )
