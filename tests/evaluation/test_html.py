"""Long names on a page: line breaks do not change the text and lines fit the given width."""

from __future__ import annotations

import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficientnetv2.cli.console import spelling_as
from efficientnetv2.evaluation.html import breakable, command, sentence
from efficientnetv2.evaluation.plot_style import text_width, wrap_name


def plain_text(markup):
    plain = str(markup).replace("<wbr>", "").replace('<span class="option">', "").replace("</span>", "")
    return html.unescape(plain)


@given(st.text(alphabet="ab_/-.,:;= <>&\"'é日", max_size=40))
def test_text_is_complete_and_escaped(text):
    assert plain_text(breakable(text)) == text
    assert plain_text(sentence(text)) == text
    assert plain_text(command(text)) == text


def test_breaks_follow_separators_but_not_in_numbers_or_options():
    assert breakable("images/great_oak.jpg") == "images/<wbr>great_<wbr>oak.<wbr>jpg"
    assert breakable("-0.249 to 4.38, 1,044") == "-0.249 to 4.38, 1,044"
    assert sentence("add --set minival=0.1 <b>") == 'add <span class="option">--set</span> minival=0.1 &lt;b&gt;'


@given(st.text(alphabet="abc_ 日本", min_size=1, max_size=60), st.integers(6, 22), st.integers(1, 3))
def test_wrapped_lines_fit_the_width_and_the_count(name, width, max_lines):
    lines = wrap_name(name, width, max_lines)
    assert 1 <= len(lines) <= max_lines
    assert all(text_width(line) <= width for line in lines)
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
def test_wrap_prefers_separators(name, lines):
    assert wrap_name(name, 22, 3) == lines


def test_line_is_full_before_it_is_cut():
    assert wrap_name("smallholder_agriculture", 14, 1) == ("smallholder_a…",)
    assert wrap_name("very_smallholder_agriculture", 14, 2) == ("very_", "smallholder_a…")


def test_wide_letters_count_more_and_combining_marks_zero():
    assert text_width("日本") > text_width("ab")
    assert text_width("ก่") == text_width("ก") == 1


def test_percent_sign_has_a_no_break_space_in_sentences_only():
    assert sentence("58.4% of 95 % intervals") == "58.4\N{NO-BREAK SPACE}% of 95\N{NO-BREAK SPACE}% intervals"
    assert sentence("a%20b") == "a%20b"
    assert command("effnetv2 predict run 50%") == "effnetv2 predict run 50%"


def test_parameter_is_shown_as_the_option_of_a_running_command():
    assert "<code>image_<wbr>size=128</code>" in sentence("Use `image_size=128`.")
    with spelling_as({"image_size": "--image-size", "set": "--set"}):
        shown = sentence("Use `image_size=128` and `patience=5`.")
    text = re.sub("<[^>]+>", "", shown)
    assert text == "Use --image-size 128 and --set patience=5."
    assert shown.count("<code>") == 2
