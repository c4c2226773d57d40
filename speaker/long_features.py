"""Features of hours of audio: computed piece by piece, kept once, normalized as they are read.

What one frame is depends on its own samples alone, so a file is cut anywhere, with a few frames of context on both
sides.  What depends on the whole file comes afterwards: SpeechBrain's floor below the loudest bin, the mean, the
standard deviation.  Two hours of 80 bins take 230 MB.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from engine.errors import AudioError
from engine.features import STD_EPS, TOP_DECIBELS, FrontEnd, FrontEndConfig
from speaker.moments import Moments

__all__ = ["LongFeatures", "sliding_windows", "unnormalized", "window_means"]

PIECE_FRAMES = 1024


class LongFeatures:
    """`features(start, stop)` (F, stop - start) of a file of `num_frames` frames, as `FrontEnd` makes them at once."""

    def __init__(self, config: FrontEndConfig, blocks: Iterable[Tensor]) -> None:
        """`blocks`: the samples (n,) of the file at the front end's rate, cut anywhere.

        Raises AudioError for samples that are not finite and for a file without a frame.
        """
        self.config = config
        self._pieces = list(_pieces(config, blocks))
        self.num_frames = sum(piece.shape[1] for piece in self._pieces)
        if not self.num_frames:
            raise AudioError(f"the file is too short for this model: it needs {config.min_samples} samples")
        self._floor = -math.inf
        if config.log == "decibel":
            self._floor = max(float(piece.max()) for piece in self._pieces) - TOP_DECIBELS
        self._mean, self._std = torch.zeros(()), torch.ones(())
        if config.normalization in ("mean", "mean_std"):
            self._measure()

    def __call__(self, start: int, stop: int) -> Tensor:
        """Frames `start` to `stop`, normalized: (F, stop - start)."""
        if self.config.normalization == "sliding_mean":
            return self._raw(start, stop) - self._sliding_mean(start, stop)
        return (self._raw(start, stop) - self._mean) / self._std

    def _raw(self, start: int, stop: int) -> Tensor:
        first, last = start // PIECE_FRAMES, -(-stop // PIECE_FRAMES)
        joined = torch.cat(self._pieces[first:last], dim=1)
        return joined[:, start - first * PIECE_FRAMES : stop - first * PIECE_FRAMES].clamp(min=self._floor)

    def _measure(self) -> None:
        moments = Moments()
        for start in range(0, self.num_frames, PIECE_FRAMES):
            moments.add(self._raw(start, min(start + PIECE_FRAMES, self.num_frames)))
        mean, variance = moments.result(torch.float32)
        self._mean = mean.T
        if self.config.normalization == "mean_std":
            self._std = (variance.T * self.num_frames / max(self.num_frames - 1, 1)).sqrt() + STD_EPS

    def _sliding_mean(self, start: int, stop: int) -> Tensor:
        """Mean of the `sliding_frames` frames around each; at the ends of the file of those nearest to the end."""
        first, width = sliding_windows(start, stop, self.config.sliding_frames, self.num_frames)
        offset = int(first[0])
        return window_means(self._raw(offset, int(first[-1]) + width), first - offset, width)


def sliding_windows(start: int, stop: int, size: int, num_frames: int) -> tuple[Tensor, int]:
    """First frames (stop - start,) and length of the windows of `size` around frames `start` to `stop`.

    At the ends of the `num_frames` they are those nearest to the end.
    """
    width = min(size, num_frames)
    first = torch.arange(start, stop) - size // 2
    return first.clamp(min=0, max=num_frames - width), width


def window_means(frames: Tensor, first: Tensor, width: int) -> Tensor:
    """Means of (F, T) over the `width` frames from each of `first` (n,) on: (F, n)."""
    sums = torch.nn.functional.pad(frames.double().cumsum(1), (1, 0))
    return ((sums[:, first + width] - sums[:, first]) / width).float()


def _pieces(config: FrontEndConfig, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
    """Features (F, PIECE_FRAMES), the last ones fewer, before all that depends on the whole file."""
    hop = config.hop_length
    context = (config.n_fft // hop + 1) * hop  # more than a window and the sample before it reach
    size, spectrum = PIECE_FRAMES * hop, unnormalized(config)
    held, before, total = torch.zeros(0), 0, 0  # `before`: samples of context at the start of `held`
    for block in blocks:
        if not torch.isfinite(block).all():
            raise AudioError("the samples contain NaN or infinity")
        held = torch.cat([held, block])
        total += len(block)
        while len(held) >= before + size + context:
            frames = spectrum(held[: before + size + context])
            yield frames[:, before // hop : before // hop + PIECE_FRAMES]
            held, before = held[before + size - context :], context
    if total < config.min_samples:
        return
    skip = before // hop
    count = int(config.num_frames(total)) - (total - len(held)) // hop - skip
    for piece in spectrum(held)[:, skip : skip + count].split(PIECE_FRAMES, dim=1):
        yield piece.clone()  # the rest may belong to a larger one


def unnormalized(config: FrontEndConfig) -> Callable[[Tensor], Tensor]:
    """Samples (n,) -> features (F, T) without floor and normalization."""
    decibel = config.log == "decibel"
    plain = dataclasses.replace(config, normalization="none", log="ln_floor" if decibel else config.log)
    front_end, factor = FrontEnd(plain), 10 / math.log(10) if decibel else 1.0
    return lambda wav: front_end(wav[None])[0][0] * factor
