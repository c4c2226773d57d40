"""Who is speaking, or nobody we know: open-set identification with a threshold that grows with the gallery.

Among N speakers who are all wrong, the best score is the best of N tries. So that an unknown voice is taken for one of
them with a probability `rate` whatever N is, a single try may succeed with 1 - (1 - rate)^(1/N) only. Which score that
is, is learned from the scores of others:

1. A cosine s is standardized by what the enrolled voice e and the probe p score against voices in general, those of the
   model's cohort with mean m and covariance S: z = 1/2 sum over x in {e, p} of (s - m.x) / sqrt(x'Sx). This is
   symmetric normalization (Matejka et al. 2017) by moments, which costs one product a voice and needs no cohort scores.
2. Voices of one microphone, room or language are more alike than the cohort tells. The prints of the gallery are scored
   against its other speakers: known false alarms, of the same recordings. A line through their upper quantiles on
   normal paper, z = a + b q, also says how the tail goes on where no score has been seen. While the gallery is small
   the line is drawn to that of the cohort (as if worth PRIOR speakers), and b is raised by 1 + WIDEN / N, by
   a fifth at most, for what is not known yet.

PRIOR, WIDEN and UPPER were chosen on the training speakers, one corpus at a time with the cohort of the others.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.errors import ScoreError
from speaker.evidence import Evidence, Side
from speaker.gallery import Gallery, Vectors, unit_rows

__all__ = ["Identification", "OpenSet", "posteriors"]

PRIOR, WIDEN = 2.0, 2.0
UPPER = 0.9  # the line goes through the quantiles from here on
SAMPLE = 2_000  # prints and speakers that are scored against each other
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Identification:
    """`speaker` is None for nobody we know. `score` and `threshold` are standardized (z), `candidates` are cosines.

    `posterior` is that of the best candidate, `unknown` that of nobody enrolled; None without a calibration.
    """

    speaker: str | None
    best: str
    score: float
    threshold: float
    cosine: float
    llr: float | None
    posterior: float | None
    unknown: float | None
    num_speakers: int
    false_positive_rate: float | None  # None where a cosine decided
    candidates: list[tuple[str, float]]
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def as_text(self) -> str:
        """For people."""
        who = self.speaker or "nobody we know"
        nearest = "" if self.speaker else f", the nearest is {self.best}"
        chance = "" if self.posterior is None else f", probability {self.posterior:.1%}"
        rate = self.false_positive_rate
        aim = "" if rate is None else f" (target: {rate:.4g} of unknown voices accepted)"
        return (f"{who}{nearest}: score {self.score:.2f}, needed {self.threshold:.2f} among {self.num_speakers:,} "
                f"{'speaker' if self.num_speakers == 1 else 'speakers'}{aim}{chance}")  # fmt: skip


class OpenSet:
    """Decides for one gallery; made anew when the gallery changes."""

    def __init__(self, gallery: Gallery, cohort: ArrayLike | None = None, evidence: Evidence | None = None) -> None:
        """`cohort` (C, D): a voice a row, none of them enrolled. Without one, the gallery has to be large enough."""
        if evidence is not None:
            evidence.calibration.check_quality("seconds", "cohort")
        self.gallery, self.evidence = gallery, evidence
        self._sides: Side | None = None
        source = gallery.means if cohort is None else unit_rows(np.asarray(cohort, dtype=np.float32))
        if len(source) < 50:
            raise ScoreError(f"{len(source)} voices do not tell how alike strangers are; give a model with a cohort, "
                             "or decide by a cosine, --threshold")  # fmt: skip
        self._mean, centred = source.mean(0), source - source.mean(0)
        self._covariance = (centred.T @ centred / len(source)).astype(np.float32)
        self._enrolled = self._moments(gallery.means)
        self.line = self._fit(source)

    def threshold(self, rate: float, tries: float | None = None) -> float:
        """The standardized score that all of `tries` wrong pairs (default: N) stay below with probability 1 - rate."""
        if not 0 < rate < 1:
            raise ScoreError(f"the false positive rate lies between 0 and 1, got {rate}")
        single = -math.expm1(math.log1p(-rate) / (tries or len(self.gallery)))
        return self.line[0] - self.line[1] * NormalDist().inv_cdf(single)

    def threshold_of_cohort(self, rate: float, tries: float) -> float:
        """As `threshold`, but by the cohort alone: of galleries too small, or too full of doubles, to go by."""
        a, b = self.line_of_cohort
        return a - b * NormalDist().inv_cdf(-math.expm1(math.log1p(-rate) / tries))

    def between(self, first: ArrayLike, second: ArrayLike) -> Floats:
        """(n, D), (m, D) -> (n, m): z of every pair of prints."""
        a, b = (unit_rows(np.asarray(each, dtype=np.float32)) for each in (first, second))
        return self._standardize(a @ b.T, self._moments(a), self._moments(b))

    def standardized(self, vectors: ArrayLike) -> Floats:
        """(B, D) -> (B, N): z of every speaker."""
        probes = unit_rows(np.asarray(vectors, dtype=np.float32))
        return self._standardize(self.gallery.scores(probes), self._moments(probes), self._enrolled)

    def identify(
        self, vector: ArrayLike, *, false_positive_rate: float = 0.01, prior: float = 0.5, seconds: float = math.nan,
        top: int = 5,
    ) -> Identification:  # fmt: skip
        """Decide on one probe (D,) with `seconds` of speech; `prior`: that its speaker is enrolled at all."""
        probe = unit_rows(np.asarray(vector, dtype=np.float32)[None])
        cosines = self.gallery.scores(probe)[0]
        z = self._standardize(cosines[None], self._moments(probe), self._enrolled)[0]
        best = int(z.argmax())
        needed = self.threshold(false_positive_rate)
        llr, posterior, unknown = None, None, None
        if self.evidence is not None and math.isfinite(seconds):
            if self._sides is None:  # once a gallery
                self._sides = self.evidence.side(self.gallery.means, self.gallery.seconds, directions=True)
            enrolled = self._sides._replace(seconds=np.nan_to_num(self._sides.seconds, nan=seconds))
            own = self.evidence.side(probe, seconds, directions=True)
            ratios = self.evidence.llr(cosines.astype(np.float64), enrolled, own)
            each, unknown = posteriors(ratios, prior)
            llr, posterior = float(ratios[best]), float(each[best])
        order = np.argsort(-z, kind="stable")[:top]
        return Identification(
            speaker=self.gallery.names[best] if z[best] >= needed else None, best=self.gallery.names[best],
            score=float(z[best]), threshold=needed, cosine=float(cosines[best]), llr=llr, posterior=posterior,
            unknown=unknown, num_speakers=len(z), false_positive_rate=false_positive_rate,
            candidates=[(self.gallery.names[i], float(cosines[i])) for i in order],
        )  # fmt: skip

    def _moments(self, rows: Vectors) -> tuple[Vectors, Vectors]:
        """Mean and standard deviation (n,) of the scores of unit rows (n, D) against voices in general."""
        spread = np.sqrt(np.einsum("nd,nd->n", rows @ self._covariance, rows))
        return rows @ self._mean, np.maximum(spread, np.float32(1e-6))

    def _standardize(
        self, scores: Vectors, probes: tuple[Vectors, Vectors], enrolled: tuple[Vectors, Vectors]
    ) -> Floats:
        by_probe = (scores - probes[0][:, None]) / probes[1][:, None]
        return np.asarray(0.5 * (by_probe + (scores - enrolled[0]) / enrolled[1]))

    def _fit(self, source: Vectors) -> tuple[float, float]:
        """a and b of the line: that of the gallery, drawn to that of the cohort."""
        gallery, own = self.gallery, self._moments(source)
        general = self._standardize(source @ source.T, own, own)[np.triu_indices(len(source), 1)]
        a, b = self.line_of_cohort = line_of_tail(general)
        if len(gallery) > 1:
            rng = np.random.default_rng(0)
            columns = rng.permutation(len(gallery))[:SAMPLE]
            rows = rng.permutation(len(gallery.prints))[:SAMPLE]
            enrolled = self._enrolled[0][columns], self._enrolled[1][columns]
            scores = gallery.prints[rows] @ gallery.means[columns].T
            z = self._standardize(scores, self._moments(gallery.prints[rows]), enrolled)
            seen = line_of_tail(z[gallery.owners[rows][:, None] != columns])
            share = len(gallery) / (len(gallery) + PRIOR)
            a, b = (1 - share) * a + share * seen[0], (1 - share) * b + share * seen[1]
        return a, b * (1 + min(WIDEN / len(gallery), 0.2))


def line_of_tail(z: Floats) -> tuple[float, float]:
    """(n,) scores of wrong pairs -> a, b of z = a + b q, least squares over upper quantiles, q those of the normal."""
    highest = max(UPPER, 1 - 20 / len(z) if len(z) >= 1000 else 1 - min(0.1, 5 / math.sqrt(len(z))))
    if highest - UPPER < 1e-3:  # too few for a slope of their own
        return float(np.mean(z)), max(float(np.std(z)), 1e-6)
    tail = np.geomspace(1 - UPPER, 1 - highest, 20)
    q = np.array([-NormalDist().inv_cdf(p) for p in tail])
    values = np.quantile(z, 1 - tail)
    b = float(((q - q.mean()) * (values - values.mean())).sum() / ((q - q.mean()) ** 2).sum())
    return float(values.mean() - b * q.mean()), b


def posteriors(ratios: Floats, prior: float) -> tuple[Floats, float]:
    """(N,) log-likelihood ratios -> probability of each speaker (N,) and of nobody enrolled.

    `prior` that the speaker is enrolled, spread evenly over all; a softmax with the ratio of "unknown" 0.
    """
    if not 0 < prior < 1:
        raise ScoreError(f"the prior lies between 0 and 1, got {prior}")
    logs = np.append(ratios + math.log(prior / len(ratios)), math.log1p(-prior))
    weights = np.exp(logs - logs.max())
    weights /= weights.sum()
    return weights[:-1], float(weights[-1])
