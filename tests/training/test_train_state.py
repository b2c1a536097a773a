"""After which steps a stage ends, a row is written, and the validation curve gets a point."""

from __future__ import annotations

from efficientnetv2.training.recipe_io import with_overrides
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.training.train_state import RunLength, log_steps, stage_ends, validation_steps


def recipe(*settings: str, stages: int = 2):
    plan = f"progressive={{stages: {stages}, image_size: {{start: 64, end: 128}}}}"
    return with_overrides(get_recipe("quick"), [plan, *settings])


def test_a_point_at_each_epoch_and_at_each_stages_end():
    """Two stages of 20 steps, epochs of 8: at 16 the stage ends in 4 steps, half an epoch, and waits no longer."""
    length = RunLength(40, 8.0)
    assert stage_ends(recipe(), length) == [20, 40]
    assert validation_steps(recipe(), length) == {8, 16, 20, 24, 32, 40}


def test_no_point_shortly_before_a_stage_ends():
    """Epochs of 9: at 18 and 36 the stage's end is less than half an epoch away."""
    assert validation_steps(recipe(), RunLength(40, 9.0)) == {9, 20, 27, 40}


def test_points_every_so_many_epochs():
    assert validation_steps(recipe("val_interval_epochs=2", stages=1), RunLength(40, 8.0)) == {16, 32, 40}


def test_epochs_of_less_than_a_step_are_looked_at_after_each():
    assert validation_steps(recipe(), RunLength(4, 0.1)) == {1, 2, 3, 4}


def test_a_run_whose_size_changes_all_the_time_is_one_stage():
    always = with_overrides(
        get_recipe("quick"),
        ["progressive={stages: 4, image_size: {start: 64, end: 128, continuous: true}}"],
    )
    assert stage_ends(always, RunLength(40, 8.0)) == [40]
    assert validation_steps(always, RunLength(40, 8.0)) == {8, 16, 24, 32, 40}


def test_a_row_after_every_step_of_a_short_run_and_about_200_of_a_long_one():
    """1,001 steps: every fifth, and the last of either stage, 501 (a half of them, rounded up) and 1,001."""
    assert log_steps(recipe(), RunLength(40, 8.0)) == set(range(1, 41))
    long = RunLength(1001, 8.0)
    assert log_steps(recipe(), long) == set(range(5, 1002, 5)) | set(stage_ends(recipe(), long))
    assert stage_ends(recipe(), long)[-1] == 1001
