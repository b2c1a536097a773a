"""``effnetv2 train --dry-run`` estimates every recipe, with its stages and batch size, for a small model."""

from __future__ import annotations

import pytest
from tests.conftest import COLORS, paint
from tests.messages import mentions

from efficientnetv2.data.config import DataConfig
from efficientnetv2.training import timing
from efficientnetv2.training.memory_probe import MemoryProbe
from efficientnetv2.training.microbatch import ONE_GROUP_PER_PASS
from efficientnetv2.training.overrides import TrainOverrides
from efficientnetv2.training.recipes import get_recipe, named_recipes
from efficientnetv2.training.run_request import RunOptions
from efficientnetv2.workflows.estimate import plan_run

STAGE = "{operator: {kind: mbconv, expand: 2, kernel: 3, se: null}, stride: 2, channels: 8, layers: 1}"
SMALL = f"model={{stem_channels: 8, stages: [{STAGE}], head_channels: 8}}"
TRAIN, PX, STEPS_PER_STAGE = 24, 48, 2
# Three seconds each: one recipe of each group that the estimate treats equally.
DISTINCT_RECIPES = {
    (recipe.progressive.stages, recipe.multilabel, recipe.schedule.name, recipe.expected_dataset): recipe.name
    for recipe in map(get_recipe, reversed(named_recipes()))
}.values()


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """The folders of ImageNet: train/ and val/ with a folder for each class."""
    folder = tmp_path_factory.mktemp("imagenet")
    for color, rgb in COLORS.items():
        for number in range(TRAIN // 3 + 2):
            split = "train" if number < TRAIN // 3 else "val"
            paint(folder / split / color / f"{number}.jpg", rgb, number)
    return folder


@pytest.fixture
def fast_timing(monkeypatch):
    """Measure each step only once."""
    monkeypatch.setattr(timing, "_TIMED_S", 0.0)
    monkeypatch.setattr(timing, "_PREDICTIONS_S", 0.0)
    # Measure two groups of 8 images, not a full batch of up to 4,096, which may fit in memory.
    monkeypatch.setattr(timing, "_HURRIED_IMAGES", 16)
    monkeypatch.setattr(MemoryProbe, "microbatches", lambda *_, **__: ONE_GROUP_PER_PASS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "package"), [("resnet50_380_progressive", "torchvision"), ("efficientnet_b5_progressive", "timm")]
)
def test_models_of_other_libraries_are_estimated(recipe, package, imagenet, tmp_path, fast_timing, monkeypatch, capsys):
    """The models of table 12 with minival, at 128 px; B0 instead of B5, which is slow."""
    pytest.importorskip(package)
    monkeypatch.setattr(timing, "_HURRIED_IMAGES", 4)  # two groups of 2
    overrides = TrainOverrides(
        recipe=recipe,
        model="timm:tf_efficientnet_b0" if package == "timm" else None,
        image_size=128,
        epochs=8 * get_recipe(recipe).batch_size / (TRAIN - 6),
        settings=("minival=6", "eval_image_size=64", "ghost_batch_size=2", "precision=fp32", "compile=false"),
    )
    options = RunOptions(out=tmp_path / "run", device="cpu", workers=0)
    result = plan_run(overrides, DataConfig(str(imagenet)), options).report
    assert [stage["steps"] for stage in result["stages"]] == [2] * 4
    assert all(stage["seconds"] > 0 for stage in result["stages"])
    assert result["steps"] == 8, "computed without the images of minival"


@pytest.mark.parametrize("name", DISTINCT_RECIPES)
def test_each_stage_of_a_recipe_is_estimated(name, imagenet, tmp_path, fast_timing, capsys):
    recipe = get_recipe(name)
    stages = recipe.progressive.stages
    overrides = TrainOverrides(
        recipe=name,
        weights="none",
        image_size=PX,
        epochs=STEPS_PER_STAGE * stages * recipe.batch_size / TRAIN,
        settings=(SMALL, "minival=null", "ghost_batch_size=8", "precision=fp32", "compile=false"),
    )
    result = plan_run(
        overrides, DataConfig(str(imagenet)), RunOptions(out=tmp_path / "run", device="cpu", workers=0)
    ).report
    plan = recipe.progressive.with_image_size(PX)
    assert [stage["image_size"] for stage in result["stages"]] == [plan.stage(i).image_size for i in range(stages)]
    assert [stage["steps"] for stage in result["stages"]] == [STEPS_PER_STAGE] * stages
    assert result["steps"] == STEPS_PER_STAGE * stages
    assert all(stage["seconds"] > 0 for stage in result["stages"])
    if recipe.batch_size > 8:
        assert mentions(" ".join(result["auto_choices"]), recipe.batch_size, "groups of 8")
    assert not (tmp_path / "run").exists()
