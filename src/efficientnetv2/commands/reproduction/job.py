"""Which table is made how, and what is written of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from efficientnetv2.base.errors import InputError, did_you_mean
from efficientnetv2.base.files import write_atomically, write_text_atomically
from efficientnetv2.commands.demo import embedded
from efficientnetv2.commands.outcome import command_line, versions
from efficientnetv2.commands.reproduction import counts, plots, runs, settings, speed, transfer
from efficientnetv2.commands.reproduction.cells import Runs
from efficientnetv2.commands.reproduction.scale import EMBEDDED, Scale, named
from efficientnetv2.commands.reproduction.table import Table
from efficientnetv2.commands.screen import Screen
from efficientnetv2.commands.source import Source
from efficientnetv2.inference.accelerate import pick_device

_COUNTED = ("1", "7", "11")
_SETTINGS: dict[str, Callable[[Scale], Table]] = {"6": settings.table_6, "figure4": settings.figure_4}
_SPEEDS: dict[str, Callable[[Scale, torch.device, counts.Say], Table]] = {
    "2": speed.table_2,
    "3": speed.table_3,
}
_RUNS: dict[str, Callable[[Scale, Runs], Table]] = {
    "5": runs.table_5,
    "8": transfer.table_8,
    "10": runs.table_10,
    "12": runs.table_12,
    "13": runs.table_13,
}
_DATASETS = "9"
_FIGURES = {
    "figure1": ("train_hours", "params_m"),
    "figure5": ("params_m", "flops_b", "infer_ms_v100_fp16_batch16"),
}
#: Every table that can be asked for.
NAMES = (*_COUNTED, *_SETTINGS, *_SPEEDS, *_RUNS, _DATASETS, *_FIGURES)


@dataclass(frozen=True)
class Asked:
    """The words of the command line.

    Args:
        table, scale, data, seeds, weights, device, out: the options of those names.
    """

    table: str
    scale: str
    data: str | None
    seeds: int | None
    weights: str | None
    device: str
    out: Path | None


def reproduced(asked: Asked, screen: Screen) -> tuple[Table, Path]:
    """The table, made and written.

    Args:
        asked: on the command line.
        screen: told what is going on.

    Raises:
        InputError: no such table or scale, or what a run refuses.
    """
    name = asked.table.lower().removeprefix("table")
    if name not in NAMES:
        known = ", ".join(sorted(NAMES, key=lambda one: (not one.isdigit(), one.zfill(9))))
        hint = did_you_mean(name, list(NAMES))
        raise InputError(f"There is no table '{asked.table}'{hint} Those there are: {known}.")
    scale, device = named(asked.scale), pick_device(asked.device)
    # Refused before anything is written.
    trained = _trained(name, scale, device, asked) if name in _RUNS else None
    folder = asked.out or Path("runs") / f"reproduce_{name}_{scale.name}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("a", encoding="utf-8") as log:

        def say(line: str) -> None:
            screen.say(line)
            log.write(line + "\n")
            log.flush()

        say(command_line())
        say(", ".join(f"{one} {version}" for one, version in versions().items()))
        made = _made(name, scale, device, asked, trained, folder, say)
    made.write(folder)
    write_atomically(folder / "figure.png", lambda path: path.write_bytes(_drawn(name, made)))
    return made, folder


def _made(
    name: str,
    scale: Scale,
    device: torch.device,
    asked: Asked,
    trained: Mapping[str, str | None] | None,
    folder: Path,
    say: Callable[[str], None],
) -> Table:
    if name in _SETTINGS:
        return _SETTINGS[name](scale)
    if name in _SPEEDS:
        return _SPEEDS[name](scale, device, say)
    if name == _DATASETS:
        return transfer.table_9(scale, say)
    if trained is not None:
        _refuse_others(folder, trained)
        source = Source(str(trained["data"]))
        seeds = asked.seeds or scale.seeds
        together = Runs(source, seeds, trained["weights"], asked.device, folder / "cells", say)
        return _RUNS[name](scale, together)
    return counts.counted("7" if name in _FIGURES else name, scale, device, say)


def _trained(name: str, scale: Scale, device: torch.device, asked: Asked) -> dict[str, str | None]:
    """What all runs of a table have in common but for their seeds: its name, scale, device, data and weights.

    Raises:
        InputError: there are no pictures or no weights for them.
    """
    if name == "8":
        transfer.refuse_weights(scale, asked.weights)
    data = asked.data
    if data is None and name == "8" and scale.name == "paper":
        data = transfer.ALL_SETS
    if data is None and scale.data is None:
        raise InputError(
            f"Table {name} at scale {scale.name} trains on ImageNet, which has to be named: --data FOLDER, with train "
            "and val and in them a folder per class, called by its WordNet id."
        )
    if data is None:
        data = str(embedded()) if scale.data == EMBEDDED else str(scale.data)
    weights = asked.weights if name == "8" else "none"
    return {"table": name, "scale": scale.name, "device": device.type, "data": data, "weights": weights}


def _refuse_others(folder: Path, trained: Mapping[str, str | None]) -> None:
    """What a folder keeps was found on the same pictures and so on, or it would stand for others.

    Args:
        folder: of the table.
        trained: as ``_trained`` gives it. Of folders made before, some of it may not be known.

    Raises:
        InputError: it was not.
    """
    place = Path(os.path.expanduser(str(trained["data"])))
    now = {**trained, "data": str(place.absolute())} if place.exists() else dict(trained)
    file = folder / "asked.json"
    there = json.loads(file.read_text(encoding="utf-8")) if file.exists() else now
    differing = [
        f"{'' if name == 'table' else '--'}{name} is {there[name]} there, {now[name]} here"
        for name in now
        if name in there and there[name] != now[name]
    ]
    if differing:
        raise InputError(f"{folder} keeps runs of another kind: {'; '.join(differing)}. Give another --out.")
    write_text_atomically(file, json.dumps(now, indent=1) + "\n")


def _answers_ms(made: Table) -> dict[str, float]:
    """Network -> milliseconds measured here."""
    times = {row.name: row.ours["ms"].middle for row in made.rows if "ms" in row.ours}
    return {name: middle for name, middle in times.items() if middle is not None}


def _drawn(name: str, made: Table) -> bytes:
    if name in _FIGURES:
        # Only figure 5 has a panel of answers' times; of training's hours none were measured here.
        return plots.draw_published(_FIGURES[name], _answers_ms(made) if name == "figure5" else None)
    return settings.draw_settings() if name in _SETTINGS else plots.draw_rows(made)
