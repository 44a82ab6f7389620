"""An HTTP service on the standard library alone, a thread a connection, for what SOAP services do not show.

``python backend.py`` prints ``port N``, and ``begun TARGET`` when a request that takes its time has come in whole. The
last segment of the path says what is answered:

    echo    the body, after ``wait`` seconds; with the X-Call field of the request
    seen    method, target and header fields as JSON, among answer fields that concern one connection only
    digest  length and SHA-256 of the body as JSON, read as it comes
    bulk    ``bytes`` of :func:`pattern`, framed by ``framing``: length or chunked
    drip    ``pieces`` lines, one each ``pause`` seconds
    slow    ``slept`` after ``seconds``
    cut     half of ``bytes``, and then nothing more
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl

_BLOCK = 256 * 1024
_FILL = random.Random(1).randbytes(_BLOCK - 8)


def pattern(size: int) -> Iterator[bytes]:
    """``size`` bytes in blocks, no two of which are alike."""
    for number in range(-(-size // _BLOCK)):
        block = number.to_bytes(8, "big") + _FILL
        yield block[: size - number * _BLOCK]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512

    def handle_error(self, request: object, client_address: object) -> None:
        """A sender that went away is nothing to print."""


class _Requests(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 64 * 1024
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        path, _, query = self.path.partition("?")
        self.query = dict(parse_qsl(query))
        action = getattr(self, f"_{path.rpartition('/')[2]}", None)
        if action is None:
            self._whole(404, "text/plain", b"no such thing here\n")
        else:
            action()

    do_GET = do_PUT = do_DELETE = do_HEAD = do_OPTIONS = do_POST

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: standard error is for what goes wrong."""

    def _echo(self) -> None:
        body = b"".join(self._body())
        time.sleep(float(self.query.get("wait", 0)))
        self._whole(200, self.headers.get("Content-Type", ""), body, [("X-Call", self.headers.get("X-Call", ""))])

    def _seen(self) -> None:
        body = b"".join(self._body())
        seen = {"method": self.command, "target": self.path, "headers": self.headers.items(), "length": len(body)}
        extra = [
            ("Connection", "X-Private"),
            ("X-Private", "between two"),
            ("Keep-Alive", "timeout=5"),
            ("X-Public", "for all"),
            ("Set-Cookie", "a=1"),
            ("Set-Cookie", "b=2; Path=/"),
        ]
        self._whole(200, "application/json", json.dumps(seen).encode(), extra)

    def _digest(self) -> None:
        digest, size = hashlib.sha256(), 0
        for piece in self._body():
            digest.update(piece)
            size += len(piece)
        answer = {"bytes": size, "sha256": digest.hexdigest(), "length": self.headers.get("Content-Length")}
        self._whole(200, "application/json", json.dumps(answer).encode())

    def _bulk(self) -> None:
        for _ in self._body():
            pass
        size = int(self.query["bytes"])
        self._streamed(pattern(size), size if self.query["framing"] == "length" else None)

    def _drip(self) -> None:
        self._begun()

        def lines() -> Iterator[bytes]:
            for number in range(int(self.query["pieces"])):
                yield b"line %d\n" % number
                self.wfile.flush()
                time.sleep(float(self.query["pause"]))

        self._streamed(lines(), None)

    def _slow(self) -> None:
        self._begun()
        time.sleep(float(self.query["seconds"]))
        self._whole(200, "text/plain", b"slept")

    def _cut(self) -> None:
        self._begun()
        size = int(self.query["bytes"])

        def half() -> Iterator[bytes]:
            yield from pattern(size // 2)
            self.wfile.flush()
            time.sleep(60)

        self._streamed(half(), size if self.query["framing"] == "length" else None)

    def _begun(self) -> None:
        for _ in self._body():
            pass
        # One write: what several threads print in pieces is mixed up.
        os.write(sys.stdout.fileno(), f"begun {self.path}\n".encode())

    def _body(self) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().partition(b";")[0], 16):
                yield from self._exactly(size)
                self.rfile.readline()
            while self.rfile.readline() not in (b"\r\n", b""):
                pass
        else:
            yield from self._exactly(int(self.headers.get("Content-Length", 0)))

    def _exactly(self, left: int) -> Iterator[bytes]:
        while left:
            piece = self.rfile.read(min(left, _BLOCK))
            if not piece:
                raise ConnectionError("the body was cut")
            left -= len(piece)
            yield piece

    def _whole(self, status: int, content_type: str, body: bytes, headers: list[tuple[str, str]] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        for name, value in headers or ():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _streamed(self, pieces: Iterator[bytes], length: int | None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        if length is None:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        for piece in pieces:
            if length is None:
                self.wfile.write(b"%x\r\n" % len(piece))
            self.wfile.write(piece)
            if length is None:
                self.wfile.write(b"\r\n")
        if length is None:
            self.wfile.write(b"0\r\n\r\n")


if __name__ == "__main__":
    server = _Server(("127.0.0.1", 0), _Requests)
    print("port", server.server_port, flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        sys.exit(0)
