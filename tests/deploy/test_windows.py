"""Windows cover a raster without gaps and without sticking out, and blend without edges."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficientnetv2.base.errors import InputError
from efficientnetv2.deploy.windows import Grid, blended, weights


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
        assert (weights(starts, grid.window_px, 0, length).sum(axis=1) > 0).all()


def test_windows_of_twenty_px_stand_as_counted_by_hand():
    grid = Grid(height=20, width=47, window_px=20, stride_px=10)
    assert grid.tops == [0]
    assert grid.lefts == [0, 9, 18, 27]
    assert len(grid) == 4


@given(st.integers(8, 30), st.integers(0, 200), st.integers(0, 200), st.integers(0, 2**32 - 1))
def test_between_neighbours_no_answer_jumps(window, more_rows, more_columns, seed):
    """With a stride of half a window, going over from one to the next takes as many pixels as lie between them."""
    grid = Grid(window + more_rows, window + more_columns, window, window // 2)
    answers = np.random.default_rng(seed).random((len(grid.tops), len(grid.lefts), 1), np.float32)
    down = weights(grid.tops, window, 0, grid.height)
    across = weights(grid.lefts, window, 0, grid.width)
    field = blended(answers, np.ones(answers.shape[:2], np.float32), down, across)[:, :, 0]
    for axis, starts in ((0, grid.tops), (1, grid.lefts)):
        least = np.diff(starts).min(initial=window)
        jump = np.abs(np.diff(field, axis=axis)).max(initial=0)
        assert jump <= (answers.max() - answers.min()) / least + 1e-5


def test_half_a_stride_is_interpolation_between_middles():
    """Two windows of 8 px, 4 apart, answer 0 and 1: their middles lie at 4 and 8."""
    across = weights([0, 4], 8, 0, 12)
    field = blended(
        np.array([[[0.0], [1.0]]], np.float32),
        np.ones((1, 2), np.float32),
        np.ones((1, 1), np.float32),
        across,
    )
    expected = np.interp(np.arange(12) + 0.5, [4, 8], [0, 1])
    np.testing.assert_allclose(field[0, :, 0], expected, atol=1e-6)


def test_windows_that_do_not_count_leave_their_place_to_others():
    across = weights([0, 4], 8, 0, 12)
    answers = np.array([[[0.0], [1.0]]], np.float32)
    field = blended(answers, np.array([[0, 1]], np.float32), np.ones((1, 1), np.float32), across)[0, :, 0]
    assert np.isnan(field[:4]).all()
    assert (field[4:] == 1).all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            {"window_px": 50, "stride_px": 10},
            r"windows are 50 px wide, but the raster is 47 x 20 px.*2 to 20",
        ),
        ({"window_px": 10, "stride_px": 11}, r"--stride-px is 11 px, but lies in 1 to 10.*gaps"),
        ({"window_px": 10, "stride_px": 0}, r"--stride-px is 0 px"),
    ],
)
def test_windows_that_do_not_fit_are_refused(words, message):
    with pytest.raises(InputError, match=message):
        Grid(height=20, width=47, **words)
