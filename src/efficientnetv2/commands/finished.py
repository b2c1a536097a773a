"""A run that has come to its end, and is asked to go on."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

from efficientnetv2.base.errors import count_of
from efficientnetv2.commands.screen import Screen, answer
from efficientnetv2.training.folder import RunFolder
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.resume import drop, steps_saved


@dataclass(frozen=True)
class Finished:
    """A run with nothing left to do.

    Args:
        path: of its folder.
        recipe: its.
    """

    path: Path
    recipe: Recipe


def tell_finished(run: Finished, screen: Screen, *, as_json: bool) -> None:
    """Say that nothing is left to do, where the result lies, and how to train longer.

    Nothing in the folder changes, but that checkpoints go which a kill has left behind.

    Args:
        run: that has finished.
        screen: to say it on.
        as_json: answer with the report again.
    """
    folder = RunFolder(run.path, screen.say)
    report = folder.path / "report.json"
    told = json.loads(report.read_text(encoding="utf-8")) if folder.reported else {}
    if as_json and told:
        answer(told)
    # It may have ended before all of the recipe's epochs.
    epochs = count_of(float(told.get("epochs", run.recipe.epochs)), "epoch")
    screen.say(f"The run in {folder.path} has finished after {epochs}: nothing is left to do.")
    screen.say(f"Model: {folder.model_file}")
    if folder.reported:
        screen.say(f"Report: {report.with_suffix('.html')}")
    else:
        again = shlex.join(["effnetv2", "evaluate", str(folder.path), "DATA"])
        screen.say(f"Its report is not there any more. For figures: {again}")
    if steps_saved(folder.checkpoints):
        drop(folder.checkpoints)
        screen.say("Its checkpoints, which nothing needs any more, were removed.")
    screen.say(longer(folder.path))


def longer(path: Path) -> str:
    """A sentence on how to train longer than a run that has finished.

    Args:
        path: of the run.
    """
    command = shlex.join(["effnetv2", "train", "DATA", "--weights", str(path), "--epochs", "N"])
    return f"To train longer, begin another run from its weights: {command}"
