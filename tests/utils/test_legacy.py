"""Files of version 0.1 are read with the current names, and current files are unchanged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from efficientnetv2.evaluation.predictions import load_predictions, saved_clusters
from efficientnetv2.models import model_header
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.training.recipe_io import read_recipe
from efficientnetv2.training.recipes import get_recipe, named_recipes
from efficientnetv2.training.run_dir import RunDir
from efficientnetv2.utils.legacy import upgrade

# From a run of version 0.1, shortened: header of the model file, report.json, beginning.json.
OLD = json.loads((Path(__file__).parent / "data/version_0_1.json").read_text(encoding="utf-8"))


def test_recipe_is_read(tmp_path):
    (tmp_path / "recipe.yaml").write_text(json.dumps(OLD["header"]["recipe"]))  # JSON is YAML
    recipe = read_recipe(tmp_path / "recipe.yaml")
    assert (recipe.batch_size, recipe.ghost_batch_size, recipe.val_fraction) == (32, 32, 0.2)
    assert (recipe.crop_mode, recipe.tta, recipe.init, recipe.head_init) == (
        "center", "d4", "zero_residual", "random",
    )  # fmt: skip
    assert (recipe.optimizer.name, recipe.optimizer.beta2, recipe.schedule.name) == ("adamw", 0.99, "cosine")
    assert (recipe.progressive.last.image_size, recipe.eval_split) == (64, "val")


def test_model_file_header_is_read():
    header, written = model_header.parse(Path("old.safetensors"), json.dumps(OLD["header"]), "efficientnetv2")
    assert written == 4
    assert (header.preprocessing.crop_mode, header.preprocessing.tta) == ("center", "d4")
    assert header.architecture is not None
    assert header.architecture.global_pool == "avg"
    assert (header.recipe["batch_size"], header.activation) == (32, "softmax")


def test_report_is_read():
    report = upgrade(OLD["report"])
    assert (report["num_images"], report["bootstrap_unit"], report["tta"]) == (21, "location", "d4")
    assert report["num_eval_images_seen_in_training"] == report["num_eval_images_used_for_selection"] == 0
    assert report["linear_probe_top1"] == 0.25
    assert report["stages"][0]["image_size"] == 32
    assert report["top_errors"][0]["predicted"] == "turns"
    later = {"answer": "sigmoid", "views_compared": None, "picture_m": 240.0}
    assert upgrade(later) == {"activation": "sigmoid", "tta_comparison": None, "ground_m": 240.0}
    assert upgrade({"evaluated_on": "all pictures"}) == {"evaluated_on": "all images"}


def test_class_names_are_unchanged():
    report = upgrade(OLD["report"])
    assert set(report["per_class"]) == {"classifier"}
    assert report["train_images_per_class"] == {"shares": 3}


def test_run_folder_is_read(tmp_path):
    (tmp_path / "beginning.json").write_text(json.dumps(OLD["run"]))
    (tmp_path / "manifest.csv").write_text("path,label,split\na.jpg,x,val\n")
    (tmp_path / "predictions.csv").write_text(
        "path,label,true_label,x,y,drawn_whole\na.jpg,y,x,0.4,0.6,7\nb.jpg,x,x,1,0,7\n"
    )
    run = RunDir(tmp_path)
    facts = run.beginning()
    assert Preprocessing.from_json(facts["preprocessing"]).image_size == 64
    assert (facts["auto_choices"], facts["microbatches"]) == (["Recipe: quick."], {"32": 1, "64": 1})
    assert run.dataset_file.name == "manifest.csv"
    predictions = load_predictions(tmp_path)
    assert predictions["predicted_label"].tolist() == ["y", "x"]
    clusters = saved_clusters(predictions)
    assert clusters is not None
    assert clusters.nunique() == 1


@pytest.mark.parametrize("name", named_recipes())
def test_current_names_are_unchanged(name):
    plain = get_recipe(name).to_json()
    assert upgrade(plain) == plain


def test_second_upgrade_changes_nothing():
    for part in OLD.values():
        assert upgrade(upgrade(part)) == upgrade(part)
