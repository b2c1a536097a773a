"""A run with a time limit ends in time on a machine whose pace changes, and a resumed run takes the planned steps."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from efficientnetv2.base.step_plan import StepPlan
from efficientnetv2.training import time_limit
from efficientnetv2.training.changes import with_settings
from efficientnetv2.training.job import Job
from efficientnetv2.training.moments import stage_ends, validation_steps
from efficientnetv2.training.pace import Rate, Rates, StepRate
from efficientnetv2.training.recipes import named
from efficientnetv2.training.time_limit import Pacer, TimeLimit

RATES = Rates(
    compile_s=0.0,
    steps=(StepRate(64, 0.0, 0.5, 100), StepRate(96, 0.0, 1.1, 200), StepRate(128, 0.0, 2.0, 300)),
    curve=Rate(0.0, 0.02),
    answers=Rate(0.0, 0.02),
    checkpoints=Rate(0.0, 0.2),
    checkpoint_bytes=1000,
    model_s=0.1,
    model_bytes=250,
)
IMAGES, VAL_IMAGES, REPORT_S = 480, 100, 8.0


class Clock:
    """A monotonic clock that work moves on, on a machine whose pace depends on the time.

    Args:
        slower: What the time of work is multiplied by at a time, as a share of the limit.
        limit_s: Limit of the run.
    """

    def __init__(self, slower, limit_s: float) -> None:
        self.now, self.limit_s, self._slower = 1000.0, limit_s, slower
        self.begun = self.now

    def monotonic(self) -> float:
        return self.now

    def work(self, seconds: float) -> float:
        took = seconds * self._slower((self.now - self.begun) / self.limit_s)
        self.now += took
        return took


def job_of(epochs: float, batch: int, *settings: str) -> Job:
    sizes = "progressive={stages: 3, px_multiple: 32, image_px: {start: 64, end: 128}}"
    recipe = with_settings(
        named("quick"), [sizes, f"batch_images={batch}", f"epochs={epochs}", "compile=false", *settings]
    )
    folder = SimpleNamespace(amend_beginning=lambda **changed: None)
    return Job(recipe, None, range(IMAGES), range(VAL_IMAGES), None, folder, None, workers=0)


def simulated(slower, minutes: float, *, epochs: float, ahead: int = 0) -> float:
    """Seconds of a run over its limit, whose first step comes after a fifth of it."""
    limit_s = 60 * minutes
    clock = Clock(slower, limit_s)
    limit = TimeLimit(limit_s, REPORT_S, RATES, began=clock.now)
    job = job_of(epochs, 8)
    plan = StepPlan(job.length.steps)
    time_limit.time.monotonic = clock.monotonic
    pacer = Pacer(job, plan, limit)
    clock.now += limit_s / 5
    ends, validations = stage_ends(job.recipe, job.length), sorted(validation_steps(job.recipe, job.length))
    pacer.plan(0, begins=True)
    step, positions = 0, [0.0]
    while step < plan.steps:
        px = job.recipe.progressive.at(plan.scheduled_step(step), steps=plan.scheduled).image_px
        plan.requested = max(plan.requested, min(plan.steps, step + 1 + ahead))
        pacer.stepped(px, clock.work(RATES.step_s(px)))
        step += 1
        positions.append(plan.position(step))
        if plan.passes(step, validations):
            pacer.validated(clock.work(RATES.curve.seconds(VAL_IMAGES)))
        if step < plan.steps:
            pacer.plan(step)
        if plan.passes(step, ends):
            clock.work(RATES.checkpoints.each_s)
    assert positions[-1] == plan.scheduled
    clock.work(RATES.answers.seconds(VAL_IMAGES) + RATES.model_s + REPORT_S)
    return (clock.now - clock.begun) / limit_s


PACES = {
    "as measured": lambda share: 1.0,
    "slower throughout": lambda share: 2.0,
    "faster throughout": lambda share: 0.5,
    "slower from the middle on": lambda share: 1.0 if share < 0.5 else 2.0,
    "faster from the middle on": lambda share: 2.0 if share < 0.5 else 1.0,
    "slower at the end": lambda share: 1.0 if share < 0.85 else 2.0,
    "faster at the end": lambda share: 1.0 if share < 0.85 else 0.5,
    "busy now and then": lambda share: 2.0 if int(share * 20) % 2 else 1.0,
}


@pytest.fixture
def own_clock(monkeypatch):
    monkeypatch.setattr(time_limit, "time", SimpleNamespace(monotonic=None))


@pytest.mark.parametrize("minutes", [4, 15, 60])
@pytest.mark.parametrize("pace", PACES)
def test_a_run_ends_in_time_whatever_the_machine_does(pace, minutes, own_clock):
    """The recipe's steps are those of the measured pace: 80 % of the time less what comes after the steps."""
    step_s = sum(RATES.step_s(px) for px in (64, 96, 128)) / 3
    epochs = 0.7 * 60 * minutes / step_s / (IMAGES / 8)
    assert 0.9 <= simulated(PACES[pace], minutes, epochs=epochs) <= 1.1


@pytest.mark.parametrize("pace", PACES)
def test_images_that_are_read_ahead_do_not_make_a_run_late(pace, own_clock):
    assert 0.9 <= simulated(PACES[pace], 15, epochs=7, ahead=8) <= 1.1


@pytest.mark.parametrize("epochs", [1.0, 100.0])
def test_a_first_guess_that_is_far_off_does_not_matter(epochs, own_clock):
    assert 0.9 <= simulated(PACES["as measured"], 15, epochs=epochs) <= 1.1
