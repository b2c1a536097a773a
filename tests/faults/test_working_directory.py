"""Files of the user in the working directory are never run as modules."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from tests.command_line import effnetv2_fresh

# Modules that Python imports when it starts a process, or that the program imports.
MODULES = ("socket", "selectors", "tempfile", "numpy", "PIL", "torch", "optuna")

STARTS_A_PROCESS = """
import multiprocessing, sys
from efficientnetv2.cli import main as cli

def started():
    context = multiprocessing.get_context(sys.argv[1])
    process = context.Process(target=print, args=("started",))
    process.start()
    process.join()

cli.app = started
if __name__ == "__main__":
    cli.main()
"""


@pytest.fixture
def trapped(tmp_path):
    """A folder of modules that write to a file when they are run."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in MODULES:
        (folder / f"{name}.py").write_text(
            f"open({str(tmp_path / 'run')!r}, 'a').write('{name} ')\nraise SystemExit(3)"
        )
    return folder


@pytest.mark.parametrize("way", ["forkserver", "spawn"])
def test_child_process_runs_no_module_of_the_working_directory(way, trapped, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/program.py").write_text(STARTS_A_PROCESS)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "elsewhere/program.py"), way], cwd=trapped, env=_environment(),
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert not (tmp_path / "run").exists(), (tmp_path / "run").read_text()
    assert "started" in done.stdout, done.stderr


def test_program_as_a_module_runs_no_module_of_the_working_directory(trapped, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    done = effnetv2_fresh("models", cwd=trapped)
    assert not (tmp_path / "run").exists(), (tmp_path / "run").read_text()
    assert done.returncode == 0, done.stderr


def _environment():
    return {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
