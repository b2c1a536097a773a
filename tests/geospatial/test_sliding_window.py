"""Windows cover a raster without gaps and without sticking out, and blend without edges."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.messages import mentioning

from efficientnetv2.geospatial import sliding_window
from efficientnetv2.geospatial.sliding_window import BLENDED_BYTES, Grid, blend_windows, rows_at_a_time, window_weights
from efficientnetv2.utils.errors import InputError


def whole(*parts):
    """(H, W, K): all strips of what is blended."""
    return np.concatenate(list(blend_windows(*parts)))


@st.composite
def grids(draw):
    height, width = draw(st.integers(2, 60)), draw(st.integers(2, 60))
    window = draw(st.integers(2, min(height, width)))
    return Grid(height, width, window, draw(st.integers(1, window)))


@given(grids())
def test_every_pixel_lies_in_a_window_and_no_window_sticks_out(grid):
    for starts, length in ((grid.tops, grid.height), (grid.lefts, grid.width)):
        covered = np.zeros(length, int)
        for start in starts:
            assert 0 <= start <= length - grid.window_px
            covered[start : start + grid.window_px] += 1
        assert covered.min() >= 1
        assert len(set(starts)) == len(starts)
        assert (window_weights(starts, grid.window_px, 0, length).sum(axis=1) > 0).all()


def test_windows_of_twenty_px_stand_as_counted_by_hand():
    grid = Grid(height=20, width=47, window_px=20, stride_px=10)
    assert grid.tops == [0]
    assert grid.lefts == [0, 9, 18, 27]
    assert len(grid) == 4


@given(st.integers(8, 30), st.integers(0, 200), st.integers(0, 200), st.integers(0, 2**32 - 1))
def test_between_neighbors_no_answer_jumps(window, more_rows, more_columns, seed):
    """With a stride of half a window, going over from one to the next takes as many pixels as lie between them."""
    grid = Grid(window + more_rows, window + more_columns, window, window // 2)
    answers = np.random.default_rng(seed).random((len(grid.tops), len(grid.lefts), 1), np.float32)
    down = window_weights(grid.tops, window, 0, grid.height)
    across = window_weights(grid.lefts, window, 0, grid.width)
    field = whole(answers, np.ones(answers.shape[:2], np.float32), down, across)[:, :, 0]
    for axis, starts in ((0, grid.tops), (1, grid.lefts)):
        least = np.diff(starts).min(initial=window)
        jump = np.abs(np.diff(field, axis=axis)).max(initial=0)
        assert jump <= (answers.max() - answers.min()) / least + 1e-5


def test_half_a_stride_is_interpolation_between_middles():
    """Two windows of 8 px, 4 apart, answer 0 and 1: their middles lie at 4 and 8."""
    across = window_weights([0, 4], 8, 0, 12)
    field = whole(
        np.array([[[0.0], [1.0]]], np.float32), np.ones((1, 2), np.float32), np.ones((1, 1), np.float32), across
    )
    expected = np.interp(np.arange(12) + 0.5, [4, 8], [0, 1])
    np.testing.assert_allclose(field[0, :, 0], expected, atol=1e-6)


def test_windows_that_do_not_count_leave_their_place_to_others():
    across = window_weights([0, 4], 8, 0, 12)
    answers = np.array([[[0.0], [1.0]]], np.float32)
    field = whole(answers, np.array([[0, 1]], np.float32), np.ones((1, 1), np.float32), across)[0, :, 0]
    assert np.isnan(field[:4]).all()
    assert (field[4:] == 1).all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"window_px": 50, "stride_px": 10}, ("50", "47", "20", "2")),
        ({"window_px": 10, "stride_px": 11}, ("stride_px=11", "10", "1")),
        ({"window_px": 10, "stride_px": 0}, ("stride_px=0",)),
    ],
)
def test_windows_that_do_not_fit_are_refused(words, message):
    with pytest.raises(InputError, match=mentioning(*message)):
        Grid(height=20, width=47, **words)


def drawn(rows, columns, classes):
    """Windows of 40 px, every 13, that lie on 60 px, with answers and counts at random, one row of them without any."""
    rng = np.random.default_rng(0)
    starts = list(range(0, 13 * max(rows, columns), 13))
    counts = rng.random((rows, columns), np.float32)
    counts[0] = 0
    sides = (window_weights(starts[:rows], 40, 0, 60), window_weights(starts[:columns], 40, 0, 60))
    return rng.random((rows, columns, classes), np.float32), counts, *sides


def test_in_strips_of_rows_it_is_the_same_as_all_at_once(monkeypatch):
    """The weighted mean over all windows of every pixel, written down as one sum."""
    answers, counts, down, across = drawn(3, 4, 5)
    weighing = np.einsum("hr,wc,rc->hwrc", down, across, counts).astype(np.float64)
    with np.errstate(invalid="ignore"):
        expected = np.einsum("hwrc,rck->hwk", weighing, answers) / weighing.sum(axis=(2, 3))[:, :, None]
    at_once = whole(answers, counts, down, across)
    np.testing.assert_allclose(at_once, expected, rtol=1e-5)
    assert np.isnan(at_once[:13]).all()
    monkeypatch.setattr(sliding_window, "BLENDED_BYTES", 7 * 4 * (60 + 4) * 5)
    strips = list(blend_windows(answers, counts, down, across))
    assert [len(one) for one in strips] == [7] * 8 + [4]
    np.testing.assert_allclose(np.concatenate(strips), at_once, rtol=1e-6)


@pytest.mark.parametrize("classes", [3, 1_000, 21_843, 65_535])
def test_memory_is_bounded_whatever_the_number_of_classes(classes):
    """A block of 256 px of 21,843 classes is 5.7 GB as a whole."""
    rows = rows_at_a_time(256, 5, classes)
    assert rows == 1 or rows * (256 + 5) * classes * 4 <= BLENDED_BYTES
    assert (rows + 1) * (256 + 5) * classes * 4 > BLENDED_BYTES
    strip = next(blend_windows(*drawn(2, 2, classes)))
    assert strip.nbytes <= BLENDED_BYTES
    assert len(strip) == min(60, rows_at_a_time(60, 2, classes))


def test_a_raster_of_one_row_has_no_windows():
    with pytest.raises(InputError, match=mentioning("47", "1", "2")):
        Grid(height=1, width=47, window_px=20, stride_px=10)
