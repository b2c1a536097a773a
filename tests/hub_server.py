"""A server on this machine that speaks the protocol of the Hugging Face hub, faults included.

As the hub does: HEAD of ``/{repository}/resolve/{revision}/{file}`` states commit, size and SHA-256 and redirects to
another host, whose answers may be asked for in ranges. Files under ``/models/`` are served as PyTorch's server does.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer:
    """What it has, how it fails, and what it was asked.

    Args:
        port: that it listens on.

    Attributes:
        files: content by path, e.g. ``timm/tf_efficientnetv2_b0.in1k/model.safetensors``, ``models/x.pth``.
        breaks: after how many bytes each of the coming transfers breaks off; none left, none does.
        status: of every answer, instead of the right one.
        other_content: sends zeros in place of the content.
        no_hash: states no SHA-256.
        no_ranges: sends the whole content whatever range is asked for.
        pause_s: before every 64 KiB.
        stalls: never sends the content.
        drips: sends a byte at a time.
        endless: sends zeros behind the content, and does not say how much it sends.
        asked: method, path and range of every request.
    """

    def __init__(self, port: int) -> None:
        self.url, self.cdn = f"http://127.0.0.1:{port}", f"http://localhost:{port}"
        self.files: dict[str, bytes] = {}
        self.breaks: list[int] = []
        self.status: int | None = None
        self.other_content = self.no_hash = self.no_ranges = self.stalls = False
        self.drips = self.endless = False
        self.pause_s = 0.0
        self.asked: list[tuple[str, str, str | None]] = []
        self.closing = threading.Event()

    def transfers(self) -> list[str | None]:
        """The range of every request for content."""
        return [wanted for method, path, wanted in self.asked if method == "GET" and "/resolve/" not in path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self) -> None:
        hub = self.hub
        hub.asked.append((self.command, self.path, self.headers.get("Range")))
        named = re.fullmatch(r"/(.+)/resolve/main/(.+)", self.path)
        path = f"{named[1]}/{named[2]}" if named else self.path.removeprefix("/cdn").removeprefix("/")
        if hub.status is not None or path not in hub.files:
            self._headers(hub.status or 404, {"Content-Length": "0"})
        elif named:
            content = hub.files[path]
            sha256 = "abc123" if hub.no_hash else hashlib.sha256(content).hexdigest()
            self._headers(
                302,
                {
                    "X-Repo-Commit": COMMIT,
                    "X-Linked-Etag": f'"{sha256}"',
                    "X-Linked-Size": str(len(content)),
                    "ETag": '"of-the-pointer"',
                    "Location": f"{hub.cdn}/cdn/{path}",
                    "Content-Length": "0",
                },
            )
        else:
            self._content(hub.files[path])

    def _headers(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _content(self, content: bytes) -> None:
        hub = self.hub
        wanted = None if hub.no_ranges else self.headers.get("Range")
        start = int((wanted or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        total = len(content)
        if start >= total:
            self._headers(416, {"Content-Range": f"bytes */{total}", "Content-Length": "0"})
            return
        headers = {"Connection": "close"} if hub.endless else {"Content-Length": str(total - start)}
        if start:
            headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
        self._headers(206 if start else 200, headers)
        if self.command == "HEAD":
            return
        for position in range(start, total if hub.drips else start):
            self.wfile.write(content[position : position + 1])
            hub.closing.wait(0.01)
        if hub.stalls:
            hub.closing.wait()
        content = bytes(total) if hub.other_content else content
        end = total if not hub.breaks else start + hub.breaks.pop(0)
        for position in range(start, min(end, total), 2**16):
            time.sleep(hub.pause_s)
            self.wfile.write(content[position : min(position + 2**16, end)])
        self.close_connection = self.close_connection or end < total or hub.endless
        while hub.endless and not hub.closing.is_set():
            self.wfile.write(bytes(2**16))


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:  # a client that went away is part of the tests
        pass


@contextmanager
def serving() -> Iterator[HubServer]:
    """A hub that runs until the end of the block."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        hub = HubServer(server.server_address[1])
        server.RequestHandlerClass = type("Handler", (_Handler,), {"hub": hub})  # type: ignore[assignment]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.closing.set()
            server.shutdown()
            thread.join()
