"""PLDA: a speaker is drawn from N(0, B), an utterance from N(speaker, W); the score is a log-likelihood ratio.

The two-covariance model (Ioffe 2006; Brummer and de Villiers 2010) behind centring, LDA and length normalization, as in
BUT's systems. Stored diagonalized, as Kaldi does: in the space of `transform` W is the identity and B is diag(psi).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.errors import ScoreError
from engine.files import replacing
from speaker.embedding_files import BROKEN, reason
from speaker.scoring import Floats, unit

__all__ = ["Plda", "adapt", "lda", "load", "read_kaldi", "train"]

BINARY = b"\0B"  # how Kaldi's binary files begin
KALDI = BINARY + b"<Plda> "


@dataclass(frozen=True)
class Plda:
    """A trained back end. `centre` and `lda` come first, then length normalization, then `mean` and `transform`."""

    centre: Floats  # (D,)
    lda: Floats  # (K, D)
    mean: Floats  # (K,)
    transform: Floats  # (K, K)
    psi: Floats  # (K,), between-speaker variances where those within speakers are 1
    length_norm: bool = True
    name: str = "plda"
    model: str = ""  # identity of the encoder whose embeddings it was trained on; empty if nobody says

    def prepare(self, vectors: Floats) -> Floats:
        """(n, D) -> (n, K)."""
        if vectors.shape[1] != len(self.centre):
            raise ScoreError(f"this PLDA was trained on {len(self.centre)} dimensions, the embeddings have "
                             f"{vectors.shape[1]}")  # fmt: skip
        return (self._reduced(vectors) - self.mean) @ self.transform.T

    def _reduced(self, vectors: Floats) -> Floats:
        reduced = (vectors - self.centre) @ self.lda.T
        return unit(reduced) * np.sqrt(reduced.shape[1]) if self.length_norm else reduced

    def pairs(self, enrol: Floats, test: Floats, counts: Floats | int = 1) -> Floats:
        """Log-likelihood ratios (n,); an enrolment is the mean of `counts` utterances."""
        shrink, var = self._enrolled(counts)
        same = (np.log(var) + np.square(test - shrink * enrol) / var).sum(-1)
        other = np.log1p(self.psi).sum() + np.square(test) @ (1 / (1 + self.psi))
        return np.asarray(-0.5 * (same - other))

    def matrix(self, enrol: Floats, test: Floats, counts: int = 1) -> Floats:
        """Log-likelihood ratios (n, m) of every enrolment, of `counts` utterances each, with every test utterance."""
        shrink, var = self._enrolled(counts)
        model = shrink * enrol
        distance = np.square(model) @ (1 / var) + (np.square(test) @ (1 / var))[:, None] - 2 * (test / var) @ model.T
        same = np.log(var).sum() + distance.T
        other = np.log1p(self.psi).sum() + np.square(test) @ (1 / (1 + self.psi))
        return np.asarray(-0.5 * (same - other))

    def _enrolled(self, counts: Floats | int) -> tuple[Floats, Floats]:
        """What the posterior of a speaker's mean is made of: factor on the mean, and variance of the next utterance."""
        times = np.asarray(counts, dtype=np.float64)
        times = times[:, None] if times.ndim else times
        return times * self.psi / (times * self.psi + 1), 1 + self.psi / (times * self.psi + 1)

    def save(self, path: Path) -> None:
        """Write arrays as .npz."""
        names = ("centre", "lda", "mean", "transform", "psi", "length_norm", "model")
        parts = {name: getattr(self, name) for name in names}
        with replacing(path) as partial, partial.open("wb") as file:
            np.savez(file, **parts)


def is_plda(path: Path) -> bool:
    """Whether a file is one of Kaldi's or of `Plda.save`, or at least says so."""
    try:
        if _head(path) == KALDI:
            return True
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as parts:
            return "psi" in parts
    except (*BROKEN, TypeError):
        return False


def load(path: Path) -> Plda:
    """Read what `Plda.save` wrote, or a Kaldi file; ScoreError if it is neither."""
    found = _read(path)
    if not all(np.isfinite(part).all() for part in (found.centre, found.lda, found.mean, found.transform, found.psi)):
        raise ScoreError(f"{path} holds a PLDA with values that are not finite; train it anew")
    return found


def _head(path: Path) -> bytes:
    """As much of a file as tells whether it is a PLDA of Kaldi's."""
    with path.open("rb") as stream:
        return stream.read(len(KALDI))


def _read(path: Path) -> Plda:
    try:
        if _head(path).startswith(BINARY):
            return read_kaldi(path)
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as parts:
            centre, reduce, mean, transform, psi = (parts[n] for n in ("centre", "lda", "mean", "transform", "psi"))
            model = str(parts["model"]) if "model" in parts else ""
            return Plda(centre, reduce, mean, transform, psi, bool(parts["length_norm"]), model=model)
    except (*BROKEN, TypeError, struct.error) as error:
        raise ScoreError(f"{path} holds no PLDA ({reason(error)})") from error


def lda(vectors: Floats, speakers: NDArray[np.int64], dim: int) -> Floats:
    """(n, D), (n,) -> (dim, D): directions that separate speakers best for their spread within speakers."""
    within, between = _scatter(vectors, speakers)
    whiten = _inverse_root(within)
    values, directions = np.linalg.eigh(whiten @ between @ whiten)
    return directions[:, np.argsort(values)[::-1][:dim]].T @ whiten


def train(vectors: Floats, speakers: NDArray[np.int64], dim: int | None = None, iterations: int = 20) -> Plda:
    """EM on embeddings (n, D) of `speakers` (n,) integers, after LDA to `dim` if given.

    ScoreError where there is no speaker with two utterances, for then nothing tells speakers and utterances apart.
    """
    vectors = np.asarray(vectors, dtype=np.float64)
    rows = np.unique(speakers, return_inverse=True)[1]
    counts = np.bincount(rows)
    if len(counts) < 2 or counts.max() < 2:
        raise ScoreError(f"PLDA learns from speakers with two utterances or more; these are {len(vectors)} utterances "
                         f"of {len(counts)} speakers")  # fmt: skip
    size = vectors.shape[1]
    if dim is not None and not 1 <= dim <= min(size, len(counts) - 1):
        raise ScoreError(f"LDA of {len(counts)} speakers in {size} dimensions leaves 1 to "
                         f"{min(size, len(counts) - 1)} dimensions, not {dim}")  # fmt: skip
    if (told := len(vectors) - len(counts)) < size:
        raise ScoreError(f"{len(vectors)} utterances of {len(counts)} speakers tell how they spread within speakers in "
                         f"{told} of {size} dimensions at most; give more, or score by cosine")  # fmt: skip
    centre = vectors.mean(0)
    reduce = np.eye(size) if dim is None else lda(vectors - centre, rows, dim)
    shell = Plda(centre, reduce, np.zeros(len(reduce)), np.eye(len(reduce)), np.ones(len(reduce)))
    x = shell._reduced(vectors)
    mean = x.mean(0)
    within, between = _em(x - mean, rows, counts, iterations)
    return Plda(centre, reduce, mean, *_diagonalized(within, between))


def adapt(plda: Plda, vectors: Floats, within_share: float = 0.75, between_share: float = 0.25) -> Plda:
    """Fit to unlabelled embeddings (n, D) of a new domain, as Kaldi's ivector-adapt-plda does.

    Where they spread more than the model expects, the excess goes to W and B by these shares; the mean is theirs.
    ScoreError for as few as the dimensions: by chance alone these spread more in some directions. Better are ten times
    as many.
    """
    if len(vectors) <= len(plda.psi):
        raise ScoreError(f"{len(vectors)} embeddings do not tell how a new domain spreads in {len(plda.psi)} "
                         "dimensions; give ten times as many as dimensions, or leave the adaptation out")  # fmt: skip
    centred = Plda(vectors.mean(0), plda.lda, plda.mean, plda.transform, plda.psi, plda.length_norm)
    x = centred._reduced(vectors)
    mean = x.mean(0)
    z = (x - mean) @ plda.transform.T / np.sqrt(1 + plda.psi)  # of unit covariance, were the model right
    values, directions = np.linalg.eigh(np.cov(z.T, bias=True))
    # Of few embeddings some values are above 1 by chance. To take that off (Donoho, Gavish and Johnstone 2018) saved a
    # fifth of the errors where the domain is not new, and lost more where it is: a spread wider in all directions.
    excess = (directions * np.maximum(values - 1, 0)) @ directions.T
    root = np.sqrt(1 + plda.psi)
    excess = root[:, None] * excess * root
    back = np.linalg.inv(plda.transform)
    within = back @ (np.eye(len(root)) + within_share * excess) @ back.T
    between = back @ (np.diag(plda.psi) + between_share * excess) @ back.T
    return Plda(centred.centre, plda.lda, mean, *_diagonalized(within, between), plda.length_norm)


def read_kaldi(path: Path) -> Plda:
    """Read a binary file of Kaldi's ivector-compute-plda: mean, transform, psi. No centring, no LDA: Kaldi keeps them
    elsewhere; embeddings are scaled to length sqrt(D) as
    ivector-normalize-length does; the second scaling, inside ivector-plda-scoring, is left out."""
    data = path.read_bytes()
    if not data.startswith(KALDI):
        raise ScoreError(f"{path} is no binary Kaldi PLDA")
    at, arrays = len(KALDI), []
    for _ in range(3):
        kind, _, rest = data[at : at + 3], None, at + 3
        if kind not in (b"DV ", b"FV ", b"DM ", b"FM "):
            raise ScoreError(f"{path}: expected a vector or matrix at byte {at}, found {kind!r}")
        shape = []
        for _ in range(1 if kind[1:2] == b"V" else 2):
            shape.append(struct.unpack_from("<i", data, rest + 1)[0])
            rest += 5
        number = np.dtype("<f8" if kind[:1] == b"D" else "<f4")
        arrays.append(np.frombuffer(data, number, int(np.prod(shape)), rest).reshape(shape).astype(np.float64))
        at = rest + number.itemsize * int(np.prod(shape))
    mean, transform, psi = arrays
    return Plda(np.zeros(len(mean)), np.eye(len(mean)), mean, transform, psi)


def _scatter(x: Floats, rows: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Covariance within speakers and between their means."""
    counts = np.bincount(rows)
    sums = np.zeros((len(counts), x.shape[1]))
    np.add.at(sums, rows, x)
    means = sums / counts[:, None]
    inner = x - means[rows]
    outer = (means - x.mean(0)) * np.sqrt(counts)[:, None]
    return inner.T @ inner / len(x), outer.T @ outer / len(x)


def _em(x: Floats, rows: NDArray[np.int64], counts: NDArray[np.int64], iterations: int) -> tuple[Floats, Floats]:
    """Covariances within and between of centred (n, K); speakers with as many utterances share a posterior."""
    within, between = _scatter(x, rows)
    size, ridge = x.shape[1], 1e-6 * np.trace(within + between) / x.shape[1]
    within, between = within + ridge * np.eye(size), between + ridge * np.eye(size)
    sums = np.zeros((len(counts), size))
    np.add.at(sums, rows, x)
    means = sums / counts[:, None]
    inner = x - means[rows]
    scatter = inner.T @ inner
    for _ in range(iterations):
        w, b = scatter.copy(), np.zeros((size, size))
        within_inverse, between_inverse = np.linalg.inv(within), np.linalg.inv(between)
        for count in np.unique(counts):
            these = means[counts == count]
            var = np.linalg.inv(between_inverse + count * within_inverse)
            y = count * these @ within_inverse @ var
            away = these - y
            w += count * (away.T @ away + len(these) * var)
            b += y.T @ y + len(these) * var
        within, between = w / len(x), b / len(counts)
    return within, between


def _diagonalized(within: Floats, between: Floats) -> tuple[Floats, Floats]:
    """`transform` and `psi` of a pair of covariances."""
    whiten = _inverse_root(within)
    psi, directions = np.linalg.eigh(whiten @ between @ whiten)
    order = np.argsort(psi)[::-1]
    return directions[:, order].T @ whiten, np.maximum(psi[order], 0)


def _inverse_root(matrix: Floats) -> Floats:
    values, vectors = np.linalg.eigh(matrix)
    floor = max(float(values.max()), 1e-12) * 1e-9
    return np.asarray((vectors / np.sqrt(np.maximum(values, floor))) @ vectors.T)
