"""The benchmark of the server: arithmetic, and a short load of a tiny server."""

from __future__ import annotations

import os
import shutil
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from benchmarks import server_load
from benchmarks.load_tool import Load, load, memory_mib, parsed, server
from benchmarks.server_load import CROWD, claims, overload

TABLE = """response-time,DNS+dialup,DNS,Request-write,Response-delay,Response-read,status-code,offset
0.1000,0.0,0.0,0.0,0.1,0.0,200,0.5
0.3000,0.0,0.0,0.0,0.3,0.0,200,1.0
0.0100,0.0,0.0,0.0,0.0,0.0,429,1.2
2.0000,0.0,0.0,0.0,2.0,0.0,200,0.5
"""


def test_table_of_the_tool_is_read():
    found = parsed(TABLE)
    assert (found.num_sent, found.num_lost, found.wall_s) == (4, 0, 2.0)
    assert found.served_per_s == pytest.approx(1.5)
    assert found.latency_ms(50) == pytest.approx(300)
    assert parsed(TABLE, 6).num_lost == 2
    assert parsed(TABLE.replace("429", "500")).num_lost == 1


def served(per_s, latency_s=0.1):
    return Load(per_s, np.full(per_s, 200), np.full(per_s, latency_s), 1.0)


def test_ratios_are_computed_by_round():
    speeds = {"batching": (30, 40), "single": (10, 10), "torch": (20, 20), "torch_single": (5, 8), "fastapi": (10, 20)}
    found = claims({name: [served(one) for one in values] for name, values in speeds.items()})
    assert found["server_batching_speedup"] == ("ratio", [3.0, 4.0])
    assert found["server_torch_batching_speedup"] == ("ratio", [4.0, 2.5])
    assert found["server_vs_fastapi"] == ("ratio", [3.0, 2.0])
    assert found["server_torch_vs_fastapi"] == ("ratio", [2.0, 1.0])
    assert found["server_p50_ms"] == ("ms", [pytest.approx(100)] * 2)


@pytest.mark.parametrize(("wall_s", "is_reached"), [(1.0, True), (5.0, False)])
def test_overload_counts_only_if_it_was_reached(wall_s, is_reached, tmp_path, monkeypatch):
    """A quarter of the requests is rejected, and one request gets status 500."""

    def send(port, image, clients, *bounds, number):
        statuses = np.array([429] * (number // 4) + [500] + [200] * (number - number // 4 - 1))
        return Load(number, statuses, np.full(number, 0.5), wall_s)

    monkeypatch.setattr(server_load, "load", send)
    monkeypatch.setattr(server_load, "memory_mib", lambda pid, key: {"VmRSS": 100.0, "VmHWM": 120.0}[key])
    monkeypatch.setattr(server_load, "forget_peak", lambda pid: None)
    found = overload(1, 1, tmp_path / "a.jpg", CROWD / 2, 2, 1.0)
    assert bool(found) == is_reached
    if is_reached:
        assert found["server_overload_429"] == ("fraction", [0.25] * 2)
        assert found["server_overload_lost"] == ("requests", [1.0] * 2)
        assert found["server_overload_memory"] == ("ratio", [1.2] * 2)


@contextmanager
def replying_server():
    """A server that accepts every second request with status 200 and rejects the others. Yields its port."""
    statuses = [429, 200] * 50

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            assert self.rfile.read(int(self.headers["Content-Length"])) == b"image"
            self.send_response(statuses.pop())
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield found.server_address[1]
        found.shutdown()
        thread.join()


@pytest.mark.skipif(shutil.which("hey") is None, reason="the load tool hey is not installed")
def test_every_request_of_a_load_is_counted(tmp_path):
    image = tmp_path / "image.jpg"
    image.write_bytes(b"image")
    with replying_server() as port:
        found = load(port, image, 2, number=20)
    assert (found.num_sent, found.num_lost) == (20, 0)
    assert (found.statuses == 429).sum() == 10


def test_command_that_exits_is_reported():
    with pytest.raises(SystemExit, match="did not start"), server("this"):
        pass


def test_memory_of_this_process_is_at_most_its_peak():
    assert 0 < memory_mib(os.getpid(), "VmRSS") <= memory_mib(os.getpid(), "VmHWM") + 1
