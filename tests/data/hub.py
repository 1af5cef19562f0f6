"""A loopback hub: the real routes of a dataset repository, what was asked of it, and every way to fail.

GET  /api/datasets/OWNER/NAME/revision/REV          the commit of a name
GET  /api/datasets/OWNER/NAME/tree/REV[/FOLDER]     listing with LFS hashes, in parts with a Link to the next
GET  /datasets/OWNER/NAME/resolve/REV/PATH          302 to the storage, with size, hash and commit
GET  /storage/REV/PATH                              206, the range asked for
"""

import hashlib
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

LISTED_AT_ONCE = 5


@dataclass(frozen=True)
class Fault:
    """What becomes of one request whose path contains `where`."""

    where: str = ""
    status: int = 0  # answer this instead
    headers: Mapping[str, str] = field(default_factory=dict)  # in that answer; or instead of the true ones
    keep: float = 1.0  # share of the body that is sent before the connection closes
    more: int = 0  # bytes of the file after those asked for, in the same body
    garble: bool = False  # bytes changed on the way
    stall: float = 0.0  # seconds of silence inside the body
    times: int = 1


@dataclass
class LoopbackHub:
    """A repository at one commit, served on 127.0.0.1."""

    repo: str
    commit: str
    files: dict[str, bytes]
    faults: list[Fault] = field(default_factory=list)
    bytes_per_second: float = 0.0
    requests: list[tuple[str, int, int]] = field(default_factory=list)  # path, first and last byte (-1: no range)
    sent: int = 0  # bytes of files
    url: str = ""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def record(self, path: str, first: int, last: int) -> Fault | None:
        """Note a request, and take the fault that is meant for it."""
        with self._lock:
            self.requests.append((path, first, last))
            for number, fault in enumerate(self.faults):
                if fault.where in path:
                    left = fault.times - 1
                    self.faults[number : number + 1] = [Fault(**{**vars(fault), "times": left})] if left else []
                    return fault
        return None

    def count(self, size: int) -> None:
        """Note bytes of a file that go out."""
        with self._lock:
            self.sent += size

    def ranges(self) -> list[tuple[str, int, int]]:
        """Ranges of files that were asked for: path, start, stop."""
        mark = f"/storage/{self.commit}/"
        return [(path.removeprefix(mark), a, b + 1) for path, a, b in self.requests if path.startswith(mark)]

    @contextmanager
    def serve(self) -> Iterator["LoopbackHub"]:
        """Serve until the block ends."""
        handler = type("Handler", (_Handler,), {"hub": self})
        server = _Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that leaves in the middle is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        first, last = self._range()
        fault = self.hub.record(path, first, last) or Fault()
        if fault.status:
            self._answer(fault.status, b"no", fault.headers)
            return
        repo, commit = self.hub.repo, self.hub.commit
        if path in (f"/api/datasets/{repo}/revision/{name}" for name in (commit, "main")):
            self._answer(200, json.dumps({"id": repo, "sha": commit}).encode())
        elif path.startswith(tree := f"/api/datasets/{repo}/tree/{commit}"):
            self._tree(path.removeprefix(tree).strip("/"), int(parse_qs(url.query).get("cursor", ["0"])[0]))
        elif (name := path.removeprefix(f"/datasets/{repo}/resolve/{commit}/")) in self.hub.files:
            self._resolve(name, fault)
        elif (name := path.removeprefix(f"/storage/{commit}/")) in self.hub.files:
            self._file(self.hub.files[name], first, last, fault)
        else:
            self._answer(404, b"not found")

    def _range(self) -> tuple[int, int]:
        asked = self.headers.get("Range", "")
        if not asked.startswith("bytes="):
            return -1, -1
        first, last = asked.removeprefix("bytes=").split("-")
        return int(first), int(last)

    def _tree(self, folder: str, cursor: int) -> None:
        names = [name for name in self.hub.files if not folder or name.startswith(f"{folder}/")]
        entries: list[dict[str, object]] = [{"type": "directory", "path": "data", "size": 0, "oid": "0" * 40}]
        for name in names[cursor : cursor + LISTED_AT_ONCE]:
            data = self.hub.files[name]
            lfs = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            entries.append({"type": "file", "path": name, "size": len(data), "oid": "1" * 40, "lfs": lfs})
        more = cursor + LISTED_AT_ONCE
        here = f"{self.hub.url}/api/datasets/{self.hub.repo}/tree/{self.hub.commit}/{folder}"
        link = {"Link": f'<{here}?recursive=true&cursor={more}>; rel="next"'} if more < len(names) else {}
        self._answer(200, json.dumps(entries).encode(), link)

    def _resolve(self, name: str, fault: Fault) -> None:
        data = self.hub.files[name]
        true = {
            "Location": f"{self.hub.url}/storage/{self.hub.commit}/{name}",
            "X-Repo-Commit": self.hub.commit,
            "X-Linked-Size": str(len(data)),
            "X-Linked-ETag": f'"{hashlib.sha256(data).hexdigest()}"',
        }
        self._answer(302, b"", {**true, **fault.headers})

    def _file(self, data: bytes, first: int, last: int, fault: Fault) -> None:
        if first < 0:
            self._answer(200, data)
            return
        if not first <= last < len(data):
            self._answer(416, b"")
            return
        body = data[first : last + 1 + fault.more]
        if fault.garble:
            body = bytes(byte ^ 0x55 for byte in body)
        self.send_response(206)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Range", fault.headers.get("Content-Range", f"bytes {first}-{last}/{len(data)}"))
        self.end_headers()
        kept = body[: int(len(body) * fault.keep)]
        self._send(kept, fault.stall)
        if len(kept) < len(body):
            self.close_connection = True

    def _send(self, body: bytes, stall: float) -> None:
        step = max(1, int(self.hub.bytes_per_second / 20)) if self.hub.bytes_per_second else max(1, len(body) // 2)
        try:
            for at in range(0, len(body), step):
                self.hub.count(len(body[at : at + step]))  # before: who has read it all finds all of it counted
                self.wfile.write(body[at : at + step])
                self.wfile.flush()
                time.sleep(stall or (0.05 if self.hub.bytes_per_second else 0))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        try:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
