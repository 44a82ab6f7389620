from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tests.gateway.harness import Gateway, gateway
from wcfrelay.address import relay_path
from wcfrelay.errors import BadRequestError
from wcfrelay.gateway.metrics import Recorder, RelayCollector
from wcfrelay.gateway.relays import Relays

REST = "$other"
Samples = dict[tuple[str, str, str], float]


@pytest.fixture
def relay() -> Iterator[Gateway]:
    with gateway(relays=[{"path": "orders"}]) as made:
        yield made


def scrape(relays: Relays, recorder: Recorder, label_limit: int = 500) -> Samples:
    """Samples by name, relay and result; counters without buckets that are zero."""
    registry = CollectorRegistry()
    registry.register(RelayCollector(relays, recorder, label_limit))
    samples: Samples = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            name = sample.name.removeprefix("wcfrelay_").removesuffix("_total")
            key = (name, sample.labels["relay"], sample.labels.get("result") or sample.labels.get("le", ""))
            assert key not in samples, f"{key} twice"
            samples[key] = sample.value
    return samples


def now(relay: Gateway) -> Samples:
    return scrape(relay.node._relays, relay.node._recorder)


def test_nothing_yet() -> None:
    samples = scrape(Relays(), Recorder(lambda: 0.0, None))
    assert set(samples.values()) == {0} and {name[1] for name in samples} == {"$other"}


def test_a_whole_day(relay: Gateway) -> None:
    listener, sender = relay.listener(), relay.sender()
    assert now(relay)["active_listeners", "orders", ""] == 1
    sender.ask(method="POST", body=b"12345")
    assert now(relay)["active_connections", "orders", ""] == 1
    relay.advance(0.2)
    listener.respond(b"1234567")
    for status in (204, 302, 404, 500):
        sender.ask()
        listener.respond(None, status)
    sender.ask(token=None)  # 401: refused by the gateway
    sender.ask("/unknown")
    gone = relay.sender()
    gone.ask()
    gone.leave()
    listener.leave()
    sender.ask()  # nobody listens
    relay.listener(token="garbage")
    samples = now(relay)
    assert samples["sender_connections", "orders", "success"] == 3
    assert samples["sender_connections", "orders", "client_error"] == 3
    assert samples["sender_connections", "orders", "server_error"] == 1
    assert samples["sender_connections", "$other", "client_error"] == 1
    assert samples["sender_disconnects", "orders", ""] == 1
    assert samples["listener_connections", "orders", "success"] == 1
    assert samples["listener_connections", "$other", "client_error"] == 1
    assert samples["listener_disconnects", "orders", ""] == 1
    assert samples["bytes_transferred", "orders", ""] == 12
    assert samples["active_connections", "orders", ""] == samples["active_listeners", "orders", ""] == 0
    assert samples["request_seconds_count", "orders", ""] == 6
    assert samples["request_seconds_sum", "orders", ""] == pytest.approx(0.2)
    assert samples["request_seconds_bucket", "orders", "0.1"] == 5
    assert (
        samples["request_seconds_bucket", "orders", "0.25"] == samples["request_seconds_bucket", "orders", "+Inf"] == 6
    )


@pytest.mark.parametrize("seconds", [0.001, 0.0011, 60.0, 60.1])
def test_buckets_include_their_bound(seconds: float) -> None:
    class Exchange:
        started_at = 0.0
        received = sent = 0
        status = 200
        answered, sender_left = True, False
        note: object = None
        done: object = None

    relays = Relays()
    made = relays.add(("a",), dynamic=True, response_timeout=1.0)
    recorder = Recorder(lambda: seconds, None)
    exchange = Exchange()
    recorder.begun(exchange, made, "l")  # type: ignore[arg-type]
    exchange.done(exchange)  # type: ignore[operator]
    samples = scrape(relays, recorder)
    for bound in (0.001, 0.0025, 30.0, 60.0):
        assert samples["request_seconds_bucket", "a", str(bound)] == (seconds <= bound)
    assert samples["request_seconds_bucket", "a", "+Inf"] == 1


@pytest.mark.parametrize("who", ["listener", "sender"])
def test_an_answer_that_is_cut_is_no_success(relay: Gateway, who: str) -> None:
    listener, sender = relay.listener(), relay.sender()
    sender.ask()
    rendezvous = listener.dial()
    rendezvous.start(request=listener.request)
    rendezvous.binary(b"part", False)
    (rendezvous if who == "listener" else sender).leave()
    assert relay.stats().sender_success == 0
    assert relay.stats().sender_disconnects == (who == "sender")


def test_a_sender_that_leaves_is_no_error_of_ours(relay: Gateway) -> None:
    relay.listener()
    sender = relay.sender()
    sender.ask()
    sender.leave()
    assert relay.stats().sender_server_error == 0 and relay.stats().sender_disconnects == 1


def test_relays_above_the_limit_are_summed_up() -> None:
    relays, recorder = Relays(), Recorder(lambda: 0.0, None)
    for number in range(5):
        made = relays.add((f"r{number}",), dynamic=True, response_timeout=1.0)
        made.stats.sender_success = 10**number
        made.stats.duration_buckets[number] = 1
        made.listeners.extend([object()] * number)  # type: ignore[list-item]
    recorder.unrouted.sender_success = 7
    samples = scrape(relays, recorder, label_limit=3)
    assert {name[1] for name in samples} == {"r0", "r1", "r2", "$other"}
    assert samples["sender_connections", "$other", "success"] == 11007
    assert samples["active_listeners", "$other", ""] == 7
    assert samples["request_seconds_count", "$other", ""] == 2
    assert relays.stats["r4"].sender_success == 10000 and recorder.unrouted.sender_success == 7  # only read
    assert scrape(relays, recorder, label_limit=3) == samples


def test_a_relay_cannot_take_the_place_of_the_rest() -> None:
    relays = Relays()
    assert {relay for _, relay, _ in scrape(relays, Recorder(lambda: 0.0, None))} == {REST}
    with pytest.raises(BadRequestError):
        relay_path(REST)


def test_paths_cannot_forge_samples() -> None:
    relays = Relays()
    relays.add(('a"} 5', "x"), dynamic=True, response_timeout=1.0)
    samples = scrape(relays, Recorder(lambda: 0.0, None))
    assert samples["active_listeners", 'a"} 5/x', ""] == 0


# -- the access log


def test_each_exchange_has_one_line_without_its_query() -> None:
    with gateway(relays=[{"path": "open", "requires_client_authorization": False}]) as relay:
        listener, sender, gone = relay.listener("open", query="&sb-hc-id=l1"), relay.sender(), relay.sender()
        token = relay.token().replace(" ", "%20")
        sender.ask(f"/open/x?sb-hc-token={token}&password=1", "POST", body=b"abc")
        listener.respond(b"ok")
        sender.ask("/unknown?password=1")
        gone.ask("/open?password=1")
        gone.leave()
        lines = relay.access_lines
        assert "password" not in relay.log.getvalue() and "sb-hc" not in relay.log.getvalue()
        seen = [[line[key] for key in ("method", "path", "status", "relay", "listener_id")] for line in lines]
        assert seen == [
            ["POST", "/open/x", 200, "open", "l1"],
            ["GET", "/unknown", 404, "", ""],
            ["GET", "/open", 0, "open", "l1"],
        ]
        assert (lines[0]["request_bytes"], lines[0]["response_bytes"], lines[0]["remote"]) == (3, 2, "203.0.113.7")
        assert lines[0]["tracking_id"] == listener.requests[0]["id"]


def test_a_refusal_has_its_line_and_its_tracking_id(relay: Gateway) -> None:
    sender = relay.sender()
    sender.ask("/orders?x=1", token=None)
    sender.ask("/orders")
    sender.ask("/%zz")
    lines = relay.access_lines
    assert [(line["path"], line["status"], line["relay"]) for line in lines] == [
        ("/orders", 401, "orders"),
        ("/orders", 404, "orders"),
        ("/%zz", 400, ""),
    ]
    for line, answer in zip(lines, sender.answers, strict=True):
        assert f"TrackingId:{line['tracking_id']}," in answer.error["message"]


def test_what_a_sender_writes_cannot_forge_a_line(relay: Gateway) -> None:
    sender = relay.sender()
    relay.listener(query="&sb-hc-id=a%0Ab%20%22c")
    sender.ask('/orders/"}{"status":999')
    sender.leave()
    (line,) = relay.access_lines
    assert json.loads(json.dumps(line)) == line and line["status"] == 0 and line["listener_id"] == 'a\nb "c'
