"""The file under a store of voiceprints: where it lies, how it is created, opened and told apart from others.

One SQLite database. A rollback journal, not a write-ahead log: prints are read whole in one short transaction, so that
readers hardly wait, and what is deleted is then in no second file that only a checkpoint without readers would empty.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from engine.errors import StoreError

__all__ = ["VERSION", "Database", "default_key", "default_path", "translated"]

VERSION = 1  # PRAGMA user_version
APPLICATION = 0x564F5850  # "VOXP", PRAGMA application_id
MAGIC = b"SQLite format 3\0"
PAGE = 4096
SCHEMA = """
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE speakers (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, metadata TEXT NOT NULL,
    created TEXT NOT NULL);
CREATE TABLE prints (id INTEGER PRIMARY KEY AUTOINCREMENT, speaker INTEGER NOT NULL REFERENCES speakers(id)
    ON DELETE CASCADE, vector BLOB NOT NULL, crc INTEGER NOT NULL, model TEXT NOT NULL, migrated_from TEXT,
    quality TEXT NOT NULL, source TEXT NOT NULL, created TEXT NOT NULL);
CREATE INDEX prints_speaker ON prints(speaker);
"""


def default_path() -> Path:
    """VOXCODE_STORE, or else the place where this system keeps a user's data."""
    named = os.environ.get("VOXCODE_STORE")
    if named:
        return Path(named)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return base / "voxcode" / "voiceprints.db"


def default_key() -> str | None:
    """Key of an encrypted store, VOXCODE_STORE_KEY: an option would stand in the list of processes, for all to see."""
    return os.environ.get("VOXCODE_STORE_KEY")


class Database:
    """A connection whose errors are StoreErrors and whose writes are whole transactions."""

    def __init__(self, path: Path, *, create: bool, key: str | None, timeout: float) -> None:
        """Open or create; StoreError for anything that is no store."""
        self.path, self.writes = path, 0
        self._connection = _connect(path, create, key, timeout)

    def read(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        with translated(self.path):
            return self._connection.execute(statement, values).fetchall()

    def execute(self, statement: str, values: Sequence[Any] = ()) -> Any:
        """One statement inside of `writing`; returns the cursor."""
        return self._connection.execute(statement, values)

    def about(self, key: str) -> str:
        """A fact about the whole store, "" where it is not there."""
        found = self.read("SELECT value FROM about WHERE key = ?", (key,))
        return found[0][0] if found else ""

    def set_about(self, key: str, value: str) -> None:
        """Inside of `writing`."""
        self.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (key, value))

    @contextlib.contextmanager
    def writing(self, erase: bool = False) -> Iterator[None]:
        """All or nothing. `erase`: what the block removes is removed from the file's bytes too."""
        with translated(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                if erase:
                    self.set_about("erase", "pending")
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
        self.writes += 1
        if erase or self.about("erase"):  # also what a killed process left behind
            self._erase()

    def _erase(self) -> None:
        """Write the file anew: secure_delete zeroes freed cells, but a page that was split or balanced may keep stale
        copies of cells beside those in use."""
        try:
            with translated(self.path):
                self._connection.execute("VACUUM")
                self._connection.execute("DELETE FROM about WHERE key = 'erase'")
        except StoreError as error:
            raise StoreError(f"done, but traces of what was removed may be left in the file; the next change to the "
                             f"store erases them ({error})") from error  # fmt: skip

    def version(self) -> tuple[int, int]:
        """Changes with every change to the store, by this connection or another."""
        return self.read("PRAGMA data_version")[0][0], self.writes

    def close(self) -> None:
        """No call after this one."""
        self._connection.close()


def _connect(path: Path, create: bool, key: str | None, timeout: float) -> Any:
    new = not path.exists() or (path.is_file() and path.stat().st_size == 0)
    if new and not create:
        raise StoreError(f"there is no store {path}; `speaker enroll NAME FILE...` makes one")
    if new:
        _create_private(path)
    elif key is None and _head(path) != MAGIC:
        raise StoreError(f"{path} is no store of voiceprints, its beginning is destroyed (`speaker store rescue`), or "
                         "it is encrypted (give the key in VOXCODE_STORE_KEY)")  # fmt: skip
    elif key is not None and _head(path) == MAGIC:
        raise StoreError(f"{path} is not encrypted, but a key was given; unset VOXCODE_STORE_KEY, or encrypt it: "
                         "`speaker store export` without the key, then `import` into a new one with it")  # fmt: skip
    with translated(path):
        connection = _driver(key).connect(str(path), timeout=timeout, isolation_level=None)
        try:
            _settle(connection, path, new, key)
        except BaseException:
            connection.close()
            raise
    return connection


def _create_private(path: Path) -> None:
    """Voiceprints are biometric data: the file and a folder made for it are their owner's alone."""
    if not path.parent.exists():
        try:
            path.parent.mkdir(parents=True, mode=0o700)
        except OSError as error:
            raise StoreError(f"{path.parent} cannot be made ({error.strerror}); choose another place by --store or "
                             "VOXCODE_STORE") from error  # fmt: skip
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise StoreError(f"{path} cannot be made ({error.strerror}); choose another place by --store or "
                         "VOXCODE_STORE") from error  # fmt: skip


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC))
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error


def _driver(key: str | None) -> Any:
    if key is None:
        return sqlite3
    if not key:
        raise StoreError("the key of the store is empty")
    try:
        from sqlcipher3 import dbapi2
    except ModuleNotFoundError as error:
        raise StoreError("an encrypted store needs SQLCipher: `pip install 'voxcode[encryption]'`") from error
    return dbapi2


def _settle(connection: Any, path: Path, new: bool, key: str | None) -> None:
    """Settings that are not kept in the file, and for a new one the tables."""
    if key is not None:
        connection.execute("PRAGMA cipher_log_level = NONE")
        quoted = key.replace("'", "''")
        connection.execute(f"PRAGMA key = '{quoted}'")
    if new:
        connection.execute(f"PRAGMA page_size = {PAGE}")
    connection.execute("PRAGMA secure_delete = ON")
    connection.execute("PRAGMA temp_store = MEMORY")  # no prints in temporary files
    connection.execute("PRAGMA synchronous = EXTRA")  # what was acknowledged survives a power cut
    connection.execute("PRAGMA foreign_keys = ON")
    if new:
        connection.execute("BEGIN IMMEDIATE")
        if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:  # nobody else was faster
            for statement in SCHEMA.strip().split(";\n"):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application != APPLICATION:
        raise StoreError(f"{path} is a database of something else, no store of voiceprints")
    if version > VERSION:
        raise StoreError(f"{path} was written by a newer version (format {version}, this one reads up to {VERSION}); "
                         "update voxcode")  # fmt: skip


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn what SQLite complains about into a StoreError that says what to do."""
    try:
        yield
    except Exception as error:
        if not _is_database_error(error):
            raise
        raise StoreError(f"{path}: {_advice(str(error))}") from error


def _is_database_error(error: Exception) -> bool:
    """SQLCipher's driver has a tree of errors of its own."""
    return any(kind.__name__ == "Error" and kind.__module__.startswith("sql") for kind in type(error).__mro__)


ADVICE = {
    "locked": "another process is writing to the store, or reading it for long; try again when it is done",
    "disk is full": "the disk is full; nothing of this call was stored, what was there before is",
    "disk I/O error": "the disk refused to write or read (full, over a limit, or failing); nothing of this call was "
    "stored",
    "readonly": "no permission to write; ask its owner, or choose another store by --store",
    "unable to open": "cannot be opened: no permission for the file or its folder, or it is a folder",
    "not a database": "is damaged, no store of voiceprints, or encrypted with another key; `speaker store rescue` "
    "recovers what is left of a damaged one",
    "malformed": "is damaged; `speaker store rescue BROKEN --out NEW` recovers the rest",
}


def _advice(message: str) -> str:
    return next((text for word, text in ADVICE.items() if word in message), message)
