"""Is it better than the last run? Which run that is, and what ``train`` says of it."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace

import pandas as pd
import pytest
from tests.command_line import TINY, effnetv2, killed_at
from tests.messages import mentioning, mentions

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.evaluation.baseline_warnings import summary_lines
from efficientnetv2.evaluation.predictions import compare_predictions, load_predictions, save_predictions
from efficientnetv2.evaluation.report_metadata import ReportContext
from efficientnetv2.evaluation.run_comparison import PreviousRun, find_previous_run
from efficientnetv2.utils.errors import InputError


def run(
    folder, *, age_s=0, kind="run.json", pictures=("a", "b"), labels=("x", "y"), answers=None, data="data",
    metric="macro_f1", **report
):  # fmt: skip
    """The folder of a run on images of a folder next to it."""
    save_predictions(
        folder, pd.DataFrame({"path": pictures, "predicted_label": answers or labels, "true_label": labels})
    )
    (folder / kind).write_text("{}")
    dataset = {"path": [f"../{data}/{name}" for name in pictures], "label": labels, "split": "val"}
    pd.DataFrame(dataset).to_csv(folder / "dataset.csv", index=False)
    (folder / "report.json").write_text(json.dumps({"num_images": len(pictures), metric: 0.5, **report}))
    os.utime(folder / "report.json", (1e9 - age_s, 1e9 - age_s))
    return folder


def test_it_is_the_newest_finished_one_that_answered_the_same_images(tmp_path):
    own = run(tmp_path / "own")
    run(tmp_path / "older", age_s=20)
    run(tmp_path / "newest", age_s=10, pictures=("b", "a"), labels=("y", "x"), answers=("y", "y"))
    run(tmp_path / "of_others", pictures=("a", "c"))
    run(tmp_path / "with_other_labels", labels=("x", "x"))
    run(tmp_path / "folds", kind="crossval.json")
    run(tmp_path / "an_evaluation", kind="nothing.json")
    (run(tmp_path / "broken") / "report.json").write_text("{")
    (run(tmp_path / "unfinished") / "predictions.csv").unlink()
    name, theirs = find_previous_run(own, load_predictions(own))
    assert name == "newest"
    assert theirs.loc["a", "predicted_label"] == "y"


def test_where_there_is_none_there_is_none(tmp_path):
    own = run(tmp_path / "own")
    assert find_previous_run(own, load_predictions(own)) is None
    run(tmp_path / "evaluation", kind="nothing.json")
    assert find_previous_run(tmp_path / "evaluation", load_predictions(own)) is None


def test_pictures_of_another_folder_are_others_whatever_they_are_called(tmp_path):
    """As cameras call theirs: last year's 0001.jpg is no image of this year."""
    own = run(tmp_path / "own", data="photos_2024")
    run(tmp_path / "before", age_s=10, data="photos_2023")
    assert find_previous_run(own, load_predictions(own)) is None
    (tmp_path / "photos_2024").mkdir()
    (tmp_path / "photos_now").symlink_to("photos_2024")
    run(tmp_path / "by_a_link", age_s=20, data="photos_now")
    assert find_previous_run(own, load_predictions(own))[0] == "by_a_link"
    (tmp_path / "by_a_link" / "dataset.csv").unlink()
    assert find_previous_run(own, load_predictions(own)) is None


def test_absolute_paths_need_no_root(tmp_path):
    own, _ = (run(tmp_path / name, pictures=("/x/a", "/x/b")) for name in ("own", "before"))
    assert find_previous_run(own, load_predictions(own))[0] == "before"


def test_a_named_run_on_pictures_of_another_folder_is_compared_by_name(tmp_path):
    there = run(tmp_path / "there", data="photos_2023")
    own = tmp_path / "photos_2024"
    own.mkdir()
    val = listed(own, "path,label,split", "a,x,val", "b,y,val")
    named = PreviousRun.for_images(there, load_predictions(there), val)
    assert mentions(named.by_name, own, tmp_path / "photos_2023")
    kept = PreviousRun.load(own, named.save(own))
    found = replace(compare_predictions(named.predictions, named.predictions), by_name=kept.by_name)
    assert summary_lines(ReportContext(last=("there", found)))[0].endswith(named.by_name)
    same = listed(own, "path,label,split", "a,x,val")
    assert not PreviousRun.for_images(run(tmp_path / "new", data=own.name), load_predictions(there), same).by_name


def test_folds_are_compared_with_folds_of_the_same_rule(tmp_path):
    """At random neighbors teach what is asked: better than by place says nothing of the recipe."""
    own = run(tmp_path / "own", kind="crossval.json", split_by="class")
    run(tmp_path / "by_place", age_s=10, kind="crossval.json", split_by="place")
    assert find_previous_run(own, load_predictions(own), split_by="class") is None
    run(tmp_path / "at_random", age_s=20, kind="crossval.json", split_by="class")
    assert find_previous_run(own, load_predictions(own), split_by="class")[0] == "at_random"
    assert find_previous_run(own, load_predictions(own), split_by="place")[0] == "by_place"


def test_a_run_whose_weights_knew_the_pictures_is_no_bar(tmp_path):
    """It has learnt labels that it is asked for: an honest run looks worse, and is not."""
    own = run(tmp_path / "own")
    run(tmp_path / "knew", age_s=10, optimistic=True)
    assert find_previous_run(own, load_predictions(own)) is None
    run(tmp_path / "honest", age_s=20, optimistic=False)
    assert find_previous_run(own, load_predictions(own))[0] == "honest"


def test_a_multilabel_run_is_not_compared_with_a_single_label_run(tmp_path):
    """Without the separator, the joined labels "x;y" are one class, which the multi-label run never predicts."""
    labels, one_each = ("x;y", "y;z"), ("x", "y")
    own = run(tmp_path / "own", labels=labels)
    run(tmp_path / "single", age_s=20, labels=labels)
    several = run(tmp_path / "several", age_s=10, labels=labels, answers=one_each, metric="mean_average_precision")
    assert find_previous_run(own, load_predictions(own))[0] == "single"
    val = listed(tmp_path, "path,label,split", "a,x;y,val", "b,y;z,val")
    with pytest.raises(InputError, match=mentioning("baseline", several, "multi-label", "one label")):
        PreviousRun.for_images(several, load_predictions(several), val)


def test_of_a_named_run_whose_figures_are_optimistic_it_is_said(tmp_path):
    val = listed(tmp_path, "path,label,split", "a,x,val", "b,y,val")
    found = {}
    for name, optimistic in (("knew", True), ("honest", False)):
        there = run(tmp_path / name, optimistic=optimistic)
        named = PreviousRun.for_images(there, load_predictions(there), val)
        kept = PreviousRun.load(tmp_path / "own", named.save(tmp_path / "own"))
        gained = kept.qualified(compare_predictions(named.predictions, named.predictions))
        (found[name],) = summary_lines(ReportContext(last=(name, gained)))
    assert mentions(found["knew"], "warning", "knew", "optimistic")
    assert "optimistic" not in found["honest"]
    for told in ("{", "[]", "{}"):  # of other programs, or damaged: the answers are compared all the same
        (tmp_path / "knew/report.json").write_text(told)
        assert PreviousRun.for_images(tmp_path / "knew", load_predictions(tmp_path / "knew"), val).optimistic == ""


def listed(folder, header, *rows):
    """A table of images, as a dataset that none of them is there for."""
    (folder / "list.csv").write_text("\n".join([header, *rows]) + "\n")
    return ImageDataset.from_csv(folder / "list.csv", root=folder, source="list.csv")


def test_a_run_that_was_named_is_kept_with_what_both_answered(tmp_path):
    """It may have answered more; of it there is need for the images of this run alone."""
    there = run(tmp_path / "there", pictures=("c", "b", "a"), labels=("z", "y", "x"), answers=("z", "z", "x"))
    val = listed(tmp_path, "path,label,split", "a,x,val", "b,y,val", "d,y,val")
    named = PreviousRun.for_images(there, load_predictions(there), val)
    beginning = named.save(tmp_path / "own")
    shutil.rmtree(there)
    kept = PreviousRun.load(tmp_path / "own", json.loads(json.dumps(beginning)))
    assert kept is not None
    assert kept.name == "there"
    assert kept.predictions.to_dict("index") == {
        "a": {"predicted_label": "x", "true_label": "x"}, "b": {"predicted_label": "z", "true_label": "y"}
    }  # fmt: skip
    assert PreviousRun.load(tmp_path / "own", {}) is None
    shutil.rmtree(tmp_path / "own")
    assert PreviousRun.load(tmp_path / "own", beginning) is None


@pytest.mark.parametrize(
    ("row", "said"), [("z,x,val", ("no prediction of these images",)), ("a,w,val", ("'w'", "'x'"))]
)
def test_a_run_that_can_not_be_compared_with_is_refused(row, said, tmp_path):
    there = run(tmp_path / "there")
    with pytest.raises(InputError, match=mentioning(*said)):
        PreviousRun.for_images(there, load_predictions(there), listed(tmp_path, "path,label,split", row))


@pytest.mark.slow
def test_a_second_run_is_compared_with_the_first(class_folders, tmp_path):
    words = ("train", class_folders, *TINY)
    first = effnetv2(*words, "--output", "runs/first", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    page = (tmp_path / "runs/first/report.html").read_text(encoding="utf-8")
    assert mentions(page, "no other finished run")
    second = effnetv2(*words, "--output", "runs/second", cwd=tmp_path)
    assert mentions(second.stdout + second.stderr, "first", "not clearly")
    # Killed before its report, gone on with when the other run is no longer there.
    before = "efficientnetv2.workflows.train:write_run_report"
    killed_at(before, *words, "--output", "elsewhere/third", "--baseline", "runs/first", cwd=tmp_path)
    (tmp_path / "runs/first").rename(tmp_path / "put_away")
    named = effnetv2(*words, "--output", "elsewhere/third", "--resume", cwd=tmp_path)
    assert "Better than first?" in named.stdout + named.stderr
    (tmp_path / "put_away").rename(tmp_path / "runs/first")
    save_predictions(tmp_path / "other", pd.DataFrame({"path": ["z"], "predicted_label": ["x"], "true_label": ["x"]}))
    refused = effnetv2(*words, "--output", "elsewhere/fourth", "--baseline", "other", cwd=tmp_path)
    assert refused.returncode == 2
    assert "no prediction of these images" in refused.stderr
    assert not (tmp_path / "elsewhere/fourth").exists()
