"""``effnetv2 reproduce``, kept: its tables as records, what follows from them as claims, both on docs/paper.md.

Run: python -m benchmarks.reproduced TABLE ... [--scale tiny|small|paper] [--data DATA] [--weights WEIGHTS] [--record]

Without ``--data`` it is what ``effnetv2 reproduce`` takes. A table that was stopped goes on where it was; with --record
what its runs came to is kept beside the records too, for at scale small it takes longer than a sitting (move
results/reproduce/TABLE_SCALE/ away when the runs of a table have become others).

One claim is made, of Table 5 with 2 seeds or more, not at scale tiny, whose accuracies mean nothing: what RandAugment's
greatest magnitude gains over its least with the largest pictures, less the same with the smallest. Above 0, larger
pictures want more of it. Tables 12 and 13, whose sides have to be tuned before they can be compared, are claimed by
``benchmarks.progressive --regime resnet50`` and ``benchmarks.adaptive``, which write their records at scale small too,
as ``benchmarks.transfer`` does that of Table 8.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import paper_page
from benchmarks.arms import Paired, gain, machines
from benchmarks.paper_page import DRAWN, RECORDED, RECORDS
from benchmarks.record import forget, hardware, record, versions_of

from efficientnetv2.base.allocator import keep_freed_memory
from efficientnetv2.base.files import write_text_atomically
from efficientnetv2.commands.outcome import versions
from efficientnetv2.commands.reproduction.cells import ASKED
from efficientnetv2.commands.reproduction.job import NAMES, Asked, reproduced
from efficientnetv2.commands.reproduction.table import TIMED, Table
from efficientnetv2.commands.screen import Screen
from efficientnetv2.inference.accelerate import pick_device

_OF_RUNS = ("5", "8", "10", "12", "13")
_CLAIMED = {"5": "randaugment_size_top1_gain_b0_imagenette"}


def claims(made: Table) -> dict[str, tuple[Paired, str]]:
    """Name -> comparison and unit; nothing of a table that compares nothing."""
    if made.name != "5":
        return {}
    ours = {row.name: {column: figure.values for column, figure in row.ours.items()} for row in made.rows}
    gains = {
        px: [
            more - less for more, less in zip(ours["magnitude 15"][px], ours["magnitude 5"][px], strict=True)
        ]
        for px in ("300 px", "128 px")
    }
    return {_CLAIMED["5"]: (gain(gains["300 px"], gains["128 px"]), "points")}


def told_again(asked: Asked, program: str = "effnetv2 reproduce", *, data: str = "DATA") -> str:
    """The command that makes a table again, where files of this machine are words in capitals.

    Args:
        asked: of the table.
        program: that is called.
        data: stands for the pictures, if any were named.
    """
    words = [program, asked.table, "--scale", asked.scale]
    words += ["--data", data] if asked.data else []
    words += ["--seeds", str(asked.seeds)] if asked.seeds else []
    if asked.weights is not None:
        words += ["--weights", "none" if asked.weights == "none" else "WEIGHTS"]
    # What auto comes to on a CPU is left to it, as the records have it so far.
    words += ["--device", asked.device] if asked.device not in ("auto", "cpu") else []
    return " ".join(words)


def keep(name: str, made: Table, scale: str, command: str, on: str, drawing: Path | None = None) -> None:
    """Write a table's record, and the drawing of a figure for docs.

    Args:
        name: of the table.
        made: the table.
        scale: of it.
        command: that makes it again.
        on: the hardware that it was measured on.
        drawing: of it; None is none.
    """
    if name in DRAWN and drawing is not None:
        shutil.copyfile(drawing, paper_page.PAGE.parent / f"{name}.png")
    if name not in RECORDED:
        return
    RECORDS.mkdir(parents=True, exist_ok=True)
    raw = made.to_json() | {
        "scale": scale,
        "command": command,
        "hardware": on,
        "versions": versions(),
        "date": time.strftime("%Y-%m-%d"),
    }
    (RECORDS / f"{name}_{scale}.json").write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")


def settle(place: Path, cells: Path, on: str, device: str) -> None:
    """What runs came to, kept beyond the folder that they lie in, and given back to it.

    Args:
        place: where it is kept: a file for each run.
        cells: of the runs; a report that is there says what one came to.
        on: the hardware that those of this sitting are made on.
        device: of it, ``cpu`` or ``cuda``; what lies there of another was made on who knows what, and is not kept.
    """
    for kept in sorted(place.glob("*.json")):
        report = cells / kept.stem / "report.json"
        if not report.exists():
            report.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(kept, report)
    for report in sorted(cells.glob("*/report.json")):
        kept = place / f"{report.parent.name}.json"
        if not kept.exists():
            found = json.loads(report.read_text(encoding="utf-8"))
            names = [name for name in ("top1", "train_s", "versions") if name in found]
            told = {name: found[name] for name in names} | {"hardware": on}
            if (asked := report.with_name(f"{ASKED}.json")).exists():
                told[ASKED] = json.loads(asked.read_text(encoding="utf-8"))
                if told[ASKED].get("device", device) != device:
                    continue
            place.mkdir(parents=True, exist_ok=True)
            write_text_atomically(kept, json.dumps(told, indent=1) + "\n")


def runs_of(made: Table, place: Path) -> list[dict[str, Any]]:
    """What is kept of a table's runs.

    Args:
        made: the table.
        place: as for ``settle``, where its runs are kept, if they are.
    """
    runs = [file for file in place.glob("*.json") if int(file.stem.rpartition("_")[2]) < (made.seeds or 0)]
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(runs)]


def measured_on(made: Table, rows: Sequence[Mapping[str, Any]], here: str) -> str:
    """The hardware that a table's figures were measured on, in words.

    Args:
        made: the table.
        rows: of its runs.
        here: the hardware of this sitting, which measured all else: runs that are not kept, and times of answers.
    """
    timed = any(figure.unit in TIMED for row in made.rows for figure in row.ours.values())
    return machines([*rows, *([{"hardware": here}] if timed or not rows else [])])


class Keeping(Screen):
    """Keeps what runs came to before each further one, for whoever looks at a stopped measurement, and for the next.

    Args:
        place: as for ``settle``.
        cells: likewise.
        on: likewise.
        device: likewise.
    """

    def __init__(self, place: Path, cells: Path, on: str, device: str) -> None:
        super().__init__(quiet=True)
        self._settled = place, cells, on, device

    def say(self, line: str) -> None:
        """A line: of a run that begins, for instance."""
        settle(*self._settled)
        super().say(line)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", nargs="+", choices=NAMES, metavar="TABLE", help=", ".join(NAMES))
    parser.add_argument("--scale", default="tiny")
    parser.add_argument("--data")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--weights")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--record", action="store_true", help="write results/reproduce/ and docs/paper.md")
    options = parser.parse_args()
    for name in options.tables:
        _one(name, options)
    if options.record:
        paper_page.write()


def _one(name: str, options: argparse.Namespace) -> None:
    """A table: made, shown, and recorded if that is asked for."""
    # Several tables may be asked for at once: what is said of runs is for those that have some.
    data, seeds = (options.data, options.seeds) if name in _OF_RUNS else (None, None)
    weights = options.weights if name == "8" else None
    asked = Asked(name, options.scale, data, seeds, weights, options.device, None)
    device = pick_device(options.device)
    here = hardware(device)
    kept, cells = RECORDS / f"{name}_{options.scale}", Path(f"runs/reproduce_{name}_{options.scale}/cells")
    lasting = options.record and name in _OF_RUNS and options.scale != "tiny"
    settled = kept, cells, here, device.type
    if lasting:
        settle(*settled)
    made, folder = reproduced(asked, Keeping(*settled) if lasting else Screen(quiet=True))
    if lasting:
        settle(*settled)
    print(made.markdown(), f"Written to {folder}", sep="\n", flush=True)
    rows = runs_of(made, kept)
    on = measured_on(made, rows, here)
    if options.record:
        if options.scale != "tiny" and name in _CLAIMED:
            forget(_CLAIMED[name])  # of an earlier record of this table, unless it is made again
        keep(name, made, options.scale, told_again(asked), on, folder / "figure.png")
    several = any(figure.values[1:] for row in made.rows for figure in row.ours.values())
    if name not in _OF_RUNS or options.scale == "tiny" or not several:
        return
    for claim, (figure, unit) in claims(made).items():
        print(f"{claim}: {figure} {unit}", flush=True)
        if options.record:
            again = told_again(asked, "python -m benchmarks.reproduced", data="IMAGENETTE") + " --record"
            versions = versions_of(rows) if rows else None
            record(claim, unit=unit, command=again, on=on, versions=versions, **asdict(figure))


if __name__ == "__main__":
    keep_freed_memory()  # as the program does: without, S answered in 36 ms beside one table and in 24 beside another
    main()
