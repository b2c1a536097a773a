"""Workers that are killed, share a study or lose their database: each trial counts once, and none is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from tests.command_line import Running, effnetv2, started
from tests.messages import mentions
from tests.nas.tiny import words
from tests.postgres import server

TRIALS = 3
# A trial takes some seconds, so that a test can interrupt it, and none ends between a check and the next action.
LONG = ("--trials", TRIALS, "--epochs", 60, "--no-prune", "--sampler", "random")


def rows(storage: str, study: str = "study") -> list[optuna.trial.FrozenTrial]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    database = optuna.storages.RDBStorage(storage)
    try:
        return optuna.load_study(study_name=study, storage=database).trials
    finally:
        database.engine.dispose()


def sqlite(folder: Path) -> str:
    return f"sqlite:///{folder}/study/study.db"


def wait(condition: Callable[[], object], workers: list[Running]) -> None:
    until = time.monotonic() + 300
    while time.monotonic() < until:
        if condition():
            return
        for one in workers:
            if not one.is_running():
                raise AssertionError(f"ended too early: {one.end()}")
        time.sleep(0.05)
    raise TimeoutError


def ended_trials(log: Path) -> int:
    """Return the number of ended trials in the log."""
    return log.read_text().count("reward") if log.exists() else 0


def in_the_middle(folder: Path, *, done: int) -> Callable[[], bool]:
    """Return a check: this many trials have ended, and another trial has started and is saved."""

    def look() -> bool:
        if ended_trials(folder / "study/log.txt") < done:
            return False
        running = [one for one in rows(sqlite(folder)) if one.state == optuna.trial.TrialState.RUNNING]
        return any({"begun", "point"} <= one.user_attrs.keys() for one in running)

    return look


def check_trials(trials: list[optuna.trial.FrozenTrial]) -> None:
    """Check that each requested trial has finished once, and no architecture occurs twice."""
    assert [one.number for one in trials] == list(range(TRIALS))
    assert {one.state for one in trials} == {optuna.trial.TrialState.COMPLETE}
    assert all(one.user_attrs["measurement"]["failure"] is None for one in trials)
    assert len({tuple(one.user_attrs["point"]) for one in trials}) == TRIALS


@pytest.mark.slow
def test_trial_of_a_killed_worker_is_repeated(class_folders, tmp_path):
    worker = started(*words(tmp_path, class_folders, *LONG), cwd=tmp_path)
    wait(in_the_middle(tmp_path, done=2), [worker])
    worker.kill()
    before = rows(sqlite(tmp_path))
    running = [one for one in before if one.state == optuna.trial.TrialState.RUNNING]
    assert len(running) == 1
    done = effnetv2("search", "resume", tmp_path / "study", "--workers", 0, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    after = rows(sqlite(tmp_path))
    check_trials(after)
    again = after[running[0].number]
    assert again.params == running[0].params, "the network that had been chosen is the one that is tried"
    assert again.user_attrs["begun"] == 2
    for one in before:
        if one.state.is_finished():
            assert after[one.number].user_attrs == one.user_attrs, "what had ended stays"


@pytest.mark.slow
def test_stopped_worker_returns_its_trial(class_folders, tmp_path):
    worker = started(*words(tmp_path, class_folders, *LONG), cwd=tmp_path)
    wait(in_the_middle(tmp_path, done=1), [worker])
    os.kill(worker.process.pid, signal.SIGTERM)
    ended = worker.end()
    assert ended.returncode == 130
    assert mentions(ended.stderr, "effnetv2 search resume")
    assert "Traceback" not in ended.stderr
    assert not [one for one in rows(sqlite(tmp_path)) if one.state == optuna.trial.TrialState.RUNNING]
    done = effnetv2("search", "resume", tmp_path / "study", "--workers", 0, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    check_trials(rows(sqlite(tmp_path)))
    assert {one.user_attrs["begun"] for one in rows(sqlite(tmp_path))} == {1}, "to stop is not to fail"


@pytest.mark.slow
def test_killed_worker_does_not_affect_the_other_worker_of_a_sqlite_study(class_folders, tmp_path):
    first = started(*words(tmp_path, class_folders, *LONG), cwd=tmp_path)
    wait((tmp_path / "study/study.yaml").exists, [first])
    second = started(*words(tmp_path, class_folders, *LONG), cwd=tmp_path)
    wait(lambda: len(_pids(rows(sqlite(tmp_path)))) == 2, [first, second])
    first.kill()
    ended = second.end()
    assert ended.returncode == 0, ended.stderr
    check_trials(rows(sqlite(tmp_path)))


def _pids(trials: list[optuna.trial.FrozenTrial]) -> set[int]:
    """Return the process IDs of the workers with trials."""
    return {one.user_attrs["worker"]["pid"] for one in trials if "worker" in one.user_attrs}


@pytest.mark.slow
def test_two_workers_of_a_postgresql_study_survive_a_killed_server(class_folders, tmp_path):
    """Each worker has its own folder, as on two machines. The server has the trials of both."""
    with server() as database:
        storage = ("--storage", database.url)
        driver = database.url.replace("postgresql", "postgresql+pg8000")
        folders = [tmp_path / name for name in ("one", "other")]
        for folder in folders:
            folder.mkdir()
        workers = [started(*words(folders[0], class_folders, *LONG, *storage), cwd=tmp_path)]
        wait((folders[0] / "study/study.yaml").exists, workers)
        workers.append(started(*words(folders[1], class_folders, *LONG, *storage), cwd=tmp_path))
        wait(lambda: len(_pids(rows(driver))) == 2, workers)
        database.kill()
        wait(lambda: any("does not respond" in (one.folder / "out").read_text() for one in workers), workers)
        database.start()
        ended = [worker.end() for worker in workers]
        assert [one.returncode for one in ended] == [0, 0], ended
        found = rows(driver)
        check_trials(found)
        assert len(_pids(found)) == 2, "both have worked"
        assert any("responds again" in one.stdout for one in ended), ended
        done = effnetv2("search", "show", folders[1] / "study", "--json", cwd=tmp_path)
        assert len(json.loads(done.stdout)["rows"]) == TRIALS, done.stderr


def test_unreachable_server_is_refused_without_showing_its_password(class_folders, tmp_path):
    nowhere = ("--storage", "postgresql://tester:secret@127.0.0.1:9/postgres", "--wait", "0.01")
    done = effnetv2(*words(tmp_path, class_folders, *nowhere), cwd=tmp_path)
    assert done.returncode == 2
    assert "could not be used" in done.stderr
    assert "secret" not in done.stderr + done.stdout


@pytest.mark.slow
def test_full_disk_stops_the_search_without_losing_trials(class_folders, tmp_path):
    """A full disk is simulated by a limit on the file size, which is the current size of the database."""
    done = effnetv2(*words(tmp_path, class_folders, "--trials", 1, "--sampler", "random"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    size = (tmp_path / "study/study.db").stat().st_size
    script = (
        "import resource, signal, sys\n"
        "from efficientnetv2.cli import main as cli\n"
        "if __name__ == '__main__':\n"
        "    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"    resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, resource.RLIM_INFINITY))\n"
        f"    sys.argv = ['effnetv2', 'search', 'resume', 'study', '--trials', '{TRIALS}', '--wait', '0.01']\n"
        "    cli.main()\n"
    )
    full = _script(script, tmp_path)
    assert full.returncode == 2, full.stderr
    assert "Traceback" not in full.stderr
    before = [one for one in rows(sqlite(tmp_path)) if one.state.is_finished()]
    assert before
    done = effnetv2("search", "resume", tmp_path / "study", "--trials", TRIALS, "--workers", 0, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    check_trials(rows(sqlite(tmp_path)))


def _script(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", text], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120,
    )  # fmt: skip
