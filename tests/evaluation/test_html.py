"""Long names on a page: parted where it helps, never changed, never wider than their line."""

from __future__ import annotations

import html

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficientnetv2.evaluation.html import breakable, command, sentence
from efficientnetv2.evaluation.plot_style import text_width, wrap_name


def without_marks(marked):
    plain = str(marked).replace("<wbr>", "").replace('<span class="option">', "").replace("</span>", "")
    return html.unescape(plain)


@given(st.text(alphabet="ab_/-.,:;= <>&\"'é日", max_size=40))
def test_nothing_of_a_text_is_lost_and_nothing_of_it_is_markup(text):
    assert without_marks(breakable(text)) == text
    assert without_marks(sentence(text)) == text
    assert without_marks(command(text)) == text


def test_names_are_parted_behind_their_signs_and_numbers_and_options_are_not():
    assert breakable("pictures/great_oak.jpg") == "pictures/<wbr>great_<wbr>oak.<wbr>jpg"
    assert breakable("-0.249 to 4.38, 1,044") == "-0.249 to 4.38, 1,044"
    assert sentence("add --set minival=0.1 <b>") == 'add <span class="option">--set</span> minival=0.1 &lt;b&gt;'


@given(st.text(alphabet="abc_ 日本", min_size=1, max_size=60), st.integers(6, 22), st.integers(1, 3))
def test_lines_are_as_few_and_as_narrow_as_asked(name, letters, most):
    lines = wrap_name(name, letters, most)
    assert 1 <= len(lines) <= most
    assert all(text_width(line) <= letters for line in lines)
    if not lines[-1].endswith("…"):
        assert "".join(lines).replace(" ", "") == name.replace(" ", "")


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("smallholder_agriculture", ("smallholder_", "agriculture")),
        ("Donaudampfschifffahrtselektrizitätenwerk", ("Donaudampfschifffahrts", "elektrizitätenwerk")),
        ("oak", ("oak",)),
    ],
)
def test_a_name_is_parted_behind_a_sign_where_there_is_one(name, lines):
    assert wrap_name(name, 22, 3) == lines


def test_a_line_is_filled_before_it_is_cut():
    assert wrap_name("smallholder_agriculture", 14, 1) == ("smallholder_a…",)
    assert wrap_name("very_smallholder_agriculture", 14, 2) == ("very_", "smallholder_a…")


def test_wide_letters_take_more_room_and_marks_none():
    assert text_width("日本") > text_width("ab")
    assert text_width("ก่") == text_width("ก") == 1


def test_a_percentage_is_one_word_in_a_sentence_and_as_typed_in_a_command():
    assert sentence("58.4% of 95 % intervals") == "58.4\N{NO-BREAK SPACE}% of 95\N{NO-BREAK SPACE}% intervals"
    assert sentence("a%20b") == "a%20b"
    assert command("effnetv2 predict run 50%") == "effnetv2 predict run 50%"
