"""Words of messages."""

import pytest

from efficientnetv2.base.errors import count_of


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
    ],
)
def test_one_is_one(number, said):
    assert count_of(number, "step") == said


@pytest.mark.parametrize(("number", "said"), [(1, "1 class"), (2, "2 classes")])
def test_a_word_that_ends_in_s_has_its_plural(number, said):
    assert count_of(number, "class") == said
