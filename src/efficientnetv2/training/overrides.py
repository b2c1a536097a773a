"""Options and settings of a run become a recipe."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from efficientnetv2.architectures.registry import is_architecture_file, read_architecture
from efficientnetv2.architectures.spec import Architecture
from efficientnetv2.training.initial_weights import (
    WeightsCandidate,
    default_model,
    is_bundled,
    model_title,
    stride_of,
    validate_model_name,
    weights_candidates,
)
from efficientnetv2.training.recipe import MAX_COUNT, Recipe
from efficientnetv2.training.recipe_io import apply_overrides, diff_recipes, read_recipe, validate_recipe
from efficientnetv2.training.recipes import get_recipe, load_recipe, recipe_file
from efficientnetv2.training.resolve_image_sizes import default_eval_sizes, validate_stride
from efficientnetv2.training.run_dir import RunDir
from efficientnetv2.utils.errors import InputError, did_you_mean, error_summary
from efficientnetv2.utils.logs import silenced
from efficientnetv2.utils.shell import shell_join

_logger = logging.getLogger(__name__)

_CACHES = ("ram", "disk")
# Resolution of a cache that the recipe does not set: half of the crops keep all pixels, smaller ones are enlarged by up
# to 1.4 (where crops keep 35 % of the area), for half the bytes of keeping all. Ours.
_CACHE_RESOLUTION = 0.5
# Options that change a field of a recipe: all by their name, but image_size.
_OPTIONS = ("model", "weights", "epochs", "image_size", "batch_size", "crop_mode", "seed")
# Fields of ``CrossValConfig`` that have another name as an argument.
_ARGUMENTS = {"tries": "candidates", "try_settings": "candidate_settings"}


@dataclass(frozen=True)
class TrainOverrides:
    """Options about the recipe; None where an option is not given.

    A file with an architecture or a recipe is read at once, so that it may change later.
    """

    model: str | Architecture | None = None
    recipe: str | Recipe | None = None
    weights: str | None = None
    epochs: float | None = None
    minutes: float | None = None
    image_size: int | None = None
    batch_size: int | None = None
    crop_mode: str | None = None
    seed: int | None = None
    cache: str | None = None
    settings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        kept: list[str] = []
        for setting in self.settings:
            name = setting_name(setting)
            value = apply_overrides({name: None}, [setting])[name] if name in ("model", "weights") else None
            if isinstance(value, str):  # decides the recipe and the weights, as the option does
                object.__setattr__(self, name, value)
                kept = [each for each in kept if setting_name(each) != name]  # the last one counts
            else:
                kept.append(setting)
        object.__setattr__(self, "settings", tuple(kept))
        if isinstance(self.model, str) and is_architecture_file(self.model):
            object.__setattr__(self, "model", read_architecture(Path(self.model)))
        if isinstance(self.recipe, str) and recipe_file(self.recipe) is not None:
            object.__setattr__(self, "recipe", load_recipe(self.recipe))
        lengths = [f"`{name}`" for name in ("epochs", "minutes") if getattr(self, name) is not None]
        # Steps besides epochs are refused by the recipe itself.
        lengths += [
            f"`{setting}`"
            for setting in self.settings
            if sets_length([setting]) and (self.minutes is not None or setting_name(setting) == "epochs")
        ]
        if len(lengths) > 1 and (self.epochs is not None or self.minutes is not None):
            raise InputError(f"{' and '.join(lengths)} both set the training length. Give one of them.")
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise InputError(f"`minutes={self.minutes:g}`: must be a number above 0.")
        if self.epochs is not None and not 0 < self.epochs <= MAX_COUNT:
            raise InputError(f"`epochs={self.epochs:g}`: must be a number above 0 and at most {MAX_COUNT:,}.")
        if self.cache not in (None, *_CACHES):
            raise InputError(f"`cache={self.cache}`: must be ram or disk{did_you_mean(self.cache, _CACHES)}")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; files that the options name are stored as contents, because they may change."""
        return {
            name: value.to_json() if isinstance(value, Architecture | Recipe) else value
            for name, value in vars(self).items()
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> TrainOverrides:
        """Inverse of ``to_json``. Raises ValueError, KeyError, TypeError or AttributeError for other values."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()
        }
        if isinstance(values["model"], dict):
            values["model"] = Architecture.from_json(values["model"])
        if isinstance(values["recipe"], dict):
            values["recipe"] = validate_recipe(values["recipe"], where="its recipe")
        return cls(**values)


def setting_name(setting: str) -> str:
    """The field that a setting changes: ``optimizer.lr`` of ``optimizer.lr=0.1``."""
    return setting.partition("=")[0].strip()


def with_lr(settings: Sequence[str], lr: float | None) -> tuple[str, ...]:
    """The settings with a learning rate, if any. Raises InputError if they have one too."""
    if lr is None:
        return tuple(settings)
    for setting in settings:
        if setting_name(setting) == "optimizer.lr":
            raise InputError(f"`lr` and `{setting}` are the same. Pass one of them.")
    return (*settings, f"optimizer.lr={lr!r}")


def sets_length(settings: Sequence[str]) -> bool:
    """Whether settings set the length of the run, other than to open."""
    return any(
        setting_name(setting) in ("epochs", "steps") and setting.partition("=")[2].strip() not in ("auto", "null")
        for setting in settings
    )


def sets_sizes(overrides: TrainOverrides) -> bool:
    """Whether image sizes are given, which are then not lowered."""
    names = [setting_name(setting).split(".") for setting in overrides.settings]
    return overrides.image_size is not None or any(
        name[0] in ("eval_image_size", "eval_image_size_candidates")
        or name[:2] in (["progressive"], ["progressive", "image_size"])
        for name in names
    )


def open_weights(overrides: TrainOverrides, device: torch.device) -> tuple[WeightsCandidate, ...]:
    """The weights to choose among if they are open; empty if they are named.

    A recipe for pretrained weights is not started from scratch where there are any.
    """
    if overrides.recipe is None:
        is_open = overrides.weights in (None, "auto")
        return weights_candidates(_model(overrides.model, device)) if is_open else ()
    with silenced():
        recipe = _override(overrides.recipe, overrides)
    if recipe.weights != "auto":
        return ()
    candidates = weights_candidates(_model(recipe.model, device))
    return candidates[:-1] or candidates


def validate_requested_sizes(recipe: Recipe, device: torch.device, known_weights: Collection[str]) -> None:
    """Refuse sizes below the model's stride before images are read, if it is known which model that is.

    ``known_weights`` are those of the recipe's model. Others may bring another model; ``resolve`` checks them.
    """
    if recipe.weights in {"none", *known_weights}:
        model = _model(recipe.model, device)
        validate_stride(recipe, model, stride_of(model))


def requested_recipe(
    overrides: TrainOverrides, device: torch.device, *, found: WeightsCandidate | None = None
) -> tuple[Recipe, list[str]]:
    """The recipe of a new run, its "auto" fields open, and a note for each choice.

    Without a named recipe: ``finetune`` if there are weights for the model, else ``quick``. The bundled weights saw few
    images, and train further as if from scratch. Open weights become ``found``; None takes the best.
    """
    if overrides.model is not None:
        validate_model_name(overrides.model)
    if overrides.recipe is not None:
        recipe = _override(overrides.recipe, overrides)
        if found is None or recipe.weights != "auto":
            return recipe, []
        return recipe.model_copy(update={"weights": found.word}), [found.note]
    notes, weights = [], overrides.weights or "auto"
    if weights == "auto":
        found = found or weights_candidates(_model(overrides.model, device))[0]
        weights, overrides = found.word, replace(overrides, weights=None)
        notes.append(found.note)
    name, why, changes = "finetune", "from given weights", {"weights": weights}
    if weights == "none":
        name, why = "quick", "from scratch"
    elif is_bundled(weights):
        name, why, changes = "quick", "from weights that saw few images", {**changes, "head_init": "auto"}
    notes.append(f"Recipe: {name} ({why}).")
    return _override(get_recipe(name).model_copy(update=changes), overrides), notes


def validate_overrides(overrides: TrainOverrides) -> None:
    """Refuse overrides that fit no recipe of own data, before weights are looked for. Raises InputError."""
    if overrides.recipe is not None:
        return
    faults = []
    for name in ("finetune", "quick"):
        try:
            with silenced():
                _override(name, overrides)
            return
        except InputError as error:
            faults.append(error)
    raise faults[0]


def _model(model: str | Architecture | None, device: torch.device) -> str | Architecture:
    return default_model(device) if model is None or model == "auto" else model


def _override(recipe: str | Recipe, overrides: TrainOverrides) -> Recipe:
    """The recipe with all overrides, validated once."""
    recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe
    plain = recipe.to_json() | {
        name: value.to_json() if isinstance(value, Architecture) else value
        for name in ("model", "weights", "epochs", "crop_mode", "seed")
        if (value := getattr(overrides, name)) is not None
    }
    set_fields = {setting_name(setting) for setting in overrides.settings}
    if overrides.epochs is not None or overrides.minutes is not None:
        plain["steps"] = None
    if overrides.cache is not None and recipe.cache_resolution is None:
        plain["cache_resolution"] = _CACHE_RESOLUTION
    if overrides.crop_mode not in (None, recipe.crop_mode):
        plain |= {"crop_pct": 1.0, "train_crop_mode": None}
    batch, before_px = overrides.batch_size, recipe.progressive.last.image_size
    is_rebatched = "batch_size" in set_fields or batch not in (None, recipe.batch_size)
    if is_rebatched and recipe.ghost_batch_size == recipe.batch_size:  # of a run: the whole batch
        plain["ghost_batch_size"] = None
    if batch is not None and batch != recipe.batch_size:
        plain["batch_size"] = batch
        if not {"optimizer", "optimizer.lr"} & set_fields:
            # In proportion for SGD and RMSprop. Adam's step does not grow with the gradient's certainty, so its rate
            # grows with the square root.
            scale = batch / recipe.batch_size
            named = [setting for setting in overrides.settings if setting_name(setting) == "optimizer.name"]
            name = apply_overrides(plain, named)["optimizer"]["name"]
            lr = recipe.optimizer.lr * (math.sqrt(scale) if name == "adamw" else scale)
            lr = float(f"{lr:.4g}")
            plain["optimizer"] = plain["optimizer"] | {"lr": lr}
            _logger.info(f"Learning rate {recipe.optimizer.lr:g} -> {lr:g}, following the batch.")
    if overrides.image_size is not None and overrides.image_size != before_px:
        plain["progressive"] = recipe.progressive.with_image_size(overrides.image_size).to_json()
    is_sized = overrides.image_size is not None or any(
        field == "progressive" or field.startswith("progressive.image_size") for field in set_fields
    )
    if is_sized:
        plain["max_upscale"] = None
        # A run's own recipe has sizes at evaluation that followed those of training.
        if recipe.eval_image_size == before_px:
            plain["eval_image_size"] = None
        if recipe.eval_image_size_candidates == default_eval_sizes(before_px):
            plain["eval_image_size_candidates"] = "auto"
    # A run's own recipe has the random order of its seed, and the stage lengths measured for its model and sizes.
    if recipe.progressive.seed == recipe.seed and (overrides.seed is not None or "seed" in set_fields):
        plain["progressive"] = plain["progressive"] | {"seed": None}
    changed_stages = {"stage_time", "progressive.stages", "model"} & set_fields
    is_remeasured = bool(changed_stages) or is_sized or overrides.model is not None
    if recipe.stage_time is not None and is_remeasured:
        plain["progressive"] = plain["progressive"] | {"stage_fractions": None}
    plain = apply_overrides(plain, overrides.settings)
    changed = validate_recipe(plain, where=recipe.name, options=_option_texts(overrides))
    last_px, eval_image_size = changed.progressive.last.image_size, changed.eval_image_size
    stays = "eval_image_size" not in set_fields and eval_image_size == recipe.eval_image_size
    if is_sized and stays and eval_image_size not in (None, last_px):
        _logger.info(
            f"Evaluation stays at {eval_image_size} px (`eval_image_size`), though training ends at {last_px} px."
        )
    return changed


def _option_texts(overrides: TrainOverrides) -> dict[str, str]:
    """What changed each field, for messages."""
    texts = {
        f"progressive.{option}" if option == "image_size" else option: f"`{option}={value}`"
        for option in _OPTIONS
        if isinstance(value := getattr(overrides, option), str | int | float)
    }
    return texts | {setting_name(setting): f"`{setting}`" for setting in overrides.settings}


def option_differences(saved: Any, given: Any, typed: Collection[str] = ()) -> list[str]:
    """Options that differ from those saved, as users write them; a default counts only if it is ``typed``."""
    found: list[str] = []
    for each in fields(given):
        there, here = getattr(saved, each.name), getattr(given, each.name)
        if here == there or (here == each.default and each.name not in typed):
            continue
        if each.name == "settings" and set(here) <= set(there):  # fewer of them, or in another order
            continue
        if isinstance(there, Recipe | Architecture) and type(here) is type(there):
            found += diff_recipes(there, here)
        else:
            name = _ARGUMENTS.get(each.name, each.name)
            found.append(f"`{name}`: {_option_text(there)} there, {_option_text(here)} here")
    return found


def _option_text(value: Any) -> str:
    if isinstance(value, tuple):
        return shell_join(value) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Architecture):
        return model_title(value)
    return "not given" if value is None else str(value.name if isinstance(value, Recipe) else value)


def resumed_recipe(overrides: TrainOverrides, run: RunDir) -> Recipe:
    """The recipe of the run to resume; refuses options that it was not started with."""
    if isinstance(overrides.recipe, str):
        get_recipe(overrides.recipe)  # raises for an unknown name
    has_none = overrides == TrainOverrides() or (run.finished and not run.beginning_file.exists())
    if not has_none:
        saved = _saved_options(run)
        if overrides.cache and saved.cache:  # where the images are cached changes none of their pixels
            overrides = replace(overrides, cache=saved.cache)
        if differing := option_differences(saved, overrides):
            fix = "Leave those out to resume it, or give another `output` to start a new run."
            if run.finished:
                fix = f"It has finished. {train_longer_hint(run.path)}"
            raise InputError(
                f"`resume`: the run in {run.path} was started with other options: {'; '.join(differing)}. {fix}"
            )
    recipe = read_recipe(run.recipe_file)
    if run.beginning_file.exists() and not run.finished:
        before = validate_recipe(run.beginning().get("recipe"), where=str(run.beginning_file))
        if changed := diff_recipes(before, recipe):
            fix = f"Undo that, or start a new run with `recipe={run.recipe_file}` and another `output`."
            raise InputError(f"`resume`: {run.recipe_file} was changed since the start: {'; '.join(changed)}. {fix}")
    return recipe


def _saved_options(run: RunDir) -> TrainOverrides:
    """The options that a run was started with."""
    try:
        return TrainOverrides.from_json(run.beginning()["options"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"the options in {run.beginning_file} cannot be read: {error_summary(error)}"
        raise InputError(f"{problem.rstrip('.')}. Leave out the options of the recipe to resume the run.") from error


def train_longer_hint(run: Path) -> str:
    """How to train longer than a finished run."""
    command = shell_join(["effnetv2", "train", "DATA", "--weights", str(run), "--epochs", "N"])
    return f"To train longer, begin another run from its weights: {command}"


def validate_label_settings(recipe: Recipe, overrides: TrainOverrides, separator: str | None) -> None:
    """Refuse settings that have no effect on these labels; ``separator`` is None for images with one label."""
    settings = [setting for setting in overrides.settings if setting_name(setting) == "multilabel"]
    if settings and separator is None:
        raise InputError(f"`{settings[-1]}`: these images have one label each. Give `label_separator`.")
    if separator is not None and isinstance(recipe.minival, int | float):
        raise InputError(f"minival is {recipe.minival}, but the images have several labels each. Use `minival=null`.")
    for name in ("patience", "eval_image_size_candidates") if separator is not None else ():
        if getattr(recipe, name) is not None:
            raise InputError(f"{name} needs minival, which needs one label per image. Use `{name}=null`.")
    if recipe.activation(separator) == "softmax":
        return
    for name in ("class_weights", "logit_adjustment"):
        value = getattr(recipe, name)
        if value is not None:
            raise InputError(
                f"{name} is {value}, but with multilabel sigmoid each class is predicted independently. Use "
                f"`{name}=null`, `multilabel=softmax`, or for rare labels `class_sampling=sqrt`."
            )
