"""Server that implements the protocol of the Hugging Face hub, with simulated faults.

HEAD of ``/{repository}/resolve/{revision}/{file}`` returns commit, size and SHA-256, and redirects to another host that
supports ranges. Files under ``/models/`` are served as by PyTorch's server. An API lists and creates repositories, and
adds commits. The files of a commit are in the request, or were uploaded before as LFS objects.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer:
    """Files, simulated faults and recorded requests.

    Args:
        port: Port of the server.

    Attributes:
        files: Content by path, e.g. ``timm/tf_efficientnetv2_b0.in1k/model.safetensors``, ``models/x.pth``.
        breaks: Number of bytes after which each of the next transfers stops. If empty, transfers are complete.
        status: Status of all responses. None returns the correct status.
        other_content: Send zeros instead of the content.
        no_hash: Omit the SHA-256.
        no_ranges: Send the whole content for each range.
        pause_s: Seconds to wait before each 64 KiB.
        stalls: Never send the content.
        drips: Send one byte at a time.
        endless: Send zeros after the content, and omit the content length.
        asked: Method, path and range of each request.
        token: Token with write access. None accepts each token.
        owner: Owner of the repositories with write access.
        repositories: Parameters of each created repository, by name.
        heads: Last commit of each repository that was created or changed.
        commits: Commit messages.
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
        self.token, self.owner = "hf_right", "owner"
        self.repositories: dict[str, dict[str, Any]] = {}
        self.heads: dict[str, str] = {}
        self.commits: list[str] = []
        self.objects: dict[str, bytes] = {}
        self.closing = threading.Event()

    def transfers(self) -> list[str | None]:
        """Return the range of each request for content."""
        return [wanted for method, path, wanted in self.asked if method == "GET" and "/resolve/" not in path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def do_HEAD(self) -> None:
        self._respond()

    def do_GET(self) -> None:
        self._respond()

    def do_PUT(self) -> None:
        oid = self.path.removeprefix("/lfs/")
        self.hub.objects[oid] = self.rfile.read(int(self.headers["Content-Length"]))
        assert hashlib.sha256(self.hub.objects[oid]).hexdigest() == oid
        self._json({})

    def do_POST(self) -> None:
        hub = self.hub
        hub.asked.append((self.command, self.path, None))
        lines = [json.loads(line) for line in self._body().splitlines() if line]
        if hub.status is not None:
            self._headers(hub.status, {"Content-Length": "0"})
        elif self.path == "/api/validate-yaml":
            wrong = re.search(r"^license: .* ", lines[0]["content"], re.MULTILINE)
            errors = [{"message": '"license" must be a known one'}] if wrong else []
            self._json({"errors": errors, "warnings": []}, status=400 if wrong else 200)
        elif self.headers.get("Authorization") != f"Bearer {hub.token}":
            self._error(401, message="Invalid credentials in Authorization header")
        elif self.path == "/api/repos/create":
            name = f"{lines[0]['organization']}/{lines[0]['name']}"
            if not name.startswith(f"{hub.owner}/"):
                self._error(403, message="You don't have the rights to create a model under this namespace")
                return
            if name in hub.repositories:
                self._error(409, message="You already created this model repo")
                return
            hub.repositories[name] = lines[0]
            hub.heads[name] = hashlib.sha1(name.encode()).hexdigest()
            self._json({"url": f"{hub.url}/{name}", "name": name})
        elif self.path.endswith("/preupload/main"):
            files = [
                {"path": one["path"], "shouldIgnore": False}
                | {"uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular"}
                for one in lines[0]["files"]
            ]
            self._json({"files": files})
        elif self.path.endswith(".git/info/lfs/objects/batch"):
            self._json(
                {
                    "transfer": "basic",
                    "objects": [
                        one | {"actions": {"upload": {"href": f"{hub.url}/lfs/{one['oid']}"}}}
                        for one in lines[0]["objects"]
                    ],
                }
            )
        else:
            self._commit(self.path.removeprefix("/api/models/").removesuffix("/commit/main"), lines)

    def _commit(self, repository: str, lines: list[dict[str, Any]]) -> None:
        head = self.hub.heads[repository]
        if lines[0]["value"].get("parentCommit", head) != head:
            self._error(412, message="A commit has happened since. Please refresh and try again.")
            return
        self.hub.heads[repository] = head = hashlib.sha1(head.encode()).hexdigest()
        for one in lines:
            value = one["value"]
            if one["key"] == "header":
                self.hub.commits.append(value["summary"])
            elif one["key"] == "file":
                self.hub.files[f"{repository}/{value['path']}"] = base64.b64decode(value["content"])
            else:
                self.hub.files[f"{repository}/{value['path']}"] = self.hub.objects[value["oid"]]
        self._json({"commitUrl": f"{self.hub.url}/{repository}/commit/{head}", "commitOid": head})

    def _list(self, repository: str) -> None:
        hub = self.hub
        if self.headers.get("Authorization") != f"Bearer {hub.token}":
            self._error(401, message="Invalid credentials in Authorization header")
        elif repository not in hub.repositories:
            self._error(404, code="RepoNotFound", message="Repository not found")
        else:
            names = [path.removeprefix(f"{repository}/") for path in hub.files if path.startswith(f"{repository}/")]
            private = hub.repositories[repository].get("visibility") == "private"
            files = [{"rfilename": name} for name in names]
            self._json({"id": repository, "sha": hub.heads[repository], "private": private, "siblings": files})

    def _body(self) -> bytes:
        if (length := self.headers.get("Content-Length")) is not None:
            return self.rfile.read(int(length))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _json(self, plain: Any, *, status: int = 200) -> None:
        content = json.dumps(plain).encode()
        self._headers(status, {"Content-Type": "application/json", "Content-Length": str(len(content))})
        self.wfile.write(content)

    def _error(self, status: int, *, message: str, code: str = "") -> None:
        self._headers(status, {"X-Error-Message": message, "X-Error-Code": code, "Content-Length": "0"})

    def log_message(self, *_: Any) -> None:
        pass

    def _respond(self) -> None:
        hub = self.hub
        hub.asked.append((self.command, self.path, self.headers.get("Range")))
        listed = re.fullmatch(r"/api/models/([^?]+)", self.path)
        if listed and hub.status is None:
            self._list(listed[1])
            return
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
                    "X-Repo-Commit": hub.heads.get(named[1], COMMIT),
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

    def handle_error(self, *_: Any) -> None:  # some tests close the connection early
        pass


@contextmanager
def serving() -> Iterator[HubServer]:
    """Run a hub until the end of the block."""
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
