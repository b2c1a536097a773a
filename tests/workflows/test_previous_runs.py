"""Comparison with the previous run: which run is used, and what ``train`` reports."""

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
from efficientnetv2.evaluation.report_sections import ReportInputs, _last_run
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


def test_previous_run_is_the_newest_finished_run_on_the_same_images(tmp_path):
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


def test_no_previous_run(tmp_path):
    own = run(tmp_path / "own")
    assert find_previous_run(own, load_predictions(own)) is None
    run(tmp_path / "evaluation", kind="nothing.json")
    assert find_previous_run(tmp_path / "evaluation", load_predictions(own)) is None


def test_images_of_another_folder_are_different_despite_equal_names(tmp_path):
    """Cameras repeat names: 0001.jpg of last year is another image."""
    own = run(tmp_path / "own", data="photos_2024")
    run(tmp_path / "before", age_s=10, data="photos_2023")
    assert find_previous_run(own, load_predictions(own)) is None
    (tmp_path / "photos_2024").mkdir()
    (tmp_path / "photos_now").symlink_to("photos_2024")
    run(tmp_path / "by_a_link", age_s=20, data="photos_now")
    assert find_previous_run(own, load_predictions(own))[0] == "by_a_link"
    (tmp_path / "by_a_link" / "dataset.csv").unlink()
    assert find_previous_run(own, load_predictions(own)) is None


def test_run_from_a_table_of_a_run_is_compared_with_it(tmp_path):
    """Its dataset.csv names the same files by other paths."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "tables").mkdir()
    own = run(tmp_path / "own", pictures=("../photos/a", "../photos/b"), data="tables")
    run(tmp_path / "before", age_s=10, data="photos")
    name, theirs = find_previous_run(own, load_predictions(own))
    assert name == "before"
    assert list(theirs.index) == list(load_predictions(own).index)


def test_absolute_paths_are_compared_directly(tmp_path):
    own, _ = (run(tmp_path / name, pictures=("/x/a", "/x/b")) for name in ("own", "before"))
    assert find_previous_run(own, load_predictions(own))[0] == "before"


def test_given_baseline_on_another_folder_is_compared_by_name(tmp_path):
    there = run(tmp_path / "there", data="photos_2023")
    own = tmp_path / "photos_2024"
    own.mkdir()
    val = listed(own, "path,label,split", "a,x,val", "b,y,val")
    named = PreviousRun.for_images(there, load_predictions(there), val)
    assert mentions(named.by_name, own, tmp_path / "photos_2023")
    saved = PreviousRun.load(own, named.save(own))
    found = replace(compare_predictions(named.predictions, named.predictions), by_name=saved.by_name)
    assert summary_lines(ReportContext(last=("there", found)))[0].endswith(named.by_name)
    (there / "dataset.csv").unlink()
    (there / "report.json").write_text(json.dumps({"data_root": str(tmp_path / "photos_2023")}))
    assert PreviousRun.for_images(there, load_predictions(there), val).by_name == named.by_name, "of an evaluation"
    same = listed(own, "path,label,split", "a,x,val")
    assert not PreviousRun.for_images(run(tmp_path / "new", data=own.name), load_predictions(there), same).by_name


def test_given_baseline_has_the_same_images_under_other_paths(tmp_path):
    """The dataset.csv of a run names them from the folder of the run."""
    there = run(tmp_path / "there", data="photos")
    (tmp_path / "photos").mkdir()
    (tmp_path / "tables").mkdir()
    images = listed(tmp_path / "tables", "path,label,split", "../photos/b,y,val", "../photos/a,x,val")
    found = PreviousRun.for_images(there, load_predictions(there), images)
    assert list(found.predictions.index) == images.paths
    assert list(found.predictions["true_label"]) == ["y", "x"]
    assert not found.by_name


def test_cross_validations_are_compared_only_by_the_same_split(tmp_path):
    """Random folds have neighbors in training, so their metrics are higher for this reason."""
    own = run(tmp_path / "own", kind="crossval.json", split_by="class")
    run(tmp_path / "by_place", age_s=10, kind="crossval.json", split_by="place")
    assert find_previous_run(own, load_predictions(own), split_by="class") is None
    run(tmp_path / "at_random", age_s=20, kind="crossval.json", split_by="class")
    assert find_previous_run(own, load_predictions(own), split_by="class")[0] == "at_random"
    assert find_previous_run(own, load_predictions(own), split_by="place")[0] == "by_place"


def test_optimistic_run_is_not_used_as_previous_run(tmp_path):
    """It was trained on evaluated labels, so a valid run would seem worse."""
    own = run(tmp_path / "own")
    run(tmp_path / "knew", age_s=10, optimistic=True)
    assert find_previous_run(own, load_predictions(own)) is None
    run(tmp_path / "honest", age_s=20, optimistic=False)
    assert find_previous_run(own, load_predictions(own))[0] == "honest"


def test_multilabel_run_is_not_compared_with_a_single_label_run(tmp_path):
    """Without the separator, the joined labels "x;y" are one class, which the multi-label run never predicts."""
    labels, one_each = ("x;y", "y;z"), ("x", "y")
    own = run(tmp_path / "own", labels=labels)
    run(tmp_path / "single", age_s=20, labels=labels)
    several = run(tmp_path / "several", age_s=10, labels=labels, answers=one_each, metric="mean_average_precision")
    assert find_previous_run(own, load_predictions(own))[0] == "single"
    val = listed(tmp_path, "path,label,split", "a,x;y,val", "b,y;z,val")
    with pytest.raises(InputError, match=mentioning("baseline", several, "multi-label", "one label")):
        PreviousRun.for_images(several, load_predictions(several), val)


def test_given_baseline_with_optimistic_metrics_gives_a_warning(tmp_path):
    val = listed(tmp_path, "path,label,split", "a,x,val", "b,y,val")
    found = {}
    for name, optimistic in (("knew", True), ("honest", False)):
        there = run(tmp_path / name, optimistic=optimistic)
        named = PreviousRun.for_images(there, load_predictions(there), val)
        saved = PreviousRun.load(tmp_path / "own", named.save(tmp_path / "own"))
        gained = saved.qualified(compare_predictions(named.predictions, named.predictions))
        (found[name],) = summary_lines(ReportContext(last=(name, gained)))
    assert mentions(found["knew"], "warning", "knew", "optimistic")
    assert "optimistic" not in found["honest"]
    for content in ("{", "[]", "{}"):  # from other programs, or damaged: predictions are still compared
        (tmp_path / "knew/report.json").write_text(content)
        assert PreviousRun.for_images(tmp_path / "knew", load_predictions(tmp_path / "knew"), val).optimistic == ""


def test_optimistic_model_is_compared_only_with_a_given_baseline(tmp_path):
    own, before = run(tmp_path / "own"), run(tmp_path / "before", age_s=10)
    table, inputs = load_predictions(own), ReportInputs(folder=own)
    assert _last_run(table, None, inputs, None, is_optimistic=False)[0] == "the last run, before"
    assert _last_run(table, None, inputs, None, is_optimistic=True) is None
    baseline = PreviousRun("before", load_predictions(before))
    _, difference = _last_run(table, baseline, inputs, None, is_optimistic=True)
    assert mentions(difference.optimistic, "this model", "optimistic")
    assert "before" not in difference.optimistic


def listed(folder, header, *rows):
    """A dataset of these rows, without image files."""
    (folder / "list.csv").write_text("\n".join([header, *rows]) + "\n")
    return ImageDataset.from_csv(folder / "list.csv", root=folder, source="list.csv")


def test_baseline_is_saved_with_the_common_images(tmp_path):
    """The baseline may have predictions of other images, which are not saved."""
    there = run(tmp_path / "there", pictures=("c", "b", "a"), labels=("z", "y", "x"), answers=("z", "z", "x"))
    val = listed(tmp_path, "path,label,split", "a,x,val", "b,y,val", "d,y,val")
    named = PreviousRun.for_images(there, load_predictions(there), val)
    beginning = named.save(tmp_path / "own")
    shutil.rmtree(there)
    saved = PreviousRun.load(tmp_path / "own", json.loads(json.dumps(beginning)))
    assert saved is not None
    assert saved.name == "there"
    assert saved.predictions.to_dict("index") == {
        "a": {"predicted_label": "x", "true_label": "x"}, "b": {"predicted_label": "z", "true_label": "y"}
    }  # fmt: skip
    assert PreviousRun.load(tmp_path / "own", {}) is None
    shutil.rmtree(tmp_path / "own")
    assert PreviousRun.load(tmp_path / "own", beginning) is None


@pytest.mark.parametrize(
    ("row", "said"), [("z,x,val", ("no prediction of these images",)), ("a,w,val", ("'w'", "'x'"))]
)
def test_incomparable_baseline_is_rejected(row, said, tmp_path):
    there = run(tmp_path / "there")
    with pytest.raises(InputError, match=mentioning(*said)):
        PreviousRun.for_images(there, load_predictions(there), listed(tmp_path, "path,label,split", row))


@pytest.mark.slow
def test_second_run_is_compared_with_the_first(class_folders, tmp_path):
    args = ("train", class_folders, *TINY)
    first = effnetv2(*args, "--output", "runs/first", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    page = (tmp_path / "runs/first/report.html").read_text(encoding="utf-8")
    assert mentions(page, "no other finished run")
    second = effnetv2(*args, "--output", "runs/second", cwd=tmp_path)
    assert mentions(second.stdout + second.stderr, "first", "not clearly")
    # Killed before its report, and resumed when the other run is gone.
    before = "efficientnetv2.workflows.train:write_run_report"
    killed_at(before, *args, "--output", "elsewhere/third", "--baseline", "runs/first", cwd=tmp_path)
    (tmp_path / "runs/first").rename(tmp_path / "put_away")
    named = effnetv2(*args, "--output", "elsewhere/third", "--resume", cwd=tmp_path)
    assert "Better than first?" in named.stdout + named.stderr
    (tmp_path / "put_away").rename(tmp_path / "runs/first")
    save_predictions(tmp_path / "other", pd.DataFrame({"path": ["z"], "predicted_label": ["x"], "true_label": ["x"]}))
    refused = effnetv2(*args, "--output", "elsewhere/fourth", "--baseline", "other", cwd=tmp_path)
    assert refused.returncode == 2
    assert "no prediction of these images" in refused.stderr
    assert not (tmp_path / "elsewhere/fourth").exists()
