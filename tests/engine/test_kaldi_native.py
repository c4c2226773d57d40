"""FBANK and MFCC beside Kaldi's own code (kaldi-native-fbank), on noise and speech, at 16 and 8 kHz."""

import numpy as np
import pytest
import torch

from engine import audio
from engine.features import FrontEnd, kaldi_fbank, kaldi_mfcc

knf = pytest.importorskip("kaldi_native_fbank", reason="pip install kaldi-native-fbank")

PLAIN = {"normalization": "none"}
NARROW = {"sample_rate": 8000, "win_length": 200, "hop_length": 80, "n_fft": 256, **PLAIN}
FBANK = {
    "povey": kaldi_fbank(80, **PLAIN),
    "hamming": kaldi_fbank(80, window="hamming", **PLAIN),
    "whole": kaldi_fbank(40, framing="whole", **PLAIN),
    "edges": kaldi_fbank(23, low_hz=100.0, high_hz=-400.0, **PLAIN),
    "narrow": kaldi_fbank(40, **NARROW),
    "narrow whole": kaldi_fbank(23, window="hamming", framing="whole", high_hz=3700.0, **NARROW),
}
MFCC = {
    "povey": kaldi_mfcc(30, 30, **PLAIN),
    "hamming": kaldi_mfcc(13, 23, window="hamming", **PLAIN),
    "energy": kaldi_mfcc(20, 40, use_energy=True, **PLAIN),
    "whole": kaldi_mfcc(20, 23, use_energy=True, framing="whole", **PLAIN),
    "narrow": kaldi_mfcc(23, 23, high_hz=3700.0, **NARROW),
}


@pytest.fixture(scope="module")
def signals(recordings):
    """By sample rate: speech, noise, and speech after digital silence, where only the floor keeps the logarithm."""
    found = {}
    for rate in (16000, 8000):
        speech = audio.load(recordings[0], rate, mono=True)[0][0][: 3 * rate]
        noise = 0.1 * torch.randn(2 * rate + 37, generator=torch.Generator().manual_seed(0))
        found[rate] = {"speech": speech, "noise": noise, "floor": torch.cat([torch.zeros(rate), speech[:rate]])}
    return found


def native(config, wav):
    """(T, F) of kaldi-native-fbank."""
    options = knf.MfccOptions() if config.num_ceps else knf.FbankOptions()
    frame = options.frame_opts
    frame.samp_freq, frame.dither, frame.snip_edges = config.sample_rate, 0.0, config.framing == "snip"
    frame.window_type, frame.preemph_coeff = config.window, config.preemphasis
    options.mel_opts.num_bins = config.num_bins
    options.mel_opts.low_freq, options.mel_opts.high_freq = config.low_hz, config.high_hz
    options.use_energy, options.energy_floor = config.use_energy, config.log_eps
    if config.num_ceps:
        options.num_ceps = config.num_ceps
        extractor = knf.OnlineMfcc(options)
    else:
        extractor = knf.OnlineFbank(options)
    extractor.accept_waveform(config.sample_rate, (config.scale * wav).tolist())
    extractor.input_finished()
    return np.stack([extractor.get_frame(i) for i in range(extractor.num_frames_ready)]).astype(np.float64)


def differences(config, signals):
    worst, typical = 0.0, 0.0
    for wav in signals[config.sample_rate].values():
        expected, found = native(config, wav), FrontEnd(config)(wav[None])[0][0].T.double().numpy()
        assert found.shape == expected.shape
        difference = np.abs(found - expected) / np.maximum(1, np.abs(expected))
        worst, typical = max(worst, float(difference.max())), max(typical, float(difference.mean()))
    return worst, typical


@pytest.mark.parametrize("name", FBANK)
def test_fbank(name, signals):
    worst, typical = differences(FBANK[name], signals)
    assert worst < 2e-3 and typical < 1e-5, (worst, typical)


@pytest.mark.parametrize("name", MFCC)
def test_mfcc(name, signals):
    worst, typical = differences(MFCC[name], signals)
    assert worst < 2e-3 and typical < 1e-4, (worst, typical)


def test_the_comparison_can_fail(signals):
    """A window of another kind is told from the right one."""
    wav = signals[16000]["speech"]
    found = FrontEnd(kaldi_fbank(80, window="hann", **PLAIN))(wav[None])[0][0].T.numpy()
    assert np.abs(found - native(FBANK["povey"], wav)).mean() > 0.01
