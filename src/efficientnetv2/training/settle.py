"""Before the first step: every "auto" of a recipe becomes a value, and each choice is said in a line."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from efficientnetv2.arch.cost import cost
from efficientnetv2.arch.published import architecture
from efficientnetv2.base.errors import InputError
from efficientnetv2.inference.accelerate import free_memory_bytes
from efficientnetv2.models import modelfile
from efficientnetv2.training.loop import Length
from efficientnetv2.training.recipe import Recipe, checked

# Of the free memory: the rest is for workers, the cache of files and what activations are not. Ours.
_MEMORY_SHARE = 0.6


@dataclass(frozen=True)
class Settled:
    """A recipe with nothing left to decide.

    Args:
        recipe: as it is written into the run folder.
        notes: what was chosen and why, a line each.
    """

    recipe: Recipe
    notes: tuple[str, ...]


def settle(recipe: Recipe, *, images: int, device: torch.device) -> Settled:
    """Decide what the recipe leaves open, for so many training pictures on that device.

    Raises:
        InputError: the run could not take place: more stages than steps, or a group that does not fit.
    """
    changes: dict[str, object] = {}
    notes: list[str] = []
    if recipe.model == "auto":
        changes["model"] = "efficientnetv2_s" if device.type == "cuda" else "efficientnetv2_b0"
        notes.append(
            f"Network: {changes['model']} (with a GPU efficientnetv2_s, without one efficientnetv2_b0)."
        )
    if recipe.weights == "auto":
        changes["weights"] = "none"
        notes.append(
            "Weights: none, training from scratch. Give a model file with --weights to start from it."
        )
    elif recipe.weights != "none":
        modelfile.load(recipe.weights)  # what is wrong with it should show before the run begins
    if recipe.epochs == "auto":
        seen, least, most = recipe.epochs_auto
        changes["epochs"] = round(min(most, max(least, seen / images)), 2)
        notes.append(
            f"Epochs: {changes['epochs']:g}, so that about {seen:,} pictures are seen "
            f"(at least {least:g} epochs, at most {most:g})."
        )
    if recipe.eval_px is None:
        last = recipe.progressive.stage(recipe.progressive.stages - 1).image_px
        changes["eval_px"] = last
        notes.append(f"Evaluation at {last} px, the last training size.")
    recipe = checked(recipe.to_json() | changes, where=recipe.name)
    if recipe.group_images is None:
        group = _largest_group(recipe, device)
        if group < recipe.batch_images:
            notes.append(
                f"Groups of {group} of the {recipe.batch_images} pictures of a batch: as many as fit "
                "into memory at a time."
            )
        recipe = checked(recipe.to_json() | {"group_images": group}, where=recipe.name)
    length = Length.of(recipe, images)
    recipe.progressive.at(0, steps=length.steps)
    return Settled(recipe, tuple(notes))


def _largest_group(recipe: Recipe, device: torch.device) -> int:
    """The largest divisor of the batch whose activations fit, by the network's own count of them."""
    sizes = [recipe.progressive.stage(stage).image_px for stage in range(recipe.progressive.stages)]
    per_image = cost(architecture(recipe.model), image_px=max(sizes)).total.activation_bytes
    fitting = int(free_memory_bytes(device) * _MEMORY_SHARE) // per_image
    divisors = [n for n in range(1, recipe.batch_images + 1) if recipe.batch_images % n == 0 and n <= fitting]
    if not divisors:
        raise InputError(
            f"Not even one picture of {max(sizes)} px fits: {recipe.model} keeps {per_image / 2**30:.1f} GiB of "
            f"activations for it, and {_MEMORY_SHARE:.0%} of the free memory is "
            f"{free_memory_bytes(device) * _MEMORY_SHARE / 2**30:.1f} GiB. Use a smaller network (--model) or "
            "smaller pictures (--image-px)."
        )
    return max(divisors)
