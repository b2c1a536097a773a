"""``effnetv2 demo``: check, train and report, as a new user runs it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import typer
from filelock import FileLock
from tests.command_line import effnetv2
from tests.messages import mentioning, mentions
from typer.testing import CliRunner

from efficientnetv2.cli import demo, parsing
from efficientnetv2.cli.demo import bundled_images, story
from efficientnetv2.cli.main import app
from efficientnetv2.training import initial_weights
from efficientnetv2.training.run_dir import RUN_FILES
from efficientnetv2.utils.errors import InputError

ROOT = Path(__file__).parents[2]
WEIGHTS = "weights/efficientnetv2_b0.safetensors"
SHORT = "from efficientnetv2.cli import demo, main; demo.EPOCHS = 3; main.main()"


@pytest.fixture
def clone(tmp_path):
    """A copy of the examples in the repository with 60 of the images."""
    for folder in (ROOT / "examples/satellite").glob("*/"):
        (tmp_path / "examples/satellite" / folder.name).mkdir(parents=True)
        for file in sorted(folder.glob("*.jpg"))[:12]:
            shutil.copy(file, tmp_path / "examples/satellite" / folder.name / file.name)
    (tmp_path / "examples/weights").mkdir()
    shutil.copy(ROOT / "examples" / WEIGHTS, tmp_path / "examples" / WEIGHTS)
    return tmp_path


@pytest.mark.slow
def test_demo_checks_trains_and_reports(clone):
    done = subprocess.run(
        [sys.executable, "-c", SHORT, "demo", "--workers", "0", "--json"],
        cwd=clone, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    out = clone / "runs/demo"
    assert json.loads((out / "report.json").read_text())["top1"] == result["top1"]
    assert result["recipe"]["weights"] == f"examples/{WEIGHTS}"
    assert json.loads((out / "run.json").read_text())["command"].startswith("effnetv2 demo ")
    assert {path.name for path in out.iterdir()} <= {*RUN_FILES, "inspection"}, "what the next demo replaces"
    assert json.loads((out / "inspection/inspection.json").read_text())
    for number, command in enumerate(("check", "train"), start=1):
        assert mentions(done.stderr, f"{number} of 2")
        assert f"effnetv2 {command} " in done.stderr
    pages = re.findall(r"^  (runs/demo/\S+\.html) ", done.stderr, re.MULTILINE)
    assert len(pages) == 2
    assert all((clone / page).is_file() for page in pages)
    predicted = effnetv2("predict", "runs/demo", "examples/satellite", "--device", "cpu", cwd=clone)
    assert predicted.returncode == 0, predicted.stderr
    assert len(pd.read_csv(clone / "predictions.csv")) == 60


def test_each_step_is_a_valid_command():
    """Parsed by the program, after splitting by a shell."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    steps = story(bundled_images(), Path("runs/demo"), seed=3, workers=2)
    assert [command for _, command, _ in steps] == ["check", "train"]
    for _, command, args in steps:
        context = commands[command].make_context(command, shlex.split(shlex.join(args)))
    assert context.params["seed"] == 3


def test_bundled_images_and_weights_are_small():
    """A clone stays small: 5 MB of images, 12 MiB of weights."""
    images = [file for folder in ("satellite", "land_cover") for file in (ROOT / "examples" / folder).rglob("*.jpg")]
    assert sum(file.stat().st_size for file in images) < 5_000_000
    assert sum(file.stat().st_size for file in (ROOT / "examples/weights").glob("*.safetensors")) < 12 * 2**20


def test_installation_shows_its_progress():
    installs = [
        line for line in (ROOT / "Makefile").read_text().splitlines() if "install" in line and "--editable" in line
    ]
    assert installs
    assert not [line for line in installs if "--quiet" in line or " -q" in line]


def test_images_without_weights_are_not_the_bundled_images(clone, monkeypatch):
    """A folder examples/satellite may belong to the user. If no folder is complete, the message names the fix."""
    (clone / "examples" / WEIGHTS).unlink()
    monkeypatch.chdir(clone)
    assert bundled_images() == ROOT / "examples/satellite"
    monkeypatch.setattr(initial_weights, "EXAMPLES", clone / "examples")
    with pytest.raises(InputError, match=mentioning(clone, WEIGHTS, "git checkout examples")):
        bundled_images()


def write_run(folder, command, *further):
    """Write the files of a run that was started with this command, and further files."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"command": command}))
    for name in ("recipe.yaml", "model.safetensors", *further):
        (folder / name).write_text("kept")
    return folder


def test_earlier_demo_is_replaced(tmp_path, monkeypatch):
    """Also a demo that was stopped. The first time there is nothing to replace."""
    monkeypatch.chdir(tmp_path)
    demo.make_room(demo.OUT)
    write_run(demo.OUT, "effnetv2 demo --seed 3", ".model.1234.partial", ".DS_Store")
    (demo.OUT / "inspection").mkdir()
    demo.make_room(demo.OUT)
    assert not demo.OUT.exists()
    (demo.OUT / "inspection").mkdir(parents=True)
    demo.make_room(demo.OUT)
    assert (demo.OUT / "inspection").exists()


@pytest.mark.parametrize(
    ("command", "further", "out", "message"),
    [
        ("effnetv2 train pictures.csv --output runs/demo", (), "runs/demo", "has a run that the demo did not make"),
        ("effnetv2 demo", ("notes.txt",), "runs/demo", "has other files next to an earlier demo .'notes.txt'."),
        ("effnetv2 demo", (), "runs/other", "holds a run already"),
    ],
)
def test_folder_that_is_not_a_demo_is_refused(command, further, out, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write_run(Path(out), command, *further)
    before = sorted(folder.iterdir())
    with pytest.raises(InputError, match=message):
        demo.make_room(Path(out))
    assert sorted(folder.iterdir()) == before


def test_running_demo_is_kept(tmp_path, monkeypatch):
    """Its checkpoints would be lost, as by the same command in a second terminal."""
    monkeypatch.chdir(tmp_path)
    write_run(demo.OUT, "effnetv2 demo", "running.lock")
    with FileLock(demo.OUT / "running.lock"), pytest.raises(InputError, match=mentioning(demo.OUT, "running")):
        demo.make_room(demo.OUT)
    assert (demo.OUT / "run.json").exists()


def test_earlier_demo_is_kept_if_the_next_cannot_start(clone, monkeypatch):
    (clone / "examples" / WEIGHTS).unlink()
    write_run(clone / "runs/demo", "effnetv2 demo")
    monkeypatch.chdir(clone)
    monkeypatch.setattr(initial_weights, "EXAMPLES", clone / "examples")
    assert CliRunner().invoke(app, ["demo"]).exit_code == 2
    assert (clone / "runs/demo/model.safetensors").read_text() == "kept"


def test_output_folder_with_other_files_is_refused(clone):
    (clone / "mine").mkdir()
    (clone / "mine/notes.txt").write_text("kept")
    done = effnetv2("demo", "--output", "mine", cwd=clone)
    assert done.returncode == 2
    assert mentions(done.stderr, "notes.txt")
    assert [path.name for path in (clone / "mine").iterdir()] == ["notes.txt"]


def test_interrupted_step_ends_the_demo(capsys):
    """By Ctrl-C or SIGTERM, with a message that names the command to resume."""

    def stopped(number: int) -> None:
        raise KeyboardInterrupt(f"go on with {number}")

    program = parsing.app()
    program.command("stopped", cls=parsing.Command)(stopped)
    program.command("other", cls=parsing.Command)(stopped)
    context = typer.main.get_command(program).make_context("effnetv2", ["stopped", "3"])
    with pytest.raises(typer.Exit) as ended:
        demo.run(context, "stopped", ["3"])
    assert ended.value.exit_code == 130
    assert mentions(capsys.readouterr().err, "go on with 3")


def test_demo_starts_in_any_folder_of_the_clone(monkeypatch):
    for folder, images in (
        (ROOT, "examples/satellite"),
        (ROOT / "examples", "satellite"),
        (ROOT / "examples/weights", ROOT / "examples/satellite"),
    ):
        monkeypatch.chdir(folder)
        assert bundled_images() == Path(images)
        (args,) = [args for _, command, args in story(bundled_images(), Path("out"), seed=0, workers=None)
                    if command == "train"]  # fmt: skip
        assert Path(args[args.index("--weights") + 1]).is_file()


def test_next_commands_can_be_pasted():
    lines = list(demo.next_lines(Path("my runs/demo")))
    assert mentions(lines, "effnetv2 predict 'my runs/demo' NEW_IMAGES")
    assert mentions(lines, "effnetv2 train YOUR_IMAGES")
