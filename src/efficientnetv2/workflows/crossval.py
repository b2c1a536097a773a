"""Cross-validate a recipe: `efficientnetv2.cross_validate`."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np
import torch

from efficientnetv2.data.config import DataConfig, with_bands
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.image_checks import validate_images
from efficientnetv2.data.prepared_data import decode_evaluated
from efficientnetv2.data.records import Ints, validate_copies
from efficientnetv2.data.shards.index import is_url
from efficientnetv2.data.splits import split_groups_warning
from efficientnetv2.evaluation.evaluation_result import EvaluationResult
from efficientnetv2.evaluation.predictions import MOST_CLASSES, SKIPPED, write_skipped
from efficientnetv2.training.callbacks import Callback, ProgressLog
from efficientnetv2.training.initial_weights import absolute_weights_path, validate_weights_name
from efficientnetv2.training.overrides import (
    TrainOverrides,
    open_weights,
    requested_recipe,
    sets_length,
    validate_label_settings,
    validate_requested_sizes,
)
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.run_dir import (
    LOCK,
    REPORT_FILES,
    RUNS,
    create_run_dir,
    lock_run_dir,
    new_run_path,
    read_skipped,
)
from efficientnetv2.training.run_request import RunOptions
from efficientnetv2.utils.device import pick_device
from efficientnetv2.utils.errors import InputError, ReaderKilledError, pluralize, shorten
from efficientnetv2.utils.io import check_writable_dir, entry_names
from efficientnetv2.utils.logs import progress, shown_by_default, silenced
from efficientnetv2.utils.shell import join_settings, shell_join
from efficientnetv2.workflows.arguments import (
    Overrides,
    PathLike,
    api,
    number,
    refuse_inside_data,
    run_arguments,
    settings_of,
    validate_run_paths,
)
from efficientnetv2.workflows.crossval_config import (
    CROSSVAL_JSON,
    CrossValConfig,
    SavedCrossVal,
    folds_digest,
    with_absolute_weights,
    with_settings,
    write_start,
)
from efficientnetv2.workflows.crossval_report import COMPARISON_FOLDER, CrossValResults, write_crossval_report
from efficientnetv2.workflows.crossval_runs import FoldTrainer
from efficientnetv2.workflows.results import CrossValidation
from efficientnetv2.workflows.train import log_summary

_logger = logging.getLogger(__name__)

_NAME = "crossval"  # of a folder that the user did not name


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

    The progress is printed as by `train`.

    Example::

        import efficientnetv2 as ev2

        result = ev2.cross_validate(
            "photos/", folds=2, model="efficientnetv2_b0", weights="none", epochs=2, image_size=64
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
        candidates: Settings to choose from in every fold, such as
            ``[{"class_sampling": None}, {"class_sampling": "equal"}]``.
        candidate_settings: Settings of the runs that compare the candidates, such as ``{"epochs": 4}``.
        members: Models that predict each fold together: the best candidates, or the recipe with as many seeds.
        compare_splits: Train a second set of folds to compare with: at random if the folds are by location, else by
            location. Every image needs a latitude and a longitude; not with ``by="group"`` or "time".
        output: Folder of the cross-validation. None makes a new one under ``runs/``.
        resume: Resume the cross-validation in ``output``, or the newest under ``runs/``.
        recipe: Recipe, see `train`.
        device: Device to train on, see `train`.
        workers: Processes that read images, see `train`.
        overrides: Hyperparameters, and how ``data`` is read; see `train`. ``minutes`` is for all folds together.

    Raises:
        InputError: An argument, a file or an image that the caller can fix.
    """
    train_overrides, source, options = run_arguments(
        cross_validate, data, recipe, overrides, output=output, device=device, workers=workers, resume=resume
    )
    config = CrossValConfig(
        folds=number("folds", folds, 1, 1000, default=CrossValConfig.folds),
        by=CrossValConfig.by if by is None else by,
        block_degrees=number("block_degrees", block_degrees, 0.001, 90, whole=False),
        time_column=time_column,
        tries=tuple(join_settings(settings_of(settings, "candidates[...]")) for settings in candidates or ()),
        try_settings=settings_of(candidate_settings or {}, "candidate_settings"),
        members=number("members", members, 1, 100, default=CrossValConfig.members),
        compare_splits=compare_splits,
    )
    if not resume:
        validate_run_paths(source.data, options.out, "crossval")
    with shown_by_default():
        return CrossValidation(
            run_crossval(train_overrides, source, options, config, callbacks=[ProgressLog()], on_result=log_summary)
        )


def run_crossval(
    overrides: TrainOverrides,
    source: DataConfig,
    options: RunOptions,
    config: CrossValConfig,
    given: Collection[str] = (),
    callbacks: Sequence[Callback] = (),
    on_result: Callable[[EvaluationResult | Path], None] = lambda result: None,
) -> Path:
    """Train a model for each fold, report all predictions, and return the folder.

    ``given`` are the options that the user typed. ``on_result`` gets the result, or of a cross-validation that had
    finished before, the path of its report.
    """
    folder, saved = _folder(options), None
    if overrides.weights is not None:  # it may be resumed from another directory
        overrides = replace(overrides, weights=absolute_weights_path(overrides.weights))
    config = replace(config, tries=tuple(map(with_absolute_weights, config.tries)))
    if options.resume:
        saved = SavedCrossVal.read(folder, source.data)
        if overrides.cache and saved.overrides.cache:  # where the images are cached changes none of their pixels
            saved = replace(saved, overrides=replace(saved.overrides, cache=overrides.cache))
        saved.check_same(folder, overrides, config, source, given)
        if all((folder / name).exists() for name in REPORT_FILES):
            on_result(folder / "report.json")
            _logger.info(f"The cross-validation in {folder} has finished: nothing is left to do.")
            _logger.info(f"Report: {folder / 'report.html'}")
            return folder
        overrides, config, source = saved.overrides, saved.config, saved.source
    else:
        command = "crossval" if options.out is None else None
        refuse_inside_data(source.data, folder, "`output`", command=command)
    # Recipes first: the check of every image takes longer.
    recipe = check_recipes(overrides, config, options, source.label_separator)
    dataset, contents, skipped = load_images(
        source, options, recipe.seed, folder if saved else None, None if saved else config
    )
    folds = config.make_folds(dataset, contents, recipe.seed)
    other_folds = config.comparison_folds(dataset, contents, recipe.seed, folds)
    if saved is None:
        config.validate_splits(dataset, contents, folds, other_folds, recipe)
    is_new, created = saved is None, list[Path]()
    if saved is None:
        created = [path for path in (folder, *folder.parents) if not path.exists()]
        with create_run_dir(folder, name=_NAME if options.out is None else None, refuse=_refuse_occupied) as folder:
            saved = SavedCrossVal(overrides, config, source, folds_digest(dataset, folds))
            write_start(folder, saved, dataset, folds)
            created[:1] = [folder] if created else []  # perhaps under another name
        write_skipped(folder / SKIPPED, skipped)
        _logger.info(f"Folder: {folder}")
        if skipped:
            _logger.info(f"What could not be read is listed in {folder / SKIPPED}.")
    else:
        saved.check_folds(folder, dataset, folds)
        dataset = with_saved_paths(folder, dataset)
    _logger.info(folds.note)
    options = replace(options, out=folder)
    trainer = FoldTrainer(
        overrides, config, options, dataset, contents, recipe.seed, source.bands, source.nodata, callbacks
    )
    try:
        with _start_removed_on_error(folder, created) if is_new else nullcontext(), lock_run_dir(folder):
            results, other_results = trainer.predict(folds, folder, "Fold"), None
            if config.compare_splits and other_folds is not None:
                title = "Fold at random" if other_folds.by == "class" else "Fold by place"
                other_results = trainer.predict(other_folds, folder / COMPARISON_FOLDER, title)
            found = CrossValResults(folder, trainer, folds, results, other_folds, other_results, skipped)
            write_crossval_report(found, on_result)
    except (KeyboardInterrupt, ReaderKilledError) as stop:
        resume = ["effnetv2", "crossval", source.data, "--output", str(folder), "--resume", *options.words]
        hint = f"To resume: {shell_join(resume)}"
        if isinstance(stop, ReaderKilledError):
            raise ReaderKilledError(f"{stop} {hint}") from stop
        raise KeyboardInterrupt(hint) from stop
    return folder


@contextmanager
def _start_removed_on_error(folder: Path, created: Sequence[Path]) -> Iterator[None]:
    """Remove the start of a cross-validation, and the created folders, after an error before a run has begun.

    Otherwise the folder could neither be used again, nor be resumed with options that avoid the error. After Ctrl-C and
    a killed reader, the message has the command to resume.
    """
    try:
        yield
    except (KeyboardInterrupt, ReaderKilledError):
        raise
    except BaseException:
        if not any(next(folder.rglob(name), None) for name in ("run.json", "recipe.yaml")):
            tables = [file for part in (".", "selection") for file in (folder / part / "tables").glob("*.csv")]
            for file in (*tables, *(folder / name for name in ("dataset.csv", CROSSVAL_JSON, SKIPPED))):
                file.unlink(missing_ok=True)
            for path in (*(folder / name for name in ("selection/tables", "selection", "tables")), *created):
                with suppress(OSError):  # not empty, or not there
                    path.rmdir()
        raise


def _folder(options: RunOptions) -> Path:
    """The folder of a new cross-validation, or of the one to resume."""
    if not options.resume:
        check_writable_dir(options.out or RUNS, "`output`")
        if options.out is None:
            return new_run_path(RUNS, _NAME)
        _refuse_occupied(options.out)
        return options.out
    parents = [RUNS] if options.out is None else [options.out.parent, RUNS]
    started = sorted(
        (file for parent in parents for file in parent.glob(f"*/{CROSSVAL_JSON}")),
        key=lambda file: file.stat().st_mtime,
    )
    newest = started[-1].parent if started else None
    path = options.out or newest
    if path is not None and (path / CROSSVAL_JSON).exists():
        return path
    command = shell_join(["effnetv2", "crossval", "DATA", "--output", str(newest), "--resume"])
    fix = f"To resume the newest: {command}." if newest else "To start one, leave out `resume`."
    raise InputError(f"`resume`: there is no cross-validation in {path or RUNS}. {fix}")


def _refuse_occupied(path: Path) -> None:
    files = [name for name in entry_names(path) if name != LOCK]
    if CROSSVAL_JSON in files:
        raise InputError(f"`output={path}` has a cross-validation. Resume it with `resume=True`.")
    if files:
        raise InputError(f"`output={path}` is not empty ({shorten(files, 3)}). Give another folder.")


def check_recipes(
    overrides: TrainOverrides, config: CrossValConfig, options: RunOptions, separator: str | None = None
) -> Recipe:
    """The recipe; it and those of all candidates are checked before anything is trained."""
    device = pick_device(options.device)
    starts = [start.word for start in open_weights(overrides, device)]

    def check(overrides: TrainOverrides) -> Recipe:
        with silenced():
            recipe, _ = requested_recipe(overrides, device)
        validate_label_settings(recipe, overrides, separator)
        if not options.resume:  # the initial weights of a resumed one may be gone
            validate_weights_name(recipe.weights)
        validate_requested_sizes(recipe, device, starts)
        return recipe

    recipe = check(overrides)
    for index, name in enumerate(config.tries):
        settings = config.candidate_settings(index)
        if overrides.minutes is not None and sets_length(settings):
            both = f"{name} and `minutes={overrides.minutes:g}`"
            raise InputError(f"`candidates`: {both} both set the training length. Leave one of them out.")
        # A selected candidate is trained without what holds during the selection.
        for further in dict.fromkeys((config.try_settings, ())):
            try:
                check(with_settings(overrides, (*settings, *further)))
            except InputError as error:
                raise InputError(f"`candidates`: {' '.join((name, *further))}: {error}") from error
    return recipe


def load_images(
    source: DataConfig, options: RunOptions, seed: int, folder: Path | None = None, config: CrossValConfig | None = None
) -> tuple[ImageDataset, Ints, list[tuple[str, str]]]:
    """The readable images, ids equal for identical files, and path and reason of each unreadable image.

    The images of a cross-validation to resume in ``folder`` are those that were readable when it was started.
    """
    # Given splits do not count, except test.
    dataset = source.read(use_splits=("test",))
    if len(dataset.class_names) > MOST_CLASSES:
        classes = f"{len(dataset.class_names):,} classes, but crossval takes at most {MOST_CLASSES:,}"
        raise InputError(f"{dataset.source} has {classes}. Use train with a val split.")
    validate_copies(dataset)
    if config is not None:
        config.validate_columns(dataset)
    with progress("looking", len(dataset)) as counted:
        found = validate_images(dataset, strict=options.strict, progress=counted)
    for note in (*dataset.notes, *found.notes):
        _logger.info(note)
    skipped = [(dataset.paths[row], why) for row, why in found.unreadable.items()]
    rows = found.readable
    if folder is not None:
        rows, skipped = readable_at_start(folder, dataset, rows)
    else:
        if skipped:
            _logger.info(f"Skipped {pluralize(len(skipped), 'unreadable image')}, the first: {' '.join(skipped[0])}.")
        evaluated = rows[dataset.split[rows] != "test"]
        with silenced():  # each fold measures the bands of its own rasters
            part = with_bands(dataset.select(evaluated), source, seed=seed)
        bad = decode_evaluated(part, np.arange(len(part)), strict=options.strict)
        skipped += [(part.paths[row], reason) for row, reason in bad.items()]
        rows = np.setdiff1d(rows, evaluated[list(bad)])
    dataset = dataset.select(rows)
    if warning := split_groups_warning(dataset):
        _logger.info(warning.strip())
    return dataset, found.contents[rows], skipped


def readable_at_start(folder: Path, dataset: ImageDataset, readable: Ints) -> tuple[Ints, list[tuple[str, str]]]:
    """Rows of the images of the folds and of new ones, and what was skipped when the folds were made.

    The runs skip images that have become unreadable since.
    """
    # Sets: np.isin compares each path with each, hours for a million images.
    used = set(_saved_dataset(folder, dataset).paths)
    skipped = [(path, why) for path, why in read_skipped(folder / SKIPPED) if path not in used]
    unread = {path for path, _ in skipped}
    in_folds, in_skipped = (np.flatnonzero([path in paths for path in dataset.paths]) for paths in (used, unread))
    readable_again = np.intersect1d(in_skipped, readable)
    for rows, change in (
        (np.setdiff1d(in_folds, readable), "of the folds cannot be read any more and are skipped"),
        (readable_again, "skipped at the start stay out"),
    ):
        if len(rows):
            _logger.info(f"{pluralize(len(rows), 'image')} {change} (first: {dataset.paths[rows[0]]}).")
    return np.setdiff1d(np.union1d(readable, in_folds), readable_again), skipped


def with_saved_paths(folder: Path, dataset: ImageDataset) -> ImageDataset:
    """The images by the same path from ``folder`` as at the start, by which the runs there know them.

    Another path to the same images, such as a link, is replaced; InputError if images or folder have moved.
    """
    pairs = zip(_saved_dataset(folder, dataset).paths, dataset.paths, strict=False)
    before, now = next((pair for pair in pairs if pair[0] != pair[1]), ("", ""))
    if before == now:
        return dataset
    prefix = before.removesuffix(now).rstrip("/")
    root = prefix if is_url(prefix) else os.path.realpath(folder / prefix)
    if isinstance(dataset.root, Path) and root == os.path.realpath(dataset.root):
        # By the name of the folder, as ``ImageDataset.relative_to`` does, unless a link in it leads elsewhere.
        roots = [Path(os.path.normpath(path / prefix)) for path in (folder.absolute(), folder.resolve())]
        return replace(dataset, root=next(path for path in roots if os.path.realpath(path) == root))
    places = f"from {root} to {dataset.root}, as seen from {folder}"
    raise InputError(f"the images have moved {places}. Move them back, or give a new `output`.")


def _saved_dataset(folder: Path, dataset: ImageDataset) -> ImageDataset:
    return ImageDataset.from_csv(
        folder / "dataset.csv", root=dataset.root, source=dataset.source, separator=dataset.separator
    )
