"""``effnetv2 demo``: inspect, transfer, cross-validate, report, as a newcomer meets them."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pandas as pd
import pytest
import typer
from tests.command_line import effnetv2
from tests.messages import mentions
from tests.pages import commands
from tests.recipes import with_overrides

from efficientnetv2.cli import demo, parsing
from efficientnetv2.cli.demo import SETTINGS, bundled_images, story
from efficientnetv2.cli.main import app
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.training.run_dir import RUN_FILES
from efficientnetv2.utils.errors import InputError

ROOT = Path(__file__).parents[2]
WEIGHTS = "weights/efficientnetv2_b0.safetensors"


@pytest.fixture
def clone(tmp_path):
    """As the repository is, with 60 of the images."""
    pictures = pd.read_csv(ROOT / "examples/land_cover/pictures.csv").groupby("label").head(20)
    (tmp_path / "examples/land_cover/pictures").mkdir(parents=True)
    (tmp_path / "examples/weights").mkdir()
    for path in pictures["path"]:
        shutil.copy(ROOT / "examples/land_cover" / path, tmp_path / "examples/land_cover" / path)
    pictures.to_csv(tmp_path / "examples/land_cover/pictures.csv", index=False)
    shutil.copy(ROOT / "examples" / WEIGHTS, tmp_path / "examples" / WEIGHTS)
    return tmp_path


@pytest.mark.slow
def test_the_story_from_pictures_to_an_honest_figure(clone):
    done = effnetv2("demo", "--workers", "0", "--json", cwd=clone, timeout=900)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    out = clone / "runs/demo"
    assert json.loads((out / "folds/report.json").read_text())["top1"] == told["top1"]
    assert (told["num_images"], told["split_by"], told["evaluated_on"]) == (60, "place", "out-of-fold")
    assert {"recipe": "finetune", "class_sampling": "sqrt"}.items() <= {
        "recipe": told["recipe"]["name"],
        "class_sampling": told["recipe"]["class_sampling"],
    }.items()
    assert told["recipe"]["weights"] == f"examples/{WEIGHTS}"
    assert json.loads((out / "run.json").read_text())["command"].startswith("effnetv2 demo ")
    assert {path.name for path in out.iterdir()} <= {*RUN_FILES, "inspection", "folds"}, "what the next demo replaces"
    inspected = json.loads((out / "inspection/inspection.json").read_text())
    assert inspected
    page = (out / "folds/report.html").read_text()
    for topic in ("linear probe", "locations", "Grad-CAM"):
        assert topic in page, topic
    for number, verb in enumerate(("check", "train", "crossval"), start=1):
        assert mentions(done.stderr, f"{number} of 3")
        assert f"effnetv2 {verb} " in done.stderr
    opened = re.findall(r"^  (runs/demo/\S+\.html) ", done.stderr, re.MULTILINE)
    assert len(opened) == 3
    assert all((clone / page).is_file() for page in opened)
    answered = effnetv2("predict", "runs/demo", "examples/land_cover/pictures", "--device", "cpu", cwd=clone)
    assert answered.returncode == 0, answered.stderr
    assert len(pd.read_csv(clone / "predictions.csv")) == 60


def test_each_step_is_a_command_that_one_can_type():
    """Parsed as the program parses them, after a shell's splitting; no setting is unknown, none is a default said."""
    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    steps = story(bundled_images(), Path("runs/demo"), seed=3, workers=2)
    assert [verb for _, verb, _ in steps] == ["check", "train", "crossval"]
    for _, verb, words in steps:
        context = verbs[verb].make_context(verb, shlex.split(shlex.join(words)))
        if verb == "train":
            assert context.params["seed"] == 3
            settled = with_overrides(get_recipe("finetune"), context.params["settings"])
    assert settled == with_overrides(get_recipe("finetune"), SETTINGS)
    assert settled.class_sampling == "sqrt"


def test_how_long_the_folds_take_follows_from_the_run_before(tmp_path):
    """24 s for 480 of 600 images are 60 s for three times 400 of them; five seeds took 62 to 65 s."""
    (tmp_path / "report.json").write_text(json.dumps({"num_train_images": 480, "num_images": 120, "wall_s": 24.0}))
    assert demo.crossval_seconds(tmp_path) == pytest.approx(60)


@pytest.mark.parametrize(
    ("slow", "epochs", "seconds"), [(0.5, 6, 76), (1, 6, 152), (2.3, 6, 350), (4, 2, 333), (7, 1, 168), (50, 1, 1200)]
)
def test_on_a_slow_machine_the_demo_trains_fewer_epochs(slow, epochs, seconds):
    """To take at most six minutes, of which a third of a usual run does not hang on the epochs."""
    found = demo.affordable(slow)
    assert found == (epochs, pytest.approx(seconds, abs=1))
    assert found[1] <= demo.MOST_S or slow == 50


def test_a_slow_machine_is_told_how_long_it_takes_and_leaves_the_folds_out(clone, monkeypatch, capsys):
    monkeypatch.chdir(clone)
    monkeypatch.setattr(demo, "slowness", lambda: 50.0)
    ran = []

    def run(context, verb, words):
        ran.append((verb, words))
        if verb == "train":
            Path("runs/demo").mkdir(parents=True)
            told = {"num_train_images": 480, "num_images": 120, "wall_s": 300.0}
            Path("runs/demo/report.json").write_text(json.dumps(told))

    monkeypatch.setattr(demo, "run", run)
    demo.demo(None)
    said = capsys.readouterr().out
    assert [verb for verb, _ in ran] == ["check", "train"]
    assert "epochs=1" in ran[1][1]
    assert said.index("Time: about") < said.index("Step 1")
    assert "Skipped" in said
    assert "folds/report.html" not in said
    for setting in SETTINGS:
        assert setting.startswith(("epochs=", "val_interval_epochs=")) or setting in ran[1][1]


def test_installing_shows_its_progress():
    installs = [
        line for line in (ROOT / "Makefile").read_text().splitlines() if "install" in line and "--editable" in line
    ]
    assert installs
    assert not [line for line in installs if "--quiet" in line or " -q" in line]


def test_the_page_gives_the_same_commands(monkeypatch):
    monkeypatch.chdir(ROOT)
    given = [_parsed(verb, words) for verb, *words in commands(ROOT / "docs/tutorials/land-cover.md")]
    for _, verb, words in story(Path("examples/land_cover/pictures.csv"), Path("runs/demo"), seed=0, workers=None):
        assert _parsed(verb, words) in given


def _parsed(verb, words):
    """A command with its options, whatever their order and the folder of its run."""
    options = typer.main.get_command(app).commands[verb].make_context(verb, list(words)).params
    return verb, options | {"out": None, "recipe": Path(options.get("recipe") or "").name}


def test_without_the_weights_it_says_where_they_come_from(clone):
    (clone / "examples" / WEIGHTS).unlink()
    done = effnetv2("demo", cwd=clone)
    assert done.returncode == 2
    assert "git checkout examples/weights" in done.stderr
    assert not (clone / "runs").exists()


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
    (demo.OUT / "inspection").mkdir()
    (demo.OUT / "folds/fold1").mkdir(parents=True)
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


def test_an_earlier_demo_stays_where_another_could_not_be_made(clone):
    (clone / "examples" / WEIGHTS).unlink()
    lies(clone / "runs/demo", "effnetv2 demo")
    assert effnetv2("demo", cwd=clone).returncode == 2
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
        (ROOT, "examples/land_cover/pictures.csv"),
        (ROOT / "examples", "land_cover/pictures.csv"),
        (ROOT / "examples/land_cover", "pictures.csv"),
    ):
        monkeypatch.chdir(place)
        assert bundled_images() == Path(pictures)
        (words,) = [words for _, verb, words in story(bundled_images(), Path("out"), seed=0, workers=None)
                    if verb == "train"]  # fmt: skip
        assert Path(words[words.index("--weights") + 1]).is_file()


def test_what_comes_next_can_be_pasted():
    lines = list(demo.next_lines(Path("set/pictures.csv"), Path("my runs/demo")))
    assert mentions(lines, "effnetv2 predict 'my runs/demo' set/pictures")
    assert mentions(lines, "effnetv2 train YOUR_IMAGES")
