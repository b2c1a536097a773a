"""What a user sees: lines, tables, progress bars, and how a command ends. Warnings and errors go to stderr."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from textwrap import fill
from typing import Any, Self, TextIO

import typer
from pydantic import ValidationError
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn
from rich.table import Table

from efficientnetv2.utils.errors import InputError, OtherProcessError, escape_controls, format_duration, format_rule
from efficientnetv2.utils.logs import attached, reported_to, spelling
from efficientnetv2.utils.processes import report_to_torchrun
from efficientnetv2.utils.shell import shell_join

_NUMBER = re.compile(r"|off|[\d,]*\.?\d+(e-?\d+)?( [GM])?")  # in a column of numbers, with gaps
_GAP = 2  # spaces between two columns
# Where no bar can be drawn, as in the log of a job: seconds until the first line in its place, and between lines. Ours.
_FIRST_S, _EVERY_S = 60.0, 300.0
_LINE = 100  # characters of sentences: longer lines are hard to read
_INDENT = " " * 4
# Messages of the loader of shared libraries and of the start of a thread, if memory runs out.
# Source: glibc, elf/dl-load.c; CPython, Modules/_threadmodule.c.
_OUT_OF_MEMORY = ("failed to map segment from shared object", "can't start new thread")


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
            spinner = "dots" if self.notes.encoding.startswith("utf") else "line"
            status = self.notes.status(self._printable(what), spinner=spinner)
            with status if self.notes.is_interactive else nullcontext():
                yield lambda done: None
            return
        with Bar(self, MofNCompleteColumn()) as bar:
            bar.update(what=what, total=total)
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
    """A progress bar below the lines that are printed, from its first update until its block ends.

    Where none can be drawn, lines are due now and then.
    """

    def __init__(self, screen: Screen, counter: ProgressColumn) -> None:
        self.screen, self._counter = screen, counter
        self._progress: Progress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None  # a further run has a bar of its own

    def update(self, **fields: Any) -> None:
        """Show the bar with ``completed`` of ``total``, and the texts ``what``, ``speed`` and ``left``."""
        if self._progress is None:
            self._progress = self._new()
        self._progress.update(self._task, **fields)
        self._progress.start()  # unless it has

    def _new(self) -> Progress:
        self._next = time.perf_counter() + _FIRST_S
        before, *after = (TextColumn(f"{{task.fields[{name}]}}", markup=False) for name in ("what", "speed", "left"))
        # Transient: else each bar would leave an empty line.
        progress = Progress(
            before, BarColumn(bar_width=24), self._counter, *after,
            console=self.screen.notes, transient=True, disable=not self.screen.notes.is_interactive
        )  # fmt: skip
        self._task = progress.add_task("", what="starting", speed="", left="", total=None)
        return progress

    def line_is_due(self) -> bool:
        """Whether to print a line in the place of a bar that nobody sees; then none is due for a while."""
        now = time.perf_counter()
        if self.screen.notes.is_interactive or now < self._next:
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


class _Console(Console):
    """A console whose reader, terminal or disk may fail: the work goes on, and its files are written."""

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except OSError as error:  # rich catches only a broken pipe
            self.on_broken_pipe()
            if not self.stderr:
                _console(stderr=True).print(f"stdout: {error.strerror or error}. Nothing more is printed there.")

    def on_broken_pipe(self) -> None:
        """Print nothing from now on, where rich ends the program."""
        self.quiet = True
        _silence(sys.stderr if self.stderr else sys.stdout)


def _silence(stream: TextIO) -> None:
    """Let all that a stream has and gets go nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def _console(*, stderr: bool) -> Console:
    return _Console(stderr=stderr, highlight=False, soft_wrap=True, markup=False, emoji=False)


def print_json(value: Any) -> None:
    """Print the result of a command with ``--json``: one JSON value on stdout. If that fails, the work goes on."""
    if sys.stdout is None:  # closed
        return
    try:
        sys.stdout.write(json.dumps(value, indent=2) + "\n")
        sys.stdout.flush()
    except OSError as error:
        _silence(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            _console(stderr=True).print(f"stdout: {error.strerror or error}. The JSON is lost.")


@contextmanager
def ends(options: Mapping[str, str]) -> Iterator[None]:
    """Turn foreseen errors into messages, which name ``options``, and exit codes."""
    try:
        with spelling_as(options):
            yield
    except InputError as error:
        raise typer.Exit(end(*_with_hint(spelled(str(error), options)), code=2)) from error
    except ValidationError as error:
        raise typer.Exit(end(spelled("; ".join(map(format_rule, error.errors())), options), code=2)) from error
    except BrokenPipeError:  # the reader of the output has ended: typer ends without a message
        raise
    except (MemoryError, OSError, ImportError, RuntimeError) as error:
        if _is_out_of_memory(error):
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            hint = "Reduce the batch size, the image size or --workers, or raise the process limit (ulimit -v)."
            raise typer.Exit(end(f"out of memory ({reason})", hint, code=1)) from error
        if "no kernel image is available" in str(error):
            hint = "Install PyTorch for an older CUDA (https://pytorch.org/get-started/locally), or use --device cpu."
            raise typer.Exit(end("this PyTorch is not built for this GPU", hint, code=1)) from error
        if not isinstance(error, OSError):
            raise
        where = f"{error.filename}: " if error.filename else ""
        raise typer.Exit(end(f"{where}{error.strerror or error}", code=2)) from error
    except OtherProcessError as elsewhere:
        report_to_torchrun("error: another process of the run has failed first.", cause=False)
        raise typer.Exit(1) from elsewhere
    except KeyboardInterrupt as stop:
        message = spelled(" ".join(["stopped.", *map(str, stop.args)]), options)
        raise typer.Exit(end(message, code=130, kind="")) from stop


@contextmanager
def spelling_as(options: Mapping[str, str]) -> Iterator[None]:
    """Show parameters by ``options``, their names on the command line, on the screen and in ``log.txt``."""
    token = spelling.set(partial(spelled, options=options))
    try:
        yield
    finally:
        spelling.reset(token)


def end(message: str, hint: str | None = None, *, code: int, kind: str = "error: ") -> int:
    """Print the last message of the program; returns the exit code."""
    text = escape_controls(f"{kind}{message}" + (f"\nhint: {hint}" if hint else ""), lines=True)
    print(text, file=sys.stderr)
    report_to_torchrun(text.replace("\nhint: ", " "))  # which shows one line
    return code


def spelled(message: str, options: Mapping[str, str]) -> str:
    """A message of the library in the terms of the running command.

    A parameter in backticks, or before a colon at the beginning, becomes its option in ``options``. A recipe field
    with a value becomes ``--set``.
    """
    field = re.match(r"[a-z]\w*(?=: )", message)
    if field and options.get(field[0], "").startswith("--"):
        message = f"{options[field[0]]}{message[field.end() :]}"
    return re.sub(r"`([^`\n]+)`", lambda quoted: _spelled_name(quoted[1], options), message)


def _spelled_name(text: str, options: Mapping[str, str]) -> str:
    """The option for ``epochs``, ``epochs=3``, ``resume=True`` or ``minival=0.1``; any other text stays."""
    name, _, value = text.partition("=")
    if name in options:
        return shell_join([options[name], value]) if value not in ("", "True") else options[name]
    if value and "set" in options:
        from efficientnetv2.training.recipe_fields import all_fields  # imports PyTorch

        if name in {field.name for field in all_fields()}:
            return shell_join(["--set", text])
    return text


def _with_hint(message: str) -> tuple[str, str | None]:
    """A message without its last sentence, the fix, and that sentence."""
    if "\n" in message or len(parts := re.split(r"(?<=[^.][.?!])\s+(?=[A-Z])", message)) < 2:
        return message, None
    return " ".join(parts[:-1]), parts[-1]


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: for values, for a library's code, or for a thread."""
    if isinstance(error, MemoryError) or any(text in str(error) for text in _OUT_OF_MEMORY):
        return True
    if "torch" not in sys.modules:
        return isinstance(error, OSError) and error.errno == errno.ENOMEM
    from efficientnetv2.utils.memory import is_out_of_memory  # imports PyTorch

    return is_out_of_memory(error)
