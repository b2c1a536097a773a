"""Alternating measurements and ratios by round."""

from __future__ import annotations

import time

from efficientnetv2.utils.benchmark import TimingStats, interleave, speed_ratio


def test_order_alternates_and_warmup_does_not_count():
    calls = []
    seconds = interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, warmup=1)
    assert "".join(calls) == "abbaabba"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


def test_wait_is_part_of_the_time():
    """Work that a GPU has not finished counts for the side that started it."""
    left = []
    seconds = interleave(
        {"told": lambda: left.append(0.02), "done": lambda: None},
        rounds=3,
        wait=lambda: time.sleep(left.pop()) if left else None,
    )
    assert min(seconds["told"]) >= 0.02
    assert min(seconds["done"]) < 0.02


def test_ratios_are_computed_by_round():
    """A round on a slower machine is slower for both sides: 2, 2, 4 have the median 2."""
    spread = speed_ratio({"ours": [1, 10, 1], "theirs": [2, 20, 4]}, of="ours", to="theirs")
    assert (spread.median, spread.low, spread.high, spread.rounds) == (2, 2, 3, 3)


def test_timing_stats_print_median_and_quartiles():
    """1 to 5 have the median 3 and the quartiles 2 and 4."""
    assert str(TimingStats.of([5, 1, 4, 2, 3])) == "3 (2 to 4)"
    assert TimingStats.of([1.5]) == TimingStats(1.5, 1.5, 1.5, 1)


def test_sides_are_timed_separately():
    seconds = interleave({"slow": lambda: time.sleep(0.01), "quick": lambda: None}, rounds=3)
    assert speed_ratio(seconds, of="quick", to="slow").median > 5
    assert min(seconds["slow"]) >= 0.01
