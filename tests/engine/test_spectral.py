"""Causal STFT: perfect reconstruction, chunks equal whole, mel filters against librosa."""

import librosa
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.spectral import CausalISTFT, CausalSTFT, compress, expand, mel_filterbank


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("hop", [16, 160])
def test_inverse_returns_the_signal_one_hop_late(hop):
    wav = noise(2, 20 * hop)
    back = CausalISTFT(hop)(CausalSTFT(hop)(wav))
    assert torch.equal(back[:, :hop], torch.zeros(2, hop)) or back[:, :hop].abs().max() < 1e-6
    torch.testing.assert_close(back[:, hop:], wav[:, :-hop], atol=1e-5, rtol=0)


def test_frames_equal_a_slow_transform():
    hop, wav = 8, noise(1, 40)
    spectrum = CausalSTFT(hop)(wav)
    padded = torch.cat([torch.zeros(1, hop), wav], dim=1)[0].double()
    n = torch.arange(2 * hop, dtype=torch.float64)
    window = torch.sin(torch.pi * (n + 0.5) / (2 * hop))
    for k in range(5):
        frame = padded[k * hop : k * hop + 2 * hop] * window
        for f in range(hop + 1):
            expected = (frame * torch.exp(-1j * torch.pi * f * n / hop)).sum()
            assert abs(complex(spectrum[0, k, f]) - complex(expected)) < 1e-5


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=6))
def test_chunks_equal_the_whole(sizes):
    hop = 16
    wav = noise(2, sum(sizes) * hop)
    stft, istft = CausalSTFT(hop), CausalISTFT(hop)
    whole = stft(wav)
    analysis, synthesis = stft.initial_state(2), istft.initial_state(2)
    spectra = [stft(chunk, analysis) for chunk in wav.split([s * hop for s in sizes], dim=1)]
    torch.testing.assert_close(torch.cat(spectra, dim=1), whole)
    audio = torch.cat([istft(spectrum, synthesis) for spectrum in spectra], dim=1)
    torch.testing.assert_close(audio, istft(whole))


def test_reset_forgets_one_session_only():
    stft = CausalSTFT(16)
    state = stft.initial_state(2)
    stft(noise(2, 32), state)
    kept = state.past[1].clone()
    state.reset([0])
    assert not state.past[0].any() and torch.equal(state.past[1], kept)


@pytest.mark.parametrize("exponent", [0.3, 0.5, 1.0])
def test_compression_is_undone_and_finite_at_zero(exponent):
    spectrum = torch.complex(noise(50), noise(50, seed=1))
    spectrum[0] = 0
    packed = compress(spectrum, exponent)
    torch.testing.assert_close(packed.abs(), spectrum.abs() ** exponent)
    torch.testing.assert_close(expand(packed, exponent), spectrum)
    packed.requires_grad_(True)
    expand(packed, exponent).abs().square().sum().backward()
    assert torch.isfinite(torch.view_as_real(packed.grad)).all()


@pytest.mark.parametrize("mels,n_fft", [(20, 128), (80, 512), (160, 2048)])
def test_mel_filters_equal_librosa(mels, n_fft):
    with np.errstate(all="ignore"):
        expected = librosa.filters.mel(sr=16_000, n_fft=n_fft, n_mels=mels)
    np.testing.assert_allclose(mel_filterbank(mels, n_fft, 16_000).T.numpy(), expected, atol=1e-7)
