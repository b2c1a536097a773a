"""docs/paper.md: the paper's tables with ours beside them, from the records that are committed.

Run: python -m benchmarks.paper.page

Of each table the record of the largest scale is shown. Runs at scale tiny are a few steps long, and their figures mean
nothing: they are left out, and named as what is to be measured; so is what the paper's table has and its record has
not, and what was timed below the paper's sizes. A test holds the page equal to the records.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.paper import published
from benchmarks.paper.reproduce import NAMES, TRAINED, title_of
from benchmarks.paper.scale import SCALES
from benchmarks.paper.table import MISSING, NOT_OURS, TIMED, Measurement, Row, Table, markdown_row, minutes_of
from benchmarks.record import RESULTS, SUMMARY, read

PAGE = Path(__file__).parents[2] / "docs/paper.md"
RECORDS = RESULTS / "reproduce"
TO_BE_MEASURED = "to be measured"
# Figures 1 and 5 are drawn from Table 7's record and have none of their own. Title, and which of what is drawn is ours.
DRAWN = {
    "figure1": (
        published.TABLES["figure1"]["title"],
        "Ours are the rings, parameters as they are counted here, at the paper's top-1; all else is the paper's, for "
        "accuracy and hours of ours are not measured.",
    ),
    "figure4": (
        "Figure 4, drawn",
        "All of it is ours: what the recipes efficientnetv2_s_paper, _m_paper and _l_paper train with.",
    ),
    "figure5": (
        published.TABLES["figure5"]["title"],
        "Ours are the rings, parameters and multiply-adds as they are counted here, and the points of the last panel, "
        "latency on the device that its axis names, all at the paper's top-1; all else is the paper's, for accuracy of "
        "ours is not measured.",
    ),
}
RECORDED = sorted(set(NAMES) - {"figure1", "figure5"}, key=lambda name: (not name.isdigit(), name.zfill(9)))
_SCALES = ("paper", "small", "tiny")  # the first that is there
_UNTRAINED = ("M", "B", "ms")  # units of what is counted and timed beside the runs
_TITLE = "# The paper's tables, and ours\n"
# Shares of the paper's picture sizes, as scales have them, in words.
_SIZES = {
    0.25: "a quarter of the paper's picture sizes",
    0.5: "half the paper's picture sizes",
    1.0: "the paper's picture sizes",
}
# How a record says what its speeds were taken on: "steps on cpu in fp32", "cuda:0, bf16, at 1 of the size".
_TAKEN_ON = re.compile(r"\b(cpu|cuda|mps)(?::\d+)?(?:,| in) (fp32|bf16|fp16)\b")
# What a reader of a table would ask; the tests count it.
_REMARKS = {
    "3": 'Rows "all 3x3" are ours: the fused blocks with kernel 3 instead of each stage\'s own. In stages 1-3 they '
    "come nearer to the paper's parameters and multiply-adds; where more stages are fused, the stages' own kernels do. "
    "Where a processor multiplies 16 bits in tiles (AMX), as here, fusing stages 1-3 makes a step 1.3 times as fast, "
    "stages 1-5 1.4 times and all 0.9 times (on the paper's V100 1.4, 1.4 and 1.3); in fp32 fusing stages 1-3 brings "
    "nothing (1.0 times, at scale tiny on another such processor: "
    "[3_tiny.json](../benchmarks/results/reproduce/3_tiny.json)). A fused block does more multiply-adds, and pays "
    "where dense ones are much quicker than depthwise ones.",
    "5": "A run of ours is 1,000 steps, 3.4 epochs. In so few, stronger RandAugment costs more than it brings at every "
    "size, and as in the paper less with larger pictures: with each of the three seeds, though the interval of their "
    "mean holds 0. It pays where pictures are seen more often, as tuning elsewhere found, one run each, on other "
    "pictures of train: at 128 px magnitudes 0, 3.3, 5 and 10 (with dropout 0, 0.067, 0.1 and 0.2) came to "
    "68.4, 69.3, 69.6 and 64.6 % in 60 epochs of 1,000 pictures "
    "([progressive_paper.json](../benchmarks/results/progressive_paper.json)), the first three of them to 70.7, 69.6 "
    "and 66.8 % in 20 of 2,400 ([tuned.json](../benchmarks/results/progressive_short/tuned.json)).",
    "11": "The paper's 24.0 M parameters are those of an earlier S, whose last stage has 272 channels and whose head "
    "1,792 features. Counted here is the S of its Table 4, which was released: 256 and 1,280.",
}
_INTRODUCTION = """\
[arXiv:2104.00298](https://arxiv.org/abs/2104.00298) beside what this package gives, by
`python -m benchmarks.paper TABLE --scale tiny|small|paper`
([how much each scale does](../benchmarks/paper/scale.py)); in a clone, `make reproduce` makes
all of them one after the other at scale tiny, which shows that they run. This page is written by
`python -m benchmarks.paper.page` from the records in
[benchmarks/results/reproduce/](../benchmarks/results/reproduce/), which
`python -m benchmarks.paper TABLE --record` makes; each says on which machine, with which versions and when.
Parameters and multiply-adds are counted and hold everywhere; speeds are of the machine named. Accuracies at scale small
are of few, small pictures: look for the paper's order there, not for its values. Tables 8, 12 and 13 at scale small
come from benchmarks that tune each side first, where `benchmarks.paper` takes fixed settings; their commands stand
under them.
"""
_REST = "What is to be measured [stands at the end](#to-be-measured).\n"
_NO_CELL = "In the paper's table, but not in this record"
# Of benchmarks.progressive: regime -> how the names of its claims end, what is trained, the size at the end.
_REGIMES = {
    "paper": ("b0_imagenette", "B0, 1,000 pictures, 60 epochs", 128),
    "short": ("b0_imagenette_short", "B0, all pictures, 10 epochs", 128),
    "resnet50": ("resnet50_imagenette", "ResNet-50 (Table 12), all pictures, 6 epochs", 96),
}
# What our measurements come to: claim -> what it says.
_CLAIMS = {
    **{
        f"{name}_{end}": f"{told}: {says}"
        for end, told, px in _REGIMES.values()
        for name, says in {
            "progressive_speedup": f"training time of fixed {px} px over that of growing from {px // 2} px",
            "progressive_wall_speedup": "the same of whole runs, the answers to all of val included",
            "progressive_top1_gain": "top-1 of growing over fixed, the regularization of each tuned",
            "progressive_top1_gain_equal_time": "the same over fixed for as many minutes",
        }.items()
    },
    "adaptive_top1_gain_b0_imagenette": "Table 13, growing: top-1 of adaptive over vanilla regularization, each tuned",
    "adaptive_top1_gain_b0_imagenette_random_resize": "Table 13, random sizes: the same",
    "randaugment_size_top1_gain_b0_imagenette": "Table 5: gain of RandAugment 15 over 5 at 144 px, less at 64 px",
    "transfer_paper_cifar10_top1": "Table 8, CIFAR-10 at 96 px, 3 epochs: the paper's recipe",
    "finetune_cifar10_top1": "the same set, size and epochs: our recipe finetune",
    "finetune_cifar10_top1_gain_over_transfer_paper": "there, finetune over the paper's recipe",
    "finetune_cifar10_top1_gain_over_probe": "there, finetune over a linear probe of the weights, fitted to 5,000",
    "time_to_timm_top1_speedup": "B0 from scratch: minutes of timm's tuned train script over those of our length "
    "whose mean top-1 is at least its (interval of the minutes alone)",
    "time_to_torchvision_top1_speedup": "B0 from scratch: the same of torchvision's reference recipe",
    "same_minutes_top1_gain_over_timm": "B0 from scratch: our top-1 over timm's, ours for as long as its minutes allow",
}
# As tests/test_claims.py reads them.
_SHOWN: dict[str, Callable[[float], str]] = {
    "ratio": lambda value: f"{value:.2f}",
    "points": lambda value: f"{value:+.1f}",
    "fraction": lambda value: f"{100 * value:.1f} %",
}


_HOW_TO_READ = textwrap.fill(
    "Gains are differences in points of top-1, speedups are ratios, both over paired seeds. A gain marked `holds 0` "
    "may be chance: its sign is not known. Of timm's script: the speedups of the three seeds were 8.1, 6.0 and 5.3, "
    "because the machine changed its pace between the runs ([more](measured.md#minutes-to-the-same-top-1)). Our "
    "recipes `quick` and `finetune`, and all rows with them, use the RandAugment preset `monotone`, which is "
    "ours and not the paper's.",
    120,
)


def text() -> str:
    """The page."""
    summary = json.loads(SUMMARY.read_text(encoding="utf-8"))
    whole = any((RECORDS / f"{name}_paper.json").exists() for name in TRAINED)
    shown = {name: kept for name in RECORDED if (kept := _record(name)) is not None}
    missing = _missing(summary, shown)
    opening = [_TITLE, _reach(shown, whole=whole), _INTRODUCTION, *([_REST] if missing else [])]
    parts = [*opening, *_held(summary)]
    parts += [_section(shown[name]) if name in shown else _unmade(name) for name in RECORDED]
    for name, (title, ours) in DRAWN.items():
        if (PAGE.parent / f"{name}.png").exists():
            parts.append(f"## {title}\n\n![{title}]({name}.png)\n\n{ours}\n\n`python -m benchmarks.paper {name}`\n")
    return "\n".join([*parts, *missing])


def write() -> None:
    """Write docs/paper.md."""
    PAGE.write_text(text(), encoding="utf-8")


def _record(name: str) -> dict[str, Any] | None:
    """A table's record of the largest scale, as it is kept; None where there is none."""
    for scale in _SCALES:
        if (file := RECORDS / f"{name}_{scale}.json").exists():
            kept: dict[str, Any] = read(file)
            return kept
    return None


def _reach(shown: dict[str, dict[str, Any]], *, whole: bool) -> str:
    """What of the paper is checked, and what is not.

    Args:
        shown: table -> its record on the page.
        whole: whether a table of runs was made at the paper's scale.
    """
    taken: dict[str, list[str]] = {}
    for name, kept in shown.items():
        if (on := _taken_on(kept)) is not None:
            taken.setdefault(on, []).append(name)
    told = [f"{on} ({_tables(names)})" for on, names in taken.items()] if len(taken) > 1 else list(taken)
    ours = f": ours, of steps and answers, are {' and '.join(told)}, to be compared within a table"
    speeds = ours if told else ""
    said = f"Networks, settings and counts of the paper's tables are checked here. Its speeds are not{speeds}."
    said += "" if whole else " And no accuracy of the paper has been reproduced on ImageNet."
    return textwrap.fill(said, 120) + "\n"


def _taken_on(kept: dict[str, Any]) -> str | None:
    """What a record's speeds were taken on, in words; None where it has none."""
    made = _table(kept)
    if not any(figure.values and figure.unit in TIMED for row in made.rows for figure in row.ours.values()):
        return None
    found = _TAKEN_ON.search(made.ours_note)
    assert found is not None, f"the record of Table {made.name} has speeds and does not say what they are of"
    device, precision = found.groups()
    sizes = _SIZES[SCALES[kept["scale"]].size_factor]
    return f"of {'a CPU' if device == 'cpu' else 'a GPU'} in {precision} at {sizes}"


def _held(summary: dict[str, Any]) -> list[str]:
    """The section of what was measured at small scale, if anything was."""
    lines = []
    rows = [
        f"| {says} (`{name}`) | {_SHOWN[one['unit']](one['value'])} | {_interval(one)} | {one['n']} | "
        f"`{one['command']}` |"
        for name, says in _CLAIMS.items()
        if (one := summary.get(name)) is not None
    ]
    if rows:
        head = ["| | value | 95 % interval | seeds | command |", "|---|---|---|---|---|"]
        lines += [*head, *rows, "", _HOW_TO_READ, ""]
    for regime, (_, told, _) in _REGIMES.items():
        if (PAGE.parent / f"progressive_{regime}.png").exists():
            lines += [f"![Top-1 against minutes, and minutes by size: {told}](progressive_{regime}.png)", ""]
    return ["\n".join(["## What holds at small scale", "", *lines])] if lines else []


def _interval(claim: dict[str, Any]) -> str:
    """The interval of a claim. A gain whose interval holds 0 is marked: it may be chance."""
    shown = _SHOWN[claim["unit"]]
    mark = " (holds 0)" if claim["unit"] == "points" and claim["low"] <= 0 <= claim["high"] else ""
    return f"{shown(claim['low'])} to {shown(claim['high'])}{mark}"


def _missing(summary: dict[str, Any], shown: dict[str, dict[str, Any]]) -> list[str]:
    """The section of what was not: of the claims, then of each table's record."""
    lines = [f"- {says}" for name, says in _CLAIMS.items() if name not in summary]
    lines += [f"- {title_of(name)}, {says}" for name, kept in shown.items() for says in _to_measure(kept)]
    return ["\n".join([f"## {TO_BE_MEASURED.capitalize()}", "", *lines, ""])] if lines else []


def _to_measure(kept: dict[str, Any]) -> list[str]:
    """What a table's record does not say: what more than a few steps come to, what it lacks, speeds as the paper's."""
    made, says = _table(kept), []
    cells = [(name, figure) for row in made.rows for name, figure in row.ours.items()]
    if runs := dict.fromkeys(name for name, figure in cells if figure.why == TO_BE_MEASURED):
        says.append(f"of runs of more than a few steps: {'; '.join(runs)}")
    if lacking := _lacking(made):
        says.append(f"not in its record: {'; '.join(lacking)} (`{kept['command']} --record`)")
    theirs = {name for row in made.rows for name in row.paper}
    timed = dict.fromkeys(name for name, figure in cells if figure.unit in TIMED and name in theirs)
    if timed and made.name not in TRAINED and kept["scale"] != "paper":
        again = f"python -m benchmarks.paper {made.name} --scale paper --device cuda --record"
        says.append(f"on a GPU at the paper's sizes and batches: {'; '.join(timed)} (`{again}`)")
    return says


def _lacking(made: Table) -> list[str]:
    """What the paper's table has and a record of ours has not, in the paper's order.

    Columns that neither side of the record has, and "row, column" of single cells. Columns that only the paper's side
    has are ``Table.paper_only``.
    """
    ours, theirs = ({name for row in made.rows for name in getattr(row, side)} for side in ("ours", "paper"))
    lacking = []
    for heading, _ in published.headings(made.name).values():
        beside = heading if heading in ours else minutes_of(heading)
        if beside in ours:
            rows = [row.name for row in made.rows if heading in row.paper and beside not in row.ours]
            lacking += [f"{row}, {beside}" for row in rows]
        elif heading not in theirs:
            lacking.append(heading)
    return lacking


def _table(kept: dict[str, Any]) -> Table:
    """A record as it is shown."""
    made = Table.from_json(kept)
    if made.name in TRAINED and kept["scale"] == "tiny":
        made = replace(made, rows=tuple(_unmeasured(row) for row in made.rows))
    return made


def _section(kept: dict[str, Any]) -> str:
    made = _table(kept)
    lines = [f"## {made.title}", "", f"Paper: {made.paper_note} Ours: {made.ours_note}", ""]
    lines += [markdown_row(made.headings()), markdown_row(["---"] * len(made.headings()))]
    for row in made.rows:
        lines.append(markdown_row([row.name, *(_cell(row, *column) for column in made.columns)]))
    if made.name in _REMARKS:
        lines += ["", _REMARKS[made.name]]
    if made.paper_only:
        lines += ["", f"{NOT_OURS}: {'; '.join(made.paper_only)}."]
    if lacking := _lacking(made):
        lines += ["", f"{_NO_CELL}: {'; '.join(lacking)}."]
    reasons = sorted(
        {
            figure.why
            for row in made.rows
            for figure in row.ours.values()
            if not figure.values and figure.why != TO_BE_MEASURED
        }
    )
    if reasons:
        lines += ["", f"{MISSING}: {'; '.join(reasons)}."]
    made_by = f"`{kept['command']}`, {kept['date']}, {kept['hardware']}, torch {kept['versions']['torch']}."
    return "\n".join([*lines, "", made_by, ""])


def _unmeasured(row: Row) -> Row:
    """The row with what was trained of ours as what is to be measured."""
    return replace(
        row,
        ours={
            name: figure if figure.unit in _UNTRAINED else replace(figure, values=(), why=figure.why or TO_BE_MEASURED)
            for name, figure in row.ours.items()
        },
    )


def _cell(row: Row, column: str, side: str) -> str:
    figure = getattr(row, side).get(column, Measurement())
    return TO_BE_MEASURED if figure.why == TO_BE_MEASURED else str(figure)


def _unmade(name: str) -> str:
    command = f"python -m benchmarks.paper {name} --record"
    return f"## {title_of(name)}\n\nNo record yet, {TO_BE_MEASURED}: `{command}`.\n"


def _tables(names: list[str]) -> str:
    """Several of them in words."""
    *others, last = names
    return f"Tables {', '.join(others)} and {last}" if others else title_of(last)


if __name__ == "__main__":
    write()
