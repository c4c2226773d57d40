"""x-vectors: time-delay layers without padding, statistics pooling, two layers behind it.

Snyder, Garcia-Romero, Sell, Povey and Khudanpur, "X-vectors: robust DNN embeddings for speaker recognition" (ICASSP
2018), and the extended network of Snyder et al. (ICASSP 2019), as BUT used both in its VoxSRC 2019 system (Zeinali et
al., arXiv 1910.12592). Batch normalization has no affine part, as in Kaldi and its ports. The embedding is the first
or the second layer after the pooling, before its ReLU; Kaldi takes the first, WeSpeaker the second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from engine.errors import ConfigError
from speaker.pooling import Squeeze, StatisticsPooling, masked_mean

__all__ = ["Xvector", "XvectorConfig", "extended"]


@dataclass(frozen=True, kw_only=True)
class XvectorConfig:
    """The x-vector network of Kaldi's sre16 recipe. `layers`: kernel and dilation of each; the last one is wider."""

    num_bins: int = 80
    channels: int = 512
    stats_channels: int = 1500
    layers: tuple[tuple[int, int], ...] = ((5, 1), (3, 2), (3, 3), (1, 1), (1, 1))
    embedding_dim: int = 512
    tap: Literal["first", "second"] = "first"
    unbiased: bool = True
    eps: float = 1e-7

    def __post_init__(self) -> None:
        if not self.layers or any(len(layer) != 2 or min(layer) < 1 or layer[0] % 2 == 0 for layer in self.layers):
            raise ConfigError(f"layers are pairs of an odd kernel and a dilation from 1 up, got {self.layers}")
        if min(self.num_bins, self.channels, self.stats_channels, self.embedding_dim) < 1:
            raise ConfigError("sizes must be at least 1")


def extended(channels: int = 512, stats_channels: int = 1500) -> XvectorConfig:
    """The extended TDNN (E-TDNN): a wider context, and a layer on single frames after each that looks around."""
    one = (1, 1)
    layers = ((5, 1), one, (3, 2), one, (3, 3), one, (3, 4), one, one, one)
    return XvectorConfig(channels=channels, stats_channels=stats_channels, layers=layers)


class TimeDelay(nn.Module):
    """Convolution over time without padding, ReLU, batch normalization."""

    def __init__(self, in_channels: int, channels: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_channels, channels, kernel, dilation=dilation)
        self.norm = nn.BatchNorm1d(channels, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C', T - dilation (kernel - 1))."""
        return self.norm(self.conv(x).relu_())


class Xvector(nn.Module):
    """Features (B, F, T) -> embedding (B, D), not normalized."""

    # For speaker.long
    stride = 1
    halo = 0
    chunk_frames = 8192

    def __init__(self, config: XvectorConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.num_bins] + [config.channels] * (len(config.layers) - 1) + [config.stats_channels]
        self.layers = nn.ModuleList(
            TimeDelay(width, next_width, *layer)
            for width, next_width, layer in zip(widths, widths[1:], config.layers, strict=False)
        )
        self.pool = StatisticsPooling(unbiased=config.unbiased, eps=config.eps)
        self.embed = nn.Linear(2 * config.stats_channels, config.embedding_dim)
        self.embed_norm = nn.BatchNorm1d(config.embedding_dim, affine=False) if config.tap == "second" else None
        self.embed2 = nn.Linear(config.embedding_dim, config.embedding_dim) if config.tap == "second" else None

    @property
    def shrink(self) -> int:
        """Frames that the layers lose."""
        return sum(dilation * (kernel - 1) for kernel, dilation in self.config.layers)

    @property
    def min_frames(self) -> int:
        """Two frames have to be left for a standard deviation."""
        return self.shrink + 2

    def frames(
        self, features: Tensor, num_frames: Tensor | None = None, squeeze: Squeeze = masked_mean
    ) -> tuple[Tensor, Tensor | None]:
        """(B, F, T), lengths (B,) or None -> what is pooled (B, C, T - shrink), and its lengths."""
        x = features
        for layer in self.layers:
            x = layer(x)
        return x, None if num_frames is None else num_frames - self.shrink

    def head(self, pooled: Tensor) -> Tensor:
        """(B, 2 C) -> embedding (B, D)."""
        x = self.embed(pooled)
        return x if self.embed2 is None or self.embed_norm is None else self.embed2(self.embed_norm(x.relu()))

    def forward(self, features: Tensor, num_frames: Tensor | None = None) -> Tensor:
        """(B, F, T), lengths (B,) or None -> embedding (B, D)."""
        return self.head(self.pool(*self.frames(features, num_frames)))
