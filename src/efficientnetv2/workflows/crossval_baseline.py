"""Beside a cross-validation: linear probes on the same folds, and the same pictures with folds dealt otherwise."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from efficientnetv2.data.augmented_copies import is_copy
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.folds import Folds
from efficientnetv2.data.records import Ints
from efficientnetv2.evaluation.generalization import SplitComparison
from efficientnetv2.inference.learning_curve import LearningCurve, learning_curve
from efficientnetv2.inference.linear_probe import (
    GroupedData,
    fit_classifier,
    fit_probe,
    max_probe_images,
    out_of_fold_predictions,
)
from efficientnetv2.inference.predict import Embeddings, Predictions, embed_dataset
from efficientnetv2.metrics.classification import classification_metrics
from efficientnetv2.metrics.paired_tests import paired_difference
from efficientnetv2.training.initial_weights import build_initial_model
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.recipe_io import read_recipe as read_recipe
from efficientnetv2.utils.device import pick_device, workers_for
from efficientnetv2.utils.errors import InputError, count_of
from efficientnetv2.utils.progress import progress
from efficientnetv2.utils.rng import Key
from efficientnetv2.workflows.crossval_runs import Runs, preprocessing_of_first

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Baseline:
    """Linear probes on the weights that the folds began with.

    Args:
        answers: each to pictures that it had not learnt from.
        otherwise: the same with folds dealt otherwise; None without.
        top1: of the answers.
        macro_f1: of the answers.
        labels: one fold's probe with fewer labels; None where there are too few for that.
        labels_of: a sentence that says which fold's.
        train_pictures: that a fold's probe learnt from: the mean.
        of_pictures: that there were to learn from: the mean over the folds.
    """

    answers: Predictions
    otherwise: Predictions | None
    top1: float
    macro_f1: float
    labels: LearningCurve | None
    labels_of: str
    train_pictures: int
    of_pictures: int

    def told(self, dataset: ImageDataset) -> pd.DataFrame:
        """The answers by picture, as ``evaluation.predictions.load_predictions`` gives them."""
        names = dataset.class_names
        given = {
            "label": [names[one] for one in answers_of(self.answers)],
            "true_label": [names[one] for one in self.answers.labels],
        }
        return pd.DataFrame(given, index=pd.Index(dataset.select(self.answers.samples).paths, name="path"))


def probed(folder: Path, runs: Runs, dealt: Folds, others: Folds | None) -> Baseline | None:
    """Linear probes on the same folds; every picture is looked at once.

    None where no weights were given, where these can't be had any more, or where of very many pictures those that are
    looked at are of one class.

    Args:
        folder: of the cross-validation; its first fold has settled the recipe.
        runs: of the cross-validation.
        dealt: its folds.
        others: dealt otherwise, if there are any.
    """
    recipe = read_recipe(folder / "fold1" / "recipe.yaml")
    if recipe.weights == "none" or runs.dataset.separator is not None:
        return None
    embedded = _embedded(folder, runs, recipe)
    if embedded is None:
        return None
    count = len(runs.dataset.class_names)
    key, balanced = Key.of(recipe.seed).fold("probe"), recipe.balance is not None

    def answers(of: Folds) -> Predictions:
        pairs = [(part.train_rows, part.val_rows) for part in of.parts]
        whole = _together(embedded, of, runs.dataset)
        given = out_of_fold_predictions(embedded, pairs, key=key, balanced=balanced, groups=whole)
        known = given >= 0
        hot = torch.nn.functional.one_hot(torch.from_numpy(given[known]), count).float()
        return Predictions(embedded.samples[known], embedded.labels[known], (hot + 1e-6).log())

    own = answers(dealt)
    if not len(own.samples):
        return None
    otherwise = None if others is None else answers(others)
    if otherwise is not None and not len(np.intersect1d(own.samples, otherwise.samples)):
        otherwise = None
    asked = _fold_of_labels(dealt)
    reached = classification_metrics(own.labels, own.probabilities, runs.dataset.class_names)
    return Baseline(
        own,
        otherwise,
        reached.top1,
        reached.macro_f1,
        _labels(embedded, dealt, asked, key, runs.dataset, balanced=balanced),
        f"That is of fold {asked + 1} alone, which learns from {len(dealt.parts[asked].train_rows):,} of "
        f"{count_of(int((runs.dataset.split != 'test').sum()), 'picture')}.",
        round(float(np.mean([np.isin(part.train_rows, embedded.samples).sum() for part in dealt.parts]))),
        round(float(np.mean([len(part.train_rows) for part in dealt.parts]))),
    )


def _fold_of_labels(dealt: Folds) -> int:
    """The fold that says whether more labels would help: by time the last, which alone learns from most of them."""
    return len(dealt.parts) - 1 if dealt.by == "time" else 0


def _labels(
    embedded: Embeddings, dealt: Folds, number: int, key: Key, dataset: ImageDataset, *, balanced: bool
) -> LearningCurve | None:
    """Whether more labels would help, by the fold of a number."""
    asked = dealt.parts[number]
    learning, answering = (
        Embeddings(embedded.samples[part], embedded.labels[part], embedded.vectors[part])
        for rows in (asked.train_rows, asked.val_rows)
        for part in [np.isin(embedded.samples, rows)]
    )
    if not len(answering.labels) or len(np.unique(learning.labels)) < 2:
        return None  # of few pictures drawn from many
    whole = _together(learning, dealt, dataset)
    learnt, strength = fit_probe(learning, key=key.fold("fold", number), balanced=balanced, groups=whole)
    answers = learnt.predict(answering.vectors)
    # What could not be read is no label; only what was not looked at makes a sample.
    there = np.setdiff1d(asked.train_rows, [row for row, _ in embedded.unreadable])
    return learning_curve(
        learning,
        answering,
        answers,
        fit=partial(fit_classifier, strength=strength, balanced=balanced),
        num_labeled=int((~is_copy(dataset)[there]).sum()),
        key=key.fold("label curve"),
        groups=whole,
    )


def _together(embedded: Embeddings, dealt: Folds, dataset: ImageDataset) -> GroupedData:
    """What hangs together among embedded pictures: what folds have kept whole, and copies."""
    rows = embedded.samples
    return GroupedData.from_clusters(dealt.clusters[rows], dataset.select(rows))


def _embedded(folder: Path, runs: Runs, recipe: Recipe) -> Embeddings | None:
    """Embeddings of the pictures, of many a part; as the first fold's network looks at them.

    None where the weights can't be had any more: folds that are trained are not lost by it.
    """
    device = pick_device(runs.place.device)
    preprocessing = preprocessing_of_first(folder)
    names, channels = runs.dataset.class_names, preprocessing.channels
    try:
        network = build_initial_model(recipe, class_names=names, device=device, in_channels=channels).network
    except InputError as error:
        _logger.info(
            f"No linear probe stands beside the folds, for what they began with is not to be had: {error}"
        )
        return None
    rows = np.flatnonzero(runs.dataset.split != "test")
    # Twice what one probe looks at in train: here it learns from all folds but one, and answers that.
    most = 2 * max_probe_images(network, preprocessing.image_px, len(runs.dataset.class_names), device)
    if len(rows) > most:
        rows = np.sort(Key.of(recipe.seed).fold("probe").generator().permutation(rows)[:most])
    with progress("linear probe", len(rows)) as counted:
        found = embed_dataset(
            network,
            runs.dataset.select(rows),
            preprocessing=preprocessing,
            device=device,
            workers=workers_for(runs.place.workers, device),
            progress=counted,
        )
    lost = tuple((int(rows[row]), reason) for row, reason in found.unreadable)
    return Embeddings(rows[found.samples], found.labels, found.vectors, lost)


def beside(
    what: str, ours: Predictions, theirs: Predictions, dealt: Folds, others: Folds, num_classes: int, key: Key
) -> SplitComparison:
    """Answers by two sets of folds, on the pictures that both have answered.

    Args:
        what: has answered.
        ours: by the folds of the cross-validation.
        theirs: by the others.
        dealt: the folds of the cross-validation.
        others: the others.
        num_classes: K.
        key: of the resampling.
    """
    both = np.intersect1d(ours.samples, theirs.samples)
    given = {}
    for predictions, folds in ((ours, dealt), (theirs, others)):
        given["random" if folds.by == "class" else "place"] = answers_of(predictions)[
            np.searchsorted(predictions.samples, both)
        ]
    labels = ours.labels[np.searchsorted(ours.samples, both)]
    by_place = others if dealt.by == "class" else dealt
    apart = paired_difference(
        labels,
        given["random"],
        given["place"],
        by_place.clusters[both],
        num_classes,
        key=key.fold("beside", what),
    )
    reached = {name: _reached(labels, answers, num_classes) for name, answers in given.items()}
    names = ("macro_f1", "top1")
    return SplitComparison(
        what,
        {name: reached["random"][name] for name in names},
        {name: reached["place"][name] for name in names},
        {name: apart[name] for name in names},
    )


def answers_of(predictions: Predictions) -> Ints:
    """(n,) the most probable classes."""
    best: Ints = predictions.logits.argmax(dim=1).numpy().astype(np.int64)
    return best


def _reached(labels: Ints, answers: Ints, num_classes: int) -> dict[str, float]:
    shares = np.eye(num_classes)[answers]
    found = classification_metrics(labels, shares, [str(number) for number in range(num_classes)])
    return {"macro_f1": found.macro_f1, "top1": found.top1}
