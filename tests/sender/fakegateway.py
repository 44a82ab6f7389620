"""A gateway with a SOAP service behind it, on a thread: it remembers what it was asked, and answers as it is told."""

from __future__ import annotations

import http.server
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from xml.sax.saxutils import escape

from lxml import etree

from wcfrelay.wire.soap import SOAP11, SOAP12, Answer

KEY = "c2VuZGVyLXRlc3Qta2V5LXNlbmRlci10ZXN0LWtleS0="
_NS = "urn:example:calc"
_PARTS = {
    "schema": f"""<xsd:schema xmlns:xsd="http://www.w3.org/2001/XMLSchema" targetNamespace="{_NS}"
      elementFormDefault="qualified">
      <xsd:element name="Echo"><xsd:complexType><xsd:sequence>
        <xsd:element name="text" type="xsd:string"/></xsd:sequence></xsd:complexType></xsd:element>
      <xsd:element name="EchoResponse"><xsd:complexType><xsd:sequence>
        <xsd:element name="text" type="xsd:string"/></xsd:sequence></xsd:complexType></xsd:element>
    </xsd:schema>""",
    "messages": """<message name="EchoIn"><part name="parameters" element="tns:Echo"/></message>
      <message name="EchoOut"><part name="parameters" element="tns:EchoResponse"/></message>
      <portType name="Calc"><operation name="Echo">
        <input message="tns:EchoIn"/><output message="tns:EchoOut"/></operation></portType>""",
}


def schema() -> str:
    return _PARTS["schema"]


def definitions(content: str) -> str:
    return f"""<definitions xmlns="http://schemas.xmlsoap.org/wsdl/" xmlns:tns="{_NS}" targetNamespace="{_NS}"
      xmlns:soap="http://schemas.xmlsoap.org/wsdl/soap/" xmlns:soap12="http://schemas.xmlsoap.org/wsdl/soap12/"
      xmlns:xsd="http://www.w3.org/2001/XMLSchema">{content}</definitions>"""


def abstract(types: str) -> str:
    return definitions(f"<types>{types}</types>{_PARTS['messages']}")


def concrete(address: str) -> str:
    """Bindings for both versions, and a service with a port for each."""
    result = ""
    for prefix, name in (("soap", "Calc11"), ("soap12", "Calc12")):
        result += f"""<binding name="{name}" type="tns:Calc">
          <{prefix}:binding transport="http://schemas.xmlsoap.org/soap/http"/>
          <operation name="Echo"><{prefix}:operation soapAction="urn:echo" style="document"/>
            <input><{prefix}:body use="literal"/></input><output><{prefix}:body use="literal"/></output></operation>
        </binding>"""
    result += '<service name="Calc">'
    for prefix, name in (("soap", "Calc11"), ("soap12", "Calc12")):
        result += f'<port name="{name}" binding="tns:{name}"><{prefix}:address location="{address}"/></port>'
    return result + "</service>"


def wsdl(address: str, types: str = "") -> bytes:
    return definitions(f"<types>{types or schema()}</types>{_PARTS['messages']}{concrete(address)}").encode()


def echo(seen: Seen) -> Answer:
    root = etree.fromstring(seen.body)
    soap = etree.QName(root).namespace
    text = root.findtext(f".//{{{_NS}}}text") or ""
    body = (
        f'<s:Envelope xmlns:s="{soap}"><s:Body><EchoResponse xmlns="{_NS}"><text>{escape(text)}</text>'
        "</EchoResponse></s:Body></s:Envelope>"
    )
    kind = {SOAP11: "text/xml", SOAP12: "application/soap+xml"}[str(soap)]
    return 200, "OK", [("Content-Type", f"{kind}; charset=utf-8")], body.encode()


@dataclass
class Seen:
    """A request that came."""

    method: str
    target: str
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes

    @property
    def token(self) -> str | None:
        return self.headers.get("servicebusauthorization")


@dataclass
class FakeGateway:
    """``answers`` has what is special, by method and target; the rest is a WSDL at ``?wsdl``, and Echo.

    Answers get ``Via`` unless they bring one (an empty one means none).
    """

    port: int = 0
    tls: bool = False
    seen: list[Seen] = field(default_factory=list)
    answers: dict[tuple[str, str], Callable[[Seen], Answer]] = field(default_factory=dict)

    @property
    def authority(self) -> str:
        return f"{'localhost' if self.tls else '127.0.0.1'}:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.authority}"

    @property
    def connection_string(self) -> str:
        return f"Endpoint={self.url}/;SharedAccessKeyName=send;SharedAccessKey={KEY}"

    def serve(self, target: str, document: str | bytes) -> None:
        """A document at an address."""
        body = document.encode() if isinstance(document, str) else document
        self.answers["GET", target] = lambda _: (200, "OK", [("Content-Type", "text/xml")], body)

    def answer(self, method: str, target: str, answer: Answer) -> None:
        self.answers[method, target] = lambda _: answer

    def respond(self, seen: Seen) -> Answer:
        self.seen.append(seen)
        special = self.answers.get((seen.method, seen.target))
        if special is not None:
            return special(seen)
        path, _, query = seen.target.partition("?")
        if seen.method == "GET" and query == "wsdl":
            return 200, "OK", [("Content-Type", "text/xml")], wsdl(f"{self.url}{path}")
        if seen.method == "POST":
            return echo(seen)
        return 404, "Not Found", [("Content-Type", "text/html")], b"<html>nothing here"

    def calls(self) -> list[Seen]:
        return [seen for seen in self.seen if seen.method == "POST"]


@contextmanager
def fake_gateway(context: ssl.SSLContext | None = None) -> Iterator[FakeGateway]:
    gateway = FakeGateway(tls=context is not None)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 10
        disable_nagle_algorithm = True

        def _any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, reason, fields, content = gateway.respond(Seen(self.command, self.path, headers, body))
            if status == 0:  # hang up
                self.close_connection = True
                return
            self.send_response(status, reason)
            for name, value in fields:
                if value:
                    self.send_header(name, value)
            if not any(name == "Via" for name, _ in fields):
                self.send_header("Via", "1.1 gateway")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = _any

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def get_request(self) -> Any:
            sock, address = super().get_request()
            if context is not None:
                # The handshake follows with the first read, on the thread of the connection.
                sock = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
            return sock, address

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a client that refuses the certificate

    server = Server(("127.0.0.1", 0), Handler)
    gateway.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield gateway
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
