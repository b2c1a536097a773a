"""``effnetv2 train --dry-run`` estimates every recipe, with its stages and batch, for a small network and images."""

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
from efficientnetv2.training.recipes import RECIPES, get_recipe
from efficientnetv2.training.run_request import RunOptions
from efficientnetv2.utils.errors import InputError
from efficientnetv2.workflows import train
from efficientnetv2.workflows.estimate import plan_run

STAGE = "{operator: {kind: mbconv, expand: 2, kernel: 3, se: null}, stride: 2, channels: 8, layers: 1}"
SMALL = f"model={{stem_channels: 8, stages: [{STAGE}], head_channels: 8}}"
TRAIN, PX, STEPS_PER_STAGE = 24, 48, 2
# Three seconds each: of all recipes that a plan treats alike, one.
EACH = {
    (recipe.progressive.stages, recipe.multilabel, recipe.schedule.name, recipe.expected_dataset): recipe.name
    for recipe in map(get_recipe, reversed(RECIPES))
}.values()


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """As ImageNet lies on a disk: train/ and val/ with a folder for each class."""
    folder = tmp_path_factory.mktemp("imagenet")
    for color, rgb in COLORS.items():
        for number in range(TRAIN // 3 + 2):
            split = "train" if number < TRAIN // 3 else "val"
            paint(folder / split / color / f"{number}.jpg", rgb, number)
    return folder


@pytest.fixture
def quickly(monkeypatch):
    """Nothing is measured for longer than it takes."""
    monkeypatch.setattr(timing, "_TIMED_S", 0.0)
    monkeypatch.setattr(timing, "_PREDICTIONS_S", 0.0)
    # Of a batch of 4,096, say, two groups of 8 are measured: with memory for all, it would be all of them.
    monkeypatch.setattr(timing, "_MOST_IMAGES", 16)
    monkeypatch.setattr(MemoryProbe, "microbatches", lambda *_, **__: ONE_GROUP_PER_PASS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "package"), [("resnet50_380_progressive", "torchvision"), ("efficientnet_b5_progressive", "timm")]
)
def test_networks_of_others_are_foretold_too(recipe, package, imagenet, tmp_path, quickly, capsys):
    """Table 12's, each with its own images held out to choose by, at 128 px; B0 stands in for B5, which is long."""
    pytest.importorskip(package)
    words = TrainOverrides(
        recipe=recipe,
        model="timm:tf_efficientnet_b0" if package == "timm" else None,
        image_size=128,
        epochs=8 * get_recipe(recipe).batch_size / (TRAIN - 6),
        settings=("minival=6", "eval_image_size=64", "ghost_batch_size=2", "precision=fp32", "compile=false"),
    )
    place = RunOptions(out=tmp_path / "run", device="cpu", workers=0)
    told = plan_run(words, DataConfig(str(imagenet)), place).report
    assert [stage["steps"] for stage in told["stages"]] == [2] * 4
    assert all(stage["seconds"] > 0 for stage in told["stages"])
    assert told["steps"] == 8, "of the pictures without minival"


@pytest.mark.parametrize("name", EACH)
def test_each_stage_of_a_recipe_is_foretold(name, imagenet, tmp_path, quickly, capsys):
    recipe = get_recipe(name)
    stages = recipe.progressive.stages
    words = TrainOverrides(
        recipe=name,
        weights="none",
        image_size=PX,
        epochs=STEPS_PER_STAGE * stages * recipe.batch_size / TRAIN,
        settings=(SMALL, "minival=null", "ghost_batch_size=8", "precision=fp32", "compile=false"),
    )
    told = plan_run(words, DataConfig(str(imagenet)), RunOptions(out=tmp_path / "run", device="cpu", workers=0)).report
    plan = recipe.progressive.with_image_size(PX)
    assert [stage["image_size"] for stage in told["stages"]] == [plan.stage(i).image_size for i in range(stages)]
    assert [stage["steps"] for stage in told["stages"]] == [STEPS_PER_STAGE] * stages
    assert told["steps"] == STEPS_PER_STAGE * stages
    assert all(stage["seconds"] > 0 for stage in told["stages"])
    if recipe.batch_size > 8:
        assert mentions(" ".join(told["auto_choices"]), recipe.batch_size, "groups of 8")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """No weights are here, and none can be fetched."""
    nowhere = hub.Hub(folder=tmp_path / "hub", torch_folder=tmp_path / "torch", offline=True)
    monkeypatch.setattr(hub, "Hub", lambda: nowhere)


ONWARDS = [name for name in EACH if get_recipe(name).weights not in ("none", "auto")]
NONE_WILL_DO = "To estimate the same steps without them"


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ONWARDS)
def test_a_plan_of_weights_that_cannot_be_had_says_how_it_is_had_without_them(name, imagenet, tmp_path):
    """Each such recipe is foretold with ``--weights none`` above."""
    place = RunOptions(out=tmp_path / "run", device="cpu", workers=0)
    words = TrainOverrides(recipe=name, settings=("minival=null", "expected_dataset=null"))
    with pytest.raises(InputError, match=r"not in the cache.* " + NONE_WILL_DO):
        plan_run(words, DataConfig(str(imagenet)), place)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("given_", "led"),
    [
        ({"model": "auto"}, "`model=efficientnetv2_s` and `weights=none`"),
        ({"settings": ("freeze_stages=2",)}, None),
        ({"settings": ("freeze_bn=true",)}, None),
        ({"recipe": None, "weights": "efficientnetv2_s.in1k"}, None),  # with none it would be quick
    ],
)
def test_only_the_same_steps_are_promised(given_, led, imagenet, tmp_path):
    place = RunOptions(out=tmp_path / "run", device="cpu", workers=0)
    with pytest.raises(InputError, match=mentioning("cache")) as told:
        plan_run(TrainOverrides(**{"recipe": "transfer_paper", **given_}), DataConfig(str(imagenet)), place)
    assert NONE_WILL_DO in str(told.value) if led else NONE_WILL_DO not in str(told.value)
    assert (led or "") in str(told.value)


@pytest.mark.usefixtures("offline")
def test_a_run_is_not_led_away_from_its_weights(imagenet, tmp_path):
    place = RunOptions(out=tmp_path / "run", device="cpu", workers=0)
    with pytest.raises(InputError, match=mentioning("cache")) as told:
        train.train_and_report(TrainOverrides(recipe="transfer_paper"), DataConfig(str(imagenet)), place)
    assert NONE_WILL_DO not in str(told.value)
