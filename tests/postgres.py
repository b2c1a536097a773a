"""PostgreSQL server of a test, which can be killed and restarted."""

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

# Debian installs the programs outside of PATH.
_PLACES = ("/usr/lib/postgresql/*/bin", "/usr/local/pgsql/bin", "/opt/homebrew/opt/postgresql*/bin")


def program(name: str) -> str | None:
    """Return the path of a PostgreSQL program. None if it is not installed."""
    found = shutil.which(name)
    installed = [str(path) for pattern in _PLACES for path in Path("/").glob(f"{pattern[1:]}/{name}")]
    return found or (sorted(installed)[-1] if installed else None)


class Server:
    """Server that listens on this machine only and requires no password.

    Args:
        folder: Empty folder for its data.
        user: User of the server, which refuses to run as root. None runs it as the current user.
    """

    def __init__(self, folder: Path, user: str | None) -> None:
        self.folder, self.user, self.port = folder, user, free_port()
        self.url = f"postgresql://tester@127.0.0.1:{self.port}/postgres"
        make = [program("initdb"), "-D", folder / "data", "-U", "tester", "-A", "trust", "--no-sync"]
        subprocess.run(make, check=True, user=user, cwd=folder, capture_output=True)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server. Retry while parts of a killed server are still running."""
        command = [
            program("postgres"), "-D", self.folder / "data", "-p", str(self.port), "-k", self.folder,
            "-c", "listen_addresses=127.0.0.1",
        ]  # fmt: skip
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with (self.folder / "log.txt").open("ab") as log:
                self._process = subprocess.Popen(command, user=self.user, cwd=self.folder, stdout=log, stderr=log)
            while self._process.poll() is None:
                if self._is_ready():
                    return
                time.sleep(0.05)
        raise TimeoutError((self.folder / "log.txt").read_text())

    def kill(self) -> None:
        """Kill the server, as a power failure would."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait()

    def _is_ready(self) -> bool:
        ready = program("pg_isready")
        if ready is None:
            with socket.socket() as one:
                return one.connect_ex(("127.0.0.1", self.port)) == 0
        command = [ready, "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(command, check=False).returncode == 0


@contextmanager
def server() -> Iterator[Server]:
    """Run a server. Skip the test if PostgreSQL is not installed."""
    if program("initdb") is None or program("postgres") is None:
        pytest.skip("needs PostgreSQL (Debian: apt install postgresql)")
    user = None
    if os.geteuid() == 0:
        names = {one.pw_name for one in pwd.getpwall()}
        user = next((name for name in ("postgres", "nobody") if name in names), None)
        if user is None:
            pytest.skip("PostgreSQL does not run as root, and there is no other user")
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # the path of a socket must be short
    if user is not None:
        os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
    one = Server(folder, user)
    one.start()
    try:
        yield one
    finally:
        one.stop()
        shutil.rmtree(folder, ignore_errors=True)
