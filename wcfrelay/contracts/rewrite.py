"""Addresses in contract documents: what a service says about itself, as seen through the relay.

A service writes its own address into the WSDL it serves, where nobody outside can reach it. :func:`rewrite_document`
replaces such addresses by their public twins and leaves every other byte as it was. Sources: WSDL 1.1 §2.1.1, §3.8
(soap:address), §4.1 (http:address); WSDL 2.0 part 1 §2.15 and §4; XML Schema part 1 §4.2; WS-Addressing 1.0 core §2 and
its submission of August 2004; WS-MetadataExchange (September 2004) §4; the discovery documents of ASP.NET.

Only the places in ``_PLACES`` and ``_ADDRESS_TEXT`` are looked at; relative references stay, because they are relative
to the public address already.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from xml.parsers import expat

from wcfrelay.wire.soap import ADDRESSING10, ADDRESSING200408, xml_text

__all__ = ["AddressMap", "rewrite_document"]

_LIMIT = 8 * 1024 * 1024
"""Bytes; a larger document is relayed as it is."""

_WSDL = "http://schemas.xmlsoap.org/wsdl/"
_WSDL20 = "http://www.w3.org/ns/wsdl"
_SCHEMA = "http://www.w3.org/2001/XMLSchema"
_MEX = "http://schemas.xmlsoap.org/ws/2004/09/mex"
_DISCO = "http://schemas.xmlsoap.org/disco/"

_ROOTS = frozenset(
    {
        f"{_WSDL} definitions",
        f"{_WSDL20} description",
        f"{_SCHEMA} schema",
        f"{_MEX} Metadata",
        f"{_DISCO} discovery",
    }
)
_PLACES: dict[str, tuple[str, ...]] = {
    f"{_WSDL}soap/ address": ("location",),
    f"{_WSDL}soap12/ address": ("location",),
    f"{_WSDL}http/ address": ("location",),
    f"{_WSDL} import": ("location",),
    f"{_WSDL20} import": ("location",),
    f"{_WSDL20} include": ("location",),
    f"{_WSDL20} endpoint": ("address",),
    f"{_SCHEMA} import": ("schemaLocation",),
    f"{_SCHEMA} include": ("schemaLocation",),
    f"{_SCHEMA} redefine": ("schemaLocation",),
    f"{_DISCO} discoveryRef": ("ref",),
    f"{_DISCO}scl/ contractRef": ("ref", "docRef"),
    f"{_DISCO}schema/ schemaRef": ("ref",),
    f"{_DISCO}soap/ soap": ("address",),
}
_ADDRESS_TEXT = frozenset({f"{wsa} Address" for wsa in (ADDRESSING10, ADDRESSING200408)} | {f"{_MEX} Location"})
_ADDRESS_PARENTS = frozenset(
    {f"{wsa} EndpointReference" for wsa in (ADDRESSING10, ADDRESSING200408)}
    | {f"{_MEX} MetadataReference", f"{_MEX} MetadataSection"}
)

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^?#]*)([?#].*)?", re.DOTALL)
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_LOOPBACK = frozenset({"127.0.0.1", "[::1]"})


@dataclass(frozen=True, slots=True)
class AddressMap:
    """Base URL of the service ↔ URL of the relay in front of it."""

    base: str
    """What the listener forwards to, such as ``http://127.0.0.1:8080/svc``."""
    public: str
    """The relay as senders address it, such as ``https://gateway.example:8443/orders``."""
    aliases: tuple[str, ...] = ()
    """Further base URLs under which the service may name itself."""

    def to_public(self, url: str) -> str | None:
        """The same resource seen through the relay; None when ``url`` is relative or lies outside the base URLs.

        Scheme, host and port must be those of a base, ``localhost``, ``127.0.0.1`` and ``[::1]`` being one host. Its
        path matches in whole segments and without regard to case; what follows keeps its exact spelling.
        """
        there = _split(url)
        if there is None:
            return None
        origin, path, rest = there
        if any(segment in (".", "..") for segment in path.split("/")):
            return None
        for base in (self.base, *self.aliases):
            ours = _split(base)
            if ours is None or ours[0] != origin:
                continue
            prefix = ours[1].rstrip("/")
            inside = path[len(prefix) :]
            if path[: len(prefix)].lower() == prefix.lower() and inside[:1] in ("", "/"):
                return self.public.rstrip("/") + inside + rest
        return None


def _split(url: str) -> tuple[tuple[str, str, str], str, str] | None:
    """An absolute URL as ((scheme, host, port), path, query and fragment), None when it is none or has credentials."""
    match = _URL.fullmatch(url)
    if match is None or "@" in match[2]:
        return None
    scheme, authority, path, rest = match[1].lower(), match[2].lower(), match[3], match[4] or ""
    host, colon, port = authority.rpartition(":")
    if not colon or authority.endswith("]"):
        host, port = authority, ""
    return (scheme, "localhost" if host in _LOOPBACK else host, port or _DEFAULT_PORTS.get(scheme, "")), path, rest


def rewrite_document(data: bytes, addresses: AddressMap) -> bytes:
    """``data`` with its addresses made public, byte for byte the same elsewhere.

    Returns ``data`` itself when nothing changes: no WSDL, XSD, metadata or disco document, malformed, with a DOCTYPE,
    in an encoding that contract documents do not use, or larger than 8 MiB.
    """
    if len(data) > _LIMIT:
        return data
    codec = _codec(data)
    if codec is None:
        return data
    document = data
    if codec != "utf-8":
        try:
            text = data.decode(codec)
        except UnicodeDecodeError:
            return data
        document = text.encode()
    patches = _patches(document, addresses)
    if not patches:
        return data
    pieces: list[bytes] = []
    position = 0
    for start, end, value in patches:
        pieces += (document[position:start], value.encode())
        position = end
    pieces.append(document[position:])
    result = b"".join(pieces)
    return result if codec == "utf-8" else result.decode().encode(codec, "xmlcharrefreplace")


_DECLARED = re.compile(rb"""<\?xml\s[^>]*?encoding\s*=\s*["']([A-Za-z0-9._-]+)["']""")
_CODECS = {
    "utf-8": "utf-8",
    "us-ascii": "utf-8",
    "iso-8859-1": "latin-1",
    "latin1": "latin-1",
    "windows-1252": "cp1252",
    # .NET writes this into documents built as strings and then sends them as UTF-8.
    "utf-16": "utf-8",
}


def _codec(data: bytes) -> str | None:
    """The codec of an XML document (XML 1.0 appendix F), None when it is not one of those above."""
    if data.startswith((b"\xff\xfe", b"<\0")):
        return "utf-16-le"
    if data.startswith((b"\xfe\xff", b"\0<")):
        return "utf-16-be"
    if data.startswith(b"\xef\xbb\xbf"):
        return "utf-8"
    declared = _DECLARED.match(data, 0, 256)
    return _CODECS.get(declared[1].decode().lower()) if declared is not None else "utf-8"


class _Foreign(Exception):
    """The document is none to be rewritten."""


_TAG = re.compile(rb"<[^\s/>]+")
_ATTRIBUTE = re.compile(rb"""\s+([^\s=]+)\s*=\s*(?:"([^"]*)"|'([^']*)')""")
_TAG_END = re.compile(rb"\s*/?>")
_BLANK = b" \t\r\n"


def _patches(document: bytes, addresses: AddressMap) -> list[tuple[int, int, str]]:
    """(start, end, XML text) of the addresses to replace in a UTF-8 document, in order."""
    found: list[tuple[int, int, str]] = []
    path: list[str] = []
    text: list[str] = []
    content = -1  # where the text of the open address element begins

    def replace(start: int, end: int, value: str) -> None:
        public = addresses.to_public(value.strip())
        if public is None or public == value.strip():
            return
        raw = document[start:end]
        start += len(raw) - len(raw.lstrip(_BLANK))
        end -= len(raw) - len(raw.rstrip(_BLANK))
        found.append((start, end, xml_text(public).replace('"', "&quot;").replace("'", "&apos;")))

    def start_element(name: str, attributes: dict[str, str]) -> None:
        nonlocal content
        if not path and name not in _ROOTS:
            raise _Foreign
        content = -1
        if name in _PLACES:
            wanted = _PLACES[name]
            for attribute, start, end in _spans(document, parser.CurrentByteIndex):
                if attribute in wanted:
                    replace(start, end, attributes[attribute])
        elif name in _ADDRESS_TEXT and path and path[-1] in _ADDRESS_PARENTS:
            *_, (_, _, content) = _spans(document, parser.CurrentByteIndex)
            text.clear()
        path.append(name)

    def end_element(_name: str) -> None:
        nonlocal content
        path.pop()
        if content >= 0:
            replace(content, parser.CurrentByteIndex, "".join(text))
            content = -1

    def character_data(data: str) -> None:
        if content >= 0:
            text.append(data)

    def doctype(*_: object) -> None:
        raise _Foreign

    parser = expat.ParserCreate("utf-8", " ")
    parser.buffer_text = True
    parser.StartElementHandler = start_element
    parser.EndElementHandler = end_element
    parser.CharacterDataHandler = character_data
    parser.StartDoctypeDeclHandler = doctype
    try:
        parser.Parse(document, True)
    except (_Foreign, expat.ExpatError):
        return []
    return found


def _spans(document: bytes, start: int) -> Iterator[tuple[str, int, int]]:
    """(name, start, end) of each raw attribute value in the well-formed tag at ``start``; last ("", …, end of tag)."""
    match = _TAG.match(document, start)
    while match is not None:
        position = match.end()
        match = _ATTRIBUTE.match(document, position)
        if match is None:
            ending = _TAG_END.match(document, position)
            yield "", position, ending.end() if ending is not None else position
        else:
            group = 2 if match[2] is not None else 3
            yield match[1].decode(), *match.span(group)
