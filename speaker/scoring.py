"""Embeddings -> scores: cosine or PLDA, and normalization by the scores against a cohort of other speakers.

A back end is anything with `prepare` (n, D) -> (n, K), done once an embedding, and `pairs` and `matrix` on what it
returns; larger scores mean more alike. An enrolment from several utterances is the mean of what they are prepared to,
and its number of utterances says how much it is worth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engine.errors import ScoreError
from speaker.trials import Trials

Floats = NDArray[np.float64]
ROWS = 8_192  # trials or embeddings at a time: 600,000 trials must not be one array of gathered embeddings


class Backend(Protocol):
    """What scores pairs of embeddings."""

    name: str

    def prepare(self, vectors: Floats) -> Floats:
        """(n, D) -> (n, K)."""

    def pairs(self, enrol: Floats, test: Floats, counts: Floats | int = 1) -> Floats:
        """(n, K), (n, K) -> (n,); an enrolment is of `counts` (n,) utterances."""

    def matrix(self, enrol: Floats, test: Floats, counts: int = 1) -> Floats:
        """(n, K), (m, K) -> (n, m)."""


class Cosine:
    """Cosine of the angle between two embeddings, after taking off `mean` (D,) where one is given."""

    name = "cosine"

    def __init__(self, mean: Floats | None = None) -> None:
        self.mean = mean

    def prepare(self, vectors: Floats) -> Floats:
        """(n, D) -> unit vectors (n, D)."""
        return unit(vectors if self.mean is None else vectors - self.mean)

    def pairs(self, enrol: Floats, test: Floats, counts: Floats | int = 1) -> Floats:
        """Row by row; a direction is worth the same however many utterances it comes from."""
        return np.einsum("nd,nd->n", enrol, test)

    def matrix(self, enrol: Floats, test: Floats, counts: int = 1) -> Floats:
        """All rows with all rows."""
        return enrol @ test.T


def unit(vectors: Floats) -> Floats:
    """(n, D) at length 1; ScoreError for one that is zero or not finite."""
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(norm[:, 0]) & (norm[:, 0] > 0)))
    if len(bad):
        raise ScoreError(
            f"{len(bad)} of {len(vectors)} embeddings are zero or not finite, the first is number {bad[0]}"
        )
    return np.asarray(vectors / norm, dtype=np.float64)


def cohort_statistics(
    backend: Backend, vectors: Floats, cohort: Floats, top: int | None, counts: Floats | None = None
) -> tuple[Floats, Floats]:
    """Mean and standard deviation (n,) of prepared (n, K) against the cohort (C, K), of its `top` scores or of all.

    `counts` (n,) are the utterances of each. Computed once an utterance, not once a trial.
    """
    if len(cohort) < 2 or (top is not None and not top >= 2):
        raise ScoreError(f"normalization needs 2 cohort scores or more, got a cohort of {len(cohort)} and top {top}")
    times = np.ones(len(vectors)) if counts is None else counts
    means, spreads = np.empty(len(vectors)), np.empty(len(vectors))
    size = max(1, ROWS * ROWS // max(len(cohort), ROWS))  # rows at a time: no more memory for a large cohort
    for count in np.unique(times):
        alike = np.flatnonzero(times == count)
        for start in range(0, len(alike), size):
            rows = alike[start : start + size]
            scores = backend.matrix(vectors[rows], cohort, int(count))
            if top is not None and top < scores.shape[1]:
                scores = np.partition(scores, scores.shape[1] - top, axis=1)[:, -top:]
            means[rows], spreads[rows] = scores.mean(1), scores.std(1)
    return means, np.maximum(spreads, 1e-9)


def normalized(scores: Floats, enrol: tuple[Floats, Floats], test: tuple[Floats, Floats]) -> Floats:
    """Symmetric normalization (Matejka et al. 2017): the mean of both sides' standardized scores, (n,)."""
    return 0.5 * ((scores - enrol[0]) / enrol[1] + (scores - test[0]) / test[1])


class Scores:
    """Scores of a list, and for each side what normalization knows of it."""

    def __init__(self, values: Floats, cohort_means: tuple[Floats, Floats] | None) -> None:
        self.values, self.cohort_means = values, cohort_means


def score(
    trials: Trials, names: list[str], vectors: Floats, backend: Backend, *,
    cohort: Floats | None = None, top: int | None = None, normalize: bool = True,
    models: Mapping[str, Sequence[str]] | None = None,
) -> Scores:  # fmt: skip
    """Score a list by the embeddings (n, D) of `names`; with a cohort (C, D) normalized by its `top`, or all of it.

    `models` are those of the names that are enrolled from several others: they stand for the mean of these, prepared.
    Without `normalize` the scores stay as they are, and only how near either side is to the cohort is told.
    ScoreError names recordings of the list that have no embedding, before anything is computed.
    """
    first, second = trials.rows(names).T
    if cohort is not None and cohort.shape[1] != vectors.shape[1]:
        raise ScoreError(f"the cohort has {cohort.shape[1]} dimensions, the embeddings {vectors.shape[1]}")
    ready = backend.prepare(np.asarray(vectors, dtype=np.float64))
    counts, row_of = np.ones(len(names)), {name: row for row, name in enumerate(names)}
    for name, utterances in (models or {}).items():
        counts[row_of[name]] = len(utterances)
        ready[row_of[name]] = ready[[row_of[each] for each in utterances]].mean(0)
    if models and backend.name == "cosine":
        ready = unit(ready)
    blocks = [slice(i, i + ROWS) for i in range(0, len(first), ROWS)]
    values = np.concatenate([backend.pairs(ready[first[b]], ready[second[b]], counts[first[b]]) for b in blocks])
    if cohort is None:
        return Scores(values, None)
    mean, spread = cohort_statistics(backend, ready, backend.prepare(np.asarray(cohort, dtype=np.float64)), top,
                                     counts)  # fmt: skip
    if normalize:
        values = normalized(values, (mean[first], spread[first]), (mean[second], spread[second]))
    return Scores(values, (mean[first], mean[second]))
