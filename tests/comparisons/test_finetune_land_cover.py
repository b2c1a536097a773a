"""Fine-tuning on land cover: what is kept is of the images, weights and recipe that are asked for."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from benchmarks import finetune_land_cover, record
from benchmarks.finetune_land_cover import FOLDS
from tests.conftest import COLORS, paint
from tests.messages import mentioning, mentions

from efficientnetv2.data.dataset import load_dataset


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """The script, of which training and probing are played; how often it trained."""
    monkeypatch.setattr(finetune_land_cover, "RESULTS", tmp_path)
    monkeypatch.setattr(record, "SUMMARY", tmp_path / "summary.json")
    for module in (finetune_land_cover, record):
        monkeypatch.setattr(module, "hardware", lambda *device: "the machine that trained")
    made = []

    def answered(recipe, train, val, folder, minutes):
        made.append(folder.name)
        sure = np.eye(len(val.class_names))[val.labels]
        return {"labels": val.labels.tolist(), "probabilities": sure.tolist(), "seconds": 60.0, "epochs": recipe.epochs}

    monkeypatch.setattr(finetune_land_cover, "answered", answered)
    monkeypatch.setattr(finetune_land_cover, "probed", lambda *given: {"macro_f1": 0.5})
    for name in ("weights", "others"):
        (tmp_path / name).write_text(name)

    def run(pictures, weights, *words):
        line = ["finetune_land_cover", str(pictures), str(tmp_path / weights), "--output", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", [*line, *words])
        finetune_land_cover.main()
        return len(made)

    return run


def test_what_is_kept_is_refused_for_other_pictures_weights_and_recipes(asked, class_folders, monkeypatch, tmp_path):
    assert asked(class_folders, "weights") == asked(class_folders, "weights") == 4 * FOLDS, "made once"
    with pytest.raises(SystemExit, match=mentioning("answers.json", "weight")):
        asked(class_folders, "others")
    for name, color in COLORS.items():
        for number in range(16):
            paint(tmp_path / "more" / name / f"other_{number}.jpg", color, number)
    with pytest.raises(SystemExit, match=mentioning("answers.json")):
        asked(tmp_path / "more", "weights")
    monkeypatch.setattr(finetune_land_cover, "KNOWN", ["epochs=3", "val_interval_epochs=3"])
    with pytest.raises(SystemExit, match=mentioning("answers.json")):
        asked(class_folders, "weights")


def test_claims_are_written_when_asked_for_and_are_of_the_machine_that_trained(asked, class_folders, tmp_path, capsys):
    asked(class_folders, "weights")
    assert not (tmp_path / "summary.json").exists()
    assert not (tmp_path / "finetune_land_cover.json").exists()
    asked(class_folders, "weights", "--record")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {claim["hardware"] for claim in summary.values()} == {"the machine that trained"}
    file = tmp_path / "out/fold0/scratch/answers.json"
    kept = json.loads(file.read_text())
    del kept["hardware"]  # as those that were kept before they said so
    file.write_text(json.dumps(kept))
    asked(class_folders, "weights", "--record")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert "hardware that was not kept" in summary["scratch_land_cover_macro_f1"]["hardware"]
    with pytest.raises(SystemExit):
        asked(class_folders, "weights", "--only", "0", "--record")
    assert mentions(capsys.readouterr().err, "--record", "fold")


@pytest.mark.parametrize("name", ["scratch/answers.json", "inner_frozen/answers.json", "probe.json"])
def test_what_does_not_say_of_what_it_is_is_shown_and_not_recorded(name, asked, class_folders, tmp_path, capsys):
    made = asked(class_folders, "weights")
    file = tmp_path / "out/fold3" / name
    kept = json.loads(file.read_text())
    del kept["asked"]
    file.write_text(json.dumps(kept))
    capsys.readouterr()
    assert asked(class_folders, "weights") == made
    assert '"macro_f1": 1.0' in capsys.readouterr().out
    with pytest.raises(SystemExit) as refused:
        asked(class_folders, "weights", "--record")
    assert str(refused.value).endswith(f":\n{file}"), "what is to be deleted, and nothing else"
    assert not (tmp_path / "summary.json").exists()
    assert not (tmp_path / "finetune_land_cover.json").exists()
    file.unlink()
    asked(class_folders, "weights", "--record")
    assert (tmp_path / "summary.json").exists()


def test_where_pictures_and_weights_lie_is_not_kept(class_folders, tmp_path):
    (tmp_path / "weights").write_text("weights")
    train = load_dataset(str(class_folders))
    told = finetune_land_cover.asked_of(train, train, str(tmp_path / "weights"))
    assert str(tmp_path) not in json.dumps(told)
    assert finetune_land_cover.asked_of(train, train, "none")["weights"] == "none"
