"""Words of messages."""

import numpy as np
import pytest

from efficientnetv2.base.errors import count_of, did_you_mean


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (1, "1 step"),
        (0, "0 steps"),
        (1234, "1,234 steps"),
        (1.0, "1 step"),
        (0.5, "0.5 steps"),
        (12.0, "12 steps"),
        (1234567, "1,234,567 steps"),
        (np.int64(1234567), "1,234,567 steps"),
    ],
)
def test_one_is_one(number, said):
    assert count_of(number, "step") == said


@pytest.mark.parametrize(("number", "said"), [(1, "1 class"), (2, "2 classes")])
def test_a_word_that_ends_in_s_has_its_plural(number, said):
    assert count_of(number, "class") == said


def test_a_word_in_capitals_is_near_too():
    assert did_you_mean("CUDA", ["cpu", "cuda"]) == "; did you mean 'cuda'?"
    assert did_you_mean("forset", ["Forest", "Water"]) == "; did you mean 'Forest'?"
    assert did_you_mean("x", ["Forest"]) == "."
