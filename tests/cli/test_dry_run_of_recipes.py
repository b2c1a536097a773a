"""``effnetv2 train --dry-run`` estimates every recipe, with its stages and batch size, for a small model."""

from __future__ import annotations

import pytest
from tests.conftest import COLORS, paint
from tests.messages import mentioning, mentions

from efficientnetv2.data.config import DataConfig
from efficientnetv2.models import hub
from efficientnetv2.training import timing
from efficientnetv2.training.memory_probe import MemoryProbe
from efficientnetv2.training.microbatch import ONE_GROUP_PER_PASS
from efficientnetv2.training.overrides import TrainOverrides
from efficientnetv2.training.recipes import get_recipe, named_recipes
from efficientnetv2.training.run_request import RunOptions
from efficientnetv2.utils.errors import InputError
from efficientnetv2.workflows import train
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
    monkeypatch.setattr(timing, "_MOST_IMAGES", 16)
    monkeypatch.setattr(MemoryProbe, "microbatches", lambda *_, **__: ONE_GROUP_PER_PASS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "package"), [("resnet50_380_progressive", "torchvision"), ("efficientnet_b5_progressive", "timm")]
)
def test_models_of_other_libraries_are_estimated(recipe, package, imagenet, tmp_path, fast_timing, capsys):
    """The models of table 12 with minival, at 128 px; B0 instead of B5, which is slow."""
    pytest.importorskip(package)
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


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """No weights are cached, and none can be downloaded."""
    nowhere = hub.Hub(folder=tmp_path / "hub", torch_folder=tmp_path / "torch", offline=True)
    monkeypatch.setattr(hub, "Hub", lambda: nowhere)


WITH_WEIGHTS = [name for name in DISTINCT_RECIPES if get_recipe(name).weights not in ("none", "auto")]
WITHOUT_WEIGHTS = "To estimate the same steps without them"


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_unavailable_weights_suggest_an_estimate_without_them(name, imagenet, tmp_path):
    """The test above estimates each such recipe with ``--weights none``."""
    options = RunOptions(out=tmp_path / "run", device="cpu", workers=0)
    overrides = TrainOverrides(recipe=name, settings=("minival=null", "expected_dataset=null"))
    with pytest.raises(InputError, match=r"not in the cache.* " + WITHOUT_WEIGHTS):
        plan_run(overrides, DataConfig(str(imagenet)), options)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("changes", "fix"),
    [
        ({"model": "auto"}, "`model=efficientnetv2_s` and `weights=none`"),
        ({"settings": ("freeze_stages=2",)}, None),
        ({"settings": ("freeze_bn=true",)}, None),
        (
            {"recipe": None, "weights": "efficientnetv2_s.in1k"},
            None,
        ),  # without weights, the default recipe would be quick
    ],
)
def test_estimate_without_weights_is_suggested_only_for_equal_steps(changes, fix, imagenet, tmp_path):
    options = RunOptions(out=tmp_path / "run", device="cpu", workers=0)
    with pytest.raises(InputError, match=mentioning("cache")) as error:
        plan_run(TrainOverrides(**{"recipe": "transfer_paper", **changes}), DataConfig(str(imagenet)), options)
    assert WITHOUT_WEIGHTS in str(error.value) if fix else WITHOUT_WEIGHTS not in str(error.value)
    assert (fix or "") in str(error.value)


@pytest.mark.usefixtures("offline")
def test_training_does_not_suggest_dropping_the_weights(imagenet, tmp_path):
    options = RunOptions(out=tmp_path / "run", device="cpu", workers=0)
    with pytest.raises(InputError, match=mentioning("cache")) as error:
        train.train_and_report(TrainOverrides(recipe="transfer_paper"), DataConfig(str(imagenet)), options)
    assert WITHOUT_WEIGHTS not in str(error.value)
