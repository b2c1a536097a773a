"""Before the first step: every "auto" of a recipe becomes a value, and each choice is said in a line."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from efficientnetv2.arch.cost import cost
from efficientnetv2.base.errors import InputError
from efficientnetv2.inference.accelerate import free_memory_bytes
from efficientnetv2.models.activation import activation_bytes
from efficientnetv2.models.network import EfficientNet, Network
from efficientnetv2.training.distributed import ALONE, World
from efficientnetv2.training.memory import divisors
from efficientnetv2.training.recipe import Recipe, checked
from efficientnetv2.training.sharing import best_shared, refuse_unshared
from efficientnetv2.training.speed import choose
from efficientnetv2.training.start import NOTHING_FROZEN, start, title
from efficientnetv2.training.state import Length

# Of the free memory: the rest is for workers, the cache of files and what activations are not. Ours.
_MEMORY_SHARE = 0.6
# Every network of the family halves the picture five times.
_STRIDE = 32


@dataclass(frozen=True)
class Settled:
    """A recipe with nothing left to decide.

    Args:
        recipe: as it is written into the run folder.
        network: to begin with, on the CPU.
        notes: what was chosen and why, a line each.
    """

    recipe: Recipe
    network: Network
    notes: tuple[str, ...]


def settle(
    recipe: Recipe,
    *,
    images: int,
    class_names: tuple[str, ...],
    device: torch.device,
    world: World = ALONE,
) -> Settled:
    """Decide what the recipe leaves open, for so many training pictures on that device.

    Args:
        recipe: of the run.
        images: to train on.
        class_names: of these.
        device: to train on.
        world: the processes that will share the groups.

    Raises:
        InputError: the run could not take place: weights that can't be had or are of another network, more stages
            than steps, a group that does not fit, or fewer groups than processes.
    """
    begun = start(recipe, class_names=class_names, device=device)
    changes: dict[str, Any] = {"weights": begun.weights}
    changes["model"] = begun.model if isinstance(begun.model, str) else begun.model.to_json()
    notes = list(begun.notes)
    if begun.weights == "none":
        changes |= NOTHING_FROZEN
    if begun.weights == "none" and recipe.name == "finetune":
        notes.append("The recipe finetune is made for pretrained weights; from scratch, quick learns faster.")
    if recipe.steps is not None:
        changes |= {"epochs": recipe.steps * recipe.batch_images / images, "steps": None}
        notes.append(f"Epochs: {changes['epochs']:g}, for {recipe.steps:,} steps of {recipe.batch_images}.")
    elif recipe.epochs == "auto":
        seen, least, most = recipe.epochs_auto
        changes["epochs"] = round(min(most, max(least, seen / images)), 2)
        notes.append(
            f"Epochs: {changes['epochs']:g}, so that about {seen:,} pictures are seen "
            f"(at least {least:g} epochs, at most {most:g})."
        )
    if recipe.eval_px is None:
        changes["eval_px"] = recipe.progressive.last.image_px
        notes.append(f"Evaluation at {changes['eval_px']} px, the last training size.")
    if recipe.progressive.order == "random" and recipe.progressive.seed is None:
        changes["progressive"] = recipe.progressive.to_json() | {"seed": recipe.seed}
    recipe = checked(recipe.to_json() | changes, where=recipe.name)
    group = _settled_group(recipe, begun.network, device, world, notes)
    recipe = checked(recipe.to_json() | {"group_images": group}, where=recipe.name)
    refuse_unshared(recipe, device, world)
    steps = Length.of(recipe, images).steps
    recipe.progressive.at(0, steps=steps)
    speed = choose(recipe, begun.network, steps=steps, device=device)
    recipe = checked(
        recipe.to_json() | {"precision": speed.precision, "compile": speed.compile}, where=recipe.name
    )
    notes += [speed.note] if speed.note else []
    return Settled(recipe, begun.network, tuple(notes))


def _settled_group(
    recipe: Recipe, network: Network, device: torch.device, world: World, notes: list[str]
) -> int:
    """``group_images``: as set, if it fits; else the largest divisor of the batch that does, and can be shared."""
    fitting, per_image_bytes = _images_that_fit(recipe, network, device, world)
    possible = divisors(recipe.batch_images, most=min(fitting, recipe.batch_images))
    if not possible:
        raise InputError(
            f"Not even one picture of {_largest_px(recipe)} px fits: {title(recipe.model)} keeps "
            f"{per_image_bytes / 2**30:.1f} GiB of activations for it, more than {_MEMORY_SHARE:.0%} of the free "
            "memory. Use a smaller network (--model) or smaller pictures (--image-px)."
        )
    best = best_shared(possible, batch_images=recipe.batch_images, processes=world.size)
    group = recipe.group_images or best
    if group > fitting:
        raise InputError(
            f"group_images is {group}, but only {possible[-1]} pictures of {_largest_px(recipe)} px fit into "
            f"memory at a time, of those that divide the batch of {recipe.batch_images}. Set it to "
            f"{possible[-1]} (--set group_images={possible[-1]})."
        )
    if group == 1 and math.ceil(_smallest_px(recipe) / _STRIDE) == 1:
        raise InputError(
            f"A group of 1 picture of {_smallest_px(recipe)} px leaves batch-norm one number per channel, which "
            "has no spread. Use a larger batch (--batch-images) that a group of several divides."
        )
    if group < recipe.batch_images:
        notes.append(
            f"Groups of {group} of the {recipe.batch_images} pictures of a batch share batch-norm statistics."
        )
    return group


def _images_that_fit(recipe: Recipe, network: Network, device: torch.device, world: World) -> tuple[int, int]:
    """How many pictures' activations fit, by the network's own count of them, and the bytes of one."""
    px = _largest_px(recipe)
    if isinstance(network, EfficientNet) and not network.frozen:
        per_image_bytes = cost(network.architecture, image_px=px).total.activation_bytes
    else:
        per_image_bytes = activation_bytes(network, px)
    free = free_memory_bytes(device) / (world.local_size if device.type == "cpu" else 1)
    return int(free * _MEMORY_SHARE) // per_image_bytes, per_image_bytes


def _largest_px(recipe: Recipe) -> int:
    return max(recipe.progressive.stage(0).image_px, recipe.progressive.last.image_px)


def _smallest_px(recipe: Recipe) -> int:
    return min(recipe.progressive.stage(0).image_px, recipe.progressive.last.image_px)
