"""A run that has come to its end: it is left alone, and nothing that it needs is gone before that."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from tests.command_line import TINY, effnetv2, killed_at
from tests.conftest import COLORS, paint
from tests.faults.test_kill_and_resume import bits
from tests.messages import mentions
from tests.processes import effnetv2_together, environment, free_port

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.evaluation.predictions import save_predictions

# A checkpoint after every step: at the end two are there.
WORDS = (*TINY, "--weights", "none", "--set", "checkpoint_minutes=0", "--set", "ghost_batch_size=4")
SAVING = "efficientnetv2.training.post_training:save_model"
REPORTING = "efficientnetv2.evaluation.report:Report.write"
ANSWERS = "efficientnetv2.evaluation.evaluation_result:write_predictions"
DROPPING = "efficientnetv2.workflows.run_report:remove_checkpoints"


def contents(run):
    """Of every file: its bytes' digest, and when it was last touched."""
    files = (path for path in run.rglob("*") if path.is_file())
    return {path.name: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) for path in files}


def checkpoints(run):
    return [path.name for path in (run / "checkpoints").iterdir()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with nothing left to do, and what it said."""
    here = tmp_path_factory.mktemp("finished")
    for name, color in COLORS.items():
        for number in range(8):
            paint(here / "pictures" / name / f"{number}.jpg", color, number)
    done = effnetv2("train", here / "pictures", *WORDS, "--output", here / "run", cwd=here)
    assert done.returncode == 0, done.stderr
    return here


def test_it_keeps_the_model_file_and_no_checkpoint(finished):
    assert checkpoints(finished / "run") == []
    assert (finished / "run/model.safetensors").stat().st_size > 4 * 20_000  # its weights


@pytest.mark.parametrize("processes", [1, 2])
def test_resumed_it_says_so_and_changes_nothing(processes, finished):
    before = contents(finished / "run")
    words = ("train", finished / "pictures", "--output", finished / "run", "--resume", "--device", "cpu")
    done, *others = (
        [effnetv2(*words, cwd=finished)] if processes == 1 else effnetv2_together(processes, *words, cwd=finished)
    )
    assert done.returncode == 0, done.stderr
    assert mentions(done.stdout, "finished", "1 epoch")
    assert f"Report: {finished / 'run/report.html'}" in done.stdout
    assert mentions(done.stdout, finished / "run", "effnetv2 train DATA --weights", "--epochs")
    assert "Continuing" not in done.stdout
    assert all((one.returncode, one.stdout, one.stderr) == (0, "", "") for one in others)
    assert contents(finished / "run") == before


def test_a_program_gets_the_report_again(finished):
    words = ("train", finished / "pictures", "--output", finished / "run", "--resume", "--json")
    done = effnetv2(*words, cwd=finished)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((finished / "run/report.json").read_text())


def test_it_is_compared_with_another_that_is_named(finished, tmp_path):
    """As the report of a run that is given --baseline says it, and nothing in the folder changes."""
    other, run = finished / "run", tmp_path / "slow"
    words = ("train", finished / "pictures", *WORDS, "--set", "optimizer.lr=1e-9", "--output", run)
    done = effnetv2(*words, "--baseline", other, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (said,) = [line for line in done.stdout.splitlines() if line.startswith("Better than run? ")]
    before = contents(run)
    words = ("train", finished / "pictures", "--output", run, "--resume", "--baseline")
    done = effnetv2(*words, other, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout.splitlines()
    assert contents(run) == before
    save_predictions(tmp_path / "strange", pd.DataFrame({"path": ["z"], "label": ["x"], "true_label": ["x"]}))
    done = effnetv2(*words, "strange", cwd=tmp_path)
    assert done.returncode == 2
    assert mentions(done.stderr, "--baseline")
    (run / "report.html").unlink()
    done = effnetv2(*words, other, cwd=tmp_path)
    assert done.returncode == 2
    assert mentions(done.stderr, run, "effnetv2 evaluate", "DATA", "--baseline")


def test_asked_for_more_epochs_it_names_the_way_to_them(finished):
    words = ("train", finished / "pictures", "--output", finished / "run", "--resume", "--epochs", "2")
    done = effnetv2(*words, cwd=finished)
    assert done.returncode == 2
    assert mentions(done.stderr, "1.0", "2.0", "epoch")
    words = ("train", finished / "pictures", *WORDS, "--weights", finished / "run", "--output", "longer")
    done = effnetv2(*words, cwd=finished)
    assert done.returncode == 0, done.stderr
    assert mentions(done.stdout, "classifier")


@pytest.mark.parametrize("place", [SAVING, REPORTING, ANSWERS])
def test_killed_before_its_report_is_whole_it_has_lost_nothing(place, finished, tmp_path):
    """The last steps are not done again, and the rest is as if nothing had happened."""
    words = ("train", finished / "pictures", *WORDS, "--output", tmp_path / "run")
    killed_at(place, *words, cwd=tmp_path)
    steps = (tmp_path / "run/metrics.jsonl").read_text().count('"kind": "train"')
    assert len(checkpoints(tmp_path / "run")) == 2
    done = effnetv2(*words, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert mentions(done.stdout, "Evaluating on")
    assert (tmp_path / "run/metrics.jsonl").read_text().count('"kind": "train"') == steps
    assert checkpoints(tmp_path / "run") == []
    assert bits(tmp_path / "run") == bits(finished / "run")
    answers = [(run / "predictions.csv").read_text() for run in (tmp_path / "run", finished / "run")]
    assert answers[0] == answers[1]


def test_pictures_that_lie_elsewhere_now_are_gone_on_with(finished, tmp_path):
    """A cluster's job finds its copy in a place of its own each time. Others, called otherwise, are refused."""
    shutil.copytree(finished / "pictures", tmp_path / "job123/pictures")
    words = (*WORDS, "--output", tmp_path / "run")
    killed_at(ANSWERS, "train", tmp_path / "job123/pictures", *words, cwd=tmp_path)
    (tmp_path / "job123").rename(tmp_path / "job456")
    done = effnetv2("train", tmp_path / "job456/pictures", *words, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert mentions(said, tmp_path, "job456/pictures", "job123/pictures")
    assert bits(tmp_path / "run") == bits(finished / "run")
    dataset = ImageDataset.from_csv(tmp_path / "run/dataset.csv", root=tmp_path / "run", source="")
    assert all(Path(dataset.file(row)).is_file() for row in range(len(dataset))), "the list leads there"


def test_a_validation_image_that_went_bad_and_was_removed_does_not_bar_the_report(finished, tmp_path):
    """Damaged after a kill at the end of training; removed after a second one, when it is listed as skipped."""
    shutil.copytree(finished / "pictures", tmp_path / "pictures")
    words = ("train", tmp_path / "pictures", *WORDS, "--output", tmp_path / "run")
    killed_at(SAVING, *words, cwd=tmp_path)
    dataset = ImageDataset.from_csv(tmp_path / "run/dataset.csv", root=tmp_path / "pictures", source="")
    val = dataset.subset("val")
    bad = Path(val.file(0))
    bad.write_bytes(bad.read_bytes()[:400])
    killed_at(REPORTING, *words, "--resume", cwd=tmp_path)
    assert (tmp_path / "run/model.safetensors").is_file(), "saved before it was evaluated"
    bad.unlink()
    done = effnetv2(*words, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answered = pd.read_csv(tmp_path / "run/predictions.csv")
    assert set(answered["path"]) == set(val.paths[1:])
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert any(mentions(note, len(val), "1", "val") for note in report["notes"])
    assert mentions(" ".join(done.stdout.split()), len(val), "1", "val", "image")


def test_killed_after_its_report_it_has_finished_and_what_was_left_goes(finished, tmp_path):
    words = ("train", finished / "pictures", *WORDS, "--output", tmp_path / "run")
    killed_at(DROPPING, *words, cwd=tmp_path)
    assert len(checkpoints(tmp_path / "run")) == 2
    before = contents(tmp_path / "run")
    done = effnetv2(*words, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "has finished" in done.stdout
    left = contents(tmp_path / "run")
    assert checkpoints(tmp_path / "run") == []
    assert left.items() < before.items()
    assert {name for name in before if name not in left} == {name for name in before if name.startswith("step_")}


def test_without_its_report_it_is_not_trained_anew(finished, tmp_path):
    run = finished / "bare"  # next to the images, which its list gives as seen from it
    shutil.copytree(finished / "run", run)
    (run / "report.json").unlink()
    before = contents(run)
    done = effnetv2("train", finished / "pictures", *WORDS, "--output", run, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert mentions(done.stdout, run, "effnetv2 evaluate", "DATA")
    assert contents(run) == before


def test_a_machine_that_takes_anothers_place_goes_on_until_the_report_is_whole(finished, tmp_path):
    """It does not know of restarts; the run is killed when its model file is there."""
    words = ("train", finished / "pictures", *WORDS, "--output", tmp_path / "run")
    place = environment(0, 1, free_port()) | {"TORCHELASTIC_RUN_ID": "one launch"}
    killed_at(REPORTING, *words, cwd=tmp_path, environment=place)
    assert (tmp_path / "run/model.safetensors").exists()
    done = effnetv2(*words, cwd=tmp_path, environment=place)
    assert done.returncode == 0, done.stderr
    assert "Started again by the same launch" in done.stdout
    assert (tmp_path / "run/report.json").exists()
    done = effnetv2(*words, cwd=tmp_path, environment=place)
    assert done.returncode == 2
    assert mentions(done.stderr, "run", "finished")
