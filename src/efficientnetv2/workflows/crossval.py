"""Cross-validate a recipe: `efficientnetv2.cross_validate`."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np
import numpy.typing as npt
import torch

from efficientnetv2.data.augmented_copies import validate_copy_splits
from efficientnetv2.data.config import DataConfig, with_bands
from efficientnetv2.data.data_module import decode_evaluated
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.folds import Folds
from efficientnetv2.data.records import Ints
from efficientnetv2.data.shards.index import is_url
from efficientnetv2.data.splits import split_groups_warning
from efficientnetv2.data.validate import validate_images
from efficientnetv2.training.callbacks import Callback
from efficientnetv2.training.initial_weights import absolute_weights_path, validate_weights_name
from efficientnetv2.training.overrides import (
    TrainOverrides,
    open_weights,
    requested_recipe,
    sets_length,
    validate_requested_sizes,
)
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.run_dir import LOCK, REPORT_FILES, quarantine, read_skipped
from efficientnetv2.training.run_lock import create_run_dir, lock_run_dir, new_run_path
from efficientnetv2.training.run_options import RunOptions
from efficientnetv2.utils.device import pick_device
from efficientnetv2.utils.errors import InputError, count_of, some
from efficientnetv2.utils.io import check_writable_dir, write_atomically
from efficientnetv2.utils.logs import silenced
from efficientnetv2.utils.progress import progress
from efficientnetv2.utils.shell import command_line, typed
from efficientnetv2.workflows.arguments import (
    Overrides,
    PathLike,
    api,
    number,
    refuse_launched,
    run_arguments,
    settings_of,
)
from efficientnetv2.workflows.auto_config import refuse_unlike
from efficientnetv2.workflows.batch_predict import SKIPPED, write_skipped
from efficientnetv2.workflows.crossval_config import (
    FILE,
    Plan,
    begun_otherwise,
    begun_with,
    remember,
    with_further,
)
from efficientnetv2.workflows.crossval_report import OTHERWISE, conclude
from efficientnetv2.workflows.crossval_runs import Runs
from efficientnetv2.workflows.evaluation_result import EvaluationResult
from efficientnetv2.workflows.output_paths import RUNS, refuse_run_within, refuse_within
from efficientnetv2.workflows.predictions_io import MOST_CLASSES
from efficientnetv2.workflows.results import CrossValidation

_logger = logging.getLogger(__name__)

_NAME = "crossval"  # in that of a folder that nobody has named


def crossvalidate(
    words: TrainOverrides,
    source: DataConfig,
    place: RunOptions,
    plan: Plan,
    said: Collection[str] = (),
    callbacks: Sequence[Callback] = (),
    on_result: Callable[[EvaluationResult | Path], None] = lambda result: None,
) -> Path:
    """Train a network for each fold, and report the answers of all.

    Args:
        words: about the recipe.
        source: of the pictures.
        place: where and how to run.
        plan: of the folds.
        said: names of what was typed, a default or not: folds that are gone on with were begun with it.
        callbacks: called in every run.
        on_result: gets what the folds came to; of some that had finished before, the file of their report.

    Returns:
        The folder.

    Raises:
        InputError: anything a user can mend.
        KeyboardInterrupt: Ctrl-C; says how to go on.
    """
    folder, resumed = _folder(place)
    if words.weights is not None:  # its folds begin, and may be gone on with, from whatever folder
        words = replace(words, weights=absolute_weights_path(words.weights))
    if not resumed:
        refuse_within(source.data, folder, "--out", verb="crossval" if place.out is None else None)
    if resumed and all((folder / name).exists() for name in REPORT_FILES):
        on_result(folder / "report.json")
        _logger.info(f"The cross-validation in {folder} has finished: nothing is left to do.")
        _logger.info(f"Report: {folder / 'report.html'}")
        return folder
    asked = plan
    if resumed:
        words, plan, source, digest = begun_with(folder, words, plan, source, pick_device(place.device), said)
    # Before every picture is looked at: what is refused takes no time.
    recipe = _recipe(words, plan, place, source.label_separator)
    begun = folder if resumed else None
    dataset, contents, skipped = _pictures(source, place, recipe.seed, begun)
    if resumed:
        plan = _without_vain_comparison(plan, dataset)
    dealt = plan.dealt(dataset, contents, recipe.seed)
    others = plan.otherwise(dataset, contents, recipe.seed, dealt)
    now = _digest(dataset, dealt)
    if resumed and now != digest:
        raise InputError(
            f"--resume: the pictures, or what is known of their places, are not those that the folds in {folder} were "
            "begun with. Bring them back, or begin anew with another --out."
        )
    if resumed:
        dataset = _where_it_lay(folder, dataset)
        _refuse_other_rule(folder, asked, plan, dataset, contents, recipe.seed, digest, said)
    _logger.info(dealt.note)
    if not resumed:
        name = _NAME if place.out is None else None
        with create_run_dir(folder, name=name, refuse=_refuse_occupied) as folder:
            _begin(folder, words, plan, source, now, dataset, dealt)
        _logger.info(f"Folder: {folder}")
        write_skipped(folder / SKIPPED, skipped)
        if skipped:
            _logger.info(f"What could not be read is listed in {folder / SKIPPED}.")
    at = replace(place, out=folder)
    runs = Runs(words, plan, at, dataset, contents, recipe.seed, source.bands, source.nodata, callbacks)
    try:
        with lock_run_dir(folder):
            answered = runs.answer(dealt, folder, "Fold")
            compared = others if plan.compare_splits else None
            again = runs.answer(compared, folder / OTHERWISE, _called(compared)) if compared else None
            conclude(folder, runs, dealt, answered, others, again, skipped, on_result)
    except KeyboardInterrupt as stop:
        go_on = ["effnetv2", "crossval", source.data, "--out", str(folder), "--resume", *place.words]
        raise KeyboardInterrupt(f"Go on with: {typed(go_on)}") from stop
    return folder


def _folder(place: RunOptions) -> tuple[Path, bool]:
    """The folder, and whether there is something to go on with."""
    if place.resume:
        places = [RUNS] if place.out is None else [place.out.parent, RUNS]
        begun = sorted(
            (file for folder in places for file in folder.glob(f"*/{FILE}")),
            key=lambda file: file.stat().st_mtime,
        )
        path = place.out or (begun[-1].parent if begun else None)
        if path is None or not (path / FILE).exists():
            newest = (
                ["effnetv2", "crossval", "DATA", "--out", str(begun[-1].parent), "--resume"] if begun else []
            )
            raise InputError(
                f"--resume: there is no cross-validation in {path or RUNS}. "
                + (f"To resume the newest one: {typed(newest)}. " if begun else "")
                + "To start a new one, leave out --resume."
            )
        return path, True
    check_writable_dir(place.out or RUNS, "--out")
    if place.out is None:
        return new_run_path(RUNS, _NAME), False
    _refuse_occupied(place.out)
    return place.out, False


def _refuse_occupied(path: Path) -> None:
    there = [file.name for file in path.iterdir() if file.name != LOCK] if path.is_dir() else []
    if FILE in there:
        raise InputError(
            f"--out {path} holds a cross-validation already. Go on with it by --resume, or give another folder."
        )
    if there:
        raise InputError(f"--out {path} is not empty ({some(there, 3)}). Give another folder.")


def _pictures(
    source: DataConfig, place: RunOptions, seed: int, begun: Path | None = None
) -> tuple[ImageDataset, Ints, list[tuple[str, str]]]:
    """The readable pictures, which of them are identical, and path and reason of those that could not be read.

    Of folds that are gone on with, those that were readable when they were begun: a fold passes over what it can no
    more read, as a run does.

    Args:
        source: of all.
        place: how strict.
        seed: of the recipe.
        begun: the folder of folds that are gone on with; None of new ones.
    """
    # Splits that are given do not count here, so neither does what stands in two of them; test stays aside.
    dataset = source.read(use_splits=("test",))
    if len(dataset.class_names) > MOST_CLASSES:
        raise InputError(
            f"{dataset.source} has {len(dataset.class_names):,} classes, but answers are put together for at most "
            f"{MOST_CLASSES:,}. Use train with a val split."
        )
    validate_copy_splits(dataset)
    with progress("looking", len(dataset)) as counted:
        found = validate_images(dataset, strict=place.strict, progress=counted)
    for note in (*dataset.notes, *found.notes):
        _logger.info(note)
    skipped = [(dataset.paths[row], why) for row, why in zip(found.unreadable, found.reasons, strict=True)]
    rows = found.readable
    if begun is not None:
        rows, skipped = _readable_then(begun, dataset, rows)
    else:
        if skipped:
            _logger.info(
                f"Skipped {count_of(len(skipped), 'unreadable picture')}, the first: {' '.join(skipped[0])}."
            )
        answered = rows[dataset.split[rows] != "test"]
        # By a rule, as each fold reads rasters; the folds measure and tell their own.
        with silenced():
            part = with_bands(dataset.select(answered), source, seed=seed)
        bad = decode_evaluated(part, np.arange(len(part)), strict=place.strict)
        skipped += [(part.paths[row], reason) for row, reason in bad.items()]
        rows = np.setdiff1d(rows, answered[list(bad)])
    dataset = dataset.select(rows)
    if apart := split_groups_warning(dataset):
        _logger.info(apart.strip())
    return dataset, found.contents[rows], skipped


def _readable_then(folder: Path, dataset: ImageDataset, readable: Ints) -> tuple[Ints, list[tuple[str, str]]]:
    """The rows that were readable when the folds were begun, with those that are new, and what was left out then."""
    there = ImageDataset.from_csv(
        folder / "manifest.csv", root=dataset.root, source=dataset.source, separator=dataset.separator
    )
    paths, listed = dataset.paths, set(there.paths)
    recorded = read_skipped(folder / SKIPPED)
    if recorded is None:
        _logger.info(quarantine(folder / SKIPPED, "The list of skipped images starts again."))
    left_out = [(path, why) for path, why in recorded or () if path not in listed]
    unread = {path for path, _ in left_out}
    # By sets: numpy's isin compares every path with every other, hours of a million pictures.
    dealt, known = (np.flatnonzero([path in those for path in paths]) for those in (listed, unread))
    lost, back = np.setdiff1d(dealt, readable), np.intersect1d(known, readable)
    if len(lost):
        _logger.info(
            f"{count_of(len(lost), 'picture')} of the folds can't be read any more (first: {paths[lost[0]]}), to be "
            "passed over."
        )
    if len(back):
        _logger.info(
            f"{count_of(len(back), 'picture')} that could not be read when the folds were begun can be now (first: "
            f"{paths[back[0]]}), left out as before."
        )
    return np.setdiff1d(np.union1d(readable, lost), back), left_out


def _recipe(words: TrainOverrides, plan: Plan, place: RunOptions, separator: str | None = None) -> Recipe:
    """The recipe, and those of every try, refused before anything is trained.

    Raises:
        InputError: one of them is none, or of no effect on pictures whose labels ``separator`` parts.
    """
    device = pick_device(place.device)
    with silenced():
        recipe, _ = requested_recipe(words, device)
    starts = [one.word for one in open_weights(words, device)]

    def refuse(one: Recipe, asked: TrainOverrides) -> None:
        refuse_unlike(one, asked, separator)
        if not place.resume:  # weights that the folds began with may be gone
            validate_weights_name(one.weights)
        validate_requested_sizes(one, device, starts)

    refuse(recipe, words)
    for index in range(len(plan.tries)):
        if words.minutes is not None and sets_length(plan.settings_of(index)):
            raise InputError(
                f"--try {plan.tries[index]}: it says how long to train, but so does --minutes {words.minutes:g}, "
                "which is for all folds and tries. Leave one of them out; how long tries alone take, --try-set may say."
            )
        # Without what holds while choosing alone, too: that is how it answers, after all have been tried.
        for further in dict.fromkeys((plan.try_settings, ())):
            try:
                tried = with_further(words, (*plan.settings_of(index), *further))
                with silenced():
                    further_recipe, _ = requested_recipe(tried, device)
                refuse(further_recipe, tried)
            except InputError as error:  # for the words alone have just been taken
                said = "".join(f" --try-set {setting}" for setting in further)
                reason = str(error).replace("--set ", "")  # which nobody typed
                raise InputError(f"--try {plan.tries[index]}{said}: {reason}") from error
    return recipe


def _without_vain_comparison(plan: Plan, dataset: ImageDataset) -> Plan:
    """Without folds that were asked for beside these, where nothing could be told of them: none are begun so any more.

    Those that earlier versions have begun would else be refused for a word that can't be taken back.
    """
    if not plan.compare_splits or dataset.separator is None:
        return plan
    _logger.info(
        "--compare-splits, with which these folds were begun, is left out from here on: the pictures have several "
        "labels each, but what neighbours flatter is measured of one."
    )
    return replace(plan, compare_splits=False)


def _digest(dataset: ImageDataset, dealt: Folds) -> str:
    """Of the pictures and who answers them."""
    folds = dealt.fold_of_image(len(dataset))
    return dataset.with_split(np.array([f"fold {one}" for one in folds], dtype=object)).digest()


def _refuse_other_rule(
    folder: Path,
    asked: Plan,
    plan: Plan,
    dataset: ImageDataset,
    contents: Ints,
    seed: int,
    digest: str,
    said: Collection[str],
) -> None:
    """A rule that is named again gives the folds that are there: without places or groups auto is by class.

    Raises:
        InputError: it gives others, or none.
    """
    if asked.by == plan.by or (asked.by == Plan.by and "by" not in said):
        return
    with suppress(InputError):
        if _digest(dataset, replace(plan, by=asked.by).dealt(dataset, contents, seed)) == digest:
            return
    raise begun_otherwise(folder, [f"by is {plan.by} there, {asked.by} here"])


def _where_it_lay(folder: Path, dataset: ImageDataset) -> ImageDataset:
    """The pictures by the way on which the folds found them when they were begun.

    Its runs know them by the way from there: a fold that is done calls what it answered so, and one that is not goes on
    with these files alone. Another way to the same place, as by a link, comes to that one.

    Raises:
        InputError: they, or the folder, have been moved.
    """
    there = ImageDataset.from_csv(
        folder / "manifest.csv", root=dataset.root, source=dataset.source, separator=dataset.separator
    )
    pairs = zip(there.paths, dataset.paths, strict=False)
    before, now = next((pair for pair in pairs if pair[0] != pair[1]), ("", ""))
    if before == now:
        return dataset
    way = before.removesuffix(now).rstrip("/")
    was = way if is_url(way) else os.path.realpath(folder / way)
    if isinstance(dataset.root, Path) and was == os.path.realpath(dataset.root):
        # From the folder as it is called, as ``ImageDataset.relative_to`` does, unless a link in that leads elsewhere.
        places = [Path(os.path.normpath(one / way)) for one in (folder.absolute(), folder.resolve())]
        return replace(dataset, root=next(one for one in places if os.path.realpath(one) == was))
    raise InputError(
        f"--resume: as seen from {folder}, the pictures lay in {was} when the folds were begun, but lie in "
        f"{dataset.root} now, and the runs there know them by that way. Bring back what was moved, the pictures or "
        "the folder, or begin anew with another --out."
    )


def _begin(
    folder: Path,
    words: TrainOverrides,
    plan: Plan,
    source: DataConfig,
    digest: str,
    dataset: ImageDataset,
    dealt: Folds,
) -> None:
    write_atomically(
        folder / "manifest.csv", dealt.with_folds(dataset.with_split(_taught(dataset, dealt))).to_csv
    )
    remember(folder, words, plan, source, digest, command_line())


def _taught(dataset: ImageDataset, dealt: Folds) -> npt.NDArray[np.object_]:
    """(N,) splits as they are to whoever asks the folds' networks together: train for what has trained one of them.

    By time the last period has trained none; neither is it a split of its own, for it is answered like the others.
    """
    split = np.where(dataset.split == "test", "test", "").astype(object)
    for part in dealt.parts:
        split[part.train_rows] = "train"
    return split


def _called(dealt: Folds | None) -> str:
    return "Fold at random" if dealt is not None and dealt.by == "class" else "Fold by place"


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
        tries=tuple(typed(settings_of(one)) for one in candidates),
        try_settings=settings_of(candidate_settings or {}),
        members=number("members", members, 1, 100),
        compare_splits=compare_splits,
    )
    if not resume:
        refuse_run_within(source.data, place.out, "crossval")
    return CrossValidation(crossvalidate(words, source, place, plan))
