"""Messages of the library, with the option names of the command line."""

from __future__ import annotations

import logging

import pytest
from tests.command_line import run_refused

from efficientnetv2.cli.console import Screen, spelled, spelling_as
from efficientnetv2.utils.logs import RunLog

OPTIONS = {
    "epochs": "--epochs", "image_size": "--image-size", "resume": "--resume", "out": "--output",
    "output": "--output", "data": "DATA", "set": "--set", "settings": "--set",
}  # fmt: skip


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("epochs: must be above 0.", "--epochs: must be above 0."),
        ("`epochs` must be above 0.", "--epochs must be above 0."),
        ("`data` is empty.", "DATA is empty."),
        ("Use `epochs=3` or `image_size=64`.", "Use --epochs 3 or --image-size 64."),
        ("Use `output=my runs`.", "Use --output 'my runs'."),
        ("Continue with `resume=True`.", "Continue with --resume."),
        ("Use `minival=0.1`, not `minival`.", "Use --set minival=0.1, not minival."),
        ("Set `optimizer.lr=0.1`.", "Set --set optimizer.lr=0.1."),
        ("`progressive.stages` must be above 0.", "progressive.stages must be above 0."),
        ("Install `timm`, or set `color=red`.", "Install timm, or set color=red."),
        ("Line ` has one quote.", "Line ` has one quote."),
    ],
)
def test_field_names_in_messages_become_options(message, expected):
    assert spelled(message, OPTIONS) == expected


def test_commands_without_set_show_field_names():
    assert spelled("Use `minival=0.1`.", {"epochs": "--epochs"}) == "Use minival=0.1."


def test_log_file_and_screen_show_option_names(tmp_path, capsys):
    with spelling_as(OPTIONS), Screen() as screen:
        log, line = RunLog(), "Use `epochs=3`."
        log.write_to(tmp_path)
        log.emit(logging.makeLogRecord({"msg": line}))
        screen.say(line)
    assert (tmp_path / "log.txt").read_text().endswith("  Use --epochs 3.\n")
    assert capsys.readouterr().out == "Use --epochs 3.\n"


def test_error_of_a_command_shows_option_names(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "crossval.json").touch()
    done = run_refused("crossval", "photos", "--output", "full", cwd=tmp_path)
    assert "--output full has a cross-validation" in done.stderr
    assert "Resume it with --resume" in done.stderr
