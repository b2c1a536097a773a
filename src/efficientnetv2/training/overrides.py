"""From the words of a ``train`` command line to a recipe."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from efficientnetv2.architectures import io
from efficientnetv2.architectures.spec import Architecture
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.progressive.schedule import ProgressiveSchedule
from efficientnetv2.training.image_sizes import default_eval_sizes, validate_stride
from efficientnetv2.training.initial_weights import (
    NOTHING_FROZEN,
    WeightsCandidate,
    best_weights,
    default_model,
    same_shape,
    stride_of,
    validate_model_name,
    weights_candidates,
)
from efficientnetv2.training.recipe import MAX_COUNT, Recipe
from efficientnetv2.training.recipe_io import apply_overrides, diff_recipes, validate_recipe
from efficientnetv2.training.recipe_io import read_recipe as read_recipe
from efficientnetv2.training.recipes import get_recipe, load_recipe, recipe_file
from efficientnetv2.training.run_dir import RunDir
from efficientnetv2.utils.errors import InputError, did_you_mean, pluralize
from efficientnetv2.utils.logs import silenced
from efficientnetv2.utils.shell import shell_join

_logger = logging.getLogger(__name__)

CACHES = ("ram", "disk")
# With --cache and nothing else said: half of the crops have all the pixels that the files would give them, the smaller
# ones are enlarged by up to 1.4 (where crops keep 35 % of the area), for half the bytes of keeping all. Ours.
_CACHE_DETAIL = 0.5


@dataclass(frozen=True)
class TrainOverrides:
    """What the user said about the recipe; None where nothing was said.

    Args:
        model, recipe, weights, epochs, minutes, image_px, batch_images, framing, seed, cache, settings: the
            options of those names; a file with a network's table is read (``architectures.io``); so is a recipe's
            (``training.recipes.load_recipe``): whatever becomes of it later, the words mean what it said.

    Raises:
        InputError: such a file can't be read, two words contradict each other, or a value is out of range.
    """

    model: str | Architecture | None = None
    recipe: str | Recipe | None = None
    weights: str | None = None
    epochs: float | None = None
    minutes: float | None = None
    image_px: int | None = None
    batch_images: int | None = None
    framing: str | None = None
    seed: int | None = None
    cache: str | None = None
    settings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.model, str) and io.is_architecture_file(self.model):
            object.__setattr__(self, "model", io.read(Path(self.model)))
        if isinstance(self.recipe, str) and recipe_file(self.recipe) is not None:
            object.__setattr__(self, "recipe", load_recipe(self.recipe))
        if self.epochs is not None and self.minutes is not None:
            raise InputError("--epochs and --minutes both say how long to train. Give one of them.")
        for setting in self.settings:
            # Steps beside epochs are refused by the recipe itself.
            beside = self.minutes is not None or (
                self.epochs is not None and setting_name(setting) == "epochs"
            )
            if beside and sets_length([setting]):
                option = "--epochs" if self.minutes is None else "--minutes"
                raise InputError(
                    f"{option} and --set {setting} both say how long to train. Give one of them."
                )
        if self.minutes is not None and not (math.isfinite(self.minutes) and self.minutes > 0):
            raise InputError(
                f"--minutes is {self.minutes:g}, but has to be a number above 0. Leave it out to train as long as the "
                "recipe says."
            )
        if self.epochs is not None and not 0 < self.epochs <= MAX_COUNT:
            raise InputError(
                f"--epochs is {self.epochs:g}, but has to be a number above 0 and at most {MAX_COUNT:,}. Leave it out "
                "to train as long as the recipe says."
            )
        if self.cache not in (None, *CACHES):
            raise InputError(
                f"--cache is '{self.cache}', but is ram or disk{did_you_mean(self.cache, CACHES)}"
            )


def sets_length(settings: Sequence[str]) -> bool:
    """Whether settings, as ``--set`` takes them, say how long to train; left open they do not."""
    return any(
        setting_name(setting) in ("epochs", "steps")
        and setting.partition("=")[2].strip() not in ("auto", "null")
        for setting in settings
    )


def sets_sizes(words: TrainOverrides) -> bool:
    """Whether words name image sizes, which are then not lowered."""
    fields = [setting_name(setting).split(".") for setting in words.settings]
    named = any(
        field[0] in ("eval_px", "eval_px_tried")
        or field[:2] in (["progressive"], ["progressive", "image_px"])
        for field in fields
    )
    return named or words.image_px is not None


def setting_name(setting: str) -> str:
    """What a setting, as ``--set`` takes it, sets: ``optimizer.lr`` of ``optimizer.lr=0.1``."""
    return setting.partition("=")[0].strip()


def open_weights(words: TrainOverrides, device: torch.device) -> tuple[WeightsCandidate, ...]:
    """The starts to choose among, where the words leave the weights open; none where they name them.

    A recipe that was named for given weights is not begun from scratch where there are any.
    """
    if words.recipe is None:
        return _starts(words.model, device) if words.weights in (None, "auto") else ()
    with silenced():
        recipe = _named(words)
    if recipe.weights != "auto":
        return ()
    there = _starts(recipe.model, device)
    return there[:-1] or there


def _starts(model: str | Architecture | None, device: torch.device) -> tuple[WeightsCandidate, ...]:
    return weights_candidates(_network(model, device))


def _network(model: str | Architecture | None, device: torch.device) -> str | Architecture:
    return default_model(device) if model is None or model == "auto" else model


def validate_requested_sizes(recipe: Recipe, device: torch.device, begun_from: Collection[str]) -> None:
    """Refuse sizes below the stride of the network, where it is known which that is, before pictures are looked at.

    Args:
        recipe: of a new run.
        device: to train on; which network is the default depends on it.
        begun_from: words for weights of the network itself. Others may come with a network of their own, and are left
            to ``settle``.

    Raises:
        InputError: there are such sizes.
    """
    if recipe.weights in {"none", *begun_from}:
        network = _network(recipe.model, device)
        validate_stride(recipe, network, stride_of(network))


def requested_recipe(
    words: TrainOverrides, device: torch.device, *, found: WeightsCandidate | None = None
) -> tuple[Recipe, list[str]]:
    """The recipe of a new run, its "auto" fields still open, and what was chosen so far, a sentence each.

    Without a recipe's name, finetune where weights can be had for the network, else quick.

    Args:
        words: about it.
        device: to train on; which network is the default depends on it.
        found: the start, where the words leave it open; None takes the best that can be had.
    """
    if words.model is not None:
        validate_model_name(words.model)
    if words.recipe is not None:
        recipe = _named(words)
        if found is None or recipe.weights != "auto":
            return recipe, []
        return recipe.model_copy(update={"weights": found.word}), [found.note]
    notes = []
    weights = words.weights or "auto"
    if weights == "auto":
        found = found or best_weights(_network(words.model, device))
        weights, words = found.word, replace(words, weights=None)
        notes.append(found.note)
    name, why = ("quick", "from scratch") if weights == "none" else ("finetune", "from given weights")
    notes.append(f"Recipe: {name} ({why}).")
    return apply(words, get_recipe(name).model_copy(update={"weights": weights})), notes


def _named(words: TrainOverrides) -> Recipe:
    """The recipe that the words name, changed by the others."""
    recipe = words.recipe if isinstance(words.recipe, Recipe) else get_recipe(str(words.recipe))
    return apply(words, recipe)


def apply(words: TrainOverrides, recipe: Recipe) -> Recipe:
    """The recipe changed by the words, checked once all of them are in.

    Args:
        words: about it; its name, or its file, has been looked up.
        recipe: to change.

    Raises:
        InputError: a word is none of a recipe's, or what they come to is no recipe.
    """
    plain = recipe.to_json() | {
        name: value.to_json() if isinstance(value, Architecture) else value
        for name in ("model", "weights", "epochs", "framing", "seed")
        if (value := getattr(words, name)) is not None
    }
    if words.epochs is not None or words.minutes is not None:
        plain["steps"] = None
    if words.cache is not None and recipe.cache_detail is None:
        plain["cache_detail"] = _CACHE_DETAIL
    if words.framing not in (None, recipe.framing):
        plain |= {"crop_fraction": 1.0, "crop_framing": None}
    if words.batch_images is not None and words.batch_images != recipe.batch_images:
        plain["batch_images"] = words.batch_images
        if not {"optimizer", "optimizer.lr"} & {setting_name(setting) for setting in words.settings}:
            lr = _following(recipe, words.batch_images)
            plain["optimizer"] = plain["optimizer"] | {"lr": lr}
            _logger.info(f"Learning rate {recipe.optimizer.lr:g} -> {lr:g}, following the batch.")
    if words.image_px is not None and words.image_px != recipe.progressive.last.image_px:
        plain["progressive"] = recipe.progressive.with_image_px(words.image_px).to_json()
    sized = words.image_px is not None or any(_names_sizes(setting) for setting in words.settings)
    if sized:
        plain["enlarge"] = None
        before = recipe.progressive.last.image_px
        if recipe.eval_px == before:  # which a run's own recipe names, for it has followed
            plain["eval_px"] = None
        if recipe.eval_px_tried == default_eval_sizes(before):  # likewise
            plain["eval_px_tried"] = "auto"
    changed = validate_recipe(apply_overrides(plain, words.settings), where=recipe.name, options=_said(words))
    last = changed.progressive.last.image_px
    own = "eval_px" in {setting_name(setting) for setting in words.settings}
    if sized and not own and changed.eval_px == recipe.eval_px and changed.eval_px not in (None, last):
        _logger.info(
            f"Evaluation stays at {changed.eval_px} px, though training ends at {last} px: --set eval_px says another."
        )
    return changed


def _names_sizes(setting: str) -> bool:
    field = setting_name(setting)
    return field == "progressive" or field.startswith("progressive.image_px")


def _following(recipe: Recipe, batch_images: int) -> float:
    """The learning rate for another batch: in proportion for SGD and RMSprop.

    Adam's step does not grow with the gradient's certainty, so its rate grows with the square root.
    """
    scale = batch_images / recipe.batch_images
    lr = recipe.optimizer.lr * (math.sqrt(scale) if recipe.optimizer.kind == "adamw" else scale)
    return float(f"{lr:.4g}")


# Fields of a recipe that options change.
_OPTIONS = {
    "model": "model",
    "weights": "weights",
    "epochs": "epochs",
    "progressive.image_px": "image_px",
    "batch_images": "batch_images",
    "framing": "framing",
    "seed": "seed",
}


def _said(words: TrainOverrides) -> dict[str, str]:
    """From fields to the words of the command line that changed them."""
    options = {
        field: f"--{option.replace('_', '-')} {value:g}"
        if option == "epochs"
        else f"--{option.replace('_', '-')} {value}"
        for field, option in _OPTIONS.items()
        if isinstance(value := getattr(words, option), str | int | float)
    }
    return options | {setting_name(setting): f"--set {setting}" for setting in words.settings}


# Fields that settling decides where they are left open: a word that leaves them open asks for nothing else.
_OPEN = {
    "model", "weights", "classifier", "pooling", "epochs", "eval_px", "group_images", "precision",
    "compile", "progressive.seed", "eval_px_tried",
}  # fmt: skip


def resumed_recipe(words: TrainOverrides, recipe_file: Path) -> Recipe:
    """The recipe of the run to go on with.

    Raises:
        InputError: the words ask for another one; the message says what differs.
    """
    there = read_recipe(recipe_file)
    base = words.recipe if isinstance(words.recipe, Recipe) else there
    fields = {setting_name(setting) for setting in words.settings}
    if words.minutes is not None or ("steps" in fields and "epochs" not in fields):
        base = base.model_copy(update={"epochs": "auto"})  # which was settled by them
    with silenced():
        asked = apply(words, base)
    if there.weights == "none":
        asked = asked.model_copy(update=_without_weights(asked))
    if asked.steps is not None:
        asked = asked.model_copy(update={"steps": None, "epochs": _epochs(asked, recipe_file.parent)})
    if asked.model not in ("auto", there.model) and same_shape(asked.model, there.model):
        asked = asked.model_copy(
            update={"model": there.model}
        )  # the run has it with the padding of its weights
    lowered = words.minutes is not None and not sets_sizes(words)
    asked = _no_larger(asked, there, lowered=lowered)
    settled = {"progressive.shares"} if asked.time_shares is not None else set()
    differing = diff_recipes(there, asked, leave_open=_OPEN | settled)
    if isinstance(words.recipe, str) and get_recipe(words.recipe).name != there.name:
        differing.insert(0, f"recipe: {there.name} there, {words.recipe} here")
    if differing:
        run = RunDir(recipe_file.parent)
        raise InputError(
            f"--resume: the run in {run.path} was begun with another recipe. "
            + "; ".join(differing)
            + (
                f". It has finished. {longer(run.path)}"
                if run.finished
                else ". Leave those words out to go on with it, or give another --out to begin anew."
            )
        )
    if words.minutes is not None:
        run = RunDir(recipe_file.parent)
        limit = run.beginning().get("time_limit") if run.beginning_file.exists() else None
        fixed = (
            pluralize(float(there.epochs), "epoch")
            if limit is None
            else pluralize(limit["seconds"] / 60, "minute")
        )
        _logger.info(
            f"--minutes changes nothing: the length was fixed when the run began, at {fixed}. To change it, begin "
            "another run with another --out."
        )
    return there


def _without_weights(asked: Recipe) -> dict[str, Any]:
    """What was left aside of a recipe for weights, since there were none; see ``settle``."""
    optimizer = asked.optimizer.model_copy(update={"unfreeze": None})
    return {**NOTHING_FROZEN, "classifier": "fresh", "optimizer": optimizer}


def _no_larger(asked: Recipe, there: Recipe, *, lowered: bool) -> Recipe:
    """The recipe asked for without its ``enlarge``, which settling has used up: its sizes may be smaller by that.

    With ``--minutes`` (``lowered``) they may be smaller for want of time, those of evaluation too.

    How small the run's pictures are stored is not looked at: its sizes are taken for those where they are the same
    schedule that ends earlier.
    """
    if asked.enlarge is None and not lowered:
        return asked
    plan, run = asked.progressive, there.progressive
    if run.last.image_px < plan.last.image_px:
        smaller = plan.with_image_px(run.last.image_px)
        if _sizes(smaller) == _sizes(run):
            plan = replace(plan, image_px=run.image_px, px_multiple=run.px_multiple)
            if lowered:
                own = {"eval_px": there.eval_px, "eval_px_tried": there.eval_px_tried}
                asked = asked.model_copy(update=own)
    return asked.model_copy(update={"enlarge": None, "progressive": plan})


def _sizes(plan: ProgressiveSchedule) -> list[int]:
    return [plan.stage(index).image_px for index in range(plan.stages)]


def longer(path: Path) -> str:
    """A sentence on how to train longer than a run that has finished.

    Args:
        path: of the run.
    """
    command = shell_join(["effnetv2", "train", "DATA", "--weights", str(path), "--epochs", "N"])
    return f"To train longer, begin another run from its weights: {command}"


def _epochs(recipe: Recipe, run: Path) -> float:
    """What a recipe's steps come to with the pictures of a run; the run has them so."""
    assert recipe.steps is not None
    pictures = ImageDataset.from_csv(run / "manifest.csv", root=run, source=str(run)).subset("train")
    return recipe.steps * recipe.batch_images / len(pictures)
