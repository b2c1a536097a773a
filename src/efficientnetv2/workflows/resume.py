"""How a run goes on: with the same pictures, recipe and network."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from efficientnetv2.data.augmented_copies import AUGMENTED_FROM
from efficientnetv2.data.data_module import DataModule
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.file_probe import MAX_UNREADABLE
from efficientnetv2.data.shards.index import is_url
from efficientnetv2.evaluation.clusters import data_root, relative_prefix
from efficientnetv2.evaluation.predictions import compare_predictions, load_predictions
from efficientnetv2.evaluation.summary import ReportContext, summary_lines
from efficientnetv2.models import provenance
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.models.model_card import parse_entry
from efficientnetv2.preprocessing import Bands, Preprocessing
from efficientnetv2.training.auto_batch import Hardware
from efficientnetv2.training.auto_config import fit_into_memory
from efficientnetv2.training.checkpoint import remove_checkpoints, saved_steps
from efficientnetv2.training.ddp import validate_sharing
from efficientnetv2.training.initial_weights import build_initial_model, build_model
from efficientnetv2.training.overrides import TrainOverrides, longer
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.run_dir import RunDir
from efficientnetv2.utils.distributed import World
from efficientnetv2.utils.errors import InputError, pluralize
from efficientnetv2.utils.io import read_object, write_atomically
from efficientnetv2.utils.shell import shell_join
from efficientnetv2.workflows.image_cache import Cached, cached
from efficientnetv2.workflows.linear_probe import probed
from efficientnetv2.workflows.previous_runs import Other
from efficientnetv2.workflows.start_run import length_line, model_lines

_logger = logging.getLogger(__name__)


def go_on(
    path: Path,
    recipe: Recipe,
    words: TrainOverrides,
    prepared: DataModule,
    device: torch.device,
    memory_gib: float | None,
    world: World,
) -> tuple[RunDir, Recipe, Network, Cached | None]:
    """The folder, recipe and network of a run begun before; its checkpoint brings the weights.

    As many groups run at a time as before, so that it goes on to the same bits; a stated limit has them tried anew.
    ``prepared`` is as ``as_begun`` gives it.
    """
    validate_sharing(recipe, device, world, begun=True)
    folder = RunDir(path)
    for line in (*model_lines(recipe, (), device), length_line(recipe, len(prepared.train), None, path)):
        _logger.info(line)
    # Where the pictures are kept changes none of their pixels; whether they are is the recipe's affair.
    beginning = folder.beginning()
    where = words.cache or beginning.get("cache")
    pictures = cached(where, recipe, prepared, device, world, beginning.get("cache_px"))
    if pictures is not None:
        _logger.debug(pictures.note)
    network = _network_to_go_on_with(folder, recipe, prepared, device)
    if memory_gib is not None:
        microbatches, notes = fit_into_memory(recipe, network, Hardware(device, memory_gib, world))
        folder.amend_beginning(groups_at_a_time=microbatches.to_json())
        for note in notes:
            _logger.info(note)
    return folder, recipe, network, pictures


def _network_to_go_on_with(
    folder: RunDir, recipe: Recipe, prepared: DataModule, device: torch.device
) -> Network:
    class_names, channels = prepared.train.class_names, prepared.dataset.channels
    if saved_steps(folder.checkpoints) or recipe.weights == "none":
        # Its weights are the checkpoint's; those that it began with may be gone by now.
        network = build_model(recipe, recipe.model, num_classes=len(class_names), in_channels=channels)
        if remembered := folder.beginning().get("weights_trained_on"):
            network.trained_on = parse_entry(
                folder.beginning_file, remembered, provenance.KEY, provenance.TrainingFingerprint.from_json
            )
        return network
    begun = build_initial_model(recipe, class_names=class_names, device=device, in_channels=channels)
    for note in begun.notes:
        _logger.info(note)
    if recipe.classifier == "probe":
        preprocessing = Preprocessing.from_json(folder.beginning()["preprocessing"])
        probed(
            begun.network,
            prepared,
            preprocessing,
            recipe,
            device,
            0,
            folder.beginning().get("probe_images"),
        )
    return begun.network


def as_begun(path: Path, prepared: DataModule) -> DataModule:
    """The pictures of a run that is gone on with, as it was begun with them.

    A picture that can't be read any more makes them no others, nor one that can be read again. Then the run's own list
    stands, with its splits, which would be drawn otherwise from more or fewer pictures; what can't be read of it is
    passed over as what is lost during a run is.

    Args:
        path: of the run's folder.
        prepared: what DATA gives now.

    Raises:
        InputError: they are others, or read in another way.
    """
    folder = RunDir(path)
    separator, now = folder.beginning().get("label_separator"), prepared.dataset
    if separator != now.separator:
        given = "without --label-separator" if separator is None else f"with --label-separator '{separator}'"
        raise InputError(
            f"--resume: the run in {path} was begun {given}, so its classes are others. Say the same again."
        )
    there = ImageDataset.from_csv(folder.manifest_file, root=now.root, source=now.source, separator=separator)
    bands = Preprocessing.from_json(folder.beginning()["preprocessing"]).bands
    if there.digest() != now.digest():
        there = _from_elsewhere(folder, there, now)
    if there.digest() != now.digest():
        gone, new = set(there.paths) - set(now.paths), set(now.paths) - set(there.paths)
        if not _differ_by_what_was_skipped(there, prepared, gone, new, folder):
            raise _other_pictures(path, gone, new)
        prepared = _listed_by(there, prepared, gone)
        now = prepared.dataset
        if bands is not None and now.bands is not None and bands.numbers == now.bands.numbers:
            # What becomes 0 and 255 was measured on those that could be read now.
            prepared = replace(prepared, dataset=replace(now, bands=bands))
        _logger.info(_passed_over(gone, new))
    _refuse_other_bands(path, bands, prepared.dataset.bands)
    return prepared


def _from_elsewhere(folder: RunDir, there: ImageDataset, now: ImageDataset) -> ImageDataset:
    """The run's list as seen from where its pictures lie now, if they lie elsewhere but are called the same.

    A job on a cluster finds its copy of them in a place of its own each time; a link is another way to the same ones.
    """
    way = relative_prefix(there.paths, now.paths) if len(there) == len(now) else None
    if way is None:
        return there
    before = there.table["path"]
    table = there.table.assign(path=before.str.removeprefix(way))
    if AUGMENTED_FROM in table:
        table[AUGMENTED_FROM] = table[AUGMENTED_FROM].str.removeprefix(way)
    moved = replace(there, table=table)
    if moved.digest() != now.digest():
        return there
    was = way.rstrip("/") if is_url(way) else os.path.realpath(folder.path / way)
    write_atomically(folder.manifest_file, moved.to_csv)
    _logger.info(
        f"The pictures are read from {now.root}; when the run began, from {was}. Their names, labels and splits are "
        "the same."
    )
    return moved


def _refuse_other_bands(path: Path, bands: Bands | None, asked: Bands | None) -> None:
    if (
        bands is not None and asked is not None and not bands.kinds
    ):  # begun by a version that did not keep them
        asked = replace(asked, kinds=())
    if bands is not None and asked is not None and bands.numbers == asked.numbers:  # nor the bands' colours
        asked = replace(
            asked,
            names=tuple(now if then else "" for then, now in zip(bands.names, asked.names, strict=True)),
        )
    if bands != asked:
        said = "none" if bands is None else ",".join(map(str, bands.numbers))
        raise InputError(
            f"--resume: the run in {path} sees the rasters' bands {said}, and which values become 0 and 255 was "
            "measured on its pictures. Bring them back as they were, and say --bands as before."
        )


def _differ_by_what_was_skipped(
    there: ImageDataset, prepared: DataModule, gone: set[str], new: set[str], folder: RunDir
) -> bool:
    """Whether pictures are the same but for some that can't be read now, or could not be when the run began.

    Of splits only those that were given are compared. More training pictures than a run passes over are no such few.
    """
    now = prepared.dataset
    # What the run could not read may have been removed since.
    lost = {path for path, _ in prepared.skipped} | folder.skipped
    if not (gone or new) or not gone <= lost or not new <= folder.skipped:
        return False
    if not set(now.table.columns) <= set(there.table.columns) or not now.table["path"].is_unique:
        return False
    train = set(there.subset("train").paths)
    if len(gone & train) > MAX_UNREADABLE * len(train):
        return False
    drawn = dict.fromkeys(("minival", "val") if prepared.holdout_drawn else ("minival",), "train")
    both = [
        dataset.table.loc[~dataset.table["path"].isin(gone | new), ["path", "label", "split"]].fillna("")
        for dataset in (there, now)
    ]
    before, after = (
        part.assign(split=part["split"].replace({"": "train"} | drawn)).to_numpy() for part in both
    )
    return np.array_equal(before, after)


def _listed_by(there: ImageDataset, prepared: DataModule, gone: set[str]) -> DataModule:
    """The pictures of a run's list, in its order and splits; of those that can't be read the rows are its own."""
    now = prepared.dataset
    lost = there.table.loc[there.table["path"].isin(gone), now.table.columns]
    # To the types of the others, for a CSV tells none.
    table = pd.concat([now.table, lost.astype(now.table.dtypes.to_dict())], ignore_index=True)
    rows = pd.Index(table["path"]).get_indexer(pd.Index(there.paths))
    table = table.iloc[rows].reset_index(drop=True).assign(split=there.split.tolist())
    further = np.arange(len(lost), dtype=np.int64) + prepared.contents.max(initial=-1) + 1
    contents = np.concatenate([prepared.contents, further])[rows]
    # Without the numbers of rows in the user's file, which the run's list does not have.
    return replace(prepared, dataset=replace(now, table=table, rows=None), contents=contents)


def _passed_over(gone: set[str], new: set[str]) -> str:
    said = []
    if gone:
        said.append(
            f"{pluralize(len(gone), 'picture')} of the run can't be read any more (first: {min(gone)}), to be passed "
            "over when asked for"
        )
    if new:
        said.append(
            f"{pluralize(len(new), 'picture')} that could not be read when it began can be now (first: {min(new)}), "
            "left out as before"
        )
    return f"The run goes on with its own list of pictures: {'; '.join(said)}."


def _other_pictures(path: Path, gone: set[str], new: set[str]) -> InputError:
    what = [
        f"{len(names)} {word} (first: {min(names)})"
        for names, word in ((gone, "gone"), (new, "new"))
        if names
    ]
    return InputError(
        f"--resume: the pictures are not those that the run in {path} was begun with: "
        f"{', '.join(what) or 'labels, splits or order differ'}. "
        "Bring them back, or begin anew with another --out."
    )


@dataclass(frozen=True)
class Finished:
    """A run with nothing left to do.

    Args:
        path: of its folder.
        recipe: its.
        against: another that it is to be compared with; None if none was named.
    """

    path: Path
    recipe: Recipe
    against: Other | None = None

    @classmethod
    def compared(cls, path: Path, recipe: Recipe, against: Path) -> Finished:
        """One that is compared, its report made, with another.

        Raises:
            InputError: its report is gone, or see ``Other.named``.
        """
        folder = RunDir(path)
        if not folder.reported:
            again = shell_join(["effnetv2", "evaluate", str(path), "DATA", "--baseline", str(against)])
            raise InputError(
                f"--baseline {against}: the report of the run in {path} is not there any more. To compare: {again}"
            )
        separator = folder.beginning().get("label_separator")
        own = load_predictions(path)
        root = data_root(path, list(own.index))
        other = Other.beside(against, load_predictions(against), own, root=root, separator=separator)
        return cls(path, recipe, other)


def tell_finished(run: Finished, on_result: Callable[[Path], None]) -> None:
    """Say that nothing is left to do, where the result lies, and how to train longer.

    Nothing in the folder changes, but that checkpoints go which a kill has left behind.

    Args:
        run: that has finished.
        on_result: gets the file of its report.
    """
    folder = RunDir(run.path)
    report = folder.path / "report.json"
    fix = f"Remove it. For metrics: {shell_join(['effnetv2', 'evaluate', str(folder.path), 'DATA'])}"
    told = read_object(report, "epochs", fix=fix) if folder.reported else {}
    if told:
        on_result(report)
    # It may have ended before all of the recipe's epochs.
    epochs = pluralize(float(told.get("epochs", run.recipe.epochs)), "epoch")
    _logger.info(f"The run in {folder.path} has finished after {epochs}: nothing is left to do.")
    _logger.info(f"Model: {folder.model_file}")
    if folder.reported:
        _logger.info(f"Report: {report.with_suffix('.html')}")
        for line in _compared(run):
            _logger.info(line)
    else:
        again = shell_join(["effnetv2", "evaluate", str(folder.path), "DATA"])
        _logger.info(f"Its report is not there any more. For figures: {again}")
    if saved_steps(folder.checkpoints):
        remove_checkpoints(folder.checkpoints)
        _logger.info("Its checkpoints, which nothing needs any more, were removed.")
    _logger.info(longer(folder.path))


def _compared(run: Finished) -> list[str]:
    """Whether it is better than the other, as its report would have said it."""
    if run.against is None:
        return []
    own = load_predictions(run.path)
    found = compare_predictions(own, run.against.answers)
    if found is None:
        return []
    return summary_lines(ReportContext(last=(run.against.name, run.against.qualified(found))))
