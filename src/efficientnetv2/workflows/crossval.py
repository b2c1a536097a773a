"""Cross-validate a recipe: `efficientnetv2.cross_validate`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Unpack

import torch

from efficientnetv2.commands.crossval_job import crossvalidate
from efficientnetv2.commands.crossval_plan import Plan
from efficientnetv2.commands.within import refuse_run_within
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.workflows.arguments import (
    Overrides,
    PathLike,
    api,
    notes_screen,
    number,
    refuse_launched,
    run_arguments,
    settings_of,
)
from efficientnetv2.workflows.results import CrossValidation


@api
def cross_validate(
    data: PathLike,
    *,
    folds: int = 5,
    by: Literal["auto", "class", "group", "place", "time"] = "auto",
    block_degrees: float | None = None,
    time_column: str | None = None,
    candidates: Sequence[Mapping[str, Any]] = (),
    candidate_settings: Mapping[str, Any] | None = None,
    members: int = 1,
    compare_splits: bool = False,
    output: PathLike | None = None,
    resume: bool = False,
    recipe: PathLike | Recipe | None = None,
    device: str | torch.device = "auto",
    workers: int | None = None,
    **overrides: Unpack[Overrides],
) -> CrossValidation:
    """Train a model for each fold, predict the images that it has not seen, and report all predictions.

    Example::

        import efficientnetv2 as ev2

        result = ev2.cross_validate(
            "photos/", folds=2, model="efficientnetv2_b0", weights="none", epochs=1, image_size=64
        )
        print(result.metrics["macro_f1"], result.intervals["macro_f1"])
        ev2.predict(result, "new_photos/")  # the models of all folds together

    Args:
        data: Dataset, see `train`. Its own split counts for nothing, except that ``test`` stays aside.
        folds: Number of folds.
        by: What a fold keeps whole. "auto": locations and groups where they are known. "class": neither, stratified by
            class. "time": earlier images predict later ones.
        block_degrees: Side of spatial blocks in degrees. None takes the largest that splits well.
        time_column: Column of a year or date, with ``by="time"``. None finds it.
        candidates: Settings to choose from in every fold, such as ``[{"balance": None}, {"balance": "equal"}]``.
        candidate_settings: Settings that hold while choosing only, such as ``{"epochs": 4}``.
        members: Models that predict each fold together: the best candidates, or the recipe with as many seeds.
        compare_splits: Train a second set of folds, at random, to compare with folds by location.
        output: Folder of the cross-validation. None makes a new one under ``runs/``.
        resume: Resume the cross-validation in ``output``, or the newest under ``runs/``.
        recipe: Recipe, see `train`.
        device: Device to train on, see `train`.
        workers: Processes that read images, see `train`.
        overrides: Hyperparameters, and how ``data`` is read; see `train`. ``minutes`` is for all folds together.

    Raises:
        InputError: An argument, a file or an image that the caller can fix.
    """
    refuse_launched("cross_validate")
    words, source, place = run_arguments(
        cross_validate, data, recipe, overrides, output=output, device=device, workers=workers, resume=resume
    )
    plan = Plan(
        folds=number("folds", folds, 1, 1000),
        by=by,
        block_degrees=number("block_degrees", block_degrees, 0.001, 90, whole=False),
        time_column=time_column,
        tries=tuple(" ".join(map(shlex.quote, settings_of(one))) for one in candidates),
        try_settings=settings_of(candidate_settings or {}),
        members=number("members", members, 1, 100),
        compare_splits=compare_splits,
    )
    if not resume:
        refuse_run_within(source.data, place.out, "crossval")
    return CrossValidation(crossvalidate(words, source, place, plan, screen=notes_screen()))
