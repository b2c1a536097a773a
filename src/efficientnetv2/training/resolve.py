"""Resolve a run before its first step: every "auto" of its recipe becomes a value, once, in one place.

Fields, in this order, and the functions that decide them::

    weights (of several)           initial_weights_selection.select_weights, before the run has a directory
    head_init                      head_init.resolve_head_init, _model_fields
    minival                        resolve_unmeasured
    progressive.image_size         resolve_image_sizes.limit_upscaling, resolve_image_sizes.lower_sizes_for_budget
    model, weights, global_pool    initial_weights.build_initial_model, _model_fields
    epochs (without ``minutes``)   _epoch_fields
    eval_image_size, candidates    resolve_image_sizes.resolve_eval_sizes
    progressive.seed               resolve_recipe
    precision, compile             autotune.choose_precision
    ghost_batch_size, groups/pass  memory_probe.group_size, memory_probe.fit_groups
    epochs, sizes, stage lengths   time_budget.resolve_length, by measured steps
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

from efficientnetv2.data.prepared_data import PreparedData
from efficientnetv2.models.adapt import classifier_layers
from efficientnetv2.models.efficientnet import EfficientNet, Network
from efficientnetv2.preprocessing import RGB
from efficientnetv2.training.autotune import choose_precision
from efficientnetv2.training.callbacks import unused_patience
from efficientnetv2.training.ddp import parallel_speed, validate_sharing
from efficientnetv2.training.head_init import probe_notes, resolve_head_init
from efficientnetv2.training.image_cache import build_cache
from efficientnetv2.training.initial_weights import (
    NOTHING_FROZEN,
    InitialModel,
    build_initial_model,
    is_bundled,
    model_title,
)
from efficientnetv2.training.memory_probe import (
    MemoryProbe,
    fit_groups,
    group_size,
    smallest_group,
    takes_sizes,
    validate_sizes,
)
from efficientnetv2.training.microbatch import MicrobatchPlan
from efficientnetv2.training.overrides import sets_sizes
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.recipe_io import validate_recipe
from efficientnetv2.training.resolve_image_sizes import (
    ROUGH_MIN_EPOCHS,
    limit_upscaling,
    lower_sizes_for_budget,
    resolve_eval_sizes,
    rounding_note,
)
from efficientnetv2.training.run_request import ResolvedRun, RunRequest, repeat_recipe
from efficientnetv2.training.run_setup import RunLength, eval_preprocessing
from efficientnetv2.training.seen_images import pretrain_overlap
from efficientnetv2.training.startup_notes import (
    better_weights_note,
    channel_notes,
    log_notes,
    model_lines,
    multilabel_notes,
    preprocessing_note,
    regularization_notes,
    unused_settings,
)
from efficientnetv2.training.time_budget import TimeConstraints, epochs_in_time, resolve_length, seconds_per_read
from efficientnetv2.training.time_limit import StartupBudget
from efficientnetv2.transforms.auto_augment import require_rgb
from efficientnetv2.utils.device import Hardware
from efficientnetv2.utils.errors import InputError, pluralize
from efficientnetv2.utils.logs import as_details, progress

_logger = logging.getLogger(__name__)

# Rough fraction of `minutes` for the steps, besides what comes before, validation and the report. Ours.
_STEPS_FRACTION = 0.6


@dataclass(frozen=True)
class TrainingSet:
    """What a recipe depends on in the training images."""

    images: int  # Number of images
    class_names: tuple[str, ...]
    in_channels: int = RGB
    stored_size: float | None = None  # Size of the stored images. None if it is not known.


@dataclass(frozen=True)
class ResolvedRecipe:
    """A recipe without "auto", its initial model on the device, and a note for each choice."""

    recipe: Recipe
    network: Network
    microbatches: MicrobatchPlan
    notes: tuple[str, ...]
    weights_classes: tuple[str, ...] = ()  # of ``InitialModel``


def resolve(
    request: RunRequest, data: PreparedData, hardware: Hardware, *, budget: StartupBudget | None = None
) -> ResolvedRun:
    """Decide everything that a run leaves open, and log the choices.

    With a ``budget`` before the first step, the run ends in its ``minutes``, and image sizes are lowered until three
    epochs fit.
    """
    run = resolve_unmeasured(request, data, hardware, budget, None if budget is None else budget.left_s)
    request, minutes = run.request, run.request.overrides.minutes
    cache = build_cache(request.overrides.cache, run.recipe, run.data, hardware)
    if cache is not None:
        run = replace(run, cache=cache, notes=(*run.notes, cache.note))
    weights, _ = model_lines(run.recipe, run.notes, hardware.device)
    _logger.info(weights)
    if minutes is not None or run.recipe.measures_stages:
        run = resolve_length(run, hardware, None if minutes is None else budget)
    _logger.info(model_lines(run.recipe, run.notes, hardware.device)[1])  # with the sizes that fit into the time
    run = add_final_notes(run)
    log_notes(run.notes, run.warnings, shown=weights)
    return run


def resolve_unmeasured(
    request: RunRequest,
    data: PreparedData,
    hardware: Hardware,
    budget: StartupBudget | None,
    compile_within_s: float | None,
) -> ResolvedRun:
    """The run with all that does not depend on how long its steps take."""
    request = repeat_recipe(request)
    minutes = request.overrides.minutes
    # The classifier, and whether minival selects.
    recipe = resolve_head_init(request.recipe, data)
    if recipe.minival == "auto" and not data.has_selection_set:
        recipe = _changed(recipe, {"minival": None})
    # Image sizes, model, epochs, batch and precision.
    constraints = TimeConstraints(minutes, compile_within_s=compile_within_s)
    with progress("choosing precision and memory", None), as_details():
        if budget is not None and minutes is not None and not sets_sizes(request.overrides):
            read_s = seconds_per_read(data.train, recipe, hardware.workers)
            constraints = replace(constraints, training_s=60 * minutes * _STEPS_FRACTION, read_s=read_s)
        train = TrainingSet(
            len(data.train),
            data.train.class_names,
            in_channels=data.dataset.channels,
            stored_size=None if recipe.max_upscale is None else data.stored_size,
        )
        resolved = resolve_recipe(recipe, train, hardware, time=constraints, repeated=request.repeated)
    recipe, network = resolved.recipe, resolved.network
    # Images that trained the weights select nothing.
    known, refuse = resolved.weights_classes, recipe.minival != "auto"
    overlap = pretrain_overlap(recipe.weights, network, data, classes=known, refuse=refuse)
    if overlap.minival_trained:
        data = data.without_selection()
        for name in ("patience", "eval_image_size_candidates"):
            if (value := getattr(recipe, name)) is not None:
                raise InputError(
                    f"{overlap.notes[-1]} But {name} is {value}, which needs them. Use `{name}=null`, or give other "
                    "images as minival by a column split."
                )
    return ResolvedRun(
        request,
        recipe,
        network,
        resolved.microbatches,
        eval_preprocessing(recipe, network, data.dataset.bands),
        data,
        notes=(
            *request.notes,
            *resolved.notes,
            *better_weights_note(recipe, request.candidates),
            *multilabel_notes(recipe, data.dataset.separator),
            *probe_notes(recipe, data),
            *overlap.notes,
        ),
        warnings=frozenset(overlap.notes),
        overlap=overlap,
    )


def resolve_recipe(
    recipe: Recipe,
    data: TrainingSet,
    hardware: Hardware,
    *,
    time: TimeConstraints | None = None,
    repeated: bool = False,
) -> ResolvedRecipe:
    """Decide what the recipe leaves open; ``repeated`` recipes of earlier runs of the same kind keep their groups."""
    time = time or TimeConstraints()
    if recipe.augment.autoaugment:
        require_rgb(data.in_channels)
    # Image sizes: not far above those of the stored images.
    recipe, size_notes = limit_upscaling(recipe, data.stored_size)
    # Model and weights.
    initial = build_initial_model(
        recipe, class_names=data.class_names, device=hardware.device, in_channels=data.in_channels
    )
    network, scratch = initial.network, initial.weights == "none"
    # Image sizes: so small that an epoch fits into the time; after measuring, three.
    if time.training_s is not None:
        probe, unresolved = MemoryProbe(recipe, network, hardware), {"eval_image_size_candidates": None}
        validate_sizes(recipe.model_copy(update=unresolved), probe)  # before a size is timed
        epochs_of = epochs_in_time(time, recipe, network, data.images, hardware)
        recipe, lowered = lower_sizes_for_budget(
            recipe, epochs_of, lambda sized: takes_sizes(probe, sized.model_copy(update=unresolved)), ROUGH_MIN_EPOCHS
        )
        size_notes = lowered or size_notes
    notes = [
        *initial.notes,
        *(size_notes or rounding_note(recipe)),
        *channel_notes(recipe, data.in_channels),
        *unused_settings(recipe, scratch=scratch, processes=hardware.world.size),
    ]
    # Fields that follow from the model, the number of images, the last size and the seed.
    model_fields, model_notes = _model_fields(recipe, initial)
    epoch_fields, epoch_notes = _epoch_fields(recipe, data.images)
    eval_fields, eval_notes = resolve_eval_sizes(recipe)
    changes = model_fields | epoch_fields | eval_fields
    notes += [*model_notes, *(epoch_notes if time.minutes is None else ()), *eval_notes]
    if recipe.stage_time is not None and recipe.progressive.stage_fractions is not None:
        notes.append("Stage lengths: measured before (`progressive.stage_fractions=null` measures again).")
    if recipe.progressive.order == "random" and recipe.progressive.seed is None:
        changes["progressive"] = recipe.progressive.to_json() | {"seed": recipe.seed}
    recipe = _changed(recipe, changes)
    notes += regularization_notes(recipe, network)
    steps = RunLength.of(recipe, data.images).steps
    if time.minutes is None:
        recipe.progressive.at(0, total_steps=steps)  # raises if there are more stages than steps
    # Group size, precision, compiling, and groups per pass.
    probe, is_set = MemoryProbe(recipe, network, hardware), recipe.ghost_batch_size is not None
    validate_sizes(recipe, probe)
    group = group_size(recipe, probe, is_set=is_set, is_fixed=repeated)
    recipe = _changed(recipe, {"ghost_batch_size": group})
    least, _ = smallest_group(recipe, probe)
    validate_sharing(recipe, hardware.device, hardware.world, least=least, is_set=is_set)
    choice = choose_precision(
        recipe,
        network,
        steps=steps,
        device=hardware.device,
        minutes=time.minutes,
        at_once=parallel_speed(hardware.world, hardware.device),
        compile_within_s=time.compile_within_s,
    )
    recipe = _changed(recipe, {"precision": choice.precision, "compile": choice.compile})
    # In that precision, compiled, and with the memory that is free by now, a chosen group may have to be smaller.
    group, microbatches, group_notes = fit_groups(recipe, probe.for_recipe(recipe), is_set=is_set, is_fixed=repeated)
    recipe = _changed(recipe, {"ghost_batch_size": group})
    notes += [*([choice.note] if choice.note else []), *group_notes]
    return ResolvedRecipe(recipe, network, microbatches, tuple(notes), initial.weights_classes)


def _changed(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    return validate_recipe(recipe.to_json() | changes, where=recipe.name)


def _model_fields(recipe: Recipe, initial: InitialModel) -> tuple[dict[str, Any], list[str]]:
    """Fields that the initial model decides, and notes."""
    model = initial.model if isinstance(initial.model, str) else initial.model.to_json()
    fields: dict[str, Any] = {"weights": initial.weights, "model": model}
    if initial.weights == "none":
        all_layers_train = recipe.optimizer.model_dump() | {"gradual_unfreeze": None}
        fields |= NOTHING_FROZEN | {"head_init": "random", "optimizer": all_layers_train}
        note = "The recipe finetune is made for pretrained weights; from scratch, quick learns faster."
        return fields, [note] if recipe.name == "finetune" else []
    if isinstance(initial.network, EfficientNet):
        fields["global_pool"] = initial.network.architecture.global_pool  # a checkpoint needs the same
    notes = []
    # Whoever fits a probe has set "linear_probe" before.
    fields["head_init"] = "random" if recipe.head_init == "auto" else recipe.head_init
    classifiers = len(classifier_layers(initial.network))
    if recipe.head_init == "linear_probe" and classifiers > 1 and not initial.network.class_names:
        fields["head_init"] = "random"
        notes.append(
            f"Classifier: random, because {model_title(initial.model)} has {classifiers}, and a linear probe has one."
        )
    if recipe.name == "quick" and not is_bundled(initial.weights):
        notes.append(
            "The recipe quick is made for training from scratch: its learning rate is ten times that of "
            "finetune. With pretrained weights, `recipe=finetune` is usually more accurate."
        )
    return fields, notes


def _epoch_fields(recipe: Recipe, images: int) -> tuple[dict[str, Any], list[str]]:
    """The epochs, if they are open, and a note on what decides them."""
    if recipe.steps is not None:
        epochs = recipe.steps * recipe.batch_size / images
        note = f"Epochs: {epochs:g}, for {pluralize(recipe.steps, 'step')} of {recipe.batch_size}."
        return {"epochs": epochs, "steps": None}, [note]
    if recipe.epochs != "auto":
        return {}, []
    seen, least, most = recipe.auto_epochs
    epochs = round(min(most, max(least, seen / images)), 2)
    return {"epochs": epochs}, [
        f"Epochs: {epochs:g}, the {least:g} to {most:g} that come closest to {seen:,} images: "
        f"{round(epochs * images):,}."
    ]


def add_final_notes(run: ResolvedRun) -> ResolvedRun:
    """The run with the notes on its length, its classifier and its preprocessing, which are known last."""
    recipe = run.recipe
    has_start = recipe.weights != "none" and bool(run.network.class_names or recipe.head_init == "linear_probe")
    shown = unused_patience(recipe, RunLength.of(recipe, len(run.data.train)), has_start=has_start)
    notes = []
    if recipe.weights != "none":
        if recipe.head_init == "linear_probe" and not run.network.class_names:
            notes.append("Classifier: starts as the linear probe.")
        notes.append(preprocessing_note(run))
    own, weights = run.preprocessing.bands, run.network.preprocessing.bands
    if recipe.weights != "none" and own is not None and weights is not None and own.numbers != weights.numbers:
        before, now = (",".join(map(str, bands.numbers)) for bands in (weights, own))
        shown.append(
            f"Bands: the weights were trained on bands {before}, and these images are read as bands {now}. If the "
            f"files have the same order, use `bands={before}`."
        )
    return replace(run, notes=(*run.notes, *notes, *shown), warnings=run.warnings | set(shown))
