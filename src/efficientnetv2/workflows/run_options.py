"""How a run begins: its folder, its settled recipe, its network."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from efficientnetv2.training.initial_weights import WeightsCandidate, validate_weights_name
from efficientnetv2.training.overrides import (
    TrainOverrides,
    open_weights,
    requested_recipe,
    resumed_recipe,
    validate_requested_sizes,
)
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.recipe_io import read_recipe as read_recipe
from efficientnetv2.training.recipe_io import validate_recipe
from efficientnetv2.training.run_dir import RunDir
from efficientnetv2.training.run_lock import new_run_path, newest_run, runs_newest_first, validate_new_run_dir
from efficientnetv2.training.run_options import RunOptions
from efficientnetv2.utils.device import device_note
from efficientnetv2.utils.distributed import World
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.io import check_writable_dir
from efficientnetv2.utils.logs import as_details
from efficientnetv2.utils.shell import shell_join
from efficientnetv2.workflows.output_paths import RUNS
from efficientnetv2.workflows.previous_runs import Other

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Decided:
    """What is known of a run before its pictures are looked at, and after weights were chosen by them.

    Args:
        path: of its folder.
        recipe: its "auto" fields may still be open.
        chosen: so far, a sentence each.
        resumed: whether there is something to go on with.
        starts: to choose among, the first of them taken so far; empty where there is nothing to choose.
        compared: the figures by which one was chosen, as plain values; None if none were.
        against: another run that the report is to compare with, kept in the folder; None if none was named.
        repeated: whether the recipe is what a run like this one has settled.
    """

    path: Path
    recipe: Recipe
    chosen: tuple[str, ...] = ()
    resumed: bool = False
    starts: tuple[WeightsCandidate, ...] = ()
    compared: dict[str, Any] | None = None
    against: Other | None = None
    repeated: bool = False


def repeating(known: Decided, words: TrainOverrides, place: RunOptions) -> tuple[Decided, TrainOverrides]:
    """What a run like this one has settled for the same weights, if one has; then no minutes decide its epochs anew.

    The run's own are the seed, that of random sizes where it follows from it, and the pictures that choose.

    Args:
        known: of the run, its weights chosen.
        words: about the recipe.
        place: of the run.
    """
    if not known.resumed:
        for file in place.settled:
            recipe = read_recipe(file)
            if recipe.weights == known.recipe.weights:
                own = recipe.to_json() | {"seed": known.recipe.seed, "minival": known.recipe.minival}
                if known.recipe.progressive.seed is None:
                    own["progressive"] = own["progressive"] | {"seed": None}  # settled by the seed
                known = replace(known, recipe=validate_recipe(own, where=str(file)), repeated=True)
                return known, replace(words, minutes=None)
    return known, words


def decided(words: TrainOverrides, place: RunOptions, device: torch.device, world: World) -> Decided:
    """All that can be decided without looking at an image.

    A launcher starts and restarts a run with one command, so that there ``--resume`` may find no run yet.

    Raises:
        InputError: what is wrong with the options; ``--resume`` names no run.
    """
    if world.launch is not None and not place.resume:
        path = _begun_by(world, place.out)
        if path is not None:
            _logger.info(f"Started again by the same launch (restart {world.restarts}).")
            return Decided(path, resumed_recipe(words, path / "recipe.yaml"), resumed=True)
    if place.resume:
        path = place.out or newest_run(RUNS)
        if path is not None and (path / "recipe.yaml").exists():
            return Decided(path, resumed_recipe(words, path / "recipe.yaml"), resumed=True)
        if world.launch is None and (path is None or not _never_began(path)):
            raise InputError(f"--resume: there is no run in {path or RUNS}. {_to_resume(path)}")
        _logger.info(f"There is no run in {path or RUNS} yet: starting one.")
    if place.out is not None:
        validate_new_run_dir(place.out)
    check_writable_dir(place.out or RUNS, "--out")
    if note := device_note(place.device, device):
        _logger.info(note)
    starts = open_weights(words, device)
    with as_details():
        recipe, chosen = requested_recipe(words, device, found=starts[0] if starts else None)
    validate_weights_name(recipe.weights)
    validate_requested_sizes(recipe, device, [one.word for one in starts])
    return Decided(place.out or new_run_path(RUNS, recipe.name), recipe, tuple(chosen), starts=starts)


def _never_began(path: Path) -> bool:
    """Whether a folder is there that a run was stopped in before it began, or that was made for one."""
    return path.is_dir() and not runs_newest_first(path)


def _to_resume(path: Path | None) -> str:
    """The command that resumes the run that was most likely meant: the newest one, those that have finished last."""
    places = [RUNS] if path is None else [path, path.parent, RUNS]
    there = {
        recipe.parent.resolve(): recipe.parent for place in places for recipe in runs_newest_first(place)
    }
    if not there:
        return "To start a run, leave out --resume."
    run = next((one for one in there.values() if not RunDir(one).finished), None)
    run = run or next(iter(there.values()))
    command = shell_join(["effnetv2", "train", "DATA", "--out", str(run), "--resume"])
    return f"To resume the newest run: {command}. To start a new run, leave out --resume."


def _begun_by(world: World, out: Path | None) -> Path | None:
    """The run that an earlier try of this launch began; None if it did not come so far.

    A machine that takes another's place does not know of restarts. So what is not finished is gone on with at any try;
    a finished run only at a restart: else it is of an earlier launch that was given the same name.
    """
    for recipe_file in runs_newest_first(RUNS) if out is None else [out / "recipe.yaml"]:
        if not recipe_file.exists():
            continue
        folder = RunDir(recipe_file.parent)
        if not folder.beginning_file.exists():  # a copy of a part of a run, or one of an early version
            continue
        to_go_on_with = world.restarts > 0 or not folder.finished
        with suppress(InputError):  # it is damaged: nobody goes on with it, and it bars no other run
            if to_go_on_with and folder.beginning().get("launch") == world.launch:
                return folder.path
    return None
