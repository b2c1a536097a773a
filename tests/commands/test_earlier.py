"""Is it better than the last run? Which run that is, and what ``train`` says of it."""

from __future__ import annotations

import json
import os

import pandas as pd
import pytest
from tests.command_line import TINY, effnetv2

from efficientnetv2.commands.earlier import last_before
from efficientnetv2.evaluation.answered import read_answers, write_answers


def run(folder, *, age_s=0, kind="beginning.json", pictures=("a", "b"), labels=("x", "y"), answers=None):
    write_answers(folder, pd.DataFrame({"path": pictures, "label": answers or labels, "true_label": labels}))
    (folder / kind).write_text("{}")
    (folder / "report.json").write_text(json.dumps({"pictures": len(pictures)}))
    os.utime(folder / "report.json", (1e9 - age_s, 1e9 - age_s))
    return folder


def test_it_is_the_newest_finished_one_that_answered_the_same_pictures(tmp_path):
    own = run(tmp_path / "own")
    run(tmp_path / "older", age_s=20)
    run(tmp_path / "newest", age_s=10, pictures=("b", "a"), labels=("y", "x"), answers=("y", "y"))
    run(tmp_path / "of_others", pictures=("a", "c"))
    run(tmp_path / "with_other_labels", labels=("x", "x"))
    run(tmp_path / "folds", kind="crossval.json")
    run(tmp_path / "an_evaluation", kind="nothing.json")
    (run(tmp_path / "broken") / "report.json").write_text("{")
    (run(tmp_path / "unfinished") / "predictions.csv").unlink()
    name, theirs = last_before(own, read_answers(own))
    assert name == "newest"
    assert theirs.loc["a", "label"] == "y"


def test_where_there_is_none_there_is_none(tmp_path):
    own = run(tmp_path / "own")
    assert last_before(own, read_answers(own)) is None
    run(tmp_path / "evaluation", kind="nothing.json")
    assert last_before(tmp_path / "evaluation", read_answers(own)) is None


@pytest.mark.slow
def test_a_second_run_is_compared_with_the_first(class_folders, tmp_path):
    words = ("train", class_folders, *TINY)
    first = effnetv2(*words, "--out", "runs/first", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    page = (tmp_path / "runs/first/report.html").read_text(encoding="utf-8")
    assert "no finished run beside this one answered the same pictures" in page
    second = effnetv2(*words, "--out", "runs/second", cwd=tmp_path)
    assert "Better than the last run, first? Not clearly." in second.stdout + second.stderr
    named = effnetv2(*words, "--out", "elsewhere/third", "--against", "runs/first", cwd=tmp_path)
    assert "Better than first?" in named.stdout + named.stderr
    write_answers(tmp_path / "other", pd.DataFrame({"path": ["z"], "label": ["x"], "true_label": ["x"]}))
    refused = effnetv2(*words, "--out", "elsewhere/fourth", "--against", "other", cwd=tmp_path)
    assert refused.returncode == 2
    assert "answered none of these pictures" in refused.stderr
    assert not (tmp_path / "elsewhere/fourth").exists()
