"""Training losses against slow twins."""

import numpy as np
import pytest
import torch

from codec.losses import MelLoss, relative_error
from engine.spectral import mel_filterbank


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_mel_loss_equals_a_slow_twin():
    ours, theirs, size = noise(1, 1000)[0].numpy(), noise(1, 1000, seed=1)[0].numpy(), 128

    def log_mel(wav: np.ndarray) -> np.ndarray:
        padded = np.pad(wav, size // 2)
        window = np.hanning(size + 1)[:-1]
        starts = range(0, len(padded) - size + 1, size // 4)
        frames = np.stack([np.abs(np.fft.rfft(padded[s : s + size] * window)) for s in starts])
        return np.log10(np.maximum(frames @ mel_filterbank(20, size, 16_000).numpy(), 1e-5))

    expected = np.abs(log_mel(ours) - log_mel(theirs)).mean()
    got = MelLoss(16_000, windows=(size,))(torch.from_numpy(ours)[None], torch.from_numpy(theirs)[None])
    assert float(got) == pytest.approx(expected, rel=1e-3)


def test_mel_loss_is_zero_for_equals_and_blind_to_no_window():
    loss = MelLoss(16_000)
    wav = noise(2, 8000)
    assert float(loss(wav, wav)) == 0
    # Twice the amplitude is log10(2) in every mel band of every window: no window is left out of the sum.
    assert float(loss(2 * wav, wav)) == pytest.approx(5 * np.log10(2), rel=1e-3)


def test_mel_loss_has_a_gradient_at_silence():
    wav = torch.zeros(1, 4000, requires_grad=True)
    MelLoss(16_000)(wav, noise(1, 4000)).backward()
    assert torch.isfinite(wav.grad).all()


def test_relative_error():
    target = torch.complex(noise(2, 5, 4), noise(2, 5, 4, seed=1))
    assert float(relative_error(target, target)) == 0
    assert float(relative_error(torch.zeros_like(target), target)) == pytest.approx(1)
    assert float(relative_error(1.5 * target, target)) == pytest.approx(0.25)
