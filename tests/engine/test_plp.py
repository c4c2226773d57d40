"""Perceptual linear prediction: Kaldi's formulas, frame by frame and value by value, in double precision."""

import math

import numpy as np
import pytest
import torch

from engine.errors import ConfigError
from engine.features import FrontEnd, FrontEndConfig, plp

PLAIN = {"normalization": "none"}


def slow_plp(wav, config):
    """(T, num_ceps) of `compute-plp-feats` without dither, snip_edges, povey window."""
    size, bins = config.win_length, config.num_bins
    rate, high = config.sample_rate, config.top_hz
    mel = lambda hz: 1127 * math.log(1 + hz / 700)  # noqa: E731
    step = (mel(high) - mel(config.low_hz)) / (bins + 1)
    order, rows = max(12, config.num_ceps - 1), []
    for start in range(0, len(wav) - size + 1, config.hop_length):
        frame = config.scale * wav[start : start + size].astype(np.float64)
        frame -= frame.mean()
        log_energy = math.log(max(float(frame @ frame), config.log_eps))
        frame = np.concatenate([[frame[0] * (1 - 0.97)], frame[1:] - 0.97 * frame[:-1]])
        frame *= (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / (size - 1))) ** 0.85
        power = np.abs(np.fft.rfft(frame, config.n_fft)) ** 2
        heard = []
        for b in range(bins):
            left, centre, right = (mel(config.low_hz) + (b + i) * step for i in range(3))
            total = 0.0
            for k in range(config.n_fft // 2):
                at = mel(k * rate / config.n_fft)
                if left < at < right:
                    total += power[k] * ((at - left) if at <= centre else (right - at)) / step
            hz = 700 * (math.exp(centre / 1127) - 1)
            weight = (hz**2 / (hz**2 + 1.6e5)) ** 2 * (hz**2 + 1.44e6) / (hz**2 + 9.61e6)
            heard.append((max(total, config.log_eps) * weight) ** (1 / 3))
        heard = np.array([heard[0], *heard, heard[-1]])
        # the whole symmetric spectrum through a real inverse transform
        correlation = np.fft.irfft(heard, 2 * (bins + 1))[: order + 1]
        # the normal equations as they stand, instead of a recursion
        toeplitz = np.array([[correlation[abs(i - j)] for j in range(order)] for i in range(order)])
        a = np.linalg.solve(toeplitz, correlation[1:])
        gain = correlation[0] - a @ correlation[1:]
        # cepstra from the model's log spectrum on a fine grid, instead of a recursion
        grid = 1 << 14
        response = 1 / np.fft.fft(np.concatenate([[1.0], -a]), grid)
        cepstra = np.fft.ifft(2 * np.log(np.abs(response))).real[: config.num_ceps]
        cepstra[0] = max(math.log(gain), 1.1920929e-07)
        for n in range(config.num_ceps):
            cepstra[n] *= 1 + 11 * math.sin(math.pi * n / 22)
        if config.use_energy:
            cepstra[0] = log_energy
        rows.append(cepstra)
    return np.array(rows)


@pytest.mark.parametrize("config", [
    plp(**PLAIN), plp(use_energy=True, **PLAIN), plp(9, 30, **PLAIN), plp(30, 40, high_hz=7600.0, **PLAIN),
    plp(13, 17, sample_rate=8000, win_length=200, hop_length=80, n_fft=256, low_hz=100.0, **PLAIN),
])  # fmt: skip
def test_a_slow_twin(config, recordings):
    from engine import audio

    speech = audio.load(recordings[0], config.sample_rate, mono=True)[0][0][4000:9000]
    noise = 0.1 * torch.randn(3000, generator=torch.Generator().manual_seed(0))
    for wav in (speech, noise):
        found = FrontEnd(config)(wav[None])[0][0].T.double().numpy()
        expected = slow_plp(wav.numpy(), config)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=2e-3)


def test_an_item_of_a_batch_gives_its_own_features():
    lengths = [16000, 4321, 799, 9600]
    wav = torch.randn(4, 16000, generator=torch.Generator().manual_seed(0))
    front_end = FrontEnd(plp(20, 30, use_energy=True))
    features, num_frames = front_end(wav, torch.tensor(lengths))
    for row, (length, frames) in enumerate(zip(lengths, num_frames.tolist(), strict=True)):
        alone, _ = front_end(wav[row : row + 1, :length])
        torch.testing.assert_close(features[row : row + 1, :, :frames], alone, atol=1e-4, rtol=1e-4)
        assert not features[row, :, frames:].any()


def test_silence_is_finite_and_gradients_reach_the_waveform():
    assert FrontEnd(plp())(torch.zeros(1, 4000))[0].isfinite().all()
    wav = torch.randn(1, 4000, generator=torch.Generator().manual_seed(0)).requires_grad_()
    FrontEnd(plp())(wav)[0].square().sum().backward()
    assert wav.grad is not None and wav.grad.isfinite().all() and wav.grad.abs().sum() > 0


def test_impossible_configurations_are_named():
    with pytest.raises(ConfigError, match="2 cepstra or more"):
        FrontEndConfig(log="plp")
    with pytest.raises(ConfigError, match="Kaldi's mel scale"):
        plp(mel="slaney")


def test_an_x_vector_of_plp_embeds_and_is_loaded_again(tmp_path):
    import speaker
    from speaker.backbones import BACKBONES
    from speaker.model import SpeakerConfig, SpeakerEncoder

    torch.manual_seed(0)
    network = BACKBONES["xvector"][1](num_bins=13)
    encoder = SpeakerEncoder(SpeakerConfig(front_end=plp(), network=network)).eval()
    speaker.save(tmp_path / "mine", encoder, "# mine")
    wav = 0.1 * torch.randn(2, 16000, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found = speaker.load(tmp_path / "mine")(wav)
        torch.testing.assert_close(found, encoder(wav))
    assert found.shape == (2, encoder.embedding_dim) and found.isfinite().all() and not torch.equal(found[0], found[1])
