"""Recipes for your own images: from scratch in minutes, or from pretrained weights."""

from __future__ import annotations

from efficientnetv2.progressive.schedule import ProgressiveSchedule, Ramp
from efficientnetv2.training.recipe import NamedRecipe, Optimizer, Recipe, Schedule
from efficientnetv2.transforms.pipeline import AugmentPlan

QUICK = Recipe(
    name="quick",
    weights="none",
    init="zero_residual",
    progressive=ProgressiveSchedule(
        stages=4, image_size=Ramp(64, 128), size_multiple=32, dropout=Ramp(0.0, 0.1), label_smoothing=0.1
    ),
    max_upscale=2.0,
    optimizer=Optimizer(name="adamw", lr=2e-3, weight_decay=0.05, beta2=0.99, clip_norm=1.0),
    schedule=Schedule(name="cosine", warmup_epochs=1.0, max_warmup_fraction=0.25),
    ema_decay=0.998,
    augment=AugmentPlan(randaugment_preset="monotone"),
    multilabel="sigmoid",
    minival="auto",
)

FINETUNE = Recipe(
    name="finetune",
    init="zero_residual",
    head_init="auto",
    freeze_bn=True,
    epochs=10,
    progressive=ProgressiveSchedule(
        stages=3,
        image_size=Ramp(128, 224),
        size_multiple=32,
        dropout=Ramp(0.1, 0.3),
        drop_path=0.1,
        label_smoothing=0.1,
    ),
    max_upscale=4.0,
    optimizer=Optimizer(name="adamw", lr=2e-4, weight_decay=0.02, beta2=0.999, clip_norm=5.0, head_lr_mult=5.0),
    schedule=Schedule(name="cosine", warmup_epochs=0.5, max_warmup_fraction=0.25),
    ema_decay=0.99,
    crop_scale_min=0.7,
    augment=AugmentPlan(randaugment_preset="monotone"),
    multilabel="sigmoid",
    class_sampling="sqrt",
    minival="auto",
    monitor="macro_f1",
)

RECIPES = [
    NamedRecipe(
        QUICK,
        title="From scratch on a small dataset, in minutes, on a CPU.",
        data="DATA",
        run=" --weights none",
        has_cost=True,
        result="V2-B0 on Imagenette's 9,469 training images, 10 epochs up to 128 px: 79.6 % top-1 on its 3,925 "
        "validation images, 16 minutes on 2 cores, AMD EPYC with AVX-512; one run, before precision was chosen by "
        "measuring (benchmarks/results/summary.json, quick_b0_imagenette_10ep_top1 and _wall_s). Since then, with the "
        "defaults: 3 epochs 67.6 to 68.3 % in 2.9 to 3.1 minutes of training steps on 2 cores, Intel(R) Xeon(R) "
        "Processor (family 6, model 167) with AVX-512, 18.2 epochs 83.7 to 83.9 % in 13 to 21; 3 seeds each, the "
        "latter all but that of 21 minutes on AMD EPYC (family 26, model 2) with AVX-512 "
        "(benchmarks/results/time_to_accuracy_10_epochs.json).",
        source="schedule of sizes and regularization as in arXiv:2104.00298, section 4.",
        ours="all else, tuned for short runs on a part of Imagenette's train split: residual blocks start as their "
        "shortcuts and the classifier at 0, small batches, AdamW with a short memory, and little regularization. "
        "Since these runs, a part of the training images is held out to fit the temperature (minival).",
    ),
    NamedRecipe(
        FINETUNE,
        title="Pretrained weights to 500-50,000 of your images. The default with published weights.",
        data="DATA",
        has_cost=True,
        result="V2-B0 in 15 minutes (--minutes 15) on 3,068 images of 10 classes of clothing, from weights in the "
        "repository: 63.6 % top-1 on 341 others, a linear probe of those weights 47.5 %; 2 cores, Intel(R) Xeon(R) "
        "Processor (family 6, model 167) with AVX-512; one run (benchmarks/results/summary.json, "
        "default_train_minus_probe_clothing_top1). From ImageNet weights on 1,044 satellite images of 3 classes "
        "(ForestNet), with settings for images without a fixed orientation (symmetries, center pooling, 160 to 256 "
        "px, 8 epochs): macro-F1 0.769 over 5 folds, 11 to 18 minutes a fold on one core, Intel(R) Xeon(R) Processor "
        "@ 2.50GHz with AVX-512; recipe quick from scratch in the same time, with its defaults (64 to 128 px, "
        "horizontal flips, mean pooling, one view), 0.585 (benchmarks/finetune_land_cover.py). From ImageNet weights "
        "on the 50,000 of CIFAR-10 at up to 96 px, 3 epochs: 89.8 %, recipe transfer_paper 90.0 %, means of 3 seeds "
        "(benchmarks/transfer.py); finetune in 18 to 24 minutes on 2 cores, AMD EPYC (family 25, model 17) with "
        "AVX-512, with another run at the same time.",
        source="schedule of sizes as in arXiv:2104.00298, section 4.",
        ours="all else. Training starts with the classifier of a linear probe, batch-norm keeps the statistics of the "
        "weights, and there is little regularization: benchmarks/results/finetune_tried.md. Since these runs, a "
        "twentieth of the training images is held out to select between the model before training and the last one "
        "(minival).",
    ),
]
