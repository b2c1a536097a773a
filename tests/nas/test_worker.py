"""Workers: progress of a study, and trials that fail repeatedly."""

from __future__ import annotations

import time
from datetime import timedelta
from types import SimpleNamespace

import pytest
from filelock import FileLock, Timeout
from tests.log_lines import logged_lines
from tests.messages import each_mentions, mentions
from tests.nas.test_study import PLAN, storage
from tests.nas.tiny import SPACE

from efficientnetv2.nas import samplers
from efficientnetv2.nas import worker as work
from efficientnetv2.nas.objective import Measurement
from efficientnetv2.nas.results import load_rows
from efficientnetv2.nas.storage import import_optuna
from efficientnetv2.nas.study import StudyConfig, create_study, open_study
from efficientnetv2.nas.trial import EpochDone, StepTimed, Trained, TrialResult, to_measurement
from efficientnetv2.nas.trial_queue import MAX_ATTEMPTS, TrialLease
from efficientnetv2.nas.worker import SearchCallback, Worker
from efficientnetv2.utils.benchmark import TimingStats


class RecordedTrials(SearchCallback):
    """Record the measurements of ended trials."""

    def __init__(self) -> None:
        self.found: list[Measurement] = []

    def on_trial_end(self, number: int, found: Measurement, reward: float, *, pruned: bool) -> None:
        self.found.append(found)


def worker(tmp_path, *, trials: int, done: int = 0, running: int = 0, plan: StudyConfig = PLAN) -> Worker:
    one = storage(tmp_path)
    create_study(one, "study", plan, trials=trials)
    study = open_study(one, "study")
    for place in range(done):
        study.optuna_study.add_trial(import_optuna().trial.create_trial(value=place / 10))
    for _ in range(running):
        study.optuna_study.ask()
    proxy = SimpleNamespace(recipe=PLAN.recipe, num_classes=3, seeds=(0,))
    return Worker(study, proxy, RecordedTrials())


@pytest.mark.parametrize(("running", "left"), [(0, 60.0), (1, 30.0), (2, 20.0), (6, 10.0)])
def test_remaining_time_is_shared_by_all_workers(running, left, tmp_path, monkeypatch):
    """Six trials of 10 s are left. This worker takes the next trial, unless the others run all of them."""
    one = worker(tmp_path, trials=8, done=2, running=running)
    monkeypatch.setattr(work, "_durations", lambda trials: [10.0 for _ in trials])
    standing = one.progress()
    assert (standing.done, standing.running, standing.target, standing.best) == (2, running, 8, 0.1)
    assert standing.seconds_left == pytest.approx(left)


def test_remaining_time_is_unknown_before_the_first_trial(tmp_path):
    standing = worker(tmp_path, trials=8).progress()
    assert (standing.best, standing.seconds_left) == (None, None)


def test_trial_that_crashes_its_workers_is_not_started_again(tmp_path):
    """After ten attempts without an end, the trial has failed."""
    one = worker(tmp_path, trials=1)
    claim = one.queue.acquire(1)
    trial_id = one.queue.trial_id(0)
    one.storage.rdb.set_trial_user_attr(trial_id, "begun", MAX_ATTEMPTS)
    one.queue.give_back(TrialLease(0, MAX_ATTEMPTS + 1, claim.token))
    claim = one.queue.acquire(1)
    assert claim.attempt == MAX_ATTEMPTS + 1
    assert mentions(one._run(claim), "10", "worker")
    (found,) = one.callback.found
    assert mentions(found.failure, "10", "worker")
    (trial,) = one.storage.rdb.get_all_trials(one.queue.study_id)
    assert (trial.state.name, trial.value) == ("COMPLETE", 0.0)


def test_trial_that_another_worker_took_over_and_ended_is_stopped(tmp_path):
    """For example after a minute without a network connection."""
    one = worker(tmp_path, trials=1)
    claim = one.queue.acquire(1)
    architecture = PLAN.space.decode(one._suggest(claim))
    assert one._on_message(claim, architecture, StepTimed(TimingStats(0.1, 0.1, 0.1, 5), None, measured=True))
    assert one._on_message(claim, architecture, EpochDone(0, 1.0, 0.5))
    trial_id = one.queue.trial_id(0)
    theirs = one.storage.rdb.get_trial(trial_id).user_attrs["worker"] | {"token": "theirs"}
    one.storage.rdb.set_trial_user_attr(trial_id, "worker", theirs)
    one.study.optuna_study.tell(0, state=import_optuna().trial.TrialState.PRUNED)
    assert not one._on_message(claim, architecture, EpochDone(0, 2.0, 0.6))
    found = to_measurement(architecture, one.task, TrialResult(None, (), None, None))
    messages = logged_lines()
    one._finish(claim, found, result=TrialResult(None, (), None, None))
    assert one.callback.found == []
    assert each_mentions(messages, ("0", "trial", "worker"))


def continues_after(one: Worker, claim: TrialLease, epochs: list[EpochDone]) -> list[bool]:
    """Whether the trial continues after each point of its curve."""
    architecture = PLAN.space.decode(one._suggest(claim))
    one._on_message(claim, architecture, StepTimed(TimingStats(0.1, 0.1, 0.1, 5), None, measured=True))
    return [one._on_message(claim, architecture, point) for point in epochs]


def with_curves(one: Worker, count: int = 10) -> None:
    """Add finished trials with a reward of at least 1 at every point: lower trials are pruned."""
    for place in range(count):
        curve = {1: 1.0 + place, 2: 1.0 + place}
        trial = import_optuna().trial.create_trial(value=1.0 + place, intermediate_values=curve)
        one.study.optuna_study.add_trial(trial)


CURVE = [EpochDone(0, 1.0, 0.1), EpochDone(0, 2.0, 0.1), EpochDone(0, 3.0, 0.1)]


@pytest.mark.parametrize("before", [1, 2, 4])
def test_restarted_trial_is_pruned_by_its_own_second_point(before, tmp_path):
    """The points before it was killed belong to another attempt."""
    one = worker(tmp_path, trials=11)
    with_curves(one)
    claim = one.queue.acquire(11)
    trial_id = one.queue.trial_id(claim.number)
    for point in range(1, before + 1):
        one.storage.rdb.set_trial_intermediate_value(trial_id, point, 99.0)
    one.queue.give_back(claim)
    again = one.queue.acquire(11)
    assert continues_after(one, again, CURVE) == [True, False, True]
    saved = one.storage.rdb.get_trial(trial_id).intermediate_values
    assert saved[2] < 1, "by which the next ones are judged"


@pytest.mark.parametrize(("seeds", "seed", "goes_on"), [((0,), 0, True), ((0, 1), 0, False), ((0, 1), 1, True)])
def test_only_the_last_run_of_a_trial_cannot_be_pruned_at_its_end(seeds, seed, goes_on, tmp_path):
    """Pruning at the end of an earlier run saves the later runs."""
    one = worker(tmp_path, trials=11)
    one.task.seeds = seeds
    with_curves(one)
    epochs = float(PLAN.recipe.epochs)
    points = [EpochDone(0, epochs / 2, 0.1), EpochDone(seed, epochs, 0.1)]
    assert continues_after(one, one.queue.acquire(11), points) == [True, goes_on]


def test_pruned_architecture_is_not_trained_again(tmp_path, monkeypatch):
    one = worker(tmp_path, trials=2)
    first, second = one.queue.acquire(2), one.queue.acquire(2)
    monkeypatch.setattr(one, "_suggest", lambda claim: SPACE.encode(SPACE.backbone))
    for claim in (first, second):
        trial_id = one.queue.trial_id(claim.number)
        one.storage.rdb.set_trial_user_attr(trial_id, "point", list(SPACE.encode(SPACE.backbone)))
    tries = []
    step = StepTimed(TimingStats(0.1, 0.1, 0.1, 5), None, measured=True)
    stopped = TrialResult(step, (EpochDone(0, 1.0, 0.1),), None, None)
    monkeypatch.setattr(work, "run_trial", lambda *given, **more: tries.append(1) or stopped)
    monkeypatch.setattr(one.callback, "on_trial_start", lambda *given: None, raising=False)
    for claim in (first, second):
        assert one._run(claim) is None
    assert len(tries) == 1
    rows = load_rows(one.study)
    assert [(row.end, row.same_as) for row in rows] == [("stopped", None), ("stopped", 0)]
    assert rows[0].measurement == rows[1].measurement


def test_workers_sample_one_after_the_other(tmp_path, monkeypatch):
    """No worker samples the trial of another worker, and the heartbeat continues meanwhile."""
    one = worker(tmp_path, trials=2)
    claim = one.queue.acquire(2)
    within: list[bool] = []

    def suggested(trial: object, space: object) -> tuple[int, ...]:
        other = FileLock(one.storage._lock.lock_file)
        try:
            other.acquire(timeout=0)
        except Timeout:
            within.append(True)
        else:
            other.release()
            within.append(False)
        return SPACE.encode(SPACE.backbone)

    monkeypatch.setattr(samplers, "suggest", suggested)
    assert one._suggest(claim) == SPACE.encode(SPACE.backbone)
    assert within == [True]


def test_sampler_uses_the_current_trials(tmp_path):
    """Optuna caches trials, but another worker may have changed them."""
    one = worker(tmp_path, trials=3, plan=PLAN.model_copy(update={"sampler": "tpe"}))
    seen: list[int] = []
    inner = one.study.optuna_study.sampler.before_trial

    def before(study, trial):
        seen.append(len(study._get_trials(deepcopy=False, use_cache=True)))
        inner(study, trial)

    one.study.optuna_study.sampler.before_trial = before
    for _ in range(2):
        one._suggest(one.queue.acquire(3))
    assert seen == [1, 2]


def test_failed_trials_do_not_count_for_the_usual_duration(tmp_path):
    """Three trials of one second failed, one took a minute: none would end within half a minute."""
    one = worker(tmp_path, trials=9)
    for seconds, failure in [(1, "crashed: at once")] * 3 + [(60, None)]:
        attributes = {} if failure is None else {"failure": failure}
        trial = import_optuna().trial.create_trial(value=0.0 if failure else 0.5, user_attrs=attributes)
        trial.datetime_complete = trial.datetime_start + timedelta(seconds=seconds)
        one.study.optuna_study.add_trial(trial)
    one.callback.on_progress = lambda standing: None
    assert one._usual_s() == pytest.approx(60, abs=1)
    assert not one.work(until=time.monotonic() + 30)


def test_every_tenth_trial_is_measured(tmp_path, monkeypatch):
    measured, step = [], StepTimed(TimingStats(0.1, 0.1, 0.1, 5), None, measured=True)

    def trial(architecture, task, *, verify, on_message):
        measured.append(verify)
        return TrialResult(step, (EpochDone(0, 1.0, 0.1),), None, None)

    monkeypatch.setattr(work, "run_trial", trial)
    monkeypatch.setattr(Worker, "_same_architecture", lambda *_: None)
    one = worker(tmp_path, trials=11)
    for _ in range(11):
        one._run(one.queue.acquire(11))
    assert [number for number, verify in enumerate(measured) if verify] == [0, 10]


def test_first_trial_is_run_even_if_reading_the_images_took_all_the_time(tmp_path, monkeypatch):
    step = StepTimed(TimingStats(0.1, 0.1, 0.1, 5), None, measured=True)
    monkeypatch.setattr(work, "run_trial", lambda *_, **facts: TrialResult(step, (EpochDone(0, 1.0, 0.1),), None, None))
    one = worker(tmp_path, trials=3)
    one.callback.on_progress = lambda standing: None
    assert not one.work(until=time.monotonic() - 1)
    assert one.progress().done == 1


def test_study_gets_the_rewards_by_which_it_samples_and_prunes(tmp_path, monkeypatch):
    """A step takes twice the 10 ms of the backbone, which has 1,000 parameters."""
    step, epoch = StepTimed(TimingStats(0.02, 0.02, 0.02, 5), None, measured=True), EpochDone(0, 1.0, 0.4)

    def trial(architecture, task, *, verify, on_message):
        assert [on_message(step), on_message(epoch)] == [True, True]
        return TrialResult(step, (epoch,), Trained((0.5,), 0))

    monkeypatch.setattr(work, "run_trial", trial)
    one = worker(tmp_path, trials=1)
    assert one._run(one.queue.acquire(1)) is None
    (found,) = one.callback.found
    costs = 2**-0.07 * (found.parameters / 1000) ** -0.05
    (saved,) = one.storage.rdb.get_all_trials(one.queue.study_id)
    assert saved.value == pytest.approx(0.5 * costs)
    assert saved.intermediate_values == pytest.approx({1: 0.4 * costs})
