"""What a person sees: lines, tables and progress bars. Answers go to stdout, the rest to stderr."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
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
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from efficientnetv2.utils.errors import escape_controls, format_duration
from efficientnetv2.utils.logs import attached
from efficientnetv2.utils.progress import reported_to

_NUMBER = re.compile(r"|off|[\d,]*\.?\d+(e-?\d+)?( [GM])?")  # of a column of numbers, with gaps
_GAP = 2  # spaces between two columns
# Where no bar can be drawn, as in the log of a job: seconds until the first line in its place, and between lines. Ours.
_FIRST_S, _EVERY_S = 60.0, 300.0
_LINE = 100  # of sentences: longer lines are hard to read
_INDENT = " " * 4


class Screen:
    """Where a command writes. Within its context, it shows the log and the progress of the package.

    Warnings go to stderr.

    Args:
        quiet: With ``--json``: only the result on stdout. Lines go to stderr.
        verbose: Show details (level DEBUG) too. A run's log.txt has them in any case.
    """

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        self.notes = Console(stderr=quiet, highlight=False, soft_wrap=True, markup=False, emoji=False)
        self._level = logging.DEBUG if verbose else logging.INFO
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(attached(_Shown(self, self._level)))
            stack.enter_context(reported_to(self.counting))
            self._leave = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave.close()

    def warn(self, line: str) -> None:
        """Print a line on stderr."""
        Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False).print(
            self._writable(line)
        )

    def say(self, line: str) -> None:
        """Print a line of plain text, above the progress bar if there is one."""
        (self._bar.console if self._bar else self.notes).print(self._writable(line))

    def _writable(self, text: str) -> str:
        """What the screen can't take escape_controls: control characters, and bytes of a file's name that are no letters."""
        encoding, text = self.notes.encoding, escape_controls(text, lines=True)
        return text.encode(encoding, "backslashreplace").decode(encoding)

    @contextmanager
    def counting(self, what: str, total: int | None, unit: str = "images") -> Iterator[Callable[[int], None]]:
        """Show a progress bar, and without a total that something is under way; see ``utils.progress``."""
        if total is None:
            with self.notes.status(what) if self.notes.is_interactive else nullcontext():
                yield lambda done: None
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
        )
        with passing(self.notes, columns) as bar:
            task = bar.add_task(what, total=total, speed="")
            started, lines = time.perf_counter(), Lines(self)

            def counted(done: int) -> None:
                speed = done / max(1e-9, time.perf_counter() - started)
                bar.update(task, completed=done, speed=f"{speed:.0f} {unit}/s")
                if lines.due():
                    left = format_duration((total - done) / max(1e-9, speed))
                    self.say(f"{what}: {done:,} of {total:,}, {speed:.0f} {unit}/s, {left} left")

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
        rows = [[self._writable(escape_controls(cell)) for cell in row] for row in rows]
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


class _Shown(logging.Handler):
    """Prints the log of the package on a screen."""

    def __init__(self, screen: Screen, level: int) -> None:
        super().__init__(level)
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        """Print a line; an error in doing so is the command's."""
        show = self._screen.warn if record.levelno >= logging.WARNING else self._screen.say
        show(record.getMessage())


def passing(console: Console, columns: Iterable[ProgressColumn]) -> Progress:
    """A bar that is gone when it is done; where none can be drawn, nothing: else each would leave an empty line.

    Args:
        console: to draw on.
        columns: of the bar.
    """
    return Progress(*columns, console=console, transient=True, disable=not console.is_interactive)


class Lines:
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


def print_json(value: Any) -> None:
    """Print the result of a command with ``--json``: one JSON value on stdout."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
