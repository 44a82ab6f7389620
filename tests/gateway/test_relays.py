from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wcfrelay.errors import BadRequestError, NoListenerError, ServerBusyError
from wcfrelay.gateway.relays import LATENCY_BUCKETS, Relay, Relays, RelayStats
from wcfrelay.net.http1.exchange import ServerExchange


@dataclass(eq=False)
class Link:
    id: str = ""
    load: int = 0
    blocked: bool = False

    def carry(self, exchange: ServerExchange, target: str, drop: frozenset[str]) -> None:
        raise AssertionError

    def close(self, code: int, reason: str) -> None:
        raise AssertionError


def add(relays: Relays, path: str, dynamic: bool = True) -> Relay:
    return relays.add(tuple(path.split("/")), dynamic=dynamic, response_timeout=60.0)


def relay_with(*links: Link) -> Relay:
    relay = add(Relays(), "a")
    relay.listeners.extend(links)
    return relay


# -- routes


@given(st.sets(st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(tuple)), st.lists(st.sampled_from("abc")))
def test_the_longest_prefix_is_selected(registered: set[tuple[str, ...]], wanted: list[str]) -> None:
    relays = Relays()
    for segments in registered:
        relays.add(segments, dynamic=True, response_timeout=1.0)
    prefixes = [segments for segments in registered if tuple(wanted[: len(segments)]) == segments]
    expected = max(prefixes, key=len, default=None)
    found = relays.select(tuple(wanted))
    assert (found.segments if found else None) == expected
    for _ in range(2):
        routed, segments = relays.route("/" + "/".join(wanted))
        assert routed is found and segments == tuple(wanted)


def test_a_route_is_forgotten_when_relays_come_and_go() -> None:
    relays = Relays()
    assert relays.route("/a/b/c") == (None, ("a", "b", "c"))
    short = add(relays, "a")
    assert relays.route("/a/b/c")[0] is short
    long = add(relays, "a/b")
    assert relays.route("/a/b/c")[0] is long and relays.get(("a", "b")) is long
    relays.remove(long)
    assert relays.route("/a/b/c")[0] is short and relays.get(("a", "b")) is None
    relays.remove(long)
    relays.remove(short)
    assert relays.route("/a/b/c")[0] is None and len(relays) == 0 and list(relays) == []


def test_a_malformed_path_has_no_route() -> None:
    relays = Relays()
    add(relays, "a")
    for path in ("", "a", "/a/../b", "/%2e"):
        with pytest.raises(BadRequestError):
            relays.route(path)


def test_the_routes_that_are_remembered_are_bounded() -> None:
    relays = Relays()
    relay = add(relays, "a")
    for number in range(40_000):
        relays.route(f"/a/{number}")
    assert len(relays._routes) <= 16_384
    assert relays.route("/a/1")[0] is relay


def test_long_paths_are_not_remembered() -> None:
    relays = Relays()
    add(relays, "a")
    for number in range(100):
        relays.route(f"/a/{'x' * 8000}/{number}")
    kept = sum(sys.getsizeof(path) + sys.getsizeof(segments) for path, (_, segments) in relays._routes.items())
    assert kept < 100 * 1024


class Counting(dict[Any, Any]):
    looked_up = 0

    def get(self, key: Any, default: Any = None) -> Any:
        self.looked_up += len(key)
        return super().get(key, default)


def test_a_path_of_many_segments_costs_no_more_than_the_relays_have() -> None:
    relays = Relays()
    for path in ("a", "a/b", "a/b/c"):
        add(relays, path)
    relays._relays = counting = Counting(relays._relays)
    relay, segments = relays.route("/a" + "/x" * 4000)
    assert relay is not None and relay.path == "a" and len(segments) == 4001
    assert relays.route("/x" + "/x" * 4000)[0] is None
    assert counting.looked_up < 100


# -- listeners


def test_without_listeners() -> None:
    with pytest.raises(NoListenerError):
        relay_with().choose(10)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_listener_is_chosen_some_time(count: int) -> None:
    relay = relay_with(*(Link() for _ in range(count)))
    chosen = {id(relay.choose(1000)) for _ in range(500)}
    assert len(chosen) == count


def test_of_two_the_one_with_less_to_do() -> None:
    busy, free = Link(load=5), Link(load=4)
    assert {relay_with(busy, free).choose(1000).load for _ in range(20)} == {4}
    blocked, loaded = Link(load=0, blocked=True), Link(load=9)
    assert {relay_with(blocked, loaded).choose(1000).load for _ in range(20)} == {9}


def test_loads_stay_even() -> None:
    links = [Link() for _ in range(10)]
    relay = relay_with(*links)
    for _ in range(1000):
        relay.choose(1000).load += 1
    assert max(link.load for link in links) - min(link.load for link in links) < 12


def test_a_listener_with_room_is_found_among_full_ones() -> None:
    links = [Link(load=3) for _ in range(24)]
    links.append(Link(load=2))
    relay = relay_with(*links)
    assert all(relay.choose(3) is links[-1] for _ in range(50))
    links[-1].load = 3
    with pytest.raises(ServerBusyError):
        relay.choose(3)
    with pytest.raises(ServerBusyError):
        relay_with(links[0]).choose(3)


def test_a_blocked_listener_with_room_is_better_than_none() -> None:
    full, blocked = Link(load=3), Link(load=0, blocked=True)
    assert relay_with(full, blocked).choose(3) is blocked


def test_a_free_listener_is_found_among_blocked_ones() -> None:
    free = Link()
    relay = relay_with(Link(blocked=True), Link(blocked=True), free)
    assert all(relay.choose(10) is free for _ in range(50))


# -- counters


def test_counters_outlive_their_relay() -> None:
    relays = Relays()
    relay = add(relays, "a")
    relay.stats.sender_success = 5
    relays.remove(relay)
    assert relays.stats["a"].sender_success == 5
    assert add(relays, "a").stats.sender_success == 5


def test_counters_are_bounded() -> None:
    relays = Relays(stats_limit=10)
    for number in range(50):
        relays.remove(add(relays, str(number)))
    assert list(relays.stats) == [str(number) for number in range(40, 50)]


def test_the_counters_of_living_relays_are_kept() -> None:
    relays = Relays(stats_limit=10)
    configured = add(relays, "configured", dynamic=False)
    for number in range(50):
        relays.remove(add(relays, str(number)))
    assert relays.stats["configured"] is configured.stats


def test_counters_begin_at_zero_each_for_itself() -> None:
    one, other = RelayStats(), RelayStats()
    one.duration_buckets[0] += 1
    assert len(other.duration_buckets) == len(LATENCY_BUCKETS) + 1 and not any(other.duration_buckets)
