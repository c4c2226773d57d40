"""The embedding of hours of audio in little memory, equal to that of the whole file in one go.

    embedding = long.embed(encoder, audio.blocks("meeting.flac", sample_rate=16000, mono=True))

Features go through the network in chunks.  What a chunk needs besides its own frames:

- Convolutions look `halo` frames to either side: a chunk is computed with so many more and loses them afterwards.
- Squeeze-and-excitation needs the mean of its input over the file: a pass over the file finds it, the next pass uses
  it and comes as far as the next squeeze.  So do the context of the attention and the attention itself; TitaNet takes
  seven passes, ECAPA-TDNN five, ResNet and x-vector one.
- Mean and variance are merged chunk by chunk, those weighted by attention too (:mod:`speaker.moments`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from engine.errors import AudioError
from speaker.long_features import LongFeatures
from speaker.model import SpeakerEncoder
from speaker.moments import Moments
from speaker.pooling import AttentiveStatisticsPooling, Squeeze, StatisticsPooling, masked_mean

__all__ = ["Backbone", "count_squeezes", "embed", "embed_features"]


class Backbone(Protocol):
    """What a network must tell to be computed in chunks."""

    min_frames: int
    stride: int  # frames that become one
    halo: int  # frames that it looks to either side, where its convolutions are padded; a multiple of `stride`
    shrink: int  # frames lost at the ends in all, where they are not
    chunk_frames: int  # of a full-size network, that take 100 to 300 MB
    pool: StatisticsPooling | AttentiveStatisticsPooling

    def frames(
        self, features: Tensor, num_frames: Tensor | None = None, squeeze: Squeeze = masked_mean
    ) -> tuple[Tensor, Tensor | None]:
        """(B, F, T) -> what is pooled (B, C, T'), and its lengths."""
        ...

    def head(self, pooled: Tensor) -> Tensor:
        """(B, 2 C) -> embedding (B, D)."""
        ...


class _UnknownMean(Exception):
    """A squeeze whose mean over the file is not known yet; `x` (1, C, T) is its input."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.x = x


@torch.no_grad()
def embed(encoder: SpeakerEncoder, blocks: Iterable[Tensor]) -> Tensor:
    """Embedding (D,) of a file given as blocks (1, n) of samples at the encoder's rate, as `audio.blocks` reads them.

    The encoder must be in eval mode. Raises AudioError for samples that are not finite and a file that is too short.
    """
    features = LongFeatures(encoder.config.front_end, (block[0] for block in blocks))
    device = next(encoder.backbone.parameters()).device
    return embed_features(encoder.backbone, lambda start, stop: features(start, stop).to(device), features.num_frames)


@torch.no_grad()
def embed_features(
    backbone: Backbone,
    features: Callable[[int, int], Tensor],
    num_frames: int,
    chunk_frames: int | None = None,
) -> Tensor:
    """The same of a file whose frames `start` to `stop` are `features(start, stop)` (F, stop - start).

    The network must be in eval mode. `chunk_frames` other than the network's own changes memory and time only.
    """
    if num_frames < backbone.min_frames:
        raise AudioError(f"{num_frames} frames are too few; this model needs at least {backbone.min_frames}")
    chunks = _Chunks(backbone, features, num_frames, chunk_frames or backbone.chunk_frames)
    for _ in range(count_squeezes(backbone, features(0, backbone.min_frames))):
        chunks.means.append(_moments(chunks)[0][..., None])
    pool = backbone.pool
    if isinstance(pool, StatisticsPooling):
        return backbone.head(pool.finish(*_moments(chunks), chunks.total))[0]
    context = pool.context(*_moments(chunks), chunks.total) if pool.global_context else None
    return backbone.head(pool.finish(*_moments(chunks, lambda x: pool.scores(x[None], context)[0])))[0]


def _moments(chunks: Iterable[Tensor], scores: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, Tensor]:
    moments = Moments()
    for x in chunks:
        moments.add(x, scores(x) if scores else None)
        dtype = x.dtype
    return moments.result(dtype)


def count_squeezes(backbone: Backbone, features: Tensor) -> int:
    """How often the network computes a mean over the utterance before it pools; `features` (F, T) are any."""
    count = 0

    def counting(x: Tensor, mask: Tensor | None) -> Tensor:
        nonlocal count
        count += 1
        return masked_mean(x, mask)

    with torch.no_grad():
        backbone.frames(features[None], squeeze=counting)
    return count


class _Chunks:
    """Iterates over the chunks of a file: what reaches the first squeeze that is not in `means`, or else the pooling.

    Each is (C, T), without halos; `total` is the number of all frames together.
    """

    def __init__(
        self, backbone: Backbone, features: Callable[[int, int], Tensor], num_frames: int, chunk_frames: int
    ) -> None:
        self.backbone, self.features, self.num_frames = backbone, features, num_frames
        self.size = math.ceil(chunk_frames / backbone.stride)
        self.total = math.ceil((num_frames - backbone.shrink) / backbone.stride)
        self.means: list[Tensor] = []

    def __iter__(self) -> Iterator[Tensor]:
        stride, halo = self.backbone.stride, self.backbone.halo
        for first in range(0, self.total, self.size):
            last = min(first + self.size, self.total)
            start = max(0, first * stride - halo)
            stop = min(self.num_frames, last * stride + halo + self.backbone.shrink)
            x = self._reached(self.features(start, stop)[None])
            yield x[0, :, first - start // stride : last - start // stride]

    def _reached(self, features: Tensor) -> Tensor:
        known = iter(self.means)

        def squeeze(x: Tensor, mask: Tensor | None) -> Tensor:
            mean = next(known, None)
            if mean is None:
                raise _UnknownMean(x)
            return mean

        try:
            return self.backbone.frames(features, squeeze=squeeze)[0]
        except _UnknownMean as unknown:
            return unknown.x
