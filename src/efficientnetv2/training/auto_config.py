"""Before the first step: every "auto" of a recipe becomes a value, and a note says each choice in one line."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from efficientnetv2.data.sampler import DEFAULT_BETA
from efficientnetv2.models.adapt import classifier_layers
from efficientnetv2.models.efficientnet import EfficientNet, Network
from efficientnetv2.models.regularization import apply_regularization
from efficientnetv2.models.wrappers import WrappedModel
from efficientnetv2.preprocessing import RGB
from efficientnetv2.training.auto_batch import Hardware, MemoryProbe
from efficientnetv2.training.ddp import evenly_shared, parallel_speed, validate_sharing
from efficientnetv2.training.image_sizes import (
    default_eval_sizes,
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
from efficientnetv2.training.precision import choose_precision, seconds_per_image
from efficientnetv2.training.recipe import Recipe, Schedule
from efficientnetv2.training.recipe_io import validate_recipe
from efficientnetv2.training.train_state import RunLength
from efficientnetv2.transforms.autoaugment import refuse_channels
from efficientnetv2.transforms.randaugment import names_for
from efficientnetv2.utils.errors import InputError, MemoryShortError, pluralize
from efficientnetv2.utils.memory import GIB

# Smallest image size that sizes are lowered to: the feature maps still have two positions each way. Ours.
_MIN_PX = 64
# Sizes are lowered until this many epochs fit into the time. With fewer, most images are seen at one size only. Ours.
_MIN_EPOCHS = 3.0
# Sizes are lowered in steps of this where the recipe has no multiple: the stride of most models.
_STRIDE = 32
# A GPU with fewer images per step waits more than it computes. Ours.
_MIN_GPU_IMAGES = 32
UNUSED_PREFIX = "Without effect here: "


@dataclass(frozen=True)
class TrainingSet:
    """What a recipe depends on in the training images.

    Args:
        images: Number of images.
        class_names: Names of the classes.
        in_channels: Channels of an image.
        stored_px: Size of the stored images. None if it is not known.
    """

    images: int
    class_names: tuple[str, ...]
    in_channels: int = RGB
    stored_px: float | None = None


@dataclass(frozen=True)
class TimeConstraints:
    """What a time limit means before the first step. None is no limit.

    Args:
        minutes: Minutes of the whole run, which decide the number of steps later.
        training_s: Seconds for steps. Image sizes are lowered until three epochs fit.
        read_s: Seconds to read one training image.
        compile_within_s: Seconds that compiling may take.
    """

    minutes: float | None = None
    training_s: float | None = None
    read_s: float = 0.0
    compile_within_s: float | None = None


@dataclass(frozen=True)
class ResolvedRecipe:
    """A recipe without "auto", its initial model on the device, and a note for each choice."""

    recipe: Recipe
    network: Network
    microbatches: MicrobatchPlan
    notes: tuple[str, ...]


def resolve_recipe(
    recipe: Recipe,
    data: TrainingSet,
    hardware: Hardware,
    *,
    time: TimeConstraints | None = None,
    repeated: bool = False,
) -> ResolvedRecipe:
    """Decide what the recipe leaves open.

    Args:
        recipe: Recipe of the run.
        data: Its training images.
        hardware: Device, memory and processes.
        time: Time constraints. None for a run without a time limit.
        repeated: Whether earlier runs of the same kind used this recipe, so that its groups are fixed.

    Raises:
        InputError: The run is impossible: weights that are missing or of another model, more stages than steps, a group
            that does not fit into memory, or fewer groups than processes.
    """
    time = time or TimeConstraints()
    if recipe.augment.autoaugment:
        refuse_channels(data.in_channels)
    recipe, size_notes = limit_upscaling(recipe, data.stored_px)
    initial = build_initial_model(
        recipe, class_names=data.class_names, device=hardware.device, in_channels=data.in_channels
    )
    if time.training_s is not None:
        without_candidates = recipe.model_copy(update={"eval_px_tried": None})
        validate_sizes(
            without_candidates, MemoryProbe(recipe, initial.network, hardware)
        )  # before a size is timed
        epochs_of = _epochs_in_time(time, recipe, initial.network, data.images, hardware)
        recipe, lowered = lower_sizes_for_budget(recipe, epochs_of, data.stored_px)
        size_notes = lowered or size_notes
    notes = [
        *initial.notes,
        *(size_notes or rounding_note(recipe)),
        *_channel_notes(recipe, data.in_channels),
    ]
    notes += unused_settings(recipe, scratch=initial.weights == "none", processes=hardware.world.size)
    changes: dict[str, Any] = {}
    for fields, more_notes in (
        _model_fields(recipe, initial),
        _epoch_fields(recipe, data.images),
        _eval_fields(recipe),
    ):
        changes |= fields
        notes += more_notes
    if recipe.time_shares is not None and recipe.progressive.shares is not None:
        notes.append(
            "Stage lengths: progressive.shares, as measured for time_shares before; "
            "--set progressive.shares=null measures again."
        )
    if recipe.progressive.order == "random" and recipe.progressive.seed is None:
        changes["progressive"] = recipe.progressive.to_json() | {"seed": recipe.seed}
    recipe = validate_recipe(recipe.to_json() | changes, where=recipe.name)
    notes += _regularization_notes(recipe, initial.network)
    steps = RunLength.of(recipe, data.images).steps
    if time.minutes is None:
        recipe.progressive.at(0, total_steps=steps)  # raises if there are more stages than steps
    resolved = _resolve_computation(recipe, initial.network, steps, hardware, time, repeated)
    return replace(resolved, notes=(*notes, *resolved.notes))


def _resolve_computation(
    recipe: Recipe,
    network: Network,
    steps: int,
    hardware: Hardware,
    time: TimeConstraints,
    repeated: bool,
) -> ResolvedRecipe:
    """Group size, precision, compiling and microbatches, which depend on the hardware."""
    probe = MemoryProbe(recipe, network, hardware)
    validate_sizes(recipe, probe)
    is_set = recipe.group_images is not None
    group = _group_size(recipe, probe, is_set=is_set, begun=repeated)
    recipe = validate_recipe(recipe.to_json() | {"group_images": group}, where=recipe.name)
    validate_sharing(recipe, hardware.device, hardware.world)
    choice = choose_precision(
        recipe,
        network,
        steps=steps,
        device=hardware.device,
        minutes=time.minutes,
        at_once=parallel_speed(hardware.world, hardware.device),
        compile_within_s=time.compile_within_s,
    )
    recipe = validate_recipe(
        recipe.to_json() | {"precision": choice.precision, "compile": choice.compile}, where=recipe.name
    )
    # In that precision, compiled, and with the memory that is free by now, a chosen group may have to be smaller.
    group, microbatches, group_notes = _fit_groups(
        recipe, probe.for_recipe(recipe), is_set=is_set, begun=repeated
    )
    recipe = validate_recipe(recipe.to_json() | {"group_images": group}, where=recipe.name)
    validate_sharing(recipe, hardware.device, hardware.world)
    notes = (choice.note, *group_notes) if choice.note else tuple(group_notes)
    return ResolvedRecipe(recipe, network, microbatches, notes)


def fit_into_memory(recipe: Recipe, network: Network, hardware: Hardware) -> tuple[MicrobatchPlan, list[str]]:
    """The groups per pass of a resumed run, and a note for each choice.

    Raises:
        InputError: Not even one group fits into memory.
    """
    _, microbatches, notes = _fit_groups(
        recipe, MemoryProbe(recipe, network, hardware), is_set=True, begun=True
    )
    return microbatches, notes


def limit_upscaling(recipe: Recipe, stored_px: float | None) -> tuple[Recipe, list[str]]:
    """The recipe with ``enlarge`` applied to its sizes, and a note if they change."""
    plan, most = recipe.progressive, recipe.enlarge
    recipe = recipe.model_copy(update={"enlarge": None})
    if most is None or stored_px is None:
        return recipe, []
    multiple = plan.px_multiple
    end_px = max(_MIN_PX, math.ceil(most * stored_px / multiple) * multiple)
    if end_px >= plan.last.image_px:
        return recipe, []
    smaller = plan.with_image_px(end_px)
    first_px = smaller.stage(0).image_px
    sizes = f"{end_px} px" if first_px == end_px else f"{first_px} to {end_px} px"
    return recipe.model_copy(update={"progressive": smaller}), [
        f"Sizes: {sizes} instead of up to {plan.last.image_px}: the images are stored at {stored_px:g} px, and more "
        f"than {most:g} times that would take longer and show no more (--image-px {plan.last.image_px}, or --set "
        "enlarge=null)."
    ]


def lower_sizes_for_budget(
    recipe: Recipe, epochs_of: Callable[[Recipe], float], stored_px: float | None
) -> tuple[Recipe, list[str]]:
    """The recipe with image sizes at which three epochs fit into the time, and a note if they are lower.

    Lowered sizes are not above the stored size. Where three epochs fit at no size, the recipe gets the smallest.

    Args:
        recipe: Recipe with its sizes.
        epochs_of: Number of epochs that fit into the time with the sizes of a recipe.
        stored_px: Size of the stored images, in pixels. None if it is not known.
    """
    plan = recipe.progressive
    last_px, fitting = plan.last.image_px, epochs_of(recipe)
    if fitting >= _MIN_EPOCHS or last_px <= _MIN_PX:
        return recipe, []
    step = plan.px_multiple if plan.px_multiple > 1 else _STRIDE
    most_px = last_px - 1 if stored_px is None else min(last_px - 1, max(_MIN_PX, int(stored_px)))
    sizes = [px for px in range(most_px // step * step, 0, -step) if px >= _MIN_PX] or [_MIN_PX]
    lower = recipe
    for px in sizes:
        lower = _with_last_size(recipe, px)
        if epochs_of(lower) >= _MIN_EPOCHS:
            break
    evaluated = "" if lower.eval_px is None else f", and evaluation at {lower.eval_px} px"
    trained = sorted({lower.progressive.stage(0).image_px, lower.progressive.last.image_px})
    return lower, [
        f"Sizes: {' to '.join(map(str, trained))} px instead of up to {last_px} px (--minutes leaves time for about "
        f"{fitting:.2g} epochs at up to {last_px} px, and {epochs_of(lower):.2g} at these){evaluated}. "
        f"To keep the sizes, pass --image-px {last_px}."
    ]


def _with_last_size(recipe: Recipe, px: int) -> Recipe:
    """The recipe with another last training size, and the other sizes in proportion."""
    factor = px / recipe.progressive.last.image_px

    def scaled(size: int) -> int:
        return max(px, round(size * factor / _STRIDE) * _STRIDE)

    changes: dict[str, object] = {"progressive": recipe.progressive.with_image_px(px), "enlarge": None}
    if recipe.eval_px is not None:
        changes["eval_px"] = scaled(recipe.eval_px)
    if isinstance(recipe.eval_px_tried, tuple):
        changes["eval_px_tried"] = tuple(sorted({scaled(size) for size in recipe.eval_px_tried}))
    return recipe.model_copy(update=changes)


def _epochs_in_time(
    time: TimeConstraints, recipe: Recipe, network: Network, images: int, hardware: Hardware
) -> Callable[[Recipe], float]:
    """About how many epochs fit into the time, as a function of the recipe with its sizes."""
    pixel_s = seconds_per_image(recipe, network, hardware.device) / recipe.progressive.last.image_px**2
    parallel = parallel_speed(hardware.world, hardware.device)
    training_s = time.training_s or 0.0

    def epochs_of(sized: Recipe) -> float:
        plan = sized.progressive
        pixels = sum(share * plan.stage(stage).image_px ** 2 for stage, share in enumerate(plan.weights))
        return training_s * parallel / (images * (time.read_s + pixel_s * pixels))

    return epochs_of


def unused_settings(recipe: Recipe, *, scratch: bool, processes: int) -> list[str]:
    """A note on fields of the requested recipe that have no effect.

    Args:
        recipe: Recipe as requested.
        scratch: Whether the model starts without weights.
        processes: Number of processes of the run.
    """
    unused = []
    if scratch and recipe.optimizer.unfreeze is not None:
        unused.append("optimizer.unfreeze (from scratch all layers train from the start)")
    if scratch and recipe.classifier == "probe":
        unused.append("classifier=probe (from scratch there is nothing to fit a probe on)")
    if recipe.sync_batch_norm and processes == 1:
        unused.append("sync_batch_norm (there is one process)")
    if recipe.time_shares is not None and recipe.progressive.stages == 1:
        unused.append("time_shares (there is one stage)")
    if recipe.effective_beta != DEFAULT_BETA and "effective" not in (recipe.balance, recipe.class_weights):
        unused.append("effective_beta (neither balance nor class_weights is effective)")
    default = Schedule(kind=recipe.schedule.kind)
    for kind, names in {"staircase": ("factor", "every_epochs"), "cosine": ("final",)}.items():
        unused += [
            f"schedule.{name} (for {kind}, and schedule.kind is {recipe.schedule.kind})"
            for name in names
            if kind != recipe.schedule.kind and getattr(recipe.schedule, name) != getattr(default, name)
        ]
    if recipe.compile is True and recipe.progressive.continuous:
        unused.append(
            "compile for most of the run (the settings change at every step; PyTorch compiles a few of them, in the "
            "middle of training)"
        )
    return [f"{UNUSED_PREFIX}{'; '.join(unused)}."] if unused else []


def _model_fields(recipe: Recipe, initial: InitialModel) -> tuple[dict[str, Any], list[str]]:
    """Fields that the initial model decides, and notes."""
    model = initial.model if isinstance(initial.model, str) else initial.model.to_json()
    fields: dict[str, Any] = {"weights": initial.weights, "model": model}
    if initial.weights == "none":
        all_layers_train = recipe.optimizer.model_dump() | {"unfreeze": None}
        fields |= NOTHING_FROZEN | {"classifier": "fresh", "optimizer": all_layers_train}
        if recipe.name == "finetune":
            return fields, [
                "The recipe finetune is made for pretrained weights; from scratch, quick learns faster."
            ]
        return fields, []
    if isinstance(initial.network, EfficientNet):
        fields["pooling"] = initial.network.architecture.pooling  # a checkpoint needs the same
    notes = []
    # Whoever fits a probe has set "probe" before.
    fields["classifier"] = "fresh" if recipe.classifier == "auto" else recipe.classifier
    classifiers = len(classifier_layers(initial.network))
    if recipe.classifier == "probe" and classifiers > 1 and not initial.network.class_names:
        fields["classifier"] = "fresh"
        notes.append(
            f"Classifier: fresh, as {model_title(initial.model)} has {classifiers} classifiers and combines their "
            "predictions, and a linear probe would be one."
        )
    if recipe.name == "quick":
        notes.append(
            "The recipe quick is made for training from scratch: its rate is ten times finetune's. With given weights "
            "finetune mostly reaches more (--recipe finetune)."
        )
    return fields, notes


def _epoch_fields(recipe: Recipe, images: int) -> tuple[dict[str, Any], list[str]]:
    """The epochs, if they are open, and a note on what decides them."""
    if recipe.steps is not None:
        epochs = recipe.steps * recipe.batch_images / images
        note = f"Epochs: {epochs:g}, for {pluralize(recipe.steps, 'step')} of {recipe.batch_images}."
        return {"epochs": epochs, "steps": None}, [note]
    if recipe.epochs != "auto":
        return {}, []
    seen, least, most = recipe.epochs_auto
    epochs = round(min(most, max(least, seen / images)), 2)
    bound = "most" if seen > most * images else "fewest" if seen < least * images else None
    if bound is None:
        return {"epochs": epochs}, [f"Epochs: {epochs:g}, so that about {seen:,} images are seen."]
    return {"epochs": epochs}, [
        f"Epochs: {epochs:g}, the {bound} that the recipe chooses by itself: {round(epochs * images):,} images are "
        f"seen, where it aims at {seen:,}."
    ]


def _eval_fields(recipe: Recipe) -> tuple[dict[str, Any], list[str]]:
    """The image sizes at evaluation, if they are open, and a note."""
    last_px = recipe.progressive.last.image_px
    fields: dict[str, Any] = {}
    among = ""
    if recipe.eval_px_tried == "auto":
        fields["eval_px_tried"] = default_eval_sizes(last_px)
        among = f" among {', '.join(map(str, default_eval_sizes(last_px)))}"
    if recipe.eval_px is None:
        fields["eval_px"] = last_px
    if not fields:
        return {}, []
    px, which = recipe.eval_px or last_px, "" if recipe.eval_px else ", the last training size"
    selected = "" if recipe.eval_px_tried is None else f", or what minival selects in the end{among}"
    return fields, [f"Evaluation at {px} px{which}{selected}."]


def _channel_notes(recipe: Recipe, in_channels: int) -> list[str]:
    """A note on augmentation that is reduced for images that are not RGB."""
    stages = [recipe.progressive.stage(index) for index in range(recipe.progressive.stages)]
    has_randaugment = any(stage.randaugment is not None for stage in stages)
    if in_channels == RGB or not (has_randaugment or recipe.augment.colour):
        return []
    operations = f"RandAugment draws from {', '.join(names_for(in_channels))}" if has_randaugment else ""
    jitter = "the jitter changes brightness alone" if recipe.augment.colour else ""
    what = " and ".join(filter(None, (operations, jitter)))
    return [
        f"Augmentation of {pluralize(in_channels, 'channel')}: {what}; other color operations need red, green and blue."
    ]


def _regularization_notes(recipe: Recipe, network: Network) -> list[str]:
    """A note on the modules whose dropout and stochastic depth the run sets."""
    last = recipe.progressive.last
    if not (last.dropout or last.drop_path):
        return []
    module = network.module if isinstance(network, WrappedModel) else network  # names as its library has them
    report = apply_regularization(module, dropout=last.dropout or None, drop_path=last.drop_path or None)
    return [f"Regularization: {report}."]


def _fit_groups(
    recipe: Recipe, probe: MemoryProbe, *, is_set: bool, begun: bool = False
) -> tuple[int, MicrobatchPlan, list[str]]:
    """Images per group, groups per pass, and a note for each choice."""
    group = _group_size(recipe, probe, is_set=is_set, begun=begun)
    microbatches = probe.groups_at_a_time(settings_by_size(recipe), group_images=group)
    world, batch = probe.world, recipe.batch_images
    notes = []
    if group < batch:
        notes.append(f"Groups of {group} of the {batch} images of a batch share batch-norm statistics.")
    notes += filter(None, [unmixed_note(recipe, group)])
    if world.is_distributed and probe.device.type != "cpu" and batch // world.size < _MIN_GPU_IMAGES:
        notes.append(
            f"Each of the {world.size} GPUs gets {batch // world.size} images a step, which leaves it idle between "
            f"them. --batch-images {_MIN_GPU_IMAGES * world.size} or more uses them better; the learning rate follows."
        )
    if microbatches.most > 1:
        notes.append(f"Of a step's {batch // group} groups run at a time: {microbatches}.")
    return group, microbatches, notes


def _group_size(recipe: Recipe, probe: MemoryProbe, *, is_set: bool, begun: bool = False) -> int:
    """``group_images``: as set, if it fits; else the largest divisor of the batch that fits and can be shared.

    Args:
        recipe: Recipe, whose ``group_images`` may be open or a choice that may become smaller.
        probe: Memory of the run.
        is_set: Whether the user has set it.
        begun: Whether the run, or others of its kind, exist already, so that its groups are fixed.
    """
    batch, given = recipe.batch_images, recipe.group_images
    least, reason = smallest_group(recipe, probe)
    if (given or batch) < least:
        larger = next((images for images in divisors(batch, most=batch) if images >= least), None)
        fix = f"--set group_images={larger}" if larger else "a larger batch, with --batch-images"
        raise InputError(
            f"A group of {pluralize(given or batch, 'image')} {reason}: take at least {least} ({fix})."
        )
    possible = [images for images in divisors(batch, most=given or batch) if images >= least]
    candidates = (
        possible if is_set else evenly_shared(possible, batch_images=batch, processes=probe.world.size)
    )
    largest = max(settings_by_size(recipe), key=lambda setting: setting.image_px)
    group = probe.largest_group(largest, among=candidates)
    if group == 0 or (is_set and given is not None and group < given):
        raise _group_too_large(recipe, probe, candidates[0], group, begun=begun)
    return group


def _group_too_large(
    recipe: Recipe, probe: MemoryProbe, smallest: int, fitting: int, *, begun: bool
) -> MemoryShortError:
    px = max(setting.image_px for setting in settings_by_size(recipe))
    room = f"the {probe.room / GIB:.2f} GiB of memory that are free for it"
    more = "Give more (--memory-gib)" if probe.limited else "End what else takes memory"
    if fitting == 0:
        took = probe.took[smallest]
        result = "memory ran out, with" if took is None else f"it took {took / GIB:.2f} GiB, more than"
        less = "" if begun else ", or use a smaller model (--model) or smaller images (--image-px)"
        return MemoryShortError(
            f"Not even a group of {smallest} of {px} px fits. When {model_title(recipe.model)} tried one, {result} "
            f"{room}. {more}{less}."
        )
    fix = f"{more}: the run was begun with it" if begun else f"Set it to that (--set group_images={fitting})"
    return MemoryShortError(
        f"group_images is {recipe.group_images}, but of the divisors of the batch of {recipe.batch_images} the largest "
        f"that fits at {px} px into {room} is {fitting}. {fix}."
    )
