"""The default training compared with the linear probe: command, measurement and record."""

from __future__ import annotations

import json
import shutil
import sys

import pandas as pd
import pytest
from benchmarks import default_train, record
from tests.command_line import effnetv2
from tests.messages import mentioning, mentions

from efficientnetv2.evaluation.predictions import save_predictions


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A temporary results folder."""
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(record, "SUMMARY", tmp_path / "summary.json")
    return tmp_path


def predictions(*letters):
    """(path, prediction, label), one letter each."""
    return pd.DataFrame([tuple(row) for row in letters], columns=["path", "predicted_label", "true_label"])


def test_command_is_a_user_command_and_resumes(tmp_path):
    args = default_train.command("images/", 15, tmp_path)
    assert args[1:] == [
        "-m", "efficientnetv2", "train", "images/", "--minutes", "15", "--output", str(tmp_path),
    ]  # fmt: skip
    (tmp_path / "recipe.yaml").write_text("name: quick")
    assert default_train.command("images/", 15, tmp_path)[-1] == "--resume"


def test_difference_is_of_images_that_both_predicted(tmp_path):
    """The probe has no prediction of image e. Of four images, the run has 3 right, the probe 2."""
    save_predictions(tmp_path, predictions("1aa", "2bb", "3aa", "4ab", "5ab"))
    save_predictions(tmp_path / "probe", predictions("1aa", "2ab", "3ba", "4bb"))
    found = default_train.over_probe(tmp_path)
    assert found["pictures"] == 4
    assert found["probe_top1"] == 0.5
    top1 = found["over_probe"]["top1"]
    assert top1["value"] == pytest.approx(0.25)
    assert top1["low"] <= 0 <= top1["value"] <= top1["high"]


def test_run_is_measured_once_and_recorded(results, monkeypatch, class_folders, capsys):
    """A run from scratch has no probe, so a probe of random weights is used and named."""
    calls = []

    def train(images, minutes, run):
        calls.append(minutes)
        short = ["--epochs", "1", "--batch-size", "8", "--image-size", "32", "--workers", "0"]
        settings = ["--set", "progressive.stages=1", "--device", "cpu", "--weights", "none"]
        result = effnetv2("train", images, "--output", run, *short, *settings, cwd=results)
        assert result.returncode == 0, result.stderr

    monkeypatch.setattr(default_train, "train", train)
    monkeypatch.setattr(default_train, "weights_candidates", lambda model: no_weights())
    args = ["default_train", f"tiny={class_folders}", "--output", str(results), "--record"]
    monkeypatch.setattr(sys, "argv", args)
    default_train.main()
    default_train.main()
    assert calls == [15]
    summary = json.loads((results / "summary.json").read_text())
    assert set(summary) == {"default_train_minus_probe_tiny_top1", "default_train_minus_probe_tiny_macro_f1"}
    measured = json.loads((results / "default_train_tiny/measured.json").read_text())
    assert measured["recipe"] == "quick"
    assert "random weights" in measured["probe_of"]
    assert measured["probe_num_train_images"] == measured["num_train_images"] > 0
    assert str(class_folders) not in json.dumps(measured)
    claim = summary["default_train_minus_probe_tiny_top1"]
    assert claim["value"] == pytest.approx(100 * measured["over_probe"]["top1"]["value"])
    assert "over the linear probe of random weights" in capsys.readouterr().out
    assert claim["hardware"] == measured["hardware"] == record.hardware()
    assert claim["versions"] == {name: measured["versions"][name] for name in record.NAMED}
    fewer = shutil.copytree(class_folders, results / "fewer")
    next(fewer.glob("*/*.jpg")).unlink()
    for options in ((f"tiny={class_folders}", "--minutes", "1"), (f"tiny={fewer}", "--record")):
        monkeypatch.setattr(sys, "argv", ["default_train", *options, "--output", str(results)])
        with pytest.raises(SystemExit, match=mentioning("measured.json")):
            default_train.main()
    monkeypatch.setattr(sys, "argv", args)
    moved = measured | {"hardware": "another machine"}  # as in a clone
    (results / "default_train_tiny/measured.json").write_text(json.dumps(moved))
    default_train.main()
    summary = json.loads((results / "summary.json").read_text())
    assert {claim["hardware"] for claim in summary.values()} == {"another machine"}
    (results / "default_train_tiny/measured.json").unlink()  # as if stopped after the probe
    default_train.main()
    repeated = json.loads((results / "default_train_tiny/measured.json").read_text())
    assert repeated["probe_of"] == measured["probe_of"]


def test_stopped_run_does_not_resume_with_other_minutes(results, monkeypatch, class_folders):
    """Otherwise the run would end after the minutes of the second call."""

    def train(images, minutes, run):
        raise KeyboardInterrupt

    monkeypatch.setattr(default_train, "train", train)
    args = ["default_train", f"tiny={class_folders}", "--output", str(results)]
    for options, exception in ((["--minutes", "1"], KeyboardInterrupt), (["--record"], SystemExit)):
        monkeypatch.setattr(sys, "argv", [*args, *options])
        with pytest.raises(exception) as error:
            default_train.main()
    assert mentions(str(error.value), "about.json", "minutes")


RECORDS = {
    path.parent.name: json.loads(path.read_text()) for path in record.RESULTS.glob("default_train_*/measured.json")
}


@pytest.mark.parametrize("name", sorted(name for name, saved in RECORDS.items() if "pictures_digest" not in saved))
def test_record_without_an_image_digest_is_compared_by_minutes(name, class_folders):
    out = record.RESULTS / name
    assert default_train.measured(str(class_folders), 15, out) == RECORDS[name]
    assert not (out / "about.json").exists(), "unknown facts are not written"
    with pytest.raises(SystemExit, match=mentioning("minutes")):
        default_train.measured(str(class_folders), 1, out)


@pytest.mark.parametrize("name", sorted(name for name, saved in RECORDS.items() if "pictures_digest" in saved))
def test_record_with_an_image_digest_is_rejected_for_other_images(name, class_folders):
    with pytest.raises(SystemExit, match=mentioning("pictures_digest")):
        default_train.measured(str(class_folders), 15, record.RESULTS / name)


def test_committed_records_have_both_forms():
    assert len({"pictures_digest" in saved for saved in RECORDS.values()}) == 2


def test_probe_on_a_sample_is_named_if_recorded():
    difference = {"value": 0.01, "low": 0.0, "high": 0.02}
    row = {
        "recipe": "finetune", "weights": "w", "top1": 0.9, "probe_of": "the weights", "probe_top1": 0.8, "pictures": 9,
        "over_probe": {"top1": difference}, "num_train_images": 40_000,
    }  # fmt: skip
    assert "(80.0%): top1" in default_train.told("set", row), "record of an older version"
    assert "(80.0%): top1" in default_train.told("set", row | {"probe_num_train_images": 40_000})
    assert mentions(
        default_train.told("set", row | {"probe_num_train_images": 5000}), "80.0", "5,000", "40,000", "top1"
    )


def no_weights():
    """No pretrained weights, independent of this checkout."""
    from efficientnetv2.training.initial_weights import WeightsCandidate

    return (WeightsCandidate("none", "Weights: none."),)
