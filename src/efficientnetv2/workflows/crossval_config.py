"""Configuration of a cross-validation: folds and candidates, and what of it must be the same when it is resumed."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self, cast

import numpy as np

from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.folds import TIMES, Folds, assign_folds, time_column, time_folds, time_holdout
from efficientnetv2.data.groups import BLOCKS, SplitBy, groupings, has_places, select_groupings
from efficientnetv2.data.records import Ints, is_copy
from efficientnetv2.data.splits import with_holdout, with_minival
from efficientnetv2.training.initial_weights import absolute_weights_path
from efficientnetv2.training.overrides import TrainOverrides, option_differences, sets_length, setting_name
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.utils.errors import InputError, did_you_mean, shorten
from efficientnetv2.utils.io import write_atomically, write_text_atomically
from efficientnetv2.utils.legacy import SCHEMA_VERSION
from efficientnetv2.utils.shell import command_line, join_settings, split_settings

RULES = ("auto", "class", "group", "place", "time")
CROSSVAL_JSON = "crossval.json"
# Fraction of the training images of a fold that selects among candidates. Ours, as in ``inference.linear_probe``.
_SELECTION = 0.25


@dataclass(frozen=True)
class CrossValConfig:
    """Options of ``crossval`` that ``train`` does not have. The fields are keys of ``crossval.json``."""

    folds: int = 5
    by: str = "auto"
    block_degrees: float | None = None
    time_column: str | None = None
    tries: tuple[str, ...] = ()  # candidates: settings separated by spaces. Empty for no selection.
    try_settings: tuple[str, ...] = ()  # settings that hold only during the selection
    members: int = 1  # models that predict each fold together: the best candidates, or as many seeds
    compare_splits: bool = False  # train random folds in addition to folds by place, or the other way round

    def __post_init__(self) -> None:
        count, by = len(self.tries), f"but `by` is {self.by}"
        for is_wrong, problem in (
            (self.by not in RULES, f"`by` must be {', '.join(RULES)}, not '{self.by}'{did_you_mean(self.by, RULES)}"),
            (self.block_degrees is not None and self.by not in ("auto", "place"),
             f"`block_degrees` needs folds by place, {by}. Leave one of them out."),
            (self.time_column is not None and self.by != "time",
             f"`time_column` needs folds by time, {by}. Pass `by=time`."),
            (self.compare_splits and self.by in ("group", "time"),
             f"`compare_splits` compares random folds with folds by place, {by}. Leave it out."),
            (count == 1, "`candidates`: one leaves nothing to select. Add another; an empty one is the recipe itself."),
            (len(set(self.tries)) < count, "`candidates`: two are the same. Leave one out."),
            (0 < count < self.members,
             f"`members={self.members}` needs as many `candidates`, but there are {count}. Add candidates."),
            (bool(self.try_settings) and not self.selects,
             f"`candidate_settings` hold during a selection, but {count} `candidates` for `members={self.members}` "
             "leave nothing to select. Add candidates."),
        ):  # fmt: skip
            if is_wrong:
                raise InputError(problem)
        for text in self.tries:
            try:
                settings = split_settings(text)
            except ValueError as error:
                fix = "Put a value with spaces into brackets or quotes."
                raise InputError(f"`candidates`: {text}: {error}. {fix}") from error
            if any(setting_name(setting) == "multilabel" for setting in settings):
                raise InputError(f"`candidates`: {text}: all folds must predict alike. Use `settings` for multilabel.")

    def candidate_settings(self, index: int, *, selecting: bool = False) -> tuple[str, ...]:
        """Settings of a candidate, with those that hold only during the selection if it is ``selecting``."""
        return (*split_settings(self.tries[index]), *(self.try_settings if selecting else ()))

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

    def validate_columns(self, dataset: ImageDataset) -> None:
        """Refuse folds that need columns which the table lacks; no image has been read. Raises InputError."""
        divided = dataset.select(np.flatnonzero(dataset.split != "test"))
        if self.by == "time":
            self._find_time_column(divided)
        elif self.by in ("group", "place"):
            select_groupings(divided, groupings(divided, None), cast(SplitBy, self.by))
        if self.block_degrees is not None and self.by == "auto":
            _require_places(divided, f"`block_degrees={self.block_degrees:g}`")
        if self.compare_splits and dataset.separator is not None:
            raise InputError(f"`compare_splits`: {dataset.source} has several labels per image. Leave it out.")
        if self.compare_splits:
            _require_places(divided, "`compare_splits`")

    def make_folds(self, dataset: ImageDataset, contents: Ints, seed: int) -> Folds:
        """The folds of labeled, readable images; ``contents`` are (N,) ids, equal for identical files."""
        if self.by == "time":
            column = self._find_time_column(dataset)
            return time_folds(dataset, k=self.folds, column=column, contents=contents)
        return self._assign(dataset, contents, seed, cast(SplitBy, self.by))

    def comparison_folds(self, dataset: ImageDataset, contents: Ints, seed: int, folds: Folds) -> Folds | None:
        """Random folds if ``folds`` are by place, else folds by place; None if they can't be made and need not be."""
        if folds.by not in ("auto", "class", "place"):
            return None
        try:
            return self._assign(dataset, contents, seed, "class" if folds.block is not None else "place")
        except InputError as error:
            if self.compare_splits:
                raise InputError(f"`compare_splits`: {error}") from error
            return None

    def selection_split(
        self, dataset: ImageDataset, contents: Ints, folds: Folds, number: int, seed: int
    ) -> tuple[Ints, Ints]:
        """Rows of a fold's training images that train candidates, and rows that select one.

        Both are separated by the rule of the folds; by time the latest quarter selects.
        """
        rows = folds.parts[number].train_rows
        ids, part = contents[rows], dataset.select(rows).with_split(np.full(len(rows), "train", dtype=object))
        try:
            if folds.by == "time":
                column = self._find_time_column(dataset)
                last = time_holdout(part, share=_SELECTION, column=column, contents=ids)
                return rows[last.train_rows], rows[last.val_rows]
            held_out, _ = with_holdout(
                part, fraction=_SELECTION, seed=seed + number, contents=ids, by=folds.by, blocks=self._blocks
            )
        except InputError as error:
            problem = f"the {len(rows)} training images of fold {number + 1} cannot be split to select one"
            raise InputError(f"`candidates`: {problem}: {error} Or leave `candidates` out.") from error
        return rows[held_out.split == "train"], rows[(held_out.split == "val") & ~is_copy(held_out)]

    def validate_splits(
        self, dataset: ImageDataset, contents: Ints, folds: Folds, other_folds: Folds | None, recipe: Recipe
    ) -> None:
        """Refuse folds whose training images can't be split as their runs do, before any has trained."""
        every = [folds, other_folds] if self.compare_splits and other_folds else [folds]
        candidates = [self.candidate_settings(index, selecting=True) for index in range(len(self.tries))]
        is_open = any(setting_name(setting) == "minival" for settings in candidates for setting in settings)
        for used, number in ((each, number) for each in every for number in range(len(each.parts))):
            parts = [used.parts[number].train_rows]
            if self.selects:
                parts.append(self.selection_split(dataset, contents, used, number, recipe.seed)[0])
            if is_open or not isinstance(recipe.minival, int | float):  # candidates may change it, or leave it out
                continue
            for rows in parts:
                train = dataset.select(rows).with_split(np.full(len(rows), "train", dtype=object))
                try:
                    with_minival(train, size=recipe.minival, contents=contents[rows])
                except InputError as error:
                    problem = f"The training images of fold {number + 1}, or of its candidates"
                    raise InputError(f"{problem}: {error}") from error

    @property
    def _blocks(self) -> Sequence[float]:
        return BLOCKS if self.block_degrees is None else (self.block_degrees,)

    def _assign(self, dataset: ImageDataset, contents: Ints, seed: int, by: SplitBy) -> Folds:
        return assign_folds(dataset, k=self.folds, seed=seed, contents=contents, by=by, blocks=self._blocks)

    def _find_time_column(self, dataset: ImageDataset) -> str:
        name = time_column(dataset, self.time_column)
        if name is None:
            others = [str(name) for name in dataset.table.columns if name not in ("path", "label", "split")]
            found = f"none of the columns {', '.join(TIMES)}, but {shorten(others, 20) or 'no other'}"
            raise InputError(f"`by=time`: {dataset.source} has {found}. Name one with `time_column`.")
        return name


def _require_places(dataset: ImageDataset, option: str) -> None:
    if not has_places(dataset):
        columns = "columns latitude and longitude with a value in every row"
        raise InputError(f"{option}: {dataset.source} has no {columns}. Add them, or leave the option out.")


def with_settings(overrides: TrainOverrides, settings: Sequence[str]) -> TrainOverrides:
    """Overrides with the settings of a candidate, whose training length replaces that of the overrides."""
    if sets_length(settings):
        overrides = replace(overrides, epochs=None, minutes=None)
    return replace(overrides, settings=(*overrides.settings, *settings))


def with_absolute_weights(candidate: str) -> str:
    """A candidate's settings, for a resume from another directory."""
    settings = [
        f"weights={absolute_weights_path(text.partition('=')[2].strip())}" if setting_name(text) == "weights" else text
        for text in split_settings(candidate)
    ]
    return join_settings(settings) if any(setting_name(text) == "weights" for text in settings) else candidate


@dataclass(frozen=True)
class SavedCrossVal:
    """What a cross-validation was started with, as ``crossval.json`` has it; ``digest`` is of images and folds."""

    overrides: TrainOverrides
    config: CrossValConfig
    source: DataConfig
    digest: str

    def save(self, folder: Path) -> None:
        """Write ``crossval.json``."""
        values = {
            "schema_version": SCHEMA_VERSION,
            "command": command_line(),
            "words": self.overrides.to_json(),
            "plan": asdict(self.config),
            "source": asdict(self.source),
            "digest": self.digest,
        }
        write_text_atomically(folder / CROSSVAL_JSON, json.dumps(values, indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path, data: str) -> Self:
        """Read ``crossval.json``; ``data`` is DATA as it is called now, perhaps from another directory."""
        file = folder / CROSSVAL_JSON
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            overrides = TrainOverrides.from_json(values["words"])
            plan: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value for name, value in values["plan"].items()
            }
            source = DataConfig(**values["source"] | {"data": data})
            return cls(overrides, CrossValConfig(**plan), source, str(values["digest"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{file} cannot be read: {error}. Start again with another `output`.") from error

    def check_same(
        self,
        folder: Path,
        overrides: TrainOverrides,
        config: CrossValConfig,
        source: DataConfig,
        typed: Collection[str] = (),
    ) -> None:
        """Refuse options that differ from those saved; a default counts only if it is among the ``typed`` names."""
        pairs = ((self.overrides, overrides), (self.config, config), (self.source, source))
        if found := [each for saved, given in pairs for each in option_differences(saved, given, typed)]:
            raise InputError(
                f"the cross-validation in {folder} was started with other options: {'; '.join(found)}. Leave them out "
                "to resume it, or start another with a new `output`."
            )

    def check_folds(self, folder: Path, dataset: ImageDataset, folds: Folds) -> None:
        """Refuse other images than those that it was started with."""
        if folds_digest(dataset, folds) != self.digest:
            fix = "Restore them, or start again with a new `output`."
            raise InputError(f"the folds in {folder} are of other images or locations. {fix}")


def write_start(folder: Path, saved: SavedCrossVal, dataset: ImageDataset, folds: Folds) -> None:
    """Write the images with their folds, and what the cross-validation is started with."""
    # Split "train" is what trains any model of the folder. By time the last period trains none, and is no other split.
    split = np.where(dataset.split == "test", "test", "").astype(object)
    for part in folds.parts:
        split[part.train_rows] = "train"
    table = folder / "dataset.csv"
    write_atomically(table, folds.with_folds(dataset.with_split(split)).to_csv)
    try:
        saved.save(folder)
    except BaseException:  # else the folder could neither be used again nor resumed
        table.unlink()
        raise


def folds_digest(dataset: ImageDataset, folds: Folds) -> str:
    """A digest of the images and the folds that predict them."""
    names = [f"fold {number}" for number in folds.fold_of_image(len(dataset))]
    return dataset.with_split(np.array(names, dtype=object)).digest()
