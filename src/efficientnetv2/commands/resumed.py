"""The recipe of a run that is gone on with: what was said again asks for no other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from efficientnetv2.base.errors import InputError, count_of
from efficientnetv2.base.typed import typed
from efficientnetv2.commands.words import Words, apply, field_of, names_sizes
from efficientnetv2.data.manifest import Manifest
from efficientnetv2.progressive import Progressive
from efficientnetv2.training.changes import differences
from efficientnetv2.training.checked import read as read_recipe
from efficientnetv2.training.folder import RunFolder
from efficientnetv2.training.named import same_shape
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.recipes import named
from efficientnetv2.training.start import NOTHING_FROZEN

# Fields that settling decides where they are left open: a word that leaves them open asks for nothing else.
_OPEN = {
    "model", "weights", "classifier", "pooling", "epochs", "eval_px", "group_images", "precision",
    "compile", "progressive.seed", "eval_px_tried",
}  # fmt: skip


def resumed_recipe(words: Words, recipe_file: Path, say: Callable[[str], None]) -> Recipe:
    """The recipe of the run to go on with.

    Raises:
        InputError: the words ask for another one; the message says what differs.
    """
    there = read_recipe(recipe_file)
    base = words.recipe if isinstance(words.recipe, Recipe) else there
    fields = {field_of(setting) for setting in words.settings}
    if words.minutes is not None or ("steps" in fields and "epochs" not in fields):
        base = base.model_copy(update={"epochs": "auto"})  # which was settled by them
    asked = apply(words, base, lambda line: None)
    if there.weights == "none":
        asked = asked.model_copy(update=_without_weights(asked))
    if asked.steps is not None:
        asked = asked.model_copy(update={"steps": None, "epochs": _epochs(asked, recipe_file.parent)})
    if asked.model not in ("auto", there.model) and same_shape(asked.model, there.model):
        asked = asked.model_copy(
            update={"model": there.model}
        )  # the run has it with the padding of its weights
    lowered = words.minutes is not None and not names_sizes(words)
    asked = _no_larger(asked, there, lowered=lowered)
    settled = {"progressive.shares"} if asked.time_shares is not None else set()
    differing = differences(there, asked, leave_open=_OPEN | settled)
    if isinstance(words.recipe, str) and named(words.recipe).name != there.name:
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
        run = RunFolder(recipe_file.parent, lambda line: None)
        limit = run.beginning().get("time_limit") if run.beginning_file.exists() else None
        fixed = (
            count_of(float(there.epochs), "epoch")
            if limit is None
            else count_of(limit["seconds"] / 60, "minute")
        )
        say(
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


def _sizes(plan: Progressive) -> list[int]:
    return [plan.stage(index).image_px for index in range(plan.stages)]


def longer(path: Path) -> str:
    """A sentence on how to train longer than a run that has finished.

    Args:
        path: of the run.
    """
    command = typed(["effnetv2", "train", "DATA", "--weights", str(path), "--epochs", "N"])
    return f"To train longer, begin another run from its weights: {command}"


def _epochs(recipe: Recipe, run: Path) -> float:
    """What a recipe's steps come to with the pictures of a run; the run has them so."""
    assert recipe.steps is not None
    pictures = Manifest.from_csv(run / "manifest.csv", root=run, source=str(run)).subset("train")
    return recipe.steps * recipe.batch_images / len(pictures)
