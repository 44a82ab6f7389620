"""Arguments by the types of a WSDL, and results as text."""

# zeep is typed in part only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import zeep
from lxml import etree

from wcfrelay.cli.values import ArgumentError, arguments, as_json, as_text, nearest, types_of

_WSDL = """<definitions name="T" targetNamespace="urn:t" xmlns="http://schemas.xmlsoap.org/wsdl/" xmlns:t="urn:t"
    xmlns:soap="http://schemas.xmlsoap.org/wsdl/soap/" xmlns:xs="http://www.w3.org/2001/XMLSchema">
  <types><xs:schema targetNamespace="urn:t" elementFormDefault="qualified">
    <xs:complexType name="Line"><xs:sequence>
      <xs:element name="Sku" type="xs:string"/><xs:element name="Count" type="xs:int"/>
    </xs:sequence></xs:complexType>
    <xs:complexType name="Numbers"><xs:sequence>
      <xs:element name="int" type="xs:int" minOccurs="0" maxOccurs="unbounded"/>
    </xs:sequence></xs:complexType>
    <xs:complexType name="Order"><xs:sequence>
      <xs:element name="Line" type="t:Line" minOccurs="0" maxOccurs="unbounded"/>
      <xs:element name="Price" type="xs:decimal" minOccurs="0" nillable="true"/>
      <xs:element name="Paid" type="xs:boolean" minOccurs="0"/>
    </xs:sequence><xs:attribute name="id" type="xs:int"/></xs:complexType>
    <xs:element name="Do"><xs:complexType><xs:sequence>
      <xs:element name="order" type="t:Order" minOccurs="0"/>
      <xs:element name="numbers" type="t:Numbers" minOccurs="0"/>
      <xs:element name="tag" type="xs:string" minOccurs="0" maxOccurs="unbounded"/>
      <xs:element name="text" type="xs:string" minOccurs="0"/>
      <xs:element name="whole" type="xs:int" minOccurs="0"/>
      <xs:element name="exact" type="xs:decimal" minOccurs="0"/>
      <xs:element name="real" type="xs:double" minOccurs="0"/>
      <xs:element name="flag" type="xs:boolean" minOccurs="0"/>
      <xs:element name="at" type="xs:dateTime" minOccurs="0"/>
      <xs:element name="bytes" type="xs:base64Binary" minOccurs="0"/>
      <xs:element name="anything" type="xs:anyType" minOccurs="0"/>
    </xs:sequence></xs:complexType></xs:element>
    <xs:element name="DoResponse"><xs:complexType><xs:sequence>
      <xs:element name="result" type="t:Order"/>
    </xs:sequence></xs:complexType></xs:element>
    <xs:element name="Say" type="xs:string"/>
  </xs:schema></types>
  <message name="DoIn"><part name="p" element="t:Do"/></message>
  <message name="DoOut"><part name="p" element="t:DoResponse"/></message>
  <message name="SayIn"><part name="p" element="t:Say"/></message>
  <portType name="T">
    <operation name="Do"><input message="t:DoIn"/><output message="t:DoOut"/></operation>
    <operation name="Say"><input message="t:SayIn"/></operation>
  </portType>
  <binding name="T" type="t:T"><soap:binding transport="http://schemas.xmlsoap.org/soap/http"/>
    <operation name="Do"><soap:operation soapAction="do"/>
      <input><soap:body use="literal"/></input><output><soap:body use="literal"/></output></operation>
    <operation name="Say"><soap:operation soapAction="say"/><input><soap:body use="literal"/></input></operation>
  </binding>
  <service name="T"><port name="T" binding="t:T"><soap:address location="http://127.0.0.1:1/"/></port></service>
</definitions>"""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> zeep.Client:
    file: Path = tmp_path_factory.mktemp("wsdl") / "t.wsdl"
    file.write_text(_WSDL, "utf-8")
    return zeep.Client(str(file))


def _operation(client: zeep.Client, name: str = "Do") -> Any:
    return client.wsdl.services["T"].ports["T"].binding.get(name)


def _sent(client: zeep.Client, *given: str, name: str = "Do") -> str:
    """The body that the arguments make."""
    values = arguments(_operation(client, name), given)
    envelope = client.create_message(client.service, name, **values)
    (body,) = envelope.find("{*}Body")
    text = etree.tostring(body, encoding="unicode")
    for noise in (' xmlns:ns0="urn:t"', ' xmlns:soap-env="http://schemas.xmlsoap.org/soap/envelope/"', "ns0:"):
        text = text.replace(noise, "")
    return text.removeprefix(f"<{name}>").removesuffix(f"</{name}>")


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("text=a=b", "<text>a=b</text>"),
        ("text=", "<text></text>"),
        ('text={"no": "JSON"}', '<text>{"no": "JSON"}</text>'),
        ("whole=-7", "<whole>-7</whole>"),
        ("exact=1.50", "<exact>1.50</exact>"),
        ("exact=12345678901234567890.12345678901234567890", "<exact>12345678901234567890.12345678901234567890</exact>"),
        ("real=1e-3", "<real>1e-3</real>"),
        ("real=INF", "<real>INF</real>"),
        ("flag=1", "<flag>true</flag>"),
        ("flag=false", "<flag>false</flag>"),
        ("at=2026-01-02T03:04:05Z", "<at>2026-01-02T03:04:05Z</at>"),
        ("bytes=AAEC", "<bytes>AAEC</bytes>"),
        ("anything=x", "<anything>x</anything>"),
        ("tag=a", "<tag>a</tag>"),
        ('tag=["a", "b"]', "<tag>a</tag><tag>b</tag>"),
        ("numbers=[1, 2]", "<numbers><int>1</int><int>2</int></numbers>"),
        ('numbers={"int": [1, 2]}', "<numbers><int>1</int><int>2</int></numbers>"),
        (
            'order={"id": 5, "Line": [{"Sku": "x", "Count": 2}], "Price": 0.10, "Paid": true}',
            '<order id="5"><Line><Sku>x</Sku><Count>2</Count></Line><Price>0.10</Price><Paid>true</Paid></order>',
        ),
        ('order={"Line": {"Sku": "x", "Count": "2"}}', "<order><Line><Sku>x</Sku><Count>2</Count></Line></order>"),
        ('order={"Price": null}', "<order></order>"),
    ],
)
def test_a_value_becomes_what_its_type_says(client: zeep.Client, given: str, sent: str) -> None:
    assert _sent(client, given).replace("<order/>", "<order></order>").replace("<text/>", "<text></text>") == sent


def test_a_name_may_come_several_times_for_a_list(client: zeep.Client) -> None:
    assert _sent(client, "tag=a", "whole=1", "tag=b", 'tag=["c"]') == (
        "<tag>a</tag><tag>b</tag><tag>c</tag><whole>1</whole>"
    )


def test_a_message_that_is_one_value(client: zeep.Client) -> None:
    assert _sent(client, "value=hello", name="Say") == "hello"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (["text"], "'text' is not name=value"),
        (["txt=1"], "Do has no argument 'txt'; did you mean text?"),
        (["zzz=1"], "Do has no argument 'zzz'; there are order, numbers, tag,"),
        (["whole=1.5"], "whole takes int, which '1.5' is not"),
        (["exact=x"], "exact takes decimal, which 'x' is not"),
        (["real=x"], "real takes double, which 'x' is not"),
        (["flag=yes"], "flag takes boolean, which 'yes' is not"),
        (["at=tomorrow"], "at takes dateTime, which 'tomorrow' is not"),
        (["bytes=!"], "bytes takes base64Binary, which '!' is not"),
        (["whole=1", "whole=2"], "whole is given 2 times and can be given once"),
        (["order=5"], "order takes a JSON object with Line, Price, Paid, id"),
        (["order={"], 'order takes JSON, such as order={"name": "value"}; this is none: {'),
        (['order={"line": []}'], "order has no member 'line'; did you mean Line?"),
        (['order={"Line": [{"Count": "x"}]}'], "order.Line.Count takes int, which 'x' is not"),
        (['order={"Price": {}}'], "order.Price takes one value, not {}"),
        (['order={"id": true}'], "order.id takes int, which 'true' is not"),
    ],
)
def test_what_does_not_fit_is_named(client: zeep.Client, given: list[str], reason: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        arguments(_operation(client), given)
    assert str(caught.value).startswith(reason)


def test_the_types_behind_an_operation(client: zeep.Client) -> None:
    assert types_of([_operation(client)], client.wsdl.types) == [
        "ns0:Order(Line: ns0:Line[], Price: xsd:decimal, Paid: xsd:boolean, id: xsd:int)",
        "ns0:Line(Sku: xsd:string, Count: xsd:int)",
        "ns0:Numbers(int: xsd:int[])",
    ]


def test_the_nearest_name() -> None:
    assert nearest("add", ["Add", "Divide"]) == "did you mean Add?"
    assert nearest("x", []) == "there are none"


_RESULT = {
    "Number": 7,
    "Total": Decimal("4.20"),
    "Paid": True,
    "Note": None,
    "Text": "two\nlines",
    "When": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
    "Wait": datetime.timedelta(minutes=5),
    "Raw": b"\x00\x01",
    "Extra": etree.fromstring("<a><b/></a>"),
    "Lines": [{"Sku": "x", "Count": 2}, {"Sku": "y", "Count": 3}],
    "Tags": ["a", "b"],
    "None": [],
}


def test_a_result_as_text() -> None:
    assert as_text(_RESULT).splitlines() == [
        "Number: 7",
        "Total: 4.20",
        "Paid: true",
        "Note:",
        "Text:",
        "  two",
        "  lines",
        "When: 2026-01-02T00:00:00+00:00",
        "Wait: PT5M",
        "Raw: AAE=",
        "Extra:",
        "  <a>",
        "    <b/>",
        "  </a>",
        "Lines:",
        "  - Sku: x",
        "    Count: 2",
        "  - Sku: y",
        "    Count: 3",
        "Tags:",
        "  - a",
        "  - b",
        "None:",
    ]
    assert [as_text(value) for value in (None, "", 3.5, False, Decimal("1E+3"))] == ["", "", "3.5", "false", "1000"]


def test_a_result_as_json() -> None:
    assert as_json({"Total": Decimal("4.20"), "Paid": True, "Raw": b"\x00\x01", "Name": "é", "None": None}) == (
        '{\n  "Total": "4.20",\n  "Paid": true,\n  "Raw": "AAE=",\n  "Name": "é",\n  "None": null\n}'
    )
    assert as_json(3.5) == "3.5"
