"""zeep clients that call a SOAP service behind a relay.

:func:`relay_client` gives a ``zeep.Client`` that blocks, over requests; :func:`async_relay_client` a
``zeep.AsyncClient`` on the running Twisted reactor, over :class:`~wcfrelay.net.http1.client.HttpPool`. Both are zeep
with another transport: types, headers, plugins and WS-Security are zeep's own. What the transports add is the same:

* The relay's token goes with every request to the relay's own origin and to no other, whatever a WSDL or a redirect
  names.
* Failures of the relay are :class:`~wcfrelay.errors.RelayError` and say what to do. Faults of the service stay
  ``zeep.exceptions.Fault``, and answers of the service that are no SOAP ``zeep.exceptions.TransportError``.
* Nothing is sent twice, and a redirect of a call is not followed. Redirects of documents are, five at most.
* A WSDL consists of at most 200 documents and 32 MiB; one that came over HTTP cannot refer to local files.

The address of a port: where the WSDL names one on the relay's origin, that; else (the service wrote an address that
only it knows) the address that the WSDL came from without its query, or the relay itself for a WSDL from elsewhere.
"""

# zeep is typed in part only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit
from urllib.request import url2pathname

import requests
import urllib3
import zeep
from lxml import etree
from requests.structures import CaseInsensitiveDict
from zeep.exceptions import TransportError, WsdlSyntaxError
from zeep.loader import absolute_location
from zeep.proxy import AsyncServiceProxy
from zeep.transports import Transport
from zeep.wsdl.bindings import Soap11Binding, Soap12Binding
from zeep.wsdl.utils import etree_to_string

from wcfrelay import __version__
from wcfrelay.address import quote_path
from wcfrelay.errors import PayloadTooLargeError, RelayError
from wcfrelay.net.http1.client import HttpClientError, HttpTimeoutError
from wcfrelay.net.http1.pool import HttpPool
from wcfrelay.net.network import Network
from wcfrelay.net.timers import Timers
from wcfrelay.net.tls import ClientTls
from wcfrelay.sender.connection import CA_FILE, SenderConnection, connection_from, reason

__all__ = ["AsyncRelayClient", "async_relay_client", "relay_client"]

_DOCUMENTS = 200
_DOCUMENT_BYTES = 32 * 1024 * 1024
_ANSWER_BYTES = 256 * 1024 * 1024
_PIECE = 64 * 1024
_REDIRECTS = 5
_REDIRECT = frozenset({301, 302, 303, 307, 308})
_CONNECT_TIMEOUT = 10.0
"""Seconds for a connection, where the timeout of a call is not shorter."""
_AGENT = f"wcfrelay/{__version__}"

_XSD = "{http://www.w3.org/2001/XMLSchema}"
_REFERENCES = {
    "{http://schemas.xmlsoap.org/wsdl/}import": "location",
    f"{_XSD}import": "schemaLocation",
    f"{_XSD}include": "schemaLocation",
    f"{_XSD}redefine": "schemaLocation",
}


def relay_client(
    path: str = "",
    *,
    connection_string: str | None = None,
    connection_string_file: str | os.PathLike[str] | None = None,
    ca_file: str | os.PathLike[str] | None = None,
    wsdl: str | os.PathLike[str] | None = None,
    address: str | None = None,
    timeout: float | None = None,
    now: Callable[[], float] = time.time,
    **options: Any,
) -> zeep.Client:
    """A zeep client for the service at ``path``, its WSDL loaded.

    Where they are not given, the connection string is that of ``WCFRELAY_CONNECTION_STRING``, the CA file (PEM, for a
    gateway whose certificate no public CA signed) that of ``WCFRELAY_CA_FILE``, and the path its ``EntityPath``.
    ``wsdl`` is where the WSDL is, by default ``?wsdl`` of the relay: a URL, a local file, or anything else as a path or
    ``?query`` at the relay. ``address``, likewise a URL or a path at the relay, is where to call the port, instead of
    the address in the WSDL. ``timeout`` is in seconds, for the connection, for each wait for the answer and about for
    all of it; by default the connection string's ``OperationTimeout``, 60. ``options`` are those of ``zeep.Client``
    (``service_name``, ``port_name``, ``plugins``, ``wsse``, ``settings``).

    The client may be used as a context manager, which closes its connections.

    :raises ConfigError: no usable connection string, path or CA file.
    :raises RelayError: the WSDL could not be loaded through the relay.
    :raises zeep.exceptions.Error: what was loaded is no usable WSDL.
    """
    relay = _sender(path, connection_string, connection_string_file, ca_file, timeout, now)
    location = _location(relay, wsdl)
    transport = _RequestsTransport(relay, _Documents(local=not _is_remote(location)))
    options["settings"] = _settings(options)
    try:
        client = zeep.Client(location, transport=transport, **options)
        _place_ports(client, relay, location, address, options)
    except BaseException:
        transport.close()
        raise
    return client


async def async_relay_client(
    path: str = "",
    *,
    reactor: Any,
    connection_string: str | None = None,
    connection_string_file: str | os.PathLike[str] | None = None,
    ca_file: str | os.PathLike[str] | None = None,
    wsdl: str | os.PathLike[str] | None = None,
    address: str | None = None,
    timeout: float | None = None,
    now: Callable[[], float] = time.time,
    **options: Any,
) -> AsyncRelayClient:
    """The same on the Twisted ``reactor``: operations are awaited, any number of them at a time.

    ``timeout`` is for a whole call. The documents of the WSDL are fetched without blocking; zeep then parses them in
    one go, which for a WSDL of megabytes keeps the reactor busy for a second or so. The caller closes the client:
    ``await client.aclose()``, or ``async with``.

    :raises ConfigError, RelayError, zeep.exceptions.Error: as :func:`relay_client`.
    """
    relay = _sender(path, connection_string, connection_string_file, ca_file, timeout, now)
    location = _location(relay, wsdl)
    transport = _PoolTransport(relay, _Documents(local=not _is_remote(location)), reactor)
    settings = options["settings"] = _settings(options)
    try:
        await transport.collect(location, follow=not settings.forbid_external)
        while True:
            try:
                client = AsyncRelayClient(location, transport=transport, **options)
                break
            except _NotCollectedError as missing:
                # zeep knows where some well-known schemas are although no document names their location.
                await transport.collect(missing.url, follow=True)
        _place_ports(client, relay, location, address, options)
    except BaseException:
        await transport.aclose()
        raise
    return client


class AsyncRelayClient(zeep.AsyncClient):
    """What :func:`async_relay_client` gives."""

    def create_service(self, binding_name: str, address: str) -> AsyncServiceProxy:
        """As zeep's, with operations that are awaited."""
        super().create_service(binding_name, address)  # refuses an unknown name
        return AsyncServiceProxy(self, self.wsdl.bindings[binding_name], address=address)

    async def aclose(self) -> None:
        """Close the connections; calls that run fail."""
        await self.transport.aclose()


def _sender(
    path: str,
    connection_string: str | None,
    connection_string_file: str | os.PathLike[str] | None,
    ca_file: str | os.PathLike[str] | None,
    timeout: float | None,
    now: Callable[[], float],
) -> SenderConnection:
    connection = connection_from(connection_string, os.environ, file=connection_string_file)
    ca = ca_file or os.environ.get(CA_FILE)
    return SenderConnection(connection, path, ca_file=Path(ca) if ca else None, timeout=timeout, now=now)


def _settings(options: Mapping[str, Any]) -> zeep.Settings:
    # forbid_external would refuse every import of a WSDL that comes over HTTP; the transports see to what it is for.
    return options.get("settings") or zeep.Settings(forbid_dtd=True)


def _location(relay: SenderConnection, wsdl: str | os.PathLike[str] | None) -> str:
    """The absolute URL or file name of the WSDL."""
    if wsdl is None:
        return relay.at("?wsdl")
    if not isinstance(wsdl, str):
        return os.path.abspath(wsdl)
    if "://" not in wsdl and os.path.isfile(wsdl):
        return os.path.abspath(wsdl)
    return relay.at(wsdl)


def _place_ports(
    client: zeep.Client, relay: SenderConnection, location: str, address: str | None, options: Mapping[str, Any]
) -> None:
    """Give every port an address that leads through the relay."""
    wsdl = client.wsdl
    if not wsdl.bindings and not any(service.ports for service in wsdl.services.values()):
        raise WsdlSyntaxError(f"{location} has no SOAP binding over HTTP; is it a WSDL? Name another one with wsdl=….")
    came_from, has_query, _ = (relay.own(location) or "").partition("?")
    default = came_from if has_query else relay.url
    for service in wsdl.services.values():
        for port in service.ports.values():
            named = (port.binding_options or {}).get("address")
            port.binding_options = {"address": relay.own(named or "") or default}
    if address is not None:
        chosen = wsdl.services.get(options.get("service_name") or next(iter(wsdl.services), ""))
        ports = chosen.ports if chosen is not None else {}
        port = ports.get(options.get("port_name") or next(iter(ports), ""))
        if port is not None:
            port.binding_options = {"address": relay.at(address)}


# -- documents


def _is_remote(location: str) -> bool:
    try:
        return urlsplit(location).scheme in ("http", "https")
    except ValueError:
        return False


class _NotCollectedError(TransportError):
    """zeep asks for a document that was not collected before."""

    def __init__(self, url: str) -> None:
        super().__init__(f"{url} was not loaded with the WSDL and cannot be loaded during a call.")
        self.url = url


class _Documents:
    """What one WSDL may be made of. ``local``: the WSDL is a local file, and may refer to others."""

    def __init__(self, *, local: bool) -> None:
        self._local = local
        self._count = 0
        self.room = _DOCUMENT_BYTES
        """Bytes that are left."""

    def begin(self, location: str) -> None:
        """Another document is about to be loaded.

        :raises PayloadTooLargeError: one too many.
        """
        self._count += 1
        if self._count > _DOCUMENTS:
            raise PayloadTooLargeError(
                f"The WSDL consists of more than {_DOCUMENTS} documents; {location} is too much."
            )

    def took(self, content: bytes) -> bytes:
        """A document was loaded."""
        self.room -= len(content)
        if self.room < 0:
            raise PayloadTooLargeError(f"The documents of the WSDL are larger than {_DOCUMENT_BYTES} bytes.")
        return content

    def read(self, location: str) -> bytes:
        """A document that is a local file.

        :raises TransportError: the WSDL is not one. :raises OSError: it cannot be read.
        """
        if not self._local:
            raise TransportError(f"The WSDL refers to {location!r}, which is no http or https URL.")
        path = url2pathname(urlsplit(location).path) if location.lower().startswith("file:") else location
        with open(path, "rb") as file:
            return self.took(file.read(self.room + 1))


def _references(content: bytes, base: str) -> Iterator[str]:
    """The absolute locations of the documents that one refers to."""
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)
    try:
        root = etree.fromstring(content, parser)
    except etree.XMLSyntaxError:
        return  # zeep will say so
    for node in root.iter(*_REFERENCES):
        location = node.get(_REFERENCES[node.tag])
        if location:
            yield absolute_location(location, base)


def _redirected(response: requests.Response, url: str) -> str | None:
    """Where a document is instead."""
    place = response.headers.get("Location")
    if response.status_code not in _REDIRECT or not place:
        return None
    target = urljoin(url, place)
    if not _is_remote(target):
        raise TransportError(f"{url} redirects to {target!r}, which is no http or https URL.")
    return target


def _document(response: requests.Response, url: str) -> bytes:
    """The document in an answer that is no redirect, nor an error of the relay."""
    if response.status_code != 200:
        raise TransportError(
            f"{url} answered with status {response.status_code}; no document of a WSDL there. "
            "Check the address, and wsdl=… if it was given.",
            status_code=response.status_code,
            content=response.content,
        )
    return response.content


def _too_many_redirects(url: str) -> TransportError:
    return TransportError(f"{url} redirects more than {_REDIRECTS} times.")


# -- calls


def _judged(relay: SenderConnection, own: str | None, response: requests.Response) -> requests.Response:
    """The answer, if it is the service's."""
    if own is not None:
        error = relay.refusal(response.status_code, response.headers.items(), response.content)
        if error is not None:
            raise error
    return response


def _soap(response: requests.Response, address: str) -> requests.Response:
    """The answer to a call, if zeep can read it."""
    status = response.status_code
    if status in _REDIRECT:
        raise TransportError(
            f"{address} redirects the call to {response.headers.get('Location', '')!r}; if that is right, "
            "give it as address=….",
            status_code=status,
            content=response.content,
        )
    kind = response.headers.get("Content-Type", "text/xml").partition(";")[0].strip().lower()
    if status >= 400 and response.content and "xml" not in kind and kind != "multipart/related":
        raise TransportError(
            f"The service at {address} answered with status {status} and {kind or 'something'}, which is no SOAP.",
            status_code=status,
            content=response.content,
        )
    return response


def _foreign(url: str, why: str) -> TransportError:
    return TransportError(f"{url}, which is not at the relay, could not be loaded: {why}")


class _RequestsTransport(Transport):
    """zeep's own transport, for one relay. ``session`` is used for the relay's origin only."""

    binding_classes = (Soap11Binding, Soap12Binding)

    def __init__(self, relay: SenderConnection, documents: _Documents) -> None:
        super().__init__(timeout=relay.timeout, operation_timeout=relay.timeout)
        self._relay = relay
        self._documents = documents

    def load(self, url: str) -> bytes:
        """A document of the WSDL."""
        documents = self._documents
        documents.begin(url)
        if not _is_remote(url):
            return documents.read(url)
        place = url
        for _ in range(_REDIRECTS + 1):
            response = self._exchange("GET", place, {}, None, documents.room)
            target = _redirected(response, place)
            if target is None:
                return documents.took(_document(response, place))
            place = target
        raise _too_many_redirects(url)

    def post(self, address: str, message: bytes, headers: Mapping[str, str]) -> requests.Response:
        """The answer to a call."""
        return _soap(self._exchange("POST", address, headers, message, _ANSWER_BYTES), address)

    def close(self) -> None:
        self.session.close()

    def _exchange(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, limit: int
    ) -> requests.Response:
        relay = self._relay
        timeout = self.operation_timeout or relay.timeout
        own = relay.own(url)
        try:
            if own is None:
                with requests.Session() as session:
                    return _fetch(session, method, url, headers, body, timeout, True, limit)
            verify = str(relay.ca_file) if relay.ca_file is not None else True
            sent = {**headers, **relay.authorization()}
            return _judged(relay, own, _fetch(self.session, method, own, sent, body, timeout, verify, limit))
        except (
            requests.ConnectionError,
            requests.Timeout,
            requests.exceptions.ChunkedEncodingError,
            requests.exceptions.ContentDecodingError,
            requests.exceptions.InvalidURL,
        ) as error:
            raise _foreign(url, reason(error)) if own is None else _problem(relay, error, timeout) from error


def _fetch(
    session: requests.Session,
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: bytes | None,
    timeout: float,
    verify: bool | str,
    limit: int,
) -> requests.Response:
    """A whole answer, of at most ``limit`` bytes."""
    end = time.monotonic() + timeout
    with session.request(
        method,
        url,
        data=body,
        headers=headers,
        timeout=(min(timeout, _CONNECT_TIMEOUT), timeout),
        allow_redirects=False,
        stream=True,
        verify=verify,
    ) as response:
        content = bytearray()
        for piece in response.iter_content(_PIECE):
            content += piece
            if len(content) > limit:
                raise PayloadTooLargeError(f"{url} answered with more than {limit} bytes.")
            if time.monotonic() > end:
                raise requests.ReadTimeout(f"not complete after {timeout:g} s")
        response._content = bytes(content)
        return response


def _problem(relay: SenderConnection, error: requests.RequestException, timeout: float) -> RelayError:
    cause = error.args[0] if error.args else None
    if isinstance(error, requests.exceptions.SSLError) or isinstance(cause, urllib3.exceptions.MaxRetryError):
        return relay.unreachable(error)
    if isinstance(error, requests.Timeout) or isinstance(cause, urllib3.exceptions.ReadTimeoutError):
        return relay.timed_out(timeout)
    return relay.broken(reason(error))


class _PoolTransport:
    """What zeep's AsyncClient needs of a transport, over connections of the reactor."""

    binding_classes = (Soap11Binding, Soap12Binding)

    def __init__(self, relay: SenderConnection, documents: _Documents, reactor: Any) -> None:
        self._relay = relay
        self._quota = documents
        self._documents: dict[str, bytes] = {}
        self._network = Network(reactor)
        self._timers = Timers(reactor)
        connection = relay.connection
        self._pool = self._open(connection.host, connection.port_number, relay.tls)

    async def collect(self, location: str, *, follow: bool) -> None:
        """Fetch a document and, where ``follow``, those it refers to, and so on, breadth first."""
        waiting = deque([location])
        seen = set(self._documents)
        while waiting:
            place = waiting.popleft()
            key = self._key(place)
            if key in seen:
                continue
            seen.add(key)
            content = self._documents[key] = await self._load(place)
            if follow:
                waiting.extend(_references(content, place))

    def load(self, url: str) -> bytes:
        """A document that was collected before, for zeep's loader."""
        content = self._documents.get(self._key(url))
        if content is None:
            raise _NotCollectedError(url)
        return content

    async def post_xml(self, address: str, envelope: Any, headers: Mapping[str, str]) -> requests.Response:
        """The answer to a call."""
        return _soap(await self._exchange("POST", address, headers, etree_to_string(envelope), _ANSWER_BYTES), address)

    async def aclose(self) -> None:
        await self._pool.close()
        self._timers.stop()

    def _key(self, url: str) -> str:
        return self._relay.own(url) or url

    async def _load(self, url: str) -> bytes:
        documents = self._quota
        documents.begin(url)
        if not _is_remote(url):
            return documents.read(url)
        place = url
        for _ in range(_REDIRECTS + 1):
            response = await self._exchange("GET", place, {}, b"", documents.room)
            target = _redirected(response, place)
            if target is None:
                return documents.took(_document(response, place))
            place = target
        raise _too_many_redirects(url)

    async def _exchange(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes, limit: int
    ) -> requests.Response:
        relay = self._relay
        own = relay.own(url)
        if own is None:
            return await self._exchange_foreign(method, url, headers, body, limit)
        sent = {"Host": relay.connection.authority, **headers, **relay.authorization()}
        try:
            response = await self._fetch(self._pool, method, own, sent, body, limit)
        except HttpTimeoutError as error:
            raise relay.timed_out(relay.timeout) if error.request_sent else relay.unreachable(error) from error
        except HttpClientError as error:
            raise relay.broken(error.message) if error.request_sent else relay.unreachable(error) from error
        return _judged(relay, own, response)

    async def _exchange_foreign(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes, limit: int
    ) -> requests.Response:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host = port = None
        if not host:
            raise _foreign(url, "it has no usable host and port")
        tls = ClientTls() if parts.scheme == "https" else None
        pool = self._open(host, port or (80 if tls is None else 443), tls)
        sent = {"Host": parts.netloc.rpartition("@")[2], **headers}
        try:
            return await self._fetch(pool, method, url, sent, body, limit)
        except HttpClientError as error:
            raise _foreign(url, reason(error)) from error
        finally:
            await pool.close()

    def _open(self, host: str, port: int, tls: ClientTls | None) -> HttpPool:
        timeout = self._relay.timeout
        return HttpPool(
            self._network,
            self._timers,
            host,
            port,
            tls,
            connect_timeout=min(timeout, _CONNECT_TIMEOUT),
            head_timeout=timeout,
            body_timeout=timeout,
        )

    async def _fetch(
        self, pool: HttpPool, method: str, url: str, headers: Mapping[str, str], body: bytes, limit: int
    ) -> requests.Response:
        parts = urlsplit(url)
        target = quote_path(parts.path or "/") + (f"?{quote_path(parts.query)}" if parts.query else "")
        fields = {"User-Agent": _AGENT, **headers, "Accept-Encoding": "identity"}
        fetched = await pool.fetch(method, target, fields.items(), body, limit=limit, timeout=self._relay.timeout)
        response = requests.Response()
        response.url = url
        response.status_code = fetched.status
        response.reason = fetched.reason
        response.headers = CaseInsensitiveDict(fetched.headers)
        response.encoding = requests.utils.get_encoding_from_headers(response.headers)
        response._content = fetched.body
        coding = response.headers.get("Content-Encoding", "identity").lower()
        if coding != "identity":
            raise TransportError(f"{url} answered in the coding {coding!r}, which was not asked for.")
        return response
