"""Configuration of a cross-validation: its folds, and the candidates that it selects among."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.folds import TIMES, Folds, assign_folds, time_column, time_folds, time_holdout
from efficientnetv2.data.groups import BLOCKS, SplitBy, has_places
from efficientnetv2.data.records import Ints, is_copy
from efficientnetv2.data.splits import with_holdout
from efficientnetv2.training.overrides import TrainOverrides, sets_length, setting_name
from efficientnetv2.utils.errors import InputError, did_you_mean, shorten

RULES = ("auto", "class", "group", "place", "time")

CROSSVAL_JSON = "crossval.json"
# Fraction of the training images of a fold that selects among candidates. Ours, as in ``inference.linear_probe``.
_SELECTION = 0.25


@dataclass(frozen=True)
class CrossValConfig:
    """Options of ``crossval`` that ``train`` does not have. The fields are keys of ``crossval.json``.

    Attributes:
        by: One of ``RULES``.
        block_degrees: Side of spatial blocks. None chooses it.
        time_column: None finds it.
        tries: Candidate hyperparameters: each as ``--set`` takes them, separated by spaces. Empty for no selection.
        try_settings: Hyperparameters that hold only during the selection.
        members: Models that predict each fold together: the best candidates, or the recipe with as many seeds.
        compare_splits: Train random folds in addition to folds by place, or the other way round.

    Raises:
        InputError: A value is invalid, or options contradict each other.
    """

    folds: int = 5
    by: str = "auto"
    block_degrees: float | None = None
    time_column: str | None = None
    tries: tuple[str, ...] = ()
    try_settings: tuple[str, ...] = ()
    members: int = 1
    compare_splits: bool = False

    def __post_init__(self) -> None:
        count, by = len(self.tries), f"but --by is {self.by}"
        for is_wrong, problem in (
            (self.by not in RULES,
             f"--by: invalid value '{self.by}' (choose from {', '.join(RULES)}){did_you_mean(self.by, RULES)}"),
            (self.block_degrees is not None and self.by not in ("auto", "place"),
             f"--block-degrees needs folds by place, {by}. Leave one of them out."),
            (self.time_column is not None and self.by != "time",
             f"--time-column needs folds by time, {by}. Pass --by time."),
            (self.compare_splits and self.by in ("group", "time"),
             f"--compare-splits compares random folds with folds by place, {by}. Leave it out, or pass --by place."),
            (count == 1,
             'one --candidate leaves nothing to select. Add another (--candidate "" is the recipe as it is), or use '
             '--set.'),
            (len(set(self.tries)) < count, "two --candidate are the same. Leave one out."),
            (0 < count < self.members,
             f"--ensemble {self.members} needs as many candidates, but there are {count} --candidate. Add candidates."),
            (bool(self.try_settings) and not count, "--candidate-set needs --candidate: add candidates."),
            (bool(self.try_settings) and not self.selects,
             f"--candidate-set holds during selection, but with --ensemble {self.members} all {count} tries answer and "
             "nothing is chosen. Leave it out, or take fewer members."),
        ):  # fmt: skip
            if is_wrong:
                raise InputError(problem)
        for text in self.tries:
            try:
                settings = _split_settings(text)
            except ValueError as error:
                raise InputError(
                    f"--candidate {text}: {error}. Put spaces between settings, and a value with spaces into brackets "
                    "or "
                    'quotes: --candidate "class_sampling=sqrt progressive.image_size={start: 64, end: 128}".'
                ) from error
            if any(setting_name(setting) == "multilabel" for setting in settings):
                raise InputError(
                    f"--candidate {text}: predictions of all folds must have the same meaning. Use --set instead."
                )

    def candidate_settings(self, index: int, *, selecting: bool = False) -> tuple[str, ...]:
        """Settings of a candidate, with those that hold only during the selection if it is ``selecting``."""
        return (*_split_settings(self.tries[index]), *(self.try_settings if selecting else ()))

    def candidate_name(self, index: int) -> str:
        """The settings of a candidate as text."""
        return self.tries[index] or "as the recipe is"

    @property
    def selects(self) -> bool:
        """Whether some candidates are left out. If all predict, none is trained beforehand."""
        return len(self.tries) > self.members

    @property
    def num_runs(self) -> int:
        """Number of training runs, those of the selection included."""
        per_fold = self.members + (len(self.tries) if self.selects else 0)
        return self.folds * per_fold * (2 if self.compare_splits else 1)

    @property
    def selection_length_is_set(self) -> bool:
        """Whether ``try_settings`` set the length of training, whatever ``--minutes`` leaves."""
        return sets_length(self.try_settings)

    def make_folds(self, dataset: ImageDataset, contents: Ints, seed: int) -> Folds:
        """The folds of labeled, readable images; ``contents`` are (N,) ids, equal for identical files."""
        if self.by == "time":
            return time_folds(
                dataset, k=self.folds, column=self._find_time_column(dataset), contents=contents
            )
        if self.block_degrees is not None and self.by == "auto" and not has_places(dataset):
            raise InputError(
                f"--block-degrees {self.block_degrees:g}: {dataset.source} has no places. Add columns latitude and "
                "longitude, in degrees, with a value in every row; or leave the option out."
            )
        return self._assign(dataset, contents, seed, cast(SplitBy, self.by))

    def comparison_folds(
        self, dataset: ImageDataset, contents: Ints, seed: int, folds: Folds
    ) -> Folds | None:
        """Random folds if ``folds`` are by place, otherwise folds by place; None if they cannot be made.

        Raises:
            InputError: They cannot be made, and ``compare_splits`` requests them.
        """
        if self.compare_splits and dataset.separator is not None:
            raise InputError(
                f"--compare-splits: images of {dataset.source} have several labels, and only single labels are "
                "compared. Leave it out."
            )
        if folds.by not in ("auto", "class", "place"):
            return None
        if self.compare_splits and not has_places(dataset):
            raise InputError(
                f"--compare-splits: {dataset.source} has no columns latitude and longitude with a value in every row. "
                "Add them, or leave the option out."
            )
        try:
            return self._assign(dataset, contents, seed, "class" if folds.block is not None else "place")
        except InputError as error:
            if self.compare_splits:
                raise InputError(f"--compare-splits: {error}") from error
            return None

    def selection_split(
        self, dataset: ImageDataset, contents: Ints, folds: Folds, number: int, seed: int
    ) -> tuple[Ints, Ints]:
        """Rows of a fold's training images that train candidates, and rows that select one.

        Both are separated by the rule of the folds; by time the latest quarter selects.

        Raises:
            InputError: A class has too few images, or there are too few times.
        """
        rows = folds.parts[number].train_rows
        part = dataset.select(rows).with_split(np.full(len(rows), "train", dtype=object))
        fix = " Or leave --candidate out."
        try:
            if folds.by == "time":
                # Fewer folds have longer periods, so the first period has more times.
                fix = f" {'Take fewer folds (--folds), or leave' if self.folds > 1 else 'Leave'} --candidate out."
                column = self._find_time_column(dataset)
                last = time_holdout(part, share=_SELECTION, column=column, contents=contents[rows])
                return rows[last.train_rows], rows[last.val_rows]
            held_out, _ = with_holdout(
                part,
                fraction=_SELECTION,
                seed=seed + number,
                contents=contents[rows],
                by=folds.by,
                blocks=self._blocks,
            )
        except InputError as error:
            raise InputError(
                f"--candidate: the {len(rows)} training images of fold {number + 1} cannot be split to select among "
                f"candidates: {error}{fix}"
            ) from error
        return rows[held_out.split == "train"], rows[(held_out.split == "val") & ~is_copy(held_out)]

    @property
    def _blocks(self) -> Sequence[float]:
        return BLOCKS if self.block_degrees is None else (self.block_degrees,)

    def _assign(self, dataset: ImageDataset, contents: Ints, seed: int, by: SplitBy) -> Folds:
        return assign_folds(dataset, k=self.folds, seed=seed, contents=contents, by=by, blocks=self._blocks)

    def _find_time_column(self, dataset: ImageDataset) -> str:
        name = time_column(dataset, self.time_column)
        if name is None:
            others = [str(name) for name in dataset.table.columns if name not in ("path", "label", "split")]
            raise InputError(
                f"--by time: {dataset.source} has none of the columns {', '.join(TIMES)}. Name the column of the time "
                f"with --time-column; other columns are {shorten(others, 20) or 'none'}."
            )
        return name


def _split_settings(text: str) -> tuple[str, ...]:
    """``A=1 B={c: 2}`` split at spaces outside quotes and brackets; ValueError if one of these is not closed."""
    settings: list[str] = []
    depth = 0
    for word in shlex.split(text):
        if depth:
            settings[-1] += f" {word}"
        else:
            settings.append(word)
        depth = max(0, depth + sum(map(word.count, "{[")) - sum(map(word.count, "}]")))
    if depth:
        raise ValueError("No closing bracket")
    return tuple(settings)


def with_settings(overrides: TrainOverrides, settings: Sequence[str]) -> TrainOverrides:
    """TrainOverrides with the settings of a candidate, whose training length replaces that of the overrides."""
    if sets_length(settings):
        overrides = replace(overrides, epochs=None, minutes=None)
    return replace(overrides, settings=(*overrides.settings, *settings))
