"""Predict the classes of images: `efficientnetv2.predict`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from efficientnetv2.data.config import DataConfig, report_notes
from efficientnetv2.evaluation.predictions import PREDICTIONS_CSV as ANSWERS
from efficientnetv2.inference.predict import Predictions, require_classes, require_image_channels
from efficientnetv2.models import model_file
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.utils.device import workers_for
from efficientnetv2.utils.distributed import broadcast_from_main, process_group, world_from_env
from efficientnetv2.utils.errors import InputError, pluralize
from efficientnetv2.utils.io import check_writable_file
from efficientnetv2.utils.logs import silenced
from efficientnetv2.utils.probability import Answer
from efficientnetv2.workflows.active_learning import check_rank_output, require_rankable, write_ranking
from efficientnetv2.workflows.arguments import (
    TTA,
    PathLike,
    api,
    number,
    path_of,
    path_text,
    refuse_launched,
    source_of,
    views_of,
)
from efficientnetv2.workflows.batch_predict import (
    PredictionCheckpoint,
    PredictionJob,
    device_for_rank,
    is_skipped_csv,
    log_unreadable,
    refuse_swapped_arguments,
    run_prediction,
    saving_on_interrupt,
    skipped_csv_for,
    skipped_summary,
    write_skipped,
)
from efficientnetv2.workflows.outputs import refuse_others, tell_replaced
from efficientnetv2.workflows.predictions_io import is_predictions_csv, predictions_table, write_predictions
from efficientnetv2.workflows.previous_runs import KINDS
from efficientnetv2.workflows.test_time_augmentation import for_own_views, views_asked

_logger = logging.getLogger(__name__)

# Classes whose pictures the screen counts; the table has them all. Ours.
_COUNTED = 10


def predict_and_write(
    model: str,
    source: DataConfig,
    *,
    out: Path | None,
    rank: Path | None = None,
    device: str,
    workers: int | None,
    strict: bool,
    abstain_below: float | None = None,
    views: str | None = None,
    separator: str | None = None,
) -> pd.DataFrame | None:
    """Predict images and write a table, alone or as one of many processes.

    Args:
        model: a model file or run folder.
        source: of the pictures.
        out: table to write. None writes none.
        rank: table of what to label next; None writes none.
        device: as ``--device`` says it.
        workers: processes that read pictures; None chooses by the machine.
        strict: refuse the first unreadable picture.
        abstain_below: probability below which a picture's label stays empty; None labels all.
        views: how each is looked at, as ``--views`` says it; None is as the model file says.
        separator: between the labels of a picture that may have several; None gives each one.

    Returns:
        The table; None on every process but the first.

    Raises:
        InputError: anything a user can mend.
    """
    world, table = world_from_env(), None
    with process_group(world, mend="Run it again."), nullcontext() if world.is_main_process else silenced():
        on = device_for_rank(device, world)
        readers = workers_for(workers, on, sharing=world.local_size)
        asked, looking = broadcast_from_main(
            world, lambda: _asked(model, source, out, rank, strict, views, separator)
        )
        so_far = None
        if out is not None:
            so_far = PredictionCheckpoint(out, asked.network, looking, asked.dataset)
        predictions, _ = run_prediction(
            asked,
            "predicting",
            preprocessing=looking,
            device=on,
            workers=readers,
            strict=strict,
            world=world,
            so_far=so_far,
        )
        if world.is_main_process:
            with saving_on_interrupt(so_far):  # ranking looks at all pictures once more
                table = _write(asked, predictions, out, abstain_below, separator)
                if rank is not None:
                    write_ranking(rank, asked, predictions, device=on, workers=readers)
            if so_far is not None:
                so_far.remove()
        return table


def _asked(
    model: str,
    source: DataConfig,
    out: Path | None,
    rank: Path | None,
    strict: bool,
    views: str | None,
    separator: str | None,
) -> tuple[PredictionJob, Preprocessing]:
    """The network, the pictures for it to answer, and how they are seen."""
    refuse_swapped_arguments(model, source.data, "predict")
    if out is not None:
        _check_places(out, rank, source.data)
    check_rank_output(rank, out, source.data)
    network = model_file.load(model)
    require_classes(network, model)
    _check_separator(separator, network.class_names)
    own = network.preprocessing
    looking = replace(own, views=views_asked(views, own.views))
    if out is not None:
        refuse_others(
            out,
            "--out",
            lambda file: is_predictions_csv(file, network.class_names),
            f"is no table of predictions of the classes of {model}, but maybe of another model's",
            mend="Give another name, as --out NAME.csv, or remove it",
        )
    if rank is not None:
        require_rankable(network, model)
    require_image_channels(network, model)
    for_own_views(network, looking)
    dataset = replace(source.read(require_labels=False), bands=own.bands)
    damage = report_notes(dataset, strict=strict)
    for place in filter(None, (rank, out)):  # not of a run that is refused
        tell_replaced(place)
    return PredictionJob(network, dataset, damage), looking


def _check_separator(separator: str | None, class_names: Sequence[str]) -> None:
    """Refuse what could not be taken apart again."""
    if separator == "":
        raise InputError("--label-separator is empty, but is what stands between two labels, such as ';'.")
    holding = [name for name in class_names if separator is not None and separator in name]
    if holding:
        raise InputError(
            f"--label-separator '{separator}' stands within the class '{holding[0]}'. Give another one, such as '|'."
        )


def _check_places(out: Path, rank: Path | None, data: str) -> None:
    """Refuse places that can't be written to, and whose files belong to something else."""
    check_writable_file(out, "--out", such_as="predictions.csv")
    if out.suffix.lower() != ".csv":
        raise InputError(
            f"--out {out}: predictions are written as CSV. Give a name that ends in .csv, or pass --json."
        )
    if out.resolve() == Path(data).resolve():
        raise InputError(f"--out {out} is DATA itself. Give another file.")
    if out.name == ANSWERS and any((out.parent / kind).is_file() for kind in (*KINDS, "report.json")):
        raise InputError(
            f"--out {out} holds the answers of the run there, which comparisons read. Give another name or place."
        )
    listed = skipped_csv_for(out)
    if rank is not None and rank.absolute() == listed.absolute():
        raise InputError(
            f"--rank {rank}: the list of what could not be read gets that name. Give another one."
        )
    if listed.resolve() == Path(data).resolve():
        raise InputError(
            f"--out {out}: the list of what could not be read gets the name of DATA, {listed.name}. Give another file."
        )
    refuse_others(listed, f"--out {out}:", is_skipped_csv, "is no list of what could not be read")


def _write(
    asked: PredictionJob,
    predictions: Predictions,
    out: Path | None,
    abstain_below: float | None,
    separator: str | None,
) -> pd.DataFrame:
    dataset, unreadable = asked.dataset, predictions.unreadable
    log_unreadable(dataset, unreadable, asked.damage)
    paths = [dataset.paths[row] for row in predictions.samples]
    table = predictions_table(
        predictions,
        paths,
        asked.network.class_names,
        abstain_below=abstain_below,
        separator=separator,
    )
    listed = None
    if out is not None:
        write_predictions(out, table)
        listed = skipped_csv_for(out)
        write_skipped(listed, [(dataset.paths[row], why) for row, why in unreadable])
    _logger.info(_counted(table, separator, asked.network.answer))
    if unreadable:
        _logger.info(skipped_summary(dataset, unreadable, listed))
    if out is not None:
        _logger.info(f"Written to {out}.")
    return table


def _counted(table: pd.DataFrame, separator: str | None, answer: Answer) -> str:
    labels = (
        table["label"] if separator is None else table["label"].str.split(separator, regex=False).explode()
    )
    counts = labels.value_counts()
    without = "left to a person" if separator is None or answer == "softmax" else "without a label"
    shown = [
        f"{label or without} {many}"
        for place, (label, many) in enumerate(counts.items())
        if place < _COUNTED or not label  # those for a person are told, be they ever so few
    ]
    if len(shown) < len(counts):
        shown.append(pluralize(len(counts) - len(shown), "more class"))
    return f"{pluralize(len(table), 'picture')}: {', '.join(shown)}"


@api
def predict(
    model: PathLike,
    data: PathLike,
    *,
    output: PathLike | None = None,
    rank: PathLike | None = None,
    abstain_below: float | None = None,
    tta: TTA | None = None,
    label_separator: str | None = None,
    device: str | torch.device = "auto",
    workers: int | None = None,
    strict: bool = False,
    path_column: str = "path",
    label_column: str = "label",
) -> pd.DataFrame:
    """Predict the class of every image of a dataset. For single images in a loop or a service, use `Predictor`.

    Example::

        import efficientnetv2 as ev2

        table = ev2.predict("runs/mine", "new_photos/")
        print(table[["path", "label", "probability"]])

    Args:
        model: A run, a cross-validation, or the path of one or of a model file.
        data: An image, a folder of images, a table with a column of paths, or shards.
        output: CSV to write as well. Predictions that were interrupted are then resumed.
        rank: CSV to write with the images in the order in which labels would help most.
        abstain_below: Probability below which the label of an image stays empty.
        tta: Test-time augmentation: "none", or "d4" for all eight flips and rotations. None takes that of the model.
        label_separator: For a multi-label model: give each image all its labels, with this text between them.
        device: Device to compute on, see `train`.
        workers: Processes that read images, see `train`.
        strict: Stop at the first unreadable image instead of skipping it.
        path_column: Column of a table with the path of the image.
        label_column: Column of a table with the label. Only ``rank`` uses labels.

    Returns:
        A row per readable image: path, label, probability, and the probability of each class; of more than 1,000
        classes the five most probable.

    Raises:
        InputError: An argument, a file or an image that the caller can fix.
    """
    refuse_launched("predict")
    table = predict_and_write(
        path_text("model", model),
        source_of(data, {"path_column": path_column, "label_column": label_column}),
        out=path_of("output", output),
        rank=path_of("rank", rank),
        device=str(device),
        workers=number("workers", workers, 0),
        strict=strict,
        abstain_below=number("abstain_below", abstain_below, 0, 1, whole=False),
        views=views_of(tta),
        separator=label_separator,
    )
    assert table is not None, "this is the only process"
    return table
