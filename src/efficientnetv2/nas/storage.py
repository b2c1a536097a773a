"""The database of a study: an SQLite file or a PostgreSQL server."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, unquote

from filelock import FileLock

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


def import_optuna() -> Any:
    """Optuna. Raises InputError where it is not installed."""
    return import_optional("optuna", "search", _USED_BY)


@contextmanager
def optuna_warnings_only() -> Iterator[None]:
    """Within: Optuna does not print that it created a study."""
    log = import_optuna().logging
    verbosity = log.get_verbosity()
    log.set_verbosity(log.WARNING)
    try:
        yield
    finally:
        log.set_verbosity(verbosity)


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
        _, mark, rest = self.url.partition("://")
        return f"postgresql+pg8000{mark}{rest}", {
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
        database did not respond in time, is damaged, does not exist, or refuses the login.
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
        """Refuse what waiting does not solve: not a database, one that does not exist, or a refused login."""
        codes = {getattr(getattr(cause, "orig", None), "sqlite_errorcode", 0) & 0xFF for cause in _causes(error)}
        if codes & {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR}:
            raise InputError(f"{self.file} is not a database of a study ({reason}). Restore a copy.") from error
        name = redact_password(self.url)
        if "'3D000'" in reason:  # codes of PostgreSQL, whose texts are in the language of the server
            fix = "Create it (createdb), or correct the name in `storage`"
            raise InputError(f"the study's database {name} does not exist ({reason}). {fix}.") from error
        if any(code in reason for code in ("'28P01'", "'28000'", "password")):
            raise InputError(
                f"the study's database {name} refuses the login: {reason}. Set the environment variable {_PASSWORD}, "
                "put the password into the URL of `storage`, or correct its user."
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
    is_server = re.match(r"postgres(ql)?(\+pg8000)?://[^:/@]+(:[^@]*)?@", url) is not None
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
