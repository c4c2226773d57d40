"""ECAPA-TDNN: Res2Net blocks with squeeze-and-excitation, features of all blocks joined, attentive statistics pooling.

Desplanques, Thienpondt and Demuynck, "ECAPA-TDNN: Emphasized Channel Attention, Propagation and Aggregation in TDNN
based speaker verification" (Interspeech 2020, arXiv 2005.07143). Implementations in use differ in details that decide
whether weights work: padding, which part of a Res2 block passes through, what a block takes as input, where there are
norms, how variances are estimated. All of these are options here; `paper`, `speechbrain`, `taoruijie` and `wespeaker`
name the sets of them that exist.

Every convolution over time sees zeros, or the mirror image, at an item's own end: an item of a padded batch gives the
result of the item alone, which the originals do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.errors import ConfigError
from speaker.pooling import AttentiveStatisticsPooling, Squeeze, length_mask, masked, masked_mean

__all__ = ["EcapaTdnn", "EcapaTdnnConfig", "paper", "speechbrain", "taoruijie", "wespeaker"]


@dataclass(frozen=True, kw_only=True)
class EcapaTdnnConfig:
    """The paper's network with C = 512."""

    num_bins: int = 80
    channels: int = 512
    mfa_channels: int = 1536  # of the joined features
    kernel: int = 5  # of the first layer
    block_kernel: int = 3
    dilations: tuple[int, ...] = (2, 3, 4)
    res2_scale: int = 8
    squeeze_channels: int = 128
    attention_channels: int = 128
    embedding_dim: int = 192
    padding: Literal["zeros", "reflect"] = "zeros"
    passthrough: Literal["first", "last"] = "last"  # which of the parts of a Res2 block is not convolved
    dense_skip: bool = True  # a block takes the sum of all before it, not the last one alone
    mfa_norm: bool = False
    attention_norm: bool = True
    unbiased_context: bool = True
    eps_added_to_context: bool = False
    eps: float = 1e-4
    embedding_norm: bool = True

    def __post_init__(self) -> None:
        for name in ("num_bins", "channels", "mfa_channels", "squeeze_channels", "attention_channels", "embedding_dim"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.res2_scale < 2 or self.channels % self.res2_scale:
            raise ConfigError(f"{self.channels} channels can't be cut into {self.res2_scale} equal parts, two or more")
        if self.kernel % 2 == 0 or self.block_kernel % 2 == 0 or not self.dilations or min(self.dilations) < 1:
            raise ConfigError("kernels must be odd and there must be at least one block")

    @property
    def reaches(self) -> tuple[int, ...]:
        """Frames that a convolution of the first layer and of each block looks to either side."""
        return (self.kernel // 2, *(d * (self.block_kernel // 2) for d in self.dilations))


def paper(channels: int = 512) -> EcapaTdnnConfig:
    """As published: C = 512 or 1024."""
    return EcapaTdnnConfig(channels=channels)


def taoruijie(channels: int = 1024) -> EcapaTdnnConfig:
    """https://github.com/TaoRuijie/ECAPA-TDNN."""
    return EcapaTdnnConfig(channels=channels, attention_channels=256)


def speechbrain(channels: int = 1024, mfa_channels: int = 3072) -> EcapaTdnnConfig:
    """SpeechBrain's, and 3D-Speaker's; the released weights have these sizes."""
    return EcapaTdnnConfig(
        channels=channels, mfa_channels=mfa_channels, padding="reflect", passthrough="first", dense_skip=False,
        mfa_norm=True, unbiased_context=False, eps=1e-12, embedding_norm=False,
    )  # fmt: skip


def wespeaker(channels: int = 1024) -> EcapaTdnnConfig:
    """WeSpeaker's ECAPA_TDNN_GLOB."""
    return EcapaTdnnConfig(
        channels=channels, dense_skip=False, attention_norm=False, eps_added_to_context=True, eps=1e-7,
        embedding_norm=False,
    )  # fmt: skip


class ConvNorm(nn.Module):
    """Convolution over time, ReLU, batch normalization."""

    def __init__(
        self, in_channels: int, channels: int, kernel: int = 1, dilation: int = 1, padding: str = "zeros"
    ) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_channels, channels, kernel, dilation=dilation)
        self.norm = nn.BatchNorm1d(channels)
        self.reach, self.padding = dilation * (kernel // 2), padding

    def forward(self, x: Tensor, num_frames: Tensor | None, mask: Tensor | None) -> Tensor:
        """(B, C, T), lengths (B,) and their mask (B, T), or None -> (B, C', T), not masked."""
        if self.reach:
            x = self._padded(x, num_frames, mask)
        return self.norm(self.conv(x).relu_())

    def _padded(self, x: Tensor, num_frames: Tensor | None, mask: Tensor | None) -> Tensor:
        """(B, C, T) -> (B, C, T + 2 reach), continued at each item's own ends."""
        reach = self.reach
        if self.padding == "zeros":
            return F.pad(masked(x, mask), (reach, reach))
        if num_frames is None:
            return F.pad(x, (reach, reach), mode="reflect")
        last = num_frames[:, None] - 1
        index = torch.arange(-reach, x.shape[-1] + reach, device=x.device).abs()
        index = torch.minimum((last - (last - index).abs()).clamp_min(0), last)
        return x.gather(2, index[:, None].expand(-1, x.shape[1], -1))


class SqueezeExcitation(nn.Module):
    """Scale each channel by a function of the means of all channels over the utterance."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.down = nn.Linear(channels, squeezed)
        self.up = nn.Linear(squeezed, channels)

    def forward(self, x: Tensor, mask: Tensor | None, squeeze: Squeeze) -> Tensor:
        """(B, C, T), mask (B, T) or None -> (B, C, T)."""
        mean = squeeze(x, mask).squeeze(-1)
        return x * self.up(self.down(mean).relu()).sigmoid()[..., None]


class Block(nn.Module):
    """SE-Res2Block: mix channels, convolve the parts one after the other, mix channels, scale, add the input."""

    def __init__(self, config: EcapaTdnnConfig, dilation: int) -> None:
        super().__init__()
        channels, scale = config.channels, config.res2_scale
        self.scale, self.first_passes = scale, config.passthrough == "first"
        self.pre = ConvNorm(channels, channels)
        self.res2 = nn.ModuleList(
            ConvNorm(channels // scale, channels // scale, config.block_kernel, dilation, config.padding)
            for _ in range(scale - 1)
        )
        self.post = ConvNorm(channels, channels)
        self.se = SqueezeExcitation(channels, config.squeeze_channels)

    def forward(self, x: Tensor, num_frames: Tensor | None, mask: Tensor | None, squeeze: Squeeze) -> Tensor:
        """(B, C, T), lengths (B,) and their mask (B, T), or None -> (B, C, T), not masked."""
        parts = list(self.pre(x, num_frames, mask).chunk(self.scale, dim=1))
        passed = parts.pop(0 if self.first_passes else -1)
        done: list[Tensor] = []
        for part, conv in zip(parts, self.res2, strict=True):
            done.append(conv(part + done[-1] if done else part, num_frames, mask))
        y = torch.cat([passed, *done] if self.first_passes else [*done, passed], dim=1)
        return self.se(self.post(y, num_frames, mask), mask, squeeze) + x


class EcapaTdnn(nn.Module):
    """Features (B, F, T) -> embedding (B, D), not normalized."""

    # For speaker.long
    stride = 1
    shrink = 0
    chunk_frames = 4096

    def __init__(self, config: EcapaTdnnConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = ConvNorm(config.num_bins, config.channels, config.kernel, padding=config.padding)
        self.blocks = nn.ModuleList(Block(config, dilation) for dilation in config.dilations)
        joined = config.channels * len(config.dilations)
        self.mfa = nn.Conv1d(joined, config.mfa_channels, 1)
        self.mfa_norm = nn.BatchNorm1d(config.mfa_channels) if config.mfa_norm else None
        self.pool = AttentiveStatisticsPooling(
            config.mfa_channels, config.attention_channels, norm=config.attention_norm,
            unbiased_context=config.unbiased_context, eps_added_to_context=config.eps_added_to_context, eps=config.eps,
        )  # fmt: skip
        self.pool_norm = nn.BatchNorm1d(2 * config.mfa_channels)
        self.embed = nn.Linear(2 * config.mfa_channels, config.embedding_dim)
        self.embed_norm = nn.BatchNorm1d(config.embedding_dim) if config.embedding_norm else None

    @property
    def min_frames(self) -> int:
        """A mirror image needs more frames than it is long; two give a standard deviation."""
        return max(2, 1 + max(self.config.reaches)) if self.config.padding == "reflect" else 2

    @property
    def halo(self) -> int:
        """Frames that the convolutions of all blocks together look to either side."""
        first, *blocks = self.config.reaches
        return first + (self.config.res2_scale - 1) * sum(blocks)

    def frames(
        self, features: Tensor, num_frames: Tensor | None = None, squeeze: Squeeze = masked_mean
    ) -> tuple[Tensor, Tensor | None]:
        """(B, F, T), lengths (B,) or None -> what is pooled (B, C, T), not masked, and its lengths."""
        mask = None if num_frames is None else length_mask(num_frames, features.shape[-1])
        x = self.stem(features, num_frames, mask)
        outputs: list[Any] = []
        for block in self.blocks:
            outputs.append(block(x, num_frames, mask, squeeze))
            x = x + outputs[-1] if self.config.dense_skip else outputs[-1]
        y = self.mfa(torch.cat(outputs, dim=1)).relu_()
        return y if self.mfa_norm is None else self.mfa_norm(y), num_frames

    def head(self, pooled: Tensor) -> Tensor:
        """(B, 2 C) -> embedding (B, D)."""
        embedding = self.embed(self.pool_norm(pooled))
        return embedding if self.embed_norm is None else self.embed_norm(embedding)

    def forward(self, features: Tensor, num_frames: Tensor | None = None) -> Tensor:
        """(B, F, T), lengths (B,) or None -> embedding (B, D)."""
        return self.head(self.pool(*self.frames(features, num_frames)))
