"""The database of a study: accepted URLs, errors, and which worker gets which trial."""

from __future__ import annotations

import contextlib
import gc
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import psutil
import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from tests.log_lines import logged_lines
from tests.messages import each_mentions, mentioning
from tests.postgres import server

from efficientnetv2.nas import storage as module
from efficientnetv2.nas import trial_queue
from efficientnetv2.nas.storage import (
    EmptyDatabaseError,
    Storage,
    import_optuna,
    redact_password,
    sqlite_file,
    sqlite_url,
)
from efficientnetv2.nas.trial_queue import TrialQueue, machine_id
from efficientnetv2.utils.errors import InputError


def opened(tmp_path, *, timeout_s: float = 30, create: bool = True) -> Storage:
    return Storage(f"sqlite:///{tmp_path}/study.db", timeout_s=timeout_s, create=create)


def study(tmp_path) -> TrialQueue:
    storage = opened(tmp_path)
    storage.rdb.create_new_study([import_optuna().study.StudyDirection.MAXIMIZE], "study")
    return TrialQueue(storage, "study", heartbeat_s=0.05, lost_after_s=0.3)


def states(one: TrialQueue) -> list[str]:
    return [trial.state.name for trial in one.storage.rdb.get_all_trials(one.study_id)]


def beat(one: TrialQueue) -> object:
    """The last heartbeat of the first trial."""
    return one.storage.rdb.get_trial(one.trial_id(0)).user_attrs.get("beat")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:secret@host/db", "postgresql://me@host/db"),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
        ("sqlite:///studies/study.db", "sqlite:///studies/study.db"),
        ("sqlite:///a:b@c/study.db", "sqlite:///a:b@c/study.db"),
    ],
)
def test_password_is_not_shown(url, shown):
    assert redact_password(url) == shown


@pytest.mark.parametrize("url", ["mysql://host/db", "study.db", "sqlite://", "http://host", "postgresql://host/db"])
def test_other_databases_are_rejected(url):
    with pytest.raises(InputError, match=mentioning(url, "sqlite:///FILE")):
        Storage(url, timeout_s=0, create=True)


def test_other_driver_is_named():
    with pytest.raises(InputError, match=mentioning("+psycopg2")):
        sqlite_file("postgresql+psycopg2://me:secret@host/db")
    assert sqlite_file("postgresql+pg8000://me@host/db") is None


@pytest.mark.parametrize("name", ["my study", "100%", "%41", "what?", "#1", "a:b@c", "{SCHEMA_VERSION}", "a&b=c", "é"])
def test_folder_may_have_any_name(name, tmp_path):
    """The file is at the given path, and Optuna finds the study by the URL."""
    file = tmp_path / name / "study.db"
    file.parent.mkdir()
    assert sqlite_file(sqlite_url(file)) == file
    storage = Storage(sqlite_url(file), timeout_s=5, create=True)
    storage.rdb.create_new_study([import_optuna().study.StudyDirection.MAXIMIZE], "study")
    assert [one.name for one in tmp_path.iterdir()] == [name]
    with contextlib.closing(sqlite3.connect(file)) as database:
        assert database.execute("select study_name from studies").fetchall() == [("study",)]
    theirs = import_optuna().storages.RDBStorage(sqlite_url(file))
    assert [one.study_name for one in theirs.get_all_studies()] == ["study"]
    theirs.engine.dispose()


def test_url_options_are_rejected(tmp_path):
    with pytest.raises(InputError, match=mentioning("study.db?timeout=10", "%3F")):
        Storage(f"sqlite:///{tmp_path}/study.db?timeout=10", timeout_s=0, create=True)
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match=mentioning("sslmode=require")) as refused:
        Storage("postgresql://me:secret@host/db?sslmode=require", timeout_s=0)
    assert "secret" not in str(refused.value)


def test_missing_folder_is_an_error(tmp_path):
    with pytest.raises(InputError, match=mentioning("No such file")):
        Storage(f"sqlite:///{tmp_path}/nowhere/study.db", timeout_s=0, create=True)


def test_reading_needs_no_write_access(tmp_path, monkeypatch):
    """The study of a colleague; a lock would be a file in its folder."""
    study(tmp_path)
    (tmp_path / "study.db.lock").unlink()

    def denied(*_args, **_options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module.FileLock, "acquire", denied)
    assert len(opened(tmp_path, create=False).rdb.get_all_studies()) == 1
    with pytest.raises(PermissionError):
        opened(tmp_path)


def test_old_tables_are_an_error_with_the_upgrade_command(tmp_path):
    opened(tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "study.db")) as database, database:
        database.execute("update alembic_version set version_num = 'v2.6.0.a'")
    with pytest.raises(InputError, match=mentioning("optuna storage upgrade")):
        opened(tmp_path)


def test_parallel_workers_take_each_trial_once(tmp_path):
    """Eight workers, eight trials."""
    study(tmp_path)
    taken: list[int] = []

    def work() -> None:
        own = TrialQueue(opened(tmp_path), "study")
        while (claim := own.acquire(8)) is not None:
            taken.append(claim.number)

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(taken) == list(range(8))


def test_returned_trial_is_taken_first_and_does_not_count_as_an_attempt(tmp_path):
    one = study(tmp_path)
    first, _ = one.acquire(3), one.acquire(3)
    one.give_back(first)
    assert states(one) == ["WAITING", "RUNNING"]
    with one.storage.exclusive():
        assert not one.holds(first), "it waits"
    again = one.acquire(3)
    assert (again.number, again.attempt) == (0, 1)
    assert again.token != first.token
    with one.storage.exclusive():
        assert one.holds(again)
        assert not one.holds(first)
    one.give_back(first)
    assert states(one) == ["RUNNING", "RUNNING"], "it is another worker's by now"


def test_trial_that_could_not_be_returned_is_taken_again_by_its_own_process(tmp_path, monkeypatch):
    """As in a notebook, after the database did not respond."""
    one = study(tmp_path)
    held, first = one.acquire(2), one.acquire(2)

    def fail():
        raise OperationalError("begin", {}, Exception("server closed the connection"))

    with monkeypatch.context() as patched:
        patched.setattr(one.storage, "exclusive", fail)
        one.give_back(first)
    assert states(one) == ["RUNNING", "RUNNING"]
    assert one.acquire(2).number == first.number
    assert one.acquire(2) is None, "the other one is still held"
    with one.storage.exclusive():
        assert one.holds(held)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        ("create_new_trial", None),
        ("set_trial_state_values", None),
        ("set_trial_user_attr", "worker"),
        ("set_trial_user_attr", "begun"),
    ],
)
def test_trial_taken_during_a_lost_connection_is_not_left_behind(call, word, tmp_path, monkeypatch):
    """The call succeeded, but its result was lost. On retry, the worker gets the trial that it holds."""
    one = study(tmp_path)
    if call == "set_trial_state_values":
        one.give_back(one.acquire(1))
    done, cuts = getattr(one.storage.rdb, call), [True]

    def cut(*words: object) -> object:
        result = done(*words)
        if cuts and word in (None, *words):
            cuts.pop()
            raise OperationalError(call, {}, Exception("server closed the connection"))
        return result

    monkeypatch.setattr(one.storage.rdb, call, cut)
    until = time.monotonic() + 10  # a trial without an owner is taken after a timeout
    while (claim := one.acquire(1)) is None and time.monotonic() < until:
        time.sleep(0.1)
    assert not cuts
    assert states(one) == ["RUNNING"]
    with one.storage.exclusive():
        assert one.holds(claim)


def on_two_machines(tmp_path, monkeypatch):
    """Queues on two machines that cannot see each other's processes, the lease of the other, and the time here."""
    here, there = study(tmp_path), TrialQueue(opened(tmp_path), "study", heartbeat_s=0.05, lost_after_s=0.3)
    monkeypatch.setattr(trial_queue, "machine_id", lambda: "there")
    claim, now = there.acquire(1), [0.0]
    monkeypatch.setattr(trial_queue, "machine_id", machine_id)
    monkeypatch.setattr(trial_queue, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep))
    return here, there, claim, now


def test_remote_worker_without_heartbeat_is_lost(tmp_path, monkeypatch):
    here, there, claim, now = on_two_machines(tmp_path, monkeypatch)
    with there.heartbeat(claim):
        for _ in range(3):
            assert here.acquire(1) is None, "it is alive"
            now[0] += 1  # longer than the limit without a heartbeat
            before = beat(there)
            while beat(there) == before:
                time.sleep(0.01)
    assert here.acquire(1) is None, "it has given signs of life since"
    now[0] += 0.2
    assert here.acquire(1) is None, "it has been silent for a moment only"
    now[0] += 0.2
    taken = here.acquire(1)
    assert (taken.number, taken.attempt) == (0, 2)


def test_time_without_database_does_not_count_as_missing_heartbeat(tmp_path, monkeypatch):
    """A waiting worker may reconnect before the worker that it waits for can send a heartbeat."""
    here, there, claim, now = on_two_machines(tmp_path, monkeypatch)
    assert here.acquire(1) is None, "it has just been seen"
    cuts = [True]

    def looked() -> list[object]:
        if cuts:
            cuts.pop()
            now[0] += 20  # longer than the limit without a heartbeat, shorter than the timeout
            raise OperationalError("select", {}, Exception("server closed the connection"))
        return here.storage.rdb.get_all_trials(here.study_id)

    assert len(here.storage.retry(looked)) == 1
    assert here.acquire(1) is None
    now[0] += 0.2
    assert here.acquire(1) is None
    with there.storage.exclusive():
        assert there.holds(claim)
    now[0] += 0.2
    assert here.acquire(1).attempt == 2, "by now it has been silent for as long as others may be"


def others() -> Iterator[dict[str, object]]:
    """Lost workers: no such process, another process of this number, and a zombie process."""
    yield {"pid": 2**22 - 1}
    yield {"since": trial_queue.process_start_time(os.getpid()) - 1}
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        process = psutil.Process(ended.pid)
        while process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        yield {"pid": ended.pid, "since": trial_queue.process_start_time(ended.pid)}


def test_local_worker_is_lost_with_its_process(tmp_path):
    one = study(tmp_path)
    claim = one.acquire(1)
    assert one.acquire(1) is None, "its process is this one"
    worker = one.storage.rdb.get_trial(one.trial_id(0)).user_attrs["worker"]
    for begun, gone in enumerate(others(), 2):
        one.storage.rdb.set_trial_user_attr(one.trial_id(claim.number), "worker", worker | gone)
        first = one.storage.rdb.get_trial(one.trial_id(0)).datetime_start
        time.sleep(0.01)
        assert one.acquire(1).attempt == begun
        again = one.storage.rdb.get_trial(one.trial_id(0)).datetime_start
        assert again > first, "how long a trial takes is counted from when it was begun again, not over a night"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OperationalError("select", {}, Exception("database is locked")), "database is locked"),
        # A driver raises this if the server is killed during a query.
        (ConnectionResetError(104, "Connection reset by peer"), "[Errno 104] Connection reset by peer"),
        (BrokenPipeError(), "BrokenPipeError"),
        (TimeoutError("timed out"), "timed out"),
    ],
)
def test_unavailable_database_is_retried_and_reported_once(error, reason, tmp_path):
    messages = logged_lines()
    storage = opened(tmp_path)
    tries = iter([True, True, False])

    def call() -> str:
        if next(tries):
            raise error
        return "done"

    assert storage.retry(call) == "done"
    assert each_mentions(messages, (reason, "database"), ("database", "study"))


def test_timeout_names_the_command_to_resume(tmp_path):
    storage = opened(tmp_path, timeout_s=0)

    def call() -> None:
        raise OperationalError("insert", {}, Exception("database or disk is full"))

    with pytest.raises(InputError, match=mentioning("disk", "effnetv2 search resume")):
        storage.retry(call)


def damaged_within(file):
    """Keep the header and replace all pages after the first by noise."""
    whole = file.read_bytes()
    file.write_bytes(whole[:4096] + os.urandom(len(whole) - 4096))


def of_another_program(file):
    file.unlink()
    with contextlib.closing(sqlite3.connect(file)) as database:
        database.execute("CREATE TABLE studies (name TEXT)")
        database.commit()


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(os.urandom(50_000)),
        lambda file: file.write_text("{}" * 1_000),
        damaged_within,
        of_another_program,
    ],
)
def test_non_study_file_is_rejected_immediately(damage, tmp_path):
    study(tmp_path)
    damage(tmp_path / "study.db")
    messages = logged_lines()

    def ask():
        storage = opened(tmp_path, create=False)
        storage.retry(storage.rdb.get_all_studies)

    with pytest.raises(InputError, match=mentioning("study.db", "database")):
        ask()
    assert messages == [], "waiting mends nothing"


@pytest.mark.parametrize(
    ("url", "given"), [("postgresql://me@host/db", "of the environment"), ("postgresql://me:own@host/db", "own")]
)
def test_password_comes_from_the_environment_and_a_wrong_one_is_not_retried(url, given, monkeypatch):
    import pg8000

    requests: list[dict[str, object]] = []

    def connect(**words: object) -> None:
        requests.append(words)
        raise pg8000.DatabaseError({"C": "28P01", "M": 'password authentication failed for user "me"'})

    monkeypatch.setattr(pg8000, "connect", connect)
    monkeypatch.setenv("PGPASSWORD", "of the environment")
    with pytest.raises(InputError, match="PGPASSWORD") as error:
        Storage(url, timeout_s=600, create=True)
    assert [(words["user"], words["password"]) for words in requests] == [("me", given)]
    assert given not in str(error.value)


@pytest.mark.parametrize(
    "reply",
    [
        {"S": "FATAL", "C": "28P01", "M": "Passwort-Authentifizierung fehlgeschlagen"},
        {"S": "FATAL", "C": "28000", "M": 'role "mee" does not exist'},
    ],
)
def test_refused_login_is_not_retried_in_any_language(reply, monkeypatch):
    import pg8000

    def connect(**words: object) -> None:
        raise pg8000.DatabaseError(reply)

    monkeypatch.setattr(pg8000, "connect", connect)
    with pytest.raises(InputError, match=mentioning("PGPASSWORD", "user")):
        Storage("postgresql://mee@host/searches", timeout_s=600, create=True)


def test_missing_database_of_a_server_is_not_retried(monkeypatch):
    import pg8000

    def connect(**words: object) -> None:
        raise pg8000.DatabaseError({"S": "FATAL", "C": "3D000", "M": 'database "searches" does not exist'})

    monkeypatch.setattr(pg8000, "connect", connect)
    with pytest.raises(InputError, match=mentioning("searches", "createdb")):
        Storage("postgresql://me@host/searches", timeout_s=600, create=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # pg8000 leaves it open after a failed login
def test_server_with_a_password(monkeypatch):
    """By SCRAM, the default of PostgreSQL."""
    monkeypatch.delenv("PGPASSWORD", raising=False)
    with server() as one:
        rules = one.folder / "data/pg_hba.conf"
        rules.write_text(f"host all reader 127.0.0.1/32 scram-sha-256\n{rules.read_text()}")
        trusted = Storage(one.url, timeout_s=30, create=True)
        with trusted.rdb.engine.connect() as connection, connection.begin():
            connection.execute(text("CREATE USER reader SUPERUSER PASSWORD 's%c'"))
            connection.execute(text("SELECT pg_reload_conf()"))
        trusted.rdb.engine.dispose()
        theirs = one.url.replace("tester", "reader")
        with pytest.raises(InputError, match="PGPASSWORD"):
            Storage(theirs, timeout_s=600)
        with pytest.raises(InputError, match=mentioning("no_such", "createdb")):
            Storage(one.url.replace("/postgres", "/no_such"), timeout_s=600)
        for environment, url in [("s%c", theirs), ("old", theirs.replace("reader", "reader:s%25c"))]:
            monkeypatch.setenv("PGPASSWORD", environment)
            let_in = Storage(url, timeout_s=30)
            assert let_in.rdb.get_all_studies() == []
            let_in.rdb.engine.dispose()
    gc.collect()


def test_programming_errors_are_not_retried(tmp_path):
    with pytest.raises(KeyError):
        opened(tmp_path).retry(lambda: {}["nothing"])


def test_deleted_database_is_not_created_again(tmp_path):
    storage = opened(tmp_path, timeout_s=0)
    (tmp_path / "study.db").unlink()
    with pytest.raises(InputError, match=mentioning("unable to open database file")):
        storage.retry(storage.rdb.get_all_studies)
    assert not (tmp_path / "study.db").exists()
    with pytest.raises(InputError, match=mentioning("database")):
        opened(tmp_path, create=False)


def test_reading_an_empty_database_creates_no_tables(tmp_path):
    """Optuna would create its tables."""
    (tmp_path / "study.db").write_bytes(b"")
    with pytest.raises(EmptyDatabaseError, match=mentioning("empty")):
        opened(tmp_path, create=False)
    assert (tmp_path / "study.db").read_bytes() == b""
    opened(tmp_path)
    assert opened(tmp_path, create=False).rdb.get_all_studies() == []
