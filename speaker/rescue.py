"""What is left of a damaged store, copied into a new one.

Rows are read one by one through SQLite, and, in a file that is not encrypted, also from the bytes of its pages, as
they are laid out on leaves of a table (SQLite's file format, section 1.6 and 2): so rows survive the loss of the pages
that point to them, the first one too. A print counts when its checksum is right.
"""

from __future__ import annotations

import contextlib
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import StoreError
from speaker.store import Store
from speaker.store_file import MAGIC, PAGE, Database

__all__ = ["rescue"]

Row = tuple[Any, ...]
SPEAKER, PRINT = 4, 9  # columns of the tables, the key among them
LEAF = 0x0D


def rescue(broken: Path, out: Path, key: str | None = None) -> str:
    """Write the store `out`; returns a sentence about what was found. StoreError if nothing was."""
    if not broken.is_file():
        raise StoreError(f"there is no store {broken}")
    people: dict[int, Row] = {}
    prints: dict[int, Row] = {}
    for rows in ([] if key else [_from_pages(broken.read_bytes())]) + [_from_tables(broken, key)]:
        for row in rows:
            if len(row) == SPEAKER and isinstance(row[1], str):
                people[row[0]] = row
            elif len(row) == PRINT and isinstance(row[2], bytes) and zlib.crc32(row[2]) == row[3]:
                prints[row[0]] = row
    if not prints:
        raise StoreError(f"{broken}: no print could be read; a backup is all that helps")
    unnamed = _write(out, people, prints, key)
    told = f"{out}: {len(prints)} prints of {len({row[1] for row in prints.values()})} speakers"
    return told + (f"; the names of {unnamed} are lost, they are called rescued-NUMBER" if unnamed else "")


def _write(out: Path, people: dict[int, Row], prints: dict[int, Row], key: str | None) -> int:
    """Returns the number of speakers whose names are lost."""
    lost: set[int] = set()
    with Store.open(out, create=True, key=key) as store, store.database.writing():
        for _, person in sorted(people.items()):
            store.add_speaker(person[1], _object(person[2]))
        for _, row in sorted(prints.items()):
            _, speaker, vector, _, model, origin, quality, source, created = row
            name = people[speaker][1] if speaker in people else f"rescued-{speaker}"
            if speaker not in people:
                lost.add(speaker)
                store.add_speaker(name, {})
            store.add_prints(name, np.frombuffer(vector, "<f4")[None], model=model, quality=[_object(quality)],
                             sources=[source], migrated_from=origin, created=created)  # fmt: skip
    return len(lost)


def _object(text: Any) -> dict[str, Any]:
    with contextlib.suppress(TypeError, ValueError):
        found = json.loads(text)
        return found if isinstance(found, dict) else {}
    return {}


def _from_tables(path: Path, key: str | None) -> Iterator[Row]:
    """Rows that SQLite still reaches, each asked for by its number."""
    with contextlib.suppress(StoreError):
        database = Database(path, create=False, key=key, timeout=5.0)
        try:
            for table, columns in (("speakers", "id, name, metadata, created"),
                                   ("prints", "id, speaker, vector, crc, model, migrated_from, quality, source, "
                                    "created")):  # fmt: skip
                last = 0
                with contextlib.suppress(StoreError):
                    last = int(database.read("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,))[0][0])
                for number in range(1, last + 1):
                    with contextlib.suppress(StoreError):
                        yield from database.read(f"SELECT {columns} FROM {table} WHERE id = ?", (number,))
        finally:
            database.close()


def _from_pages(data: bytes) -> Iterator[Row]:
    """Rows on all leaves of tables, whatever points to them."""
    for start in range(0, len(data), PAGE):
        at = start + (100 if data[start : start + len(MAGIC)] == MAGIC else 0)
        if at + 8 > len(data) or data[at] != LEAF:
            continue
        count = struct.unpack_from(">H", data, at + 3)[0]
        for cell in range(min(count, (PAGE - 8) // 2)):
            with contextlib.suppress(struct.error, IndexError, ValueError, UnicodeDecodeError):
                offset = struct.unpack_from(">H", data, at + 8 + 2 * cell)[0]
                row = _row(data, start + offset)
                if len(row) in (SPEAKER, PRINT):
                    yield row


def _row(data: bytes, at: int) -> Row:
    """A record; its first column is the row's number, which is kept in front of it."""
    size, at = _varint(data, at)
    number, at = _varint(data, at)
    payload = _payload(data, at, size)
    header, place = _varint(payload, 0)
    kinds = []
    while place < header:
        kind, place = _varint(payload, place)
        kinds.append(kind)
    values: list[Any] = []
    for kind in kinds:
        length = (0, 1, 2, 3, 4, 6, 8, 8, 0, 0)[kind] if kind < 10 else (kind - 12) // 2
        part = payload[place : place + length]
        if len(part) < length:
            raise ValueError("cut short")
        place += length
        if kind == 0:
            values.append(None)
        elif kind in (8, 9):
            values.append(kind - 8)
        elif kind < 7:
            values.append(int.from_bytes(part, "big", signed=True))
        else:
            values.append(part.decode("utf-8") if kind % 2 else part)
    return (number, *values[1:])


def _payload(data: bytes, at: int, size: int) -> bytes:
    """`size` bytes from there on; what does not fit the page is on a chain of others."""
    most, least = PAGE - 35, (PAGE - 12) * 32 // 255 - 23
    if size <= most:
        return data[at : at + size]
    here = least + (size - least) % (PAGE - 4)
    here = here if here <= most else least
    parts, following = [data[at : at + here]], struct.unpack_from(">I", data, at + here)[0]
    left = size - here
    while left > 0 and following:
        start = (following - 1) * PAGE
        parts.append(data[start + 4 : start + 4 + min(left, PAGE - 4)])
        following, left = struct.unpack_from(">I", data, start)[0], left - (PAGE - 4)
    return b"".join(parts)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of 1 to 9 bytes, 7 bits in each, all 8 in the ninth; and the place after it."""
    value = 0
    for count in range(8):
        value = value << 7 | data[at + count] & 0x7F
        if data[at + count] < 0x80:
            return value, at + count + 1
    return value << 8 | data[at + 8], at + 9
