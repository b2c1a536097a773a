"""The database of a study: a file of SQLite, or a PostgreSQL server for workers on many machines.

Optuna keeps the trials; here stands how it is opened, how workers take turns, and what happens while it can't be
reached: whoever has something to say to it tries again for a while.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import socket
import sqlite3
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, unquote

from filelock import FileLock

from efficientnetv2.base.errors import InputError, did_you_mean
from efficientnetv2.base.extras import needed

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

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
    package = needed("optuna", "search", _WHY)
    package.logging.set_verbosity(package.logging.WARNING)
    return package


class NoStudiesError(InputError):
    """A database in which no study was ever begun, or that is not there."""


class Storage:
    """A database that is open.

    Args:
        url: ``sqlite:///FILE``, as ``url_of`` writes it, or ``postgresql://USER@HOST/DATABASE``.
        patience_s: how long to try again while it can't be reached.
        say: gets a line when it can't be, and when it can again.
        create: make the file or the tables if they are not there.

    Raises:
        NoStudiesError: it is not there, or empty; without ``create``, which leaves it so.
        InputError: it is neither, or can't be opened.
    """

    def __init__(
        self, url: str, *, patience_s: float, say: Callable[[str], None], create: bool = False
    ) -> None:
        self.url, self.patience_s, self._say = url, patience_s, say
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
                "poolclass": needed("sqlalchemy.pool", "search", _WHY).NullPool,
                "connect_args": {"timeout": min(_BUSY_S, max(1.0, self.patience_s))},
            }
        else:
            needed("pg8000", "search", f"--storage {hidden(self.url)}")
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
        sql = needed("sqlalchemy", "search", _WHY)
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
        sql = needed("sqlalchemy", "search", _WHY)
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
                    self._say(f"The study's database does not answer ({reason}). Trying again.")
                    told = True
                time.sleep(pause)
                pause = min(_PAUSE_S, 2 * pause)
                continue
            if told:
                self._say("The study's database answers again.")
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
    sql = needed("sqlalchemy.exc", "search", _WHY)
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
