"""Tables: drawn where there is room, lines for other programs, and no name cut anywhere."""

from __future__ import annotations

import io
import logging
import os
import re
import shutil
import sys

import pytest
from rich.console import Console
from tests.command_line import effnetv2
from tests.messages import mentions

from efficientnetv2.architectures.registry import NAMES
from efficientnetv2.cli import console as screen
from efficientnetv2.cli.console import Screen
from efficientnetv2.cli.progress_bars import TrainingBar
from efficientnetv2.models import pretrained
from efficientnetv2.models.hub import pretrained_weights
from efficientnetv2.progressive.schedule import StepSettings
from efficientnetv2.utils.logs import hushed, progress

TITLE = "Things"
COLUMNS = ["name", "number", "what for"]
ROWS = [
    ["a-name-that-is-rather-long.in21k_ft_in1k", "1,234", "said in several words that a table may fold"],
    ["小さい名前", "", "short"],
    ["[/b] :car:", "7.5 G", ""],
]


def shown(width: int, *, terminal: bool, form: str = "table") -> str:
    """What the table looks like on a terminal of that width, or in a file."""
    made = Screen()
    made.notes = Console(
        file=io.StringIO(), width=width, force_terminal=terminal, color_system=None, soft_wrap=True, markup=False,
        emoji=False, highlight=False,
    )  # fmt: skip
    getattr(made, form)(TITLE, COLUMNS, ROWS)
    return made.notes.file.getvalue()


@pytest.mark.parametrize("width", [1, 20, 60, 80, 200])
@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("form", ["table", "entries"])
def test_no_word_is_cut_at_any_width(width, terminal, form):
    told = shown(width, terminal=terminal, form=form)
    columns = COLUMNS[1:-1] if form == "entries" and terminal else COLUMNS
    for word in " ".join([TITLE, *columns, *(cell for row in ROWS for cell in row)]).split():
        assert word in told
    assert all(any(row[0] in line for line in told.splitlines()) for row in ROWS)


def test_a_program_gets_a_line_for_each_row_with_its_columns_in_place():
    title, heading, *lines = shown(20, terminal=False).splitlines()
    assert title == TITLE
    assert [line.split("  ")[0].strip() for line in lines] == [row[0] for row in ROWS]
    numbers = heading.index("number")
    assert lines[0][numbers : numbers + 6] == " 1,234"
    assert lines[2][numbers : numbers + 6] == " 7.5 G"
    assert lines[0].index("said") == heading.index("what for")
    assert not any(line.endswith(" ") for line in lines)


def test_words_fold_on_a_terminal_before_anything_else():
    assert max(map(len, shown(80, terminal=True).splitlines())) <= 80
    assert len(shown(80, terminal=True).splitlines()) > len(shown(200, terminal=True).splitlines())


def test_a_person_gets_sentences_below_their_name_and_a_program_a_line_for_each():
    told = shown(30, terminal=True, form="entries").split("\n\n")
    assert told[1].splitlines() == [
        ROWS[0][0], "    number: 1,234", "    said in several words that", "    a table may fold",
    ]  # fmt: skip
    assert told[2].splitlines() == [ROWS[1][0], "    short"]  # an empty cell is not said
    assert shown(30, terminal=False, form="entries") == shown(30, terminal=False)


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (("models",), NAMES),
        (("models", "--pretrained"), pretrained.weight_names()),
        (("recipes",), ("quick", "finetune")),
    ],
)
def test_every_name_begins_a_line_of_its_own_when_piped(words, names, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = effnetv2(*words, cwd=tmp_path).stdout.splitlines()
    first = [line.split()[0] for line in lines]
    assert all(first.count(name) == 1 for name in names)
    assert len(lines) >= len(names) + 2


def test_pretrained_weights_say_how_large_they_are_and_what_their_columns_mean(tmp_path):
    """V2-S has 21,458,488 parameters for 1,000 classes: 86 MB, as its files have."""
    (row,) = (one for one in pretrained_weights() if one["name"] == "efficientnetv2_s.in1k")
    assert row["megabytes_about"] == 85.8
    done = effnetv2("models", "--pretrained", cwd=tmp_path)
    assert mentions(done.stdout, "cached", "downloaded")
    assert mentions(done.stdout, "top-1", "ImageNet-1k")
    assert re.search(r"^efficientnetv2_s\.in1k +\d+ +[\d.]+ +86 .* no$", done.stdout, re.MULTILINE)


def test_a_flag_shows_no_type(tmp_path):
    """It takes no value, of whatever type."""
    for words in ((), ("train",), ("search",), ("search", "run")):
        shown = effnetv2(*words, "--help", cwd=tmp_path).stdout
        assert "--" in shown
        assert "bool" not in shown.lower()


@pytest.mark.parametrize(("encoding", "café"), [("utf-8", "café"), ("ascii", r"caf\xe9")])
def test_what_a_screen_cannot_take_is_escaped(encoding, café):
    """As a file's name that is no UTF-8, or letters that a terminal does not have."""
    screen, written = Screen(), io.BytesIO()
    screen.notes = Console(file=io.TextIOWrapper(written, encoding=encoding, write_through=True), width=80)
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    screen.say(f"Left out: {name}, café.jpg.")
    screen.table("café", ["café"], [[name], ["café"]])
    lines = written.getvalue().decode(encoding).split()
    assert lines == ["Left", "out:", r"caf\udce9.jpg,", f"{café}.jpg.", café, café, r"caf\udce9.jpg", café]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names of files are text")
def test_a_picture_passed_over_may_be_called_anything(class_folders):
    shutil.copy(class_folders / "red/red_00.jpg", os.fsencode(class_folders) + b"/caf\xe9.jpg")
    done = effnetv2("check", "pictures", cwd=class_folders.parent)
    assert done.returncode == 0, done.stderr
    assert mentions(done.stdout, "caf\\udce9.jpg", "class")


def as_file(*, terminal):
    """A screen whose lines can be read again, and what reads them."""
    made = Screen()
    made.notes = Console(
        file=io.StringIO(), width=200, force_terminal=terminal, color_system=None, soft_wrap=True, markup=False,
        emoji=False, highlight=False,
    )  # fmt: skip
    return made, lambda: made.notes.file.getvalue()


def test_where_no_bar_can_be_drawn_a_line_now_and_then_says_how_far_it_is(monkeypatch):
    """As in the log of a job: after a minute, then every five."""
    now = [0.0]
    monkeypatch.setattr(screen.time, "perf_counter", lambda: now[0])
    made, said = as_file(terminal=False)
    with made.counting("looking", 1000) as counted:
        for minute in range(13):
            now[0] = 60.0 * minute
            counted(50 * minute)
    assert said().splitlines() == [
        f"looking: {50 * minute:,} of 1,000, 1 images/s, {20 - minute} min 00 s left" for minute in (1, 6, 11)
    ]


def test_a_training_that_nobody_watches_says_how_long_it_will_take(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(screen.time, "perf_counter", lambda: now[0])
    made, said = as_file(terminal=False)
    with TrainingBar(made) as bar:
        bar.on_train_start(0, 100)
        for done in range(1, 101):
            now[0] = 61.0 * done
            bar.on_log(done, 100, StepSettings(64, dropout=0.1), 1.5, 77.0, 3600.0 - 36 * done)
    lines = said().splitlines()
    assert lines[0] == "1%: 64 px, dropout 0.1, loss 1.500, 77 images/s, 59 min 24 s left"
    assert 15 < len(lines) < 25
    assert not any(line.startswith("100%") or not line for line in lines)


def test_a_fold_that_nobody_watches_says_how_far_it_is_too(monkeypatch):
    """As of the second of five, which keeps its other lines to itself: of four fifths of the time nothing was said."""
    now = [0.0]
    monkeypatch.setattr(screen.time, "perf_counter", lambda: now[0])
    made, said = as_file(terminal=False)
    with made, hushed(), progress("looking", 100) as counted:
        logging.getLogger("efficientnetv2").info("as the first fold has said it")
        now[0] = 60.0
        counted(60)
    with TrainingBar(made) as bar:
        bar.on_train_start(0, 4)
        now[0] = 120.0
        bar.on_log(1, 4, StepSettings(64), 1.5, 77.0, 3600.0)
    assert said().splitlines() == [
        "looking: 60 of 100, 1 images/s, 40 s left",
        "25%: 64 px, loss 1.500, 77 images/s, 1 h 00 min left",
    ]


def test_a_terminal_has_the_bar_and_no_such_lines(monkeypatch):
    monkeypatch.setattr(screen, "_FIRST_S", -1.0)
    made, said = as_file(terminal=True)
    with made.counting("looking", 10) as counted:
        counted(5)
    assert "looking" in said()
    assert "5 of 10" not in said()
