"""Runs with a time limit end in time at any speed, and resumed runs take the planned steps."""

from __future__ import annotations

import itertools
import shutil
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.recipes import with_overrides

from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.models import model_file as modelfile
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.progressive.schedule import Revision, StepPlan
from efficientnetv2.training import time_limit, validation
from efficientnetv2.training import trainer as training
from efficientnetv2.training.callbacks import Callback
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.training.run_setup import RunSetup, validation_steps
from efficientnetv2.training.time_limit import Pacer, TimeLimit
from efficientnetv2.training.timing import LinearCost, StepTiming, StepTimings
from efficientnetv2.training.trainer import Trainer
from efficientnetv2.training.validation import Validator

RATES = StepTimings(
    compile_s=0.0,
    steps=(StepTiming(64, 0.0, 0.5, 100), StepTiming(96, 0.0, 1.1, 200), StepTiming(128, 0.0, 2.0, 300)),
    curve=LinearCost(0.0, 0.02),
    predictions=LinearCost(0.0, 0.02),
    checkpoints=LinearCost(0.0, 0.2),
    checkpoint_bytes=1000,
    model_s=0.1,
    model_bytes=250,
)
IMAGES, VAL_IMAGES, REPORT_S = 480, 100, 8.0
STEPPED = Pacer.stepped
BEGINNING = {
    "command": "effnetv2 train",
    "auto_choices": [],
    "preprocessing": Preprocessing(image_size=48).to_json(),
    "microbatches": {},
}


class Clock:
    """A simulated monotonic clock of a machine whose speed changes.

    Args:
        slower: Factor on the time of work, as a function of the fraction of the limit.
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


def job_of(epochs: float, batch: int, *settings: str) -> RunSetup:
    sizes = "progressive={stages: 3, size_multiple: 32, image_size: {start: 64, end: 128}}"
    recipe = with_overrides(
        get_recipe("quick"), [sizes, f"batch_size={batch}", f"epochs={epochs}", "compile=false", *settings]
    )
    folder = SimpleNamespace(amend_beginning=lambda **changed: None)
    return RunSetup(recipe, None, range(IMAGES), range(VAL_IMAGES), None, folder, None, workers=0)


def simulated(
    slower,
    minutes: float,
    *,
    epochs: float,
    ahead: int = 0,
    batch: int = 8,
    validation: float = 1.0,
    thins: bool = False,
) -> float:
    """End of a run as a fraction of its limit. Its first step is after a fifth of the limit."""
    limit_s = 60 * minutes
    clock = Clock(slower, limit_s)
    limit = TimeLimit(limit_s, REPORT_S, RATES, began=clock.now)
    job = job_of(epochs, batch)
    plan = StepPlan(job.length.steps)
    time_limit.time.monotonic = clock.monotonic
    pacer, validating_s = Pacer(job, plan, limit, thins=thins), 0.0
    clock.now += limit_s / 5
    ends = job.recipe.progressive.stage_ends(job.length.steps)
    validations = sorted(validation_steps(job.recipe, job.length))
    pacer.plan(0, begins=True)
    step, positions = 0, [0.0]
    while step < plan.steps:
        px = job.recipe.progressive.at(plan.scheduled_step(step), total_steps=plan.scheduled).image_size
        plan.requested = max(plan.requested, min(plan.steps, step + 1 + ahead))
        pacer.stepped(px, clock.work(RATES.step_s(px)))
        step += 1
        positions.append(plan.position(step))
        # Without minival, as here, the evaluation of the run takes the place of the last validation.
        if step < plan.steps and plan.passes(step, validations) and not pacer.skips_validation(step):
            seconds = clock.work(validation * RATES.curve.seconds(VAL_IMAGES))
            pacer.validated(seconds)
            validating_s += seconds
        if step < plan.steps:
            pacer.plan(step)
        if plan.passes(step, ends):
            clock.work(RATES.checkpoints.each_s)
    assert positions[-1] == plan.scheduled
    assert validating_s <= 0.15 * limit_s or not thins
    # Final predictions and embeddings.
    clock.work(validation * (RATES.predictions.seconds(VAL_IMAGES) + RATES.curve.seconds(VAL_IMAGES)))
    clock.work(RATES.model_s + REPORT_S)
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
def test_run_ends_in_time_at_any_speed(pace, minutes, own_clock):
    """The steps of the recipe take 80 % of the time at the measured speed, without the final work."""
    step_s = sum(RATES.step_s(px) for px in (64, 96, 128)) / 3
    epochs = 0.7 * 60 * minutes / step_s / (IMAGES / 8)
    assert 0.9 <= simulated(PACES[pace], minutes, epochs=epochs) <= 1.1


def test_run_with_many_times_the_estimated_steps_ends_in_time(own_clock):
    """While it was measured the machine was 12 times slower. Near the end it is slow again, as another program runs."""

    def pace(share):
        return 1 / 12 if share < 0.55 else 1.0

    assert 0.9 <= simulated(pace, 1, epochs=0.1) <= 1.1


@pytest.mark.parametrize("pace", PACES)
def test_prefetched_images_do_not_delay_the_end(pace, own_clock):
    assert 0.9 <= simulated(PACES[pace], 15, epochs=7, ahead=8) <= 1.1


def test_run_resumes_before_the_step_that_its_last_plan_holds_from(own_clock):
    """Workers have read ahead, so a plan of step 90 holds from step 122, and the run was stopped at step 100."""
    clock = Clock(PACES["as measured"], 900)
    time_limit.time.monotonic = clock.monotonic
    job = job_of(10, 8)
    plan = StepPlan(job.length.steps, [Revision(90, 122, 500)])
    pacer = Pacer(job, plan, TimeLimit(900, REPORT_S, RATES, began=clock.now), 100.0, thins=False)
    pacer.plan(100, begins=True)
    assert [revision.step for revision in plan.revisions] == [122, 122]
    assert plan.revisions[-1].decided == 100


@pytest.mark.parametrize("epochs", [1.0, 100.0])
def test_wrong_initial_estimate_does_not_change_the_end(epochs, own_clock):
    assert 0.9 <= simulated(PACES["as measured"], 15, epochs=epochs) <= 1.1


@pytest.mark.parametrize("thins", [False, True])
@pytest.mark.parametrize("slower", [1.0, 2.0, 6.0])
def test_run_with_frequent_validations_ends_in_time(slower, thins, own_clock):
    """150 validations, one every two steps. If all takes six times as long, there is time for only some of them.

    Validations that do not select a model are skipped then.
    """
    assert 0.9 <= simulated(lambda share: slower, 15, epochs=150, batch=240, thins=thins) <= 1.1


def test_slow_validations_do_not_reserve_time_for_the_report(own_clock):
    """Each validation starts workers again, which the report does not."""
    assert 0.9 <= simulated(PACES["as measured"], 4, epochs=2.3, validation=5.0) <= 1.1


def test_validation_of_the_initial_model_takes_no_time_from_the_final_predictions(own_clock):
    clock, planned = Clock(PACES["as measured"], 600.0), []
    time_limit.time.monotonic = clock.monotonic
    for weights in ("none", "pretrained"):
        job = job_of(2, 8, "minival=100", f"weights={weights}", "head_init=linear_probe", "val_interval_epochs=2")
        job = replace(job, val=range(10_000), minival=range(100))
        plan = StepPlan(job.length.steps)
        pacer = Pacer(job, plan, TimeLimit(600.0, REPORT_S, RATES, began=clock.now))
        pacer.validated(RATES.curve.seconds(100))
        pacer.plan(0, begins=True)
        planned.append(plan.steps)
    assert planned[0] == planned[1]


@pytest.fixture
def timed(class_folders, small_run):
    """A function that sets up a run of two stages with a time limit."""
    dataset = load_dataset(class_folders)
    train, val = (dataset.select(np.arange(first, 48, 2)) for first in (0, 1))

    def of(name: str) -> RunSetup:
        return small_run(name, train, val, "epochs=12", "val_interval_epochs=4")

    return of


def limit_of(step_s: float, steps: int) -> TimeLimit:
    """A limit for about so many steps. All else takes no time."""
    rates = replace(
        RATES,
        steps=(StepTiming(32, 0.0, step_s, 1), StepTiming(48, 0.0, step_s, 1)),
        curve=LinearCost(0.0, 1e-9),
        predictions=LinearCost(0.0, 1e-9),
        checkpoints=LinearCost(0.0, 0.0),
        model_s=0.0,
    )
    return TimeLimit(steps * step_s, 0.0, rates, began=0.0)


class Copying(Callback):
    """Copies the run folder after a step."""

    def __init__(self, folder, to, after: int) -> None:
        self.folder, self.to, self.after = folder, to, after

    def on_log(self, done, *facts):
        if done == self.after:
            shutil.copytree(self.folder, self.to)


class Paces:
    """A clock with a random time for each step, as on a shared machine."""

    def __init__(self, monkeypatch, seed: int) -> None:
        drawn = np.random.default_rng(seed)
        self.now = 0.0

        def stepped(pacer, image_size, seconds):
            took = float(drawn.uniform(0.5, 2.0))
            self.now += took
            STEPPED(pacer, image_size, took)

        monkeypatch.setattr(Pacer, "stepped", stepped)
        monkeypatch.setattr(time_limit, "time", SimpleNamespace(monotonic=lambda: self.now))


def weights_of(job: RunSetup) -> dict[str, bytes]:
    stored = modelfile.load(job.folder.model_file).state_dict()
    return {name: tensor.numpy().tobytes() for name, tensor in stored.items()}


def test_resumed_run_takes_the_planned_steps_with_the_same_bits(timed, tmp_path, monkeypatch):
    first = timed("first")
    first.folder.begin(first.recipe, first.train, BEGINNING)
    Paces(monkeypatch, seed=1)
    watch = Copying(first.folder.path, tmp_path / "second", after=36)
    Trainer(first, [watch], limit=limit_of(1.0, 60)).fit()
    planned = first.folder.beginning()["revisions"]
    assert len({steps for _, _, steps in planned}) > 2, "the pace has changed the plan"
    assert any(decided > 36 for decided, _, _ in planned)

    second = timed("second")
    shutil.copy(first.folder.beginning_file, second.folder.beginning_file)
    clock = Paces(monkeypatch, seed=2)
    Trainer(second, limit=limit_of(1.0, 60)).fit(resume=True)
    assert clock.now < 50, "it goes on from a checkpoint"
    assert second.folder.beginning()["revisions"] == planned
    assert weights_of(second) == weights_of(first)
    facts = ("kind", "step", "loss", "lr", "image_size", "top1")
    rows = [[row.get(one) for one in facts] for row in first.folder.history()]
    assert [[row.get(one) for one in facts] for row in second.folder.history()] == rows


def test_learning_rate_and_stages_change_without_jumps(timed, monkeypatch):
    one = timed("run")
    one.folder.begin(one.recipe, one.train, BEGINNING)
    Paces(monkeypatch, seed=3)
    Trainer(one, limit=limit_of(1.0, 80)).fit()
    rows = [row for row in one.folder.history() if row["kind"] == "train"]
    sizes = [row["image_size"] for row in rows]
    assert sizes == sorted(sizes)
    assert set(sizes) == {32, 48}
    falling = [row["lr"] for row in rows[np.argmax([row["lr"] for row in rows]) :]]
    falls = [before - after for before, after in itertools.pairwise(falling)]
    assert min(falls) >= 0
    assert max(falls) < max(falling) / 8
    assert falling[-1] < max(falling) / 20, "the schedule has come to its end"


def test_resumed_run_has_the_remaining_time(timed, tmp_path, monkeypatch):
    """The checkpoint has the used time. The run resumes 4 s later."""
    first = timed("first")
    first.folder.begin(first.recipe, first.train, BEGINNING)
    clock = Paces(monkeypatch, seed=1)
    watch = Copying(first.folder.path, tmp_path / "second", after=36)
    Trainer(first, [watch], limit=limit_of(1.0, 60)).fit()

    second = timed("second")
    kept = torch.load(max(second.folder.checkpoints.glob("*.pt")), weights_only=False)
    limit = replace(limit_of(1.0, 60), began=clock.now)
    clock.now += 4
    before = clock.now
    Trainer(second, limit=limit).fit(resume=True)
    assert kept["used_s"] > 10
    assert clock.now - before == pytest.approx(60 - 4 - kept["used_s"], abs=6)


class _Slow(Callback):
    def on_step_end(self, done, *facts):
        time.sleep(0.05)


def test_time_of_callbacks_and_of_frequent_checkpoints_counts_and_that_of_validations_does_not(timed, monkeypatch):
    """Validations and the checkpoints of stages are planned apart."""
    one, took = timed("run"), []
    one = replace(one, recipe=with_overrides(one.recipe, ["checkpoint_minutes=0"]))
    one.folder.begin(one.recipe, one.train, BEGINNING)
    monkeypatch.setattr(Pacer, "stepped", lambda pacer, image_size, seconds: took.append(seconds))
    save, validate = training.save_checkpoint, Validator.validate
    monkeypatch.setattr(training, "save_checkpoint", lambda *words: (time.sleep(0.1), save(*words)))
    monkeypatch.setattr(Validator, "validate", lambda self: (time.sleep(1.5), validate(self)))
    Trainer(one, [_Slow()], limit=replace(limit_of(0.25, 16), began=time.monotonic())).fit()
    ordinary = sorted(took[1:])
    assert ordinary[len(ordinary) // 2] > 0.15
    assert max(took[1:]) < 1.5


def test_each_step_is_measured_separately(timed, monkeypatch):
    """The sum of the steps is at most the time of the run. Time since the first step would exceed it."""
    one, took = timed("run"), []
    one.folder.begin(one.recipe, one.train, BEGINNING)
    monkeypatch.setattr(Pacer, "stepped", lambda pacer, image_size, seconds: took.append(seconds))
    limit, began = replace(limit_of(0.5, 40), began=time.monotonic()), time.perf_counter()
    Trainer(one, limit=limit).fit()
    assert len(took) > 10
    assert sum(took) < time.perf_counter() - began


@pytest.mark.parametrize(("minival", "thins"), [("null", True), ("auto", True), ("6", False)])
def test_only_validations_that_select_nothing_may_be_left_out(minival, thins, class_folders, small_run):
    dataset = load_dataset(class_folders)
    train, val, held = (dataset.select(np.arange(first, 48, step)) for first, step in ((0, 2), (1, 4), (3, 8)))
    one = small_run("run", train, val, "epochs=12", f"minival={minival}", minival=None if minival == "null" else held)
    run = Trainer(one, limit=limit_of(1.0, 60))
    run._restore(False)
    assert run.context.pacer._thins is thins


def test_validations_are_left_out_while_they_would_take_over_a_tenth_of_the_time(timed, monkeypatch):
    """One took 10 s, so none follows within 90 s."""
    clock, seconds, due = SimpleNamespace(now=0.0), iter((0.0, 10.0)), []
    monkeypatch.setattr(time_limit, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(validation, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))
    run = Trainer(timed("run"), limit=limit_of(1.0, 60))
    run._restore(False)
    run.validator.validate()
    run.setup.folder.close()
    for waited in (89.0, 91.0):
        clock.now = waited
        run.validator.schedule(12)
        due.append(run.validator.is_due)
    assert due == [False, True]
