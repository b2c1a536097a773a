"""Files of version 0.1 are read with the current names, and current files are unchanged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from efficientnetv2.evaluation.predictions import load_predictions, saved_clusters
from efficientnetv2.models import model_header
from efficientnetv2.training.recipe_io import read_recipe
from efficientnetv2.training.recipes import get_recipe, named_recipes
from efficientnetv2.utils.legacy import upgrade

# Header of the model file of a run of version 0.1, shortened.
HEADER = json.loads((Path(__file__).parent / "data/version_0_1.json").read_text(encoding="utf-8"))


def test_recipe_is_read(tmp_path):
    (tmp_path / "recipe.yaml").write_text(json.dumps(HEADER["recipe"]))  # JSON is YAML
    recipe = read_recipe(tmp_path / "recipe.yaml")
    assert (recipe.batch_size, recipe.ghost_batch_size, recipe.val_fraction) == (32, 32, 0.2)
    assert (recipe.crop_mode, recipe.tta, recipe.init, recipe.head_init) == (
        "center", "d4", "zero_residual", "random",
    )  # fmt: skip
    assert (recipe.optimizer.name, recipe.optimizer.beta2, recipe.schedule.name) == ("adamw", 0.99, "cosine")
    assert (recipe.progressive.last.image_size, recipe.eval_split) == (64, "val")


def test_model_file_header_is_read():
    header, written = model_header.parse(Path("old.safetensors"), json.dumps(HEADER), "efficientnetv2")
    assert written == 4
    assert (header.preprocessing.crop_mode, header.preprocessing.tta) == ("center", "d4")
    assert header.architecture is not None
    assert header.architecture.global_pool == "avg"
    assert (header.recipe["batch_size"], header.activation) == (32, "softmax")
    assert header.metrics["selected_score"] == pytest.approx(0.353, abs=1e-3)


def test_model_file_header_of_a_raster_model_is_read():
    bands = {"numbers": [4, 3, 2], "picture_m": 320.0}
    rasters = HEADER | {"preprocessing": HEADER["preprocessing"] | {"bands": bands}}
    header, _ = model_header.parse(Path("old.safetensors"), json.dumps(rasters), "efficientnetv2")
    assert header.preprocessing.bands is not None
    assert header.preprocessing.bands.ground_m == 320


def test_table_of_predictions_is_read(tmp_path):
    (tmp_path / "predictions.csv").write_text(
        "path,label,true_label,x,y,drawn_whole\na.jpg,y,x,0.4,0.6,7\nb.jpg,x,x,1,0,7\n"
    )
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
    assert upgrade(upgrade(HEADER)) == upgrade(HEADER)
