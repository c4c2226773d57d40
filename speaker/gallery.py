"""Search among known speakers: exact by a matrix product, in two stages, or by an approximate index of FAISS.

A speaker with several prints is the mean of their directions, at unit length; the score is the cosine to it. A mean
takes off what only one recording has, the noise of the day. The best of n prints would instead give a speaker n chances
of a false alarm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.errors import StoreError

__all__ = ["Gallery", "Match"]

Vectors = NDArray[np.float32]
Index = Literal["exact", "hnsw", "ivf"]
PROBES = 200  # searched twice, to measure the recall of an approximate index
ROWS = 256  # queries at a time: their scores against 10^6 speakers are 1 GB


class Match(NamedTuple):
    """A speaker and the cosine of the query to the mean of the speaker's prints."""

    name: str
    cosine: float


class Gallery:
    """Speakers by name with their mean directions (N, D).

    `recall`: share of queries for which the index finds the best match that exact search finds, measured on this
    gallery with its own prints as queries; 1 for exact search.
    """

    def __init__(self, speakers: Sequence[str], prints: ArrayLike, seconds: ArrayLike | None = None) -> None:
        """`speakers` (n,) of `prints` (n, D), and the seconds of speech in each."""
        rows = np.asarray(prints, dtype=np.float32)
        if rows.ndim != 2 or len(rows) != len(speakers) or not len(rows):
            raise StoreError(f"{len(speakers)} names for prints of shape {rows.shape}")
        names, self.owners = np.unique(np.asarray(speakers, dtype=object), return_inverse=True)
        self.names: list[str] = names.tolist()
        self.prints = unit_rows(rows)
        sums = np.zeros((len(names), rows.shape[1]), dtype=np.float32)
        np.add.at(sums, self.owners, self.prints)
        self.means = unit_rows(sums)
        spoken = np.full(len(rows), np.nan) if seconds is None else np.asarray(seconds, dtype=np.float64)
        self.seconds: NDArray[np.float64] = np.bincount(self.owners, weights=spoken).astype(np.float64)  # of speech
        self.recall = 1.0
        self._index: Any = None
        self._first: Vectors | None = None

    def __len__(self) -> int:
        """N, the number of speakers."""
        return len(self.names)

    def scores(self, vectors: ArrayLike) -> Vectors:
        """(B, D) -> cosines (B, N) to all speakers."""
        return self._queries(vectors) @ self.means.T

    def search(
        self, vectors: ArrayLike, top: int = 5, *, first_dims: int | None = None, candidates: int = 200
    ) -> list[list[Match]]:
        """(B, D) -> for each the `top` best speakers, best first.

        With `first_dims` a first search looks at so many dimensions alone, and the `candidates` it finds are ranked by
        all: for encoders whose first dimensions are embeddings by themselves (nested, "Matryoshka").
        """
        queries, found = self._queries(vectors), []
        for start in range(0, len(queries), ROWS):
            part = queries[start : start + ROWS]
            if first_dims is not None:
                rows = self._two_stages(part, first_dims, max(candidates, top), top)
            elif self._index is not None:
                rows = self._index.search(part, min(max(top, 1), len(self)))[1]
            else:
                rows = _best(part @ self.means.T, top)
            for query, these in zip(part, rows, strict=True):
                known = these[these >= 0]
                cosines = self.means[known] @ query
                order = np.argsort(-cosines, kind="stable")
                found.append([Match(self.names[known[i]], float(cosines[i])) for i in order])
        return found

    def use_index(self, kind: Index, *, effort: int | None = None) -> float:
        """Search approximately from now on; returns and keeps the recall of the best match.

        `effort`: hnsw: efSearch (default 128); ivf: lists that are looked through (default an eighth of them).
        """
        self._index, self.recall = None, 1.0
        if kind == "exact":
            return self.recall
        probes = self.prints[np.random.default_rng(0).permutation(len(self.prints))[:PROBES]]
        exact = _best(probes @ self.means.T, 1)[:, 0]
        index = _build(self.means, kind, effort)
        self._index, self.recall = index, float((index.search(probes, 1)[1][:, 0] == exact).mean())
        return self.recall

    def _queries(self, vectors: ArrayLike) -> Vectors:
        rows = np.asarray(vectors, dtype=np.float32)
        dim = self.means.shape[1]
        if rows.ndim != 2 or rows.shape[1] != dim:
            raise StoreError(f"the prints have {dim} numbers, the query is of shape {rows.shape}; queries are "
                             f"(B, {dim}), a single one (1, {dim})")  # fmt: skip
        if not np.isfinite(rows).all() or not rows.any(axis=1).all():
            raise StoreError("the query is zero, NaN or infinite; its recording is no speech")
        return unit_rows(rows)

    def _two_stages(self, queries: Vectors, first_dims: int, candidates: int, top: int) -> NDArray[np.int64]:
        if not 1 <= first_dims <= self.means.shape[1]:
            raise StoreError(f"first_dims is 1 to {self.means.shape[1]}, got {first_dims}")
        if self._first is None or self._first.shape[1] != first_dims:
            self._first = unit_rows(self.means[:, :first_dims])
        rows = _best(unit_rows(queries[:, :first_dims]) @ self._first.T, candidates)
        exact = np.einsum("bkd,bd->bk", self.means[rows], queries)
        return np.take_along_axis(rows, _best(exact, top), axis=1)


def unit_rows(rows: Vectors) -> Vectors:
    """(n, D) at length 1; a row of zeros, as opposite prints of one speaker give, stays zero."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12))


def _best(scores: Vectors, top: int) -> NDArray[np.int64]:
    """(B, N) -> columns (B, top) of the largest, in no order."""
    top = min(max(top, 1), scores.shape[1])
    return np.argpartition(scores, scores.shape[1] - top, axis=1)[:, scores.shape[1] - top :]


def _build(means: Vectors, kind: Index, effort: int | None) -> Any:
    try:
        import faiss
    except ModuleNotFoundError as error:
        raise StoreError(f"the index {kind} needs FAISS: `pip install 'voxcode[faiss]'`") from error
    dim = means.shape[1]
    index: Any
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(dim, 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = 100, effort or 128
    elif kind == "ivf":
        lists = max(1, min(round(4 * len(means) ** 0.5), len(means) // 39))
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, lists, faiss.METRIC_INNER_PRODUCT)
        index.nprobe = effort or max(1, lists // 8)
        index.train(means)
    else:
        raise StoreError(f"there is no index {kind!r}; there are exact, hnsw and ivf")
    index.add(means)
    return index
