"""How ``crossval`` ends: all answers together, what stands beside them, the report, the folds' networks as one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.folds import Folds
from efficientnetv2.data.records import Ints
from efficientnetv2.evaluation.clusters import Clusters, split_clusters
from efficientnetv2.evaluation.crossval import Candidate, CrossValidationSummary
from efficientnetv2.evaluation.generalization import PROBE, SplitComparison, fold_train_distance
from efficientnetv2.evaluation.label_efficiency import label_efficiency_verdict, learning_curve_section
from efficientnetv2.evaluation.predictions import per_class_f1
from efficientnetv2.evaluation.report_metadata import ReportMetadata
from efficientnetv2.evaluation.sections import TemplateSection
from efficientnetv2.inference.predict import Predictions
from efficientnetv2.models import ensemble, model_file
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.models.temperature import Calibration
from efficientnetv2.utils.errors import InputError, count_of
from efficientnetv2.utils.io import read_object
from efficientnetv2.utils.probability import to_logits
from efficientnetv2.utils.rng import Key
from efficientnetv2.utils.shell import typed
from efficientnetv2.workflows.batch_predict import SKIPPED, write_skipped
from efficientnetv2.workflows.crossval_baseline import Baseline, beside, probed
from efficientnetv2.workflows.crossval_config import FILE, Plan
from efficientnetv2.workflows.crossval_runs import Answered, Runs, preprocessing_of_first, run_name, told_of
from efficientnetv2.workflows.evaluation_result import EvaluationResult, file_hashes, library_versions
from efficientnetv2.workflows.explain import explained_by_folds
from efficientnetv2.workflows.report_sections import Known

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Networks:
    """Those of all folds.

    Args:
        folder: of the cross-validation.
        folds: how many.
        members: that answer each fold together.
    """

    folder: Path
    folds: int
    members: int

    @property
    def runs(self) -> list[str]:
        """The runs that trained them, as seen from the folder, those of a fold side by side."""
        return [run_name(number, place) for number in range(self.folds) for place in range(self.members)]

    @property
    def files(self) -> list[str]:
        """The model files, likewise."""
        return [f"{run}/{model_file.NAME}" for run in self.runs]

    def hashes(self) -> dict[str, str]:
        """Of the dataset and of the model files, by where they lie in the folder."""
        names = ["manifest.csv", *self.files]
        return {name: digest for name in names for digest in file_hashes(self.folder / name).values()}

    def first_of(self, number: int) -> Network:
        """The first network of a fold, loaded anew.

        Args:
            number: of the fold, from 0.
        """
        return model_file.load(self.folder / run_name(number))

    def calibrations(self) -> tuple[Calibration | None, ...]:
        """Their temperatures, in the order of ``files``."""
        return tuple(model_file.describe(self.folder / file).calibration for file in self.files)

    def together(self) -> str:
        """Let them answer together from now on, if they can; a sentence on that."""
        try:
            headers = [model_file.describe(self.folder / file).header for file in self.files]
            ensemble.require_compatible(headers, self.runs)
        except InputError as error:
            return (
                f"The folds' networks do not answer together: {error} For new pictures: effnetv2 predict "
                f"{typed([str(self.folder / 'fold1')])} NEW_PICTURES, or train one network on all of these."
            )
        ensemble.write_members(self.folder, self.files)
        alone = (
            "each alone, on pictures that it"
            if self.members == 1
            else f"{self.members} at a time, on pictures that they"
        )
        return (
            f"The folds' networks answer together for new pictures: effnetv2 predict {typed([str(self.folder)])} "
            f"NEW_PICTURES. The figures here are of {alone} had not seen."
        )


#: In the folder, the folds that were dealt otherwise.
OTHERWISE = "otherwise"
# Of what ``_learnt`` counts.
_MEAN = "How many pictures of a class there are to learn from is the mean over the folds."


def conclude(
    folder: Path,
    runs: Runs,
    dealt: Folds,
    answered: list[Answered],
    others: Folds | None,
    again: list[Answered] | None,
    skipped: Sequence[tuple[str, str]],
    on_result: Callable[[EvaluationResult | Path], None],
) -> None:
    """Figures of all answers together, the report, and the folds' networks as one.

    Args:
        folder: of the cross-validation.
        runs: what its runs had in common.
        dealt: the folds.
        answered: by each fold.
        others: folds dealt otherwise, if there are any.
        again: what those answered, if they were trained.
        skipped: path and reason of the pictures that could not be read before they were dealt.
        on_result: gets the figures before the report is written: a full disk loses none.
    """
    dataset, plan = runs.dataset, runs.plan
    pooled = _pooled(dataset, answered)
    lost = _lost(dataset, answered, pooled)
    _tell_lost(folder, skipped, lost)
    key = Key.of(runs.seed).fold("crossval")
    baseline = probed(folder, runs, dealt, others) if runs.place.probe else None
    comparisons = [] if others is None else _compared(dataset, pooled, again, baseline, dealt, others, key)
    whole = _whole(runs, dealt, answered, comparisons)
    networks = Networks(folder, len(answered), plan.members)
    together = networks.together()
    facts = replace(
        _facts(folder, runs, dealt, answered, pooled, baseline),
        wall_s=_seconds(folder, plan, answered, again),
        hashes=networks.hashes(),
        skipped=len(skipped) + len(lost),
        others={"run": str(folder), **whole.to_json()},
    )
    facts = replace(facts, notes=[*facts.notes, together])
    # Among the mistakes rasters are shown as the first fold saw them; where a network looked, by its own rule. Of
    # several that answered together it is shown of the first.
    bands = preprocessing_of_first(folder).bands
    asked = replace(dataset, bands=bands)
    looked = explained_by_folds(
        networks.first_of, _fold_of(answered), pooled, asked, dataset.class_names, members=plan.members
    )
    known = replace(
        _known(whole, baseline, dataset, looked),
        folder=folder,
        members=networks.calibrations(),
        split_by=dealt.rule,
        whole=_hanging(folder, dataset, dealt, pooled),
    )
    outcome = EvaluationResult(pooled, asked, dataset.class_names, facts, known=known)
    on_result(outcome)
    outcome.write(folder, sections=whole.sections())
    for line in (*whole.lines(), together):
        _logger.info(line)
    _logger.info(f"Report: {folder / 'report.html'}")
    for line in outcome.next_lines:
        _logger.info(line)


def _compared(
    dataset: ImageDataset,
    pooled: Predictions,
    again: list[Answered] | None,
    baseline: Baseline | None,
    dealt: Folds,
    others: Folds,
    key: Key,
) -> list[SplitComparison]:
    """Answers by folds dealt otherwise beside these: of the networks, if they were trained, and of the probe."""
    found, count = [], len(dataset.class_names)
    if again is not None and dataset.separator is None:
        theirs = _pooled(dataset, again)
        found.append(beside("the trained networks", pooled, theirs, dealt, others, count, key))
    if baseline is not None and baseline.otherwise is not None:
        found.append(beside(PROBE, baseline.answers, baseline.otherwise, dealt, others, count, key))
    return found


def _whole(
    runs: Runs, dealt: Folds, answered: list[Answered], comparisons: list[SplitComparison]
) -> CrossValidationSummary:
    """What the folds came to."""
    dataset, plan = runs.dataset, runs.plan
    return CrossValidationSummary(
        by=dealt.rule,
        note=dealt.note,
        over_classes="macro_f1" if dataset.separator is None else "mean_average_precision",
        folds=[one.score for one in answered],
        tries=[
            Candidate(plan.name_of(place), {number: one.scores[place] for number, one in enumerate(answered)})
            for place in range(len(plan.tries) if plan.chooses else 0)
        ],
        comparisons=comparisons,
        members=plan.members,
        timed=runs.words.minutes is not None,
        apart=fold_train_distance(dataset, [(part.train_rows, part.val_rows) for part in dealt.parts]),
    )


def _facts(
    folder: Path,
    runs: Runs,
    dealt: Folds,
    answered: Sequence[Answered],
    pooled: Predictions,
    baseline: Baseline | None,
) -> ReportMetadata:
    """What the report says beside the figures; of one run that of the first."""
    dataset, members = runs.dataset, runs.plan.members
    first = _report_of(folder / run_name(0))
    before, chose = (
        sum(_seen_by(folder, number, members, what) for number in range(len(dealt.parts)))
        for what in ("trained_on", "chose")
    )
    reports = [
        _report_of(folder / run_name(number, place))
        for number in range(len(dealt.parts))
        for place in range(members)
    ]
    learnt = _learnt(dataset, reports)
    facts = ReportMetadata(
        data=dataset.source,
        evaluated_on="out-of-fold",
        trained_on=before,
        chose=chose,
        views=first["recipe"].get("eval_views", "one"),
        model=first["model"],
        command=read_object(folder / FILE, "command", fix="Start again with another --out.")["command"],
        versions=library_versions(),
        chosen=first["chosen"],
        notes=[
            *([_seen_before(before, chose, len(pooled.samples))] if before or chose else []),
            dealt.note,
            *_kept(reports),
            *([_MEAN] if learnt else []),
        ],
        recipe=first["recipe"],
        seed=runs.seed,
        epochs=first["epochs"],
        members=members,
        train_support=learnt,
        stored_px=first.get("stored_px"),
        check_notes=first.get("check_notes", ()),
        label_conflicts=first.get("label_conflicts", 0),
        late_gain=first.get("late_gain"),
    )
    if baseline is None:
        return facts
    return replace(
        facts,
        linear_probe=baseline.top1,
        linear_probe_macro_f1=baseline.macro_f1,
        linear_probe_f1=per_class_f1(baseline.told(dataset)),
        linear_probe_pictures=baseline.train_pictures,
        linear_probe_of_pictures=baseline.of_pictures,
    )


def _seconds(folder: Path, plan: Plan, answered: list[Answered], again: list[Answered] | None) -> float:
    """Of all training: what answered, what chose between tries, and the same of folds dealt otherwise."""
    places = {folder: answered, folder / OTHERWISE: again or []}
    seconds = sum(one.score.seconds for folds in places.values() for one in folds)
    if plan.chooses:
        seconds += sum(
            told_of(place, number)["seconds"]
            for place, folds in places.items()
            for number in range(len(folds))
        )
    return round(seconds, 2)


def _seen_by(folder: Path, number: int, members: int, what: str) -> int:
    """How many of a fold's pictures had a part in the weights of one of its networks: ``what`` in its report."""
    folders = [folder / run_name(number, place) for place in range(members)]
    return max(int(_report_of(one).get(what, 0)) for one in folders)


def _report_of(run: Path) -> dict[str, Any]:
    """What ``report.json`` of a fold's run holds."""
    return read_object(run / "report.json", "recipe", fix=f"Remove {run}, and --resume trains it again.")


def _seen_before(trained: int, chose: int, of: int) -> str:
    counts = {"trained": trained, "chosen": chose}
    parts = [f"{count:,} {'has' if count == 1 else 'have'} {verb}" for verb, count in counts.items() if count]
    return (
        f"Of these {count_of(of, 'picture')} {' and '.join(parts)} the weights that the runs began with, so the "
        "figures are optimistic. Begin with weights that have not seen them."
    )


def _pooled(dataset: ImageDataset, answered: Sequence[Answered]) -> Predictions:
    """The answers of all folds, in the order of the dataset."""
    rows = np.concatenate([one.rows for one in answered])
    shares = np.concatenate([one.probabilities for one in answered])
    order = np.argsort(rows, kind="stable")
    answer = answered[0].answer
    logits = to_logits(torch.from_numpy(shares[order]), answer).float()
    return Predictions(rows[order], dataset.targets[rows[order]], logits, answer=answer)


def _lost(dataset: ImageDataset, answered: Sequence[Answered], pooled: Predictions) -> list[tuple[str, str]]:
    """Path and reason of the dealt pictures that the folds' runs could not read, in the order of the dataset.

    What has an answer is not lost, though a run that was to learn from it may have missed it for a while.
    """
    there = set(pooled.samples.tolist())
    unread = {row: why for one in answered for row, why in one.unread.items() if row not in there}
    return [(dataset.paths[row], unread[row]) for row in sorted(unread)]


def _tell_lost(folder: Path, skipped: Sequence[tuple[str, str]], lost: Sequence[tuple[str, str]]) -> None:
    """Say of pictures that passed for readable until they were decoded what is said of the others."""
    if not lost:
        return
    _logger.info(f"Skipped {count_of(len(lost), 'unreadable picture')}, the first: {' '.join(lost[0])}.")
    file = folder / SKIPPED
    write_skipped(file, [*skipped, *lost])
    _logger.info(f"What could not be read is listed in {file}.")


def _fold_of(answered: Sequence[Answered]) -> Ints:
    """Which fold gave each answer, in the order of the dataset."""
    rows = np.concatenate([one.rows for one in answered])
    numbers = np.repeat(np.arange(len(answered)), [len(one.rows) for one in answered])
    return numbers[np.argsort(rows, kind="stable")]


def _kept(reports: Sequence[Mapping[str, Any]]) -> list[str]:
    """How many of the networks are the start of their run, in a sentence; none where none is."""
    starts = sum(one.get("kept_model") == "start" for one in reports)
    if not starts:
        return []
    return [
        f"{starts} of {count_of(len(reports), 'model')} {'is' if starts == 1 else 'are'} the model before training, "
        "which was better on the images set aside to choose."
    ]


def _learnt(dataset: ImageDataset, reports: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Of each class, how many pictures the network of a fold has learnt from: the mean over the folds.

    Empty where pictures have several labels. What chose, or could not be read at some time, is not counted.
    """
    if dataset.separator is not None:
        return {}
    return {
        name: round(sum(one["train_support"].get(name, 0) for one in reports) / len(reports))
        for name in dataset.class_names
    }


def _known(
    whole: CrossValidationSummary,
    baseline: Baseline | None,
    dataset: ImageDataset,
    looked: tuple[TemplateSection, ...],
) -> Known:
    """What there is beside the answers: the probe's, whether more labels would help, where the networks looked."""
    if baseline is None:
        return Known(elsewhere=whole.new_places(), sections=looked)
    curve = baseline.labels
    return Known(
        probe=baseline.told(dataset),
        labels=None if curve is None else label_efficiency_verdict(curve, note=baseline.labels_of),
        elsewhere=whole.new_places(),
        sections=looked
        if curve is None
        else (learning_curve_section(curve, note=baseline.labels_of), *looked),
    )


def _hanging(folder: Path, dataset: ImageDataset, dealt: Folds, pooled: Predictions) -> Clusters:
    """What chance draws as a whole: what the folds kept so, or, where they heeded neither, what they did not part."""
    own = Clusters(dealt.clusters[pooled.samples], " and ".join(dealt.names) or None)
    if own.what is not None:
        return own
    return split_clusters(folder, dataset.select(pooled.samples).paths) or own  # which joins identical files
