"""What relaying needs of SOAP: which version a request speaks, and the faults that the relay itself answers with.

Sources: SOAP 1.1 (W3C note, §4.4 Fault, §6.1.1 SOAPAction); SOAP 1.2 part 1 §5.4 Fault, §5.4.7 and appendix A (version
mismatch), part 2 §7.5.2.2 table 20 (fault code ↔ HTTP status); RFC 2387 and the XOP note for multipart messages;
hybrid-connections.md §10 for the answer to a request that is no SOAP.

Fault of the relay, in the version of the request::

    Envelope / Body / Fault / code = Client|Server (1.1), Sender|Receiver (1.2)
                              reason text, xml:lang="en"
                              detail / {urn:wcfrelay}Code = the symbol that the JSON answer has as "code"
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable
from typing import Any, Literal

from lxml import etree

from wcfrelay.errors import ProtocolError, RelayError

__all__ = [
    "ADDRESSING10",
    "ADDRESSING200408",
    "CONTENT_TYPE",
    "ENVELOPE",
    "RELAY",
    "SOAP11",
    "SOAP12",
    "Answer",
    "SoapVersion",
    "error_answer",
    "fault",
    "fault_envelope",
    "media_type",
    "parse_message",
    "soap_version",
    "version_mismatch",
    "xml_characters",
    "xml_text",
]

SoapVersion = Literal["1.1", "1.2"]
Answer = tuple[int, str, list[tuple[str, str]], bytes]
"""An HTTP answer: status, reason phrase, headers, body (the arguments of ``Exchange.respond``)."""

SOAP11 = "http://schemas.xmlsoap.org/soap/envelope/"
SOAP12 = "http://www.w3.org/2003/05/soap-envelope"
ADDRESSING10 = "http://www.w3.org/2005/08/addressing"
ADDRESSING200408 = "http://schemas.xmlsoap.org/ws/2004/08/addressing"
RELAY = "urn:wcfrelay"
"""Namespace of the detail element in the relay's own faults."""

ENVELOPE: dict[SoapVersion, str] = {"1.1": SOAP11, "1.2": SOAP12}
CONTENT_TYPE: dict[SoapVersion, str] = {"1.1": "text/xml", "1.2": "application/soap+xml"}

_CODES12 = frozenset({"Sender", "Receiver", "VersionMismatch", "MustUnderstand", "DataEncodingUnknown"})
_NCNAME = re.compile(r"[^\W\d][\w.-]*")
_REASON_LIMIT = 512
_DEPTH_LIMIT = 256
"""Nested elements in a message: libxml2's own limit, which it lifts together with the one on texts."""
_LARGE = 10_000_000
"""Bytes of the largest text in a message that libxml2 takes when not told otherwise."""
_BOMS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
_PARAMETER = re.compile(r""";\s*([^\s=;"]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;\s]*))""")
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NOT_REASON = re.compile("[^\x20-\x7e\xa0-\xff]")
_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "\r": "&#13;"})


def media_type(content_type: str) -> tuple[str, dict[str, str]]:
    """The media type and its parameters, both with names in lower case, values unquoted."""
    kind = content_type.partition(";")[0].strip().lower()
    parameters: dict[str, str] = {}
    for name, quoted, plain in _PARAMETER.findall(content_type):
        parameters.setdefault(name.lower(), re.sub(r"\\(.)", r"\1", quoted) if quoted else plain)
    return kind, parameters


def soap_version(content_type: str, soap_action: str | None) -> SoapVersion | None:
    """The SOAP version of an HTTP request, or None when it is no SOAP.

    ``text/xml`` alone may be REST; the SOAPAction field, which SOAP 1.1 requires (it may be empty), tells.
    """
    kind, parameters = media_type(content_type)
    kinds = [kind]
    if kind == "multipart/related":
        kinds = [media_type(parameters.get(name, ""))[0] for name in ("start-info", "type")]
    if CONTENT_TYPE["1.2"] in kinds:
        return "1.2"
    if CONTENT_TYPE["1.1"] in kinds and soap_action is not None:
        return "1.1"
    return None


def parse_message(body: bytes, charset: str | None) -> etree._Element:
    """The root element of a message, comments and processing instructions left out.

    Nothing outside the message is read and no entity expanded. A byte order mark wins over ``charset`` (that of the
    Content-Type), which wins over the XML declaration (RFC 7303 §3). The caller bounds the size of ``body``.

    :raises ProtocolError: not well-formed, a DOCTYPE (SOAP 1.1 §3, SOAP 1.2 part 1 §5), nested too deep, or an unknown
        charset; the text is for the sender.
    """
    large = len(body) > _LARGE
    try:
        parser = etree.XMLParser(
            encoding=None if body.startswith(_BOMS) else charset,
            resolve_entities=False,
            no_network=True,
            load_dtd=False,
            remove_comments=True,
            remove_pis=True,
            huge_tree=large,
        )
        root = etree.fromstring(body, parser)
    except LookupError:
        raise ProtocolError("The charset of the message is unknown.") from None
    except etree.XMLSyntaxError as error:
        raise ProtocolError(f"The message is not well-formed XML: {error.msg}") from None
    info: Any = root.getroottree().docinfo
    if info.doctype:
        raise ProtocolError("A message must not contain a document type declaration.")
    if large:
        depth = 0
        for event, _ in etree.iterwalk(root, events=("start", "end")):
            depth += 1 if event == "start" else -1
            if depth > _DEPTH_LIMIT:
                raise ProtocolError(f"The message nests elements deeper than {_DEPTH_LIMIT}.")
    return root


def xml_characters(text: str) -> str:
    """``text`` with U+FFFD in place of the characters that XML 1.0 cannot hold."""
    return _NOT_XML.sub("\ufffd", text)


def xml_text(text: str) -> str:
    """``text`` as XML character data."""
    return xml_characters(text).translate(_ENTITIES)


def fault(version: SoapVersion, *, sender: bool, reason: str, detail_code: str = "") -> tuple[bytes, str]:
    """A Fault envelope as (body, content type). ``sender`` tells whose mistake it was: the sender's, or ours."""
    codes = ("Client", "Server") if version == "1.1" else ("Sender", "Receiver")
    code = codes[0 if sender else 1]
    return _envelope(version, code, reason, detail_code, header="")


def version_mismatch(version: SoapVersion, supported: Collection[SoapVersion]) -> tuple[bytes, str]:
    """The Fault for an envelope of a version that is not served, with the Upgrade header that lists those that are."""
    envelopes = "".join(
        f'<u:SupportedEnvelope qname="v:Envelope" xmlns:v="{ENVELOPE[each]}"/>' for each in sorted(supported)
    )
    header = f'<s:Header><u:Upgrade xmlns:u="{SOAP12}">{envelopes}</u:Upgrade></s:Header>'
    reason = f"This service speaks SOAP {' and '.join(sorted(supported))} only."
    return _envelope(version, "VersionMismatch", reason, "", header=header)


def _envelope(version: SoapVersion, code: str, reason: str, detail_code: str, header: str) -> tuple[bytes, str]:
    reason = xml_text(reason)
    detail = f'<Code xmlns="{RELAY}">{xml_text(detail_code)}</Code>' if detail_code else ""
    if version == "1.1":
        content = f'<faultcode>s:{code}</faultcode><faultstring xml:lang="en">{reason}</faultstring>'
        if detail:
            content += f"<detail>{detail}</detail>"
    else:
        content = (
            f'<s:Code><s:Value>s:{code}</s:Value></s:Code><s:Reason><s:Text xml:lang="en">{reason}</s:Text></s:Reason>'
        )
        if detail:
            content += f"<s:Detail>{detail}</s:Detail>"
    text = (
        '<?xml version="1.0" encoding="utf-8"?>'
        f'<s:Envelope xmlns:s="{ENVELOPE[version]}">{header}<s:Body><s:Fault>{content}</s:Fault></s:Body></s:Envelope>'
    )
    return text.encode(), f"{CONTENT_TYPE[version]}; charset=utf-8"


def fault_envelope(
    version: SoapVersion, code: str, reason: str, namespace: str, lang: str, actor: str, detail: etree._Element
) -> tuple[int, etree._Element]:
    """The Fault of a service as (HTTP status, envelope).

    ``code`` has its parts behind dots; the first is a code of either version, or one of the service's own.
    ``namespace`` qualifies the subcodes of SOAP 1.2. ``detail`` stands for the detail element: what is in it is moved.
    """
    soap, prefix = f"{{{ENVELOPE[version]}}}", f"soap{version.replace('.', '')}env"
    envelope = etree.Element(f"{soap}Envelope", nsmap={prefix: ENVELOPE[version], "tns": namespace})
    node = _child(_child(envelope, f"{soap}Body"), f"{soap}Fault")
    first, *subcodes = code.split(".")
    if version == "1.1":
        status, actor_name, detail_name = 500, "faultactor", "detail"
        first = {"Sender": "Client", "Receiver": "Server"}.get(first, first)
        _child(node, "faultcode", f"{prefix}:{'.'.join((first, *subcodes))}")
        text = _child(node, "faultstring", reason)
    else:
        first = {"Client": "Sender", "Server": "Receiver"}.get(first, first)
        if first not in _CODES12:
            first, subcodes = "Receiver", [first, *subcodes]
        status, actor_name, detail_name = 400 if first == "Sender" else 500, f"{soap}Role", f"{soap}Detail"
        level = _child(node, f"{soap}Code")
        _child(level, f"{soap}Value", f"{prefix}:{first}")
        for subcode in filter(_NCNAME.fullmatch, subcodes):
            level = _child(level, f"{soap}Subcode")
            _child(level, f"{soap}Value", f"tns:{subcode}")
        text = _child(_child(node, f"{soap}Reason"), f"{soap}Text", reason)
    text.set("{http://www.w3.org/XML/1998/namespace}lang", lang)
    if actor:
        _child(node, actor_name, actor)
    if len(detail) or detail.text:
        _child(node, detail_name, detail.text).extend(list(detail))
    return status, envelope


def _child(parent: etree._Element, tag: str, text: str | None = None) -> etree._Element:
    node = etree.SubElement(parent, tag)
    node.text = None if text is None else xml_characters(text)
    return node


def error_answer(error: RelayError, request_headers: Iterable[tuple[str, str]], suffix: str = "") -> Answer:
    """The answer that tells a sender of ``error``.

    A SOAP request gets a Fault of its own version, any other request the JSON of §10. ``suffix`` is the tracking suffix
    behind the error's text; without it the error's own tracking id serves.
    """
    content_type, action = "", None
    for name, value in request_headers:
        low = name.lower()
        if low == "content-type":
            content_type = value
        elif low == "soapaction":
            action = value
    text = f"{error.message} {suffix.lstrip()}" if suffix else str(error)
    version = soap_version(content_type, action)
    if version is not None:
        sender = 400 <= error.status < 500
        body, answer_type = fault(version, sender=sender, reason=text, detail_code=error.code)
    else:
        body = json.dumps({"error": {"code": error.code, "message": text}}, separators=(",", ":")).encode()
        answer_type = "application/json"
    reason = _NOT_REASON.sub(" ", text)[:_REASON_LIMIT].strip()
    return error.status, reason, [("Content-Type", answer_type)], body
