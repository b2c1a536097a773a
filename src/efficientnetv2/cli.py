"""The program ``effnetv2``: parse, call, print.

Exit codes: 0 done, 2 wrong use or wrong input (message on stderr), 1 a failure of ours, 130 Ctrl-C.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import typer
from pydantic import ValidationError

from efficientnetv2.base.allocator import keep_freed_memory
from efficientnetv2.base.errors import InputError, OtherProcessError, escaped, rule_of
from efficientnetv2.base.launcher import placed, tell_launcher
from efficientnetv2.base.threads import share_cores
from efficientnetv2.commands import search
from efficientnetv2.commands.area import area
from efficientnetv2.commands.augment import augment
from efficientnetv2.commands.balance import balance
from efficientnetv2.commands.compare import compare
from efficientnetv2.commands.convert import convert
from efficientnetv2.commands.crossval import crossval
from efficientnetv2.commands.demo import demo
from efficientnetv2.commands.evaluate import evaluate
from efficientnetv2.commands.inspect import inspect
from efficientnetv2.commands.map import draw_map
from efficientnetv2.commands.models import models
from efficientnetv2.commands.parsing import Verb, Verbs
from efficientnetv2.commands.plan import plan
from efficientnetv2.commands.predict import predict
from efficientnetv2.commands.recipes import recipes
from efficientnetv2.commands.shards import shards
from efficientnetv2.commands.train import train

# Seconds in which the first process of several says for all of them what is wrong; whoever launched them ends the
# others as soon as one has ended. Ours.
_FIRST_SAYS_S = 3.0

# GDAL's drivers that fetch from a network. A file beside a raster may name what they open.
# Source: GDAL's list of raster drivers.
_NETWORK_DRIVERS = "HTTP,WMS,WCS,WMTS,PLMOSAIC,EEDA,EEDAI,STACTA,STACIT,DAAS"
# What the loader of shared libraries and the start of a thread say where memory runs out.
# Source: glibc, elf/dl-load.c; CPython, Modules/_threadmodule.c.
_OUT_OF_MEMORY = ("failed to map segment from shared object", "can't start new thread")

Params = ParamSpec("Params")
Answer = TypeVar("Answer")


def with_exit_codes(command: Callable[Params, Answer]) -> Callable[Params, Answer]:
    """The command, its foreseen ends turned into messages and exit codes."""

    @functools.wraps(command)
    def guarded(*args: Params.args, **kwargs: Params.kwargs) -> Answer:
        try:
            return command(*args, **kwargs)
        except InputError as error:
            raise _ended(str(error), 2) from error
        except ValidationError as error:
            rules = "; ".join(map(rule_of, error.errors()))
            raise _ended(rules, 2) from error
        except BrokenPipeError:  # whoever read the answer has had enough of it: typer ends without a word
            raise
        except (MemoryError, OSError, ImportError, RuntimeError) as error:
            if _is_out_of_memory(error):
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise _ended(
                    f"out of memory ({reason}). Reduce the batch size, the image size or --workers, or raise the limit "
                    "of this process (ulimit -v).",
                    1,
                ) from error
            if not isinstance(error, OSError):
                raise
            where = f"{error.filename}: " if error.filename else ""
            raise _ended(f"{where}{error.strerror or error}", 2) from error
        except OtherProcessError as elsewhere:
            tell_launcher("effnetv2: another process of the run has failed first.", cause=False)
            raise typer.Exit(1) from elsewhere
        except KeyboardInterrupt as stop:
            raise _ended(" ".join(["stopped.", *map(str, stop.args)]), 130) from stop

    return guarded


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: for values, for a library's code, or for a thread."""
    if isinstance(error, MemoryError) or any(saying in str(error) for saying in _OUT_OF_MEMORY):
        return True
    if "torch" not in sys.modules:
        return isinstance(error, OSError) and error.errno == errno.ENOMEM
    from efficientnetv2.base.memory import is_out_of_memory  # imports PyTorch

    return is_out_of_memory(error)


def by_one_process(command: Callable[Params, Answer]) -> Callable[Params, Answer]:
    """The command, refused where a launcher has started it several times: each would do all of it."""

    @functools.wraps(command)
    def alone(*args: Params.args, **kwargs: Params.kwargs) -> Answer:
        rank, size = placed() or (0, 1)
        if rank > 0:
            time.sleep(_FIRST_SAYS_S)
            raise OtherProcessError
        if size > 1:
            raise InputError(
                f"this command is started once, but a launcher has started it {size} times. Start it without torchrun, "
                "or unset RANK and WORLD_SIZE. Only train, evaluate and predict share their work among processes."
            )
        return command(*args, **kwargs)

    return alone


def with_home(command: Callable[Params, Answer]) -> Callable[Params, Answer]:
    """The command, its paths that begin with ``~`` led home: what stands behind ``--out=`` no shell has looked at."""

    @functools.wraps(command)
    def led(*args: Params.args, **kwargs: Params.kwargs) -> Answer:
        for name, value in kwargs.items():
            kwargs[name] = [_led_home(one) for one in value] if isinstance(value, list) else _led_home(value)
        return command(*args, **kwargs)

    return led


def _led_home(value: Any) -> Any:
    """A path as the user means it; of other words only those that can be nothing but a path, as MODEL may be one."""
    if isinstance(value, Path):
        return Path(os.path.expanduser(value))
    # A ~ alone may as well stand between labels.
    return os.path.expanduser(value) if isinstance(value, str) and "/" in value else value


def _ended(message: str, code: int) -> typer.Exit:
    """The end of the program, its message said."""
    line = escaped(f"effnetv2: {message}", lines=True)
    print(line, file=sys.stderr)
    tell_launcher(line)
    return typer.Exit(code)


app = typer.Typer(
    name="effnetv2",
    cls=Verbs,
    help="Train image classifiers fast: from a folder or CSV of pictures to an honest, explained model.\n\n"
    "Begin with:  effnetv2 train DATA",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
SHARED = (train, evaluate, predict)


def ready(command: Callable[..., Answer]) -> Callable[..., Answer]:
    """The command as the program runs it."""
    return with_exit_codes(with_home(command if command in SHARED else by_one_process(command)))


def _say_version(wanted: bool) -> None:
    if wanted:
        print(
            f"effnetv2 {version('efficientnetv2')} (Python {platform.python_version()}, torch {version('torch')})"
        )
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_say_version, is_eager=True, help="Say the version and end."),
    ] = False,
) -> None:
    """What comes before a command."""


# The groups of docs/commands.md, in its order.
_FIND_OUT = "Find out"
VERBS: dict[str, tuple[Callable[..., None], ...]] = {
    "Look": (inspect, plan, augment, models, recipes),
    "Train": (train, shards, balance),
    "Judge": (evaluate, crossval, compare),
    "Use": (predict, draw_map, area, convert),
    _FIND_OUT: (demo,),
}
for panel, verbs in VERBS.items():
    for verb in verbs:
        app.command("map" if verb is draw_map else None, cls=Verb, rich_help_panel=panel)(ready(verb))
for one in (search.run, search.resume, search.show, search.best, search.export):
    search.search.command(cls=Verb)(ready(one))
app.add_typer(search.search, name="search", cls=Verbs, rich_help_panel=_FIND_OUT)


def main() -> None:
    """Run the program and exit with its code."""
    # Python starts forkserver and spawned processes with -c, which puts the working directory first on their path.
    os.environ["PYTHONSAFEPATH"] = "1"
    keep_freed_memory()
    os.environ.setdefault("GDAL_SKIP", _NETWORK_DRIVERS)
    share_cores()  # commands import PyTorch, which reads once how its threads wait
    _leave_out_libraries()
    app()


def _leave_out_libraries() -> None:
    """Keep warnings of libraries off the screen, unless asked for: ``python -W default``, ``TORCH_LOGS``.

    Errors of libraries come through, and so do warnings of this package, each in a line.
    """
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", module="efficientnetv2")
        warnings.formatwarning = lambda message, *_, **__: f"Warning: {message}\n"
    if logging.lastResort is not None:
        logging.lastResort.setLevel(logging.ERROR)
    os.environ.setdefault("TORCH_LOGS", "-all")  # warnings, which PyTorch shows by a handler of its own
    # A Jupyter kernel hands its own down, which may not be installed here. Every command draws into files.
    os.environ["MPLBACKEND"] = "agg"
