"""A worker of a study: leases a trial, runs it, writes its result in one locked step, and takes the next."""

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
from efficientnetv2.nas.objective import Measurement
from efficientnetv2.nas.proxy_task import ProxyTask
from efficientnetv2.nas.stage_choices import Point
from efficientnetv2.nas.storage import import_optuna
from efficientnetv2.nas.study import OpenStudy
from efficientnetv2.nas.trial import EpochDone, Failed, StepTimed, TrialResult, to_measurement
from efficientnetv2.nas.trial_process import run_trial
from efficientnetv2.nas.trial_queue import MAX_ATTEMPTS, TrialLease, lease_token
from efficientnetv2.utils.errors import InputError

_logger = logging.getLogger(__name__)

# All ours. With cached step times, every tenth trial is measured nevertheless. So many failures in a row are no
# accident. Seconds between two looks at whether the other workers have finished, at first and at most.
_VERIFY_EVERY, _MAX_FAILURES, _POLL_S, _MAX_POLL_S = 10, 5, 1.0, 30.0
_REASON_LENGTH = 160  # Characters of a failure on the screen; log.txt has all.
_LAST_EPOCH = 0.95  # Of the epochs, which come out as whole steps.


@dataclass(frozen=True)
class StudyProgress:
    """How far a study is. ``best`` is the largest reward; ``seconds_left`` assumes the present number of workers."""

    done: int
    target: int
    running: int
    best: float | None
    seconds_left: float | None


class SearchCallback:
    """Base class of callbacks of a worker: override the methods that you need."""

    def on_progress(self, progress: StudyProgress) -> None:
        """Called at the start and after every trial."""

    def on_trial_start(self, number: int, architecture: Architecture) -> None:
        """Called before a trial is run."""

    def on_message(self, number: int, message: StepTimed | EpochDone) -> None:
        """Called with the step time and each epoch of a trial."""

    def on_trial_end(self, number: int, found: Measurement, reward: float, *, pruned: bool) -> None:
        """Called after a trial has ended."""


class Worker:
    """One worker of a study, which trains by ``task``."""

    def __init__(self, study: OpenStudy, task: ProxyTask, callback: SearchCallback) -> None:
        self.study, self.task, self.callback = study, task, callback
        self.queue, self.storage, self.config = study.queue, study.storage, study.config
        self._result = TrialResult()  # Of the running trial so far.

    def work(self, *, until: float | None = None) -> bool:
        """Run trials until all have finished, also those of other workers, and return True; or until time is up.

        ``until`` is a value of ``time.monotonic``; no trial is started that would probably end later, except the first.
        Raises InputError for what is no architecture's fault, or where five trials failed in a row.
        """
        num_failures = 0
        waiting: float | None = None
        while True:
            progress = self.progress()
            self.callback.on_progress(progress)
            if progress.done >= progress.target:
                return True
            first = progress.done == progress.running == 0
            if until is not None and not first and time.monotonic() + self._usual_s() > until:
                return False
            lease = self.queue.acquire(progress.target)
            if lease is None:
                if waiting is None:
                    _logger.info("The last trials are with other workers; waiting for them.")
                # More and more rarely: dozens of workers may wait, and each reads the whole study.
                waiting = _POLL_S if waiting is None else min(_MAX_POLL_S, 1.5 * waiting)
                time.sleep(waiting)
                continue
            waiting = None
            failure = self._run(lease)
            num_failures = num_failures + 1 if failure else 0
            if failure and num_failures == _MAX_FAILURES:
                raise InputError(
                    f"the last {_MAX_FAILURES} trials have failed, the last with: {failure.rstrip('.')} (details: "
                    "log.txt). Fix it, then continue with effnetv2 search resume. The recipe of a study is fixed: for "
                    "another learning rate or batch size, start another study."
                )

    def progress(self) -> StudyProgress:
        """How far the study is."""
        states = import_optuna().trial.TrialState
        trials = self.study.trials()
        done = [trial for trial in trials if trial.state.is_finished()]
        num_running = sum(trial.state == states.RUNNING for trial in trials)
        rewards = [trial.value for trial in done if trial.state == states.COMPLETE]
        target, durations = self.study.target, _durations(done)
        # This worker is between two trials: it does not count as running, but takes one if any is left.
        num_workers = max(1, min(num_running + 1, target - len(done)))
        left = statistics.mean(durations) * (target - len(done)) / num_workers if durations else None
        return StudyProgress(len(done), target, num_running, max(rewards, default=None), left)

    def _usual_s(self) -> float:
        """How long a trial takes that comes to its end; one that fails may do so in a second."""
        complete = import_optuna().trial.TrialState.COMPLETE
        trials = [trial for trial in self.study.trials() if trial.state == complete]
        durations = _durations([trial for trial in trials if "failure" not in trial.user_attrs])
        return statistics.median(durations) if durations else 0.0

    def _run(self, lease: TrialLease) -> str | None:
        """Run one trial. Returns its failure in one line, if it failed."""
        try:
            with self.queue.heartbeat(lease):
                point = self.storage.retry(lambda: self._suggest(lease))
                architecture = self.config.space.decode(point)
                if lease.attempt > MAX_ATTEMPTS:
                    reason = f"its worker was lost {lease.attempt - 1} times"
                    result = TrialResult(failed=Failed("crashed", reason, 0))
                elif (same := self._same_architecture(lease.number, point)) is not None:
                    self._finish(lease, Measurement.from_json(same.user_attrs["measurement"]), same=same)
                    return None
                else:
                    self.callback.on_trial_start(lease.number, architecture)
                    result = run_trial(
                        architecture,
                        self.task,
                        verify=lease.number % _VERIFY_EVERY == 0,
                        on_message=lambda message: self._on_message(lease, architecture, message),
                    )
                found = to_measurement(architecture, self.task, result)
                # Under the heartbeat: writing may wait long for a database that does not respond.
                self._finish(lease, found, result=result)
        except BaseException:
            self.queue.give_back(lease)
            raise
        return found.failure_line or None

    def _suggest(self, lease: TrialLease) -> Point:
        """The point of a trial. Workers take turns, so that each knows what the others run."""
        from efficientnetv2.nas.samplers import suggest  # With Optuna, an extra.

        with self.storage.exclusive():
            # As Optuna's ``ask`` does: it caches the trials until one is reported.
            self.study.optuna_study._thread_local.cached_all_trials = None
            trial_id = self.queue.trial_id(lease.number)
            point = suggest(import_optuna().trial.Trial(self.study.optuna_study, trial_id), self.config.space)
            self.storage.rdb.set_trial_user_attr(trial_id, "point", list(point))
        return point

    def _same_architecture(self, number: int, point: Point) -> Any | None:
        states = import_optuna().trial.TrialState
        for trial in self.study.trials():
            is_same = trial.user_attrs.get("point") == list(point) and "failure" not in trial.user_attrs
            if is_same and trial.number != number and trial.state in (states.COMPLETE, states.PRUNED):
                return trial
        return None

    def _on_message(self, lease: TrialLease, architecture: Architecture, message: StepTimed | EpochDone) -> bool:
        self.callback.on_message(lease.number, message)
        if isinstance(message, StepTimed):
            self._result = TrialResult(message)
            return True
        self._result = TrialResult(self._result.step, (*self._result.epochs, message))
        measured = to_measurement(architecture, self.task, self._result)
        reward = self.config.reward.compute(measured, self.config.reference)
        point = len(self._result.epochs)
        is_last_run = message.run == len(self.task.seeds) - 1
        is_at_end = is_last_run and message.epoch >= _LAST_EPOCH * float(self.config.recipe.epochs)

        def report() -> bool:
            with self.storage.exclusive():
                if not self.queue.holds(lease):
                    return False
                trial_id = self.queue.trial_id(lease.number)
                self.storage.rdb.set_trial_intermediate_value(trial_id, point, reward)
                attempt = self.storage.rdb.get_trial(trial_id)
            # An earlier attempt that was killed may have reported more points.
            attempt.intermediate_values = {point: reward}
            study = self.study.optuna_study
            return is_at_end or not study.pruner.prune(study, attempt)

        return self.storage.retry(report)

    def _finish(
        self, lease: TrialLease, found: Measurement, *, result: TrialResult | None = None, same: Any = None
    ) -> None:
        """Write the end of a trial, unless another worker has taken it over."""
        states = import_optuna().trial.TrialState
        is_pruned = same.state == states.PRUNED if same is not None else result is not None and result.pruned
        reward = self.config.reward.compute(found, self.config.reference)
        attributes: dict[str, Any] = {"measurement": found.to_json()}
        if found.failure:
            attributes["failure"] = found.failure
        if same is not None:
            attributes["same_as"] = same.number
        if result is not None and result.step is not None:
            attributes |= {"predicted_step_s": result.step.predicted, "step_measured": result.step.measured}

        def write() -> bool:
            rdb, trial_id = self.storage.rdb, self.queue.trial_id(lease.number)
            with self.storage.exclusive():
                if not self.queue.holds(lease):
                    trial = rdb.get_trial(trial_id)
                    return lease_token(trial) == lease.token and bool(trial.state.is_finished())
                for name, value in attributes.items():
                    rdb.set_trial_user_attr(trial_id, name, value)
                state, value = (states.PRUNED, None) if is_pruned else (states.COMPLETE, reward)
                with warnings.catch_warnings(action="ignore"):
                    self.study.optuna_study.tell(lease.number, value, state)
                return True

        if not self.storage.retry(write):
            _logger.info(f"Trial {lease.number} was taken over by another worker meanwhile.")
            return
        if found.failure is None:
            end = ", stopped early" if is_pruned else ""
            _logger.info(f"Trial {lease.number}: {found}; reward {reward:.4f}{end}.")
        else:
            reason = shorten(found.failure_line, _REASON_LENGTH, placeholder=" ... (log.txt)")
            _logger.info(f"Trial {lease.number} failed: {reason}")
            _logger.debug(f"Trial {lease.number} failed: {found.failure}")
        self.callback.on_trial_end(lease.number, found, reward, pruned=is_pruned)


def _durations(trials: Sequence[Any]) -> list[float]:
    return [
        trial.duration.total_seconds()
        for trial in trials
        if trial.duration is not None and "same_as" not in trial.user_attrs
    ]
