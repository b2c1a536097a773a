"""The linear probe of given weights, before they train: its figure, and where the recipe wants it its classifier."""

from __future__ import annotations

import torch

from efficientnetv2.base.keys import Key
from efficientnetv2.base.preprocessing import Preprocessing
from efficientnetv2.commands.prepare import Prepared
from efficientnetv2.commands.screen import Screen
from efficientnetv2.inference.probe import Probe, as_linear, linear_probe, most_pictures
from efficientnetv2.models.fit import put_classifier
from efficientnetv2.models.network import Network
from efficientnetv2.training.recipe import Recipe


def probed(
    network: Network,
    prepared: Prepared,
    preprocessing: Preprocessing,
    recipe: Recipe,
    device: torch.device,
    workers: int,
    screen: Screen,
) -> Probe:
    """What a linear classifier on the network's features reaches.

    Args:
        network: to begin with. With ``classifier: probe`` its fresh classifier gets the probe's values; one that the
            weights brought along for these classes stays.
        prepared: the pictures.
        preprocessing: of evaluation.
        recipe: of the run.
        device: to compute on.
        workers: processes that read pictures.
        screen: shows progress.
    """
    train, val = prepared.train, prepared.val
    most = most_pictures(network, preprocessing.image_px, len(train.class_names), device)
    with screen.counting("linear probe", sum(min(len(part), most) for part in (train, val))) as counted:
        probe, learnt = linear_probe(
            network,
            train,
            val,
            preprocessing=preprocessing,
            key=Key.of(recipe.seed).fold("probe"),
            balanced=recipe.balance is not None,
            device=device,
            workers=workers,
            progress=counted,
        )
    if recipe.classifier == "probe" and not network.class_names:
        put_classifier(network, *as_linear(learnt, len(train.class_names)))
    return probe
