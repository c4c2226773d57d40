"""Mean and variance over time from pieces, plain or weighted, in constant memory.

Two pieces are merged as by Chan, Golub and LeVeque (1983).  Weights are given by their logarithms, as attention does:
a softmax over time is exp(s - m) over its sum, and a larger m later on only rescales what was summed before (Milakov
and Gimelshein 2018).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Moments"]


class Moments:
    """Weighted mean and variance of each channel, merged from pieces; sums in double precision."""

    def __init__(self) -> None:
        # The weights so far are `weight` * exp(top), `spread` the sum of weighted squares around the mean.
        self.top = torch.tensor(-torch.inf, dtype=torch.float64)
        self.weight = self.mean = self.spread = torch.zeros((), dtype=torch.float64)

    def add(self, x: Tensor, scores: Tensor | None = None) -> None:
        """Take in x (C, T), each weighted by exp(scores) (C, T), or all alike."""
        if scores is None:
            top, weights = x.new_zeros(len(x)), None
        else:
            top = scores.amax(-1)
            weights = (scores - top[:, None]).exp()

        def total(values: Tensor) -> Tensor:
            return (values if weights is None else values * weights).sum(-1, dtype=torch.float64)

        weight = total(torch.ones_like(x))
        center = (total(x) / weight).to(x.dtype)[:, None]
        offset = total(x - center) / weight  # what rounding left out of the center
        spread = total((x - center).square()) - weight * offset.square()
        self._merge(top.double(), weight, center[:, 0].double() + offset, spread)

    def _merge(self, top: Tensor, weight: Tensor, mean: Tensor, spread: Tensor) -> None:
        highest = torch.maximum(self.top, top)
        old, new = (self.top - highest).exp(), (top - highest).exp()
        old_weight, new_weight = old * self.weight, new * weight
        weight, shift = old_weight + new_weight, mean - self.mean
        self.spread = old * self.spread + new * spread + shift.square() * old_weight * new_weight / weight
        self.mean = self.mean + shift * new_weight / weight
        self.top, self.weight = highest, weight

    def result(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Mean and biased variance (1, C)."""
        return self.mean[None].to(dtype), (self.spread / self.weight)[None].to(dtype)
