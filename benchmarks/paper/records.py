"""Records of reproduced tables: benchmarks/results/reproduce/, the claim of Table 5, and the runs behind them."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.arms import Paired, gain, machines
from benchmarks.paper import page
from benchmarks.paper.page import DRAWN, RECORDED
from benchmarks.paper.reproduce import Request
from benchmarks.paper.runs import CONFIG
from benchmarks.paper.table import TIMED, Table
from benchmarks.record import forget, record, versions_of

from efficientnetv2.evaluation.evaluation_result import library_versions
from efficientnetv2.utils.io import write_text_atomically

#: Table -> its claim in results/summary.json.
CLAIMED = {"5": "randaugment_size_top1_gain_b0_imagenette"}


def claims(table: Table) -> dict[str, tuple[Paired, str]]:
    """Claim -> paired comparison and unit; empty for tables that compare nothing."""
    if table.name not in CLAIMED:
        return {}
    ours = {row.name: {column: one.values for column, one in row.ours.items()} for row in table.rows}
    strong, weak = ours["magnitude 15"], ours["magnitude 5"]
    gains = {px: [more - less for more, less in zip(strong[px], weak[px], strict=True)] for px in ("300 px", "128 px")}
    return {CLAIMED["5"]: (gain(gains["300 px"], gains["128 px"]), "points")}


def command_of(request: Request, *, data: str = "DATA") -> str:
    """The command that makes a table again, with placeholders for files of this machine."""
    words = ["python -m benchmarks.paper", request.table, "--scale", request.scale]
    words += ["--data", data] if request.data else []
    words += ["--seeds", str(request.seeds)] if request.seeds else []
    if request.weights is not None:
        words += ["--weights", "none" if request.weights == "none" else "WEIGHTS"]
    # On a CPU the device is left to "auto", as in earlier records.
    words += ["--device", request.device] if request.device not in ("auto", "cpu") else []
    return " ".join(words)


def write_record(name: str, table: Table, scale: str, command: str, on: str, figure: Path | None = None) -> None:
    """Write the record of a table measured on hardware ``on``, and the drawing of a figure for docs."""
    if name in DRAWN and figure is not None:
        shutil.copyfile(figure, page.IMAGES / f"{name}.png")
    if name not in RECORDED:
        return
    page.RECORDS.mkdir(parents=True, exist_ok=True)
    raw = table.to_json() | {
        "scale": scale,
        "command": command,
        "hardware": on,
        "versions": library_versions(),
        "date": time.strftime("%Y-%m-%d"),
    }
    (page.RECORDS / f"{name}_{scale}.json").write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")


def write_claims(request: Request, table: Table | None, rows: Sequence[Mapping[str, Any]], on: str) -> None:
    """Write the claims of a table into results/summary.json; without a table only remove those of an earlier record."""
    if request.table in CLAIMED:
        forget(CLAIMED[request.table])
    command = f"{command_of(request, data='IMAGENETTE')} --record"
    for claim, (compared, unit) in (claims(table) if table else {}).items():
        of_runs = versions_of(rows) if rows else None
        record(claim, unit=unit, command=command, on=on, versions=of_runs, **asdict(compared))


def sync_runs(stored: Path, cells: Path, on: str, device: str) -> None:
    """Copy results of runs between the records (``stored``, a file per run) and the folders of the runs.

    Runs of this sitting were made on hardware ``on``. Those of another device are not stored, for their hardware is
    unknown.
    """
    for file in sorted(stored.glob("*.json")):
        report = cells / file.stem / "report.json"
        if not report.exists():
            report.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, report)
    for report in sorted(cells.glob("*/report.json")):
        file = stored / f"{report.parent.name}.json"
        if file.exists():
            continue
        found = json.loads(report.read_text(encoding="utf-8"))
        kept = {name: found[name] for name in ("top1", "train_s", "versions") if name in found}
        kept |= {"hardware": on}
        if (config := report.with_name(f"{CONFIG}.json")).exists():
            kept[CONFIG] = json.loads(config.read_text(encoding="utf-8"))
            if kept[CONFIG].get("device", device) != device:
                continue
        stored.mkdir(parents=True, exist_ok=True)
        write_text_atomically(file, json.dumps(kept, indent=1) + "\n")


def stored_runs(table: Table, stored: Path) -> list[dict[str, Any]]:
    """The stored results of a table's runs."""
    files = [file for file in stored.glob("*.json") if int(file.stem.rpartition("_")[2]) < (table.seeds or 0)]
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(files)]


def hardware_of(table: Table, rows: Sequence[Mapping[str, Any]], here: str) -> str:
    """The hardware that a table was measured on: of its stored runs, and ``here`` for times and other runs."""
    timed = any(one.unit in TIMED for row in table.rows for one in row.ours.values())
    return machines([*rows, *([{"hardware": here}] if timed or not rows else [])])
