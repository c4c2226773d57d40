"""Every disturbance does what it says, keeps length and place, and depends on crop and random state alone."""

import dataclasses
import json
import pickle

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from codec.io import MODELS
from engine import audio, checkpoint
from engine.errors import ConfigError
from recipes import esc_live
from recipes.harness import augment as effects
from recipes.harness.augment import Augment, AugmentConfig

RATE = 16_000
ALL = [field.name for field in dataclasses.fields(AugmentConfig) if field.name.endswith("_probability")]
MODEL_FREE = {name: 1.0 for name in ALL if name != "neural_codec_probability"}


def noise(seed=0, num_samples=RATE):
    return (np.random.default_rng(seed).standard_normal(num_samples) * 0.1).astype(np.float32)


def lag(reference, wav):
    """Samples by which `wav` is late; independent of the code under test."""
    return int(np.argmax(np.correlate(wav, reference, mode="full"))) - len(reference) + 1


def power(wav):
    return float(np.mean(np.square(wav, dtype=np.float64)))


@pytest.fixture(scope="module")
def speech(recordings):
    wav = audio.load(recordings[0], RATE, mono=True)[0][0].numpy()
    return wav[20_000 : 20_000 + RATE].copy()


@pytest.fixture(scope="module")
def pools(tmp_path_factory):
    """A folder of noise and a manifest with both kinds, one of its files broken, one longer than a crop."""
    folder = tmp_path_factory.mktemp("pools")
    (folder / "noise" / "deep").mkdir(parents=True)
    soundfile.write(folder / "noise" / "short.wav", noise(1, 3_000), RATE)
    soundfile.write(folder / "noise" / "deep" / "long.flac", noise(2, 3 * RATE), RATE)
    (folder / "noise" / "notes.txt").write_text("no sound")
    rir = np.zeros(2_000, np.float32)
    rir[[50, 300, 900]] = -0.02, 0.01, -0.004
    soundfile.write(folder / "room.wav", rir, RATE)
    (folder / "broken.wav").write_text("no sound either")
    rows = ["path,split", "noise/short.wav,noise", "room.wav,rir", "broken.wav,rir", "broken.wav,train"]
    (folder / "manifest.csv").write_text("\n".join(rows))
    return folder


@pytest.fixture(scope="module")
def everything(pools):
    paths = {"noise_paths": (str(pools / "noise"),), "reverb_paths": (str(pools / "manifest.csv"),)}
    return Augment(AugmentConfig(**paths, **MODEL_FREE), RATE, babble=[noise(4), noise(5, 500)])


@pytest.mark.parametrize("snr", [-5.0, 0.0, 20.0])
def test_noise_comes_at_the_asked_ratio_to_active_speech(speech, snr):
    disturbance = noise(3)
    added = effects.add_noise(speech, disturbance, snr, RATE) - speech
    assert 10 * np.log10(effects.active_power(speech, RATE) / power(added)) == pytest.approx(snr, abs=0.05)
    # Pauses do not count: the same speech between silences gets the same noise.
    silence = np.zeros(2 * RATE, np.float32)
    padded = np.concatenate([silence, speech, silence])
    longer = effects.add_noise(padded, noise(3, len(padded)), snr, RATE) - padded
    assert 10 * np.log10(power(longer) / power(added)) == pytest.approx(0, abs=0.1)


def test_active_power_drops_pauses_and_keeps_steady_sound():
    steady = noise(7)
    assert effects.active_power(steady, RATE) == pytest.approx(power(steady), rel=1e-6)
    half = np.concatenate([steady, 1e-3 * steady])
    assert effects.active_power(half, RATE) == pytest.approx(power(steady), rel=1e-6)


def test_noise_from_the_chain_has_ratios_of_the_whole_range(pools, speech):
    config = AugmentConfig(noise_probability=1.0, noise_paths=(str(pools / "noise"),), noise_snr=(3.0, 9.0))
    augment, rng = Augment(config, RATE), np.random.default_rng(0)
    active = effects.active_power(speech, RATE)
    ratios = [10 * np.log10(active / power(augment(speech, rng) - speech)) for _ in range(40)]
    assert 2.9 < min(ratios) < 4.5 and 7.5 < max(ratios) < 9.1


def test_babble_mixes_several_voices_at_the_asked_ratio(speech):
    voices = [np.sin(2 * np.pi * pitch * np.arange(RATE) / RATE).astype(np.float32) for pitch in (500, 1000, 1500)]
    config = AugmentConfig(babble_probability=1.0, babble_voices=(3, 3), babble_snr=(12.0, 12.0))
    drawn = []

    def voice(rng):
        drawn.append(len(drawn))
        return voices[drawn[-1] % 3] * 10.0 ** drawn[-1]  # however loud a voice comes, it joins equally loud

    added = Augment(config, RATE, babble=voice)(speech, np.random.default_rng(1)) - speech
    assert 10 * np.log10(effects.active_power(speech, RATE) / power(added)) == pytest.approx(12, abs=0.05)
    spectrum = np.abs(np.fft.rfft(added))
    assert drawn == [0, 1, 2]
    np.testing.assert_allclose(spectrum[[500, 1000, 1500]] / spectrum.max(), 1, atol=0.02)


@pytest.mark.parametrize("rt60", [0.2, 0.8])
@pytest.mark.parametrize("drr", [-3.0, 10.0])
def test_synthetic_rooms_have_their_decay_and_ratio_and_do_not_delay(rt60, drr):
    rir = effects.synthetic_rir(np.random.default_rng(0), RATE, rt60, drr)
    assert rir[0] == 1 and np.argmax(np.abs(rir)) == 0
    assert 10 * np.log10(1 / float(np.sum(rir[1:] ** 2))) == pytest.approx(drr, abs=0.01)
    remaining = 10 * np.log10(np.cumsum(rir[:0:-1] ** 2.0)[::-1])  # Schroeder (1965)
    decay = np.polyfit(np.arange(round(rt60 / 2 * RATE)) / RATE, remaining[40 : 40 + round(rt60 / 2 * RATE)], 1)[0]
    assert -60 / decay == pytest.approx(rt60, rel=0.1)
    dry = noise(8)
    wet = effects.reverberate(dry, rir)
    assert lag(dry, wet) == 0 and power(wet) == pytest.approx(power(dry), rel=1e-4)


def test_recorded_rooms_are_aligned_to_their_direct_path(pools):
    config = AugmentConfig(reverb_probability=1.0, reverb_paths=(str(pools / "manifest.csv"),))
    augment, dry = Augment(config, RATE), noise(9)
    assert len(augment.rirs) == 1
    np.testing.assert_allclose(augment.rirs[0][[0, 250, 850]], [1, -0.5, 0.2], atol=2e-3)
    wet = augment(dry, np.random.default_rng(0))
    expected = dry.copy()
    expected[250:] -= 0.5 * dry[:-250]
    expected[850:] += 0.2 * dry[:-850]
    expected *= np.sqrt(power(dry) / power(expected))
    np.testing.assert_allclose(wet, expected, atol=2e-3)


def test_without_recordings_each_crop_gets_a_room_of_its_own(speech):
    augment, rng = Augment(AugmentConfig(reverb_probability=1.0, reverb_drr=(6.0, 6.0)), RATE), np.random.default_rng(0)
    first, second = augment(speech, rng), augment(speech, rng)
    assert power(first) == pytest.approx(power(speech), rel=1e-4)
    assert not np.allclose(first, second, atol=1e-3)
    assert augment(speech[:1], rng).shape == (1,)


@pytest.mark.parametrize(("low", "high"), [(0, 2000), (0, 4321), (0, 7500), effects.TELEPHONE])
def test_bands_are_steep_flat_and_without_delay(low, high):
    wav = noise(10, 4 * RATE)
    out = effects.band_limit(wav, RATE, low, high)
    inner = slice(RATE // 2, -RATE // 2)  # off the ends, which are steps
    window = np.hanning(3 * RATE)
    before, after = (np.abs(np.fft.rfft(x[inner] * window)) ** 2 for x in (wav, out))
    hertz = np.fft.rfftfreq(3 * RATE, 1 / RATE)

    def change(start, stop):
        band = (hertz >= start) & (hertz < stop)
        return 10 * np.log10(after[band].sum() / before[band].sum())

    assert change(high + effects.TRANSITION, RATE / 2) < -50  # 200 Hz are at most 10 % of the cutoffs there are
    assert change(low, high) == pytest.approx(0, abs=0.1)
    if low:
        assert change(0, low - effects.TRANSITION) < -50
    assert len(out) == len(wav) and lag(wav[:RATE], out[:RATE]) == 0


@pytest.mark.parametrize("factor", [0.9, 1.1, 1.25])
def test_speed_changes_length_and_pitch(factor):
    tone = np.sin(2 * np.pi * 1000 * np.arange(2 * RATE) / RATE).astype(np.float32)
    out = effects.speed(tone, factor)
    assert len(out) == int(np.ceil(2 * RATE / factor)) and out.dtype == np.float32
    pitch = np.argmax(np.abs(np.fft.rfft(out * np.hanning(len(out))))) * RATE / len(out)
    assert pitch == pytest.approx(1000 * factor, abs=1)


def test_speed_in_the_chain_keeps_the_asked_length():
    augment = Augment(AugmentConfig(speed_probability=1.0, speed_factors=(1.25,)), RATE)
    tone = np.sin(2 * np.pi * 1000 * np.arange(2 * RATE) / RATE).astype(np.float32) * 0.5
    assert augment.source_length(RATE) == 20_000
    out = augment(tone[:20_000], np.random.default_rng(0), RATE)
    np.testing.assert_array_equal(out, effects.speed(tone[:20_000], 1.25))
    looped = augment(tone[:RATE], np.random.default_rng(0))
    np.testing.assert_array_equal(looped[12_800:], looped[: RATE - 12_800])
    assert Augment(AugmentConfig(), RATE).source_length(RATE) == RATE


def test_level_is_that_of_active_speech_without_offset_and_never_clips(speech):
    quiet = np.concatenate([speech, np.zeros(RATE, np.float32)]) * 0.3 + np.float32(0.05)
    out = effects.set_level(quiet, -30.0, RATE)
    assert 10 * np.log10(effects.active_power(out, RATE)) == pytest.approx(-30, abs=0.1)
    assert abs(out.mean()) < 1e-6
    assert np.abs(effects.set_level(speech, 0.0, RATE)).max() == pytest.approx(0.99, abs=1e-3)


def test_clipping_cuts_the_peaks_only(speech):
    out = effects.clip(speech, 6.0)
    limit = np.abs(speech).max() * 10 ** (-6 / 20)
    assert np.abs(out).max() == pytest.approx(limit) and (out != speech).any()
    inside = np.abs(speech) < limit * 0.999
    np.testing.assert_array_equal(out[inside], speech[inside])


def test_mulaw_has_the_resolution_of_eight_bits(speech):
    out = effects.mulaw(speech)
    ramp = effects.mulaw(np.linspace(-1, 1, 100_001, dtype=np.float32))
    assert len(np.unique(ramp)) == 255 and np.abs(ramp).max() == pytest.approx(1, abs=1e-6)
    assert 30 < 10 * np.log10(power(speech) / power(out - speech)) < 42  # about 38 dB whatever the level


@pytest.mark.parametrize("name", ["mulaw", *effects.FILE_CODECS])
def test_file_codecs_are_lossy_but_keep_length_and_place(speech, name):
    augment = Augment(AugmentConfig(file_codec_probability=1.0, file_codecs=(name,)), RATE)
    rng = np.random.default_rng(0)
    for num_samples in (RATE, RATE - 123):
        wav = speech[:num_samples]
        out = augment(wav, rng)
        assert len(out) == num_samples and out.dtype == np.float32 and not np.array_equal(out, wav)
        assert abs(lag(wav, out)) <= 1  # Opus at its lowest rates bends the phase by a fraction of a sample
        assert np.corrcoef(wav, out)[0, 1] > 0.9


def test_the_neural_codec_is_run_at_any_number_of_levels(speech, tmp_path):
    config = esc_live.tiny().model
    torch.manual_seed(0)
    model = MODELS["esc_live"][0](config).eval()
    checkpoint.save(tmp_path / "model", model, kind="esc_live", config=config, card="A model without training.")
    options = AugmentConfig(neural_codec_probability=1.0, neural_codec=str(tmp_path / "model"))
    augment, rng = Augment(options, RATE), np.random.default_rng(0)
    wav = torch.from_numpy(speech)[None]
    expected = [model.decode(model.encode(wav, levels=k), RATE)[0].numpy() for k in range(1, config.levels + 1)]
    seen = {next(k for k, e in enumerate(expected) if np.allclose(e, out, atol=1e-6))
            for out in (augment(speech, rng) for _ in range(12))}  # fmt: skip
    assert len(seen) >= 3
    with pytest.raises(ConfigError, match="neural_codec works at 16000 Hz"):
        Augment(options, 8_000)


def test_probability_zero_returns_the_input_bit_for_bit(speech, everything):
    off = dataclasses.replace(everything.config, **dict.fromkeys(ALL, 0.0))
    for config in (AugmentConfig(), off):
        out = Augment(config, RATE)(speech, np.random.default_rng(0))
        np.testing.assert_array_equal(out, speech)
    loud = speech * 100
    np.testing.assert_array_equal(Augment(off, RATE)(loud, np.random.default_rng(0)), loud)


@pytest.mark.parametrize("name", sorted(MODEL_FREE))
def test_each_effect_is_switched_by_its_own_probability(speech, everything, name):
    off = dict.fromkeys(ALL, 0.0)
    config = dataclasses.replace(everything.config, **off | {name: 0.5}, speed_factors=(0.9,))
    augment, rng = Augment(config, RATE, everything.babble), np.random.default_rng(0)
    changed = sum(not np.array_equal(augment(speech, rng), speech) for _ in range(24))
    assert 4 <= changed <= 20  # 0.9999 of fair draws


def test_the_result_depends_on_crop_and_random_state_alone(speech, everything):
    kept = speech.copy()
    first = everything(speech, np.random.default_rng(5))
    other = everything(speech, np.random.default_rng(6))
    copy = pickle.loads(pickle.dumps(everything))  # as worker processes get it
    np.testing.assert_array_equal(copy(speech, np.random.default_rng(5)), first)
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(speech, kept)


@settings(max_examples=40, deadline=None)
@given(
    num_samples=st.integers(1, 3_000),
    gain=st.sampled_from([0.0, 1e-30, 1e-4, 1.0, 30.0]),
    constant=st.booleans(),
    seed=st.integers(0, 2**32),
)
@example(num_samples=1, gain=1.0, constant=True, seed=0)
def test_output_is_finite_float32_of_the_same_length_within_full_scale(everything, num_samples, gain, constant, seed):
    rng = np.random.default_rng(seed)
    wav = np.ones(num_samples) if constant else rng.uniform(-1, 1, num_samples)
    out = everything((wav * gain).astype(np.float32), rng)
    assert out.shape == (num_samples,) and out.dtype == np.float32
    assert np.isfinite(out).all() and np.abs(out).max() <= 1


def test_configurations_survive_json(everything):
    restored = AugmentConfig(**json.loads(json.dumps(dataclasses.asdict(everything.config))))
    assert json.dumps(dataclasses.asdict(restored)) == json.dumps(dataclasses.asdict(everything.config))


def test_what_an_effect_lacks_is_named(pools, caplog):
    (pools / "empty").mkdir()
    (pools / "other.csv").write_text("file\nx.wav\n")
    for paths, message in [
        ((), "noise_paths: no recording"),
        ((str(pools / "empty"),), "noise_paths: no recording"),
        ((str(pools / "gone"),), "noise_paths: .*gone does not exist"),
        ((str(pools / "other.csv"),), "no column 'path'"),
        ((str(pools / "broken.wav"),), "noise_paths: no recording"),
    ]:
        with pytest.raises(ConfigError, match=message):
            Augment(AugmentConfig(noise_probability=0.1, noise_paths=paths), RATE)
    assert "broken.wav" in caplog.text
    with pytest.raises(ConfigError, match="reverb_paths"):
        Augment(AugmentConfig(reverb_probability=0.1, reverb_paths=(str(pools / "empty"),)), RATE)
    with pytest.raises(ConfigError, match="babble"):
        Augment(AugmentConfig(babble_probability=0.1), RATE)
    with pytest.raises(ConfigError, match="neural_codec is empty"):
        Augment(AugmentConfig(neural_codec_probability=0.1), RATE)
    with pytest.raises(ConfigError, match="band_limit up to 7500 Hz"):
        Augment(AugmentConfig(band_limit_probability=0.1), 8_000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise_probability": 1.1}, "noise_probability must be 0 to 1"),
        ({"noise_snr": (9.0, 3.0)}, "noise_snr must be two numbers"),
        ({"noise_snr": (-float("inf"), 3.0)}, "noise_snr must be two numbers"),
        ({"reverb_rt60": (0.0, 1.0)}, "reverb_rt60 must be positive"),
        ({"level_dbfs": (-3.0, 3.0)}, "level_dbfs"),
        ({"speed_factors": ()}, "speed_factors"),
        ({"file_codecs": ("amr",)}, "some of mp3, mulaw, opus, vorbis"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        AugmentConfig(**options)
