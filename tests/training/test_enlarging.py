"""Limits of training sizes by the stored size of the images."""

from __future__ import annotations

import pytest
from tests.messages import mentions
from tests.recipes import with_overrides

from efficientnetv2.progressive.schedule import ProgressiveSchedule, Ramp
from efficientnetv2.training.overrides import TrainOverrides, requested_recipe, sets_sizes
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.training.resolve_image_sizes import limit_upscaling, lower_sizes_for_budget


@pytest.mark.parametrize(
    ("stored_size", "sizes"),
    [
        (20, [32, 32, 64, 64]),  # at least 64 px
        (28, [32, 32, 64, 64]),
        (32, [32, 32, 64, 64]),
        (36, [64, 64, 64, 96]),  # 72 px, rounded up to a size of the schedule
        (63, [64, 96, 96, 128]),
        (500, [64, 96, 96, 128]),
        (None, [64, 96, 96, 128]),
    ],
)
def test_images_are_enlarged_to_at_most_twice_their_size(stored_size, sizes):
    recipe, said = limit_upscaling(get_recipe("quick"), stored_size)
    assert [recipe.progressive.stage(index).image_size for index in range(4)] == sizes
    assert recipe.max_upscale is None
    assert [mentions(line, stored_size, "128") for line in said] == ([True] if sizes[-1] < 128 else [])


def test_pretrained_weights_enlarge_images_to_four_times_their_size():
    recipe, said = limit_upscaling(get_recipe("finetune"), 32)
    assert [recipe.progressive.stage(index).image_size for index in range(3)] == [64, 96, 128]
    assert len(said) == 1
    assert limit_upscaling(get_recipe("finetune"), 56)[1] == []


def test_limit_changes_only_the_image_sizes():
    quick = get_recipe("quick")
    recipe, _ = limit_upscaling(quick, 32)
    plan = recipe.progressive.to_json() | {"image_size": quick.progressive.to_json()["image_size"]}
    assert plan == quick.progressive.to_json()
    assert recipe.to_json() | {"progressive": plan, "max_upscale": 2.0} == quick.to_json()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("progressive.order=random", "Sizes: 32 to 64 px instead of up to 128"),  # whichever size is drawn first
        ("progressive.stages=1", "Sizes: 64 px instead of up to 128"),
    ],
)
def test_reported_sizes_are_those_of_the_run(setting, said):
    assert limit_upscaling(with_overrides(get_recipe("quick"), [setting]), 32)[1][0].startswith(said)


def test_one_size_remains_one_size():
    fixed = with_overrides(get_recipe("quick"), ["progressive.stages=1", "progressive.image_size=224", "max_upscale=3"])
    assert limit_upscaling(fixed, 40)[0].progressive.last.image_size == 128
    ramp = get_recipe("quick").model_copy(
        update={"progressive": ProgressiveSchedule(stages=4, image_size=Ramp(100, 200, continuous=True))}
    )
    smaller = limit_upscaling(ramp, 50)[0].progressive
    assert (smaller.at(0, total_steps=100).image_size, smaller.last.image_size) == (50, 100)


@pytest.mark.parametrize(
    "words",
    [
        TrainOverrides(image_size=128),
        TrainOverrides(settings=("progressive.image_size={start: 64, end: 128}",)),
        TrainOverrides(settings=("progressive.image_size.end=128",)),
        TrainOverrides(settings=("progressive={stages: 1, image_size: 128}",)),
        TrainOverrides(settings=("max_upscale=null",)),
    ],
)
def test_requested_size_is_used(words):
    named_so = TrainOverrides(recipe="quick", weights="none", image_size=words.image_size, settings=words.settings)
    recipe, _ = requested_recipe(named_so, "cpu")
    assert recipe.max_upscale is None
    assert limit_upscaling(recipe, 32) == (recipe, [])
    also = TrainOverrides(recipe="quick", weights="none", image_size=256, settings=("max_upscale=3",))
    assert requested_recipe(also, "cpu")[0].max_upscale == 3


def in_time(images: float):
    """Epochs of 1,000 images, if a number of images of 128 px fits into the time."""

    def epochs_of(recipe):
        plan = recipe.progressive
        pixels = sum(share * plan.stage(stage).image_size ** 2 for stage, share in enumerate(plan.weights))
        return images * 128**2 / pixels / 1000

    return epochs_of


def sizes_of(recipe):
    return [recipe.progressive.stage(index).image_size for index in range(recipe.progressive.stages)]


@pytest.mark.parametrize(
    ("images", "sizes"),
    [
        (9000, [128, 192, 224]),  # more than three epochs
        (5000, [96, 160, 192]),
        (1200, [64, 64, 96]),
        (10, [32, 64, 64]),  # three epochs do not fit at any size
    ],
)
def test_sizes_are_reduced_until_three_epochs_fit(images, sizes):
    finetune, epochs_of = get_recipe("finetune"), in_time(images)
    recipe, said = lower_sizes_for_budget(finetune, epochs_of, lambda sized: True)
    assert sizes_of(recipe) == sizes
    assert epochs_of(recipe) >= 3 or sizes[-1] == 64
    if recipe is finetune:
        assert said == []
    else:
        assert mentions(said[0], sizes[0], sizes[-1], "224")
        assert "minutes" in said[0]
        assert "image_size=224" in said[0]


@pytest.mark.parametrize(("reading", "last_px"), [(1.0, 224), (0.9, 224), (0.5, 128), (0.0, 64)])
def test_sizes_are_not_reduced_where_reading_takes_the_time(reading, last_px):
    """An epoch at 224 px takes four times the minutes, and reading this part of it at any size."""

    def epochs_of(recipe):
        return 0.25 / (reading + (1 - reading) * (recipe.progressive.last.image_size / 224) ** 2)

    recipe, _ = lower_sizes_for_budget(get_recipe("finetune"), epochs_of, lambda sized: True)
    assert recipe.progressive.last.image_size == last_px


def test_sizes_that_the_model_cannot_take_are_left_out():
    """The first stage of inception_v3 would be below its minimum of 75 px. A ViT takes one size."""
    recipe = get_recipe("finetune")
    least, _ = lower_sizes_for_budget(recipe, in_time(10), lambda sized: sized.progressive.stage(0).image_size >= 75)
    assert sizes_of(least)[0] == 96
    assert lower_sizes_for_budget(recipe, in_time(10), lambda sized: False) == (recipe, [])


def test_evaluation_sizes_are_reduced_with_training_sizes():
    recipe = with_overrides(
        get_recipe("finetune"), ["eval_image_size=288", "minival=0.1", "eval_image_size_candidates=[224, 256, 320]"]
    )
    lower, _ = lower_sizes_for_budget(recipe, in_time(1200), lambda sized: True)
    assert lower.progressive.last.image_size == 96
    assert (lower.eval_image_size, lower.eval_image_size_candidates) == (128, (96, 128))


@pytest.mark.parametrize(
    ("words", "named_there"),
    [
        (TrainOverrides(minutes=5), False),
        (TrainOverrides(minutes=5, settings=("progressive.stages=2", "optimizer.lr=1")), False),
        (TrainOverrides(minutes=5, image_size=224), True),
        (TrainOverrides(minutes=5, settings=("progressive.image_size={start: 64, end: 224}",)), True),
        (TrainOverrides(minutes=5, settings=("eval_image_size=224",)), True),
    ],
)
def test_arguments_that_set_sizes_are_recognized(words, named_there):
    assert sets_sizes(words) is named_there
