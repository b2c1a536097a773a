"""Commands of the program: names of other tools, suggestions, `--help-all`, and one format of errors."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import typer
from pydantic import ValidationError
from typer import BadParameter
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from efficientnetv2.cli.console import end, ends
from efficientnetv2.cli.foreign_names import (
    ADVICE,
    ADVICE_WITHOUT_SET,
    ALIASES,
    ARGUMENTS,
    COMMANDS,
    EXPORT_FORMATS,
    FLAG_VALUES,
    FLAGS,
    OTHER_TASKS,
    WITHOUT_VALUE,
)
from efficientnetv2.utils.errors import InputError, OtherProcessError, did_you_mean, format_rule
from efficientnetv2.utils.processes import rank_and_world_size
from efficientnetv2.utils.shell import shell_join

ADVANCED = "Advanced"
_MOST_OPTIONS = 10  # that `--help` shows without hiding the advanced ones. Ours
_SHARED = {"train", "evaluate", "predict"}  # share their work among the processes of a launcher
# Seconds in which the first process of several reports an error; a launcher then ends the others. Ours.
_FIRST_REPORTS_S = 3.0
UsageError: Any = BadParameter.__mro__[1]  # typer has no public name for it


class _WithoutTypes:
    """A command whose flags show no type: they take no value."""

    def get_params(self, ctx: Any) -> list[Any]:
        """See ``TyperCommand``."""
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for option in params:
            if isinstance(option, TyperOption) and option.is_flag and option.metavar is None:
                option.metavar = ""
        return params


class Command(_WithoutTypes, TyperCommand):
    """A command that takes options of other tools, hides advanced options, and ends with a message and a code."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the options and arguments."""
        if ctx.resilient_parsing:  # the shell completes a command
            return super().parse_args(ctx, args)
        if "--help-all" in args:
            ctx.meta["help-all"] = True
            print(ctx.get_help(), end="")
            ctx.exit()
        given = list(self._translated(args))
        try:
            return super().parse_args(ctx, list(given))  # parsing empties the list
        except UsageError as error:
            error.ctx = ctx
            error.hint = self._hint(ctx, error, given)
            raise

    def invoke(self, ctx: Any) -> Any:
        """Run the command; what a user can fix becomes a message and an exit code."""
        ctx.params = {name: _expanded(value) for name, value in ctx.params.items()}
        with ends(self._spellings()):
            if self.name not in _SHARED or ctx.params.get("dry_run") or ctx.params.get("preview"):
                _refuse_launched()
            return super().invoke(ctx)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """See ``TyperCommand``: without braces."""
        return ["[OPTIONS]", *self._arguments()]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """See ``TyperCommand``: advanced options are hidden where there are many, but for `--help-all`."""
        options = [one for one in self.params if isinstance(one, TyperOption) and not one.hidden]
        for argument in self.params:
            if isinstance(argument, TyperArgument):
                argument.required = False  # the usage line shows it, and the program ends with its help
        advanced = [one for one in options if str(one.rich_help_panel or "").startswith(ADVANCED)]
        if len(options) > _MOST_OPTIONS and len(advanced) > 2 and not ctx.meta.get("help-all"):
            for option in advanced:
                option.hidden = True
            self.epilog = f"{len(advanced)} more options: `{ctx.command_path} --help-all`"
        super().format_help(ctx, formatter)

    def _arguments(self) -> list[str]:
        """What the command calls its arguments."""
        return [
            f"{param.metavar or param.name}{'...' if param.nargs == -1 else ''}"
            for param in self.params
            if isinstance(param, TyperArgument)
        ]

    def _spellings(self) -> dict[str, str]:
        """Each parameter, by its names here and in the library, as the command line spells it."""
        spellings: dict[str, str] = {}
        for param in self.params:
            option = max(param.opts, key=len)
            if isinstance(param, TyperOption):
                spellings[option.lstrip("-").replace("-", "_")] = option
            spellings[str(param.name)] = option if isinstance(param, TyperOption) else param.metavar or option
        return spellings

    def _options(self) -> dict[str, bool]:
        """Each option, and whether it takes a value."""
        return {
            name: not option.is_flag
            for option in self.params
            if isinstance(option, TyperOption)
            for name in (*option.opts, *option.secondary_opts)
        }

    def _translated(self, args: Sequence[str]) -> Iterator[str]:
        """The command line, options of other tools replaced by ours; a note names each."""
        options = self._options()
        takes_value = options | {"-h": False, "--help": False}
        rest = self._with_run_folder(args)
        while rest:
            word = rest.pop(0)
            name, equals, value = word.partition("=")
            has_value = bool(rest) and not rest[0].startswith("--")
            has_our_value = has_value and rest[0] in FLAG_VALUES.get(name, ())
            if word == "--":
                yield word
                yield from rest
                return
            if not name.startswith("-"):
                yield word
            elif name in takes_value:
                if name in WITHOUT_VALUE and not equals and not has_value:
                    rest.insert(0, _noted([word], (word, WITHOUT_VALUE[name]), name)[1])
                yield word
                if takes_value[name] and not equals and rest:
                    yield rest.pop(0)
            elif not equals and not has_our_value and name in FLAGS and (FLAGS[name] or ("--set",))[0] in options:
                yield from _noted([word], FLAGS[name], name)
            elif (equals or has_value) and (ours := self._ours(name, value if equals else rest[0])):
                yield from _noted([word] if equals else [word, rest.pop(0)], ours, name)
            else:
                yield word

    def _with_run_folder(self, args: Sequence[str]) -> list[str]:
        """The command line, Ultralytics' `--project P --name N` replaced by the folder of the run."""
        given = {name: value for name, value in pairwise(args) if name in ("--project", "--name")}
        if "--name" not in given or "--resume" not in self._options():
            return list(args)
        folder = str(Path(given.get("--project", "runs")) / given["--name"])
        rest = [word for before, word in pairwise(["", *args]) if word not in given and before not in given]
        theirs = [word for pair in given.items() for word in pair]
        return [*rest, *_noted(theirs, ("--output", folder), "--name")]

    def _ours(self, name: str, value: str) -> tuple[str, str] | None:
        """Our option for one of another tool, with its value; None if there is none."""
        name = name.replace("_", "-")
        known = self._options()
        ours = name if name in known else ALIASES.get(name)
        if ours in known:
            return str(ours), value
        word = name.lstrip("-").replace("-", "_")
        if "--set" not in known or not name.startswith("--") or name in ADVICE or not word.isidentifier():
            return None
        from efficientnetv2.training.recipe_fields import canonical_field  # torch, which takes seconds

        field = canonical_field(word)
        return None if field is None else ("--set", f"{field}={value}")

    def _hint(self, ctx: Any, error: Any, words: Sequence[str]) -> str | None:
        """What to do about wrong usage, in a sentence; None if unknown."""
        if hasattr(error, "possibilities"):  # there is no such option
            known = self._options()
            names = {name: name for name in known} | {
                name: ours for name, ours in ALIASES.items() if name.startswith("--") and ours in known
            }
            quoted = did_you_mean(error.option_name.lstrip("-"), [name.lstrip("-") for name in names]).split("'")
            meant = names.get(f"--{quoted[1]}") if len(quoted) > 1 else None
            return (
                self._advice(ctx, error.option_name, words)
                or (meant and f"Did you mean '{meant}'?")
                or f"All options: {ctx.command_path} --help-all"
            )
        takes_no_folder = "extra argument" in error.message or getattr(error, "option_name", None) == "--resume"
        if takes_no_folder and "--output" in self._options() and (folder := _resumed_folder(words)):
            return f"The folder of a run is its output: {shell_join(['--output', folder, '--resume'])}"
        if "does not take a value" in error.message:
            return f"Write it alone: {error.option_name}"
        if missing := [param for param in self.params if getattr(error, "option_name", None) in param.opts]:
            return f"Give it a value: {error.option_name} {missing[0].metavar or 'VALUE'}"
        if "extra argument" not in error.message:
            return None
        usage = f"Usage: {' '.join([ctx.command_path, *self.collect_usage_pieces(ctx)])}"
        if split := _split_by_shell(words):
            return (
                f"The shell has split --set {split}. Put a value with spaces or braces in quotes: "
                '--set "progressive.image_size={start: 64, end: 128}"'
            )
        for name, equals, value in (word.partition("=") for word in words):
            if equals and name.isidentifier() and (ours := self._ours(f"--{name}", value)):
                return f"An option begins with two dashes: {shell_join(ours)}"
        if "DATA" in self._arguments():
            if sum(word.endswith(".tar") for word in words) > 1:
                return "Put a pattern of several shards in quotes: 'shards/train-*.tar'"
            return f"{ctx.command_path} takes one DATA: for several images, a folder, or a CSV with a column path."
        return usage

    def _advice(self, ctx: Any, name: str, words: Sequence[str]) -> str | None:
        """What to do instead of an option that does not exist, in a sentence; None if unknown."""
        arguments = self._arguments()
        argument = ARGUMENTS.get(name.replace("_", "-"), "")
        if argument in arguments:
            values = [after for option, after in pairwise(words) if option == name]
            values += [word.partition("=")[2] for word in words if word.startswith(f"{name}=")]
            shown = [next(iter(values), argument) if one == argument else one for one in arguments]
            return f"{argument} is an argument, not an option: {ctx.command_path} {shell_join(shown)}"
        advice = ADVICE if "--set" in self._options() else ADVICE_WITHOUT_SET
        if name in advice:
            return advice[name]
        ours = self._ours(name, "VALUE")
        return ours and f"Give it a value: {shell_join(ours)}"


class Group(_WithoutTypes, TyperGroup):
    """Commands under one name. For an unknown command, the error names the known ones."""

    def main(self, *args: Any, **extra: Any) -> NoReturn:
        """Run the program, and exit with its code; see ``TyperGroup``."""
        try:
            # On Windows, the patterns of shards stay as they are typed.
            code = super().main(*args, **extra | {"standalone_mode": False, "windows_expand_args": False})
        except UsageError as error:
            is_help = type(error).__name__ == "NoArgsIsHelpError"  # the help was printed
            code = 2 if is_help else end(*_usage_message(error), code=2)
        sys.exit(code)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """See ``TyperGroup``."""
        try:
            return super().resolve_command(ctx, args)
        except UsageError as error:
            ours = COMMANDS.get(args[0], "").removeprefix(f"{ctx.info_name} ")
            error.message = f"no such command '{args[0]}'"
            if args[0] in OTHER_TASKS:
                error.hint = "It classifies whole images: use a detection library for objects in images"
            elif ours.partition(" ")[0] in self.commands or ours.startswith("--"):
                error.hint = f"Use: {ctx.command_path} {ours}"
            else:
                error.hint = _nearest(args[0], self.commands) or f"All commands: {ctx.command_path} --help"
            raise


def _usage_message(error: Any) -> tuple[str, str | None]:
    """What is wrong with a command line, and what to do."""
    hint = getattr(error, "hint", None)
    param = getattr(error, "param", None)
    name = "" if param is None else param.metavar or param.name
    if isinstance(param, TyperOption):
        name = max(param.opts, key=len)
    if type(error).__name__ == "MissingParameter":
        usage = f"Usage: {error.ctx.get_usage().partition(':')[2].strip()}"
        return f"{name}: missing", f"Add {name} {param.metavar}" if isinstance(param, TyperOption) else usage
    if isinstance(error.__cause__, ValidationError):
        problem = error.__cause__.errors()[0]
        rule = format_rule(problem).replace("has to be", "must be")
        if choices := re.fullmatch(r"Value error, '.*' is not one of (.*)\.", error.message, re.DOTALL):
            known = [choice.strip("'") for choice in choices[1].split(", ")]
            rule = f"choose from {', '.join(known)}"
            exported = EXPORT_FORMATS.get(str(problem["input"]).lower()) if "timm" in known else None
            hint = exported and f"Use: effnetv2 export MODEL --format {exported}"
            hint = hint or getattr(error, "hint", None) or _nearest(str(problem["input"]), known)
        return f"{name}: invalid value '{problem['input']}' ({rule})", hint
    if name:
        return f"{name}: {error.message}", hint
    if hasattr(error, "possibilities"):
        return f"{error.option_name}: no such option", hint or f"All options: {error.ctx.command_path} --help"
    if getattr(error, "option_name", None):
        what = "it takes no value" if "does not take a value" in error.message else "a value is missing"
        return f"{error.option_name}: {what}", hint
    extra = r"^Got unexpected extra argument(?:s|\(s\))? "
    return re.sub(extra, "unexpected extra argument ", error.message).rstrip("."), hint


def _nearest(word: str, known: Iterable[str]) -> str | None:
    """A question for the nearest word; None if there is none."""
    return did_you_mean(word, known).lstrip("; .").capitalize() or None


def _expanded(value: Any) -> Any:
    """A path with ``~`` resolved, which no shell does behind ``--output=``; of text only what must be a path."""
    if isinstance(value, list):
        return [_expanded(one) for one in value]
    if isinstance(value, Path):
        return Path(os.path.expanduser(value))
    return os.path.expanduser(value) if isinstance(value, str) and "/" in value else value


def _noted(theirs: Sequence[str], ours: tuple[str, ...] | None, name: str) -> tuple[str, ...]:
    """Our words for another tool's, and a note in the first process of several."""
    if (rank_and_world_size() or (0, 1))[0] == 0:
        note = f"{name} is left out. {ADVICE.get(name, '')}"
        if ours:
            note = f"{shell_join(theirs)} is read as {shell_join(ours)}"
        print(f"Note: {note}.", file=sys.stderr)
    return ours or ()


def _resumed_folder(words: Sequence[str]) -> str | None:
    """PATH of ``DATA --resume PATH`` or ``DATA --resume=PATH``: the option takes none."""
    named = [after for option, after in pairwise(words[1:]) if option == "--resume" and not after.startswith("-")]
    named += [word.removeprefix("--resume=") for word in words[1:] if word.startswith("--resume=")]
    return next((path for path in named if "/" in path or Path(path).exists()), None)


def _split_by_shell(words: Sequence[str]) -> str | None:
    """The ``--set`` that a shell has split at a space or by its braces; None if there is none."""
    values = [word for option, word in pairwise(words) if option == "--set"]
    values += [word.removeprefix("--set=") for word in words if word.startswith("--set=")]
    for value in values:
        field = value.partition("=")[0]
        is_open = any(value.count(left) > value.count(right) for left, right in ("{}", "[]"))
        if is_open or any(word.startswith(f"{field}=") for word in words if word not in values):
            return value
    return None


def _refuse_launched() -> None:
    """Refuse several processes of a command that does not share its work."""
    rank, size = rank_and_world_size() or (0, 1)
    if rank > 0:
        time.sleep(_FIRST_REPORTS_S)
        raise OtherProcessError
    if size > 1:
        fix = "Start it without torchrun, or unset RANK and WORLD_SIZE."
        raise InputError(f"this command runs in one process, but a launcher has started {size}. {fix}")


def app(**settings: Any) -> typer.Typer:
    """A group of commands."""
    return typer.Typer(
        cls=Group,
        no_args_is_help=True,
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        **settings,
    )
