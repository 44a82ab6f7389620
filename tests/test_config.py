"""Reading, checking and writing the configuration."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from wcfrelay.config import Config, GatewayConfig, RelayConfig, RuleConfig, load, render, state_folder
from wcfrelay.errors import ConfigError

KEY = "k3y-that-must-never-be-shown"


def read(tmp_path: Path, text: str, overrides: dict[str, Any] | None = None) -> Config:
    path = tmp_path / "wcfrelay.toml"
    path.write_text(text, encoding="utf-8")
    return load(path, overrides or {})


def problems(tmp_path: Path, text: str, overrides: dict[str, Any] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text, overrides)
    assert KEY not in str(caught.value)
    first, *lines = str(caught.value).split("\n  ")
    assert first == f"{tmp_path / 'wcfrelay.toml'}:"
    return lines


def test_everything_has_a_default(tmp_path: Path) -> None:
    assert load() == Config() == read(tmp_path, "")
    gateway = Config().gateway
    assert (gateway.http.bind, gateway.http.port, gateway.https.port) == ("0.0.0.0", 8080, 8443)
    assert (gateway.admin.bind, gateway.admin.port) == ("127.0.0.1", 9090)
    assert gateway.limits.header_bytes == 65536
    assert gateway.relays.no_listener_status == 404


def test_a_full_file(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        f"""
        [gateway]
        advertise = "relay.example:443"
        hosts = ["Relay.Example"]
        http = {{ enabled = false }}
        limits = {{ header_bytes = "1 MiB", request_line = 4096, body_idle = 5, request_total = 0 }}
        relays = {{ dynamic = false, no_listener_status = 502, response_timeout = 1.5 }}
        [gateway.admin]
        port = 0
        [log]
        format = "json"
        level = "warn"
        [[relays]]
        path = "/Orders/eu/"
        response_timeout = 5
        requires_client_authorization = false
        user_metadata = "team=blue"
        [[rules]]
        name = "listen"
        rights = ["Listen"]
        primary_key = "{KEY}"
        path = "orders"
        """,
    )
    gateway = config.gateway
    assert gateway.hosts == ("relay.example",)
    assert not gateway.http.enabled
    assert gateway.admin.bind == "127.0.0.1"
    assert (gateway.limits.header_bytes, gateway.limits.request_line) == (1024 * 1024, 4096)
    assert gateway.limits.body_idle == 5.0
    assert config.relays == (RelayConfig("orders/eu", 5.0, False, "team=blue"),)
    assert config.rules == (RuleConfig("listen", ("Listen",), KEY, "", "orders"),)
    assert KEY not in repr(config)


def test_every_error_is_listed_with_its_path(tmp_path: Path) -> None:
    text = f"""
        [gateway]
        http = {{ port = "x", enabld = true }}
        https = 5
        hosts = "relay.example"
        advertise = "https://relay.example"
        relays = {{ no_listener_status = 403 }}
        [gateway.limits]
        body_idle = 0
        keep_alive = "75"
        token_grace = nan
        header_bytes = "64 kB"
        connections = true
        [log]
        access = "yes"
        format = "xml"
        [[relays]]
        pathh = "orders"
        [[relays]]
        path = "a//b"
        [[relays]]
        path = "/"
        [[rules]]
        name = "a b"
        rights = ["Listen", "listen"]
        primary_key = "{KEY * 10}"
        secondary_key = ["{KEY}"]
        [zzz]
        """
    assert problems(tmp_path, text) == [
        'gateway.advertise: must be host or host:port, got "https://relay.example"',
        'gateway.hosts: must be a list, got "relay.example"',
        'gateway.http.port: must be 0..65535, got "x"',
        'gateway.http.enabld: unknown key; did you mean "enabled"?',
        "gateway.https: must be a table, got 5",
        'gateway.limits.header_bytes: must be a size in bytes or text such as "64 KiB", got "64 kB"',
        "gateway.limits.connections: must be 1..2147483648, got true",
        "gateway.limits.body_idle: must be a number of seconds, more than 0, got 0",
        'gateway.limits.keep_alive: must be a number of seconds, more than 0, got "75"',
        "gateway.limits.token_grace: must be a number of seconds, 0 or more, got NaN",
        "gateway.relays.no_listener_status: must be one of 404, 502, got 403",
        'log.format: must be one of "text", "json", got "xml"',
        'log.access: must be true or false, got "yes"',
        "relays[0].path: is required",
        'relays[0].pathh: unknown key; did you mean "path"?',
        'relays[1].path: The relay path has an empty segment; write single slashes. Got "a//b"',
        'relays[2].path: The relay path is empty; give a name such as orders or orders/new. Got "/"',
        'rules[0].name: must be 1 to 256 URL-safe characters, got "a b"',
        'rules[0].rights[1]: must be one of "Listen", "Send", "Manage", got "listen"',
        "rules[0].primary_key: must be text of 1 to 256 characters",
        "rules[0].secondary_key: must be text of 1 to 256 characters",
        "zzz: unknown key; there are gateway, log, relays, rules",
    ]


def test_contradictions_are_listed_with_their_path(tmp_path: Path) -> None:
    text = f"""
        gateway.https.certificate = "server.pem"
        [[relays]]
        path = "orders/eu"
        [[relays]]
        path = "Orders/EU"
        [[rules]]
        name = "root"
        rights = ["Manage"]
        primary_key = "{KEY}"
        [[rules]]
        name = "root"
        rights = []
        primary_key = "{KEY}"
        [[rules]]
        name = "other"
        rights = ["Send", "Send"]
        primary_key = "{KEY}"
        path = "stock"
        [[rules]]
        name = "parent"
        rights = ["Send"]
        primary_key = "{KEY}"
        path = "ORDERS"
        """
    assert problems(tmp_path, text) == [
        "gateway.https.key: the certificate needs its key",
        'relays[1].path: "orders/eu" is relays[0] already',
        "rules[0].rights: Manage requires Listen and Send as well",
        'rules[1].name: "root" on this path is rules[0] already',
        "rules[1].rights: at least one of Listen, Send, Manage",
        'rules[2].path: there is no relay "stock"; add it to relays',
        "rules[2].rights: a right is named twice",
    ]
    assert problems(tmp_path, 'gateway.https.key = "key.pem"') == [
        "gateway.https.certificate: the key needs its certificate"
    ]


def test_a_file_that_is_no_toml(tmp_path: Path) -> None:
    path = tmp_path / "wcfrelay.toml"
    with pytest.raises(ConfigError, match=r"wcfrelay\.toml: cannot read the configuration \(No such file"):
        load(path)
    path.write_text("[gateway]\nport =\n")
    with pytest.raises(ConfigError, match=r"wcfrelay\.toml: Invalid value \(at line 2, column 7\)"):
        load(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"must be UTF-8"):
        load(path)


def test_overrides_lie_over_the_file(tmp_path: Path) -> None:
    text = "[gateway.http]\nport = 1\nbind = '127.0.0.1'"
    config = read(tmp_path, text, {"gateway.http.port": 2, "gateway.https.port": 3, "log.level": None})
    assert (config.gateway.http.port, config.gateway.http.bind) == (2, "127.0.0.1")
    assert config.gateway.https.port == 3
    assert config.log.level == "info"
    assert problems(tmp_path, text, {"gateway.http.prt": 2}) == ['gateway.http.prt: unknown key; did you mean "port"?']
    with pytest.raises(ConfigError, match=r"^gateway\.http\.port: must be 0\.\.65535, got 70000$"):
        load(None, {"gateway.http.port": 70000})
    with pytest.raises(ConfigError, match=r"^relays\.path: relays is not a table$"):
        read(tmp_path, "[[relays]]\npath = 'a'", {"relays.path": "b"})


def test_rendering_loads_back(tmp_path: Path) -> None:
    assert read(tmp_path, render(Config())) == Config()
    config = read(
        tmp_path,
        """
        [gateway]
        state = 'C:\\relay "state"'
        hosts = ["a.example", "b.example"]
        limits = { header_bytes = 65537, body_idle = 0.25 }
        [[relays]]
        path = "grüße/\u00e9"
        user_metadata = "a\\u007f\\n\\tb"
        [[relays]]
        path = "orders"
        response_timeout = 1e300
        """,
    )
    assert read(tmp_path, render(config)) == config


def test_rendering_comments_every_key_and_hides_rule_keys(tmp_path: Path) -> None:
    rules = (
        RuleConfig("root", ("Listen", "Send", "Manage"), KEY),
        RuleConfig("send", ("Send",), KEY, KEY, "orders"),
    )
    config = Config(relays=(RelayConfig("orders"),), rules=rules)
    text = render(config)
    assert KEY not in text
    lines = text.splitlines()
    for before, line in pairwise(lines):
        if line and not line.startswith(("#", "[")):
            assert before.startswith("# "), line
    assert text.count("# primary_key: set; not shown") == 2
    assert text.count("# secondary_key: set; not shown") == 1
    filled = text.replace("# primary_key: set; not shown", f'primary_key = "{KEY}"')
    filled = filled.replace("# secondary_key: set; not shown", f'secondary_key = "{KEY}"')
    assert read(tmp_path, filled) == config


def test_every_setting_is_documented() -> None:
    def walk(table: Any) -> None:
        for setting in dataclasses.fields(table):
            assert setting.metadata["doc"], setting.name
            value = getattr(table, setting.name, None)
            if dataclasses.is_dataclass(value):
                walk(value)

    walk(Config())
    walk(RelayConfig("a"))
    walk(RuleConfig("a", (), KEY))


def test_the_state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    gateway = GatewayConfig()
    assert state_folder(gateway, {"XDG_STATE_HOME": "/state"}) == Path("/state/wcfrelay")
    assert state_folder(gateway, {"XDG_STATE_HOME": "state"}) == tmp_path / ".local/state/wcfrelay"
    assert state_folder(gateway, {}) == tmp_path / ".local/state/wcfrelay"
    assert state_folder(dataclasses.replace(gateway, state="~/relay"), {}) == tmp_path / "relay"
