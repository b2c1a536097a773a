"""Proxies: recipes so short that hundreds of networks can be tried by them, to be told apart rather than to be used."""

from __future__ import annotations

from dataclasses import replace

from efficientnetv2.progressive.schedule import Progressive
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.recipes.custom_data import quick
from efficientnetv2.training.recipes.imagenet import efficientnetv2_s_paper

# Of the training pictures, those that a network is chosen by: more than a run needs to choose an epoch, because the
# differences between networks are smaller. Ours.
CHOOSING = 0.2


def proxy_small() -> Recipe:
    """A trial of a search on a CPU: 5 epochs of some thousand pictures of 64 px, minutes each.

    Run: effnetv2 train DATA --recipe proxy_small; of a whole search, effnetv2 search run STUDY --data DATA
    Cost and result: benchmarks/search_record.py.
        Foretold for this machine: effnetv2 plan DATA --recipe proxy_small
    Source: optimizer, augmentation and evaluation as ``quick``.
    Ours: one size, because sizes that grow would hide what a network costs at the last one; the length.
    """
    base = quick()
    return base.model_copy(
        update={
            "name": "proxy_small",
            "epochs": 5.0,
            "progressive": replace(base.progressive, stages=1, image_px=64),
            "enlarge": None,
            "minival": CHOOSING,
            "compile": False,
        }
    )


def proxy_paper() -> Recipe:
    """A trial of the paper's search: about 10 epochs of ImageNet.

    Run: effnetv2 train IMAGENET --recipe proxy_paper; of a whole search, effnetv2 search run STUDY --data IMAGENET
        --preset paper
    Cost and result: not measured: a thousand trials take thousands of hours of a GPU.
        Foretold for this machine: effnetv2 plan IMAGENET --recipe proxy_paper
    Source: arXiv:2104.00298, section 3.3, for the 10 epochs, and 25,000 pictures of train that choose (section 5.1).
    Ours: the size (the paper says "reduced"), and what its optimizer needs to get anywhere in 10 epochs: a warm-up of
        one and a cosine to 0 instead of a staircase made for 350, a moving average that forgets sooner, and the
        regularization of the first of its stages, label smoothing included.
    """
    base = efficientnetv2_s_paper()
    first = base.progressive.stage(0)
    return base.model_copy(
        update={
            "name": "proxy_paper",
            "made_for": None,
            "model": "auto",
            "epochs": 10.0,
            "progressive": Progressive(**first.to_json() | {"image_px": 192}),
            "schedule": base.schedule.model_copy(update={"kind": "cosine", "warmup_epochs": 1.0}),
            "ema_decay": 0.999,
            "batch_norm_momentum": 0.9,
            "eval_px": None,
            "compile": False,
        }
    )
