"""The cells of a table: whole runs, kept so that a stopped reproduction goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from efficientnetv2.commands.beginning import Place
from efficientnetv2.commands.reproduction.counts import Say
from efficientnetv2.commands.reproduction.table import Figure
from efficientnetv2.commands.screen import Screen
from efficientnetv2.commands.source import Source
from efficientnetv2.commands.train_job import train_and_report
from efficientnetv2.commands.words import Words

TOP1, MINUTES = "top-1 %", "minutes"


@dataclass(frozen=True)
class Cell:
    """One run of a table.

    Args:
        row: of the table.
        column: of the table, of which this run is one side.
        recipe: by name.
        model: that is trained; None leaves it to the recipe.
        settings: of the recipe, as ``--set`` takes them.
        data: that is trained on; None is that of all runs.
        weights: to begin with; None are those of all runs.
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
    """What a reproduction's runs have in common.

    Args:
        source: of the pictures, unless a cell has its own.
        seeds: 0 to this number, each cell once with each.
        weights: to begin with, unless a cell has its own; None leaves it to the recipe.
        device: as ``--device`` says it.
        out: folder for the run folders.
        say: told what is going on.
        screen: on which each run says what it does.
    """

    source: Source
    seeds: int
    weights: str | None
    device: str
    out: Path
    say: Say
    screen: Screen = field(default_factory=Screen, compare=False)

    def of(self, cells: Sequence[Cell]) -> dict[tuple[str, str], dict[str, Figure]]:
        """Run the cells that have not been run.

        Returns:
            (row, column) -> top-1 in %, and the minutes of the training steps, a value per seed.
        """
        found: dict[tuple[str, str], dict[str, Figure]] = {}
        for seed in range(self.seeds):  # so that what is there when somebody stops is whole for some seeds
            for cell in cells:
                report = self.report(cell, seed)
                here = found.get((cell.row, cell.column), {})
                found[cell.row, cell.column] = {
                    name: Figure((*(here[name].values if here else ()), value), unit)
                    for name, value, unit in (
                        (TOP1, 100 * report["top1"], "%"),
                        (MINUTES, report["train_s"] / 60, "minutes"),
                    )
                }
        return found

    def report(self, cell: Cell, seed: int) -> dict[str, Any]:
        """The report of a cell's run: made, gone on with, or only read, by what is there of it.

        Args:
            cell: of the table.
            seed: of the run.

        Raises:
            InputError: what training refuses.
            KeyboardInterrupt: stopped; called again, the run goes on.
        """
        folder = self.folder(cell, seed)
        done = folder / "report.json"
        if not done.exists():
            self.say(f"{cell.row}, {cell.column}, seed {seed}")
            words = Words(
                model=cell.model,
                recipe=cell.recipe,
                weights=self.weights if cell.weights is None else cell.weights,
                seed=seed,
                settings=cell.settings,
            )
            source = self.source if cell.data is None else replace(self.source, data=cell.data)
            going_on = (folder / "recipe.yaml").exists()
            place = Place(out=folder, resume=going_on, device=self.device)
            train_and_report(words, source, place, self.screen)
        report: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
        return report

    def folder(self, cell: Cell, seed: int) -> Path:
        """Where a cell's run with a seed lies."""
        return self.out / f"{_slug(cell.row)}_{_slug(cell.column)}_{seed}"


def any_begun(out: Path) -> bool:
    """Whether a folder of ``Runs`` holds a run that has begun, or what one came to."""
    return any(file for name in ("recipe.yaml", "report.json") for file in out.glob(f"*/{name}"))


def _slug(text: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in text).strip("-")
