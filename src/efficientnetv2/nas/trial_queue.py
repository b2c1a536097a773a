"""The trials of a study as a queue: each is leased to one worker at a time.

Optuna's heartbeats retry a lost trial under a new number, so that later trials draw other architectures, and never
retry a trial whose worker was killed before its first heartbeat.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil

from efficientnetv2.nas.storage import Storage, import_optuna
from efficientnetv2.utils.benchmark import boot_id

# How often a trial is started: its network runs in a process of its own, so a worker is mostly lost to a preempted
# machine. Ours.
MAX_ATTEMPTS = 10

_HELD: set[str] = set()  # tokens of the leases of this process, which may outlive an error, as in a notebook


@dataclass(frozen=True)
class TrialLease:
    """A trial that a worker holds: its number, how often it was started, and the holder's token."""

    number: int
    attempt: int
    token: str


class TrialQueue:
    """The trials of a study, shared by its workers. Without a heartbeat, a worker of another machine counts as lost."""

    def __init__(self, storage: Storage, name: str, *, heartbeat_s: float = 10.0, lost_after_s: float = 60.0) -> None:
        self.storage, self.name = storage, name
        self.heartbeat_s, self.lost_after_s = heartbeat_s, lost_after_s
        # By trial, the last heartbeat of its worker, and when it was first seen here.
        self._seen: dict[int, tuple[Any, float]] = {}
        self._num_failures = 0

    @cached_property
    def study_id(self) -> int:
        """Optuna's id of the study."""
        return int(self.storage.rdb.get_study_id_from_name(self.name))

    def trial_id(self, number: int) -> int:
        """Optuna's id of a trial."""
        return int(self.storage.rdb.get_trial_id_from_study_id_trial_number(self.study_id, number))

    def trials(self) -> list[Any]:
        """All trials, as Optuna has them."""
        trials: list[Any] = self.storage.rdb.get_all_trials(self.study_id, deepcopy=False)
        return trials

    def acquire(self, target: int) -> TrialLease | None:
        """Lease a waiting, lost or new trial. None if all ``target`` trials are taken."""
        # The same token at every retry: a call whose result was lost may have leased a trial.
        token = secrets.token_hex(8)
        lease: TrialLease | None = None
        try:
            _HELD.add(token)
            lease = self.storage.retry(lambda: self._acquire(target, token))
            return lease
        finally:
            if lease is None:
                _HELD.discard(token)

    def _acquire(self, target: int, token: str) -> TrialLease | None:
        if self.storage.num_failures != self._num_failures:
            # While the database did not respond, no worker could write a heartbeat.
            self._num_failures = self.storage.num_failures
            self._seen.clear()
        if self._candidate(target, token) is None:
            return None  # Without the lock, which others need to write their results.
        rdb, states = self.storage.rdb, import_optuna().trial.TrialState
        with self.storage.exclusive():
            trial = self._candidate(target, token)
            if trial is None:
                return None
            if trial == "new":
                trial_id = rdb.create_new_trial(self.study_id)
                number, attempts = int(rdb.get_trial(trial_id).number), 0
            else:
                number, attempts = trial.number, int(trial.user_attrs.get("begun", 0))
                if lease_token(trial) == token and trial.state == states.RUNNING:
                    return TrialLease(number, attempts, token)
                trial_id = self.trial_id(number)
                # A lost trial waits for a moment too: its start time is set again.
                rdb.set_trial_state_values(trial_id, states.WAITING)
                rdb.set_trial_state_values(trial_id, states.RUNNING)
            self._seen.pop(number, None)
            rdb.set_trial_user_attr(trial_id, "begun", attempts + 1)
            pid = os.getpid()
            worker = {"machine": machine_id(), "pid": pid, "since": process_start_time(pid), "token": token}
            rdb.set_trial_user_attr(trial_id, "worker", worker)  # Last: from here on it is leased.
            return TrialLease(number, attempts + 1, token)

    def _candidate(self, target: int, token: str) -> Any:
        """The trial to lease: one already leased under the token, a waiting, a lost one, or "new"; None for none."""
        states = import_optuna().trial.TrialState
        trials = self.trials()
        running = [trial for trial in trials if trial.state == states.RUNNING]
        waiting = [trial for trial in trials if trial.state == states.WAITING]
        lost = [trial for trial in running if self._is_lost(trial)]  # Checks each, for the time since.
        leased = [trial for trial in running if lease_token(trial) == token]
        return next(iter(leased + waiting + lost), "new" if len(trials) < target else None)

    def _is_lost(self, trial: Any) -> bool:
        """Whether no process runs a trial any more, as far as this worker has seen."""
        worker = trial.user_attrs.get("worker")
        if worker is not None and worker["machine"] == machine_id():
            return not _is_alive(worker)
        beat, now = (worker, trial.user_attrs.get("beat")), time.monotonic()
        if self._seen.get(trial.number, (None,))[0] != beat:
            self._seen[trial.number] = (beat, now)
        return now - self._seen[trial.number][1] > self.lost_after_s

    @contextmanager
    def heartbeat(self, lease: TrialLease) -> Iterator[None]:
        """Within the block, the other workers see that the trial is running."""
        done = threading.Event()

        def beat() -> None:
            for count in itertools.count(1):
                if done.wait(self.heartbeat_s):
                    return
                # While a database is down nobody can take the trial, and that time does not count.
                with contextlib.suppress(Exception):
                    trial_id = self.trial_id(lease.number)
                    self.storage.rdb.set_trial_user_attr(trial_id, "beat", [lease.token, count])

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def holds(self, lease: TrialLease) -> bool:
        """Whether a lease is still valid. To be called within ``storage.exclusive()``."""
        trial = self.storage.rdb.get_trial(self.trial_id(lease.number))
        is_running = trial.state == import_optuna().trial.TrialState.RUNNING
        return bool(is_running and lease_token(trial) == lease.token)

    def give_back(self, lease: TrialLease) -> None:
        """Let a trial wait for another worker; this attempt does not count."""
        _HELD.discard(lease.token)  # even if the database does not respond
        with contextlib.suppress(Exception), self.storage.exclusive():
            if self.holds(lease):
                trial_id = self.trial_id(lease.number)
                self.storage.rdb.set_trial_user_attr(trial_id, "begun", lease.attempt - 1)
                self.storage.rdb.set_trial_state_values(trial_id, import_optuna().trial.TrialState.WAITING)


def lease_token(trial: Any) -> str | None:
    """The token of the last holder of a trial; None if it was never leased."""
    token: str | None = trial.user_attrs.get("worker", {}).get("token")
    return token


def machine_id() -> str:
    """This machine and process-id namespace: equal only for processes that see each other's ids."""
    namespace = "/proc/self/ns/pid"
    return f"{os.readlink(namespace) if os.path.islink(namespace) else ''} {boot_id()}"


def _is_alive(worker: dict[str, Any]) -> bool:
    try:
        process = psutil.Process(worker["pid"])
        is_same = process_start_time(process.pid) == worker["since"]
        if is_same and process.pid == os.getpid() and worker["token"] not in _HELD:
            return False
        return is_same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def process_start_time(pid: int) -> float:
    """When a process started; on Linux by a clock that nobody sets. Raises psutil.NoSuchProcess."""
    try:
        # Ticks since boot, behind the command's name, which may hold anything (proc(5): field 22).
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return float(stat.rpartition(")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        return psutil.Process(pid).create_time()
