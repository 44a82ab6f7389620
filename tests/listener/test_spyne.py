"""The spyne dispatcher: real Applications behind a fake exchange."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import zeep
from lxml import etree
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import capturedLogs

from wcfrelay.errors import ConfigError
from wcfrelay.listener.spyne import SpyneDispatcher, in_thread, load_application
from wcfrelay.net.exchange import Headers, Responder, header
from wcfrelay.wire.soap import SOAP11, SOAP12

# After wcfrelay.listener.spyne, which makes spyne importable.
from spyne import (  # isort: skip
    Application,
    Array,
    ComplexModel,
    Fault,
    Integer,
    Iterable as SpyneIterable,
    ServiceBase,
    Unicode,
    rpc,
    srpc,
)
from spyne.protocol.json import JsonDocument  # isort: skip
from spyne.protocol.soap import Soap11, Soap12  # isort: skip

NS = "http://example.org/calc"
ENVELOPES = {"1.1": SOAP11, "1.2": SOAP12}
TYPES = {"1.1": "text/xml; charset=utf-8", "1.2": "application/soap+xml; charset=utf-8"}


class Line(ComplexModel):  # type: ignore[misc]
    __namespace__ = NS
    Sku = Unicode
    Quantity = Integer


class OutOfStock(Fault):  # type: ignore[misc]
    """A typed fault, what .NET calls a FaultContract."""

    __namespace__ = NS
    Sku = Unicode(default=None)

    def __init__(self, sku: str) -> None:
        super().__init__("Client.OutOfStock", "none left")
        self.Sku = sku


class Undeclared(Fault):  # type: ignore[misc]
    """A typed fault that no method declares."""

    Sku = Unicode

    def __init__(self) -> None:
        super().__init__("Server", "undeclared")
        self.Sku = "x2"


class State:
    """What the methods below did; emptied before each test."""

    waiting: Deferred[Any]
    seen: list[Any]
    udc: Any


@pytest.fixture(autouse=True)
def _fresh_state() -> None:
    State.waiting, State.seen, State.udc = Deferred(), [], None


class Calculator(ServiceBase):  # type: ignore[misc]
    @srpc(Integer, Integer, _returns=Integer)
    def Add(a, b):  # type: ignore[no-untyped-def]
        return a + b

    @rpc(Unicode, _returns=Unicode)
    def Echo(ctx, text):  # type: ignore[no-untyped-def]
        State.udc = ctx.udc
        return text

    @rpc(Integer, _returns=Integer)
    async def Later(ctx, value):  # type: ignore[no-untyped-def]
        try:
            return value + await State.waiting
        except CancelledError:
            State.seen.append("cancelled")
            raise

    @rpc(Integer, _returns=Integer)
    def Eventually(ctx, value):  # type: ignore[no-untyped-def]
        return State.waiting

    @rpc(_returns=(Integer, Unicode))
    async def Pair(ctx):  # type: ignore[no-untyped-def]
        return 1, "one"

    @rpc(Integer, _returns=Integer)
    @in_thread
    def Blocking(ctx, value):  # type: ignore[no-untyped-def]
        State.seen.append("thread")
        return value

    @rpc(Unicode, _is_async=True)
    def Notify(ctx, text):  # type: ignore[no-untyped-def]
        State.seen.append(text)
        return State.waiting

    @rpc(Array(Line), _returns=SpyneIterable(Line))
    def Lines(ctx, lines):  # type: ignore[no-untyped-def]
        yield from lines or ()

    @rpc(Unicode)
    def Fail(ctx, code):  # type: ignore[no-untyped-def]
        if code == "crash":
            raise RuntimeError("the password is hunter2")
        raise Fault(code, "<wrong> & \x01", detail={f"{{{NS}}}Reason": {f"{{{NS}}}Code": "7"}})

    @rpc(Unicode, _throws=[OutOfStock])
    def Order(ctx, sku):  # type: ignore[no-untyped-def]
        raise OutOfStock(sku) if sku else Undeclared()

    @rpc(_returns=Integer)
    def Wrong(ctx):  # type: ignore[no-untyped-def]
        return object()


def application(protocol: Any = Soap11, validator: str | None = "lxml", **keywords: Any) -> Application:
    return Application(
        [Calculator],
        tns=NS,
        name="Calculator",
        in_protocol=protocol(validator=validator),
        out_protocol=protocol(),
        **keywords,
    )


class Threads:
    """A reactor and its pool of one: runs everything at once."""

    def getThreadPool(self) -> Threads:
        return self

    def callInThreadWithCallback(self, done: Any, function: Any, *args: Any, **keywords: Any) -> None:
        done(True, function(*args, **keywords))

    def callFromThread(self, function: Any, *args: Any, **keywords: Any) -> None:
        function(*args, **keywords)


class FakeExchange:
    """An exchange in memory. ``answers`` holds what the responder gave: never more than one."""

    origin = "https://gw.example:8443"
    tracking_id = "6d1b"

    def __init__(
        self,
        method: str = "POST",
        target: str = "/team/orders",
        body: bytes | None = b"",
        headers: Iterable[tuple[str, str]] = (),
        length: int | None = None,
    ) -> None:
        self.method, self.target, self.length = method, target, length
        self.headers: Headers = list(headers)
        self._body = body
        self.answers: list[tuple[int, str, dict[str, str], bytes]] = []
        self.answered: Deferred[None] = Deferred()
        self.responder: Responder

    def begin(self, responder: Responder) -> None:
        self.responder = responder
        if self._body is not None:
            for start in range(0, len(self._body), 1000):
                responder.body_received(self._body[start : start + 1000])
            responder.body_ended()

    def respond(self, status: int, reason: str, headers: Iterable[tuple[str, str]], body: bytes) -> None:
        self.answers.append((status, reason, dict(headers), body))
        if not self.answered.called:
            self.answered.callback(None)

    def pause(self) -> None:
        raise AssertionError("not expected")

    resume = finish = pause

    def start(self, *_: object) -> None:
        raise AssertionError("not expected")

    write = abort = start

    @property
    def status(self) -> int:
        ((status, _, _, _),) = self.answers
        return status

    @property
    def body(self) -> bytes:
        return self.answers[0][3]

    @property
    def tree(self) -> etree._Element:
        return etree.fromstring(self.body)

    def type(self) -> str:
        return self.answers[0][2]["Content-Type"]


def envelope(version: str, content: str, header: str = "") -> bytes:
    text = f'<s:Envelope xmlns:s="{ENVELOPES[version]}" xmlns="{NS}">{header}<s:Body>{content}</s:Body></s:Envelope>'
    return text.encode()


def post(dispatcher: SpyneDispatcher, version: str, content: str | bytes, **keywords: Any) -> FakeExchange:
    body = content if isinstance(content, bytes) else envelope(version, content)
    headers = [("Content-Type", TYPES[version]), *keywords.pop("headers", ())]
    exchange = FakeExchange(body=body, headers=headers, **keywords)
    dispatcher.dispatch(exchange)
    return exchange


def get(dispatcher: SpyneDispatcher, query: str = "", method: str = "GET") -> FakeExchange:
    exchange = FakeExchange(method, f"/team/orders{query}")
    dispatcher.dispatch(exchange)
    return exchange


def result(exchange: FakeExchange) -> str | None:
    assert exchange.status == 200, exchange.body
    return exchange.tree[0][0][0].text


def fault_of(exchange: FakeExchange) -> tuple[str, str]:
    """(code, reason) of a fault in either version, the code without prefixes, subcodes behind dots."""
    body = exchange.tree.find("{*}Body")
    assert body is not None
    (node,) = body
    if node.tag == f"{{{SOAP11}}}Fault":
        return str(node.findtext("faultcode")).partition(":")[2], str(node.findtext("faultstring"))
    codes = [str(value.text).partition(":")[2] for value in node.iterfind(f"{{{SOAP12}}}Code//{{{SOAP12}}}Value")]
    return ".".join(codes), str(node.findtext(f"{{{SOAP12}}}Reason/{{{SOAP12}}}Text"))


@pytest.fixture
def dispatcher() -> SpyneDispatcher:
    return SpyneDispatcher(application(), relay_path="/team/orders", reactor=Threads())


both = pytest.mark.parametrize("version", ["1.1", "1.2"])


@both
@pytest.mark.parametrize("given", [Soap11, Soap12])
@pytest.mark.parametrize("validator", ["lxml", "soft", None])
def test_call_in_either_version(given: Any, validator: str | None, version: str) -> None:
    service = SpyneDispatcher(application(given, validator), relay_path="orders", reactor=Threads())
    exchange = post(service, version, "<Add><a>2</a><b>3</b></Add>")
    assert result(exchange) == "5"
    assert exchange.tree.tag == f"{{{ENVELOPES[version]}}}Envelope"
    assert exchange.type() == TYPES[version]
    assert exchange.answers[0][1] == "OK"


@both
def test_results_of_every_kind(dispatcher: SpyneDispatcher, version: str) -> None:
    assert result(post(dispatcher, version, "<Echo><text>a &amp; é</text></Echo>")) == "a & é"
    assert [each.text for each in post(dispatcher, version, "<Pair/>").tree[0][0]] == ["1", "one"]
    lines = "<Lines><lines><Line><Sku>x</Sku></Line><Line><Quantity>2</Quantity></Line></lines></Lines>"
    assert len(post(dispatcher, version, lines).tree[0][0][0]) == 2


@both
@pytest.mark.parametrize("method", ["Later", "Eventually"])
def test_coroutines_and_deferreds(dispatcher: SpyneDispatcher, version: str, method: str) -> None:
    exchange = post(dispatcher, version, f"<{method}><value>0</value></{method}>")
    assert exchange.answers == []
    State.waiting.callback(40)
    assert result(exchange) == "40"


def test_deferred_that_fails(dispatcher: SpyneDispatcher) -> None:
    exchange = post(dispatcher, "1.2", "<Eventually><value>0</value></Eventually>")
    State.waiting.errback(Fault("Client.Gone", "gone"))
    assert exchange.status == 400
    assert fault_of(exchange) == ("Sender.Gone", "gone")


def test_blocking_method_runs_in_the_pool(dispatcher: SpyneDispatcher) -> None:
    assert result(post(dispatcher, "1.1", "<Blocking><value>4</value></Blocking>")) == "4"
    assert State.seen == ["thread"]


async def test_blocking_method_with_a_real_pool() -> None:
    from twisted.internet import reactor

    service = SpyneDispatcher(application(), relay_path="orders", reactor=reactor)
    exchange = FakeExchange(
        body=envelope("1.1", "<Blocking><value>4</value></Blocking>"), headers=[("Content-Type", "text/xml")]
    )
    service.dispatch(exchange)
    assert exchange.answers == []
    await exchange.answered
    assert result(exchange) == "4"


def test_in_thread_refuses_what_it_cannot_mark() -> None:
    async def coroutine() -> None: ...

    with pytest.raises(TypeError):
        in_thread(coroutine)
    with pytest.raises(TypeError):
        in_thread(rpc()(lambda ctx: None))


@both
def test_one_way_is_answered_before_it_has_run(dispatcher: SpyneDispatcher, version: str) -> None:
    exchange = post(dispatcher, version, "<Notify><text>hello</text></Notify>")
    assert State.seen == ["hello"]
    assert exchange.answers == [(202, "Accepted", {}, b"")]
    with capturedLogs() as logs:
        State.waiting.errback(RuntimeError("late"))
    assert exchange.status == 202
    assert [log["log_failure"].value.args for log in logs] == [("late",)]


def test_one_way_that_ends_in_a_fault_is_logged(dispatcher: SpyneDispatcher) -> None:
    post(dispatcher, "1.1", "<Notify/>")
    with capturedLogs() as logs:
        State.waiting.errback(Fault("Client.Gone", "private"))
    assert [log["code"] for log in logs] == ["Client.Gone"]


def test_one_ways_are_bounded(dispatcher: SpyneDispatcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wcfrelay.listener.spyne._ONE_WAY_LIMIT", 2)
    statuses = [post(dispatcher, "1.2", "<Notify/>").status for _ in range(3)]
    assert statuses == [202, 202, 503]
    State.waiting.callback(None)
    assert post(dispatcher, "1.1", "<Notify/>").status == 202


def test_invalid_one_way_gets_its_fault(dispatcher: SpyneDispatcher) -> None:
    assert post(dispatcher, "1.1", "<Notify><other/></Notify>").status == 500
    assert State.seen == []


@pytest.mark.parametrize(
    ("version", "code", "status", "answered"),
    [
        ("1.1", "Client.Bad", 500, "Client.Bad"),
        ("1.1", "Server", 500, "Server"),
        ("1.1", "Sender", 500, "Client"),
        ("1.2", "Client.Bad.Worse", 400, "Sender.Bad.Worse"),
        ("1.2", "Server.Down", 500, "Receiver.Down"),
        ("1.2", "Mine.Own", 500, "Receiver.Mine.Own"),
        ("1.2", "Client.not a name", 400, "Sender"),
    ],
)
def test_faults(dispatcher: SpyneDispatcher, version: str, code: str, status: int, answered: str) -> None:
    exchange = post(dispatcher, version, f"<Fail><code>{code}</code></Fail>")
    assert exchange.status == status
    assert fault_of(exchange) == (answered, "<wrong> & \ufffd")
    assert exchange.type() == TYPES[version]
    (node,) = exchange.tree.iter("{*}Fault")
    detail = node[-1]
    assert etree.QName(detail).localname.lower() == "detail"
    assert detail.findtext(f"{{{NS}}}Reason/{{{NS}}}Code") == "7"
    allowed = ["faultcode", "faultstring", "detail"] if version == "1.1" else ["Code", "Reason", "Detail"]
    assert [etree.QName(child).localname for child in node] == allowed


@both
def test_members_of_a_fault_are_in_its_detail(dispatcher: SpyneDispatcher, version: str) -> None:
    (node,) = post(dispatcher, version, "<Order><sku>x1</sku></Order>").tree.iter("{*}Fault")
    assert node[-1].findtext(f"{{{NS}}}OutOfStock/{{{NS}}}Sku") == "x1"
    (node,) = post(dispatcher, version, "<Order/>").tree.iter("{*}Fault")
    assert node[-1].findtext("{*}Undeclared/{*}Sku") == "x2"


@both
def test_schema_violations_and_unknown_methods_are_the_senders_fault(dispatcher: SpyneDispatcher, version: str) -> None:
    sender = "Client" if version == "1.1" else "Sender"
    for content in ("<Add><a>x</a><b>3</b></Add>", "<Nothing/>", "<Add><a>1</a><c/></Add>"):
        exchange = post(dispatcher, version, content)
        assert fault_of(exchange)[0].startswith(sender)
        assert exchange.status == (500 if version == "1.1" else 400)
    soft = SpyneDispatcher(application(validator=None), relay_path="orders", reactor=Threads())
    assert fault_of(post(soft, version, "<Nothing/>"))[0] == f"{sender}.ResourceNotFound"


@both
@pytest.mark.parametrize("content", ["<Fail><code>crash</code></Fail>", "<Wrong/>"])
def test_the_unexpected_is_logged_and_not_told(dispatcher: SpyneDispatcher, version: str, content: str) -> None:
    with capturedLogs() as logs:
        exchange = post(dispatcher, version, content)
    assert exchange.status == 500
    assert fault_of(exchange) == (
        "Server" if version == "1.1" else "Receiver",
        "Internal Error TrackingId:6d1b",
    )
    (failure,) = [log for log in logs if "log_failure" in log]
    assert failure["tracking_id"] == "6d1b"
    assert b"hunter2" not in exchange.body


def test_user_code_sees_the_exchange(dispatcher: SpyneDispatcher) -> None:
    post(dispatcher, "1.1", "<Echo/>", headers=[("X-Tenant", "blue")])
    assert State.udc.tracking_id == "6d1b"
    assert header(State.udc.headers, "x-tenant") == "blue"


@both
def test_event_handlers_hold_for_both_versions_and_in_order(version: str) -> None:
    events: list[str] = []
    app = application()

    def authenticate(ctx: Any) -> None:
        if header(ctx.udc.headers, "authorization") is None:
            raise Fault("Client.Unauthorized", "no")

    app.event_manager.add_listener("method_call", authenticate)
    for name in ("method_return_object", "method_return_string", "method_exception_object", "method_context_closed"):
        app.event_manager.add_listener(name, lambda ctx, name=name: events.append(name))
    service = SpyneDispatcher(app, relay_path="orders", reactor=Threads())
    assert fault_of(post(service, version, "<Echo/>"))[0].endswith("Unauthorized")
    assert events == ["method_exception_object", "method_context_closed"]
    events.clear()
    exchange = post(service, version, "<Later><value>1</value></Later>", headers=[("Authorization", "x")])
    assert events == []
    State.waiting.callback(1)
    assert result(exchange) == "2"
    assert events == ["method_return_object", "method_return_string", "method_context_closed"]


def test_user_defined_context_of_an_event_handler_stays() -> None:
    app = application()
    app.event_manager.add_listener("method_context_created", lambda ctx: setattr(ctx, "udc", "mine"))
    post(SpyneDispatcher(app, relay_path="orders", reactor=Threads()), "1.2", "<Echo/>")
    assert State.udc == "mine"


def test_cancelled_call_is_cancelled_and_not_answered(dispatcher: SpyneDispatcher) -> None:
    with capturedLogs() as logs:
        exchange = post(dispatcher, "1.1", "<Later><value>1</value></Later>")
        exchange.responder.cancelled(ConnectionError())
    assert State.seen == ["cancelled"]
    assert exchange.answers == []
    assert logs == []


def test_cancelled_while_the_body_comes(dispatcher: SpyneDispatcher) -> None:
    exchange = post(dispatcher, "1.1", b"", length=None)
    waiting = FakeExchange(body=None, headers=[("Content-Type", "text/xml")])
    dispatcher.dispatch(waiting)
    waiting.responder.body_received(b"<")
    waiting.responder.cancelled(ConnectionError())
    assert waiting.answers == []
    assert exchange.status == 500


async def test_close_cancels_what_runs_and_takes_no_more(dispatcher: SpyneDispatcher) -> None:
    running = post(dispatcher, "1.1", "<Later><value>1</value></Later>")
    State.waiting = Deferred()
    one_way = post(dispatcher, "1.1", "<Notify/>")
    await dispatcher.close()
    assert running.status == 502
    assert fault_of(running) == ("Server", "The service has been stopped. TrackingId:6d1b")
    assert State.seen[-1] == "cancelled"
    assert one_way.status == 202
    assert post(dispatcher, "1.1", "<Echo/>").status == 502


def test_large_bodies_are_refused() -> None:
    service = SpyneDispatcher(application(), relay_path="orders", reactor=Threads(), max_body=2000)
    for length in (None, 5000):
        exchange = post(service, "1.2", b"x" * 5000, length=length)
        assert exchange.status == 413
        assert fault_of(exchange)[0] == "Sender"
    assert result(post(service, "1.1", "<Echo><text>x</text></Echo>")) == "x"


def test_large_texts_are_taken_where_the_quota_allows() -> None:
    service = SpyneDispatcher(application(), relay_path="orders", reactor=Threads(), max_body=20_000_000)
    text = "x" * 11_000_000
    answer = post(service, "1.1", f"<Echo><text>{text}</text></Echo>")
    assert answer.status == 200
    assert text.encode() in answer.body
    deep = "<a>" * 1000 + "</a>" * 1000
    exchange = post(service, "1.1", envelope("1.1", f"<Echo><text>{text}</text></Echo>{deep}"))
    assert "deeper" in fault_of(exchange)[1]


@pytest.mark.parametrize("content_type", ["application/json", "application/xml", "multipart/related", None])
def test_other_content_types(dispatcher: SpyneDispatcher, content_type: str | None) -> None:
    headers = [("Content-Type", content_type)] if content_type else []
    exchange = FakeExchange(body=b"{}", headers=headers)
    dispatcher.dispatch(exchange)
    assert exchange.status == 415


@pytest.mark.parametrize("method", ["PUT", "DELETE", "HEAD"])
def test_other_methods(dispatcher: SpyneDispatcher, method: str) -> None:
    exchange = get(dispatcher, method=method)
    assert exchange.status == 405
    assert exchange.answers[0][2]["Allow"] == "GET, POST"


def test_get_tells_where_the_wsdl_is(dispatcher: SpyneDispatcher) -> None:
    exchange = get(dispatcher, "?other")
    assert exchange.status == 200
    assert b"https://gw.example:8443/team/orders?wsdl" in exchange.body


@pytest.mark.parametrize("query", ["?wsdl", "?WSDL", "?singleWsdl", "?a=b&Wsdl=1"])
def test_wsdl_has_the_public_address(dispatcher: SpyneDispatcher, query: str) -> None:
    exchange = get(dispatcher, query)
    assert exchange.status == 200
    assert exchange.type() == "text/xml; charset=utf-8"
    (address,) = exchange.tree.iter("{*}address")
    assert address.get("location") == "https://gw.example:8443/team/orders"


def test_address_is_escaped(dispatcher: SpyneDispatcher) -> None:
    exchange = FakeExchange("GET", "/?wsdl")
    exchange.origin = 'http://"><ü'
    dispatcher.dispatch(exchange)
    (address,) = exchange.tree.iter("{*}address")
    assert address.get("location") == 'http://"><ü/team/orders'


# Envelopes


def test_versions_that_are_not_served() -> None:
    class Own(Soap11):  # type: ignore[misc]
        pass

    service = SpyneDispatcher(application(Own), relay_path="orders", reactor=Threads())
    assert result(post(service, "1.1", "<Echo><text>x</text></Echo>")) == "x"
    exchange = post(service, "1.2", "<Echo/>")
    assert (exchange.status, exchange.type()) == (500, TYPES["1.1"])
    assert fault_of(exchange)[0] == "VersionMismatch"
    assert [each.get("qname") for each in exchange.tree.iter(f"{{{SOAP12}}}SupportedEnvelope")] == ["v:Envelope"]


def test_unknown_envelope(dispatcher: SpyneDispatcher) -> None:
    exchange = post(dispatcher, "1.1", b'<Envelope xmlns="urn:future"><Body/></Envelope>')
    assert exchange.status == 500
    assert fault_of(exchange)[0] == "VersionMismatch"
    assert len(list(exchange.tree.iter(f"{{{SOAP12}}}SupportedEnvelope"))) == 2


def test_one_application_for_each_version() -> None:
    service = SpyneDispatcher(application(Soap12), application(Soap11), relay_path="orders", reactor=Threads())
    assert b"wsdl/soap12/" in get(service, "?wsdl").body
    for version in ENVELOPES:
        assert result(post(service, version, "<Echo><text>x</text></Echo>")) == "x"


def test_applications_that_cannot_be_hosted() -> None:
    with pytest.raises(ConfigError, match="Two applications"):
        SpyneDispatcher(application(), application(), relay_path="x", reactor=Threads())
    with pytest.raises(ConfigError, match="Soap11"):
        SpyneDispatcher(
            Application([Calculator], NS, in_protocol=JsonDocument(), out_protocol=Soap11()),
            relay_path="x",
            reactor=Threads(),
        )
    with pytest.raises(ConfigError, match="needs an Application"):
        SpyneDispatcher(relay_path="x", reactor=Threads())
    with pytest.raises(ConfigError, match="Soap11"):
        SpyneDispatcher(
            Application([Calculator], NS, in_protocol=Soap11(), out_protocol=Soap12()),
            relay_path="x",
            reactor=Threads(),
        )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not xml",
        b"<a/>",
        f'<Envelope xmlns="{SOAP11}"/>'.encode(),
        f'<Envelope xmlns="{SOAP11}"><Body/></Envelope>'.encode(),
        f'<Envelope xmlns="{SOAP11}"><Body>text<!-- c --></Body></Envelope>'.encode(),
        f'<Envelope xmlns="{SOAP11}"><Body><Fault/></Body></Envelope>'.encode(),
        envelope("1.1", "<a>" * 300 + "</a>" * 300),
        b'<?xml version="1.0" encoding="nonsense"?><a/>',
    ],
)
def test_messages_that_are_no_request(dispatcher: SpyneDispatcher, body: bytes) -> None:
    exchange = post(dispatcher, "1.1", body)
    assert exchange.status == 500
    assert fault_of(exchange)[0] == "Client"


def test_charset_of_the_content_type_counts(dispatcher: SpyneDispatcher) -> None:
    body = envelope("1.1", "<Echo><text>é</text></Echo>").decode()
    for charset, data in (
        ("iso-8859-1", body.encode("latin-1")),
        ("utf-16", body.encode("utf-16")),
        ("utf-8", b"\xef\xbb\xbf" + body.encode()),
        ("iso-8859-1", b"\xef\xbb\xbf" + body.encode()),
    ):
        exchange = FakeExchange(body=data, headers=[("content-type", f'text/xml; charset="{charset}"')])
        dispatcher.dispatch(exchange)
        assert result(exchange) == "é"
    exchange = FakeExchange(body=b"<a/>", headers=[("content-type", "text/xml; charset=nonsense")])
    dispatcher.dispatch(exchange)
    assert fault_of(exchange)[0] == "Client"


ATTACKS = [
    "cyclic.xml",
    "dtd.xml",
    "external.xml",
    "external_file.xml",
    "quadratic.xml",
    "simple-ns.xml",
    "simple.xml",
    "xmlbomb.xml",
    "xmlbomb2.xml",
]


@both
@pytest.mark.parametrize("name", ATTACKS)
def test_xml_attacks(dispatcher: SpyneDispatcher, shared: Path, version: str, name: str) -> None:
    """The documents as they are, and their DOCTYPE in front of an envelope that uses an entity of theirs."""
    document = (shared / "vectors/xml_attacks" / name).read_text()
    exchange = post(dispatcher, version, document.encode())
    assert fault_of(exchange)[0] in ("Client", "Sender")
    if "]>" in document:
        doctype, _, root = document.rpartition("]>")
        entity = root.partition("&")[2].partition(";")[0]
        for content in (f"<Echo><text>&{entity};</text></Echo>", f'<Echo a="&{entity};"/>', "<Echo/>"):
            attack = f"{doctype}]>".encode() + envelope(version, content)
            exchange = post(dispatcher, version, attack)
            assert fault_of(exchange)[0] in ("Client", "Sender")
    assert State.udc is None


# zeep


class Response:
    """What zeep reads of an answer."""

    encoding = "utf-8"

    def __init__(self, exchange: FakeExchange) -> None:
        self.status_code, _, self.headers, self.content = exchange.answers[0]


class InMemory(zeep.Transport):
    """zeep's way to a dispatcher, for documents and calls."""

    def __init__(self, dispatcher: SpyneDispatcher) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dispatcher = dispatcher

    def load(self, url: str) -> bytes:
        assert url == "https://gw.example:8443/team/orders?wsdl"
        return get(self.dispatcher, "?wsdl").body

    def post(self, address: str, message: bytes, headers: dict[str, str]) -> Response:
        assert address == "https://gw.example:8443/team/orders"
        exchange = FakeExchange(body=message, headers=headers.items())
        self.dispatcher.dispatch(exchange)
        return Response(exchange)


@pytest.mark.parametrize("protocol", [Soap11, Soap12])
def test_zeep(protocol: Any) -> None:
    class Credentials(ComplexModel):  # type: ignore[misc]
        __namespace__ = "urn:example:security"
        User = Unicode

    class Secured(ServiceBase):  # type: ignore[misc]
        __in_header__ = Credentials

        @rpc(_returns=Unicode)
        def Who(ctx):  # type: ignore[no-untyped-def]
            return ctx.in_header.User

    app = Application(
        [Calculator, Secured], tns=NS, in_protocol=protocol(validator="lxml"), out_protocol=protocol(), name="Both"
    )
    service = SpyneDispatcher(app, relay_path="team/orders", reactor=Threads())
    client: Any = zeep.Client("https://gw.example:8443/team/orders?wsdl", transport=InMemory(service))  # type: ignore[no-untyped-call]
    calculator = client.bind("Calculator")
    assert calculator.Add(2, 3) == 5
    assert calculator.Echo("a & é") == "a & é"
    assert calculator.Notify("hello") is None
    assert State.seen == ["hello"]
    assert [line.Sku for line in calculator.Lines({"Line": [{"Sku": "a"}, {"Sku": "b"}]})] == ["a", "b"]
    with pytest.raises(zeep.exceptions.Fault) as caught:
        calculator.Order("x1")
    assert caught.value.detail[0].findtext(f"{{{NS}}}Sku") == "x1"
    credentials = client.get_element("{urn:example:security}Credentials")(User="ann")
    assert client.bind("Secured").Who(_soapheaders={"Credentials": credentials}) == "ann"


# load_application


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A current directory with a module of a name that nothing else has."""
    (tmp_path / "wcfrelay_test_project.py").write_text(
        "import spyne\n"
        "from spyne.protocol.soap import Soap11\n"
        "class Nothing(spyne.Service):\n"
        "    @spyne.rpc()\n"
        "    def Ping(ctx): pass\n"
        "def make():\n"
        "    return spyne.Application([Nothing], 'urn:x', in_protocol=Soap11(), out_protocol=Soap11())\n"
        "def broken():\n"
        "    raise OSError('no disk')\n"
        "class holder:\n"
        "    application = make()\n"
        "number = 1\n"
    )
    (tmp_path / "wcfrelay_test_broken.py").write_text("import wcfrelay_test_missing\n")
    (tmp_path / "wcfrelay_test_syntax.py").write_text("def\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    for name in ("project", "broken", "syntax"):
        monkeypatch.delitem(sys.modules, f"wcfrelay_test_{name}", raising=False)
    return "wcfrelay_test_project"


def test_load_application(project: str) -> None:
    assert load_application(f"{project}:make").tns == "urn:x"
    assert load_application(f"{project}:holder.application").tns == "urn:x"


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("wcfrelay_test_project", "module:attribute"),
        (":make", "module:attribute"),
        ("wcfrelay_test_nowhere:make", "no module 'wcfrelay_test_nowhere'"),
        ("wcfrelay_test_project.deeper:make", "no module 'wcfrelay_test_project.deeper'"),
        ("wcfrelay_test_broken:make", "needs the module 'wcfrelay_test_missing'"),
        ("wcfrelay_test_syntax:make", "SyntaxError"),
        ("wcfrelay_test_project:absent", "no 'absent'"),
        ("wcfrelay_test_project:broken", "no disk"),
        ("wcfrelay_test_project:number", "not a spyne Application but int"),
    ],
)
def test_load_application_errors(project: str, spec: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        load_application(spec)
