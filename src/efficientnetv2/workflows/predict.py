"""Predict the classes of images: `efficientnetv2.predict`."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import pandas as pd
import torch

from efficientnetv2.data.config import DataConfig, report_notes
from efficientnetv2.evaluation.predictions import (
    PREDICTIONS_CSV,
    UNKNOWN_COLUMNS,
    is_predictions_csv,
    is_skipped_csv,
    predictions_table,
    skipped_csv_for,
    write_predictions,
    write_skipped,
)
from efficientnetv2.inference.embeddings import is_embeddings_file, write_embeddings
from efficientnetv2.inference.predict import Engine, Predictions, Runtime, embed_dataset
from efficientnetv2.preprocessing import TTA
from efficientnetv2.training.run_dir import RUN_MARKERS
from efficientnetv2.utils.distributed import broadcast_from_main
from efficientnetv2.utils.errors import InputError, pluralize
from efficientnetv2.utils.io import check_writable_file
from efficientnetv2.utils.logs import progress
from efficientnetv2.utils.probability import Activation
from efficientnetv2.workflows.active_learning import check_rank_output, require_rankable, write_ranking
from efficientnetv2.workflows.arguments import (
    PathLike,
    api,
    choice,
    note_replaced,
    number,
    path_of,
    path_text,
    refuse_foreign_file,
    source_of,
)
from efficientnetv2.workflows.batch_predict import (
    InferenceOptions,
    PredictionCheckpoint,
    PredictionJob,
    engine_of,
    load_predictor,
    log_skipped_count,
    log_unreadable,
    remove_unfit_calibration,
    run_prediction,
    saving_on_interrupt,
    start_processes,
    with_tta,
)

_logger = logging.getLogger(__name__)

# Classes whose number of images is logged; the table has all. Ours.
_COUNTED = 10


@dataclass(frozen=True)
class PredictOptions:
    """Options of ``effnetv2 predict`` by their names, besides those of data and ``InferenceOptions``."""

    out: Path | None = None
    rank: Path | None = None
    abstain_below: float | None = None
    tta: str | None = None
    label_separator: str | None = None
    embeddings: Path | None = None


def predict_and_write(
    model: str, data: DataConfig, options: PredictOptions, inference: InferenceOptions
) -> pd.DataFrame | None:
    """Predict images and write a table, by one process or several; None in other processes than the main one."""
    with start_processes(inference) as runtime:
        job = broadcast_from_main(runtime.world, lambda: _prepare(model, data, options, strict=inference.strict))
        checkpoint = None if options.out is None else PredictionCheckpoint(options.out, job)
        predictions, _ = run_prediction(job, runtime, "predicting", checkpoint)
        if not runtime.world.is_main_process:
            return None
        with saving_on_interrupt(checkpoint):  # ranking and embedding read all images again
            table = _write(job, predictions, options)
            if options.rank is not None:
                write_ranking(options.rank, job, predictions, runtime)
            if options.embeddings is not None:
                _write_embeddings(options.embeddings, job, predictions, runtime)
        if checkpoint is not None:
            checkpoint.remove()
        return table


def _prepare(model: str, data: DataConfig, options: PredictOptions, *, strict: bool) -> PredictionJob:
    """Check the options, and load the model and the dataset."""
    out, rank = options.out, options.rank
    if out is not None:
        _check_outputs(out, rank, Path(data.data))
    check_rank_output(rank, out, data.data)
    if options.embeddings is not None:
        _check_embeddings(options.embeddings, Path(data.data))
    network = load_predictor(model, data.data, "predict")
    separator = options.label_separator
    inside = [name for name in network.class_names if separator is not None and separator in name]
    if inside:  # also of an empty one
        raise InputError(
            f"`label_separator` {separator!r} is part of the class '{inside[0]}'. Give another one, such as '|'."
        )
    preprocessing = with_tta(network.preprocessing, options.tta)
    if rank is not None:
        require_rankable(network, model)
    remove_unfit_calibration(network, preprocessing)
    dataset = replace(data.read(require_labels=False), bands=preprocessing.bands)
    if out is not None:
        refuse_foreign_file(
            out,
            "`output`",
            lambda file: is_predictions_csv(file, network.class_names),
            f"is not a table of predictions of the classes of {model}",
            fix="Give another name, as `output=NAME.csv`, or remove it",
        )
    damage = report_notes(dataset, strict=strict)
    for file in filter(None, (rank, out, options.embeddings)):
        note_replaced(file)
    return PredictionJob(network, dataset, damage, preprocessing)


def _check_outputs(out: Path, rank: Path | None, data: Path) -> None:
    """Refuse outputs that can't be written, or would replace something else."""
    check_writable_file(out, "`output`", such_as="predictions.csv")
    if out.suffix.lower() != ".csv":
        raise InputError(f"`output` {out}: predictions are written as CSV. Give a name that ends in .csv.")
    skipped = skipped_csv_for(out)
    if data.resolve() in (out.resolve(), skipped.resolve()):
        raise InputError(f"`output` {out}: predictions, or {skipped.name}, would replace DATA. Give another file.")
    if out.name == PREDICTIONS_CSV and any((out.parent / kind).is_file() for kind in (*RUN_MARKERS, "report.json")):
        raise InputError(
            f"`output` {out} holds the predictions of the run there, which comparisons read. Give another name or "
            "folder."
        )
    if rank is not None and rank.absolute() == skipped.absolute():
        raise InputError(f"`rank` {rank}: the list of unreadable images gets that name. Give another one.")
    refuse_foreign_file(skipped, f"`output` {out}:", is_skipped_csv, "is not a list of unreadable images")


def _check_embeddings(file: Path, data: Path) -> None:
    """Refuse a file of embeddings that can't be written, or would replace something else."""
    check_writable_file(file, "`embeddings`", such_as="embeddings.parquet")
    if file.suffix.lower() != ".parquet":
        raise InputError(f"`embeddings` {file} must end in .parquet. Give such a name.")
    if file.resolve() == data.resolve():
        raise InputError(f"`embeddings` {file} is DATA. Give another file.")
    refuse_foreign_file(file, "`embeddings`", is_embeddings_file, "is not a file of embeddings")


def _write_embeddings(file: Path, job: PredictionJob, predictions: Predictions, runtime: Runtime) -> None:
    dataset = job.dataset.select(predictions.samples)
    with progress("embedding", len(dataset)) as update:
        found = embed_dataset(job.network, dataset, preprocessing=job.preprocessing, runtime=runtime, progress=update)
    write_embeddings(file, [dataset.paths[row] for row in found.samples], found.vectors)
    _logger.info(f"Embeddings: {pluralize(len(found.samples), 'image')}, {job.network.embed_dim} numbers each ({file})")


def _write(job: PredictionJob, predictions: Predictions, options: PredictOptions) -> pd.DataFrame:
    dataset, unreadable, out = job.dataset, predictions.unreadable, options.out
    log_unreadable(job, unreadable)
    table = predictions_table(
        predictions,
        [dataset.paths[row] for row in predictions.samples],
        job.network.class_names,
        abstain_below=options.abstain_below,
        separator=options.label_separator,
    )
    detector, scores = job.network.unknown, predictions.unknown_scores
    if detector is not None and scores is not None:
        for place, column in enumerate((scores.numpy().round(6), scores.numpy() > detector.threshold)):
            table.insert(3 + place, UNKNOWN_COLUMNS[place], column)
    skipped = None if out is None else skipped_csv_for(out)
    if out is not None and skipped is not None:
        write_predictions(out, table)
        write_skipped(skipped, [(dataset.paths[row], why) for row, why in unreadable])
    _logger.info(_class_counts(table, options.label_separator, job.network.activation))
    if UNKNOWN_COLUMNS[1] in table:
        _logger.info(f"Unknown images: {int(table[UNKNOWN_COLUMNS[1]].sum()):,} of {len(table):,} (column is_unknown)")
    log_skipped_count(job, unreadable, skipped)
    if out is not None:
        _logger.info(f"Written to {out}.")
    return table


def _class_counts(table: pd.DataFrame, separator: str | None, activation: Activation) -> str:
    """Numbers of images of the most frequent classes, and of those without a label, however few."""
    labels = table["predicted_label"]
    if separator is not None:
        labels = labels.str.split(separator, regex=False).explode()
    counts = labels.value_counts()
    unlabeled = "abstained" if separator is None or activation == "softmax" else "without a label"
    shown = [
        f"{label or unlabeled} {number}"
        for place, (label, number) in enumerate(counts.items())
        if place < _COUNTED or not label
    ]
    if len(shown) < len(counts):
        shown.append(pluralize(len(counts) - len(shown), "more class"))
    return f"{pluralize(len(table), 'image')}: {', '.join(shown)}"


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
    embeddings: PathLike | None = None,
    device: str | torch.device = "auto",
    workers: int | None = None,
    strict: bool = False,
    engine: Engine = "auto",
    path_column: str = "path",
    label_column: str = "label",
) -> pd.DataFrame:
    """Predict the class of every image of a dataset. For single images in a loop or a service, use `Predictor`.

    Example::

        import efficientnetv2 as ev2

        table = ev2.predict("runs/mine", "new_photos/")
        print(table[["path", "predicted_label", "probability"]])

    Args:
        model: A run, a cross-validation, the path of one or of a model file, or a name of pretrained weights.
        data: An image, a folder of images, a table with a column of paths, or shards.
        output: CSV to write as well. Predictions that were interrupted are then resumed.
        rank: CSV to write with the images in the order in which labels would help most.
        abstain_below: Probability below which the label of an image stays empty.
        tta: Test-time augmentation: "none", or "d4" for all eight flips and rotations. None takes that of the model.
        label_separator: For a multi-label model: give each image all its labels, with this text between them.
        embeddings: Parquet file to write with the embedding of each image, see `nearest_images`.
        engine: What computes: "torch", "onnxruntime", "openvino", "openvino-bf16" (extras), or "auto": for
            5,000 images or more on a CPU, the fastest installed one that agrees with PyTorch.
        device, workers, strict, path_column: See `train`.
        label_column: Column of a table with the label. Only ``rank`` uses labels.

    Returns:
        A row per readable image: path, label, probability, and the probability of each class; of more than 1,000
        classes the five most probable. A model that scores unknown images adds ``unknown_score`` and ``is_unknown``.

    Raises:
        InputError: An argument, a file or an image that the caller can fix.
    """
    if label_separator is not None and not isinstance(label_separator, str):
        raise InputError(f"`label_separator` must be text, not {label_separator!r}. Give ';', for example.")
    options = PredictOptions(
        out=path_of("output", output),
        rank=path_of("rank", rank),
        abstain_below=number("abstain_below", abstain_below, 0, 1, whole=False),
        tta=choice("tta", tta, get_args(TTA)),
        label_separator=label_separator,
        embeddings=path_of("embeddings", embeddings),
    )
    table = predict_and_write(
        path_text("model", model),
        source_of(data, {"path_column": path_column, "label_column": label_column}),
        options,
        InferenceOptions(str(device), number("workers", workers, 0), strict, engine_of(engine)),
    )
    assert table is not None, "this is the only process"
    return table
