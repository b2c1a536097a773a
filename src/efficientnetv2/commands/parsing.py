"""How the program takes its words: what typer says of them, in ours."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from pydantic import ValidationError
from typer import BadParameter
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from efficientnetv2.base.errors import rule_of
from efficientnetv2.base.launcher import placed
from efficientnetv2.base.typed import typed

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
                error.message = f"it is {problem['input']!r}, but {rule_of(problem)}."
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
                    error.message += f". An option begins with two dashes: {typed(ours)}"
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
        from efficientnetv2.training.fields import field_meant  # torch, which takes seconds

        field = field_meant(word)
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
            return f"{argument} is an argument, not an option: {ctx.command_path} {typed(called)}"
        known = {option for param in self.params for option in param.opts}
        if name in _INSTEAD and "--set" in known:
            return _INSTEAD[name]
        if ours := self._ours(name, "VALUE"):
            return f"Give it a value: {typed(ours)}"
        return None


def _noted(theirs: Sequence[str], ours: Sequence[str]) -> Sequence[str]:
    """The second, and a line that it is taken for the first."""
    if (placed() or (0, 1))[0] == 0:  # of many processes the first says it
        print(f"Note: {typed(theirs)} is read as {typed(ours)}.", file=sys.stderr)
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
                    f"No such command '{args[0]}'. Use: {typed([*ctx.command_path.split(), ours])}"
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
