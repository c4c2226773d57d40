"""Training losses of the codec."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.spectral import mel_filterbank


class ShortTimeFourier(torch.autograd.Function):
    """Complex spectra of windowed frames, hop a quarter of the window, centred, zeros outside: `torch.stft`, faster.

    The derivative of a real transform is again a real one: with X_k = sum_n x_n exp(-i w k n) over the half spectrum,
    the gradient is x_n' = Re sum_k G_k exp(i w k n), which `irfft` computes once the bins that it counts twice are
    halved. torch takes a full complex transform instead, which made the losses 40 % of a training step.
    """

    @staticmethod
    def forward(ctx: Any, wav: Tensor, window: Tensor) -> Tensor:
        """(B, N), (size,) -> (B, T, size / 2 + 1)."""
        size = len(window)
        ctx.num_samples = wav.shape[-1]
        ctx.save_for_backward(window)
        padded = F.pad(wav, (size // 2, size // 2))
        return torch.fft.rfft(padded.unfold(-1, size, size // 4) * window)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (window,) = ctx.saved_tensors
        size, hop = len(window), len(window) // 4
        gradient = gradient.clone()
        gradient[..., 1:-1] *= 0.5
        frames = torch.fft.irfft(gradient, n=size, norm="forward") * window
        batch, count, _ = frames.shape
        total = frames.new_zeros(batch, count + 3, hop)  # in hops; frame t covers hops t .. t + 3
        for part, quarter in enumerate(frames.split(hop, dim=-1)):
            total[:, part : part + count] += quarter
        samples = F.pad(total.flatten(1), (0, size))[:, size // 2 : size // 2 + ctx.num_samples]
        return samples, None


class MelLoss(nn.Module):
    """Multi-scale log-mel distance: sum over window lengths of the mean |log10 mel - log10 mel'|, hop a quarter.

    ESC and DAC (Kumar et al. 2023) use seven scales from 32 samples; the two shortest cost a third of the time and
    say little, so they are left out. So is their linear term: it weighs loud recordings more than quiet ones.
    """

    def __init__(self, sample_rate: int, windows: tuple[int, ...] = (128, 256, 512, 1024, 2048)) -> None:
        super().__init__()
        self.windows = windows
        for size in windows:
            mels = mel_filterbank(min(5 * size // 32, 160), size, sample_rate)
            self.register_buffer(f"mel_{size}", mels, persistent=False)
            self.register_buffer(f"window_{size}", torch.hann_window(size), persistent=False)

    def forward(self, wav: Tensor, target: Tensor) -> Tensor:
        """(B, N), (B, N) -> scalar."""
        distances = []
        for size in self.windows:
            with torch.no_grad():
                theirs = self._log_mel(target, size)
            distances.append(F.l1_loss(self._log_mel(wav, size), theirs))
        return torch.stack(distances).sum()

    def _log_mel(self, wav: Tensor, size: int) -> Tensor:
        """(B, N) -> (B, T, mels)."""
        spectrum: Tensor = ShortTimeFourier.apply(wav, getattr(self, f"window_{size}"))
        power = spectrum.real.square() + spectrum.imag.square()
        return ((power + 1e-10).sqrt() @ getattr(self, f"mel_{size}")).clamp_min(1e-5).log10()


def relative_error(spectrum: Tensor, target: Tensor) -> Tensor:
    """Squared error over energy of complex spectra, over the whole batch: 1 when nothing is learned, 0 when equal.

    Each item's own ratio, averaged, was tried: no better after 300 steps (validation mel 1.25 against 1.22).
    """
    error = torch.view_as_real(spectrum - target).square().sum()
    return error / torch.view_as_real(target).square().sum().clamp_min(1e-8)


def power_law_error(spectrum: Tensor, target: Tensor, exponent: float = 0.3) -> Tensor:
    """Mean squared error of complex spectra whose components went through sign(x) |x|^exponent: the loss of ESC.

    Real and imaginary part apart, so that the phase bends towards the diagonals; near 0 the gradient is steep.
    """

    def bent(x: Tensor) -> Tensor:
        x = torch.view_as_real(x)
        return x.sign() * (x.abs() + 1e-10).pow(exponent)

    return F.mse_loss(bent(spectrum), bent(target))


def bark(hz: np.ndarray) -> np.ndarray:
    """Critical-band rate in Bark (Traunmueller 1990)."""
    return 26.81 * hz / (1960 + hz) - 0.53


def threshold_in_quiet(hz: np.ndarray) -> np.ndarray:
    """Sound pressure level in dB that is just heard (Terhardt 1979)."""
    khz = np.maximum(hz, 20.0) / 1000
    return 3.64 * khz**-0.8 - 6.5 * np.exp(-0.6 * (khz - 3.3) ** 2) + 1e-3 * khz**4


class LoudnessLoss(nn.Module):
    """Distance of loudness patterns: what the ear makes of a spectral error, in the spirit of ITU-T P.862 (PESQ).

    Power in bands of equal width in Bark becomes loudness by Zwicker's law with the threshold in quiet, the reference
    taken at a listening level of 79 dB SPL. Differences smaller than a quarter of the smaller loudness count as masked.
    What was added (more than 3 times the power) counts again, up to 12 times, since it is heard apart from the
    speech while what is missing is not. Unlike P.862: no alignment, no equalization, no gain tracking, frames
    averaged by root mean square.
    """

    window: Tensor
    bands: Tensor
    threshold: Tensor

    def __init__(self, sample_rate: int, window: int = 512, num_bands: int = 49, exponent: float = 0.23) -> None:
        super().__init__()
        self.exponent = exponent
        edges = np.linspace(bark(np.array(50.0)), bark(np.array(sample_rate / 2)), num_bands + 1)
        # Share of every bin's width that lies in each band, so that narrow low bands get their part of a bin.
        centres = np.arange(window // 2 + 1) * sample_rate / window
        low, high = bark(np.maximum(centres - sample_rate / window / 2, 0)), bark(centres + sample_rate / window / 2)
        overlap = np.minimum(high[:, None], edges[1:]) - np.maximum(low[:, None], edges[:-1])
        shares = np.clip(overlap, 0, None) / (high - low)[:, None]
        # One-sided power of a Hann window: 2 |X|^2 / (N sum w^2) sums to the mean square of the signal.
        hann = torch.hann_window(window)
        shares *= 2 / (window * float(hann.square().sum()))
        middle = (edges[:-1] + edges[1:]) / 2
        quiet = threshold_in_quiet(1960 * (middle + 0.53) / (26.28 - middle))
        self.register_buffer("window", hann, persistent=False)
        self.register_buffer("bands", torch.from_numpy(shares.astype(np.float32)), persistent=False)
        self.register_buffer("threshold", torch.from_numpy((10 ** (quiet / 10)).astype(np.float32)), persistent=False)

    def _bands(self, wav: Tensor, gain: Tensor) -> Tensor:
        """(B, N) -> power (B, T, bands) relative to 0 dB SPL."""
        spectrum: Tensor = ShortTimeFourier.apply(wav, self.window)
        return (spectrum.real.square() + spectrum.imag.square()) @ self.bands * gain[:, None, None]

    def _loudness(self, power: Tensor) -> Tensor:
        """Specific loudness, 1 at 40 dB above a threshold of 0 dB."""
        scale = (2 * self.threshold) ** self.exponent / (0.5 + 0.5e4) ** self.exponent
        return scale * ((0.5 + 0.5 * power / self.threshold) ** self.exponent - 0.5**self.exponent)

    def forward(self, wav: Tensor, target: Tensor) -> Tensor:
        """(B, N), (B, N) -> scalar."""
        with torch.autocast(wav.device.type, enabled=False):
            gain = 10**7.9 / target.square().mean(1).clamp_min(1e-8)
            with torch.no_grad():
                reference = self._bands(target, gain)
                theirs = self._loudness(reference)
            power = self._bands(wav, gain)
            ours = self._loudness(power)
            difference = ours - theirs
            masked = 0.25 * torch.minimum(ours, theirs).detach()
            audible = (difference.abs() - masked).clamp_min(0)
            ratio = ((power.detach() + 400) / (reference + 400)) ** 1.2
            added = torch.where(ratio < 3, 0.0, ratio.clamp_max(12))
            symmetric = audible.square().mean(2) + 1e-6
            asymmetric = ((added * audible).mean(2)).square()
            return (symmetric.mean(1).sqrt() + 0.3 * (asymmetric.mean(1) + 1e-6).sqrt()).mean()
