"""The language check finds violations, and fails above and below a ceiling."""

from __future__ import annotations

import pytest
from tests.language import check_length, check_rule, messages, plain, sentences


@pytest.mark.parametrize(("ceiling", "problems"), [(2, 0), (1, 1), (3, 1)])
def test_count_must_equal_its_ceiling(ceiling, problems):
    bodies = ("A picture, and pictures in pictures.csv or pictures/.", "", "")
    found = [line for line in check_rule("rule", "pictures?", (ceiling, 0, 0), bodies) if not line.startswith(" ")]
    assert len(found) == problems
    assert all(line.startswith("pages: rule: 2 times") for line in found)


def test_error_and_log_texts_are_found(tmp_path):
    (tmp_path / "module.py").write_text(
        "def work(x):\n"
        '    """A docstring."""\n'
        '    _logger.info(f"reads {x} " "files")\n'
        '    found = InputError("is wrong" if x else "is " + f"right: {x}")\n'
        '    raise errors.InputError("all " f"fail {x!r}") from found\n'
    )
    assert sorted(messages(tmp_path)) == ["all fail X", "is wrong is right: X", "reads X files"]


def test_sentences_have_only_visible_text():
    text = plain(
        "# A short title\n\nOne two `x y z`. Three [four five](six.md) seven:\n- eight nine ten\n\n| a b c | d |\n"
    )
    assert list(sentences(text)) == [
        "# A short title",
        "One two X.",
        "Three four five seven:",
        "eight nine ten",
        "a b c",
    ]


def test_long_sentences_and_pro_forms_are_limited():
    assert list(check_length("help", "Train a model on images. " * 9)) == []
    assert "more than 25 words" in next(check_length("help", " ".join(["Word"] * 26) + "."))
    assert "pro-forms" in next(check_length("help", "It is such. " * 9))
