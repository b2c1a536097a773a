"""Fine-tuning on land cover: saved results belong to the images, weights and recipe of the call."""

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
def run_script(tmp_path, monkeypatch):
    """The script with simulated training and probe, and the number of training runs."""
    monkeypatch.setattr(finetune_land_cover, "RESULTS", tmp_path)
    monkeypatch.setattr(record, "SUMMARY", tmp_path / "summary.json")
    for module in (finetune_land_cover, record):
        monkeypatch.setattr(module, "hardware", lambda *device: "the machine that trained")
    trained = []

    def fake_predictions(recipe, train, val, folder, minutes):
        trained.append(folder.name)
        probabilities = np.eye(len(val.class_names))[val.labels]
        return {
            "labels": val.labels.tolist(),
            "probabilities": probabilities.tolist(),
            "seconds": 60.0,
            "epochs": recipe.epochs,
        }

    monkeypatch.setattr(finetune_land_cover, "answered", fake_predictions)
    monkeypatch.setattr(finetune_land_cover, "probed", lambda *_: {"macro_f1": 0.5})
    for name in ("weights", "others"):
        (tmp_path / name).write_text(name)

    def run(images, weights, *options):
        args = ["finetune_land_cover", str(images), str(tmp_path / weights), "--output", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", [*args, *options])
        finetune_land_cover.main()
        return len(trained)

    return run


def test_saved_results_of_other_images_weights_or_recipes_are_rejected(
    run_script, class_folders, monkeypatch, tmp_path
):
    assert run_script(class_folders, "weights") == run_script(class_folders, "weights") == 4 * FOLDS, "trained once"
    with pytest.raises(SystemExit, match=mentioning("answers.json", "weight")):
        run_script(class_folders, "others")
    for name, color in COLORS.items():
        for number in range(16):
            paint(tmp_path / "more" / name / f"other_{number}.jpg", color, number)
    with pytest.raises(SystemExit, match=mentioning("answers.json")):
        run_script(tmp_path / "more", "weights")
    monkeypatch.setattr(finetune_land_cover, "KNOWN", ["epochs=3", "val_interval_epochs=3"])
    with pytest.raises(SystemExit, match=mentioning("answers.json")):
        run_script(class_folders, "weights")


def test_claims_are_recorded_on_request_with_the_training_hardware(run_script, class_folders, tmp_path, capsys):
    run_script(class_folders, "weights")
    assert not (tmp_path / "summary.json").exists()
    assert not (tmp_path / "finetune_land_cover.json").exists()
    run_script(class_folders, "weights", "--record")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {claim["hardware"] for claim in summary.values()} == {"the machine that trained"}
    file = tmp_path / "out/fold0/scratch/answers.json"
    saved = json.loads(file.read_text())
    del saved["hardware"]  # as in older versions
    file.write_text(json.dumps(saved))
    run_script(class_folders, "weights", "--record")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert "hardware that was not kept" in summary["scratch_land_cover_macro_f1"]["hardware"]
    with pytest.raises(SystemExit):
        run_script(class_folders, "weights", "--only", "0", "--record")
    assert mentions(capsys.readouterr().err, "--record", "fold")


@pytest.mark.parametrize("name", ["scratch/answers.json", "inner_frozen/answers.json", "probe.json"])
def test_result_without_its_inputs_is_shown_but_not_recorded(name, run_script, class_folders, tmp_path, capsys):
    trained = run_script(class_folders, "weights")
    file = tmp_path / "out/fold3" / name
    saved = json.loads(file.read_text())
    del saved["asked"]
    file.write_text(json.dumps(saved))
    capsys.readouterr()
    assert run_script(class_folders, "weights") == trained
    assert '"macro_f1": 1.0' in capsys.readouterr().out
    with pytest.raises(SystemExit) as error:
        run_script(class_folders, "weights", "--record")
    assert str(error.value).endswith(f":\n{file}"), "only the file to delete"
    assert not (tmp_path / "summary.json").exists()
    assert not (tmp_path / "finetune_land_cover.json").exists()
    file.unlink()
    run_script(class_folders, "weights", "--record")
    assert (tmp_path / "summary.json").exists()


def test_paths_of_images_and_weights_are_not_saved(class_folders, tmp_path):
    (tmp_path / "weights").write_text("weights")
    train = load_dataset(str(class_folders))
    inputs = finetune_land_cover.asked_of(train, train, str(tmp_path / "weights"))
    assert str(tmp_path) not in json.dumps(inputs)
    assert finetune_land_cover.asked_of(train, train, "none")["weights"] == "none"
