"""What a cross-validation was started with, and what has to be the same when it is resumed."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from efficientnetv2.architectures.spec import Architecture
from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.folds import Folds
from efficientnetv2.data.records import Ints
from efficientnetv2.data.shards.index import is_url
from efficientnetv2.evaluation.predictions import SKIPPED
from efficientnetv2.training.overrides import TrainOverrides, requested_recipe
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.recipe_io import diff_recipes, validate_recipe
from efficientnetv2.training.run_dir import quarantine, read_skipped
from efficientnetv2.utils.errors import InputError, pluralize
from efficientnetv2.utils.io import write_atomically, write_text_atomically
from efficientnetv2.utils.legacy import SCHEMA_VERSION
from efficientnetv2.utils.logs import silenced
from efficientnetv2.utils.shell import command_line
from efficientnetv2.workflows.crossval_config import CROSSVAL_JSON, CrossValConfig

_logger = logging.getLogger(__name__)


def write_start(folder: Path, saved: SavedCrossVal, dataset: ImageDataset, folds: Folds) -> None:
    """Write the images with their folds, and what the cross-validation is started with."""
    # Split "train" is what trains any model of the folder. By time the last period trains none, and is no other split.
    split = np.where(dataset.split == "test", "test", "").astype(object)
    for part in folds.parts:
        split[part.train_rows] = "train"
    write_atomically(folder / "dataset.csv", folds.with_folds(dataset.with_split(split)).to_csv)
    saved.save(folder)


@dataclass(frozen=True)
class SavedCrossVal:
    """What a cross-validation was started with, as ``crossval.json`` has it; ``digest`` is of images and folds."""

    overrides: TrainOverrides
    config: CrossValConfig
    source: DataConfig
    digest: str

    def save(self, folder: Path) -> None:
        """Write ``crossval.json``; files that the options name are stored as contents, because they may change."""
        contents = {
            name: value.to_json()
            for name in ("model", "recipe")
            if isinstance(value := getattr(self.overrides, name), Architecture | Recipe)
        }
        values = {
            "schema_version": SCHEMA_VERSION,
            "command": command_line(),
            "words": asdict(self.overrides) | contents,
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
            overrides, config = _with_tuples(values["words"]), _with_tuples(values["plan"])
            if isinstance(overrides["model"], dict):
                overrides["model"] = Architecture.from_json(overrides["model"])
            if isinstance(overrides["recipe"], dict):
                overrides["recipe"] = validate_recipe(overrides["recipe"], where=str(file))
            source = DataConfig(**values["source"] | {"data": data})
            return cls(TrainOverrides(**overrides), CrossValConfig(**config), source, str(values["digest"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file} cannot be read: {error}. Start again with another --output.") from error

    def check_same(
        self,
        folder: Path,
        overrides: TrainOverrides,
        config: CrossValConfig,
        source: DataConfig,
        device: torch.device,
        typed: Collection[str] = (),
    ) -> None:
        """Refuse options that ask for something else than what is saved.

        Options that give the same recipe are the same. The rule ``by`` is compared by its folds: see ``check_folds``.

        Args:
            typed: Names of the options on the command line, to distinguish a typed default from an absent option.
        """
        pairs = [(self.config, replace(config, by=self.config.by)), (self.source, source)]
        if not self._same_recipe(overrides, device):
            pairs.insert(0, (self.overrides, overrides))
        if found := [line for saved, now in pairs for line in _differences(saved, now, typed)]:
            raise _started_otherwise(folder, found)

    def _same_recipe(self, overrides: TrainOverrides, device: torch.device) -> bool:
        """Whether the given overrides, over those saved, give the saved recipe."""
        given = {
            each.name: value
            for each in fields(overrides)
            if (value := getattr(overrides, each.name)) != each.default
        }
        try:
            again = replace(self.overrides, **given)
            if again == self.overrides:
                return True
            if (again.minutes, again.cache) != (
                self.overrides.minutes,
                self.overrides.cache,
            ):  # not part of a recipe
                return False
            with silenced():
                return requested_recipe(self.overrides, device)[0] == requested_recipe(again, device)[0]
        except InputError:
            return False

    def check_folds(
        self, folder: Path, by: str, dataset: ImageDataset, contents: Ints, folds: Folds, seed: int
    ) -> None:
        """Refuse other images, and a rule ``by`` that gives other folds: without locations ``auto`` is ``class``."""
        if folds_digest(dataset, folds) != self.digest:
            raise InputError(
                f"--resume: images or locations are not those that the folds in {folder} were started with. Bring them "
                "back, or start again with another --output."
            )
        if by == self.config.by:
            return
        with suppress(InputError):
            again = replace(self.config, by=by).make_folds(dataset, contents, seed)
            if folds_digest(dataset, again) == self.digest:
                return
        raise _started_otherwise(folder, [f"by is {self.config.by} there, {by} here"])


def _started_otherwise(folder: Path, differences: Sequence[str]) -> InputError:
    """The error of ``--resume`` with other options."""
    return InputError(
        f"--resume: the cross-validation in {folder} was started with other options: {'; '.join(differences)}. Leave "
        "these options out to resume it, or start another with a new --output."
    )


def _differences(saved: Any, now: Any, typed: Collection[str]) -> list[str]:
    """Fields that are given now, and not as saved."""
    found = []
    for each in fields(now):
        before, here = getattr(saved, each.name), getattr(now, each.name)
        if here == before or (here == each.default and each.name not in typed):
            continue
        if isinstance(before, Recipe) and isinstance(here, Recipe):
            found += diff_recipes(before, here)
            continue
        texts = [
            f"a file with {value.name}" if isinstance(value, Recipe) else value for value in (before, here)
        ]
        found.append(f"{each.name} is {texts[0]} there, {texts[1]} here")
    return found


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def folds_digest(dataset: ImageDataset, folds: Folds) -> str:
    """A digest of the images and the folds that predict them."""
    names = [f"fold {number}" for number in folds.fold_of_image(len(dataset))]
    return dataset.with_split(np.array(names, dtype=object)).digest()


def readable_at_start(
    folder: Path, dataset: ImageDataset, readable: Ints
) -> tuple[Ints, list[tuple[str, str]]]:
    """Rows that were readable when the folds were made, with new ones, and what was skipped then.

    The runs skip images that have become unreadable since.
    """
    before, skipped = _saved_dataset(folder, dataset).paths, read_skipped(folder / SKIPPED)
    if skipped is None:
        _logger.info(quarantine(folder / SKIPPED, "The list of skipped images starts again."))
    # Sets: np.isin compares each path with each, hours for a million images.
    used = set(before)
    skipped = [(path, why) for path, why in skipped or () if path not in used]
    unread = {path for path, _ in skipped}
    in_folds, in_skipped = (
        np.flatnonzero([path in paths for path in dataset.paths]) for paths in (used, unread)
    )
    for rows, what in (
        (np.setdiff1d(in_folds, readable), "of the folds cannot be read anymore and are skipped"),
        (
            np.intersect1d(in_skipped, readable),
            "skipped when the folds were made can be read now and are left out",
        ),
    ):
        if len(rows):
            _logger.info(f"{pluralize(len(rows), 'image')} {what} (first: {dataset.paths[rows[0]]}).")
    return np.setdiff1d(np.union1d(readable, in_folds), np.intersect1d(in_skipped, readable)), skipped


def with_saved_paths(folder: Path, dataset: ImageDataset) -> ImageDataset:
    """The images by the same path from ``folder`` as at the start, by which the runs there know them.

    Another path to the same options, such as a link, is replaced.

    Raises:
        InputError: The images or the folder have been moved.
    """
    pairs = zip(_saved_dataset(folder, dataset).paths, dataset.paths, strict=False)
    before, now = next((pair for pair in pairs if pair[0] != pair[1]), ("", ""))
    if before == now:
        return dataset
    prefix = before.removesuffix(now).rstrip("/")
    root = prefix if is_url(prefix) else os.path.realpath(folder / prefix)
    if isinstance(dataset.root, Path) and root == os.path.realpath(dataset.root):
        # By the name of the folder, as ``ImageDataset.relative_to`` does, unless a link in it leads elsewhere.
        roots = [Path(os.path.normpath(path / prefix)) for path in (folder.absolute(), folder.resolve())]
        return replace(dataset, root=next(path for path in roots if os.path.realpath(path) == root))
    raise InputError(
        f"--resume: as seen from {folder}, the images were in {root} when the folds were started, but are in "
        f"{dataset.root} now. Bring back what was moved, or start again with another --output."
    )


def _saved_dataset(folder: Path, dataset: ImageDataset) -> ImageDataset:
    return ImageDataset.from_csv(
        folder / "dataset.csv", root=dataset.root, source=dataset.source, separator=dataset.separator
    )
