"""Flips, symmetries and warps against Pillow; position, size and fill of cutout."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from efficientnetv2.transforms import geometric
from efficientnetv2.transforms.geometric import cutout
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.random_key import Key

KEY = Key.of(0)


def pictures(count=1, channels=3, height=40, width=56, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, channels, height, width), np.uint8))


def as_pil(picture):
    return Image.fromarray(picture.permute(1, 2, 0).numpy())


def agreement(ours, pil):
    """Fraction of pixels equal to Pillow's."""
    return float((ours.permute(1, 2, 0).numpy() == np.asarray(pil)).all(-1).mean())


def test_half_of_the_images_are_mirrored():
    images = pictures(400, height=3, width=5)
    flipped = geometric.random_horizontal_flip(images, KEY, range(400))
    same = (flipped == images).flatten(1).all(1)
    mirrored = torch.from_numpy((flipped.numpy() == images.numpy()[..., ::-1]).reshape(400, -1).all(1))
    assert bool((same ^ mirrored).all())
    assert stats.binomtest(int(mirrored.sum()), 400).pvalue > 1e-3


def test_flip_of_an_image_does_not_depend_on_its_position_in_the_batch():
    images = pictures(8)
    together = geometric.random_horizontal_flip(images, KEY, range(8))
    backwards = geometric.random_horizontal_flip(images.flip(0), KEY, list(reversed(range(8))))
    assert torch.equal(together, backwards.flip(0))


def test_eight_symmetries_equal_pillow():
    image = pictures(height=6, width=6)
    ours = {geometric.symmetry(image, index)[0].numpy().tobytes() for index in range(8)}
    theirs = {np.asarray(as_pil(image[0]).transpose(turn)).transpose(2, 0, 1).tobytes() for turn in Image.Transpose}
    assert len(ours) == 8
    assert ours == theirs | {image[0].numpy().tobytes()}


def test_symmetries_are_drawn_uniformly():
    image = pictures(channels=1, height=5, width=5)
    turned = geometric.random_symmetry(image.expand(1600, -1, -1, -1), KEY, range(1600))
    counts = np.unique(turned.flatten(1).numpy(), axis=0, return_counts=True)[1]
    assert len(counts) == 8
    assert stats.chisquare(counts).pvalue > 1e-3


def test_symmetries_of_non_square_images_are_rejected():
    with pytest.raises(InputError, match="56 x 40 px"):
        geometric.random_symmetry(pictures(), KEY, [0])


@pytest.mark.parametrize("degrees", [-30.0, -7.5, 0.0, 12.3, 45.0, 90.0])
def test_rotation_equals_pillow(degrees):
    """Nearest neighbor: a few values differ by rounding, because Pillow computes in fixed point."""
    images = pictures(2)
    ours = geometric.rotate(images, torch.full((2,), degrees))
    pil = as_pil(images[1]).rotate(degrees, Image.Resampling.NEAREST, fillcolor=(128, 128, 128))
    assert agreement(ours[1], pil) > 0.99


@pytest.mark.parametrize(
    ("operation", "value", "matrix"),
    [
        (geometric.shear_x, 0.3, (1, 0.3, 0, 0, 1, 0)),
        (geometric.shear_x, -0.17, (1, -0.17, 0, 0, 1, 0)),
        (geometric.shear_y, 0.3, (1, 0, 0, 0.3, 1, 0)),
        (geometric.translate_x, 10.0, (1, 0, 10, 0, 1, 0)),
        (geometric.translate_x, -9.3, (1, 0, -9.3, 0, 1, 0)),
        (geometric.translate_y, 17.0, (1, 0, 0, 0, 1, 17)),
    ],
)
def test_shear_and_translation_equal_pillow(operation, value, matrix):
    images = pictures(2)
    pil = as_pil(images[1]).transform(
        (56, 40), Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=(128, 128, 128)
    )
    assert agreement(operation(images, torch.tensor([0.0, value]))[1], pil) > 0.995


def test_each_image_can_have_its_own_translation():
    images = pictures(3)
    moved = geometric.translate_x(images, torch.tensor([0.0, 2.0, -56.0]))
    assert torch.equal(moved[0], images[0])
    assert torch.equal(moved[1, :, :, :-2], images[1, :, :, 2:])
    assert bool((moved[1, :, :, -2:] == 128).all())
    assert bool((moved[2] == 128).all())


@pytest.mark.parametrize("move", [geometric.translate_x, geometric.translate_y, geometric.shear_x])
@pytest.mark.parametrize("offset", [-500.0, -130.0, 130.0, 500.0])
def test_translation_beyond_the_image_width_leaves_only_the_fill(move, offset):
    moved = move(pictures(3, height=40, width=40), torch.tensor([0.0, offset, 0.0]))
    assert bool((moved[1, :, 1:] == 128).all())  # a shear leaves at most the first row


@pytest.mark.parametrize("channels", [1, 4, 13])
def test_any_number_of_channels_is_warped_equally(channels):
    images = pictures(channels=channels)
    turned = geometric.rotate(images, torch.tensor([20.0]))
    for channel in range(channels):
        alone = geometric.rotate(images[:, channel : channel + 1], torch.tensor([20.0]))
        assert torch.equal(turned[:, channel], alone[:, 0])


def test_memory_layout_does_not_change_the_result():
    images = pictures(4)
    last = images.contiguous(memory_format=torch.channels_last)
    angles = torch.tensor([5.0, -3.0, 20.0, 0.0])
    assert torch.equal(geometric.rotate(last, angles), geometric.rotate(images, angles))
    assert torch.equal(
        geometric.random_horizontal_flip(last, KEY, range(4)), geometric.random_horizontal_flip(images, KEY, range(4))
    )


def slopes(count, px=64):
    """Images with values 0 to 199 whose mean differs from the values at the edges."""
    values = torch.arange(count * 3 * px * px).view(count, 3, px, px) % 200
    return values.to(torch.uint8)


def holes_in_stripes(count, px, fraction):
    """Where black and white columns get a hole: (N, H, W), True where they are gray, their mean."""
    images = (255 * (torch.arange(px) % 2)).to(torch.uint8).repeat(count, 1, px, 1)
    return cutout(images, fraction=fraction, key=KEY, ids=range(count), fill="mean")[:, 0] == 128


def test_hole_is_half_of_the_side_clipped_at_the_edge():
    holes = holes_in_stripes(800, 64, 0.5)
    heights, widths = holes.any(2).sum(1), holes.any(1).sum(1)
    assert torch.equal(holes.sum((1, 2)), heights * widths)
    assert int(heights.max()) == int(widths.max()) == 32
    assert int(heights.min()) == 16  # center in the first row: half is outside
    # 33 of 64 center rows, 16 to 48, have a complete hole.
    assert stats.binomtest(int((heights == 32).sum()), 800, 33 / 64).pvalue > 1e-3


def test_centers_are_uniformly_distributed():
    """A hole of 2 px ends at its center."""
    holes = holes_in_stripes(3200, 16, 2 / 16)
    for edges in (holes.any(2), holes.any(1)):
        last = 15 - edges.flip(1).float().argmax(1)
        assert stats.chisquare(np.bincount(last.numpy(), minlength=16)).pvalue > 1e-3


def test_mean_fill_is_the_mean_of_the_image():
    images = slopes(4)
    out = cutout(images, fraction=0.5, key=KEY, ids=range(4), fill="mean")
    changed = out != images
    assert bool(changed.any())
    for i, c in np.ndindex(4, 3):
        new = out[i, c][changed[i, c]].double()
        assert float((new - images[i, c].double().mean()).abs().max()) <= 0.5


def test_noise_fill_is_uniform():
    out = cutout(torch.zeros(8, 3, 64, 64, dtype=torch.uint8), fraction=1, key=KEY, ids=range(8))
    filled = out[:, 0][(out != 0).any(1)]
    assert filled.float().mean() == pytest.approx(127.5, abs=3)
    assert len(filled.unique()) == 256
    for first, second in ((0, 1), (2, 5)):
        filled = (out[first] != 0) & (out[second] != 0)
        alike = (out[first] == out[second])[filled].float().mean()
        assert float(alike) < 0.02  # 1 in 255 by chance


@pytest.mark.parametrize("fill", ["mean", "noise"])
def test_hole_of_an_image_does_not_depend_on_the_batch(fill):
    images = slopes(6)
    together = cutout(images, fraction=0.4, key=KEY, ids=range(6), fill=fill)
    for i in range(6):
        assert torch.equal(together[i], cutout(images[i : i + 1], fraction=0.4, key=KEY, ids=[i], fill=fill)[0])
    assert not torch.equal(together, cutout(images, fraction=0.4, key=KEY, ids=range(6, 12), fill=fill))


def test_fraction_0_changes_nothing():
    images = slopes(3)
    assert torch.equal(cutout(images, fraction=0.0, key=KEY, ids=range(3)), images)


@pytest.mark.parametrize("fraction", [-0.1, 1.5])
def test_invalid_fractions_are_rejected(fraction):
    with pytest.raises(InputError, match="0 to 1"):
        cutout(slopes(1), fraction=fraction, key=KEY, ids=[0])
