"""Two runs never begin in one folder, and what a killed beginning leaves bars nobody."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pandas as pd
import pytest
from tests.command_line import NETWORK, SERVER

from efficientnetv2.base.errors import InputError
from efficientnetv2.commands import crossval_job, train_job
from efficientnetv2.commands.beginning import Place
from efficientnetv2.commands.crossval_plan import Plan
from efficientnetv2.commands.source import Source
from efficientnetv2.commands.words import Words
from efficientnetv2.evaluation.answered import write_answers
from efficientnetv2.training import resume
from efficientnetv2.training.claiming import claimed
from efficientnetv2.training.folder import LOCK
from efficientnetv2.training.runs import refuse_occupied

WORDS = Words(
    model=NETWORK, weights="none", epochs=1, settings=("progressive.stages=1", "progressive.image_px=32")
)


def test_a_folder_that_was_named_is_begun_in_by_one_alone(tmp_path):
    out = tmp_path / "runs/mine"
    with claimed(out) as path:
        assert path == out
        with pytest.raises(InputError, match=r"--out .*mine: another run is beginning there"), claimed(out):
            pytest.fail("a second one has begun")
        (out / "recipe.yaml").write_text("")
    assert [file.name for file in out.iterdir()] == ["recipe.yaml"]
    with (
        pytest.raises(InputError, match=r"mine holds a run already. Go on with it by --resume"),
        claimed(out),
    ):
        pytest.fail("a second one has begun")
    assert [file.name for file in out.iterdir()] == ["recipe.yaml"]


def test_of_a_name_that_nobody_chose_the_next_free_one_is_taken(tmp_path):
    """Both have chosen it within the same second; the second finds the first beginning, or begun."""
    path = tmp_path / "runs/same"
    with claimed(path, name="quick") as first:
        with claimed(path, name="quick") as second:
            (second / "recipe.yaml").write_text("")
        (first / "recipe.yaml").write_text("")
    with claimed(path, name="quick") as third:
        assert first == path
        assert len({first, second, third}) == 3
        assert all(other.parent == path.parent and "_quick" in other.name for other in (second, third))


def test_what_is_refused_while_it_begins_leaves_nothing(tmp_path):
    for _ in range(2):
        with pytest.raises(InputError, match="memory"), claimed(tmp_path / "runs/mine"):
            raise InputError("memory is too short")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file is a file"), claimed(tmp_path / "file/mine", name="quick"):
        pytest.fail("it has begun in a file")


def test_a_killed_beginning_bars_nobody(tmp_path):
    process = SERVER.Process(target=_killed_in, args=(str(tmp_path / "mine"),))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / "mine" / LOCK).exists()
    with claimed(tmp_path / "mine") as path:
        assert path == tmp_path / "mine"


def _killed_in(out):
    with claimed(Path(out)):
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_beginning_with_another_run_to_compare_with_leaves_is_no_obstacle(tmp_path):
    """The answers of --against are kept before the recipe, which makes a folder a run."""
    answers = pd.DataFrame({"path": ["a.jpg"], "label": ["x"], "true_label": ["x"]})
    write_answers(tmp_path / "mine/against", answers)
    refuse_occupied(tmp_path / "mine")
    (tmp_path / "mine/thesis.tex").write_text("")
    with pytest.raises(InputError, match=r"holds something that is no run \('thesis.tex'\)"):
        refuse_occupied(tmp_path / "mine")


def test_a_run_that_began_meanwhile_is_not_overwritten(class_folders, tmp_path, monkeypatch):
    """It began in the same --out while this one looked at its pictures."""
    out = tmp_path / "mine"

    def prepare(*given, real=train_job.prepare, **named):
        resume.save(out / "checkpoints", {"step": 1}, 1)
        (out / "recipe.yaml").write_text("")
        return real(*given, **named)

    monkeypatch.setattr(train_job, "prepare", prepare)
    with pytest.raises(InputError, match="mine holds a run already"):
        train_job.train_and_report(WORDS, Source(str(class_folders)), Place(out=out, device="cpu", workers=0))
    assert resume.steps_saved(out / "checkpoints") == [1]


def test_folds_that_began_meanwhile_are_not_overwritten(class_folders, tmp_path, monkeypatch):
    out = tmp_path / "folds"

    def pictures(*given, real=crossval_job._pictures):
        out.mkdir()
        (out / "crossval.json").write_text("{}")
        return real(*given)

    monkeypatch.setattr(crossval_job, "_pictures", pictures)
    with pytest.raises(InputError, match="folds holds a cross-validation already"):
        crossval_job.crossvalidate(
            WORDS, Source(str(class_folders)), Place(out=out, device="cpu"), Plan(folds=2)
        )
    assert [file.name for file in out.iterdir()] == ["crossval.json"]
