"""Features of a signal that is still going on: each frame once, normalized by what is known so far.

A frame is *settled* when nothing that comes can change it: its samples are there, none of them made up beyond the end,
and its normalization rests on frames that are there, too. With the mean of the whole utterance taken off no frame ever
is; those that are asked for once are then called settled as they are (`warm_frames`), and that is where a live
embedding differs from the one of the whole signal.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from engine.errors import AudioError
from engine.features import STD_EPS, TOP_DECIBELS, FrontEndConfig
from speaker.long_features import sliding_windows, unnormalized, window_means

__all__ = ["LiveFeatures"]


class LiveFeatures:
    """`push` samples, then read frames: `features(start, stop)` (F, stop - start), normalized as of now."""

    def __init__(self, config: FrontEndConfig, warm_frames: int) -> None:
        self.config = config
        self.warm_frames = warm_frames
        self.num_samples = 0
        self.num_frames = 0
        self._spectrum = unnormalized(config)
        self._context = config.n_fft // config.hop_length + 1  # frames around one that share samples with it
        self._samples = torch.zeros(0)
        self._first = 0  # frame at which `_samples` begin
        self._complete = 0  # frames that further samples do not change, before normalization
        self._raw = torch.zeros(config.num_features, 0)  # frames `_kept` to `num_frames`
        self._kept = 0
        self._sum = self._squares = torch.zeros(config.num_features, dtype=torch.float64)  # of frames before `_kept`
        self._floor = -math.inf

    @property
    def exact(self) -> bool:
        """Whether frames can be settled for good."""
        return self.config.normalization in ("none", "sliding_mean") and self.config.log != "decibel"

    @property
    def settled(self) -> int:
        """Frames that do not change any more, or are not going to be changed."""
        if not self.exact:
            return self._complete if self._complete >= self.warm_frames else 0
        if self.config.normalization == "none":
            return self._complete
        width = self.config.sliding_frames
        return max(0, self._complete - width + width // 2 + 1) if self._complete >= width else 0

    def push(self, wav: Tensor) -> None:
        """Take in samples (n,); AudioError if they are not finite."""
        if not torch.isfinite(wav).all():
            raise AudioError("the samples contain NaN or infinity")
        self._samples = torch.cat([self._samples, wav])
        self.num_samples += len(wav)
        config, hop = self.config, self.config.hop_length
        if self.num_samples < config.min_samples:
            return
        self.num_frames = int(config.num_frames(self.num_samples))
        fresh = self._spectrum(self._samples)[:, self._complete - self._first : self.num_frames - self._first]
        self._raw = torch.cat([self._raw[:, : self._complete - self._kept], fresh], dim=1)
        if config.log == "decibel":
            self._floor = max(self._floor, float(fresh.amax()) - TOP_DECIBELS)
        self._complete = max(self._complete, self.num_samples // hop - self._context)
        first = max(self._first, self._complete - self._context)
        self._samples = self._samples[(first - self._first) * hop :].clone()
        self._first = first

    def forget(self, before: int) -> None:
        """Frames before that one will not be asked for again."""
        if self.config.normalization == "sliding_mean":
            before = min(before - self.config.sliding_frames // 2, self.num_frames - self.config.sliding_frames)
        before = min(before, self._complete)
        if before <= self._kept:
            return
        gone = self._raw[:, : before - self._kept].clamp(min=self._floor).double()
        self._sum = self._sum + gone.sum(1)
        self._squares = self._squares + gone.square().sum(1)
        self._raw = self._raw[:, before - self._kept :].clone()
        self._kept = before

    def __call__(self, start: int, stop: int) -> Tensor:
        """Frames `start` to `stop`: (F, stop - start)."""
        assert self._kept <= start <= stop <= self.num_frames, "these frames are forgotten, or yet to come"
        raw = self._raw.clamp(min=self._floor)
        frames = raw[:, start - self._kept : stop - self._kept]
        kind = self.config.normalization
        if kind == "none":
            return frames
        if kind == "sliding_mean":
            first, width = sliding_windows(start, stop, self.config.sliding_frames, self.num_frames)
            return frames - window_means(self._raw, first - self._kept, width)
        count = self.num_frames
        mean = (self._sum + raw.sum(1, dtype=torch.float64)) / count
        frames = frames - mean[:, None].float()
        if kind == "mean":
            return frames
        squares = self._squares + raw.double().square().sum(1)
        variance = (squares - count * mean.square()).clamp_min(0) / max(count - 1, 1)
        return frames / (variance.sqrt()[:, None].float() + STD_EPS)
