"""Training losses against slow twins."""

import numpy as np
import pytest
import torch

from codec.losses import LoudnessLoss, MelLoss, ShortTimeFourier, power_law_error, relative_error
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


@pytest.mark.parametrize("num_samples", [300, 4096])
@pytest.mark.parametrize("size", [128, 512])
def test_short_time_fourier_is_torch_stft_with_the_same_gradient(num_samples, size):
    window = torch.hann_window(size, dtype=torch.float64)
    wav = noise(2, num_samples).double().requires_grad_()
    ours = ShortTimeFourier.apply(wav, window)
    theirs = torch.stft(
        wav, size, size // 4, window=window, center=True, pad_mode="constant", return_complex=True
    ).transpose(1, 2)
    torch.testing.assert_close(ours, theirs)
    weight = torch.randn(ours.shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(2))
    gradients = [torch.autograd.grad((x * weight).real.sum() + x.abs().square().sum(), wav)[0] for x in (ours, theirs)]
    torch.testing.assert_close(*gradients)


def test_bark_bands_share_out_all_the_power():
    # White noise between the lowest edge and half the sample rate: what the bands hold is its mean square.
    wav = noise(1, 32_000)
    loss = LoudnessLoss(16_000)
    power = loss._bands(wav, torch.ones(1)).mean(1).sum()
    assert float(power) == pytest.approx(float(wav.square().mean()), rel=0.03)


def test_a_sone_more_or_less():
    # Zwicker's exponent: ten times the power far above the threshold is 10^0.23 times as loud.
    loss = LoudnessLoss(16_000)
    quiet, loud = (loss._loudness(torch.full((1, 1, 49), power)) for power in (1e8, 1e9))
    middle = slice(10, 40)
    torch.testing.assert_close((loud / quiet)[..., middle], torch.full((1, 1, 30), 10**0.23), rtol=0.02, atol=0)


def test_loudness_loss_hears_what_is_added_more_than_what_is_missing():
    loss, time = LoudnessLoss(16_000), torch.arange(16_000) / 16_000
    speech = 0.1 * torch.sin(2 * torch.pi * 500 * time)[None]
    whistle = 0.02 * torch.sin(2 * torch.pi * 3000 * time)[None]
    both = speech + whistle
    assert float(loss(speech, speech)) < 2e-3
    assert float(loss(both, speech)) > 1.3 * float(loss(speech, both)) > 0.02


def test_loudness_loss_does_not_hear_what_is_masked_and_ignores_the_level():
    loss = LoudnessLoss(16_000)
    wav, other = noise(1, 16_000), noise(1, 16_000, seed=1)
    assert float(loss(wav * 1.02, wav)) < 2e-3  # a quarter of the loudness is not heard
    distance = float(loss(wav + 0.5 * other, wav))
    assert distance > 0.02
    assert float(loss(0.1 * (wav + 0.5 * other), 0.1 * wav)) == pytest.approx(distance, rel=1e-3)


def test_loudness_loss_has_a_gradient_at_silence():
    wav = torch.zeros(1, 4000, requires_grad=True)
    LoudnessLoss(16_000)(wav, noise(1, 4000)).backward()
    assert torch.isfinite(wav.grad).all()


def test_power_law_error_is_the_published_formula():
    spectrum, target = torch.tensor([3.0 - 0.5j, 0j]), torch.tensor([-2.0 + 0j, 1j])
    bent = [[3**0.3, -(0.5**0.3), 0, 0], [-(2**0.3), 0, 0, 1]]
    expected = sum((a - b) ** 2 for a, b in zip(*bent, strict=True)) / 4
    assert float(power_law_error(spectrum, target)) == pytest.approx(expected, abs=1e-5)
