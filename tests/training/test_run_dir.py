"""Run folders: two processes never start or resume a run in the same folder, and killed runs do not block it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pandas as pd
import pytest
from tests.command_line import NETWORK, SERVER
from tests.messages import mentioning, mentions

from efficientnetv2.data.config import DataConfig
from efficientnetv2.evaluation.predictions import save_predictions
from efficientnetv2.training import run_dir, run_request
from efficientnetv2.training.checkpoints import checkpoint_steps, save_checkpoint
from efficientnetv2.training.overrides import TrainOverrides
from efficientnetv2.training.run_dir import (
    LOCK,
    RUNNING,
    create_run_dir,
    is_running,
    lock_run_dir,
    validate_new_run_dir,
)
from efficientnetv2.training.run_request import RunOptions
from efficientnetv2.training.trainer import Trainer
from efficientnetv2.utils.errors import InputError
from efficientnetv2.workflows import crossval
from efficientnetv2.workflows import train as train_job
from efficientnetv2.workflows.crossval_config import CrossValConfig

WORDS = TrainOverrides(
    model=NETWORK, weights="none", epochs=1, settings=("progressive.stages=1", "progressive.image_size=32")
)


def test_named_folder_is_used_by_one_run_only(tmp_path):
    out = tmp_path / "runs/mine"
    with create_run_dir(out) as path:
        assert path == out
        with pytest.raises(InputError, match=mentioning("output", "another run")), create_run_dir(out):
            pytest.fail("a second one has begun")
        (out / "recipe.yaml").write_text("")
    assert [file.name for file in out.iterdir()] == ["recipe.yaml"]
    with pytest.raises(InputError, match=mentioning("--resume")), create_run_dir(out):
        pytest.fail("a second one has begun")
    assert [file.name for file in out.iterdir()] == ["recipe.yaml"]


def test_error_for_an_existing_run_has_the_command_to_resume_it(tmp_path):
    """The commands plan and demo have no --resume."""
    (tmp_path / "my run").mkdir()
    (tmp_path / "my run/recipe.yaml").write_text("")
    with pytest.raises(InputError) as refused:
        validate_new_run_dir(tmp_path / "my run")
    assert mentions(str(refused.value), tmp_path / "my run", "effnetv2 train DATA --output", "--resume")


def test_default_folder_name_is_extended_if_it_is_taken(tmp_path):
    """Two runs start in the same second. The first is starting or has started."""
    path = tmp_path / "runs/same"
    with create_run_dir(path, name="quick") as first:
        with create_run_dir(path, name="quick") as second:
            (second / "recipe.yaml").write_text("")
        (first / "recipe.yaml").write_text("")
    with create_run_dir(path, name="quick") as third:
        assert first == path
        assert len({first, second, third}) == 3
        assert all(other.parent == path.parent and "_quick" in other.name for other in (second, third))


def test_rejected_run_leaves_no_folder(tmp_path):
    for _ in range(2):
        with pytest.raises(InputError, match="memory"), create_run_dir(tmp_path / "runs/mine"):
            raise InputError("memory is too short")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file is a file"), create_run_dir(tmp_path / "file/mine", name="quick"):
        pytest.fail("it has begun in a file")


def test_run_killed_at_its_start_does_not_block_the_folder(tmp_path):
    process = SERVER.Process(target=_killed_in, args=(str(tmp_path / "mine"),))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / "mine" / LOCK).exists()
    with create_run_dir(tmp_path / "mine") as path:
        assert path == tmp_path / "mine"


def _killed_in(out):
    with create_run_dir(Path(out)):
        os.kill(os.getpid(), signal.SIGKILL)


def test_baseline_predictions_of_a_failed_start_do_not_block_the_folder(tmp_path):
    """The predictions of --baseline are saved before the recipe. Only the recipe makes a folder a run."""
    answers = pd.DataFrame({"path": ["a.jpg"], "label": ["x"], "true_label": ["x"]})
    save_predictions(tmp_path / "mine/against", answers)
    validate_new_run_dir(tmp_path / "mine")
    (tmp_path / "mine/thesis.tex").write_text("")
    with pytest.raises(InputError, match=mentioning("thesis.tex")):
        validate_new_run_dir(tmp_path / "mine")


def test_run_started_meanwhile_is_not_overwritten(class_folders, tmp_path, monkeypatch):
    """It used the same --output while this run checked its images."""
    out = tmp_path / "mine"

    def prepare(*given, real=run_request.prepare_data, **named):
        save_checkpoint(out / "checkpoints", {"step": 1}, 1)
        (out / "recipe.yaml").write_text("")
        return real(*given, **named)

    monkeypatch.setattr(run_request, "prepare_data", prepare)
    with pytest.raises(InputError, match=mentioning("mine", "run")):
        train_job.train_and_report(WORDS, DataConfig(str(class_folders)), RunOptions(out=out, device="cpu", workers=0))
    assert checkpoint_steps(out / "checkpoints") == [1]


def test_folds_started_meanwhile_are_not_overwritten(class_folders, tmp_path, monkeypatch):
    out = tmp_path / "folds"

    def pictures(*given, real=crossval.load_images):
        out.mkdir()
        (out / "crossval.json").write_text("{}")
        return real(*given)

    monkeypatch.setattr(crossval, "load_images", pictures)
    with pytest.raises(InputError, match=mentioning("folds", "cross-validation")):
        crossval.run_crossval(
            WORDS, DataConfig(str(class_folders)), RunOptions(out=out, device="cpu"), CrossValConfig(folds=2)
        )
    assert [file.name for file in out.iterdir()] == ["crossval.json"]


def test_only_one_process_runs_in_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(run_dir, "_PATIENCE_S", 0)
    with lock_run_dir(tmp_path):
        with pytest.raises(InputError, match=mentioning("running.lock")), lock_run_dir(tmp_path):
            pytest.fail("a second one is at work")
        assert (tmp_path / RUNNING).exists()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeError, match="broken"), lock_run_dir(tmp_path):
        raise RuntimeError("broken")
    with lock_run_dir(tmp_path):
        pass


def test_killed_run_does_not_block_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(run_dir, "_PATIENCE_S", 0)
    process = SERVER.Process(target=_killed_at_work, args=(str(tmp_path),))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / RUNNING).exists()
    with lock_run_dir(tmp_path):
        pass


def test_is_running_is_true_only_while_a_process_runs(tmp_path):
    """Not before, after, or after a kill. The check changes nothing in the folder."""
    assert not is_running(tmp_path)
    assert not is_running(tmp_path / "nowhere")
    with lock_run_dir(tmp_path):
        assert is_running(tmp_path)
    assert not is_running(tmp_path)
    assert list(tmp_path.iterdir()) == []
    process = SERVER.Process(target=_killed_at_work, args=(str(tmp_path),))
    process.start()
    process.join(60)
    assert (tmp_path / RUNNING).exists()
    assert not is_running(tmp_path)
    with lock_run_dir(tmp_path):
        assert is_running(tmp_path)


def _killed_at_work(folder):
    with lock_run_dir(Path(folder)):
        os.kill(os.getpid(), signal.SIGKILL)


def _contents(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_running_run_cannot_be_resumed(class_folders, tmp_path, monkeypatch):
    """During the first training and during a resumed one. Afterwards it can."""
    monkeypatch.setattr(run_dir, "_PATIENCE_S", 0)
    out, refused = tmp_path / "mine", []

    def train(words, *, resume):
        place = RunOptions(out=out, resume=resume, device="cpu", workers=0, probe=False)
        return train_job.train_and_report(words, DataConfig(str(class_folders)), place)

    def stopped(trainer, *, resume):
        before = _contents(out)
        with pytest.raises(InputError, match=mentioning("mine", "another process")):
            train(TrainOverrides(), resume=True)
        refused.append(resume)
        assert _contents(out) == before
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "fit", stopped)
    for words, resume_it in ((WORDS, False), (TrainOverrides(), True)):
        with pytest.raises(KeyboardInterrupt, match="To resume"):
            train(words, resume=resume_it)
    assert refused == [False, True]
    assert not (out / RUNNING).exists()


def test_running_folds_cannot_be_resumed(class_folders, tmp_path, monkeypatch):
    monkeypatch.setattr(run_dir, "_PATIENCE_S", 0)
    out, refused = tmp_path / "folds", []

    def crossvalidate(words, plan, *, resume):
        place = RunOptions(out=out, resume=resume, device="cpu", workers=0)
        return crossval.run_crossval(words, DataConfig(str(class_folders)), place, plan)

    def stopped(self, dealt, folder, called):
        with pytest.raises(InputError, match=mentioning("folds", "another process")):
            crossvalidate(TrainOverrides(), CrossValConfig(), resume=True)
        refused.append(called)
        raise KeyboardInterrupt

    monkeypatch.setattr(crossval.FoldTrainer, "predict", stopped)
    for words, plan, resume_it in ((WORDS, CrossValConfig(folds=2), False), (TrainOverrides(), CrossValConfig(), True)):
        with pytest.raises(KeyboardInterrupt, match="To resume"):
            crossvalidate(words, plan, resume=resume_it)
    assert refused == ["Fold", "Fold"]
