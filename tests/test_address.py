"""Connection strings and paths."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wcfrelay.address import ConnectionString, path_segments, quote_path, relay_path, strip_segments
from wcfrelay.errors import BadRequestError, ConfigError

KEY = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
SIGNATURE = "SharedAccessSignature sr=http%3a%2f%2fns%2f&sig=c2VjcmV0%3d&se=1&skn=r"


class TestConnectionString:
    def test_of_the_portal(self) -> None:
        connection = ConnectionString.parse(
            f"Endpoint=sb://Fabrikam.servicebus.windows.net/;SharedAccessKeyName=send;SharedAccessKey={KEY};EntityPath=Orders"
        )
        assert connection == ConnectionString(
            scheme="sb",
            host="fabrikam.servicebus.windows.net",
            shared_access_key_name="send",
            shared_access_key=KEY,
            entity_path="Orders",
        )
        assert connection.tls
        assert connection.port_number == 443
        assert connection.authority == "fabrikam.servicebus.windows.net"
        assert connection.operation_timeout == 60

    def test_any_order_case_and_white_space(self) -> None:
        text = f" entitypath = /a/b/ ; SHAREDACCESSKEY={KEY};;endpoint=SB://h:9443;sharedaccesskeyname=n;"
        connection = ConnectionString.parse(text)
        assert (connection.host, connection.port, connection.entity_path) == ("h", 9443, "a/b")
        assert (connection.shared_access_key_name, connection.shared_access_key) == ("n", KEY)

    def test_signature_keeps_its_equals_signs(self) -> None:
        connection = ConnectionString.parse(f"Endpoint=sb://h/;SharedAccessSignature={SIGNATURE}")
        assert connection.shared_access_signature == SIGNATURE

    def test_what_only_microsofts_libraries_know_is_ignored(self) -> None:
        connection = ConnectionString.parse(
            "Endpoint=sb://a.example.net/,sb://b.example.net/;StsEndpoint=https://a.example.net:9355/ns;"
            "RuntimePort=9354;ManagementPort=9355;OperationTimeout=00:00:30;TransportType=Amqp;"
            "Authentication=Managed Identity;Publisher=p"
        )
        assert connection == ConnectionString(scheme="sb", host="a.example.net", operation_timeout=30)

    def test_strings_that_the_libraries_printed(self, shared: Path) -> None:
        for file in sorted((shared / "vectors/relay-captures/groundtruth").glob("*/csb.txt")):
            text = file.read_text("utf-8")
            for line in text.splitlines():
                if line.strip().startswith(("IN ", "OUT ")):
                    ConnectionString.parse(line.strip().partition(" ")[2])

    @pytest.mark.parametrize(
        ("endpoint", "tls", "port", "authority", "http", "hybrid"),
        [
            ("sb://h", True, 443, "h", "https://h/p", "wss://h/$hc/p?q=1"),
            ("https://h:443/", True, 443, "h", "https://h/p", "wss://h/$hc/p?q=1"),
            ("wss://h:8443", True, 8443, "h:8443", "https://h:8443/p", "wss://h:8443/$hc/p?q=1"),
            ("http://h", False, 80, "h", "http://h/p", "ws://h/$hc/p?q=1"),
            (
                "ws://127.0.0.1:443",
                False,
                443,
                "127.0.0.1:443",
                "http://127.0.0.1:443/p",
                "ws://127.0.0.1:443/$hc/p?q=1",
            ),
            ("sb://[::1]:8080/", True, 8080, "[::1]:8080", "https://[::1]:8080/p", "wss://[::1]:8080/$hc/p?q=1"),
            ("ws://[FE80::1]", False, 80, "[fe80::1]", "http://[fe80::1]/p", "ws://[fe80::1]/$hc/p?q=1"),
        ],
    )
    def test_addresses(self, endpoint: str, tls: bool, port: int, authority: str, http: str, hybrid: str) -> None:
        connection = ConnectionString.parse(f"Endpoint={endpoint}")
        assert (connection.tls, connection.port_number, connection.authority) == (tls, port, authority)
        assert connection.http_url("p") == connection.http_url("/p") == http
        assert connection.hybrid_url("p", "q=1") == connection.hybrid_url("/p", "q=1") == hybrid
        assert connection.hybrid_url("p", "") == hybrid.removesuffix("?q=1")
        assert ConnectionString.parse(connection.format()) == connection

    def test_paths_are_encoded_once(self) -> None:
        connection = ConnectionString.parse("Endpoint=sb://h")
        assert connection.http_url("a b/ü/c%20d?x#y") == "https://h/a%20b/%C3%BC/c%20d%3Fx%23y"

    def test_with_entity(self) -> None:
        connection = ConnectionString.parse("Endpoint=sb://h;EntityPath=a")
        assert connection.with_entity("/B/c/").entity_path == "B/c"
        assert connection.entity_path == "a"
        for path in ("", "a//b", "a;SharedAccessKey=b"):
            with pytest.raises(ConfigError, match="EntityPath"):
                connection.with_entity(path)

    @pytest.mark.parametrize(
        ("text", "seconds"),
        [("00:01:00", 60), ("1:2:3", 3723), ("00:30", 1800), ("1.00:00:00", 86400), ("00:00:00.25", 0.25)],
    )
    def test_operation_timeout(self, text: str, seconds: float) -> None:
        connection = ConnectionString.parse(f"Endpoint=sb://h;OperationTimeout={text}")
        assert connection.operation_timeout == seconds
        assert ConnectionString.parse(connection.format()) == connection

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("", "has no Endpoint; add Endpoint=sb://<host>/"),
            (f"SharedAccessKeyName=n;SharedAccessKey={KEY}", "has no Endpoint"),
            ("Endpoint=", "has no Endpoint"),
            (f"{KEY}", "has no Endpoint|unknown key in part 1"),
            (f"Endpoint=sb://h;{KEY.rstrip('=')}", "Part 2 of the connection string is not Key=Value"),
            (f"Endpoint=sb://h;EntityPth=a;SharedAccessKey={KEY}", "unknown key EntityPth; known are Endpoint, "),
            (f"Endpoint=sb://h;SharedAccessKeyName=n;SharedAccessKey=;{KEY}", "unknown key in part 4"),
            (
                f"Endpoint=sb://h;SharedAccessKeyName=n;SharedAccessKey={KEY};sharedaccesskey={KEY}",
                "SharedAccessKey twice",
            ),
            (f"Endpoint=sb://h;SharedAccessKey={KEY}", "no SharedAccessKeyName; add SharedAccessKeyName="),
            ("Endpoint=sb://h;SharedAccessKeyName=n", "no SharedAccessKey; add SharedAccessKey="),
            (f"Endpoint=sb://h;SharedAccessKey={KEY};SharedAccessSignature={SIGNATURE}", "keep one"),
            (f"Endpoint=sb://h;SharedAccessKeyName=n;SharedAccessKey={KEY * 6}", "limited to 256 characters"),
            (f"Endpoint=sb://h/SharedAccessKey={KEY}", "Endpoint of the connection string must be sb://"),
            (f"Endpoint=sb://h:{KEY}", "must be sb://"),
            ("Endpoint=sb://h/orders", "a path belongs into EntityPath"),
            ("Endpoint=h", "must be sb://"),
            ("Endpoint=ftp://h", "must be sb://"),
            ("Endpoint=sb://h:0", "must be sb://"),
            ("Endpoint=sb://h:65536", "must be sb://"),
            ("Endpoint=sb://u:p@h", "must be sb://"),
            ("Endpoint=sb://[::1", "must be sb://"),
            ("Endpoint=sb://[1:2]", "must be sb://"),
            ("Endpoint=sb://h?x", "must be sb://"),
            ("Endpoint=sb://h;EntityPath=a//b", "EntityPath of the connection string cannot be used: .*single slashes"),
            ("Endpoint=sb://h;EntityPath=$hc/b", "EntityPath of the connection string cannot be used"),
            ("Endpoint=sb://h;OperationTimeout=60", "hh:mm:ss, for instance 00:01:00"),
            ("Endpoint=sb://h;OperationTimeout=00:00:00", "above zero"),
            ("Endpoint=sb://h;OperationTimeout=24:00:00", "hh:mm:ss"),
            ("Endpoint=sb://h;OperationTimeout=-00:01:00", "hh:mm:ss"),
            ("Endpoint=sb://h;" + "x" * 20_000, "longer than 16384 characters"),
        ],
    )
    def test_refused_with_advice_and_without_secrets(self, text: str, says: str) -> None:
        with pytest.raises(ConfigError, match=says) as caught:
            ConnectionString.parse(text)
        assert KEY.rstrip("=") not in str(caught.value)
        assert "c2VjcmV0" not in str(caught.value)
        assert caught.value.__cause__ is None

    def test_repr_hides_secrets(self) -> None:
        for secret in (f"SharedAccessKeyName=n;SharedAccessKey={KEY}", f"SharedAccessSignature={SIGNATURE}"):
            connection = ConnectionString.parse(f"Endpoint=sb://h;{secret}")
            assert KEY not in repr(connection)
            assert "c2VjcmV0" not in repr(connection)

    @settings(deadline=None)
    @given(
        scheme=st.sampled_from(["sb", "https", "wss", "http", "ws"]),
        host=st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,20}[a-z0-9])?", fullmatch=True) | st.ip_addresses(v=6).map(str),
        port=st.none() | st.integers(1, 65535),
        name=st.text(st.characters(exclude_characters=";", codec="utf-8"), min_size=1, max_size=20).map(str.strip),
        key=st.text(st.characters(exclude_characters=";", codec="utf-8"), min_size=1, max_size=50).map(str.strip),
        entity=st.just("") | st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._ü-]{0,9}(/[A-Za-z]{1,9}){0,3}", fullmatch=True),
        ticks=st.integers(1, 999 * 86_400 * 10_000_000),
    )
    def test_format_round_trips(
        self, scheme: str, host: str, port: int | None, name: str, key: str, entity: str, ticks: int
    ) -> None:
        if not (name and key):
            name = key = ""
        connection = ConnectionString(scheme, host, port, name, key, "", entity, ticks / 10_000_000)
        assert ConnectionString.parse(connection.format()) == connection

    @settings(deadline=None)
    @given(st.text() | st.text("Endpoint=sb://h;:[]%/SharedAccessKey.,\n"))
    def test_any_text_gives_a_connection_or_a_config_error(self, text: str) -> None:
        for candidate in (text, f"Endpoint={text}", f"Endpoint=sb://h;EntityPath={text}"):
            with contextlib.suppress(ConfigError):
                ConnectionString.parse(candidate)


class TestPathSegments:
    @pytest.mark.parametrize(
        ("target", "segments"),
        [
            ("/", ()),
            ("/?x=/a/..", ()),
            ("/orders", ("orders",)),
            ("/Orders/", ("orders",)),
            ("/orders/New/1?x=%zz\\#", ("orders", "new", "1")),
            ("//", ("",)),
            ("//a", ("", "a")),
            ("/a//b", ("a", "", "b")),
            ("/a//", ("a", "")),
            ("/a%20b/C%C3%9C", ("a b", "cü")),
            ("/%6F%72ders", ("orders",)),
            ("/.well-known/a.b/...", (".well-known", "a.b", "...")),
            ("/a/.b?c", ("a", ".b")),
            ("/a%3fb%23", ("a?b#",)),
            ("/a%252fb/%252e%252e", ("a%2fb", "%2e%2e")),
            ("/a;b=1/(x)!*'~$hc", ("a;b=1", "(x)!*'~$hc")),
            ("/\u00c3\u00bc", ("ü",)),
        ],
    )
    def test_matching_form(self, target: str, segments: tuple[str, ...]) -> None:
        assert path_segments(target) == segments

    @pytest.mark.parametrize(
        "target",
        [
            "",
            "*",
            "orders",
            "http://h/orders",
            "?x",
            "/.",
            "/..",
            "/a/..",
            "/a/../b",
            "/a/./b/",
            "/%2e",
            "/a/%2E%2e/b",
            "/a/.%2e",
            "/a\\b",
            "/a%5cb",
            "/a%5Cb",
            "/a%2fb",
            "/a%2Fb",
            "/a%00",
            "/a\x00",
            "/a%0d%0aX",
            "/a\tb",
            "/a\x7f",
            "/a%7F",
            "/a%C2%85",
            "/a%",
            "/a%2",
            "/a%zz",
            "/a%u0041",
            "/a#b",
            "/%ff",
            "/%c0%ae%c0%ae/",
            "/%ed%a0%80",
            "/\xff",
            "/\u20ac",
        ],
    )
    def test_refused(self, target: str) -> None:
        with pytest.raises(BadRequestError):
            path_segments(target)

    @settings(deadline=None)
    @given(st.text() | st.text("/.%25eEfFcC\\aAüÜ? "))
    def test_fast_and_careful_way_agree(self, text: str) -> None:
        """A target and the same with every octet escaped mean the same, or both are refused."""
        target = "/" + text.encode("utf-8", "surrogatepass").decode("latin-1").partition("?")[0]
        try:
            segments = path_segments(target)
        except BadRequestError:
            return
        if "%" not in target:
            assert path_segments("".join(c if c == "/" else f"%{ord(c):02x}" for c in target)) == segments
        assert not {".", ".."} & set(segments)
        assert all("/" not in s and "\\" not in s and s == s.lower() for s in segments)


class TestStripSegments:
    @pytest.mark.parametrize(
        ("target", "count", "rest"),
        [
            ("/orders", 0, "/orders"),
            ("/orders", 1, ""),
            ("/orders/", 1, "/"),
            ("/orders?x=/1", 1, "?x=/1"),
            ("/orders/?x", 1, "/?x"),
            ("/a/b/New%20One/?x=%zz", 2, "/New%20One/?x=%zz"),
            ("/a/b", 2, ""),
            ("/a/b", 3, ""),
            ("/a?b/c/d", 2, "?b/c/d"),
            ("/a//b", 1, "//b"),
            ("/?x", 0, "/?x"),
        ],
    )
    def test_raw_rest(self, target: str, count: int, rest: str) -> None:
        assert strip_segments(target, count) == rest

    @settings(deadline=None)
    @given(st.lists(st.text("ab%2.cC", min_size=1, max_size=4), min_size=1, max_size=5), st.data())
    def test_rest_has_the_remaining_segments(self, parts: list[str], data: st.DataObject) -> None:
        target = "/" + "/".join(parts)
        try:
            segments = path_segments(target)
        except BadRequestError:
            return
        count = data.draw(st.integers(0, len(segments)))
        rest = strip_segments(target, count)
        assert target.endswith(rest)
        assert (path_segments(rest) if rest else ()) == segments[count:]


class TestRelayPath:
    @pytest.mark.parametrize(
        ("text", "path"),
        [
            ("orders", "orders"),
            ("/Orders/New/", "orders/new"),
            ("a%20B/%C3%9C", "a b/ü"),
            ("Ü", "ü"),
            ("a/$b", "a/$b"),
            ("a" * 260, "a" * 260),
        ],
    )
    def test_canonical_form(self, text: str, path: str) -> None:
        assert relay_path(text) == path

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("", "empty"),
            ("/", "empty"),
            ("//", "empty"),
            ("a//b", "empty segment"),
            ("//a", "empty segment"),
            ("a//", "empty segment"),
            (".", "dot segment"),
            ("a/../b", "dot segment"),
            ("a/%2e%2E", "dot segment"),
            ("a\\b", "backslash"),
            ("a%5cb", "backslash"),
            ("a%2fb", "encoded slash"),
            ("a\x00", "control"),
            ("a%0a", "control"),
            ("a\x7f", "control"),
            ("a?b", r"\?"),
            ("a%3fb", r"\?"),
            ("a#b", "fragment"),
            ("a%23b", "#"),
            ("a%", "escape"),
            ("a%2520b", "%"),
            ("a\u202eb", "unprintable"),
            ("%ff", "UTF-8"),
            ("\ud800", "UTF-8"),
            ("$hc/a", r"\$"),
            ("%24Resources", r"\$"),
            ("a" * 261, "260"),
        ],
    )
    def test_refused(self, text: str, says: str) -> None:
        with pytest.raises(BadRequestError, match=says):
            relay_path(text)

    @settings(deadline=None)
    @given(st.text(min_size=1) | st.text("/aA%4c1. ü$?#", min_size=1))
    def test_idempotent_and_found_by_its_own_address(self, text: str) -> None:
        try:
            path = relay_path(text)
        except BadRequestError:
            return
        assert relay_path(path) == path
        assert path_segments("/" + quote_path(path)) == tuple(path.split("/"))
