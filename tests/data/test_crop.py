"""Random crops have the distribution of torchvision."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torchvision.transforms import RandomResizedCrop

from efficientnetv2.data.decode import CROP_UNIFORMS, Box, draw_crop
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
def test_crop_is_inside_with_the_requested_area_and_shape(width, height, area_min, low, uniforms):
    box = draw_crop(width, height, area_min, (low, 1 / low), uniforms)
    tolerance = 1e-6 * max(width, height)
    assert -tolerance <= box.left < box.right <= width + tolerance
    assert -tolerance <= box.top < box.bottom <= height + tolerance
    assert low - 1e-6 <= box.width / box.height <= 1 / low + 1e-6
    centered = math.isclose(box.left + box.right, width) and math.isclose(box.top + box.bottom, height)
    assert centered or box.width * box.height >= area_min * width * height * (1 - 1e-9)


@pytest.mark.parametrize(("width", "height", "area_min"), [(500, 375, 0.08), (300, 300, 0.35), (640, 200, 0.05)])
def test_crops_have_the_distribution_of_torchvision(width, height, area_min):
    """Area, shape and position of 4,000 crops: two-sample Kolmogorov-Smirnov test."""
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    reference = [RandomResizedCrop.get_params(image, [area_min, 1], list(ASPECT)) for _ in range(4000)]
    top, left, tall, wide = (np.array(column, dtype=float) for column in zip(*reference, strict=True))
    crops = [draw_crop(width, height, area_min, ASPECT, row) for row in ROWS]
    pairs = [
        ([b.width * b.height for b in crops], wide * tall),
        ([b.left + b.right for b in crops], 2 * left + wide),
        ([b.top + b.bottom for b in crops], 2 * top + tall),
    ]
    for actual, expected in pairs:
        assert stats.ks_2samp(np.round(actual, 6), expected).statistic < 0.045  # p = 0.0006 at these sizes


def test_crop_that_does_not_fit_is_the_center_as_in_torchvision():
    """An image of 1000 x 10 px has no crop of 90 % of its area: the largest of aspect ratio 4/3 is used."""
    assert draw_crop(1000, 10, 0.9, ASPECT, ROWS[0]) == pytest.approx(Box(500 - 20 / 3, 0, 500 + 20 / 3, 10))
    assert draw_crop(10, 1000, 0.9, ASPECT, ROWS[0]) == pytest.approx(Box(0, 500 - 20 / 3, 10, 500 + 20 / 3))
