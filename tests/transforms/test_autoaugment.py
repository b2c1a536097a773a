"""AutoAugment: the released policy, and what is drawn."""

import numpy as np
import pytest
import torch
from tests.messages import mentioning

from efficientnetv2.progressive.schedule import ProgressiveSchedule
from efficientnetv2.training.recipe_io import validate_recipe
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.transforms import color, geometric
from efficientnetv2.transforms.autoaugment import POLICY, autoaugment, draw_pairs
from efficientnetv2.transforms.pipeline import AugmentPlan
from efficientnetv2.transforms.randaugment import OPERATIONS
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.rng import Key

KEY = Key.of(0)
NAMES = [operation.name for operation in OPERATIONS]


def noise(count, px=24, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, 3, px, px), np.uint8))


def test_the_policy_is_the_one_that_timm_has_from_the_same_source():
    timm = pytest.importorskip("timm.data.auto_augment")
    theirs = [
        tuple((operation.name.replace("Rel", ""), operation.prob, operation.magnitude) for operation in pair)
        for pair in timm.auto_augment_policy_v0(dict(timm._HPARAMS_DEFAULT))
    ]
    assert list(POLICY) == theirs


def test_pairs_are_drawn_uniformly_and_operations_with_their_share():
    first, second = draw_pairs(KEY, np.arange(100_000))
    for position, chosen in enumerate((first, second)):
        for name in {pair[position][0] for pair in POLICY}:
            expected = sum(pair[position][1] for pair in POLICY if pair[position][0] == name) / len(POLICY)
            drawn = (chosen.which == NAMES.index(name)).mean()
            # Five standard deviations of a share of 100,000 draws.
            assert drawn == pytest.approx(expected, abs=5 * np.sqrt(expected / 100_000) + 1e-9), name


def test_strengths_are_the_released_formulas_with_250_px_of_translation():
    first, second = draw_pairs(KEY, np.arange(20_000))
    seen = {
        name: set(np.round(chosen.strength[chosen.which == NAMES.index(name)], 6))
        for name, chosen in (
            ("TranslateY", second), ("ShearY", first), ("Posterize", first), ("Solarize", second), ("Color", second),
        )
    }  # fmt: skip
    assert seen["TranslateY"] == {-225.0, 225.0}  # level 9 of 250 px
    assert seen["ShearY"] == {0.0, -0.21, 0.21}  # levels 0 and 7 of 0.3
    assert seen["Posterize"] == {1.0, 2.0}  # int(0.8), of which a bit stays, and int(2.4) bits
    assert seen["Solarize"] == {51.0, 102.0, 256.0}  # levels 2, 4 and 10
    assert seen["Color"] == {0.82, 1.72}  # levels 4 and 9: 0.1 + 1.8 m


def test_the_pictures_are_what_the_choices_say_by_hand():
    apply = {
        "Equalize": lambda images, _: color.equalize(images),
        "AutoContrast": lambda images, _: color.autocontrast(images),
        "Invert": lambda images, _: color.invert(images),
        "Rotate": geometric.rotate, "ShearX": geometric.shear_x, "ShearY": geometric.shear_y,
        "TranslateY": geometric.translate_y, "Color": color.saturation, "Solarize": color.solarize,
        "SolarizeAdd": color.solarize_add, "Posterize": color.posterize,
    }  # fmt: skip
    images, ids = noise(64), np.arange(64) + 1000
    first, second = draw_pairs(KEY, ids)
    augmented = autoaugment(images, key=KEY, ids=ids)
    for row in range(64):
        picture = images[row : row + 1]
        for chosen in (first, second):
            if chosen.which[row] >= 0:
                strength = torch.tensor([chosen.strength[row]], dtype=torch.float32)
                picture = apply[NAMES[chosen.which[row]]](picture, strength)
        assert torch.equal(picture[0], augmented[row])


def test_a_picture_is_treated_alike_in_any_batch():
    images, ids = noise(16), np.arange(16)
    whole = autoaugment(images, key=KEY, ids=ids)
    assert torch.equal(whole[5:9], autoaugment(images[5:9], key=KEY, ids=ids[5:9]))


def test_other_than_three_channels_are_refused_with_the_way_to_switch_it_off():
    with pytest.raises(InputError, match=mentioning("4", "augment.autoaugment=false")):
        autoaugment(torch.zeros(1, 4, 8, 8, dtype=torch.uint8), key=KEY, ids=[0])


def test_randaugment_beside_it_is_refused():
    recipe = get_recipe("quick").model_copy(
        update={
            "augment": AugmentPlan(autoaugment=True),
            "progressive": ProgressiveSchedule(64, randaugment=5),
        }
    )
    with pytest.raises(InputError, match=mentioning("augment.autoaugment", "progressive.randaugment")):
        validate_recipe(recipe.to_json(), where="here")
