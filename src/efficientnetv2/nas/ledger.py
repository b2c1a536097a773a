"""Which trial is whose: taken, kept alive, given back, finished, each exactly once.

A trial is a row of Optuna's. Its state says whether it waits, runs or has finished; beside it stands who runs it and a
number that grows while he does. A worker that is gone on this machine is known by its process; elsewhere by a number
that stands still. Its trial waits again, with what had been chosen for it, so no trial is lost and none is added.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from efficientnetv2.nas.storage import Storage, machine, optuna

# All ours. Between two signs of life; for how long a number stands still until its worker counts as lost; how often a
# trial is begun before it counts as one that takes its worker down: its network runs in a process of its own, so a
# worker is mostly lost to a preempted machine.
BEAT_S, LOST_S, MOST_BEGUN = 10.0, 60.0, 10


@dataclass(frozen=True)
class Claim:
    """A trial that is this worker's.

    Args:
        number: of the trial, from 0.
        begun: how often it has been begun, this time included.
        token: by which it is known whose it is.
    """

    number: int
    begun: int
    token: str


@dataclass
class Ledger:
    """The trials of a study, as its workers share them.

    Args:
        storage: open.
        name: of the study, which is there.
        beat_s: between two signs of life.
        lost_s: for how long a worker of another machine gives none until it counts as lost.
    """

    storage: Storage
    name: str
    beat_s: float = BEAT_S
    lost_s: float = LOST_S
    _seen: dict[int, tuple[Any, float]] = field(default_factory=dict)
    _unanswered: int = 0

    @property
    def study_id(self) -> int:
        """As the database has it."""
        return int(self.storage.rdb.get_study_id_from_name(self.name))

    def id_of(self, number: int) -> int:
        """Of a trial, as the database has it."""
        return int(self.storage.rdb.get_trial_id_from_study_id_trial_number(self.study_id, number))

    def claim(self, target: int) -> Claim | None:
        """Take a trial: one that waits, or a new one; None if all that are asked for have been taken.

        Args:
            target: how many trials the study is to have.
        """
        # The same at every try: one whose answer was lost may have taken a trial.
        token = secrets.token_hex(8)
        return self.storage.patiently(lambda: self._claim(target, token))

    def _claim(self, target: int, token: str) -> Claim | None:
        rdb, states = self.storage.rdb, optuna().trial.TrialState
        if self.storage.unanswered != self._unanswered:
            # While it did not answer nobody could give a sign of life: that time says nothing of anybody.
            self._unanswered = self.storage.unanswered
            self._seen.clear()
        if not self._any_left(rdb.get_all_trials(self.study_id, deepcopy=False), target, token):
            return None  # without a turn, which others need to write down what they found
        with self.storage.turn():
            trials = rdb.get_all_trials(self.study_id, deepcopy=False)
            for one in trials:
                if one.state == states.RUNNING and token_of(one) == token:
                    return Claim(one.number, int(one.user_attrs["begun"]), token)
            waiting = [one for one in trials if one.state == states.WAITING]
            waiting = waiting or [one for one in trials if one.state == states.RUNNING and self._is_lost(one)]
            if waiting:
                number, begun = waiting[0].number, int(waiting[0].user_attrs.get("begun", 0))
                trial_id = self.id_of(number)
                # A lost one waits for a moment too: with the state its time begins anew.
                rdb.set_trial_state_values(trial_id, states.WAITING)
                rdb.set_trial_state_values(trial_id, states.RUNNING)
            elif len(trials) < target:
                trial_id = rdb.create_new_trial(self.study_id)
                number, begun = int(rdb.get_trial(trial_id).number), 0
            else:
                return None
            self._seen.pop(number, None)
            rdb.set_trial_user_attr(trial_id, "begun", begun + 1)
            rdb.set_trial_user_attr(trial_id, "worker", _self(token))  # last: from here on it is taken
            return Claim(number, begun + 1, token)

    def _any_left(self, trials: Sequence[Any], target: int, token: str) -> bool:
        """Whether there is a trial to take, or one that has been taken under this token."""
        states = optuna().trial.TrialState
        running = [one for one in trials if one.state == states.RUNNING]
        if len(trials) < target or any(one.state == states.WAITING for one in trials):
            return True
        lost = [
            self._is_lost(one) for one in running
        ]  # of each, for looking tells how long it has stood still
        return any(lost) or any(token_of(one) == token for one in running)

    def _is_lost(self, trial: Any) -> bool:
        """Whether nobody runs a trial any more, as far as this worker has seen."""
        worker = trial.user_attrs.get("worker")
        if worker is not None and worker["machine"] == machine():
            return not _alive(worker)
        sign = (worker, trial.user_attrs.get("beat"))
        before, since = self._seen.setdefault(trial.number, (sign, time.monotonic()))
        if before != sign:
            self._seen[trial.number] = (sign, time.monotonic())
            return False
        return time.monotonic() - since > self.lost_s

    @contextmanager
    def alive(self, claim: Claim) -> Iterator[None]:
        """Within, the others see that the trial is being run."""
        done = threading.Event()

        def beat() -> None:
            count = 0
            while not done.wait(self.beat_s):
                count += 1
                # A database that is down lets nobody take the trial, and its time down counts for nobody; one that
                # others reach lets them, and that is seen in the end.
                with contextlib.suppress(Exception):
                    self.storage.rdb.set_trial_user_attr(
                        self.id_of(claim.number), "beat", [claim.token, count]
                    )

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def owns(self, claim: Claim) -> bool:
        """Whether a trial is still this worker's. Asked within a turn."""
        trial = self.storage.rdb.get_trial(self.id_of(claim.number))
        running = trial.state == optuna().trial.TrialState.RUNNING
        return bool(running and token_of(trial) == claim.token)

    def give_back(self, claim: Claim) -> None:
        """Let a trial wait for whoever takes it; it has not been begun.

        Where that can't be written down now, it is known a little later: nobody runs it.
        """
        with contextlib.suppress(Exception), self.storage.turn():
            if self.owns(claim):
                trial_id = self.id_of(claim.number)
                self.storage.rdb.set_trial_user_attr(trial_id, "begun", claim.begun - 1)
                self.storage.rdb.set_trial_state_values(trial_id, optuna().trial.TrialState.WAITING)


def token_of(trial: Any) -> str | None:
    """Of whoever has taken a trial last; None of one that nobody has.

    Args:
        trial: of Optuna.
    """
    token: str | None = trial.user_attrs.get("worker", {}).get("token")
    return token


def _self(token: str) -> dict[str, Any]:
    return {
        "machine": machine(),
        "pid": os.getpid(),
        "since": since(os.getpid()),
        "token": token,
    }


def _alive(worker: dict[str, Any]) -> bool:
    """Whether a process of this machine is still there, and the same one."""
    try:
        process = psutil.Process(worker["pid"])
        return since(process.pid) == worker["since"] and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def since(pid: int) -> float:
    """When a process began; by a clock that nobody sets, where there is one.

    Args:
        pid: of a process of this machine.

    Raises:
        psutil.NoSuchProcess: it is not there.
    """
    try:
        # Since the system's start, after the command's name, which may hold anything (proc(5): field 22).
        told = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return float(told.rpartition(")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        return psutil.Process(pid).create_time()
