"""The commands as a shell sees them: output, errors that say what to do, exit codes."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.system.processes import free_port, running
from wcfrelay.cli import main
from wcfrelay.cli.sockets import sockets
from wcfrelay.sas import parse_token
from wcfrelay.testing import Gateway, relay

SAMPLES = Path(__file__).parents[2] / "samples"
_SOMEWHERE = "Endpoint=sb://gateway.example/;SharedAccessKeyName=rule;SharedAccessKey=secret-key"


def _run(*arguments: str, connection: str | None = None, **environment: str) -> Result:
    """A command in an environment of its own; what the tester has in his is not for it."""
    env: dict[str, str | None] = {"WCFRELAY_CONNECTION_STRING": connection, "WCFRELAY_CA_FILE": None, **environment}
    return CliRunner().invoke(main, list(arguments), env=env, prog_name="wcfrelay")


def test_help_has_a_line_for_each_command() -> None:
    result = _run("--help")
    assert result.exit_code == 0
    commands = result.stdout.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in commands] == ["call", "demo", "expose", "host", "serve", "token"]
    assert not [line for line in commands if line.endswith("...")]


@pytest.mark.parametrize("command", ["call", "demo", "expose", "host", "serve", "token"])
def test_each_command_explains_itself(command: str) -> None:
    result = _run(command, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: wcfrelay {command}")


def test_an_unknown_command_is_wrong_usage() -> None:
    assert _run("lisen").exit_code == 2


def test_a_module_is_run_as_the_command_line() -> None:
    with running([sys.executable, "-m", "wcfrelay", "--version"]) as process:
        assert process.wait_for("wcfrelay ")


# -- connection strings


@pytest.mark.parametrize(
    "arguments",
    [("call", "orders"), ("token", "orders"), ("expose", "http://127.0.0.1:1/", "--relay", "orders")],
)
def test_a_missing_connection_string_is_asked_for(arguments: tuple[str, ...]) -> None:
    result = _run(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("wcfrelay: There is no connection string")
    assert "WCFRELAY_CONNECTION_STRING" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("arguments", [("call", "orders"), ("token", "orders"), ("host", "a:b", "--relay", "orders")])
def test_a_wrong_connection_string_is_not_shown(arguments: tuple[str, ...]) -> None:
    result = _run(*arguments, connection="Endpoint=ftp://x/;SharedAccessKeyName=rule;SharedAccessKey=secret-key")
    assert result.exit_code == 2
    assert "Endpoint" in result.stderr
    assert "secret-key" not in result.output


def test_the_file_wins_over_the_option_and_that_over_the_environment(tmp_path: Path) -> None:
    def host(*options: str) -> str:
        result = _run("token", "orders", *options, connection=_SOMEWHERE)
        assert result.exit_code == 0
        return parse_token(result.stdout.strip()).host

    file = tmp_path / "connection-string"
    file.write_text(_SOMEWHERE.replace("gateway", "file") + "\n", "utf-8")
    option = ("--connection-string", _SOMEWHERE.replace("gateway", "option"))
    assert host() == "gateway.example"
    assert host(*option) == "option.example"
    assert host(*option, "--connection-string-file", str(file)) == "file.example"
    missing = _run("token", "orders", "--connection-string-file", str(tmp_path / "missing"))
    assert missing.exit_code == 2
    assert "cannot read the connection string" in missing.stderr


# -- token


def test_a_token_is_for_a_path_and_a_time() -> None:
    begun = time.time()
    token = parse_token(_run("token", "Orders/New", "--minutes", "5", connection=_SOMEWHERE).stdout.strip())
    assert (token.host, token.segments, token.key_names) == ("gateway.example", ("orders", "new"), ("rule",))
    assert begun + 299 <= token.expiry <= time.time() + 300


def test_a_token_without_a_path_is_for_the_entity_or_for_everything() -> None:
    entity = parse_token(_run("token", connection=f"{_SOMEWHERE};EntityPath=orders").stdout.strip())
    everything = parse_token(_run("token", connection=_SOMEWHERE).stdout.strip())
    assert (entity.segments, everything.segments) == (("orders",), ())


@pytest.mark.parametrize("arguments", [("a//b",), ("orders", "--minutes", "0")])
def test_a_token_for_nothing_is_refused(arguments: tuple[str, ...]) -> None:
    result = _run("token", *arguments, connection=_SOMEWHERE)
    assert (result.exit_code, result.stdout) == (2, "")


# -- listeners that cannot start


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (("expose", "127.0.0.1:8000", "--relay", "orders"), 2, "write http:// or https://"),
        (("expose", "http://127.0.0.1:8000/", "--relay", "a//b"), 2, "empty segment"),
        (("host", "calculator", "--relay", "calculator"), 2, "module:attribute"),
        (("host", "no_such_module:application", "--relay", "calculator"), 2, "no_such_module"),
    ],
)
@pytest.mark.system
def test_a_listener_that_cannot_be_says_why(arguments: tuple[str, ...], code: int, reason: str) -> None:
    with running(
        [sys.executable, "-m", "wcfrelay", *arguments], env={"WCFRELAY_CONNECTION_STRING": _SOMEWHERE}
    ) as process:
        assert process.process.wait(20) == code
    (line,) = (line for line in process.log if line.startswith("wcfrelay: "))
    assert reason in line
    assert not [line for line in process.log if line.startswith("Traceback")]


# -- serve


def test_the_configuration_is_printed(tmp_path: Path) -> None:
    result = _run("serve", "--http-port", "1234", "--state", str(tmp_path / "state"), "--print-config")
    assert result.exit_code == 0
    assert "port = 1234" in result.stdout
    assert not (tmp_path / "state").exists()


def test_a_wrong_configuration_is_named(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text("[gateway.http]\nprot = 1\n", "utf-8")
    result = _run("serve", "--config", str(file))
    assert result.exit_code == 2
    assert 'gateway.http.prot: unknown key; did you mean "port"?' in result.stderr


@pytest.mark.system
def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        options = ["--http-port", port, "--https-port", "0", "--admin-port", "0", "--bind", "127.0.0.1"]
        command = [sys.executable, "-m", "wcfrelay", "serve", *options, "--state", str(tmp_path)]
        with running(command) as process:
            assert process.process.wait(20) == 1
    assert port in "\n".join(process.log)
    assert "Traceback" not in "\n".join(process.log)


# -- call


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    """A gateway with a rule that may only listen, and the two sample services behind it."""
    rules = (
        '[[rules]]\nname = "all"\nrights = ["Listen", "Send", "Manage"]\nprimary_key = "key-of-all"\n'
        '[[rules]]\nname = "listeners"\nrights = ["Listen"]\nprimary_key = "key-of-listeners"\n'
    )
    with relay(f'{rules}[[relays]]\npath = "warehouse"\n') as gateway:
        yield gateway


def _connection(gateway: Gateway, rule: str = "all", key: str = "key-of-all") -> str:
    return f"Endpoint={gateway.http_url}/;SharedAccessKeyName={rule};SharedAccessKey={key}"


@pytest.fixture(scope="module")
def services(gateway: Gateway) -> Iterator[None]:
    env = {"WCFRELAY_CONNECTION_STRING": _connection(gateway), "PYTHONPATH": str(SAMPLES / "host_spyne")}
    wcfrelay = [sys.executable, "-m", "wcfrelay"]
    with running([sys.executable, SAMPLES / "expose_existing" / "service.py", "0"]) as service:
        expose = [*wcfrelay, "expose", service.wait_for("http://"), "--relay", "orders"]
        host = [*wcfrelay, "host", "calculator:application", "--relay", "calculator"]
        with running(expose, env=env) as exposed, running(host, env=env) as hosted:
            exposed.wait_for("Online:")
            hosted.wait_for("Online:")
            yield


@pytest.mark.system
@pytest.mark.usefixtures("services")
class TestCall:
    @pytest.mark.parametrize("arguments", [(), ("--list",), ("Add", "--list")])
    def test_the_operations_are_listed(self, gateway: Gateway, arguments: tuple[str, ...]) -> None:
        result = _run("call", "calculator", *arguments, connection=_connection(gateway))
        assert result.exit_code == 0, result.output
        assert result.stdout.splitlines() == [
            "Add(a: xsd:double, b: xsd:double) -> AddResult: xsd:double",
            "AddLater(a: xsd:double, b: xsd:double) -> AddLaterResult: xsd:double",
            "Divide(a: xsd:double, b: xsd:double) -> DivideResult: xsd:double",
            "SlowSquare(n: xsd:int) -> SlowSquareResult: xsd:int",
        ]

    @pytest.mark.parametrize(
        ("arguments", "output"),
        [
            (("calculator", "Add", "a=1.5", "b=2.25"), "3.75\n"),
            (("calculator", "Add", "a=1.5", "b=2.25", "--json"), "3.75\n"),
            (("calculator", "AddLater", "b=1", "a=-1"), "0.0\n"),
            (("calculator", "SlowSquare", "n=-12"), "144\n"),
            (("Orders", "Place", "item=bolt", "count=12"), "4.20\n"),
            (("orders", "Place", "item=bolt", "count=12", "--json"), '"4.20"\n'),
        ],
    )
    def test_a_result_is_printed(self, gateway: Gateway, arguments: tuple[str, ...], output: str) -> None:
        result = _run("call", *arguments, connection=_connection(gateway))
        assert (result.exit_code, result.output) == (0, output)

    def test_a_fault_is_shown_with_its_code(self, gateway: Gateway) -> None:
        result = _run("call", "calculator", "Divide", "a=1", "b=0", connection=_connection(gateway))
        assert result.exit_code == 5
        assert result.stdout == ""
        assert result.stderr.splitlines() == [
            "wcfrelay: the service answered with a fault",
            "  code:   soap11env:Client.DivideByZero",
            "  text:   The divisor is zero.",
        ]

    def test_a_wrong_operation_is_answered_with_the_nearest(self, gateway: Gateway) -> None:
        result = _run("call", "calculator", "divde", connection=_connection(gateway))
        assert result.exit_code == 2
        assert result.stderr == "wcfrelay: calculator has no operation 'divde'; did you mean Divide?\n"

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            (("itm=bolt",), "Place has no argument 'itm'; did you mean item?"),
            (("item=bolt", "count=some"), "count takes int, which 'some' is not"),
            (("item=bolt",), "Missing element count"),
            (("bolt",), "'bolt' is not name=value"),
        ],
    )
    def test_wrong_arguments_are_answered_with_the_signature(
        self, gateway: Gateway, arguments: tuple[str, ...], reason: str
    ) -> None:
        result = _run("call", "orders", "Place", *arguments, connection=_connection(gateway))
        assert result.exit_code == 2
        first, signature = result.stderr.splitlines()
        assert first.startswith(f"wcfrelay: {reason}")
        assert signature == "  Place(item: xsd:string, count: xsd:int) -> total: xsd:decimal"

    def test_another_wsdl(self, gateway: Gateway, tmp_path: Path) -> None:
        connection = _connection(gateway)
        with running([sys.executable, SAMPLES / "expose_existing" / "service.py", "0"]) as service:
            url = f"{service.wait_for('http://')}?wsdl"
            result = _run("call", "orders", "Place", "item=nut", "count=1", "--wsdl", url, connection=connection)
        assert (result.exit_code, result.output) == (0, "0.12\n")

    def test_what_is_no_wsdl_is_named(self, gateway: Gateway) -> None:
        result = _run("call", "calculator", "--wsdl", "?nothing", connection=_connection(gateway))
        assert result.exit_code == 1
        assert result.stderr.startswith("wcfrelay: zeep cannot use ?nothing")
        assert len(result.stderr.splitlines()) == 1

    @pytest.mark.parametrize(
        ("path", "rule", "key", "code", "reason"),
        [
            ("warehouse", "all", "key-of-all", 4, "There are no listeners connected for the endpoint."),
            ("nowhere", "all", "key-of-all", 3, "Endpoint does not exist."),
            ("calculator", "all", "wrong", 3, "InvalidSignature"),
            ("calculator", "listeners", "key-of-listeners", 3, "Use a rule that has the right Send."),
            ("a//b", "all", "key-of-all", 2, "empty segment"),
        ],
    )
    def test_what_the_relay_refuses_is_one_line(
        self, gateway: Gateway, path: str, rule: str, key: str, code: int, reason: str
    ) -> None:
        result = _run("call", path, connection=_connection(gateway, rule, key))
        assert result.exit_code == code, result.output
        assert reason in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert "key-of" not in result.stderr


@pytest.mark.system
def test_a_gateway_that_is_not_there() -> None:
    result = _run("call", "orders", connection=f"Endpoint=http://127.0.0.1:{free_port()}/")
    assert result.exit_code == 4
    assert "could not be reached" in result.stderr


# -- sockets of a process


@pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="the system has no /proc")
def test_the_sockets_of_a_process_are_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as connection:
            found = sockets(os.getpid())
            assert found is not None
            assert port in found.listening
            assert (connection.getsockname()[1], port) in found.connected
            assert port in found.dialled()
    after = sockets(os.getpid())
    assert after is not None and port not in after.listening


def test_no_sockets_of_a_process_that_is_not_there() -> None:
    assert sockets(2**31 - 1) is None
