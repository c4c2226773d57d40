"""From frames of any number to one vector: mean and standard deviation over time, plain or weighted by attention.

Statistics pooling is Snyder et al. (2018, x-vectors); attentive statistics pooling Okabe et al. (2018), its
channel- and context-dependent form Desplanques et al. (2020, ECAPA-TDNN, eq. 2 to 4).  Implementations of the same
equations differ in the estimator of the variance and in the small number under the root; both are options here.

The context [x; mean; std] of the attention is never concatenated over time.  Its first layer is linear, hence

    W [x(t); mean; std] = W_x x(t) + (W_mean mean + W_std std),

where the bracket is one vector per utterance; the result is the same and nothing of 3 C channels by T frames is made.

In a padded batch, frames beyond an item's length have no influence.  Each pooling is also made of the parts that
:mod:`speaker.long` needs to go through hours of audio in pieces: `finish` takes the moments of all frames, `context`
and `scores` are the attention of any piece of them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = [
    "AttentiveStatisticsPooling",
    "Squeeze",
    "StatisticsPooling",
    "length_mask",
    "masked",
    "masked_mean",
    "moments",
]

# The mean over time inside squeeze-and-excitation: (x (B, C, T), mask (B, T) or None) -> (B, C, 1).  Backbones take it
# as an argument of `frames`, `masked_mean` by default, and call it once per squeeze, in order of computation; for
# long files it is replaced by the means of the whole file.
Squeeze = Callable[[Tensor, Tensor | None], Tensor]


def length_mask(num_frames: Tensor, frames: int) -> Tensor:
    """True where a frame is part of its item: (B,) lengths -> (B, frames) bool."""
    return torch.arange(frames, device=num_frames.device) < num_frames[:, None]


def masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """`x` (B, ..., T) with zeros where the mask (B, T) is False; as it is without a mask."""
    if mask is None:
        return x
    batch, frames = mask.shape
    return x * mask.to(x.dtype).view(batch, *[1] * (x.ndim - 2), frames)


def masked_mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over each item's own frames: (B, C, T) -> (B, C, 1)."""
    if mask is None:
        return x.mean(-1, keepdim=True)
    # A matrix product, since it needs no copy of x. An item without frames has mean 0.
    weight = mask.to(x.dtype)
    return torch.bmm(x, (weight / weight.sum(-1, keepdim=True).clamp(min=1))[..., None])


def moments(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | int]:
    """Mean (B, C), biased variance (B, C) and number of frames ((B, 1), or an int without a mask) of x (B, C, T)."""
    mean = masked_mean(x, mask)
    # Around the mean, not E[x^2] - mean^2: that loses all digits where the mean is large.
    variance = masked_mean((x - mean).square(), mask)
    count = x.shape[-1] if mask is None else mask.sum(-1, keepdim=True)
    return mean.squeeze(-1), variance.squeeze(-1), count


def _unbiased(variance: Tensor, count: Tensor | int) -> Tensor:
    """Biased -> unbiased variance; that of a single frame stays 0 where the formula says 0 / 0."""
    count = torch.as_tensor(count, dtype=variance.dtype, device=variance.device)
    return variance * (count / (count - 1).clamp(min=1))


def _deviation(variance: Tensor, eps: float, eps_added: bool) -> Tensor:
    return (variance + eps).sqrt() if eps_added else variance.clamp(min=eps).sqrt()


class StatisticsPooling(nn.Module):
    """Mean and standard deviation of each channel over time.

    `unbiased`: divide by T - 1 instead of T. `eps` is added under the root, or with `eps_added=False` is the least
    variance. WeSpeaker's is the default; BUT's is `unbiased=False, eps=1e-10`.
    """

    def __init__(self, *, unbiased: bool = True, eps: float = 1e-7, eps_added: bool = True) -> None:
        super().__init__()
        self.unbiased, self.eps, self.eps_added = unbiased, eps, eps_added

    def forward(self, x: Tensor, num_frames: Tensor | None = None) -> Tensor:
        """(B, C, T) and lengths (B,) or None -> (B, 2 C): means, then standard deviations."""
        mask = None if num_frames is None else length_mask(num_frames, x.shape[-1])
        return self.finish(*moments(x, mask))

    def finish(self, mean: Tensor, variance: Tensor, count: Tensor | int) -> Tensor:
        """Mean (B, C), biased variance (B, C), number of frames -> (B, 2 C)."""
        if self.unbiased:
            variance = _unbiased(variance, count)
        return torch.cat([mean, _deviation(variance, self.eps, self.eps_added)], dim=1)


class AttentiveStatisticsPooling(nn.Module):
    """Mean and standard deviation weighted over time, each channel with weights of its own.

    Scores are linear -> tanh -> linear of x, and with `global_context` of its mean and standard deviation over the
    utterance too; a softmax over time makes them weights.

    `norm`: ReLU and batch normalization before the tanh. `unbiased_context`, `eps_added_to_context`: the standard
    deviation of the context, as in :class:`StatisticsPooling`; that of the result is always biased and `eps` its least
    variance. SpeechBrain's are the defaults; NeMo: eps=1e-10; TaoRuijie: unbiased_context, eps=1e-4; WeSpeaker:
    norm=False, unbiased_context, eps_added_to_context, eps=1e-7.
    """

    def __init__(
        self,
        channels: int,
        attention_channels: int = 128,
        *,
        global_context: bool = True,
        norm: bool = True,
        unbiased_context: bool = False,
        eps_added_to_context: bool = False,
        eps: float = 1e-12,
    ) -> None:
        super().__init__()
        self.channels, self.global_context, self.eps = channels, global_context, eps
        self.statistics = StatisticsPooling(unbiased=unbiased_context, eps=eps, eps_added=eps_added_to_context)
        self.hidden = nn.Conv1d(channels * (3 if global_context else 1), attention_channels, 1)
        self.norm = nn.BatchNorm1d(attention_channels) if norm else None
        self.score = nn.Conv1d(attention_channels, channels, 1)

    def forward(self, x: Tensor, num_frames: Tensor | None = None) -> Tensor:
        """(B, C, T) and lengths (B,) or None -> (B, 2 C): weighted means, then weighted standard deviations."""
        mask = None if num_frames is None else length_mask(num_frames, x.shape[-1])
        context = self.context(*moments(x, mask)) if self.global_context else None
        scores = self.scores(x, context)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None], -torch.inf)
        weights = scores.softmax(-1)
        mean = (weights * x).sum(-1)
        variance = (weights * (x - mean[..., None]).square()).sum(-1)
        return self.finish(mean, variance)

    def context(self, mean: Tensor, variance: Tensor, count: Tensor | int) -> Tensor:
        """What mean and std of the utterance (moments as in `StatisticsPooling.finish`) add to layer 1: (B, A, 1)."""
        weight = self.hidden.weight[:, self.channels :, 0]
        return (self.statistics.finish(mean, variance, count) @ weight.T)[..., None]

    def scores(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Attention before the softmax: x (B, C, T), context (B, A, 1) or None -> (B, C, T)."""
        hidden = nn.functional.conv1d(x, self.hidden.weight[:, : self.channels], self.hidden.bias)
        if context is not None:
            hidden = hidden + context
        if self.norm is not None:
            hidden = self.norm(hidden.relu())
        return self.score(hidden.tanh())

    def finish(self, mean: Tensor, variance: Tensor) -> Tensor:
        """Weighted mean and variance (B, C) -> (B, 2 C)."""
        return torch.cat([mean, _deviation(variance, self.eps, eps_added=False)], dim=1)
