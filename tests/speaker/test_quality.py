"""What can be said of a recording without a model."""

import numpy as np
import pytest
import torch

from engine import audio
from speaker.embed import heard
from speaker.quality import assess, clipped_share


@pytest.fixture(scope="module")
def speech(recordings):
    return audio.load(recordings[0], 16000, mono=True)[0][0].numpy()


def test_speech_is_counted_and_pauses_are_not(speech):
    alone = assess(speech, 16000)
    padded = assess(np.concatenate([np.zeros(32000, np.float32), speech, np.zeros(48000, np.float32)]), 16000)
    assert 0.3 * alone.duration < alone.seconds <= alone.duration
    assert abs(padded.seconds - alone.seconds) < 0.2 * alone.seconds and padded.duration == alone.duration + 5
    assert alone.warnings() == []


def test_silence_is_none():
    quiet = assess(1e-4 * np.random.default_rng(0).standard_normal(32000).astype(np.float32), 16000)
    assert quiet.seconds == 0 and quiet.warnings() == ["no speech found, it is silence"]
    assert assess(np.zeros(10, np.float32), 16000).seconds == 0


def test_clipping_short_and_narrow_recordings_are_recognized(speech):
    clipped = assess(np.clip(speech * 20, -0.99, 0.99), 16000)
    assert clipped.clipped > 0.01 and "clipped" in " ".join(clipped.warnings())
    spectrum = np.fft.rfft(speech)
    spectrum[np.fft.rfftfreq(len(speech), 1 / 16000) > 3700] = 0
    narrow = assess(np.fft.irfft(spectrum, len(speech)).astype(np.float32), 16000)
    assert any("8 kHz" in sentence for sentence in narrow.warnings())
    short = assess(speech[4000:12000], 16000)
    assert any("scores are unreliable below 1 s" in sentence for sentence in short.warnings())


@pytest.mark.parametrize("rate, channels", [(16000, 1), (44100, 1), (48000, 2), (8000, 1)])
def test_clipping_is_seen_in_files_of_every_rate(speech, tmp_path, rate, channels):
    """After mixing and resampling nothing is at the peak any more."""
    loud = torch.from_numpy(np.clip(speech * 20, -0.99, 0.99))
    native = audio.resample(torch.from_numpy(speech), 16000, rate)
    both = torch.stack([native] * (channels - 1) + [(native * 20).clamp(-0.99, 0.99)])
    audio.save(tmp_path / "a.wav", both, rate)
    wav, clipped = heard(tmp_path / "a.wav", 16000)
    assert clipped == pytest.approx(clipped_share(loud.numpy()), rel=0.3) and clipped > 0.1
    assert torch.allclose(wav, audio.load(tmp_path / "a.wav", 16000, mono=True)[0][0], atol=1e-6)
    audio.save(tmp_path / "b.wav", native[None], rate)
    assert heard(tmp_path / "b.wav", 16000)[1] < 1e-3
