"""How well scores separate targets (same speaker) from non-targets: EER, detection costs, Cllr.

Scores grow with similarity. A trial is accepted at threshold t if its score is >= t; scores that are equal are accepted
or rejected together, so no figure depends on the order of trials. All figures of n trials take a sort, n log n.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.errors import ScoreError

Floats = NDArray[np.float64]


class ErrorRates(NamedTuple):
    """Rates at each threshold, from one that accepts all trials to one that accepts none; (K,) each."""

    thresholds: Floats
    miss: Floats  # targets rejected, rising from 0 to 1
    false_accept: Floats  # non-targets accepted, falling from 1 to 0


class Cost(NamedTuple):
    """Prior of a target and the costs of a miss and of a false acceptance, as in NIST's evaluations."""

    prior: float = 0.01
    miss: float = 1.0
    false_accept: float = 1.0

    @property
    def threshold(self) -> float:
        """The log-likelihood ratio (natural) from which on accepting costs less."""
        return math.log(self.false_accept) + math.log1p(-self.prior) - math.log(self.miss) - math.log(self.prior)

    def normalized(self, miss: ArrayLike, false_accept: ArrayLike) -> Floats:
        """Expected cost, 1 for whoever accepts all or none, whichever is cheaper."""
        of_miss, of_false = self.miss * self.prior, self.false_accept * (1 - self.prior)
        cost = of_miss * np.asarray(miss) + of_false * np.asarray(false_accept)
        return np.asarray(cost / min(of_miss, of_false), dtype=np.float64)


LOW_PRIOR = Cost()


def split(scores: ArrayLike, labels: ArrayLike) -> tuple[Floats, Floats]:
    """Scores of the targets and of the non-targets; ScoreError if there are none of one, or a score is not finite."""
    values, target = np.asarray(scores, dtype=np.float64), np.asarray(labels).astype(bool)
    if values.ndim != 1 or values.shape != target.shape:
        raise ScoreError(f"scores and labels must be two lists of one length, got {values.shape} and {target.shape}")
    if not np.isfinite(values).all():
        raise ScoreError(f"{int((~np.isfinite(values)).sum())} of {len(values)} scores are not finite, the first is "
                         f"number {int(np.flatnonzero(~np.isfinite(values))[0])}")  # fmt: skip
    if target.all() or not target.any():
        kinds = "targets" if len(target) and target.all() else "non-targets"
        raise ScoreError(f"all {len(target)} trials are {kinds}; error rates need both" if len(target) else "no trials")
    return values[target], values[~target]


def error_rates(targets: ArrayLike, nontargets: ArrayLike) -> ErrorRates:
    """Sweep all thresholds that differ; ScoreError where a side has no score, or one that is not a number."""
    right, wrong = np.sort(np.asarray(targets, dtype=np.float64)), np.sort(np.asarray(nontargets, dtype=np.float64))
    if not len(right) or not len(wrong):
        raise ScoreError(f"error rates need targets and non-targets, got {len(right)} and {len(wrong)}")
    if np.isnan(right[-1]) or np.isnan(wrong[-1]):  # sorted to the end
        raise ScoreError(f"{int(np.isnan(right).sum() + np.isnan(wrong).sum())} scores are not numbers")
    thresholds = np.append(np.unique(np.concatenate([right, wrong])), np.inf)
    miss = np.searchsorted(right, thresholds, side="left") / len(right)
    false_accept = 1 - np.searchsorted(wrong, thresholds, side="left") / len(wrong)
    return ErrorRates(thresholds, miss, false_accept)


def eer(targets: ArrayLike, nontargets: ArrayLike) -> tuple[float, float]:
    """Equal error rate and its threshold: where the lines between neighbouring operating points cross miss = false.

    The definition of NIST's and WeSpeaker's tools; that of ROC's convex hull is never above it.
    """
    return eer_of(error_rates(targets, nontargets))


def eer_of(rates: ErrorRates) -> tuple[float, float]:
    """`eer` of rates that are known."""
    difference = rates.miss - rates.false_accept  # rises from -1 to 1
    after = int(np.argmax(difference >= 0))
    before = after - 1
    share = -difference[before] / (difference[after] - difference[before])
    value = rates.miss[before] + share * (rates.miss[after] - rates.miss[before])
    threshold = rates.thresholds[after] if np.isfinite(rates.thresholds[after]) else rates.thresholds[before]
    return float(value), float(threshold)


def min_dcf(targets: ArrayLike, nontargets: ArrayLike, cost: Cost = LOW_PRIOR) -> tuple[float, float]:
    """Least normalized detection cost of any threshold, and that threshold."""
    rates = error_rates(targets, nontargets)
    costs = cost.normalized(rates.miss, rates.false_accept)
    best = int(np.argmin(costs))
    return float(costs[best]), float(rates.thresholds[best])


def act_dcf(targets: ArrayLike, nontargets: ArrayLike, cost: Cost = LOW_PRIOR) -> float:
    """Normalized detection cost when log-likelihood ratios are compared with the threshold that Bayes would set."""
    return act_dcf_of(error_rates(targets, nontargets), cost)


def act_dcf_of(rates: ErrorRates, cost: Cost = LOW_PRIOR) -> float:
    """`act_dcf` of rates that are known."""
    at = int(np.searchsorted(rates.thresholds, cost.threshold, side="left"))  # the last one is infinite
    return float(cost.normalized(rates.miss[at], rates.false_accept[at]))


def cllr(targets: ArrayLike, nontargets: ArrayLike) -> float:
    """Cost of log-likelihood ratios (natural) over all priors, in bits (Brummer and du Preez 2006); 1 says nothing."""
    return cllr_of(error_rates(targets, nontargets))


def cllr_of(rates: ErrorRates) -> float:
    """`cllr` of rates that are known."""
    return _bits(rates, rates.thresholds[:-1])


def min_cllr(targets: ArrayLike, nontargets: ArrayLike) -> float:
    """Cllr after the best monotonic calibration that there is for these very trials (pool adjacent violators)."""
    return min_cllr_of(error_rates(targets, nontargets))


def min_cllr_of(rates: ErrorRates) -> float:
    """`min_cllr` of rates that are known."""
    return _bits(rates, _calibrated(rates))


def best_calibrated(targets: ArrayLike, nontargets: ArrayLike) -> tuple[Floats, Floats]:
    """Log-likelihood ratios from the isotonic regression of the labels on the scores; equal scores stay equal."""
    rates = error_rates(targets, nontargets)
    ratios = _calibrated(rates)
    right, wrong = (ratios[np.searchsorted(rates.thresholds, np.asarray(side))] for side in (targets, nontargets))
    return right, wrong


def _shares(rates: ErrorRates) -> tuple[Floats, Floats]:
    """Shares of the targets and of the non-targets that have each score, (K - 1,) each."""
    return np.diff(rates.miss), -np.diff(rates.false_accept)


def _bits(rates: ErrorRates, ratios: Floats) -> float:
    """Cllr where the scores (K - 1,) are replaced by these ratios; those of scores that no trial has do not count."""
    total = 0.0
    for share, sign in zip(_shares(rates), (-1, 1), strict=True):
        total += float(share[share > 0] @ np.logaddexp(0, sign * ratios[share > 0]))
    return total / (2 * math.log(2))


def _calibrated(rates: ErrorRates) -> Floats:
    """(K - 1,) ratios of the scores by isotonic regression, both kinds of trials weighing the same; it needs scipy."""
    from scipy.optimize import isotonic_regression

    right, wrong = _shares(rates)
    weights = right + wrong
    drawn = weights > 0  # a bootstrap leaves scores without trials
    posterior = np.full(len(weights), np.nan)
    posterior[drawn] = isotonic_regression(right[drawn] / weights[drawn], weights=weights[drawn]).x
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(posterior) - np.log1p(-posterior))
