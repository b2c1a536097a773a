"""The result of a run or an evaluation: metrics, intervals and errors, as a report and as plain values."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from efficientnetv2.data.config import default_check_dir
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.decode import load_image
from efficientnetv2.data.readers import BestEffortReader, display_reader
from efficientnetv2.evaluation import thumbnails
from efficientnetv2.evaluation.baseline_warnings import accuracy_lines, probe_lines, summary_lines
from efficientnetv2.evaluation.html import TemplateSection
from efficientnetv2.evaluation.plot_style import default_style
from efficientnetv2.evaluation.predictions import predictions_table, write_predictions
from efficientnetv2.evaluation.report import Misclassification, Report, most_confident_errors
from efficientnetv2.evaluation.report_metadata import ReportMetadata
from efficientnetv2.evaluation.report_sections import ReportInputs, ReportOptions, build_sections
from efficientnetv2.evaluation.training_plots import SizeCurve
from efficientnetv2.inference.predict import Predictions
from efficientnetv2.metrics.confidence_intervals import Interval
from efficientnetv2.metrics.metric_intervals import metric_intervals
from efficientnetv2.metrics.multilabel import Metrics, compute_metrics
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.io import absolute_path, hint_for_os_error, link_to, read_object_or_empty, sha256_of
from efficientnetv2.utils.random_key import Key

# Next steps that the command prints; the report has all. Ours.
_STEPS_SHOWN = 2


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """Metrics of predictions on labeled images, and the report on them.

    Raises InputError on first use, where an option does not fit these images.
    """

    predictions: Predictions
    dataset: ImageDataset
    class_names: Sequence[str]
    metadata: ReportMetadata
    options: ReportOptions = field(default_factory=ReportOptions)
    inputs: ReportInputs = field(default_factory=ReportInputs)

    @cached_property
    def metrics(self) -> Metrics:
        """Metrics of all predictions."""
        found = self.predictions
        return compute_metrics(found.labels, found.probabilities, self.class_names, found.activation)

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """95 % intervals by metric, bootstrapped by cluster where images belong together."""
        clusters = self.inputs.clusters
        return metric_intervals(
            self.metrics,
            self.predictions.labels,
            self.predictions.probabilities,
            clusters=None if clusters is None else clusters.clusters,
            key=Key.of(self.metadata.seed or 0).fold("intervals"),
        )

    @cached_property
    @default_style()
    def _report(self) -> Report:
        """The report without thumbnails, curves and links."""
        sections, context = build_sections(
            self.predictions,
            self.dataset,
            self.class_names,
            self.metadata,
            self.options,
            self.inputs,
            self.intervals["top1"],
        )
        errors = self._errors(thumbnail=lambda row: None)
        return Report(self.metrics, self.intervals, self.metadata, errors, sections, context)

    @property
    def summary_lines(self) -> list[str]:
        """Accuracy, comparisons with the baselines, and why the metrics are optimistic."""
        facts, context, optimistic = self.metadata, self._report.context, list[str]()
        if facts.optimistic:
            reason = "trained the model" if facts.on_training_split else "also selected the model"
            optimistic = ["Optimistic: " + " ".join(facts.notes or [f"these images {reason}."])]
        return [
            *accuracy_lines(self.metrics, self.intervals, facts.evaluated_on, context.bootstrap_unit),
            *probe_lines(self.metrics, facts, context.probe),
            *summary_lines(context),
            *optimistic,
        ]

    @property
    def next_lines(self) -> list[str]:
        """The first next steps, without the use of the model, which has a line of its own."""
        return [f"Next: {step.line}" for step in self._report.next_steps[:_STEPS_SHOWN] if step.topic != "use"]

    @default_style()
    def write(
        self,
        folder: Path,
        *,
        history: Sequence[dict[str, Any]] = (),
        sizes: SizeCurve | None = None,
        sections: Sequence[TemplateSection] = (),
    ) -> None:
        """Write ``report.json``, ``report.html`` and ``predictions.csv`` into an existing folder."""
        reader = BestEffortReader(display_reader(self.dataset))
        errors = self._errors(
            thumbnail=lambda row: reader.read(row, lambda source: thumbnails.shrink(load_image(source)))
        )
        report = replace(
            self._report,
            errors=errors,
            sections=(*sections, *self._report.sections),
            history=history,
            sizes=sizes,
            links=_links(folder, self.metadata.data),
            images=self._image_links(folder, errors),
        )
        try:
            # An interruption must not leave files of two evaluations. These are written after report.json.
            (folder / "report.html").unlink(missing_ok=True)
            with suppress(PermissionError):  # open in Excel, for example: it is then written under another name
                (folder / "predictions.csv").unlink(missing_ok=True)
            report.write(folder)
        except OSError as error:
            fix = f"{hint_for_os_error(error)}, and repeat the command; a training run continues with `resume`"
            problem = f"the report could not be written ({error.strerror or error})"
            raise InputError(f"{folder}: {problem}. {fix}.") from error
        write_predictions(folder / "predictions.csv", self.table())

    def to_json(self) -> dict[str, Any]:
        """Contents of ``report.json``."""
        return self._report.to_json()

    def table(self) -> pd.DataFrame:
        """Contents of ``predictions.csv``."""
        predicted, clusters = self.dataset.select(self.predictions.samples), self.inputs.clusters
        return predictions_table(
            self.predictions,
            list(predicted.paths),
            self.class_names,
            true_labels=list(predicted.table["label"]),
            clusters=None if clusters is None or clusters.unit is None else clusters.clusters,
            separator=predicted.separator,
        )

    def _image_links(self, folder: Path, errors: Sequence[Misclassification]) -> dict[str, str]:
        """Path → link from ``folder`` of the images on the page that are files."""
        shown = {error.path for error in errors}
        for section in self._report.sections:
            shown.update(path for gallery in section.data.get("galleries", ()) for path in gallery["paths"])
        rows = {path: row for row, path in enumerate(self.dataset.paths) if path in shown}
        files = {path: Path(self.dataset.file(row)) for path, row in rows.items()}
        return {path: link_to(file, folder) for path, file in files.items() if os.path.isfile(file)}

    def _errors(self, thumbnail: Callable[[int], Image.Image | None]) -> list[Misclassification]:
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


def _links(folder: Path, data: str) -> dict[str, str]:
    folds = sorted(folder.glob("fold*/report.html"), key=lambda file: (len(file.parent.name), file.parent.name))
    check = default_check_dir(data) / "inspection.html"
    is_checked = False
    if os.path.isfile(check):  # of a list of shards that is longer than a path, too
        checked = str(read_object_or_empty(check.with_name("inspection.json")).get("data", ""))
        is_checked = absolute_path(checked) == absolute_path(data)  # not of another dataset of this name
    return {
        **{f"Report of {file.parent.name}": link_to(file, folder) for file in folds},
        **({"Dataset check": link_to(check, folder)} if is_checked else {}),
        "Predictions (CSV)": "predictions.csv",
        "All metrics (JSON)": "report.json",
    }


def library_versions() -> dict[str, str]:
    """Versions of Python and the libraries that decide a metric."""
    names = ("efficientnetv2", "torch", "torchvision", "numpy", "pillow", "scikit-learn")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def file_hashes(*files: Path) -> dict[str, str]:
    """File name → SHA-256, of the files that exist."""
    return {file.name: sha256_of(file) for file in files if file.is_file()}
