"""Schedules against Algorithm 1 by hand (arXiv:2104.00298, Algorithm 1 and Table 6; google/automl)."""

import itertools
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.messages import mentioning

from efficientnetv2.progressive.presets import paper_schedule, released_schedule
from efficientnetv2.progressive.schedule import RANGES, ProgressiveSchedule, Ramp, Revision, StepPlan
from efficientnetv2.utils.errors import InputError


@pytest.mark.parametrize(
    ("name", "sizes", "magnitudes", "mixups", "dropouts"),
    [
        # 128 + 172 i/3; 5 + 10 i/3; 0.1 + 0.2 i/3
        (
            "efficientnetv2_s",
            [128, 185, 243, 300],
            [5, 8.3333, 11.6667, 15],
            [0, 0, 0, 0],
            [0.1, 0.16667, 0.23333, 0.3],
        ),
        # 128 + 252 i/3; 5 + 15 i/3; 0.2 i/3; 0.1 + 0.3 i/3
        ("efficientnetv2_m", [128, 212, 296, 380], [5, 10, 15, 20], [0, 0.06667, 0.13333, 0.2], [0.1, 0.2, 0.3, 0.4]),
        # 128 + 252 i/3; 5 + 20 i/3; 0.4 i/3; 0.1 + 0.4 i/3
        (
            "efficientnetv2_l",
            [128, 212, 296, 380],
            [5, 11.6667, 18.3333, 25],
            [0, 0.13333, 0.26667, 0.4],
            [0.1, 0.23333, 0.36667, 0.5],
        ),
    ],
)
def test_paper_schedule_equals_algorithm_1(name, sizes, magnitudes, mixups, dropouts):
    stages = [paper_schedule(name).stage(i) for i in range(4)]
    assert [s.image_size for s in stages] == sizes
    assert [s.randaugment for s in stages] == pytest.approx(magnitudes, abs=1e-3)
    assert [s.mixup_alpha for s in stages] == pytest.approx(mixups, abs=1e-4)
    assert [s.dropout for s in stages] == pytest.approx(dropouts, abs=1e-4)
    assert {s.drop_path for s in stages} == {0.2}


@pytest.mark.parametrize(
    ("name", "sizes", "magnitudes", "mixes", "dropout"),
    [
        # 128 + (train_px - 128) (stage + 1)/4; linspace(5, final, 4); linspace(0, final, 4); constant
        ("efficientnetv2_s", [171, 214, 257, 300], [5, 6.6667, 8.3333, 10], [0, 0, 0, 0], 0.2),
        ("efficientnetv2_m", [192, 256, 320, 384], [5, 8.3333, 11.6667, 15], [0, 0.06667, 0.13333, 0.2], 0.3),
        ("efficientnetv2_l", [192, 256, 320, 384], [5, 10, 15, 20], [0, 0.16667, 0.33333, 0.5], 0.4),
        ("efficientnetv2_xl", [192, 256, 320, 384], [5, 10, 15, 20], [0, 0.16667, 0.33333, 0.5], 0.4),
        ("efficientnetv2_b0", [144, 160, 176, 192], None, [0, 0, 0, 0], 0.2),
    ],
)
def test_released_schedule_starts_at_a_quarter_with_constant_dropout(name, sizes, magnitudes, mixes, dropout):
    stages = [released_schedule(name).stage(i) for i in range(4)]
    assert [s.image_size for s in stages] == sizes
    if magnitudes is None:
        assert {s.randaugment for s in stages} == {None}
    else:
        assert [s.randaugment for s in stages] == pytest.approx(magnitudes, abs=1e-3)
    assert [s.mixup_alpha for s in stages] == pytest.approx(mixes, abs=1e-4)
    assert [s.cutmix_alpha for s in stages] == pytest.approx(mixes, abs=1e-4)
    assert {s.dropout for s in stages} == {dropout}


def test_each_stage_has_a_quarter_of_the_steps():
    """Algorithm 1: M stages of N/M steps each."""
    plan = paper_schedule("efficientnetv2_s")
    sizes = [plan.at(step, total_steps=40).image_size for step in range(40)]
    assert sizes == [128] * 10 + [185] * 10 + [243] * 10 + [300] * 10


@given(stages=st.integers(1, 7), steps=st.integers(7, 200))
def test_stage_lengths_differ_by_at_most_one_step(stages, steps):
    plan = ProgressiveSchedule(image_size=Ramp(64, 64 + 32 * (stages - 1)), stages=stages)
    sizes = [plan.at(step, total_steps=steps).image_size for step in range(steps)]
    lengths = [sizes.count(size) for size in sorted(set(sizes))]
    assert len(lengths) == stages
    assert max(lengths) - min(lengths) <= 1
    firsts = [sum(lengths[:stage]) for stage in range(stages)]
    assert [plan.at(first, total_steps=steps) for first in firsts] == [plan.stage(stage) for stage in range(stages)]


def test_continuous_ramp_changes_at_every_step_and_a_stepwise_ramp_per_stage():
    plan = ProgressiveSchedule(image_size=Ramp(96, 128), stages=2, dropout=Ramp(0.0, 0.4, continuous=True))
    settings = [plan.at(step, total_steps=5) for step in range(5)]
    assert [s.dropout for s in settings] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert [s.image_size for s in settings] == [96, 96, 96, 128, 128]


def test_sizes_are_rounded_to_the_multiple():
    plan = ProgressiveSchedule(image_size=Ramp(64, 128), stages=4, size_multiple=32)
    assert [plan.stage(i).image_size for i in range(4)] == [64, 96, 96, 128]


def test_single_stage_has_the_last_values():
    plan = paper_schedule("efficientnetv2_m")
    fixed = replace(plan, stages=1)
    assert all(fixed.at(step, total_steps=9) == plan.stage(3) for step in range(9))


def test_continuous_ramp_increases_within_a_single_stage():
    plan = ProgressiveSchedule(image_size=Ramp(8, 64, continuous=True), dropout=Ramp(0.1, 0.3))
    assert plan.stage(0) == plan.at(0, total_steps=100)
    assert (plan.stage(0).image_size, plan.stage(0).dropout) == (8, 0.3)


def test_last_values_are_those_of_the_last_step():
    plan = ProgressiveSchedule(image_size=Ramp(64, 128, continuous=True), stages=4, dropout=Ramp(0, 0.3))
    assert plan.last == plan.at(99, total_steps=100)
    assert (plan.last.image_size, plan.last.dropout) == (128, 0.3)


def test_extra_values_can_be_ramps():
    plan = ProgressiveSchedule(image_size=64, stages=3, extra={"weight_decay": Ramp(0.0, 0.1), "noise": 2})
    assert [plan.stage(i).extra["weight_decay"] for i in range(3)] == pytest.approx([0, 0.05, 0.1])
    assert {plan.stage(i).extra["noise"] for i in range(3)} == {2}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image_size": 64, "stages": 0}, ("1", "stage")),
        ({"image_size": 64, "dropout": 1.2}, ("1.2", "dropout")),
        ({"image_size": (64, 128)}, ("image_size", "64", "128")),
        ({"image_size": 64, "dropout": [0, 0.3]}, ("0", "0.3", "dropout")),
        ({"image_size": Ramp(0, 64)}, ("image_size", "0")),
        ({"image_size": 64, "randaugment": Ramp(5, 31)}, ("31", "randaugment")),
        ({"image_size": 64, "size_multiple": 0}, ("size_multiple", "1")),
    ],
)
def test_schedule_out_of_range_is_rejected(wrong, message):
    with pytest.raises(ValidationError, match=mentioning(*message)):
        ProgressiveSchedule(**wrong)


@pytest.mark.parametrize("name", RANGES)
def test_decreasing_ramp_is_rejected(name):
    """Algorithm 1 begins with the minimum of each value."""
    start, end = (300, 128) if name == "image_size" else (0.5, 0.25)
    said = rf"{name} goes from {start} down to {end}: swap them \({{start: {end}, end: {start}}}\)"
    with pytest.raises(ValidationError, match=said):
        ProgressiveSchedule(**{"image_size": 64, "stages": 4, name: Ramp(start, end)})
    level = Ramp(start, start, continuous=True)
    assert getattr(ProgressiveSchedule(**{"image_size": 64, name: level}), name) == level


def test_extra_values_may_decrease():
    """Only the custom loop knows their meaning."""
    plan = ProgressiveSchedule(image_size=64, stages=2, extra={"temperature": Ramp(2, 1)})
    assert [plan.stage(i).extra["temperature"] for i in range(2)] == [2, 1]


def test_more_stages_than_steps_are_rejected():
    with pytest.raises(InputError, match=mentioning("4", "3", "stage")):
        paper_schedule("efficientnetv2_s").at(0, total_steps=3)


def test_step_outside_the_run_is_rejected():
    with pytest.raises(InputError, match=mentioning("40", "step")):
        paper_schedule("efficientnetv2_s").at(40, total_steps=40)


def test_unknown_architecture_suggests_the_nearest():
    with pytest.raises(InputError, match=mentioning("did you mean", "efficientnetv2_s")):
        paper_schedule("efficientnetv2-s")


def test_scaling_the_last_size_keeps_the_proportions():
    plan = ProgressiveSchedule(image_size=Ramp(64, 128), stages=3, size_multiple=32).with_image_size(300)
    assert [plan.stage(i).image_size for i in range(3)] == [150, 225, 300]


RANDOM = ProgressiveSchedule(stages=4, image_size=Ramp(128, 224), dropout=Ramp(0.1, 0.4), order="random")


def test_random_order_draws_stages_uniformly_with_their_regularization():
    """Table 13: the regularization belongs to the size."""
    drawn = [RANDOM.at(step, total_steps=4_000) for step in range(4_000)]
    sizes = [setting.image_size for setting in drawn]
    for px, dropout in ((128, 0.1), (160, 0.2), (192, 0.3), (224, 0.4)):
        assert sizes.count(px) == pytest.approx(1_000, abs=5 * (4_000 * 0.25 * 0.75) ** 0.5)
        assert {round(setting.dropout, 6) for setting in drawn if setting.image_size == px} == {dropout}


def test_random_order_needs_no_step_per_stage():
    """Stages are drawn with equal probability, so a short run may not have all."""
    assert [RANDOM.at(step, total_steps=2) for step in (0, 1)] == [RANDOM.at(step, total_steps=40) for step in (0, 1)]
    with pytest.raises(InputError, match=mentioning("2", "step")):
        RANDOM.at(2, total_steps=2)


def test_last_values_of_random_order_are_those_of_the_largest_size():
    assert RANDOM.last == RANDOM.stage(3)
    assert {RANDOM.at(steps - 1, total_steps=steps).image_size for steps in range(4, 40)} > {RANDOM.last.image_size}


def test_drawn_size_is_used_for_a_whole_turn():
    """44 draws in 350 epochs are 8 epochs each. Here 5 draws of 20 steps."""
    plan = replace(RANDOM, random_draws=5)
    sizes = [plan.at(step, total_steps=100).image_size for step in range(100)]
    assert all(len(set(sizes[first : first + 20])) == 1 for first in range(0, 100, 20))
    longer = replace(RANDOM, random_draws=60)
    assert len({longer.at(step, total_steps=60).image_size for step in range(60)}) == 4


def test_random_order_depends_only_on_the_seed():
    sizes = [
        [replace(RANDOM, seed=seed).at(step, total_steps=50).image_size for step in range(50)] for seed in (0, 0, 1)
    ]
    assert sizes[0] == sizes[1] != sizes[2]


def test_stage_fractions_set_the_lengths_of_stages():
    """3 : 1 of 100 steps."""
    plan = ProgressiveSchedule(stages=2, image_size=Ramp(32, 64), stage_fractions=(3, 1))
    assert [plan.at(step, total_steps=100).image_size for step in (0, 74, 75, 99)] == [32, 32, 64, 64]
    assert plan.weights == (0.75, 0.25)
    assert plan.stage_ends(100) == [75, 100]


@given(stage_fractions=st.lists(st.floats(0.01, 100), min_size=1, max_size=6), more=st.integers(0, 50))
def test_every_stage_has_a_step_for_any_fraction(stage_fractions, more):
    stages = len(stage_fractions)
    plan = ProgressiveSchedule(
        stages=stages, image_size=Ramp(1, 1 + 7 * (stages - 1)), stage_fractions=tuple(stage_fractions)
    )
    steps = stages + more
    sizes = [plan.at(step, total_steps=steps).image_size for step in range(steps)]
    assert len(set(sizes)) == stages
    assert sizes == sorted(sizes)
    assert plan.stage_ends(steps) == [step for step in range(1, steps) if sizes[step] != sizes[step - 1]] + [steps]


def test_equal_stages_end_as_in_algorithm_1():
    plan = paper_schedule("efficientnetv2_s")
    assert plan.stage_ends(40) == [10, 20, 30, 40]


def test_continuous_and_random_schedules_are_one_stage():
    growing = ProgressiveSchedule(stages=2, image_size=64, dropout=Ramp(0, 0.2, continuous=True))
    assert RANDOM.stage_ends(40) == growing.stage_ends(40) == [40]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"stage_fractions": (1, 2)}, "must have one value above 0 for each of 4 stages"),
        ({"stage_fractions": (1, 2, 3, 0)}, "must have one value above 0"),
        ({"stage_fractions": (1, 2, 3, float("nan"))}, "must have one value above 0"),
        ({"stage_fractions": (1, 2, 3, float("inf"))}, "must have one value above 0"),
        ({"order": "random", "stage_fractions": (1, 1, 1, 1)}, "need order .growing."),
        ({"order": "random", "dropout": Ramp(0, 1, continuous=True)}, "need order .growing."),
        ({"random_draws": 3}, "only order 'random' draws stages"),
        ({"order": "random", "random_draws": 0}, "greater than or equal to 1"),
    ],
)
def test_invalid_orders_are_rejected(changes, sentence):
    with pytest.raises(ValidationError, match=sentence):
        ProgressiveSchedule(**({"stages": 4, "image_size": Ramp(128, 224)} | changes))


def test_stages_of_equal_time_have_steps_inverse_to_the_step_time():
    """Steps of 1, 2 and 4 s in proportion 4 : 2 : 1, so 40, 20 and 10 of 70, 40 s each."""
    plan = ProgressiveSchedule(stages=3, image_size=Ramp(32, 64)).with_stage_times([1, 2, 4])
    sizes = [plan.at(step, total_steps=70).image_size for step in range(70)]
    assert [sizes.count(px) for px in (32, 48, 64)] == [40, 20, 10]


@given(
    stages=st.lists(st.tuples(st.floats(0.01, 1), st.floats(0.1, 1)), min_size=1, max_size=6),
    steps=st.integers(2_000, 4_000),
)
def test_each_stage_has_its_fraction_of_the_time(stages, steps):
    """Within one step, and four saved digits."""
    step_s, wanted = zip(*stages, strict=True)
    plan = ProgressiveSchedule(stages=len(stages), image_size=Ramp(1, 1 + 7 * (len(stages) - 1))).with_stage_times(
        step_s, wanted
    )
    ends = plan.stage_ends(steps)
    lengths = [end - first for first, end in zip([0, *ends], ends, strict=False)]
    seconds = [length * each for length, each in zip(lengths, step_s, strict=True)]
    for took, each, share in zip(seconds, step_s, wanted, strict=True):
        expected = sum(seconds) * share / sum(wanted)
        assert took == pytest.approx(expected, rel=0.005, abs=2 * max(step_s) + each)


@pytest.mark.parametrize(
    ("step_s", "stage_time", "name"),
    [([1, 2], None, "step_s"), ([1, 2, 0], None, "step_s"), ([1, 2, 3], [1, 2], "stage_time"),
     ([1, 2, 3], [1, 2, -1], "stage_time")],
)  # fmt: skip
def test_invalid_stage_times_are_rejected(step_s, stage_time, name):
    with pytest.raises(InputError, match=mentioning(name, "0", "3")):
        ProgressiveSchedule(stages=3, image_size=Ramp(32, 64)).with_stage_times(step_s, stage_time)


def test_scaled_sizes_are_at_least_one_pixel():
    """128 to 224 px scaled to 1 px would begin at 0.57, and scaled to 7 px at 4."""
    plan = ProgressiveSchedule(image_size=Ramp(128, 224), stages=2)
    assert [plan.with_image_size(1).stage(index).image_size for index in (0, 1)] == [1, 1]
    assert [plan.with_image_size(7).stage(index).image_size for index in (0, 1)] == [4, 7]


def test_scaled_continuous_ramp_is_continuous():
    """48 to 96 px scaled to end at 100: 50 to 100, with 75 in the middle."""
    scaled = ProgressiveSchedule(image_size=Ramp(48, 96, continuous=True)).with_image_size(100)
    assert scaled.continuous
    assert [scaled.at(step, total_steps=101).image_size for step in (0, 50, 100)] == [50, 75, 100]


@pytest.mark.parametrize("index", [-1, 4])
def test_invalid_stage_is_rejected(index):
    with pytest.raises(InputError, match=mentioning(index, "4", "0")):
        paper_schedule("efficientnetv2_s").stage(index)


@pytest.mark.parametrize("steps", [1, 3, 7, 1000, 350_000])
def test_without_a_revision_the_position_is_the_step(steps):
    plan = StepPlan(steps)
    some = range(0, steps, max(1, steps // 500))
    assert [plan.position(step) for step in some] == list(some)
    assert [plan.scheduled_step(step) for step in some] == list(some)
    assert plan.position(steps) == steps
    assert plan.steps == steps


@pytest.mark.parametrize("steps", [41, 60, 100, 333])
def test_positions_do_not_jump_for_any_revision(steps):
    plan = StepPlan(100, [Revision(30, 33, 200), Revision(40, 40, steps)])
    positions = [plan.position(step) for step in range(plan.steps + 1)]
    rates = [after - before for before, after in itertools.pairwise(positions)]
    assert positions[0] == 0
    assert positions[-1] == 100
    assert all(rate > 0 for rate in rates)
    assert positions[33] == pytest.approx(33)
    assert {round(rate, 6) for rate in rates[40:]} == {round((100 - positions[40]) / (steps - 40), 6)}


@pytest.mark.parametrize("revised", [Revision(10, 10, 15), Revision(10, 12, 500)])
def test_every_position_of_the_schedule_is_passed_once(revised):
    """A step that passes several positions counts once for all."""
    plan, moments = StepPlan(100, [revised]), [5, 11, 50, 51, 100]
    passed = [step for step in range(1, plan.steps + 1) if plan.passes(step, moments)]
    for moment in moments:
        assert sum(plan.position(step - 1) < moment - 1e-6 <= plan.position(step) for step in passed) == 1
    assert passed[-1] == plan.steps


def test_step_plan_is_read_back_equal_from_json():
    plan = StepPlan(100, [Revision(30, 33, 200), Revision(40, 40, 60), Revision(50, 50, 50)])
    again = StepPlan(100, [Revision(*one) for one in json.loads(json.dumps(plan.revisions))])
    assert [again.position(step) for step in range(61)] == [plan.position(step) for step in range(61)]
    assert (again.steps, again.revisions) == (50, plan.revisions)


@pytest.mark.parametrize("wrong", [Revision(5, 5, 80), Revision(45, 45, 44)])
def test_revision_of_past_steps_is_rejected(wrong):
    plan = StepPlan(100, [Revision(40, 40, 60)])
    with pytest.raises(ValueError, match="does not follow"):
        plan.revise(wrong)
