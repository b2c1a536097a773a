"""What a cross-validation is to do: which folds, and what they may choose from."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Sequence
from dataclasses import Field, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from efficientnetv2.architectures.spec import Architecture
from efficientnetv2.data.augmented_copies import is_copy
from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.folds import TIMES, Folds, assign_folds, time_column, time_folds, time_holdout
from efficientnetv2.data.groups import BLOCKS, SplitBy, has_places
from efficientnetv2.data.records import Ints
from efficientnetv2.data.splits import with_holdout
from efficientnetv2.training.overrides import TrainOverrides, requested_recipe, sets_length, setting_name
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.recipe_io import diff_recipes, validate_recipe
from efficientnetv2.utils.errors import InputError, did_you_mean, some
from efficientnetv2.utils.io import write_text_atomically
from efficientnetv2.utils.logs import silenced

RULES = ("auto", "class", "group", "place", "time")
# Of a fold's training pictures, what chooses between tries. Ours, as in inference.together.
_CHOOSING = 0.25


@dataclass(frozen=True)
class Plan:
    """The options of ``crossval`` that ``train`` does not have.

    Args:
        folds: how many.
        by: one of ``RULES``.
        block_degrees: side of the spatial blocks; None chooses.
        time_column: None takes a likely one.
        tries: settings to choose from, as ``--set`` takes them, several of them parted by spaces; empty for no choice.
        try_settings: that hold while choosing only, as ``--set`` takes them.
        members: networks that answer each fold together: the best tries, or without tries the recipe with as many
            seeds.
        compare_splits: train folds at random beside folds by place.

    Raises:
        InputError: options that contradict each other, or a value that is none.
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
        if self.by not in RULES:
            raise InputError(
                f"--by is '{self.by}', but is one of {', '.join(RULES)}{did_you_mean(self.by, RULES)}"
            )
        if self.block_degrees is not None and self.by not in ("auto", "place"):
            raise InputError(
                f"--block-degrees is of folds by place, but --by is {self.by}. Leave one of them out."
            )
        if self.time_column is not None and self.by != "time":
            raise InputError(f"--time-column is of folds by time, but --by is {self.by}. Say --by time.")
        if self.compare_splits and self.by in ("group", "time"):
            raise InputError(
                f"--compare-splits compares folds at random with folds by place, but --by is {self.by}. Leave it out, "
                "or say --by place."
            )
        if len(self.tries) == 1:
            raise InputError(
                'one --try leaves nothing to choose from. Give another (--try "" is the recipe as it is), or change '
                "the recipe itself with --set."
            )
        if len(set(self.tries)) < len(self.tries):
            raise InputError("two --try are the same. Leave one out.")
        if 0 < len(self.tries) < self.members:
            raise InputError(
                f"--members {self.members} of the tries answer each fold together, but there are "
                f"{len(self.tries)} --try. Give more of them, or fewer members."
            )
        for one in self.tries:
            try:
                settings = settings_in(one)
            except ValueError as error:
                raise InputError(
                    f"--try {one}: it can't be taken apart ({error}). It is settings with spaces "
                    "between, and what holds spaces itself in brackets or quotes: --try "
                    '"balance=sqrt progressive.image_px={start: 64, end: 128}".'
                ) from error
            if any(setting_name(setting) == "several_labels" for setting in settings):
                raise InputError(
                    f"--try {one}: the folds' answers are put together, so each has to mean the same. Say it for all "
                    "of them with --set."
                )
        if self.try_settings and not self.tries:
            raise InputError(
                "--try-set is given, but there is no --try. Leave it out, or say what to choose from."
            )
        if self.try_settings and not self.chooses:
            raise InputError(
                f"--try-set holds while choosing, but with --members {self.members} all {len(self.tries)} tries answer "
                "and nothing is chosen. Leave it out, or take fewer members."
            )

    def settings_of(self, number: int, *, choosing: bool = False) -> tuple[str, ...]:
        """The settings of a try; while choosing, also those that hold only then."""
        return (*settings_in(self.tries[number]), *(self.try_settings if choosing else ()))

    def name_of(self, number: int) -> str:
        """What to call a try."""
        return self.tries[number] or "as the recipe is"

    @property
    def chooses(self) -> bool:
        """Whether tries are left out; where as many answer as there are, none is tried beforehand."""
        return len(self.tries) > self.members

    @property
    def runs(self) -> int:
        """Trainings in all, those that choose among them."""
        kinds = self.members + (len(self.tries) if self.chooses else 0)
        return self.folds * kinds * (2 if self.compare_splits else 1)

    @property
    def tries_timed(self) -> bool:
        """Whether ``try_settings`` say how long tries are, whatever ``--minutes`` leave."""
        return sets_length(self.try_settings)

    @property
    def _blocks(self) -> Sequence[float]:
        return BLOCKS if self.block_degrees is None else (self.block_degrees,)

    def dealt(self, dataset: ImageDataset, contents: Ints, seed: int) -> Folds:
        """The folds.

        Args:
            dataset: labelled, readable.
            contents: (N,) equal for identical files.
            seed: of the dealing.

        Raises:
            InputError: see ``data.folds`` and ``data.folds``; or ``block_degrees`` is given where no places are
                known.
        """
        if self.by == "time":
            return time_folds(dataset, k=self.folds, column=self._time(dataset), contents=contents)
        if self.block_degrees is not None and self.by == "auto" and not has_places(dataset):
            raise InputError(
                f"--block-degrees {self.block_degrees:g} is of folds by place, but {dataset.source} has no places. "
                "Add columns latitude and longitude, in degrees, with a value in every row; or leave it out."
            )
        return assign_folds(
            dataset,
            k=self.folds,
            seed=seed,
            contents=contents,
            by=cast(SplitBy, self.by),
            blocks=self._blocks,
        )

    def otherwise(self, dataset: ImageDataset, contents: Ints, seed: int, dealt: Folds) -> Folds | None:
        """At random where the folds are by place, and the other way round; None where there is no such other way.

        Args:
            dataset: of the pictures.
            contents: (N,) equal for identical files.
            seed: of the dealing.
            dealt: the folds.

        Raises:
            InputError: it is asked for (``compare_splits``), but can't be had.
        """
        by: SplitBy = "class" if dealt.block is not None else "place"
        if self.compare_splits and dataset.separator is not None:
            raise InputError(
                f"--compare-splits: {dataset.source} has several labels a picture, but what neighbours flatter is "
                "measured of one. Leave it out."
            )
        if dealt.by not in ("auto", "class", "place"):
            return None
        if self.compare_splits and not has_places(dataset):
            raise InputError(
                f"--compare-splits: {dataset.source} has no columns latitude and longitude with a value in every row. "
                "Add them, or leave it out."
            )
        try:
            return assign_folds(
                dataset, k=self.folds, seed=seed, contents=contents, by=by, blocks=self._blocks
            )
        except InputError as error:
            if self.compare_splits:
                raise InputError(f"--compare-splits: {error}") from error
            return None

    def parted(
        self, dataset: ImageDataset, contents: Ints, dealt: Folds, number: int, seed: int
    ) -> tuple[Ints, Ints]:
        """What of a fold's training pictures tries learn from, and what chooses between them: rows.

        By the rule of the folds: what chooses lies apart from what teaches as what is answered does; by time it is the
        latest quarter, as nearly as whole moments allow.

        Args:
            dataset: of the pictures.
            contents: (N,) equal for identical files.
            dealt: the folds.
            number: of the fold.
            seed: of the dealing.

        Raises:
            InputError: there are too few pictures of a class to choose by, or of moments.
        """
        rows = dealt.parts[number].train_rows
        part = dataset.select(rows).with_split(np.full(len(rows), "train", dtype=object))
        fix = ""
        try:
            if dealt.by == "time":
                # Fewer folds have longer periods, so that the first one holds more moments.
                fix = (
                    " Take fewer folds (--folds), or leave --try out."
                    if self.folds > 1
                    else " Leave --try out."
                )
                last = time_holdout(
                    part, share=_CHOOSING, column=self._time(dataset), contents=contents[rows]
                )
                return rows[last.train_rows], rows[last.val_rows]
            held, _ = with_holdout(
                part,
                fraction=_CHOOSING,
                seed=seed + number,
                contents=contents[rows],
                by=dealt.by,
                blocks=self._blocks,
                instead="leave --try out",
            )
        except InputError as error:
            raise InputError(
                f"--try: there is no way to set aside what chooses among the {len(rows)} training pictures of fold "
                f"{number + 1}: {error}{fix}"
            ) from error
        return rows[held.split == "train"], rows[(held.split == "val") & ~is_copy(held)]

    def _time(self, dataset: ImageDataset) -> str:
        name = time_column(dataset, self.time_column)
        if name is None:
            others = [str(name) for name in dataset.table.columns if name not in ("path", "label", "split")]
            raise InputError(
                f"--by time: {dataset.source} has none of the columns {', '.join(TIMES)}. Name the one that holds "
                f"the time with --time-column; its other columns are {some(others, 20) or 'none'}."
            )
        return name


def settings_in(text: str) -> tuple[str, ...]:
    """The settings of a try, as ``--set`` takes them: parted by spaces, but for those in quotes or in brackets.

    Args:
        text: of one ``--try``.

    Raises:
        ValueError: a quote or a bracket is not closed.
    """
    settings: list[str] = []
    for word in shlex.split(text):
        if settings and _is_open(settings[-1]):
            settings[-1] += f" {word}"
        else:
            settings.append(word)
    if settings and _is_open(settings[-1]):
        raise ValueError("No closing bracket")
    return tuple(settings)


def _is_open(text: str) -> bool:
    return sum(map(text.count, "{[")) > sum(map(text.count, "}]"))


def with_further(words: TrainOverrides, settings: Sequence[str]) -> TrainOverrides:
    """Words with settings of a try; a length among these goes before the words' own.

    Args:
        words: about the recipe.
        settings: as ``--set`` takes them.
    """
    if sets_length(settings):
        words = replace(words, epochs=None, minutes=None)
    return replace(words, settings=(*words.settings, *settings))


FILE = "crossval.json"


def remember(
    folder: Path, words: TrainOverrides, plan: Plan, source: DataConfig, digest: str, command: str
) -> None:
    """Write down what a cross-validation was begun with.

    Args:
        folder: of it.
        words: about the recipe.
        plan: of the folds.
        source: of the pictures.
        digest: of the pictures and their folds.
        command: as one types it.
    """
    # What stood in files stands here whole: the folds go on without these, and as they began.
    whole = {
        name: value.to_json()
        for name in ("model", "recipe")
        if isinstance(value := getattr(words, name), Architecture | Recipe)
    }
    plain = {
        "command": command,
        "words": asdict(words) | whole,
        "plan": asdict(plan),
        "source": asdict(source),
        "digest": digest,
    }
    write_text_atomically(folder / FILE, json.dumps(plain, indent=1) + "\n")


def begun_with(
    folder: Path,
    words: TrainOverrides,
    plan: Plan,
    source: DataConfig,
    device: torch.device,
    said: Collection[str] = (),
) -> tuple[TrainOverrides, Plan, DataConfig, str]:
    """What a cross-validation was begun with; whatever is said again has to be the same.

    But for the rule of the folds (``by``), of which two may come to the same folds, as only dealing them shows; and for
    words that come to the same recipe.

    Args:
        folder: of it.
        words: said now.
        plan: said now.
        source: said now.
        device: to train on; which network is the default depends on it.
        said: names of what was typed, so that a default that was is told from one that was not.

    Returns:
        Words, plan, how the pictures' table is read, and digest as they were; DATA itself is what is said now, for from
        elsewhere the same place may be called otherwise.

    Raises:
        InputError: something else is asked for, or the file can't be read.
    """
    try:
        plain = json.loads((folder / FILE).read_text(encoding="utf-8"))
        there = _tuples(plain["words"])
        if isinstance(there["model"], dict):
            there["model"] = Architecture.from_json(there["model"])
        if isinstance(there["recipe"], dict):
            there["recipe"] = validate_recipe(there["recipe"], where=str(folder / FILE))
        before = TrainOverrides(**there), Plan(**_tuples(plain["plan"]))
        read = DataConfig(**plain["source"] | {"data": source.data})
        digest = str(plain["digest"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder / FILE} cannot be read: {error}. Begin anew with another --out."
        ) from error
    differing = [
        *_differing(before[0], words, () if _same_recipe(before[0], words, device) else fields(words), said),
        *_differing(before[1], plan, [one for one in fields(plan) if one.name != "by"], said),
        *_differing(read, source, fields(source), said),
    ]
    if differing:
        raise begun_otherwise(folder, differing)
    return *before, read, digest


def begun_otherwise(folder: Path, differing: Sequence[str]) -> InputError:
    """Why folds can't be gone on with.

    Args:
        folder: of the cross-validation.
        differing: what is said now, beside what was said before.
    """
    return InputError(
        f"--resume: the folds in {folder} were begun otherwise: {'; '.join(differing)}. Leave those words out to go on "
        "with them, or give another --out to begin anew."
    )


def _same_recipe(before: TrainOverrides, now: TrainOverrides, device: torch.device) -> bool:
    """Whether words that are said again, in place of those before, come to the recipe of these."""
    said = {one.name: value for one in fields(now) if (value := getattr(now, one.name)) != one.default}
    try:
        again = replace(before, **said)
        if again == before:
            return True
        if (again.minutes, again.cache) != (before.minutes, before.cache):  # which no recipe holds
            return False
        with silenced():
            there, here = (requested_recipe(words, device)[0] for words in (before, again))
    except InputError:
        return False
    return there == here


def _differing(there: object, now: object, of: Sequence[Field[Any]], said: Collection[str]) -> list[str]:
    """What is said now, and is not what was said before."""
    told = []
    for one in of:
        before, here = getattr(there, one.name), getattr(now, one.name)
        if here == before or (here == one.default and one.name not in said):
            continue
        if isinstance(before, Recipe) and isinstance(here, Recipe):
            told += diff_recipes(before, here)
        else:
            told.append(f"{one.name} is {_called(before)} there, {_called(here)} here")
    return told


def _called(value: object) -> object:
    return f"a file with {value.name}" if isinstance(value, Recipe) else value


def _tuples(plain: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}
