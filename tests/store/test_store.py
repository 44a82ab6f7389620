"""One contract over every gateway store, and what a file on disk adds to it."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred, gatherResults

import wcfrelay
from wcfrelay.errors import ConfigError, QuotaExceededError, RelayError
from wcfrelay.sas import Right, Rule
from wcfrelay.store import GatewayStore, Registration, RelayRecord
from wcfrelay.store.memory import MemoryStore
from wcfrelay.store.sqlite import SqliteStore

KEY = "k3y-that-must-never-be-shown"
SEND = Rule("send", Right.SEND, KEY)
ROOT = Rule("root", Right.MANAGE, KEY, "second")
ORDERS = RelayRecord("orders", False, 1.5, 2.5, False, 7.5, "team=blüe")


@pytest.fixture(params=["memory", "sqlite"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], GatewayStore]:
    return MemoryStore if request.param == "memory" else lambda: SqliteStore(tmp_path / "store.sqlite")


async def test_rules_are_kept_by_path_and_name(make: Callable[[], GatewayStore]) -> None:
    store = make()
    assert await store.rules("orders") == []
    await store.put_rule("orders/eu", SEND)
    await store.put_rule("orders/eu", ROOT)
    await store.put_rule("", ROOT)
    assert await store.rules("orders/eu") == [
        replace(ROOT, scope=("orders", "eu")),
        replace(SEND, scope=("orders", "eu")),
    ]
    assert await store.rules("") == [ROOT]
    assert await store.rules("orders") == []
    changed = Rule("root", Right.LISTEN, "other")
    await store.put_rule("", changed)
    assert await store.rules("") == [changed]
    assert await store.delete_rule("", "root")
    assert not await store.delete_rule("", "root")
    assert await store.rules("") == []
    await store.close()


async def test_relays_are_kept_by_path(make: Callable[[], GatewayStore]) -> None:
    store = make()
    assert await store.relay("orders") is None
    await store.put_relay(ORDERS, limit=2)
    dynamic = RelayRecord("a", True, 3.0, 3.0)
    await store.put_relay(dynamic, limit=2)
    with pytest.raises(QuotaExceededError, match="2 relays"):
        await store.put_relay(RelayRecord("b", True, 3.0, 3.0), limit=2)
    changed = replace(ORDERS, updated_at=9.0, user_metadata="")
    await store.put_relay(changed, limit=2)
    assert await store.relay("orders") == changed
    assert await store.relays() == [dynamic, changed]
    assert await store.delete_relay("a")
    assert not await store.delete_relay("a")
    assert await store.relays() == [changed]
    await store.close()


async def test_the_rules_of_a_relay_go_with_it_unless_it_was_dynamic(make: Callable[[], GatewayStore]) -> None:
    store = make()
    for path in ("orders", "orders/eu", ""):
        await store.put_rule(path, SEND)
    await store.put_relay(replace(ORDERS, dynamic=True), limit=9)
    await store.delete_relay("orders")
    assert len(await store.rules("orders")) == 1
    await store.put_relay(ORDERS)
    await store.delete_relay("orders")
    assert await store.rules("orders") == []
    assert len(await store.rules("orders/eu")) == 1
    assert len(await store.rules("")) == 1
    await store.close()


async def test_registrations_count_up_to_their_limit(make: Callable[[], GatewayStore]) -> None:
    store = make()
    first, second = Registration("l1", "n1", "a1"), Registration("l2", "n2", "a2")
    assert await store.unregister("orders", "l1") == 0
    assert await store.register("orders", first, limit=2) == 1
    assert await store.register("orders", second, limit=2) == 2
    renewed = replace(first, address="a3")
    assert await store.register("orders", renewed, limit=2) == 2
    with pytest.raises(QuotaExceededError, match="MaximumListenersPerEndpoint"):
        await store.register("orders", Registration("l3", "n1", "a1"), limit=2)
    assert await store.register("orders/eu", first, limit=1) == 1
    assert await store.registrations("orders") == [renewed, second]
    assert await store.unregister("orders", "l1") == 1
    assert await store.unregister("orders", "l1") == 1
    assert await store.unregister("orders", "l2") == 0
    assert await store.registrations("orders") == []
    await store.close()


async def test_of_forty_racing_listeners_exactly_the_limit_get_in(make: Callable[[], GatewayStore]) -> None:
    store = make()

    def register(number: int) -> Deferred[int]:
        registration = Registration(f"l{number}", "n", "a")
        return Deferred.fromCoroutine(store.register("orders", registration, limit=25))

    def refused(failure: object) -> int:
        failure.trap(QuotaExceededError)  # type: ignore[attr-defined]
        return 0

    counts = await gatherResults([register(number).addErrback(refused) for number in range(40)])
    assert sorted(counts) == [0] * 15 + list(range(1, 26))
    await store.close()


async def test_finding_takes_the_longest_path_that_anybody_listens_on(make: Callable[[], GatewayStore]) -> None:
    store = make()
    short, long = Registration("l1", "n", "a"), Registration("l2", "n", "a")
    await store.register("orders", short, limit=1)
    await store.register("orders/eu", long, limit=1)
    assert await store.find(["orders/eu/de", "orders/eu", "orders"]) == ("orders/eu", [long])
    assert await store.find(["orders/us", "orders"]) == ("orders", [short])
    assert await store.find(["stock"]) is None
    await store.unregister("orders", "l1")
    assert await store.find(["orders"]) is None
    await store.close()


async def test_what_is_given_out_is_not_the_stores_own(make: Callable[[], GatewayStore]) -> None:
    store = make()
    await store.put_rule("", ROOT)
    await store.register("orders", Registration("l1", "n", "a"), limit=1)
    (await store.rules("")).clear()
    (await store.registrations("orders")).clear()
    assert await store.rules("") and await store.registrations("orders")
    await store.close()


async def test_a_file_keeps_rules_and_relays_over_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "state" / "store.sqlite"
    store = SqliteStore(path)
    await store.put_relay(ORDERS)
    await store.put_relay(RelayRecord("gone", False, 1.0, 1.0), limit=9)
    await store.put_relay(RelayRecord("turned", False, 1.0, 1.0), limit=9)
    await store.put_relay(RelayRecord("turned", True, 1.0, 1.0), limit=9)
    await store.put_rule("gone", SEND)
    await store.delete_relay("gone")
    await store.put_rule("", ROOT)
    await store.put_rule("", SEND)
    await store.put_rule("orders/eu", SEND)
    await store.delete_rule("", "send")
    await store.register("orders", Registration("l1", "n", "a"), limit=1)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}
    await store.close()

    path.chmod(0o644)
    store = SqliteStore(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert await store.relays() == [ORDERS]
    assert await store.rules("") == [ROOT]
    assert await store.rules("orders/eu") == [replace(SEND, scope=("orders", "eu"))]
    assert await store.rules("gone") == []
    assert await store.registrations("orders") == []
    await store.close()


WRITER = """
import asyncio, sys
from pathlib import Path
from wcfrelay.sas import Right, Rule
from wcfrelay.store.sqlite import SqliteStore
async def main():
    store = SqliteStore(Path(sys.argv[1]))
    number = 0
    while True:
        await store.put_rule(f"p{number}", Rule("r", Right.SEND, "k" * 200))
        print(number, flush=True)
        number += 1
asyncio.run(main())
"""


async def test_a_killed_process_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    environment = {**os.environ, "PYTHONPATH": str(Path(wcfrelay.__file__).parents[1])}
    for _ in range(2):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, env=environment
        ) as writer:
            assert writer.stdout is not None
            acknowledged = [writer.stdout.readline() for _ in range(50)]
            writer.send_signal(signal.SIGKILL)
            acknowledged += writer.stdout.readlines()
        assert writer.returncode == -signal.SIGKILL
        last = int([line for line in acknowledged if line.endswith(b"\n")][-1])
        store = SqliteStore(path)
        for number in range(last + 1):
            assert len(await store.rules(f"p{number}")) == 1
        await store.close()


async def test_one_gateway_at_a_time_has_the_file(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store.sqlite")
    with pytest.raises(ConfigError, match=r"store\.sqlite: is in use by another gateway"):
        SqliteStore(tmp_path / "store.sqlite")
    await store.close()
    await SqliteStore(tmp_path / "store.sqlite").close()


def change(path: Path, statement: str) -> None:
    database = sqlite3.connect(path)
    database.execute(statement)
    database.commit()
    database.close()


async def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    await SqliteStore(path).close()
    change(path, "PRAGMA user_version = 99")
    with pytest.raises(ConfigError, match=r"store\.sqlite: .*newer wcfrelay \(schema 99, this one knows 1\)"):
        SqliteStore(path)
    change(path, "PRAGMA user_version = 1")
    await SqliteStore(path).close()


def test_another_programs_database_is_refused(tmp_path: Path) -> None:
    change(tmp_path / "store.sqlite", "CREATE TABLE theirs (x)")
    with pytest.raises(ConfigError, match="another program's database"):
        SqliteStore(tmp_path / "store.sqlite")


async def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    path.write_bytes(b"no database " * 1000)
    with pytest.raises(ConfigError, match=r"store\.sqlite: is damaged"):
        SqliteStore(path)
    path.unlink()
    store = SqliteStore(path)
    for number in range(300):
        await store.put_relay(RelayRecord(f"p{number}", False, 1.0, 1.0), limit=1000)
    await store.close()
    content = bytearray(path.read_bytes())
    content[2 * 4096 : 4 * 4096] = os.urandom(2 * 4096)
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"store\.sqlite: is damaged"):
        SqliteStore(path)


def test_a_place_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"file.*set gateway\.state"):
        SqliteStore(tmp_path / "file" / "store.sqlite")
    with pytest.raises(ConfigError, match=r"set gateway\.state"):
        SqliteStore(tmp_path)


async def test_a_failed_write_changes_nothing(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store.sqlite")
    await store.put_relay(ORDERS)
    await store.put_rule("orders", ROOT)
    store._database.execute("PRAGMA query_only = 1")
    for call in (
        store.put_rule("orders", SEND),
        store.delete_rule("orders", "root"),
        store.put_relay(replace(ORDERS, updated_at=9.0), limit=9),
        store.delete_relay("orders"),
    ):
        with pytest.raises(RelayError, match="cannot be written") as caught:
            await call
        assert KEY not in str(caught.value)
    assert await store.relays() == [ORDERS]
    assert await store.rules("orders") == [replace(ROOT, scope=("orders",))]
    store._database.execute("PRAGMA query_only = 0")
    await store.put_rule("orders", SEND)
    await store.close()
