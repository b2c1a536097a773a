"""Cutout: where the hole is, how large, and what fills it."""

import numpy as np
import pytest
import torch
from scipy import stats

from efficientnetv2.transforms.cutout import cutout
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.rng import Key

KEY = Key.of(0)


def slopes(count, px=64, dtype=torch.uint8):
    """Pictures of values 0..199 whose mean is far from any of their edges' values."""
    values = torch.arange(count * 3 * px * px).view(count, 3, px, px) % 200
    return values.to(dtype)


def test_the_hole_is_half_the_side_less_what_lies_over_the_edge():
    images = torch.full((800, 1, 64, 64), 7.0)
    holes = cutout(images, fraction=0.5, key=KEY, ids=range(800), fill="noise")[:, 0] != 7.0
    heights, widths = holes.any(2).sum(1), holes.any(1).sum(1)
    assert torch.equal(holes.sum((1, 2)), heights * widths)
    assert int(heights.max()) == int(widths.max()) == 32
    assert int(heights.min()) == 16  # the center in the first row: half of it is over the edge
    # Of 64 center rows, 33 keep the hole whole: 16 to 48.
    assert stats.binomtest(int((heights == 32).sum()), 800, 33 / 64).pvalue > 1e-3


def test_centres_are_uniform_over_the_rows_and_columns():
    """A hole of 2 px begins one before its center: where it ends tells the center."""
    images = torch.zeros(3200, 1, 16, 16)
    holes = cutout(images, fraction=2 / 16, key=KEY, ids=range(3200))[:, 0] != 0
    for edges in (holes.any(2), holes.any(1)):
        last = 15 - edges.flip(1).float().argmax(1)
        assert stats.chisquare(np.bincount(last.numpy(), minlength=16)).pvalue > 1e-3


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_the_mean_is_the_pictures_own(dtype):
    images = slopes(4, dtype=dtype)
    out = cutout(images, fraction=0.5, key=KEY, ids=range(4), fill="mean")
    changed = out != images
    assert bool(changed.any())
    for i, c in np.ndindex(4, 3):
        new = out[i, c][changed[i, c]].double()
        assert float((new - images[i, c].double().mean()).abs().max()) <= (
            0.5 if dtype == torch.uint8 else 1e-4
        )


def test_noise_fills_all_values_alike_in_bytes_and_normally_in_floats():
    bytes_out = cutout(torch.zeros(8, 3, 64, 64, dtype=torch.uint8), fraction=1, key=KEY, ids=range(8))
    filled = bytes_out[:, 0][(bytes_out != 0).any(1)]
    assert filled.float().mean() == pytest.approx(127.5, abs=3)
    assert len(filled.unique()) == 256
    for first, second in ((0, 1), (2, 5)):
        filled = (bytes_out[first] != 0) & (bytes_out[second] != 0)
        alike = (bytes_out[first] == bytes_out[second])[filled].float().mean()
        assert float(alike) < 0.02  # 1 in 255 by chance
    floats = cutout(torch.full((8, 3, 64, 64), 9.0), fraction=1, key=KEY, ids=range(8))
    noise = floats[floats != 9.0].double()
    assert float(noise.mean()) == pytest.approx(0, abs=0.03)
    assert float(noise.std()) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("fill", ["mean", "noise"])
def test_a_picture_gets_the_same_hole_in_any_batch(fill):
    images = slopes(6)
    together = cutout(images, fraction=0.4, key=KEY, ids=range(6), fill=fill)
    for i in range(6):
        assert torch.equal(
            together[i], cutout(images[i : i + 1], fraction=0.4, key=KEY, ids=[i], fill=fill)[0]
        )
    assert not torch.equal(together, cutout(images, fraction=0.4, key=KEY, ids=range(6, 12), fill=fill))


def test_nothing_to_cut_is_nothing_cut():
    images = slopes(3)
    assert torch.equal(cutout(images, fraction=0.0, key=KEY, ids=range(3)), images)


@pytest.mark.parametrize("fraction", [-0.1, 1.5])
def test_impossible_fractions_are_refused(fraction):
    with pytest.raises(InputError, match="0 to 1"):
        cutout(slopes(1), fraction=fraction, key=KEY, ids=[0])
