"""How the program takes its words: what typer says of them, in ours."""

from __future__ import annotations

import errno
import functools
import logging
import os
import platform
import re
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import typer
from pydantic import ValidationError
from typer import BadParameter
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from efficientnetv2.cli import search
from efficientnetv2.cli.area import area
from efficientnetv2.cli.augment import augment
from efficientnetv2.cli.balance import balance
from efficientnetv2.cli.check import inspect
from efficientnetv2.cli.compare import compare
from efficientnetv2.cli.convert import convert
from efficientnetv2.cli.crossval import crossval
from efficientnetv2.cli.demo import demo
from efficientnetv2.cli.evaluate import evaluate
from efficientnetv2.cli.map import draw_map
from efficientnetv2.cli.models import models
from efficientnetv2.cli.plan import plan
from efficientnetv2.cli.predict import predict
from efficientnetv2.cli.recipes import recipes
from efficientnetv2.cli.shards import shards
from efficientnetv2.cli.train import train
from efficientnetv2.utils.cpu import keep_freed_memory, limit_openmp_spin
from efficientnetv2.utils.errors import InputError, OtherProcessError, escape_controls, format_rule
from efficientnetv2.utils.shell import rank_and_world_size, report_to_torchrun, shell_join

# Options of timm, Ultralytics and Hugging Face whose value one of ours takes, where a command has it. Ours.
_ALIASES = {
    **dict.fromkeys(("--imgsz", "--img-size", "--image-size"), "--image-px"),
    **dict.fromkeys(("--batch", "--batch-size", "-b"), "--batch-images"),
    **dict.fromkeys(("--output", "--output-dir", "-o"), "--out"),
    **dict.fromkeys(("--num-workers", "-j"), "--workers"),
    "--arch": "--model",
    **dict.fromkeys(("--checkpoint", "--initial-checkpoint"), "--weights"),
    **dict.fromkeys(("--cfg", "--config"), "--recipe"),
    **dict.fromkeys(("--conf", "--threshold"), "--abstain-below"),
    "--format": "--to",
    **dict.fromkeys(("--num-folds", "--n-splits", "-k"), "--folds"),
}
# The same of options without a value, and all that stands for each.
_FLAGS = {
    "--pretrained": ("--weights", "auto"),
    "--no-pretrained": ("--weights", "none"),
    "--tta": ("--views", "symmetries"),
}
# What to do instead of options that have no equal here. Ours.
_INSTEAD = {
    "--amp": "The precision is chosen by itself. To set it: --set precision=bf16",
    **dict.fromkeys(("--project", "--name", "--experiment"), "The folder of the run is --out FOLDER"),
    **dict.fromkeys(
        ("--gpus", "--gpu"),
        "The GPU is --device cuda:0. For several: torchrun --nproc-per-node N -m efficientnetv2 train",
    ),
    "--early-stopping": "Early stopping is --set minival=0.1 --set patience=5",
    **dict.fromkeys(("--num-classes", "--nc"), "The classes are read from DATA. Leave the option out"),
    "--optimizer": "The optimizer is --set optimizer.kind=NAME: sgd, adamw or rmsprop",
    "--no-augment": "Augmentation is off with --set progressive.randaugment=null --set augment.flip=none",
    "--tta": "Test-time augmentation is --set eval_views=symmetries",
}
# Options that say what is an argument here.
_ARGUMENTS = {
    **dict.fromkeys(("--data", "--data-dir", "--train-dir", "--source", "--input"), "DATA"),
    **dict.fromkeys(("--model", "-m", "--checkpoint", "--weights"), "MODEL"),
}
# Commands by what other tools call theirs.
_COMMANDS = {
    **dict.fromkeys(("val", "validate", "eval", "test"), "evaluate"),
    **dict.fromkeys(("classify", "infer", "inference"), "predict"),
    **dict.fromkeys(("fit", "finetune", "fine-tune"), "train"),
    **dict.fromkeys(("export", "import"), "convert"),
    **dict.fromkeys(("cv", "cross-validate", "crossvalidate", "kfold"), "crossval"),
    **dict.fromkeys(("check", "analyze", "analyse"), "inspect"),
    **dict.fromkeys(("config", "configs", "recipe"), "recipes"),
    "help": "--help",
    "version": "--version",
}
# What typer raises of words that do not go together; it gives no name to it of its own.
_WRONG_USE: Any = BadParameter.__mro__[1]


class _Untyped:
    """A command whose flags, ``--help`` too, show no type: they take no value, of whatever type."""

    def get_params(self, ctx: Any) -> list[Any]:
        """See ``TyperCommand``."""
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for option in params:
            if isinstance(option, TyperOption) and option.is_flag and option.metavar is None:
                option.metavar = ""
        return params


class Verb(_Untyped, TyperCommand):
    """A command whose flags show no type, and whose wrong values are told by our rules."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The options and arguments, read; those of other tools that mean the same are taken as ours, with a note.

        Raises:
            BadParameter: a value that its option does not take; names the value and the rule.
        """
        given = self._with_our_names(args)
        try:
            return super().parse_args(ctx, list(given))  # for reading takes from the list
        except BadParameter as error:
            if isinstance(error.__cause__, ValidationError):
                problem = error.__cause__.errors()[0]
                error.message = f"it is {problem['input']!r}, but {format_rule(problem)}."
            raise
        except _WRONG_USE as error:
            if hasattr(error, "possibilities"):  # there is no such option
                if instead := self._instead(ctx, error.option_name, given):
                    error.message += f". {instead}"
                    error.possibilities = None
            elif apart := _taken_apart(given):
                error.message += (
                    f". The shell has taken --set {apart} apart: put a value with spaces or braces in quotes, "
                    'as in --set "progressive.image_px={start: 64, end: 128}"'
                )
            elif assigned := [word for word in given if re.match(r"[a-z_]\w*=", word)]:
                name, _, value = assigned[0].partition("=")
                ours = self._ours(f"--{name.replace('_', '-')}", value)
                if ours is not None and "unexpected extra" in error.message:
                    error.message += f". An option begins with two dashes: {shell_join(ours)}"
            elif "unexpected extra" in error.message and "DATA" in self._arguments():
                error.message += (
                    f". {ctx.command_path} takes one DATA. For several images, give their folder, or a CSV file with a "
                    "column path"
                )
            raise

    def _arguments(self) -> list[str]:
        """What the command calls its arguments."""
        return [str(param.metavar or param.name) for param in self.params if isinstance(param, TyperArgument)]

    def _with_our_names(self, args: Sequence[str]) -> list[str]:
        """The words of a command line, options of other tools replaced by ours; a line says each."""
        takes_value = {
            name: not option.is_flag
            for option in self.params
            if isinstance(option, TyperOption)
            for name in (*option.opts, *option.secondary_opts)
        }
        words: list[str] = []
        rest = list(args)
        while rest:
            word = rest.pop(0)
            name, equals, value = word.partition("=")
            if word == "--" or not name.startswith("-"):
                words += [word, *(rest if word == "--" else [])]
                rest = [] if word == "--" else rest
            elif name in takes_value or name in ("-h", "--help"):
                words += [word, *([rest.pop(0)] if takes_value.get(name) and not equals and rest else [])]
            elif not equals and (flag := _FLAGS.get(name)) and flag[0] in takes_value:
                words += _noted([word], flag)
            elif not equals and (not rest or rest[0].startswith("--")):  # it lacks its value
                words.append(word)
            elif ours := self._ours(name, value if equals else rest[0]):
                words += _noted([word] if equals else [word, rest.pop(0)], ours)
            else:
                words.append(word)
        return words

    def _ours(self, name: str, value: str) -> tuple[str, ...] | None:
        """What this command calls an option of another tool, with its value; None where it has no equal.

        Args:
            name: as it was typed: ``--batch_size``.
            value: that it was given.
        """
        name = name.replace("_", "-")
        known = {option for param in self.params for option in param.opts}
        if name in known:
            return name, value
        if name == "--pretrained" and "--weights" in known:
            return "--weights", value
        if (alias := _ALIASES.get(name)) in known:
            return str(alias), value
        word = name.lstrip("-").replace("-", "_")
        if "--set" not in known or not name.startswith("--") or name in _INSTEAD or not word.isidentifier():
            return None
        from efficientnetv2.training.recipe_fields import canonical_field  # torch, which takes seconds

        field = canonical_field(word)
        return None if field is None else ("--set", f"{field}={value}")

    def _instead(self, ctx: Any, name: str, words: Sequence[str]) -> str | None:
        """What to do instead of an option that there is not, in a sentence; None where nobody can tell.

        Args:
            ctx: of the command.
            name: of the option.
            words: of the command line.
        """
        arguments = self._arguments()
        argument = _ARGUMENTS.get(name.replace("_", "-"), "")
        if argument in arguments:
            values = [after for option, after in pairwise(words) if option == name]
            values += [word.partition("=")[2] for word in words if word.startswith(f"{name}=")]
            value = next(iter(values), argument)
            called = [value if one == argument else one for one in arguments]
            return f"{argument} is an argument, not an option: {ctx.command_path} {shell_join(called)}"
        known = {option for param in self.params for option in param.opts}
        if name in _INSTEAD and "--set" in known:
            return _INSTEAD[name]
        if ours := self._ours(name, "VALUE"):
            return f"Give it a value: {shell_join(ours)}"
        return None


def _noted(theirs: Sequence[str], ours: Sequence[str]) -> Sequence[str]:
    """The second, and a line that it is taken for the first."""
    if (rank_and_world_size() or (0, 1))[0] == 0:  # of many processes the first says it
        print(f"Note: {shell_join(theirs)} is read as {shell_join(ours)}.", file=sys.stderr)
    return ours


class Verbs(_Untyped, TyperGroup):
    """Commands under one name, whose own flags show no type; unknown ones are answered with ours."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """See ``TyperGroup``.

        Raises:
            UsageError: there is no such command; names the one that other tools call so.
        """
        try:
            return super().resolve_command(ctx, args)
        except _WRONG_USE as error:
            ours = _COMMANDS.get(args[0])
            if ours is not None and (ours in self.commands or ours.startswith("--")):
                error.message = (
                    f"No such command '{args[0]}'. Use: {shell_join([*ctx.command_path.split(), ours])}"
                )
            raise


def _taken_apart(words: Sequence[str]) -> str | None:
    """The ``--set`` of which a shell seems to have made several words; None where there is none.

    Args:
        words: of a command. At a space a value ends with its braces open; of braces without spaces bash makes a word
            for each part, all of them with the field's name in front.
    """
    said = [word for option, word in pairwise(words) if option == "--set"]
    said += [word.removeprefix("--set=") for word in words if word.startswith("--set=")]
    for setting in said:
        field = setting.partition("=")[0]
        opened = any(setting.count(left) > setting.count(right) for left, right in ("{}", "[]"))
        if opened or any(word.startswith(f"{field}=") for word in words if word not in said):
            return setting
    return None


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
            rules = "; ".join(map(format_rule, error.errors()))
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
            report_to_torchrun("effnetv2: another process of the run has failed first.", cause=False)
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
    from efficientnetv2.utils.memory import is_out_of_memory  # imports PyTorch

    return is_out_of_memory(error)


def by_one_process(command: Callable[Params, Answer]) -> Callable[Params, Answer]:
    """The command, refused where a launcher has started it several times: each would do all of it."""

    @functools.wraps(command)
    def alone(*args: Params.args, **kwargs: Params.kwargs) -> Answer:
        rank, size = rank_and_world_size() or (0, 1)
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
    line = escape_controls(f"effnetv2: {message}", lines=True)
    print(line, file=sys.stderr)
    report_to_torchrun(line)
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
    limit_openmp_spin()  # commands import PyTorch, which reads once how its threads wait
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
