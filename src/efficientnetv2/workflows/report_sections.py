"""What a report says beyond the figures: gathered from answers, their table and what the user asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.folds import KEPT_WHOLE
from efficientnetv2.data.image_metadata import MAX_MEASURED, longer_sides
from efficientnetv2.data.shards.index import CHECKSUM, CONTENT, PLACE
from efficientnetv2.evaluation.breakdown import cost_section, subgroup_section, subgroup_verdict, worst_slice
from efficientnetv2.evaluation.clusters import Clusters
from efficientnetv2.evaluation.generalization import NewPlaceEstimate, TrainDistance
from efficientnetv2.evaluation.predictions import PairedDifference, compare_predictions
from efficientnetv2.evaluation.reliability import TemperatureScaling, reliability_section
from efficientnetv2.evaluation.sections import TemplateSection
from efficientnetv2.evaluation.summary import ReportContext
from efficientnetv2.inference.predict import Predictions
from efficientnetv2.metrics.confidence_intervals import Interval
from efficientnetv2.metrics.cost_sensitive import ErrorCosts
from efficientnetv2.metrics.multilabel import is_correct
from efficientnetv2.metrics.subgroups import SliceMetrics, slice_metrics, slice_values, sliceable_columns
from efficientnetv2.models.temperature import Calibration
from efficientnetv2.utils import probability
from efficientnetv2.utils.errors import InputError, did_you_mean, shorten
from efficientnetv2.utils.rng import Key
from efficientnetv2.workflows.previous_runs import Other, last_before

# Columns of a dataset that say no property of a picture.
_OTHERWISE = ("path", "label", "split", KEPT_WHOLE, *PLACE, CONTENT, CHECKSUM)
#: By which pictures are cut beside the columns of their table: see ``data.image_metadata``.
SIZE = "longer_side_px"


@dataclass(frozen=True, eq=False)
class Wanted:
    """What is asked of a report beyond the figures.

    Args:
        slices: columns to cut the pictures by; None takes those that there are, empty none.
        costs: of mistakes; None where they are not known.
        abstain_below: probability below which a picture is left to a person; None answers all.
        against: another run or evaluation to compare with; None takes the last run before.
    """

    slices: tuple[str, ...] | None = None
    costs: ErrorCosts | None = None
    abstain_below: float | None = None
    against: Other | None = None


@dataclass(frozen=True, eq=False)
class Known:
    """What is known beside the answers.

    Args:
        calibration: by which the answers' probabilities are stated.
        members: the same of the networks that have answered, where they are several; None where one has none.
        probe: answers of the linear probe, as ``evaluation.predictions.load_predictions`` gives them.
        labels: verdict and words on more labels.
        elsewhere: what a cross-validation says of pictures from new places.
        apart: how far the pictures are from those learnt from.
        views: what these answers have over those with the network's own views.
        unseen: words on the pictures alone that did not train the network.
        sections: that others have made.
        folder: of the run, beside which lie those before it; None: there is none.
        split_by: the rule of the folds of a cross-validation; None of others.
        whole: what hangs together among the pictures that were answered, in their order; None where nothing does.
    """

    calibration: Calibration | None = None
    members: tuple[Calibration | None, ...] = ()
    probe: pd.DataFrame | None = None
    labels: tuple[str, str] | None = None
    elsewhere: NewPlaceEstimate | None = None
    apart: TrainDistance | None = None
    views: PairedDifference | None = None
    unseen: str | None = None
    sections: tuple[TemplateSection, ...] = ()
    folder: Path | None = None
    split_by: str | None = None
    whole: Clusters | None = None


@dataclass(frozen=True, eq=False)
class Findings:
    """What a report says beyond the figures.

    Args:
        sections: of the page.
        context: for its summary.
    """

    sections: tuple[TemplateSection, ...]
    context: ReportContext


def gathered(
    predictions: Predictions,
    dataset: ImageDataset,
    class_names: Sequence[str],
    wanted: Wanted,
    known: Known,
    *,
    trainers: str = "",
    choosers: str = "",
    reach: Interval,
    key: Key,
) -> Findings:
    """Everything that there is to say of these answers.

    Args:
        predictions: on the dataset's pictures.
        dataset: labelled.
        class_names: of the network.
        wanted: what the user asked for.
        known: what is known beside.
        trainers: as ``reliability_section`` takes them.
        choosers: likewise.
        reach: the 95 % interval of top-1.
        key: of resampling.

    Raises:
        InputError: the other run answered other pictures.
    """
    labels, probabilities = predictions.labels, predictions.probabilities
    shown = dataset.select(predictions.samples)
    trusted = reliability_section(
        labels,
        probabilities,
        scaled=_scaled(predictions, known),
        members=known.members,
        top1_interval=reach,
        training_images=trainers,
        selection_images=choosers,
        abstain_below=wanted.abstain_below,
        answer=predictions.answer,
    )
    sections: list[TemplateSection] = [trusted]
    predicted = probabilities.argmax(axis=1)
    columns, uncut = _cut(shown, wanted.slices)
    parts = slice_metrics(columns, labels, predicted, is_correct(labels, predicted))
    if parts:
        sections.append(subgroup_section(parts))
    if wanted.costs is not None:
        sections.append(cost_section(labels, probabilities, wanted.costs, class_names, key=key.fold("costs")))
    probe = last = None
    if labels.ndim == 1:
        answers = by_picture(predictions, dataset, class_names)
        whole = None if known.whole is None else known.whole.by_path(shown.paths)
        if known.probe is not None:
            probe = compare_predictions(answers, known.probe, clusters=whole)
        last = _last(answers, wanted, known, whole)
    return Findings(
        (*sections, *known.sections),
        ReportContext(
            probe=probe,
            last=last,
            train_distance=known.apart,
            tta=known.views,
            unseen=known.unseen,
            more_labels=known.labels,
            new_places=known.elsewhere,
            bootstrap_unit=None if known.whole is None else known.whole.what,
            calibration=(trusted.verdict, trusted.calibrated),
            subgroups=_of_slices(parts, uncut),
        ),
    )


def _of_slices(parts: Sequence[SliceMetrics], uncut: Sequence[str]) -> tuple[str, str] | None:
    """Verdict and words on the subgroups; None where the images are not cut."""
    if not parts:
        return ("Not measured.", " ".join(uncut)) if uncut else None
    return subgroup_verdict(parts), " ".join([worst_slice(parts), *uncut])


def by_picture(predictions: Predictions, dataset: ImageDataset, class_names: Sequence[str]) -> pd.DataFrame:
    """Answers as ``evaluation.predictions.load_predictions`` gives those that were written down.

    Args:
        predictions: of labelled pictures of one label each.
        dataset: of them.
        class_names: of the network.
    """
    shown = dataset.select(predictions.samples)
    called = predictions.probabilities.argmax(axis=1)
    return pd.DataFrame(
        {"label": [class_names[one] for one in called], "true_label": list(shown.table["label"])},
        index=pd.Index(shown.paths),
    )


def sized(dataset: ImageDataset, wanted: tuple[str, ...] | None) -> ImageDataset:
    """The same pictures with a column of their size, where they may be cut by it and it is known.

    A column of DATA of the same name stays.

    Args:
        dataset: of the pictures.
        wanted: as ``Wanted.slices``.
    """
    if SIZE in dataset.table or not (wanted is None or SIZE in wanted):
        return dataset
    sides = longer_sides(dataset)
    return dataset if sides is None else replace(dataset, table=dataset.table.assign(**{SIZE: sides}))


def check_slices(dataset: ImageDataset, wanted: tuple[str, ...]) -> None:
    """Refuse columns that pictures cannot be cut by, before any of them is answered.

    Args:
        dataset: of the pictures.
        wanted: names of columns.

    Raises:
        InputError: a column is not there, or cuts the pictures into nothing of use.
    """
    table = sized(dataset, wanted).table
    there = [str(name) for name in table.columns if name not in _OTHERWISE]
    for name in wanted:
        if name == SIZE and name not in there:
            raise InputError(
                f"--slices {SIZE}: the size of these pictures is not known. It is read off the headers of up to "
                f"{MAX_MEASURED:,} files, and not of more, nor of shards, packed records and rasters. Leave it out, "
                "or write it into a column of that name."
            )
        if name not in there:
            having = (
                f"It has {shorten(there, 20)}." if there else "It has no other than path, label and split."
            )
            raise InputError(
                f"--slices {name}: {dataset.source} has no such column{did_you_mean(name, there)} {having}"
            )
        if slice_values(table[name]) is None:
            raise InputError(
                f"--slices {name}: the column has one value, or many that are no numbers, or numbers most of which "
                "are equal, so it cuts the pictures into nothing of use. Give one of a few values, such as a year or a "
                "region, or of numbers."
            )


def _cut(dataset: ImageDataset, wanted: tuple[str, ...] | None) -> tuple[pd.DataFrame, list[str]]:
    """The columns by which the pictures that were answered are cut, and words on those that do not cut them any more.

    Before the answers all did that were asked for (``check_slices``). Without the pictures that could not be read
    all others may be alike in one, which is no reason to lose their answers.

    Args:
        dataset: of the pictures that were answered.
        wanted: as ``Wanted.slices``.
    """
    table = sized(dataset, wanted).table
    if wanted is None:
        return table[sliceable_columns(table, without=_OTHERWISE)], []
    lost = [name for name in wanted if slice_values(table[name]) is None]
    kept = table[[name for name in wanted if name not in lost]]
    return kept, [
        f"By {shorten(lost)} those that could be read are not cut: most are alike in it."
    ] if lost else []


def _scaled(predictions: Predictions, known: Known) -> TemperatureScaling | None:
    found = known.calibration
    if found is None:
        return None
    before = probability.probabilities(found.temperature * predictions.logits, predictions.answer).numpy()
    return TemperatureScaling(found.temperature, found.pictures, found.fitted_on, before)


def _last(
    answers: pd.DataFrame, wanted: Wanted, known: Known, whole: pd.Series[int] | None
) -> tuple[str, PairedDifference] | None:
    """The run that was asked for, or else the last one before this; and what this one has over it."""
    other = wanted.against
    if other is None:
        found = None
        if known.folder is not None:
            found = last_before(known.folder, answers, split_by=known.split_by)
        if found is None:
            return None
        other = Other(f"the last run, {found[0]}", found[1])
    # The other may have answered more pictures, or fewer; those of both count.
    gained = compare_predictions(answers, other.answers, clusters=whole)
    return None if gained is None else (other.name, other.qualified(gained))
