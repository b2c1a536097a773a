"""What a run leaves as the given weights have it because it is too short to learn it anew."""

from __future__ import annotations

from efficientnetv2.base.errors import count_of
from efficientnetv2.models.fit import freeze
from efficientnetv2.models.network import Network
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.state import Length

# Steps from which on batch-norm's statistics adapt. Ours. Begun from a probe's classifier, on aerial pictures after 38
# steps and on satellite pictures after 95 the network was above the probe where they were kept, and about at it or far
# below where they adapted; with weaker weights and 114 steps it made no difference.
ADAPTING_STEPS = 150


def with_statistics(
    asked: Recipe, recipe: Recipe, network: Network, *, images: int | None
) -> tuple[Recipe, list[str]]:
    """Settle ``frozen_statistics: auto``, and freeze the network accordingly; else nothing changes.

    In training a network sees its pictures through the statistics of their batch, in evaluation through those that it
    keeps. Given weights, and a classifier fitted to their features, need some hundred steps to do as well with new
    statistics as with their own.

    Args:
        asked: may say "auto".
        recipe: settled, its epochs among the rest.
        network: to train, with the weights given; changed in place.
        images: to train on; None where how long the run is will be measured first. Then statistics adapt, with which a
            step takes no less than with those that are kept.

    Returns:
        The recipe, and a sentence where something was kept.
    """
    if asked.frozen_statistics != "auto" or recipe.weights == "none":
        return recipe, []
    steps = ADAPTING_STEPS if images is None else Length.of(recipe, images).steps
    frozen = steps < ADAPTING_STEPS
    freeze(network, stages=recipe.freeze_stages, statistics=frozen)
    recipe = recipe.model_copy(update={"frozen_statistics": frozen})
    if not frozen:
        return recipe, []
    return recipe, [
        f"Batch-norm keeps the statistics of the weights: {count_of(steps, 'step')} are too few for new ones "
        f"(fewer than {ADAPTING_STEPS}; --set frozen_statistics=false)."
    ]
