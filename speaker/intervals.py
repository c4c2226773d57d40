"""How far a figure would move with other speakers: bootstrap over speakers, not over trials.

Trials of one speaker are alike, so an interval that draws trials is much too narrow. Here speakers are drawn with
replacement; a trial counts as often as both of its speakers were drawn
(Bengio and Mariethoz 2004; Poh and Bengio 2007).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.errors import ScoreError
from speaker.metrics import LOW_PRIOR, Cost, ErrorRates, Floats, act_dcf_of, eer_of, split


class Estimate(NamedTuple):
    """A figure of all trials and its 95 % interval."""

    value: float
    low: float
    high: float


class Sweep:
    """Scores sorted once, to be counted again with other weights."""

    def __init__(self, scores: ArrayLike, labels: ArrayLike) -> None:
        split(scores, labels)  # complains
        self.levels, self.place = np.unique(np.asarray(scores, dtype=np.float64), return_inverse=True)
        self.is_target = np.asarray(labels).astype(bool)

    def rates(self, weights: Floats) -> ErrorRates | None:
        """Error rates with each trial counted that often; None where no target or no non-target is left."""
        sums = [
            np.bincount(self.place[kind], weights=weights[kind], minlength=len(self.levels))
            for kind in (self.is_target, ~self.is_target)
        ]
        if min(part.sum() for part in sums) <= 0:
            return None
        below = [np.concatenate([[0.0], np.cumsum(part)]) / part.sum() for part in sums]
        return ErrorRates(np.append(self.levels, np.inf), below[0], 1 - below[1])


Figure = Callable[[ErrorRates], float]


def eer_percent(rates: ErrorRates) -> float:
    """Equal error rate in %."""
    return 100 * eer_of(rates)[0]


def least_cost(cost: Cost = LOW_PRIOR) -> Figure:
    """Least normalized detection cost of any threshold."""
    return lambda rates: float(cost.normalized(rates.miss, rates.false_accept).min())


def actual_cost(cost: Cost = LOW_PRIOR) -> Figure:
    """Normalized detection cost of log-likelihood ratios at Bayes' threshold."""
    return lambda rates: act_dcf_of(rates, cost)


def draws(first: Sequence[str], second: Sequence[str], num: int, seed: int = 0) -> Iterator[Floats]:
    """`num` times: how often each trial counts (n,) when its speakers, `first` and `second`, are drawn again."""
    names, place = np.unique([*first, *second], return_inverse=True)
    one, other = place[: len(first)], place[len(first) :]
    rng = np.random.default_rng(seed)
    for _ in range(num):
        times = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names)).astype(np.float64)
        yield np.where(one == other, times[one], times[one] * times[other])


def speaker_bootstrap(
    scores: ArrayLike, labels: ArrayLike, first: Sequence[str], second: Sequence[str], figures: Sequence[Figure],
    num: int = 500, seed: int = 0,
) -> list[Estimate]:  # fmt: skip
    """Figures of the trials and their intervals; `first`, `second` name the speakers of each trial's two sides."""
    sweep = Sweep(scores, labels)
    if not len(first) == len(second) == len(sweep.place):
        raise ScoreError(f"{len(sweep.place)} scores, but the speakers of {len(first)} and {len(second)} sides")
    whole = sweep.rates(np.ones(len(first)))
    assert whole is not None
    drawn: list[list[float]] = []
    for weights in draws(first, second, num, seed):
        rates = sweep.rates(weights)
        if rates is not None:
            drawn.append([figure(rates) for figure in figures])
    values = [figure(whole) for figure in figures]
    if len(drawn) < num / 2:  # hardly any speakers
        return [Estimate(value, np.nan, np.nan) for value in values]
    low, high = np.percentile(np.array(drawn), (2.5, 97.5), axis=0)
    return [Estimate(*triple) for triple in zip(values, low.tolist(), high.tolist(), strict=True)]


def paired_difference(
    scores: tuple[ArrayLike, ArrayLike], labels: ArrayLike, first: Sequence[str], second: Sequence[str],
    figure: Figure = eer_percent, num: int = 500, seed: int = 0,
) -> Estimate:  # fmt: skip
    """How much larger a figure is for the first system's scores than for the second's, on the same trials."""
    sweeps = [Sweep(part, labels) for part in scores]

    def difference(weights: NDArray[np.float64]) -> float | None:
        rates = [sweep.rates(weights) for sweep in sweeps]
        return None if rates[0] is None or rates[1] is None else figure(rates[0]) - figure(rates[1])

    whole = difference(np.ones(len(first)))
    assert whole is not None
    drawn = [difference(weights) for weights in draws(first, second, num, seed)]
    kept = [value for value in drawn if value is not None]
    return Estimate(whole, *(np.percentile(kept, (2.5, 97.5)).tolist() if len(kept) > num / 2 else (np.nan, np.nan)))
