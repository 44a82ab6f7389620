from __future__ import annotations

import os
import re

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from wcfrelay.gateway.rendezvous import Ids, Rendezvous
from wcfrelay.net.timers import Timers

GUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}_G0")


def make() -> tuple[Clock, Rendezvous[str], list[str]]:
    clock = Clock()
    return clock, Rendezvous(Timers(clock)), []


def test_ids_are_unique_and_look_like_a_guid_with_a_mark() -> None:
    ids = Ids(os.urandom)
    made = [ids.new() for _ in range(2000)]
    assert len(set(made)) == 2000 and all(GUID.fullmatch(each) for each in made)
    assert Ids(os.urandom, "G7").new().endswith("_G7")


def test_an_id_is_all_of_16_random_bytes_and_each_byte_is_used_once() -> None:
    served = bytearray()

    def random_bytes(count: int) -> bytes:
        piece = os.urandom(count)
        served.extend(piece)
        return piece

    ids = Ids(random_bytes)
    made = "".join(ids.new().removesuffix("_G0").replace("-", "") for _ in range(700))
    assert bytes.fromhex(made) == served[: 700 * 16]


def test_what_waits_is_taken_once() -> None:
    clock, rendezvous, expired = make()
    rendezvous.wait("a", "one", 30, lambda: expired.append("a"))
    rendezvous.wait("b", "two", 30, lambda: expired.append("b"))
    assert len(rendezvous) == 2
    assert (rendezvous.take("a"), rendezvous.take("a"), rendezvous.take("unknown"), rendezvous.take("")) == (
        *("one", None),
        *(None, None),
    )
    clock.advance(40)
    assert expired == ["b"] and len(rendezvous) == 0 and rendezvous.take("b") is None


def test_time_is_not_shortened_nor_much_longer() -> None:
    clock, rendezvous, expired = make()
    rendezvous.wait("a", "one", 30, lambda: expired.append("a"))
    clock.advance(29.99)
    assert not expired
    clock.advance(0.3)
    assert expired == ["a"]


def test_what_is_withdrawn_does_not_expire() -> None:
    clock, rendezvous, expired = make()
    rendezvous.wait("a", "one", 30, lambda: expired.append("a"))
    rendezvous.withdraw("a")
    rendezvous.withdraw("a")
    clock.advance(60)
    assert not expired and len(rendezvous) == 0 and rendezvous.take("a") is None


def test_what_expires_may_wait_again() -> None:
    clock, rendezvous, expired = make()

    def again() -> None:
        expired.append("a")
        if len(expired) < 3:
            rendezvous.wait("a", "one", 30, again)

    rendezvous.wait("a", "one", 30, again)
    for _ in range(4):
        clock.advance(31)
    assert len(expired) == 3 and len(rendezvous) == 0


@given(st.lists(st.tuples(st.sampled_from("wtxa"), st.integers(0, 3)), max_size=40))
def test_each_wait_ends_exactly_once(acts: list[tuple[str, int]]) -> None:
    clock, rendezvous, expired = make()
    waiting: set[str] = set()
    ends: list[str] = []
    number = 0
    for act, which in acts:
        if act == "w":
            number += 1
            name = f"{number}"
            rendezvous.wait(name, name, 1.0 + which, lambda name=name: expired.append(name))  # type: ignore[misc]
            waiting.add(name)
        elif act == "a":
            clock.advance(0.7 * which)
        elif number:
            name = f"{max(1, number - which)}"
            if act == "t":
                if rendezvous.take(name) is not None:
                    ends.append(name)
            else:
                rendezvous.withdraw(name)
                if name not in expired and name not in ends:
                    ends.append(name)
    clock.advance(10)
    assert len(rendezvous) == 0
    assert sorted(ends + expired, key=int) == sorted(waiting, key=int)
