"""Front ends: the numbers of the originals, a slow obvious twin, padded batches."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from engine.errors import AudioError, ConfigError
from engine.features import (
    FrontEnd,
    FrontEndConfig,
    kaldi_fbank,
    kaldi_mfcc,
    nemo_mel,
    speechbrain_fbank,
    taoruijie_fbank,
)

PLAIN = {"normalization": "none"}
KALDI = {
    "fbank80_povey": kaldi_fbank(**PLAIN),
    "fbank80_hamming": kaldi_fbank(window="hamming", **PLAIN),
    "fbank40_povey_7600": kaldi_fbank(40, high_hz=7600.0, **PLAIN),
    "fbank40_povey_nosnip": kaldi_fbank(40, high_hz=7600.0, framing="whole", **PLAIN),
    "mfcc30_povey": kaldi_mfcc(high_hz=7600.0, **PLAIN),
    "mfcc30_hamming": kaldi_mfcc(high_hz=7600.0, window="hamming", **PLAIN),
    "mfcc20_povey_energy": kaldi_mfcc(20, 23, use_energy=True, **PLAIN),
}
OTHERS = {
    "speechbrain_ecapa": speechbrain_fbank(),
    "nemo_titanet": nemo_mel(),
    "taoruijie_ecapa": taoruijie_fbank(),
    "wespeaker_resnet34": kaldi_fbank(window="hamming"),
}


def assert_features_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Single bins of little energy differ between correct transforms; their mean does not."""
    assert found.shape == expected.shape
    difference = (found - expected).abs()
    assert difference.max() < 5e-3 and difference.mean() < 5e-5


@pytest.mark.parametrize("name", KALDI)
def test_kaldi(name, shared):
    tensors = load_file(shared / "conformance" / "speaker" / "features_kaldi.safetensors")
    features, _ = FrontEnd(KALDI[name])(tensors["input"][None].float())
    assert_features_close(features[0].T, tensors[name])


@pytest.mark.parametrize("name", OTHERS)
def test_other_projects(name, shared):
    tensors = load_file(shared / "conformance" / "speaker" / f"{name}.safetensors")
    for i in range(3):
        features, num_frames = FrontEnd(OTHERS[name])(tensors[f"input.{i}"][None])
        expected = tensors[f"features.{i}"]
        expected = expected if len(expected) == 80 and name != "speechbrain_ecapa" else expected.T
        assert_features_close(features[0], expected[:, : int(num_frames[0])])


@pytest.mark.parametrize("config", [kaldi_fbank(window="hamming"), nemo_mel(), speechbrain_fbank(), taoruijie_fbank(),
                                    kaldi_mfcc(20, 23, use_energy=True, framing="whole"),
                                    kaldi_fbank(40, normalization="sliding_mean", sliding_frames=50)])  # fmt: skip
def test_an_item_of_a_batch_gives_its_own_features(config):
    generator = torch.Generator().manual_seed(0)
    lengths = [16000, 4321, 799, 9600]
    wav = torch.randn(4, 16000, generator=generator)  # what is behind an item's end must not count
    front_end = FrontEnd(config)
    features, num_frames = front_end(wav, torch.tensor(lengths))
    for row, (length, frames) in enumerate(zip(lengths, num_frames.tolist(), strict=True)):
        alone, count = front_end(wav[row : row + 1, :length])
        assert alone.shape[2] == frames == int(count[0]) == config.num_frames(length)
        torch.testing.assert_close(features[row : row + 1, :, :frames], alone, atol=1e-4, rtol=1e-4)
        assert not features[row, :, frames:].any()


def test_a_slow_twin_of_the_filter_bank():
    """Kaldi's definition written out in numpy, frame by frame and bin by bin."""
    wav = np.random.default_rng(0).normal(0, 0.1, 2000).astype(np.float32)
    features = FrontEnd(kaldi_fbank(23, **PLAIN))(torch.from_numpy(wav)[None])[0][0].numpy()
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)) ** 0.85
    edges = np.linspace(1127 * np.log(1 + 20 / 700), 1127 * np.log(1 + 8000 / 700), 25)
    for t in range(11):
        frame = 32768.0 * wav[160 * t : 160 * t + 400].astype(np.float64)
        frame -= frame.mean()
        frame = np.concatenate([[frame[0] * (1 - 0.97)], frame[1:] - 0.97 * frame[:-1]]) * window
        power = np.abs(np.fft.rfft(frame, 512)) ** 2
        for b in range(23):
            total = 0.0
            for k in range(256):
                mel = 1127 * np.log(1 + k * 16000 / 512 / 700)
                left, centre, right = edges[b : b + 3]
                if left < mel < right:
                    total += power[k] * (
                        (mel - left) / (centre - left) if mel <= centre else (right - mel) / (right - centre)
                    )
            assert features[b, t] == pytest.approx(np.log(max(total, 1.1920929e-07)), abs=2e-3)
    assert features.shape == (23, 11)


def test_sliding_mean_is_over_the_nearest_frames():
    config = kaldi_fbank(5, normalization="sliding_mean", sliding_frames=7)
    wav = torch.randn(1, 6000, generator=torch.Generator().manual_seed(1))
    plain = FrontEnd(kaldi_fbank(5, **PLAIN))(wav)[0][0]
    found = FrontEnd(config)(wav)[0][0]
    frames = plain.shape[1]
    for t in range(frames):
        start = min(max(0, t - 3), frames - 7)
        expected = plain[:, t] - plain[:, start : start + 7].mean(1)
        torch.testing.assert_close(found[:, t], expected, atol=1e-4, rtol=1e-4)


def test_gradients_reach_the_waveform():
    wav = torch.randn(1, 4000, requires_grad=True)
    FrontEnd(kaldi_fbank())(wav)[0].square().sum().backward()
    assert wav.grad is not None and wav.grad.isfinite().all() and wav.grad.abs().sum() > 0


def test_too_short_and_impossible_are_named():
    with pytest.raises(AudioError, match=r"399 samples are too short .* needs 400 \(25 ms\)"):
        FrontEnd(kaldi_fbank())(torch.zeros(1, 399))
    for values, message in [
        ({"n_fft": 256}, "do not fit a transform"),
        ({"num_ceps": 90}, "cepstra"),
        ({"high_hz": 9000.0}, "Hz"),
    ]:
        with pytest.raises(ConfigError, match=message):
            FrontEndConfig(**values)
