"""Costs of each stage by hand, and the data of each plot."""

from __future__ import annotations

import pytest
from tests.messages import mentions

from efficientnetv2.evaluation.training_plots import (
    SizeCurve,
    constant_hyperparameters,
    draw_costs,
    draw_sizes,
    draw_top1_over_time,
    draw_training_curves,
    stage_costs,
    top1_over_time,
)
from efficientnetv2.metrics.classification import SizeMetrics


def _train(step, px, seconds, waited, *, images=32, **hyperparameters):
    return {
        "kind": "train", "step": step, "epoch": step / 10, "image_size": px, "train_s": seconds, "data_wait_s": waited,
        "images_per_s": images / seconds, **hyperparameters,
    }  # fmt: skip


def _val(step, top1):
    return {"kind": "val", "step": step, "epoch": step / 10, "top1": top1, "macro_f1": top1}


# Two stages: 10 s with 64 images, of which 1 s waiting; 20 s with 64, of which 6 s waiting.
HISTORY = [
    _train(10, 64, 4.0, 1.0), _val(10, 0.2), _train(20, 64, 6.0, 0.0), _val(20, 0.3),
    _train(30, 128, 10.0, 2.0), _train(40, 128, 10.0, 4.0), _val(40, 0.5),
]  # fmt: skip


def test_stage_costs_by_hand():
    small, large = stage_costs(HISTORY)
    assert (small.image_size, small.epochs, small.seconds, small.top1) == (64, 2.0, 10.0, 0.3)
    assert (large.image_size, large.epochs, large.seconds, large.top1) == (128, 2.0, 20.0, 0.5)
    assert (small.images_per_s, large.images_per_s) == pytest.approx((6.4, 3.2))
    assert (small.data_wait_fraction, large.data_wait_fraction) == pytest.approx((0.1, 0.3))


def test_stage_of_the_same_size_with_other_regularization_is_separate():
    rows = [_train(10, 64, 4.0, 0.0, dropout=0.1), _train(20, 64, 4.0, 0.0, dropout=0.2)]
    first, second = stage_costs(rows)
    assert first.top1 is second.top1 is None, "no validation within"
    assert second.epochs == 1.0


def test_hyperparameters_that_always_change_give_no_stages():
    assert stage_costs([_train(step, 64 + step, 1.0, 0.0) for step in range(13)]) == ()
    assert stage_costs([]) == ()
    assert stage_costs([{"kind": "train", "step": 1, "epoch": 1.0, "loss": 2.0}]) == (), "history of an older version"


def test_top1_over_training_time():
    """4 s at the first validation, 10 s at the second, 30 s at the third, without time for validation."""
    assert top1_over_time(HISTORY) == [(4.0, 0.2), (10.0, 0.3), (30.0, 0.5)]
    assert top1_over_time([_val(10, 0.2)]) == []


def test_bar_lengths_are_the_stage_seconds():
    (ax,) = draw_costs({"": stage_costs(HISTORY)}).axes
    working, waiting = ([bar.get_width() for bar in bars] for bars in ax.containers)
    assert working == pytest.approx([9.0, 14.0])
    assert waiting == pytest.approx([1.0, 6.0])
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["1: 64 px", "2: 128 px"]
    assert draw_costs({"": ()}) is None


def test_bars_of_several_runs_are_labeled():
    costs = {"fixed": stage_costs(HISTORY[4:]), "growing": stage_costs(HISTORY)}
    (ax,) = draw_costs(costs).axes
    labels = [tick.get_text() for tick in ax.get_yticklabels()]
    assert labels == ["fixed, 1: 128 px", "growing, 1: 64 px", "growing, 2: 128 px"]


def test_each_run_has_a_line_over_its_training_time():
    (ax,) = draw_top1_over_time({"fixed": HISTORY[4:], "growing": HISTORY, "none": []}).axes
    fixed, growing = ax.lines
    assert fixed.get_xydata().tolist() == [[20.0, 50.0]]
    assert growing.get_xydata().tolist() == [[4.0, 20.0], [10.0, 30.0], [30.0, 50.0]]
    assert ax.get_xlabel() == "seconds of training"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["fixed", "growing"]
    assert draw_top1_over_time({"none": []}) is None


def test_single_run_has_its_stages_marked():
    (ax,) = draw_top1_over_time({"": HISTORY}).axes
    assert [text.get_text() for text in ax.texts] == ["64 px", "128 px"]
    assert [text.xy[0] for text in ax.texts] == [0.0, 10.0]


def test_long_runs_use_hours():
    rows = [_train(10, 64, 7200.0, 0.0), _val(10, 0.5)]
    (ax,) = draw_top1_over_time({"": rows}).axes
    assert ax.get_xlabel() == "hours of training"
    assert ax.lines[0].get_xydata().tolist() == [[2.0, 50.0]]


def _panels(figure):
    return [ax.get_title(loc="left") for ax in figure.axes]


def _epoch_row(epoch, **values):
    return {"kind": "train", "epoch": epoch, "loss": 1.0 - epoch / 10, **values}


def test_panels_are_loss_validation_and_changed_hyperparameters():
    rows = [_epoch_row(e, image_size=128 + 32 * e, dropout=0.2, randaugment=5.0 + e, mixup_alpha=0.0) for e in range(3)]
    rows.append({"kind": "val", "epoch": 3, "top1": 0.5, "macro_f1": 0.4})
    figure = draw_training_curves(rows)
    assert _panels(figure) == ["loss", "validation", "image px", "RandAugment"]
    drawn = [[line.get_xydata().tolist() for line in ax.lines] for ax in figure.axes]
    assert drawn == [
        [[[0, 1.0], [1, 0.9], [2, 0.8]]],
        [[[3, 0.5]], [[3, 0.4]]],
        [[[0, 128], [1, 160], [2, 192]]],
        [[[0, 5], [1, 6], [2, 7]]],
    ]
    assert constant_hyperparameters(rows) == {"dropout": 0.2}


def test_empty_history_gives_no_plot():
    assert draw_training_curves([]) is None
    assert draw_training_curves([{"kind": "train", "epoch": 0.0}]) is None


def test_missing_and_non_finite_values_are_skipped():
    rows = [_epoch_row(0, lr=None, drop_path=None), *(_epoch_row(epoch, lr=float("nan")) for epoch in (1, 2))]
    rows.append({"kind": "train", "epoch": 3.0, "loss": float("inf")})
    rows.append({"kind": "val", "epoch": 2.0, "top1": None, "macro_f1": 0.4})
    assert _panels(draw_training_curves(rows)) == ["loss", "validation"]


def test_validation_panel_names_the_images():
    def title(*points):
        rows = [{"kind": kind, "epoch": e, "top1": 0.5, "num_images": n} for e, (kind, n) in enumerate(points)]
        return _panels(draw_training_curves(rows))[0]

    assert mentions(title(("val", 512), ("val", 512), ("val", 689)), "512", "689", "val")
    assert title(("val", 300), ("val", 300)) == "validation (val, 300 images)"
    with_minival = title(("minival", 90), ("minival", 90), ("val", 689))
    assert "minival, 90 images" in with_minival
    assert "val, 689 images" in with_minival


POINTS = tuple(
    SizeMetrics(px, top1, top1 - 0.1, top1 + 0.1, top1, 100.0) for px, top1 in ((96, 0.6), (128, 0.8), (160, 0.8))
)


def _curve(**changes):
    fields = {"points": POINTS, "own_px": 128, "trained_px": 128, "role": "may select"}
    return SizeCurve(**(fields | changes))


def test_size_advice_names_the_smallest_of_equal_sizes():
    assert mentions(_curve().advice, "128", "effnetv2 convert")
    assert "convert" not in _curve(is_ensemble=True).advice, "it takes one model"


def test_sizes_of_evaluation_images_give_no_advice():
    advice = _curve(role="shown").advice
    assert "128" not in advice
    assert "optimistic" in advice


def test_size_advice_names_the_size_that_minival_selected():
    assert mentions(_curve(role="selected", own_px=160).advice, "160")


@pytest.mark.parametrize(
    ("trained_px", "marks"), [(128, ["model file, training"]), (96, ["model file", "training"]), (None, ["model file"])]
)
def test_model_and_training_size_are_marked(trained_px, marks):
    (ax,) = draw_sizes(_curve(trained_px=trained_px)).axes
    assert [text.get_text() for text in ax.texts] == marks
    assert ax.lines[0].get_xydata().tolist() == [[96, 60], [128, 80], [160, 80]]
