"""The result of a run or an evaluation: metrics, intervals and errors, as a report and as plain values."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
from PIL import Image

from efficientnetv2.data.config import default_check_dir
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.decode import load_image
from efficientnetv2.data.readers import BestEffortReader, display_reader
from efficientnetv2.evaluation import thumbnails
from efficientnetv2.evaluation.html import Section
from efficientnetv2.evaluation.plots import SizeCurve
from efficientnetv2.evaluation.predictions import predictions_table, write_predictions
from efficientnetv2.evaluation.report import Misclassification, Report, most_confident_errors
from efficientnetv2.evaluation.report_metadata import ReportMetadata
from efficientnetv2.evaluation.report_sections import (
    ReportFindings,
    ReportInputs,
    ReportOptions,
    build_sections,
)
from efficientnetv2.inference.predict import Predictions
from efficientnetv2.metrics.confidence_intervals import Interval
from efficientnetv2.metrics.metric_intervals import metric_intervals
from efficientnetv2.metrics.multilabel import Metrics, compute_metrics
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.rng import Key

# Next steps that the command prints; the report has all. Ours.
_STEPS_SHOWN = 2


class EvaluationResult:
    """Metrics of predictions on labeled images, and the report on them.

    Args:
        predictions: Predictions of images of the dataset.
        dataset: Labeled images.
        class_names: Classes of the network.
        metadata: Everything else that the report says.
        wanted: Options of the report.
        known: What is known besides the predictions.

    Raises:
        InputError: On first use, where an option does not fit these images.
    """

    def __init__(
        self,
        predictions: Predictions,
        dataset: ImageDataset,
        class_names: Sequence[str],
        metadata: ReportMetadata,
        *,
        wanted: ReportOptions | None = None,
        known: ReportInputs | None = None,
    ) -> None:
        self.predictions, self.dataset, self.metadata = predictions, dataset, metadata
        self.wanted, self.known = wanted or ReportOptions(), known or ReportInputs()
        self.class_names = tuple(class_names)

    @cached_property
    def metrics(self) -> Metrics:
        """Metrics of all predictions."""
        found = self.predictions
        return compute_metrics(found.labels, found.probabilities, self.class_names, found.answer)

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """95 % intervals by metric, bootstrapped by cluster where images belong together."""
        clusters = self.known.whole
        return metric_intervals(
            self.metrics,
            self.predictions.labels,
            self.predictions.probabilities,
            clusters=None if clusters is None else clusters.clusters,
            key=Key.of(self.metadata.seed or 0).fold("intervals"),
        )

    @cached_property
    def findings(self) -> ReportFindings:
        """Sections of the report, and the context of its summary."""
        return build_sections(
            self.predictions,
            self.dataset,
            self.class_names,
            self.wanted,
            self.known,
            trainers=self.metadata.training_images,
            choosers=self.metadata.selection_images,
            reach=self.intervals["top1"],
            key=Key.of(self.metadata.seed or 0).fold("findings"),
        )

    @cached_property
    def _report(self) -> Report:
        """The report without thumbnails, curves and links."""
        errors = self._errors(thumbnail=lambda row: None)
        return Report(
            self.metrics, self.intervals, self.metadata, errors, self.findings.sections, self.findings.context
        )

    @property
    def next_lines(self) -> list[str]:
        """The first next steps, without the use of the model, which has a line of its own."""
        steps = self._report.next_steps[:_STEPS_SHOWN]
        return [f"Next: {step.line}" for step in steps if step.topic != "use"]

    def write(
        self,
        folder: Path,
        *,
        history: Sequence[dict[str, Any]] = (),
        sizes: SizeCurve | None = None,
        sections: Sequence[Section] = (),
    ) -> None:
        """Write ``report.json``, ``report.html`` and ``predictions.csv`` into an existing folder."""
        reader = BestEffortReader(display_reader(self.dataset))
        errors = self._errors(
            thumbnail=lambda row: reader.read(row, lambda source: thumbnails.shrink(load_image(source)))
        )
        report = Report(
            self.metrics,
            self.intervals,
            self.metadata,
            errors=errors,
            sections=(*sections, *self.findings.sections),
            context=self.findings.context,
            history=history,
            sizes=sizes,
            links=_links(folder, self.metadata.data),
            images=self._addresses(folder, errors),
        )
        try:
            report.write(folder)
        except OSError as error:
            raise InputError(
                f"{folder}: the report could not be written ({error.strerror or error})."
            ) from error
        write_predictions(folder / "predictions.csv", self.table())

    def to_json(self) -> dict[str, Any]:
        """Contents of ``report.json``."""
        return self._report.to_json()

    def table(self) -> pd.DataFrame:
        """Contents of ``predictions.csv``."""
        predicted, clusters = self.dataset.select(self.predictions.samples), self.known.whole
        return predictions_table(
            self.predictions,
            list(predicted.paths),
            self.class_names,
            true_labels=list(predicted.table["label"]),
            clusters=None if clusters is None or clusters.what is None else clusters.clusters,
        )

    def _addresses(self, folder: Path, errors: Sequence[Misclassification]) -> dict[str, str]:
        """Path → link from ``folder`` of the images on the page that are files."""
        galleries = (
            gallery for section in self.findings.sections for gallery in section.data.get("galleries", ())
        )
        shown = {*(error.path for error in errors), *(path for each in galleries for path in each["paths"])}
        rows = {path: row for row, path in enumerate(self.dataset.paths) if path in shown}
        files = {path: Path(self.dataset.file(row)) for path, row in rows.items()}
        return {path: _address(file, folder) for path, file in files.items() if file.is_file()}

    def _errors(self, thumbnail: Callable[[int], Image.Image | None]) -> list[Misclassification]:
        """The most confident errors, with the thumbnail of each row of the dataset."""
        labels, probabilities = self.predictions.labels, self.predictions.probabilities
        targets = labels.reshape(len(probabilities), -1)
        errors = []
        for place in most_confident_errors(labels, probabilities):
            row, best = int(self.predictions.samples[place]), int(probabilities[place].argmax())
            errors.append(
                Misclassification(
                    path=self.dataset.paths[row],
                    true=", ".join(self.class_names[label] for label in targets[place] if label >= 0),
                    predicted=self.class_names[best],
                    probability=float(probabilities[place, best]),
                    thumbnail=thumbnail(row),
                )
            )
        return errors


def _address(file: Path, folder: Path) -> str:
    """A link to a file from a page in a folder."""
    try:
        return quote(os.fsencode(os.path.relpath(file, folder).replace(os.sep, "/")))
    except ValueError:  # on another drive of Windows
        return file.absolute().as_uri()


def _links(folder: Path, data: str) -> dict[str, str]:
    """Title → address of the other files of a report."""
    folds = sorted(
        folder.glob("fold*/report.html"), key=lambda file: (len(file.parent.name), file.parent.name)
    )
    check = default_check_dir(data) / "inspection.html"
    return {
        **{f"Report of {file.parent.name}": _address(file, folder) for file in folds},
        **({"Dataset check": _address(check, folder)} if check.is_file() else {}),
        "Predictions (CSV)": "predictions.csv",
        "All metrics (JSON)": "report.json",
    }


def library_versions() -> dict[str, str]:
    """Versions of Python and the libraries that decide a metric."""
    names = ("efficientnetv2", "torch", "torchvision", "numpy", "pillow", "scikit-learn")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def file_hashes(*files: Path) -> dict[str, str]:
    """File name → SHA-256, of the files that exist."""
    found = {}
    for file in files:
        if file.is_file():
            with file.open("rb") as opened:
                found[file.name] = hashlib.file_digest(opened, "sha256").hexdigest()
    return found
