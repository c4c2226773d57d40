"""Perceptual linear prediction (Hermansky 1990) as HTK and Kaldi compute it: mel filter bank -> cepstra.

The power in the bins is weighted by the ear's sensitivity and compressed by the cube root of loudness. That is taken
for a power spectrum: its autocorrelation, the inverse Fourier transform, gives an all-pole model (Levinson and Durbin),
and the model's log spectrum gives cepstra by a recursion. The first cepstrum is the logarithm of the model's gain.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

__all__ = ["PerceptualCepstra"]

MIN_ORDER = 12
LEAST_GAIN = 1e-5  # of a step of the recursion, where rounding would make the error of the prediction negative


class PerceptualCepstra(nn.Module):
    """Power in mel bins (B, T, num_bins), samples of 16 bit scale, centred on `centres` Hz -> (B, T, num_ceps)."""

    def __init__(self, centres: NDArray[np.float64], num_ceps: int, lifter: int) -> None:
        super().__init__()
        self.num_ceps = num_ceps
        self.order = max(MIN_ORDER, num_ceps - 1)
        square = centres**2
        loudness = (square / (square + 1.6e5)) ** 2 * (square + 1.44e6) / (square + 9.61e6)
        # The bins and one more at either end, at 0 and half the sample rate, are half of a symmetric spectrum of
        # 2 (num_bins + 1) values: all but the ends count twice.
        places = np.arange(len(centres) + 2)
        transform = np.cos(np.pi / (len(places) - 1) * np.outer(places, np.arange(self.order + 1)))
        transform[1:-1] *= 2
        weights = 1 + lifter / 2 * np.sin(np.pi * np.arange(num_ceps) / lifter)
        for name, values in (
            ("loudness", loudness), ("transform", transform / (2 * (len(places) - 1))), ("weights", weights)
        ):  # fmt: skip
            self.register_buffer(name, torch.from_numpy(values.astype(np.float32)), persistent=False)
        self.loudness: Tensor
        self.transform: Tensor
        self.weights: Tensor

    def forward(self, mel: Tensor) -> Tensor:
        """(B, T, num_bins), above 0 -> (B, T, num_ceps), liftered."""
        heard = (mel * self.loudness).pow(1 / 3)
        spectrum = torch.cat([heard[..., :1], heard, heard[..., -1:]], dim=-1)
        predictor, error = _durbin((spectrum @ self.transform).unbind(-1))
        gain = error.log().clamp_min(torch.finfo(torch.float32).eps)
        cepstra = [gain, *_cepstra(predictor[: self.num_ceps - 1])]
        return torch.stack(cepstra, dim=-1) * self.weights


def _durbin(autocorrelation: tuple[Tensor, ...]) -> tuple[list[Tensor], Tensor]:
    """r(0) ... r(p) -> a(1) ... a(p) of x(n) ~ a(1) x(n - 1) + ..., and the power of the error."""
    predictor: list[Tensor] = []
    error = autocorrelation[0]
    for i in range(1, len(autocorrelation)):
        unexplained = autocorrelation[i]
        for lag, a in enumerate(predictor, 1):
            unexplained = unexplained - a * autocorrelation[i - lag]
        reflection = unexplained / error
        predictor = [a - reflection * b for a, b in zip(predictor, reversed(predictor), strict=True)] + [reflection]
        error = error * (1 - reflection.square()).clamp_min(LEAST_GAIN)
    return predictor, error


def _cepstra(predictor: list[Tensor]) -> list[Tensor]:
    """Of 1 / (1 - sum a(k) z^-k): c(n) = a(n) + sum over k < n of k / n c(k) a(n - k)."""
    found: list[Tensor] = []
    for n, a in enumerate(predictor, 1):
        for k in range(1, n):
            a = a + k / n * found[k - 1] * predictor[n - k - 1]
        found.append(a)
    return found
