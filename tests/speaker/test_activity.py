"""Voice activity: adaptive energy and Silero."""

import numpy as np
import pytest

from engine import audio
from engine.errors import ConfigError
from speaker import activity
from speaker.activity import segments, speech_activity

RATE = 16_000


@pytest.fixture(scope="module")
def speech(recordings):
    wav = audio.load(recordings[0], RATE, mono=True)[0][0].numpy()
    return wav / np.abs(wav).max() * 0.3


def between(speech, seconds, noise, seed=0):
    """Silence, the recording, silence; noise of a level everywhere. And where the recording is (frames)."""
    pause = np.zeros(int(seconds * RATE), dtype=np.float32)
    wav = np.concatenate([pause, speech, pause])
    wav = wav + noise * np.random.default_rng(seed).standard_normal(len(wav)).astype(np.float32)
    inside = np.zeros(activity.frames_in(len(wav), RATE), dtype=bool)
    inside[int(seconds * 100) : int(seconds * 100) + len(speech) // 160] = True
    return wav.astype(np.float32), inside


@pytest.mark.parametrize("method", ["energy", "silero"])
@pytest.mark.parametrize("noise", [0.0, 0.002, 0.01])
def test_speech_is_found_at_any_level_of_noise(speech, method, noise):
    if method == "silero":
        pytest.importorskip("silero_vad", reason="the extra vad is not installed")
        pytest.importorskip("onnxruntime")
    wav, inside = between(speech, 4, noise)
    found = speech_activity(wav, RATE, method)
    assert found.shape == inside.shape and found[inside].mean() > 0.5
    assert found[~inside].mean() < 0.08


def test_no_speech_in_silence_and_noise():
    for wav in (np.zeros(RATE * 5, np.float32), 0.1 * np.random.default_rng(0).standard_normal(RATE * 5)):
        assert not speech_activity(wav.astype(np.float32), RATE).any()
    assert speech_activity(np.zeros(0, np.float32), RATE).shape == (0,)
    assert speech_activity(np.zeros(1, np.float32), RATE).shape == (1,)


@pytest.mark.parametrize("method", ["energy", "silero"])
def test_blocks_decide_as_the_whole(speech, method):
    if method == "silero":
        pytest.importorskip("silero_vad", reason="the extra vad is not installed")
        pytest.importorskip("onnxruntime")
    detector = activity.DETECTORS[method](RATE)
    for block in np.array_split(speech, 23):
        detector.push(block)
    np.testing.assert_array_equal(detector.finish(), speech_activity(speech, RATE, method))


def test_segments_by_an_obvious_twin():
    rng = np.random.default_rng(0)
    for _ in range(50):
        active = np.repeat(rng.random(40) < 0.5, rng.integers(1, 30, 40))
        frames, runs = list(active), []
        for at, one in enumerate(frames):
            if one and (at == 0 or not frames[at - 1]):
                runs.append([at, at])
            if one:
                runs[-1][1] = at + 1
        joined = []
        for run in runs:
            if joined and run[0] - joined[-1][1] < 20:
                joined[-1][1] = run[1]
            else:
                joined.append(run)
        kept = [run for run in joined if run[1] - run[0] >= 15]
        found = segments(active, 0.2, 0.15, hangover=0.0)
        np.testing.assert_allclose(found, np.array(kept).reshape(-1, 2) / 100)


def test_hangover_grows_segments_without_letting_them_overlap():
    active = np.zeros(300, dtype=bool)
    active[2:50] = active[56:100] = True
    found = segments(active, min_silence=0.05, hangover=0.1)
    np.testing.assert_allclose(found, [[0, 0.53], [0.53, 1.1]])


def test_a_method_that_does_not_exist():
    with pytest.raises(ConfigError, match="there are energy and silero"):
        speech_activity(np.zeros(100, np.float32), RATE, "webrtc")  # type: ignore[arg-type]
