"""Words of commands are quoted for the shell of this system, wherever a command is printed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import efficientnetv2
from efficientnetv2.utils.shell import option_args, shell_join

WORDS = ["effnetv2", "train", "my photos/", "--output", "runs\\mine", "--resume"]


def test_a_shell_reads_the_words_again():
    assert shlex.split(shell_join(WORDS)) == WORDS


def test_on_windows_nothing_is_quoted_as_only_other_shells_take_it(monkeypatch):
    """Its shell knows double quotes alone, and takes a backslash as it is."""
    monkeypatch.setattr("efficientnetv2.utils.shell.os", SimpleNamespace(name="nt"))
    assert shell_join(WORDS) == 'effnetv2 train "my photos/" --output runs\\mine --resume'


def test_options_are_what_was_said():
    said = option_args(device=None, workers=0, memory_gib=1.5, strict=True, as_json=False)
    assert said == ["--workers", "0", "--memory-gib", "1.5", "--strict"]


def test_no_message_quotes_otherwise():
    """A path with a space is a word of a command wherever one is printed, on every system."""
    sources = Path(efficientnetv2.__file__).parent
    quoting = [
        file.relative_to(sources).as_posix()
        for file in sources.rglob("*.py")
        if re.search(r"shlex\.(quote|join)", file.read_text(encoding="utf-8"))
    ]
    assert sorted(quoting) == ["utils/shell.py"]
