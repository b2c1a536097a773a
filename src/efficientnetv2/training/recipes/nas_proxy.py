"""Proxy tasks of architecture search: recipes short enough to compare hundreds of models."""

from __future__ import annotations

from dataclasses import replace

from efficientnetv2.progressive.schedule import ProgressiveSchedule
from efficientnetv2.training.recipe import NamedRecipe
from efficientnetv2.training.recipes.custom_data import QUICK
from efficientnetv2.training.recipes.imagenet import S_PAPER

# Fraction of the training images that select a model. More than for an epoch, as models differ less. Ours.
CHOOSING = 0.2

_SMALL = QUICK.model_copy(
    update={
        "name": "proxy_small",
        "epochs": 5.0,
        "progressive": replace(QUICK.progressive, stages=1, image_size=64),
        "max_upscale": None,
        "minival": CHOOSING,
        "compile": False,
    }
)
_PAPER = S_PAPER.model_copy(
    update={
        "name": "proxy_paper",
        "expected_dataset": None,
        "model": "auto",
        "epochs": 10.0,
        "progressive": ProgressiveSchedule(**S_PAPER.progressive.stage(0).to_json() | {"image_size": 192}),
        "schedule": S_PAPER.schedule.model_copy(update={"name": "cosine", "warmup_epochs": 1.0}),
        "ema_decay": 0.999,
        "batch_norm_momentum": 0.9,
        "eval_image_size": None,
        "compile": False,
    }
)

RECIPES = [
    NamedRecipe(
        _SMALL,
        title="A trial of a search on a CPU: 5 epochs of some thousand images of 64 px, minutes each.",
        data="DATA",
        run="; a whole search: effnetv2 search run STUDY --data DATA",
        result="benchmarks/search_record.py.",
        source="optimizer, augmentation and evaluation as in quick.",
        ours="one size, because growing sizes would hide the cost of a model at the last size; the length.",
    ),
    NamedRecipe(
        _PAPER,
        title="A trial of the paper's search: about 10 epochs of ImageNet.",
        run="; a whole search: effnetv2 search run STUDY --data IMAGENET --preset paper",
        result="not measured: a thousand trials take thousands of GPU hours.",
        source="arXiv:2104.00298, section 3.3, for the 10 epochs, and 25,000 images of train that select (section "
        "5.1).",
        ours='the size (the paper has "reduced"), and what the optimizer needs for 10 epochs: one epoch of warm-up, '
        "a cosine to 0 instead of a staircase made for 350 epochs, a faster moving average, batch-norm momentum 0.9 "
        "(section 5.1: 0.99), and the regularization of the first stage, label smoothing included.",
    ),
]
