"""Make a table or figure of the paper in a folder: table.json, table.md, figure.png, log.txt and the runs behind it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from benchmarks.paper import accuracy, params_flops, plots, schedules, throughput, transfer
from benchmarks.paper.params_flops import Say
from benchmarks.paper.published import FIGURES
from benchmarks.paper.runs import Runs, any_begun
from benchmarks.paper.scale import EMBEDDED, SCALES, Scale
from benchmarks.paper.table import Table
from matplotlib.figure import Figure

from efficientnetv2.data.config import DataConfig
from efficientnetv2.evaluation.evaluation_result import library_versions
from efficientnetv2.evaluation.plot_style import png
from efficientnetv2.training.callbacks import Callback
from efficientnetv2.training.initial_weights import EXAMPLES
from efficientnetv2.utils.device import pick_device
from efficientnetv2.utils.errors import InputError, did_you_mean
from efficientnetv2.utils.io import read_object, write_atomically, write_text_atomically
from efficientnetv2.utils.shell import shell_join

#: Tables and figures that are counted or timed.
MEASURED: dict[str, Callable[[Scale, torch.device, Say], Table]] = {
    **{name: partial(params_flops.counted, name) for name in ("1", "7", "11", *FIGURES)},
    "2": throughput.table_2,
    "3": throughput.table_3,
    "6": schedules.table_6,
    "9": transfer.table_9,
    "figure4": schedules.figure_4,
}
#: Tables whose accuracies are trained.
TRAINED: dict[str, Callable[[Scale, Runs], Table]] = {
    "5": accuracy.table_5,
    "8": transfer.table_8,
    "10": accuracy.table_10,
    "12": accuracy.table_12,
    "13": accuracy.table_13,
}
NAMES = (*MEASURED, *TRAINED)
_TABLE, _FIGURE, _LOG, _CONFIG = "table.json", "figure.png", "log.txt", "asked.json"
#: The folder of the runs within that of a table.
CELLS = "cells"
_WRITTEN = (_TABLE, "table.md", _FIGURE, _LOG)


@dataclass(frozen=True)
class Request:
    """What to reproduce; the options of the command line."""

    table: str
    scale: str = "tiny"
    data: str | None = None
    seeds: int | None = None
    weights: str | None = None
    device: str = "auto"
    out: Path | None = None
    json: bool = False

    @property
    def command(self) -> str:
        """The command line of this request."""
        options = {name: getattr(self, name) for name in ("scale", "data", "seeds", "weights", "device")}
        options["output"] = self.out
        given = [(f"--{name}", value) for name, value in options.items() if value is not None]
        words = [str(word) for pair in given for word in pair] + ["--json"] * self.json
        return shell_join(["python", "-m", "benchmarks.paper", self.table, *words])

    @property
    def folder(self) -> Path:
        """Where the table is written."""
        return self.out or Path("runs") / f"reproduce_{table_name(self.table)}_{self.scale}"


class _Log:
    """Hands lines to ``say`` and writes them into log.txt; the first line creates the folder."""

    def __init__(
        self,
        request: Request,
        config: Mapping[str, str | None],
        say: Callable[[str], None],
        on_line: Callable[[], None],
    ) -> None:
        self._request, self._config, self._say, self._on_line = request, config, say, on_line
        self._begun = False

    def begin(self) -> None:
        """Create the folder and write what the table is made with."""
        if self._begun:
            return
        self._begun = True
        folder = self._request.folder
        folder.mkdir(parents=True, exist_ok=True)
        write_text_atomically(folder / _CONFIG, json.dumps(self._config, indent=1) + "\n")
        self(self._request.command)
        self(", ".join(f"{library} {version}" for library, version in library_versions().items()))

    def __call__(self, line: str) -> None:
        self.begin()
        self._on_line()
        self._say(line)
        with (self._request.folder / _LOG).open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(line + "\n")


def reproduce(
    request: Request,
    *,
    say: Callable[[str], None] = lambda line: None,
    on_line: Callable[[], None] = lambda: None,
    callbacks: Sequence[Callback] = (),
) -> Table:
    """Make a table and write it to the request's folder.

    ``say`` gets each line of its log, ``on_line`` is called before it, ``callbacks`` in each training run.

    Raises:
        InputError: there is no such table, options do not fit it, a run refuses its input, or the folder holds another
            table, other runs or files of the user.
        KeyboardInterrupt: Ctrl-C; of a table with runs, the message has the command that continues.
    """
    name, scale, device = table_name(request.table), SCALES[request.scale], pick_device(request.device)
    _refuse_unused(name, request)
    config = _config(name, scale, device, request)
    folder = request.folder
    _refuse_another(folder, config)
    if (folder / _TABLE).exists():
        say(f"{folder / _TABLE} is there already: it will be replaced.")
    log = _Log(request, config, say, on_line)
    try:
        if name in MEASURED:
            table = MEASURED[name](scale, device, log)
        else:
            source, seeds = DataConfig(_data(name, scale, request)), request.seeds or scale.seeds
            runs = Runs(source, seeds, config["weights"], request.device, folder / CELLS, log, callbacks)
            table = TRAINED[name](scale, runs)
    except KeyboardInterrupt as stop:
        if name in MEASURED:
            raise
        raise KeyboardInterrupt(f"Continue with: {request.command}") from stop
    log.begin()
    table.write(folder)
    timing = params_flops.Timing.of(scale, device, paper_batch=params_flops.LATENCY_BATCH)
    figure = _draw(name, table, params_flops.axis_note(scale, device, timing))
    image = png(figure, title=f"python -m benchmarks.paper {name}")
    write_atomically(folder / _FIGURE, lambda path: path.write_bytes(image))
    return table


def table_name(text: str) -> str:
    """The name in ``NAMES`` of a table as people write it: "Table 6" is "6".

    Raises:
        InputError: there is none.
    """
    name = "".join(text.lower().split()).removeprefix("table")
    if name not in NAMES:
        known = ", ".join(sorted(NAMES, key=lambda one: (not one.isdigit(), one.zfill(9))))
        # A number is no misspelling of another.
        hint = "." if name.isdigit() else did_you_mean(name, list(NAMES))
        raise InputError(f"There is no table '{text}'{hint} Those there are: {known}.")
    return name


def title_of(name: str) -> str:
    """The paper's name of a table: "figure1" is "Figure 1"."""
    return f"Figure {name.removeprefix('figure')}" if name.startswith("figure") else f"Table {name}"


def _refuse_unused(name: str, request: Request) -> None:
    options = {"--data": request.data, "--seeds": request.seeds, "--weights": request.weights}
    title = title_of(name)
    if name in MEASURED:
        unused = [f"{option} {value}" for option, value in options.items() if value is not None]
        if unused:
            raise InputError(
                f"{' '.join(unused)}: for {title} nothing is trained, so it takes neither images nor seeds nor "
                "weights. Leave that out."
            )
    elif name != "8" and request.weights not in (None, "none"):
        raise InputError(
            f"--weights {request.weights}: {title} is about training from scratch, and only Table 8 starts from "
            "weights. Leave --weights out."
        )


def _config(name: str, scale: Scale, device: torch.device, request: Request) -> dict[str, str | None]:
    """What all runs of a table share but their seeds; only the name of a table without runs."""
    if name in MEASURED:
        return {"table": name}
    if name == "8":
        transfer.refuse_weights(scale, request.weights)
    data = _data(name, scale, request)
    place = Path(os.path.expanduser(data))
    return {
        "table": name,
        "scale": scale.name,
        "device": device.type,
        "data": str(place.absolute()) if place.exists() else data,
        "weights": request.weights if name == "8" else "none",
    }


def _data(name: str, scale: Scale, request: Request) -> str:
    """DATA of the runs of a table, as given or the default."""
    default = transfer.DATA.get(scale.name, scale.data) if name == "8" else scale.data
    data = request.data or default
    if data is None:
        raise InputError(
            f"Table {name} at scale {scale.name} trains on ImageNet, which has to be named: --data FOLDER, with train "
            "and val and in them a folder per class, called by its WordNet id."
        )
    return str(EXAMPLES / "land_cover/images.csv") if data == EMBEDDED and request.data is None else data


def _refuse_another(folder: Path, config: Mapping[str, str | None]) -> None:
    """Refuse a folder with runs of another configuration, another table, or files of the user.

    A configuration whose runs never began does not bind the folder.

    Raises:
        InputError: it is such a folder.
    """
    file = folder / _CONFIG
    stored = read_object(file, fix="Give another --output.") if file.exists() else {}
    differences = [
        f"{'' if name == 'table' else '--'}{name} is {stored[name]} there, {here} here"
        for name, here in config.items()
        if name in stored and stored[name] != here
    ]
    if differences and any_begun(folder / CELLS):
        raise InputError(f"{folder} has runs of another kind: {'; '.join(differences)}. Give another --output.")
    owner = stored.get("table") or _table_in(folder / _TABLE)  # folders of before have no table in their file
    there = [name for name in _WRITTEN if (folder / name).exists()]
    if there and owner != config["table"]:
        raise InputError(
            f"--output {folder}: {folder / there[0]} is there already, and is not of {title_of(str(config['table']))}. "
            "Give another --output, or remove it."
        )


def _table_in(file: Path) -> str | None:
    """Which table of the paper a file holds; None if it holds none."""
    try:
        return Table.from_json(json.loads(file.read_text(encoding="utf-8"))).name
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _draw(name: str, table: Table, timed: str) -> Figure:
    """The figure of a table; ``timed`` as for ``plots.draw_published``."""
    if name in ("6", "figure4"):
        return schedules.draw_schedules()
    if name not in FIGURES:
        return plots.draw_rows(table)
    ours: dict[str, dict[str, float]] = {}
    for row in table.rows:
        for heading, one in row.ours.items():
            if one.middle is not None:
                ours.setdefault(heading, {})[row.name] = one.middle
    return plots.draw_published(FIGURES[name], ours, timed=timed)
