"""docs/benchmarks/paper.md: the paper's tables next to ours, from the committed records.

Run: python -m benchmarks.paper.page

A table shows its record of the largest scale. Accuracies of scale tiny are of a few steps and have no meaning. The page
leaves them out and lists them as "to be measured", with the columns that a record lacks and the speeds that were not
measured at the paper's sizes. A test compares the page with the records.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.paper import published
from benchmarks.paper.reproduce import NAMES, TRAINED, title_of
from benchmarks.paper.scale import SCALES
from benchmarks.paper.table import MISSING, NOT_OURS, TIMED, Measurement, Row, Table, markdown_row, minutes_of
from benchmarks.record import IMAGES, RESULTS, read

PAGE = Path(__file__).parents[2] / "docs/benchmarks/paper.md"
RECORDS = RESULTS / "reproduce"
TO_BE_MEASURED = "to be measured"
# Figures 1 and 5 are drawn from Table 7's record. Title, and which part is ours.
DRAWN = {
    "figure1": (
        published.TABLES["figure1"]["title"],
        "The rings are ours: our parameters at the paper's top-1. All other points are the paper's. Our accuracy and "
        "hours were not measured.",
    ),
    "figure4": (
        "Figure 4, drawn",
        "All values are ours. They are the schedules of the recipes `efficientnetv2_{s,m,l}_paper`.",
    ),
    "figure5": (
        published.TABLES["figure5"]["title"],
        "The rings are ours: our parameters and multiply-adds at the paper's top-1. The last panel has our latency on "
        "the device of its axis. All other points are the paper's. Our accuracy was not measured.",
    ),
}
RECORDED = sorted(set(NAMES) - {"figure1", "figure5"}, key=lambda name: (not name.isdigit(), name.zfill(9)))
_SCALES = ("paper", "small", "tiny")  # the first that is there
_UNTRAINED = ("M", "B", "ms")  # units of what is counted and timed next to the runs
_TITLE = "# Tables of the paper\n"
# Fractions of the paper's image sizes, as scales have them, in words.
_SIZES = {
    0.25: "a quarter of the paper's image sizes",
    0.5: "half the paper's image sizes",
    1.0: "the paper's image sizes",
}
# Words of the records, and those of the page.
_WORDS = (
    ("nothing is trained, so no seeds; ", ""),
    ("; accuracy is not measured here", ""),
    ("a picture's time on", "the time of one image on"),
    ("an image's time on", "the time of one image on"),
    ("Answered is all of", "Evaluated on all of"),
    ("Answered is", "Evaluated on"),
    ("what is at hand here, under data/ or where EFFNETV2_DATA says", "the datasets in data/ or EFFNETV2_DATA"),
    ("a val of the set's own counts", "an existing val split counts"),
    ("the set is not at hand", "the dataset is not available"),
    ("milliseconds of an answer", "milliseconds per inference"),
    ("Of that recipe", "Other values than in this recipe:"),
    (" are others here", ""),
    ("of the sets as it used them", "of the datasets"),
    ("drawn, without figures", "a plot without numbers"),
    ("batches of 64 and a rate in proportion", "a batch size of 64 and a proportional learning rate"),
    ("by other pictures of train", "on other training images"),
    ("regularization, rate and shares", "regularization, learning rate and fractions"),
    ("At random a size", "With random sizes, a size"),
    ("in the place of", "instead of"),
    ("in that of M", "instead of M"),
    ("framing", "crop mode"),
    ("initialisation", "initialization"),
    ("the sets of table 8", "the datasets of Table 8"),
    ("larger pictures want more", "larger images need more"),
    ("Table 6: settings of", "Table 6: hyperparameters of"),
    (" pictures", " images"),
    ("Pictures", "Images"),
    ("network", "model"),
)
# How a record says what its speeds were taken on: "steps on cpu in fp32", "cuda:0, bf16, at 1 of the size".
_TAKEN_ON = re.compile(r"\b(cpu|cuda|mps)(?::\d+)?(?:,| in) (fp32|bf16|fp16)\b")
# Remarks on tables; a test compares their values with the records.
_REMARKS = {
    "3": 'Rows "all 3x3" are ours: fused blocks with kernel 3 instead of the kernel of their stage. In stages 1-3, '
    "kernel 3 is nearer to the paper's parameters and multiply-adds. With more fused stages, the kernels of the "
    "stages are nearer. Here, fusing stages 1-3 gives 1.3 times the speed, stages 1-5 1.4 times and all stages "
    "0.9 times. The paper's V100 has 1.4, 1.4 and 1.3. In fp32, on another processor (model 207), at 96 px and "
    "with a batch size of 5, fusing stages 1-3 gives 1.0 times (`benchmarks/results/reproduce/3_tiny.json`). A "
    "fused block has more multiply-adds. It is faster only if dense convolutions are much faster than depthwise "
    "ones.",
    "5": "One of our runs has 1,000 steps, which are 3.4 epochs. At this length, stronger RandAugment lowers top-1 at "
    "every size. From magnitude 5 to 15, it lowers top-1 less at 144 px than at 64 px in each of the three seeds, "
    "but the interval of the mean includes 0. In the paper it raises top-1 at 192 and 300 px, which these runs do "
    "not show. RandAugment is our preset `monotone`, not that of the official code. Longer runs are from tuning "
    "only, on other training images, with one run per value and a standard error of 1 point. At 128 px, "
    "magnitudes 0, 3.3, 5 and 10 (with dropout 0, 0.067, 0.1 and 0.2) reached 68.4, 69.3, 69.6 and 64.6 % in 60 "
    "epochs of 1,000 images (`benchmarks/results/progressive_paper.json`). The first three reached 70.7, 69.6 and "
    "66.8 % in 20 epochs of 2,400 images (`benchmarks/results/progressive_short/tuned.json`). These runs do not "
    "show a gain from RandAugment.",
    "11": "The paper's 24.0 M parameters are of an earlier S. Its last stage has 272 channels, and its head 1,792 "
    "features. This page counts the S of the paper's Table 4, which the authors released, with 256 and 1,280.",
    "13": "RandAugment is our preset `monotone`, not that of the official code. The interval of the gain with growing "
    "sizes includes 0 ([results](results.md#adaptive-regularization)).",
}
_INTRODUCTION = """\
The paper is [arXiv:2104.00298](https://arxiv.org/abs/2104.00298). In a clone, this command makes a table:

```bash
python -m benchmarks.paper 7 --scale tiny
```

[Reproduce the paper](../how-to/reproduce-the-paper.md#6-make-the-tables) explains the scales. `make reproduce` makes
all tables at scale `tiny`, which only shows that they run.

- **Parameters and multiply-adds** hold on every machine.
- **Speeds** are of the machine below the table. Compare them only within a table.
- **Accuracies** at scale `small` are of few, small images. Compare their order with the paper, not their values.
- **Tables 8, 12 and 13** come from other benchmarks. For Tables 12 and 13, these tune each side first. The commands are
  below the tables. [Results](results.md) has their differences with intervals, conditions and plots.

`python -m benchmarks.paper.page` writes this page from the records in `benchmarks/results/reproduce/`. The option
`--record` writes a record, with its machine, versions and date.
"""
_REST = "[To be measured](#to-be-measured) lists what is missing.\n"
_NO_CELL = "In the paper's table, but not in this record"


def text() -> str:
    """The page."""
    whole = any((RECORDS / f"{name}_paper.json").exists() for name in TRAINED)
    shown = {name: kept for name in RECORDED if (kept := _record(name)) is not None}
    missing = _missing(shown)
    parts = [_TITLE, _reach(shown, whole=whole), _INTRODUCTION, *([_REST] if missing else [])]
    parts += [_section(shown[name]) if name in shown else _unmade(name) for name in RECORDED]
    for name, (title, ours) in DRAWN.items():
        if (IMAGES / f"{name}.png").exists():
            parts.append(
                f"## {title}\n\n![{title}](../images/{name}.png)\n\n{ours}\n\n`python -m benchmarks.paper {name}`\n"
            )
    return "\n".join([*parts, *missing])


def write() -> None:
    """Write the page."""
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
    kinds = [f"{on} ({_tables(names)})" for on, names in taken.items()] if len(taken) > 1 else list(taken)
    reach = "This page is for readers of the EfficientNetV2 paper. Tests check its architectures, hyperparameters and "
    reach += "counts. Its speeds are not checked."
    reach += f" Our speeds of training and inference are {' and '.join(kinds)}." if kinds else ""
    reach += "" if whole else " No accuracy of the paper has been reproduced on ImageNet."
    return textwrap.fill(reach, 120) + "\n"


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


def _missing(shown: dict[str, dict[str, Any]]) -> list[str]:
    """The section of what each table's record lacks."""
    lines = [f"- {title_of(name)}, {says}" for name, kept in shown.items() for says in _to_measure(kept)]
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
    lines = [_plain(f"## {made.title}"), "", _plain(f"Paper: {made.paper_note} Ours: {made.ours_note}"), ""]
    lines += [markdown_row(made.headings()), markdown_row(["---"] * len(made.headings()))]
    for row in made.rows:
        lines.append(markdown_row([row.name, *(_cell(row, *column) for column in made.columns)]))
    if made.name in _REMARKS:
        lines += ["", _REMARKS[made.name] + _released(made.name)]
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
    theirs = (figure for row in made.rows for figure in row.paper.values())
    if any(not figure.values and not figure.word for figure in theirs):
        reasons.append("in a column of the paper: not given")
    if reasons:
        lines += ["", _plain(f"{MISSING}: {'; '.join(reasons)}.")]
    made_by = f"`{kept['command']}`, {kept['date']}, {kept['hardware']}, torch {kept['versions']['torch']}."
    return "\n".join([*lines, "", made_by, ""])


def _released(name: str) -> str:
    """A sentence on the runs of a table with RandAugment as in the official code."""
    file = RESULTS / "released_operations.json"
    kept: dict[str, Any] = read(file) if file.exists() else {"tables": {}}
    rows = kept["tables"].get(name, [])
    if not rows:
        return ""
    shown = ", ".join(f"{100 * row['top1']:.1f} % ({row['row']}, {row['column']})" for row in rows)
    return (
        f" With the operations of the official code, one run per cell without tuning has {shown} (`python -m "
        f"benchmarks.released_operations IMAGENETTE`, {kept['when']}, {kept['hardware']}, "
        f"torch {kept['versions']['torch']})."
    )


def _plain(text: str) -> str:
    """A title or a note of a record in the words of today."""
    for earlier, today in _WORDS:
        text = text.replace(earlier, today)
    return text


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
