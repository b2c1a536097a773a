"""What a person sees: lines, tables and progress bars. Results go to stdout, warnings and errors to stderr."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from textwrap import fill
from typing import Any, Self

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn
from rich.table import Table

from efficientnetv2.utils.errors import escape_controls, format_duration
from efficientnetv2.utils.logs import attached, reported_to, spelling

_NUMBER = re.compile(r"|off|[\d,]*\.?\d+(e-?\d+)?( [GM])?")  # in a column of numbers, with gaps
_GAP = 2  # spaces between two columns
# Where no bar can be drawn, as in the log of a job: seconds until the first line in its place, and between lines. Ours.
_FIRST_S, _EVERY_S = 60.0, 300.0
_LINE = 100  # characters of sentences: longer lines are hard to read
_INDENT = " " * 4


class Screen:
    """Where a command prints. Within its context, it shows the log and the progress of the package.

    ``quiet``: lines go to stderr. ``verbose``: details (level DEBUG) too.
    """

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        self.notes = _console(stderr=quiet)
        self._level = logging.DEBUG if verbose else logging.INFO
        self._spell = spelling.get()  # a line may come from a thread, which has no context

    def __enter__(self) -> Self:
        self._contexts = ExitStack()
        self._contexts.enter_context(attached(_Printed(self, self._level)))
        self._contexts.enter_context(reported_to(self.counting))
        return self

    def __exit__(self, *error: object) -> None:
        self._contexts.close()

    def warn(self, line: str) -> None:
        """Print a line on stderr."""
        _console(stderr=True).print(self._printable(self._spell(line)))

    def say(self, line: str) -> None:
        """Print a line of plain text; rich puts it above a progress bar."""
        self.notes.print(self._printable(self._spell(line)))

    def _printable(self, text: str) -> str:
        """The text with what the screen cannot show escaped."""
        encoding, text = self.notes.encoding, escape_controls(text, lines=True)
        return text.encode(encoding, "backslashreplace").decode(encoding)

    @contextmanager
    def counting(self, what: str, total: int | None, unit: str = "images") -> Iterator[Callable[[int], None]]:
        """Show a progress bar, and without a total that something is under way; see ``utils.logs``."""
        if total is None:
            with self.notes.status(what) if self.notes.is_interactive else nullcontext():
                yield lambda done: None
            return
        with Bar(self, MofNCompleteColumn(), what=what, total=total) as bar:
            started = time.perf_counter()

            def count(done: int) -> None:
                speed = done / max(1e-9, time.perf_counter() - started)
                left = f"{format_duration((total - done) / max(1e-9, speed))} left"
                bar.update(completed=done, speed=f"{speed:.0f} {unit}/s", left=left)
                if bar.line_is_due():
                    self.say(f"{what}: {done:,} of {total:,}, {speed:.0f} {unit}/s, {left}")

            yield count

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        """Print a table whose numbers are aligned to the right; no word in it is ever cut.

        On a wide terminal its last column is folded between words. Elsewhere every row is one line.
        """
        title, columns = self._printable(title), [self._printable(name) for name in columns]
        rows = [[self._printable(escape_controls(cell)) for cell in row] for row in rows]
        lines = [columns, *rows]
        widths = [max(cell_len(row[index]) for row in lines) for index in range(len(columns))]
        numeric = [all(_NUMBER.fullmatch(row[index]) for row in rows) for index in range(len(columns))]
        longest_word = max(cell_len(word) for row in lines for word in row[-1].split(" "))
        room = self.notes.width - sum(widths[:-1]) - _GAP * (len(columns) - 1)
        if self.notes.is_terminal and room >= longest_word:
            widths[-1] = min(widths[-1], room)
            # Between two columns the box has a line of spaces: with the padding, _GAP.
            folded = Table(
                title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD,
                show_edge=False, pad_edge=False, padding=(0, _GAP - 1, 0, 0)
            )  # fmt: skip
            for column, width, right in zip(columns, widths, numeric, strict=True):
                folded.add_column(column, width=width, justify="right" if right else "left")
            for row in rows:
                folded.add_row(*row)
            self.notes.print(folded)
            return
        self.notes.print(title)
        for row in lines:
            cells = [
                cell.rjust(width) if right else set_cell_size(cell, width)
                for cell, width, right in zip(row, widths, numeric, strict=True)
            ]
            self.notes.print((" " * _GAP).join(cells).rstrip())

    def entries(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        """Print a table whose last column has sentences: on a terminal each row is a few lines."""
        if not self.notes.is_terminal:
            self.table(title, columns, rows)
            return
        width = max(min(_LINE, self.notes.width), len(_INDENT) + 1)
        self.notes.print(title)
        for first, *cells, last in rows:
            facts = [f"{column}: {cell}" for column, cell in zip(columns[1:-1], cells, strict=True) if cell]
            self.notes.print(f"\n{first}", style="bold")
            for text in filter(None, ("; ".join(facts), last)):
                folded = fill(
                    text, width, initial_indent=_INDENT, subsequent_indent=_INDENT,
                    break_long_words=False, break_on_hyphens=False
                )  # fmt: skip
                self.notes.print(folded)


class Bar:
    """A progress bar below the lines that are printed; where none can be drawn, lines are due now and then."""

    def __init__(
        self, screen: Screen, counter: ProgressColumn, *, what: str = "starting", total: int | None = None
    ) -> None:
        self._console = screen.notes
        self._next = time.perf_counter() + _FIRST_S
        before, *after = (TextColumn(f"{{task.fields[{name}]}}", markup=False) for name in ("what", "speed", "left"))
        # Transient: else each bar would leave an empty line.
        self._progress = Progress(
            before, BarColumn(bar_width=24), counter, *after,
            console=self._console, transient=True, disable=not self._console.is_interactive
        )  # fmt: skip
        self._task = self._progress.add_task("", what=what, speed="", left="", total=total)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def update(self, **fields: Any) -> None:
        """Show ``completed`` of ``total``, and the texts ``what``, ``speed`` and ``left``."""
        self._progress.update(self._task, **fields)

    def line_is_due(self) -> bool:
        """Whether to print a line in the place of a bar that nobody sees; then none is due for a while."""
        now = time.perf_counter()
        if self._console.is_terminal or now < self._next:
            return False
        self._next = now + _EVERY_S
        return True


class _Printed(logging.Handler):
    """Prints the log of the package on a screen."""

    def __init__(self, screen: Screen, level: int) -> None:
        super().__init__(level)
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        """Print a line; an error in doing so is the command's."""
        show = self._screen.warn if record.levelno >= logging.WARNING else self._screen.say
        show(record.getMessage())


def _console(*, stderr: bool) -> Console:
    return Console(stderr=stderr, highlight=False, soft_wrap=True, markup=False, emoji=False)


def print_json(value: Any) -> None:
    """Print the result of a command with ``--json``: one JSON value on stdout."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
