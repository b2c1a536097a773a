"""The results of a run: its facts, comparisons and its report."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import TypeAdapter

from efficientnetv2.data.prepared_data import PreparedData
from efficientnetv2.data.records import is_copy
from efficientnetv2.evaluation.bootstrap_clusters import split_clusters
from efficientnetv2.evaluation.distribution_shift import hold_out_estimate, train_distance
from efficientnetv2.evaluation.evaluation_result import EvaluationResult, file_hashes, library_versions
from efficientnetv2.evaluation.explain import explain_predictions
from efficientnetv2.evaluation.next_steps import late_gain
from efficientnetv2.evaluation.predictions import PREDICTIONS_CSV, load_predictions, per_class_f1, save_predictions
from efficientnetv2.evaluation.report_metadata import ReportMetadata
from efficientnetv2.evaluation.report_sections import (
    ReportInputs,
    ReportOptions,
    label_efficiency_verdict,
    learning_curve_section,
)
from efficientnetv2.evaluation.run_comparison import PreviousRun
from efficientnetv2.evaluation.training_plots import SizeCurve, stage_costs
from efficientnetv2.inference.learning_curve import LearningCurve, learning_curve
from efficientnetv2.inference.linear_probe import ProbeResult, fit_classifier
from efficientnetv2.models import model_file
from efficientnetv2.models.output_shapes import stride
from efficientnetv2.models.provenance import Calibration
from efficientnetv2.training.checkpoints import remove_checkpoints
from efficientnetv2.training.initial_weights import model_title
from efficientnetv2.training.metrics_log import data_wait_fraction, training_seconds
from efficientnetv2.training.post_training import Result, epochs_trained, unreadable_note
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.run_setup import RunSetup
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.random_key import Key

_logger = logging.getLogger(__name__)

PROBE_DIR = "probe"  # in a run directory: predictions of the linear probe
_LAST_KEPT = "No images chose the model, so the weights after the last step are kept."


def save_probe(probe: ProbeResult, data: PreparedData, recipe: Recipe, run: Path) -> dict[str, Any]:
    """Save the probe's predictions; returns its metrics and its learning curve for the run directory."""
    names, balanced = probe.val_dataset.class_names, recipe.balances_classes
    predictions = pd.DataFrame(
        {
            "path": probe.val_dataset.select(probe.val.samples).paths,
            "predicted_label": [names[label] for label in probe.predicted],
            "true_label": [names[label] for label in probe.val.labels],
        }
    )
    save_predictions(run / PROBE_DIR, predictions)
    curve = learning_curve(
        probe.train,
        probe.val,
        probe.predicted,
        fit=partial(fit_classifier, strength=probe.metrics.strength, balanced=balanced),
        num_labeled=int((~is_copy(data.train)).sum()) - probe.num_unreadable,
        key=Key.of(recipe.seed).fold("label curve"),
        groups=probe.groups,
    )
    facts: dict[str, Any] = {"linear_probe": asdict(probe.metrics)}
    return facts if curve is None else facts | {"data_scaling_curve": asdict(curve)}


def write_run_report(setup: RunSetup, data: PreparedData, result: Result) -> EvaluationResult:
    """Write the report of a run whose training has ended, and remove its checkpoints."""
    beginning, folder = setup.folder.beginning(), setup.folder.path
    known = _report_context(folder, beginning, result.calibration)
    # The moving average, not what was trained last.
    model = model_file.load(setup.folder.model_file, setup.device)
    explanation = explain_predictions(
        model, result.predictions, setup.val, setup.train.class_names, model.preprocessing
    )
    distance = train_distance(data.dataset, setup.eval_split)
    outcome = EvaluationResult(
        result.predictions,
        setup.val,
        setup.train.class_names,
        _metadata(setup, data, result, beginning, known),
        options=ReportOptions(baseline=PreviousRun.load(folder, beginning)),
        inputs=replace(
            known,
            sections=(*known.sections, *explanation),
            new_places=None if distance is None else hold_out_estimate(distance),
            folder=folder,
            clusters=split_clusters(folder, setup.val.select(result.predictions.samples).paths),
        ),
    )
    curve = None
    if result.sizes:
        image_size = setup.recipe.progressive.last.image_size
        curve = SizeCurve(result.sizes.points, result.sizes.image_size, image_size, "selected")
    outcome.write(folder, history=result.history, sizes=curve)
    # Only now: a run without a whole report resumes from them.
    remove_checkpoints(setup.folder.checkpoints)
    return outcome


def _metadata(
    setup: RunSetup, data: PreparedData, result: Result, beginning: Mapping[str, Any], known: ReportInputs
) -> ReportMetadata:
    recipe, probe = setup.recipe, beginning.get("linear_probe")
    before = beginning.get("seen_before", {"num_images": 0, "num_selected": 0})
    selected = result.selection.to_json() if result.selection else {}
    # Of images that became unreadable nobody knows how often they were seen.
    readable = np.flatnonzero([path not in setup.folder.skipped for path in setup.train.paths])
    train_images = setup.train.select(readable)
    per_class = {} if data.dataset.separator else dict(train_images.table["label"].value_counts())
    return ReportMetadata(
        data=data.dataset.source,
        evaluated_on=setup.eval_split,
        num_eval_images_seen_in_training=before["num_images"],
        num_eval_images_used_for_selection=before["num_selected"],
        selected_on=selected.pop("selected_on", None),
        kept_model=selected.pop("kept_model", None),
        kept_reason=_LAST_KEPT if result.selection is None else str(result.selection),
        tta=recipe.tta,
        model=model_title(recipe.model),
        command=beginning["command"],
        versions=library_versions(),
        auto_choices=beginning["auto_choices"],
        notes=[
            *([before["note"]] if "note" in before else []),
            data.split_note,
            *unreadable_note(setup, result.predictions),
            *(str(choice) for choice in (result.selection, result.sizes) if choice),
        ],
        recipe=recipe.to_json(),
        seed=recipe.seed,
        epochs=epochs_trained(setup, result.images // recipe.batch_size),
        num_train_images=len(train_images),
        num_train_lost=len(setup.train) - len(train_images),
        linear_probe_top1=probe["top1"] if probe else None,
        linear_probe_macro_f1=probe["macro_f1"] if probe else None,
        linear_probe_f1={} if known.probe is None else per_class_f1(known.probe),
        linear_probe_num_images=probe["num_train_images"] if probe else None,
        linear_probe_num_available=len(setup.train) if probe else None,
        train_images_per_class=per_class,
        sha256=file_hashes(setup.folder.model_file, setup.folder.dataset_file),
        wall_s=round(result.seconds, 2),
        images_per_s=round(result.images / result.seconds, 2),
        data_wait_fraction=data_wait_fraction(result.history),
        num_skipped=len(setup.folder.skipped),
        # A model of one input size cannot see more of the stored images.
        stored_size=data.stored_size if stride(setup.network) else None,
        check_notes=data.check_notes,
        label_conflicts=data.label_conflicts,
        late_gain=late_gain(result.history, tta=recipe.tta),
        extra={
            "train_s": round(training_seconds(result.history), 2),
            "run": str(setup.folder.path),
            "model_file": str(setup.folder.model_file),
            "processes": setup.world.size,
            "stages": [asdict(stage) for stage in stage_costs(result.history)],
            **{name: beginning[name] for name in ("weights_compared",) if name in beginning},
            **selected,
            **(result.sizes.to_json() if result.sizes else {}),
        },
    )


def _report_context(folder: Path, beginning: Mapping[str, Any], calibration: Calibration | None) -> ReportInputs:
    """What a run knows besides its predictions: those of the probe, the learning curve, its temperature."""
    predictions, file = None, folder / PROBE_DIR / PREDICTIONS_CSV
    if file.is_file() and "linear_probe" in beginning:
        try:
            predictions = load_predictions(folder / PROBE_DIR)
        except InputError:
            _logger.info(f"{file} is damaged. The report leaves the linear probe's classes out.")
    inputs = ReportInputs(calibration=calibration, probe=predictions)
    if "data_scaling_curve" not in beginning:
        return inputs
    curve = TypeAdapter(LearningCurve).validate_python(beginning["data_scaling_curve"])
    return replace(inputs, more_labels=label_efficiency_verdict(curve), sections=(learning_curve_section(curve),))
