"""Stores of voiceprints from one to another: as JSON, and out of a damaged file."""

from __future__ import annotations

import base64
import json
import shutil
import sqlite3
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import StoreError
from engine.files import replacing
from speaker.store import Store
from speaker.store_file import MAGIC, PAGE, Database

__all__ = ["read", "rescue", "write"]

KIND = "voiceprints"
Row = tuple[str, dict[str, Any], bytes, str, dict[str, Any], str]  # speaker, metadata, vector, model, quality, source


def write(store: Store, path: Path) -> int:
    """Write all speakers and prints as JSON, whole or not at all; returns the number of prints."""
    prints = store.prints()
    speakers = [
        {
            "name": each.name, "created": each.created, "metadata": each.metadata,
            "prints": [
                {"vector": base64.b64encode(p.vector.astype("<f4").tobytes()).decode(), "quality": p.quality,
                 "source": p.source, "created": p.created}
                for p in prints if p.speaker == each.name
            ],
        }
        for each in store.speakers()
    ]  # fmt: skip
    with replacing(path) as partial:
        partial.touch()
        partial.chmod(0o600)  # biometric data: its owner's alone
        partial.write_text(json.dumps({"kind": KIND, "model": store.model, "speakers": speakers}, indent=1) + "\n")
    return len(prints)


def read(store: Store, path: Path) -> tuple[int, int]:
    """Add what `write` wrote; returns the prints that were added, and those that were there already."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("kind") != KIND:
            raise StoreError(f"{path} holds no voiceprints; `speaker store export` writes them")
        rows = [
            (speaker["name"], speaker["metadata"], base64.b64decode(each["vector"], validate=True), content["model"],
             each["quality"], each["source"])
            for speaker in content["speakers"] for each in speaker["prints"]
        ]  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{path} holds no voiceprints ({error}); `speaker store export` writes them") from error
    return _add(store, rows)


def _add(store: Store, rows: list[Row]) -> tuple[int, int]:
    """All of them before the first is stored: a print that does not fit must not leave half of the others behind."""
    for name, _, vector, model, _, _ in rows:
        store.check_model(model)
        if len(vector) % 4 or not np.isfinite(np.frombuffer(vector, "<f4")).all():
            raise StoreError(f"a print of {name} is damaged")
    known = {(each.speaker, each.vector.tobytes()) for each in store.prints()}
    new: dict[str, list[Row]] = {}
    for row in rows:
        if (row[0], row[2]) not in known:
            new.setdefault(row[0], []).append(row)
    for name, members in new.items():
        vectors = np.stack([np.frombuffer(row[2], "<f4") for row in members])
        store.enroll(name, vectors, model=members[0][3], quality=[row[4] for row in members],
                     sources=[row[5] for row in members], metadata=members[0][1])  # fmt: skip
    added = sum(map(len, new.values()))
    return added, len(rows) - added


def rescue(broken: Path, out: Path, key: str | None = None) -> tuple[int, int]:
    """Copy every print that is whole from a damaged store into a new one; returns how many, and how many were lost.

    Rows are read one by one, by their numbers, past pages that cannot be read. A beginning that is destroyed is that
    of a new store: tables lie at the same place in all of them. StoreError if nothing can be read.
    """
    if key is not None:
        raise StoreError("an encrypted store cannot be mended page by page; restore a copy of it")
    if not broken.is_file():
        raise StoreError(f"there is no file {broken}")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy.db"
        shutil.copy(broken, copy)
        with copy.open("rb") as file:
            whole = file.read(len(MAGIC)) == MAGIC
        if not whole:
            _new_beginning(copy)
        rows, lost = _readable(copy)
        if not rows and whole:  # the list of tables may be what is damaged
            _new_beginning(copy)
            rows, lost = _readable(copy)
    if not rows:
        raise StoreError(f"nothing in {broken} can be read as a voiceprint")
    try:
        with Store.open(out, create=True) as store:
            _add(store, rows)
    except StoreError:
        out.unlink(missing_ok=True)
        raise
    return len(rows), lost


def _new_beginning(path: Path) -> None:
    """Put the first page of a new store in place of that of `path`."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder) / "fresh.db"
        Database(fresh, create=True, key=None, timeout=1.0).close()
        page = bytearray(fresh.read_bytes()[:PAGE])
    # Number of pages and of free ones: 0 is "look at the file", and the free ones are not of interest.
    page[28:40] = bytes(12)
    with path.open("r+b") as file:
        file.write(page)


def _readable(path: Path) -> tuple[list[Row], int]:
    """Prints that can be read and are what was stored, and the number of the others that are known of."""
    connection = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)
    try:
        last = _first(connection, "SELECT seq FROM sqlite_sequence WHERE name = 'prints'") or path.stat().st_size // 100
        rows, lost = [], 0
        for number in range(1, last + 1):
            try:
                found = connection.execute(
                    "SELECT speaker, vector, crc, model, quality, source FROM prints WHERE id = ?", (number,)
                ).fetchone()
            except sqlite3.Error:
                lost += 1
                continue
            if found is None:
                continue
            speaker, vector, crc, model, quality, source = found
            if not isinstance(vector, bytes) or zlib.crc32(vector) != crc:
                lost += 1
                continue
            name, metadata = _speaker(connection, speaker)
            rows.append((name, metadata, vector, str(model), _object(quality), str(source)))
        return rows, lost
    finally:
        connection.close()


def _speaker(connection: sqlite3.Connection, number: int) -> tuple[str, dict[str, Any]]:
    """Name and metadata; a name made of the number where they cannot be read: the print itself is worth more."""
    for found in _rows(connection, f"SELECT name, metadata FROM speakers WHERE id = {int(number)}"):
        return str(found[0]), _object(found[1])
    return f"speaker {number} (name lost)", {}


def _object(text: object) -> dict[str, Any]:
    try:
        found = json.loads(str(text))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _rows(connection: sqlite3.Connection, statement: str) -> Iterator[tuple[Any, ...]]:
    try:
        yield from connection.execute(statement).fetchall()
    except sqlite3.Error:
        return


def _first(connection: sqlite3.Connection, statement: str) -> int:
    for row in _rows(connection, statement):
        return int(row[0])
    return 0
