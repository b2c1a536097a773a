"""The database of a study, an SQLite file or a PostgreSQL server, and its trials as a queue.

Each trial is leased to one worker at a time. Optuna's heartbeats retry a lost trial under a new number, so that later
trials draw other architectures, and never retry a trial whose worker was killed before its first heartbeat.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import os
import re
import secrets
import sqlite3
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, unquote

import psutil
from filelock import FileLock

from efficientnetv2.utils.benchmark import boot_id
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.optional_deps import import_optional

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

_logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# All ours: seconds until SQLite gives up on a lock, until a server must respond, and at most between two tries.
_SQLITE_TIMEOUT_S, _SERVER_TIMEOUT_S, _MAX_PAUSE_S = 30.0, 30, 10.0
_USED_BY = "effnetv2 search"
_POOL = "effnetv2"  # Name of the connection pool in SQLAlchemy's log.
_PASSWORD = "PGPASSWORD"  # PostgreSQL's own variable. libpq reads it, pg8000 does not.
# How often a trial is started: its network runs in a process of its own, so a worker is mostly lost to a preempted
# machine. Ours.
MAX_ATTEMPTS = 10


def import_optuna() -> Any:
    """Optuna, with its log reduced to warnings. Raises InputError where it is not installed."""
    package = import_optional("optuna", "search", _USED_BY)
    package.logging.set_verbosity(package.logging.WARNING)
    return package


class EmptyDatabaseError(InputError):
    """The database does not exist, or no study was ever created in it."""


class Storage:
    """An open database, ``sqlite:///FILE`` or ``postgresql://USER@HOST/DATABASE``. ``rdb`` is Optuna's storage.

    Calls are retried for ``timeout_s``. ``create`` creates the file and the tables where they are missing.

    Raises:
        EmptyDatabaseError: It is missing or empty, and ``create`` is not set.
        InputError: It is another kind of database, or cannot be opened.
    """

    def __init__(self, url: str, *, timeout_s: float, create: bool = False) -> None:
        self.url, self.timeout_s = url, timeout_s
        self.num_failures = 0  # How often the database did not respond.
        self._lock: FileLock | None = None
        self.file = sqlite_file(url)
        if self.file is not None:
            self._lock = FileLock(self.file.with_name(f"{self.file.name}.lock"))
            if not create and not self.file.exists():
                raise EmptyDatabaseError(f"{self.file}: the study's database does not exist.")
        self.rdb: RDBStorage = self.retry(lambda: self._open(create))

    def _open(self, create: bool) -> RDBStorage:
        optuna = import_optuna()
        url, options = self._server() if self.file is None else self._sqlite(self.file, create)
        # Workers that create the tables at the same moment: of a file they take turns, on a server one tries again. A
        # study that is only read may be in a folder without write access.
        with self._lock if create and self._lock else contextlib.nullcontext(), warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            if not create:
                self._require_tables(url, options)  # Optuna would create them.
            try:
                opened: RDBStorage = optuna.storages.RDBStorage(url, engine_kwargs=options)
            except RuntimeError as error:  # Tables of another version: Optuna's message has the fix.
                raise InputError(f"the study's database {redact_password(self.url)}: {error}") from error
        return opened

    def _sqlite(self, file: Path, create: bool) -> tuple[str, dict[str, Any]]:
        if create:
            try:
                file.touch()
            except OSError as error:
                raise InputError(f"{file}: {error.strerror or error}. Use another `storage`.") from error
        # mode=rw: a file that has gone is not created again, empty. SQLite reads a URL of its own within
        # SQLAlchemy's, so special characters are quoted twice.
        inner = quote(f"file:{quote(file.as_posix(), safe='/:')}", safe="/:")
        return f"sqlite:///{inner}?mode=rw&uri=true", {
            "poolclass": import_optional("sqlalchemy.pool", "search", _USED_BY).NullPool,
            "connect_args": {"timeout": min(_SQLITE_TIMEOUT_S, max(1.0, self.timeout_s))},
        }

    def _server(self) -> tuple[str, dict[str, Any]]:
        import_optional("pg8000", "search", "a study on a PostgreSQL server")
        # That a connection to a dead server could not be closed is no news.
        logging.getLogger(f"sqlalchemy.pool.impl.QueuePool.{_POOL}").setLevel(logging.CRITICAL)
        has_password = redact_password(self.url) != self.url
        password = {} if has_password else {"password": os.environ.get(_PASSWORD, "")}
        kind, mark, rest = self.url.partition("://")
        return self.url if "+" in kind else f"postgresql+pg8000{mark}{rest}", {
            "pool_pre_ping": True,
            "pool_logging_name": _POOL,
            "connect_args": {"timeout": _SERVER_TIMEOUT_S, **password},
        }

    def _require_tables(self, url: str, options: dict[str, Any]) -> None:
        sqlalchemy = import_optional("sqlalchemy", "search", _USED_BY)
        engine = sqlalchemy.create_engine(url, **options)
        try:
            if not sqlalchemy.inspect(engine).has_table("studies"):
                raise EmptyDatabaseError(
                    f"the database {redact_password(self.url)} is empty. Start a study with effnetv2 search run."
                )
        finally:
            engine.dispose()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Within the block, no other worker of the database leases a trial or gives one back."""
        if self._lock is not None:
            with self._lock:
                yield
            return
        sqlalchemy = import_optional("sqlalchemy", "search", _USED_BY)
        number = int.from_bytes(hashlib.blake2b(b"effnetv2 search", digest_size=7).digest(), "big")
        with self.rdb.engine.connect() as connection, connection.begin():
            connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(:number)"), {"number": number})
            yield

    def retry(self, call: Callable[[], Result]) -> Result:
        """Call a function of the database, again and again for ``timeout_s`` while the database does not respond.

        It may be called again after it failed, even where the database did what was asked. Raises InputError where the
        database did not respond in time, is damaged, does not exist, or refuses the password.
        """
        until = time.monotonic() + self.timeout_s
        pause, has_failed = 0.5, False
        while True:
            try:
                result = call()
            except InputError:
                raise
            except Exception as error:
                reason = _database_error(error)
                if reason is None:
                    raise
                self.num_failures += 1
                self._refuse_fatal(error, reason)
                if time.monotonic() + pause > until:
                    raise InputError(
                        f"the study's database {redact_password(self.url)} could not be used for {self.timeout_s:g} "
                        f"s: {reason}. Repair that, then continue with effnetv2 search resume."
                    ) from error
                if not has_failed:
                    _logger.info(f"The study's database does not respond ({reason}). Trying again.")
                    has_failed = True
                time.sleep(pause)
                pause = min(_MAX_PAUSE_S, 2 * pause)
                continue
            if has_failed:
                _logger.info("The study's database responds again.")
            return result

    def _refuse_fatal(self, error: Exception, reason: str) -> None:
        """Refuse what waiting does not solve: not a database, one that does not exist, or a wrong password."""
        codes = {getattr(getattr(cause, "orig", None), "sqlite_errorcode", 0) & 0xFF for cause in _causes(error)}
        if codes & {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR}:
            raise InputError(f"{self.file} is not a database of a study ({reason}). Restore a copy.") from error
        if "3D000" in reason:  # the code of PostgreSQL for it
            raise InputError(
                f"the study's database {redact_password(self.url)} does not exist ({reason}). Create it (createdb), or "
                "correct the name in `storage`."
            ) from error
        if "password" in reason:
            raise InputError(
                f"the study's database {redact_password(self.url)} refuses the password: {reason}. Set the environment "
                f"variable {_PASSWORD}, or put it into the URL of `storage`."
            ) from error


def redact_password(url: str) -> str:
    """A URL without its password, for messages and files."""
    if url.startswith("sqlite:"):
        return url  # A path may contain : and @ too.
    scheme, mark, rest = url.partition("://")
    user, at, host = rest.rpartition("@")
    return f"{scheme}{mark}{user.partition(':')[0]}{at}{host}"


def sqlite_file(url: str) -> Path | None:
    """The file of an SQLite URL, percent-decoded; None for PostgreSQL. Raises InputError for others."""
    file = url.removeprefix("sqlite:///")
    is_file = file not in ("", url)
    is_server = re.match(r"postgres(ql)?(\+pg8000)?://", url) is not None
    if not (is_file or is_server) or "?" in url:
        raise InputError(
            f"`storage` is {redact_password(url)}, but must be sqlite:///FILE or postgresql://USER@HOST/DATABASE, "
            "without another driver and options (a ? is written %3F)."
        )
    return Path(os.path.expanduser(unquote(file))).absolute() if is_file else None


def sqlite_url(file: Path) -> str:
    """The URL of an SQLite file. `sqlite_file` is the inverse."""
    return f"sqlite:///{quote(file.absolute().as_posix(), safe='/:')}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _database_error(error: BaseException) -> str | None:
    """Why a database could not be used, in one line; None if the error is of another kind."""
    exc = import_optional("sqlalchemy.exc", "search", _USED_BY)
    for cause in _causes(error):
        # Where a server is killed, the driver may pass Python's own error on.
        if isinstance(cause, exc.DBAPIError | exc.TimeoutError | ConnectionError | TimeoutError):
            text = str(getattr(cause, "orig", None) or cause).strip() or type(cause).__name__
            return " ".join(text.split())[:300].rstrip(".")
    return None


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
        return self.storage.retry(lambda: self._acquire(target, token))

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
