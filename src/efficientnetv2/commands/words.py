"""From the words of a ``train`` command line to a recipe."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from efficientnetv2.arch import files
from efficientnetv2.arch.spec import Architecture
from efficientnetv2.base.errors import InputError, count_of, did_you_mean
from efficientnetv2.data.manifest import Manifest
from efficientnetv2.progressive import Progressive
from efficientnetv2.training.changes import differences, set_fields
from efficientnetv2.training.checked import checked
from efficientnetv2.training.checked import read as read_recipe
from efficientnetv2.training.folder import RunFolder
from efficientnetv2.training.named import (
    Found,
    best_weights,
    default_model,
    refuse_weights_as_model,
    same_shape,
    starts,
)
from efficientnetv2.training.recipe import MOST, Recipe
from efficientnetv2.training.recipes import named
from efficientnetv2.training.start import NOTHING_FROZEN

CACHES = ("ram", "disk")
# With --cache and nothing else said: half of the crops have all the pixels that the files would give them, the smaller
# ones are enlarged by up to 1.4 (where crops keep 35 % of the area), for half the bytes of keeping all. Ours.
_CACHE_DETAIL = 0.5
# Fields that settling decides where they are left open: a word that leaves them open asks for nothing else.
_OPEN = {
    "model", "weights", "classifier", "pooling", "frozen_statistics", "epochs", "eval_px", "group_images", "precision",
    "compile", "progressive.seed",
}  # fmt: skip


@dataclass(frozen=True)
class Words:
    """What the user said about the recipe; None where nothing was said.

    Args:
        model, recipe, weights, epochs, minutes, image_px, batch_images, framing, seed, cache, settings: the
            options of those names; a file with a network's table is read (``arch.files``).
    """

    model: str | Architecture | None = None
    recipe: str | None = None
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
        if isinstance(self.model, str) and files.is_architecture_file(self.model):
            object.__setattr__(self, "model", files.read(Path(self.model)))
        if self.epochs is not None and self.minutes is not None:
            raise InputError("--epochs and --minutes both say how long to train. Give one of them.")
        for setting in self.settings:
            # Steps beside epochs are refused by the recipe itself.
            beside = self.minutes is not None or (self.epochs is not None and _field(setting) == "epochs")
            if beside and says_length([setting]):
                option = "--epochs" if self.minutes is None else "--minutes"
                raise InputError(
                    f"{option} and --set {setting} both say how long to train. Give one of them."
                )
        if self.minutes is not None and not (math.isfinite(self.minutes) and self.minutes > 0):
            raise InputError(
                f"--minutes is {self.minutes:g}, but has to be a number above 0. Leave it out to train as long as the "
                "recipe says."
            )
        if self.epochs is not None and not 0 < self.epochs <= MOST:
            raise InputError(
                f"--epochs is {self.epochs:g}, but has to be a number above 0 and at most {MOST:,}. Leave it out to "
                "train as long as the recipe says."
            )
        if self.cache not in (None, *CACHES):
            raise InputError(
                f"--cache is '{self.cache}', but is ram or disk{did_you_mean(self.cache, CACHES)}"
            )

    @property
    def recipe_file(self) -> Path | None:
        """The recipe, where it was given as a file."""
        is_file = self.recipe is not None and Path(self.recipe).suffix in {".yaml", ".yml"}
        return Path(str(self.recipe)) if is_file else None


def says_length(settings: Sequence[str]) -> bool:
    """Whether settings, as ``--set`` takes them, say how long to train; left open they do not."""
    return any(
        _field(setting) in ("epochs", "steps") and setting.partition("=")[2].strip() not in ("auto", "null")
        for setting in settings
    )


def _field(setting: str) -> str:
    """What a setting sets: ``optimizer.lr`` of ``optimizer.lr=0.1``."""
    return setting.partition("=")[0].strip()


def starts_open(words: Words, device: torch.device) -> tuple[Found, ...]:
    """The starts to choose among, where the words leave the weights open; none where they name them.

    A recipe that was named for given weights is not begun from scratch where there are any.
    """
    if words.recipe is None:
        return _starts(words.model, device) if words.weights in (None, "auto") else ()
    recipe = _named(words, lambda line: None)
    if recipe.weights != "auto":
        return ()
    there = _starts(recipe.model, device)
    return there[:-1] or there


def _starts(model: str | Architecture | None, device: torch.device) -> tuple[Found, ...]:
    return starts(_network(model, device))


def _network(model: str | Architecture | None, device: torch.device) -> str | Architecture:
    return default_model(device) if model is None or model == "auto" else model


def begin_recipe(
    words: Words, device: torch.device, say: Callable[[str], None], *, found: Found | None = None
) -> tuple[Recipe, list[str]]:
    """The recipe of a new run, its "auto" fields still open, and what was chosen so far, a sentence each.

    Without a recipe's name, finetune where weights can be had for the network, else quick.

    Args:
        words: about it.
        device: to train on; which network is the default depends on it.
        say: gets sentences.
        found: the start, where the words leave it open; None takes the best that can be had.
    """
    if words.model is not None:
        refuse_weights_as_model(words.model)
    if words.recipe is not None:
        recipe = _named(words, say)
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
    return _apply(words, named(name).model_copy(update={"weights": weights}), say), notes


def _named(words: Words, say: Callable[[str], None]) -> Recipe:
    """The recipe that the words name, changed by the others."""
    file = words.recipe_file
    return _apply(words, named(str(words.recipe)) if file is None else read_recipe(file), say)


def resumed_recipe(words: Words, recipe_file: Path, say: Callable[[str], None]) -> Recipe:
    """The recipe of the run to go on with.

    Raises:
        InputError: the words ask for another one; the message says what differs.
    """
    there = read_recipe(recipe_file)
    base = there if words.recipe_file is None else read_recipe(words.recipe_file)
    fields = {_field(setting) for setting in words.settings}
    if words.minutes is not None or ("steps" in fields and "epochs" not in fields):
        base = base.model_copy(update={"epochs": "auto"})  # which was settled by them
    asked = _apply(words, base, lambda line: None)
    if there.weights == "none":
        asked = asked.model_copy(update=_without_weights(asked))
    if asked.steps is not None:
        asked = asked.model_copy(update={"steps": None, "epochs": _epochs(asked, recipe_file.parent)})
    if asked.model not in ("auto", there.model) and same_shape(asked.model, there.model):
        asked = asked.model_copy(
            update={"model": there.model}
        )  # the run has it with the padding of its weights
    asked = _no_larger(asked, there)
    settled = {"progressive.shares"} if asked.time_shares is not None else set()
    differing = differences(there, asked, leave_open=_OPEN | settled)
    if words.recipe is not None and words.recipe_file is None and named(words.recipe).name != there.name:
        differing.insert(0, f"recipe: {there.name} there, {words.recipe} here")
    if differing:
        run = RunFolder(recipe_file.parent, lambda line: None)
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
        say(f"The length was fixed when the run began: {count_of(float(there.epochs), 'epoch')}.")
    return there


def _without_weights(asked: Recipe) -> dict[str, Any]:
    """What was left aside of a recipe for weights, since there were none; see ``settle``."""
    optimizer = asked.optimizer.model_copy(update={"unfreeze": None})
    return {**NOTHING_FROZEN, "classifier": "fresh", "optimizer": optimizer}


def _no_larger(asked: Recipe, there: Recipe) -> Recipe:
    """The recipe asked for without its ``enlarge``, which settling has used up: its sizes may be smaller by that.

    How small the run's pictures are stored is not looked at: its sizes are taken for those where they are the same
    schedule that ends earlier.
    """
    if asked.enlarge is None:
        return asked
    plan, run = asked.progressive, there.progressive
    if run.last.image_px < plan.last.image_px:
        smaller = plan.with_image_px(run.last.image_px)
        if _sizes(smaller) == _sizes(run):
            plan = replace(plan, image_px=run.image_px, px_multiple=run.px_multiple)
    return asked.model_copy(update={"enlarge": None, "progressive": plan})


def _sizes(plan: Progressive) -> list[int]:
    return [plan.stage(index).image_px for index in range(plan.stages)]


def longer(path: Path) -> str:
    """A sentence on how to train longer than a run that has finished.

    Args:
        path: of the run.
    """
    command = shlex.join(["effnetv2", "train", "DATA", "--weights", str(path), "--epochs", "N"])
    return f"To train longer, begin another run from its weights: {command}"


def _epochs(recipe: Recipe, run: Path) -> float:
    """What a recipe's steps come to with the pictures of a run; the run has them so."""
    assert recipe.steps is not None
    pictures = Manifest.from_csv(run / "manifest.csv", root=run, source=str(run)).subset("train")
    return recipe.steps * recipe.batch_images / len(pictures)


def _apply(words: Words, recipe: Recipe, say: Callable[[str], None]) -> Recipe:
    """The recipe changed by the words, checked once all of them are in."""
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
        if not {"optimizer", "optimizer.lr"} & {_field(setting) for setting in words.settings}:
            lr = _following(recipe, words.batch_images)
            plain["optimizer"] = plain["optimizer"] | {"lr": lr}
            say(f"Learning rate {recipe.optimizer.lr:g} -> {lr:g}, following the batch.")
    if words.image_px is not None and words.image_px != recipe.progressive.last.image_px:
        plain["progressive"] = recipe.progressive.with_image_px(words.image_px).to_json()
    if words.image_px is not None or any(_names_sizes(setting) for setting in words.settings):
        plain["enlarge"] = None
    return checked(set_fields(plain, words.settings), where=recipe.name, said=_said(words))


def _names_sizes(setting: str) -> bool:
    field = _field(setting)
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


def _said(words: Words) -> dict[str, str]:
    """From fields to the words of the command line that changed them."""
    options = {
        field: f"--{option.replace('_', '-')} {value:g}"
        if option == "epochs"
        else f"--{option.replace('_', '-')} {value}"
        for field, option in _OPTIONS.items()
        if isinstance(value := getattr(words, option), str | int | float)
    }
    return options | {_field(setting): f"--set {setting}" for setting in words.settings}
