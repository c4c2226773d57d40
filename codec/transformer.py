"""The published codec's layers: patches, frequency merges and splits, attention in shifted windows.

Liu et al., "Swin Transformer" (ICCV 2021), on a spectrogram as in ESC (Gu and Diao, EMNLP 2024): windows of 4 x 4
patches, learned relative position biases, every second block with windows shifted by half their size. Only frequency is
halved from scale to scale. Numbers equal the authors'; what differs is the way there: tokens stay (B, T, H, C) with T
patch columns in time and H rows in frequency, which makes merges and splits views; masks are fixed buffers; attention
is torch's fused one; the padding that windows need is not sent through the projections.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

# Added to the attention between patches that a shifted window holds but that are not neighbours. Not minus infinity:
# the published value, with which the published weights were trained.
MASKED = -100.0


class WindowAttention(nn.Module):
    """Multi-head attention inside windows of `window` x `window` patches, optionally shifted by half a window.

    The map is padded at its end to whole windows with zero tokens, which take part as keys and values (they carry the
    bias of the projection): so it was published, and weights depend on it. A shift moves the map cyclically, and a mask
    keeps the two ends apart that come to lie in one window.
    """

    def __init__(self, channels: int, heads: int, window: int, shifted: bool) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, window // 2 if shifted else 0
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.position_bias = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.position_bias, std=0.02)

        step = torch.arange(window)
        time, row = (p.flatten() for p in torch.meshgrid(step, step, indexing="ij"))  # token order inside a window
        offset = (row[:, None] - row) + window - 1, (time[:, None] - time) + window - 1
        index = offset[0] * (2 * window - 1) + offset[1]  # frequency counts first in the published table
        self.register_buffer("position_index", index, persistent=False)
        late, high = time >= window - self.shift, row >= window - self.shift  # wrapped around from the start
        self.register_buffer("time_mask", MASKED * (late[:, None] != late), persistent=False)
        self.register_buffer("row_mask", MASKED * (high[:, None] != high), persistent=False)
        self.position_index: Tensor
        self.time_mask: Tensor
        self.row_mask: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, H, C) -> (B, T, H, C)."""
        batch, columns, rows, channels = x.shape
        w = self.window
        num_t, num_h = -(-columns // w), -(-rows // w)
        qkv = self._pad(self.qkv(x), num_t * w, num_h * w)
        if self.shift:
            qkv = qkv.roll((-self.shift, -self.shift), dims=(1, 2))
        # Two steps: long rows are copied window by window first, then split into heads without copying.
        windows = rearrange(qkv, "b (t i) (h j) c -> (b t h) (i j) c", i=w, j=w)
        q, k, v = rearrange(windows, "n p (s a d) -> s n a p d", s=3, a=self.heads)
        bias = self._bias(num_t, num_h)
        if self.shift:
            bias = bias.repeat(batch, 1, 1, 1)
        z = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        z = rearrange(z, "(b t h) a (i j) d -> b (t i) (h j) (a d)", b=batch, t=num_t, i=w)
        if self.shift:
            z = z.roll((self.shift, self.shift), dims=(1, 2))
        return self.proj(z[:, :columns, :rows])

    def _pad(self, qkv: Tensor, columns: int, rows: int) -> Tensor:
        """Pad to `columns` x `rows` with what the projection makes of zero tokens: its bias."""
        if qkv.shape[1:3] == (columns, rows):
            return qkv
        padded = self.qkv.bias.expand(len(qkv), columns, rows, -1).clone()
        padded[:, : qkv.shape[1], : qkv.shape[2]] = qkv
        return padded

    def _bias(self, num_t: int, num_h: int) -> Tensor:
        """Position bias, with a shift plus mask: (1, heads, P, P) or (num_t * num_h, heads, P, P), P = window^2."""
        bias = self.position_bias[self.position_index].permute(2, 0, 1)
        if not self.shift:
            return bias[None]
        # Only the last windows of either axis hold both ends. Their corner is masked by both, but no stronger.
        time, row = self.time_mask, self.row_mask
        grid = torch.zeros(num_t, num_h, *time.shape, dtype=bias.dtype, device=bias.device)
        grid[-1] = time
        grid[:, -1] = row
        grid[-1, -1] = torch.minimum(time, row)
        return grid.flatten(0, 1)[:, None] + bias


class WindowBlock(nn.Module):
    """Window attention, then an MLP, each behind a normalization and beside a skip path."""

    def __init__(self, channels: int, heads: int, window: int, shifted: bool, mlp_ratio: float) -> None:
        super().__init__()
        hidden = int(channels * mlp_ratio)
        self.norm_attention = nn.LayerNorm(channels)
        self.attention = WindowAttention(channels, heads, window, shifted)
        self.norm_mlp = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, H, C) -> (B, T, H, C)."""
        x = x + self.attention(self.norm_attention(x))
        return x + self.mlp(self.norm_mlp(x))


class Merge(nn.Module):
    """Halve the frequency rows: two neighbours become one token."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2 * channels)
        self.linear = nn.Linear(2 * channels, out_channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, H, C) -> (B, T, H / 2, C')."""
        return self.linear(self.norm(rearrange(x, "b t (h s) c -> b t h (s c)", s=2)))


class Split(nn.Module):
    """Double the frequency rows: one token becomes two neighbours."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.linear = nn.Linear(channels, 2 * out_channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, H, C) -> (B, T, 2 H, C')."""
        return rearrange(self.linear(self.norm(x)), "b t h (s c) -> b t (h s) c", s=2)


class Stage(nn.Module):
    """Blocks on one scale, then the way to the next one (`direction` "keep": none)."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        direction: Literal["merge", "split", "keep"],
        heads: int,
        depth: int,
        window: int,
        mlp_ratio: float,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            WindowBlock(channels, heads, window, shifted=i % 2 == 1, mlp_ratio=mlp_ratio) for i in range(depth)
        )
        resample = {"merge": Merge, "split": Split}.get(direction)
        self.resample = resample(channels, out_channels) if resample else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, H, C) -> (B, T, H', C')."""
        for block in self.blocks:
            x = block(x)
        return self.resample(x)


class PatchEmbed(nn.Module):
    """Spectrum (B, 2, F, T) -> tokens (B, T / patch_frames, F / patch_bins, C)."""

    def __init__(self, channels: int, patch_bins: int, patch_frames: int) -> None:
        super().__init__()
        patch = (patch_bins, patch_frames)
        self.proj = nn.Conv2d(2, channels, patch, stride=patch)
        self.norm = nn.LayerNorm(channels)

    def forward(self, spectrum: Tensor) -> Tensor:
        """Tokens of whole patches."""
        return self.norm(rearrange(self.proj(spectrum), "b c h t -> b t h c"))


class PatchDeembed(nn.Module):
    """Tokens (B, T, H, C) -> spectrum (B, 2, H * patch_bins, T * patch_frames), with a look at the neighbours."""

    REACH_COLUMNS = 2  # of the first convolution, to either side
    REACH_FRAMES = 1  # of the second

    def __init__(self, channels: int, patch_bins: int, patch_frames: int) -> None:
        super().__init__()
        self.patch = (patch_bins, patch_frames)
        self.expand = nn.Conv2d(channels, channels * patch_bins * patch_frames, 5, padding=2)
        self.proj = nn.Conv2d(channels, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """The spectrum."""
        bins, frames = self.patch
        x = self.expand(rearrange(x, "b t h c -> b c h t"))
        return self.proj(rearrange(x, "b (f s c) h t -> b c (h f) (t s)", f=bins, s=frames))
