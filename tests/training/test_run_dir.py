"""Two runs never begin in one folder nor go on there at once, and what a killed one leaves bars nobody."""

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


def test_a_folder_that_was_named_is_begun_in_by_one_alone(tmp_path):
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


def test_how_a_run_goes_on_is_said_whatever_verb_has_met_it(tmp_path):
    """plan and demo have no --resume of their own."""
    (tmp_path / "my run").mkdir()
    (tmp_path / "my run/recipe.yaml").write_text("")
    with pytest.raises(InputError) as refused:
        validate_new_run_dir(tmp_path / "my run")
    assert mentions(str(refused.value), tmp_path / "my run", "effnetv2 train DATA --output", "--resume")


def test_of_a_name_that_nobody_chose_the_next_free_one_is_taken(tmp_path):
    """Both have chosen it within the same second; the second finds the first beginning, or begun."""
    path = tmp_path / "runs/same"
    with create_run_dir(path, name="quick") as first:
        with create_run_dir(path, name="quick") as second:
            (second / "recipe.yaml").write_text("")
        (first / "recipe.yaml").write_text("")
    with create_run_dir(path, name="quick") as third:
        assert first == path
        assert len({first, second, third}) == 3
        assert all(other.parent == path.parent and "_quick" in other.name for other in (second, third))


def test_what_is_refused_while_it_begins_leaves_nothing(tmp_path):
    for _ in range(2):
        with pytest.raises(InputError, match="memory"), create_run_dir(tmp_path / "runs/mine"):
            raise InputError("memory is too short")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file is a file"), create_run_dir(tmp_path / "file/mine", name="quick"):
        pytest.fail("it has begun in a file")


def test_a_killed_beginning_bars_nobody(tmp_path):
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


def test_what_a_beginning_with_another_run_to_compare_with_leaves_is_no_obstacle(tmp_path):
    """The answers of --baseline are kept before the recipe, which makes a folder a run."""
    answers = pd.DataFrame({"path": ["a.jpg"], "label": ["x"], "true_label": ["x"]})
    save_predictions(tmp_path / "mine/against", answers)
    validate_new_run_dir(tmp_path / "mine")
    (tmp_path / "mine/thesis.tex").write_text("")
    with pytest.raises(InputError, match=mentioning("thesis.tex")):
        validate_new_run_dir(tmp_path / "mine")


def test_a_run_that_began_meanwhile_is_not_overwritten(class_folders, tmp_path, monkeypatch):
    """It began in the same --output while this one looked at its images."""
    out = tmp_path / "mine"

    def prepare(*given, real=run_request.prepare_data, **named):
        save_checkpoint(out / "checkpoints", {"step": 1}, 1)
        (out / "recipe.yaml").write_text("")
        return real(*given, **named)

    monkeypatch.setattr(run_request, "prepare_data", prepare)
    with pytest.raises(InputError, match=mentioning("mine", "run")):
        train_job.train_and_report(WORDS, DataConfig(str(class_folders)), RunOptions(out=out, device="cpu", workers=0))
    assert checkpoint_steps(out / "checkpoints") == [1]


def test_folds_that_began_meanwhile_are_not_overwritten(class_folders, tmp_path, monkeypatch):
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


def test_one_process_alone_is_at_work_in_a_folder(tmp_path, monkeypatch):
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


def test_a_killed_run_bars_nobody(tmp_path, monkeypatch):
    monkeypatch.setattr(run_dir, "_PATIENCE_S", 0)
    process = SERVER.Process(target=_killed_at_work, args=(str(tmp_path),))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / RUNNING).exists()
    with lock_run_dir(tmp_path):
        pass


def test_whether_a_process_is_at_work_is_known_and_leaves_the_folder_as_it_is(tmp_path):
    """While it works, not before, not afterwards, nor of one that was killed; to ask hinders nobody."""
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


def test_nobody_goes_on_with_a_run_that_is_under_way(class_folders, tmp_path, monkeypatch):
    """Not while it is trained for the first time, nor while it is gone on with; afterwards one may."""
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


def test_nobody_goes_on_with_folds_that_are_under_way(class_folders, tmp_path, monkeypatch):
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
