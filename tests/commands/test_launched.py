"""What a launcher starts several times and is no command for several processes is refused, and said once."""

from __future__ import annotations

import pytest
from tests.command_line import effnetv2_fresh


@pytest.mark.parametrize("words", [("models",), ("search", "best", "study")])
def test_the_first_process_says_why(words, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "8")
    done = effnetv2_fresh(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert "a launcher has started it 8 times. Start it without torchrun" in done.stderr
    assert done.stdout == ""


def test_the_others_end_without_a_word(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    done = effnetv2_fresh("models", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


def test_a_launcher_of_one_process_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert effnetv2_fresh("recipes", cwd=tmp_path).returncode == 0
