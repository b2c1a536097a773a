"""Command lines as text: the running command, those that messages recommend, and the words of recorded ones."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any

#: The running call of the Python API, as text; None in a command.
CALL: ContextVar[str | None] = ContextVar("call", default=None)


def shell_join(words: Sequence[str]) -> str:
    """A command in one line, quoted for this system's shell."""
    return " ".join(map(_quoted, words)) if os.name == "nt" else shlex.join(words)


def _quoted(word: str) -> str:
    """A word for PowerShell and cmd, whose own characters ``list2cmdline`` leaves as they are."""
    quoted = subprocess.list2cmdline([word])
    end = "\\" * (len(word) - len(word.rstrip("\\")))  # would escape the quote
    return f'"{word}{end}"' if quoted == word and set(word) & set(";|&<>^(),{}@") else quoted


def join_settings(settings: Sequence[str]) -> str:
    """Settings of a candidate as one text, on every system alike."""
    return shlex.join(settings)


def split_settings(text: str) -> tuple[str, ...]:
    """``A=1 B={c: 2}`` split at spaces outside quotes and brackets; ValueError if one of these is not closed."""
    settings: list[str] = []
    depth = 0
    lexer = shlex.shlex(text, posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.commenters = True, ""
    if os.name == "nt":
        lexer.escape = ""  # a backslash is of a path
    for word in lexer:
        if depth:
            settings[-1] += f" {word}"
        else:
            settings.append(word)
        depth = max(0, depth + sum(map(word.count, "{[")) - sum(map(word.count, "}]")))
    if depth:
        raise ValueError("No closing bracket")
    return tuple(settings)


def command_line() -> str:
    """The running command, or the running call of the Python API."""
    return CALL.get() or shell_join(["effnetv2", *sys.argv[1:]])


def option_args(**options: object) -> list[str]:
    """Options by their Python names as arguments. True is a flag; None and False are left out."""
    words: list[str] = []
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(option)
        elif isinstance(value, float):
            short = f"{value:g}"
            words += [option, short if float(short) == value else repr(value)]
        elif value is not None and value is not False:
            words += [option, str(value)]
    return words


def option_value(command: str | None, option: str) -> str | None:
    """The value of an option in a command as of ``command_line``; '' for a last word, None if it is not there."""
    words = iter(command_words(command))
    for word in words:
        name, equals, value = word.partition("=")
        if name.replace("_", "-") == option:  # as the command line takes it
            return value if equals else next(words, "")
    return None


def command_words(command: str | None) -> list[str]:
    """The words of a command as of ``command_line``; of a recorded call, those of the equal command."""
    if (command or "").startswith("efficientnetv2."):
        return _call_words(command or "")
    if os.name != "nt":
        return shlex.split(command or "")
    return [word.strip('"') for word in shlex.split(command or "", posix=False)]


def lacks_objects(command: str | None) -> bool:
    """Whether ``command_words`` lacks arguments of a recorded call that are objects, such as an architecture."""
    return re.search(r"(?<!callbacks)=\.\.\.[,)]", command or "") is not None


def _call_words(call: str) -> list[str]:
    """The words of the command for a recorded call of ``train``, ``cross_validate`` or ``evaluate``; else none."""
    try:
        tree = ast.parse(call, mode="eval").body
        if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Attribute):
            return []
        values = {keyword.arg or "": ast.literal_eval(keyword.value) for keyword in tree.keywords}
        command = {"train": "train", "cross_validate": "crossval", "evaluate": "evaluate"}[tree.func.attr]
        names = ("model", "data") if command == "evaluate" else ("data",)  # all other arguments have names
        values |= dict(zip(names, map(ast.literal_eval, tree.args), strict=False))
        # Objects, which have no text, are left out.
        values = {name: value for name, value in values.items() if value is not ...}
        repeated = [("--set", one) for one in _settings(values.pop("settings", None))]
        repeated += [("--candidate-set", one) for one in _settings(values.pop("candidate_settings", None))]
        repeated += [("--candidate", join_settings(_settings(one))) for one in values.pop("candidates", None) or ()]
        values["ensemble"] = values.pop("members", None)
    except (SyntaxError, ValueError, KeyError, TypeError, AttributeError):  # an object that has no text
        return []
    joined = {name: ",".join(map(str, value)) for name, value in values.items() if isinstance(value, list | tuple)}
    data, options = str(values.pop("data", "")), values | joined
    return ["effnetv2", command, data, *option_args(**options), *(word for pair in repeated for word in pair)]


def _settings(values: Mapping[str, Any] | None) -> list[str]:
    """Fields of a recipe as ``--set`` takes them."""
    return [f"{name}={json.dumps(value)}" for name, value in (values or {}).items()]
