"""Answering relayed exchanges from a spyne Application in this process. The only module that imports spyne.

User code is plain spyne: services, ``@rpc``, faults, event handlers. Added to it here:

* a method may be ``async def`` or return a Deferred; with :func:`in_thread` it runs in the reactor's thread pool;
* every service speaks SOAP 1.1 and 1.2, whichever its Application was made for; the envelope of a request decides;
* ``ctx.udc`` is a :class:`RelayCall`, unless a ``method_context_created`` handler has put something else there;
* one-way methods (``_is_async=True``) are answered with 202 before they run.

spyne 2.14.0 is the last release, so what is wrong in it is set right here: it cannot be imported on Python 3.12 and
later (import this module before anything of spyne), knows no coroutines, writes faults that SOAP forbids, logs whole
messages, generates WSDL that refers to messages which it does not define, and collects all garbage once a second.

Sources: SOAP 1.1 §4.4, §6; SOAP 1.2 part 1 §5.4, part 2 table 20 (fault ↔ status); WSDL 1.1 §3.7 (soap:header).
"""

from __future__ import annotations

import copy
import html
import importlib
import importlib.util
import inspect
import sys
import types
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import unquote
from xml.sax.saxutils import quoteattr

from lxml import etree
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure

from wcfrelay.errors import (
    ConfigError,
    PayloadTooLargeError,
    ProtocolError,
    RelayError,
    ServerBusyError,
    ServiceUnreachableError,
)
from wcfrelay.net.exchange import Exchange, Headers, header
from wcfrelay.wire.soap import (
    CONTENT_TYPE,
    ENVELOPE,
    Answer,
    SoapVersion,
    error_answer,
    fault,
    fault_envelope,
    media_type,
    parse_message,
    version_mismatch,
    xml_characters,
)


def _import_spyne() -> None:
    """Import spyne 2.14.0 on any Python from 3.11 to 3.13."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import cgi  # noqa: F401
        except ImportError:
            # Gone from Python 3.13; spyne's protocols need one function of it.
            stand_in: Any = types.ModuleType("cgi")
            stand_in.parse_header = media_type
            sys.modules["cgi"] = stand_in
        if "spyne.util.six" not in sys.modules:
            _import_six()
        importlib.import_module("spyne")


def _import_six() -> None:
    """Import spyne's copy of six and give its importer the methods of PEP 451.

    Without them Python 3.12 cannot use it, and 3.11 warns at every later import, whoever makes it.
    """
    package = importlib.util.find_spec("spyne")
    if package is None or not package.submodule_search_locations:
        raise ImportError("spyne is not installed")
    path = f"{package.submodule_search_locations[0]}/util/six.py"
    spec = importlib.util.spec_from_file_location("spyne.util.six", path)
    assert spec is not None and spec.loader is not None
    six = importlib.util.module_from_spec(spec)
    sys.modules["spyne.util.six"] = six
    spec.loader.exec_module(six)

    def find_spec(self: Any, name: str, path: object = None, target: object = None) -> Any:
        return importlib.util.spec_from_loader(name, self) if name in self.known_modules else None

    importer: Any = six._SixMetaPathImporter
    importer.find_spec = find_spec
    importer.create_module = lambda self, spec: self.load_module(spec.name)
    importer.exec_module = lambda self, module: None


_import_spyne()

import spyne  # noqa: E402
import spyne.const  # noqa: E402
from spyne import Application, Fault, Ignored, MethodContext, ServerBase  # noqa: E402
from spyne.auxproc import process_contexts  # noqa: E402
from spyne.descriptor import BODY_STYLE_BARE, BODY_STYLE_EMPTY, BODY_STYLE_WRAPPED  # noqa: E402
from spyne.interface import Interface  # noqa: E402
from spyne.protocol.soap import Soap11, Soap12  # noqa: E402
from spyne.util.etreeconv import dict_to_etree  # noqa: E402

# A context that closes collects all garbage, at most once in this many seconds. That stops the reactor for as long as
# it takes; what spyne wants from it (file descriptors closed early) is done by reference counting.
spyne.const.MIN_GC_INTERVAL = float("inf")

__all__ = ["RelayCall", "SpyneDispatcher", "in_thread", "load_application"]

_log = Logger()
_F = TypeVar("_F", bound=Callable[..., Any])

_ONE_WAY_LIMIT = 1000
"""One-way calls that may be running at a time; nobody waits for them, so nothing else holds them back."""
_ADDRESS = "urn:wcfrelay:address-of-the-relay"
_IN_THREAD = "_wcfrelay_in_thread"
_PROTOCOLS: dict[SoapVersion, type[Any]] = {"1.1": Soap11, "1.2": Soap12}
_WSDL = "http://schemas.xmlsoap.org/wsdl/"


@dataclass(frozen=True, slots=True)
class RelayCall:
    """What ``ctx.udc`` tells a method about its request."""

    tracking_id: str
    headers: Headers


def in_thread(function: _F) -> _F:
    """Mark a blocking method to run in the reactor's thread pool. Goes below ``@rpc``, next to the function."""
    if hasattr(function, "_is_rpc") or inspect.iscoroutinefunction(function):
        raise TypeError("in_thread goes below @rpc, on a plain function.")
    setattr(function, _IN_THREAD, True)
    return function


def load_application(spec: str) -> Application:
    """The Application that ``module:attribute`` names; a callable found there is called without arguments.

    The current directory is importable, as for ``python -m``.

    :raises ConfigError: there is no such module or attribute, importing it fails, or it is no spyne Application.
    """
    module_name, _, attribute = spec.partition(":")
    if not module_name or not attribute:
        raise ConfigError(f"{spec!r} does not name a spyne Application; write module:attribute.")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigError(f"There is no module {error.name!r} in {spec!r}.") from None
        raise ConfigError(f"The module of {spec!r} needs the module {error.name!r}, which is missing.") from error
    except Exception as error:
        raise ConfigError(f"Importing the module of {spec!r} failed: {error!r}") from error
    for name in attribute.split("."):
        if not hasattr(found, name):
            raise ConfigError(f"There is no {name!r} in {spec!r}.")
        found = getattr(found, name)
    if callable(found):
        try:
            found = found()
        except Exception as error:
            raise ConfigError(f"Calling {spec!r} failed: {error!r}") from error
    if not isinstance(found, Application):
        raise ConfigError(f"{spec!r} is not a spyne Application but {type(found).__name__}.")
    return found


class SpyneDispatcher:
    """Hosts one service as the answer to the exchanges of one relay.

    ``applications``: one Application, whose sibling for the other SOAP version is made here, or one for each version.
    The sibling shares services, configuration and event handlers. It is not made when the SOAP protocols of the
    Application are subclasses; envelopes of the other version are then refused.
    ``relay_path`` is the path of the relay in its namespace, which ends the address in the WSDL.
    ``reactor`` gives the thread pool for :func:`in_thread`.
    ``max_body`` bounds a request body, in bytes; a larger one is answered with 413.

    :raises ConfigError: an Application does not speak SOAP, or two of them speak the same version.
    """

    def __init__(
        self, *applications: Application, relay_path: str, reactor: Any, max_body: int = 8 * 1024 * 1024
    ) -> None:
        self.reactor = reactor
        self.max_body = max_body
        self.hosts = _hosts(applications)
        self.one_ways = 0
        self._relay_path = relay_path.strip("/")
        self._wsdl = next(iter(self.hosts.values())).wsdl()
        self._calls: set[_Call] = set()
        self._closed = False

    def dispatch(self, exchange: Exchange) -> None:
        """Take the exchange and answer it."""
        call = _Call(self, exchange)
        self._calls.add(call)
        refusal = self._refusal(exchange)
        call.answered = refusal is not None
        exchange.begin(call)
        if refusal is not None:
            self._calls.discard(call)
            exchange.respond(*refusal)

    async def close(self) -> None:
        """Cancel what runs, tell its senders, and take nothing more."""
        self._closed = True
        for call in list(self._calls):
            call.stop()

    def forget(self, call: _Call) -> None:
        self._calls.discard(call)

    def describe(self, exchange: Exchange) -> Answer:
        """The answer to a GET: the WSDL, or a line that tells where it is."""
        address = xml_characters(f"{exchange.origin}/{self._relay_path}")
        query = exchange.target.partition("?")[2]
        names = {unquote(member.partition("=")[0]).lower() for member in query.split("&")}
        if names & {"wsdl", "singlewsdl"}:
            location = quoteattr(address).encode("ascii", "xmlcharrefreplace")
            body = self._wsdl.replace(f'"{_ADDRESS}"'.encode(), location)
            return _answer(200, body, "text/xml; charset=utf-8")
        return _plain(200, f"This is a SOAP service. Its WSDL is at {address}?wsdl")

    def _refusal(self, exchange: Exchange) -> Answer | None:
        """The answer to an exchange whose body need not be read."""
        if self._closed:
            return _error(exchange, _stopped())
        if exchange.method not in ("GET", "POST"):
            status, reason, headers, body = _plain(405, "This is a SOAP service; it answers GET and POST.")
            return status, reason, [*headers, ("Allow", "GET, POST")], body
        if exchange.length is not None and exchange.length > self.max_body:
            return _error(exchange, _too_large(self.max_body))
        if exchange.method == "POST":
            kind, _ = media_type(header(exchange.headers, "content-type") or "")
            if kind not in CONTENT_TYPE.values():
                return _plain(415, f"This is a SOAP service; it takes {' and '.join(CONTENT_TYPE.values())}.")
        return None


class _Call:
    """One exchange being answered: collects the body, runs the method, can be cancelled at any point."""

    def __init__(self, dispatcher: SpyneDispatcher, exchange: Exchange) -> None:
        self.answered = False  # or nobody waits for the answer
        self._dispatcher = dispatcher
        self._exchange = exchange
        self._pieces: list[bytes] = []
        self._size = 0
        self._running: Deferred[None] | None = None
        self._cancelled = False
        kind, parameters = media_type(header(exchange.headers, "content-type") or "")
        self._charset = parameters.get("charset")
        self._version: SoapVersion = "1.2" if kind == CONTENT_TYPE["1.2"] else "1.1"

    # The carrier calls these (wcfrelay.net.exchange.Responder).

    def body_received(self, data: bytes) -> None:
        if self.answered:
            return
        self._size += len(data)
        if self._size > self._dispatcher.max_body:
            self._pieces.clear()
            self._dispatcher.forget(self)
            self._respond(*_error(self._exchange, _too_large(self._dispatcher.max_body)))
        else:
            self._pieces.append(data)

    def body_ended(self) -> None:
        if self.answered:
            return
        body = b"".join(self._pieces)
        self._pieces.clear()
        self._running = Deferred.fromCoroutine(self._serve(body))
        self._running.addErrback(self._failed).addBoth(lambda _: self._dispatcher.forget(self))

    def cancelled(self, error: Exception) -> None:
        self.answered = self._cancelled = True
        self._pieces.clear()
        self._dispatcher.forget(self)
        if self._running is not None:
            self._running.cancel()

    def pause_response(self) -> None:
        """Nothing to do: an answer is given as a whole."""

    def resume_response(self) -> None:
        """Nothing to do: an answer is given as a whole."""

    # The dispatcher calls this.

    def stop(self) -> None:
        """Give up, and tell the sender if it still waits."""
        if not self.answered:
            self._respond(*_error(self._exchange, _stopped()))
        self.cancelled(_stopped())

    # The way of a message.

    async def _serve(self, body: bytes) -> None:
        if self._exchange.method == "GET":
            self._respond(*self._dispatcher.describe(self._exchange))
            return
        try:
            root = parse_message(body, self._charset)
            host = self._host(root)
        except ProtocolError as error:
            status = 400 if self._version == "1.2" else 500
            self._respond(*_answer(status, *fault(self._version, sender=True, reason=error.message)))
            return
        if host is None:
            self._respond(*_answer(500, *version_mismatch(self._version, self._dispatcher.hosts)))
            return
        context = MethodContext(host, MethodContext.SERVER)
        if context.udc is None:
            context.udc = RelayCall(self._exchange.tracking_id, self._exchange.headers)
        context.in_document = (root, {})
        others: list[Any] = []
        try:
            try:
                protocol = host.app.in_protocol
                protocol.decompose_incoming_envelope(context, protocol.REQUEST)
                context, *others = protocol.generate_method_contexts(context)
                protocol.deserialize(context, protocol.REQUEST)
            except Fault as error:
                context.in_error = context.out_error = error
                context.fire_event("method_exception_object")
            if context.out_error is None:
                await self._invoke(context)
            if not self.answered:
                self._respond(*host.answer(context))
        finally:
            try:
                process_contexts(host, others, context, error=context.out_error)
            finally:
                context.close()

    def _host(self, root: etree._Element) -> _Host | None:
        """The host for the version of a request envelope, None when there is none.

        :raises ProtocolError: it is no envelope, or has no request in it.
        """
        name = etree.QName(root)
        if name.localname != "Envelope":
            raise ProtocolError(f"The message is not a SOAP envelope but {name.localname}.")
        hosts = self._dispatcher.hosts
        for version, host in hosts.items():
            if name.namespace == ENVELOPE[version]:
                self._version = version
                body = root.find(f"{{{name.namespace}}}Body")
                if body is None or len(body) == 0 or body[0].tag == f"{{{name.namespace}}}Fault":
                    raise ProtocolError("The Body of the envelope holds no request.")
                return host
        # SOAP 1.2 part 1, appendix A.
        self._version = "1.1" if name.namespace == ENVELOPE["1.1"] or "1.2" not in hosts else "1.2"
        return None

    async def _invoke(self, context: Any) -> None:
        """Run the method; its outcome is in ``context.out_object`` or ``out_error`` (the latter set for a failure)."""
        one_way = context.descriptor.is_async
        if one_way and self._dispatcher.one_ways >= _ONE_WAY_LIMIT:
            self._respond(*_error(self._exchange, ServerBusyError("Too many one-way calls are running.")))
            return
        if one_way:
            self._respond(*_answer(202, b""))
        self._dispatcher.one_ways += one_way
        try:
            await self._run(context)
        except Fault as error:
            context.out_error = error
            if one_way:
                _log.warn(
                    "The one-way method {method} ended in the fault {code}. TrackingId:{tracking_id}",
                    method=context.method_name,
                    code=error.faultcode,
                    tracking_id=self._exchange.tracking_id,
                )
        except Exception as error:
            if not (self._cancelled and isinstance(error, CancelledError)):
                _log.failure(
                    "The method {method} failed. TrackingId:{tracking_id}",
                    method=context.method_name,
                    tracking_id=self._exchange.tracking_id,
                )
            context.out_error = Fault("Server", self._internal_error())
        finally:
            self._dispatcher.one_ways -= one_way
        if context.out_error is not None:
            context.fire_event("method_exception_object")

    async def _run(self, context: Any) -> None:
        """What spyne's ``Application.process_request`` does, with results that are still to come."""
        context.fire_event("method_call")
        descriptor = context.descriptor
        if descriptor.body_style is BODY_STYLE_BARE:
            context.in_object = [context.in_object]
        elif descriptor.body_style is BODY_STYLE_EMPTY:
            context.in_object = []
        if getattr(context.function, _IN_THREAD, False):
            reactor = self._dispatcher.reactor
            result = await deferToThreadPool(reactor, reactor.getThreadPool(), context.app.call_wrapper, context)
        else:
            result = context.app.call_wrapper(context)
        if inspect.isawaitable(result):
            result = await result
        several = descriptor.body_style is BODY_STYLE_WRAPPED and len(descriptor.out_message._type_info) > 1
        if isinstance(result, Ignored):
            result = () if several else None
        context.out_object = result if several else [result]
        context.protocol = context.outprot_ctx
        context.fire_event("method_return_object")

    def _failed(self, failure: Failure) -> None:
        """Something outside the method broke: an event handler, the serialisation, this module."""
        if self._cancelled and isinstance(failure.value, CancelledError):
            return
        _log.failure(
            "An exchange could not be answered. TrackingId:{tracking_id}",
            failure=failure,
            tracking_id=self._exchange.tracking_id,
        )
        if not self.answered:
            self._respond(*_answer(500, *fault(self._version, sender=False, reason=self._internal_error())))

    def _respond(self, status: int, reason: str, headers: Iterable[tuple[str, str]], body: bytes) -> None:
        self.answered = True
        self._exchange.respond(status, reason, headers, body)

    def _internal_error(self) -> str:
        return str(RelayError("Internal Error", tracking_id=self._exchange.tracking_id))


class _Host(ServerBase):  # type: ignore[misc]
    """An Application in one SOAP version, as spyne's contexts want to see their transport."""

    transport = "http://schemas.xmlsoap.org/soap/http"

    def __init__(self, application: Application, version: SoapVersion) -> None:
        self.version = version
        super().__init__(application)

    def appinit(self) -> None:
        """Services are initialised once, not once a version."""

    def answer(self, context: Any) -> Answer:
        """The answer to a call that has ended, in a result or in a fault."""
        status = 200
        if context.out_error is not None:
            status, context.out_document = self._fault(context)
            context.out_string = None
            context.protocol = context.outprot_ctx
        self.get_out_string(context)
        content_type = f"{CONTENT_TYPE[self.version]}; charset={context.out_protocol.encoding.lower()}"
        return _answer(status, b"".join(context.out_string), content_type)

    def _fault(self, context: Any) -> tuple[int, etree._Element]:
        """HTTP status and envelope of ``context.out_error``.

        spyne's own would have members of a Fault subclass beside the detail instead of in it, an empty actor that is no
        URI, unqualified subcodes, no codes but Client and Server, and a crash for what the schema rejects.
        """
        error, target = context.out_error, self.app.interface.get_tns()
        reason = error.faultstring
        if isinstance(reason, bytes):
            # A schema violation: ASCII with character references.
            reason = html.unescape(reason.decode("ascii"))
        detail = etree.Element("detail", nsmap={"tns": target})
        if isinstance(error.detail, dict):
            dict_to_etree(error.detail, detail)
        elif isinstance(error.detail, etree._Element):
            detail.append(copy.deepcopy(error.detail))
        elif error.detail is not None:
            detail.text = xml_characters(str(error.detail))
        kind = type(error)
        if kind.get_flat_type_info(kind):
            namespace = kind.get_namespace()
            name = f"{{{namespace if isinstance(namespace, str) else target}}}{kind.get_type_name()}"
            context.out_protocol.gen_members_parent(context, kind, error, detail, name, [], add_type=False)
        return fault_envelope(
            self.version, str(error.faultcode), reason, target, error.lang or "en", error.faultactor, detail
        )

    def wsdl(self) -> bytes:
        """The WSDL with ``_ADDRESS`` for an address."""
        document = self.app.interface.docs.wsdl11
        document.build_interface_document(_ADDRESS)
        root: Any = etree.fromstring(document.get_interface_document())
        target = root.get("targetNamespace")
        messages = {each.get("name") for each in root.iterfind(f"{{{_WSDL}}}message")}
        for node in list(root.iterfind(".//*[@message]")):
            prefix, _, name = node.attrib["message"].rpartition(":")
            parent = node.getparent()
            if name in messages:
                # All messages are in the target namespace; spyne writes that of the header or fault in it.
                if node.nsmap.get(prefix or None) != target:
                    node.set("message", f"tns:{name}")
            elif parent is not None:
                # The WS-Addressing headers of one-way operations: declared nowhere, and nobody sends them.
                parent.remove(node)
        return etree.tostring(root, xml_declaration=True, encoding="utf-8")


def _hosts(applications: Iterable[Application]) -> dict[SoapVersion, _Host]:
    """The hosts by version, that of the first application first."""
    hosts: dict[SoapVersion, _Host] = {}
    for application in applications:
        version = _version(application)
        if version in hosts:
            raise ConfigError(f"Two applications of one relay speak SOAP {version}; give one for each version.")
        hosts[version] = _Host(application, version)
        application.reinitialize(hosts[version])
    if not hosts:
        raise ConfigError("A spyne dispatcher needs an Application.")
    for version in ENVELOPE:
        if version not in hosts:
            (given,) = hosts.values()
            if {type(given.app.in_protocol), type(given.app.out_protocol)} == {_PROTOCOLS[given.version]}:
                hosts[version] = _Host(_sibling(given.app, version), version)
    return hosts


def _version(application: Application) -> SoapVersion:
    for version, kind in _PROTOCOLS.items():
        other = Soap12 if kind is Soap11 else ()  # which inherits from Soap11
        protocols = (application.in_protocol, application.out_protocol)
        if all(isinstance(each, kind) and not isinstance(each, other) for each in protocols):
            return version
    raise ConfigError(
        f"The application {application.name!r} must have Soap11 as in_protocol and out_protocol, or Soap12 as both."
    )


def _sibling(application: Application, version: SoapVersion) -> Application:
    """The same application in another SOAP version.

    A copy rather than a new one: what the application or a subclass of it adds (event handlers that authenticate,
    above all) holds for both versions.
    """
    sibling = copy.copy(application)
    sibling.in_protocol = _protocol(application.in_protocol, version)
    sibling.out_protocol = _protocol(application.out_protocol, version)
    sibling.interface = Interface(sibling, documents_container=type(application.interface.docs))
    for protocol, message in (
        (sibling.in_protocol, sibling.in_protocol.REQUEST),
        (sibling.out_protocol, sibling.out_protocol.RESPONSE),
    ):
        protocol.set_app(sibling)
        protocol.message = message
    return sibling


def _protocol(model: Any, version: SoapVersion) -> Any:
    protocol = _PROTOCOLS[version](
        validator=model.validator,
        replace_null_with_default=model.replace_null_with_default,
        xml_declaration=model.xml_declaration,
        cleanup_namespaces=model.cleanup_namespaces,
        encoding=model.encoding,
        pretty_print=model.pretty_print,
        binary_encoding=model.binary_encoding,
        parse_xsi_type=model.parse_xsi_type,
        polymorphic=model.polymorphic,
    )
    protocol.event_manager = model.event_manager
    return protocol


def _answer(status: int, body: bytes, content_type: str = "") -> Answer:
    return status, HTTPStatus(status).phrase, [("Content-Type", content_type)] if content_type else [], body


def _plain(status: int, text: str) -> Answer:
    return _answer(status, f"{text}\n".encode(), "text/plain; charset=utf-8")


def _error(exchange: Exchange, error: RelayError) -> Answer:
    error.tracking_id = exchange.tracking_id
    # Whatever comes as text/xml is SOAP here, with or without that field.
    return error_answer(error, [*exchange.headers, ("SOAPAction", "")])


def _stopped() -> RelayError:
    return ServiceUnreachableError("The service has been stopped.")


def _too_large(limit: int) -> RelayError:
    return PayloadTooLargeError(f"The message is larger than the {limit} bytes that this service accepts.")
