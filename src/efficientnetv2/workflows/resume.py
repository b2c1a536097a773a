"""Resume a run with the same images, recipe and model."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.file_probe import MAX_UNREADABLE
from efficientnetv2.data.prepared_data import PreparedData
from efficientnetv2.data.records import AUGMENTED_FROM
from efficientnetv2.data.shards.index import is_url
from efficientnetv2.evaluation.bootstrap_clusters import relative_prefix
from efficientnetv2.evaluation.run_comparison import PreviousRun
from efficientnetv2.models import provenance
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.models.model_header import parse_entry
from efficientnetv2.preprocessing import Bands, Preprocessing
from efficientnetv2.training.checkpoints import checkpoint_steps, remove_checkpoints
from efficientnetv2.training.ddp import validate_sharing
from efficientnetv2.training.head_init import fit_head
from efficientnetv2.training.image_cache import build_cache
from efficientnetv2.training.initial_weights import build_initial_model, build_model
from efficientnetv2.training.memory_probe import MemoryProbe, fit_groups
from efficientnetv2.training.microbatch import ONE_GROUP_PER_PASS, MicrobatchPlan
from efficientnetv2.training.overrides import train_longer_hint
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.run_dir import RunDir
from efficientnetv2.training.run_request import ResolvedRun, RunRequest
from efficientnetv2.training.startup_notes import length_line, model_lines
from efficientnetv2.training.time_limit import TimeLimit
from efficientnetv2.utils.device import Hardware
from efficientnetv2.utils.errors import InputError, pluralize
from efficientnetv2.utils.io import read_object, write_atomically
from efficientnetv2.utils.shell import option_args, shell_join

_logger = logging.getLogger(__name__)


def resume_run(
    request: RunRequest,
    data: PreparedData,
    hardware: Hardware,
    *,
    began: float | None = None,
    baseline: PreviousRun | None = None,
) -> ResolvedRun:
    """The run as it was resolved when it was started; its checkpoint brings the weights.

    As many groups run per pass as before, for the same bits, unless a memory limit is given. ``began`` is the
    ``time.monotonic()`` when the command began; None is now.
    """
    recipe, folder = request.recipe, RunDir(request.path)
    # Images that cannot be read now may leave too few to set aside for minival.
    data = replace(data, has_selection_set=recipe.minival is not None)
    validate_sharing(recipe, hardware.device, hardware.world, begun=True)
    length = length_line(recipe, len(data.train), None, request.path)
    for line in (*model_lines(recipe, (), hardware.device), length):
        _logger.info(line)
    if baseline is not None:
        folder.amend_beginning(**baseline.save(request.path))
    facts = folder.beginning()
    # Where the images are cached changes none of their pixels; whether they are is the recipe's affair.
    cache_place = request.overrides.cache or facts.get("cache")
    cache = build_cache(cache_place, recipe, data, hardware, facts.get("cache_px"))
    if cache is not None:
        _logger.debug(cache.note)
    network = _initial_model(folder, facts, recipe, data, hardware)
    microbatches = MicrobatchPlan.from_json(facts["microbatches"])
    if recipe.sync_batch_norm and hardware.world.is_distributed:  # as in a new run of several processes
        microbatches = ONE_GROUP_PER_PASS
    if hardware.memory_gib is not None:
        probe = MemoryProbe(recipe, network, hardware)
        _, microbatches, notes = fit_groups(recipe, probe, is_set=True, is_fixed=True)
        folder.amend_beginning(microbatches=microbatches.by_px)
        for note in notes:
            _logger.info(note)
    if facts.get("minival_unused"):
        data = data.without_selection()
    limit = None
    if "time_limit" in facts:
        now = time.monotonic() if began is None else began
        limit = TimeLimit.from_json(facts["time_limit"], began=now)
    preprocessing = Preprocessing.from_json(facts["preprocessing"])
    return ResolvedRun(request, recipe, network, microbatches, preprocessing, data, cache=cache, limit=limit)


def _initial_model(
    folder: RunDir, facts: dict[str, Any], recipe: Recipe, data: PreparedData, hardware: Hardware
) -> Network:
    class_names, channels = data.train.class_names, data.dataset.channels
    if checkpoint_steps(folder.checkpoints) or recipe.weights == "none":
        # Its weights are the checkpoint's; the initial ones may be gone by now.
        network = build_model(recipe, recipe.model, num_classes=len(class_names), in_channels=channels)
        if entry := facts.get("weights_trained_on"):
            network.trained_on = parse_entry(
                folder.beginning_file, entry, provenance.KEY, provenance.TrainingFingerprint.from_json
            )
        return network
    initial = build_initial_model(recipe, class_names=class_names, device=hardware.device, in_channels=channels)
    for note in initial.notes:
        _logger.info(note)
    if recipe.head_init == "linear_probe" and not initial.network.class_names:
        preprocessing, images = Preprocessing.from_json(facts["preprocessing"]), facts.get("probe_images")
        fit_head(initial.network, data, preprocessing, recipe, replace(hardware, workers=0), images)
        initial.network.to("cpu")  # other processes get it from here, each for its own device
    return initial.network


def require_same_separator(path: Path, separator: str | None) -> None:
    """Refuse to read the labels of a run in another way. Raises InputError."""
    started = RunDir(path).beginning().get("label_separator")
    if started != separator:
        given = "without `label_separator`" if started is None else f"with `label_separator={started}`"
        raise InputError(f"the run in {path} was started {given}, so its classes differ. Pass the same option.")


def restore_dataset(path: Path, data: PreparedData) -> PreparedData:
    """The images that a run was started with.

    Where images have become unreadable, or readable again, the run's saved list counts, with its splits; unreadable
    images are skipped as if they were lost during the run.

    Raises:
        InputError: They are other images, or read in another way.
    """
    folder = RunDir(path)
    facts, now = folder.beginning(), data.dataset
    saved = ImageDataset.from_csv(folder.dataset_file, root=now.root, source=now.source, separator=now.separator)
    bands = Preprocessing.from_json(facts["preprocessing"]).bands
    if saved.digest() != now.digest():
        saved = _moved(folder, saved, now)
    if saved.digest() != now.digest():
        gone, new = set(saved.paths) - set(now.paths), set(now.paths) - set(saved.paths)
        if not _differ_by_skipped(saved, data, gone, new, folder):
            found = [
                f"{len(names)} {word} (first: {min(names)})" for names, word in ((gone, "gone"), (new, "new")) if names
            ]
            problem = ", ".join(found) or "labels, splits or order differ"
            raise InputError(
                f"the run in {path} has other images: {problem}. Restore them, and read them with the options of the "
                f"start: {facts.get('command')}. Or give a new `output`."
            )
        data = _from_list(saved, data, gone)
        now = data.dataset
        if bands is not None and now.bands is not None and bands.numbers == now.bands.numbers:
            # What becomes 0 and 255 was measured on those that could be read then.
            data = replace(data, dataset=replace(now, bands=bands))
        for names, change in ((gone, "can't be read any more"), (new, "could not be read, and stay out")):
            if names:
                images = f"{pluralize(len(names), 'image')} of the run {change} (first: {min(names)})"
                _logger.info(f"{images}. The run keeps its list of images.")
    _validate_bands(path, bands, data.dataset.bands)
    return data


def _moved(folder: RunDir, saved: ImageDataset, now: ImageDataset) -> ImageDataset:
    """The run's list by the paths of today, if the images have moved but have the same names.

    A job on a cluster finds its copy in a new place each time; a link is another way to the same images.
    """
    prefix = relative_prefix(saved.paths, now.paths) if len(saved) == len(now) else None
    if prefix is None:
        return saved
    table = saved.table.assign(path=saved.table["path"].str.removeprefix(prefix))
    if AUGMENTED_FROM in table:
        table[AUGMENTED_FROM] = table[AUGMENTED_FROM].str.removeprefix(prefix)
    moved = replace(saved, table=table)
    if moved.digest() != now.digest():
        return saved
    before = prefix.rstrip("/") if is_url(prefix) else os.path.realpath(folder.path / prefix)
    write_atomically(folder.dataset_file, moved.to_csv)
    _logger.info(f"The images have moved from {before} to {now.root}. Names, labels and splits are the same.")
    return moved


def _validate_bands(path: Path, bands: Bands | None, now: Bands | None) -> None:
    if bands != now:
        numbers = "none" if bands is None else ",".join(map(str, bands.numbers))
        fix = "Restore the images, and give `bands` as before."
        if bands is not None and now is not None and bands.numbers == now.numbers and bands.nodata != now.nodata:
            values = ",".join(option_args(nodata=value)[1] for value in bands.nodata) or "none"
            raise InputError(f"the run in {path} was started with missing data {values}. Set `nodata={values}`.")
        raise InputError(f"the run in {path} reads rasters by bands {numbers}, scaled by its images. {fix}")


def _differ_by_skipped(saved: ImageDataset, data: PreparedData, gone: set[str], new: set[str], folder: RunDir) -> bool:
    """Whether images differ only by a few unreadable ones, of now or then. Of splits only given ones are compared."""
    now = data.dataset
    # What the run could not read may have been removed since. Then other splits are drawn.
    lost = {path for path, _ in data.skipped} | folder.skipped
    if not (gone or new or lost) or not gone <= lost or not new <= folder.skipped:
        return False
    if not set(now.table.columns) <= set(saved.table.columns) or not now.table["path"].is_unique:
        return False
    train = set(saved.subset("train").paths)
    if len(gone & train) > MAX_UNREADABLE * len(train):
        return False
    drawn = dict.fromkeys(("minival", "val") if data.holdout_drawn else ("minival",), "train")
    both = [
        dataset.table.loc[~dataset.table["path"].isin(gone | new), ["path", "label", "split"]].fillna("")
        for dataset in (saved, now)
    ]
    if (separator := now.separator) is not None:  # their order in a cell depends on all images
        for part in both:
            part["label"] = part["label"].map(lambda cell: separator.join(sorted(cell.split(separator))))
    before, after = (part.assign(split=part["split"].replace({"": "train"} | drawn)).to_numpy() for part in both)
    return np.array_equal(before, after)


def _from_list(saved: ImageDataset, data: PreparedData, gone: set[str]) -> PreparedData:
    """The images of a run's list, in its order and splits; with its rows of unreadable ones."""
    now = data.dataset
    lost = saved.table.loc[saved.table["path"].isin(gone), now.table.columns]
    # To the types of the others, for a CSV tells none.
    table = pd.concat([now.table, lost.astype(now.table.dtypes.to_dict())], ignore_index=True)
    rows = pd.Index(table["path"]).get_indexer(pd.Index(saved.paths))
    table = table.iloc[rows].reset_index(drop=True).assign(split=saved.split.tolist())
    if now.separator is not None:  # the order of the labels in a cell
        table["label"] = saved.table["label"].to_numpy()
    further = np.arange(len(lost), dtype=np.int64) + data.contents.max(initial=-1) + 1
    contents = np.concatenate([data.contents, further])[rows]
    # Without the row numbers of the user's file, which the run's list does not have.
    return replace(data, dataset=replace(now, table=table, rows=None), contents=contents)


@dataclass(frozen=True)
class AlreadyFinished:
    """A run with nothing left to do, and the folder of another one that it is to be compared with."""

    path: Path
    recipe: Recipe
    against: Path | None = None

    @classmethod
    def find(cls, request: RunRequest) -> AlreadyFinished | None:
        """The run, if nothing is left to do."""
        finished = RunDir(request.path).finished
        return cls(request.path, request.recipe, request.options.against) if finished else None


def report_finished(run: AlreadyFinished, on_result: Callable[[Path], None]) -> None:
    """Log where the result is, and how to train longer; ``on_result`` gets the file of the report.

    Checkpoints that a kill has left behind are removed.
    """
    folder, file = RunDir(run.path), run.path / "report.json"
    evaluate = shell_join(["effnetv2", "evaluate", str(run.path), "DATA", *option_args(baseline=run.against)])
    report = {}
    if folder.reported:
        report = read_object(file, "epochs", fix=f"Remove it. For metrics: {evaluate}")
        on_result(file)
    # It may have ended before all of the recipe's epochs.
    epochs = pluralize(round(float(report.get("epochs", run.recipe.epochs)), 2), "epoch")
    _logger.info(f"The run in {run.path} has finished after {epochs}: nothing is left to do.")
    _logger.info(f"Model: {folder.model_file}")
    if folder.reported:
        _logger.info(f"Report: {file.with_suffix('.html')}")
        if run.against is not None:
            _logger.info(f"To compare it: {shell_join(['effnetv2', 'compare', str(run.against), str(run.path)])}")
    else:
        _logger.info(f"Its report is missing. For metrics: {evaluate}")
    if checkpoint_steps(folder.checkpoints):
        remove_checkpoints(folder.checkpoints)
    _logger.info(train_longer_hint(run.path))
