"""Estimated time of a run, computed by hand from its parts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.messages import mentioning
from tests.recipes import with_overrides

from efficientnetv2.training.microbatch import MicrobatchPlan
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.training.resolve_image_sizes import settings_by_size
from efficientnetv2.training.run_estimate import estimate_run, steps_by_size
from efficientnetv2.training.run_setup import ImageCounts
from efficientnetv2.training.time_budget import LengthBudget
from efficientnetv2.training.timing import LinearCost, StepTiming, StepTimings
from efficientnetv2.utils.errors import InputError

# 10 and 30 ms per image, in steps of 8.
RATES = StepTimings(
    compile_s=50.0,
    steps=(
        StepTiming(64, begin_s=1.0, each_s=0.08, memory_bytes=100),
        StepTiming(128, begin_s=2.0, each_s=0.24, memory_bytes=300),
    ),
    curve=LinearCost(begin_s=0.5, each_s=0.01),
    predictions=LinearCost(begin_s=0.5, each_s=0.08),
    checkpoints=LinearCost(begin_s=0.2, each_s=0.25),
    checkpoint_bytes=1000,
    model_s=0.1,
    model_bytes=250,
)
COUNTS = ImageCounts(48, 30)
TWO_SIZES = "progressive={stages: 2, image_size: {start: 64, end: 128}}"


def recipe(*settings: str):
    return with_overrides(get_recipe("quick"), [TWO_SIZES, "batch_size=8", "epochs=10", "compile=false", *settings])


def whole(one, *, images: int = 48, val_images: int = 30, minival_images: int = 0, **more):
    return estimate_run(one, RATES, ImageCounts(images, val_images, minival_images), **more)


def test_estimate_of_a_run_of_two_stages():
    """10 epochs of 48 images are 60 steps of 8: 30 at 64 px and 30 at 128 px, each with a slower first step.

    Validations after every epoch of 6 steps but the last, 9 in all, with 30 images: 0.8 s each. A checkpoint per stage:
    0.7 s. Final predictions of val: 2.9 s. The model file: 0.1 s.
    """
    run = whole(recipe(), microbatches=MicrobatchPlan({64: 4, 128: 2}))
    assert [(stage.image_size, stage.steps) for stage in run.stages] == [(64, 30), (128, 30)]
    assert [stage.seconds for stage in run.stages] == pytest.approx([1 + 30 * 0.08, 2 + 30 * 0.24])
    assert [stage.images_per_s for stage in run.stages] == pytest.approx([100, 100 / 3])
    assert run.others_s == pytest.approx(
        {"validation": 7.2, "checkpoints": 0.7, "final evaluation": 2.9, "model file": 0.1}
    )
    assert run.seconds == pytest.approx(3.4 + 9.2 + 7.2 + 0.7 + 2.9 + 0.1)
    assert run.disk_bytes == {"checkpoints": 2000, "model file": 250}
    assert run.memory_bytes == 300


def test_minival_is_validated_in_full_and_adds_the_best_weights():
    """10 validations of 100 images, 1.5 s each. Both checkpoints have weights of 250 bytes more.

    At the end a temperature is fitted on the predictions of the 100 images: 8.5 s.
    """
    run = whole(recipe("minival=100"), minival_images=100)
    assert run.others_s == pytest.approx(
        {"validation": 15.0, "checkpoints": 0.7, "final evaluation": 2.9, "model file": 0.1, "temperature": 8.5}
    )
    assert run.disk_bytes == {"checkpoints": 2500, "model file": 250}


def test_ghost_batches_per_pass_are_at_most_those_of_a_step():
    run = whole(recipe("ghost_batch_size=4"), microbatches=MicrobatchPlan({64: 4, 128: 1}))
    assert [stage.microbatches for stage in run.stages] == [2, 1]


def test_stage_fractions_are_counted():
    plan = "progressive={stages: 2, stage_fractions: [3, 1], image_size: {start: 64, end: 128}}"
    assert [stage.steps for stage in whole(recipe(plan)).stages] == [45, 15]


def test_random_order_counts_the_drawn_stages():
    """1,000 draws of two sizes, equal to those of the schedule."""
    drawn = recipe(
        "progressive={stages: 2, order: random, seed: 3, image_size: {start: 64, end: 128}}",
        "batch_size=1", "epochs=10",
    )  # fmt: skip
    plan = drawn.progressive
    small = sum(plan.at(step, total_steps=1000).image_size == 64 for step in range(1000))
    run = whole(drawn, images=100)
    assert [(stage.image_size, stage.steps) for stage in run.stages] == [(64, small), (128, 1000 - small)]
    assert 400 < small < 600


def test_many_random_steps_are_estimated_from_a_sample():
    plan = recipe("progressive={stages: 2, order: random, seed: 3, image_size: {start: 64, end: 128}}").progressive
    counted = steps_by_size(plan, 100_000, [64, 128])
    assert sum(steps for _, _, steps in counted) == 100_000
    assert all(abs(steps - 50_000) < 5_000 for _, _, steps in counted), "a thousand draws: three deviations"


@pytest.mark.parametrize("stages", [1, 2])
def test_continuous_ramp_is_interpolated_between_measured_sizes(stages):
    """The mean square of 64 to 128 px is 9,557, so 0.151 s, between 0.08 s at 4,096 and 0.24 s at 16,384."""
    growing = recipe(f"progressive={{stages: {stages}, image_size: {{start: 64, end: 128, continuous: true}}}}")
    sizes = {setting.image_size for setting in settings_by_size(growing)}
    measured = replace(RATES, steps=tuple(rate for rate in RATES.steps if rate.image_size in sizes))
    run = estimate_run(growing, measured, ImageCounts(8000, 30))
    steps = sum(stage.steps for stage in run.stages)
    expected = 0.08 + 0.16 * ((64**2 + 64 * 128 + 128**2) / 3 - 64**2) / (128**2 - 64**2)
    training = sum(stage.seconds for stage in run.stages) - 3
    assert steps == 10_000
    assert training / steps == pytest.approx(expected, rel=0.01)


def test_long_stages_have_more_checkpoints():
    """Stages of 1 + 600 x 0.08 = 49 s and 2 + 600 x 0.24 = 146 s, a checkpoint per minute: 0 + 2 and the two ends."""
    run = whole(recipe("epochs=200", "checkpoint_minutes=1"))
    assert run.others_s["checkpoints"] == pytest.approx(0.2 + 4 * 0.25)
    assert run.disk_bytes["checkpoints"] == 3000, "two are kept, and one is being written"
    assert whole(recipe("checkpoint_minutes=0")).others_s["checkpoints"] == pytest.approx(0.2 + 60 * 0.25)


def test_validations_use_a_sample_and_final_predictions_all_images():
    run = whole(recipe("val_max_images=20", "val_interval_epochs=100"), val_images=500)
    assert run.others_s["validation"] == pytest.approx(0.5 + 0.2)
    assert run.others_s["final evaluation"] == pytest.approx(0.5 + 40)


def test_compiling_is_a_separate_item():
    assert "compiling" not in whole(recipe()).others_s
    assert whole(recipe("compile=true")).others_s["compiling"] == 50.0


@pytest.mark.parametrize("minutes", [0.5, 2.0, 90.0])
def test_epochs_fit_into_the_time_limit(minutes):
    """The run takes almost all of the time. 3 % are reserved."""
    epochs = LengthBudget(recipe(), COUNTS, minutes).epochs(RATES)
    taken = whole(recipe(f"epochs={epochs}")).seconds
    assert taken <= minutes * 60 * 0.971
    longer = whole(recipe(f"epochs={1.01 * epochs + 1}")).seconds
    assert longer > minutes * 60 * 0.97


def test_too_short_time_limit_is_rejected():
    """Two first steps 3.32 s, one validation 0.8 s, two checkpoints 0.7 s, final predictions 2.9 s, model 0.1 s.

    In total 7.82 s, and 3 % of the time are reserved.
    """
    with pytest.raises(InputError, match=mentioning("minutes", "0.1", "0.14")):
        LengthBudget(recipe(), COUNTS, 0.1).epochs(RATES)
    assert LengthBudget(recipe(), COUNTS, 0.14).epochs(RATES)


def test_time_limit_in_the_error_includes_time_already_used():
    """A cache has used half a minute. Four processes share predictions, but neither their start nor a single group.

    Two first steps 3.32 s, one validation 0.5 + 0.3 / 4 s, two checkpoints 0.7 s, final predictions 0.5 + 2.4 / 4 s,
    the model 0.1 s: 30 + 5.795 / 0.97 s.
    """
    with pytest.raises(InputError, match=mentioning("minutes", "0.59", "0.6", "0.5")):
        LengthBudget(recipe(), COUNTS, 0.59, 30.0, 4).epochs(RATES)
    assert LengthBudget(recipe(), COUNTS, 0.6, 30.0, 4).epochs(RATES)
    epochs = LengthBudget(recipe(), COUNTS, 2.5, 30.0, 4).epochs(RATES)
    assert whole(recipe(f"epochs={epochs}")).seconds > 120, "more than one alone could do"


@pytest.mark.parametrize(("processes", "share"), [(1, 1.0), (2, 0.5), (3, 0.5), (4, 0.25), (5, 0.25)], ids="{}".format)
def test_ghost_batches_of_a_step_are_not_divided_among_processes(processes, share):
    """One of three processes has two of four ghost batches, and the others wait. Predictions are shared evenly."""
    shared = RATES.shared(processes, 4)
    assert [rate.each_s for rate in shared.steps] == pytest.approx([0.08 * share, 0.24 * share])
    assert shared.predictions.each_s == pytest.approx(0.08 / processes)
    one = recipe("ghost_batch_size=2")
    asked = LengthBudget(one, COUNTS, None, at_once=processes).minutes_for(3000, RATES)
    alike = estimate_run(recipe("ghost_batch_size=2", "epochs=500"), shared, COUNTS)
    assert 60 * asked * 0.97 == pytest.approx(alike.seconds)


@pytest.mark.parametrize(
    ("whole_s", "setting"),
    [({"compile_s": 100.0}, "compile=true"), ({"model_s": 100.1}, "compile=false")],
    ids=["compiling", "model file"],
)
def test_work_that_is_not_shared_reduces_the_time_of_all_processes(whole_s, setting):
    """All four wait 100 s. With so much more time (3 % are reserved) they take the same steps."""

    def epochs(minutes, one, rates):
        return LengthBudget(one, COUNTS, minutes, at_once=4).epochs(rates)

    shorter = epochs(3.0, recipe(), RATES)
    longer = 3.0 + 100 / 0.97 / 60
    assert epochs(longer, recipe(setting), replace(RATES, **whole_s)) == shorter
    assert epochs(longer, recipe(), RATES) > shorter


def test_temperature_predicts_minival_once_more():
    """0.5 s and 0.08 s per image. With less than 30 images no temperature is fitted."""
    assert whole(recipe(), minival_images=100).others_s["temperature"] == pytest.approx(0.5 + 8)
    assert "temperature" not in whole(recipe(), minival_images=29).others_s
    assert "temperature" not in whole(recipe()).others_s


def test_embedding_validation_images_is_counted():
    assert whole(recipe(), val_images=50).others_s["unknown images"] == pytest.approx(0.5 + 0.5)
    assert whole(recipe(), val_images=5_000).others_s["unknown images"] == pytest.approx(0.5 + 10)
    assert "unknown images" not in whole(recipe(), val_images=49).others_s


def test_final_predictions_are_counted_at_the_largest_candidate_size():
    """96 px takes 2.25 times the time of 64 px."""
    plain = whole(recipe("eval_image_size=64", "minival=0.5"), minival_images=100).others_s
    tried = whole(
        recipe("eval_image_size=64", "eval_image_size_candidates=[96]", "minival=0.5"), minival_images=100
    ).others_s
    for name in ("final evaluation", "temperature"):
        assert tried[name] == pytest.approx(2.25 * plain[name])
    assert tried["evaluation sizes"] == pytest.approx((1 + 2.25) * 8.5)


def test_json_has_the_parts_of_the_estimate():
    plain = whole(recipe()).to_json()
    assert plain["steps"] == 60
    assert plain["epochs"] == pytest.approx(10)
    assert plain["seconds"] == pytest.approx(
        sum(stage["seconds"] for stage in plain["stages"]) + sum(plain["others_s"].values())
    )
    assert set(plain["stages"][0]) == {
        "image_size", "steps", "images_per_s", "seconds", "microbatches", "memory_bytes",
    }  # fmt: skip


def test_first_step_of_a_size_is_counted_once():
    """Sizes of 64, 128, 128 px: only the first step of each size is slower."""
    three = recipe("progressive={stages: 3, size_multiple: 64, image_size: {start: 64, end: 128}}")
    assert [three.progressive.stage(index).image_size for index in range(3)] == [64, 128, 128]
    first, second, third = (stage.seconds for stage in whole(three).stages)
    assert [first, second, third] == pytest.approx([1 + 20 * 0.08, 2 + 20 * 0.24, 20 * 0.24])
