"""``effnetv2 demo``: check, train, report, as a newcomer meets them."""

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
SHORT = "from efficientnetv2.cli import demo, main; demo.MINUTES = 1.0; main.main()"


@pytest.fixture
def clone(tmp_path):
    """As the repository is, with 100 of the images."""
    for folder in (ROOT / "examples/satellite").glob("*/"):
        (tmp_path / "examples/satellite" / folder.name).mkdir(parents=True)
        for file in sorted(folder.glob("*.jpg"))[:20]:
            shutil.copy(file, tmp_path / "examples/satellite" / folder.name / file.name)
    (tmp_path / "examples/weights").mkdir()
    shutil.copy(ROOT / "examples" / WEIGHTS, tmp_path / "examples" / WEIGHTS)
    return tmp_path


@pytest.mark.slow
def test_it_checks_trains_and_reports(clone):
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
    for number, verb in enumerate(("check", "train"), start=1):
        assert mentions(done.stderr, f"{number} of 2")
        assert f"effnetv2 {verb} " in done.stderr
    pages = re.findall(r"^  (runs/demo/\S+\.html) ", done.stderr, re.MULTILINE)
    assert len(pages) == 2
    assert all((clone / page).is_file() for page in pages)
    predicted = effnetv2("predict", "runs/demo", "examples/satellite", "--device", "cpu", cwd=clone)
    assert predicted.returncode == 0, predicted.stderr
    assert len(pd.read_csv(clone / "predictions.csv")) == 100


def test_each_step_is_a_command_that_one_can_type():
    """Parsed as the program parses them, after a shell's splitting."""
    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    steps = story(bundled_images(), Path("runs/demo"), seed=3, workers=2)
    assert [verb for _, verb, _ in steps] == ["check", "train"]
    for _, verb, words in steps:
        context = verbs[verb].make_context(verb, shlex.split(shlex.join(words)))
    assert context.params["seed"] == 3


def test_the_bundled_images_and_weights_are_small():
    """So that a clone stays small: 5 MB of images, 12 MB (MiB) of weights."""
    images = [file for folder in ("satellite", "land_cover") for file in (ROOT / "examples" / folder).rglob("*.jpg")]
    assert sum(file.stat().st_size for file in images) < 5_000_000
    assert sum(file.stat().st_size for file in (ROOT / "examples/weights").glob("*.safetensors")) < 12 * 2**20


def test_installing_shows_its_progress():
    installs = [
        line for line in (ROOT / "Makefile").read_text().splitlines() if "install" in line and "--editable" in line
    ]
    assert installs
    assert not [line for line in installs if "--quiet" in line or " -q" in line]


def test_images_without_weights_are_not_those_of_the_demo(clone, monkeypatch):
    """A folder examples/satellite may be the user's own; where nothing is complete, the message has the way back."""
    (clone / "examples" / WEIGHTS).unlink()
    monkeypatch.chdir(clone)
    assert bundled_images() == ROOT / "examples/satellite"
    monkeypatch.setattr(initial_weights, "EXAMPLES", clone / "examples")
    with pytest.raises(InputError, match=mentioning(clone, WEIGHTS, "git checkout examples")):
        bundled_images()


def lies(folder, command, *further):
    """As a run that this command has begun, and what else there is."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"command": command}))
    for name in ("recipe.yaml", "model.safetensors", *further):
        (folder / name).write_text("kept")
    return folder


def test_an_earlier_demo_is_replaced(tmp_path, monkeypatch):
    """One that was stopped as well; nothing is there the first time."""
    monkeypatch.chdir(tmp_path)
    demo.make_room(demo.OUT)
    lies(demo.OUT, "effnetv2 demo --seed 3", ".model.1234.partial")
    for folder in ("inspection", "folds"):
        (demo.OUT / folder).mkdir()
    demo.make_room(demo.OUT)
    assert not demo.OUT.exists()
    (demo.OUT / "inspection").mkdir(parents=True)
    demo.make_room(demo.OUT)
    assert (demo.OUT / "inspection").exists()


@pytest.mark.parametrize(
    ("command", "further", "out", "said"),
    [
        ("effnetv2 train pictures.csv --output runs/demo", (), "runs/demo", "has a run that the demo did not make"),
        ("effnetv2 demo", ("notes.txt",), "runs/demo", "has other files next to an earlier demo .'notes.txt'."),
        ("effnetv2 demo", (), "runs/other", "holds a run already"),
    ],
)
def test_what_no_demo_has_made_is_left_alone(command, further, out, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = lies(Path(out), command, *further)
    before = sorted(folder.iterdir())
    with pytest.raises(InputError, match=said):
        demo.make_room(Path(out))
    assert sorted(folder.iterdir()) == before


def test_an_earlier_demo_stays_where_another_could_not_be_made(clone, monkeypatch):
    (clone / "examples" / WEIGHTS).unlink()
    lies(clone / "runs/demo", "effnetv2 demo")
    monkeypatch.chdir(clone)
    monkeypatch.setattr(initial_weights, "EXAMPLES", clone / "examples")
    assert CliRunner().invoke(app, ["demo"]).exit_code == 2
    assert (clone / "runs/demo/model.safetensors").read_text() == "kept"


def test_only_its_own_folder_is_cleared(clone):
    (clone / "mine").mkdir()
    (clone / "mine/notes.txt").write_text("kept")
    done = effnetv2("demo", "--output", "mine", cwd=clone)
    assert done.returncode == 2
    assert mentions(done.stderr, "notes.txt")
    assert [path.name for path in (clone / "mine").iterdir()] == ["notes.txt"]


def test_a_step_that_is_stopped_ends_the_story(capsys):
    """Ctrl-C and SIGTERM, with the words that say how to go on."""

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


def test_the_story_begins_wherever_one_stands_in_the_clone(monkeypatch):
    for place, pictures in (
        (ROOT, "examples/satellite"),
        (ROOT / "examples", "satellite"),
        (ROOT / "examples/weights", ROOT / "examples/satellite"),
    ):
        monkeypatch.chdir(place)
        assert bundled_images() == Path(pictures)
        (words,) = [words for _, verb, words in story(bundled_images(), Path("out"), seed=0, workers=None)
                    if verb == "train"]  # fmt: skip
        assert Path(words[words.index("--weights") + 1]).is_file()


def test_what_comes_next_can_be_pasted():
    lines = list(demo.next_lines(Path("my runs/demo")))
    assert mentions(lines, "effnetv2 predict 'my runs/demo' NEW_IMAGES")
    assert mentions(lines, "effnetv2 train YOUR_IMAGES")
