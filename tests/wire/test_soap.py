from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from wcfrelay.errors import (
    ListenerTimeoutError,
    MissingTokenError,
    NoListenerError,
    ProtocolError,
    RelayError,
    ServerBusyError,
)
from wcfrelay.wire.soap import (
    ENVELOPE,
    RELAY,
    SOAP11,
    SOAP12,
    SoapVersion,
    error_answer,
    fault,
    fault_envelope,
    media_type,
    parse_message,
    soap_version,
    version_mismatch,
)

VERSIONS: list[SoapVersion] = ["1.1", "1.2"]
both = pytest.mark.parametrize("version", VERSIONS)


@pytest.mark.parametrize(
    ("content_type", "action", "version"),
    [
        ("text/xml; charset=utf-8", '"urn:do"', "1.1"),
        ("Text/XML", "", "1.1"),
        ("text/xml; charset=utf-8", None, None),
        ("application/soap+xml", None, "1.2"),
        ('application/soap+xml; charset=utf-8; action="urn:do"', None, "1.2"),
        ("application/soap+xml", '"urn:do"', "1.2"),
        ("application/xml", '"urn:do"', None),
        ("application/json", None, None),
        ("", None, None),
        ("", "", None),
        ('multipart/related; type="application/xop+xml"; start-info="text/xml"', '""', "1.1"),
        ('multipart/related; type="application/xop+xml"; start-info="text/xml"', None, None),
        ('multipart/related; type="text/xml"; start="<a;b>"', "", "1.1"),
        (
            'multipart/related; boundary="x;type=text/xml"; Type="application/xop+xml"; '
            'start-info="application/soap+xml; action=\\"urn:do\\""',
            None,
            "1.2",
        ),
        ("multipart/related; type=application/soap+xml", None, "1.2"),
        ("multipart/form-data; type=application/soap+xml", None, None),
        ("application/soap+msbin1", None, None),
    ],
)
def test_version_of_a_request(content_type: str, action: str | None, version: str | None) -> None:
    assert soap_version(content_type, action) == version


def test_media_type() -> None:
    assert media_type('Text/XML ;Charset="UTF-8"; a=b;c="d\\"e" ; a=second') == (
        "text/xml",
        {"charset": "UTF-8", "a": "b", "c": 'd"e'},
    )


@both
@pytest.mark.parametrize("sender", [True, False])
def test_fault(version: SoapVersion, sender: bool) -> None:
    body, content_type = fault(version, sender=sender, reason="<&> \r\n é \0", detail_code="A&B")
    root = etree.fromstring(body)
    assert root.tag == f"{{{ENVELOPE[version]}}}Envelope"
    (node,) = root[0]
    assert node.tag == f"{{{ENVELOPE[version]}}}Fault"
    if version == "1.1":
        assert content_type == "text/xml; charset=utf-8"
        code, text, detail = node
        assert code.text == ("s:Client" if sender else "s:Server")
        assert [child.tag for child in node] == ["faultcode", "faultstring", "detail"]
    else:
        assert content_type == "application/soap+xml; charset=utf-8"
        code, reason, detail = node
        assert code[0].text == ("s:Sender" if sender else "s:Receiver")
        (text,) = reason
        assert [child.tag for child in node] == [f"{{{SOAP12}}}{name}" for name in ("Code", "Reason", "Detail")]
    assert text.text == "<&> \r\n é \ufffd"
    assert text.get("{http://www.w3.org/XML/1998/namespace}lang") == "en"
    assert detail.findtext(f"{{{RELAY}}}Code") == "A&B"


@both
@given(reason=st.text(), detail=st.text())
def test_fault_is_well_formed_whatever_it_says(version: SoapVersion, reason: str, detail: str) -> None:
    body, _ = fault(version, sender=True, reason=reason, detail_code=detail)
    assert len(etree.fromstring(body)[0]) == 1


@both
def test_fault_without_detail(version: SoapVersion) -> None:
    body, _ = fault(version, sender=True, reason="no")
    assert b"etail>" not in body


@both
def test_version_mismatch(version: SoapVersion) -> None:
    body, content_type = version_mismatch(version, {"1.2": 1, "1.1": 2})
    root = etree.fromstring(body)
    envelopes = list(root.iterfind(f"{{{ENVELOPE[version]}}}Header/{{{SOAP12}}}Upgrade/{{{SOAP12}}}SupportedEnvelope"))
    assert [each.nsmap["v"] for each in envelopes] == [SOAP11, SOAP12]
    assert b"s:VersionMismatch<" in body
    assert ("soap+xml" in content_type) == (version == "1.2")


@both
def test_fault_of_a_service(version: SoapVersion) -> None:
    detail = etree.Element("detail")
    etree.SubElement(detail, "{urn:x}Reason").text = "7"
    status, envelope = fault_envelope(version, "Client.Bad", "no \x01", "urn:x", "de", "urn:me", detail)
    node = etree.fromstring(etree.tostring(envelope))[0][0]
    assert node[-1].findtext("{urn:x}Reason") == "7"
    if version == "1.1":
        assert status == 500
        assert node.findtext("faultcode") == "soap11env:Client.Bad"
        assert node.findtext("faultactor") == "urn:me"
    else:
        assert status == 400
        assert node.findtext(f"{{{SOAP12}}}Code/{{{SOAP12}}}Subcode/{{{SOAP12}}}Value") == "tns:Bad"
        assert node.nsmap["tns"] == "urn:x"
        assert node.findtext(f"{{{SOAP12}}}Role") == "urn:me"
    _, envelope = fault_envelope(version, "Server", "no", "urn:x", "en", "", etree.Element("detail"))
    assert len(envelope[0][0]) == 2


# Answers to relay errors


@pytest.mark.parametrize(
    ("headers", "start"),
    [
        ([("content-type", "text/xml"), ("SOAPAction", '"a"')], "text/xml"),
        ([("Content-Type", "application/soap+xml")], "application/soap+xml"),
        ([("Content-Type", "text/xml")], "application/json"),
        ([], "application/json"),
    ],
)
@pytest.mark.parametrize("error", [NoListenerError(), ListenerTimeoutError(), RelayError('a "quoted" \n é')])
def test_error_answer(headers: list[tuple[str, str]], start: str, error: RelayError) -> None:
    status, reason, answer_headers, body = error_answer(error, headers, " TrackingId:1_G0, Timestamp:now")
    assert status == error.status
    ((name, value),) = answer_headers
    assert name == "Content-Type"
    assert value.startswith(start)
    text = f"{error.message} TrackingId:1_G0, Timestamp:now"
    assert reason == text.replace("\n", " ")
    if start == "application/json":
        assert json.loads(body) == {"error": {"code": error.code, "message": text}}
    else:
        root = etree.fromstring(body)
        assert text in [each.text for each in root.iter()]
        assert error.code in [each.text for each in root.iter(f"{{{RELAY}}}Code")]


def test_whose_mistake_an_error_is() -> None:
    headers = [("Content-Type", "application/soap+xml")]
    assert b"s:Sender" in error_answer(MissingTokenError(), headers)[3]
    assert b"s:Receiver" in error_answer(ServerBusyError(), headers)[3]


def test_error_answer_with_the_errors_own_tracking_id() -> None:
    *_, body = error_answer(RelayError("No", tracking_id="77"), [])
    assert json.loads(body)["error"]["message"] == "No TrackingId:77"


@given(text=st.text(min_size=1))
def test_reason_phrase_is_safe(text: str) -> None:
    _, reason, _, _ = error_answer(RelayError(text * 100), [])
    assert len(reason) <= 512
    assert all(" " <= character <= "~" or "\xa0" <= character <= "\xff" for character in reason)
    reason.encode("latin-1")


# Parsing


def test_parse_message() -> None:
    root = parse_message(b"<?pi?><a><!-- c -->x<?pi?>&lt;&#65;</a>", None)
    assert root.text == "x<A"
    assert len(root) == 0


@pytest.mark.parametrize(
    ("body", "charset"),
    [
        (b"", None),
        (b"<a>", None),
        (b"<a/>", "nonsense"),
        (b"<!DOCTYPE a><a/>", None),
        (b"<!DOCTYPE a []><a/>", None),
        (b'<!DOCTYPE a SYSTEM "http://127.0.0.1/x"><a/>', None),
        ("<!DOCTYPE a []><a/>".encode("utf-16"), None),
        (b'<!DOCTYPE a [<!ENTITY e "x">]><a b="&e;"/>', None),
        (b"<a>" * 257 + b"</a>" * 257, None),
        (b"\xff", None),
    ],
)
def test_parse_message_refuses(body: bytes, charset: str | None) -> None:
    with pytest.raises(ProtocolError):
        parse_message(body, charset)


def test_depth_is_bounded_in_large_messages_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wcfrelay.wire.soap._LARGE", 0)
    parse_message(b"<a>" * 256 + b"</a>" * 256, None)
    with pytest.raises(ProtocolError, match="deeper"):
        parse_message(b"<a>" * 257 + b"</a>" * 257, None)
