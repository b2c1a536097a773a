"""Training runs of a cross-validation: in each fold those that select among candidates, then those that predict.

Each is an ordinary run of ``train``. The first run with the same candidate and initial weights resolves the recipe,
such as the number of epochs that fit into the time. Later runs repeat it, except for the seed.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections import ChainMap
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.dataset import ImageDataset, load_dataset
from efficientnetv2.data.folds import Folds
from efficientnetv2.data.prepared_data import SharedDataset
from efficientnetv2.data.records import Ints
from efficientnetv2.evaluation.crossval_summary import FoldScore
from efficientnetv2.evaluation.predictions import SKIPPED, read_predictions
from efficientnetv2.metrics.multilabel import MACRO_METRICS, compute_metrics, macro_metric
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.training.callbacks import Callback
from efficientnetv2.training.overrides import TrainOverrides, sets_length
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.recipe_io import read_recipe
from efficientnetv2.training.run_dir import read_skipped
from efficientnetv2.training.run_request import RunOptions
from efficientnetv2.utils.errors import (
    DivergedError,
    InputError,
    MemoryShortError,
    ReaderKilledError,
    format_duration,
    pluralize,
)
from efficientnetv2.utils.io import read_object, write_atomically, write_text_atomically, writing
from efficientnetv2.utils.logs import RunLog, attached, hushed
from efficientnetv2.utils.probability import Activation
from efficientnetv2.workflows.crossval_config import CrossValConfig, with_settings
from efficientnetv2.workflows.train import train_run

_logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.float64]

# Fraction of the minutes for the runs; the rest is for measuring, the linear probe and reports. Ours.
_RUNS_SHARE = 0.9


def run_name(number: int, member: int = 0) -> str:
    """Folder of the run that predicts a fold: ``fold2``, or ``fold2_member3`` of its third model."""
    return f"fold{number + 1}" + (f"_member{member + 1}" if member else "")


def retrain_hint(path: Path) -> str:
    """The fix for a damaged file of a run."""
    return f"Remove {path}, and `resume=True` trains it again."


def selection_results(folder: Path, number: int) -> dict[str, Any]:
    """``scores`` by candidate, ``seconds`` of all candidates, and ``num_images`` of a fold."""
    file = folder / "selection" / f"fold{number + 1}.json"
    return read_object(file, "scores", "seconds", fix=retrain_hint(file))


def first_preprocessing(folder: Path) -> Preprocessing:
    """Preprocessing of the model of the first fold."""
    run = folder / run_name(0)
    plain = read_object(run / "run.json", "preprocessing", fix=retrain_hint(run))
    return Preprocessing.from_json(plain["preprocessing"])


def best_candidates(config: CrossValConfig, scores: Sequence[float]) -> tuple[int | None, ...]:
    """Candidates whose models predict a fold, the best first; None is the recipe. No scores: nothing was selected."""
    if scores:
        return tuple(np.argsort(-np.array(scores), kind="stable")[: config.members].tolist())
    return tuple(range(config.members)) if config.tries else (None,) * config.members


@dataclass(frozen=True, eq=False)
class FoldResult:
    """Predictions of one fold."""

    score: FoldScore
    rows: Ints  # (n,) of the predicted images in the dataset
    probabilities: Floats  # (n, K); of several models their mean
    activation: Activation
    candidate_scores: tuple[float, ...]  # macro metrics; empty without selection
    unreadable: Mapping[int, str]  # row -> reason, of images that a run could not read or did not predict
    reports: tuple[dict[str, Any], ...]  # of each model


@dataclass(frozen=True, eq=False)
class FoldTrainer:
    """Trains and predicts folds, with what all runs have in common; ``minutes`` are for all runs together."""

    overrides: TrainOverrides
    config: CrossValConfig
    options: RunOptions
    dataset: ImageDataset
    contents: Ints
    seed: int
    bands: str | None = None
    nodata: str | None = None
    callbacks: Sequence[Callback] = ()

    def predict(self, folds: Folds, folder: Path, title: str) -> list[FoldResult]:
        """Results of every fold, in order. Finished runs in ``folder`` are only read; ``title`` names a fold."""
        count = len(folds.parts)
        return [
            _Fold(self, folds, number, folder, f"{title} {number + 1} of {count}").predict() for number in range(count)
        ]


@dataclass(frozen=True, eq=False)
class _RunResult:
    """A finished run; attributes as of ``FoldResult``."""

    path: Path
    report: dict[str, Any]
    recipe: Recipe
    rows: Ints
    probabilities: Floats
    unreadable: dict[int, str]


@dataclass(frozen=True, eq=False)
class _Fold:
    """One fold; ``folder`` has the runs of all folds."""

    trainer: FoldTrainer
    folds: Folds
    number: int
    folder: Path
    title: str

    def predict(self) -> FoldResult:
        part, dataset, config = self.folds.parts[self.number], self.trainer.dataset, self.trainer.config
        if not (self.folder / run_name(self.number) / "report.json").exists():
            note = f" ({part.note})" if part.note else ""
            images = pluralize(len(part.train_rows), "training image")
            _logger.info(f"{self.title}: {images}, {len(part.val_rows):,} to predict{note}.")
        scores = self._candidate_scores()
        candidates = best_candidates(config, scores)
        runs = [self._train_member(member, candidate) for member, candidate in enumerate(candidates)]
        first, (rows, probabilities) = runs[0], _mean_probabilities(runs)
        activation = first.recipe.activation(dataset.separator)
        metrics = compute_metrics(dataset.targets[rows], probabilities, dataset.class_names, activation)
        name, value = macro_metric(metrics)
        names = [config.candidate_name(each) for each in candidates if each is not None]
        score = FoldScore(
            number=self.number,
            note=part.note,
            num_train=len(part.train_rows),
            num_test=len(rows),
            top1=metrics.top1,
            mean=value,
            epochs=first.report["epochs"],
            seconds=round(sum(run.report["wall_s"] for run in runs), 2),
            weights=tuple(dict.fromkeys(run.recipe.weights for run in runs)),
            chosen=tuple(names),
        )
        selected = f", with {'; '.join(names)}" if scores else ""
        _logger.info(
            f"{self.title}: {MACRO_METRICS[name]} {value:.3f}, top-1 {score.top1:.1%} on "
            f"{pluralize(len(rows), 'image')} ({format_duration(score.seconds)}{selected})."
        )
        unreadable = ChainMap(*(run.unreadable for run in runs))
        reports = tuple(run.report for run in runs)
        return FoldResult(score, rows, probabilities, activation, scores, unreadable, reports)

    def _train_member(self, member: int, candidate: int | None) -> _RunResult:
        """One of the models that predict the fold; without candidates they differ in their seed."""
        part, overrides = self.folds.parts[self.number], self._overrides(candidate)
        if candidate is None and member:
            # After the user's own settings, which may have a seed. The initial weights are not selected again.
            weights = read_recipe(self.folder / run_name(self.number) / "recipe.yaml").weights
            seed = f"seed={self.trainer.seed + member}"
            overrides = replace(overrides, weights=weights, settings=(*overrides.settings, seed))
        # Comparison folds repeat what the first folds have resolved.
        resolved = tuple(
            file for folder in self._folders for file in _member_recipes(folder, self.trainer.config, candidate)
        )
        path = self.folder / run_name(self.number, member)
        return self._train(path, (part.train_rows, part.val_rows), overrides, resolved)

    def _candidate_scores(self) -> tuple[float, ...]:
        """Macro metric of each candidate; empty without selection. Runs of the selection are removed."""
        config, selection = self.trainer.config, self.folder / "selection"
        if not config.selects:
            return ()
        if not (selection / f"fold{self.number + 1}.json").exists():
            self._select()
        for index in range(len(config.tries)):
            shutil.rmtree(selection / f"fold{self.number + 1}_try{index + 1}", ignore_errors=True)
        return _saved_scores(self.folder, config, self.number)

    def _select(self) -> None:
        """Train each candidate on a part of the training images, and write its score on the rest and its time."""
        trainer, selection = self.trainer, self.folder / "selection"
        config = trainer.config
        rows = config.selection_split(trainer.dataset, trainer.contents, self.folds, self.number, trainer.seed)
        scores: dict[str, float] = {}
        seconds = 0.0
        for index, settings in enumerate(config.tries):
            path = selection / f"fold{self.number + 1}_try{index + 1}"
            resolved = tuple(file for folder in self._folders for file in _selection_recipes(folder, index))
            began = time.perf_counter()
            try:
                report = self._train(path, rows, self._overrides(index, selecting=True), resolved).report
            except DivergedError:
                scores[settings] = 0.0
                seconds += time.perf_counter() - began
                name = config.candidate_name(index)
                _logger.info(f"{self.title}, selection: training diverged with {name}, which counts as 0.")
                continue
            name = next(name for name in MACRO_METRICS if name in report)
            scores[settings] = float(report[name])
            seconds += report["wall_s"]
            _logger.info(
                f"{self.title}, selection: {MACRO_METRICS[name]} {scores[settings]:.3f} with "
                f"{config.candidate_name(index)} ({format_duration(report['wall_s'])})."
            )
            recipe, known = (path / "recipe.yaml").read_text("utf-8"), _selection_recipes(self.folder, index)
            if recipe not in [file.read_text("utf-8") for file in known]:
                file = selection / f"try{index + 1}{f'_fold{self.number + 1}' if known else ''}.yaml"
                with writing(file):
                    write_text_atomically(file, recipe)
        images = len(self.folds.parts[self.number].train_rows)
        values = {"scores": scores, "seconds": seconds, "num_images": images}
        file = selection / f"fold{self.number + 1}.json"
        with writing(file):
            write_text_atomically(file, json.dumps(values, indent=1) + "\n")

    @property
    def _folders(self) -> list[Path]:
        """Folders whose runs have resolved recipes, the preferred first."""
        return list(dict.fromkeys((self.folder, self.trainer.options.out or self.folder)))

    def _overrides(self, candidate: int | None, *, selecting: bool = False) -> TrainOverrides:
        """The user's overrides, with the settings of a candidate and this run's part of the minutes."""
        config, overrides = self.trainer.config, self.trainer.overrides
        settings = () if candidate is None else config.candidate_settings(candidate, selecting=selecting)
        return replace(with_settings(overrides, settings), minutes=self._minutes(selecting=selecting))

    def _minutes(self, *, selecting: bool) -> float | None:
        """This run's part of the minutes: that of the fold in the training images of all folds.

        Later folds repeat the epochs of the first on more or fewer images.
        """
        total, config = self.trainer.overrides.minutes, self.trainer.config
        if total is None or (selecting and sets_length(config.try_settings)):
            return None
        images = [len(part.train_rows) for part in self.folds.parts]
        minutes, runs = total * _RUNS_SHARE, config.num_runs // config.folds
        if config.selects and sets_length(config.try_settings):
            sides = runs // (config.members + len(config.tries))
            runs = sides * config.members
            measured = selection_results(self._folders[-1], 0)
            spent = sides * sum(images) * measured["seconds"] / measured["num_images"] / 60
            minutes -= spent
            if minutes <= 0:
                raise InputError(
                    f"`minutes={total:g}`: the selection with {' '.join(config.try_settings)} takes about {spent:.3g} "
                    "minutes in all folds. Give more minutes or shorter `candidate_settings`, and another `output`."
                )
        return minutes / runs * images[self.number] / sum(images)

    def _train(
        self, path: Path, rows: tuple[Ints, Ints], overrides: TrainOverrides, resolved: tuple[Path, ...]
    ) -> _RunResult:
        """Train on the first and predict the second of (training, validation) ``rows``."""
        trainer, dataset, used = self.trainer, self.trainer.dataset, np.concatenate(rows)
        table = path.parent / "tables" / f"{path.name}.csv"
        split = np.repeat(np.array(["train", "val"], dtype=object), [len(part) for part in rows])
        with writing(table) if self.number else nullcontext():  # before the first run there is nothing to resume
            table.parent.mkdir(parents=True, exist_ok=True)
            # Paths are relative to the folder of the table, where the temporary file is too.
            write_atomically(table, self.folds.with_clusters(dataset).select(used).with_split(split).to_csv)
        started = (path / "recipe.yaml").exists()
        if started:  # it resumes with its own recipe
            overrides, resolved = TrainOverrides(cache=trainer.overrides.cache), ()
        source = DataConfig(str(table), label_separator=dataset.separator, bands=trainer.bands, nodata=trainer.nodata)
        try:
            images = load_dataset(table, label_separator=dataset.separator)
            shared = SharedDataset.of(dataset, [part.train_rows for part in self.folds.parts], images, used)
            options = replace(trainer.options, out=path, resume=started, probe=False, settled=resolved, common=shared)
            log, is_first = RunLog(), not started and not resolved  # later runs would repeat its messages
            with nullcontext() if is_first else hushed(), attached(log):
                train_run(overrides, source, options, log, callbacks=trainer.callbacks)
        except InputError as error:
            note = ""
            if trainer.overrides.minutes is not None and overrides.minutes is not None:
                note = f" This run gets {overrides.minutes:.3g} of `minutes={trainer.overrides.minutes:g}`."
            kinds = (ReaderKilledError, MemoryShortError, DivergedError)
            kind = next((one for one in kinds if isinstance(error, one)), InputError)
            raise kind(f"{self.title}: {error}{note}") from error
        row_of = {name: int(row) for name, row in zip(images.paths, used, strict=True)}
        return _read_run(path, row_of, rows[1], dataset)


def _read_run(path: Path, row_of: Mapping[str, int], val_rows: Ints, dataset: ImageDataset) -> _RunResult:
    """A finished run; ``row_of`` gives rows of the dataset by the paths of its own table."""
    if not (path / "predictions.csv").exists():
        raise InputError(f"{path} has finished, but has no predictions.csv. {retrain_hint(path)}")
    report, recipe = (
        read_object(path / "report.json", "top1", fix=retrain_hint(path)),
        read_recipe(path / "recipe.yaml"),
    )
    activation = recipe.activation(dataset.separator)
    paths, probabilities = read_predictions(path / "predictions.csv", dataset.class_names, activation)
    rows = np.array([row_of[name] for name in paths], dtype=np.int64)
    unreadable = {int(row): "was not predicted" for row in np.setdiff1d(val_rows, rows)}
    unreadable |= {row_of[name]: reason for name, reason in read_skipped(path / SKIPPED) if name in row_of}
    return _RunResult(path, report, recipe, rows, probabilities, unreadable)


def _mean_probabilities(runs: Sequence[_RunResult]) -> tuple[Ints, Floats]:
    """(n,) rows that all models of a fold predicted, and (n, K) means: an image may be lost between two trainings."""
    common = reduce(np.intersect1d, [run.rows for run in runs])
    rows = runs[0].rows[np.isin(runs[0].rows, common)]
    places = [{row: place for place, row in enumerate(run.rows.tolist())} for run in runs]
    found = [run.probabilities[[of[row] for row in rows.tolist()]] for run, of in zip(runs, places, strict=True)]
    mean: Floats = np.mean(found, axis=0)
    return rows, mean


def _saved_scores(folder: Path, config: CrossValConfig, number: int) -> tuple[float, ...]:
    """Macro metric of each candidate in a fold whose selection has finished; empty without selection."""
    scores = selection_results(folder, number)["scores"] if config.selects else {}
    return tuple(scores[name] for name in config.tries if scores)


def _selection_recipes(folder: Path, candidate: int) -> list[Path]:
    """Recipes that selection runs of a candidate have resolved: for the weights of the first fold, then for others."""
    first = folder / "selection" / f"try{candidate + 1}.yaml"
    return [file for file in (first, *sorted(first.parent.glob(f"{first.stem}_fold*.yaml"))) if file.exists()]


def _member_recipes(folder: Path, config: CrossValConfig, candidate: int | None) -> list[Path]:
    """Recipes of the started runs that predict folds with a candidate."""
    found = []
    for number in range(config.folds):
        files = [folder / run_name(number, member) / "recipe.yaml" for member in range(config.members)]
        if files[0].exists():  # otherwise its selection has not finished either
            candidates = best_candidates(config, _saved_scores(folder, config, number))
            pairs = zip(files, candidates, strict=True)
            found += [file for file, used in pairs if used == candidate and file.exists()]
    return found
