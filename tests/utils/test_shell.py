"""Arguments of printed commands are quoted for the shell of this system."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import efficientnetv2
from efficientnetv2.utils.shell import option_args, shell_join

WORDS = ["effnetv2", "train", "my photos/", "--output", "runs\\mine", "--resume"]


def test_quoted_command_is_parsed_back():
    assert shlex.split(shell_join(WORDS)) == WORDS


def test_windows_quoting(monkeypatch):
    """The shell of Windows has only double quotes and no escapes by backslash."""
    monkeypatch.setattr("efficientnetv2.utils.shell.os", SimpleNamespace(name="nt"))
    assert shell_join(WORDS) == 'effnetv2 train "my photos/" --output runs\\mine --resume'
    assert shell_join(["a", ";", "R&D\\", "x{y}"]) == 'a ";" "R&D\\\\" "x{y}"', "characters of PowerShell and cmd"


def test_only_given_options_are_in_the_command():
    args = option_args(device=None, workers=0, memory_gib=1.5, strict=True, as_json=False)
    assert args == ["--workers", "0", "--memory-gib", "1.5", "--strict"]


def test_quoting_is_only_in_the_shell_module():
    """A path with a space must be quoted in each printed command, on every system."""
    sources = Path(efficientnetv2.__file__).parent
    quoting = [
        file.relative_to(sources).as_posix()
        for file in sources.rglob("*.py")
        if re.search(r"shlex\.(quote|join)", file.read_text(encoding="utf-8"))
    ]
    assert sorted(quoting) == ["utils/shell.py"]
