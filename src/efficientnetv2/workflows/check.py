"""Check a dataset before training: `efficientnetv2.check`."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

import torch
from markupsafe import escape

from efficientnetv2.checks.dataset_check import CheckResult, check_dataset
from efficientnetv2.checks.image_stats import ImageStats, collect_image_stats
from efficientnetv2.checks.report import JSON_NAME, PAGE_NAME, is_check_json, write_check_report
from efficientnetv2.checks.split_leakage import check_time_column
from efficientnetv2.data.config import DataConfig, default_check_dir, report_notes, with_bands
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.decode import load_image
from efficientnetv2.data.readers import BestEffortReader, source_reader
from efficientnetv2.evaluation.evaluation_result import library_versions
from efficientnetv2.evaluation.html import is_page
from efficientnetv2.inference.predict import Embeddings, Runtime, embed_dataset, none_readable_error
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.preprocessing import RGB
from efficientnetv2.training.initial_weights import default_model, load_weights, weights_candidates
from efficientnetv2.training.seen_images import train_overlap
from efficientnetv2.utils.device import pick_device, workers_for
from efficientnetv2.utils.errors import InputError, pluralize
from efficientnetv2.utils.io import absolute_path, output_dir, read_object, shown_path
from efficientnetv2.utils.logs import progress
from efficientnetv2.utils.processes import cores
from efficientnetv2.utils.random_key import Key
from efficientnetv2.utils.shell import command_line
from efficientnetv2.workflows.arguments import (
    PathLike,
    TableArguments,
    api,
    note_replaced,
    number,
    path_of,
    path_text,
    refuse_foreign_file,
    refuse_inside_data,
    refuse_unknown,
    source_of,
)
from efficientnetv2.workflows.results import html_table

_logger = logging.getLogger(__name__)

# Threads that read images: they wait for the disk as well. Ours.
_THREADS_PER_CORE = 2
_SEED = 0  # the same dataset gives the same check


@dataclass(frozen=True)
class CheckOptions:
    """Options of a check by their names, besides those of data."""

    folder: Path
    weights: str = "none"
    near_km: float = 5.0
    time_column: str | None = None
    device: str = "auto"
    workers: int | None = None


def run_check(
    data: DataConfig, options: CheckOptions, on_result: Callable[[CheckResult], None] = lambda result: None
) -> CheckResult:
    """Check a dataset and write the page; ``on_result`` is called before, so that a full disk loses no finding."""
    folder = options.folder
    device = pick_device(options.device)
    dataset = data.read_any()
    check_time_column(dataset, options.time_column)
    with output_dir(folder, "`output`"):  # removed again if the check fails
        for name, is_own in ((JSON_NAME, is_check_json), (PAGE_NAME, is_page)):
            refuse_foreign_file(folder / name, f"`output` {folder}:", is_own, "is not a report of effnetv2 check")
        note_replaced(folder / PAGE_NAME)
        network, weights = _load_network(options.weights)
        damage = report_notes(dataset, strict=False)
        dataset = with_bands(dataset, data, seed=_SEED)
        # Thumbnails and pretrained networks have three bands.
        if dataset.bands is not None:
            dataset = replace(dataset, bands=dataset.bands.shown)
        with progress("looking", len(dataset)) as update:
            threads = _THREADS_PER_CORE * cores() if options.workers is None else max(1, options.workers)
            stats = collect_image_stats(dataset, workers=threads, progress=update)
        if not len(stats.readable):
            raise none_readable_error(dataset, 0, stats.table["reason"].iloc[0])
        embeddings = trained = None
        if network is not None:
            runtime = Runtime(device, workers_for(options.workers, device))
            embeddings = _embed(network, dataset, stats, runtime)
            overlap = train_overlap(Path(str(weights)), network.trained_on, dataset)
            trained = overlap.training_note if overlap.num_trained else None
        result = check_dataset(
            dataset,
            stats,
            key=Key.of(_SEED).fold("inspect"),
            near_km=options.near_km,
            time_column=options.time_column,
            embeddings=embeddings,
            weights=weights,
            trained=trained,
            damage=damage,
        )
        on_result(result)
        reader = BestEffortReader(source_reader(result.dataset))
        try:
            write_check_report(
                folder,
                result,
                image=lambda row: reader.read(row, load_image),
                command=command_line(),
                versions=library_versions(),
            )
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"`output` {folder}: the page could not be written ({reason}).") from error
    _logger.info(f"Report: {folder / PAGE_NAME}")
    return result


def _load_network(weights: str) -> tuple[Network | None, str | None]:
    """The network that embeds images, and the name of its weights; None without."""
    if weights == "none":
        return None, None
    if weights == "auto":
        found = weights_candidates(default_model(pick_device("cpu")))[0]
        _logger.info(found.note)
        if found.word == "none":
            raise InputError(
                "`weights=auto`: there are no pretrained weights. Give a model file, or leave `weights` out: only "
                "label errors and lookalikes need it."
            )
        weights = found.word
    network, notes = load_weights(weights)
    if network.in_channels != RGB:
        raise InputError(
            f"`weights` {weights} takes images of {pluralize(network.in_channels, 'channel')}, but a check uses {RGB}. "
            "Give weights for red, green and blue."
        )
    for note in notes:
        _logger.info(f"{weights}: {note}.")
    return network, weights


def _embed(network: Network, dataset: ImageDataset, stats: ImageStats, runtime: Runtime) -> Embeddings:
    """Embeddings of the readable images, by rows of the dataset."""
    readable = dataset.select(stats.readable)
    with progress("embedding", len(readable)) as update:
        found = embed_dataset(network, readable, preprocessing=network.preprocessing, runtime=runtime, progress=update)
    return Embeddings(stats.readable[found.samples], found.labels, found.vectors)


class DatasetCheck:
    """What is wrong with a dataset, as `check` found it.

    Example::

        import efficientnetv2 as ev2

        found = ev2.check("photos/", output="inspection/photos")
        found = ev2.DatasetCheck("inspection/photos")  # later
        print(found.duplicates, found.leakage, found.label_errors)

    Args:
        path: Folder that `check` wrote.

    Attributes:
        path: The folder.

    Raises:
        InputError: On first use, where it holds no check.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = absolute_path(path)

    @cached_property
    def report(self) -> dict[str, Any]:
        """All that was found and counted, as plain values."""
        return read_object(self.path / JSON_NAME, "findings", "duplicates", fix="Check the dataset again.")

    @property
    def report_path(self) -> Path:
        """The HTML page, with the images."""
        return self.path / PAGE_NAME

    @property
    def findings(self) -> list[dict[str, Any]]:
        """Findings, the most severe first.

        Each has a ``kind``, a ``severity`` ("wrong", "doubtful" or "note"), a ``sentence``, ``advice``, and the groups
        of ``images`` it is about.
        """
        return list(self.report["findings"])

    @property
    def duplicates(self) -> list[list[str]]:
        """Groups of images that are the same: identical files, then near-duplicates."""
        copies = self.report["duplicates"]
        return [*copies["same_files"], *(pair["paths"] for pair in copies["near_duplicates"])]

    @property
    def leakage(self) -> list[dict[str, Any]]:
        """Findings of images that belong together, but are in two splits: duplicates, groups, locations, times."""
        return [finding for finding in self.findings if finding["kind"].endswith("_across_splits")]

    @property
    def label_errors(self) -> list[dict[str, Any]]:
        """Labels that are probably wrong, the most probable first: path, label, suggested, probability.

        They are found with ``weights`` only.
        """
        return list(self.report.get("network", {}).get("suspected_labels", []))

    def __repr__(self) -> str:
        names = ("findings", "duplicates", "leakage", "label_errors")
        try:
            counts = [f"{name}={len(getattr(self, name))}" for name in names]
        except InputError:
            counts = ["cannot be read"]
        return f"DatasetCheck({shown_path(self.path)!r}, {', '.join(counts)})"

    def _repr_html_(self) -> str:
        try:
            rows = [(each["severity"], each["sentence"], each["advice"]) for each in self.findings]
        except InputError:
            return f"<code>{escape(repr(self))}</code>"
        title = f"{self.report['data']}: {self.report['num_images']:,} images, {len(rows)} findings"
        return html_table(title, ["severity", "finding", "advice"], rows, self.report_path)


@api
def check(
    data: PathLike,
    *,
    output: PathLike | None = None,
    weights: PathLike = "none",
    near_km: float = 5.0,
    time_column: str | None = None,
    device: str | torch.device = "auto",
    workers: int | None = None,
    **table: Unpack[TableArguments],
) -> DatasetCheck:
    """Find duplicates, data leakage, label errors and unreadable images of a dataset, which it leaves unchanged.

    Example::

        import efficientnetv2 as ev2

        found = ev2.check("photos/")
        for finding in found.findings:
            print(finding["severity"], finding["sentence"])

    Args:
        data: Dataset, see `train`. Labels may be missing.
        output: Folder for the page and its JSON. None takes ``inspection/NAME``, by the name of ``data``.
        weights: Model that looks at the images, to find label errors and images of one scene: "auto", a name or a
            file. "none" finds neither.
        near_km: Distance in km within which two images are of one location.
        time_column: Column of a year or date. None finds it.
        device, workers, table: See `train`.

    Raises:
        InputError: An argument or a file that the caller can fix.
    """
    refuse_unknown(check, table, TableArguments)
    source = source_of(data, table)
    folder = path_of("output", output) or default_check_dir(source.data)
    refuse_inside_data(source.data, folder, "`output`", command="check" if output is None else None)
    options = CheckOptions(
        folder,
        weights=path_text("weights", weights),
        near_km=number("near_km", near_km, 0, 20_000, whole=False, default=CheckOptions.near_km),
        time_column=time_column,
        device=str(device),
        workers=number("workers", workers, 0),
    )
    run_check(source, options)
    found = DatasetCheck(folder)
    _ = found.report  # read now: another check into this folder replaces it
    return found
