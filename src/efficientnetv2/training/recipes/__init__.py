"""The named recipes: one function each, whose docstring is its label."""

from __future__ import annotations

from collections.abc import Callable

from efficientnetv2.base.errors import InputError, did_you_mean
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.recipes import imagenet, imagenet21k, other_networks, practical, search, transfer

#: Every recipe by name, in the order in which a newcomer wants to read them.
RECIPES: dict[str, Callable[[], Recipe]] = {
    function.__name__: function
    for function in (
        practical.quick,
        practical.finetune,
        *(
            getattr(imagenet, f"efficientnetv2_{size}_{form}")
            for form in ("paper", "released")
            for size in ("s", "m", "l", "b0", "b1", "b2", "b3")
        ),
        *(getattr(imagenet21k, f"imagenet21k_{size}_paper") for size in ("s", "m", "l", "xl")),
        imagenet21k.imagenet21k_released,
        *(
            getattr(transfer, f"imagenet_from_21k_{size}_{form}")
            for form in ("paper", "released")
            for size in ("s", "m", "l", "xl")
        ),
        transfer.transfer_paper,
        transfer.transfer_released,
        other_networks.resnet50_224_progressive,
        other_networks.resnet50_380_progressive,
        other_networks.resnet152_380_progressive,
        other_networks.efficientnet_b4_progressive,
        other_networks.efficientnet_b5_progressive,
        search.proxy_small,
        search.proxy_paper,
    )
}


def named(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        InputError: there is none; the message names the nearest.
    """
    if name not in RECIPES:
        known = ", ".join(RECIPES)
        raise InputError(f"There is no recipe '{name}'{did_you_mean(name, RECIPES)} The recipes: {known}.")
    return RECIPES[name]()
