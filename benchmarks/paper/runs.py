"""The training runs behind a table, one folder each, so that a stopped reproduction continues."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.paper.requirements import refuse_missing
from benchmarks.paper.table import Measurement
from benchmarks.record import read

from efficientnetv2.data import builtin_datasets
from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.training.callbacks import Callback
from efficientnetv2.training.overrides import TrainOverrides
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.training.run_request import RunOptions
from efficientnetv2.utils.device import pick_device
from efficientnetv2.utils.errors import InputError, format_duration
from efficientnetv2.utils.io import read_object, sha256_of, write_text_atomically
from efficientnetv2.utils.logs import hushed
from efficientnetv2.workflows.train import train_and_report

TOP1, MINUTES = "top-1 %", "minutes"
#: The file of a run's folder that holds ``Runs.config``, and its key in records.
CONFIG = "asked"


@dataclass(frozen=True)
class Cell:
    """One run of a table: a recipe with settings as ``--set`` takes them.

    Without a model the recipe has it; without data or weights those of all runs are used.
    """

    row: str
    column: str
    recipe: str
    model: str | None
    settings: tuple[str, ...]
    data: str | None = None
    weights: str | None = None


@dataclass(frozen=True)
class Runs:
    """What the runs of a table share: every cell is run with seeds 0 to ``seeds`` - 1, in folders of ``out``.

    ``weights`` None leaves them to the recipe. ``say`` gets a line when a run begins and when it ends,
    ``callbacks`` are called in each run.
    """

    source: DataConfig
    seeds: int
    weights: str | None
    device: str
    out: Path
    say: Callable[[str], None]
    callbacks: Sequence[Callback] = field(default=(), compare=False)

    def measurements(self, cells: Sequence[Cell]) -> dict[tuple[str, str], dict[str, Measurement]]:
        """(row, column) -> top-1 in % and minutes of training, one per seed; trains what is not done yet.

        Raises:
            InputError: what some of the runs need is missing; nothing is trained then.
        """
        seeds = range(self.seeds)
        pending = [
            cell for cell in cells if not all((self.folder(cell, seed) / "report.json").exists() for seed in seeds)
        ]
        refuse_missing(
            (cell.model or get_recipe(cell.recipe).model, self.data_of(cell), self.weights_of(cell)) for cell in pending
        )
        total = self.seeds * len(cells)
        found: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for seed in seeds:  # so that a stopped table has all cells of some seeds
            for number, cell in enumerate(cells, start=1 + seed * len(cells)):
                report = self.report(cell, seed, progress=f" (run {number} of {total})")
                found.setdefault((cell.row, cell.column), []).append(report)
        return {
            key: {
                TOP1: Measurement(tuple(100 * report["top1"] for report in reports), "%"),
                MINUTES: Measurement(tuple(report["train_s"] / 60 for report in reports), "minutes"),
            }
            for key, reports in found.items()
        }

    def report(self, cell: Cell, seed: int, *, progress: str = "") -> dict[str, Any]:
        """The report of a run, which is trained or continued if it is not done; ``progress`` follows its name.

        Raises:
            InputError: what training refuses, or a folder with a run of another configuration.
            KeyboardInterrupt: stopped; called again, the run continues.
        """
        folder = self.folder(cell, seed)
        report_file, config_file = folder / "report.json", folder / f"{CONFIG}.json"
        done = report_file.exists()
        if not done:
            self.say(f"{cell.row}, {cell.column}, seed {seed}{progress}")
            words = TrainOverrides(
                model=cell.model, recipe=cell.recipe, weights=self.weights_of(cell), seed=seed, settings=cell.settings
            )
            source = replace(self.source, data=self.data_of(cell))
            place = RunOptions(out=folder, resume=(folder / "recipe.yaml").exists(), device=self.device)
            with hushed():  # its log is in its folder
                train_and_report(words, source, place, callbacks=self.callbacks)
            write_text_atomically(config_file, json.dumps(self.config(cell), indent=1) + "\n")
        fix = f"Remove {folder}, and it is trained again."
        report = read_object(report_file, "top1", "train_s", fix=fix)
        if not done:
            page = report_file.with_suffix(".html")
            self.say(f"  top-1 {report['top1']:.1%}, {format_duration(report['train_s'])} of training: {page}")
        if config_file.exists():
            read_object(config_file, fix=fix)
        there = read(config_file) if config_file.exists() else read(report_file).get(CONFIG)
        self.refuse_another(cell, there, folder)
        return report

    def config(self, cell: Cell) -> dict[str, Any]:
        """What determines a run, as plain values, stored with its results."""
        weights, overridden = self.weights_of(cell), {setting.partition("=")[0] for setting in cell.settings}
        recipe = json.loads(json.dumps(get_recipe(cell.recipe).to_json()))  # as JSON reads it back
        return {
            "recipe": cell.recipe,
            # The recipe of this name may change.
            "says": {field: value for field, value in recipe.items() if field not in overridden},
            "model": cell.model,
            # The folder of a file differs between machines.
            "weights": None if weights is None else Path(weights).name,
            "weights_digest": sha256_of(Path(weights)) if weights and Path(weights).is_file() else None,
            "settings": list(cell.settings),
            "pictures": _fingerprint(self.data_of(cell)),
            "device": pick_device(self.device).type,
        }

    def refuse_another(self, cell: Cell, stored: Mapping[str, Any] | None, folder: Path) -> None:
        """Refuse a stored ``config`` that differs from that of the cell.

        Only fields that both have are compared: older runs stored fewer, or nothing.

        Raises:
            InputError: it differs; names the folder and the fields.
        """
        there = dict(stored or {})
        if there.get("pictures") is None:  # older runs stored no digest of folders
            there.pop("pictures", None)
        if differences := list(_differences(there, self.config(cell))):
            raise InputError(
                f"{folder} has a run of another kind: {'; '.join(differences)}. Delete that folder to train it again, "
                "or give another --output."
            )

    def data_of(self, cell: Cell) -> str:
        """DATA of the cell's run."""
        return self.source.data if cell.data is None else cell.data

    def weights_of(self, cell: Cell) -> str | None:
        """Initial weights of the cell's run."""
        return self.weights if cell.weights is None else cell.weights

    def folder(self, cell: Cell, seed: int) -> Path:
        """The folder of a run."""
        return self.out / f"{_slug(cell.row)}_{_slug(cell.column)}_{seed}"


def any_begun(out: Path) -> bool:
    """Whether a folder of ``Runs`` has a run that has begun."""
    return any(file for name in ("recipe.yaml", "report.json") for file in out.glob(f"*/{name}"))


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[str]:
    """Fields that both have with other values, in words."""
    for name, value in here.items():
        stored = there.get(name, value)
        if isinstance(stored, dict) and isinstance(value, dict):
            yield from (f"{name}.{difference}" for difference in _differences(stored, value))
        elif stored != value:
            yield f"{name}: {stored} there, {value} here"


def _fingerprint(data: str) -> str | None:
    """A digest of the images, or a standard set's name; None for images of elsewhere, which take long to list."""
    place = Path(data).expanduser()
    if not place.exists():
        return data if data in builtin_datasets.BUILTIN_NAMES else None
    if place.suffix.lower() in (".csv", ".tsv"):
        without_folders = re.sub(rb'[^,;\t\r\n"]*[/\\]', b"", place.read_bytes())
        return hashlib.sha256(without_folders).hexdigest()[:16]
    return _folder_digest(str(place.absolute()))


@cache
def _folder_digest(folder: str) -> str:
    """Cached, because listing ImageNet takes a while."""
    return load_dataset(folder).digest()


def _slug(text: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in text).strip("-")
