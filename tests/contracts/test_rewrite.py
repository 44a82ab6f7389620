from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from wcfrelay.contracts.rewrite import AddressMap, rewrite_document

MAP = AddressMap(
    "http://127.0.0.1:8080/svc",
    "https://gw.example:8443/orders",
    aliases=("http://build7.corp.example/Services/Svc.svc/", "https://[fd00::1]/"),
)


@pytest.mark.parametrize(
    ("url", "public"),
    [
        ("http://127.0.0.1:8080/svc", "https://gw.example:8443/orders"),
        ("http://127.0.0.1:8080/svc/", "https://gw.example:8443/orders/"),
        ("HTTP://LocalHost:8080/SVC/Deep%2Fer?WSDL#x", "https://gw.example:8443/orders/Deep%2Fer?WSDL#x"),
        ("http://[::1]:8080/svc?wsdl", "https://gw.example:8443/orders?wsdl"),
        ("http://127.0.0.1:8080/svc?a=b/../c", "https://gw.example:8443/orders?a=b/../c"),
        ("http://127.0.0.1:8080/svcs", None),
        ("http://127.0.0.1:8080/s%76c", None),
        ("http://127.0.0.1:8080/", None),
        ("http://127.0.0.1:8080", None),
        ("http://127.0.0.1:8080/svc/../other", None),
        ("http://127.0.0.1/svc", None),
        ("http://127.0.0.1:8081/svc", None),
        ("https://127.0.0.1:8080/svc", None),
        ("http://user@127.0.0.1:8080/svc", None),
        ("http://127.0.0.1:8080@evil.example/svc", None),
        ("svc.xsd", None),
        ("/svc", None),
        ("//127.0.0.1:8080/svc", None),
        ("urn:x", None),
        ("", None),
        ("http://build7.corp.example:80/services/svc.svc/basic", "https://gw.example:8443/orders/basic"),
        ("http://BUILD7.corp.example/Services/Svc.svc?wsdl", "https://gw.example:8443/orders?wsdl"),
        ("http://build7.corp.example.evil/Services/Svc.svc", None),
        ("https://[fd00::1]", "https://gw.example:8443/orders"),
        ("https://[FD00::1]:443/a", "https://gw.example:8443/orders/a"),
        ("http://[fd00::1]/a", None),
        ("http://www.w3.org/2001/XMLSchema.xsd", None),
    ],
)
def test_to_public(url: str, public: str | None) -> None:
    assert MAP.to_public(url) == public


def test_public_url_with_a_trailing_slash() -> None:
    assert AddressMap("http://a", "https://gw/x/").to_public("http://a/b") == "https://gw/x/b"


WSDL = """<?xml version='1.0' encoding="{encoding}"?>\r
<!-- http://127.0.0.1:8080/svc \u00e9 -->
<w:definitions xmlns:w="http://schemas.xmlsoap.org/wsdl/" xmlns:s='http://schemas.xmlsoap.org/wsdl/soap/'
  xmlns:s12="http://schemas.xmlsoap.org/wsdl/soap12/" xmlns:h="http://schemas.xmlsoap.org/wsdl/http/"
  targetNamespace="http://127.0.0.1:8080/svc" location="http://127.0.0.1:8080/svc">
  <w:import namespace="urn:a"\tlocation = 'http://127.0.0.1:8080/svc?wsdl=wsdl0&amp;q=&quot;&apos;' />
  <w:types><schema xmlns="http://www.w3.org/2001/XMLSchema">
    <import schemaLocation="http://localhost:8080/svc?xsd=xsd0" namespace="http://127.0.0.1:8080/svc"/>
    <include schemaLocation="&#104;ttp://127.0.0.1:8080/svc/a%20b.xsd"></include>
    <redefine schemaLocation="
      http://127.0.0.1:8080/svc/c.xsd "/>
    <import namespace="urn:b" schemaLocation="relative.xsd"/>
    <import namespace="urn:c" schemaLocation="http://www.w3.org/2001/xml.xsd"/>
    <import xmlns:x="urn:x" x:schemaLocation="http://127.0.0.1:8080/svc/x" namespace="urn:d"/>
  </schema></w:types>
  <w:service name="\u00fc"><w:port>
    <s:address location="http://127.0.0.1:8080/svc/basic"/>
    <s12:address location='http://127.0.0.1:8080/svc/ws'/>
    <h:address location="http://127.0.0.1:8080/svc/get" />
    <a:EndpointReference xmlns:a="http://www.w3.org/2005/08/addressing"><a:Address>
      http://127.0.0.1:8080/svc/ws?a&amp;b </a:Address><a:Identity>http://127.0.0.1:8080/svc</a:Identity>
    </a:EndpointReference>
    <EndpointReference xmlns="http://schemas.xmlsoap.org/ws/2004/08/addressing"
      ><Address><![CDATA[http://127.0.0.1:8080/svc/?a&b]]></Address></EndpointReference>
    <a:Address xmlns:a="http://www.w3.org/2005/08/addressing">http://127.0.0.1:8080/svc</a:Address>
    <s:address location="http://other.example/svc"/>
    <s:address />
  </w:port></w:service>
</w:definitions>
"""
REWRITTEN = (
    WSDL.replace(
        "'http://127.0.0.1:8080/svc?wsdl=wsdl0&amp;q=&quot;&apos;'",
        "'https://gw.example:8443/orders?wsdl=wsdl0&amp;q=&quot;&apos;'",
    )
    .replace('"http://localhost:8080/svc?xsd=xsd0"', '"https://gw.example:8443/orders?xsd=xsd0"')
    .replace("&#104;ttp://127.0.0.1:8080/svc/a%20b", "https://gw.example:8443/orders/a%20b")
    .replace("http://127.0.0.1:8080/svc/c.xsd", "https://gw.example:8443/orders/c.xsd")
    .replace("http://127.0.0.1:8080/svc/basic", "https://gw.example:8443/orders/basic")
    .replace("http://127.0.0.1:8080/svc/ws", "https://gw.example:8443/orders/ws")
    .replace("http://127.0.0.1:8080/svc/get", "https://gw.example:8443/orders/get")
    .replace("<![CDATA[http://127.0.0.1:8080/svc/?a&b]]>", "https://gw.example:8443/orders/?a&amp;b")
)


@pytest.mark.parametrize(
    ("declared", "codec"),
    [
        ("utf-8", "utf-8"),
        ("UTF-8", "utf-8-sig"),
        ("utf-16", "utf-16"),
        ("utf-16", "utf-16-le"),
        ("utf-16", "utf-16-be"),
        ("utf-16", "utf-8"),
        ("ISO-8859-1", "latin-1"),
        ("windows-1252", "cp1252"),
    ],
)
def test_only_the_addresses_change(declared: str, codec: str) -> None:
    data = WSDL.format(encoding=declared).encode(codec)
    assert rewrite_document(data, MAP) == REWRITTEN.format(encoding=declared).encode(codec)


def test_big_endian_with_a_byte_order_mark() -> None:
    data = ("\ufeff" + WSDL.format(encoding="utf-16")).encode("utf-16-be")
    assert rewrite_document(data, MAP) == ("\ufeff" + REWRITTEN.format(encoding="utf-16")).encode("utf-16-be")


def test_without_a_declaration() -> None:
    assert rewrite_document(WSDL.partition("\n")[2].encode(), MAP) == REWRITTEN.partition("\n")[2].encode()


def test_public_address_outside_the_encoding_and_with_markup() -> None:
    data = '<?xml version="1.0" encoding="iso-8859-1"?><schema xmlns="http://www.w3.org/2001/XMLSchema">'
    data += "<import schemaLocation='http://a/x'/></schema>"
    result = rewrite_document(data.encode(), AddressMap("http://a", "https://gw/\u20ac'\"<&"))
    assert etree.fromstring(result)[0].get("schemaLocation") == "https://gw/\u20ac'\"<&/x"


METADATA = """<m:Metadata xmlns:m="http://schemas.xmlsoap.org/ws/2004/09/mex" xmlns:a="http://www.w3.org/2005/08/addressing">
<m:MetadataSection><w:definitions xmlns:w="http://schemas.xmlsoap.org/wsdl/"><w:service><w:port>
<address xmlns="http://schemas.xmlsoap.org/wsdl/soap12/" location="{0}/ws"/>
<a:EndpointReference><a:Address>{0}/ws</a:Address></a:EndpointReference></w:port></w:service></w:definitions>
</m:MetadataSection>
<m:MetadataSection><m:Location>{0}?wsdl</m:Location></m:MetadataSection>
<m:MetadataSection><m:MetadataReference><a:Address>{0}/mex</a:Address></m:MetadataReference></m:MetadataSection>
</m:Metadata>"""
DISCO = """<discovery xmlns="http://schemas.xmlsoap.org/disco/">
<contractRef ref="{0}?wsdl" docRef="{0}" xmlns="http://schemas.xmlsoap.org/disco/scl/"/>
<soap address="{0}" binding="q1:x" xmlns="http://schemas.xmlsoap.org/disco/soap/"/>
<schemaRef ref="{0}?xsd" xmlns="http://schemas.xmlsoap.org/disco/schema/"/>
<discoveryRef ref="{0}?disco"/></discovery>"""
WSDL20 = """<description xmlns="http://www.w3.org/ns/wsdl"><import location="{0}?wsdl" namespace="urn:a"/>
<include location="{0}?wsdl2"/><service><endpoint name="e" address="{0}"/></service></description>"""
SCHEMA = """<xs:schema xmlns:xs="http://www.w3.org/2001/XMLSchema"><xs:include schemaLocation="{0}?xsd"/></xs:schema>"""


@pytest.mark.parametrize("document", [METADATA, DISCO, WSDL20, SCHEMA])
def test_other_documents(document: str) -> None:
    assert rewrite_document(document.format(MAP.base).encode(), MAP) == document.format(MAP.public).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xef\xbb\xbf",
        b"{}",
        METADATA.format("http://other.example").encode(),
        f"<root>{METADATA.format(MAP.base)}</root>".encode(),
        SCHEMA.format(MAP.base).replace("/2001/", "/1999/").encode(),
        SCHEMA.format(MAP.base).replace("</xs:schema>", "").encode(),
        SCHEMA.format(MAP.base).replace("</xs:schema>", "</xs:schema><more/>").encode(),
        SCHEMA.format(MAP.base).replace("xs:include", "undeclared:include").encode(),
        f"<!DOCTYPE x []>{SCHEMA.format(MAP.base)}".encode(),
        f'<?xml version="1.0" encoding="utf-7"?>{SCHEMA.format(MAP.base)}'.encode(),
        f'<?xml version="1.0" encoding="no-such"?>{SCHEMA.format(MAP.base)}'.encode(),
        SCHEMA.format(MAP.base).encode() + b"<!-- \xff -->",
        SCHEMA.format(MAP.base).encode("utf-16") + b"\x00",
        SCHEMA.format(MAP.base).encode() + b" " * (8 * 1024 * 1024),
    ],
)
def test_the_same_object_when_nothing_changes(data: bytes) -> None:
    assert rewrite_document(data, MAP) is data


def test_large_document() -> None:
    """expat is fed in pieces behind the scenes; its positions must hold across them."""
    line = '<include schemaLocation="{0}?xsd=\u00e9"/><!-- {1} -->\n'
    filler = "\u00e9 padding" * 40
    template = '<schema xmlns="http://www.w3.org/2001/XMLSchema">' + line.replace("{1}", filler) * 7000 + "</schema>"
    data = template.replace("{0}", MAP.base).encode()
    assert 3_000_000 < len(data) < 8_000_000
    assert rewrite_document(data, MAP) == template.replace("{0}", MAP.public).encode()


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["http://127.0.0.1:8080/svc", "http://other.example/svc"]),
            st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20),
            st.sampled_from("\"'"),
            st.sampled_from(["", " ", "\n\t"]),
        )
    ),
    st.sampled_from(["utf-8", "utf-16"]),
)
def test_any_address_in_any_spelling(places: list[tuple[str, str, str, str]], codec: str) -> None:
    """What a reader finds in the rewritten document is what the address map says."""
    text = f'<?xml version="1.0" encoding="{codec}"?><schema xmlns="http://www.w3.org/2001/XMLSchema">'
    expected = []
    for base, query, quote, blank in places:
        value = f"{base}?{query}".rstrip()
        raw = value.replace("&", "&amp;").replace("<", "&lt;").replace(quote, f"&#{ord(quote)};")
        text += f"<import{blank or ' '}schemaLocation{blank}={blank}{quote}{blank}{raw}{blank}{quote}/>"
        expected.append(MAP.to_public(value) or value)
    result = rewrite_document((text + "</schema>").encode(codec), MAP)
    assert [node.get("schemaLocation", "").strip() for node in etree.fromstring(result)] == expected


def addresses_in(root: etree._Element) -> list[str]:
    return [node.get("location", "") for node in root.iter("{*}address")]


def test_documents_from_the_field(shared: Path) -> None:
    """With every address mapped to its own twin and back, every published document is what it was."""
    seen = changed = 0
    for path in sorted((shared / "vectors/wsdl").rglob("*")):
        if path.suffix not in (".wsdl", ".xsd", ".xml"):
            continue
        data = path.read_bytes()
        try:
            root = etree.fromstring(data, etree.XMLParser(resolve_entities=False, no_network=True))
        except etree.XMLSyntaxError:
            continue
        seen += 1
        locations = {value for value in addresses_in(root) if "://" in value}
        for location in locations:
            base = location.partition("?")[0].rstrip("/")
            there = AddressMap(base, "https://gw.example/relay")
            result = rewrite_document(data, there)
            if result is data:
                continue
            changed += 1
            back = rewrite_document(result, AddressMap("https://gw.example/relay", base))
            if base == base.lower() and ":80/" not in base:
                assert back == data, path
            assert there.to_public(location) in addresses_in(etree.fromstring(result))
    assert seen > 200
    assert changed > 100
