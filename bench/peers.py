"""What is compared: a backend on nginx, nginx as reverse proxy in front of it, and the relay."""

from __future__ import annotations

import http.client
import os
import pwd
import shutil
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from bench.lab import BenchError, Child, Lab, free_port
from wcfrelay.address import ConnectionString
from wcfrelay.net.tls import ServerTls
from wcfrelay.sas import TokenProvider

__all__ = [
    "ANSWER",
    "CALL",
    "Gateway",
    "Target",
    "backend",
    "expose",
    "front",
    "gateway",
    "nginx",
    "proxy",
    "warm",
]

_ENVELOPE = (
    '<?xml version="1.0" encoding="utf-8"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>'
    '<b:{name} xmlns:b="urn:bench"><b:text>{text}</b:text></b:{name}></s:Body></s:Envelope>'
)
_SIZE = 1024
_WARM = 200


def _envelope(name: str) -> bytes:
    return _ENVELOPE.format(name=name, text="x" * (_SIZE - len(_ENVELOPE.format(name=name, text="")))).encode()


CALL = _envelope("Call")
ANSWER = _envelope("Answer")
"""SOAP envelopes of 1 KiB: what is sent, and what comes back."""


@dataclass(frozen=True, slots=True)
class Target:
    """Something that is measured. ``url`` takes the calls; ``processes`` are those whose CPU time counts."""

    name: str
    url: str
    processes: Sequence[Child]
    token: str = ""

    def cpu_seconds(self) -> float:
        return sum(process.cpu_seconds() for process in self.processes)


def nginx() -> str | None:
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


def _nginx(lab: Lab, name: str, http: str, port: int) -> Child:
    program = nginx()
    if program is None:
        raise BenchError("nginx is not installed.")
    name = f"{name.replace(' ', '-')}-{port}"
    folder = lab.folder / name
    folder.mkdir()
    paths = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    # As root its worker would become somebody who may not enter our folder.
    user = f"user {pwd.getpwuid(0).pw_name};\n" if os.geteuid() == 0 else ""
    config = folder / "nginx.conf"
    config.write_text(
        f"{user}daemon off;\nworker_processes 1;\npid {folder}/pid;\nerror_log {folder}/error.log;\n"
        f"events {{ worker_connections 4096; }}\n"
        f"http {{\n{paths}keepalive_timeout 600s;\nkeepalive_requests 1000000000;\nclient_max_body_size 0;\n{http}}}\n"
    )
    child = lab.start(name, [program, "-p", str(folder), "-c", str(config)])
    child.wait_until((folder / "pid").exists)  # written when its ports are open
    return child


def _listen(port: int, certificate: ServerTls | None) -> tuple[str, str]:
    """The scheme of a server, and its lines in the configuration."""
    if certificate is None:
        return "http", f"listen 127.0.0.1:{port} backlog=4096;\n"
    files = f"ssl_certificate {certificate.certificate};\nssl_certificate_key {certificate.key};\n"
    return "https", f"listen 127.0.0.1:{port} ssl backlog=4096;\n{files}"


def backend(lab: Lab, locations: str = "", certificate: ServerTls | None = None) -> Target:
    """nginx that answers calls by itself; ``locations`` are more of its configuration."""
    port = free_port()
    scheme, listen = _listen(port, certificate)
    answer = ANSWER.decode()
    child = _nginx(
        lab,
        "backend",
        f"access_log off;\nserver {{ {listen}{locations}"
        f"location / {{ default_type 'text/xml; charset=utf-8'; return 200 '{answer}'; }}\n}}\n",
        port,
    )
    return Target("direct", f"{scheme}://127.0.0.1:{port}/", (child,))


def proxy(
    lab: Lab, to: Target, name: str = "nginx proxy", *, certificate: ServerTls | None = None, uploads: bool = False
) -> Target:
    """nginx as a plain reverse proxy, one worker, access log on, buffers as they are by default; over HTTPS with
    ``certificate``. With ``uploads`` it streams request bodies, as the relay does; by default it would write a large
    one to a file first. (Small calls must not be streamed: when the backend answers before it has seen the body, nginx
    then closes the sender's connection.)"""
    port = free_port()
    scheme, listen = _listen(port, certificate)
    child = _nginx(
        lab,
        name,
        f"access_log {lab.folder}/access-{port}.log;\nupstream service {{\n"
        f"server {urlsplit(to.url).netloc}; keepalive 256; keepalive_requests 1000000000; }}\n"
        f"server {{ {listen}location / {{ proxy_pass http://service;\n"
        'proxy_http_version 1.1; proxy_set_header Connection "";\n'
        f"proxy_request_buffering {'off' if uploads else 'on'}; }}\n}}\n",
        port,
    )
    return Target(name, f"{scheme}://127.0.0.1:{port}/", (child,))


@dataclass
class Gateway:
    """``wcfrelay serve``, its access log in a file."""

    child: Child
    state: Path
    http_port: int
    https_port: int
    admin_port: int

    @property
    def ca_file(self) -> Path:
        return self.state / "tls" / "ca.pem"

    @property
    def certificate(self) -> ServerTls:
        return ServerTls(self.state / "tls" / "server.pem", self.state / "tls" / "server-key.pem")

    def connection_string(self, tls: bool = False) -> str:
        """With every right."""
        kept = (self.state / "connection-string").read_text().strip().split(";", 1)[1]
        endpoint = f"sb://localhost:{self.https_port}/" if tls else f"http://127.0.0.1:{self.http_port}/"
        return f"Endpoint={endpoint};{kept}"

    def token(self, path: str) -> str:
        return TokenProvider(ConnectionString.parse(self.connection_string()), time.time).token(path)


def gateway(lab: Lab, config: str = "", name: str = "gateway", again: Gateway | None = None) -> Gateway:
    """A gateway that is ready. ``config`` is TOML for it. ``again`` is one that was stopped: same configuration, same
    state, same ports."""
    file, state = lab.folder / f"{name}.toml", lab.folder / f"{name}-state"
    ports = (0, 0, 0)
    if again is None:
        file.write_text(config)
    else:
        ports = again.http_port, again.https_port, again.admin_port
    options = [f"--{kind}-port={port}" for kind, port in zip(("http", "https", "admin"), ports, strict=True)]
    child = lab.start_python(
        name, "wcfrelay", "serve", f"--config={file}", f"--state={state}", "--bind=127.0.0.1", *options
    )
    child.wait_for("^ready$")
    http, https, admin = (
        int(child.wait_for(rf"^listening: {kind}://.*:(\d+)/$", 1.0)[1]) for kind in ("http", "https", "admin http")
    )
    return Gateway(child, state, http, https, admin)


def expose(lab: Lab, at: Gateway, to: Target, path: str = "bench", tls: bool = False) -> Target:
    """A listener at ``path`` that forwards to a service; ``tls`` is for its control channel. The calls come in
    plain."""
    child = lab.start_python(
        f"expose-{path}",
        "wcfrelay",
        "expose",
        to.url,
        f"--relay={path}",
        *([f"--ca-file={at.ca_file}"] if tls else []),
        env={"WCFRELAY_CONNECTION_STRING": at.connection_string(tls)},
    )
    child.wait_for("^Online: ")
    name = "relay, TLS control" if tls else "relay"
    return Target(name, f"http://127.0.0.1:{at.http_port}/{path}/", (at.child, child), at.token(path))


def front(lab: Lab, certificate: ServerTls, name: str) -> Target:
    """The HTTP front of the gateway without a relay behind it, over HTTPS."""
    child = lab.start_python("front", "bench.front", str(certificate.certificate), str(certificate.key))
    port = int(child.wait_for(r"^port (\d+)$")[1])
    return Target(name, f"https://127.0.0.1:{port}/", (child,))


def warm(target: Target) -> None:
    """Make some calls, so that what a process does once is done, and look at their answers.

    :raises BenchError: one is not the backend's.
    """
    url = urlsplit(target.url)
    connection: http.client.HTTPConnection
    if url.scheme == "https":
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # loopback, as wrk does
        connection = http.client.HTTPSConnection(url.netloc, timeout=10.0, context=context)
    else:
        connection = http.client.HTTPConnection(url.netloc, timeout=10.0)
    headers = {"Content-Type": "text/xml; charset=utf-8"}
    if target.token:
        headers["ServiceBusAuthorization"] = target.token
    try:
        for _ in range(_WARM):
            connection.request("POST", url.path, CALL, headers)
            response = connection.getresponse()
            if response.read() != ANSWER or response.status != 200:
                raise BenchError(f"{target.name} answered {response.status} {response.reason}, unlike the backend.")
    except (OSError, http.client.HTTPException) as error:
        raise BenchError(f"{target.name} cannot be called: {error!r}") from error
    finally:
        connection.close()
