"""A WebSocket after its handshake, either role: RFC 6455 frames by hand over the C masking of ``websockets``.

The grammar (RFC 6455 §5.2; no extension is ever negotiated, so the RSV bits are zero)::

    frame    = head [length16 | length64] [mask] payload
    head     = FIN:1 RSV:3 opcode:4 MASK:1 length:7      length 126: 16 bits follow, 127: 64 bits follow
    opcode   = 0 continuation | 1 text | 2 binary | 8 close | 9 ping | 10 pong
    mask     = 4 bytes, exactly in the frames of a client
    message  = (text | binary) continuation*             FIN is set in its last frame only
    control  = close | ping | pong                       FIN set, at most 125 bytes, between any two frames
    close    = [code:16 reason]                          reason is UTF-8

Life of a socket::

    OPEN ── close() ─────────────────────────▶ CLOSING ── peer's close, or 5 s ──▶ DONE
      ├──── peer's close, answered ──────────────────────────────────────────────▶ DONE
      ├──── violation, answered by a close with 1002 or 1007 ────────────────────▶ DONE
      └──── connection lost, abort(), no sign of life ───────────────────────────▶ DONE

What is buffered: inwards one frame of at most ``max_piece`` bytes (larger ones pass through in pieces), outwards
what the transport holds and the frames of one loop turn up to 64 KiB. Opening handshakes are in
:mod:`wcfrelay.net.handshake`.
"""

from __future__ import annotations

import os
from codecs import getincrementaldecoder
from collections.abc import Callable
from struct import Struct
from typing import Protocol

from wcfrelay.net.exchange import Headers
from wcfrelay.net.network import Network, Transport, Writer, direct_writer
from wcfrelay.net.timers import Deadline, Timers

try:
    from websockets.speedups import apply_mask
except ImportError:  # an installation without the C part
    from websockets.utils import apply_mask

__all__ = ["BINARY", "CONTINUATION", "TEXT", "WebSocket", "WebSocketApp"]

CONTINUATION, TEXT, BINARY = 0, 1, 2

_CLOSE, _PING, _PONG = 8, 9, 10
_FIN = 0x80
_OPEN, _CLOSING, _DONE = 0, 1, 2

_CLOSE_TIMEOUT = 5.0
_COLLECTED = 64 * 1024
"""Bytes of frames after which they are written without waiting for the end of the loop turn, so that the
transport can say stop."""
_COLLECTED_FRAMES = 16
"""Frames after which they are written likewise, so that the peer begins to work while we go on."""
_JOINED = 8 * 1024
"""Payload up to which one buffer with header and payload is cheaper than two."""
_MASKS = 256
"""Bytes of masks drawn at a time."""

_Utf8Decoder = getincrementaldecoder("utf-8")
_HEAD_16 = Struct("!BBH")
_HEAD_64 = Struct("!BBQ")


class WebSocketApp(Protocol):
    """Who uses a WebSocket."""

    def frame_received(self, opcode: int, data: bytes, fin: bool) -> None:
        """The next frame of a message, or the next piece of a frame larger than ``max_piece``.

        ``opcode`` is TEXT or BINARY for what begins a message, CONTINUATION for what goes on with it; ``fin`` ends
        it. How many bytes a message may have is for the application to count.
        """

    def closed(self, code: int, reason: str) -> None:
        """The socket is over: called exactly once, and nothing after it.

        ``code`` is the peer's close code, 1005 when its close had none, 1006 when the connection was lost or given up
        without a close of the peer, 1002 or 1007 when the peer broke the protocol.
        """

    def pause_sending(self) -> None:
        """The buffer towards the peer is full: send no more until ``resume_sending``."""

    def resume_sending(self) -> None: ...


class WebSocket:
    """One WebSocket; a :class:`~wcfrelay.net.network.Stream` once it is attached.

    ``app`` is set by the owner before :meth:`attach`. Calls that come too late (a send after the close) are
    ignored. ``random_bytes`` gives the masks of a client and must be unpredictable. ``check_text`` refuses text
    that is not UTF-8 (1007); the reason of a close is always checked.
    """

    __slots__ = (
        "_client",
        "_collected",
        "_collected_bytes",
        "_deadline",
        "_decoder",
        "_heard",
        "_in_message",
        "_in_text",
        "_interval",
        "_large_fin",
        "_large_left",
        "_large_mask",
        "_large_opcode",
        "_masks",
        "_masks_used",
        "_max_piece",
        "_needed",
        "_network",
        "_pinged",
        "_pong",
        "_random_bytes",
        "_reading_paused",
        "_scheduled",
        "_state",
        "_tail",
        "_timeout",
        "_timers",
        "_told",
        "_transport",
        "_writer",
        "_writing_paused",
        "app",
        "response_headers",
        "subprotocol",
    )

    app: WebSocketApp

    def __init__(
        self,
        network: Network,
        timers: Timers,
        *,
        client: bool,
        random_bytes: Callable[[int], bytes] = os.urandom,
        max_piece: int = 65536,
        check_text: bool = False,
    ) -> None:
        self.subprotocol: str | None = None
        self.response_headers: Headers = ()
        """Of the 101 that a client was answered with."""
        self._network = network
        self._timers = timers
        self._client = client
        self._random_bytes = random_bytes
        self._max_piece = max_piece
        self._transport: Transport | None = None
        self._writer: Writer | None = None
        self._state = _OPEN
        self._told = False
        # inwards
        self._reading_paused = False
        self._tail = bytearray()
        self._needed = 0
        self._in_message = False
        self._large_left = 0
        self._large_mask = b""
        self._large_opcode = CONTINUATION
        self._large_fin = False
        self._in_text = False
        self._decoder = _Utf8Decoder() if check_text else None
        # outwards
        self._writing_paused = False
        self._collected: list[bytes] = []
        self._collected_bytes = 0
        self._scheduled = False
        self._pong: bytes | None = None
        self._masks = b""
        self._masks_used = 0
        # time
        self._deadline: Deadline | None = None
        self._heard = False
        self._pinged = False
        self._interval = 0.0
        self._timeout = 0.0

    # -- what the owner calls

    def attach(self, transport: Transport, data: bytes = b"") -> None:
        """Take over an open transport after a handshake, with what was read behind it.

        Frames in ``data`` are delivered inside this call. Reading is resumed unless :meth:`pause_reading` was
        called.
        """
        transport.set_protocol(self)
        self._transport = transport
        self._writer = direct_writer(transport, self._network.call_soon)
        if self._state == _DONE:
            transport.abort()
            return
        self._flush()
        if data:
            self.data_received(data)
        if self._reading_paused and not self._state:
            transport.pause_reading()
        else:
            transport.resume_reading()

    def send(self, opcode: int, data: bytes, fin: bool = True) -> None:
        """Send one frame. The frames of one loop turn are collected, and leave in few writes."""
        if self._state:
            return
        length = len(data)
        first = opcode | _FIN if fin else opcode
        masked = 0x80 if self._client else 0
        if length < 126:
            head = bytes((first, masked | length))
        elif length < 65536:
            head = _HEAD_16.pack(first, masked | 126, length)
        else:
            head = _HEAD_64.pack(first, masked | 127, length)
        if masked:
            mask = self._next_mask()
            head += mask
            data = apply_mask(data, mask)
        if length <= _JOINED:
            self._collected.append(head + data)
        else:
            self._collected.append(head)
            self._collected.append(data)
        self._collected_bytes += length + 14
        if self._collected_bytes >= _COLLECTED or len(self._collected) >= _COLLECTED_FRAMES:
            self._flush()
        elif not self._scheduled:
            self._scheduled = True
            self._network.call_soon(self._flush)

    def send_text(self, data: bytes) -> None:
        """Send a text message (``data`` is its UTF-8)."""
        self.send(TEXT, data)

    def send_binary(self, data: bytes) -> None:
        self.send(BINARY, data)

    def ping(self) -> None:
        self.send(_PING, b"")

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Begin the close handshake; no frame is delivered any more. ``closed`` follows when the peer has answered,
        or after 5 s without an answer (1006).

        1005 sends a close without code. Codes that may not travel, such as 1006, become 1011, so that the code of
        one socket can be passed on to another. A reason is cut to 123 bytes.
        """
        if self._state:
            return
        self._send_close(code, reason)
        if self._state == _DONE:
            return
        if self._reading_paused and self._transport is not None:
            self._transport.resume_reading()
        self._after(_CLOSE_TIMEOUT, self._close_expired)

    def abort(self) -> None:
        """Drop the connection at once. ``closed`` follows with 1006."""
        self._state = _DONE
        self._forget()
        if self._transport is not None:
            self._transport.abort()

    def pause_reading(self) -> None:
        """Read no more; what is already read (at most one read of the transport) still comes."""
        if not self._reading_paused:
            self._reading_paused = True
            if self._transport is not None and not self._state:
                self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._reading_paused:
            self._reading_paused = False
            self._heard = True
            if self._transport is not None and not self._state:
                self._transport.resume_reading()

    def keep_alive(self, interval: float, timeout: float) -> None:
        """Ping when nothing was received for ``interval`` seconds (one to two intervals after the last byte), and
        give the connection up (1006) when then nothing comes for ``timeout`` seconds. While reading is paused, the
        peer is taken to be alive."""
        self._interval, self._timeout = interval, timeout
        self._heard = self._pinged = False
        if not self._state:
            self._after(interval, self._check_alive)

    # -- what the transport calls

    def connection_made(self, transport: Transport) -> None:
        self._transport = transport
        self._writer = direct_writer(transport, self._network.call_soon)

    def data_received(self, data: bytes) -> None:
        if self._state == _DONE:
            return
        self._heard = True
        tail = self._tail
        if tail:
            tail += data
            if len(tail) < self._needed:
                return
            data = bytes(tail)
            tail.clear()
        size = len(data)
        pos = self._go_on_with_large(data, 0) if self._large_left else 0
        unmasked, head = (0, 2) if self._client else (128, 6)
        needed = 2
        while size - pos > 1:
            first = data[pos]
            length = data[pos + 1] - unmasked
            body = pos + head
            opcode = first & 0x7F
            if opcode < 3:
                if self._in_message is (opcode != 0):
                    self._fail(1002, "a message began inside another" if opcode else "a continuation of no message")
                    return
            elif not _FIN | _CLOSE <= first <= _FIN | _PONG:
                self._fail(1002, "a reserved bit or opcode, or a control frame in fragments")
                return
            if not -1 < length < 126:
                if not 126 <= length < 128:
                    self._fail(1002, "a masked frame from a server" if self._client else "a frame without a mask")
                    return
                if opcode > 2:
                    self._fail(1002, "a control frame above 125 bytes")
                    return
                wide = 2 if length == 126 else 8
                body += wide
                if body > size:
                    needed = body - pos
                    break
                length = int.from_bytes(data[pos + 2 : pos + 2 + wide], "big")
                if length >> 63:
                    self._fail(1002, "a frame length above 63 bits")
                    return
                if length > self._max_piece:
                    self._in_message = first < _FIN
                    self._large_left = length
                    self._large_mask = b"" if self._client else data[body - 4 : body]
                    self._large_opcode = opcode
                    self._large_fin = first >= _FIN
                    pos = self._go_on_with_large(data, body)
                    continue
            end = body + length
            if end > size:
                needed = end - pos
                break
            payload = data[body:end] if self._client else apply_mask(data[body:end], data[body - 4 : body])
            pos = end
            if opcode > 2:
                self._control_received(opcode, payload)
            else:
                fin = first >= _FIN
                self._in_message = not fin
                if not self._state and (self._decoder is None or self._is_text(opcode, payload, fin)):
                    self.app.frame_received(opcode, payload, fin)
            if self._state == _DONE:
                return
        if pos < size:
            tail += data[pos:] if pos else data
            self._needed = needed

    def eof_received(self) -> bool | None:
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self._state = _DONE
        self._transport = self._writer = None
        self._forget()
        self._tell(1006, str(exc) if exc is not None else "")

    def pause_writing(self) -> None:
        self._writing_paused = True
        if not self._told:
            self.app.pause_sending()

    def resume_writing(self) -> None:
        self._writing_paused = False
        self._heard = True  # the peer reads, and a pong may stand behind much
        if self._pong is not None:
            pong, self._pong = self._pong, None
            self.send(_PONG, pong)
        if not self._told:
            self.app.resume_sending()

    # -- inwards

    def _go_on_with_large(self, data: bytes, pos: int) -> int:
        """Deliver what ``data`` has from ``pos`` on of the present large frame. Returns the position behind it, or
        the end when the socket is done."""
        size = len(data)
        view = memoryview(data)
        while self._large_left and pos < size:
            taken = min(self._large_left, size - pos, self._max_piece)
            end = pos + taken
            mask = self._large_mask
            if mask:
                payload = apply_mask(view[pos:end], mask)
                turn = taken & 3
                if turn:
                    self._large_mask = mask[turn:] + mask[:turn]
            else:
                payload = data[pos:end]
            pos = end
            self._large_left -= taken
            opcode, self._large_opcode = self._large_opcode, CONTINUATION
            fin = self._large_fin and not self._large_left
            if not self._state and (self._decoder is None or self._is_text(opcode, payload, fin)):
                self.app.frame_received(opcode, payload, fin)
            if self._state == _DONE:
                return size
        return pos

    def _is_text(self, opcode: int, payload: bytes, fin: bool) -> bool:
        """False, and the socket failed, where the message is a text and not UTF-8."""
        assert self._decoder is not None
        if opcode:
            self._in_text = opcode == TEXT
        if self._in_text:
            try:
                self._decoder.decode(payload, fin)
            except UnicodeDecodeError:
                self._fail(1007, "a text that is not UTF-8")
                return False
        return True

    def _control_received(self, opcode: int, data: bytes) -> None:
        if opcode == _PING:
            if self._writing_paused:
                self._pong = data  # the newest is enough (§5.5.3), and pongs for a peer that does not read pile up
            else:
                self.send(_PONG, data)
        elif opcode == _CLOSE:
            self._close_received(data)

    def _close_received(self, data: bytes) -> None:
        code, reason = 1005, ""
        if data:
            code = int.from_bytes(data[:2], "big")
            if len(data) == 1 or not _may_travel(code):
                self._fail(1002, "a close code that may not be sent")
                return
            try:
                reason = data[2:].decode()
            except UnicodeDecodeError:
                self._fail(1007, "a close reason that is not UTF-8")
                return
        if not self._state:
            self._send_close(code, "")
        self._shut()
        self._tell(code, reason)

    # -- outwards

    def _next_mask(self) -> bytes:
        used = self._masks_used
        if used == len(self._masks):
            self._masks = self._random_bytes(_MASKS)
            used = 0
        self._masks_used = used + 4
        return self._masks[used : used + 4]

    def _flush(self) -> None:
        self._scheduled = False
        frames, writer = self._collected, self._writer
        if writer is None or not frames:
            return
        size, self._collected, self._collected_bytes = self._collected_bytes, [], 0
        if len(frames) == 1:
            writer.write(frames[0])
        elif size < _COLLECTED:
            # One buffer: a transport that encrypts makes a record of every buffer.
            writer.write(b"".join(frames))
        else:
            writer.writelines(frames)

    def _send_close(self, code: int, reason: str) -> None:
        payload = b""
        if code != 1005:
            text = reason.encode("utf-8", "replace")[:123].decode("utf-8", "ignore")
            payload = (code if _may_travel(code) else 1011).to_bytes(2, "big") + text.encode()
        self._flush()  # first, because the application may close or abort when this fills the transport
        if not self._state:
            self._pong = None
            self.send(_CLOSE, payload)
            self._state = _CLOSING
            self._flush()

    # -- the end

    def _fail(self, code: int, problem: str) -> None:
        if not self._state:
            self._send_close(code, problem)
        self._shut()
        self._tell(code, problem)

    def _shut(self) -> None:
        """Close the transport once everything is written, and do not wait for that for ever."""
        self._state = _DONE
        self._after(_CLOSE_TIMEOUT, self.abort)
        if self._transport is not None:
            self._transport.close()

    def _tell(self, code: int, reason: str) -> None:
        if not self._told:
            self._told = True
            self.app.closed(code, reason)

    def _drop(self, problem: str) -> None:
        self.abort()
        self._tell(1006, problem)

    def _forget(self) -> None:
        """Release what only a living socket needs."""
        self._tail.clear()
        self._collected.clear()
        self._pong = None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    # -- time

    def _after(self, seconds: float, call: Callable[[], None]) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self._timers.after(seconds, call)

    def _check_alive(self) -> None:
        if self._heard or self._reading_paused:
            self._heard = self._pinged = False
            self._after(self._interval, self._check_alive)
        elif not self._pinged:
            self._pinged = True
            self.ping()
            self._after(self._timeout, self._check_alive)
        else:
            self._drop(f"nothing was received for {self._timeout:g} s after a ping")

    def _close_expired(self) -> None:
        self._drop(f"no answer to the close within {_CLOSE_TIMEOUT:g} s")


def _may_travel(code: int) -> bool:
    """Whether a close frame may carry the code (RFC 6455 §7.4 and the IANA registry)."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999
