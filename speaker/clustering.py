"""Embeddings of windows -> speakers: agglomerative clustering by calibrated scores, or spectral clustering.

Agglomerative: average linkage on log-likelihood ratios, which stops where the average pair of windows of two clusters
is more probably of two speakers. Spectral: a graph of windows, each with an edge to those that are most probably of the
same speaker; where it is easily cut apart are the borders between speakers. Neighbours alone count, not how far apart
the ends of a cluster are.

Both take n^2 of memory and more of time, so more than LIMIT windows are condensed first: pieces of the recording are
clustered finely, and the means of these clusters are what is clustered. For cosines that is average linkage still, for
the mean cosine of two sets of unit vectors is the product of their means.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from engine.errors import ConfigError, SpeechError
from speaker.calibration import Calibration
from speaker.scoring import Floats, unit

__all__ = ["METHODS", "Method", "ahc", "assign", "condense", "ratios", "spectral"]

Method = Literal["ahc", "spectral"]
METHODS = ("ahc", "spectral")
Labels = NDArray[np.int64]
LIMIT = {"ahc": 4_000, "spectral": 1_200}  # items that are clustered at once
MOST_ODD = 30  # clusters that are left aside where the number of speakers is told
MOST_SPEAKERS = 60  # that spectral clustering finds by itself
# Of spectral clustering, for windows of a second or two; chosen on conversations of held-out training speakers
# (docs/diarization.md).
LEAST_NEIGHBOURS, MANY_NEIGHBOURS = 11, 29
CLEAR_GAP = 0.12  # between eigenvalues, which lie from 0 to 2
LOOSE = 0.5  # an eigenvalue above which a part is no cluster any more
BRIDGE = 1e-4


def ratios(directions: Floats, seconds: Floats, calibration: Calibration | None) -> Floats:
    """Unit vectors or means of such (n, D), (n,) seconds of speech -> (n, n) log-likelihood ratios of one speaker.

    Cosines where there is no calibration.
    """
    cosines = directions @ directions.T
    if calibration is None:
        return cosines
    return np.stack([calibration.of_scores(row, own, seconds) for row, own in zip(cosines, seconds, strict=True)])


def ahc(
    scores: Floats, threshold: float, num_speakers: int | None = None, seconds: Floats | None = None, least: float = 0.0
) -> Labels:
    """(n, n) scores -> (n,) labels: average linkage until no two clusters score above the threshold, or so many.

    With `seconds` (n,): until so many have the `least` of them, for the last clusters to join are often odd windows.
    """
    hierarchy, distance = _scipy("scipy.cluster.hierarchy"), _scipy("scipy.spatial.distance")
    if len(scores) == 1:
        return np.zeros(1, dtype=np.int64)
    top = float(scores.max())
    away = top - (scores + scores.T) / 2
    np.fill_diagonal(away, 0)
    tree = hierarchy.linkage(distance.squareform(away, checks=False), "average")
    if num_speakers is not None:
        found = hierarchy.fcluster(tree, num_speakers, "maxclust")
        for count in range(num_speakers, min(len(scores), num_speakers + MOST_ODD) if seconds is not None else 0):
            finer = hierarchy.fcluster(tree, count, "maxclust")
            if (np.bincount(finer, seconds) >= least).sum() == num_speakers:
                found = finer
                break
    else:
        found = hierarchy.fcluster(tree, top - threshold, "distance")
    return np.unique(found, return_inverse=True)[1].astype(np.int64)


def spectral(affinity: Floats, num_speakers: int | None = None, seed: int = 0) -> Labels:
    """(n, n) affinities from 0 to 1 -> (n,) labels by the normalized Laplacian of the graph of near neighbours.

    Rows of its first eigenvectors, at unit length, are clustered by k-means (Ng, Jordan and Weiss 2002). How many there
    are the largest gap between its eigenvalues tells (von Luxburg 2007); where none is clear, as among many speakers,
    how many are small. Two windows are two speakers where their affinity is below a half.
    """
    num = len(affinity)
    wanted = None if num_speakers is None else min(num_speakers, num)
    if num <= 2 and wanted is None:
        wanted = num if num == 2 and affinity[0, 1] < 0.5 else 1
    if wanted in (1, num):
        return np.arange(num) if wanted == num else np.zeros(num, dtype=np.int64)
    values, vectors = _laplacian(affinity, max(wanted or 0, min(MOST_SPEAKERS, num - 1)))
    count = wanted or _count(values)
    if count == 1:
        return np.zeros(num, dtype=np.int64)
    rows = vectors[:, :count]
    return _kmeans(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), count, seed)


def _count(values: Floats) -> int:
    """How many clusters the least eigenvalues (k,) speak for."""
    gaps = np.diff(values[: MOST_SPEAKERS + 1])
    if gaps.max() >= CLEAR_GAP:
        return int(gaps.argmax()) + 1
    return min(MOST_SPEAKERS, int((values < LOOSE).sum()))


def _neighbours(num: int) -> int:
    """How many others each of `num` windows has an edge to; those that have one to it come on top.

    With fewer the graph falls apart into chance groups, with more a speaker of few windows is joined to others.
    """
    return min(num - 1, int(np.clip(num / 10, LEAST_NEIGHBOURS, max(MANY_NEIGHBOURS, num / 20))))


def _laplacian(affinity: Floats, count: int) -> tuple[Floats, Floats]:
    """The `count` + 1 least eigenvalues (all, of fewer items) and their vectors (n, count + 1)."""
    linalg, num = _scipy("scipy.linalg"), len(affinity)
    others = affinity - 2 * np.eye(num)  # nobody is a neighbour of himself
    nearest = np.argpartition(others, -_neighbours(num), axis=1)[:, -_neighbours(num) :]
    graph = np.zeros_like(affinity)
    np.put_along_axis(graph, nearest, np.take_along_axis(affinity, nearest, 1), axis=1)
    # All that is left out weighs next to nothing, but keeps the graph in one piece: of more pieces than speakers the
    # first eigenvectors are 0 in some.
    graph = (graph + graph.T) / 2 + BRIDGE * np.maximum(affinity, BRIDGE)
    np.fill_diagonal(graph, 0)
    scale = 1 / np.sqrt(graph.sum(1))
    laplacian = np.eye(num) - scale[:, None] * graph * scale
    found: tuple[Floats, Floats] = linalg.eigh(laplacian, subset_by_index=(0, min(count, num - 1)))
    return found


def _kmeans(points: Floats, count: int, seed: int) -> Labels:
    """The best of several starts; fewer than `count` labels only where points coincide."""
    vq = _scipy("scipy.cluster.vq")
    best, labels = np.inf, np.zeros(len(points), dtype=np.int64)
    rng = np.random.default_rng(seed)
    for _ in range(5):
        # Starts are points far from each other (k-means++), so no cluster begins empty unless points coincide.
        centres = points[[rng.integers(len(points))]]
        while len(centres) < count:
            away = np.square(points[:, None] - centres).sum(2).min(1)
            share = away / away.sum() if away.sum() > 0 else np.full(len(points), 1 / len(points))
            centres = np.concatenate([centres, points[[rng.choice(len(points), p=share)]]])
        for _ in range(30):
            found = vq.vq(points, centres)[0]
            sizes = np.bincount(found, minlength=count)
            sums = np.zeros_like(centres)
            np.add.at(sums, found, points)
            moved = np.where(sizes[:, None] > 0, sums / np.maximum(sizes, 1)[:, None], centres)
            if np.allclose(moved, centres):
                break
            centres = moved
        cost = float(np.square(points - centres[found]).sum())
        if cost < best:
            best, labels = cost, found.astype(np.int64)
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)


def condense(vectors: Floats, limit: int) -> Labels:
    """(n, D) in order of time -> (n,) labels of at most about `limit` fine clusters, each inside a piece in time."""
    num = len(vectors)
    if num <= limit:
        return np.arange(num)
    pieces = np.array_split(np.arange(num), -(-num // limit))
    labels, used = np.zeros(num, dtype=np.int64), 0
    for piece in pieces:
        directions = unit(vectors[piece])
        labels[piece] = ahc(directions @ directions.T, 0.0, max(1, limit // len(pieces))) + used
        used = int(labels.max()) + 1
    return labels


def assign(
    vectors: Floats, seconds: Floats, method: str, *, calibration: Calibration | None, threshold: float,
    num_speakers: int | None, min_seconds: float = 0.0,
) -> Labels:  # fmt: skip
    """Embeddings (n, D) of windows in order of time, with (n,) seconds of speech -> (n,) speakers from 0.

    `threshold` stops the agglomerative method. Clusters of less than `min_seconds` in all join the nearest others.
    """
    if method not in METHODS:
        raise ConfigError(f"no clustering {method!r}; there are {' and '.join(METHODS)}")
    fine = condense(vectors, LIMIT[method])
    directions = unit(vectors)
    means, sizes = np.zeros((fine.max() + 1, vectors.shape[1])), np.bincount(fine)
    np.add.at(means, fine, directions)
    means /= sizes[:, None]
    scores = ratios(means, np.bincount(fine, seconds) / sizes, calibration)
    if method == "spectral":
        # The probability of one speaker, as likely as not beforehand; cosines above 0 do in its place.
        affinity = np.maximum(scores, 0) if calibration is None else _scipy("scipy.special").expit(scores)
        labels = spectral(affinity, num_speakers)[fine]
    else:
        totals = np.bincount(fine, seconds).astype(np.float64)
        labels = ahc(scores, threshold, num_speakers, totals, min_seconds)[fine]
        if num_speakers:  # as many as were told, the largest
            min_seconds = float(np.sort(np.bincount(labels, seconds))[-min(num_speakers, int(labels.max()) + 1)])
    return _without_small(directions, seconds, labels, 0.0 if method == "spectral" and num_speakers else min_seconds)


def _without_small(directions: Floats, seconds: Floats, labels: Labels, least: float) -> Labels:
    """Give the windows of clusters that are too small to be a speaker to the nearest of the others."""
    total = np.bincount(labels, seconds)
    large = np.flatnonzero(total >= min(least, total.max()) - 1e-9)
    means = unit(np.stack([directions[labels == one].mean(0) for one in large]))
    stray = ~np.isin(labels, large)
    labels = labels.copy()
    labels[stray] = large[(directions[stray] @ means.T).argmax(1)]
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)


def _scipy(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise SpeechError("diarization needs scipy; install it with `pip install 'voxcode[diarize]'`") from error
