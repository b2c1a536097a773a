"""The report of a cross-validation, with linear probes on its folds, and its models as an ensemble."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.folds import Folds
from efficientnetv2.evaluation.bootstrap_clusters import Clusters, split_clusters
from efficientnetv2.evaluation.crossval_summary import CrossValidationSummary
from efficientnetv2.evaluation.distribution_shift import PROBE, SplitComparison, fold_train_distance
from efficientnetv2.evaluation.evaluation_result import EvaluationResult, file_hashes, library_versions
from efficientnetv2.evaluation.explain import explain_folds
from efficientnetv2.evaluation.predictions import SKIPPED, write_skipped
from efficientnetv2.evaluation.report_metadata import ReportMetadata
from efficientnetv2.evaluation.report_sections import ReportInputs, label_efficiency_verdict, learning_curve_section
from efficientnetv2.inference.predict import Predictions
from efficientnetv2.models import ensemble, model_file
from efficientnetv2.utils.errors import InputError, pluralize
from efficientnetv2.utils.io import read_object
from efficientnetv2.utils.probability import to_logits
from efficientnetv2.utils.random_key import Key
from efficientnetv2.utils.shell import option_args, shell_join
from efficientnetv2.workflows.crossval_baseline import ProbeBaseline, compare_folds, probe_baseline
from efficientnetv2.workflows.crossval_config import CROSSVAL_JSON
from efficientnetv2.workflows.crossval_runs import (
    FoldResult,
    FoldTrainer,
    first_preprocessing,
    run_name,
    selection_results,
)

_logger = logging.getLogger(__name__)

#: Folder of the comparison folds, in that of the cross-validation.
COMPARISON_FOLDER = "otherwise"


@dataclass(frozen=True, eq=False)
class CrossValResults:
    """All that the report is made from; ``skipped`` has the images that were unreadable before the folds were made."""

    folder: Path
    trainer: FoldTrainer
    folds: Folds
    results: Sequence[FoldResult]
    other_folds: Folds | None
    other_results: Sequence[FoldResult] | None
    skipped: Sequence[tuple[str, str]]

    @cached_property
    def predictions(self) -> Predictions:
        """Out-of-fold predictions, in the order of the dataset."""
        return _pooled(self.trainer.dataset, self.results)

    @cached_property
    def unreadable(self) -> list[tuple[str, str]]:
        """Path and reason of images that have no prediction because a run could not read them."""
        paths, predicted = self.trainer.dataset.paths, set(self.predictions.samples.tolist())
        found = {row: why for result in self.results for row, why in result.unreadable.items()}
        return [(paths[row], found[row]) for row in sorted(found) if row not in predicted]

    def summary(self, baseline: ProbeBaseline | None) -> CrossValidationSummary:
        """Metrics by fold, candidates and comparisons."""
        config, dataset = self.trainer.config, self.trainer.dataset
        return CrossValidationSummary(
            by=self.folds.rule,
            note=self.folds.note,
            over_classes="macro_f1" if dataset.separator is None else "mean_average_precision",
            folds=[result.score for result in self.results],
            candidates={
                config.candidate_name(index): dict(enumerate(scores))
                for index, scores in enumerate(zip(*(result.candidate_scores for result in self.results), strict=True))
            },
            comparisons=self._comparisons(baseline),
            members=config.members,
            timed=self.trainer.overrides.minutes is not None,
            train_distance=fold_train_distance(
                dataset, [(part.train_rows, part.val_rows) for part in self.folds.parts]
            ),
        )

    def _comparisons(self, baseline: ProbeBaseline | None) -> list[SplitComparison]:
        """Predictions compared with those by the comparison folds: of trained models, and of the probe."""
        dataset, key = self.trainer.dataset, Key.of(self.trainer.seed).fold("crossval")
        if self.other_folds is None:
            return []
        pairs = []
        if self.other_results is not None and dataset.separator is None:
            pairs.append(("the trained models", self.predictions, _pooled(dataset, self.other_results)))
        if baseline is not None and baseline.other_predictions is not None:
            pairs.append((PROBE, baseline.predictions, baseline.other_predictions))
        folds, count = (self.folds, self.other_folds), len(dataset.class_names)
        return [compare_folds(what, ours, theirs, *folds, count, key) for what, ours, theirs in pairs]

    def metadata(
        self, baseline: ProbeBaseline | None, note: str, sha256: Mapping[str, str], extra: Mapping[str, Any]
    ) -> ReportMetadata:
        """Metadata of the report; what differs between runs is that of the first."""
        every = [report for result in self.results for report in result.reports]
        first = every[0]
        trained, selected = (
            sum(max(int(report.get(use, 0)) for report in result.reports) for result in self.results)
            for use in ("num_eval_images_seen_in_training", "num_eval_images_used_for_selection")
        )
        support = _train_images_per_class(self.trainer.dataset, every)
        notes = [
            *_optimism_notes(trained, selected, len(self.predictions.samples)),
            self.folds.note,
            *_kept_start_notes(every),
            *(["Numbers of training images are means over the folds."] if support else []),
            note,
        ]
        fix = "Start again with another `output`."
        return ReportMetadata(
            data=self.trainer.dataset.source,
            evaluated_on="out-of-fold",
            num_eval_images_seen_in_training=trained,
            num_eval_images_used_for_selection=selected,
            tta=first["recipe"].get("tta", "none"),
            model=first["model"],
            command=read_object(self.folder / CROSSVAL_JSON, "command", fix=fix)["command"],
            versions=library_versions(),
            auto_choices=first["auto_choices"],
            notes=notes,
            recipe=first["recipe"],
            seed=self.trainer.seed,
            epochs=first["epochs"],
            ensemble_size=self.trainer.config.members,
            train_images_per_class=support,
            stored_size=first.get("stored_size"),
            check_notes=first.get("check_notes", ()),
            label_conflicts=first.get("label_conflicts", 0),
            late_gain=first.get("late_gain"),
            wall_s=self.train_seconds(),
            sha256=sha256,
            num_skipped=len(self.skipped) + len(self.unreadable),
            extra=extra,
            **({} if baseline is None else baseline.metadata()),
        )

    def train_seconds(self) -> float:
        """Seconds of all training: folds, selections and comparison folds."""
        seconds = 0.0
        for folder, results in (
            (self.folder, self.results),
            (self.folder / COMPARISON_FOLDER, self.other_results or ()),
        ):
            seconds += sum(result.score.seconds for result in results)
            if self.trainer.config.selects:
                seconds += sum(selection_results(folder, number)["seconds"] for number in range(len(results)))
        return round(seconds, 2)

    def clusters(self) -> Clusters:
        """Clusters of the predicted images: what the folds kept whole, otherwise what they happen not to divide."""
        rows = self.predictions.samples
        kept = Clusters(self.folds.clusters[rows], " and ".join(self.folds.names) or None)
        if kept.unit is not None:
            return kept
        return split_clusters(self.folder, self.trainer.dataset.select(rows).paths) or kept


def write_crossval_report(results: CrossValResults, on_result: Callable[[EvaluationResult | Path], None]) -> None:
    """Write the report; ``on_result`` gets the metrics before, so that a full disk loses none."""
    folder, trainer, members = results.folder, results.trainer, results.trainer.config.members
    if lost := results.unreadable:
        _logger.info(f"Skipped {pluralize(len(lost), 'unreadable image')}, the first: {' '.join(lost[0])}.")
        write_skipped(folder / SKIPPED, [*results.skipped, *lost])
        _logger.info(f"What could not be read is listed in {folder / SKIPPED}.")
    baseline = None
    if trainer.options.probe:
        baseline = probe_baseline(folder, trainer, results.folds, results.other_folds)
    summary = results.summary(baseline)
    runs = [run_name(number, member) for number in range(len(results.results)) for member in range(members)]
    files = [f"{run}/{model_file.NAME}" for run in runs]
    ensemble_note = write_ensemble(folder, runs, members, trainer.dataset.separator)
    hashed = {name: digest for name in ("dataset.csv", *files) for digest in file_hashes(folder / name).values()}
    first = results.results[0].reports[0]
    extra: dict[str, Any] = {"run": str(folder), **summary.to_json()}
    extra |= {name: first[name] for name in ("weights_compared", "stopped_early", "image_size") if name in first}
    if not (folder / ensemble.NAME).is_file():
        extra["model_for_new_images"] = str(folder / run_name(0))
    metadata = results.metadata(baseline, ensemble_note, hashed, extra)
    # Rasters are shown by the bands of the first fold, and explained by those of each fold.
    dataset = replace(trainer.dataset, bands=first_preprocessing(folder).bands)
    sections = explain_folds(
        lambda number: model_file.load(folder / run_name(number)),
        results.folds.fold_of_image(len(dataset))[results.predictions.samples],
        results.predictions,
        dataset,
        members=members,
    )
    curve, note = (None, "") if baseline is None else (baseline.data_scaling_curve, baseline.label_curve_note)
    inputs = ReportInputs(
        members=tuple(model_file.read_calibration(folder / file) for file in files),
        probe=None if baseline is None else baseline.table,
        more_labels=None if curve is None else label_efficiency_verdict(curve, note=note),
        new_places=summary.new_places(),
        sections=sections if curve is None else (learning_curve_section(curve, note=note), *sections),
        folder=folder,
        split_by=results.folds.rule,
        clusters=results.clusters(),
    )
    outcome = EvaluationResult(results.predictions, dataset, dataset.class_names, metadata, inputs=inputs)
    on_result(outcome)
    outcome.write(folder, sections=[summary.section()])
    for line in (*summary.lines(), ensemble_note, f"Report: {folder / 'report.html'}", *outcome.next_lines):
        _logger.info(line)


def write_ensemble(folder: Path, runs: Sequence[str], members: int, separator: str | None = None) -> str:
    """Make a folder the ensemble of the models of its runs, if they can be one; a sentence on that."""
    files = [f"{run}/{model_file.NAME}" for run in runs]

    def predict(model: Path) -> str:
        several = option_args(label_separator=separator)
        return shell_join(["effnetv2", "predict", str(model), "NEW_IMAGES", *several])

    try:
        ensemble.require_compatible([model_file.read_header(folder / file) for file in files], runs)
    except InputError as error:
        return (
            f"The models of the folds cannot be an ensemble: {error} For new images: {predict(folder / run_name(0))}, "
            "or train one model on all images."
        )
    ensemble.write_members(folder, files)
    single = "each model" if members == 1 else f"{members} models together"
    return (
        f"The models of all folds predict new images as an ensemble: {predict(folder)}. "
        f"The metrics here are of {single}, on images not trained on."
    )


def _pooled(dataset: ImageDataset, results: Sequence[FoldResult]) -> Predictions:
    rows = np.concatenate([result.rows for result in results])
    order, activation = np.argsort(rows, kind="stable"), results[0].activation
    probabilities = np.concatenate([result.probabilities for result in results])[order]
    logits = to_logits(torch.from_numpy(probabilities), activation).float()
    return Predictions(rows[order], dataset.targets[rows[order]], logits, activation=activation)


def _train_images_per_class(dataset: ImageDataset, reports: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Training images of each class: means over the runs. Empty for multi-label data."""
    if dataset.separator is not None:
        return {}
    return {
        name: round(sum(report["train_images_per_class"].get(name, 0) for report in reports) / len(reports))
        for name in dataset.class_names
    }


def _optimism_notes(trained: int, selected: int, count: int) -> list[str]:
    """A sentence if evaluated images trained or selected the initial weights."""
    uses = " and ".join(f"{number:,} {use}" for number, use in ((trained, "trained"), (selected, "selected")) if number)
    if not uses:
        return []
    return [
        f"Of these {pluralize(count, 'image')}, {uses} the initial weights, so the metrics are optimistic. Start from "
        "weights that have not seen them."
    ]


def _kept_start_notes(reports: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence if runs kept the model before training."""
    count = sum(report.get("kept_model") == "start" for report in reports)
    if not count:
        return []
    return [
        f"{count} of {pluralize(len(reports), 'model')} {'is' if count == 1 else 'are'} the model before training, "
        "which was better on the selection images."
    ]
