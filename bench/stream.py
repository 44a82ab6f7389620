"""Bulk transfers: a plain blocking HTTP client, the same for every target, and a server that swallows uploads.

Both read with ``recv_into`` into one buffer and count: the body is never copied nor kept. ``python -m bench.stream``
is the server; it writes its port to standard output.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

from bench.lab import BenchError
from bench.peers import Target

__all__ = ["Message", "Transfer"]

_BUFFER = 256 * 1024
_TIMEOUT = 60.0


class Message:
    """Reads one HTTP message off a socket, and counts its body. Nothing may follow it before it was answered.

    :raises BenchError: it is incomplete.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.head = b""
        self.body = 0
        """Bytes of the body so far, without chunk framing."""
        self._sock = sock
        self._buffer = bytearray(_BUFFER)
        self._view = memoryview(self._buffer)

    def read_head(self) -> bool:
        """Whether there is another message."""
        filled, end = 0, -1
        while end < 0:
            count = self._sock.recv_into(self._view[filled:])
            if not count:
                if filled:
                    raise BenchError("The connection was closed inside a head.")
                return False
            filled += count
            end = self._buffer.find(b"\r\n\r\n", 0, filled)
        self.head = bytes(self._view[:end]).lower()
        self._rest = self._view[end + 4 : filled]
        return True

    def read_body(self) -> None:
        if b"\r\ntransfer-encoding: chunked" in self.head:
            self._read_chunks()
            return
        length = int(self.head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0] or 0)
        self.body = len(self._rest)
        while self.body < length:
            self.body += self._receive()

    def _receive(self) -> int:
        count = self._sock.recv_into(self._view)
        if not count:
            raise BenchError(f"The connection was closed after {self.body} bytes of a body.")
        return count

    def _read_chunks(self) -> None:
        data = bytes(self._rest)
        self._view[: len(data)] = data
        end, left, line, last = len(data), 0, b"", False
        while True:
            at = 0
            while at < end:
                if left:  # of a chunk and its line end
                    step = min(left, end - at)
                    at += step
                    left -= step
                    if last and not left:
                        return
                    continue
                stop = self._buffer.find(b"\n", at, end) + 1 or end
                line += self._view[at:stop]
                at = stop
                if line.endswith(b"\n"):
                    size = int(line.partition(b";")[0], 16)
                    self.body += size
                    left, line, last = size + 2, b"", not size  # nobody here sends trailers
            end = self._receive()


class Transfer:
    """One transfer on a connection of its own, which another thread may :meth:`stop`. ``path`` goes behind the
    target's.

    :raises BenchError: there is no connection.
    """

    def __init__(self, target: Target, path: str = "") -> None:
        url = urlsplit(target.url)
        self._head = f" {url.path}{path} HTTP/1.1\r\nHost: {url.netloc}\r\n"
        if target.token:
            self._head += f"ServiceBusAuthorization: {target.token}\r\n"
        self._name = target.name
        try:
            self._sock = socket.create_connection((url.hostname, url.port), _TIMEOUT)
        except OSError as error:
            raise BenchError(f"{target.name} takes no connection: {error}") from error
        self.message = Message(self._sock)

    def download(self, size: int) -> None:
        """:raises BenchError: it failed, or is not ``size`` bytes long."""
        with self._broken():
            self._sock.sendall(f"GET{self._head}\r\n".encode())
            self._answer()
        if self.message.body != size:
            raise BenchError(f"A download over {self._name} has {self.message.body} bytes, not {size}.")

    def upload(self, size: int) -> None:
        """:raises BenchError: it failed, or another number of bytes arrived."""
        block = memoryview(bytes(_BUFFER))
        with self._broken():
            self._sock.sendall(f"POST{self._head}Content-Length: {size}\r\n\r\n".encode())
            for _ in range(size // _BUFFER):
                self._sock.sendall(block)
            self._sock.sendall(block[: size % _BUFFER])
            self._answer()
        if f"\r\nreceived: {size}\r\n".encode() not in self.message.head + b"\r\n":
            raise BenchError(f"An upload of {size} bytes over {self._name} did not arrive whole.")

    @contextlib.contextmanager
    def _broken(self) -> Iterator[None]:
        try:
            with self._sock:
                yield
        except OSError as error:
            raise BenchError(f"A bulk transfer over {self._name} failed: {error}") from error

    def _answer(self) -> None:
        if not self.message.read_head() or not self.message.head.startswith(b"http/1.1 200 "):
            line = self.message.head.partition(b"\r\n")[0].decode("latin-1")
            raise BenchError(f"{self._name} answered a bulk transfer with {line or 'nothing'!r}.")
        self.message.read_body()

    def stop(self) -> None:
        """Break the connection; the transfer ends with an error."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)


def _swallow(sock: socket.socket) -> None:
    with sock, contextlib.suppress(BenchError, OSError):
        while True:
            message = Message(sock)
            if not message.read_head():
                return
            message.read_body()
            sock.sendall(b"HTTP/1.1 200 OK\r\nReceived: %d\r\nContent-Length: 0\r\n\r\n" % message.body)


def _serve() -> None:
    """The server for uploads; ``Received`` in its answer is the number of bytes that came."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        print(f"port {listening.getsockname()[1]}", flush=True)
        while True:
            sock, _ = listening.accept()
            threading.Thread(target=_swallow, args=(sock,), daemon=True).start()


if __name__ == "__main__":
    _serve()
