"""A PostgreSQL server of a test's own, which may be killed and started again."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.processes import free_port

# Debian's package puts them where no shell looks.
_PLACES = ("/usr/lib/postgresql/*/bin", "/usr/local/pgsql/bin", "/opt/homebrew/opt/postgresql*/bin")


def program(name: str) -> str | None:
    """A program of PostgreSQL's, if it is installed."""
    found = shutil.which(name)
    others = [str(path) for place in _PLACES for path in Path("/").glob(f"{place[1:]}/{name}")]
    return found or (sorted(others)[-1] if others else None)


class Server:
    """A server that listens on this machine alone and trusts everybody.

    Args:
        folder: of its data, empty.
        user: it runs as; None as whoever runs the test. It refuses to run as root.
    """

    def __init__(self, folder: Path, user: str | None) -> None:
        self.folder, self.user, self.port = folder, user, free_port()
        self.url = f"postgresql://tester@127.0.0.1:{self.port}/postgres"
        make = [program("initdb"), "-D", folder / "data", "-U", "tester", "-A", "trust", "--no-sync"]
        subprocess.run(make, check=True, user=user, cwd=folder, capture_output=True)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Let it serve; again and again while parts of one that was killed are still there."""
        words = [
            program("postgres"), "-D", self.folder / "data", "-p", str(self.port), "-k", self.folder,
            "-c", "listen_addresses=127.0.0.1",
        ]  # fmt: skip
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with (self.folder / "log.txt").open("ab") as log:
                self._process = subprocess.Popen(words, user=self.user, cwd=self.folder, stdout=log, stderr=log)
            while self._process.poll() is None:
                if self._answers():
                    return
                time.sleep(0.05)
        raise TimeoutError((self.folder / "log.txt").read_text())

    def kill(self) -> None:
        """As a power cut would."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        """Let it end."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait()

    def _answers(self) -> bool:
        ready = program("pg_isready")
        if ready is None:
            with socket.socket() as one:
                return one.connect_ex(("127.0.0.1", self.port)) == 0
        words = [ready, "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(words, check=False).returncode == 0


@contextmanager
def server() -> Iterator[Server]:
    """A server that runs; the test is skipped where PostgreSQL is not installed."""
    if program("initdb") is None or program("postgres") is None:
        pytest.skip("needs PostgreSQL (Debian: apt install postgresql)")
    user = None
    if os.geteuid() == 0:
        names = {one.pw_name for one in pwd.getpwall()}
        user = next((name for name in ("postgres", "nobody") if name in names), None)
        if user is None:
            pytest.skip("PostgreSQL does not run as root, and there is no other user")
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # a socket's path has to be short
    if user is not None:
        os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
    one = Server(folder, user)
    one.start()
    try:
        yield one
    finally:
        one.stop()
        shutil.rmtree(folder, ignore_errors=True)
