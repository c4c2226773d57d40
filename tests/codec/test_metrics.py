"""The measures against slow twins, known values, and the figures of a second implementation where it is at hand."""

import importlib.util
import math
import sys

import numpy as np
import pytest

from codec import metrics
from engine import audio
from engine.errors import AudioError, SpeechError

librosa_missing = importlib.util.find_spec("librosa") is None


@pytest.fixture(scope="module")
def speech():
    """Two seconds of noise that comes and goes like syllables, loud enough for PESQ to find an utterance."""
    rng = np.random.default_rng(1)
    time = np.arange(32000) / 16000
    voiced = sum(np.sin(2 * np.pi * 140 * k * time + k) / k for k in range(1, 20))
    envelope = np.clip(np.sin(2 * np.pi * 3 * time), 0, None) + 0.01
    return 0.1 * envelope * (voiced + 0.1 * rng.standard_normal(32000))


def noisy(speech, level):
    return speech + level * np.random.default_rng(2).standard_normal(len(speech))


def test_identical_signals_score_best(speech):
    score = metrics.measure(speech, speech)
    assert score["pesq_wb"] == pytest.approx(4.644, abs=1e-3)
    assert score["stoi"] == pytest.approx(1.0, abs=1e-6)
    assert score["si_sdr"] > 100
    assert score["mel_distance"] == 0


def test_more_noise_scores_worse(speech):
    little, much = (metrics.measure(speech, noisy(speech, level)) for level in (0.003, 0.05))
    for name in ("pesq_wb", "stoi", "si_sdr"):
        assert little[name] > much[name], name
    assert little["mel_distance"] < much["mel_distance"]


def test_si_sdr_against_known_ratio_and_is_scale_invariant():
    time = np.arange(16000) / 16000
    ref, error = np.sin(2 * np.pi * 100 * time), 0.1 * np.sin(2 * np.pi * 200 * time)  # orthogonal, 20 dB
    assert metrics.si_sdr(ref, ref + error) == pytest.approx(20, abs=1e-6)
    assert metrics.si_sdr(ref, -3 * (ref + error) + 0.5) == pytest.approx(20, abs=1e-6)


@pytest.mark.skipif(librosa_missing, reason="librosa is the oracle")
@pytest.mark.filterwarnings("ignore::UserWarning")  # empty filters of the finest scale, part of the definition
def test_mel_distance_equals_librosa(speech):
    import librosa

    decoded, expected = noisy(speech, 0.01), 0.0
    for n_fft, n_mels in metrics.MEL_SCALES:
        mels = [
            librosa.feature.melspectrogram(
                y=x, sr=16000, n_fft=n_fft, hop_length=n_fft // 4, n_mels=n_mels, power=1.0, pad_mode="reflect"
            )
            for x in (speech, decoded)
        ]
        ref, dec = (np.log10(np.maximum(mel, 1e-5) ** 2) for mel in mels)
        expected += np.abs(ref - dec).mean()
    assert metrics.mel_distance(speech, decoded) == pytest.approx(expected, rel=1e-4)


def test_shift_by_one_frame_is_not_forgiven(speech):
    shifted = np.concatenate([np.zeros(320), speech[:-320]])
    assert metrics.si_sdr(speech, shifted) < 10
    assert metrics.stoi(speech, shifted) < 0.99


@pytest.mark.parametrize("shift", [0, 37, -25, 1600])
def test_delay_is_found_with_its_sign(speech, shift):
    decoded = np.concatenate([np.zeros(shift), speech]) if shift >= 0 else speech[-shift:]
    assert metrics.estimate_delay([(speech, decoded), (speech[:20000], decoded[:20000])]) == shift


def test_undefined_is_nan_and_silence_is_the_worst(speech):
    silence = np.zeros_like(speech)
    assert metrics.pesq_wb(speech, silence) < 1.1
    assert metrics.stoi(speech, silence) < 0.1
    for metric in (metrics.pesq_wb, metrics.stoi, metrics.si_sdr):
        assert math.isnan(metric(silence, speech)), metric.__name__
    for length in (1, 3, 3000):
        assert math.isnan(metrics.pesq_wb(speech[:length], speech[:length]))
        assert math.isnan(metrics.stoi(speech[:length], speech[:length]))
        assert metrics.mel_distance(speech[:length], speech[:length]) == 0


def test_signals_that_do_not_match_are_refused(speech):
    for bad in (speech[:-1], speech[None], np.zeros(0)):
        with pytest.raises(AudioError, match="equal length"):
            metrics.si_sdr(speech if bad.ndim == 1 else bad, bad[: len(bad)])


def test_bootstrap_interval_of_a_normal_mean():
    values = np.random.default_rng(0).normal(3.0, 1.0, 400)
    interval = metrics.bootstrap_interval(values)
    assert interval.mean == pytest.approx(values.mean())
    assert interval.high - interval.low == pytest.approx(2 * 1.96 / math.sqrt(400), rel=0.1)
    assert interval.low < interval.mean < interval.high
    assert interval == metrics.bootstrap_interval(values)  # same seed, same interval


def test_bootstrap_interval_leaves_nan_out():
    assert metrics.bootstrap_interval([1.0, math.nan, 3.0])[::3] == (2.0, 2)
    assert metrics.bootstrap_interval([]).n == 0


def test_missing_extra_says_how_to_install(speech, monkeypatch):
    monkeypatch.setitem(sys.modules, "pesq", None)
    with pytest.raises(SpeechError, match=r"pip install 'voxcode\[eval\]'"):
        metrics.pesq_wb(speech, speech)


def test_estoi_hears_a_narrower_band(speech):
    assert metrics.estoi(speech, speech) == pytest.approx(1.0, abs=1e-6)
    assert metrics.estoi(speech, noisy(speech, 0.05)) < metrics.estoi(speech, noisy(speech, 0.003)) < 1
    assert math.isnan(metrics.estoi(np.zeros_like(speech), speech))
    assert metrics.measure(speech, speech, ["estoi"]).keys() == {*metrics.METRICS, "estoi"}


@pytest.mark.parametrize("name", ["visqol", "dnsmos"])
@pytest.mark.filterwarnings("ignore")  # of the packages that measure
def test_optional_metrics_order_noise_or_say_what_to_install(name, recordings):
    wav = audio.load(recordings[0], sample_rate=16000, mono=True)[0][0, :32000].numpy().astype(np.float64)
    if not metrics.installed(name):
        with pytest.raises(SpeechError, match="pip install"):
            metrics.MORE[name](wav, wav)
        return
    scores = [metrics.MORE[name](wav, noisy(wav, level)) for level in (0, 0.003, 0.05)]
    assert 5 >= scores[0] > scores[1] > scores[2] >= 1
    assert math.isnan(metrics.MORE[name](wav[:9000], wav[:9000]))
