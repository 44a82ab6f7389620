"""A SOAP service over plain HTTP, made of the standard library only. It stands for yours: it knows of no relay.

    python samples/expose_existing/service.py 8000

Put it behind a relay, and call it there, from two more shells (README.md tells how to start a gateway):

    wcfrelay expose http://127.0.0.1:8000/Orders.svc --relay orders
    wcfrelay call orders Place item=bolt count=12
"""

import sys
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from xml.etree import ElementTree
from xml.sax.saxutils import escape

SOAP = "http://schemas.xmlsoap.org/soap/envelope/"
ORDERS = "urn:example:orders"
PRICES = {"bolt": Decimal("0.35"), "nut": Decimal("0.12")}

WSDL = f"""<?xml version="1.0" encoding="utf-8"?>
<definitions name="Orders" targetNamespace="{ORDERS}" xmlns="http://schemas.xmlsoap.org/wsdl/" xmlns:tns="{ORDERS}"
    xmlns:soap="http://schemas.xmlsoap.org/wsdl/soap/" xmlns:xs="http://www.w3.org/2001/XMLSchema">
  <types>
    <xs:schema targetNamespace="{ORDERS}" elementFormDefault="qualified">
      <xs:element name="Place"><xs:complexType><xs:sequence>
        <xs:element name="item" type="xs:string"/>
        <xs:element name="count" type="xs:int"/>
      </xs:sequence></xs:complexType></xs:element>
      <xs:element name="PlaceResponse"><xs:complexType><xs:sequence>
        <xs:element name="total" type="xs:decimal"/>
      </xs:sequence></xs:complexType></xs:element>
    </xs:schema>
  </types>
  <message name="PlaceIn"><part name="parameters" element="tns:Place"/></message>
  <message name="PlaceOut"><part name="parameters" element="tns:PlaceResponse"/></message>
  <portType name="Orders">
    <operation name="Place"><input message="tns:PlaceIn"/><output message="tns:PlaceOut"/></operation>
  </portType>
  <binding name="Orders" type="tns:Orders">
    <soap:binding transport="http://schemas.xmlsoap.org/soap/http"/>
    <operation name="Place">
      <soap:operation soapAction="{ORDERS}:Place"/>
      <input><soap:body use="literal"/></input>
      <output><soap:body use="literal"/></output>
    </operation>
  </binding>
  <service name="Orders">
    <port name="Orders" binding="tns:Orders"><soap:address location="http://127.0.0.1:%d/Orders.svc"/></port>
  </service>
</definitions>
"""


class Orders(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer(200, WSDL % self.server.server_address[1])

    def do_POST(self) -> None:
        envelope = ElementTree.fromstring(self.rfile.read(int(self.headers["Content-Length"])))
        item = envelope.findtext(f".//{{{ORDERS}}}item", "")
        count = int(envelope.findtext(f".//{{{ORDERS}}}count", "0"))
        if item in PRICES:
            total = PRICES[item] * count
            self.answer(200, f'<PlaceResponse xmlns="{ORDERS}"><total>{total}</total></PlaceResponse>', soap=True)
        else:
            reason = escape(f"There is no {item} here.")
            fault = f"<s:Fault><faultcode>s:Client</faultcode><faultstring>{reason}</faultstring></s:Fault>"
            self.answer(500, fault, soap=True)

    def answer(self, status: int, text: str, soap: bool = False) -> None:
        if soap:
            text = f'<s:Envelope xmlns:s="{SOAP}"><s:Body>{text}</s:Body></s:Envelope>'
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/xml; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


if __name__ == "__main__":
    with ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Orders) as server:
        print(f"http://127.0.0.1:{server.server_port}/Orders.svc", flush=True)
        server.serve_forever()
