"""Prints of one encoder -> prints of another, by a linear map learned from recordings that both embed.

Both are centred and at unit length; the map is ridge regression, its penalty the one with the least error on speakers
left out. What it costs is measured on speakers that it was not learned from, and shown before anything is written.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.errors import StoreError
from speaker.metrics import eer
from speaker.scoring import unit
from speaker.store import Store

__all__ = ["Loss", "Map", "learn", "measure", "migrate_store"]

FEWEST = 20  # recordings
FOLDS = 5
PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0)
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Map:
    """y = (x / |x| - mean) matrix + offset, x (n, D) and y (n, K)."""

    mean: Floats
    matrix: Floats
    offset: Floats

    def __call__(self, vectors: ArrayLike) -> Floats:
        """(n, D) -> (n, K)."""
        return np.asarray((unit(np.asarray(vectors, dtype=np.float64)) - self.mean) @ self.matrix + self.offset)


@dataclass(frozen=True, kw_only=True)
class Loss:
    """On held-out speakers: mean cosine of mapped to true, and equal error rates (%) with mapped enrolments, and not.

    The rates are None where no held-out speaker has two recordings.
    """

    cosine: float
    mapped_eer: float | None
    native_eer: float | None
    old_eer: float | None
    recordings: int
    speakers: int

    def as_text(self) -> str:
        """For people."""
        told = (f"{self.recordings} recordings of {self.speakers} speakers, each held out once: cosine of mapped to "
                f"true {self.cosine:.3f}")  # fmt: skip
        if self.mapped_eer is None:
            return f"{told}; no equal error rate, for that speakers with two recordings are needed"
        return (f"{told}; equal error rate of mapped prints against new recordings {self.mapped_eer:.2f} %, of the new "
                f"encoder by itself {self.native_eer:.2f} %, of the old one {self.old_eer:.2f} %")  # fmt: skip


def learn(before: ArrayLike, after: ArrayLike, penalty: float = 1.0) -> Map:
    """Ridge regression of (n, K) on (n, D), rows of the same recordings."""
    x, y = (unit(np.asarray(each, dtype=np.float64)) for each in (before, after))
    _enough(x, y)
    return _ridge(x, y, penalty)


def _enough(x: Floats, y: Floats) -> None:
    if len(x) != len(y) or len(x) < FEWEST:
        raise StoreError(f"a map is learned from {FEWEST} recordings or more that both encoders embed, got {len(x)} "
                         f"and {len(y)}")  # fmt: skip


def _ridge(x: Floats, y: Floats, penalty: float) -> Map:
    """Of rows of unit length."""
    mean, offset = x.mean(0), y.mean(0)
    centred = x - mean
    matrix = np.linalg.solve(centred.T @ centred + penalty * np.eye(x.shape[1]), centred.T @ (y - offset))
    return Map(mean, matrix, offset)


def best_penalty(before: ArrayLike, after: ArrayLike, speakers: list[str]) -> float:
    """The one with the highest cosine of mapped to true on speakers left out."""
    y = unit(np.asarray(after, dtype=np.float64))
    cosines = [float((unit(_held_out(before, after, speakers, penalty)) * y).sum(1).mean()) for penalty in PENALTIES]
    return PENALTIES[int(np.argmax(cosines))]


def measure(before: ArrayLike, after: ArrayLike, speakers: list[str], penalty: float = 1.0) -> Loss:
    """What a map learned from the other speakers does to each speaker's recordings."""
    x, y = (unit(np.asarray(each, dtype=np.float64)) for each in (before, after))
    mapped = unit(_held_out(before, after, speakers, penalty))
    rows = np.unique(speakers, return_inverse=True)[1]
    first, second = np.triu_indices(len(rows), 1)
    same = rows[first] == rows[second]
    rates: list[float | None] = [None, None, None]
    if same.any() and not same.all():
        scores = [np.einsum("nd,nd->n", a[first], b[second]) for a, b in ((mapped, y), (y, y), (x, x))]
        rates = [100 * float(eer(each[same], each[~same])[0]) for each in scores]
    return Loss(cosine=float((mapped * y).sum(1).mean()), mapped_eer=rates[0], native_eer=rates[1], old_eer=rates[2],
                recordings=len(rows), speakers=int(rows.max()) + 1)  # fmt: skip


def migrate_store(store: Store, map_: Map, model: str) -> int:
    """Replace all prints by mapped ones, marked with the model they come from, in one transaction; returns how many."""
    prints = store.prints()
    if not prints:
        raise StoreError(f"{store.path} holds no prints, there is nothing to migrate")
    vectors = map_(np.stack([p.vector for p in prints])).astype("<f4")
    with store.database.writing(erase=True):
        for each, vector in zip(prints, vectors, strict=True):
            data = vector.tobytes()
            origin = each.migrated_from or each.model
            store.database.execute("UPDATE prints SET vector = ?, crc = ?, model = ?, migrated_from = ? WHERE id = ?",
                                   (data, zlib.crc32(data), model, origin, each.id))  # fmt: skip
        store.database.set_about("model", model)
        store.database.set_about("dim", str(vectors.shape[1]))
    return len(prints)


def _held_out(before: ArrayLike, after: ArrayLike, speakers: list[str], penalty: float) -> Floats:
    """Mapped (n, K), each row by a map that has seen nothing of its speaker."""
    x, y = (unit(np.asarray(each, dtype=np.float64)) for each in (before, after))
    _enough(x, y)  # of all: the fifth that a fold leaves out is not missing
    rows = np.unique(speakers, return_inverse=True)[1]
    if rows.max() + 1 < FOLDS:
        raise StoreError(f"the loss is measured on speakers left out, in {FOLDS} parts; the recordings are of "
                         f"{rows.max() + 1} speakers (a speaker is a folder)")  # fmt: skip
    fold = np.random.default_rng(0).permutation(rows.max() + 1)[rows] % FOLDS
    mapped = np.zeros((len(x), y.shape[1]))
    for part in range(FOLDS):
        mapped[fold == part] = _ridge(x[fold != part], y[fold != part], penalty)(x[fold == part])
    return mapped
