from __future__ import annotations

import hmac
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wcfrelay.errors import (
    AuthorizationError,
    ExpiredTokenError,
    ForbiddenError,
    InvalidAudienceError,
    InvalidSignatureError,
    MalformedTokenError,
    MissingTokenError,
    RelayError,
)
from wcfrelay.gateway.authorize import Authorizer
from wcfrelay.sas import Grant, Right, Rule, make_token

KEYS = {"": "n" * 44, "a": "a" * 44, "a/b": "b" * 44, "c": "c" * 44}
BOTH = Right.LISTEN | Right.SEND


class Judge:
    def __init__(self, hosts: frozenset[str] | None = None, grace: float = 300.0) -> None:
        self.now = 1000.0
        self.authorizer = Authorizer(lambda: self.now, hosts, grace)
        for path, key in KEYS.items():
            self.rules(path, Rule("all", BOTH, key, "2" + key[1:], scope(path)))

    def rules(self, path: str, *rules: Rule) -> None:
        self.authorizer.set_rules(path, rules)

    def __call__(self, token: str | None, entity: str, target: str = "", right: Right = Right.SEND) -> Grant:
        return self.authorizer.authorize(token, entity, tuple((target or entity).split("/")), right)


def scope(path: str) -> tuple[str, ...]:
    return tuple(path.split("/")) if path else ()


def token(path: str = "", rule: str = "all", key: str = KEYS[""], expiry: int = 2000, host: str = "h") -> str:
    return make_token(f"http://{host}/{path}", rule, key, expiry)


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Grows with every signature that is computed."""
    computed: list[Any] = []
    digest = hmac.digest

    def counting(*args: Any) -> bytes:
        computed.append(args)
        return digest(*args)

    monkeypatch.setattr(hmac, "digest", counting)
    yield computed


# who holds the rule, what the token is for, the relay, the request → allowed
SCOPES = [
    ("", "", "a", "a/x", True),
    ("", "a", "a", "a/x", True),
    ("", "a/x", "a", "a/x/y", True),
    ("", "a/x", "a", "a", False),
    ("", "a/x", "a", "a/xy", False),
    ("", "b", "a", "a", False),
    ("a", "", "a", "a/x", True),
    ("a", "", "a/b", "a/b", True),
    ("a", "a/b", "a/b", "a/b/x", True),
    ("a", "a/b", "a", "a", False),
    ("a", "", "c", "c", False),
    ("a", "c", "c", "c", False),
    ("a/b", "", "a/b", "a/b/x", True),
    ("a/b", "", "a", "a/b/x", False),
    ("a/b", "a", "a", "a/c", False),
    ("a/b", "a/c", "a/b", "a/b", False),
]


@pytest.mark.parametrize(("holder", "path", "entity", "target", "good"), SCOPES)
def test_scope(holder: str, path: str, entity: str, target: str, good: bool) -> None:
    judge = Judge()
    for _ in range(2):
        if good:
            assert judge(token(path, key=KEYS[holder]), entity, target).rule == "all"
        else:
            with pytest.raises(AuthorizationError):
                judge(token(path, key=KEYS[holder]), entity, target)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(sorted(KEYS)),
            st.sampled_from(["", "a", "a/b", "a/b/x", "a/x", "c"]),
            st.sampled_from([("a", "a"), ("a", "a/x"), ("a", "a/x/y"), ("a/b", "a/b"), ("a/b", "a/b/x"), ("c", "c")]),
            st.sampled_from([Right.SEND, Right.LISTEN]),
            st.sampled_from(["all", "send"]),
        ),
        max_size=20,
    )
)
def test_what_is_remembered_changes_no_judgement(asked: list[tuple[str, str, tuple[str, str], Right, str]]) -> None:
    def outcome(judge: Judge, case: tuple[str, str, tuple[str, str], Right, str]) -> Any:
        holder, path, (entity, target), right, rule = case
        try:
            return judge(token(path, rule, KEYS[holder]), entity, target, right)
        except RelayError as error:
            return type(error)

    def fresh() -> Judge:
        judge = Judge()
        for path, key in KEYS.items():
            judge.rules(path, Rule("all", BOTH, key, "", scope(path)), Rule("send", Right.SEND, key, "", scope(path)))
        return judge

    judge = fresh()
    for case in asked:
        assert outcome(judge, case) == outcome(fresh(), case)


def test_a_good_token_is_verified_once(verified: list[Any]) -> None:
    judge = Judge()
    good = token("a")
    judge(good, "a", "a/x")
    verified.clear()
    for _ in range(5):
        judge(good, "a", "a/y")
    assert not verified
    judge(good, "a/b", "a/b/x")  # another relay may have rules of its own
    assert verified


def test_a_bad_token_is_not_remembered(verified: list[Any]) -> None:
    judge = Judge()
    for _ in range(3):
        with pytest.raises(InvalidSignatureError):
            judge(token("a", key="x" * 44), "a")
    assert len(judge.authorizer._good) == 0 and len(verified) > 3


def test_a_remembered_token_has_no_more_rights() -> None:
    judge = Judge()
    judge.rules("", Rule("send", Right.SEND, KEYS[""]))
    sending = token(rule="send")
    for _ in range(2):
        judge(sending, "a")
        with pytest.raises(ForbiddenError, match="'send' lacks the right Listen"):
            judge(sending, "a", right=Right.LISTEN)


def test_changed_rules_hold_at_once() -> None:
    judge = Judge()
    good = token("a", key=KEYS["a"])
    judge(good, "a")
    judge.rules("a", Rule("all", BOTH, "z" * 44, "", ("a",)))
    with pytest.raises(InvalidSignatureError):
        judge(good, "a")
    judge.rules("a", Rule("all", Right.LISTEN, KEYS["a"], "", ("a",)))
    with pytest.raises(ForbiddenError):
        judge(good, "a")


def test_the_nearest_rule_of_a_name_counts_and_either_key() -> None:
    judge = Judge()
    judge.rules("a/b", Rule("all", Right.SEND, KEYS["a/b"], KEYS[""], ("a", "b")))
    with pytest.raises(ForbiddenError):  # the namespace's key is the second one here
        judge(token(key=KEYS[""]), "a/b", right=Right.LISTEN)
    judge(token(key=KEYS["a"]), "a/b", right=Right.LISTEN)
    judge(token(key="2" + KEYS["a"][1:]), "a/b", right=Right.LISTEN)


def test_time() -> None:
    judge = Judge(grace=10.0)
    good = token("a", expiry=1100)
    for judge.now in (1000.0, 1100.0, 1110.0):
        assert judge(good, "a").expiry == 1100
    judge.now = 1110.5
    for _ in range(2):
        with pytest.raises(ExpiredTokenError):
            judge(good, "a")
    with pytest.raises(ExpiredTokenError):
        Judge(grace=0.0)(token(expiry=999), "a")


def test_hosts() -> None:
    judge = Judge(frozenset({"relay.test", "127.0.0.1"}))
    for host in ("relay.test", "RELAY.test:8443", "127.0.0.1:8080"):
        judge(token("a", host=host), "a")
    with pytest.raises(InvalidAudienceError):
        judge(token("a", host="other.test"), "a")
    Judge(None)(token("a", host="other.test"), "a")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (None, MissingTokenError),
        ("", MissingTokenError),
        ("  ", MissingTokenError),
        ("Bearer abc.def", MalformedTokenError),
        ("SharedAccessSignature sr=h&sig=SECRET&se=x&skn=all", MalformedTokenError),
        ("SharedAccessSignature sr=h&sig=SECRET&se=2000&skn=all&more=SECRET", InvalidSignatureError),
        ("SharedAccessSignature sr=h&sig=SECRET&se=2000&skn=all", InvalidSignatureError),
        ("SharedAccessSignature sr=h&sig=SECRET&se=5&skn=all", ExpiredTokenError),
        ("SharedAccessSignature sr=h&sig=SECRET&sig=SECRET&se=2000&skn=all", MalformedTokenError),
        ("SharedAccessSignature " + "SECRET" * 2000, MalformedTokenError),
        (token("b").replace("sig=", "sig=SECRET"), InvalidSignatureError),
        (token("b"), InvalidAudienceError),
    ],
)
def test_the_text_of_a_refusal_has_nothing_of_the_token(text: str | None, kind: type[AuthorizationError]) -> None:
    judge = Judge()
    with pytest.raises(kind) as caught:
        judge(text, "a")
    error = caught.value
    assert "SECRET" not in str(error) + repr(error) and "sig=" not in str(error)
    assert text is None or not text.strip() or text not in str(error)


def test_what_is_remembered_is_bounded() -> None:
    judge = Judge()
    keep = judge(token("a"), "a")
    entry = next(iter(judge.authorizer._good.values()))
    judge.authorizer._good.update({(str(number), "a", Right.SEND): entry for number in range(20_000)})
    judge(token("a/b"), "a", "a/b")
    assert len(judge.authorizer._good) < 16_384
    assert judge(token("a"), "a") == keep
