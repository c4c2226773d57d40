"""Voiceprints of known speakers in one file: enroll, search, rename, merge, delete. No server, no torch.

    with Store.open("voices.db", model=encoder.identity, create=True) as store:
        store.enroll("Ada", vectors)                  # (n, D), one print for each recording
        matches = store.search(vector, top=5)         # (D,) -> the speakers that are most alike

A print is an embedding (D,) as the encoder gave it, with its model, quality, source and time. Each call is one
transaction: when it returns, a killed process or a power cut takes nothing of it back.
"""

from __future__ import annotations

import datetime
import difflib
import json
import unicodedata
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.errors import StoreError
from speaker.file_names import text_of
from speaker.gallery import Gallery, Match, unit_rows
from speaker.store_file import Database, default_key, default_path

__all__ = ["Print", "Speaker", "Store", "default_key", "default_path", "same_model"]


INSERT = """INSERT INTO prints (speaker, vector, crc, model, migrated_from, quality, source, created)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?)"""
KNOWN = "SELECT vector FROM prints WHERE speaker = ? AND model = ?"
SAME = 1 - 1e-5  # cosine of two embeddings of one recording; the last digits depend on what else was in the batch


@dataclass(frozen=True, kw_only=True)
class Speaker:
    """A known person; `seconds` of speech in all prints."""

    name: str
    num_prints: int
    seconds: float
    created: str  # UTC, ISO 8601
    metadata: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Print:
    """One embedding (D,) of a speaker; `migrated_from` is the model whose print it was before a migration."""

    id: int
    speaker: str
    vector: NDArray[np.float32]
    model: str
    migrated_from: str | None
    quality: dict[str, Any]
    source: str
    created: str


class Store:
    """An open store of the prints of one model."""

    def __init__(self, database: Database) -> None:
        self.database, self.path = database, database.path
        self._gallery: tuple[tuple[int, int], Gallery] | None = None

    @classmethod
    def open(
        cls, path: str | Path | None = None, *, model: str | None = None, create: bool = False,
        key: str | None = None, timeout: float = 5.0,
    ) -> Store:  # fmt: skip
        """Open the store at `path` (default: `default_path()`); with `key` an encrypted one.

        `timeout`: seconds to wait for another process. StoreError if the prints are of another `model`.
        """
        place = default_path() if path is None else Path(path)
        store = cls(Database(place, create=create, key=key, timeout=timeout))
        try:
            if model is not None:
                store.check_model(model)
        except StoreError:
            store.close()
            raise
        return store

    @property
    def model(self) -> str:
        """`name@digest` of the encoder, "" while nothing was ever enrolled."""
        return self.database.about("model")

    def check_model(self, model: str) -> None:
        """StoreError with both names where the prints are of another model than `name@digest`."""
        if self.model and not same_model(self.model, model):
            name = self.model.partition("@")[0]
            hint = f"use --model {name}"
            if name == model.partition("@")[0]:  # an update of the package brought others under the same name
                hint = f"the weights of {name} are others now: give --model a folder of those, or enroll anew"
            raise StoreError(f"{self.path} holds prints of {self.model}, the encoder is {model}: they cannot be "
                             f"compared; {hint}, or `speaker store migrate`")  # fmt: skip

    def enroll(
        self, name: str, vectors: ArrayLike, *, model: str | None = None, quality: Sequence[Mapping[str, Any]] = (),
        sources: Sequence[str] = (), metadata: Mapping[str, Any] | None = None,
    ) -> list[int]:  # fmt: skip
        """Add prints (n, D) to a speaker, who is new if the name is; returns their numbers.

        One that the speaker has already, but for rounding, is skipped, and its number not among them. `model` is
        needed once, for the first. `quality` and `sources` have an entry for each print; `metadata` is
        added to the speaker's.
        """
        with self.database.writing():
            self.add_speaker(name, metadata or {})
            return self.add_prints(name, vectors, model=model, quality=quality, sources=sources)

    def add_prints(
        self, name: str, vectors: ArrayLike, *, model: str | None, quality: Sequence[Mapping[str, Any]] = (),
        sources: Sequence[str] = (), migrated_from: str | None = None, created: str | None = None,
    ) -> list[int]:  # fmt: skip
        """As `enroll`, for a known speaker and inside of `database.writing`, where many calls are one transaction."""
        rows = _checked(vectors)
        if not (len(quality) in (0, len(rows)) and len(sources) in (0, len(rows))):
            raise StoreError(f"{len(rows)} prints, but {len(quality)} qualities and {len(sources)} sources")
        settled, number = self._settle(model, rows.shape[1]), self.number_of(name)
        numbers, known = [], self._directions(number, settled, rows.shape[1])
        for i, (row, direction) in enumerate(zip(rows, unit_rows(rows), strict=True)):
            if (known @ direction > SAME).any():
                continue  # a recording that is given twice tells nothing new, and would count twice in the mean
            data, known = row.astype("<f4").tobytes(), np.vstack([known, direction])
            facts = _json(quality[i]) if quality else "{}"
            values = (number, data, zlib.crc32(data), settled, migrated_from, facts,
                      text_of(sources[i]) if sources else "", created or _now())  # fmt: skip
            numbers.append(self.database.execute(INSERT, values).lastrowid)
        return numbers

    def speakers(self) -> list[Speaker]:
        """All, by name."""
        found = self.database.read(
            "SELECT s.name, count(p.id), s.created, s.metadata, group_concat(p.quality, char(10)) FROM speakers s "
            "LEFT JOIN prints p ON p.speaker = s.id GROUP BY s.id ORDER BY s.name"
        )
        return [
            Speaker(name=name, num_prints=count, created=created, metadata=json.loads(metadata),
                    seconds=sum(json.loads(line).get("seconds", 0.0) for line in (quality or "").split("\n") if line))
            for name, count, created, metadata, quality in found
        ]  # fmt: skip

    def prints(self, name: str | None = None) -> list[Print]:
        """Those of a speaker or all, oldest first; StoreError for an unknown name or a damaged print."""
        where, values = ("", ()) if name is None else ("WHERE p.speaker = ?", (self.number_of(name),))
        found = self.database.read(
            "SELECT p.id, s.name, p.vector, p.crc, p.model, p.migrated_from, p.quality, p.source, p.created "
            f"FROM prints p JOIN speakers s ON s.id = p.speaker {where} ORDER BY p.id", values
        )  # fmt: skip
        for row in found:
            if zlib.crc32(row[2]) != row[3]:
                raise StoreError(f"{self.path}: print {row[0]} of {row[1]} is damaged; `speaker store rescue` recovers "
                                 "the rest")  # fmt: skip
        return [
            Print(id=number, speaker=who, vector=np.frombuffer(vector, "<f4"), model=model, migrated_from=origin,
                  quality=json.loads(quality), source=source, created=created)
            for number, who, vector, _, model, origin, quality, source, created in found
        ]  # fmt: skip

    def gallery(self) -> Gallery:
        """All speakers for searching, kept until this or another process changes the store."""
        version = self.database.version()
        if self._gallery is None or self._gallery[0] != version:
            prints = self.prints()
            if not prints:
                raise StoreError(f"{self.path} holds no prints; `speaker enroll NAME FILE...` adds some")
            self._gallery = version, Gallery([p.speaker for p in prints], np.stack([p.vector for p in prints]),
                                             [p.quality.get("seconds", np.nan) for p in prints])  # fmt: skip
        return self._gallery[1]

    def search(self, vector: ArrayLike, top: int = 5, first_dims: int | None = None) -> list[Match]:
        """The `top` speakers by cosine to the mean direction of their prints, best first; none is "unknown" here."""
        return self.gallery().search(np.asarray(vector, dtype=np.float32)[None], top, first_dims=first_dims)[0]

    def rename(self, old: str, new: str) -> None:
        """StoreError if the new name is taken."""
        new, number = checked_name(new), self.number_of(old)
        with self.database.writing(erase=True):
            taken = self.database.execute("SELECT id FROM speakers WHERE name = ?", (new,)).fetchone()
            if taken is not None and taken[0] != number:
                raise StoreError(f"there is a speaker {new!r} already; `speaker store merge {old!r} {new!r}` joins "
                                 "them")  # fmt: skip
            self.database.execute("UPDATE speakers SET name = ? WHERE id = ?", (new, number))

    def merge(self, source: str, into: str) -> None:
        """Give the prints and metadata of one speaker to another, whose metadata prevail; the first one is gone."""
        first, second = self.number_of(source), self.number_of(into)
        if first == second:
            raise StoreError(f"{source!r} cannot be merged into itself")
        with self.database.writing(erase=True):
            read = "SELECT metadata FROM speakers WHERE id = ?"
            both = [json.loads(self.database.execute(read, (n,)).fetchone()[0]) for n in (first, second)]
            self.database.execute("UPDATE speakers SET metadata = ? WHERE id = ?", (_json(both[0] | both[1]), second))
            for number, model, data in self.database.execute(
                "SELECT id, model, vector FROM prints WHERE speaker = ?", (first,)
            ).fetchall():
                direction = unit_rows(np.frombuffer(data, "<f4")[None])[0]
                if (self._directions(second, model, len(direction)) @ direction > SAME).any():
                    self.database.execute("DELETE FROM prints WHERE id = ?", (number,))
            self.database.execute("UPDATE prints SET speaker = ? WHERE speaker = ?", (second, first))
            self.database.execute("DELETE FROM speakers WHERE id = ?", (first,))

    def delete(self, name: str, print_id: int | None = None) -> None:
        """Remove a speaker, or one print; neither name nor numbers are left in the file."""
        number = self.number_of(name)
        if print_id is not None and not any(p.id == print_id for p in self.prints(name)):
            raise StoreError(f"{name!r} has no print {print_id}; `speaker store show {name!r}` lists them")
        with self.database.writing(erase=True):
            table, which = ("speakers", number) if print_id is None else ("prints", print_id)
            self.database.execute(f"DELETE FROM {table} WHERE id = ?", (which,))

    def check(self) -> list[str]:
        """What SQLite finds wrong with the file; nothing if it is whole."""
        try:
            found = [row[0] for row in self.database.read("PRAGMA integrity_check")]
        except StoreError as error:  # too damaged even to be looked through
            return [str(error)]
        return [] if found == ["ok"] else found

    def number_of(self, name: str) -> int:
        """Key of a speaker; StoreError that suggests similar names."""
        found = self.database.read(
            "SELECT id FROM speakers WHERE name = ?", (unicodedata.normalize("NFC", name).strip(),)
        )
        if found:
            return found[0][0]
        names = [row[0] for row in self.database.read("SELECT name FROM speakers ORDER BY name")]
        lower = {each.lower(): each for each in names}
        close = [lower[each] for each in difflib.get_close_matches(name.lower(), lower, 3)]
        hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else f"; there are {len(names)} speakers"
        raise StoreError(f"{self.path} knows no {name!r}{hint}")

    def close(self) -> None:
        """No call after this one."""
        self.database.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _settle(self, model: str | None, dim: int) -> str:
        """The model and size of all prints: that of the first."""
        known, known_dim = self.model, self.database.about("dim")
        if not known and model is None:
            raise StoreError("the first print of a store needs its model: name@digest of the encoder")
        if model is not None:
            self.check_model(model)
        if known_dim and int(known_dim) != dim:
            raise StoreError(f"the prints in {self.path} have {known_dim} numbers, these have {dim}")
        if not known:
            self.database.set_about("model", model or "")
            self.database.set_about("dim", str(dim))
        return known or model or ""

    def _directions(self, speaker: int, model: str, dim: int) -> NDArray[np.float32]:
        """(n, D) of the prints of a speaker."""
        found = self.database.execute(KNOWN, (speaker, model)).fetchall()
        return unit_rows(np.array([np.frombuffer(each, "<f4") for (each,) in found], np.float32).reshape(-1, dim))

    def add_speaker(self, name: str, metadata: Mapping[str, Any]) -> None:
        """Make the speaker known, or add to what is known; inside of `database.writing`."""
        name = checked_name(name)
        found = self.database.execute("SELECT id, metadata FROM speakers WHERE name = ?", (name,)).fetchone()
        if found is None:
            self.database.execute("INSERT INTO speakers (name, metadata, created) VALUES (?, ?, ?)",
                                  (name, _json(metadata), _now()))  # fmt: skip
        elif metadata:
            joined = _json(json.loads(found[1]) | dict(metadata))
            self.database.execute("UPDATE speakers SET metadata = ? WHERE id = ?", (joined, found[0]))


def same_model(first: str, second: str) -> bool:
    """A model is what its weights are: its folder may be renamed."""
    digests = [name.rpartition("@")[2] if "@" in name else "" for name in (first, second)]
    return digests[0] == digests[1] if all(digests) else first == second


def checked_name(name: str) -> str:
    """In Unicode's composed form; StoreError for one that is empty or has control characters."""
    name = unicodedata.normalize("NFC", name).strip()
    if not name or any(unicodedata.category(letter).startswith("C") for letter in name):
        raise StoreError(f"a speaker's name is text of one line without control characters, got {name!r}")
    return name


def _checked(vectors: ArrayLike) -> NDArray[np.float32]:
    rows = np.asarray(vectors, dtype=np.float32)
    if rows.ndim != 2 or not rows.size:
        raise StoreError(f"expected prints (n, D), one or more, got an array of shape {rows.shape}")
    if not (np.isfinite(rows).all() and rows.any(axis=1).all()):
        raise StoreError("a print is zero, NaN or infinite; its recording is no speech")
    return rows


def _json(value: Mapping[str, Any]) -> str:
    try:
        return json.dumps(dict(value), ensure_ascii=False)
    except TypeError as error:
        raise StoreError(f"metadata must be JSON: {error}") from error


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
