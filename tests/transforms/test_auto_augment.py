"""RandAugment and AutoAugment: strengths of the operations and random choices."""

import numpy as np
import pytest
import torch
from scipy import stats
from tests.messages import mentioning

from efficientnetv2.models.conversion.tensorflow_checkpoint import loading_tensorflow
from efficientnetv2.progressive.schedule import ProgressiveSchedule
from efficientnetv2.training.recipe_io import validate_recipe
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.transforms import color, geometric
from efficientnetv2.transforms.auto_augment import (
    OPERATIONS,
    POLICY,
    autoaugment,
    draw_pairs,
    operation_names,
    randaugment,
)
from efficientnetv2.transforms.color import color_jitter
from efficientnetv2.transforms.pipeline import AugmentPlan
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.random_key import Key

KEY = Key.of(0)
NAMES = [operation.name for operation in OPERATIONS]
BY_NAME = {operation.name: operation for operation in OPERATIONS}
STRENGTHLESS = ("AutoContrast", "Equalize", "Invert")


def strength(preset, name, level, sign=1.0, px=300):
    return BY_NAME[name].formula(preset)(np.array([level / 10]), np.array([sign]), px)[0]


def noise(count, px=24, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, 3, px, px), np.uint8))


def test_operations_are_the_16_of_the_released_code_in_order():
    assert [operation.name for operation in OPERATIONS] == [
        "AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "Color", "Contrast",
        "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY", "Cutout", "SolarizeAdd",
    ]  # fmt: skip


# By hand from the released formulas: int(level / 10 * 4) bits, and so on.
@pytest.mark.parametrize(
    ("name", "at_5", "at_10", "at_15", "at_25"),
    [
        ("Rotate", 15, 30, 45, 75),
        ("Posterize", 2, 4, 6, 8),  # 10 bits at 25, clipped to 8
        ("Solarize", 128, 256, 256, 256),  # 384 and 640, clipped to 256
        ("Color", 1.0, 1.9, 2.8, 4.6),
        ("Contrast", 1.0, 1.9, 2.8, 4.6),
        ("Brightness", 1.0, 1.9, 2.8, 4.6),
        ("Sharpness", 1.0, 1.9, 2.8, 4.6),
        ("ShearX", 0.15, 0.3, 0.45, 0.75),
        ("ShearY", 0.15, 0.3, 0.45, 0.75),
        ("TranslateX", 50, 100, 150, 250),
        ("TranslateY", 50, 100, 150, 250),
        ("Cutout", 20, 40, 60, 100),
        ("SolarizeAdd", 55, 110, 165, 255),  # 275, clipped to 255
    ],
)
def test_released_levels_equal_the_released_formulas(name, at_5, at_10, at_15, at_25):
    figures = [strength("released", name, level, px=128) for level in (5, 10, 15, 25)]
    assert figures == pytest.approx([at_5, at_10, at_15, at_25])


def test_posterize_with_no_bits_keeps_one_bit_as_tensorflow_does():
    """The released code shifts bytes by 8. TensorFlow's kernel shifts by at most 7."""
    with loading_tensorflow():
        tensorflow = pytest.importorskip("tensorflow")
    values, by = np.arange(256, dtype=np.uint8), np.uint8(8 - int(0.2 * 4))
    bitwise = tensorflow.bitwise
    released = bitwise.left_shift(bitwise.right_shift(values, by), by).numpy()
    bits = strength("released", "Posterize", 2)
    ours = color.posterize(torch.from_numpy(values).reshape(1, 1, 16, 16), torch.tensor([float(bits)]))
    assert bits == 1
    assert ours.flatten().tolist() == released.tolist()


@pytest.mark.parametrize("name", ["Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"])
@pytest.mark.parametrize("preset", ["released", "monotone"])
def test_geometric_strengths_are_symmetric(preset, name):
    assert strength(preset, name, 7, sign=-1.0) == -strength(preset, name, 7)


def test_posterize_and_solarize_weaken_with_the_level_only_in_released():
    for name in ("Posterize", "Solarize"):
        assert strength("released", name, 9) > strength("released", name, 3)
        assert strength("monotone", name, 9) < strength("monotone", name, 3)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("name", sorted(set(BY_NAME) - set(STRENGTHLESS)))
def test_monotone_strength_is_neutral_at_level_0_and_never_decreases(name, sign):
    """Measured as the distance from the strength at level 0."""
    distances = [abs(strength("monotone", name, n, sign) - strength("monotone", name, 0, sign)) for n in range(31)]
    assert distances == sorted(distances)
    assert distances[-1] > distances[5] > 0


def test_monotone_enhances_in_both_directions():
    for name in ("Color", "Contrast", "Brightness", "Sharpness"):
        assert [strength("monotone", name, 10, sign) for sign in (-1.0, 1.0)] == pytest.approx([0.1, 1.9])


def test_translation_directions_are_equally_frequent():
    """3 px to a side at level 0.3: the empty columns are on the right or on the left."""
    images = torch.full((6000, 3, 8, 8), 7, dtype=torch.uint8)
    ids = np.arange(6000)
    moved = ids[(KEY.uniform_rows(ids, 1)[:, 0] * 16).astype(int) == 12]
    out = randaugment(images[: len(moved)], magnitude=0.3, key=KEY, ids=moved, layers=1)[:, 0, 0]
    right, left = (out[:, -3:] == 128).all(1), (out[:, :3] == 128).all(1)
    assert bool((right ^ left).all())
    assert stats.binomtest(int(right.sum()), len(moved)).pvalue > 1e-3


def test_monotone_at_level_0_is_the_identity_on_pixels():
    images = noise(600)
    out = randaugment(images, magnitude=0, key=KEY, ids=range(600), preset="monotone", layers=1)
    which = (KEY.uniform_rows(range(600), 4)[:, 0] * 16).astype(int)
    strong = [OPERATIONS[index].name not in STRENGTHLESS for index in which]
    assert torch.equal(out[strong], images[strong])
    assert sum(strong) > 400


def test_monotone_scales_with_the_image_size_and_equals_released_at_300_px():
    for name in ("TranslateX", "TranslateY", "Cutout"):
        assert strength("monotone", name, 10, px=300) == pytest.approx(strength("released", name, 10, px=300))
        assert strength("monotone", name, 10, px=150) == pytest.approx(strength("monotone", name, 10, px=300) / 2)
        assert strength("released", name, 10, px=150) == strength("released", name, 10, px=300)


@pytest.mark.parametrize("preset", ["released", "monotone"])
@pytest.mark.parametrize("magnitude", [0, 0.3, 5, 12.7, 31, 1000.0])
def test_shape_and_type_are_preserved_at_any_level(preset, magnitude):
    images = noise(64)
    before = images.clone()
    out = randaugment(images, magnitude=magnitude, key=KEY, ids=range(64), preset=preset)
    assert out.shape == images.shape
    assert out.dtype == torch.uint8
    assert torch.equal(images, before)


def test_operations_of_an_image_do_not_depend_on_batch_and_memory_layout():
    images = noise(40)
    together = randaugment(images, magnitude=9, key=KEY, ids=range(40))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    shuffled = images[order].contiguous(memory_format=torch.channels_last)
    assert torch.equal(randaugment(shuffled, magnitude=9, key=KEY, ids=order), together[order])
    alone = [randaugment(images[i : i + 1], magnitude=9, key=KEY, ids=[i]) for i in range(40)]
    assert torch.equal(torch.cat(alone), together)
    assert not torch.equal(randaugment(images, magnitude=9, key=Key.of(1), ids=range(40)), together)


def test_each_image_can_have_its_own_level():
    images = noise(40)
    levels = torch.linspace(0, 20, 40, dtype=torch.float64)
    together = randaugment(images, magnitude=levels, key=KEY, ids=range(40))
    for i in (3, 17, 39):
        alone = randaugment(images[i : i + 1], magnitude=float(levels[i]), key=KEY, ids=[i])
        assert torch.equal(together[i], alone[0])


def test_operations_are_drawn_uniformly_and_inversion_is_correct():
    """With one layer, 1 in 16 images is inverted."""
    images = noise(3200, px=6)
    out = randaugment(images, magnitude=5, key=KEY, ids=range(3200), layers=1)
    inverted = int((out == color.invert(images)).flatten(1).all(1).sum())
    assert stats.binomtest(inverted, 3200, 1 / 16).pvalue > 1e-3
    unchanged = int((out == images).flatten(1).all(1).sum())  # the enhancers at level 5: at least 4 in 16
    assert 4 / 16 - 0.03 < unchanged / 3200 < 6 / 16


def test_two_layers_are_applied_in_sequence():
    """The first of two layers equals a single layer. Images inverted twice are the originals."""
    images = noise(4000, px=6)
    once = randaugment(images, magnitude=5, key=KEY, ids=range(4000), layers=1)
    twice = randaugment(images, magnitude=5, key=KEY, ids=range(4000), layers=2)
    which = (KEY.uniform_rows(range(4000), 8)[:, [0, 4]] * 16).astype(int)
    both = (which == 2).all(1)
    assert both.sum() > 5
    assert torch.equal(twice[both], images[both])
    assert torch.equal(once[both], 255 - images[both])
    for first, second in ((2, 8), (8, 2)):  # inverted, with a brightness of 1.0 before or after
        rows = (which == (first, second)).all(1)
        assert rows.sum() > 5
        assert torch.equal(twice[rows], 255 - images[rows])


def test_contrast_is_that_of_pillow_in_monotone_and_of_the_release_in_released():
    """Gray 200 at 24 px: the released center is 24 * 24 / 256 = 2, with factor 1.54 at level 8."""
    images = torch.full((400, 3, 24, 24), 200, dtype=torch.uint8)
    ids = np.arange(400)
    contrast = torch.from_numpy((KEY.uniform_rows(ids, 1)[:, 0] * 16).astype(int) == 7)
    released = randaugment(images, magnitude=8, key=KEY, ids=ids, layers=1)[contrast]
    monotone = randaugment(images, magnitude=8, key=KEY, ids=ids, layers=1, preset="monotone")[contrast]
    assert set(released.unique().tolist()) == {255}  # 2 + 1.54 * 198 = 307
    assert set(monotone.unique().tolist()) == {200}


def test_cutout_has_the_released_size():
    """A hole of 2 * 40 px at level 10, clipped at the edges and filled with 128."""
    images = torch.zeros(1500, 3, 128, 128, dtype=torch.uint8)
    ids = np.arange(1500)
    cut = ids[(KEY.uniform_rows(ids, 1)[:, 0] * 16).astype(int) == 14]
    out = randaugment(images[: len(cut)], magnitude=10, key=KEY, ids=cut, layers=1)
    assert set(out.unique().tolist()) == {0, 128}
    heights = (out[:, 0] == 128).any(2).sum(1)
    widths = (out[:, 0] == 128).any(1).sum(1)
    areas = (out[:, 0] == 128).sum((1, 2))
    assert torch.equal(areas, heights * widths)
    assert int(heights.max()) == 80
    assert int(heights.min()) >= 40
    assert len(set(areas.tolist())) > 10


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_other_channel_counts_use_operations_that_treat_channels_equally(channels):
    """An image of n equal channels keeps them equal. No operation needs red, green and blue."""
    assert operation_names(channels) == operation_names(channels, "possible")
    assert operation_names(channels) == (
        "Rotate", "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY", "Cutout",
    )  # fmt: skip
    assert len(operation_names(3)) == 16
    gray = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (200, 1, 24, 24), dtype=np.uint8))
    many = gray.repeat(1, channels, 1, 1)
    out = randaugment(many, magnitude=9, key=KEY, ids=range(200), preset="monotone")
    assert out.shape == many.shape
    assert (out == out[:, :1]).all()
    assert (out != many).flatten(1).any(1).float().mean() > 0.9


def test_color_jitter_of_other_channel_counts_is_brightness():
    """Bands keep their proportions, except for rounding."""
    values = torch.tensor([40, 80, 120, 20], dtype=torch.uint8).view(1, 4, 1, 1).expand(300, 4, 6, 6)
    out = color_jitter(values, KEY, range(300), strength=0.4)[:, :, 0, 0].double()
    assert ((out[:, 1] - 2 * out[:, 0]).abs() <= 2).all()
    assert ((out[:, 2] - 3 * out[:, 0]).abs() <= 3).all()
    assert out[:, 1].std() > 10


@pytest.mark.parametrize("magnitude", [-1, float("nan"), float("inf")])
def test_invalid_levels_are_rejected(magnitude):
    with pytest.raises(InputError, match="magnitude is"):
        randaugment(noise(1), magnitude=magnitude, key=KEY, ids=[0])


def test_possible_colors_are_close_to_those_of_the_image():
    """A dark, uniform image: invert and equalize would make it bright, the remaining operations do not."""
    images = torch.randint(100, 111, (400, 3, 16, 16), dtype=torch.uint8)
    ids = np.arange(len(images))

    def brightest(**words):
        made = randaugment(images, magnitude=2, key=Key.of(3), ids=ids, preset="monotone", layers=1, **words)
        return made.amax(dim=(1, 2, 3))

    assert int(brightest(colors="possible").max()) <= 132  # 110 brightened by 0.18, or the fill of 128
    assert int(brightest().max()) == 255
    assert torch.equal(brightest(), brightest(colors="any"))


# At level 8 of the released formulas: 0.1 + 1.8 * 8 / 10.
@pytest.mark.parametrize(("name", "applied"), [(8, color.brightness), (9, color.sharpness), (6, color.saturation)])
def test_each_enhancer_applies_its_operation(name, applied):
    images, ids = noise(400, px=12), np.arange(400)
    drawn = torch.from_numpy((KEY.uniform_rows(ids, 1)[:, 0] * 16).astype(int) == name)
    out = randaugment(images, magnitude=8, key=KEY, ids=ids, layers=1)
    assert drawn.sum() > 10
    assert torch.equal(out[drawn], applied(images[drawn], torch.full((int(drawn.sum()),), 1.54)))
    others = {color.brightness, color.sharpness, color.saturation} - {applied}
    assert not any(
        torch.equal(out[drawn], other(images[drawn], torch.full((int(drawn.sum()),), 1.54))) for other in others
    )


def test_autoaugment_policy_equals_timm():
    timm = pytest.importorskip("timm.data.auto_augment")
    theirs = [
        tuple((operation.name.replace("Rel", ""), operation.prob, operation.magnitude) for operation in pair)
        for pair in timm.auto_augment_policy_v0(dict(timm._HPARAMS_DEFAULT))
    ]
    assert list(POLICY) == theirs


def test_pairs_are_drawn_uniformly_and_operations_by_probability():
    first, second = draw_pairs(KEY, np.arange(100_000))
    for position, (which, _) in enumerate((first, second)):
        for name in {pair[position][0] for pair in POLICY}:
            expected = sum(pair[position][1] for pair in POLICY if pair[position][0] == name) / len(POLICY)
            drawn = (which == NAMES.index(name)).mean()
            # Five standard deviations of a fraction of 100,000 draws.
            assert drawn == pytest.approx(expected, abs=5 * np.sqrt(expected / 100_000) + 1e-9), name


def test_autoaugment_strengths_equal_the_released_formulas():
    first, second = draw_pairs(KEY, np.arange(20_000))
    seen = {
        name: set(np.round(strengths[which == NAMES.index(name)], 6))
        for name, (which, strengths) in (
            ("TranslateY", second), ("ShearY", first), ("Posterize", first), ("Solarize", second), ("Color", second),
        )
    }  # fmt: skip
    assert seen["TranslateY"] == {-225.0, 225.0}  # level 9 of 250 px
    assert seen["ShearY"] == {0.0, -0.21, 0.21}  # levels 0 and 7 of 0.3
    assert seen["Posterize"] == {1.0, 2.0}  # int(0.8), raised to one bit, and int(2.4) bits
    assert seen["Solarize"] == {51.0, 102.0, 256.0}  # levels 2, 4 and 10
    assert seen["Color"] == {0.82, 1.72}  # levels 4 and 9: 0.1 + 1.8 m


def test_autoaugment_applies_the_drawn_operations():
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
        for which, strengths in (first, second):
            if which[row] >= 0:
                strength = torch.tensor([strengths[row]], dtype=torch.float32)
                picture = apply[NAMES[which[row]]](picture, strength)
        assert torch.equal(picture[0], augmented[row])


def test_autoaugment_does_not_depend_on_the_batch():
    images, ids = noise(16), np.arange(16)
    whole = autoaugment(images, key=KEY, ids=ids)
    assert torch.equal(whole[5:9], autoaugment(images[5:9], key=KEY, ids=ids[5:9]))


def test_autoaugment_of_four_channels_is_rejected_with_a_fix():
    with pytest.raises(InputError, match=mentioning("4", "augment.autoaugment=false")):
        autoaugment(torch.zeros(1, 4, 8, 8, dtype=torch.uint8), key=KEY, ids=[0])


def test_autoaugment_and_randaugment_together_are_rejected():
    recipe = get_recipe("quick").model_copy(
        update={"augment": AugmentPlan(autoaugment=True), "progressive": ProgressiveSchedule(64, randaugment=5)}
    )
    with pytest.raises(InputError, match=mentioning("augment.autoaugment", "progressive.randaugment")):
        validate_recipe(recipe.to_json(), where="here")
