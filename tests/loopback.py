"""A web server on this machine that misbehaves on demand."""

from __future__ import annotations

import hashlib
import re
import socket
import struct
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PAGE = b"<html><body>Please log in to the network of this hotel.</body></html>"


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one answer; every field alone or together with others."""

    status: int = 200
    """An error status instead of the file."""
    headers: dict[str, str | None] = field(default_factory=dict)
    """Headers to add or replace; None leaves one out."""
    cut: int | None = None
    """Close the connection after so many bytes of the answer's body."""
    reset: int | None = None
    """Reset the connection after so many bytes."""
    stall: int | None = None
    """Send nothing more after so many bytes, but keep the connection."""
    ignore_range: bool = False
    """Send the whole file whatever is asked for."""
    body: bytes | None = None
    """Send these bytes with status 200 instead of the file."""
    replace: bytes | None = None
    """Replace the file on the server before answering."""
    redirect: str | None = None
    """Send the client elsewhere."""


class Loopback(ThreadingHTTPServer):
    """Serves ``files``, after the faults planned for each of them."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.faults: defaultdict[str, deque[Fault]] = defaultdict(deque)
        self.always: dict[str, Fault] = {}
        """Faults of answers for which none is planned."""
        self.etags = True
        self.rate: float | None = None
        """Bytes per second and connection."""
        self.log: list[tuple[str, str | None]] = []
        """Path and Range of each request."""
        self.closing = threading.Event()

    def url(self, path: str = "") -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{path}"

    def plan(self, path: str, *faults: Fault) -> None:
        """What goes wrong with the next answers about ``path``; after them all is well."""
        self.faults[path].extend(faults)

    def ranges(self, path: str) -> list[str | None]:
        """The Range headers of the requests so far."""
        return [asked for name, asked in self.log if name == path]

    def next_fault(self, path: str) -> Fault:
        try:
            return self.faults[path].popleft()
        except IndexError:
            return self.always.get(path, Fault())

    def handle_error(self, *_: Any) -> None:
        """Clients that go away are part of the game."""


@contextmanager
def serving() -> Iterator[Loopback]:
    with Loopback() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    server: Loopback
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:  # noqa: N802 (the name is http.server's)
        path = self.path[1:]
        self.server.log.append((path, self.headers.get("Range")))
        fault = self.server.next_fault(path)
        if fault.replace is not None:
            self.server.files[path] = fault.replace
        if fault.redirect is not None:
            self._reply(302, {"Location": fault.redirect, "Content-Length": "0"}, fault)
        elif fault.status != 200:
            self._reply(fault.status, {"Content-Length": "0"}, fault)
        elif fault.body is not None:
            self._reply(200, {"Content-Length": str(len(fault.body))}, fault)
            self._send(fault.body, fault)
        elif path not in self.server.files:
            self._reply(404, {"Content-Length": "0"}, fault)
        else:
            self._file(self.server.files[path], fault)

    def _file(self, data: bytes, fault: Fault) -> None:
        headers = {"Content-Type": "application/zip", "Accept-Ranges": "bytes"}
        etag = f'"{hashlib.md5(data).hexdigest()}"'
        if self.server.etags:
            headers["ETag"] = etag
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if fault.ignore_range or self.headers.get("If-Range", etag) != etag or not match:
            self._reply(200, {**headers, "Content-Length": str(len(data))}, fault)
            self._send(data, fault)
            return
        start, end = int(match[1]), min(int(match[2] or len(data)) + 1, len(data))
        if start >= len(data):
            self._reply(416, {"Content-Length": "0"}, fault)
            return
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        self._reply(206, {**headers, "Content-Length": str(end - start)}, fault)
        self._send(data[start:end], fault)

    def _reply(self, status: int, headers: dict[str, str], fault: Fault) -> None:
        self.send_response(status)
        for name, value in {**headers, **fault.headers}.items():
            if value is not None:
                self.send_header(name, value)
        if {**headers, **fault.headers}.get("Content-Length") is None:
            self.close_connection = True
        self.end_headers()

    def _send(self, body: bytes, fault: Fault) -> None:
        ends = [end for end in (fault.cut, fault.reset, fault.stall) if end is not None]
        self._trickle(body[: min(ends)] if ends else body)
        if fault.stall is not None:
            self.server.closing.wait(30)
        if fault.reset is not None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        if ends or len(body) != int(fault.headers.get("Content-Length") or len(body)):
            self.close_connection = True

    def _trickle(self, body: bytes) -> None:
        rate = self.server.rate
        if rate is None:
            self.wfile.write(body)
            return
        step = max(1, int(rate * 0.005))
        for at in range(0, len(body), step):
            self.wfile.write(body[at : at + step])
            time.sleep(0.005)

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""
