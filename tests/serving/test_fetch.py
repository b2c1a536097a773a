"""URLs are fetched only if this is allowed, and never from an address that is not public."""

import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from starlette.testclient import TestClient
from tests.messages import mentions
from tests.serving.model_files import app_of, encoded

from efficientnetv2.serving import request_images

JPEG = encoded(0)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "224.0.0.1",
        "255.255.255.255", "::1", "::", "fe80::1%eth0", "fc00::1", "fec0::1", "ff02::1", "::ffff:127.0.0.1",
        "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::a00:1", "64:ff9b:1::a00:1",
    ],
)  # fmt: skip
def test_addresses_of_this_machine_and_its_network_are_not_public(address):
    assert not request_images.is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_other_addresses_are_public(address):
    assert request_images.is_public(address)


class _Handler(BaseHTTPRequestHandler):
    resumed = threading.Event()

    def do_GET(self):
        targets = {
            "/to": "/photo.jpg", "/loop": "/loop", "/out": "file:///etc/passwd", "/in": "http://10.0.0.1/",
            "/bad": "http://x:y/", "/port": "http://127.0.0.1:99999/",
        }  # fmt: skip
        if self.path == "/never":
            self.resumed.wait(30)
            return
        if self.path in targets:
            self.send_response(302)
            self.send_header("Location", targets[self.path])
            self.end_headers()
            return
        content = {"/photo.jpg": JPEG, "/large": bytes(200_000), "/half": bytes(60_000)}.get(self.path)
        self.send_response(404 if content is None else 200)
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def url():
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    _Handler.resumed.set()
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def fetching(model):
    with TestClient(app_of(model, allow_urls=True, max_bytes=100_000)) as client:
        yield client


def test_private_address_is_refused(fetching, url):
    for private in (url, "http://localhost/a.jpg", "http://[::1]/a.jpg", "http://2130706433/a.jpg"):
        response = fetching.post("/predict", json={"url": private})
        assert response.status_code == 403, private
        assert mentions(response.json()["error"], "private")


@pytest.mark.parametrize(
    "wrong",
    [
        "file:///etc/passwd", "ftp://example.com/a.jpg", "http://", "a.jpg", "http://u:p@h/a", "http://x:y/",
        "http://8.8.8.8:99999/a.jpg", "http://8.8.8.8:0/a.jpg", "http://8.8.8.8:-1/a.jpg",
        pytest.param(f"http://8.8.8.8/{'é' * 30_000}", id="too long when quoted"),
    ],
)  # fmt: skip
def test_url_of_another_scheme_is_refused(fetching, wrong):
    assert fetching.post("/predict", json={"url": wrong}).status_code == 400


def test_host_is_looked_up_as_it_is_encoded(fetching, monkeypatch):
    """Python encodes faß.de as fass.de, which is another domain."""
    hosts = []

    def lookup(host, *_, **__):
        hosts.append(host)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    for host in ("xn--fa-hia.de", "faß.de", "xn--bcher-kva.my_bucket.example"):
        assert fetching.post("/predict", json={"url": f"https://{host}/a.jpg"}).status_code == 422
    assert hosts == ["xn--fa-hia.de", "xn--fa-hia.de", "xn--bcher-kva.my_bucket.example"]


def addresses(monkeypatch, port, *hosts):
    """Give each host name these addresses, once. Return the list of names that are looked up."""
    lookups = []

    def lookup(host, *_, **__):
        lookups.append(host)
        if len(lookups) > 1:
            raise socket.gaierror
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in hosts]

    monkeypatch.setattr(request_images, "is_public", lambda address: not address.startswith("10."))
    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    return lookups


def test_connection_goes_to_the_address_that_was_checked(fetching, url, monkeypatch):
    port = int(url.rpartition(":")[2])
    lookups = addresses(monkeypatch, port, "127.0.0.1")
    response = fetching.post("/predict", json={"url": f"http://photos.example:{port}/photo.jpg"})
    assert (response.status_code, lookups) == (200, ["photos.example"])


def test_host_with_a_private_address_among_others_is_refused(fetching, url, monkeypatch):
    port = int(url.rpartition(":")[2])
    addresses(monkeypatch, port, "127.0.0.1", "10.0.0.1")
    response = fetching.post("/predict", json={"url": f"http://photos.example:{port}/photo.jpg"})
    assert response.status_code == 403
    assert mentions(response.json()["error"], "private")


def test_image_is_fetched_from_a_public_address(fetching, url, monkeypatch):
    monkeypatch.setattr(request_images, "is_public", lambda address: not address.startswith("10."))
    sent = fetching.post("/predict", files={"image": JPEG}).json()["predictions"]
    assert fetching.post("/predict", json={"url": f"{url}/photo.jpg"}).json()["predictions"] == sent
    found = fetching.post("/predict", json={"urls": [f"{url}/to", f"{url}/photo.jpg"]}).json()["predictions"]
    assert found == sent * 2
    expected = {"/none": 422, "/bad": 400, "/loop": 422, "/large": 413, "/out": 400, "/in": 403, "/port": 400}
    assert {path: fetching.post("/predict", json={"url": url + path}).status_code for path in expected} == expected


def test_images_of_urls_count_toward_the_bytes_of_a_request(fetching, url, monkeypatch):
    monkeypatch.setattr(request_images, "is_public", lambda address: True)
    one, two = (fetching.post("/predict", json={"urls": [f"{url}/half"] * count}) for count in (1, 2))
    assert (one.status_code, two.status_code) == (415, 413)
    assert mentions(two.json()["error"], "100,000 bytes")
    intake = fetching.app.state.service.intake
    assert intake.buffered == 0
    monkeypatch.setattr(intake, "buffered", 16 * 100_000 - 50_000)
    assert fetching.post("/predict", json={"url": f"{url}/half"}).status_code == 429


def test_host_that_does_not_respond_is_named(model, url, monkeypatch):
    monkeypatch.setattr(request_images, "is_public", lambda address: True)
    with TestClient(app_of(model, allow_urls=True, timeout=1)) as client:
        response = client.post("/predict", json={"url": f"{url}/never"})
    assert response.status_code == 422
    assert mentions(response.json()["error"], f"{url}/never", "respond", "1 s")
