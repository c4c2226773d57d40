"""Building blocks of the live codec: tokens (B, T, H, C), causal in time, every block with an explicit state.

Window attention and frequency-only merges follow ESC (Gu and Diao, EMNLP 2024, arXiv 2404.19441), made causal: a token
attends to the tokens of its frequency window in its own frame and the frames before, a bounded number of them. There
is no normalization on the skip path and every residual branch ends in a zero matrix, so that at the start the network
is the linear transform codec that its projections form.

Channels are last here, unlike in public tensors: nearly all the work is in linear layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.derived import Derived
from engine.streaming import PastState, State, StateList, StreamingModule

FORBIDDEN = -1e4  # exp of it is 0; unlike infinity it survives averaging


@dataclass
class AttentionState(State):
    """Keys and values of the last `num_frames` frames, (B, windows, heads, num_frames * bins, C / heads) each."""

    key: Tensor
    value: Tensor

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Put the past in front of keys and values (..., T * bins, c), remember the end of both."""
        size = self.key.shape[3]
        key, value = torch.cat([self.key, key], dim=3), torch.cat([self.value, value], dim=3)
        self.key, self.value = (part[:, :, :, -size:].detach().contiguous() for part in (key, value))
        return key, value


class CausalWindowAttention(StreamingModule[AttentionState]):
    """Self-attention over `num_bins` neighbours in frequency and `num_frames` frames ending with the present one.

    Time is cut in blocks of `num_frames`; a block of queries looks at its own and the previous block of keys, and a
    mask leaves each query its own frame and the `num_frames - 1` before it. So the result does not depend on where the
    blocks begin, and the cost per frame is constant. Before the first frame there are zero keys and values.
    """

    def __init__(self, channels: int, height: int, num_bins: int, num_frames: int, head_channels: int) -> None:
        super().__init__()
        self.height = height
        self.num_bins = min(num_bins, height)
        self.num_frames = num_frames
        self.num_heads = channels // head_channels
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)
        self.bias = nn.Parameter(torch.zeros(self.num_heads, num_frames * (2 * self.num_bins - 1)))
        index, allowed = self._relative_positions()
        self.register_buffer("relative_index", index, persistent=False)
        self.register_buffer("mask", torch.where(allowed, 0.0, FORBIDDEN), persistent=False)
        self.relative_index: Tensor
        self.mask: Tensor
        self._bias_of_step: Derived[Tensor] = Derived()

    def _relative_positions(self) -> tuple[Tensor, Tensor]:
        """Index into the bias table, and who may attend to whom, each (queries, keys) of one block."""
        frames, bins = self.num_frames, self.num_bins
        query_time = torch.arange(frames).repeat_interleave(bins) + frames
        key_time = torch.arange(2 * frames).repeat_interleave(bins)
        query_bin, key_bin = torch.arange(bins).repeat(frames), torch.arange(bins).repeat(2 * frames)
        age = query_time[:, None] - key_time[None, :]
        shift = query_bin[:, None] - key_bin[None, :] + bins - 1
        return age.clamp(0, frames - 1) * (2 * bins - 1) + shift, (age >= 0) & (age < frames)

    def initial_state(self, batch_size: int) -> AttentionState:
        windows, head_channels = self.height // self.num_bins, self.proj.in_features // self.num_heads
        shape = (batch_size, windows, self.num_heads, self.num_frames * self.num_bins, head_channels)
        return AttentionState(self._zeros(*shape), self._zeros(*shape))

    def forward(self, x: Tensor, state: AttentionState | None = None) -> Tensor:
        """(B, T, H, C) -> the same."""
        batch, frames, height, channels = x.shape
        state = self.initial_state(batch) if state is None else state
        shape = (batch, frames, height // self.num_bins, self.num_bins, 3, self.num_heads, channels // self.num_heads)
        query, key, value = self.qkv(x).view(shape).permute(4, 0, 2, 5, 1, 3, 6).flatten(4, 5).unbind(0)
        key, value = state.extend(key, value)
        query = query * query.shape[-1] ** -0.5
        if frames == 1:  # a live step: the state holds just what this frame may look at
            out = self._attend(query, state.key, state.value, self.step_bias())
        else:
            out = self._attend_blocks(query, key, value)
        out = out.unflatten(3, (frames, self.num_bins)).permute(0, 3, 1, 4, 2, 5)  # (B, T, windows, bins, heads, c)
        return self.proj(out.reshape(x.shape))

    def _attend_blocks(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Queries (B, windows, heads, T * bins, c), keys and values of `num_frames` more -> as the queries."""
        size, length = self.num_frames * self.num_bins, query.shape[3]
        padding = -length % size  # later frames are masked anyway: fill up the last block
        if padding:
            query, key, value = (F.pad(part, (0, 0, 0, padding)) for part in (query, key, value))
        query = query.unflatten(3, (-1, size))
        key, value = (part.unflatten(3, (-1, size)) for part in (key, value))
        key, value = (torch.cat([part[:, :, :, :-1], part[:, :, :, 1:]], dim=4) for part in (key, value))
        bias = self.bias[:, self.relative_index.flatten()].unflatten(1, self.relative_index.shape) + self.mask
        return self._attend(query, key, value, bias[:, None]).flatten(3, 4)[:, :, :, :length]

    @staticmethod
    def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        # Written out: with a learned mask the fused function falls back to this, plus a search for empty rows.
        return (query @ key.transpose(-1, -2) + bias).softmax(-1) @ value

    def step_bias(self) -> Tensor:
        """(heads, bins, num_frames * bins): the bias of one frame of queries to itself and the frames before it."""
        index = self.relative_index[: self.num_bins, self.num_bins : (self.num_frames + 1) * self.num_bins]
        return self._bias_of_step.get(self.bias, lambda: self.bias[:, index.flatten()].unflatten(1, index.shape))


class CausalDepthwiseConv(StreamingModule[PastState]):
    """3 x 3 depthwise convolution over frequency (centred) and time (present and two frames back)."""

    SMALL = 4096  # numbers in one frame

    def __init__(self, channels: int, height: int) -> None:
        super().__init__()
        self.height = height
        self.weight = nn.Parameter(torch.zeros(3, 3, channels))

    def initial_state(self, batch_size: int) -> PastState:
        return PastState(self._zeros(batch_size, 2, self.height, self.weight.shape[-1]))

    def forward(self, x: Tensor, state: PastState | None = None) -> Tensor:
        """(B, T, H, C) -> the same. The permuted view is what the convolution calls channels last: no copy."""
        state = self.initial_state(len(x)) if state is None else state
        padded = F.pad(state.extend(x), (0, 0, 1, 1))
        if (
            x.shape[1] == 1 and x.numel() <= self.SMALL
        ):  # one frame of a few sessions: setting up the convolution would take longer
            shifted = [padded[:, :, i : i + self.height] * self.weight[:, i, None] for i in range(3)]
            return (shifted[0] + shifted[1] + shifted[2]).sum(1, keepdim=True)
        kernel = self.weight.permute(2, 0, 1).unsqueeze(1)
        return F.conv2d(padded.permute(0, 3, 1, 2), kernel, groups=len(kernel)).permute(0, 2, 3, 1)


@dataclass
class BlockState(State):
    """State of a `CausalBlock`."""

    attention: AttentionState
    conv: PastState


class CausalBlock(StreamingModule[BlockState]):
    """Attention, depthwise convolution, MLP: each a residual branch that starts at zero."""

    def __init__(
        self, channels: int, height: int, num_bins: int, num_frames: int, head_channels: int, mlp_ratio: int
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attention = CausalWindowAttention(channels, height, num_bins, num_frames, head_channels)
        self.conv = CausalDepthwiseConv(channels, height)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, mlp_ratio * channels), nn.SiLU(), nn.Linear(mlp_ratio * channels, channels)
        )
        last = self.mlp[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def initial_state(self, batch_size: int) -> BlockState:
        return BlockState(self.attention.initial_state(batch_size), self.conv.initial_state(batch_size))

    def forward(self, x: Tensor, state: BlockState | None = None) -> Tensor:
        """(B, T, H, C) -> the same."""
        state = self.initial_state(len(x)) if state is None else state
        x = x + self.attention(self.norm1(x), state.attention)
        x = x + self.conv(x, state.conv)
        return x + self.mlp(self.norm2(x))


class CausalStage(StreamingModule[StateList]):
    """A sequence of blocks at one scale."""

    def __init__(self, blocks: list[CausalBlock]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def initial_state(self, batch_size: int) -> StateList:
        return StateList([block.initial_state(batch_size) for block in self.blocks])  # type: ignore[operator]

    def forward(self, x: Tensor, state: StateList | None = None) -> Tensor:
        """(B, T, H, C) -> the same."""
        state = self.initial_state(len(x)) if state is None else state
        for block, child in zip(self.blocks, state.children, strict=True):
            x = block(x, child)
        return x


class FrequencyMerge(nn.Module):
    """(B, T, H, C) -> (B, T, H / 2, C'): neighbours in frequency joined and projected with orthogonal rows."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(2 * channels, out_channels, bias=False)
        nn.init.orthogonal_(self.proj.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x.reshape(*x.shape[:2], x.shape[2] // 2, 2 * x.shape[3]))


class FrequencySplit(nn.Module):
    """(B, T, H, C') -> (B, T, 2 H, C): starts as the transpose of the merge it undoes."""

    def __init__(self, merge: FrequencyMerge) -> None:
        super().__init__()
        self.proj = nn.Linear(merge.proj.out_features, merge.proj.in_features, bias=False)
        with torch.no_grad():
            self.proj.weight.copy_(merge.proj.weight.T)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).reshape(*x.shape[:2], 2 * x.shape[2], -1)
