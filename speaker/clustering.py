"""Embeddings -> speakers: agglomerative clustering with a threshold, spectral clustering with the eigengap.

Thousands of windows are clustered at once, more by way of a part of them: `MOST` evenly spread ones are clustered, the
others join the nearest centre.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import ConfigError
from speaker.scoring import Floats, unit

__all__ = ["METHODS", "agglomerative", "cluster", "spectral"]

METHODS = ("ahc", "spectral")
MOST = {"ahc": 8000, "spectral": 2000}  # n^2 distances of 8 bytes: 256 MB; n^3 operations: seconds
MOST_SPEAKERS = 20  # that spectral clustering looks for by itself
NEIGHBOURS = 0.1  # share of the windows that keep their similarity to one


def cluster(vectors: Floats, method: str, threshold: float, num_speakers: int | None = None) -> NDArray[np.int64]:
    """(n, D) -> (n,) labels from 0 on, in the order in which they are met.

    `threshold`: least mean cosine of two clusters that are one; of agglomerative clustering without `num_speakers`.
    """
    if method not in METHODS:
        raise ConfigError(f"clustering by {method!r}: there are {', '.join(METHODS)}")
    if num_speakers is not None and not 1 <= num_speakers <= len(vectors):
        raise ConfigError(f"{len(vectors)} windows of speech cannot be {num_speakers} speakers")
    directions = unit(vectors)
    chosen = np.unique(np.linspace(0, len(vectors) - 1, min(len(vectors), MOST[method])).round().astype(np.int64))
    part = directions[chosen]
    labels = spectral(part, num_speakers) if method == "spectral" else agglomerative(part, threshold, num_speakers)
    if len(chosen) < len(vectors):
        centres = unit(np.stack([part[labels == k].mean(0) for k in range(labels.max() + 1)]))
        labels = (directions @ centres.T).argmax(1)
    return in_order(labels)


def in_order(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same clusters, numbered as they are met."""
    first = {label: i for i, label in enumerate(dict.fromkeys(labels.tolist()))}
    return np.array([first[label] for label in labels.tolist()], dtype=np.int64)


def agglomerative(directions: Floats, threshold: float, num_speakers: int | None = None) -> NDArray[np.int64]:
    """Average linkage of unit vectors (n, D) by their cosines."""
    hierarchy = _scipy("cluster.hierarchy")
    if len(directions) == 1:
        return np.zeros(1, dtype=np.int64)
    n = len(directions)
    cosines = directions.astype(np.float32) @ directions.astype(np.float32).T
    distances = 1 - cosines[np.triu_indices(n, 1)].astype(np.float64)
    tree = hierarchy.linkage(np.maximum(distances, 0), method="average")
    if num_speakers is not None:
        return np.asarray(hierarchy.fcluster(tree, num_speakers, "maxclust"), dtype=np.int64) - 1
    return np.asarray(hierarchy.fcluster(tree, 1 - threshold, "distance"), dtype=np.int64) - 1


def spectral(directions: Floats, num_speakers: int | None = None) -> NDArray[np.int64]:
    """Normalized cuts (von Luxburg 2007) on each window's nearest neighbours; as many clusters as the first eigenvalues
    of the Laplacian before the widest gap."""
    linalg, vq = _scipy("linalg"), _scipy("cluster.vq")
    n = len(directions)
    if n < 3 or num_speakers == 1:
        return np.zeros(n, dtype=np.int64)
    affinity = np.maximum(directions @ directions.T, 0)
    kept = max(2, round(NEIGHBOURS * n))
    bound = np.partition(affinity, n - kept, axis=1)[:, n - kept, None]
    affinity = np.where(affinity >= bound, affinity, 0)
    affinity = (affinity + affinity.T) / 2
    root = 1 / np.sqrt(np.maximum(affinity.sum(1), 1e-12))
    laplacian = np.eye(n) - root[:, None] * affinity * root
    most = min(n - 1, max(MOST_SPEAKERS, num_speakers or 0))
    values, eigenvectors = linalg.eigh(laplacian, subset_by_index=[0, most])
    count = num_speakers or int(np.argmax(np.diff(values))) + 1
    if count == 1:
        return np.zeros(n, dtype=np.int64)
    rows = unit(eigenvectors[:, :count] + 1e-12)
    best: tuple[float, NDArray[np.int64]] | None = None
    for seed in range(5):
        centres, labels = vq.kmeans2(rows, count, minit="++", seed=seed)
        spread = float(np.square(rows - centres[labels]).sum())
        if best is None or spread < best[0]:
            best = spread, labels.astype(np.int64)
    assert best is not None
    return best[1]


def _scipy(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"scipy.{name}")
    except ModuleNotFoundError as error:
        raise ConfigError(f"clustering needs scipy: pip install 'voxcode[diarize]' ({error})") from error
