"""Random crops are those of torchvision."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torchvision.transforms import RandomResizedCrop

from efficientnetv2.data.crop import CROP_UNIFORMS, Box, draw_crop
from efficientnetv2.utils.random_key import Key

ASPECT = (3 / 4, 4 / 3)
ROWS = Key.of(0).uniform_rows(range(4000), CROP_UNIFORMS)


@given(
    st.integers(2, 5000),
    st.integers(2, 5000),
    st.floats(0.01, 1),
    st.floats(0.2, 1),
    st.lists(st.floats(0, 1, exclude_max=True), min_size=CROP_UNIFORMS, max_size=CROP_UNIFORMS),
)
def test_a_crop_lies_inside_with_the_stated_area_and_shape(width, height, area_min, low, uniforms):
    box = draw_crop(width, height, area_min, (low, 1 / low), uniforms)
    hair = 1e-6 * max(width, height)
    assert -hair <= box.left < box.right <= width + hair
    assert -hair <= box.top < box.bottom <= height + hair
    assert low - 1e-6 <= box.width / box.height <= 1 / low + 1e-6
    centerd = math.isclose(box.left + box.right, width) and math.isclose(box.top + box.bottom, height)
    assert centerd or box.width * box.height >= area_min * width * height * (1 - 1e-9)


@pytest.mark.parametrize(("width", "height", "area_min"), [(500, 375, 0.08), (300, 300, 0.35), (640, 200, 0.05)])
def test_crops_are_distributed_as_torchvisions(width, height, area_min):
    """Area, shape and place of 4,000 crops of each: two-sample Kolmogorov-Smirnov."""
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = [RandomResizedCrop.get_params(image, [area_min, 1], list(ASPECT)) for _ in range(4000)]
    top, left, tall, wide = (np.array(column, dtype=float) for column in zip(*theirs, strict=True))
    ours = [draw_crop(width, height, area_min, ASPECT, row) for row in ROWS]
    pairs = [
        ([b.width * b.height for b in ours], wide * tall),
        ([b.left + b.right for b in ours], 2 * left + wide),
        ([b.top + b.bottom for b in ours], 2 * top + tall),
    ]
    for mine, others in pairs:
        assert stats.ks_2samp(np.round(mine, 6), others).statistic < 0.045  # p = 0.0006 at these sizes


def test_when_nothing_fits_the_crop_is_the_center_as_in_torchvision():
    """A ribbon of 1000 x 10 px holds no crop of 90 % of its area: the largest of shape 4/3 stays."""
    assert draw_crop(1000, 10, 0.9, ASPECT, ROWS[0]) == pytest.approx(Box(500 - 20 / 3, 0, 500 + 20 / 3, 10))
    assert draw_crop(10, 1000, 0.9, ASPECT, ROWS[0]) == pytest.approx(Box(0, 500 - 20 / 3, 10, 500 + 20 / 3))
