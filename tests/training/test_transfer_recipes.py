"""Fine-tuning recipes against the paper (arXiv:2104.00298) and the released code."""

import pytest
import torch
from tests.messages import mentioning

from efficientnetv2.training.recipe_io import validate_recipe
from efficientnetv2.training.recipes import get_recipe, named_recipes
from efficientnetv2.training.resolve import TrainingSet, resolve_recipe
from efficientnetv2.training.run_setup import RunLength
from efficientnetv2.utils.device import Hardware
from efficientnetv2.utils.errors import InputError

FORMS = ("paper", "released")
#         model, evaluation size (google/automl)
SIZES = {"s": 384, "m": 480, "l": 480, "xl": 512}
FROM_21K = [f"imagenet_from_21k_{size}_{form}" for size in SIZES for form in FORMS]


@pytest.mark.parametrize("name", [*(f"transfer_{form}" for form in FORMS), *FROM_21K])
def test_fine_tuning_recipes_have_the_values_of_the_released_code(name):
    """google/automl, Ft configurations, where the paper has no value: batch size 512 at 0.0005 per 256 images."""
    recipe, setting = get_recipe(name), get_recipe(name).progressive.last
    optimizer = recipe.optimizer
    assert (recipe.batch_size, optimizer.lr) == (512, 0.0005 * 512 / 256)
    assert (optimizer.name, optimizer.momentum, optimizer.beta2, optimizer.epsilon) == (
        "rmsprop", 0.9, 0.9, 1e-3,
    )  # fmt: skip
    assert (recipe.ema_decay, recipe.batch_norm_momentum) == (0.9996, 0.9)
    assert (recipe.schedule.warmup_epochs, recipe.progressive.stages) == (1, 1)
    assert setting.drop_path == pytest.approx(1 - 0.8)
    assert (setting.label_smoothing, setting.cutout) == (0.1, 0.5)
    assert setting.dropout == pytest.approx(0, abs=1e-6)  # 1e-6 in the released code
    assert (setting.randaugment, setting.mixup_alpha, setting.cutmix_alpha) == (None, 0, 0)
    assert (recipe.crop_mode, recipe.crop_scale_min, recipe.minival) == ("squash", 1.0, None)
    assert (recipe.augment.flip, recipe.augment.cutout_fill, recipe.augment.autoaugment) == (
        "horizontal", "noise", False,
    )  # fmt: skip
    assert recipe.schedule.name == ("cosine" if name.endswith("_paper") else "constant")
    assert f"--recipe {name}" in named_recipes()[name].description


@pytest.mark.parametrize(("form", "weight_decay"), [("paper", 0.0), ("released", 1e-5)])
def test_transfer_recipes_have_the_values_of_section_5_3(form, weight_decay):
    recipe = get_recipe(f"transfer_{form}")
    assert (recipe.steps, recipe.epochs, recipe.optimizer.weight_decay) == (10_000, "auto", weight_decay)
    assert (recipe.model, recipe.weights) == ("efficientnetv2_s", "efficientnetv2_s.in1k")
    assert (recipe.progressive.last.image_size, recipe.eval_image_size) == (384, 384)
    assert (recipe.eval_split, recipe.expected_dataset) == ("test", None)


@pytest.mark.parametrize("name", FROM_21K)
def test_from_21k_recipes_have_15_epochs_at_the_size_of_the_model(name):
    recipe, size = get_recipe(name), name.split("_")[-2]
    assert (recipe.epochs, recipe.steps, recipe.optimizer.weight_decay) == (15, None, 1e-5)
    assert (recipe.model, recipe.weights) == (f"efficientnetv2_{size}", f"efficientnetv2_{size}.in21k")
    assert (recipe.progressive.last.image_size, recipe.eval_image_size) == (SIZES[size], SIZES[size])
    assert (recipe.eval_split, recipe.expected_dataset) == ("val", "imagenet1k")


def test_steps_are_converted_to_epochs():
    """10,000 steps of 512 for 50,000 images of CIFAR-10: 102.4 epochs."""
    recipe = get_recipe("transfer_paper").model_copy(update={"weights": "none", "model": "efficientnetv2_b0"})
    recipe = validate_recipe(
        recipe.to_json()
        | {"ghost_batch_size": 8, "progressive": {"image_size": 32}, "eval_image_size": 32}
        | {"precision": "fp32", "compile": False},
        where="here",
    )
    settled = resolve_recipe(recipe, TrainingSet(50_000, ("a", "b")), Hardware(torch.device("cpu")))
    assert settled.recipe.epochs == pytest.approx(102.4)
    assert settled.recipe.steps is None
    assert RunLength.of(settled.recipe, 50_000).steps == 10_000
    assert any("10,000 steps of 512" in note for note in settled.notes)


@pytest.mark.parametrize("images", [1, 3, 2040, 8144, 49_999])
def test_number_of_steps_is_the_same_for_any_number_of_images(images):
    epochs = 10_000 * 512 / images
    recipe = get_recipe("transfer_paper").model_copy(update={"epochs": epochs, "steps": None})
    assert RunLength.of(recipe, images).steps == 10_000


def test_steps_and_epochs_together_are_rejected():
    with pytest.raises(InputError, match=mentioning("3", "10000")):
        validate_recipe(get_recipe("transfer_paper").to_json() | {"epochs": 3}, where="here")


def test_only_transfer_recipes_evaluate_the_test_split():
    assert {name for name in named_recipes() if get_recipe(name).eval_split == "test"} == {
        "transfer_paper",
        "transfer_released",
    }
