"""Formatting of messages."""

import numpy as np
import pytest

from efficientnetv2.utils.errors import did_you_mean, escape_controls, pluralize, shorten


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
def test_pluralize_numbers(number, said):
    assert pluralize(number, "step") == said


@pytest.mark.parametrize(("number", "said"), [(1, "1 class"), (2, "2 classes")])
def test_pluralize_word_that_ends_in_s(number, said):
    assert pluralize(number, "class") == said


def test_suggestion_ignores_case():
    assert did_you_mean("CUDA", ["cpu", "cuda"]) == "; did you mean 'cuda'?"
    assert did_you_mean("forset", ["Forest", "Water"]) == "; did you mean 'Forest'?"
    assert did_you_mean("x", ["Forest"]) == "."


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07red\x1b[31m", r"\x1b]0;title\x07red\x1b[31m"),
        ("a\nb\tc\r", r"a\x0ab\x09c\x0d"),
        ("\x9bm \x7f \u202egpj.exe", r"\x9bm \x7f \u202egpj.exe"),
        ("Hêtre, 小さい\xa0名前 👩\u200d🌾", "Hêtre, 小さい\xa0名前 👩\u200d🌾"),
    ],
)
def test_control_characters_are_escaped(text, shown):
    assert escape_controls(text) == shown
    assert shorten([text]) == f"'{shown}'"


def test_line_breaks_are_kept_on_request():
    assert escape_controls("a\n\tb\x1b", lines=True) == "a\n\tb\\x1b"
