"""Configurations of the published codec (Gu and Diao, EMNLP 2024, arXiv 2404.19441) and its presets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from codec.config import CodecConfig
from engine.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class EscConfig(CodecConfig):
    """The published codec; the defaults are ESC-Base with 8.39 M parameters.

    Tuples over scales start at the finest one, tuples over levels at the coarsest. A code frame is a group of
    neighbouring patch columns, a patch column `patch_frames` frames of the STFT.
    """

    num_bins: int = 192  # frequency bins; n_fft = 2 (num_bins - 1) = 382
    win_length: int = 320  # 20 ms
    hop_length: int = 80  # 5 ms
    patch_bins: int = 3
    patch_frames: int = 2
    channels: tuple[int, ...] = (45, 72, 96, 144, 192, 384)  # each further scale has half the frequency rows
    heads: tuple[int, ...] = (3, 6, 12, 24, 24)  # encoder stages from fine to coarse; the decoder mirrors them
    depth: int = 2  # attention blocks of a stage, every second one with shifted windows
    window: int = 4  # patches, in time and in frequency
    mlp_ratio: float = 4.0
    codebook_dims: tuple[int, ...] = (8, 8, 8, 8, 8, 8)
    # "residual" is the paper's ablation: all levels quantize the coarsest features, one after the other.
    quantization: Literal["cross_scale", "residual"] = "cross_scale"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_sizes()
        self._check_stages()
        self._check_levels()

    def _check_sizes(self) -> None:
        sizes = ("num_bins", "win_length", "hop_length", "patch_bins", "patch_frames", "depth", "window")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.win_length > self.n_fft:
            raise ConfigError(f"win_length {self.win_length} exceeds n_fft {self.n_fft} of {self.num_bins} bins")
        if self.samples_per_frame % self.samples_per_column:
            raise ConfigError(
                f"samples_per_frame {self.samples_per_frame} must be a multiple of hop_length x patch_frames = "
                f"{self.samples_per_column}"
            )
        # One frame's worth of signal must be long enough to be mirrored at both ends (see `codec.tiling`).
        if self.samples_per_frame - self.hop_length <= self.n_fft // 2:
            raise ConfigError(
                f"samples_per_frame - hop_length = {self.samples_per_frame - self.hop_length} must exceed half the "
                f"n_fft, {self.n_fft // 2}"
            )

    def _check_stages(self) -> None:
        halvings = len(self.channels) - 1
        if halvings < 1 or len(self.heads) != halvings:
            raise ConfigError(f"heads needs one entry fewer than channels {self.channels}, got {self.heads}")
        if self.num_bins % (self.patch_bins * 2**halvings):
            raise ConfigError(
                f"num_bins {self.num_bins} must be a multiple of patch_bins x 2^{halvings} = "
                f"{self.patch_bins * 2**halvings}, to be halved {halvings} times"
            )
        if self.window % 2:
            raise ConfigError(f"window must be even, got {self.window}")
        # The stage of scale i has `heads[i]` heads on channels[i] going down and on channels[i + 1] coming back up.
        for i, heads in enumerate(self.heads):
            if heads < 1 or self.channels[i] % heads or self.channels[i + 1] % heads:
                raise ConfigError(
                    f"heads[{i}] = {heads} must divide channels {self.channels[i]} and {self.channels[i + 1]}"
                )

    def _check_levels(self) -> None:
        if len(self.codebook_dims) != self.levels:
            raise ConfigError(f"codebook_dims needs {self.levels} entries, one a level, got {self.codebook_dims}")
        if self.quantization == "cross_scale" and self.levels != len(self.channels):
            raise ConfigError(
                f"cross-scale quantization has one level a scale, {len(self.channels)} here, got levels={self.levels}"
            )
        if self.quantization == "residual" and len(set(self.codebook_dims)) > 1:
            raise ConfigError(f"residual quantization has one codebook dimension, got {self.codebook_dims}")
        if self.quantization not in ("cross_scale", "residual"):
            raise ConfigError(f'quantization must be "cross_scale" or "residual", got "{self.quantization}"')

    @property
    def n_fft(self) -> int:
        """Length of the Fourier transform."""
        return 2 * (self.num_bins - 1)

    @property
    def samples_per_column(self) -> int:
        """Samples that a patch column advances."""
        return self.hop_length * self.patch_frames

    @property
    def columns_per_frame(self) -> int:
        """Patch columns quantized together ("overlap" in the authors' code)."""
        return self.samples_per_frame // self.samples_per_column

    @property
    def grid_frames(self) -> int:
        """Code frames after which windows and code frames line up again; tiles start at multiples of it."""
        return math.lcm(self.window, self.columns_per_frame) // self.columns_per_frame

    def rows(self, scale: int) -> int:
        """Frequency rows of a scale, 0 being the finest."""
        return self.num_bins // self.patch_bins >> scale

    def vector_dim(self, scale: int) -> int:
        """Dimension of the vectors that are quantized on a scale: all its rows and channels in one code frame."""
        return self.columns_per_frame * self.rows(scale) * self.channels[scale]


def base() -> EscConfig:
    """ESC-Base as published: 8.39 M parameters (8,386,373)."""
    return EscConfig()


def base_yaml() -> EscConfig:
    """ESC-Base with the codebook dimensions of the authors' `9kbps_esc_base.yaml`: 8,736,581 parameters."""
    return EscConfig(codebook_dims=(32, 32, 16, 12, 8, 6))


def large() -> EscConfig:
    """ESC-Large: 15.58 M parameters (15,580,931)."""
    return EscConfig(depth=4)


def residual() -> EscConfig:
    """The paper's ablation: six residual quantizers at the bottleneck in place of cross-scale ones."""
    return EscConfig(quantization="residual")


def tiny(quantization: Literal["cross_scale", "residual"] = "cross_scale") -> EscConfig:
    """A third of a million parameters on the published front end, for tests."""
    return EscConfig(
        channels=(12, 16, 24, 32, 40, 48),
        heads=(2, 4, 4, 8, 8),
        codebook_size=64,
        codebook_dims=(8, 8, 8, 6, 6, 6) if quantization == "cross_scale" else (8,) * 6,
        quantization=quantization,
    )
