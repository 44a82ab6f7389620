"""The frame path: our two roles against each other and against websockets' own, under any split of the bytes."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, cast

import pytest
import websockets.utils
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from websockets.frames import Frame, Opcode
from websockets.protocol import CLIENT, OPEN, SERVER
from websockets.protocol import Protocol as Peer

from wcfrelay.net.timers import Timers
from wcfrelay.net.websocket import BINARY, CONTINUATION, TEXT, WebSocket

NO_MASK = b"\0\0\0\0"


class MemoryNetwork:
    """The part of Network that a WebSocket uses; turns of the loop are taken by hand."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []

    def call_soon(self, call: Callable[[], None]) -> None:
        self.soon.append(call)

    def turn(self) -> None:
        calls, self.soon = self.soon, []
        for call in calls:
            call()


class MemoryTransport:
    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.lists: list[list[bytes]] = []
        self.reading = True
        self.closed = self.aborted = False
        self.protocol: Any = None
        self.on_write: Callable[[], None] = lambda: None

    def write(self, data: bytes) -> None:
        assert not self.closed and not self.aborted
        self.writes.append(data)
        self.on_write()

    def writelines(self, list_of_data: Iterable[bytes]) -> None:
        self.lists.append(list(list_of_data))
        self.write(b"".join(self.lists[-1]))

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.closed or self.aborted

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def taken(self) -> bytes:
        data = b"".join(self.writes)
        self.writes.clear()
        return data


class Side:
    """A WebSocket with an application that keeps what it is told, on a transport in memory."""

    def __init__(self, client: bool, clock: Clock | None = None, attach: bool = True, **options: Any) -> None:
        self.clock = clock or Clock()
        self.network = cast(Any, MemoryNetwork())
        self.transport = cast(Any, MemoryTransport())
        self.frames: list[tuple[int, bytes, bool]] = []
        self.ends: list[tuple[int, str]] = []
        self.flow: list[str] = []
        self.on_frame: Callable[[], None] = lambda: None
        self.socket = WebSocket(self.network, Timers(self.clock), client=client, **options)
        self.socket.app = self
        if attach:
            self.socket.attach(self.transport)

    def frame_received(self, opcode: int, data: bytes, fin: bool) -> None:
        assert not self.ends and isinstance(data, bytes)
        self.frames.append((opcode, data, fin))
        self.on_frame()

    def closed(self, code: int, reason: str) -> None:
        self.ends.append((code, reason))

    def pause_sending(self) -> None:
        self.flow.append("pause")

    def resume_sending(self) -> None:
        self.flow.append("resume")

    def sent(self) -> bytes:
        self.network.turn()
        return bytes(self.transport.taken())

    def feed(self, data: bytes, sizes: Iterable[int] = ()) -> None:
        for piece in split(data, sizes):
            self.socket.data_received(piece)

    @property
    def code(self) -> int | None:
        assert len(self.ends) < 2
        return self.ends[0][0] if self.ends else None


def split(data: bytes, sizes: Iterable[int]) -> Iterable[bytes]:
    """``data`` in pieces of these sizes, the last of them repeated; whole without sizes."""
    pos, size = 0, 0
    rest = iter(sizes)
    while pos < len(data):
        size = next(rest, size) or len(data)
        yield data[pos : pos + size]
        pos += size


def frame(first: int, payload: bytes = b"", mask: bytes | None = NO_MASK, length: int | None = None) -> bytes:
    """A frame byte by byte: ``mask`` None for a server's; ``length`` may lie."""
    size = len(payload) if length is None else length
    bit = 0 if mask is None else 0x80
    if size < 126:
        head = bytes((first, bit | size))
    elif size < 65536:
        head = struct.pack("!BBH", first, bit | 126, size)
    else:
        head = struct.pack("!BBQ", first, bit | 127, size)
    if mask is None:
        return head + payload
    return head + mask + bytes(b ^ mask[i & 3] for i, b in enumerate(payload))


def joined(frames: Iterable[tuple[int, bytes, bool]]) -> list[tuple[int, bytes]]:
    """Messages from the frames and pieces an application was given; checks their order."""
    messages: list[tuple[int, bytes]] = []
    kind, parts = 0, []
    for opcode, data, fin in frames:
        assert (opcode == CONTINUATION) == bool(kind)
        kind = kind or opcode
        parts.append(data)
        if fin:
            messages.append((kind, b"".join(parts)))
            kind, parts = 0, []
    assert not kind
    return messages


sizes = st.lists(st.integers(1, 400), max_size=30)
lengths = st.sampled_from([0, 1, 2, 3, 5, 124, 125, 126, 127, 199, 200, 201, 203, 1000, 65535, 65536, 70001])
fragments = st.lists(
    lengths.map(lambda n: bytes(range(256)) * (n // 256) + bytes(range(n % 256))), min_size=1, max_size=4
)
conversation = st.lists(st.tuples(st.sampled_from([TEXT, BINARY]), fragments, st.booleans()), max_size=5)


@settings(max_examples=60, deadline=None)
@given(conversation, sizes, st.booleans())
def test_our_roles_understand_each_other(said: list[Any], cuts: list[int], client: bool) -> None:
    sender, receiver = Side(client), Side(not client, max_piece=200)
    for kind, parts, ping in said:
        for i, part in enumerate(parts):
            sender.socket.send(kind if i == 0 else CONTINUATION, part, i == len(parts) - 1)
            if ping:
                sender.socket.ping()
    receiver.feed(sender.sent(), cuts)
    assert joined(receiver.frames) == [(kind, b"".join(parts)) for kind, parts, _ in said]
    assert all(len(data) <= 200 for _, data, _ in receiver.frames)
    assert not receiver.ends
    sender.feed(receiver.sent())
    sender.socket.close(3000, "over")
    receiver.feed(sender.sent(), cuts)
    sender.feed(receiver.sent(), cuts)
    assert receiver.ends == [(3000, "over")]
    assert sender.code == 3000
    assert sender.transport.closed and receiver.transport.closed


def peer_messages(peer: Peer) -> list[tuple[int, bytes, bool]]:
    return [(int(f.opcode), bytes(f.data), f.fin) for f in peer.events_received() if isinstance(f, Frame)]


@settings(max_examples=60, deadline=None)
@given(conversation, sizes, st.booleans())
def test_websockets_understands_us_and_we_it(said: list[Any], cuts: list[int], client: bool) -> None:
    ours = Side(client, max_piece=100_000)
    peer = Peer(SERVER if client else CLIENT, state=OPEN, max_size=None)
    spoken = []
    for kind, parts, ping in said:
        for i, part in enumerate(parts):
            opcode, fin = kind if i == 0 else CONTINUATION, i == len(parts) - 1
            spoken.append((opcode, part, fin))
            ours.socket.send(opcode, part, fin)
            if opcode == CONTINUATION:
                peer.send_continuation(part, fin)
            else:
                (peer.send_text if opcode == TEXT else peer.send_binary)(part, fin)
            if ping:
                peer.send_ping(b"are you there")
    for piece in split(ours.sent(), cuts):
        peer.receive_data(piece)
    assert peer_messages(peer) == spoken
    ours.feed(b"".join(peer.data_to_send()), cuts)
    assert ours.frames == spoken
    peer.receive_data(ours.sent())
    pings = sum(len(parts) for _, parts, ping in said if ping)
    assert peer_messages(peer) == [(Opcode.PONG, b"are you there", True)] * pings
    peer.send_close(4001, "enough")
    ours.feed(b"".join(peer.data_to_send()), cuts)
    assert ours.ends == [(4001, "enough")]
    peer.receive_data(ours.sent())
    peer.receive_eof()
    assert peer.close_code == 4001


# -- violations

VIOLATIONS = [
    pytest.param(frame(0x82, b"x", None), 1002, id="unmasked"),
    *(pytest.param(frame(0x82 | bit, b"x"), 1002, id=f"rsv-{bit:x}") for bit in (0x40, 0x20, 0x10)),
    *(pytest.param(frame(0x80 | op, b"x"), 1002, id=f"opcode-{op}") for op in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)),
    *(pytest.param(frame(op, b""), 1002, id=f"fragmented-control-{op}") for op in (8, 9, 10)),
    *(pytest.param(frame(0x80 | op, bytes(126)), 1002, id=f"long-control-{op}") for op in (8, 9, 10)),
    pytest.param(frame(0x89, length=70000), 1002, id="huge-control"),
    pytest.param(frame(0x80, b"x"), 1002, id="continuation-without-start"),
    pytest.param(frame(0x82, b"") + frame(0x00, b"x"), 1002, id="continuation-after-end"),
    pytest.param(frame(0x02, b"x") + frame(0x82, b"y"), 1002, id="data-inside-message"),
    pytest.param(frame(0x01, b"x") + frame(0x81, b"y"), 1002, id="text-inside-message"),
    pytest.param(frame(0x82, length=1 << 63), 1002, id="top-bit-of-length"),
    pytest.param(frame(0x88, b"\x03"), 1002, id="close-of-one-byte"),
    *(
        pytest.param(frame(0x88, code.to_bytes(2, "big")), 1002, id=f"close-{code}")
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2000, 2999, 5000, 65535)
    ),
    pytest.param(frame(0x88, b"\x03\xe8\xff"), 1007, id="close-reason-not-utf-8"),
]


@pytest.mark.parametrize("cuts", [(), (1,)], ids=["whole", "bytes"])
@pytest.mark.parametrize(("data", "code"), VIOLATIONS)
def test_a_violation_ends_the_socket(data: bytes, code: int, cuts: tuple[int, ...]) -> None:
    side = Side(client=False)
    side.feed(data + frame(0x82, b"never delivered"), cuts)
    assert side.code == code
    assert all(payload != b"never delivered" for _, payload, _ in side.frames)
    assert side.transport.closed
    closing = side.sent()
    assert closing[0] == 0x88 and closing[1] == len(closing) - 2
    assert int.from_bytes(closing[2:4], "big") == code
    assert closing[4:].decode()


def test_a_client_refuses_masked_frames() -> None:
    side = Side(client=True)
    side.feed(frame(0x82, b"x"))
    assert side.code == 1002
    assert not side.frames


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), sizes, st.booleans(), st.booleans())
def test_noise_never_raises_and_splits_do_not_matter(noise: bytes, cuts: list[int], client: bool, text: bool) -> None:
    whole, cut = Side(client, check_text=text), Side(client, check_text=text)
    whole.feed(noise)
    cut.feed(noise, cuts)
    assert (whole.frames, whole.ends) == (cut.frames, cut.ends)


# -- large frames


def test_a_large_frame_passes_through_in_pieces() -> None:
    """A frame of 1 GiB is delivered as it comes, and ends where its length says."""
    side = Side(client=False, max_piece=1000)
    size = 1 << 30
    side.feed(frame(0x02, length=size))
    assert side.frames == []
    mask_turn = b"".join(bytes((i & 0xFF,)) for i in range(4099))
    side.feed(mask_turn)
    assert [len(data) for _, data, _ in side.frames] == [1000, 1000, 1000, 1000, 99]
    assert side.frames[0][0] == BINARY
    assert all(opcode == CONTINUATION and not fin for opcode, _, fin in side.frames[1:])
    assert b"".join(data for _, data, _ in side.frames) == mask_turn


def test_the_mask_turns_with_the_pieces() -> None:
    payload = bytes(range(251)) * 40
    data = frame(0x82, payload, mask=b"\x01\x20\x73\xf4") + frame(0x81, b"after")
    for cut in (1, 2, 3, 7, 64, 4096):
        side = Side(client=False, max_piece=130)
        side.feed(data, (cut,))
        assert joined(side.frames) == [(BINARY, payload), (TEXT, b"after")]


def test_a_long_frame_in_small_reads_takes_linear_time() -> None:
    """Quadratic joining would move a hundred gigabytes here."""
    size = 4 << 20
    side = Side(client=False, max_piece=size)
    side.feed(frame(0x82, mask=NO_MASK, length=size) + bytes(size), (64,))
    assert side.frames == [(BINARY, bytes(size), True)]


def test_lengths_need_not_be_minimal() -> None:
    side = Side(client=True, max_piece=130)
    side.feed(struct.pack("!BBQ", 0x82, 127, 3) + b"abc" + struct.pack("!BBH", 0x81, 126, 1) + b"d", (1,))
    assert side.frames == [(BINARY, b"abc", True), (TEXT, b"d", True)]


# -- text


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=()), max_size=300), st.lists(st.integers(0, 300), max_size=4), sizes)
def test_text_is_checked_across_frames_and_pieces(text: str, borders: list[int], cuts: list[int]) -> None:
    data = text.encode("utf-8", "surrogatepass")
    valid = not any("\ud800" <= c <= "\udfff" for c in text)
    marks = [0, *sorted(min(b, len(data)) for b in borders), len(data)]
    parts = [data[a:b] for a, b in pairwise(marks)]
    side = Side(client=False, check_text=True, max_piece=126)
    for i, part in enumerate(parts):
        side.feed(frame((TEXT if i == 0 else 0) | (0x80 if i == len(parts) - 1 else 0), part), cuts)
    if valid:
        assert joined(side.frames) == [(TEXT, data)]
    else:
        assert side.code == 1007


@pytest.mark.parametrize("data", [b"\xff", b"ab\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"ok" * 100 + b"\xc3"])
def test_text_that_is_not_utf_8(data: bytes) -> None:
    side = Side(client=False, check_text=True)
    side.feed(frame(0x82, data) + frame(0x81, data) + frame(0x82, b"never delivered"))
    assert side.frames == [(BINARY, data, True)]
    assert side.code == 1007
    unchecked = Side(client=False)
    unchecked.feed(frame(0x81, data))
    assert unchecked.frames == [(TEXT, data, True)]


# -- sending


def test_frames_of_one_turn_leave_in_one_write() -> None:
    side = Side(client=False)
    side.socket.send_text(b"one")
    side.socket.send_binary(b"two")
    assert side.transport.writes == []
    side.network.turn()
    assert side.transport.writes == [b"\x81\x03one\x82\x03two"]
    side.network.turn()
    assert len(side.transport.writes) == 1
    side.socket.send_binary(b"three")
    assert side.sent() == b"\x81\x03one\x82\x03two\x82\x05three"


def test_a_large_payload_is_not_copied_by_a_server() -> None:
    side = Side(client=False)
    payload = bytes(100_000)
    side.socket.send_binary(payload)
    assert side.transport.lists[0][1] is payload  # and it did not wait for the turn to end


def test_masks_are_fresh_and_drawn_in_blocks() -> None:
    drawn: list[int] = []

    def random_bytes(size: int) -> bytes:
        drawn.append(size)
        return bytes((len(drawn) * 7 + i) & 0xFF for i in range(size))

    side = Side(client=True, random_bytes=random_bytes)
    for _ in range(65):
        side.socket.send_binary(b"")
    data = side.sent()
    masks = [data[i + 2 : i + 6] for i in range(0, len(data), 6)]
    assert drawn == [256, 256]
    assert (
        masks[0] == bytes((7, 8, 9, 10))
        and masks[1] == bytes((11, 12, 13, 14))
        and masks[64] == bytes((14, 15, 16, 17))
    )


def test_flow_control_is_passed_on_both_ways() -> None:
    side = Side(client=False)
    side.transport.on_write = side.socket.pause_writing
    side.socket.send_binary(bytes(80_000))
    assert side.flow == ["pause"]
    side.transport.on_write = lambda: None
    side.socket.resume_writing()
    assert side.flow == ["pause", "resume"]
    side.socket.pause_reading()
    assert not side.transport.reading
    side.socket.resume_reading()
    assert side.transport.reading


def test_frames_sent_before_attaching_follow_the_handshake() -> None:
    side = Side(client=False, attach=False)
    side.socket.send_binary(b"early")
    side.socket.pause_reading()
    side.socket.attach(side.transport, frame(0x81, b"glued"))
    assert side.transport.protocol is side.socket
    assert side.transport.writes == [b"\x82\x05early"]
    assert side.frames == [(TEXT, b"glued", True)]
    assert not side.transport.reading
    dropped = Side(client=False, attach=False)
    dropped.socket.abort()
    dropped.socket.attach(dropped.transport, frame(0x81, b"glued"))
    assert dropped.transport.aborted and not dropped.frames


def test_attaching_resumes_a_transport_that_a_handshake_paused() -> None:
    side = Side(client=False, attach=False)
    side.transport.reading = False
    side.socket.attach(side.transport)
    assert side.transport.reading


# -- ping and pong


def test_every_ping_is_answered_with_its_payload() -> None:
    side = Side(client=False)
    side.feed(
        frame(0x89, b"a") + frame(0x8A, b"unsolicited") + frame(0x02, b"x") + frame(0x89, bytes(125)) + frame(0x80)
    )
    assert side.sent() == b"\x8a\x01a\x8a\x7d" + bytes(125)
    assert joined(side.frames) == [(BINARY, b"x")]


def test_pongs_do_not_pile_up_for_a_peer_that_does_not_read() -> None:
    side = Side(client=False)
    side.socket.pause_writing()
    for i in range(10_000):
        side.feed(frame(0x89, b"%d" % i))
    assert side.sent() == b""
    side.socket.resume_writing()
    assert side.sent() == b"\x8a\x049999"


# -- close


def test_the_peers_close_is_answered_and_told() -> None:
    side = Side(client=False)
    side.socket.send_binary(b"last")
    side.feed(frame(0x88, b"\x0f\xa0bye") + frame(0x82, b"late"))
    assert side.ends == [(4000, "bye")]
    assert side.sent() == b"\x82\x04last\x88\x02\x0f\xa0"
    assert side.transport.closed and not side.frames
    side.socket.send_binary(b"too late")
    side.socket.close()
    side.socket.connection_lost(None)
    assert side.sent() == b""
    assert len(side.ends) == 1


def test_a_close_without_code_is_1005() -> None:
    side = Side(client=False)
    side.feed(frame(0x88))
    assert side.ends == [(1005, "")]
    assert side.sent() == b"\x88\x00"


@pytest.mark.parametrize(
    ("code", "sent"), [(1000, 1000), (1005, None), (1006, 1011), (1015, 1011), (70000, 1011), (4999, 4999)]
)
def test_our_close_code(code: int, sent: int | None) -> None:
    side = Side(client=False)
    side.socket.close(code)
    assert side.sent() == (b"\x88\x00" if sent is None else b"\x88\x02" + sent.to_bytes(2, "big"))


def test_a_close_reason_is_cut_between_characters() -> None:
    side = Side(client=False)
    side.socket.close(1011, "x" + "€" * 100)
    payload = side.sent()[4:]
    assert payload.decode() == "x" + "€" * 40


def test_our_close_waits_for_the_peers() -> None:
    side = Side(client=False)
    side.socket.pause_reading()
    side.socket.close(1001, "restart")
    side.socket.close(1000)
    assert side.transport.reading  # or the answer would never be seen
    side.socket.send_binary(b"late")
    side.feed(frame(0x82, b"in flight") + frame(0x89, b"ping"))
    assert side.code is None and not side.frames and not side.transport.closed
    side.feed(frame(0x88, b"\x03\xe9"))
    assert side.ends == [(1001, "")]
    assert side.transport.closed
    assert side.sent() == b"\x88\x09\x03\xe9restart"


def test_a_close_that_nobody_answers_times_out() -> None:
    clock = Clock()
    side = Side(client=True, clock=clock)
    side.socket.close()
    clock.pump([0.1] * 49)
    assert side.code is None
    clock.pump([0.1] * 4)
    assert side.code == 1006
    assert side.transport.aborted


def test_a_transport_that_cannot_be_emptied_is_dropped() -> None:
    clock = Clock()
    side = Side(client=False, clock=clock)
    side.feed(frame(0x88))
    assert side.transport.closed and not side.transport.aborted
    clock.pump([0.1] * 53)
    assert side.transport.aborted
    assert side.ends == [(1005, "")]


@pytest.mark.parametrize("exc", [None, ConnectionResetError("reset")])
def test_a_lost_connection_is_1006(exc: Exception | None) -> None:
    side = Side(client=False)
    side.feed(frame(0x82, b"half", length=100))
    assert side.socket.eof_received() is None
    side.socket.connection_lost(exc)
    assert side.code == 1006
    side.socket.send_binary(b"late")
    side.socket.ping()
    side.socket.abort()
    side.network.turn()
    assert side.transport.writes == []


def test_abort_drops_at_once_and_tells_when_the_connection_is_gone() -> None:
    side = Side(client=False)
    side.on_frame = side.socket.abort
    side.feed(frame(0x81, b"one") + frame(0x81, b"two") + frame(0x88))
    assert side.frames == [(TEXT, b"one", True)]
    assert side.transport.aborted and side.ends == []
    side.socket.connection_lost(None)
    assert side.code == 1006


def test_abort_in_the_middle_of_a_large_frame() -> None:
    side = Side(client=False, max_piece=130)
    side.on_frame = side.socket.abort
    side.feed(frame(0x82, bytes(1000)) + frame(0x82, b"more"))
    assert len(side.frames) == 1


def test_abort_inside_pause_sending() -> None:
    side = Side(client=False, attach=False)
    side.socket.connection_made(side.transport)
    side.pause_sending = side.socket.abort  # type: ignore[method-assign]
    side.transport.on_write = side.socket.pause_writing
    side.socket.send_binary(b"x")
    side.socket.pause_reading()
    side.socket.close()
    assert side.sent() == b"\x82\x01x"
    assert side.transport.aborted
    side.socket.connection_lost(None)
    assert side.code == 1006


def test_nothing_is_delivered_after_our_close() -> None:
    for size in (3, 500):
        side = Side(client=False, max_piece=130)
        side.on_frame = lambda side=side: side.socket.close(1009, "enough")  # type: ignore[misc]
        side.feed(frame(0x82, bytes(size)) + frame(0x82, b"more") + frame(0x88, b"\x03\xf1"))
        assert len(side.frames) == 1
        assert side.code == 1009


def test_closing_inside_pause_sending_sends_one_close() -> None:
    side = Side(client=False)
    side.pause_sending = lambda: side.socket.close(1001)  # type: ignore[method-assign]
    side.transport.on_write = side.socket.pause_writing
    side.socket.send_binary(b"x")
    side.socket.close(1000)
    assert side.sent() == b"\x82\x01x\x88\x02\x03\xe9"


# -- keep-alive


def test_a_quiet_peer_is_pinged_and_dropped() -> None:
    clock = Clock()
    side = Side(client=False, clock=clock)
    side.socket.keep_alive(10, 4)
    clock.pump([0.1] * 99)
    assert side.sent() == b""
    clock.pump([0.1] * 3)
    assert side.sent() == b"\x89\x00"
    clock.pump([0.1] * 38)
    assert side.code is None
    clock.pump([0.1] * 4)
    assert side.code == 1006
    assert side.transport.aborted
    side.socket.connection_lost(None)
    assert len(side.ends) == 1
    clock.pump([0.1] * 200)
    assert side.sent() == b""


def test_any_byte_keeps_a_peer_alive() -> None:
    clock = Clock()
    side = Side(client=False, clock=clock)
    side.socket.keep_alive(10, 4)
    for _ in range(20):
        clock.pump([0.5] * 12)
        side.feed(frame(0x8A))
    assert side.code is None and side.sent() == b""
    clock.pump([0.5] * 41)  # no more than two intervals
    assert side.sent() == b"\x89\x00"
    side.feed(frame(0x8A))
    clock.pump([0.5] * 10)
    assert side.code is None


def test_keep_alive_does_not_blame_the_peer_for_our_pause() -> None:
    clock = Clock()
    side = Side(client=False, clock=clock)
    side.socket.keep_alive(10, 4)
    side.socket.pause_reading()
    clock.pump([0.5] * 200)
    assert side.code is None and side.sent() == b""
    side.socket.resume_reading()
    clock.pump([0.5] * 18)
    assert side.sent() == b""
    clock.pump([0.5] * 60)
    assert side.code == 1006


def test_masking_without_the_c_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wcfrelay.net.websocket.apply_mask", websockets.utils.apply_mask)
    test_the_mask_turns_with_the_pieces()
    side = Side(client=True, random_bytes=lambda size: b"\x01\x20\x73\xf4" * (size // 4))
    side.socket.send_binary(b"masked")
    assert side.sent() == frame(0x82, b"masked", mask=b"\x01\x20\x73\xf4")
