"""Short-time spectra: causal STFT and its inverse (whole or chunk by chunk), power-law compression, mel filters.

Perfect reconstruction. With hop R, window length 2R, analysis window w and synthesis window w, the frame k sees the
samples [kR - R, kR + R). Its inverse transform, windowed again, is w(m)^2 x(n) with m = n - (kR - R). Every sample n
lies in exactly two frames, at positions m and m + R, so overlap-add returns x(n) (w(m)^2 + w(m + R)^2). The sine window
w(m) = sin(pi (m + 1/2) / 2R) gives sin^2 + cos^2 = 1: no division, and windows that also work when the spectrum in
between was changed (Princen and Bradley 1986; the sine window is the square root of the Hann window).

Delay. Frame k needs samples up to kR + R and completes the output up to kR: one hop.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from engine.streaming import PastState, StreamingModule


def sine_window(length: int) -> Tensor:
    """(length,): square root of the periodic Hann window, sampled between the integers."""
    return torch.sin(math.pi * (torch.arange(length, dtype=torch.float64) + 0.5) / length).float()


class CausalSTFT(StreamingModule[PastState]):
    """Complex spectrum of frames of two hops; frame k ends `hop_length` samples after sample k * hop_length.

    The signal is preceded by silence (one hop), so frame 0 is complete after the first hop of samples.
    """

    def __init__(self, hop_length: int) -> None:
        super().__init__()
        self.hop_length = hop_length
        self.register_buffer("window", sine_window(2 * hop_length), persistent=False)
        self.window: Tensor

    def initial_state(self, batch_size: int) -> PastState:
        return PastState(self._zeros(batch_size, self.hop_length))

    def forward(self, wav: Tensor, state: PastState | None = None) -> Tensor:
        """(B, N) -> (B, T, F) complex, T = N / hop_length (N must be a multiple), F = hop_length + 1."""
        state = self.initial_state(len(wav)) if state is None else state
        frames = state.extend(wav).unfold(-1, 2 * self.hop_length, self.hop_length)
        return torch.fft.rfft(frames * self.window)


class CausalISTFT(StreamingModule[PastState]):
    """Inverse of `CausalSTFT`, one hop late: T frames in, T hops of samples out, the first hop belongs to silence."""

    def __init__(self, hop_length: int) -> None:
        super().__init__()
        self.hop_length = hop_length
        self.register_buffer("window", sine_window(2 * hop_length), persistent=False)
        self.window: Tensor

    @property
    def delay(self) -> int:
        """Samples by which the output lags behind the input of the STFT, beyond waiting for whole frames."""
        return self.hop_length

    def initial_state(self, batch_size: int) -> PastState:
        return PastState(self._zeros(batch_size, 1, self.hop_length))  # second half of the previous frame

    def forward(self, spectrum: Tensor, state: PastState | None = None) -> Tensor:
        """(B, T, F) complex -> (B, T * hop_length); sample n of the output is sample n - hop_length of the input."""
        state = self.initial_state(len(spectrum)) if state is None else state
        frames = torch.fft.irfft(spectrum, n=2 * self.hop_length) * self.window
        first, second = frames.split(self.hop_length, dim=-1)
        tails = state.extend(second)
        return (first + tails[:, :-1]).flatten(1)


def compress(spectrum: Tensor, exponent: float) -> Tensor:
    """Raise the magnitude of a complex spectrum to `exponent`, keep its phase; 0 stays 0."""
    magnitude = spectrum.abs()
    return spectrum * magnitude.clamp_min(1e-12).pow(exponent - 1)


def expand(spectrum: Tensor, exponent: float) -> Tensor:
    """Inverse of `compress`. Its gradient is finite everywhere, since 1 / exponent >= 1."""
    power = spectrum.real.square() + spectrum.imag.square()
    return spectrum * power.clamp_min(1e-12).pow((1 / exponent - 1) / 2)


def hz_to_mel(hz: np.ndarray | float) -> np.ndarray:
    """Slaney's mel scale: linear below 1 kHz, logarithmic above (the default of librosa)."""
    hz = np.asarray(hz, dtype=np.float64)
    log_step = math.log(6.4) / 27
    return np.where(hz < 1000, hz * 3 / 200, 15 + np.log(np.maximum(hz, 1000) / 1000) / log_step)


def mel_to_hz(mel: np.ndarray) -> np.ndarray:
    """Inverse of `hz_to_mel`."""
    log_step = math.log(6.4) / 27
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp(log_step * (np.maximum(mel, 15) - 15)))


@lru_cache(maxsize=32)
def mel_filterbank(n_mels: int, n_fft: int, sample_rate: int, f_min: float = 0.0, f_max: float | None = None) -> Tensor:
    """(n_fft // 2 + 1, n_mels): triangular filters, Slaney mel scale and area normalization (as librosa's default)."""
    edges = mel_to_hz(np.linspace(hz_to_mel(f_min), hz_to_mel(f_max or sample_rate / 2), n_mels + 2))
    bins = np.arange(n_fft // 2 + 1) * sample_rate / n_fft
    rising = (bins[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins[:, None]) / (edges[2:] - edges[1:-1])
    triangles = np.maximum(0, np.minimum(rising, falling)) * 2 / (edges[2:] - edges[:-2])
    return torch.from_numpy(triangles.astype(np.float32))
