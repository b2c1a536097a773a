"""``stage_time``: the length of each stage follows its share of the time and its measured step time."""

from __future__ import annotations

import json
import signal

import pytest
import torch
from tests.command_line import TINY, run_ok, run_refused
from tests.messages import mentioning, mentions
from tests.recipes import with_overrides
from tests.training.test_loop import SMALL

from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.models.factory import create
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.training.recipe_io import read_recipe as read_recipe
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.training.run_dir import NullRunDir, RunDir, validate_new_run_dir
from efficientnetv2.training.run_estimate import estimate_run
from efficientnetv2.training.run_setup import ImageCounts, RunSetup
from efficientnetv2.training.time_budget import LengthBudget, scratch_dir
from efficientnetv2.training.timing import LinearCost, StepTiming, StepTimings
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.io import remove_partial

DISTANT_SIZES = "progressive.image_size={start: 32, end: 256}"  # the machine may be busy
TWO_SIZES = "progressive={stages: 2, image_size: {start: 64, end: 128}}"
# Steps at 128 px take three times as long as at 64.
RATES = StepTimings(
    compile_s=0.0,
    steps=(StepTiming(64, 0.0, 0.08, 100), StepTiming(128, 0.0, 0.24, 300)),
    curve=LinearCost(0.0, 0.0),
    predictions=LinearCost(0.0, 0.0),
    checkpoints=LinearCost(0.0, 0.0),
    checkpoint_bytes=1,
    model_s=0.0,
    model_bytes=1,
)


def recipe(*settings):
    return with_overrides(get_recipe("quick"), [TWO_SIZES, "batch_size=8", "epochs=20", "compile=false", *settings])


@pytest.fixture
def set_length(class_folders, tmp_path):
    """A function that sets the length of a recipe with RATES, for 48 images."""
    images = load_dataset(class_folders)

    def set_length_of(one, minutes=None):
        job = RunSetup(
            recipe=one,
            network=create(SMALL, num_classes=3),
            train=images,
            val=images,
            preprocessing=Preprocessing(image_size=64),
            folder=NullRunDir(tmp_path / "run"),
            device=torch.device("cpu"),
            workers=0,
        )
        return LengthBudget(one, job.image_counts, minutes).set_length(RATES)

    return set_length_of


def stages(one):
    return estimate_run(one, RATES, ImageCounts(48, 0)).stages


def test_equal_stage_times(set_length):
    """3 : 1 of 120 steps: 90 of 0.08 s and 30 of 0.24 s, 7.2 s each."""
    found, (note,) = set_length(recipe("stage_time=equal"))
    assert [stage.steps for stage in stages(found)] == [90, 30]
    assert [stage.seconds for stage in stages(found)] == pytest.approx([7.2, 7.2])
    assert found.progressive.stage_fractions == (0.75, 0.25)
    assert mentions(note, "75", "25", "100", "80", "240")


def test_explicit_stage_times(set_length):
    """Three times as much time at 128 px as at 64: here the same number of steps."""
    found, _ = set_length(recipe("stage_time=[1, 3]"))
    assert [stage.steps for stage in stages(found)] == [60, 60]


def test_minutes_keep_the_stage_times(set_length):
    found, notes = set_length(recipe("stage_time=equal"), minutes=2)
    small, large = (stage.seconds for stage in stages(found))
    assert small == pytest.approx(large, rel=0.01)
    assert small + large == pytest.approx(0.97 * 120, rel=0.01)
    assert [note.partition(":")[0] for note in notes] == ["Stage lengths", "Epochs"]


def test_measured_stage_lengths_are_not_measured_again():
    assert recipe("stage_time=equal").measures_stages
    assert not recipe().measures_stages
    assert not recipe("stage_time=equal", "progressive.stages=1").measures_stages
    assert not recipe("stage_time=equal", "progressive.stage_fractions=[0.75, 0.25]").measures_stages


@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        (["stage_time=[1, 2, 3]"], ("stage_time", "1.0", "2.0", "3.0", "0", "2")),
        (["stage_time=[1, 0]"], ("1.0", "0.0", "0")),
        (["stage_time=even"], ("stage_time", "even", "equal")),
        (["stage_time=equal", "progressive.order=random"], ("no stages", "order is random")),
        (["stage_time=equal", "progressive.image_size={start: 64, end: 128, continuous: true}"],
         ("step", "stage")),
    ],
)  # fmt: skip
def test_invalid_stage_times_are_refused(settings, facts):
    with pytest.raises(InputError, match=mentioning(*facts)):
        recipe(*settings)


def test_measurement_writes_into_the_run_folder(tmp_path, monkeypatch):
    """Its parent may be on another disk or read-only; a run folder that does not exist yet is created in its parent."""
    run = tmp_path / "run"
    with scratch_dir(run / "deeper") as folder:
        assert folder.parent == tmp_path
    run.mkdir()
    with scratch_dir(run) as folder:
        assert folder.parent == run
        (folder / "model.safetensors").write_text("")
        validate_new_run_dir(run)  # as if it had been left by a kill
        remove_partial(run)
        assert not list(run.iterdir())
    monkeypatch.setattr("tempfile.mkdtemp", deny)
    with pytest.raises(InputError, match=mentioning("Permission denied", "output")), scratch_dir(run):
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_measurement_leaves_no_files(tmp_path, number):
    before = signal.getsignal(signal.SIGTERM)

    def stopped():
        with scratch_dir(tmp_path / "run") as folder:
            (folder / "model.safetensors").write_text("")
            signal.raise_signal(number)

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) is before


def deny(*_, **__):
    raise PermissionError(13, "Permission denied")


def test_resume_keeps_the_measured_stage_lengths(class_folders, tmp_path):
    args = ("train", class_folders, *TINY, "--epochs", "4", "--set", "stage_time=equal", "--output", "run")
    args = (*args, "--set", DISTANT_SIZES)
    done = run_ok(*args, "--verbose", cwd=tmp_path)
    assert "Stage lengths: " in done.stdout
    run = RunDir(tmp_path / "run")
    saved = read_recipe(run.recipe_file)
    small, large = saved.progressive.stage_fractions
    assert small > large, "steps at 32 px are shorter than those at 256"
    rows = [row for row in run.history() if row["kind"] == "train"]
    assert sum(row["image_size"] == 32 for row in rows) == round(small * len(rows))
    assert any(line.startswith("Stage lengths: ") for line in run.beginning()["auto_choices"])
    before = run.recipe_file.read_text()
    run.model_file.unlink()  # as if it had been killed at the end, and its checkpoints lost
    again = run_ok(*args, "--verbose", "--resume", cwd=tmp_path)
    assert mentions(again.stdout, "from step 0")
    assert "Stage lengths: " not in again.stdout
    assert run.recipe_file.read_text() == before
    sizes = [row["image_size"] for row in run.history() if row["kind"] == "train"]
    assert sizes == [row["image_size"] for row in rows]
    run_refused(*args, "--resume", "--set", "stage_time=[1, 3]", cwd=tmp_path, names=("stage_time=[1, 3]",))


def test_dry_run_shows_the_stage_times(class_folders, tmp_path):
    args = ("train", "--dry-run", class_folders, *TINY, "--epochs", "20", "--set", "stage_time=[3, 1]", "--json")
    done = run_ok(*args, cwd=tmp_path)
    result = json.loads(done.stdout)
    first, last = result["stages"]
    assert first["seconds"] == pytest.approx(3 * last["seconds"], rel=0.15)
    assert any(note.startswith("Stage lengths: ") for note in result["auto_choices"])
