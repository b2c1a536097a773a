"""What each stage cost, added up by hand; and the drawings hold what they should."""

from __future__ import annotations

import pytest

from efficientnetv2.evaluation.plots import draw_costs, draw_top1_over_time, stage_costs, top1_over_time


def _train(step, px, seconds, waited, *, images=32, **setting):
    return {
        "kind": "train", "step": step, "epoch": step / 10, "image_size": px, "train_s": seconds, "data_wait_s": waited,
        "images_per_s": images / seconds, **setting,
    }  # fmt: skip


def _val(step, top1):
    return {"kind": "val", "step": step, "epoch": step / 10, "top1": top1, "macro_f1": top1}


# Two stages: 10 s with 64 pictures, of which 1 s waiting; 20 s with 64, of which 6 s waiting.
HISTORY = [
    _train(10, 64, 4.0, 1.0), _val(10, 0.2), _train(20, 64, 6.0, 0.0), _val(20, 0.3),
    _train(30, 128, 10.0, 2.0), _train(40, 128, 10.0, 4.0), _val(40, 0.5),
]  # fmt: skip


def test_a_stage_is_what_its_rows_come_to():
    small, large = stage_costs(HISTORY)
    assert (small.image_size, small.epochs, small.seconds, small.top1) == (64, 2.0, 10.0, 0.3)
    assert (large.image_size, large.epochs, large.seconds, large.top1) == (128, 2.0, 20.0, 0.5)
    assert (small.images_per_s, large.images_per_s) == pytest.approx((6.4, 3.2))
    assert (small.data_wait_fraction, large.data_wait_fraction) == pytest.approx((0.1, 0.3))


def test_a_stage_of_the_same_size_with_other_regularization_is_another():
    rows = [_train(10, 64, 4.0, 0.0, dropout=0.1), _train(20, 64, 4.0, 0.0, dropout=0.2)]
    first, second = stage_costs(rows)
    assert first.top1 is second.top1 is None, "no validation within"
    assert second.epochs == 1.0


def test_what_changes_all_the_time_has_no_stages():
    assert stage_costs([_train(step, 64 + step, 1.0, 0.0) for step in range(13)]) == ()
    assert stage_costs([]) == ()
    assert stage_costs([{"kind": "train", "step": 1, "epoch": 1.0, "loss": 2.0}]) == (), "of an older version"


def test_accuracy_is_that_of_so_much_training():
    """4 s at the first validation, 10 at the second, 30 at the third: time for validation is in none of them."""
    assert top1_over_time(HISTORY) == [(4.0, 0.2), (10.0, 0.3), (30.0, 0.5)]
    assert top1_over_time([_val(10, 0.2)]) == []


def test_bars_are_as_long_as_the_stages():
    (ax,) = draw_costs({"": stage_costs(HISTORY)}).axes
    working, waiting = ([bar.get_width() for bar in bars] for bars in ax.containers)
    assert working == pytest.approx([9.0, 14.0])
    assert waiting == pytest.approx([1.0, 6.0])
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["1: 64 px", "2: 128 px"]
    assert draw_costs({"": ()}) is None


def test_of_several_runs_the_bars_say_whose_they_are():
    costs = {"fixed": stage_costs(HISTORY[4:]), "growing": stage_costs(HISTORY)}
    (ax,) = draw_costs(costs).axes
    labels = [tick.get_text() for tick in ax.get_yticklabels()]
    assert labels == ["fixed, 1: 128 px", "growing, 1: 64 px", "growing, 2: 128 px"]


def test_a_line_for_each_run_against_its_time():
    (ax,) = draw_top1_over_time({"fixed": HISTORY[4:], "growing": HISTORY, "none": []}).axes
    fixed, growing = ax.lines
    assert fixed.get_xydata().tolist() == [[20.0, 50.0]]
    assert growing.get_xydata().tolist() == [[4.0, 20.0], [10.0, 30.0], [30.0, 50.0]]
    assert ax.get_xlabel() == "seconds of training"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["fixed", "growing"]
    assert draw_top1_over_time({"none": []}) is None


def test_a_single_run_is_marked_where_its_stages_begin():
    (ax,) = draw_top1_over_time({"": HISTORY}).axes
    assert [text.get_text() for text in ax.texts] == ["64 px", "128 px"]
    assert [text.xy[0] for text in ax.texts] == [0.0, 10.0]


def test_long_runs_are_told_in_minutes_and_hours():
    long = [_train(10, 64, 7200.0, 0.0), _val(10, 0.5)]
    (ax,) = draw_top1_over_time({"": long}).axes
    assert ax.get_xlabel() == "hours of training"
    assert ax.lines[0].get_xydata().tolist() == [[2.0, 50.0]]
