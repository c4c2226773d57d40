"""What speaks against enrolling a speaker with a recording."""

import math

import numpy as np
import pytest

import speaker
from engine import audio
from engine.errors import AudioError
from speaker.enrolment import EnrolmentQuality, agreement, assess_enrolment, signal_to_noise, window_embeddings
from speaker.quality import assess, speech_frames


@pytest.fixture(scope="module")
def voices(recordings):
    """Two recordings each of two people, (N,) at 16 kHz."""
    return {path.stem: audio.load(path, 16000, mono=True)[0][0].numpy() for path in recordings}


@pytest.fixture(scope="module")
def encoder():
    return speaker.load("ecapa")


def test_noise_is_measured_where_there_is_some(voices):
    speech = voices["allison_1"]
    decibels, spoken = speech_frames(speech, 16000)
    level = math.sqrt(float(np.mean(10 ** (decibels[spoken] / 10))))
    noise = np.random.default_rng(0).standard_normal(len(speech)).astype(np.float32)
    found = [signal_to_noise(speech + level * 10 ** (-snr / 20) * noise, 16000) for snr in (5, 15, 25)]
    assert found[0] < found[1] < found[2] <= signal_to_noise(speech, 16000)
    assert abs(found[1] - 15) < 6  # there is hardly a pause in it
    for bad, message in ((speech[None], r"shape \(1, \d+\).*wav\[0\]"), (np.full(9, np.nan), "NaN")):
        with pytest.raises(AudioError, match=message):
            assess_enrolment(None, bad, 16000)
    assert signal_to_noise(np.zeros(16000, np.float32), 16000) == 0 == signal_to_noise(np.zeros(1, np.float32), 16000)


def test_agreement_equals_a_slow_twin():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((9, 5))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    lowest = 1.0
    for start in range(9):
        for stop in range(start + 1, 10):
            inside, outside = vectors[start:stop], np.delete(vectors, slice(start, stop), axis=0)
            if len(inside) >= 2 and len(outside) >= 2:
                a, b = inside.mean(0), outside.mean(0)
                lowest = min(lowest, a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert agreement(vectors) == pytest.approx(lowest, abs=1e-12)
    assert math.isnan(agreement(vectors[:3]))


def test_two_voices_agree_less_than_one(voices, encoder):
    one = np.concatenate([voices["allison_1"], voices["allison_2"]])
    two = np.concatenate([voices["allison_1"], voices["carlo_1"]])
    single, double = assess_enrolment(encoder, one, 16000), assess_enrolment(encoder, two, 16000)
    assert double.agreement < single.agreement - 0.1
    assert not any("two voices" in reason for reason in single.reasons())
    assert any("two voices" in reason for reason in double.reasons()) and not double.acceptable


def test_short_silent_and_narrow_recordings(voices, encoder):
    speech = voices["allison_1"]
    short = assess_enrolment(encoder, speech[:16000], 16000)
    assert math.isnan(short.agreement) and any("3 s are needed" in reason for reason in short.reasons())
    assert len(window_embeddings(encoder, speech[:16000], 16000)) == 0
    silent = assess_enrolment(encoder, np.zeros(48000, np.float32), 16000)
    assert silent.reasons() == ["no speech found, it is silence"] and not silent.acceptable
    good = EnrolmentQuality(assess(np.tile(speech, 3), 16000), 30.0, 0.9)
    assert good.acceptable and good.reasons() == []
    clipped = assess_enrolment(None, np.clip(np.tile(speech, 2) * 20, -0.99, 0.99), 16000)
    assert math.isnan(clipped.agreement) and any("clipped" in reason for reason in clipped.reasons())
