"""A gateway store of one node: rules and relays in a SQLite file, the rest in memory.

Registrations are not written down, nor are dynamic relays: both belong to control channels of this very process,
and after a restart there is none of them. What is written down is also kept in memory, so a look-up never touches the
file; hence one process at a time has the file, under SQLite's exclusive lock, which ends with the process however that
ends. A write is one transaction, synced to the disk before the call returns: a few milliseconds of the reactor, on
operations of administrators only.

The schema is the numbered ``.sql`` files beside this module; ``user_version`` holds the number of the last applied.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from wcfrelay.errors import ConfigError, RelayError
from wcfrelay.sas import Right, Rule
from wcfrelay.store import RelayRecord
from wcfrelay.store.memory import MemoryStore

__all__ = ["SqliteStore"]

# "wcfr": tells our files from other programs' databases.
_APPLICATION_ID = 0x77636672


class SqliteStore(MemoryStore):
    """:class:`~wcfrelay.store.GatewayStore` on the SQLite file ``path``, made (mode 0600) when absent.

    :raises ConfigError: the file cannot be opened or written, is damaged, another program's or a newer wcfrelay's, or
        is in use by another gateway.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            path.chmod(0o600)  # it holds keys; SQLite gives its side files the same mode
        except OSError as exc:
            raise ConfigError(
                f"{path}: cannot open the gateway store ({exc.strerror}); give the folder to this user, "
                "or set gateway.state to another one"
            ) from None
        self._database = sqlite3.connect(path, timeout=0, isolation_level=None)
        try:
            self._open()
        except sqlite3.Error as exc:
            self._database.close()
            raise ConfigError(_refusal(path, exc)) from None
        except BaseException:
            self._database.close()
            raise

    def _open(self) -> None:
        run = self._database.execute
        run("PRAGMA locking_mode = EXCLUSIVE")
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = FULL")
        run("BEGIN EXCLUSIVE")
        run("COMMIT")
        damage = run("PRAGMA quick_check(1)").fetchone()[0]
        if damage != "ok":
            raise sqlite3.DatabaseError(damage)
        version = run("PRAGMA user_version").fetchone()[0]
        ours = run("PRAGMA application_id").fetchone()[0] == _APPLICATION_ID
        if not ours and run("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise ConfigError(f"{self._path}: is another program's database; set gateway.state to another folder")
        steps = list(_schema())
        if version > len(steps):
            raise ConfigError(
                f"{self._path}: was written by a newer wcfrelay (schema {version}, this one knows {len(steps)}); "
                "upgrade, or set gateway.state to another folder"
            )
        for number, script in enumerate(steps[version:], version + 1):
            self._database.executescript(
                f"BEGIN; {script}; PRAGMA application_id = {_APPLICATION_ID}; PRAGMA user_version = {number}; COMMIT;"
            )
        for path, created, updated, required, timeout, metadata in run(
            "SELECT path, created_at, updated_at, requires_client_authorization, response_timeout, user_metadata"
            " FROM relays"
        ):
            self._relays[path] = RelayRecord(path, False, created, updated, bool(required), timeout, metadata)
        for path, name, rights, primary_key, secondary_key in run(
            "SELECT path, name, rights, primary_key, secondary_key FROM rules"
        ):
            scope = tuple(path.split("/")) if path else ()
            rule = Rule(name, Right.from_names(rights.split()), primary_key, secondary_key, scope)
            self._rules.setdefault(path, {})[name] = rule

    def _write(self, *statements: tuple[str, tuple[Any, ...]]) -> None:
        try:
            with self._database:
                self._database.execute("BEGIN")
                for statement, values in statements:
                    self._database.execute(statement, values)
        except sqlite3.Error as exc:
            raise RelayError(f"The gateway store cannot be written ({exc}); see {self._path}.") from None

    async def put_rule(self, path: str, rule: Rule) -> None:
        rights = " ".join(rule.rights.wire_names)
        self._write(
            (
                "INSERT OR REPLACE INTO rules VALUES (?, ?, ?, ?, ?)",
                (path, rule.name, rights, rule.primary_key, rule.secondary_key),
            )
        )
        await super().put_rule(path, rule)

    async def delete_rule(self, path: str, name: str) -> bool:
        if name in self._rules.get(path, {}):
            self._write(("DELETE FROM rules WHERE path = ? AND name = ?", (path, name)))
        return await super().delete_rule(path, name)

    async def put_relay(self, record: RelayRecord, *, limit: int | None = None) -> None:
        self._check_relays(record, limit)
        present = self._relays.get(record.path)
        if not record.dynamic:
            values = (
                record.path,
                record.created_at,
                record.updated_at,
                record.requires_client_authorization,
                record.response_timeout,
                record.user_metadata,
            )
            self._write(("INSERT OR REPLACE INTO relays VALUES (?, ?, ?, ?, ?, ?)", values))
        elif present is not None and not present.dynamic:
            self._write(("DELETE FROM relays WHERE path = ?", (record.path,)))
        await super().put_relay(record, limit=limit)

    async def delete_relay(self, path: str) -> bool:
        present = self._relays.get(path)
        if present is not None and not present.dynamic:
            self._write(("DELETE FROM relays WHERE path = ?", (path,)), ("DELETE FROM rules WHERE path = ?", (path,)))
        return await super().delete_relay(path)

    async def close(self) -> None:
        self._database.close()


def _schema() -> Iterator[str]:
    folder = files("wcfrelay.store")
    for script in sorted((entry for entry in folder.iterdir() if entry.name.endswith(".sql")), key=lambda s: s.name):
        yield script.read_text(encoding="utf-8")


def _refusal(path: Path, exc: sqlite3.Error) -> str:
    code = getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return f"{path}: is in use by another gateway; stop it, or set gateway.state to another folder"
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return f"{path}: is damaged ({exc}); put a copy back, or move it away to begin with an empty store"
    return f"{path}: cannot open the gateway store ({exc}); check the disk and this user's permission"
