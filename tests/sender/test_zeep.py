"""Both flavours of client, against a gateway that is played on 127.0.0.1."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import zeep
from lxml import etree
from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred, gatherResults
from zeep.exceptions import DTDForbidden, ExternalReferenceForbidden, Fault, TransportError, WsdlSyntaxError

from tests.sender.fakegateway import (
    KEY,
    FakeGateway,
    Seen,
    abstract,
    concrete,
    definitions,
    echo,
    fake_gateway,
    schema,
    wsdl,
)
from wcfrelay.errors import (
    ConfigError,
    EndpointNotFoundError,
    ForbiddenError,
    GatewayUnreachableError,
    InvalidSignatureError,
    ListenerTimeoutError,
    NoListenerError,
    PayloadTooLargeError,
    RelayError,
    ServiceUnreachableError,
)
from wcfrelay.net.tls import ServerTls, development_certificate
from wcfrelay.sas import parse_token
from wcfrelay.sender import async_relay_client, relay_client
from wcfrelay.wire.soap import Answer, error_answer, fault

Call = Callable[..., Awaitable[Any]]
Opened = Callable[..., Any]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WCFRELAY_CONNECTION_STRING", "WCFRELAY_CA_FILE", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    with fake_gateway() as running:
        yield running


@pytest.fixture
def foreign() -> Iterator[FakeGateway]:
    """Somebody else's server."""
    with fake_gateway() as running:
        yield running


class Client:
    """A client of either flavour, its calls awaitable."""

    def __init__(self, client: Any, asynchronous: bool) -> None:
        self.client = client
        self._asynchronous = asynchronous

    async def Echo(self, text: str = "hello", service: Any = None, **options: Any) -> Any:
        result = (service or self.client.service).Echo(text, **options)
        return await result if self._asynchronous else result


@asynccontextmanager
async def _blocking(path: str = "orders", **options: Any) -> AsyncIterator[Client]:
    with relay_client(path, **options) as client:
        yield Client(client, False)


@asynccontextmanager
async def _twisted(path: str = "orders", **options: Any) -> AsyncIterator[Client]:
    async with await async_relay_client(path, reactor=reactor, **options) as client:
        yield Client(client, True)


@pytest.fixture(params=[_blocking, _twisted], ids=["blocking", "twisted"])
def opened(request: pytest.FixtureRequest) -> Opened:
    return request.param  # type: ignore[no-any-return]


def no_via(answer: Answer) -> Answer:
    status, reason, headers, body = answer
    return status, reason, [*headers, ("Via", "")], body


def refusing(error: RelayError, *, gateway: bool = True) -> Callable[[Seen], Answer]:
    """Answers every request with ``error``, as the gateway does, or as the listener."""

    def answer(seen: Seen) -> Answer:
        made = error_answer(error, seen.headers.items(), suffix="TrackingId:5e_G0, SystemTracker:x, Timestamp:y")
        return no_via(made) if gateway else made

    return answer


# -- calls


async def test_a_call(gateway: FakeGateway, opened: Opened) -> None:
    async with opened(connection_string=gateway.connection_string) as client:
        assert await client.Echo("héllo <&>") == "héllo <&>"
        assert await client.Echo("x" * 100_000) == "x" * 100_000
    assert [seen.target for seen in gateway.seen] == ["/orders?wsdl", "/orders", "/orders"]
    assert all(seen.headers["host"] == gateway.authority for seen in gateway.seen)
    assert all(parse_token(seen.token or "").segments == ("orders",) for seen in gateway.seen)
    assert gateway.seen[1].headers["soapaction"] == '"urn:echo"'


async def test_the_other_soap_version(gateway: FakeGateway, opened: Opened) -> None:
    async with opened(connection_string=gateway.connection_string, port_name="Calc12") as client:
        assert await client.Echo("hello") == "hello"
    assert gateway.seen[-1].headers["content-type"].startswith("application/soap+xml")


async def test_the_environment(gateway: FakeGateway, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WCFRELAY_CONNECTION_STRING", gateway.connection_string + ";EntityPath=orders/new")
    async with opened("") as client:
        assert await client.Echo() == "hello"
    assert gateway.seen[-1].target == "/orders/new"


async def test_a_connection_string_file(gateway: FakeGateway, opened: Opened, tmp_path: Path) -> None:
    (tmp_path / "string").write_text(gateway.connection_string)
    async with opened(connection_string_file=tmp_path / "string") as client:
        assert await client.Echo() == "hello"


async def test_without_connection_string_or_path(opened: Opened) -> None:
    with pytest.raises(ConfigError, match="WCFRELAY_CONNECTION_STRING"):
        async with opened():
            pass
    with pytest.raises(ConfigError, match="EntityPath"):
        async with opened("", connection_string="Endpoint=sb://gw/"):
            pass


async def test_options_are_zeeps(gateway: FakeGateway, opened: Opened) -> None:
    class Marked(zeep.Plugin):
        def egress(self, envelope: Any, headers: Any, operation: Any, options: Any) -> Any:
            headers["X-Marked"] = operation.name
            return envelope, headers

    async with opened(connection_string=gateway.connection_string, plugins=[Marked()]) as client:
        await client.Echo()
        assert gateway.seen[-1].headers["x-marked"] == "Echo"
        with client.client.settings(raw_response=True):
            raw = await client.Echo("raw")
        assert raw.status_code == 200 and b"raw" in raw.content and raw.headers["VIA"] == "1.1 gateway"


async def test_a_relay_without_authorization(gateway: FakeGateway, opened: Opened) -> None:
    async with opened(connection_string=f"Endpoint={gateway.url}/") as client:
        await client.Echo()
    assert [seen.token for seen in gateway.seen] == [None, None]


async def test_the_token_is_renewed(gateway: FakeGateway, opened: Opened) -> None:
    now = [2_000_000_000.0]
    async with opened(connection_string=gateway.connection_string, now=lambda: now[0]) as client:
        await client.Echo()
        now[0] += 3000
        await client.Echo()
    first, second, third = (seen.token for seen in gateway.seen)
    assert first == second != third
    assert parse_token(third or "").expiry == 2_000_000_000 + 3000 + 3600


async def test_many_calls_in_parallel(gateway: FakeGateway) -> None:
    together = threading.Barrier(8, timeout=10)

    def slow(seen: Seen) -> Answer:
        together.wait()  # passes when eight calls are here at the same time
        return echo(seen)

    gateway.answers["POST", "/orders"] = slow
    async with _twisted(connection_string=gateway.connection_string) as client:
        texts = [f"call {n}" for n in range(16)]
        assert await gatherResults([ensureDeferred(client.Echo(text)) for text in texts]) == texts


# -- errors


async def test_a_fault_of_the_service(gateway: FakeGateway, opened: Opened) -> None:
    body, kind = fault("1.1", sender=False, reason="divided by zero")
    gateway.answer("POST", "/orders", (500, "Error", [("Content-Type", kind)], body))
    async with opened(connection_string=gateway.connection_string) as client:
        with pytest.raises(Fault, match="divided by zero"):
            await client.Echo()


@pytest.mark.parametrize("port", ["Calc11", "Calc12"])
@pytest.mark.parametrize(
    "error", [NoListenerError(), InvalidSignatureError(), ForbiddenError(), EndpointNotFoundError()]
)
async def test_errors_of_the_gateway(gateway: FakeGateway, opened: Opened, error: RelayError, port: str) -> None:
    gateway.answers["POST", "/orders"] = refusing(error)
    async with opened(connection_string=gateway.connection_string, port_name=port) as client:
        with pytest.raises(type(error), match=r"TrackingId:5e_G0$") as caught:
            await client.Echo()
    assert type(caught.value) is type(error) and caught.value.tracking_id == "5e_G0"
    assert len(gateway.calls()) == 1


async def test_errors_of_the_gateway_while_the_wsdl_loads(gateway: FakeGateway, opened: Opened) -> None:
    gateway.answers["GET", "/orders?wsdl"] = refusing(NoListenerError())
    with pytest.raises(NoListenerError, match="Start the listener of 'orders', or check the path"):
        async with opened(connection_string=gateway.connection_string):
            pass


async def test_errors_of_the_listener(gateway: FakeGateway, opened: Opened) -> None:
    async with opened(connection_string=gateway.connection_string) as client:
        for error in (ServiceUnreachableError("The listener could not reach it."), ListenerTimeoutError("Too slow.")):
            gateway.answers["POST", "/orders"] = refusing(error, gateway=False)
            with pytest.raises(type(error), match=error.message[:-1]):
                await client.Echo()
    gateway.answers["GET", "/orders?wsdl"] = refusing(ServiceUnreachableError("Gone."), gateway=False)
    with pytest.raises(ServiceUnreachableError, match="Gone"):
        async with opened(connection_string=gateway.connection_string):
            pass


@pytest.mark.parametrize("body", [b"<html><p>down for maintenance", b"<html><body>well-formed</body></html>", b""])
async def test_an_error_page_of_the_service(gateway: FakeGateway, opened: Opened, body: bytes) -> None:
    gateway.answer("POST", "/orders", (503, "Unavailable", [("Content-Type", "text/html")], body))
    async with opened(connection_string=gateway.connection_string) as client:
        with pytest.raises(TransportError) as caught:
            await client.Echo()
    assert caught.value.status_code == 503


async def test_an_answer_that_is_no_soap(gateway: FakeGateway, opened: Opened) -> None:
    gateway.answer("POST", "/orders", (200, "OK", [("Content-Type", "text/html")], b"<html><p>login"))
    async with opened(connection_string=gateway.connection_string) as client:
        with pytest.raises(TransportError, match="invalid XML"):
            await client.Echo()


async def test_a_doctype_in_an_answer_is_refused(gateway: FakeGateway, opened: Opened) -> None:
    answer = b"<!DOCTYPE x [<!ELEMENT x ANY>]><x/>"
    gateway.answer("POST", "/orders", (200, "OK", [("Content-Type", "text/xml")], answer))
    async with opened(connection_string=gateway.connection_string) as client:
        with pytest.raises(DTDForbidden):
            await client.Echo()


async def test_a_gateway_that_is_not_there(opened: Opened) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    with pytest.raises(GatewayUnreachableError, match=f"The gateway 127.0.0.1:{port} could not be reached: .*refused"):
        async with opened(connection_string=f"Endpoint=http://127.0.0.1:{port}/"):
            pass


async def test_a_host_that_does_not_exist(opened: Opened) -> None:
    with pytest.raises(
        GatewayUnreachableError, match=r"The gateway gw\.invalid could not be reached: .*Check Endpoint"
    ):
        async with opened(connection_string="Endpoint=http://gw.invalid/"):
            pass


async def test_a_call_is_not_sent_twice(gateway: FakeGateway, opened: Opened) -> None:
    gateway.answer("POST", "/orders", (0, "", [], b""))  # hangs up
    async with opened(connection_string=gateway.connection_string) as client:
        with pytest.raises(GatewayUnreachableError, match="whether the call was executed is not known"):
            await client.Echo()
    assert len(gateway.calls()) == 1


async def test_a_call_that_takes_too_long(gateway: FakeGateway, opened: Opened) -> None:
    release = threading.Event()

    def slow(seen: Seen) -> Answer:
        release.wait(10)
        return echo(seen)

    gateway.answers["POST", "/orders"] = slow
    async with opened(connection_string=gateway.connection_string, timeout=0.3) as client:
        started = time.monotonic()
        with pytest.raises(ListenerTimeoutError, match=r"did not answer within 0.3 s"):
            await client.Echo()
        assert time.monotonic() - started < 5
    release.set()


async def test_the_timeout_of_the_connection_string(gateway: FakeGateway, opened: Opened) -> None:
    release = threading.Event()
    gateway.answers["GET", "/orders?wsdl"] = lambda seen: (release.wait(10), echo(seen))[1]
    with pytest.raises(ListenerTimeoutError, match=r"did not answer within 0.25 s"):
        async with opened(connection_string=gateway.connection_string + ";OperationTimeout=00:00:00.25"):
            pass
    release.set()


def test_the_blocking_timeout_of_zeep(gateway: FakeGateway) -> None:
    release = threading.Event()
    gateway.answers["POST", "/orders"] = lambda seen: (release.wait(10), echo(seen))[1]
    with relay_client("orders", connection_string=gateway.connection_string) as client:
        with client.transport.settings(timeout=0.2), pytest.raises(ListenerTimeoutError, match=r"within 0.2 s"):
            client.service.Echo("hello")
        release.set()
        assert client.service.Echo("hello") == "hello"


async def test_a_call_after_the_end(gateway: FakeGateway) -> None:
    client = await async_relay_client("orders", reactor=reactor, connection_string=gateway.connection_string)
    await client.aclose()
    with pytest.raises(RelayError):
        await client.service.Echo("hello")


async def test_an_answer_that_is_too_large(
    gateway: FakeGateway, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wcfrelay.sender.zeep._ANSWER_BYTES", 10_000)
    async with opened(connection_string=gateway.connection_string) as client:
        assert await client.Echo("x" * 5_000) == "x" * 5_000
        with pytest.raises(RelayError, match="more than 10000 bytes"):
            await client.Echo("x" * 20_000)


# -- where to call


async def test_an_address_that_only_the_service_knows(gateway: FakeGateway, opened: Opened) -> None:
    gateway.serve("/orders?wsdl", wsdl("http://backend.invalid:8080/svc"))
    gateway.serve("/orders/Basic.svc?wsdl", wsdl("http://backend.invalid:8080/svc"))
    gateway.serve("/orders/calc.wsdl", wsdl("http://backend.invalid:8080/svc"))
    for name, target in ((None, "/orders"), ("Basic.svc?wsdl", "/orders/Basic.svc"), ("calc.wsdl", "/orders")):
        async with opened(connection_string=gateway.connection_string, wsdl=name) as client:
            await client.Echo()
            assert gateway.seen[-1].target == target
            await client.Echo(service=client.client.bind("Calc", "Calc12"))
            assert gateway.seen[-1].target == target


async def test_an_address_on_the_relay_stays(gateway: FakeGateway, opened: Opened) -> None:
    gateway.serve("/orders?wsdl", wsdl(f"{gateway.url}/orders/Basic?a=b"))
    async with opened(connection_string=gateway.connection_string) as client:
        await client.Echo()
    assert gateway.seen[-1].target == "/orders/Basic?a=b"


async def test_a_given_address(gateway: FakeGateway, opened: Opened) -> None:
    for address in ("Other", f"{gateway.url}/orders/Other"):
        async with opened(connection_string=gateway.connection_string, address=address, port_name="Calc12") as client:
            await client.Echo()
            assert gateway.seen[-1].target == "/orders/Other"
            await client.Echo(service=client.client.bind("Calc", "Calc11"))
            assert gateway.seen[-1].target == "/orders"


async def test_create_service(gateway: FakeGateway, opened: Opened) -> None:
    async with opened(connection_string=gateway.connection_string) as client:
        service = client.client.create_service("{urn:example:calc}Calc12", f"{gateway.url}/orders/made")
        assert await client.Echo("made", service=service) == "made"
        assert gateway.seen[-1].target == "/orders/made"
        with pytest.raises(ValueError, match="Available bindings are"):
            client.client.create_service("nothing", gateway.url)


async def test_a_local_wsdl(gateway: FakeGateway, opened: Opened, tmp_path: Path) -> None:
    include = '<xsd:include schemaLocation="parts/types.xsd"/>'
    types = f'<xsd:schema targetNamespace="urn:example:calc">{include}</xsd:schema>'
    (tmp_path / "calc.wsdl").write_bytes(wsdl("http://backend.invalid/", types))
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "types.xsd").write_text(schema())
    for name in (tmp_path / "calc.wsdl", str(tmp_path / "calc.wsdl"), (tmp_path / "calc.wsdl").as_uri()):
        async with opened(connection_string=gateway.connection_string, wsdl=name) as client:
            assert await client.Echo() == "hello"
    assert {seen.target for seen in gateway.seen} == {"/orders"}
    with pytest.raises(FileNotFoundError):
        async with opened(connection_string=gateway.connection_string, wsdl=tmp_path / "missing.wsdl"):
            pass


# -- documents


def split(gateway: FakeGateway, schema_location: str) -> None:
    """A WSDL that imports another one, that imports a schema, that includes one."""
    imported = '<import namespace="urn:example:calc" location="contract/abstract.wsdl"/>'
    gateway.serve("/orders?wsdl", definitions(imported + concrete(f"{gateway.url}/orders")))
    gateway.serve(
        "/contract/abstract.wsdl",
        abstract(
            f'<xsd:schema><xsd:import namespace="urn:example:calc" schemaLocation="{schema_location}"/></xsd:schema>'
        ),
    )


async def test_a_wsdl_in_pieces(gateway: FakeGateway, opened: Opened) -> None:
    split(gateway, "../schemas/calc.xsd?part=1")
    included = (
        '<xsd:schema xmlns:xsd="http://www.w3.org/2001/XMLSchema" targetNamespace="urn:example:calc">'
        '<xsd:include schemaLocation="included.xsd"/></xsd:schema>'
    )
    gateway.serve("/schemas/calc.xsd?part=1", included)
    gateway.serve("/schemas/included.xsd", schema())
    async with opened(connection_string=gateway.connection_string) as client:
        assert await client.Echo() == "hello"
    loaded = [seen.target for seen in gateway.seen if seen.method == "GET"]
    assert loaded == ["/orders?wsdl", "/contract/abstract.wsdl", "/schemas/calc.xsd?part=1", "/schemas/included.xsd"]
    assert all(seen.token for seen in gateway.seen)


async def test_bindings_in_an_imported_wsdl(gateway: FakeGateway, opened: Opened) -> None:
    """As WCF writes them: the root has the service, and what it refers to is elsewhere."""
    whole = concrete("http://backend.invalid/svc")
    at = whole.index("<service")
    imported = '<import namespace="urn:example:calc" location="?wsdl=wsdl0"/>'
    gateway.serve("/orders?wsdl", definitions(imported + whole[at:]))
    gateway.serve("/orders?wsdl=wsdl0", abstract(schema()).replace("</definitions>", whole[:at] + "</definitions>"))
    async with opened(connection_string=gateway.connection_string) as client:
        assert await client.Echo() == "hello"


async def test_a_foreign_host_never_sees_the_token(gateway: FakeGateway, foreign: FakeGateway, opened: Opened) -> None:
    split(gateway, f"{foreign.url}/calc.xsd")
    foreign.answer("GET", "/calc.xsd", (302, "Found", [("Location", "/moved.xsd")], b""))
    foreign.serve("/moved.xsd", schema())
    async with opened(connection_string=gateway.connection_string) as client:
        assert await client.Echo() == "hello"
        service = client.client.create_service("{urn:example:calc}Calc11", f"{foreign.url}/elsewhere")
        assert await client.Echo("elsewhere", service=service) == "elsewhere"
    assert [seen.target for seen in foreign.seen] == ["/calc.xsd", "/moved.xsd", "/elsewhere"]
    assert all(seen.token is None and KEY not in str(seen) for seen in foreign.seen)
    assert all(seen.headers["host"] == foreign.authority for seen in foreign.seen)


async def test_a_redirect_to_a_foreign_host_drops_the_token(
    gateway: FakeGateway, foreign: FakeGateway, opened: Opened
) -> None:
    gateway.answer("GET", "/orders?wsdl", (307, "Moved", [("Location", f"{foreign.url}/orders?wsdl")], b""))
    foreign.answer("GET", "/orders?wsdl", (301, "Moved", [("Location", f"{gateway.url}/back?wsdl")], b""))
    async with opened(connection_string=gateway.connection_string) as client:
        await client.Echo()
    assert [(seen.target, seen.token is not None) for seen in gateway.seen] == [
        ("/orders?wsdl", True),
        ("/back?wsdl", True),
        ("/back", True),
    ]
    assert [(seen.target, seen.token) for seen in foreign.seen] == [("/orders?wsdl", None)]


async def test_redirects_have_a_limit(gateway: FakeGateway, opened: Opened) -> None:
    gateway.answer("GET", "/orders?wsdl", (302, "Found", [("Location", "?wsdl")], b""))
    with pytest.raises(TransportError, match="redirects more than 5 times"):
        async with opened(connection_string=gateway.connection_string):
            pass
    assert len(gateway.seen) == 6


async def test_the_redirect_of_a_call_is_not_followed(
    gateway: FakeGateway, foreign: FakeGateway, opened: Opened
) -> None:
    gateway.answer("POST", "/orders", (307, "Moved", [("Location", f"{foreign.url}/orders")], b""))
    async with opened(connection_string=gateway.connection_string) as client:
        with pytest.raises(TransportError, match=f"redirects the call to '{foreign.url}/orders'") as caught:
            await client.Echo()
    assert caught.value.status_code == 307 and not foreign.seen and len(gateway.calls()) == 1


async def test_a_foreign_host_that_is_not_there(gateway: FakeGateway, opened: Opened) -> None:
    for url in ("http://else.invalid/calc.xsd", "http://127.0.0.1:1/calc.xsd", "http:///calc.xsd"):
        split(gateway, url)
        with pytest.raises(TransportError, match=r"which is not at the relay, could not be loaded: [^(]*$"):
            async with opened(connection_string=gateway.connection_string):
                pass


@pytest.mark.parametrize("location", ["file:///etc/hostname", "ftp://else.invalid/x.xsd"])
async def test_a_remote_wsdl_cannot_read_files(gateway: FakeGateway, opened: Opened, location: str) -> None:
    split(gateway, location)
    with pytest.raises(TransportError, match="which is no http or https URL"):
        async with opened(connection_string=gateway.connection_string):
            pass
    gateway.answer("GET", "/orders?wsdl", (302, "Found", [("Location", location)], b""))
    with pytest.raises(TransportError, match="which is no http or https URL"):
        async with opened(connection_string=gateway.connection_string):
            pass


async def test_external_documents_can_be_forbidden(gateway: FakeGateway, opened: Opened) -> None:
    split(gateway, "calc.xsd")
    with pytest.raises(ExternalReferenceForbidden):
        async with opened(
            connection_string=gateway.connection_string, settings=zeep.Settings(forbid_external=True, forbid_dtd=True)
        ):
            pass
    assert len(gateway.seen) == 1


async def test_a_wsdl_with_a_doctype_is_refused(gateway: FakeGateway, opened: Opened) -> None:
    gateway.serve("/orders?wsdl", b"<!DOCTYPE definitions [<!ELEMENT x ANY>]>" + wsdl(gateway.url))
    with pytest.raises(DTDForbidden):
        async with opened(connection_string=gateway.connection_string):
            pass


async def test_a_wsdl_without_end(gateway: FakeGateway, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(seen: Seen) -> Answer:
        number = int(seen.target.partition("=")[2] or 0) + 1
        gateway.answers["GET", f"/more?n={number}"] = endless
        text = definitions(f'<import namespace="urn:{number}" location="/more?n={number}"/>')
        return 200, "OK", [("Content-Type", "text/xml")], text.encode()

    gateway.answers["GET", "/orders?wsdl"] = endless
    monkeypatch.setattr("wcfrelay.sender.zeep._DOCUMENTS", 20)
    with pytest.raises(PayloadTooLargeError, match="more than 20 documents"):
        async with opened(connection_string=gateway.connection_string):
            pass
    assert len(gateway.seen) == 20


async def test_a_wsdl_that_is_too_large(gateway: FakeGateway, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    split(gateway, "calc.xsd")
    gateway.serve("/contract/calc.xsd", f"<!--{'x' * 30_000}-->{schema()}")
    monkeypatch.setattr("wcfrelay.sender.zeep._DOCUMENT_BYTES", 20_000)
    with pytest.raises(RelayError, match=r"more than 1\d{4} bytes"):
        async with opened(connection_string=gateway.connection_string):
            pass


@pytest.mark.parametrize(
    ("status", "body", "error", "text"),
    [
        (404, b"<html>", TransportError, "/orders.wsdl answered with status 404; no document of a WSDL there"),
        (200, b"<html><p>a page", zeep.exceptions.XMLSyntaxError, "Invalid XML"),
        (200, b"<html><body/></html>", WsdlSyntaxError, "has no SOAP binding over HTTP; is it a WSDL"),
    ],
)
async def test_what_is_no_wsdl(
    gateway: FakeGateway, opened: Opened, status: int, body: bytes, error: type[Exception], text: str
) -> None:
    gateway.answer("GET", "/orders?wsdl", (status, "So", [("Content-Type", "text/html")], body))
    with pytest.raises(error, match=text):
        async with opened(connection_string=gateway.connection_string):
            pass


async def test_a_schema_that_zeep_knows_where_to_find(
    gateway: FakeGateway, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """zeep loads the schemas of some namespaces without being told where they are."""
    monkeypatch.setattr("zeep.xsd.schema.const.AUTO_IMPORT_NAMESPACES", [f"{gateway.url}/known/"])
    gateway.serve(
        "/known/",
        f'<xsd:schema xmlns:xsd="http://www.w3.org/2001/XMLSchema" targetNamespace="{gateway.url}/known/">'
        '<xsd:simpleType name="text"><xsd:restriction base="xsd:string"/></xsd:simpleType></xsd:schema>',
    )
    types = schema().replace('type="xsd:string"', f'type="k:text" xmlns:k="{gateway.url}/known/"')
    gateway.serve("/orders?wsdl", wsdl(f"{gateway.url}/orders", types))
    async with opened(connection_string=gateway.connection_string) as client:
        assert await client.Echo() == "hello"


# -- TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ServerTls]:
    folder = tmp_path_factory.mktemp("tls") / "certificates"
    ca, certificate, key = development_certificate(folder, ["localhost"], datetime.now(UTC))
    return ca, ServerTls(certificate, key)


async def test_tls_with_a_private_ca(
    certificates: tuple[Path, ServerTls], opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca, server = certificates
    with fake_gateway(server.ssl_context()) as gateway:
        # The service behind the gateway knows nothing of TLS.
        gateway.serve("/orders?wsdl", wsdl(f"http://{gateway.authority}/orders/plain"))
        async with opened(connection_string=gateway.connection_string, ca_file=ca) as client:
            assert await client.Echo() == "hello"
        assert gateway.seen[-1].target == "/orders/plain"
        monkeypatch.setenv("WCFRELAY_CA_FILE", str(ca))
        async with opened(connection_string=gateway.connection_string.replace("https:", "sb:")) as client:
            assert await client.Echo() == "hello"


async def test_a_certificate_of_another_name(certificates: tuple[Path, ServerTls], opened: Opened) -> None:
    ca, server = certificates
    with fake_gateway(server.ssl_context()) as gateway:
        elsewhere = gateway.connection_string.replace("localhost", "127.0.0.1")
        with pytest.raises(GatewayUnreachableError, match=r"was refused: .* must be valid for 127\.0\.0\.1"):
            async with opened(connection_string=elsewhere, ca_file=ca):
                pass


async def test_a_certificate_that_is_not_trusted(certificates: tuple[Path, ServerTls], opened: Opened) -> None:
    with fake_gateway(certificates[1].ssl_context()) as gateway:
        with pytest.raises(
            GatewayUnreachableError, match=r"certificate .* was refused: .* ca_file or in WCFRELAY_CA_FILE"
        ):
            async with opened(connection_string=gateway.connection_string):
                pass
        assert gateway.seen == []


async def test_the_token_never_goes_from_https_to_http(
    certificates: tuple[Path, ServerTls], foreign: FakeGateway, opened: Opened
) -> None:
    ca, server = certificates
    with fake_gateway(server.ssl_context()) as gateway:
        plain = f"http://localhost:{foreign.port}"
        gateway.answer("GET", "/orders?wsdl", (302, "Found", [("Location", f"{plain}/orders?wsdl")], b""))
        foreign.serve("/orders?wsdl", wsdl(f"{plain}/orders"))
        async with opened(connection_string=gateway.connection_string, ca_file=ca) as client:
            assert await client.Echo() == "hello"
        assert [(seen.method, seen.token) for seen in foreign.seen] == [("GET", None)]
        assert [seen.target for seen in gateway.calls()] == ["/orders"]


async def test_a_ca_file_that_is_missing(opened: Opened, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the CA file"):
        async with opened(connection_string="Endpoint=sb://gw/", ca_file=tmp_path / "missing.pem"):
            pass


# -- another reactor

_ON_UVLOOP = """
import sys
from wcfrelay.errors import GatewayUnreachableError, NoListenerError
import wcfrelay.sender.connection
assert "zeep" not in sys.modules
from wcfrelay.sender import async_relay_client
assert "twisted.internet.reactor" not in sys.modules
import uvloop
from twisted.internet import asyncioreactor
asyncioreactor.install(uvloop.new_event_loop())
from twisted.internet import reactor, task
from twisted.internet.defer import ensureDeferred, gatherResults

async def main(reactor, plain, secure, ca):
    for string, ca_file in ((plain, None), (secure, ca)):
        async with await async_relay_client(
            "orders", connection_string=string, ca_file=ca_file, reactor=reactor
        ) as client:
            texts = [str(n) for n in range(10)]
            assert await gatherResults([ensureDeferred(client.service.Echo(text)) for text in texts]) == texts
    try:
        await async_relay_client("orders", connection_string=secure, reactor=reactor)
    except GatewayUnreachableError as error:
        assert "was refused" in str(error) and "ca_file" in str(error), error
    else:
        raise AssertionError
    try:
        await async_relay_client("nobody", connection_string=plain, reactor=reactor)
    except NoListenerError:
        print("done", not reactor.getDelayedCalls(), type(reactor._asyncioEventloop).__module__)

task.react(lambda reactor, *arguments: ensureDeferred(main(reactor, *arguments)), sys.argv[1:])
"""


def test_on_uvloop(gateway: FakeGateway, certificates: tuple[Path, ServerTls]) -> None:
    pytest.importorskip("uvloop")
    ca, server = certificates
    gateway.answers["GET", "/nobody?wsdl"] = refusing(NoListenerError())
    with fake_gateway(server.ssl_context()) as secure:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", _ON_UVLOOP, gateway.connection_string, secure.connection_string, ca],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=Path(__file__).parents[2],
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done True uvloop\n", "")


def test_the_wsdl_of_the_fake_gateway_is_one() -> None:
    assert etree.fromstring(wsdl("http://x/")).tag == "{http://schemas.xmlsoap.org/wsdl/}definitions"
