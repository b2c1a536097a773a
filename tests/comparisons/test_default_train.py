"""The default run against the probe: what is asked of the program, and what is made of what it leaves."""

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
    """Where figures go instead of the repository's own."""
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(record, "SUMMARY", tmp_path / "summary.json")
    return tmp_path


def answers(*given):
    """(path, answer, truth), in a letter each."""
    return pd.DataFrame([tuple(one) for one in given], columns=["path", "predicted_label", "true_label"])


def test_the_program_is_asked_as_a_user_asks_it_and_goes_on_where_it_was(tmp_path):
    words = default_train.command("pictures/", 15, tmp_path)
    assert words[1:] == [
        "-m", "efficientnetv2", "train", "pictures/", "--minutes", "15", "--output", str(tmp_path),
    ]  # fmt: skip
    (tmp_path / "recipe.yaml").write_text("name: quick")
    assert default_train.command("pictures/", 15, tmp_path)[-1] == "--resume"


def test_the_difference_is_that_of_the_pictures_that_both_answered(tmp_path):
    """The probe has not seen image e. Of four the run has 3 right, the probe 2."""
    save_predictions(tmp_path, answers("1aa", "2bb", "3aa", "4ab", "5ab"))
    save_predictions(tmp_path / "probe", answers("1aa", "2ab", "3ba", "4bb"))
    found = default_train.over_probe(tmp_path)
    assert found["pictures"] == 4
    assert found["probe_top1"] == 0.5
    top1 = found["over_probe"]["top1"]
    assert top1["value"] == pytest.approx(0.25)
    assert top1["low"] <= 0 <= top1["value"] <= top1["high"]


def test_a_run_is_done_once_and_its_figures_are_recorded(results, monkeypatch, class_folders, capsys):
    """A run from scratch prints no probe: that of random weights stands in, and it is said."""
    calls = []

    def train(pictures, minutes, run):
        calls.append(minutes)
        short = ["--epochs", "1", "--batch-size", "8", "--image-size", "32", "--workers", "0"]
        settings = ["--set", "progressive.stages=1", "--device", "cpu", "--weights", "none"]
        done = effnetv2("train", pictures, "--output", run, *short, *settings, cwd=results)
        assert done.returncode == 0, done.stderr

    monkeypatch.setattr(default_train, "train", train)
    monkeypatch.setattr(default_train, "weights_candidates", lambda model: default_train_starts())
    line = ["default_train", f"tiny={class_folders}", "--output", str(results), "--record"]
    monkeypatch.setattr(sys, "argv", line)
    default_train.main()
    default_train.main()
    assert calls == [15]
    summary = json.loads((results / "summary.json").read_text())
    assert set(summary) == {"default_train_minus_probe_tiny_top1", "default_train_minus_probe_tiny_macro_f1"}
    kept = json.loads((results / "default_train_tiny/measured.json").read_text())
    assert kept["recipe"] == "quick"
    assert "random weights" in kept["probe_of"]
    assert kept["probe_num_train_images"] == kept["num_train_images"] > 0
    assert str(class_folders) not in json.dumps(kept)
    claim = summary["default_train_minus_probe_tiny_top1"]
    assert claim["value"] == pytest.approx(100 * kept["over_probe"]["top1"]["value"])
    assert "over the linear probe of random weights" in capsys.readouterr().out
    assert claim["hardware"] == kept["hardware"] == record.hardware()
    assert claim["versions"] == {name: kept["versions"][name] for name in record.NAMED}
    fewer = shutil.copytree(class_folders, results / "fewer")
    next(fewer.glob("*/*.jpg")).unlink()
    for words in ((f"tiny={class_folders}", "--minutes", "1"), (f"tiny={fewer}", "--record")):
        monkeypatch.setattr(sys, "argv", ["default_train", *words, "--output", str(results)])
        with pytest.raises(SystemExit, match=mentioning("measured.json")):
            default_train.main()
    monkeypatch.setattr(sys, "argv", line)
    moved = kept | {"hardware": "another machine"}  # as if this were a clone
    (results / "default_train_tiny/measured.json").write_text(json.dumps(moved))
    default_train.main()
    summary = json.loads((results / "summary.json").read_text())
    assert {claim["hardware"] for claim in summary.values()} == {"another machine"}
    (results / "default_train_tiny/measured.json").unlink()  # as if stopped when the probe had answered
    default_train.main()
    again = json.loads((results / "default_train_tiny/measured.json").read_text())
    assert again["probe_of"] == kept["probe_of"]


def test_a_run_that_was_stopped_is_not_gone_on_with_for_longer(results, monkeypatch, class_folders):
    """Its folder would end with the minutes that the second call names."""

    def train(pictures, minutes, run):
        raise KeyboardInterrupt

    monkeypatch.setattr(default_train, "train", train)
    line = ["default_train", f"tiny={class_folders}", "--output", str(results)]
    for words, end in ((["--minutes", "1"], KeyboardInterrupt), (["--record"], SystemExit)):
        monkeypatch.setattr(sys, "argv", [*line, *words])
        with pytest.raises(end) as stopped:
            default_train.main()
    assert mentions(str(stopped.value), "about.json", "minutes")


KEPT = {path.parent.name: json.loads(path.read_text()) for path in record.RESULTS.glob("default_train_*/measured.json")}


@pytest.mark.parametrize("name", sorted(name for name, kept in KEPT.items() if "pictures_digest" not in kept))
def test_a_record_without_a_digest_of_its_images_is_compared_by_its_minutes_alone(name, class_folders):
    out = record.RESULTS / name
    assert default_train.measured(str(class_folders), 15, out) == KEPT[name]
    assert not (out / "about.json").exists(), "nothing is said of it that nobody knows"
    with pytest.raises(SystemExit, match=mentioning("minutes")):
        default_train.measured(str(class_folders), 1, out)


@pytest.mark.parametrize("name", sorted(name for name, kept in KEPT.items() if "pictures_digest" in kept))
def test_a_record_with_a_digest_of_its_images_is_refused_for_other_images(name, class_folders):
    with pytest.raises(SystemExit, match=mentioning("pictures_digest")):
        default_train.measured(str(class_folders), 15, record.RESULTS / name)


def test_committed_records_are_of_both_forms():
    assert len({"pictures_digest" in kept for kept in KEPT.values()}) == 2


def test_a_probe_of_few_pictures_is_called_so_where_the_record_knows_it():
    one = {"value": 0.01, "low": 0.0, "high": 0.02}
    row = {
        "recipe": "finetune", "weights": "w", "top1": 0.9, "probe_of": "the weights", "probe_top1": 0.8, "pictures": 9,
        "over_probe": {"top1": one}, "num_train_images": 40_000,
    }  # fmt: skip
    assert "(80.0%): top1" in default_train.told("set", row), "of before it was kept"
    assert "(80.0%): top1" in default_train.told("set", row | {"probe_num_train_images": 40_000})
    assert mentions(
        default_train.told("set", row | {"probe_num_train_images": 5000}), "80.0", "5,000", "40,000", "top1"
    )


def default_train_starts():
    """No weights at hand, whatever this checkout ships."""
    from efficientnetv2.training.initial_weights import WeightsCandidate

    return (WeightsCandidate("none", "Weights: none."),)
