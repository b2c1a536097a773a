"""HTTP server for one folder, with range requests and simulated faults."""

from __future__ import annotations

import re
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class FileServer:
    """Served folder, simulated faults and recorded requests.

    Args:
        folder: Served folder.
        port: Port of the server.

    Attributes:
        no_ranges: Send the whole file for each range, as ``python -m http.server`` does.
        fail: Status of each of the next responses with content. If empty, requests succeed.
        lists: Show a folder as a page of links to its files.
        head_fails: Status of each response to a request without a range.
        asked: File name, first and last byte of each request with a range.
        headers: Of the last request.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.url = folder, f"http://127.0.0.1:{port}"
        self.no_ranges = self.lists = False
        self.fail: list[int] = []
        self.head_fails: int | None = None
        self.asked: list[tuple[str, int, int]] = []
        self.headers: dict[str, str] = {}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of_files: FileServer

    def do_HEAD(self) -> None:
        self._respond()

    def do_GET(self) -> None:
        self._respond()

    def log_message(self, *_: Any) -> None:
        pass

    def _respond(self) -> None:
        self.server_of_files.headers = dict(self.headers)
        server, file = self.server_of_files, self.server_of_files.folder / self.path.lstrip("/")
        if server.head_fails and (self.command == "HEAD" or "Range" not in self.headers):
            self._headers(server.head_fails, {"Content-Length": "0"})
            return
        status = server.fail.pop(0) if server.fail and self.command == "GET" else 200
        if status == 200 and server.lists and file.is_dir():
            page = "".join(f'<a href="{one.name}">{one.name}</a>\n' for one in sorted(file.iterdir())).encode()
            self._headers(200, {"Content-Type": "text/html", "Content-Length": str(len(page))})
            self.wfile.write(page)
            return
        if status != 200 or not file.is_file():
            self._headers(404 if status == 200 else status, {"Content-Length": "0"})
            return
        content = file.read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        headers = {"Accept-Ranges": "none" if server.no_ranges else "bytes", "ETag": f'"{zlib.crc32(content)}"'}
        if wanted and not server.no_ranges:
            first, last = int(wanted[1]), int(wanted[2] or len(content) - 1)
            server.asked.append((file.name, first, last))
            if first >= len(content):
                self._headers(416, {"Content-Range": f"bytes */{len(content)}", "Content-Length": "0"})
                return
            headers["Content-Range"] = f"bytes {first}-{min(last, len(content) - 1)}/{len(content)}"
            status, content = 206, content[first : last + 1]
        self._headers(status, headers | {"Content-Length": str(len(content))})
        if self.command == "GET":
            self.wfile.write(content)

    def _headers(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:  # some tests close the connection early
        pass


@contextmanager
def serving(folder: Path) -> Iterator[FileServer]:
    """Run a server until the end of the block."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        files = FileServer(folder, server.server_address[1])
        server.RequestHandlerClass = type("Handler", (_Handler,), {"server_of_files": files})  # type: ignore[assignment]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield files
        finally:
            server.shutdown()
            thread.join()
