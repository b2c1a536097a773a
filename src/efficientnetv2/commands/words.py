"""From the words of a ``train`` command line to a recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efficientnetv2.base.errors import InputError
from efficientnetv2.training.recipe import Recipe, checked, differences, with_settings
from efficientnetv2.training.recipes import named


@dataclass(frozen=True)
class Words:
    """What the user said about the recipe; None where nothing was said.

    Args:
        model, recipe, weights, epochs, minutes, image_px, batch_images, framing, seed, settings: the
            options of those names.
    """

    model: str | None = None
    recipe: str | None = None
    weights: str | None = None
    epochs: float | None = None
    minutes: float | None = None
    image_px: int | None = None
    batch_images: int | None = None
    framing: str | None = None
    seed: int | None = None
    settings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.epochs is not None and self.minutes is not None:
            raise InputError("--epochs and --minutes both say how long to train. Give one of them.")
        if self.minutes is not None and self.minutes <= 0:
            raise InputError(f"--minutes is {self.minutes:g}, but a run takes longer than 0.")


def begin_recipe(words: Words, say: Callable[[str], None]) -> Recipe:
    """The recipe of a new run, its "auto" fields still open."""
    if words.recipe is None:
        has_weights = words.weights not in (None, "auto", "none")
        name = "finetune" if has_weights else "quick"
        why = "there are weights to start from" if has_weights else "no weights to start from: from scratch"
        say(f"Recipe: {name} ({why}).")
        base = named(name)
    elif Path(words.recipe).suffix in {".yaml", ".yml"}:
        base = Recipe.from_yaml(Path(words.recipe))
    else:
        base = named(words.recipe)
    return _apply(words, base, say)


def resumed_recipe(words: Words, recipe_file: Path) -> Recipe:
    """The recipe of the run to go on with.

    Raises:
        InputError: the words ask for another one; the message says what differs.
    """
    there = Recipe.from_yaml(recipe_file)
    here = _apply(words, there, say=lambda line: None)
    differing = differences(there, here)
    if words.recipe is not None:
        name = words.recipe if Path(words.recipe).suffix not in {".yaml", ".yml"} else None
        other = named(name).name if name else Recipe.from_yaml(Path(words.recipe)).name
        if other != there.name:
            differing.insert(0, f"recipe: {there.name} there, {other} here")
    if differing:
        raise InputError(
            f"--resume: the run in {recipe_file.parent} was begun with another recipe. "
            + "; ".join(differing)
            + ". Leave those words out to go on with it, or give another --out to begin anew."
        )
    return there


def _apply(words: Words, recipe: Recipe, say: Callable[[str], None]) -> Recipe:
    changes: dict[str, Any] = {
        name: value
        for name in ("model", "weights", "epochs", "framing", "seed")
        if (value := getattr(words, name)) is not None
    }
    plain = recipe.to_json() | changes
    if words.batch_images is not None and words.batch_images != recipe.batch_images:
        scale = words.batch_images / recipe.batch_images
        # Adam's step does not grow with the gradient's certainty, so its rate grows with the square root.
        lr = recipe.optimizer.lr * (scale**0.5 if recipe.optimizer.kind == "adamw" else scale)
        plain["batch_images"] = words.batch_images
        plain["optimizer"]["lr"] = float(f"{lr:.4g}")
        say(f"Learning rate {recipe.optimizer.lr:g} -> {lr:.4g}, following the batch.")
    last = recipe.progressive.stage(recipe.progressive.stages - 1).image_px
    if words.image_px is not None and words.image_px != last:
        if words.image_px < 1:
            raise InputError(f"--image-px is {words.image_px}, but a picture has at least 1 pixel.")
        plain["progressive"] = recipe.progressive.with_image_px(words.image_px).to_json()
    changed = checked(plain, where=_spoken(words))
    return with_settings(changed, list(words.settings)) if words.settings else changed


def _spoken(words: Words) -> str:
    said = [f"--{name.replace('_', '-')}" for name, value in vars(words).items() if value not in (None, ())]
    return " ".join(said) or "recipe"
