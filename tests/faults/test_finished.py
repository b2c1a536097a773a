"""A finished run is never changed, and keeps all files that it needs until its end."""

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

# A checkpoint after each step, so that two exist at the end.
ARGS = (*TINY, "--weights", "none", "--set", "checkpoint_minutes=0", "--set", "ghost_batch_size=4")
SAVING = "efficientnetv2.training.post_training:save_model"
REPORTING = "efficientnetv2.evaluation.report:Report.write"
PREDICTIONS = "efficientnetv2.evaluation.evaluation_result:write_predictions"
DROPPING = "efficientnetv2.workflows.run_report:remove_checkpoints"


def contents(run):
    """Return the digest and the modification time of each file."""
    files = (path for path in run.rglob("*") if path.is_file())
    return {path.name: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) for path in files}


def checkpoints(run):
    return [path.name for path in (run / "checkpoints").iterdir()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with images and a finished run."""
    here = tmp_path_factory.mktemp("finished")
    for name, color in COLORS.items():
        for number in range(8):
            paint(here / "pictures" / name / f"{number}.jpg", color, number)
    done = effnetv2("train", here / "pictures", *ARGS, "--output", here / "run", cwd=here)
    assert done.returncode == 0, done.stderr
    return here


def test_finished_run_has_its_model_file_and_no_checkpoints(finished):
    assert checkpoints(finished / "run") == []
    assert (finished / "run/model.safetensors").stat().st_size > 4 * 20_000  # its weights


@pytest.mark.parametrize("processes", [1, 2])
def test_resume_of_a_finished_run_changes_no_files(processes, finished):
    before = contents(finished / "run")
    args = ("train", finished / "pictures", "--output", finished / "run", "--resume", "--device", "cpu")
    done, *others = (
        [effnetv2(*args, cwd=finished)] if processes == 1 else effnetv2_together(processes, *args, cwd=finished)
    )
    assert done.returncode == 0, done.stderr
    assert mentions(done.stdout, "finished", "1 epoch")
    assert f"Report: {finished / 'run/report.html'}" in done.stdout
    assert mentions(done.stdout, finished / "run", "effnetv2 train DATA --weights", "--epochs")
    assert "Continuing" not in done.stdout
    assert all((one.returncode, one.stdout, one.stderr) == (0, "", "") for one in others)
    assert contents(finished / "run") == before


def test_resume_with_json_prints_the_report_again(finished):
    args = ("train", finished / "pictures", "--output", finished / "run", "--resume", "--json")
    done = effnetv2(*args, cwd=finished)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((finished / "run/report.json").read_text())


def test_finished_run_with_a_baseline_gives_the_command_that_compares_them(finished, tmp_path):
    before = contents(finished / "run")
    args = ("train", finished / "pictures", "--output", finished / "run", "--resume", "--baseline", "other")
    done = effnetv2(*args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"effnetv2 compare other {finished / 'run'}" in done.stdout
    assert contents(finished / "run") == before


def test_more_epochs_for_a_finished_run_are_refused_with_a_fix(finished):
    args = ("train", finished / "pictures", "--output", finished / "run", "--resume", "--epochs", "2")
    done = effnetv2(*args, cwd=finished)
    assert done.returncode == 2
    assert mentions(done.stderr, "--epochs: 1 there, 2 here")
    args = ("train", finished / "pictures", *ARGS, "--weights", finished / "run", "--output", "longer")
    done = effnetv2(*args, cwd=finished)
    assert done.returncode == 0, done.stderr
    assert mentions(done.stdout, "classifier")


@pytest.mark.parametrize("function", [SAVING, REPORTING, PREDICTIONS])
def test_run_killed_before_its_report_resumes_without_loss(function, finished, tmp_path):
    """No step is repeated, and the result equals that of an uninterrupted run."""
    args = ("train", finished / "pictures", *ARGS, "--output", tmp_path / "run")
    killed_at(function, *args, cwd=tmp_path)
    steps = (tmp_path / "run/metrics.jsonl").read_text().count('"kind": "train"')
    assert len(checkpoints(tmp_path / "run")) == 2
    done = effnetv2(*args, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert mentions(done.stdout, "Evaluating on")
    assert (tmp_path / "run/metrics.jsonl").read_text().count('"kind": "train"') == steps
    assert checkpoints(tmp_path / "run") == []
    assert bits(tmp_path / "run") == bits(finished / "run")
    predictions = [(run / "predictions.csv").read_text() for run in (tmp_path / "run", finished / "run")]
    assert predictions[0] == predictions[1]


def test_run_resumes_with_images_in_another_folder(finished, tmp_path):
    """A job of a cluster may copy the images to another folder each time."""
    shutil.copytree(finished / "pictures", tmp_path / "job123/pictures")
    args = (*ARGS, "--output", tmp_path / "run")
    killed_at(PREDICTIONS, "train", tmp_path / "job123/pictures", *args, cwd=tmp_path)
    (tmp_path / "job123").rename(tmp_path / "job456")
    done = effnetv2("train", tmp_path / "job456/pictures", *args, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    output = " ".join(done.stdout.split())
    assert mentions(output, tmp_path, "job456/pictures", "job123/pictures")
    assert bits(tmp_path / "run") == bits(finished / "run")
    dataset = ImageDataset.from_csv(tmp_path / "run/dataset.csv", root=tmp_path / "run", source="")
    assert all(Path(dataset.file(row)).is_file() for row in range(len(dataset))), "the list leads there"


def test_validation_image_lost_after_training_does_not_prevent_the_report(finished, tmp_path):
    """Damaged after a first kill at the end of training, and removed after a second kill. It is listed as skipped."""
    shutil.copytree(finished / "pictures", tmp_path / "pictures")
    args = ("train", tmp_path / "pictures", *ARGS, "--output", tmp_path / "run")
    killed_at(SAVING, *args, cwd=tmp_path)
    dataset = ImageDataset.from_csv(tmp_path / "run/dataset.csv", root=tmp_path / "pictures", source="")
    val = dataset.subset("val")
    bad = Path(val.file(0))
    bad.write_bytes(bad.read_bytes()[:400])
    killed_at(REPORTING, *args, "--resume", cwd=tmp_path)
    assert (tmp_path / "run/model.safetensors").is_file(), "saved before it was evaluated"
    bad.unlink()
    done = effnetv2(*args, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    predictions = pd.read_csv(tmp_path / "run/predictions.csv")
    assert set(predictions["path"]) == set(val.paths[1:])
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert any(mentions(note, len(val), "1", "val") for note in report["notes"])
    assert mentions(" ".join(done.stdout.split()), len(val), "1", "val", "image")


def test_run_killed_after_its_report_is_finished_and_loses_its_checkpoints(finished, tmp_path):
    args = ("train", finished / "pictures", *ARGS, "--output", tmp_path / "run")
    killed_at(DROPPING, *args, cwd=tmp_path)
    assert len(checkpoints(tmp_path / "run")) == 2
    before = contents(tmp_path / "run")
    done = effnetv2(*args, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "has finished" in done.stdout
    left = contents(tmp_path / "run")
    assert checkpoints(tmp_path / "run") == []
    assert left.items() < before.items()
    assert {name for name in before if name not in left} == {name for name in before if name.startswith("step_")}


def test_finished_run_without_a_report_is_not_trained_again(finished, tmp_path):
    run = finished / "bare"  # next to the images, because its list has relative paths
    shutil.copytree(finished / "run", run)
    (run / "report.json").unlink()
    before = contents(run)
    args = ("train", finished / "pictures", *ARGS, "--output", run, "--resume", "--baseline", "other")
    done = effnetv2(*args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert mentions(done.stdout, run, "effnetv2 evaluate", "DATA", "--baseline other")
    assert contents(run) == before


def test_replaced_machine_resumes_until_the_report_is_complete(finished, tmp_path):
    """It does not know about restarts. The run is killed after its model file is saved."""
    args = ("train", finished / "pictures", *ARGS, "--output", tmp_path / "run")
    variables = environment(0, 1, free_port()) | {"TORCHELASTIC_RUN_ID": "one launch"}
    killed_at(REPORTING, *args, cwd=tmp_path, environment=variables)
    assert (tmp_path / "run/model.safetensors").exists()
    done = effnetv2(*args, cwd=tmp_path, environment=variables)
    assert done.returncode == 0, done.stderr
    assert "Started again by the same launch" in done.stdout
    assert (tmp_path / "run/report.json").exists()
    done = effnetv2(*args, cwd=tmp_path, environment=variables)
    assert done.returncode == 2
    assert mentions(done.stderr, "run", "finished")
