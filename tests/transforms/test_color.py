"""Color operations against Pillow, on uniform, dark, saturated, smooth and noisy images."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from efficientnetv2.transforms import color
from efficientnetv2.utils.random_key import Key


def batch():
    """(6, 3, 48, 40): noise, a gradient, low contrast, two levels, one level, smooth."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[0:48, 0:40]
    smooth = np.stack([127 + 90 * np.sin(x / 7 + c) + 35 * np.cos(y / 5 - c) for c in range(3)], -1)
    made = [
        rng.integers(0, 256, (48, 40, 3)),
        np.stack([x * 6, y * 5, (x + y) * 2], -1),
        rng.integers(90, 140, (48, 40, 3)),
        np.where(rng.random((48, 40, 3)) < 0.1, 13, 201),
        np.full((48, 40, 3), (10, 200, 255)),
        smooth,
    ]
    return torch.from_numpy(np.stack(made).clip(0, 255).astype(np.uint8).transpose(0, 3, 1, 2))


IMAGES = batch()


def worst(ours, pillow):
    """Largest difference in gray levels from Pillow's operation, over the batch."""
    theirs = [np.asarray(pillow(Image.fromarray(p.permute(1, 2, 0).numpy()))).transpose(2, 0, 1) for p in IMAGES]
    return int(np.abs(ours.numpy().astype(int) - np.stack(theirs).astype(int)).max())


@pytest.mark.parametrize("name", ["autocontrast", "equalize", "invert"])
def test_operations_without_strength_equal_pillow(name):
    assert worst(getattr(color, name)(IMAGES), getattr(ImageOps, name)) == 0


@pytest.mark.parametrize("bits", range(1, 9))
def test_posterize_equals_pillow(bits):
    assert worst(color.posterize(IMAGES, torch.full((6,), float(bits))), lambda p: ImageOps.posterize(p, bits)) == 0


@pytest.mark.parametrize("threshold", [0, 1, 100, 255, 256])
def test_solarize_equals_pillow(threshold):
    ours = color.solarize(IMAGES, torch.full((6,), float(threshold)))
    assert worst(ours, lambda p: ImageOps.solarize(p, threshold)) == 0


@pytest.mark.parametrize("factor", [0.0, 0.1, 0.55, 1.0, 1.9, 4.6])
@pytest.mark.parametrize(
    ("operation", "enhancer", "levels"),
    [
        (color.saturation, ImageEnhance.Color, 1),
        (color.contrast, ImageEnhance.Contrast, 1),
        (color.brightness, ImageEnhance.Brightness, 0),
        (color.sharpness, ImageEnhance.Sharpness, 1),
    ],
)
def test_enhancers_equal_pillow_within_one_level(operation, enhancer, levels, factor):
    """One level if a product is an integer and single precision rounds it down."""
    ours = operation(IMAGES, torch.full((6,), factor))
    assert worst(ours, lambda p: enhancer(p).enhance(factor)) <= levels


def test_solarize_add_brightens_dark_values():
    values = torch.tensor([0, 50, 127, 128, 255], dtype=torch.uint8).expand(1, 3, 1, 5)
    added = color.solarize_add(values, torch.tensor([110.0]))
    assert added[0, 0, 0].tolist() == [110, 160, 237, 128, 255]
    assert color.solarize_add(values, torch.tensor([200.0]))[0, 0, 0].tolist() == [200, 250, 255, 128, 255]


def test_posterize_with_zero_bits_is_black():
    assert int(color.posterize(IMAGES, torch.zeros(6)).max()) == 0


@pytest.mark.parametrize("operation", [color.saturation, color.contrast, color.brightness, color.sharpness])
def test_each_image_can_have_its_own_factor(operation):
    factors = torch.tensor([0.1, 0.5, 1.0, 1.5, 1.9, 3.0])
    together = operation(IMAGES, factors)
    for row in range(6):
        assert torch.equal(together[row], operation(IMAGES[row : row + 1], factors[row : row + 1])[0])
    assert torch.equal(together[2], IMAGES[2])


@pytest.mark.parametrize(("px", "level"), [(128, 64), (192, 144), (256, 255), (300, 255)])
def test_released_contrast_is_centered_at_the_number_of_pixels_over_256(px, level):
    image = torch.full((1, 3, px, px), 200, dtype=torch.uint8)
    assert int(color.released_contrast(image, torch.zeros(1))[0, 0, 0, 0]) == level
    expected = max(0, min(255, int(level + 1.5 * (200 - level))))
    assert int(color.released_contrast(image, torch.tensor([1.5]))[0, 0, 0, 0]) == expected


def test_color_jitter_of_a_uniform_gray_changes_only_brightness():
    """Contrast and saturation do not change a uniform gray."""
    images = torch.full((500, 3, 4, 4), 100, dtype=torch.uint8)
    values = color.color_jitter(images, Key.of(0), range(500), strength=0.4)[:, 0, 0, 0].double()
    assert 58 <= float(values.min()) <= 63
    assert 136 <= float(values.max()) <= 140
    assert abs(float(values.mean()) - 99.5) < 3.2  # 3 standard errors


def test_color_jitter_is_brightness_then_contrast_then_saturation():
    strength, ids = 0.4, range(len(IMAGES))
    factors = torch.from_numpy(1 + strength * (2 * Key.of(0).uniform_rows(ids, 3) - 1)).float()
    expected = color.brightness(IMAGES, factors[:, 0])
    for step, factor in ((color.contrast, factors[:, 1]), (color.saturation, factors[:, 2])):
        changed = step(expected, factor)
        assert not torch.equal(changed, expected)
        expected = changed
    assert torch.equal(color.color_jitter(IMAGES, Key.of(0), ids, strength=strength), expected)


def test_sharpness_does_not_change_tiny_images():
    tiny = torch.tensor([[[[1, 2], [3, 4]]]], dtype=torch.uint8)
    assert torch.equal(color.sharpness(tiny, torch.tensor([0.0])), tiny)


class WithoutDoubles(TorchDispatchMode):
    """Raises for float64, as Apple's GPUs do."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if any(isinstance(one, torch.Tensor) and one.dtype == torch.float64 for one in tree_leaves(made)):
            raise TypeError(f"{func} makes float64")
        return made


def test_no_operation_needs_float64_on_devices_without_it(monkeypatch):
    """Autocontrast equals Pillow within one gray level."""
    on_apple = color._finest(torch.device("mps"))
    monkeypatch.setattr(color, "_finest", lambda device: on_apple)
    factor = torch.full((6,), 1.4)
    with WithoutDoubles():
        stretched = color.autocontrast(IMAGES)
        for operation in (color.saturation, color.contrast, color.released_contrast, color.brightness):
            operation(IMAGES, factor)
        color.sharpness(IMAGES, factor)
        color.equalize(IMAGES)
        color.posterize(IMAGES, torch.full((6,), 4.0))
        color.solarize(IMAGES, torch.full((6,), 100.0))
        color.solarize_add(IMAGES, torch.full((6,), 50.0))
    assert worst(stretched, ImageOps.autocontrast) <= 1
