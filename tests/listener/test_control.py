"""The lifecycle of a listener on a clock, against a gateway that is the test."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.python.failure import Failure

from wcfrelay.address import ConnectionString
from wcfrelay.errors import (
    ConfigError,
    ExpiredTokenError,
    GatewayUnreachableError,
    NoListenerError,
    RelayError,
    error_for,
)
from wcfrelay.listener import RelayListener, Status, control
from wcfrelay.sas import parse_token

from .hybridfakes import BINARY, TEXT, FakeSocket, Responder, failures, request

CONNECTION = ConnectionString.parse("Endpoint=sb://relay.test/;SharedAccessKeyName=listen;SharedAccessKey=s3cret")
START = 1_700_000_000.0


def refusal(status: int) -> RelayError:
    error = error_for(status, "refused")
    error.handshake_status = status  # type: ignore[attr-defined]
    return error


class Middle(Random):
    """No jitter."""

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


class Dial:
    def __init__(self, url: str, headers: Sequence[tuple[str, str]], make_app: Callable[[Any], Any]) -> None:
        self.url = url
        self.headers = dict(headers)
        self.cancelled = False
        self.outcome: Deferred[Any] = Deferred(self._cancel)
        self.socket = FakeSocket()
        self._make_app = make_app

    def _cancel(self, _: object) -> None:
        self.cancelled = True

    def accept(self) -> FakeSocket:
        self.socket.app = self._make_app(self.socket)
        self.outcome.callback(self.socket)
        return self.socket

    def refuse(self, error: BaseException) -> None:
        self.outcome.errback(error)


class Stage:
    """A listener with its clock, gateway and dispatcher."""

    def __init__(self, patch: pytest.MonkeyPatch, connection: ConnectionString = CONNECTION, **options: Any) -> None:
        self.clock = Clock()
        self.dials: list[Dial] = []
        self.exchanges: list[Any] = []
        self.responder = Responder()
        self.dispatcher_closed = 0
        self.seen: list[tuple[Status, Exception | None]] = []
        patch.setattr(control, "connect_websocket", self.connect)
        self.listener = RelayListener(
            connection,
            "orders",
            self,
            reactor=self.clock,
            now=lambda: START + self.clock.seconds(),
            **{"random": Middle(), **options},
        )
        self.listener.on_status = lambda status, error: self.seen.append((status, error))

    async def connect(self, network: Any, timers: Any, url: str, **options: Any) -> Any:
        dial = Dial(url, options.get("headers", ()), options["make_app"])
        self.dials.append(dial)
        try:
            return await dial.outcome
        except Exception as error:
            # As the network below does: a cancelled attempt is an attempt that failed.
            raise GatewayUnreachableError("given up") if dial.cancelled else error from None

    def dispatch(self, exchange: Any) -> None:
        self.exchanges.append(exchange)
        exchange.begin(self.responder)

    async def close(self) -> None:
        self.dispatcher_closed += 1

    def advance(self, seconds: float) -> None:
        for _ in range(round(seconds * 10)):
            self.clock.advance(0.1)

    def open(self, **options: Any) -> Outcome:
        return Outcome(self.listener.open(**options))

    def online(self) -> FakeSocket:
        self.open()
        return self.dials[-1].accept()

    def lose(self, code: int = 1006) -> None:
        """Lose the control channel, and let what follows at once happen."""
        self.dials[-1].socket.app.closed(code, "")
        self.clock.advance(0)

    def delay(self) -> float:
        """Seconds until the next dial."""
        before, begun = len(self.dials), self.clock.seconds()
        while len(self.dials) == before:
            assert self.clock.seconds() - begun < 60
            self.clock.advance(0.01)
        return self.clock.seconds() - begun


class Outcome:
    """Of a coroutine: ``done``, and the error it raised."""

    def __init__(self, work: Any) -> None:
        self.done = False
        self.error: BaseException | None = None
        self.deferred: Deferred[None] = Deferred.fromCoroutine(work)
        self.deferred.addBoth(self._ended)

    def _ended(self, result: object) -> None:
        self.done = True
        if isinstance(result, Failure):
            self.error = result.value


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(monkeypatch)


# -- opening


def test_what_is_dialled(stage: Stage) -> None:
    opening = stage.open()
    dial = stage.dials[0]
    assert dial.url.startswith("wss://relay.test/$hc/orders?")
    assert parse_qs(urlsplit(dial.url).query) == {
        "sb-hc-action": ["listen"],
        "sb-hc-id": [stage.listener.listener_id],
    }
    token = parse_token(dial.headers["ServiceBusAuthorization"])
    assert (token.segments, token.key_name, token.expiry) == (("orders",), "listen", START + 3600)
    assert not opening.done
    socket = dial.accept()
    assert opening.done and opening.error is None
    assert socket.keep_alive_args == (30.0, 15.0)
    assert stage.seen == [(Status.CONNECTING, None), (Status.ONLINE, None)]


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_what_time_cannot_mend_is_raised_at_once(stage: Stage, status: int) -> None:
    opening, error = stage.open(), refusal(status)
    waiting = Outcome(stage.listener.wait_closed())
    stage.dials[0].refuse(error)
    assert opening.error is error and waiting.done
    assert (stage.listener.status, stage.listener.last_error) == (Status.OFFLINE, error)
    stage.advance(60)
    assert len(stage.dials) == 1
    assert Outcome(stage.listener.close()).done and stage.dispatcher_closed == 1


def test_a_configuration_error_is_raised_at_once(stage: Stage) -> None:
    opening = stage.open()
    stage.dials[0].refuse(ConfigError("ca_file: missing"))
    assert isinstance(opening.error, ConfigError)
    assert stage.listener.status is Status.OFFLINE


@pytest.mark.parametrize("error", [GatewayUnreachableError(), refusal(500), refusal(503), NoListenerError()])
def test_what_time_may_mend_is_tried_again(stage: Stage, error: RelayError) -> None:
    opening = stage.open()
    stage.dials[0].refuse(error)
    assert (stage.listener.status, stage.listener.last_error) == (Status.CONNECTING, error)
    stage.delay()
    stage.dials[1].accept()
    assert opening.done and opening.error is None and stage.listener.last_error is None


def test_a_refusal_after_the_first_try_is_tried_again(stage: Stage) -> None:
    opening = stage.open()
    stage.dials[0].refuse(GatewayUnreachableError())
    stage.delay()
    stage.dials[1].refuse(refusal(404))
    stage.delay()
    assert [status for status, _ in stage.seen[-2:]] == [Status.OFFLINE, Status.CONNECTING]
    assert not opening.done


def test_open_with_a_timeout_raises_the_last_error(stage: Stage) -> None:
    opening, error = stage.open(timeout=3.0), GatewayUnreachableError("refused")
    stage.dials[0].refuse(error)
    stage.advance(2)
    assert not opening.done
    stage.advance(1.2)
    assert opening.error is error and stage.listener.status is Status.OFFLINE
    dials = len(stage.dials)
    stage.advance(60)
    assert len(stage.dials) == dials


def test_open_with_a_timeout_gives_a_hanging_dial_up(stage: Stage) -> None:
    opening = stage.open(timeout=3.0)
    stage.advance(3.2)
    assert isinstance(opening.error, GatewayUnreachableError) and "3 s" in str(opening.error)
    assert stage.dials[0].cancelled


def test_a_cancelled_open_stops_trying(stage: Stage) -> None:
    opening = stage.open()
    opening.deferred.cancel()
    assert opening.done and stage.dials[0].cancelled
    assert stage.listener.status is Status.OFFLINE


def test_a_connection_string_without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError):
        Stage(monkeypatch, ConnectionString.parse("Endpoint=sb://relay.test/"))


# -- the channel is lost


def test_back_off(stage: Stage) -> None:
    stage.online()
    stage.advance(60)
    stage.lose()
    delays = []
    for _ in range(8):
        stage.dials[-1].refuse(GatewayUnreachableError())
        delays.append(round(stage.delay(), 1))
    assert delays == [1, 2, 5, 10, 30, 30, 30, 30]
    stage.dials[-1].accept()
    stage.advance(10.1)
    stage.lose()
    assert len(stage.dials) == 11  # again at once


def test_a_flapping_gateway_is_not_hammered(stage: Stage) -> None:
    stage.online()
    delays = []
    for _ in range(6):
        stage.advance(9)
        stage.lose()
        delays.append(round(stage.delay(), 1))
        stage.dials[-1].accept()
    assert delays == [1, 2, 5, 10, 30, 30]


def test_the_jitter_is_a_fifth(monkeypatch: pytest.MonkeyPatch) -> None:
    delays = []
    for seed in range(40):
        stage = Stage(monkeypatch, random=Random(seed))
        stage.open()
        stage.dials[0].refuse(GatewayUnreachableError())
        delays.append(stage.delay())
    assert min(delays) >= 0.8 and max(delays) <= 1.2 + 0.01
    assert max(delays) - min(delays) > 0.25


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_when_coming_back(stage: Stage, status: int) -> None:
    stage.online()
    stage.advance(20)
    stage.lose()
    error = refusal(status)
    stage.dials[1].refuse(error)
    assert (stage.listener.status, stage.listener.last_error) == (Status.OFFLINE, error)
    stage.delay()
    assert (stage.listener.status, stage.listener.last_error) == (Status.CONNECTING, error)
    stage.dials[2].accept()
    assert (stage.listener.status, stage.listener.last_error) == (Status.ONLINE, None)


@pytest.mark.parametrize("error", [ConfigError("x"), ValueError("bug")])
def test_any_other_error_when_coming_back_is_tried_again(stage: Stage, error: Exception) -> None:
    stage.online()
    stage.advance(20)
    stage.lose()
    stage.dials[1].refuse(error)
    assert stage.listener.last_error is error
    stage.delay()
    assert len(stage.dials) == 3


@pytest.mark.parametrize("code", [1000, 1001, 1006, 1008, 1011])
def test_every_close_code_leads_to_another_try(stage: Stage, code: int) -> None:
    stage.online()
    stage.advance(20)
    stage.lose(code)
    assert len(stage.dials) == 2
    assert f"({code})" in str(stage.listener.last_error)
    assert "sb-hc-id=" + stage.listener.listener_id in stage.dials[1].url


def test_an_expired_token_is_replaced(stage: Stage) -> None:
    stage.online()
    stage.advance(100)
    stage.lose(1006)
    stage.dials[1].accept()
    stage.advance(100)
    stage.lose(1008)
    assert isinstance(stage.listener.last_error, ExpiredTokenError)
    first, second, third = (dial.headers["ServiceBusAuthorization"] for dial in stage.dials)
    assert first == second != third
    assert parse_token(third).expiry == int(START + stage.clock.seconds()) + 3600


def test_commands_that_break_the_protocol_lead_to_another_try(stage: Stage) -> None:
    socket = stage.online()
    stage.advance(20)
    socket.text(b"nonsense")
    assert socket.close_code == 1002
    stage.lose(1002)
    assert len(stage.dials) == 2


def test_a_status_observer_that_raises_does_no_harm(stage: Stage) -> None:
    def broken(status: Status, error: Exception | None) -> None:
        raise ValueError

    stage.listener.on_status = broken
    with capturedLogs() as logs:
        stage.online()
    assert stage.listener.status is Status.ONLINE
    assert failures(logs) == [ValueError, ValueError]


# -- the token


def renewals(socket: FakeSocket) -> list[str]:
    return [json.loads(data)["renewToken"]["token"] for opcode, data, _ in socket.sent if opcode == TEXT]


def test_the_token_is_renewed_at_three_quarters_of_its_life(stage: Stage) -> None:
    socket = stage.online()
    stage.clock.advance(2699)
    assert renewals(socket) == []
    stage.clock.advance(2)
    assert [parse_token(token).expiry - START for token in renewals(socket)] == [2701 + 3600]
    stage.clock.advance(2698)
    assert len(renewals(socket)) == 1
    stage.clock.advance(3)
    assert len(renewals(socket)) == 2


def test_a_lost_channel_renews_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, token_lifetime=100)
    first = stage.online()
    stage.advance(50)
    stage.lose()
    second = stage.dials[1].accept()
    stage.advance(30)
    assert (len(renewals(first)), len(renewals(second))) == (0, 1)


def test_a_given_signature_is_not_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    given = "SharedAccessSignature sr=x&sig=y&se=1&skn=z"
    stage = Stage(monkeypatch, ConnectionString.parse(f"Endpoint=sb://relay.test/;SharedAccessSignature={given}"))
    socket = stage.online()
    assert stage.dials[0].headers["ServiceBusAuthorization"] == given
    stage.clock.advance(100_000)
    assert renewals(socket) == []


# -- closing


def test_closing_an_idle_listener(stage: Stage) -> None:
    socket = stage.online()
    closing, again = Outcome(stage.listener.close()), Outcome(stage.listener.close())
    waiting = Outcome(stage.listener.wait_closed())
    assert socket.close_code == 1000 and not closing.done
    socket.app.closed(1000, "")
    assert closing.done and again.done and waiting.done
    assert (stage.listener.status, stage.listener.last_error) == (Status.OFFLINE, None)
    assert stage.dispatcher_closed == 1
    assert stage.clock.getDelayedCalls() == []
    assert Outcome(stage.listener.close()).done and Outcome(stage.listener.wait_closed()).done
    assert stage.dispatcher_closed == 1 and len(stage.dials) == 1


def test_closing_lets_calls_in_flight_finish(stage: Stage) -> None:
    socket = stage.online()
    socket.text(request())
    closing = Outcome(stage.listener.close())
    stage.advance(20)
    assert socket.close_code is None
    socket.text(request(id="i2"))
    assert socket.response()["statusCode"] == 503
    stage.exchanges[0].respond(200, "OK", [], b"")
    assert socket.response(2)["requestId"] == "i1"
    assert socket.close_code == 1000
    socket.app.closed(1000, "")
    assert closing.done and len(stage.exchanges) == 1


def test_closing_waits_no_longer_than_its_grace(stage: Stage) -> None:
    socket = stage.online()
    socket.text(request())
    closing = Outcome(stage.listener.close(grace=5.0))
    stage.advance(4.8)
    assert socket.close_code is None
    stage.advance(0.4)
    assert socket.response()["statusCode"] == 502
    assert stage.responder.events == ["end", "cancelled"]
    assert socket.close_code == 1000
    socket.app.closed(1000, "")
    assert closing.done and stage.clock.getDelayedCalls() == []


def test_closing_with_rendezvous(stage: Stage) -> None:
    """An idle one is closed at once, a busy one after its answer, and a request on its way is still served."""
    socket = stage.online()
    rendezvous = []
    for at in range(3):
        socket.text({"request": {"address": f"wss://g/$hc/orders?{at}", "id": str(at)}})
    for at in range(2):
        rendezvous.append(stage.dials[1 + at].accept())
        rendezvous[at].text(request(id=str(at)))
    stage.exchanges[0].respond(200, "", [], b"")
    closing = Outcome(stage.listener.close())
    assert [each.close_code for each in rendezvous] == [1000, None]
    stage.exchanges[1].respond(200, "", [], b"")
    assert rendezvous[1].close_code == 1000
    late = stage.dials[3].accept()
    late.text(request(id="2", body=True))
    assert not closing.done
    late.frame(BINARY, b"x")
    stage.exchanges[2].respond(200, "", [], b"")
    assert late.close_code == 1000
    for each in (*rendezvous, late):
        each.app.closed(1000, "")
    socket.app.closed(1000, "")
    assert closing.done


def test_closing_gives_up_what_is_still_dialling(stage: Stage) -> None:
    socket = stage.online()
    socket.text({"request": {"address": "wss://g/$hc/orders?1", "id": "u1"}})
    socket.text(request())
    stage.exchanges[0].respond(200, "", [], b"x" * 100_000)
    closing = Outcome(stage.listener.close(grace=1.0))
    stage.advance(1.2)
    assert [dial.cancelled for dial in stage.dials] == [False, True, True]
    assert {socket.response(at)["requestId"] for at in (0, 2)} == {"u1", "i1"}
    socket.app.closed(1000, "")
    assert closing.done and stage.clock.getDelayedCalls() == []


def test_closing_does_not_wait_for_ever_for_a_rendezvous(stage: Stage) -> None:
    socket = stage.online()
    socket.text({"request": {"address": "wss://g/$hc/orders?1", "id": "u1"}})
    stage.dials[1].accept().text(request())
    stage.exchanges[0].start(200, "", [], None)
    closing = Outcome(stage.listener.close(grace=1.0))
    stage.advance(1.2)
    assert stage.dials[1].socket.close_code == 1011
    assert stage.responder.events == ["end", "cancelled"]
    stage.advance(10.2)
    assert socket.close_code == 1000
    socket.app.closed(1006, "")
    assert closing.done


def test_a_channel_lost_while_closing_stays_lost(stage: Stage) -> None:
    socket = stage.online()
    socket.text(request())
    closing = Outcome(stage.listener.close())
    socket.app.closed(1006, "")
    assert closing.done and stage.responder.events == ["end", "cancelled"]
    stage.advance(60)
    assert len(stage.dials) == 1


def test_closing_while_dialling(stage: Stage) -> None:
    opening = stage.open()
    closing = Outcome(stage.listener.close())
    assert stage.dials[0].cancelled and closing.done
    assert isinstance(opening.error, GatewayUnreachableError) and "closed" in str(opening.error)
    assert stage.dispatcher_closed == 1 and stage.clock.getDelayedCalls() == []


def test_closing_between_two_tries(stage: Stage) -> None:
    opening = stage.open()
    stage.dials[0].refuse(GatewayUnreachableError())
    assert Outcome(stage.listener.close()).done and opening.done
    assert stage.listener.status is Status.OFFLINE and stage.clock.getDelayedCalls() == []


def test_closing_what_was_never_opened(stage: Stage) -> None:
    assert Outcome(stage.listener.close()).done
    assert stage.dispatcher_closed == 1


def test_closing_from_an_observer(stage: Stage) -> None:
    closing: list[Outcome] = []

    def observe(status: Status, error: Exception | None) -> None:
        if status is Status.CONNECTING and not closing:
            closing.append(Outcome(stage.listener.close()))

    stage.online()
    stage.advance(20)
    stage.listener.on_status = observe
    stage.lose()
    assert closing[0].done and stage.listener.status is Status.OFFLINE
    assert len(stage.dials) == 1


def test_a_dial_that_cannot_be_cancelled_any_more(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loop futures: a cancel that comes too late changes nothing, or raises asyncio's own error."""
    outcome: Deferred[Any] = Deferred()
    socket = FakeSocket()

    async def connect(network: Any, timers: Any, url: str, **options: Any) -> Any:
        socket.app = options["make_app"](socket)
        try:
            await Deferred(lambda _: None)
        except Exception:
            await outcome
        return socket

    monkeypatch.setattr(control, "connect_websocket", connect)
    stage.open()
    closing = Outcome(stage.listener.close())
    assert not closing.done
    outcome.callback(None)
    assert closing.done and socket.close_code == 1006


def test_a_cancelled_future(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    async def connect(network: Any, timers: Any, url: str, **options: Any) -> Any:
        try:
            await Deferred()
        except Exception:
            raise asyncio.CancelledError from None

    monkeypatch.setattr(control, "connect_websocket", connect)
    stage.open()
    assert Outcome(stage.listener.close()).done
