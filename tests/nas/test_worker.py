"""How far a study is, and what a worker is told that fails again and again."""

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
from efficientnetv2.nas.results import rows_of
from efficientnetv2.nas.storage import MOST_BEGUN, Claim, Ledger, optuna
from efficientnetv2.nas.study import Plan, create, opened
from efficientnetv2.nas.trial import EpochTold, Outcome, StepTold, measurement
from efficientnetv2.nas.worker import Watch, Worker
from efficientnetv2.utils.timer import TimingStats


class Keeps(Watch):
    """Keeps what it is told of ended trials."""

    def __init__(self) -> None:
        self.found: list[Measurement] = []

    def ended(self, number: int, found: Measurement, reward: float, *, stopped: bool) -> None:
        self.found.append(found)


def worker(tmp_path, *, trials: int, done: int = 0, running: int = 0, plan: Plan = PLAN) -> Worker:
    one = storage(tmp_path)
    create(one, "study", plan, trials=trials)
    study = opened(one, "study")
    for place in range(done):
        study.study.add_trial(optuna().trial.create_trial(value=place / 10))
    for _ in range(running):
        study.study.ask()
    proxy = SimpleNamespace(recipe=PLAN.recipe, num_classes=3, seeds=(0,))
    return Worker(study, proxy, Ledger(one, "study"), Keeps())


@pytest.mark.parametrize(
    ("running", "left"),
    [(0, 60.0), (1, 30.0), (2, 20.0), (6, 10.0)],
)
def test_time_left_is_shared_by_all_that_work(running, left, tmp_path, monkeypatch):
    """Six trials of 10 s are left; whoever asks takes the next one, unless the others have them all."""
    one = worker(tmp_path, trials=8, done=2, running=running)
    monkeypatch.setattr(work, "_seconds", lambda trials: [10.0 for _ in trials])
    standing = one.standing()
    assert (standing.done, standing.running, standing.target, standing.best) == (2, running, 8, 0.1)
    assert standing.seconds_left == pytest.approx(left)


def test_before_the_first_trial_nobody_knows_how_long_it_takes(tmp_path):
    standing = worker(tmp_path, trials=8).standing()
    assert (standing.best, standing.seconds_left) == (None, None)


def test_a_trial_that_takes_its_workers_down_is_not_begun_again(tmp_path):
    """Begun ten times and never ended: its network has failed."""
    one = worker(tmp_path, trials=1)
    claim = one.ledger.claim(1)
    trial_id = one.ledger.id_of(0)
    one.storage.rdb.set_trial_user_attr(trial_id, "begun", MOST_BEGUN)
    one.ledger.give_back(Claim(0, MOST_BEGUN + 1, claim.token))
    claim = one.ledger.claim(1)
    assert claim.begun == MOST_BEGUN + 1
    assert mentions(one._one(claim), "10", "worker")
    (found,) = one.watch.found
    assert mentions(found.failure, "10", "worker")
    (trial,) = one.storage.rdb.get_all_trials(one.ledger.study_id)
    assert (trial.state.name, trial.value) == ("COMPLETE", 0.0)


def test_a_trial_that_another_worker_has_taken_over_and_ended_is_stopped(tmp_path):
    """As after a minute without the network, in which the others had the database."""
    one = worker(tmp_path, trials=1)
    claim = one.ledger.claim(1)
    network = PLAN.space.decode(one._decided(claim))
    assert one._told(claim, network, StepTold(TimingStats(0.1, 0.1, 0.1, 5), None, measured=True))
    assert one._told(claim, network, EpochTold(0, 1.0, 0.5))
    trial_id = one.ledger.id_of(0)
    theirs = one.storage.rdb.get_trial(trial_id).user_attrs["worker"] | {"token": "theirs"}
    one.storage.rdb.set_trial_user_attr(trial_id, "worker", theirs)
    one.opened.study.tell(0, state=optuna().trial.TrialState.PRUNED)
    assert not one._told(claim, network, EpochTold(0, 2.0, 0.6))
    found = measurement(network, one.proxy, Outcome(None, (), None, None))
    said = logged_lines()
    one._finish(claim, found, outcome=Outcome(None, (), None, None))
    assert one.watch.found == []
    assert each_mentions(said, ("0", "trial", "worker"))


def told_of(one: Worker, claim: Claim, epochs: list[EpochTold]) -> list[bool]:
    """Whether the trial goes on after each point of its curve."""
    network = PLAN.space.decode(one._decided(claim))
    one._told(claim, network, StepTold(TimingStats(0.1, 0.1, 0.1, 5), None, measured=True))
    return [one._told(claim, network, point) for point in epochs]


def with_curves(one: Worker, count: int = 10) -> None:
    """So many have ended, each with a reward of 1 and more at every point: below that a trial is hopeless."""
    for place in range(count):
        curve = {1: 1.0 + place, 2: 1.0 + place}
        trial = optuna().trial.create_trial(value=1.0 + place, intermediate_values=curve)
        one.opened.study.add_trial(trial)


CURVE = [EpochTold(0, 1.0, 0.1), EpochTold(0, 2.0, 0.1), EpochTold(0, 3.0, 0.1)]


@pytest.mark.parametrize("before", [1, 2, 4])
def test_a_trial_that_is_begun_again_is_judged_by_its_own_second_point(before, tmp_path):
    """Killed after so many points, all of them good: they are another attempt's."""
    one = worker(tmp_path, trials=11)
    with_curves(one)
    claim = one.ledger.claim(11)
    trial_id = one.ledger.id_of(claim.number)
    for point in range(1, before + 1):
        one.storage.rdb.set_trial_intermediate_value(trial_id, point, 99.0)
    one.ledger.give_back(claim)
    again = one.ledger.claim(11)
    assert told_of(one, again, CURVE) == [True, False, True]
    kept = one.storage.rdb.get_trial(trial_id).intermediate_values
    assert kept[2] < 1, "by which the next ones are judged"


@pytest.mark.parametrize(
    ("seeds", "seed", "goes_on"), [((0,), 0, True), ((0, 1), 0, False), ((0, 1), 1, True)]
)
def test_only_the_last_run_of_a_trial_ends_it(seeds, seed, goes_on, tmp_path):
    """At the end of an earlier one there is something left to save."""
    one = worker(tmp_path, trials=11)
    one.proxy.seeds = seeds
    with_curves(one)
    epochs = float(PLAN.recipe.epochs)
    points = [EpochTold(0, epochs / 2, 0.1), EpochTold(seed, epochs, 0.1)]
    assert told_of(one, one.ledger.claim(11), points) == [True, goes_on]


def test_a_network_that_was_stopped_is_not_trained_again(tmp_path, monkeypatch):
    one = worker(tmp_path, trials=2)
    first, second = one.ledger.claim(2), one.ledger.claim(2)
    monkeypatch.setattr(one, "_decided", lambda claim: SPACE.encode(SPACE.backbone))
    for claim in (first, second):
        trial_id = one.ledger.id_of(claim.number)
        one.storage.rdb.set_trial_user_attr(trial_id, "point", list(SPACE.encode(SPACE.backbone)))
    tries = []
    step = StepTold(TimingStats(0.1, 0.1, 0.1, 5), None, measured=True)
    stopped = Outcome(step, (EpochTold(0, 1.0, 0.1),), None, None)
    monkeypatch.setattr(work, "try_out", lambda *given, **more: tries.append(1) or stopped)
    monkeypatch.setattr(one.watch, "began", lambda *given: None, raising=False)
    for claim in (first, second):
        assert one._one(claim) is None
    assert len(tries) == 1
    rows = rows_of(one.opened)
    assert [(row.end, row.same_as) for row in rows] == [("stopped", None), ("stopped", 0)]
    assert rows[0].measurement == rows[1].measurement


def test_workers_decide_one_after_the_other(tmp_path, monkeypatch):
    """So that none chooses what another is about to begin; meanwhile the others see that the trial is alive."""
    one = worker(tmp_path, trials=2)
    claim = one.ledger.claim(2)
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
    assert one._decided(claim) == SPACE.encode(SPACE.backbone)
    assert within == [True]


def test_what_is_decided_is_decided_by_what_is_known_now(tmp_path):
    """Optuna keeps the trials that it has read until it is told of one: here another worker was, a moment ago."""
    one = worker(tmp_path, trials=3, plan=PLAN.model_copy(update={"sampler": "tpe"}))
    seen: list[int] = []
    inner = one.opened.study.sampler.before_trial

    def before(study, trial):
        seen.append(len(study._get_trials(deepcopy=False, use_cache=True)))
        inner(study, trial)

    one.opened.study.sampler.before_trial = before
    for _ in range(2):
        one._decided(one.ledger.claim(3))
    assert seen == [1, 2]


def test_networks_that_failed_at_once_do_not_say_how_long_a_trial_takes(tmp_path):
    """Three of a second, one of a minute: in half a minute no trial would end."""
    one = worker(tmp_path, trials=9)
    for seconds, failure in [(1, "crashed: at once")] * 3 + [(60, None)]:
        attributes = {} if failure is None else {"failure": failure}
        trial = optuna().trial.create_trial(value=0.0 if failure else 0.5, user_attrs=attributes)
        trial.datetime_complete = trial.datetime_start + timedelta(seconds=seconds)
        one.opened.study.add_trial(trial)
    one.watch.stands = lambda standing: None
    assert one._usual_s() == pytest.approx(60, abs=1)
    assert not one.work(until=time.monotonic() + 30)
