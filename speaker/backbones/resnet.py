"""ResNet over the time-frequency plane with statistics pooling: 18 to 293 layers from one builder.

He et al. (2016) for speakers: Zeinali et al., "BUT system description to VoxCeleb Speaker Recognition Challenge 2019"
(arXiv 1910.12592), whose ResNet34 lives on in BUT's VBx and in WeSpeaker (Wang et al. 2023).  Four stages of 1, 2, 4
and 8 times `channels` channels, the last three halving frequency and time; mean and standard deviation over time of
each channel and frequency; one linear layer.  BUT's and WeSpeaker's differ in the standard deviation alone.

In a padded batch, every convolution that mixes frames sees zeros beyond an item's length, as it does beyond the end
of an item alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from engine.errors import ConfigError
from speaker.pooling import Squeeze, StatisticsPooling, length_mask, masked, masked_mean

__all__ = ["DEPTHS", "ResNet", "ResNetConfig", "resnet"]

# Layers -> blocks in each stage, and whether they are bottlenecks (1x1, 3x3, 1x1) or basic (3x3, 3x3).
DEPTHS: dict[int, tuple[tuple[int, int, int, int], bool]] = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
    221: ((6, 16, 48, 3), True),
    293: ((10, 20, 64, 3), True),
}


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """WeSpeaker's ResNet34. BUT's: 40 or 64 bins, `unbiased=False, eps=1e-10`."""

    num_bins: int = 80
    channels: int = 32
    blocks: tuple[int, int, int, int] = (3, 4, 6, 3)
    bottleneck: bool = False
    embedding_dim: int = 256
    second_layer: bool = False  # linear -> ReLU -> normalization -> linear instead of one linear layer
    unbiased: bool = True
    eps: float = 1e-7

    def __post_init__(self) -> None:
        for name in ("num_bins", "channels", "embedding_dim"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if min(self.blocks) < 1:
            raise ConfigError(f"blocks must be four numbers of at least 1, got {self.blocks}")
        if self.eps <= 0:
            raise ConfigError(f"eps must be above 0, got {self.eps}")

    @property
    def pooled_channels(self) -> int:
        """Channels times frequencies at the last stage."""
        return 8 * self.channels * (4 if self.bottleneck else 1) * -(-self.num_bins // 8)


def resnet(depth: int, **options: int | bool | float) -> ResNetConfig:
    """The configuration of a depth in `DEPTHS`; options are the other fields of :class:`ResNetConfig`."""
    if depth not in DEPTHS:
        raise ConfigError(f"there is no ResNet{depth}; there are {', '.join(map(str, DEPTHS))}")
    blocks, bottleneck = DEPTHS[depth]
    return ResNetConfig(blocks=blocks, bottleneck=bottleneck, **options)  # type: ignore[arg-type]


class ConvNorm(nn.Module):
    """Zero-padded convolution and batch normalization."""

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.mixes = kernel > 1
        self.stride = stride
        self.conv = nn.Conv2d(in_channels, channels, kernel, stride, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(B, C, F, T), mask (B, T) or None -> (B, C', F', T'), not masked, and its mask."""
        x = self.norm(self.conv(masked(x, mask) if self.mixes else x))
        # n frames become ceil(n / stride)
        return x, mask[:, :: self.stride] if mask is not None and self.stride > 1 else mask


class Block(nn.Module):
    """Basic or bottleneck residual block."""

    def __init__(self, in_channels: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        channels = 4 * width if bottleneck else width
        self.layers = nn.ModuleList(
            [ConvNorm(in_channels, width, 1), ConvNorm(width, width, 3, stride), ConvNorm(width, channels, 1)]
            if bottleneck
            else [ConvNorm(in_channels, width, 3, stride), ConvNorm(width, channels, 3)]
        )
        changes = stride != 1 or in_channels != channels
        self.shortcut = ConvNorm(in_channels, channels, 1, stride) if changes else None

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(B, C, F, T), mask (B, T) or None -> (B, C', F', T'), not masked, and its mask."""
        y = x
        for i, layer in enumerate(self.layers):
            y, mask = layer(y if i == 0 else y.relu_(), mask)
        y += x if self.shortcut is None else self.shortcut(x, None)[0]
        return y.relu_(), mask


class ResNet(nn.Module):
    """Features (B, F, T) -> embedding (B, D), not normalized."""

    min_frames = 9  # two frames after three times every other one: of a single one there is no standard deviation
    # For speaker.long
    stride = 8
    shrink = 0

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = ConvNorm(1, config.channels, 3)
        blocks, width, rate, halo = [], config.channels, 1, 1
        for stage, count in enumerate(config.blocks):
            for i in range(count):
                planes, stride = config.channels * 2**stage, 2 if stage and not i else 1
                blocks.append(Block(width, planes, stride, config.bottleneck))
                width = planes * (4 if config.bottleneck else 1)
                # a 3x3 convolution at the rate before the block; in a basic block one more at that after it
                halo += rate + (0 if config.bottleneck else rate * stride)
                rate *= stride
        self.blocks = nn.ModuleList(blocks)
        # Frames that the convolutions together look to either side, as a multiple of `stride`.
        self.halo = -(-halo // self.stride) * self.stride
        self.chunk_frames = 512 if config.bottleneck else 1024
        self.pool = StatisticsPooling(unbiased=config.unbiased, eps=config.eps)
        self.embed = nn.Linear(2 * config.pooled_channels, config.embedding_dim)
        if config.second_layer:
            self.embed_norm = nn.BatchNorm1d(config.embedding_dim, affine=False)
            self.embed_second = nn.Linear(config.embedding_dim, config.embedding_dim)

    def frames(
        self, features: Tensor, num_frames: Tensor | None = None, squeeze: Squeeze = masked_mean
    ) -> tuple[Tensor, Tensor | None]:
        """(B, F, T), lengths (B,) or None -> what is pooled (B, C, T / 8), not masked, and its lengths.

        `squeeze` is never called: nothing before the pooling sees the whole utterance.
        """
        mask = None if num_frames is None else length_mask(num_frames, features.shape[-1])
        x, mask = self.stem(features[:, None], mask)
        # Channels last in memory: the convolutions of a batch are faster by 5 to 15 % (one core of an EPYC).
        x = x.relu_().contiguous(memory_format=torch.channels_last)
        for block in self.blocks:
            x, mask = block(x, mask)
        return x.flatten(1, 2), None if num_frames is None else (num_frames + self.stride - 1) // self.stride

    def head(self, pooled: Tensor) -> Tensor:
        """(B, 2 C) -> embedding (B, D)."""
        embedding = self.embed(pooled)
        if self.config.second_layer:
            embedding = self.embed_second(self.embed_norm(embedding.relu()))
        return embedding

    def forward(self, features: Tensor, num_frames: Tensor | None = None) -> Tensor:
        """(B, F, T), lengths (B,) or None -> embedding (B, D)."""
        return self.head(self.pool(*self.frames(features, num_frames)))
