"""The report of a run or of an evaluation: ``report.json`` for programs, ``report.html`` for people.

The page is one file without scripts and external resources. Class names and paths are untrusted, so all text is
escaped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from scipy.sparse import coo_array

from efficientnetv2.evaluation import thumbnails, training_plots
from efficientnetv2.evaluation.baseline_warnings import majority_warning, probe_evaluated_images, probe_warning
from efficientnetv2.evaluation.html import TemplateSection, json_text, json_values, render, threshold_text
from efficientnetv2.evaluation.next_steps import (
    NextStep,
    dataset_words,
    evaluated_with,
    model_of,
    next_steps,
    predict_command,
    predict_options,
)
from efficientnetv2.evaluation.plot_style import text_width, wrap_name
from efficientnetv2.evaluation.report_metadata import ReportContext, ReportMetadata
from efficientnetv2.metrics.confidence_intervals import Interval
from efficientnetv2.metrics.multilabel import (
    ASSIGNMENT_RULES,
    Metrics,
    MultilabelClassMetrics,
    MultilabelMetrics,
    is_correct,
)
from efficientnetv2.utils.io import write_text_atomically
from efficientnetv2.utils.legacy import SCHEMA_VERSION
from efficientnetv2.utils.shell import shell_join

# Rows of the per-class table: shown, and in total with those to unfold; more would be megabytes. Ours.
_ROWS_OPEN, _ROWS = 25, 2_000
# What intervals draw whole, in report.json.
_UNITS = {None: "image", "places": "location", "groups": "group"}
# Classes up to which report.json has the whole confusion matrix. Ours.
_MATRIX_CLASSES = 1_000
# The confusion matrix, in CSS pixels. Ours, from looking at pages.
_SIDE_PX = 900  # largest matrix
_CELL_PX = (9.0, 64.0)  # smallest cell with a readable label, and largest cell
_LABELED = 120  # classes whose labels fit
_LISTED = 12  # confusions listed
_COUNTED = 20  # classes whose counts fit into the cells
_NAME_LETTERS = 22  # letters of a line of a label
_LINE = 1.15  # line height in letters
_LINES = 3  # lines of a label
_LEAST_FONT_PX = 10.0  # readable font
_LETTER = 0.62  # width of a letter over its height
_FULL = 0.75  # share of a row from which text on a cell needs another color
_AXIS_FONT_PX = 13.0  # axis titles
_CELLS = 50_000  # cells drawn, 2 MB of the page; the ImageNet validation set fills no more


@dataclass(frozen=True, eq=False)
class Misclassification:
    """A wrong prediction, its probability, and the image for the page (None: not shown)."""

    path: str
    true: str
    predicted: str
    probability: float
    thumbnail: thumbnails.ImageLike | None = None


def most_confident_errors(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, *, most: int = 24
) -> npt.NDArray[np.intp]:
    """Positions of the wrong predictions of highest probability, from (N,) or (N, M) labels and (N, K)."""
    scores = np.asarray(probabilities)
    wrong = np.flatnonzero(~is_correct(labels, scores.argmax(axis=1)))
    return wrong[np.argsort(-scores[wrong].max(axis=1), kind="stable")][:most]


@dataclass(frozen=True, eq=False)
class Report:
    """All that a report is made of."""

    metrics: Metrics
    intervals: Mapping[str, Interval]  # of 95 %
    metadata: ReportMetadata
    errors: Sequence[Misclassification] = ()  # the most confident first
    sections: Sequence[TemplateSection] = ()
    context: ReportContext = field(default_factory=ReportContext)
    history: Sequence[training_plots.MetricsRow] = ()  # metrics.jsonl
    sizes: training_plots.SizeCurve | None = None
    links: Mapping[str, str] = field(default_factory=dict)  # title -> address of other files
    images: Mapping[str, str] = field(default_factory=dict)  # path as in the dataset -> address

    @property
    def next_steps(self) -> tuple[NextStep, ...]:
        """What to do next, ranked."""
        data = self._section_data
        suspects = data.get("abstention", {}).get("suspect_labels", 0)
        curve = data.get("data_scaling_curve")
        return next_steps(self.metrics, self.metadata, data_scaling_curve=curve, suspects=suspects)

    def write(self, folder: str | Path) -> None:
        """Write ``report.json`` and ``report.html`` into an existing folder."""
        write_text_atomically(Path(folder) / "report.json", json_text(self.to_json()))
        write_text_atomically(Path(folder) / "report.html", self.to_html())

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; NaN and infinity become None.

        With more than 1,000 classes ``confusion_cells`` replaces the matrix: true class, predicted class and count of
        each non-empty cell.
        """
        metrics, metadata = self.metrics, self.metadata
        confusion: dict[str, Any] = {}
        names = ["mean_average_precision", "f1_micro", "f1_macro", "activation"]
        if not isinstance(metrics, MultilabelMetrics):
            names, cells = ["macro_f1", "balanced_accuracy"], metrics.confusion
            confusion = {"confusion": cells.toarray()}
            if len(metrics.class_names) > _MATRIX_CLASSES:
                confusion = {"confusion_cells": np.stack([cells.row, cells.col, cells.data], axis=1)}
        unit = self.context.bootstrap_unit
        values: dict[str, Any] = json_values(
            {
                "schema_version": SCHEMA_VERSION,
                "top1": metrics.top1,
                "top5": metrics.top5,
                **{name: getattr(metrics, name) for name in names},
                "majority_top1": metrics.majority_top1,
                "majority_class": metrics.majority_class,
                "ece": metrics.ece,
                "num_images": metrics.num_images,
                "optimistic": metadata.optimistic,
                "intervals": self.intervals,
                "bootstrap_unit": _UNITS.get(unit, unit),
                "next_steps": [asdict(step) for step in self.next_steps],
                **{key: value for key, value in vars(metadata).items() if key != "extra"},
                **metadata.extra,
                **self._section_data,
                "per_class": {name: asdict(each) for name, each in metrics.per_class.items()},
                "class_names": metrics.class_names,
                **confusion,
                "top_errors": [
                    {key: value for key, value in vars(error).items() if key != "thumbnail"} for error in self.errors
                ],
            }
        )
        return values

    def to_html(self) -> str:
        """The page."""
        metrics, metadata, context, data = self.metrics, self.metadata, self.context, self._section_data
        abstention = data.get("abstention", {})
        in_galleries = {path for gallery in data.get("galleries", ()) for path in gallery["paths"]}
        errors = [error for error in self.errors if error.path not in in_galleries]
        stretched = thumbnails.is_low_contrast(error.thumbnail for error in errors)
        stages = training_plots.stage_costs(self.history)
        recipe = None if metadata.recipe is None else json_values(metadata.recipe)
        single_label = None if isinstance(metrics, MultilabelMetrics) else metrics
        probe_f1 = {} if context.probe is None else context.probe.f1
        return render(
            "report.html.j2",
            metrics=metrics,
            multilabel=single_label is None,
            intervals=self.intervals,
            metadata=metadata,
            context=context,
            majority_warning=majority_warning(metrics, self.intervals),
            probe_warning=probe_warning(metrics, metadata, context.probe),
            probe_evaluated_images=probe_evaluated_images(metrics, context.probe),
            # Classes whose F1 is below that of the linear probe, and whether significantly.
            below_probe={name: each.certain for name, each in probe_f1.items() if each.value < 0},
            steps=self.next_steps,
            dataset=shell_join(dataset_words(metadata, "--min-images-per-class")),
            sections=self.sections,
            rule=ASSIGNMENT_RULES[metrics.activation] if isinstance(metrics, MultilabelMetrics) else None,
            calibration=data.get("calibration"),
            use=_usage(metrics, metadata, abstention.get("targets", ())),
            links=list(self.links.items()),
            images=self.images,
            **_class_rows(metrics),
            curve=training_plots.draw_training_curves(self.history),
            constants=training_plots.constant_hyperparameters(self.history),
            stages=stages,
            costs=training_plots.draw_costs({"": stages}),
            over_time=training_plots.draw_top1_over_time({metadata.model or "": self.history}),
            sizes=self.sizes,
            size_curve=None if self.sizes is None else training_plots.draw_sizes(self.sizes),
            matrix=single_label and matrix_layout(single_label.confusion, single_label.class_names),
            confusions=single_label and most_frequent_confusions(single_label.confusion, single_label.class_names),
            errors=[(error, thumbnails.encode_thumbnail(error.thumbnail, stretched=stretched)) for error in errors],
            suspects=abstention.get("suspect_labels", 0),
            galleries=bool(in_galleries),
            stretched=thumbnails.CONTRAST_NOTE if stretched else None,
            recipe=recipe and yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True),
        )

    @property
    def _section_data(self) -> dict[str, Any]:
        return {key: value for section in self.sections for key, value in section.data.items()}


def _class_rows(metrics: Metrics) -> dict[str, Any]:
    """The per-class table, lowest first: shown rows, rows to unfold, the number left out, and unmeasured classes."""
    values = {
        name: each.average_precision if isinstance(each, MultilabelClassMetrics) else each.f1
        for name, each in metrics.per_class.items()
    }
    measured = [row for row in metrics.per_class.items() if values[row[0]] is not None]
    rows = sorted(measured, key=lambda row: values[row[0]] or 0.0)
    return {
        "classes": rows[:_ROWS_OPEN],
        "further_classes": rows[_ROWS_OPEN:_ROWS],
        "classes_left_out": len(rows[_ROWS:]),
        "unmeasured": [name for name, value in values.items() if value is None],
    }


def _usage(metrics: Metrics, metadata: ReportMetadata, targets: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How to use the model; ``abstain`` is None where no threshold holds for what the command predicts."""
    command, abstain = predict_command(metadata), None
    sized = evaluated_with(metadata, "--image-size", "--imgsz", "--img-size")  # the last two are of other tools
    px = metadata.extra.get("image_size") if sized else None
    ensemble = metadata.evaluated_on == "out-of-fold" and "model_for_new_images" not in metadata.extra
    # The command gives other probabilities, or only the most probable of several labels is counted.
    if sized or ensemble or isinstance(metrics, MultilabelMetrics):
        targets = ()
    if reached := [each for each in targets if each["target"] > metrics.top1 and each["threshold"]]:
        threshold = threshold_text(float(reached[0]["threshold"]))
        abstain = {"target": reached[0]["target"], "command": f"{command} --abstain-below {threshold}"}
    model = json.dumps(model_of(metadata), ensure_ascii=False)
    options = ", ".join(f"{name}={json.dumps(value)}" for name, value in predict_options(metadata).items())
    return {"command": command, "model": model, "options": options, "abstain": abstain, "px": px}


def matrix_layout(confusion: coo_array, class_names: Sequence[str]) -> dict[str, Any]:
    """What ``matrix.html.j2`` draws of (K, K) counts, rows true, columns predicted; lengths in CSS pixels.

    With too many classes there are no ``labels``; with too many non-empty cells the largest are drawn.
    """
    classes = len(class_names)
    cell_px = _SIDE_PX / classes
    if classes <= _LABELED:
        cell_px = min(max(cell_px, _CELL_PX[0]), _CELL_PX[1])
    font_px = min(13.0, cell_px * 0.9)
    lines = min(_LINES, max(1, int(cell_px / (font_px * _LINE))))
    labels = [wrap_name(name, _NAME_LETTERS, lines) for name in class_names] if classes <= _LABELED else []
    widest = max((text_width(line) for label in labels for line in label), default=0.0)
    margin_px = 1.6 * _AXIS_FONT_PX + font_px * (2 + _LETTER * widest)
    whole_px = margin_px + cell_px * classes + 2
    drawn = np.sort(np.argsort(-confusion.data, kind="stable")[:_CELLS])
    rows, columns, counts = confusion.row[drawn], confusion.col[drawn], confusion.data[drawn]
    shares = counts / confusion.sum(axis=1)[rows]
    cells = [
        {
            "row": row, "column": column, "count": count, "share": share, "right": row == column,
            "opacity": round(0.12 + 0.68 * share, 3),  # a single error among many is still visible
            "full": share > _FULL,
            "shade": (row == column, round(0.12 + 0.68 * share, 2)),  # cells of one shade are written together
        }
        for row, column, count, share in zip(*(each.tolist() for each in (rows, columns, counts, shares)), strict=True)
    ]  # fmt: skip
    return {
        "names": class_names, "labels": labels, "cells": cells, "counted": classes <= _COUNTED,
        "left_out": confusion.nnz - len(drawn), "cell_px": cell_px, "margin_px": margin_px, "font_px": font_px,
        "dot": max(1.0, 1 / cell_px),  # side of a cell without labels, in cells: at least a pixel
        "side_px": cell_px * classes, "axis_font_px": _AXIS_FONT_PX, "axis_px": 1.1 * _AXIS_FONT_PX,
        "whole_px": whole_px,
        "least_px": whole_px * min(1.0, _LEAST_FONT_PX / font_px),  # width down to which it stays readable
    }  # fmt: skip


def most_frequent_confusions(confusion: coo_array, class_names: Sequence[str]) -> list[tuple[str, str, int, float]]:
    """The most frequent confusions: true class, predicted class, count, share of the true class."""
    wrong = confusion.row != confusion.col
    rows, columns, counts = confusion.row[wrong], confusion.col[wrong], confusion.data[wrong]
    shares = counts / confusion.sum(axis=1)[rows]
    return [
        (class_names[int(rows[at])], class_names[int(columns[at])], int(counts[at]), float(shares[at]))
        for at in np.argsort(-counts, kind="stable")[:_LISTED]
    ]
