"""What system tests send, and how they judge what they get. Nothing of the relay's own HTTP code is used here."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import ssl
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal
from urllib.parse import urlsplit

from lxml import etree

from wcfrelay.address import ConnectionString
from wcfrelay.sas import make_token
from wcfrelay.testing import Gateway

SOAP11 = "http://schemas.xmlsoap.org/soap/envelope/"
SOAP12 = "http://www.w3.org/2003/05/soap-envelope"
CALCULATOR = "http://example.org/calc"
TRACKING_ID = re.compile(r"TrackingId:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}_G0\b")

Form = Literal["plain", "1.1", "1.2"]
FORMS: tuple[Form, ...] = ("plain", "1.1", "1.2")
"""What a request may be: no SOAP, or SOAP of a version. The relay's errors follow it."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes

    def field(self, name: str) -> str | None:
        """The field's values, joined; None when there is none."""
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        return ", ".join(values) if values else None

    def json(self) -> Any:
        return json.loads(self.body)


def token(gateway: Gateway, path: str, *, seconds: float = 600) -> str:
    """A token with every right on ``path``, good for ``seconds`` (negative: no longer)."""
    text = ConnectionString.parse(gateway.connection_string)
    return make_token(
        gateway.http_url + "/" + path, text.shared_access_key_name, text.shared_access_key, int(time.time() + seconds)
    )


@contextlib.contextmanager
def connected(gateway: Gateway, *, tls: bool = False, timeout: float = 30) -> Iterator[http.client.HTTPConnection]:
    """A connection to the gateway's HTTP port, or to its HTTPS port."""
    connection: http.client.HTTPConnection
    if tls:
        trust = ssl.create_default_context(cafile=str(gateway.ca_file))
        connection = http.client.HTTPSConnection("localhost", gateway.https_port, timeout=timeout, context=trust)
    else:
        connection = http.client.HTTPConnection("127.0.0.1", gateway.http_port, timeout=timeout)
    with contextlib.closing(connection):
        yield connection


def ask(
    connection: http.client.HTTPConnection,
    method: str,
    target: str,
    body: bytes | Iterable[bytes] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """One exchange. A ``body`` in pieces is sent chunked, unless ``headers`` have its Content-Length."""
    fields = dict(headers or {})
    chunked = not isinstance(body, bytes | None) and "Content-Length" not in fields
    if chunked:
        fields["Transfer-Encoding"] = "chunked"
    connection.request(method, target, body, fields, encode_chunked=chunked)
    answer = connection.getresponse()
    return Answer(answer.status, answer.reason, answer.getheaders(), answer.read())


def call(
    gateway: Gateway,
    target: str,
    body: bytes | None = b"",
    headers: Mapping[str, str] | None = None,
    *,
    method: str = "POST",
    tls: bool = False,
    timeout: float = 30,
) -> Answer:
    """One exchange on a connection of its own, with a token for the path unless ``headers`` bring one."""
    fields = dict(headers or {})
    if not {"servicebusauthorization", "authorization"} & {name.lower() for name in fields}:
        fields["ServiceBusAuthorization"] = token(gateway, urlsplit(target).path.strip("/"))
    with connected(gateway, tls=tls, timeout=timeout) as connection:
        return ask(connection, method, target, body, fields)


def request(form: Form) -> tuple[bytes, dict[str, str]]:
    """Body and header fields of a small call of a calculator in that form."""
    if form == "plain":
        return b'{"a": 1.5, "b": 2.25}', {"Content-Type": "application/json"}
    body = (
        f'<s:Envelope xmlns:s="{SOAP11 if form == "1.1" else SOAP12}"><s:Body>'
        f'<Add xmlns="{CALCULATOR}"><a>1.5</a><b>2.25</b></Add></s:Body></s:Envelope>'
    ).encode()
    action = f"{CALCULATOR}/ICalculator/Add"
    if form == "1.1":
        return body, {"Content-Type": "text/xml; charset=utf-8", "SOAPAction": f'"{action}"'}
    return body, {"Content-Type": f'application/soap+xml; charset=utf-8; action="{action}"'}


def call_in_every_form(gateway: Gateway, target: str, headers: Mapping[str, str] | None = None) -> dict[Form, Answer]:
    """The answers to the calculator's call in each form, sent at the same time."""

    def one(form: Form) -> Answer:
        body, fields = request(form)
        return call(gateway, target, body, {**fields, **(headers or {})})

    with ThreadPoolExecutor(len(FORMS)) as pool:
        return dict(zip(FORMS, pool.map(one, FORMS), strict=True))


def assert_refused(form: Form, answer: Answer, status: int, code: str) -> None:
    """The relay's error: status, code and tracking id, as JSON or as a fault of the request's SOAP version."""
    assert answer.status == status, answer
    content_type = answer.field("Content-Type") or ""
    if form == "plain":
        assert content_type == "application/json"
        error = answer.json()["error"]
        given, text = error["code"], error["message"]
    else:
        root = etree.fromstring(answer.body)
        if form == "1.1":
            assert content_type == "text/xml; charset=utf-8"
            fault = root.find(f"{{{SOAP11}}}Body/{{{SOAP11}}}Fault")
            assert fault is not None and [child.tag for child in fault] == ["faultcode", "faultstring", "detail"]
            prefix, _, local = (fault.findtext("faultcode") or "").partition(":")
            assert (root.nsmap[prefix], local) == (SOAP11, "Client" if status < 500 else "Server")
            text, given = fault.findtext("faultstring"), fault.findtext("detail/{urn:wcfrelay}Code")
        else:
            assert content_type == "application/soap+xml; charset=utf-8"
            fault = root.find(f"{{{SOAP12}}}Body/{{{SOAP12}}}Fault")
            names = [f"{{{SOAP12}}}{name}" for name in ("Code", "Reason", "Detail")]
            assert fault is not None and [child.tag for child in fault] == names
            prefix, _, local = (fault.findtext(f"{names[0]}/{{{SOAP12}}}Value") or "").partition(":")
            assert (root.nsmap[prefix], local) == (SOAP12, "Sender" if status < 500 else "Receiver")
            text = fault.findtext(f"{names[1]}/{{{SOAP12}}}Text")
            given = fault.findtext(f"{names[2]}/{{urn:wcfrelay}}Code")
    assert given == code
    assert TRACKING_ID.search(text or ""), text


def raw(gateway: Gateway, data: bytes, *, timeout: float = 10) -> bytes:
    """Everything that the gateway's HTTP port answers to ``data`` until it closes the connection.

    :raises TimeoutError: it does not close it.
    """
    with socket.create_connection(("127.0.0.1", gateway.http_port), timeout) as connection:
        connection.sendall(data)
        received = bytearray()
        try:
            while piece := connection.recv(65536):
                received += piece
        except ConnectionResetError:
            pass  # closed with some of ``data`` unread
        return bytes(received)


def read_answer(stream: BinaryIO) -> Answer:
    """The next answer on a connection that has more than one under way."""
    line = stream.readline().decode("latin-1")
    _, status, reason = line.rstrip("\r\n").split(" ", 2)
    headers: list[tuple[str, str]] = []
    while (field := stream.readline()) not in (b"\r\n", b""):
        name, _, value = field.decode("latin-1").partition(":")
        headers.append((name, value.strip()))
    known = {name.lower(): value for name, value in headers}
    body = bytearray()
    if known.get("transfer-encoding") == "chunked":
        while size := int(stream.readline(), 16):
            body += stream.read(size)
            assert stream.readline() == b"\r\n"
        assert stream.readline() == b"\r\n"
    else:
        body += stream.read(int(known["content-length"]))
    return Answer(int(status), reason, headers, bytes(body))
