"""How far a study is, and what a worker is told that fails again and again."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from tests.search.test_study import PLAN, storage

from efficientnetv2.base.timing import Spread
from efficientnetv2.search import work
from efficientnetv2.search.ledger import MOST_BEGUN, Claim, Ledger
from efficientnetv2.search.measurement import Measurement
from efficientnetv2.search.storage import optuna
from efficientnetv2.search.study import create, opened
from efficientnetv2.search.told import EpochTold, StepTold
from efficientnetv2.search.trial import Outcome, measurement
from efficientnetv2.search.work import Worker


class Watch:
    """Keeps what it is told of ended trials, and what it is to say."""

    def __init__(self) -> None:
        self.found: list[Measurement] = []
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)

    def told(self, number: int, one: object) -> None:
        pass

    def ended(self, number: int, found: Measurement, reward: float, *, stopped: bool) -> None:
        self.found.append(found)


def worker(tmp_path, *, trials: int, done: int = 0, running: int = 0) -> Worker:
    one = storage(tmp_path)
    create(one, "study", PLAN, trials=trials)
    study = opened(one, "study")
    for place in range(done):
        study.study.add_trial(optuna().trial.create_trial(value=place / 10))
    for _ in range(running):
        study.study.ask()
    proxy = SimpleNamespace(recipe=PLAN.recipe, num_classes=3, seeds=(0,))
    return Worker(study, proxy, Ledger(one, "study"), Watch())


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
    assert one._one(claim) == "crashed: its worker was lost 10 times"
    (found,) = one.watch.found
    assert found.failure == "crashed: its worker was lost 10 times"
    (trial,) = one.storage.rdb.get_all_trials(one.ledger.study_id)
    assert (trial.state.name, trial.value) == ("COMPLETE", 0.0)


def test_a_trial_that_another_worker_has_taken_over_and_ended_is_stopped(tmp_path):
    """As after a minute without the network, in which the others had the database."""
    one = worker(tmp_path, trials=1)
    claim = one.ledger.claim(1)
    trial, point = one._decided(claim)
    network = PLAN.space.decode(point)
    assert one._told(claim, trial, network, StepTold(Spread(0.1, 0.1, 0.1, 5), None, measured=True))
    assert one._told(claim, trial, network, EpochTold(0, 1.0, 0.5))
    trial_id = one.ledger.id_of(0)
    theirs = one.storage.rdb.get_trial(trial_id).user_attrs["worker"] | {"token": "theirs"}
    one.storage.rdb.set_trial_user_attr(trial_id, "worker", theirs)
    one.opened.study.tell(0, state=optuna().trial.TrialState.PRUNED)
    assert not one._told(claim, trial, network, EpochTold(0, 2.0, 0.6))
    found = measurement(network, one.proxy, Outcome(None, (), None, None))
    one._finish(claim, found, outcome=Outcome(None, (), None, None))
    assert one.watch.found == []
    assert one.watch.said == ["Trial 0 was taken over by another worker meanwhile."]
