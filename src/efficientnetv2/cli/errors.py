"""How a command ends: messages on stderr, and exit codes."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType

import typer
from pydantic import ValidationError

from efficientnetv2.utils.errors import InputError, OtherProcessError, escape_controls, format_rule
from efficientnetv2.utils.logs import spelling
from efficientnetv2.utils.processes import report_to_torchrun
from efficientnetv2.utils.shell import shell_join

# Messages of the loader of shared libraries and of the start of a thread, if memory runs out.
# Source: glibc, elf/dl-load.c; CPython, Modules/_threadmodule.c.
_OUT_OF_MEMORY = ("failed to map segment from shared object", "can't start new thread")


@contextmanager
def ends(options: Mapping[str, str] = MappingProxyType({})) -> Iterator[None]:
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
