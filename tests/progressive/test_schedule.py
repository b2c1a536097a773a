"""A number of steps that changes under way: positions in the schedule go on without a jump."""

from __future__ import annotations

import itertools

import pytest

from efficientnetv2.progressive.schedule import Revision, StepPlan


@pytest.mark.parametrize("steps", [1, 3, 7, 1000, 350_000])
def test_without_a_revision_each_step_is_its_own_position(steps):
    plan = StepPlan(steps)
    some = range(0, steps, max(1, steps // 500))
    assert [plan.position(step) for step in some] == list(some)
    assert [plan.scheduled_step(step) for step in some] == list(some)
    assert plan.position(steps) == steps
    assert plan.steps == steps


@pytest.mark.parametrize("steps", [41, 60, 100, 333])
def test_positions_never_jump_whatever_is_revised(steps):
    plan = StepPlan(100, [Revision(30, 33, 200), Revision(40, 40, steps)])
    positions = [plan.position(step) for step in range(plan.steps + 1)]
    rates = [after - before for before, after in itertools.pairwise(positions)]
    assert positions[0] == 0
    assert positions[-1] == 100
    assert all(rate > 0 for rate in rates)
    assert positions[33] == pytest.approx(33)
    assert {round(rate, 6) for rate in rates[40:]} == {round((100 - positions[40]) / (steps - 40), 6)}


@pytest.mark.parametrize("revised", [Revision(10, 10, 15), Revision(10, 12, 500)])
def test_every_moment_of_the_schedule_is_passed_once(revised):
    """Of several that one step passes, once for all."""
    plan, moments = StepPlan(100, [revised]), [5, 11, 50, 51, 100]
    passed = [step for step in range(1, plan.steps + 1) if plan.passes(step, moments)]
    for moment in moments:
        assert sum(plan.position(step - 1) < moment - 1e-6 <= plan.position(step) for step in passed) == 1
    assert passed[-1] == plan.steps


def test_a_plan_is_the_same_from_what_was_written_down():
    plan = StepPlan(100, [Revision(30, 33, 200), Revision(40, 40, 60), Revision(50, 50, 50)])
    again = StepPlan.from_json(100, plan.to_json())
    assert [again.position(step) for step in range(61)] == [plan.position(step) for step in range(61)]
    assert (again.steps, again.revisions) == (50, plan.revisions)


@pytest.mark.parametrize("wrong", [Revision(5, 5, 80), Revision(45, 45, 44)])
def test_what_has_been_done_is_not_revised(wrong):
    plan = StepPlan(100, [Revision(40, 40, 60)])
    with pytest.raises(ValueError, match="does not follow"):
        plan.revise(wrong)
