"""The cells of a table: whole runs, kept so that a stopped reproduction goes on."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from efficientnetv2.base.errors import InputError
from efficientnetv2.base.files import read_object, write_text_atomically
from efficientnetv2.commands.beginning import Place
from efficientnetv2.commands.reproduction.counts import Say
from efficientnetv2.commands.reproduction.table import Figure
from efficientnetv2.commands.screen import Aside, Screen, duration
from efficientnetv2.commands.source import Source
from efficientnetv2.commands.train_job import train_and_report
from efficientnetv2.commands.words import Words
from efficientnetv2.data import standard
from efficientnetv2.data.manifest import read
from efficientnetv2.inference.accelerate import pick_device
from efficientnetv2.models.download import sha256_of
from efficientnetv2.training.recipes import named

TOP1, MINUTES = "top-1 %", "minutes"
#: File of a run's folder that holds ``Runs.asked``, and its key where figures are kept without the folder.
ASKED = "asked"


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
        number = 0
        for seed in range(self.seeds):  # so that what is there when somebody stops is whole for some seeds
            for cell in cells:
                number += 1
                report = self.report(cell, seed, counted=f" (run {number} of {self.seeds * len(cells)})")
                here = found.get((cell.row, cell.column), {})
                found[cell.row, cell.column] = {
                    name: Figure((*(here[name].values if here else ()), value), unit)
                    for name, value, unit in (
                        (TOP1, 100 * report["top1"], "%"),
                        (MINUTES, report["train_s"] / 60, "minutes"),
                    )
                }
        return found

    def report(self, cell: Cell, seed: int, *, counted: str = "") -> dict[str, Any]:
        """The report of a cell's run: made, gone on with, or only read, by what is there of it.

        Args:
            cell: of the table.
            seed: of the run.
            counted: which of how many runs it is, in words behind its name.

        Raises:
            InputError: what training refuses, or a run of that name that was made with other words.
            KeyboardInterrupt: stopped; called again, the run goes on.
        """
        folder = self.folder(cell, seed)
        done, kept = folder / "report.json", folder / f"{ASKED}.json"
        if not done.exists():
            self.say(f"{cell.row}, {cell.column}, seed {seed}{counted}")
            words = Words(
                model=cell.model,
                recipe=cell.recipe,
                weights=self._weights(cell),
                seed=seed,
                settings=cell.settings,
            )
            source = self.source if cell.data is None else replace(self.source, data=cell.data)
            place = Place(out=folder, resume=(folder / "recipe.yaml").exists(), device=self.device)
            # Of a run among many its bar is shown; its log and its report lie in its folder.
            train_and_report(words, source, place, Aside(self.screen, speaking=not counted))
            write_text_atomically(kept, json.dumps(self.asked(cell), indent=1) + "\n")
            self.say(f"  {_came_to(done)}")
        report = _read(done)
        fix = f"Remove {folder}, and it is trained again."
        there = read_object(kept, fix=fix) if kept.exists() else report.get(ASKED)
        self.refuse_another(cell, there, folder)
        return report

    def asked(self, cell: Cell) -> dict[str, Any]:
        """What decides a cell's run, as plain values, kept with its figures."""
        word = self._weights(cell)
        return {
            "recipe": cell.recipe,
            # Today; by the same name it may say something else one day. As it will be read again.
            "says": json.loads(json.dumps(named(cell.recipe).to_json())),
            "model": cell.model,
            # Where a file lies is each machine's own affair.
            "weights": None if word is None else Path(word).name,
            "weights_digest": None if word is None or not Path(word).is_file() else sha256_of(Path(word)),
            "settings": list(cell.settings),
            "pictures": _pictures(self.source.data if cell.data is None else cell.data),
            "device": pick_device(self.device).type,
        }

    def refuse_another(self, cell: Cell, kept: Mapping[str, Any] | None, folder: Path) -> None:
        """What is kept of a run is of this cell.

        Args:
            cell: whose figures are looked for.
            kept: as ``asked`` gave it; None of what was kept before that was said. Of a recipe's fields those that both
                have are compared: one that came later was not there to be set otherwise.
            folder: of the run, for the message.

        Raises:
            InputError: it is of another.
        """
        now, there = self.asked(cell), dict(kept or {})
        if there.get("pictures") is None:  # so it was of folders, before they were told apart
            there.pop("pictures", None)
        if told := list(_differing(there, now)):
            raise InputError(
                f"{folder} keeps a run of another kind: {'; '.join(told)}. Delete that folder to run it anew, or give "
                "another --out."
            )

    def _weights(self, cell: Cell) -> str | None:
        return self.weights if cell.weights is None else cell.weights

    def folder(self, cell: Cell, seed: int) -> Path:
        """Where a cell's run with a seed lies."""
        return self.out / f"{_slug(cell.row)}_{_slug(cell.column)}_{seed}"


def _read(file: Path) -> dict[str, Any]:
    return read_object(file, "top1", "train_s", fix=f"Remove {file.parent}, and it is trained again.")


def _came_to(file: Path) -> str:
    """What a run came to, in a line, and where more of it stands."""
    report = _read(file)
    return (
        f"top-1 {report['top1']:.1%}, {duration(report['train_s'])} of training: {file.with_suffix('.html')}"
    )


def _differing(there: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What both have and say otherwise, in words."""
    for name, is_now in now.items():
        was = there.get(name, is_now)
        if isinstance(was, dict) and isinstance(is_now, dict):
            yield from (f"{name}.{one}" for one in _differing(was, is_now))
        elif was != is_now:
            yield f"{name}: {was} there, {is_now} here"


def any_begun(out: Path) -> bool:
    """Whether a folder of ``Runs`` holds a run that has begun, or what one came to."""
    return any(file for name in ("recipe.yaml", "report.json") for file in out.glob(f"*/{name}"))


def _pictures(data: str) -> str | None:
    """What pictures are known by, wherever they lie on this machine: a digest, or a standard set's name.

    None of what is nowhere on it: another machine's shards, which take long to list.
    """
    place = Path(data).expanduser()
    if not place.exists():
        return data if data in standard.NAMES else None
    if place.suffix.lower() in (".csv", ".tsv"):
        named = re.sub(rb'[^,;\t\r\n"]*[/\\]', b"", place.read_bytes())
        return hashlib.sha256(named).hexdigest()[:16]
    return _listed(str(place.absolute()))


@cache
def _listed(folder: str) -> str:
    """Digest of the list of a folder's pictures; made once, for of ImageNet it takes a while."""
    return read(folder).digest()


def _slug(text: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in text).strip("-")
