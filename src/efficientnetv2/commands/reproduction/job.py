"""Which table is made how, and what is written of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from matplotlib.figure import Figure

from efficientnetv2.base.errors import InputError, did_you_mean
from efficientnetv2.base.files import read_object, write_atomically, write_text_atomically
from efficientnetv2.base.typed import command_line, typed
from efficientnetv2.commands.demo import embedded
from efficientnetv2.commands.outcome import versions
from efficientnetv2.commands.replacing import refuse_others, tell_replaced
from efficientnetv2.commands.reproduction import counts, needs, plots, runs, settings, speed, transfer
from efficientnetv2.commands.reproduction.cells import Runs, any_begun
from efficientnetv2.commands.reproduction.columns import FIGURES
from efficientnetv2.commands.reproduction.scale import EMBEDDED, Scale, named
from efficientnetv2.commands.reproduction.table import Table
from efficientnetv2.commands.screen import Screen
from efficientnetv2.commands.source import Source
from efficientnetv2.evaluation.drawing import is_titled, png
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
_WRITTEN, _FIGURE, _LOG, _ASKED, _CELLS = (
    ("table.json", "table.md"), "figure.png", "log.txt", "asked.json", "cells"
)  # fmt: skip
#: Every table that can be asked for.
NAMES = (*_COUNTED, *_SETTINGS, *_SPEEDS, *_RUNS, _DATASETS, *FIGURES)


@dataclass(frozen=True)
class Asked:
    """The words of the command line.

    Args:
        table, scale, data, seeds, weights, device, out: the options of those names.
        as_json: ``--json``.
    """

    table: str
    scale: str
    data: str | None
    seeds: int | None
    weights: str | None
    device: str
    out: Path | None
    as_json: bool = False

    @property
    def words(self) -> list[str]:
        """As one types them."""
        said = [
            (one.name, getattr(self, one.name))
            for one in fields(self)
            if one.name not in ("table", "as_json")
        ]
        given = [(f"--{name}", str(value)) for name, value in said if value is not None]
        return [self.table, *(word for pair in given for word in pair), *(["--json"] if self.as_json else [])]


def reproduced(asked: Asked, screen: Screen) -> tuple[Table, Path]:
    """The table, made and written.

    Args:
        asked: on the command line.
        screen: told what is going on.

    Raises:
        InputError: no such table or scale, words that say nothing of the table, what a run refuses, or a folder that
            holds another table or files of the user's.
        KeyboardInterrupt: Ctrl-C; where there are runs, says how to go on with them.
    """
    name = _known(asked.table)
    scale, device = named(asked.scale), pick_device(asked.device)
    # Refused before anything is written.
    _refuse_unused(name, asked)
    trained = _trained(name, scale, device, asked) if name in _RUNS else None
    folder = asked.out or Path("runs") / f"reproduce_{name}_{scale.name}"
    told = None if trained is None else _refuse_others(folder, trained)
    _refuse_another(folder, name)
    if trained is not None:
        together = _together(scale, asked, trained, folder, screen.say, screen)
        needs.refuse_missing(_RUNS[name], scale, together)
    tell_replaced(folder / _WRITTEN[0], screen)
    folder.mkdir(parents=True, exist_ok=True)
    if told is not None:
        write_text_atomically(folder / _ASKED, json.dumps(told, indent=1) + "\n")
    with (folder / _LOG).open("a", encoding="utf-8", errors="backslashreplace") as log:

        def say(line: str) -> None:
            screen.say(line)
            log.write(line + "\n")
            log.flush()

        say(command_line())
        say(", ".join(f"{one} {version}" for one, version in versions().items()))
        try:
            made = _made(name, scale, device, asked, trained, folder, say, screen)
        except KeyboardInterrupt as stop:
            if trained is None:
                raise
            again = typed(["effnetv2", "reproduce", *asked.words])
            raise KeyboardInterrupt(f"Go on with: {again}") from stop
    made.write(folder)
    timing = counts.Timing.of(scale, device, paper_batch=counts.LATENCY_BATCH)
    image = png(_drawn(name, made, counts.how_timed(scale, device, timing)), title=_title(name))
    write_atomically(folder / _FIGURE, lambda path: path.write_bytes(image))
    return made, folder


def _known(table: str) -> str:
    """The name of a table.

    Raises:
        InputError: there is none of that name.
    """
    name = "".join(table.lower().split()).removeprefix("table")
    if name not in NAMES:
        known = ", ".join(sorted(NAMES, key=lambda one: (not one.isdigit(), one.zfill(9))))
        # No number is a slip of another.
        hint = "." if name.isdigit() else did_you_mean(name, list(NAMES))
        raise InputError(f"There is no table '{table}'{hint} Those there are: {known}.")
    return name


def _refuse_unused(name: str, asked: Asked) -> None:
    """Words that the table would not heed.

    Raises:
        InputError: there are such words.
    """
    if name not in _RUNS:
        said = {"--data": asked.data, "--seeds": asked.seeds, "--weights": asked.weights}
        unused = [f"{option} {value}" for option, value in said.items() if value is not None]
        if unused:
            raise InputError(
                f"{' '.join(unused)}: for {_named(name)} nothing is trained, so it takes neither pictures nor seeds "
                "nor weights. Leave that out."
            )
    elif name != "8" and asked.weights not in (None, "none"):
        raise InputError(
            f"--weights {asked.weights}: {_named(name)} is about training from scratch, and only Table 8 goes on from "
            "weights. Leave --weights out."
        )


def _named(name: str) -> str:
    """As the paper calls it."""
    return name.replace("figure", "Figure ") if name in FIGURES or name == "figure4" else f"Table {name}"


def _made(
    name: str,
    scale: Scale,
    device: torch.device,
    asked: Asked,
    trained: Mapping[str, str | None] | None,
    folder: Path,
    say: Callable[[str], None],
    screen: Screen,
) -> Table:
    if name in _SETTINGS:
        return _SETTINGS[name](scale)
    if name in _SPEEDS:
        return _SPEEDS[name](scale, device, say)
    if name == _DATASETS:
        return transfer.table_9(scale, say)
    if trained is not None:
        return _RUNS[name](scale, _together(scale, asked, trained, folder, say, screen))
    return counts.counted(name, scale, device, say)


def _together(
    scale: Scale,
    asked: Asked,
    trained: Mapping[str, str | None],
    folder: Path,
    say: Callable[[str], None],
    screen: Screen,
) -> Runs:
    """What the runs of a table have in common; ``trained`` as ``_trained`` gives it."""
    source, seeds = Source(str(trained["data"])), asked.seeds or scale.seeds
    return Runs(source, seeds, trained["weights"], asked.device, folder / _CELLS, say, screen)


def _trained(name: str, scale: Scale, device: torch.device, asked: Asked) -> dict[str, str | None]:
    """What all runs of a table have in common but for their seeds: its name, scale, device, data and weights.

    Raises:
        InputError: there are no pictures or no weights for them.
    """
    if name == "8":
        transfer.refuse_weights(scale, asked.weights)
    usual = transfer.DATA.get(scale.name, scale.data) if name == "8" else scale.data
    data = usual if asked.data is None else asked.data
    if data is None:
        raise InputError(
            f"Table {name} at scale {scale.name} trains on ImageNet, which has to be named: --data FOLDER, with train "
            "and val and in them a folder per class, called by its WordNet id."
        )
    if asked.data is None and data == EMBEDDED:
        data = str(embedded())
    weights = asked.weights if name == "8" else "none"
    return {"table": name, "scale": scale.name, "device": device.type, "data": data, "weights": weights}


def _refuse_others(folder: Path, trained: Mapping[str, str | None]) -> dict[str, str | None]:
    """What a folder keeps was found on the same pictures and so on, or it would stand for others.

    Where no run has begun yet, as with words that training refused, nothing is kept and other words are as good.

    Args:
        folder: of the table.
        trained: as ``_trained`` gives it. Of folders made before, some of it may not be known.

    Returns:
        What the folder is to keep: the same, the place of the pictures spelled out.

    Raises:
        InputError: it was not.
    """
    place = Path(os.path.expanduser(str(trained["data"])))
    now = {**trained, "data": str(place.absolute())} if place.exists() else dict(trained)
    file = folder / _ASKED
    begun = file.exists() and any_begun(folder / _CELLS)
    there = read_object(file, fix="Give another --out.") if begun else now
    differing = [
        f"{'' if name == 'table' else '--'}{name} is {there[name]} there, {now[name]} here"
        for name in now
        if name in there and there[name] != now[name]
    ]
    if differing:
        raise InputError(f"{folder} keeps runs of another kind: {'; '.join(differing)}. Give another --out.")
    return now


def _refuse_another(folder: Path, name: str) -> None:
    """Refuse a folder with another table, or with files of the user's by the names of those that will be written.

    The log is gone on with, whichever table it is of.

    Args:
        folder: of the table, there or not.
        name: of the table.

    Raises:
        InputError: there are such files.
    """

    def same_table(beside: Path) -> bool:
        # Figures of earlier versions had all of Table 7 beside them.
        known = (name, "7") if name in FIGURES else (name,)
        return _table_in(beside.with_name(_WRITTEN[0])) in known

    def same_figure(file: Path) -> bool:
        # Figures of earlier versions have no title.
        return is_titled(file, _title(name)) or (is_titled(file, None) and same_table(file))

    for file in _WRITTEN:
        refuse_others(folder / file, f"--out {folder}:", same_table, f"is not of {_title(name)}")
    refuse_others(folder / _FIGURE, f"--out {folder}:", same_figure, f"is not of {_title(name)}")
    refuse_others(folder / _LOG, f"--out {folder}:", _is_log, f"is not of {_title(name)}")


def _is_log(file: Path) -> bool:
    """Whether it begins as ours do, with a command and the versions; a kill may have left less of it."""
    try:
        with file.open(encoding="utf-8") as lines:
            first, second = (lines.readline(10_000) for _ in range(2))
    except (OSError, UnicodeDecodeError):
        return False
    return not first or (first.startswith("effnetv2") and (not second or second.startswith("python ")))


def _table_in(file: Path) -> str | None:
    """Which table of the paper a file holds; None if it holds none."""
    try:
        return Table.from_json(json.loads(file.read_text(encoding="utf-8"))).name
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _title(name: str) -> str:
    """Written into the figure, so that it is known for this table's."""
    return f"effnetv2 reproduce {name}"


def _ours(made: Table) -> dict[str, dict[str, float]]:
    """Heading -> network -> what was counted or measured here."""
    found: dict[str, dict[str, float]] = {}
    for row in made.rows:
        for heading, figure in row.ours.items():
            if figure.middle is not None:
                found.setdefault(heading, {})[row.name] = figure.middle
    return found


def _drawn(name: str, made: Table, timed: str) -> Figure:
    """What a table's figure shows; ``timed`` as for ``plots.draw_published``."""
    if name in FIGURES:
        return plots.draw_published(FIGURES[name], _ours(made), timed=timed)
    return settings.draw_settings() if name in _SETTINGS else plots.draw_rows(made)
