"""Windows cover a raster without gaps, stay inside it, and blend without seams."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.messages import mentioning

from efficientnetv2.geospatial import sliding_window
from efficientnetv2.geospatial.sliding_window import BLENDED_BYTES, Grid, blend_windows, rows_at_a_time, window_weights
from efficientnetv2.utils.errors import InputError


def blended(*parts):
    """Return all blended strips: (H, W, K)."""
    return np.concatenate(list(blend_windows(*parts)))


@st.composite
def grids(draw):
    height, width = draw(st.integers(2, 60)), draw(st.integers(2, 60))
    window = draw(st.integers(2, min(height, width)))
    return Grid(height, width, window, draw(st.integers(1, window)))


@given(grids())
def test_each_pixel_is_in_a_window_and_no_window_exceeds_the_raster(grid):
    for starts, length in ((grid.tops, grid.height), (grid.lefts, grid.width)):
        covered = np.zeros(length, int)
        for start in starts:
            assert 0 <= start <= length - grid.window_px
            covered[start : start + grid.window_px] += 1
        assert covered.min() >= 1
        assert len(set(starts)) == len(starts)
        assert (window_weights(starts, grid.window_px, 0, length).sum(axis=1) > 0).all()


def test_windows_of_20_px_have_the_expected_positions():
    grid = Grid(height=20, width=47, window_px=20, stride_px=10)
    assert grid.tops == [0]
    assert grid.lefts == [0, 9, 18, 27]
    assert len(grid) == 4


@given(st.integers(8, 30), st.integers(0, 200), st.integers(0, 200), st.integers(0, 2**32 - 1))
def test_blended_predictions_change_gradually_between_neighbors(window, more_rows, more_columns, seed):
    """With a stride of half a window, the transition takes as many pixels as the distance between neighbors."""
    grid = Grid(window + more_rows, window + more_columns, window, window // 2)
    predictions = np.random.default_rng(seed).random((len(grid.tops), len(grid.lefts), 1), np.float32)
    down = window_weights(grid.tops, window, 0, grid.height)
    across = window_weights(grid.lefts, window, 0, grid.width)
    field = blended(predictions, np.ones(predictions.shape[:2], np.float32), down, across)[:, :, 0]
    for axis, starts in ((0, grid.tops), (1, grid.lefts)):
        least = np.diff(starts).min(initial=window)
        jump = np.abs(np.diff(field, axis=axis)).max(initial=0)
        assert jump <= (predictions.max() - predictions.min()) / least + 1e-5


def test_half_a_stride_interpolates_between_centers():
    """Two windows of 8 px at a distance of 4 px predict 0 and 1. Their centers are at 4 and 8."""
    across = window_weights([0, 4], 8, 0, 12)
    field = blended(
        np.array([[[0.0], [1.0]]], np.float32), np.ones((1, 2), np.float32), np.ones((1, 1), np.float32), across
    )
    expected = np.interp(np.arange(12) + 0.5, [4, 8], [0, 1])
    np.testing.assert_allclose(field[0, :, 0], expected, atol=1e-6)


def test_windows_with_zero_weight_do_not_affect_others():
    across = window_weights([0, 4], 8, 0, 12)
    predictions = np.array([[[0.0], [1.0]]], np.float32)
    field = blended(predictions, np.array([[0, 1]], np.float32), np.ones((1, 1), np.float32), across)[0, :, 0]
    assert np.isnan(field[:4]).all()
    assert (field[4:] == 1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window_px": 50, "stride_px": 10}, ("50", "47", "20", "2")),
        ({"window_px": 10, "stride_px": 11}, ("stride_px=11", "10", "1")),
        ({"window_px": 10, "stride_px": 0}, ("stride_px=0",)),
    ],
)
def test_invalid_windows_are_refused(options, message):
    with pytest.raises(InputError, match=mentioning(*message)):
        Grid(height=20, width=47, **options)


def drawn(rows, columns, classes):
    """Return random predictions and counts of windows of 40 px at each 13 px of 60 px. The first row has no counts."""
    rng = np.random.default_rng(0)
    starts = list(range(0, 13 * max(rows, columns), 13))
    counts = rng.random((rows, columns), np.float32)
    counts[0] = 0
    sides = (window_weights(starts[:rows], 40, 0, 60), window_weights(starts[:columns], 40, 0, 60))
    return rng.random((rows, columns, classes), np.float32), counts, *sides


def test_strips_of_rows_equal_a_single_computation(monkeypatch):
    """The weighted mean over all windows of each pixel, as a single sum."""
    predictions, counts, down, across = drawn(3, 4, 5)
    weighing = np.einsum("hr,wc,rc->hwrc", down, across, counts).astype(np.float64)
    with np.errstate(invalid="ignore"):
        expected = np.einsum("hwrc,rck->hwk", weighing, predictions) / weighing.sum(axis=(2, 3))[:, :, None]
    at_once = blended(predictions, counts, down, across)
    np.testing.assert_allclose(at_once, expected, rtol=1e-5)
    assert np.isnan(at_once[:13]).all()
    monkeypatch.setattr(sliding_window, "BLENDED_BYTES", 7 * 4 * (60 + 4) * 5)
    strips = list(blend_windows(predictions, counts, down, across))
    assert [len(one) for one in strips] == [7] * 8 + [4]
    np.testing.assert_allclose(np.concatenate(strips), at_once, rtol=1e-6)


@pytest.mark.parametrize("classes", [3, 1_000, 21_843, 65_535])
def test_memory_is_limited_for_any_number_of_classes(classes):
    """A block of 256 px with 21,843 classes would need 5.7 GB."""
    rows = rows_at_a_time(256, 5, classes)
    assert rows == 1 or rows * (256 + 5) * classes * 4 <= BLENDED_BYTES
    assert (rows + 1) * (256 + 5) * classes * 4 > BLENDED_BYTES
    strip = next(blend_windows(*drawn(2, 2, classes)))
    assert strip.nbytes <= BLENDED_BYTES
    assert len(strip) == min(60, rows_at_a_time(60, 2, classes))


def test_a_raster_of_one_row_has_no_windows():
    with pytest.raises(InputError, match=mentioning("47", "1", "2")):
        Grid(height=1, width=47, window_px=20, stride_px=10)
