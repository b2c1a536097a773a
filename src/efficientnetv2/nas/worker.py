"""A worker of a study: takes a trial, tries its network, writes down what came of it, takes the next.

Any number of workers share a study; each may come and go, be stopped or be killed. What is known of a trial is written
down when it has ended, in one turn, so that it counts once.
"""

from __future__ import annotations

import logging
import statistics
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

from efficientnetv2.architectures.spec import Architecture
from efficientnetv2.nas.objective import Measurement, figures
from efficientnetv2.nas.proxy_task import Proxy
from efficientnetv2.nas.storage import MOST_BEGUN, Claim, Ledger, optuna, token_of
from efficientnetv2.nas.study import Opened
from efficientnetv2.nas.trial import EpochTold, Outcome, StepTold, measurement, try_out
from efficientnetv2.utils.errors import InputError

_logger = logging.getLogger(__name__)

# All ours. With cached step times every so many trials one is measured all the same. So many failures in a row are no
# accident. Seconds between two looks at whether the others have finished, at first and at last.
_VERIFIED, _FAILED_IN_A_ROW, _LOOK_S, _LONGEST_LOOK_S = 10, 5, 1.0, 30.0
_REASON = 160  # letters of why a trial failed; log.txt has the rest
_AT_ITS_END = 0.95  # of the epochs, which come out as whole steps: ours


@dataclass(frozen=True)
class Standing:
    """How far a study is.

    Args:
        done: trials finished.
        target: trials asked for.
        running: trials that workers are at now.
        best: the largest reward so far; None before the first.
        seconds_left: until all have finished, as fast as now; None where nobody knows.
    """

    done: int
    target: int
    running: int
    best: float | None
    seconds_left: float | None


class Watch:
    """What looks on while a worker tries networks: a subclass overrides the methods that it needs."""

    def stands(self, standing: Standing) -> None:
        """After every trial, and when the worker begins."""

    def began(self, number: int, architecture: Architecture) -> None:
        """A trial is being tried."""

    def told(self, number: int, one: StepTold | EpochTold) -> None:
        """Something is known of it."""

    def ended(self, number: int, found: Measurement, reward: float, *, stopped: bool) -> None:
        """It has ended."""


class Worker:
    """One worker of a study.

    Args:
        opened: the study.
        proxy: how its networks are tried.
        ledger: whose trials are whose.
        watch: gets told.
    """

    def __init__(self, opened: Opened, proxy: Proxy, ledger: Ledger, watch: Watch) -> None:
        self.opened, self.proxy, self.ledger, self.watch = opened, proxy, ledger, watch
        self.storage, self.plan = opened.storage, opened.plan
        self._step: StepTold | None = None  # of the trial under way, and its curve so far
        self._points: list[EpochTold] = []

    def work(self, *, until: float | None = None) -> bool:
        """Try networks until all trials have finished, those of other workers included, or time is up.

        Args:
            until: of ``time.monotonic``: no trial is begun that would probably not end before; None for no end.

        Returns:
            Whether all have finished.

        Raises:
            InputError: something is wrong that is no network's affair: the pictures, the disk, the database; or so many
                trials failed in a row that it can't be the networks'.
        """
        failed: list[str] = []
        waiting: float | None = None
        while True:
            standing = self.standing()
            self.watch.stands(standing)
            if standing.done >= standing.target:
                return True
            if until is not None and time.monotonic() + self._usual_s() > until:
                return False
            claim = self.ledger.claim(standing.target)
            if claim is None:
                if waiting is None:
                    _logger.info("The last trials are with other workers; waiting for them.")
                # Seldom, after a while: dozens of workers may be waiting, each of whom reads all of the study.
                waiting = _LOOK_S if waiting is None else min(_LONGEST_LOOK_S, 1.5 * waiting)
                time.sleep(waiting)
                continue
            waiting = None
            failure = self._one(claim)
            failed = [*failed, failure] if failure else []
            if len(failed) == _FAILED_IN_A_ROW:
                raise InputError(
                    f"the last {_FAILED_IN_A_ROW} trials have all failed; the last: {failed[-1].rstrip('.')}. If it is "
                    "not the networks, mend it, then go on with effnetv2 search resume. All of it stands in log.txt; "
                    "those that have failed stay so, as networks worth 0."
                )

    def standing(self) -> Standing:
        """How far the study is."""
        states = optuna().trial.TrialState
        trials = self._trials()
        done = [one for one in trials if one.state.is_finished()]
        running = sum(one.state == states.RUNNING for one in trials)
        rewards = [one.value for one in done if one.state == states.COMPLETE]
        target = self.opened.target
        took = _seconds(done)
        each = statistics.mean(took) if took else None
        # This worker asks between two trials: it is none of those that run, but will take one if any is left.
        working = min(running + 1, target - len(done))
        left = None if each is None else each * (target - len(done)) / max(1, working)
        return Standing(len(done), target, running, max(rewards, default=None), left)

    def _usual_s(self) -> float:
        """How long a trial takes that comes to its end; one that fails may do so in a second."""
        states = optuna().trial.TrialState
        ended = [one for one in self._trials() if one.state == states.COMPLETE]
        took = _seconds([one for one in ended if "failure" not in one.user_attrs])
        return statistics.median(took) if took else 0.0

    def _trials(self) -> list[Any]:
        rdb = self.storage.rdb
        trials: list[Any] = self.storage.patiently(
            lambda: rdb.get_all_trials(self.ledger.study_id, deepcopy=False)
        )
        return trials

    def _one(self, claim: Claim) -> str | None:
        """One trial; why it failed, in a line, if it did."""
        try:
            with self.ledger.alive(claim):
                point = self.storage.patiently(lambda: self._decided(claim))
                architecture = self.plan.space.decode(point)
                if claim.begun > MOST_BEGUN:
                    return self._give_up(claim, architecture)
                if (same := self._same(claim.number, point)) is not None:
                    self._finish(claim, Measurement.from_json(same.user_attrs["measurement"]), same=same)
                    return None
                self.watch.began(claim.number, architecture)
                outcome = try_out(
                    architecture,
                    self.proxy,
                    verify=claim.number % _VERIFIED == 0,
                    watch=lambda told: self._told(claim, architecture, told),
                )
                found = measurement(architecture, self.proxy, outcome)
                # Which may take as long as there is patience with a database that does not answer.
                self._finish(claim, found, outcome=outcome)
        except BaseException:
            self.ledger.give_back(claim)
            raise
        return found.failed_because or None

    def _decided(self, claim: Claim) -> tuple[int, ...]:
        """The point of a trial. Workers decide one after the other, so that each knows what the others are at."""
        from efficientnetv2.nas.samplers import suggest  # with Optuna, which is an extra

        with self.storage.turn():
            # As its ``ask`` does: Optuna keeps the trials that it has read until one is told of.
            self.opened.study._thread_local.cached_all_trials = None
            trial_id = self.ledger.id_of(claim.number)
            point = suggest(optuna().trial.Trial(self.opened.study, trial_id), self.plan.space)
            self.storage.rdb.set_trial_user_attr(trial_id, "point", list(point))
        return point

    def _same(self, number: int, point: Sequence[int]) -> Any | None:
        """A trial of the same network that was finished, or stopped: it would come to the same."""
        states = optuna().trial.TrialState
        for one in self._trials():
            there = one.state in (states.COMPLETE, states.PRUNED) and "failure" not in one.user_attrs
            if there and one.number != number and one.user_attrs.get("point") == list(point):
                return one
        return None

    def _give_up(self, claim: Claim, architecture: Architecture) -> str:
        """A trial that took its worker down again and again is not begun once more."""
        failure = f"crashed: its worker was lost {claim.begun - 1} times"
        nothing = Outcome(None, (), None, None)
        found = measurement(architecture, self.proxy, nothing)
        plain = found.to_json() | {"failure": failure}
        self._finish(claim, Measurement.from_json(plain))
        return failure

    def _told(self, claim: Claim, architecture: Architecture, told: StepTold | EpochTold) -> bool:
        """Pass it on; whether the trial is worth going on with."""
        self.watch.told(claim.number, told)
        if isinstance(told, StepTold):
            self._step, self._points = told, []
            return True
        self._points.append(told)
        so_far = measurement(architecture, self.proxy, Outcome(self._step, tuple(self._points), None, None))
        reward = self.plan.reward.of(so_far, self.plan.reference)

        point = len(self._points)
        last = told.seed == len(self.proxy.seeds) - 1
        at_its_end = last and told.epoch >= _AT_ITS_END * float(self.plan.recipe.epochs)

        def reported() -> bool:
            with self.storage.turn():
                if not self.ledger.owns(claim):
                    return False
                trial_id = self.ledger.id_of(claim.number)
                self.storage.rdb.set_trial_intermediate_value(trial_id, point, reward)
                attempt = self.storage.rdb.get_trial(trial_id)
            # Of this attempt: one that was killed before may have told of more points, and of another reward.
            attempt.intermediate_values = {point: reward}
            return at_its_end or not self.opened.study.pruner.prune(self.opened.study, attempt)

        return self.storage.patiently(reported)

    def _finish(
        self, claim: Claim, found: Measurement, *, outcome: Outcome | None = None, same: Any | None = None
    ) -> None:
        """Write a trial's end down, unless another worker has taken it over."""
        states = optuna().trial.TrialState
        stopped = outcome is not None and outcome.stopped
        if same is not None:
            stopped = same.state == states.PRUNED
        reward = self.plan.reward.of(found, self.plan.reference)
        attributes: dict[str, Any] = {"measurement": found.to_json()}
        if found.failure:
            attributes["failure"] = found.failure
        if same is not None:
            attributes["same_as"] = same.number
        if outcome is not None and outcome.step is not None:
            attributes["foretold"] = outcome.step.foretold
            attributes["step_measured"] = outcome.step.measured

        def write() -> bool:
            with self.storage.turn():
                if not self.ledger.owns(claim):
                    there = self.storage.rdb.get_trial(self.ledger.id_of(claim.number))
                    return token_of(there) == claim.token and bool(there.state.is_finished())
                for name, value in attributes.items():
                    self.storage.rdb.set_trial_user_attr(self.ledger.id_of(claim.number), name, value)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    if stopped:
                        self.opened.study.tell(claim.number, state=states.PRUNED)
                    else:
                        self.opened.study.tell(claim.number, reward)
                return True

        if self.storage.patiently(write):
            _log_end(claim.number, found, reward, stopped=stopped)
            self.watch.ended(claim.number, found, reward, stopped=stopped)
        else:
            _logger.info(f"Trial {claim.number} was taken over by another worker meanwhile.")


def _log_end(number: int, found: Measurement, reward: float, *, stopped: bool) -> None:
    if found.failure is None:
        _logger.info(f"Trial {number}: {figures(found)}; reward {reward:.4f}{', stopped early' * stopped}.")
        return
    reason = shorten(found.failed_because, _REASON, placeholder=" ... (log.txt)")
    _logger.info(f"Trial {number} failed: {reason}")
    _logger.debug(f"Trial {number} failed: {found.failure}")


def _seconds(trials: Sequence[Any]) -> list[float]:
    """How long trials took that were really tried."""
    return [
        (one.datetime_complete - one.datetime_start).total_seconds()
        for one in trials
        if one.datetime_start and one.datetime_complete and "same_as" not in one.user_attrs
    ]
