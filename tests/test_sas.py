"""Tokens: what Microsoft's libraries make is judged right, and nothing else is."""

from __future__ import annotations

import base64
import hmac
import json
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus, unquote_plus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wcfrelay.address import ConnectionString, path_segments, quote_path
from wcfrelay.errors import (
    AuthorizationError,
    ConfigError,
    ExpiredTokenError,
    ForbiddenError,
    InvalidAudienceError,
    InvalidSignatureError,
    MalformedTokenError,
    MissingTokenError,
)
from wcfrelay.sas import Grant, Right, Rule, TokenProvider, generate_key, make_token, parse_token, verify

VECTORS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "data/sas_vectors.json").read_text("utf-8"))[
    "tokens"
]
IDS = [f"{v['sdk'].split()[0]}-{v['resource']}" for v in VECTORS]
HOST = "contoso.servicebus.windows.net"
KEY = "MDEyMzQ1Njc4OWFiY2RlZg=="
OTHER_KEY = "bG9jYWwtcmVsYXktdGVzdC1rZXktMzItYnl0ZXMhISE="
NOW = 1_700_000_000
RULE = Rule("send", Right.SEND, KEY, OTHER_KEY)


def rules(*known: Rule) -> Callable[[str], Iterable[Rule]]:
    return lambda name: (rule for rule in known if rule.name == name)


def judge(
    text: str | None,
    *known: Rule,
    now: float = NOW,
    hosts: frozenset[str] | None = frozenset({HOST}),
    grace: float = 0,
) -> Grant:
    return verify(text, now=now, rules=rules(*(known or (RULE,))), hosts=hosts, grace=grace)


def token(
    audience: str = f"http://{HOST}/echo/", *, key: str = KEY, name: str = "send", expiry: object = NOW + 60
) -> str:
    """A token with exactly this audience, however odd."""
    sr = quote(audience, safe="")
    signature = base64.b64encode(hmac.digest(key.encode(), f"{sr}\n{expiry}".encode(), "sha256")).decode()
    return f"SharedAccessSignature sr={sr}&sig={quote_plus(signature)}&se={expiry}&skn={quote_plus(name)}"


class TestMicrosoftsTokens:
    @pytest.mark.parametrize("vector", VECTORS, ids=IDS)
    def test_sdk_token_is_judged_right(self, vector: dict[str, Any]) -> None:
        rule = Rule(vector["keyname"], Right.LISTEN | Right.SEND, vector["key"])
        parsed = parse_token(vector["token"])
        assert parsed.signed_by(vector["key"]) is vector["valid_by_formula"] is True
        assert vector["keyname"] in parsed.key_names
        assert parsed.key_name == parsed.key_names[0]
        grant = verify(vector["token"], now=parsed.expiry, rules=rules(rule), hosts={parsed.host}, grace=0)
        assert grant.rule == vector["keyname"]

        entity = vector["resource"].split("?")[0].split("://")[1].partition("/")[2].removeprefix("$hc/")
        target = path_segments("/" + quote_path(entity))
        if "/:" in vector["sr_decoded"]:
            # The SDK was given an address with two ports, and took the second one for a path.
            with pytest.raises(InvalidAudienceError):
                grant.allows(target, Right.SEND)
            return
        grant.allows(target, Right.LISTEN)
        grant.allows((*target, "below"), Right.SEND)
        for other in ((*target[:-1], "sibling"), (*target[:-1], target[-1] + "x"), target[:-1]):
            with pytest.raises(InvalidAudienceError):
                grant.allows(other, Right.SEND)
        with pytest.raises(ForbiddenError):
            grant.allows(target, Right.MANAGE)
        with pytest.raises(ExpiredTokenError):
            verify(vector["token"], now=parsed.expiry + 1, rules=rules(rule), hosts=None, grace=0)
        with pytest.raises(InvalidSignatureError):
            verify(vector["token"], now=0, rules=rules(Rule(rule.name, rule.rights, KEY + "x")), hosts=None, grace=0)

    @pytest.mark.parametrize("vector", [v for v in VECTORS if ".NET" in v["sdk"]])
    def test_make_token_writes_as_microsoft_azure_relay(self, vector: dict[str, Any]) -> None:
        expiry = parse_token(vector["token"]).expiry
        assert make_token(vector["resource"], vector["keyname"], vector["key"], expiry) == vector["token"]

    def test_every_spelling_of_one_entity(self) -> None:
        entity = [v for v in VECTORS if v["resource"].endswith(("net/hyco", "net:443/$hc/hyco?sb-hc-action=listen"))]
        assert {v["sdk"].split()[0] for v in entity} == {"hyco-https", "Microsoft.Azure.Relay", "azure-relay"}
        assert {(parse_token(v["token"]).host, parse_token(v["token"]).segments) for v in entity} == {(HOST, ("hyco",))}

    @pytest.mark.parametrize(
        ("key", "host", "text"),
        [
            (
                KEY,
                HOST,
                "SharedAccessSignature sr=http%3a%2f%2fcontoso.servicebus.windows.net%2fecho%2f"
                "&sig=0oaRNOB%2fcXkxb9oJ78zfnHGpXJRJYS4F0G3tL6Zzx7I%3d&se=1700000000&skn=RootManageSharedAccessKey",
            ),
            (
                OTHER_KEY,
                "fabrikam.servicebus.windows.net",
                "SharedAccessSignature sr=http%3a%2f%2ffabrikam.servicebus.windows.net%2forders%2f"
                "&sig=w8epRt2QxT7H3CRw2LMD8DxxXczfkFb8DsihjOsd%2fV8%3d&se=1893456000&skn=RootManageSharedAccessKey",
            ),
            (
                OTHER_KEY,
                "fabrikam.servicebus.windows.net",
                "SharedAccessSignature sr=http%3A%2F%2Ffabrikam.servicebus.windows.net%2FOrders%2F"
                "&sig=XU2ieoZA0mdpx8UOFRk9wTEsazBCAAbt5%2FE5GZyXmog%3D&se=1893456000&skn=RootManageSharedAccessKey",
            ),
        ],
    )
    def test_tokens_of_the_specification(self, key: str, host: str, text: str) -> None:
        rule = Rule("RootManageSharedAccessKey", Right.MANAGE, key)
        grant = verify(text, now=NOW, rules=rules(rule), hosts={host}, grace=0)
        for right in Right.LISTEN, Right.SEND, Right.MANAGE:
            grant.allows(("echo",) if "echo" in text else ("orders", "new"), right)

    def test_tokens_of_eight_library_versions(self, shared: Path) -> None:
        files = sorted((shared / "vectors/relay-captures/groundtruth").glob("*/sas.txt"))
        assert len(files) == 8
        rule = Rule("RootManageSharedAccessKey", Right.SEND, OTHER_KEY, KEY)
        for file in files:
            lines = file.read_text("utf-8").splitlines()
            assert lines
            for resource, _, text in (line.partition("\t") for line in lines):
                grant = judge(text, rule)
                path = resource.split("://")[1].partition("/")[2].partition("?")[0]
                assert grant.segments == path_segments("/" + quote_path(path))

    def test_signatures_of_the_library(self, shared: Path) -> None:
        for file in (shared / "vectors/relay-captures/groundtruth").glob("*/sasfix.txt"):
            for line in file.read_text("utf-8").splitlines():
                signed, key, signature = line.split("\t")
                sr, expiry = signed.split("\\n")
                text = f"SharedAccessSignature sr={sr}&sig={quote_plus(signature)}&se={expiry}&skn=r"
                assert parse_token(text).signed_by(key)


class TestParse:
    @pytest.mark.parametrize(
        ("audience", "segments"),
        [
            (f"http://{HOST}/echo/", ("echo",)),
            (f"https://{HOST}:443/Echo", ("echo",)),
            (f"sb://{HOST.upper()}/ECHO//", ("echo",)),
            (f"wss://{HOST}:443/$hc/echo?sb-hc-action=listen", ("echo",)),
            (f"http://{HOST}/%24HC/echo", ("echo",)),
            (f"http://{HOST}/echo/?api-version=2015-08", ("echo",)),
            (f"http://{HOST}/?x=/a", ()),
            (f"http://{HOST}?u=http://other/a", ()),
            (HOST, ()),
            (f"{HOST}/echo", ("echo",)),
            (f"{HOST}:9352/echo/new", ("echo", "new")),
            (f"http://{HOST}/$Resources/Relays/?$skip=0&$top=2147483647", ("$resources", "relays")),
            (f"http://{HOST}/a%20b/%c3%9c", ("a b", "ü")),
            (f"http://{HOST}/a b/Ü", ("a b", "ü")),
        ],
    )
    def test_audience(self, audience: str, segments: tuple[str, ...]) -> None:
        parsed = parse_token(token(audience))
        assert (parsed.host, parsed.segments) == (HOST, segments)
        assert judge(token(audience)).segments == segments

    def test_ipv6_host(self) -> None:
        assert parse_token(token("http://[::1]:80/a")).host == "::1"
        assert parse_token(make_token("https://[::1]:8443/a", "r", KEY, 1)).host == "::1"

    def test_pairs_in_any_order_and_case(self) -> None:
        pairs = token().split(" ")[1].split("&")
        text = "sharedACCESSsignature  " + "&".join(
            p.partition("=")[0].upper() + "=" + p.partition("=")[2] for p in pairs[::-1]
        )
        assert judge(text) == judge(token())
        assert judge(token() + "&") == judge(token())

    def test_raw_signature(self) -> None:
        """A hand-written token may have its base64 unencoded."""
        name, _, value = token().partition("sig=")
        raw, _, rest = value.partition("&")
        assert judge(f"{name}sig={unquote_plus(raw)}&{rest}").rule == "send"

    @pytest.mark.parametrize("encode", [quote_plus, lambda text: quote(text, safe=""), str], ids=["+", "%20", "raw"])
    def test_wrap(self, encode: Callable[[str], str]) -> None:
        assert judge(f'WRAP access_token="{encode(token())}"') == judge(token())

    @pytest.mark.parametrize(
        "text",
        [
            "SharedAccessSignature",
            "SharedAccessSignature ",
            "SharedAccessSignature garbage",
            "Bearer abc",
            "Basic dTpw",
            "WRAP",
            "WRAP access_token=",
            'WRAP access_token=""',
            'WRAP access_token="abc"',
            f"WRAP access_token={quote_plus(token())}",
            f'WRAP access_token="{quote_plus(token())}" x',
            f'WRAP access_token="{quote_plus("WRAP access_token=" + token())}"',
            token().removeprefix("SharedAccessSignature "),
            token() + "&sr=http%3a%2f%2fx",
            token() + "&SKN=other",
            "SharedAccessSignature se=1&" + token().split(" ")[1],
            "SharedAccessSignature extra=1&" + token().split(" ")[1],
            token().replace("&skn=send", ""),
            token().replace("&skn=send", "&skn="),
            token().replace("sr=", "sx="),
            token().replace("&se=", "&sx="),
            token().replace("&sig=", "&sx="),
            token(expiry="soon"),
            token(expiry=-1),
            token(expiry=1.5),
            token(expiry="\u0661"),
            token(expiry=" 1"),
            token(expiry="1" * 5000),
            token(""),
            token("http://"),
            token("/echo"),
            token("http:///echo"),
            token(f"http://{HOST} x/echo"),
            token(f"http://{HOST}/a/../b"),
            token(f"http://{HOST}/a/%2e%2e/b"),
            token(f"http://{HOST}/a%2fb"),
            token(f"http://{HOST}/a\\b"),
            token(f"http://{HOST}/a%00"),
            token(f"http://{HOST}/%ff"),
            token().replace("echo", "%ff"),
            token() + "x" * 8192,
        ],
    )
    def test_malformed(self, text: str) -> None:
        with pytest.raises(MalformedTokenError) as caught:
            judge(text)
        assert caught.value.message.startswith("MalformedToken: ")
        assert HOST not in str(caught.value)

    def test_repr_hides_the_signature(self) -> None:
        shown = repr(parse_token(token()))
        assert "sig" not in shown.replace("signed", "")
        assert token().partition("sig=")[2][:20] not in shown
        assert KEY not in repr(RULE) and OTHER_KEY not in repr(RULE)

    @settings(deadline=None)
    @given(st.text() | st.text("sr=&sigeknhtp:/%2f.0 "))
    def test_any_text_is_refused_in_good_order(self, text: str) -> None:
        for candidate in (
            text,
            f"SharedAccessSignature {text}",
            f"SharedAccessSignature sr={text}&sig=a&se=9&skn={text}",
        ):
            with pytest.raises(AuthorizationError):
                judge(candidate, now=0)


class TestVerify:
    @pytest.mark.parametrize("text", [None, "", "  "])
    def test_missing(self, text: str | None) -> None:
        with pytest.raises(MissingTokenError):
            judge(text)

    def test_either_key_verifies(self) -> None:
        expected = Grant("send", Right.SEND, NOW + 60, HOST, ("echo",))
        assert judge(token(key=KEY)) == judge(token(key=OTHER_KEY)) == expected

    @pytest.mark.parametrize(
        "text",
        [
            token(key="wrong"),
            token(name="nobody"),
            token(name="SEND"),
            token().replace(str(NOW + 60), str(NOW + 61)),
            token().replace("echo", "ecHo"),
            token().replace("%2F", "%2f"),
            token().replace("echo", "other"),
            token() + "&more=1",
        ],
    )
    def test_wrong_signature(self, text: str) -> None:
        with pytest.raises(InvalidSignatureError) as caught:
            judge(text)
        assert caught.value.message == str(InvalidSignatureError())

    def test_one_flipped_bit_anywhere_is_refused(self) -> None:
        text = token()
        valid = judge(text)
        for position in range(len("SharedAccessSignature "), len(text)):
            for bit in range(7):
                changed = text[:position] + chr(ord(text[position]) ^ (1 << bit)) + text[position + 1 :]
                try:
                    grant = judge(changed)
                except AuthorizationError:
                    continue
                # Only names of pairs, and hex digits and spellings of the signature that are the same text decoded.
                assert grant == valid
                assert changed.lower() == text.lower()

    def test_unknown_rule_costs_what_a_wrong_key_costs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[int] = []
        real = hmac.digest

        def counted(*args: Any) -> bytes:
            calls.append(1)
            return real(*args)

        monkeypatch.setattr("wcfrelay.sas.hmac.digest", counted)
        wrong, unknown, single = token(key="wrong"), token(name="nobody"), Rule("send", Right.SEND, KEY)
        costs = []
        for text, rule in ((wrong, RULE), (unknown, RULE), (wrong, single)):
            calls.clear()
            with pytest.raises(InvalidSignatureError):
                judge(text, rule)
            costs.append(len(calls))
        assert costs == [2, 2, 2]

    def test_the_empty_second_key_signs_nothing(self) -> None:
        with pytest.raises(InvalidSignatureError):
            judge(token(key=""), Rule("send", Right.SEND, KEY))
        with pytest.raises(InvalidSignatureError):
            judge(token(key="", name="nobody"))

    def test_expiry_and_grace(self) -> None:
        assert judge(token(), now=NOW + 60).expiry == NOW + 60
        with pytest.raises(ExpiredTokenError):
            judge(token(), now=NOW + 60.5)
        grant = judge(token(), now=NOW + 90, grace=30)
        grant.check_expiry(NOW + 90, 30)
        with pytest.raises(ExpiredTokenError):
            grant.check_expiry(NOW + 90.5, 30)

    def test_order_of_checks(self) -> None:
        late_and_wrong = token("http://elsewhere/x", key="wrong")
        with pytest.raises(ExpiredTokenError):
            judge(late_and_wrong, now=NOW + 100)
        with pytest.raises(InvalidSignatureError):
            judge(late_and_wrong)
        with pytest.raises(InvalidAudienceError):
            judge(token("http://elsewhere/x"))
        with pytest.raises(InvalidAudienceError):
            judge(token()).allows(("other",), Right.MANAGE)

    def test_hosts(self) -> None:
        assert judge(token("http://elsewhere/x"), hosts=None).host == "elsewhere"
        for audience in ("http://elsewhere/echo", f"http://{HOST}.evil/echo", f"http://{HOST}@evil/echo"):
            with pytest.raises((InvalidAudienceError, MalformedTokenError)):
                judge(token(audience))

    def test_first_rule_whose_key_signed_counts(self) -> None:
        near = Rule("send", Right.LISTEN, "near", scope=("echo",))
        far = Rule("send", Right.SEND, "far")
        assert judge(token(key="near"), near, far).rights == Right.LISTEN
        assert judge(token(key="far"), near, far).rights == Right.SEND

    def test_a_rule_has_no_say_outside_its_entity(self) -> None:
        rule = Rule("send", Right.SEND, KEY, scope=("a", "b"))
        whole = judge(token(f"http://{HOST}/"), rule)
        whole.allows(("a", "b"), Right.SEND)
        whole.allows(("a", "b", "c"), Right.SEND)
        for target in ((), ("a",), ("a", "c")):
            with pytest.raises(InvalidAudienceError):
                whole.allows(target, Right.SEND)
        assert judge(token(f"http://{HOST}/a/b/c"), rule).segments == ("a", "b", "c")
        with pytest.raises(InvalidAudienceError):
            judge(token(f"http://{HOST}/a/c"), rule)

    def test_whole_segments(self) -> None:
        grant = judge(token(f"http://{HOST}/orders/new"))
        grant.allows(("orders", "new"), Right.SEND)
        grant.allows(("orders", "new", "1"), Right.SEND)
        for target in ((), ("orders",), ("orders", "newer"), ("orders", "old"), ("", "orders", "new")):
            with pytest.raises(InvalidAudienceError):
                grant.allows(target, Right.SEND)
        judge(token(f"http://{HOST}/")).allows(("anything",), Right.SEND)

    def test_forbidden_names_right_and_rule_only(self) -> None:
        with pytest.raises(ForbiddenError, match="rule 'send' lacks the right Listen that") as caught:
            judge(token()).allows(("echo",), Right.LISTEN)
        assert "sig" not in str(caught.value).replace("signature", "")
        with pytest.raises(ForbiddenError, match="lacks the right Manage that"):
            judge(token()).allows(("echo",), Right.MANAGE)

    @settings(deadline=None)
    @given(
        host=st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,20}[A-Za-z0-9])?", fullmatch=True),
        path=st.lists(
            st.text(
                st.characters(exclude_characters="/\\?#%", exclude_categories=["C"]), min_size=1, max_size=8
            ).filter(lambda s: s not in (".", "..") and s.lower() != "$hc"),
            max_size=4,
        ),
        name=st.text(st.characters(codec="utf-8"), min_size=1, max_size=20),
        key=st.text(min_size=1, max_size=60),
        expiry=st.integers(0, 10**12),
    )
    def test_made_tokens_verify(self, host: str, path: list[str], name: str, key: str, expiry: int) -> None:
        text = make_token(f"sb://{host}:9352/{'/'.join(path)}", name, key, expiry)
        grant = judge(text, Rule(name, Right.SEND, key), now=expiry, hosts=frozenset({host.lower()}))
        assert grant == Grant(name, Right.SEND, expiry, host.lower(), tuple(s.lower() for s in path))
        with pytest.raises(InvalidSignatureError):
            judge(text, Rule(name, Right.SEND, key + "\0x"), now=expiry, hosts=None)


class TestRight:
    def test_manage_contains_the_others(self) -> None:
        assert Right.LISTEN in Right.MANAGE and Right.SEND in Right.MANAGE
        assert Right.MANAGE not in Right.LISTEN | Right.SEND

    @pytest.mark.parametrize(
        ("names", "right", "wire"),
        [
            (["Send"], Right.SEND, ("Send",)),
            (["Send", "Listen"], Right.LISTEN | Right.SEND, ("Listen", "Send")),
            (["Manage", "Send", "Listen"], Right.MANAGE, ("Listen", "Send", "Manage")),
            (["Manage"], Right.MANAGE, ("Listen", "Send", "Manage")),
            ([], Right(0), ()),
        ],
    )
    def test_wire_names(self, names: list[str], right: Right, wire: tuple[str, ...]) -> None:
        assert Right.from_names(names) == right
        assert right.wire_names == wire

    def test_unknown_name(self) -> None:
        with pytest.raises(ConfigError, match="'send' is no right; use Listen, Send, Manage"):
            Right.from_names(["send"])


def test_generated_key() -> None:
    assert generate_key(lambda n: b"\x00" * n) == "A" * 43 + "="
    assert len(base64.b64decode(generate_key(os.urandom))) == 32


class TestTokenProvider:
    STRING = f"Endpoint=sb://{HOST}:8443/;SharedAccessKeyName=send;SharedAccessKey={KEY}"

    def test_token_is_kept_until_a_quarter_is_left(self) -> None:
        clock = [float(NOW)]
        provider = TokenProvider(ConnectionString.parse(self.STRING), lambda: clock[0], lifetime=400)
        first = provider.token("Echo/a b")
        assert first == make_token(f"http://{HOST}/Echo/a%20b/", "send", KEY, NOW + 400)
        judge(first).allows(("echo", "a b"), Right.SEND)
        assert provider.renew_at("Echo/a b") == NOW + 300
        clock[0] = NOW + 299.9
        assert provider.token("Echo/a b") == first
        clock[0] = provider.renew_at("Echo/a b")
        second = provider.token("Echo/a b")
        assert second != first
        assert provider.renew_at("Echo/a b") == NOW + 600
        assert judge(second, now=NOW + 700).expiry == NOW + 700

    def test_paths_have_their_own_tokens_and_a_quota(self) -> None:
        clock = [float(NOW)]
        provider = TokenProvider(ConnectionString.parse(self.STRING), lambda: clock[0])
        kept = provider.token("kept")
        for number in range(1000):
            clock[0] += 0.01
            assert parse_token(provider.token(f"p/{number}")).segments == ("p", str(number))
            assert provider.token("kept") == kept
        assert len(provider._issued) == 256

    def test_given_signature_is_passed_on(self) -> None:
        connection = ConnectionString.parse(f"Endpoint=sb://{HOST};SharedAccessSignature={token()}")
        provider = TokenProvider(connection, lambda: NOW)
        assert provider.token("a") == provider.token("b") == token()
        assert provider.renew_at("a") == math.inf

    def test_neither_key_nor_signature(self) -> None:
        with pytest.raises(ConfigError, match="add SharedAccessKeyName=…;SharedAccessKey=…"):
            TokenProvider(ConnectionString.parse(f"Endpoint=sb://{HOST}"), lambda: NOW)
