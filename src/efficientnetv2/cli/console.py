"""What a person sees: lines, tables and progress bars. Answers go to stdout, the rest to stderr."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from textwrap import fill
from types import TracebackType
from typing import Any, Self

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from efficientnetv2.progressive.schedule import Setting
from efficientnetv2.utils.errors import escaped

_NUMBER = re.compile(r"|off|[\d,]*\.?\d+(e-?\d+)?( [GM])?")  # of a column of numbers, with gaps
_GAP = 2  # spaces between two columns
# Where no bar can be drawn, as in the log of a job: seconds until the first line in its place, and between lines. Ours.
_FIRST_S, _EVERY_S = 60.0, 300.0
_LINE = 100  # of sentences: longer lines are hard to read
_INDENT = " " * 4


class Screen:
    """Where a command writes.

    Args:
        quiet: with ``--json``: only the answer, on stdout; notes go to stderr.
        mute: nothing at all: another process of the run says it.
        verbose: show details too.
    """

    def __init__(self, *, quiet: bool = False, mute: bool = False, verbose: bool = True) -> None:
        self.notes = Console(
            stderr=quiet, quiet=mute, highlight=False, soft_wrap=True, markup=False, emoji=False
        )
        self._verbose = verbose
        self._bar: Progress | None = None
        self._said: list[str] = []

    def say(self, line: str) -> None:
        """A line of plain text, above the progress bar if there is one."""
        self._said.append(line)
        self._print(line)

    def detail(self, line: str) -> None:
        """A line that only a verbose screen shows; a run's log has it, see ``taken``."""
        if self._verbose:
            self.say(line)
        else:
            self._said.append(line)

    def taken(self) -> list[str]:
        """All lines since the last call, details too: for a log that is made later than they were said."""
        lines, self._said = self._said, []
        return lines

    @contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """Within, a terminal shows what is being done; elsewhere nothing is shown."""
        with self.notes.status(what) if self.notes.is_interactive else nullcontext():
            yield

    def _print(self, line: str) -> None:
        """The same in the place of a bar, which a run among many has too that keeps its lines to itself."""
        (self._bar.console if self._bar else self.notes).print(self._writable(line))

    def _writable(self, text: str) -> str:
        """What the screen can't take escaped: control characters, and bytes of a file's name that are no letters."""
        encoding, text = self.notes.encoding, escaped(text, lines=True)
        return text.encode(encoding, "backslashreplace").decode(encoding)

    @contextmanager
    def counting(self, what: str, total: int, unit: str = "images") -> Iterator[Callable[[int], None]]:
        """A bar of pictures done, or of other units; yields what to call with their number so far."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
        )
        with _passing(self.notes, columns) as bar:
            task = bar.add_task(what, total=total, speed="")
            started, lines = time.perf_counter(), _Lines(self)

            def counted(done: int) -> None:
                speed = done / max(1e-9, time.perf_counter() - started)
                bar.update(task, completed=done, speed=f"{speed:.0f} {unit}/s")
                if lines.due():
                    left = duration((total - done) / max(1e-9, speed))
                    self._print(f"{what}: {done:,} of {total:,}, {speed:.0f} {unit}/s, {left} left")

            yield counted

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        """A table whose numbers are aligned to the right; no word in it is ever cut.

        On a terminal that is wide enough it is drawn, its last column folded between words if need be. Elsewhere,
        and so where another program reads it, every row is one line.

        Args:
            title: in a line above.
            columns: their names.
            rows: as many cells each.
        """
        title, columns = self._writable(title), [self._writable(name) for name in columns]
        rows = [[self._writable(escaped(cell)) for cell in row] for row in rows]
        whole = [columns, *rows]
        widths = [max(cell_len(row[place]) for row in whole) for place in range(len(columns))]
        numeric = [all(_NUMBER.fullmatch(row[place]) for row in rows) for place in range(len(columns))]
        longest_word = max(cell_len(word) for row in whole for word in row[-1].split(" "))
        room = self.notes.width - sum(widths[:-1]) - _GAP * (len(columns) - 1)
        if self.notes.is_terminal and room >= longest_word:
            widths[-1] = min(widths[-1], room)
            self.notes.print(_drawn(title, columns, rows, widths, numeric))
            return
        self.notes.print(title)
        for row in whole:
            aligned = zip(row, widths, numeric, strict=True)
            cells = [
                set_cell_size(cell, width) if not right else cell.rjust(width)
                for cell, width, right in aligned
            ]
            self.notes.print((" " * _GAP).join(cells).rstrip())

    def entries(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        """A table whose last column is of sentences: on a terminal each row is a few lines, folded between words.

        Elsewhere it is a table like others: every row is one line.

        Args:
            title: in a line above.
            columns: their names; a cell between the first and the last is said with its column's, an empty one not.
            rows: as many cells each.
        """
        if not self.notes.is_terminal:
            self.table(title, columns, rows)
            return
        width = max(min(_LINE, self.notes.width), len(_INDENT) + 1)
        self.notes.print(title)
        for first, *cells, last in rows:
            facts = [f"{column}: {cell}" for column, cell in zip(columns[1:-1], cells, strict=True) if cell]
            self.notes.print(f"\n{first}", style="bold")
            for text in filter(None, ("; ".join(facts), last)):
                self.notes.print(
                    fill(
                        text,
                        width,
                        initial_indent=_INDENT,
                        subsequent_indent=_INDENT,
                        break_long_words=False,
                        break_on_hyphens=False,
                    )
                )


class Aside(Screen):
    """The screen of a run among many: its bars, and its lines only where nobody has said the like before.

    Args:
        screen: of the whole.
        speaking: let lines and tables through.
    """

    def __init__(self, screen: Screen, *, speaking: bool) -> None:
        super().__init__(mute=True, verbose=screen._verbose)
        self.notes, self._speaking = screen.notes, speaking

    def say(self, line: str) -> None:
        """A line, if this run may speak."""
        if self._speaking:
            super().say(line)
        else:
            self._said.append(line)

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        """A table, likewise."""
        if self._speaking:
            super().table(title, columns, rows)


def _passing(console: Console, columns: Iterable[ProgressColumn]) -> Progress:
    """A bar that is gone when it is done; where none can be drawn, nothing: else each would leave an empty line.

    Args:
        console: to draw on.
        columns: of the bar.
    """
    return Progress(*columns, console=console, transient=True, disable=not console.is_interactive)


class _Lines:
    """When a line is due in the place of a bar that nobody sees.

    Args:
        screen: to write on.
    """

    def __init__(self, screen: Screen) -> None:
        self._bar_shown = screen.notes.is_terminal
        self._next = time.perf_counter() + _FIRST_S

    def due(self) -> bool:
        """Whether to say one now; then none is for a while."""
        now = time.perf_counter()
        if self._bar_shown or now < self._next:
            return False
        self._next = now + _EVERY_S
        return True


def _drawn(
    title: str, columns: list[str], rows: list[list[str]], widths: list[int], numeric: list[bool]
) -> Table:
    # Between two columns the box has a line of spaces: with the padding, _GAP.
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, _GAP - 1, 0, 0),
    )
    for column, width, right in zip(columns, widths, numeric, strict=True):
        table.add_column(column, width=width, justify="right" if right else "left")
    for row in rows:
        table.add_row(*row)
    return table


def answer(value: Any) -> None:
    """The answer of ``--json``: one JSON value on stdout."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


class StandingBar:
    """A progress bar that stands below the lines that are said while its block runs.

    Args:
        screen: to write on.
        counted: how what is done is shown; its fields: ``what`` before it, ``beside`` it, and ``left``, the time.
    """

    def __init__(self, screen: Screen, counted: ProgressColumn) -> None:
        self.screen = screen
        columns = (
            TextColumn("{task.fields[what]}", markup=False),
            BarColumn(bar_width=24),
            counted,
            TextColumn("{task.fields[beside]}", markup=False),
            TextColumn("{task.fields[left]}", markup=False),
        )
        self._bar = _passing(screen.notes, columns)
        self._task = self._bar.add_task("", what="starting", beside="", left="", total=None)

    def __enter__(self) -> Self:
        self._bar.start()
        self.screen._bar = self._bar
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.screen._bar = None
        self._bar.stop()


class TrainingBar(StandingBar):
    """A progress bar of a training run: pictures a second, the current setting, time left."""

    def __init__(self, screen: Screen) -> None:
        super().__init__(screen, TaskProgressColumn())
        self._lines = _Lines(screen)

    def progress(
        self, done: int, of: int, setting: Setting, images_per_s: float, seconds_left: float, loss: float
    ) -> None:
        """Show how far the run has come."""
        dropout = "" if setting.dropout is None else f", dropout {setting.dropout:.2g}"
        augment = "" if setting.randaugment is None else f", RandAugment {setting.randaugment:.3g}"
        mixup = f", mixup {setting.mixup_alpha:.2g}" if setting.mixup_alpha else ""
        what = f"{setting.image_px} px{dropout}{augment}{mixup}, loss {loss:.3f}"
        speed, left = f"{images_per_s:.0f} images/s", f"{duration(seconds_left)} left"
        over = done == of  # what follows, answering and reporting, has lines of its own
        self._bar.update(
            self._task, completed=done, total=of, what=what, beside=speed, left="" if over else left
        )
        if not over and self._lines.due():
            self.screen._print(f"{done / of:.0%}: {what}, {speed}, {left}")


def duration(seconds: float) -> str:
    """Seconds as people say them: ``42 s``, ``3 min 20 s``, ``2 h 05 min``."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
