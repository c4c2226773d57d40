"""TitaNet: depth-wise separable convolutions, squeeze-and-excitation over the utterance, attentive statistics pooling.

Koluguri, Park and Ginsburg, "TitaNet: Neural model for speaker representation with 1D depth-wise separable
convolutions and global context" (2021, arXiv 2110.04410), as NeMo builds it: a prolog, three mega blocks with a
residual path, an epilog, all with zero padding.  The published sizes are `small`, `medium` and `large`.

Here every convolution that mixes frames sees zeros beyond an item's length, with or without lengths given; the result
for an item of a padded batch is that of the item alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from engine.errors import ConfigError
from speaker.pooling import AttentiveStatisticsPooling, Squeeze, length_mask, masked, masked_mean

__all__ = ["TitaNet", "TitaNetConfig", "large", "medium", "small"]


@dataclass(frozen=True, kw_only=True)
class TitaNetConfig:
    """TitaNet-L. `kernels` are those of the prolog, of each mega block, and of the epilog."""

    num_bins: int = 80
    channels: int = 1024
    epilog_channels: int = 3072
    kernels: tuple[int, ...] = (3, 7, 11, 15, 1)
    repeats: int = 3  # separable convolutions in a mega block
    squeeze_reduction: int = 8
    attention_channels: int = 128
    embedding_dim: int = 192
    dropout: float = 0.1  # in the mega blocks, while training

    def __post_init__(self) -> None:
        if len(self.kernels) < 2 or any(kernel < 1 or kernel % 2 == 0 for kernel in self.kernels):
            raise ConfigError(f"kernels must be two or more odd numbers, got {self.kernels}")
        for name in ("num_bins", "channels", "epilog_channels", "repeats", "attention_channels", "embedding_dim"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 1 <= self.squeeze_reduction <= min(self.channels, self.epilog_channels):
            raise ConfigError(f"squeeze_reduction must be 1 to the number of channels, got {self.squeeze_reduction}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must be in [0, 1), got {self.dropout}")


def small() -> TitaNetConfig:
    """TitaNet-S. The published 6.4 M parameters are with an epilog of 1536 channels, not the 3072 of NeMo's recipe."""
    return TitaNetConfig(channels=256, epilog_channels=1536)


def medium() -> TitaNetConfig:
    """TitaNet-M."""
    return TitaNetConfig(channels=512)


def large() -> TitaNetConfig:
    """TitaNet-L."""
    return TitaNetConfig()


class SeparableConv(nn.Module):
    """One convolution per channel over time, one over channels per frame, batch normalization."""

    def __init__(self, in_channels: int, channels: int, kernel: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(
            in_channels, in_channels, kernel, padding=kernel // 2, groups=in_channels, bias=False
        )
        self.pointwise = nn.Conv1d(in_channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm1d(channels, eps=1e-3)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, C, T), mask (B, T) or None -> (B, C', T), not masked."""
        return self.norm(self.pointwise(self.depthwise(masked(x, mask))))


class SqueezeExcitation(nn.Module):
    """Scale each channel by a function of the means of all channels over the utterance."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.down = nn.Linear(channels, channels // reduction, bias=False)
        self.up = nn.Linear(channels // reduction, channels, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None, squeeze: Squeeze) -> Tensor:
        """(B, C, T), mask (B, T) or None -> (B, C, T)."""
        mean = squeeze(x, mask).squeeze(-1)
        return x * self.up(self.down(mean).relu()).sigmoid()[..., None]


class Block(nn.Module):
    """Separable convolutions with ReLU between them, squeeze-and-excitation, in mega blocks a residual, ReLU."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel: int,
        *,
        repeats: int,
        residual: bool,
        reduction: int,
        dropout: float,
    ) -> None:
        super().__init__()
        widths = [in_channels] + [channels] * repeats
        self.convs = nn.ModuleList(
            SeparableConv(width, next_width, kernel) for width, next_width in zip(widths, widths[1:], strict=False)
        )
        self.se = SqueezeExcitation(channels, reduction)
        self.skip = (
            nn.Sequential(nn.Conv1d(in_channels, channels, 1, bias=False), nn.BatchNorm1d(channels, eps=1e-3))
            if residual
            else None
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None, squeeze: Squeeze) -> Tensor:
        """(B, C, T), mask (B, T) or None -> (B, C', T), not masked."""
        y = self.convs[0](x, mask)
        for conv in self.convs[1:]:
            y = conv(self.dropout(y.relu_()), mask)
        y = self.se(y, mask, squeeze)
        if self.skip is not None:
            y += self.skip(x)
        return self.dropout(y.relu_())


class TitaNet(nn.Module):
    """Features (B, F, T) -> embedding (B, D), not normalized."""

    min_frames = 2  # of one frame there is no standard deviation, neither in the front end nor in the pooling
    # For speaker.long
    stride = 1
    shrink = 0
    chunk_frames = 1024

    def __init__(self, config: TitaNetConfig) -> None:
        super().__init__()
        self.config = config
        kernels, last = config.kernels, len(config.kernels) - 1
        widths = [config.num_bins] + [config.channels] * last + [config.epilog_channels]
        self.blocks = nn.ModuleList(
            Block(
                widths[i],
                widths[i + 1],
                kernel,
                repeats=config.repeats if 0 < i < last else 1,
                residual=0 < i < last,
                reduction=config.squeeze_reduction,
                dropout=config.dropout if 0 < i < last else 0.0,
            )
            for i, kernel in enumerate(kernels)
        )
        self.pool = AttentiveStatisticsPooling(config.epilog_channels, config.attention_channels, eps=1e-10)
        self.pool_norm = nn.BatchNorm1d(2 * config.epilog_channels)
        self.embed = nn.Linear(2 * config.epilog_channels, config.embedding_dim)
        for module in self.modules():
            if isinstance(module, nn.Conv1d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)

    @property
    def halo(self) -> int:
        """Frames that the convolutions of all blocks together look to either side."""
        kernels, repeats = self.config.kernels, self.config.repeats
        return kernels[0] // 2 + repeats * sum(kernel // 2 for kernel in kernels[1:-1]) + kernels[-1] // 2

    def frames(
        self, features: Tensor, num_frames: Tensor | None = None, squeeze: Squeeze = masked_mean
    ) -> tuple[Tensor, Tensor | None]:
        """(B, F, T), lengths (B,) or None -> what is pooled (B, C, T), not masked, and its lengths."""
        mask = None if num_frames is None else length_mask(num_frames, features.shape[-1])
        x = features
        for block in self.blocks:
            x = block(x, mask, squeeze)
        return x, num_frames

    def head(self, pooled: Tensor) -> Tensor:
        """(B, 2 C) -> embedding (B, D)."""
        return self.embed(self.pool_norm(pooled))

    def forward(self, features: Tensor, num_frames: Tensor | None = None) -> Tensor:
        """(B, F, T), lengths (B,) or None -> embedding (B, D)."""
        return self.head(self.pool(*self.frames(features, num_frames)))
