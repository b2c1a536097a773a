"""The database of a study: a file of SQLite, or a PostgreSQL server for workers on many machines.

Optuna keeps the trials; here stands how it is opened, how workers take turns, and what happens while it can't be
reached: whoever has something to say to it tries again for a while.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import socket
import sqlite3
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, unquote

import psutil
from filelock import FileLock

from efficientnetv2.utils.errors import InputError, did_you_mean
from efficientnetv2.utils.optional_deps import import_optional

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

_logger = logging.getLogger(__name__)


Answer = TypeVar("Answer")

# All ours. Seconds until SQLite gives up on a lock; until a server has to have answered; the longest pause between two
# tries.
_BUSY_S, _ANSWER_S, _PAUSE_S = 30.0, 30, 10.0
_WHY = "effnetv2 search"
_POOL = "effnetv2"  # of connections, in the logs
_PASSWORD = "PGPASSWORD"  # PostgreSQL's own name for it


def optuna() -> Any:
    """The package, quiet: what there is to say is said here.

    Raises:
        InputError: it is not installed; names the extra.
    """
    package = import_optional("optuna", "search", _WHY)
    package.logging.set_verbosity(package.logging.WARNING)
    return package


class NoStudiesError(InputError):
    """A database in which no study was ever begun, or that is not there."""


class Storage:
    """A database that is open.

    Args:
        url: ``sqlite:///FILE``, as ``url_of`` writes it, or ``postgresql://USER@HOST/DATABASE``.
        patience_s: how long to try again while it can't be reached.
        create: make the file or the tables if they are not there.

    Raises:
        NoStudiesError: it is not there, or empty; without ``create``, which leaves it so.
        InputError: it is neither, or can't be opened.
    """

    def __init__(self, url: str, *, patience_s: float, create: bool = False) -> None:
        self.url, self.patience_s = url, patience_s
        self.unanswered = 0  # how often the database has not answered so far
        self._lock: FileLock | None = None
        self.file = file_of(url)
        if self.file is not None:
            self._lock = FileLock(self.file.with_name(f"{self.file.name}.lock"))
            if not create and not self.file.exists():
                raise NoStudiesError(
                    f"{self.file} is not there: the study's database is lost, or lies elsewhere."
                )
        self.rdb: RDBStorage = self.patiently(lambda: self._opened(create))

    def _opened(self, create: bool) -> RDBStorage:
        package = optuna()
        url, kwargs = self.url, {}
        if self.file is not None:
            if create:
                try:
                    self.file.touch()
                except OSError as error:
                    raise InputError(
                        f"--storage {url}: {error.strerror or error}. Make the folder, or give another file."
                    ) from error
            # A file that is gone is not made anew, empty, by whoever asks next. SQLite reads a URL of its own within
            # SQLAlchemy's, so what is no plain letter is written with % twice.
            inner = quote(f"file:{quote(self.file.as_posix(), safe='/:')}", safe="/:")
            url = f"sqlite:///{inner}?mode=rw&uri=true"
            kwargs = {
                "poolclass": import_optional("sqlalchemy.pool", "search", _WHY).NullPool,
                "connect_args": {"timeout": min(_BUSY_S, max(1.0, self.patience_s))},
            }
        else:
            import_optional("pg8000", "search", f"--storage {hidden(self.url)}")
            url = _with_driver(self.url)
            kwargs = {
                "pool_pre_ping": True,
                "pool_logging_name": _POOL,
                "connect_args": {"timeout": _ANSWER_S, **_password(self.url)},
            }
            # That a connection to a dead server could not be closed is no news besides what is told here.
            logging.getLogger(f"sqlalchemy.pool.impl.QueuePool.{_POOL}").setLevel(logging.CRITICAL)
        # Two workers that make the tables at the same moment: of a file they take turns, on a server one tries again.
        alone = self._lock or contextlib.nullcontext()
        with alone, warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            if not create:
                self._refuse_empty(url, kwargs)  # Optuna would make its tables there
            try:
                opened: RDBStorage = package.storages.RDBStorage(url, engine_kwargs=kwargs)
            except RuntimeError as error:  # of tables of another version; Optuna says what to do
                raise InputError(f"the study's database {hidden(self.url)}: {error}") from error
        return opened

    def _refuse_empty(self, url: str, kwargs: dict[str, Any]) -> None:
        sql = import_optional("sqlalchemy", "search", _WHY)
        engine = sql.create_engine(url, **kwargs)
        try:
            if not sql.inspect(engine).has_table("studies"):
                raise NoStudiesError(
                    f"the database {hidden(self.url)} has no studies; it is empty. Begin one (effnetv2 search run), or "
                    "say another (--storage)."
                )
        finally:
            engine.dispose()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Within, no other worker of the database takes a trial or gives one back."""
        if self._lock is not None:
            with self._lock:
                yield
            return
        sql = import_optional("sqlalchemy", "search", _WHY)
        number = int.from_bytes(hashlib.blake2b(b"effnetv2 search", digest_size=7).digest(), "big")
        with self.rdb.engine.connect() as connection, connection.begin():
            connection.execute(sql.text("SELECT pg_advisory_xact_lock(:number)"), {"number": number})
            yield

    def patiently(self, call: Callable[[], Answer]) -> Answer:
        """Call something that needs the database, again and again while it can't be reached.

        Args:
            call: may be called again after it has failed, even if what it wanted has been done.

        Raises:
            InputError: it could not be reached for as long as there is patience, or says that something is wrong.
        """
        until = time.monotonic() + self.patience_s
        pause, told = 0.5, False
        while True:
            try:
                answer = call()
            except InputError:
                raise
            except Exception as error:
                reason = _reason(error)
                if reason is None:
                    raise
                if _is_no_study(error):
                    raise InputError(
                        f"{self.file} is not the database of a study, or it is damaged ({reason}). Bring back a "
                        "copy, or begin another study in another folder."
                    ) from error
                self.unanswered += 1
                if "password" in reason:  # which no waiting mends
                    raise InputError(
                        f"the study's database {hidden(self.url)} refuses the password, or there is none: {reason}. "
                        f"Put it into the environment variable {_PASSWORD}, or into the URL of --storage."
                    ) from error
                if time.monotonic() + pause > until:
                    raise InputError(
                        f"the study's database {hidden(self.url)} could not be used for {self.patience_s:g} s: "
                        f"{reason}. {self._advice(reason)} Then go on with effnetv2 search resume; nothing that was "
                        "finished is lost."
                    ) from error
                if not told:
                    _logger.info(f"The study's database does not answer ({reason}). Trying again.")
                    told = True
                time.sleep(pause)
                pause = min(_PAUSE_S, 2 * pause)
                continue
            if told:
                _logger.info("The study's database answers again.")
            return answer

    def _advice(self, reason: str) -> str:
        if "full" in reason or "space" in reason:
            return "Make room on its disk."
        if "locked" in reason:
            return "End the program that keeps it locked."
        if self.file is not None:
            return "Bring the file back, or make it readable and writable."
        return "See to it that the server runs and can be reached."


def hidden(url: str) -> str:
    """A URL without its password, as it may be shown and written down."""
    if url.startswith("sqlite:"):
        return url  # a file has none, but its folders may have the letters that set one apart
    start, mark, rest = url.partition("://")
    user, at, place = rest.rpartition("@")
    return f"{start}{mark}{user.partition(':')[0]}{at}{place}"


def file_of(url: str) -> Path | None:
    """The file of a SQLite URL; None for PostgreSQL.

    Args:
        url: as ``Storage`` takes it; %20 and the like stand for the letters that SQLAlchemy and Optuna read there.

    Raises:
        InputError: it is of another database, or none, or says more than a file.
    """
    kind, _, driver = url.partition(":")[0].partition("+")
    if driver not in ("", "pg8000"):
        raise InputError(
            f"--storage {hidden(url)}: the driver '{driver}' is not used. Leave '+{driver}' out: PostgreSQL is spoken "
            "to by pg8000."
        )
    if kind == "sqlite" and url.startswith("sqlite:///") and len(url) > len("sqlite:///"):
        named, mark, _ = url.removeprefix("sqlite:///").partition("?")
        if mark:
            raise InputError(
                f"--storage {url}: what follows a ? are options, which a study does not take. Leave them out; a ? in "
                "the name of a file or folder is written %3F."
            )
        return Path(os.path.expanduser(unquote(named))).absolute()
    if kind in ("postgresql", "postgres") and "://" in url:
        if "?" in url:
            raise InputError(
                f"--storage {hidden(url)}: what follows a ? are options, which a study does not take. Leave them out; "
                "TLS is used where the server offers it, and a ? in a password is written %3F."
            )
        return None
    raise InputError(
        f"--storage {hidden(url)}: a study lies in SQLite (sqlite:///FILE) or PostgreSQL "
        f"(postgresql://USER@HOST/DATABASE){did_you_mean(kind, ['sqlite', 'postgresql'])}"
    )


def url_of(file: Path) -> str:
    """The URL of a file of SQLite; ``file_of`` gives the file again."""
    return f"sqlite:///{quote(file.absolute().as_posix(), safe='/:')}"


def _password(url: str) -> dict[str, str]:
    """The environment's, where the URL has none: libpq reads it, pg8000 does not, and stumbles over none at all."""
    return {} if hidden(url) != url else {"password": os.environ.get(_PASSWORD, "")}


def _with_driver(url: str) -> str:
    kind, mark, rest = url.partition("://")
    return url if "+" in kind else f"postgresql+pg8000{mark}{rest}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    one: BaseException | None = error
    while one is not None:
        yield one
        one = one.__cause__ or one.__context__


def _is_no_study(error: BaseException) -> bool:
    """Whether SQLite says that a file is none of its own, is damaged or lacks a table: no waiting mends that."""
    codes = {getattr(getattr(one, "orig", None), "sqlite_errorcode", 0) & 0xFF for one in _causes(error)}
    return not codes.isdisjoint({sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR})


def _reason(error: BaseException) -> str | None:
    """Why a database could not be used, in a few words; None if the error is of another kind."""
    sql = import_optional("sqlalchemy.exc", "search", _WHY)
    for one in _causes(error):
        # A server that is killed may also end the connection under the driver, which lets Python's own error through.
        if isinstance(one, sql.DBAPIError | sql.TimeoutError | ConnectionError | TimeoutError):
            said = str(getattr(one, "orig", None) or one).strip() or type(one).__name__
            return " ".join(said.split())[:300].rstrip(".")
    return None


def machine() -> str:
    """Where this process runs: equal for two processes only if they see each other by their numbers.

    Hosts may share a name, as copies of a virtual machine do; no other's system has started as this one did.
    """
    space, started = "/proc/self/ns/pid", Path("/proc/sys/kernel/random/boot_id")
    inside = os.readlink(space) if os.path.islink(space) else ""
    known = started.read_text(encoding="ascii").strip() if started.exists() else f"{uuid.getnode():x}"
    return f"{socket.gethostname()} {inside} {known}"


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
