"""What a run or an evaluation came to: metrics, intervals, mistakes, as a report and as plain values."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
from PIL import Image

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.decode import load_image
from efficientnetv2.data.image_io import Source
from efficientnetv2.data.readers import BestEffortReader, display_reader
from efficientnetv2.evaluation import thumbnails as seeing
from efficientnetv2.evaluation.next_steps import NextStep
from efficientnetv2.evaluation.plots import SizeCurve
from efficientnetv2.evaluation.report import Misclassification, Report, most_confident_errors
from efficientnetv2.evaluation.report_metadata import ReportMetadata
from efficientnetv2.evaluation.sections import Section
from efficientnetv2.inference.predict import Predictions
from efficientnetv2.metrics.confidence_intervals import Interval
from efficientnetv2.metrics.metric_intervals import metric_intervals
from efficientnetv2.metrics.multilabel import (
    Metrics,
    compute_metrics,
)
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.rng import Key
from efficientnetv2.workflows.predictions_io import predictions_table, write_predictions
from efficientnetv2.workflows.report_folder import inspection_folder
from efficientnetv2.workflows.report_sections import Findings, Known, Wanted, gathered

# Next steps on the screen; the report has all. Ours.
_STEPS_SHOWN = 2


class EvaluationResult:
    """The figures of predictions, and what to say of them.

    Args:
        predictions: on the dataset's pictures.
        dataset: labelled.
        class_names: of the network.
        facts: all else the report says.
        wanted: what is asked of it beyond the figures.
        known: what is known beside the predictions.

    Raises:
        InputError: what is wanted can't be had of these pictures.
    """

    def __init__(
        self,
        predictions: Predictions,
        dataset: ImageDataset,
        class_names: Sequence[str],
        facts: ReportMetadata,
        *,
        wanted: Wanted | None = None,
        known: Known | None = None,
    ) -> None:
        self.predictions, self.dataset, self.facts = predictions, dataset, facts
        self.wanted, self.known = wanted or Wanted(), known or Known()
        self.class_names = tuple(class_names)

    @cached_property
    def figures(self) -> Metrics:
        """Of all predictions."""
        answers = self.predictions
        return compute_metrics(answers.labels, answers.probabilities, self.class_names, answers.answer)

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """95 % intervals, by name; where pictures hang together as far as these drawn as a whole leave it."""
        key, whole = Key.of(self.facts.seed or 0).fold("intervals"), self.known.whole
        return metric_intervals(
            self.figures,
            self.predictions.labels,
            self.predictions.probabilities,
            clusters=None if whole is None else whole.clusters,
            key=key,
        )

    @cached_property
    def findings(self) -> Findings:
        """What there is to say beyond the figures."""
        key = Key.of(self.facts.seed or 0).fold("findings")
        return gathered(
            self.predictions,
            self.dataset,
            self.class_names,
            self.wanted,
            self.known,
            trainers=self.facts.training_images,
            choosers=self.facts.selection_images,
            reach=self.intervals["top1"],
            key=key,
        )

    @cached_property
    def next_steps(self) -> tuple[NextStep, ...]:
        """What to do next, ranked; as in the report."""
        return self._report.next_steps

    @cached_property
    def _report(self) -> Report:
        """Without thumbnails, curves and links."""
        mistakes = self._mistakes(thumbnails=False)
        sections, context = self.findings.sections, self.findings.context
        return Report(self.figures, self.intervals, self.facts, mistakes, sections, context)

    @property
    def next_lines(self) -> list[str]:
        """The first steps for the screen, without the use of the model, which has a line of its own."""
        return [f"Next: {step.line}" for step in self.next_steps[:_STEPS_SHOWN] if step.topic != "use"]

    def write(
        self,
        folder: Path,
        *,
        history: Sequence[dict[str, Any]] = (),
        sizes: SizeCurve | None = None,
        sections: Sequence[Section] = (),
    ) -> None:
        """Write ``report.json``, ``report.html`` and ``predictions.csv`` into a folder that is there."""
        mistakes = self._mistakes()
        written = Report(
            self.figures,
            self.intervals,
            self.facts,
            errors=mistakes,
            sections=(*sections, *self.findings.sections),
            context=self.findings.context,
            history=history,
            sizes=sizes,
            links=_links(folder, self.facts.data),
            images=self._addresses(folder, mistakes),
        )
        try:
            written.write(folder)
        except OSError as error:
            raise InputError(
                f"{folder}: the report could not be written ({error.strerror or error})."
            ) from error
        write_predictions(folder / "predictions.csv", self.table())

    def to_json(self) -> dict[str, Any]:
        """What ``report.json`` holds."""
        return self._report.to_json()

    def table(self) -> pd.DataFrame:
        """The predictions as a table: what ``predictions.csv`` holds."""
        shown, whole = self.dataset.select(self.predictions.samples), self.known.whole
        return predictions_table(
            self.predictions,
            list(shown.paths),
            self.class_names,
            true_labels=list(shown.table["label"]),
            drawn_whole=None if whole is None or whole.what is None else whole.clusters,
        )

    def _addresses(self, folder: Path, mistakes: Sequence[Misclassification]) -> dict[str, str]:
        """Where the images lie that the page shows, as seen from its folder; of those that are files alone."""
        galleries = (one for part in self.findings.sections for one in part.data.get("galleries", ()))
        shown = {*(one.path for one in mistakes), *(path for one in galleries for path in one["paths"])}
        rows = {path: row for row, path in enumerate(self.dataset.paths) if path in shown}
        files = {path: Path(self.dataset.file(row)) for path, row in rows.items()}
        return {path: _address(file, folder) for path, file in files.items() if file.is_file()}

    def _mistakes(self, *, thumbnails: bool = True) -> list[Misclassification]:
        probabilities = self.predictions.probabilities
        pictures = BestEffortReader(display_reader(self.dataset))
        mistakes = []
        targets = self.predictions.labels.reshape(len(probabilities), -1)
        for place in most_confident_errors(self.predictions.labels, probabilities):
            row = int(self.predictions.samples[place])
            best = int(probabilities[place].argmax())
            mistakes.append(
                Misclassification(
                    path=self.dataset.paths[row],
                    true=", ".join(self.class_names[label] for label in targets[place] if label >= 0),
                    predicted=self.class_names[best],
                    probability=float(probabilities[place, best]),
                    thumbnail=pictures.read(row, _small) if thumbnails else None,
                )
            )
        return mistakes


def _address(file: Path, folder: Path) -> str:
    """A file as a link from a page in a folder."""
    try:
        return quote(os.fsencode(os.path.relpath(file, folder).replace(os.sep, "/")))
    except ValueError:  # on another drive of Windows
        return file.absolute().as_uri()


def _links(folder: Path, data: str) -> dict[str, str]:
    """The other files of a report: title → address."""
    folds = sorted(
        folder.glob("fold*/report.html"), key=lambda file: (len(file.parent.name), file.parent.name)
    )
    check = inspection_folder(data) / "inspection.html"
    return {
        **{f"Report of {file.parent.name}": _address(file, folder) for file in folds},
        **({"Dataset check": _address(check, folder)} if check.is_file() else {}),
        "Predictions (CSV)": "predictions.csv",
        "All metrics (JSON)": "report.json",
    }


def _small(source: Source) -> Image.Image:
    return seeing.shrink(load_image(source))


def library_versions() -> dict[str, str]:
    """Of what computed a figure."""
    names = ("efficientnetv2", "torch", "torchvision", "numpy", "pillow", "scikit-learn")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def file_hashes(*files: Path) -> dict[str, str]:
    """SHA-256 of files by their names, to know them again; those that are not there are left out."""
    found = {}
    for file in files:
        if file.is_file():
            with file.open("rb") as opened:
                found[file.name] = hashlib.file_digest(opened, "sha256").hexdigest()
    return found
