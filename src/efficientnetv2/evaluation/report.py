"""The report of a run or of an evaluation: ``report.json`` for programs, ``report.html`` for people.

The page is one file without scripts and without anything fetched. Class names and paths come from
whoever made the pictures, so every text is escaped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from efficientnetv2.evaluation import plots, thumbnails
from efficientnetv2.evaluation.confusion_matrix import Matrix, confusions
from efficientnetv2.evaluation.headline import (
    data_phrase,
    dataset_notes,
    headline,
    majority_phrase,
    majority_warning,
    probe_evaluated_images,
    probe_training_images,
    probe_warning,
)
from efficientnetv2.evaluation.html import json_text, json_values, render
from efficientnetv2.evaluation.next_steps import NextStep, model_of, next_steps, predict_command
from efficientnetv2.evaluation.plots import (
    MetricsRow,
    SizeCurve,
    constant_hyperparameters,
    draw_sizes,
    draw_training_curves,
)
from efficientnetv2.evaluation.predictions import PairedDifference
from efficientnetv2.evaluation.report_metadata import ReportMetadata
from efficientnetv2.evaluation.sections import Section, TemplateSection
from efficientnetv2.evaluation.summary import ReportContext, limitations, summarize
from efficientnetv2.metrics.classification import ClassificationMetrics
from efficientnetv2.metrics.confidence_intervals import Interval
from efficientnetv2.metrics.multilabel import (
    ASSIGNMENT_RULES,
    MultilabelClassMetrics,
    MultilabelMetrics,
    is_correct,
)
from efficientnetv2.utils.errors import count_of
from efficientnetv2.utils.io import write_text_atomically

# Of the table of classes: what is open, and what there is when it is unfolded; more are megabytes. Ours.
_ROWS_OPEN, _ROWS = 25, 2_000
_MATRIX_CLASSES = 1_000  # at most, for report.json to hold their matrix whole


@dataclass(frozen=True, eq=False)
class Misclassification:
    """A picture that was taken for something else.

    Args:
        path: as in the dataset.
        true: its class.
        predicted: the class it was given.
        probability: of the class it was given.
        thumbnail: the picture, of any size: PIL's, or (H, W, 3) uint8; None shows none.
    """

    path: str
    true: str
    predicted: str
    probability: float
    thumbnail: thumbnails.ImageLike | None = None


def write_report(
    folder: str | Path,
    *,
    figures: ClassificationMetrics | MultilabelMetrics,
    intervals: Mapping[str, Interval],
    facts: ReportMetadata,
    history: Sequence[MetricsRow] = (),
    misjudged: Sequence[Misclassification] = (),
    sizes: SizeCurve | None = None,
    sections: Sequence[Section | TemplateSection] = (),
    beside: ReportContext = ReportContext(),  # noqa: B008 - frozen
    links: Mapping[str, str] | None = None,
    images: Mapping[str, str] | None = None,
) -> None:
    """Write ``report.json`` and ``report.html``.

    Args:
        folder: there is one.
        figures: of the pictures evaluated on.
        intervals: as ``metrics.metric_intervals.metric_intervals`` gives them.
        facts: all else there is to say.
        history: rows of ``metrics.jsonl``, as ``evaluation.plots.draw_training_curves`` takes them.
        misjudged: the mistakes to show, the most confident first; see ``most_confident_errors``.
        sizes: the same pictures seen at several sizes, if they were.
        sections: further parts, in this order.
        beside: what the opening answers are made from beside the figures.
        links: Other files of the report: title → address, relative to the folder. None for none.
        images: Files of shown images: path as in the dataset → address, relative to the folder. None for none.
    """
    told = report_json(figures, intervals, facts, misjudged, sections, beside)
    write_text_atomically(Path(folder) / "report.json", json_text(told))
    page = _page(
        figures, intervals, facts, history, misjudged, sizes, sections, beside, links or {}, images or {}
    )
    write_text_atomically(Path(folder) / "report.html", page)


def report_json(
    figures: ClassificationMetrics | MultilabelMetrics,
    intervals: Mapping[str, Interval],
    facts: ReportMetadata,
    misjudged: Sequence[Misclassification] = (),
    sections: Sequence[Section | TemplateSection] = (),
    beside: ReportContext = ReportContext(),  # noqa: B008 - frozen
) -> dict[str, Any]:
    """What ``report.json`` holds, as plain JSON values; NaN and infinity become None.

    Of more than 1,000 classes the confusion matrix is ``confusion_cells``: true class, called class and count of each
    cell that is not empty.
    """
    told = {key: value for key, value in vars(facts).items() if key != "others"}
    values: dict[str, Any] = json_values(
        {
            "top1": figures.top1,
            "top5": figures.top5,
            **_over_classes(figures),
            "majority_top1": figures.majority_top1,
            "majority_class": figures.majority_class,
            "ece": figures.ece,
            "pictures": figures.pictures,
            "optimistic": facts.optimistic,
            "intervals": intervals,
            "drawn_whole": beside.drawn_whole,
            "next_steps": [asdict(step) for step in report_next_steps(figures, facts, sections)],
            **told,
            **facts.others,
            **{key: value for section in sections for key, value in section.told.items()},
            "per_class": {name: asdict(one) for name, one in figures.per_class.items()},
            "class_names": figures.class_names,
            **_confusion(figures),
            "misjudged": [
                {key: value for key, value in vars(one).items() if key != "thumbnail"} for one in misjudged
            ],
        }
    )
    return values


def report_next_steps(
    figures: ClassificationMetrics | MultilabelMetrics,
    facts: ReportMetadata,
    sections: Sequence[Section | TemplateSection],
) -> tuple[NextStep, ...]:
    """What to do next, ranked, by the metrics, the facts, and what the sections measured.

    Args:
        figures: Metrics of the evaluated images.
        facts: Facts of the report.
        sections: Sections of the report.
    """
    told = {key: value for section in sections for key, value in section.told.items()}
    suspects = told.get("abstention", {}).get("suspect_labels", 0)
    return next_steps(figures, facts, label_curve=told.get("label_curve"), suspects=suspects)


def _below_probe(probe: PairedDifference | None) -> dict[str, bool]:
    """The classes whose F1 is below that of the linear probe, and of each whether beyond chance."""
    return {} if probe is None else {name: one.certain for name, one in probe.f1.items() if one.value < 0}


def _of_errors(suspects: int) -> str:
    """Whether confident errors are more probably wrong labels, or errors of the model."""
    if not suspects:
        return (
            "No error is at a probability where most predictions are right. Errors of the model are more probable here "
            "than wrong labels."
        )
    return (
        f"The labels of {count_of(suspects, 'image')} contradict a prediction of 90 % or more, where most predictions "
        "are right. Check these labels first."
    )


@dataclass(frozen=True)
class _Use:
    """How to use the model: the command, the same with a threshold, and Python."""

    command: str
    python: str
    abstain: Mapping[str, Any] | None = None

    @classmethod
    def of(
        cls,
        figures: ClassificationMetrics | MultilabelMetrics,
        facts: ReportMetadata,
        targets: Sequence[Mapping[str, Any]],
    ) -> _Use:
        command = predict_command(facts)
        python = (
            "import efficientnetv2 as ev2\n\n"
            f"predict = ev2.Predictor({json.dumps(model_of(facts), ensure_ascii=False)})\n"
            'for prediction in predict(["image.jpg"]):\n'
            "    print(prediction.label, prediction.probability)"
        )
        reached = [one for one in targets if one["target"] > figures.top1 and one["threshold"]]
        if not reached:
            return cls(command, python)
        threshold = math.ceil(1000 * reached[0]["threshold"]) / 1000
        abstain = {"target": reached[0]["target"], "command": f"{command} --abstain-below {threshold:g}"}
        return cls(command, python, abstain)


def _confusion(figures: ClassificationMetrics | MultilabelMetrics) -> dict[str, Any]:
    if isinstance(figures, MultilabelMetrics):
        return {}
    if len(figures.class_names) <= _MATRIX_CLASSES:
        return {"confusion": figures.confusion.toarray()}
    cells = figures.confusion
    return {"confusion_cells": np.stack([cells.row, cells.col, cells.data], axis=1)}


def _over_classes(figures: ClassificationMetrics | MultilabelMetrics) -> dict[str, float | str]:
    if isinstance(figures, MultilabelMetrics):
        return {
            "mean_average_precision": figures.mean_average_precision,
            "f1_micro": figures.f1_micro,
            "f1_macro": figures.f1_macro,
            "answer": figures.answer,
        }
    return {"macro_f1": figures.macro_f1, "balanced_accuracy": figures.balanced_accuracy}


def most_confident_errors(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, *, most: int = 24
) -> npt.NDArray[np.intp]:
    """Positions of the mistakes that the network was surest of, the surest first.

    Args:
        labels: (N,) class ids; of several labels each (N, M), -1 behind the last of a picture.
        probabilities: (N, K).
        most: how many at most.
    """
    shares = np.asarray(probabilities)
    wrong = np.flatnonzero(~is_correct(labels, shares.argmax(axis=1)))
    return wrong[np.argsort(-shares[wrong].max(axis=1), kind="stable")][:most]


def _page(
    figures: ClassificationMetrics | MultilabelMetrics,
    intervals: Mapping[str, Interval],
    facts: ReportMetadata,
    history: Sequence[MetricsRow],
    misjudged: Sequence[Misclassification],
    sizes: SizeCurve | None,
    sections: Sequence[Section | TemplateSection],
    beside: ReportContext,
    links: Mapping[str, str],
    images: Mapping[str, str],
) -> str:
    several = isinstance(figures, MultilabelMetrics)
    values = {
        name: one.average_precision if isinstance(one, MultilabelClassMetrics) else one.f1
        for name, one in figures.per_class.items()
    }
    measured = [(name, one) for name, one in figures.per_class.items() if values[name] is not None]
    weakest_first = sorted(measured, key=lambda item: values[item[0]] or 0.0)
    stages = plots.stage_costs(history)
    recipe = None if facts.recipe is None else json_values(facts.recipe)
    shown = {
        path for part in sections for gallery in part.told.get("galleries", ()) for path in gallery["paths"]
    }
    further = [one for one in misjudged if one.path not in shown]
    steps = report_next_steps(figures, facts, sections)
    told = {key: value for section in sections for key, value in section.told.items()}
    abstention = told.get("abstention", {})
    dim = thumbnails.is_low_contrast(one.thumbnail for one in further)
    return render(
        "report.html.j2",
        figures=figures,
        intervals=intervals,
        facts=facts,
        headline=headline(figures),
        whose=data_phrase(facts),
        majority=majority_phrase(figures),
        drawn_whole=beside.drawn_whole,
        against_majority=majority_warning(figures, intervals),
        pictures=dataset_notes(figures, facts),
        lost_to_probe=probe_warning(figures, facts, beside.probe),
        probe_learnt_from=probe_training_images(facts),
        probe_measured_on=probe_evaluated_images(figures, beside.probe),
        answers=summarize(figures, intervals, facts, beside, steps),
        limits=limitations(figures, intervals, facts, beside),
        steps=steps,
        sections=sections,
        several=several,
        rule=ASSIGNMENT_RULES[figures.answer] if isinstance(figures, MultilabelMetrics) else None,
        calibration=told.get("calibration"),
        below_probe=_below_probe(beside.probe),
        of_errors=_of_errors(abstention.get("suspect_labels", 0)),
        use=_Use.of(figures, facts, abstention.get("targets", ())),
        links=list(links.items()),
        images=images,
        classes=weakest_first[:_ROWS_OPEN],
        further_classes=weakest_first[_ROWS_OPEN:_ROWS],
        classes_left_out=len(weakest_first[_ROWS:]),
        unmeasured=[name for name, value in values.items() if value is None],
        curve=draw_training_curves(history),
        constants=constant_hyperparameters(history),
        stages=stages,
        costs=plots.draw_costs({"": stages}),
        over_time=plots.draw_top1_over_time({facts.model or "": history}),
        sizes=sizes,
        size_curve=None if sizes is None else draw_sizes(sizes),
        matrix=None
        if isinstance(figures, MultilabelMetrics)
        else Matrix.of(figures.confusion, figures.class_names),
        confusions=()
        if isinstance(figures, MultilabelMetrics)
        else confusions(figures.confusion, figures.class_names),
        misjudged=[(one, thumbnails.encode_thumbnail(one.thumbnail, dim=dim)) for one in further],
        galleries=bool(shown),
        stretched=thumbnails.CONTRAST_NOTE if dim else None,
        mistakes=round(figures.pictures * (1 - figures.top1)),
        recipe=recipe and yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True),
    )
