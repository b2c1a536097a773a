"""The command as a process: it prints its address, loses no request at its end, and withstands bad clients."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx2
import numpy as np
import pytest
import yaml
from tests.command_line import started
from tests.messages import mentioning, mentions
from tests.processes import free_port
from tests.serving.model_files import NAMES, encoded, write_model

import efficientnetv2 as ev2
from efficientnetv2.serving import serve
from efficientnetv2.utils.errors import InputError

JPEG = encoded(0)
EXAMPLES = Path(__file__).parents[2] / "examples/serving"


class Served:
    """A running server."""

    def __init__(self, model, folder, *options):
        self.port = free_port()
        args = ("serve", model, "--port", self.port, "--device", "cpu", "--engine", "torch", *options)
        self.process = started(*args, cwd=folder)
        self.url = f"http://127.0.0.1:{self.port}"
        self.wait_for(lambda: self.get("/v2/health/ready").status_code == 200)

    def wait_for(self, condition, seconds=60):
        until = time.monotonic() + seconds
        while True:
            assert time.monotonic() < until, "it has not come to pass"
            assert self.process.is_running()
            with suppress(httpx2.TransportError):
                if condition():
                    return
            time.sleep(0.02)

    def get(self, path):
        return httpx2.get(self.url + path, timeout=60, trust_env=False)

    def predict(self):
        return httpx2.post(f"{self.url}/predict", files={"image": JPEG}, timeout=60, trust_env=False)

    def signal(self, number):
        os.kill(self.process.process.pid, number)

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("process")
    file = write_model(folder / "tiny.safetensors")
    server = Served(file, folder, "--max-bytes", "200000", "--max-wait-ms", "0")
    server.file = file
    yield server
    server.process.kill()


def mutated(content, random):
    """Return a file with some bytes changed, removed, repeated or truncated."""
    content = bytearray(content)
    for _ in range(int(random.integers(1, 6))):
        at = int(random.integers(len(content)))
        end = at + int(random.integers(1, 200))
        match random.integers(4):
            case 0:
                content[at] ^= 1 << int(random.integers(8))
            case 1:
                del content[at:end]
            case 2:
                content[at:at] = content[at:end]
            case _:
                content[at:end] = random.bytes(min(end, len(content)) - at)
        if len(content) < 2:
            break
    return bytes(content)


def test_mutated_images_never_end_the_process(served):
    """2,000 files of six formats are predicted or refused, and the server still responds."""
    files = [encoded(0, format) for format in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")]
    random = np.random.default_rng(0)
    contents = [mutated(files[number % len(files)], random) for number in range(2000)]

    def send(content):  # a new client for each file would read all certificates again
        return client.post(f"{served.url}/predict", files={"image": ("a.jpg", content)}).status_code

    before = served.predict().json()
    with httpx2.Client(timeout=60, trust_env=False) as client, ThreadPoolExecutor(8) as clients:
        statuses = Counter(clients.map(send, contents))
    assert served.predict().json() == before
    assert set(statuses) <= {200, 413, 415, 422}
    assert min(statuses[200], statuses[415], statuses[422]) > 50, "the mutations are too weak or too strong"
    assert served.process.is_running()


# Root writes anywhere, so a read-only disk is imitated: home is in /proc, and there is no temporary folder.
ON_READ_ONLY_DISK = """
import os, sys, tempfile
os.environ |= {"HOME": "/proc/none", "MPLCONFIGDIR": "/proc/none"}
tempfile.tempdir = "/proc/none"
sys.argv[0] = "effnetv2"
from efficientnetv2.cli.main import main
main()
"""


def test_only_heat_maps_need_a_writable_folder(model, tmp_path):
    port = free_port()
    args = ("serve", model, "--port", port, "--device", "cpu", "--engine", "torch")
    process = subprocess.Popen([sys.executable, "-c", ON_READ_ONLY_DISK, *map(str, args)], cwd=tmp_path)
    try:
        url = f"http://127.0.0.1:{port}/predict"
        with httpx2.Client(timeout=60, trust_env=False) as client:
            until = time.monotonic() + 60
            while True:
                assert time.monotonic() < until
                assert process.poll() is None
                with suppress(httpx2.TransportError):
                    plain = client.post(url, files={"image": JPEG})
                    break
                time.sleep(0.1)
            explained = client.post(f"{url}?explain=true", files={"image": JPEG})
    finally:
        process.kill()
        process.wait()
    assert plain.status_code == 200
    assert explained.status_code == 503
    assert mentions(explained.json()["error"], "explain", "writable folder")


def test_stop_waits_for_accepted_requests(model, tmp_path):
    server = Served(model, tmp_path, "--max-wait-ms", "1500", "--batch-size", "64")
    with ThreadPoolExecutor(12) as clients:
        responses = [clients.submit(server.predict) for _ in range(12)]
        server.wait_for(lambda: 'queue_images{model="tiny"} 12\n' in server.get("/metrics").text)
        server.signal(signal.SIGTERM)
        assert [one.result().status_code for one in responses] == [200] * 12
    done = server.process.end(timeout=30)
    assert done.returncode == 0
    assert mentions(done.stdout, f"{server.url}/predict", "curl")
    assert done.stderr == ""
    with pytest.raises(httpx2.ConnectError):
        server.predict()


def test_stop_loses_no_request_of_clients_that_keep_sending(model, tmp_path):
    server = Served(model, tmp_path, "--max-wait-ms", "5")

    def send_until_it_ends(_):
        statuses = []
        with httpx2.Client(timeout=60, trust_env=False) as client:
            while True:
                try:
                    statuses.append(client.post(f"{server.url}/predict", files={"image": JPEG}).status_code)
                except httpx2.ConnectError:
                    return statuses

    with ThreadPoolExecutor(4) as clients:
        sent = clients.map(send_until_it_ends, range(4))
        server.wait_for(lambda: 'route="/predict",status="200"' in server.get("/metrics").text)
        server.signal(signal.SIGTERM)
        statuses = [status for one in sent for status in one]
    assert set(statuses) == {200}
    assert server.process.end(timeout=30).returncode == 0


def test_ctrl_c_ends_the_server_and_an_open_server_without_a_key_warns(model, tmp_path):
    server = Served(model, tmp_path, "--host", "0.0.0.0")
    server.signal(signal.SIGINT)
    done = server.process.end(timeout=30)
    assert done.returncode == 130
    assert mentions(done.stderr, "0.0.0.0", "--api-key-file")


def test_endless_body_is_refused_and_the_next_request_is_served(served):
    head = b"POST /predict HTTP/1.1\r\nHost: server\r\nContent-Type: image/jpeg\r\nTransfer-Encoding: chunked\r\n\r\n"
    with served.connect() as client:
        client.sendall(head)
        response = b""
        client.settimeout(0.001)
        with suppress(ConnectionError):  # the server closes the connection
            while b"\r\n\r\n" not in response:
                client.sendall(b"2710\r\n" + bytes(10_000) + b"\r\n")
                with suppress(TimeoutError):
                    response += client.recv(10_000)
    assert served.predict().status_code == 200
    assert b"413" in response.partition(b"\r\n")[0]


def test_clients_that_disconnect_do_no_harm(served):
    head = b"POST /predict HTTP/1.1\r\nHost: server\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(
        JPEG
    )
    for sent in (b"", b"POST /pre", head, head + JPEG[:100], head + JPEG):
        with served.connect() as client:
            client.sendall(sent)
    assert served.predict().status_code == 200
    served.wait_for(lambda: "effnetv2_open_requests 1\n" in served.get("/metrics").text)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")
def test_signal_reloads_the_model(served):
    assert served.get("/v2/models/tiny").json()["parameters"]["classes"] == list(NAMES)
    write_model(served.file, names=("a", "b"))
    served.signal(signal.SIGHUP)

    def is_new():
        assert served.predict().status_code == 200
        return served.get("/v2/models/tiny").json()["parameters"]["classes"] == ["a", "b"]

    served.wait_for(is_new)


def test_address_in_use_is_refused(model, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = started("serve", model, "--port", port, cwd=tmp_path).end()
    assert done.returncode == 2
    assert mentions(done.stderr, f"--port {port}") or mentions(done.stderr, "--port", port)


def test_missing_model_is_refused(tmp_path):
    done = started("serve", "none.safetensors", "--port", 0, cwd=tmp_path).end()
    assert done.returncode == 2
    assert mentions(done.stderr, "none.safetensors")


def test_triton_client_library_classifies_files(served, tmp_path):
    pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")
    files = []
    for number in range(3):
        files.append(tmp_path / f"{number}.jpg")
        files[-1].write_bytes(encoded(number))
    command = [sys.executable, EXAMPLES / "classify.py", f"127.0.0.1:{served.port}", "tiny", *files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    predicted = [ev2.Predictor(served.file, device="cpu")(file)[0] for file in files]
    assert done.stdout.splitlines() == [
        f"{file},{found.label},{found.probability:.4f}" for file, found in zip(files, predicted, strict=True)
    ]


def test_notebook_can_serve_in_a_thread_only(model):
    """Its own thread has an event loop."""

    async def cell():
        serve({"tiny": model}, port=free_port())

    with pytest.raises(InputError, match=mentioning("event loop", "effnetv2 serve")):
        asyncio.run(cell())
    program = (
        "import os, queue, sys, threading\n"
        "import httpx2\n"
        "from efficientnetv2.serving import ServerOptions, serve\n"
        "urls, options = queue.Queue(), ServerOptions(device='cpu', engine='torch')\n"
        "told = {'port': int(sys.argv[2]), 'on_start': lambda url, app: urls.put(url)}\n"
        "threading.Thread(target=serve, args=(sys.argv[1], options), kwargs=told, daemon=True).start()\n"
        "client = httpx2.Client(transport=httpx2.HTTPTransport(retries=20), trust_env=False)\n"
        "print(client.get(urls.get(timeout=60) + '/v2/health/live', timeout=60).status_code, flush=True)\n"
        "os._exit(0)\n"
    )
    command = [sys.executable, "-c", program, str(model), str(free_port())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "200\n", done.stderr


def test_kserve_manifest_starts_a_server_with_working_probes(model, tmp_path):
    manifest = yaml.safe_load((EXAMPLES / "kserve.yaml").read_text())
    (container,) = manifest["spec"]["predictor"]["containers"]
    port = str(free_port())
    given = {"classifier=/mnt/models": f"classifier={model}", "0.0.0.0": "127.0.0.1", "8080": port}
    assert set(given) <= set(container["args"])
    process = started(*[given.get(word, word) for word in container["args"]], cwd=tmp_path)
    probes = [container[kind]["httpGet"] for kind in ("startupProbe", "readinessProbe", "livenessProbe")]
    start = container["startupProbe"]  # otherwise a model that takes long to load is killed, again and again
    assert start["periodSeconds"] * start["failureThreshold"] >= 300
    assert {probe["port"] for probe in probes} == {8080}
    until, waiting = time.monotonic() + 60, {probe["path"] for probe in probes}
    while waiting:
        assert time.monotonic() < until
        assert process.is_running()
        with suppress(httpx2.TransportError):
            waiting = {
                path for path in waiting
                if httpx2.get(f"http://127.0.0.1:{port}{path}", timeout=60, trust_env=False).status_code != 200
            }  # fmt: skip
        time.sleep(0.02)
    process.kill()


def test_idle_connections_outlast_those_of_load_balancers(model, monkeypatch):
    """Those of AWS and nginx are idle for 60 s at most."""

    def config(app, **options):
        raise InputError(f"{options['timeout_keep_alive']} s")

    monkeypatch.setattr("efficientnetv2.serving.server.uvicorn.Config", config)
    with pytest.raises(InputError, match=r"^(6[1-9]|[7-9]\d|\d{3,}) s$"):
        serve({"tiny": model}, port=free_port())
