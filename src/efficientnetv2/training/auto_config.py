"""Before the first step: every "auto" of a recipe becomes a value, and each choice is said in a line."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from efficientnetv2.data.sampler import BETA
from efficientnetv2.models.adapt import classifiers_of
from efficientnetv2.models.efficientnet import EfficientNet, Network
from efficientnetv2.models.regularization import apply_setting
from efficientnetv2.models.wrappers import Foreign
from efficientnetv2.preprocessing import RGB
from efficientnetv2.training.auto_batch import MemoryProbe
from efficientnetv2.training.ddp import evenly_shared, parallel_speed, validate_sharing
from efficientnetv2.training.image_sizes import (
    rounding_note,
    settings_by_size,
    smallest_group,
    unmixed_note,
    validate_sizes,
)
from efficientnetv2.training.initial_weights import (
    NOTHING_FROZEN,
    InitialModel,
    build_initial_model,
    model_title,
)
from efficientnetv2.training.microbatch import MicrobatchPlan, divisors
from efficientnetv2.training.post_training import default_eval_sizes
from efficientnetv2.training.precision import choose_precision, seconds_per_image
from efficientnetv2.training.recipe import Recipe, Schedule
from efficientnetv2.training.recipe_io import validate_recipe
from efficientnetv2.training.train_state import RunLength
from efficientnetv2.transforms.autoaugment import refuse_channels
from efficientnetv2.transforms.randaugment import names_for
from efficientnetv2.utils.distributed import SINGLE_PROCESS, World
from efficientnetv2.utils.errors import InputError, MemoryShortError, count_of
from efficientnetv2.utils.memory import GIB

# To which pictures are enlarged, however small they are stored: two positions each way are left after the last stage.
_LEAST_PX = 64
# Sizes are lowered until so many epochs fit into the time. Ours: with fewer, most images are seen at one size only.
_LEAST_EPOCHS = 3.0
# Sizes are lowered by multiples of this where the recipe has no multiple: the stride of most networks.
_STRIDE = 32


def limit_upscaling(recipe: Recipe, stored_px: float | None) -> tuple[Recipe, list[str]]:
    """The recipe with sizes that are not beyond its ``enlarge``, which is settled, and a sentence if they are others.

    Args:
        recipe: with sizes as it was named, or as they were asked for.
        stored_px: side of the pictures as they are stored; None if it is not known.
    """
    plan, most = recipe.progressive, recipe.enlarge
    recipe = recipe.model_copy(update={"enlarge": None})
    if most is None or stored_px is None:
        return recipe, []
    multiple = plan.px_multiple
    end_px = max(_LEAST_PX, math.ceil(most * stored_px / multiple) * multiple)
    if end_px >= plan.last.image_px:
        return recipe, []
    smaller = plan.with_image_px(end_px)
    least_px = smaller.stage(0).image_px
    sizes = f"{end_px} px" if least_px == end_px else f"{least_px} to {end_px} px"
    return recipe.model_copy(update={"progressive": smaller}), [
        f"Sizes: {sizes} instead of up to {plan.last.image_px}: the pictures are stored at {stored_px:g} px, and more "
        f"than {most:g} times that would take longer and show no more (--image-px {plan.last.image_px}, or --set "
        "enlarge=null)."
    ]


def lower_sizes_for_budget(
    recipe: Recipe, epochs_of: Callable[[Recipe], float], stored_px: float | None
) -> tuple[Recipe, list[str]]:
    """The recipe with image sizes at which three epochs fit into the time, and a sentence if they are lower.

    Sizes that are lowered are not above the size at which the images are stored. Where three epochs fit at no size,
    the recipe gets the smallest.

    Args:
        recipe: Recipe with its sizes.
        epochs_of: Number of epochs that fit into the time with the sizes of a recipe.
        stored_px: Side of the images as they are stored, in pixels. None if it is not known.
    """
    plan = recipe.progressive
    last_px, fitting = plan.last.image_px, epochs_of(recipe)
    if fitting >= _LEAST_EPOCHS or last_px <= _LEAST_PX:
        return recipe, []
    step = plan.px_multiple if plan.px_multiple > 1 else _STRIDE
    most_px = last_px - 1 if stored_px is None else min(last_px - 1, max(_LEAST_PX, int(stored_px)))
    sizes = [px for px in range(most_px // step * step, 0, -step) if px >= _LEAST_PX] or [_LEAST_PX]
    lower = recipe
    for px in sizes:
        lower = _ending_at(recipe, px)
        if epochs_of(lower) >= _LEAST_EPOCHS:
            break
    evaluated = "" if lower.eval_px is None else f", and evaluation at {lower.eval_px} px"
    trained = sorted({lower.progressive.stage(0).image_px, lower.progressive.last.image_px})
    return lower, [
        f"Sizes: {' to '.join(map(str, trained))} px instead of up to {last_px} px (--minutes leaves time for about "
        f"{fitting:.2g} epochs at up to {last_px} px, and {epochs_of(lower):.2g} at these){evaluated}. "
        f"To keep the sizes, pass --image-px {last_px}."
    ]


def _ending_at(recipe: Recipe, px: int) -> Recipe:
    """The recipe with its last training size, and the others in proportion."""
    share = px / recipe.progressive.last.image_px

    def smaller(size: int) -> int:
        return max(px, round(size * share / _STRIDE) * _STRIDE)

    changes: dict[str, object] = {"progressive": recipe.progressive.with_image_px(px), "enlarge": None}
    if recipe.eval_px is not None:
        changes["eval_px"] = smaller(recipe.eval_px)
    if isinstance(recipe.eval_px_tried, tuple):
        changes["eval_px_tried"] = tuple(sorted({smaller(size) for size in recipe.eval_px_tried}))
    return recipe.model_copy(update=changes)


UNUSED_PREFIX = "Without effect here: "  # what the sentence begins with


def unused_settings(recipe: Recipe, *, scratch: bool, processes: int) -> list[str]:
    """What was set and has no effect, in a sentence; none where all has.

    Args:
        recipe: as it was asked for.
        scratch: whether the network begins without weights.
        processes: that share the run.
    """
    found = []
    if scratch and recipe.optimizer.unfreeze is not None:
        found.append("optimizer.unfreeze (from scratch all layers learn from the beginning)")
    if scratch and recipe.classifier == "probe":
        found.append("classifier=probe (from scratch there is nothing that a probe could be of)")
    if recipe.sync_batch_norm and processes == 1:
        found.append("sync_batch_norm (there is one process)")
    if recipe.time_shares is not None and recipe.progressive.stages == 1:
        found.append("time_shares (there is one stage)")
    if recipe.effective_beta != BETA and "effective" not in (recipe.balance, recipe.class_weights):
        found.append("effective_beta (neither balance nor class_weights is effective)")
    found += _of_schedule(recipe.schedule)
    if recipe.compile is True and recipe.progressive.continuous:
        found.append(
            "compile for most of the run (the setting changes at every step; PyTorch compiles a few of them, in the "
            "middle of training)"
        )
    return [f"{UNUSED_PREFIX}{'; '.join(found)}."] if found else []


def _of_schedule(schedule: Schedule) -> list[str]:
    """Numbers of another kind of schedule."""
    usual = Schedule(kind=schedule.kind)
    of_kinds = {"staircase": ("factor", "every_epochs"), "cosine": ("final",)}
    return [
        f"schedule.{name} (a {kind}'s, and schedule.kind is {schedule.kind})"
        for kind, names in of_kinds.items()
        if kind != schedule.kind
        for name in names
        if getattr(schedule, name) != getattr(usual, name)
    ]


# Pictures that a GPU gets of a step, below which it waits for the next one more than it computes. Ours.
_FEW_OF_A_STEP = 32


@dataclass(frozen=True)
class ResolvedRecipe:
    """A recipe with nothing left to decide.

    Args:
        recipe: as it is written into the run folder.
        network: to begin with, on the device.
        at_a_time: how many groups run in one pass.
        notes: what was chosen and why, a line each.
    """

    recipe: Recipe
    network: Network
    at_a_time: MicrobatchPlan
    notes: tuple[str, ...]


def resolve_recipe(
    recipe: Recipe,
    *,
    images: int,
    class_names: tuple[str, ...],
    device: torch.device,
    memory_gib: float | None = None,
    world: World = SINGLE_PROCESS,
    in_channels: int = RGB,
    stored_px: float | None = None,
    minutes: float | None = None,
    training_s: float | None = None,
    read_s: float = 0.0,
    compile_within_s: float | None = None,
    repeated: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> ResolvedRecipe:
    """Decide what the recipe leaves open, for so many training pictures on that device.

    Args:
        recipe: of the run.
        images: to train on.
        class_names: of these.
        device: to train on.
        memory_gib: that each process may take of its memory; None is what there is.
        world: the processes that will share the groups.
        in_channels: of the pictures.
        stored_px: their side, as they are stored; None if it is not known.
        minutes: that the run is to take, where they will decide its epochs, and with them all that hangs on its steps.
        training_s: Seconds that the steps may take. Image sizes are lowered until three epochs fit. None keeps the
            sizes.
        read_s: Seconds to read one training image.
        compile_within_s: Seconds that compiling may take before the first step. None sets no bound.
        repeated: the recipe is one that runs of the same kind were begun with, so its groups are fixed.
        say: gets lines on what takes minutes meanwhile: compiling.

    Raises:
        InputError: the run could not take place: weights that can't be had or are of another network, more stages
            than steps, a group that does not fit, or fewer groups than processes.
    """
    if recipe.augment.autoaugment:
        refuse_channels(in_channels)
    recipe, smaller = limit_upscaling(recipe, stored_px)
    begun = build_initial_model(recipe, class_names=class_names, device=device, in_channels=in_channels)
    if training_s is not None:
        preflight = MemoryProbe(
            recipe,
            begun.network,
            num_classes=len(class_names),
            device=device,
            limit_gib=memory_gib,
            world=world,
        )
        validate_sizes(recipe.model_copy(update={"eval_px_tried": None}), preflight)  # before one is timed
        epochs_of = _epochs_within(training_s, recipe, begun.network, images, device, world, read_s)
        recipe, lower = lower_sizes_for_budget(recipe, epochs_of, stored_px)
        smaller = lower or smaller
    changes: dict[str, Any] = {"weights": begun.weights}
    changes["model"] = begun.model if isinstance(begun.model, str) else begun.model.to_json()
    notes = [*begun.notes, *(smaller or rounding_note(recipe)), *_left_out(recipe, in_channels)]
    notes += unused_settings(recipe, scratch=begun.weights == "none", processes=world.size)
    if begun.weights == "none":
        changes |= NOTHING_FROZEN | {"classifier": "fresh", "optimizer": _all_learn(recipe)}
    if begun.weights != "none" and isinstance(begun.network, EfficientNet):
        changes["pooling"] = begun.network.architecture.pooling  # a checkpoint has to be made for the same
    if begun.weights != "none":
        changes["classifier"], fresh = _classifier(recipe, begun)
        notes += fresh
    if begun.weights == "none" and recipe.name == "finetune":
        notes.append("The recipe finetune is made for pretrained weights; from scratch, quick learns faster.")
    if begun.weights != "none" and recipe.name == "quick":
        notes.append(
            "The recipe quick is made for training from scratch: its rate is ten times finetune's. With given weights "
            "finetune mostly reaches more (--recipe finetune)."
        )
    if recipe.steps is not None:
        changes |= {"epochs": recipe.steps * recipe.batch_images / images, "steps": None}
        notes.append(
            f"Epochs: {changes['epochs']:g}, for {count_of(recipe.steps, 'step')} of {recipe.batch_images}."
        )
    elif recipe.epochs == "auto":
        seen, least, most = recipe.epochs_auto
        changes["epochs"] = round(min(most, max(least, seen / images)), 2)
        bound = "most" if seen > most * images else "fewest" if seen < least * images else None
        notes.append(_epochs_of(changes["epochs"], images, seen, bound))
    evaluated, told = _evaluated(recipe)
    changes, notes = changes | evaluated, notes + told
    if recipe.time_shares is not None and recipe.progressive.shares is not None:
        notes.append(
            "Stage lengths: progressive.shares, as measured for time_shares before; "
            "--set progressive.shares=null measures anew."
        )
    if recipe.progressive.order == "random" and recipe.progressive.seed is None:
        changes["progressive"] = recipe.progressive.to_json() | {"seed": recipe.seed}
    recipe = validate_recipe(recipe.to_json() | changes, where=recipe.name)
    notes += _regularization(recipe, begun.network)
    steps = RunLength.of(recipe, images).steps
    if minutes is None:
        recipe.progressive.at(0, steps=steps)
    preflight = MemoryProbe(
        recipe,
        begun.network,
        num_classes=len(class_names),
        device=device,
        limit_gib=memory_gib,
        world=world,
    )
    validate_sizes(recipe, preflight)
    asked_for = recipe.group_images is not None
    group = _settled_group(recipe, preflight, world, asked_for=asked_for, begun=repeated)
    recipe = validate_recipe(recipe.to_json() | {"group_images": group}, where=recipe.name)
    validate_sharing(recipe, device, world)
    speed = choose_precision(
        recipe,
        begun.network,
        steps=steps,
        device=device,
        minutes=minutes,
        at_once=parallel_speed(world, device),
        compile_within_s=compile_within_s,
        say=say,
    )
    recipe = validate_recipe(
        recipe.to_json() | {"precision": speed.precision, "compile": speed.compile}, where=recipe.name
    )
    notes += [speed.note] if speed.note else []
    # In that precision, and compiled, and with what is free by now, a group that was chosen may have to be smaller.
    group, at_a_time, further = _fitted(
        recipe, preflight.settled(recipe), world, asked_for=asked_for, begun=repeated
    )
    recipe = validate_recipe(recipe.to_json() | {"group_images": group}, where=recipe.name)
    validate_sharing(recipe, device, world)
    return ResolvedRecipe(recipe, begun.network, at_a_time, (*notes, *further))


def _epochs_within(
    training_s: float,
    recipe: Recipe,
    network: Network,
    images: int,
    device: torch.device,
    world: World,
    read_s: float,
) -> Callable[[Recipe], float]:
    """Roughly how many epochs fit into so many seconds, as a function of the recipe with its sizes."""
    last_s = seconds_per_image(recipe, network, device) / recipe.progressive.last.image_px**2

    def epochs_of(one: Recipe) -> float:
        plan = one.progressive
        pixels = sum(share * plan.stage(stage).image_px ** 2 for stage, share in enumerate(plan.weights))
        return training_s * parallel_speed(world, device) / (images * (read_s + last_s * pixels))

    return epochs_of


def _evaluated(recipe: Recipe) -> tuple[dict[str, Any], list[str]]:
    """The sizes at evaluation that the recipe leaves open, and a sentence on them."""
    last, changes = recipe.progressive.last.image_px, dict[str, Any]()
    among = ""
    if recipe.eval_px_tried == "auto":
        changes["eval_px_tried"] = default_eval_sizes(last)
        among = f" among {', '.join(map(str, default_eval_sizes(last)))}"
    if recipe.eval_px is None:
        changes["eval_px"] = last
    if not changes:
        return {}, []
    px, which = recipe.eval_px or last, "" if recipe.eval_px else ", the last training size"
    chosen = "" if recipe.eval_px_tried is None else f", or what minival chooses in the end{among}"
    return changes, [f"Evaluation at {px} px{which}{chosen}."]


def _classifier(recipe: Recipe, begun: InitialModel) -> tuple[str, list[str]]:
    """How the classifier begins on given weights, and a sentence where that is not as the recipe has it."""
    several = len(classifiers_of(begun.network))
    if recipe.classifier == "probe" and several > 1 and not begun.network.class_names:
        return "fresh", [
            f"Classifier: fresh, for {model_title(begun.model)} has {several} of them, whose answers it puts together, "
            "and a linear probe would be the values of one."
        ]
    # Whoever fits a probe has said "probe" before.
    return "fresh" if recipe.classifier == "auto" else recipe.classifier, []


def _left_out(recipe: Recipe, in_channels: int) -> list[str]:
    """What of the augmentation is not done to pictures that are not red, green and blue, in a sentence."""
    stages = [recipe.progressive.stage(index) for index in range(recipe.progressive.stages)]
    drawn = any(stage.randaugment is not None for stage in stages)
    if in_channels == RGB or not (drawn or recipe.augment.colour):
        return []
    operations = f"RandAugment draws from {', '.join(names_for(in_channels))}" if drawn else ""
    jitter = "the jitter changes brightness alone" if recipe.augment.colour else ""
    what = " and ".join(filter(None, (operations, jitter)))
    return [
        f"Augmentation of {count_of(in_channels, 'channel')}: {what}; what else changes colours is made for red, green "
        "and blue."
    ]


def _regularization(recipe: Recipe, network: Network) -> list[str]:
    """Which modules of the network the run will set, what it has none for, or in which shares, in a sentence."""
    last = recipe.progressive.last
    # Of a wrapped one the names are those that its owner knows.
    module = network.module if isinstance(network, Foreign) else network
    # Its rates alone: the rest of the setting is done by the run itself, which has nothing to tell of that.
    if not (last.dropout or last.drop_path):
        return []
    reached = apply_setting(module, dropout=last.dropout or None, drop_path=last.drop_path or None)
    return [f"Regularization: {reached}."]


def _epochs_of(epochs: float, images: int, aim: int, bound: str | None) -> str:
    """What decided them: how many pictures are to be seen, or the bound of what a recipe takes by itself."""
    if bound is None:
        return f"Epochs: {epochs:g}, so that about {aim:,} pictures are seen."
    return (
        f"Epochs: {epochs:g}, the {bound} that the recipe takes by itself: {round(epochs * images):,} pictures are "
        f"seen, where it aims at {aim:,}."
    )


def _all_learn(recipe: Recipe) -> dict[str, Any]:
    """The optimizer of a run from scratch, where no layer has anything that would be worth waiting for."""
    return recipe.optimizer.model_dump() | {"unfreeze": None}


def fit_into_memory(
    recipe: Recipe,
    network: Network,
    *,
    num_classes: int,
    device: torch.device,
    memory_gib: float | None,
    world: World,
) -> tuple[MicrobatchPlan, list[str]]:
    """How many groups of a run that goes on there is memory for.

    Args:
        recipe: of the run.
        network: to train.
        num_classes: K.
        device: to train on.
        memory_gib: that each process may take of its memory; None is what there is.
        world: the processes that share the groups.

    Returns:
        How many groups run at a time, and a sentence for each choice.

    Raises:
        InputError: not even one group fits.
    """
    preflight = MemoryProbe(
        recipe, network, num_classes=num_classes, device=device, limit_gib=memory_gib, world=world
    )
    _, at_a_time, notes = _fitted(recipe, preflight, world, asked_for=True, begun=True)
    return at_a_time, notes


def _fitted(
    recipe: Recipe, preflight: MemoryProbe, world: World, *, asked_for: bool, begun: bool = False
) -> tuple[int, MicrobatchPlan, list[str]]:
    """Pictures of a group, how many groups run at a time, and a sentence for each choice."""
    group = _settled_group(recipe, preflight, world, asked_for=asked_for, begun=begun)
    at_a_time = preflight.groups_at_a_time(settings_by_size(recipe), group_images=group)
    notes = []
    if group < recipe.batch_images:
        notes.append(
            f"Groups of {group} of the {recipe.batch_images} pictures of a batch share batch-norm statistics."
        )
    notes += filter(None, [unmixed_note(recipe, group)])
    if (
        world.is_distributed
        and preflight.device.type != "cpu"
        and recipe.batch_images // world.size < _FEW_OF_A_STEP
    ):
        notes.append(
            f"Each of the {world.size} GPUs gets {recipe.batch_images // world.size} pictures a step, which leaves it "
            f"idle between them. --batch-images {_FEW_OF_A_STEP * world.size} or more uses them better; the learning "
            "rate follows."
        )
    if at_a_time.most > 1:
        notes.append(f"Of a step's {recipe.batch_images // group} groups run at a time: {at_a_time}.")
    return group, at_a_time, notes


def _settled_group(
    recipe: Recipe, preflight: MemoryProbe, world: World, *, asked_for: bool, begun: bool = False
) -> int:
    """``group_images``: as asked for, if it fits; else the largest divisor of the batch that does, and can be shared.

    Args:
        recipe: ``group_images`` may be open, or was chosen before: then it may become smaller.
        preflight: of the run.
        world: the processes that share the groups.
        asked_for: the user has set it.
        begun: the run is there already, or others of its kind, and its groups are fixed.
    """
    batch, given = recipe.batch_images, recipe.group_images
    least, why = smallest_group(recipe, preflight)
    if (given or batch) < least:
        larger = next((images for images in divisors(batch, most=batch) if images >= least), None)
        fix = f"--set group_images={larger}" if larger else "a larger batch, with --batch-images"
        raise InputError(
            f"A group of {count_of(given or batch, 'picture')} {why}: take at least {least} ({fix})."
        )
    possible = [images for images in divisors(batch, most=given or batch) if images >= least]
    among = possible if asked_for else evenly_shared(possible, batch_images=batch, processes=world.size)
    largest = max(settings_by_size(recipe), key=lambda setting: setting.image_px)
    group = preflight.largest_group(largest, among=among)
    px, room = largest.image_px, f"the {preflight.room / GIB:.2f} GiB of memory that are free for it"
    more = "Give more (--memory-gib)" if preflight.limited else "End what else takes memory"
    if group == 0:
        took = preflight.took[among[0]]
        tried = "memory ran out, with" if took is None else f"it took {took / GIB:.2f} GiB, more than"
        less = "" if begun else ", or use a smaller network (--model) or smaller pictures (--image-px)"
        raise MemoryShortError(
            f"Not even a group of {among[0]} of {px} px fits. When {model_title(recipe.model)} tried one, {tried} "
            f"{room}. {more}{less}."
        )
    if asked_for and given is not None and group < given:
        fix = (
            f"{more}: the run was begun with it" if begun else f"Set it to that (--set group_images={group})"
        )
        raise MemoryShortError(
            f"group_images is {given}, but of the divisors of the batch of {batch} the largest that fits at {px} px "
            f"into {room} is {group}. {fix}."
        )
    return group
