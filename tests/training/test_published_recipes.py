"""Recipes of the paper and of the released code against their tables (arXiv:2104.00298; google/automl)."""

from dataclasses import replace
from unittest.mock import MagicMock

import pytest
import torch
from tests.messages import mentions

from efficientnetv2.models.factory import create
from efficientnetv2.models.regularization import apply_regularization
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.training.recipes import get_recipe, named_recipes
from efficientnetv2.training.run_setup import training_images
from efficientnetv2.transforms.pipeline import AugmentPlan


def stage_sizes(recipe):
    return [recipe.progressive.stage(index).image_size for index in range(recipe.progressive.stages)]


#                 sizes                 RandAugment  mixup  dropout      (Table 6)
@pytest.mark.parametrize(
    ("size", "px", "randaugment", "mixup", "dropout", "eval_image_size"),
    [
        ("s", [128, 185, 243, 300], (5, 15), (0, 0), (0.1, 0.3), 384),
        ("m", [128, 212, 296, 380], (5, 20), (0, 0.2), (0.1, 0.4), 480),
        ("l", [128, 212, 296, 380], (5, 25), (0, 0.4), (0.1, 0.5), 480),
    ],
)
def test_paper_recipes_equal_table_6(size, px, randaugment, mixup, dropout, eval_image_size):
    recipe = get_recipe(f"efficientnetv2_{size}_paper")
    first, last = recipe.progressive.stage(0), recipe.progressive.last
    assert stage_sizes(recipe) == px
    assert (first.randaugment, last.randaugment) == randaugment
    assert (first.mixup_alpha, last.mixup_alpha) == mixup
    assert (first.dropout, last.dropout) == dropout
    assert (first.cutmix_alpha, last.cutmix_alpha) == (0, 0)
    assert recipe.epochs / recipe.progressive.stages == pytest.approx(87, abs=1)
    assert (recipe.eval_image_size, recipe.batch_norm_momentum) == (eval_image_size, 0.99)


# ibase 128: 128 + (train - 128) * (stage + 1) / 4. RandAugment and mixing increase, dropout is constant.
@pytest.mark.parametrize(
    ("size", "px", "randaugment", "mix", "dropout", "eval_image_size"),
    [
        ("s", [171, 214, 257, 300], 10, 0.0, 0.2, 384),
        ("m", [192, 256, 320, 384], 15, 0.2, 0.3, 480),
        ("l", [192, 256, 320, 384], 20, 0.5, 0.4, 480),
        ("b0", [144, 160, 176, 192], None, 0.0, 0.2, 224),
        ("b1", [144, 160, 176, 192], None, 0.0, 0.2, 240),
        ("b2", [148, 168, 188, 208], None, 0.0, 0.3, 260),
        ("b3", [156, 184, 212, 240], None, 0.0, 0.3, 300),
    ],
)
def test_released_recipes_equal_the_released_configurations(size, px, randaugment, mix, dropout, eval_image_size):
    recipe = get_recipe(f"efficientnetv2_{size}_released")
    last = recipe.progressive.last
    assert stage_sizes(recipe) == px
    assert last.randaugment == randaugment
    assert (last.mixup_alpha, last.cutmix_alpha) == (mix, mix)
    assert {recipe.progressive.stage(i).dropout for i in range(4)} == {dropout}
    assert recipe.augment == AugmentPlan(flip="horizontal", autoaugment=randaugment is None)
    assert (recipe.eval_image_size, recipe.batch_norm_momentum) == (eval_image_size, 0.9)


@pytest.mark.parametrize(
    ("size", "px", "dropout", "eval_image_size"),
    [("b0", 192, 0.2, 224), ("b1", 192, 0.2, 240), ("b2", 208, 0.3, 260), ("b3", 240, 0.3, 300)],
)
def test_paper_recipes_of_small_models_have_one_size(size, px, dropout, eval_image_size):
    """Values that the paper does not give are from the end of the released schedule."""
    recipe = get_recipe(f"efficientnetv2_{size}_paper")
    assert stage_sizes(recipe) == [px]
    assert recipe.progressive.to_json()["image_size"] == px  # not a ramp, which a second stage would use
    assert recipe.augment == AugmentPlan(flip="horizontal", autoaugment=True)
    assert (recipe.progressive.last.dropout, recipe.progressive.last.randaugment) == (dropout, None)
    assert (recipe.eval_image_size, recipe.batch_norm_momentum) == (eval_image_size, 0.99)


@pytest.mark.parametrize("name", [name for name in named_recipes() if name.startswith("efficientnetv2_")])
def test_recipes_from_scratch_have_the_values_of_section_5_1(name):
    recipe = get_recipe(name)
    optimizer, schedule = recipe.optimizer, recipe.schedule
    assert (recipe.epochs, recipe.batch_size, recipe.ema_decay) == (350, 4096, 0.9999)
    assert (optimizer.name, optimizer.momentum, optimizer.beta2) == ("rmsprop", 0.9, 0.9)
    assert (optimizer.lr, optimizer.weight_decay, optimizer.epsilon) == (0.016 * 4096 / 256, 1e-5, 1e-3)
    assert (schedule.name, schedule.gamma, schedule.step_epochs) == ("staircase", 0.97, 2.4)
    assert schedule.warmup_epochs == 5
    assert recipe.minival == (25_000 if name.endswith("_paper") else 25_021)
    assert (recipe.expected_dataset, recipe.weights) == ("imagenet1k", "none")
    assert recipe.progressive.last.drop_path == pytest.approx(1 - 0.8)
    assert recipe.progressive.last.label_smoothing == 0.1
    assert f"--recipe {name}" in named_recipes()[name].description


@pytest.mark.parametrize("form", ["paper", "released"])
@pytest.mark.parametrize(
    ("size", "least"), [*((size, 0.05) for size in "sml"), *((f"b{number}", 0.1) for number in range(4))]
)
def test_training_crops_have_the_minimum_area_of_the_released_code(size, least, form):
    """preprocessing.py: area_range from 0.05.

    B0 to B3 use preprocess_legacy.py: from 0.08, but crops below 0.1 of the image are drawn again.
    """
    assert get_recipe(f"efficientnetv2_{size}_{form}").crop_scale_min == least


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("efficientnetv2_s_released", ("archives", "by default ImageNet's val")),
        ("efficientnetv2_s_released", ("eight TPU cores", "1,024 images")),
        ("efficientnetv2_s_released", ("uniform area", "uniform height")),
        ("efficientnetv2_b0_released", ("10 % of the area", "preprocess_legacy.py")),
        ("imagenet21k_released", ("leaves 25,089 more out",)),
        ("imagenet_from_21k_s_released", ("98 %", "1,256,144 images")),
        ("imagenet_from_21k_s_released", ("noise", "uniform over all values")),
        ("efficientnetv2_l_paper", ("at most 256", "at most 8 bits")),
        ("imagenet_from_21k_xl_paper", ("512 px", "480 px", "official code")),
        ("imagenet_from_21k_s_paper", ("0.9", "0.9996")),
        ("imagenet21k_xl_paper", ("512 px", "official code")),
        ("resnet50_224_progressive", ("stochastic depth", "0.8")),
        ("proxy_paper", ("batch-norm momentum 0.9",)),
    ],
)
def test_description_states_the_differences_to_the_released_code(name, facts):
    """min(8, num_shards) cores share moments: 1,024 of 4,096 images on 32 cores. datasets.py has the counts."""
    assert mentions(" ".join(named_recipes()[name].description.split()), *facts)


def test_small_images_are_center_cropped_and_large_ones_squashed_in_evaluation():
    """Released: size/(size + 32) of the shorter side below 320 px, squashed from 320 px."""
    b0, s = get_recipe("efficientnetv2_b0_released"), get_recipe("efficientnetv2_s_released")
    assert (b0.crop_mode, b0.crop_pct) == ("center", pytest.approx(224 / 256))
    assert (s.crop_mode, s.crop_pct) == ("squash", 1.0)
    assert s.random_crop_mode == b0.random_crop_mode == "center"


@pytest.mark.parametrize(
    ("size", "px", "eval_image_size"),
    [
        ("s", [128, 185, 243, 300], 384),
        ("m", [128, 212, 296, 380], 480),
        ("l", [128, 212, 296, 380], 480),
        ("xl", [128, 212, 296, 380], 512),
    ],
)
def test_21k_paper_recipes_differ_from_1k_by_epochs_and_schedule(size, px, eval_image_size):
    """Section 5.2, with 100,000 images held out. Table 6 has no row for XL, which has the values of L."""
    recipe = get_recipe(f"imagenet21k_{size}_paper")
    like = get_recipe(f"efficientnetv2_{'l' if size == 'xl' else size}_paper")
    assert (recipe.epochs, recipe.schedule.name, recipe.val_fraction) == (60, "cosine", 100_000)
    assert (recipe.expected_dataset, recipe.minival) == ("imagenet21k", None)
    assert (recipe.model, recipe.eval_image_size, stage_sizes(recipe)) == (
        f"efficientnetv2_{size}",
        eval_image_size,
        px,
    )
    assert recipe.progressive == like.progressive
    assert (recipe.schedule.warmup_epochs, recipe.batch_norm_momentum) == (5, 0.99)
    for field in ("optimizer", "batch_size", "ema_decay", "batch_norm_momentum", "augment", "crop_scale_min"):
        assert getattr(recipe, field) == getattr(like, field), field


def test_released_21k_recipe_has_one_size_and_little_regularization():
    """google/automl, datasets.py, ImageNet21k: lr_base 0.008 per 256 images, one epoch of warm-up."""
    recipe = get_recipe("imagenet21k_released")
    setting = recipe.progressive.last
    assert (recipe.progressive.stages, setting.image_size, recipe.eval_image_size) == (1, 224, 224)
    assert (setting.dropout, setting.drop_path, setting.label_smoothing) == (0, 0, 0)
    assert (setting.randaugment, setting.mixup_alpha, setting.cutmix_alpha) == (None, 0, 0)
    assert recipe.augment == AugmentPlan(flip="horizontal")
    assert recipe.crop_scale_min == 0.05
    assert (recipe.epochs, recipe.batch_size, recipe.val_fraction) == (60, 4096, 100_000)
    assert (recipe.expected_dataset, recipe.minival) == ("imagenet21k", None)
    assert recipe.optimizer == get_recipe("efficientnetv2_s_released").optimizer.model_copy(update={"lr": 0.008 * 16})
    assert (recipe.schedule.name, recipe.schedule.warmup_epochs) == ("cosine", 1)
    assert (recipe.ema_decay, recipe.batch_norm_momentum) == (0.9999, 0.9)
    assert (recipe.crop_mode, recipe.crop_pct) == ("center", pytest.approx(224 / 256))


# Models of Table 12. EfficientNet's 16 blocks, with depth scaled by 1.8 and 2.2 (arXiv:1905.11946) and rounded up per
# stage: 32 and 39. timm has no module for the first block, which is never dropped.
TABLE_12 = [
    # name                       model                          px   blocks with stochastic depth
    ("resnet50_224_progressive", "torchvision:resnet50", 224, 0),
    ("resnet50_380_progressive", "torchvision:resnet50", 380, 0),
    ("resnet152_380_progressive", "torchvision:resnet152", 380, 0),
    ("efficientnet_b4_progressive", "torchvision:efficientnet_b4", 380, 32),
    ("efficientnet_b5_progressive", "timm:tf_efficientnet_b5", 456, 38),
]
# Attribute of the rate in the stochastic depth modules of torchvision and timm.
RATE = {"StochasticDepth": "p", "DropPath": "drop_prob"}


@pytest.mark.parametrize(("name", "model", "px", "blocks"), TABLE_12)
def test_table_12_recipes_grow_from_128_px_to_the_size_of_the_model(name, model, px, blocks):
    """Values that the paper does not give are from section 5.1 and the row of S in Table 6."""
    recipe, like = get_recipe(name), get_recipe("efficientnetv2_s_paper")
    first, last = recipe.progressive.stage(0), recipe.progressive.last
    assert (recipe.model, recipe.progressive.stages) == (model, 4)
    assert (first.image_size, last.image_size, recipe.eval_image_size) == (128, px, px)
    assert (first.randaugment, last.randaugment) == (5, 15)
    assert (first.dropout, last.dropout) == (0.1, 0.3)
    assert (last.mixup_alpha, last.cutmix_alpha, last.cutout, last.label_smoothing) == (0, 0, 0, 0.1)
    assert first.drop_path == last.drop_path == pytest.approx(1 - 0.8 if blocks else 0)
    assert (recipe.epochs, recipe.batch_size, recipe.ema_decay) == (350, 4096, 0.9999)
    assert (recipe.batch_norm_momentum, recipe.minival) == (0.99, 25_000)
    assert (recipe.crop_mode, recipe.crop_pct) == ("center", pytest.approx(px / (px + 32)))
    for field in ("optimizer", "schedule", "augment", "crop_scale_min", "expected_dataset", "weights"):
        assert getattr(recipe, field) == getattr(like, field), field
    assert f"--recipe {name}" in named_recipes()[name].description


@pytest.mark.parametrize(("name", "model", "px", "blocks"), TABLE_12)
def test_schedule_sets_dropout_and_stochastic_depth_of_table_12_models(name, model, px, blocks):
    """ResNets have no dropout, and their recipe sets no stochastic depth."""
    if model.startswith("timm:"):
        pytest.importorskip("timm")
    with torch.device("meta"):
        network = create(model)
    for setting in (get_recipe(name).progressive.stage(0), get_recipe(name).progressive.last):
        reached = apply_regularization(network, setting)
        counts = len(reached.dropout_modules), len(reached.drop_path_modules)
        assert counts == (1 if blocks else 0, blocks)
        assert any("has no effect" in note for note in reached.notes) == (not blocks)
        assert len(reached.notes) == (not blocks) + 1  # in addition to the note on the loop
        rates = [getattr(m, RATE[type(m).__name__]) for m in network.modules() if type(m).__name__ in RATE]
        assert (len(rates), max(rates, default=0)) == (blocks, pytest.approx(setting.drop_path))
        if blocks:
            head = network.module
            assert setting.dropout == (head.drop_rate if hasattr(head, "drop_rate") else head.classifier[0].p)


def test_proxy_recipe_has_one_size_and_the_regularization_of_the_first_stage():
    """Including label smoothing."""
    recipe = get_recipe("proxy_paper")
    assert (recipe.epochs, recipe.minival, recipe.ema_decay) == (10, 25_000, 0.999)
    assert (recipe.schedule.name, recipe.schedule.warmup_epochs) == ("cosine", 1)
    assert recipe.optimizer == get_recipe("efficientnetv2_s_paper").optimizer
    proxy = recipe.progressive
    assert (proxy.stages, proxy.image_size) == (1, 192)
    assert replace(proxy.last, image_size=128) == get_recipe("efficientnetv2_s_paper").progressive.stage(0)
    assert proxy.last.label_smoothing == 0.1


@pytest.mark.parametrize(("own", "crop_mode"), [("center", "center"), (None, "squash")])
def test_training_crop_mode_is_from_the_recipe(own, crop_mode):
    """S squashes images in evaluation, but crops in the aspect ratio of the image in training."""
    recipe = get_recipe("efficientnetv2_s_paper").model_copy(update={"train_crop_mode": own})
    images = training_images(MagicMock(), Preprocessing(image_size=384, crop_mode="squash"), recipe, reader=MagicMock())
    assert images.preprocessing.crop_mode == crop_mode
