"""Schedules against Algorithm 1 worked by hand (arXiv:2104.00298, Algorithm 1 and Table 6; google/automl)."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from efficientnetv2.base.errors import InputError
from efficientnetv2.progressive import Progressive, Ramp, paper, released


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
        (
            "efficientnetv2_m",
            [128, 212, 296, 380],
            [5, 10, 15, 20],
            [0, 0.06667, 0.13333, 0.2],
            [0.1, 0.2, 0.3, 0.4],
        ),
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
def test_paper_preset_grows_as_algorithm_1(name, sizes, magnitudes, mixups, dropouts):
    stages = [paper(name).stage(i) for i in range(4)]
    assert [s.image_px for s in stages] == sizes
    assert [s.randaugment for s in stages] == pytest.approx(magnitudes, abs=1e-3)
    assert [s.mixup_alpha for s in stages] == pytest.approx(mixups, abs=1e-4)
    assert [s.dropout for s in stages] == pytest.approx(dropouts, abs=1e-4)
    assert {s.drop_path for s in stages} == {0.2}


@pytest.mark.parametrize(
    ("name", "sizes", "magnitudes", "mixes", "dropout"),
    [
        # 128 + (train_px - 128) (stage + 1)/4; linspace(5, final, 4); linspace(0, final, 4); fixed
        ("efficientnetv2_s", [171, 214, 257, 300], [5, 6.6667, 8.3333, 10], [0, 0, 0, 0], 0.2),
        ("efficientnetv2_m", [192, 256, 320, 384], [5, 8.3333, 11.6667, 15], [0, 0.06667, 0.13333, 0.2], 0.3),
        ("efficientnetv2_l", [192, 256, 320, 384], [5, 10, 15, 20], [0, 0.16667, 0.33333, 0.5], 0.4),
        ("efficientnetv2_b0", [144, 160, 176, 192], None, [0, 0, 0, 0], 0.2),
    ],
)
def test_released_preset_starts_a_quarter_up_and_keeps_dropout(name, sizes, magnitudes, mixes, dropout):
    stages = [released(name).stage(i) for i in range(4)]
    assert [s.image_px for s in stages] == sizes
    if magnitudes is None:
        assert {s.randaugment for s in stages} == {None}
    else:
        assert [s.randaugment for s in stages] == pytest.approx(magnitudes, abs=1e-3)
    assert [s.mixup_alpha for s in stages] == pytest.approx(mixes, abs=1e-4)
    assert [s.cutmix_alpha for s in stages] == pytest.approx(mixes, abs=1e-4)
    assert {s.dropout for s in stages} == {dropout}


def test_each_stage_gets_a_quarter_of_the_steps():
    """Algorithm 1: M stages of N/M steps each."""
    plan = paper("efficientnetv2_s")
    sizes = [plan.at(step, steps=40).image_px for step in range(40)]
    assert sizes == [128] * 10 + [185] * 10 + [243] * 10 + [300] * 10


@given(stages=st.integers(1, 7), steps=st.integers(7, 200))
def test_stages_differ_by_at_most_one_step_and_begin_where_said(stages, steps):
    plan = Progressive(image_px=Ramp(64, 64 + 32 * (stages - 1)), stages=stages)
    sizes = [plan.at(step, steps=steps).image_px for step in range(steps)]
    lengths = [sizes.count(size) for size in sorted(set(sizes))]
    assert len(lengths) == stages
    assert max(lengths) - min(lengths) <= 1
    firsts = [sum(lengths[:stage]) for stage in range(stages)]
    assert [plan.at(first, steps=steps) for first in firsts] == [plan.stage(stage) for stage in range(stages)]


def test_a_continuous_ramp_moves_at_every_step_and_a_stepwise_one_does_not():
    plan = Progressive(image_px=Ramp(96, 128), stages=2, dropout=Ramp(0.0, 0.4, continuous=True))
    settings = [plan.at(step, steps=5) for step in range(5)]
    assert [s.dropout for s in settings] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert [s.image_px for s in settings] == [96, 96, 96, 128, 128]


def test_sizes_are_rounded_to_the_multiple():
    plan = Progressive(image_px=Ramp(64, 128), stages=4, px_multiple=32)
    assert [plan.stage(i).image_px for i in range(4)] == [64, 96, 96, 128]


def test_one_stage_is_training_at_the_last_setting_throughout():
    plan = paper("efficientnetv2_m")
    fixed = replace(plan, stages=1)
    assert all(fixed.at(step, steps=9) == plan.stage(3) for step in range(9))


def test_the_last_setting_is_that_of_the_last_step():
    plan = Progressive(image_px=Ramp(64, 128, continuous=True), stages=4, dropout=Ramp(0, 0.3))
    assert plan.last == plan.at(99, steps=100)
    assert (plan.last.image_px, plan.last.dropout) == (128, 0.3)


def test_any_named_quantity_can_grow():
    plan = Progressive(image_px=64, stages=3, others={"weight_decay": Ramp(0.0, 0.1), "noise": 2})
    assert [plan.stage(i).others["weight_decay"] for i in range(3)] == pytest.approx([0, 0.05, 0.1])
    assert {plan.stage(i).others["noise"] for i in range(3)} == {2}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image_px": 64, "stages": 0}, "stages is 0"),
        ({"image_px": 64, "dropout": 1.2}, "dropout is 1.2"),
        ({"image_px": Ramp(0, 64)}, "image_px is 0"),
        ({"image_px": 64, "randaugment": Ramp(5, 31)}, "randaugment is 31"),
        ({"image_px": 64, "px_multiple": 0}, "px_multiple is 0"),
    ],
)
def test_a_schedule_out_of_range_cannot_be_made(wrong, message):
    with pytest.raises(ValidationError, match=message):
        Progressive(**wrong)


def test_more_stages_than_steps_are_refused():
    with pytest.raises(InputError, match="4 stages do not fit into 3 steps"):
        paper("efficientnetv2_s").at(0, steps=3)


def test_a_step_outside_the_run_is_refused():
    with pytest.raises(InputError, match="step 40 lies outside a run of 40 steps"):
        paper("efficientnetv2_s").at(40, steps=40)


def test_an_unknown_network_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'efficientnetv2_s'"):
        paper("efficientnetv2-s")


def test_scaling_to_another_last_size_keeps_the_proportions():
    plan = Progressive(image_px=Ramp(64, 128), stages=3, px_multiple=32).with_image_px(300)
    assert [plan.stage(i).image_px for i in range(3)] == [150, 225, 300]
