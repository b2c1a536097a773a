"""The checks of messages accept any wording, and fail if a fact is missing."""

from __future__ import annotations

import re

from tests.messages import each_mentions, mentioning, mentions


def test_facts_are_found_in_any_wording_and_order():
    assert mentions("Skipped 2 of 39 files.\nThe rest is read.", 39, "skipped 2 of")
    assert re.search(mentioning("all.csv", 7), "row 7\nof all.csv is empty")
    assert mentions(["nothing", "--lr 0.5: too high"], "0.5", "--lr")


def test_missing_fact_is_detected():
    assert not mentions("Skipped 2 of 39 files.", "2", "38")
    assert not mentions("12 of 1,239 files, 2.5 s, 1.39", "2")
    assert not mentions("12 of 1,239 files, 2.5 s, 1.39", "39")
    assert not mentions("2 files\n39 images", "2", "39")
    assert not mentions("2" + " " * 300 + "39", "2", "39")
    assert not re.search(mentioning("all.csv", "7"), "row 17 of all.csv")


def test_each_text_must_name_its_own_facts():
    assert each_mentions(["Skipped a.jpg.", "Read 2 files."], ("a.jpg",), ("2",))
    assert not each_mentions(["Read 2 files.", "Skipped a.jpg."], ("a.jpg",), ("2",))
    assert not each_mentions(["Skipped a.jpg.", "Read 2 files."], ("a.jpg",))
