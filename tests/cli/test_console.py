"""Tables: drawn on a terminal, one line per row for other programs, and no name truncated."""

from __future__ import annotations

import io
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable

import pytest
import typer
from rich.console import Console
from tests.command_line import effnetv2, run_ok
from tests.messages import mentions

from efficientnetv2.architectures.registry import NAMES
from efficientnetv2.cli import console
from efficientnetv2.cli.console import Screen
from efficientnetv2.cli.progress_bars import TrainingBar
from efficientnetv2.models import pretrained
from efficientnetv2.models.hub import pretrained_weights
from efficientnetv2.progressive.schedule import StepSettings
from efficientnetv2.utils.logs import hushed, progress


def test_gpu_that_pytorch_has_no_kernels_for_is_a_short_error(capsys):
    with pytest.raises(typer.Exit) as ended, console.ends({}):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors")
    assert ended.value.exit_code == 1
    assert mentions(capsys.readouterr().err, "this GPU", "--device cpu")


TITLE = "Things"
COLUMNS = ["name", "number", "what for"]
ROWS = [
    ["a-name-that-is-rather-long.in21k_ft_in1k", "1,234", "a text of several words that a table may fold"],
    ["小さい名前", "", "short"],
    ["[/b] :car:", "7.5 G", ""],
]


def string_screen(*, terminal: bool, width: int = 200) -> tuple[Screen, Callable[[], str]]:
    """A screen on a terminal or in a file, and a function that returns its text."""
    made = Screen()
    made.notes = Console(
        file=io.StringIO(), width=width, force_terminal=terminal, color_system=None, soft_wrap=True, markup=False,
        emoji=False, highlight=False,
    )  # fmt: skip
    return made, made.notes.file.getvalue


def rendered(width: int, *, terminal: bool, form: str = "table") -> str:
    """The table on a terminal of this width, or in a file."""
    screen, text = string_screen(terminal=terminal, width=width)
    getattr(screen, form)(TITLE, COLUMNS, ROWS)
    return text()


@pytest.mark.parametrize("width", [1, 20, 60, 80, 200])
@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("form", ["table", "entries"])
def test_no_word_is_truncated_at_any_width(width, terminal, form):
    output = rendered(width, terminal=terminal, form=form)
    columns = COLUMNS[1:-1] if form == "entries" and terminal else COLUMNS
    for word in " ".join([TITLE, *columns, *(cell for row in ROWS for cell in row)]).split():
        assert word in output
    assert all(any(row[0] in line for line in output.splitlines()) for row in ROWS)


def test_file_output_has_aligned_columns():
    title, heading, *lines = rendered(20, terminal=False).splitlines()
    assert title == TITLE
    assert [line.split("  ")[0].strip() for line in lines] == [row[0] for row in ROWS]
    numbers = heading.index("number")
    assert lines[0][numbers : numbers + 6] == " 1,234"
    assert lines[2][numbers : numbers + 6] == " 7.5 G"
    assert lines[0].index("a text") == heading.index("what for")
    assert not any(line.endswith(" ") for line in lines)


def test_text_wraps_on_a_terminal():
    assert max(map(len, rendered(80, terminal=True).splitlines())) <= 80
    assert len(rendered(80, terminal=True).splitlines()) > len(rendered(200, terminal=True).splitlines())


def test_terminal_entries_wrap_below_their_name():
    output = rendered(30, terminal=True, form="entries").split("\n\n")
    assert output[1].splitlines() == [
        ROWS[0][0], "    number: 1,234", "    a text of several words", "    that a table may fold",
    ]  # fmt: skip
    assert output[2].splitlines() == [ROWS[1][0], "    short"]  # an empty cell is left out
    assert rendered(30, terminal=False, form="entries") == rendered(30, terminal=False)


@pytest.mark.parametrize(
    ("args", "names"),
    [
        (("models",), NAMES),
        (("models", "--pretrained"), pretrained.weight_names()),
        (("recipes",), ("quick", "finetune")),
    ],
)
def test_piped_output_has_one_line_per_name(args, names, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = effnetv2(*args, cwd=tmp_path).stdout.splitlines()
    first = [line.split()[0] for line in lines]
    assert all(first.count(name) == 1 for name in names)
    assert len(lines) >= len(names) + 2


def test_pretrained_weights_are_listed_with_their_size(tmp_path):
    """V2-S has 21,458,488 parameters for 1,000 classes: 86 MB."""
    (row,) = (one for one in pretrained_weights() if one["name"] == "efficientnetv2_s.in1k")
    assert row["megabytes_about"] == 85.8
    done = effnetv2("models", "--pretrained", cwd=tmp_path)
    assert mentions(done.stdout, "cached", "downloaded")
    assert mentions(done.stdout, "top-1", "ImageNet-1k")
    assert re.search(r"^efficientnetv2_s\.in1k +\d+ +[\d.]+ +86 .* no$", done.stdout, re.MULTILINE)


def test_help_shows_no_type_for_flags(tmp_path):
    for args in ((), ("train",), ("search",), ("search", "run")):
        help_text = effnetv2(*args, "--help", cwd=tmp_path).stdout
        assert "--" in help_text
        assert "bool" not in help_text.lower()


@pytest.mark.parametrize(("encoding", "café"), [("utf-8", "café"), ("ascii", r"caf\xe9")])
def test_unprintable_characters_are_escaped(encoding, café):
    """A file name that is not UTF-8, and letters that the encoding of the terminal lacks."""
    screen, written = Screen(), io.BytesIO()
    screen.notes = Console(file=io.TextIOWrapper(written, encoding=encoding, write_through=True), width=80)
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    screen.say(f"Left out: {name}, café.jpg.")
    screen.table("café", ["café"], [[name], ["café"]])
    lines = written.getvalue().decode(encoding).split()
    assert lines == ["Left", "out:", r"caf\udce9.jpg,", f"{café}.jpg.", café, café, r"caf\udce9.jpg", café]


def test_wait_is_shown_on_a_terminal_with_few_characters():
    screen, written = Screen(), io.BytesIO()
    file = io.TextIOWrapper(written, encoding="ascii", write_through=True)
    screen.notes = Console(file=file, force_terminal=True, force_interactive=True, _environ={"TERM": "xterm"})
    with screen.counting("choosing the café", None):
        pass
    assert rb"caf\xe9" in written.getvalue()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names of files are text")
def test_ignored_image_may_have_a_non_utf8_name(class_folders):
    shutil.copy(class_folders / "red/red_00.jpg", os.fsencode(class_folders) + b"/caf\xe9.jpg")
    done = run_ok("check", "pictures", cwd=class_folders.parent)
    assert mentions(done.stdout, "caf\\udce9.jpg", "class")


def test_progress_is_logged_regularly_without_a_terminal(monkeypatch):
    """After one minute, then every five minutes."""
    now = [0.0]
    monkeypatch.setattr(console.time, "perf_counter", lambda: now[0])
    made, output = string_screen(terminal=False)
    with made.counting("looking", 1000) as counted:
        for minute in range(13):
            now[0] = 60.0 * minute
            counted(50 * minute)
    assert output().splitlines() == [
        f"looking: {50 * minute:,} of 1,000, 1 images/s, {20 - minute} min 00 s left" for minute in (1, 6, 11)
    ]


def test_training_logs_the_remaining_time_without_a_terminal(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(console.time, "perf_counter", lambda: now[0])
    made, output = string_screen(terminal=False)
    with TrainingBar(made) as bar:
        bar.on_train_start(0, 100)
        for done in range(1, 101):
            now[0] = 61.0 * done
            bar.on_log(done, 100, StepSettings(64, dropout=0.1), 1.5, 77.0, 3600.0 - 36 * done)
    lines = output().splitlines()
    assert lines[0] == "1%: 64 px, dropout 0.1, loss 1.500, 77 images/s, 59 min 24 s left"
    assert 15 < len(lines) < 25
    assert not any(line.startswith("100%") or not line for line in lines)


def test_progress_is_logged_while_other_lines_are_hidden(monkeypatch):
    """Folds after the first hide their log: once, four fifths of a cross-validation logged no progress."""
    now = [0.0]
    monkeypatch.setattr(console.time, "perf_counter", lambda: now[0])
    made, output = string_screen(terminal=False)
    with made, hushed(), progress("looking", 100) as counted:
        logging.getLogger("efficientnetv2").info("the same as in the first fold")
        now[0] = 60.0
        counted(60)
    with TrainingBar(made) as bar:
        bar.on_train_start(0, 4)
        now[0] = 120.0
        bar.on_log(1, 4, StepSettings(64), 1.5, 77.0, 3600.0)
    assert output().splitlines() == [
        "looking: 60 of 100, 1 images/s, 40 s left",
        "25%: 64 px, loss 1.500, 77 images/s, 1 h 00 min left",
    ]


def test_terminal_shows_a_bar_and_no_progress_lines(monkeypatch):
    monkeypatch.setattr(console, "_FIRST_S", -1.0)
    made, output = string_screen(terminal=True)
    with made.counting("looking", 10) as counted:
        counted(5)
    assert "looking" in output()
    assert "5 of 10" not in output()
