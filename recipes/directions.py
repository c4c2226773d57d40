"""Move and turn what a trained encoder gives, by its last layer: the mean of the speakers to 0, weak directions up.

A cosine takes every direction for as good as its spread. Training leaves most of the spread in a few directions, and
those are not the only ones that tell voices apart: what was learned last is weak, not worthless. And in some directions
corpora differ more than voices do: rooms, microphones, the manner of speaking. An encoder so turned no longer faces its
teacher; `facing` turns it back before it is trained further.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.errors import ConfigError
from recipes.harness.recordings import corpus_of
from speaker.adapt import mean_embeddings
from speaker.scoring import unit

Matrix = NDArray[np.float64]
FLOOR = 0.1  # of the mean variance, added to all: the weakest directions are noise
RIDGES = (0.01, 0.1, 1.0, 10.0)  # of the mean variance; what is left out of the regression decides
LEAST_SPEAKERS = 20  # of a corpus, for its mean to be that of a corpus and not of a few voices
NUISANCE = 0.1  # what is kept of the directions that corpora differ in: not 0, so that no dimension becomes constant


def balanced(vectors: Matrix, exponent: float) -> Matrix:
    """Embeddings (n, D) around 0 -> (D, D) that turns embeddings to their principal directions, widest first.

    Each direction is divided by its spread to the power `exponent`: 0 turns only, 1 makes all about as wide. The first
    n dimensions of what comes out are the best n to keep, as with nested training.
    """
    variance, directions = np.linalg.eigh(np.cov(unit(vectors).T))
    variance, directions = variance[::-1], directions[:, ::-1]
    # Of two signs the one whose largest number is positive, so that nearly the same recordings turn nearly alike.
    directions = directions * np.sign(directions[np.abs(directions).argmax(0), range(len(directions))])
    scale = (variance / variance.mean() + FLOOR) ** (-exponent / 2)
    return scale[:, None] * directions.T


def corpus_directions(names: list[str], vectors: Matrix, count: int) -> Matrix:
    """Embeddings (n, D) of speakers "corpus/speaker" -> (k, D) orthonormal: the directions corpora differ in most.

    Principal directions of the means of the corpora, each the mean of its speakers; k is less than `count` where there
    are not enough corpora of 20 speakers.
    """
    speakers, means = mean_embeddings(names, vectors)
    corpora, rows, sizes = np.unique([corpus_of(s) for s in speakers], return_inverse=True, return_counts=True)
    large = np.flatnonzero(sizes >= LEAST_SPEAKERS)
    centres = np.array([means[rows == row].mean(0) for row in large]).reshape(len(large), vectors.shape[1])
    found: Matrix = np.linalg.svd(centres - centres.mean(0))[2] if len(large) else centres
    return found[: min(count, max(0, len(large) - 1))]


def evened(
    names: list[str], vectors: Matrix, exponent: float, nuisance: int, spread_by: NDArray[np.bool_] | None = None,
    option: str = "--nuisance",
) -> Matrix:  # fmt: skip
    """Embeddings (n, D) around 0 -> (D, D): `nuisance` directions of corpora almost taken away, the rest `balanced`.

    Nuisance attribute projection (Solomonoff et al. 2005), the nuisance being the corpus. The spread of the directions
    is that of the embeddings `spread_by` (n,), or of all. ConfigError, which names the `option`, for too few corpora.
    """
    check_corpora(names, nuisance, option)
    taken = corpus_directions(names, vectors, nuisance)
    project = np.eye(vectors.shape[1]) - (1 - NUISANCE) * taken.T @ taken
    chosen = vectors if spread_by is None else vectors[spread_by]
    return balanced(chosen @ project.T, exponent) @ project


def check_corpora(names: list[str], nuisance: int, option: str = "--nuisance") -> None:
    """ConfigError, which names the `option`, if speakers `names` are of too few corpora for `nuisance` directions."""
    sizes = np.unique([corpus_of(name) for name in set(names)], return_counts=True)[1]
    enough = max(0, int((sizes >= LEAST_SPEAKERS).sum()) - 1)
    if enough < nuisance:
        raise ConfigError(f"{option} {nuisance} needs {nuisance + 1} corpora of {LEAST_SPEAKERS} speakers or more; "
                          f"these manifests have enough for {enough}")  # fmt: skip


def facing(vectors: Matrix, targets: Matrix) -> tuple[Matrix, Matrix]:
    """Embeddings (n, D) and a teacher's (n, D) -> matrix (D, D) and offset (D,) from the first to the second.

    The root of the mean square stays what it is. An encoder that faces the teacher already is hardly turned, which
    regression from some thousand crops alone would spoil.
    """
    held_out, rest = slice(None, len(vectors) // 3), slice(len(vectors) // 3, None)

    def cosine(ridge: float) -> float:
        matrix, offset = _regression(vectors[rest], targets[rest], ridge)
        found = unit(vectors[held_out] @ matrix.T + offset)
        return float((found * unit(targets[held_out])).sum(1).mean())

    matrix, offset = _regression(vectors, targets, max(RIDGES, key=cosine))
    factor = np.sqrt(np.square(vectors).mean() / np.square(vectors @ matrix.T + offset).mean())
    return factor * matrix, factor * offset


def _regression(vectors: Matrix, targets: Matrix, ridge: float) -> tuple[Matrix, Matrix]:
    """Ridge regression of unit targets, drawn to the multiple of the identity that comes nearest to them."""
    mean, wanted = vectors.mean(0), unit(targets).mean(0)
    spread, shared = (vectors - mean).T @ (vectors - mean), (vectors - mean).T @ (unit(targets) - wanted)
    drawn = ridge * np.trace(spread) / len(mean) * np.eye(len(mean))
    matrix = np.linalg.solve(spread + drawn, shared + drawn * np.trace(shared) / np.trace(spread)).T
    return matrix, wanted - matrix @ mean
