import io
import logging
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import audio
from engine.errors import AudioError


def tones(num_samples: int, sample_rate: int, channels: int = 1) -> torch.Tensor:
    """(C, N): a different pair of tones per channel, well inside every codec's band and below full scale."""
    time = torch.arange(num_samples, dtype=torch.float64) / sample_rate
    pitches = 220 * (1 + torch.arange(channels, dtype=torch.float64)[:, None])
    return (0.4 * torch.sin(2 * torch.pi * pitches * time) + 0.2 * torch.sin(6.5 * pitches * time)).float()


def snr(reference: torch.Tensor, estimate: torch.Tensor) -> float:
    return float(10 * torch.log10(reference.square().sum() / (reference - estimate).square().sum()))


# name, container, encoding, rate, channels, least SNR of what comes back (lossy ones decide)
FILES = [
    ("stereo.mp3", "MP3", "MPEG_LAYER_III", 44100, 2, 20),
    ("mono24.flac", "FLAC", "PCM_24", 48000, 1, 120),
    ("stereo.ogg", "OGG", "VORBIS", 22050, 2, 15),
    ("mono.opus", "OGG", "OPUS", 48000, 1, 10),
    ("float.wav", "WAV", "FLOAT", 16000, 3, 140),
    ("telephone.wav", "WAV", "ULAW", 8000, 1, 25),
    ("unsigned.wav", "WAV", "PCM_U8", 11025, 2, 30),
    ("long_integers.wav", "WAV", "PCM_32", 96000, 1, 120),
]


@pytest.mark.parametrize(("name", "container", "encoding", "rate", "channels", "least"), FILES)
def test_load_reads_what_others_wrote(tmp_path, name, container, encoding, rate, channels, least):
    wav = tones(rate + 7, rate, channels)
    soundfile.write(tmp_path / name, wav.T.numpy(), rate, subtype=encoding, format=container)

    loaded, native = audio.load(tmp_path / name)

    assert (native, loaded.dtype, loaded.shape) == (rate, torch.float32, wav.shape)
    assert snr(wav, loaded) > least
    info = audio.probe(tmp_path / name)
    assert info == audio.AudioInfo(rate, rate + 7, channels, f"{container} {encoding}")
    assert info.duration == pytest.approx(1 + 7 / rate)
    # At the model's rate: the length is the ceiling, the sound the same tones.
    at_16k, native = audio.load(tmp_path / name, 16000, mono=True)
    assert (native, at_16k.shape) == (rate, (1, math.ceil((rate + 7) * 16000 / rate)))
    middle = slice(2000, 14000)  # the ends ring: the tones start and stop at once
    expected = tones(at_16k.shape[1], 16000, channels).mean(0)
    assert snr(expected[middle], at_16k[0, middle]) > min(least, 40)


@pytest.mark.parametrize("num_samples", [1, 3, 17, 70001])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_a_saved_file_comes_back_sample_by_sample(tmp_path, suffix, channels, num_samples):
    generator = torch.Generator().manual_seed(num_samples)
    pcm = torch.randint(-32768, 32768, (channels, num_samples), generator=generator, dtype=torch.int16)
    audio.save(tmp_path / f"a.{suffix}", audio.from_pcm16(pcm), 44100)

    wav, rate = audio.load(tmp_path / f"a.{suffix}")

    assert rate == 44100
    assert torch.equal(audio.to_pcm16(wav), pcm)
    assert torch.equal(wav * 32768, pcm.float())


@pytest.mark.parametrize(
    ("name", "subtype", "error"),
    [("a.wav", "PCM_24", 2**-24), ("a.flac", "PCM_24", 2**-24), ("a.wav", "PCM_32", 2**-25), ("a.wav", "FLOAT", 0)]
    + [("a.wav", "PCM_U8", 2**-8), ("a.wav", "DOUBLE", 0)],
)
def test_subtypes_keep_their_precision(tmp_path, name, subtype, error):
    wav = tones(5000, 16000, 2)
    audio.save(tmp_path / name, wav, 16000, subtype=subtype)
    assert audio.probe(tmp_path / name).format.endswith(subtype)
    assert (audio.load(tmp_path / name)[0] - wav).abs().max() <= error * 1.001


def test_a_subtype_is_the_same_in_lower_case(tmp_path):
    loud = torch.tensor([[0.5, 1.5, -2.0]])
    audio.save(tmp_path / "a.wav", loud, 16000, subtype="float")
    assert torch.equal(audio.load(tmp_path / "a.wav")[0], loud)
    audio.save(tmp_path / "a.ogg", tones(16000, 44100), 44100, subtype="opus")
    assert audio.probe(tmp_path / "a.ogg") == audio.AudioInfo(48000, 17415, 1, "OGG OPUS")


@pytest.mark.parametrize(
    ("name", "rate", "written"),
    [("a.opus", 16000, 16000), ("a.opus", 11025, 12000), ("a.opus", 44100, 48000), ("a.opus", 96000, 48000)]
    + [("a.mp3", 44100, 44100), ("a.mp3", 9000, 11025), ("a.mp3", 96000, 48000), ("a.ogg", 9999, 9999)]
    + [("a.ogg", 192000, 192000), ("a.ogg", 200001, 192000), ("a.ogg", 384000, 192000)],
)
def test_lossy_files_are_written_at_a_rate_they_know(tmp_path, name, rate, written):
    wav = tones(rate, rate)
    audio.save(tmp_path / name, wav, rate)
    info = audio.probe(tmp_path / name)
    assert (info.sample_rate, info.num_samples) == (written, written)
    back, _ = audio.load(tmp_path / name, rate)
    middle = slice(rate // 4, rate // 2)
    assert back.shape == wav.shape
    assert snr(wav[:, middle], back[:, middle]) > 8


def test_save_accepts_one_channel_without_its_axis_and_blocks(tmp_path):
    wav = tones(70000, 16000)
    audio.save(tmp_path / "whole.flac", wav[0], 16000)
    audio.save(tmp_path / "blocks.flac", (block for block in wav[0].split(999)), 16000)
    assert (tmp_path / "whole.flac").read_bytes() == (tmp_path / "blocks.flac").read_bytes()


def test_save_clips_with_a_warning(tmp_path, caplog):
    loud = torch.tensor([[0.5, 1.5, -2.0, 1.0, -1.0]])
    with caplog.at_level(logging.WARNING):
        audio.save(tmp_path / "a.wav", loud, 16000)
    assert "2 samples beyond full scale" in caplog.text
    assert torch.equal(
        audio.load(tmp_path / "a.wav")[0] * 32768, torch.tensor([[16384.0, 32767, -32768, 32767, -32768]])
    )
    caplog.clear()
    audio.save(tmp_path / "float.wav", loud, 16000, subtype="FLOAT")
    assert not caplog.text
    assert torch.equal(audio.load(tmp_path / "float.wav")[0], loud)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.wav", None, "no such file"),
        ("empty.wav", b"", "is empty"),
        ("text.wav", b"This is a letter, not a recording.\n" * 40, "not audio"),
        ("cut.flac", b"fLaC\x00\x00\x00\x22", "not audio"),
        ("noise.mp3", b"\x00\x01" * 500, "not audio"),
        ("samples.raw", b"\x00\x01" * 500, "raw samples"),
    ],
)
@pytest.mark.parametrize("read", [audio.load, audio.probe, lambda path: list(audio.blocks(path))])
def test_what_is_not_audio_is_a_clear_error(tmp_path, read, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(AudioError, match=f"{name}.*{message}"):
        read(tmp_path / name)


@pytest.mark.parametrize("read", [audio.load, audio.probe, lambda path: list(audio.blocks(path))])
def test_a_directory_and_a_file_without_samples_are_clear_errors(tmp_path, read):
    with pytest.raises(AudioError, match="is a directory"):
        read(tmp_path)
    soundfile.write(tmp_path / "none.wav", np.zeros((0, 2)), 16000)
    with pytest.raises(AudioError, match="holds no samples"):
        read(tmp_path / "none.wav")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_found_where_they_are(tmp_path, value):
    wav = tones(200_000, 16000, 2)
    wav[1, 160_000] = value
    soundfile.write(tmp_path / "bad.wav", wav.T.numpy(), 16000, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"NaN or infinity at sample 160000 \(10.000 s\)"):
        audio.load(tmp_path / "bad.wav")
    with pytest.raises(AudioError, match="holds NaN or infinity"):
        audio.save(tmp_path / "out.wav", wav, 16000)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.wav"]


@pytest.mark.parametrize("name", ["short.wav", "short.mp3", "short.ogg", "short.opus"])
def test_a_file_cut_short_gives_what_is_there(tmp_path, name):
    hiss = 0.2 * torch.randn(1, 200_000, generator=torch.Generator().manual_seed(0))
    audio.save(tmp_path / name, hiss, 16000)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    wav, _ = audio.load(tmp_path / name)
    assert 70_000 < wav.shape[1] < 110_000


def test_a_damaged_flac_says_where(tmp_path):
    audio.save(tmp_path / "a.flac", 0.3 * torch.randn(1, 200_000), 16000)
    data = bytearray((tmp_path / "a.flac").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 20_000] = bytes(20_000)
    (tmp_path / "a.flac").write_bytes(data)
    with pytest.raises(AudioError, match=r"a.flac is damaged after \d+\.\d+ s"):
        audio.load(tmp_path / "a.flac")


@pytest.mark.parametrize(
    ("target", "wav", "rate", "message"),
    [
        ("a.m4a", torch.zeros(1, 9), 16000, "must end in one of"),
        ("nowhere/a.wav", torch.zeros(1, 9), 16000, "no directory"),
        ("a.wav", torch.zeros(1, 0), 16000, "no samples"),
        ("a.wav", iter([]), 16000, "no samples"),
        ("a.wav", torch.zeros(1, 9, dtype=torch.int16), 16000, "floating point"),
        ("a.wav", torch.zeros(1, 2, 9), 16000, "floating point"),
        ("a.wav", np.zeros(9, np.float32), 16000, "got ndarray; torch.from_numpy"),
        ("a.wav", iter([torch.zeros(9), np.zeros((1, 9))]), 16000, "got ndarray; torch.from_numpy"),
        ("a.wav", iter([torch.zeros(1, 9), torch.zeros(2, 9)]), 16000, "1 channels, N"),
        ("a.wav", torch.zeros(1, 9), 0, "0 Hz is impossible"),
        ("a.flac", torch.zeros(9, 9), 16000, "FLAC PCM_16 with 9 channel"),
        ("a.mp3", torch.zeros(3, 9), 16000, "MP3 MPEG_LAYER_III with 3 channel"),
        ("a.ogg", torch.zeros(256, 9), 16000, "Vorbis has at most 255 channels, not 256"),
    ],
)
def test_what_cannot_be_written_is_a_clear_error_and_leaves_nothing(tmp_path, target, wav, rate, message):
    with pytest.raises(AudioError, match=message):
        audio.save(tmp_path / target, wav, rate)
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_followed_and_kept(tmp_path):
    (tmp_path / "data").write_bytes(b"old")
    (tmp_path / "link.flac").symlink_to("data")
    audio.save(tmp_path / "link.flac", torch.ones(1, 3) / 2, 16000)
    assert (tmp_path / "link.flac").is_symlink()
    assert audio.probe(tmp_path / "data").format == "FLAC PCM_16"


def test_unknown_subtype_directory_device_and_oversize_are_refused(tmp_path, monkeypatch):
    wav = torch.zeros(1, 90)
    with pytest.raises(AudioError, match="PCM_12"):
        audio.save(tmp_path / "a.wav", wav, 16000, subtype="PCM_12")
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(AudioError, match="is a directory"):
        audio.save(tmp_path / "folder.wav", wav, 16000)
    (tmp_path / "null.wav").symlink_to("/dev/null")
    with pytest.raises(AudioError, match="not a regular file"):
        audio.save(tmp_path / "null.wav", wav, 16000)
    monkeypatch.setattr(audio, "RIFF_LIMIT", 179)
    with pytest.raises(AudioError, match="4 GiB"):
        audio.save(tmp_path / "a.wav", wav, 16000)
    audio.save(tmp_path / "a.wav", wav[:, :89], 16000)


def test_an_interrupted_save_leaves_the_old_file(tmp_path):
    audio.save(tmp_path / "a.wav", torch.ones(1, 5) / 2, 16000)

    def blocks():
        yield torch.zeros(1, 100_000)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audio.save(tmp_path / "a.wav", blocks(), 16000)
    assert torch.equal(audio.load(tmp_path / "a.wav")[0], torch.ones(1, 5) / 2)
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


def test_standard_output_is_wav(monkeypatch):
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=out))
    audio.save("-", torch.full((2, 5), 0.25), 8000)
    assert out.getvalue()[:4] == b"RIFF"
    wav, rate = audio.load(io.BytesIO(out.getvalue()))
    assert rate == 8000
    assert torch.equal(wav, torch.full((2, 5), 0.25))


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3", "a.ogg"])
@pytest.mark.parametrize(("rate", "seconds"), [(None, 0.5), (16000, 1.0), (48000, 0.013), (16000, 60.0)])
def test_blocks_joined_equal_load(tmp_path, name, rate, seconds):
    audio.save(tmp_path / name, tones(150_001, 44100, 2), 44100)
    expected, _ = audio.load(tmp_path / name, rate)
    blocks = list(audio.blocks(tmp_path / name, rate, seconds))
    assert torch.equal(torch.cat(blocks, dim=1), expected)
    size = round(seconds * (rate or 44100))
    assert all(block.shape[1] == size for block in blocks[:-1])
    assert 0 < blocks[-1].shape[1] <= size


def test_blocks_mix_and_refuse_nothing_long(tmp_path):
    audio.save(tmp_path / "a.wav", tones(50_000, 8000, 2), 8000)
    expected, _ = audio.load(tmp_path / "a.wav", 16000, mono=True)
    assert torch.equal(torch.cat(list(audio.blocks(tmp_path / "a.wav", 16000, 1.5, mono=True)), dim=1), expected)
    with pytest.raises(AudioError, match="longer blocks"):
        list(audio.blocks(tmp_path / "a.wav", 16000, 0.0))


RATES = st.one_of(st.sampled_from([8000, 11025, 16000, 22050, 24000, 44100, 48000]), st.integers(1000, 192_000))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 5000), RATES, RATES)
def test_sample_counts_survive_any_rates(num_samples, from_rate, to_rate):
    wav = torch.ones(2, num_samples)
    there = audio.resample(wav, from_rate, to_rate)
    assert there.shape == (2, -(-num_samples * to_rate // from_rate))
    assert audio.resample(there, to_rate, from_rate, num_samples=num_samples).shape == wav.shape


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=8), RATES, RATES)
def test_resampling_in_pieces_equals_resampling_at_once(sizes, from_rate, to_rate):
    wav = torch.randn(2, sum(sizes), generator=torch.Generator().manual_seed(1))
    resampler = audio.Resampler(from_rate, to_rate, 2)
    pieces = [resampler.push(piece) for piece in wav.split(sizes, dim=1)] + [resampler.flush()]
    assert torch.equal(torch.cat(pieces, dim=1), audio.resample(wav, from_rate, to_rate))


@pytest.mark.parametrize(("from_rate", "to_rate"), [(44100, 16000), (8000, 16000), (16000, 48000), (16000, 11025)])
def test_resampling_keeps_the_sound_in_place(from_rate, to_rate):
    wav = tones(from_rate, from_rate)
    out = audio.resample(wav, from_rate, to_rate)
    middle = slice(to_rate // 8, -to_rate // 8)
    assert snr(tones(to_rate, to_rate)[:, middle], out[:, middle]) > 80


def test_resampling_removes_what_the_lower_rate_cannot_hold():
    time = torch.arange(48000, dtype=torch.float64) / 48000
    hiss = (0.5 * torch.sin(2 * torch.pi * 11000 * time)).float()
    assert audio.resample(hiss, 48000, 16000)[1000:-1000].abs().max() < 1e-4


@pytest.mark.parametrize(("rate", "channels"), [(16000, 1), (22050, 2)])
@pytest.mark.parametrize(
    ("suffix", "best", "smallest"), [(".ogg", 0.0, 1.0), (".opus", 0.0, 0.95), (".mp3", 0.0, 0.9), (".flac", 0.0, 1.0)]
)
def test_a_round_trip_in_memory_keeps_shape_and_place(suffix, best, smallest, rate, channels):
    wav = tones(rate + 11, rate, channels)
    fine, coarse = (audio.round_trip(wav, rate, suffix, level) for level in (best, smallest))
    assert fine.shape == coarse.shape == wav.shape
    inner = slice(rate // 10, -rate // 10)
    ratios = [snr(wav[:, inner], out[:, inner]) for out in (fine, coarse)]
    assert ratios[0] > 20 and ratios[1] > 8  # a shift of one sample alone leaves about 15 dB
    if suffix == ".flac":
        assert torch.equal(fine, coarse) and torch.equal(fine, audio.from_pcm16(audio.to_pcm16(wav)))
    else:
        assert ratios[1] < ratios[0]
    for num_samples in (1, 100):
        assert audio.round_trip(wav[0, :num_samples], rate, suffix).shape == (num_samples,)


def test_a_round_trip_refuses_what_there_is_not():
    with pytest.raises(AudioError, match="no format '.aac'"):
        audio.round_trip(torch.zeros(9), 16000, ".aac")
    with pytest.raises(AudioError, match="cannot be written"):
        audio.round_trip(torch.zeros(9), 16000, ".mp3", 1.0)


@pytest.mark.parametrize("rate", [0, -8000])
@pytest.mark.parametrize("read", [audio.load, lambda *options: list(audio.blocks(*options))])
def test_no_rate_is_not_the_native_one(recordings, read, rate):
    with pytest.raises(AudioError, match=f"{rate} Hz is impossible"):
        read(recordings[0], rate)


def test_resample_shapes_types_and_lengths():
    wav = torch.randn(2, 3, 100, dtype=torch.float64)
    out = audio.resample(wav, 8000, 16000)
    assert (out.shape, out.dtype) == ((2, 3, 200), torch.float64)
    assert torch.equal(out[1, 2], audio.resample(wav[1, 2], 8000, 16000))
    longer = audio.resample(wav, 8000, 16000, num_samples=203)
    assert torch.equal(longer[..., :200], out) and not longer[..., 200:].any()
    same = audio.resample(wav.float(), 8000, 8000)
    assert torch.equal(same, wav.float()) and same.data_ptr() != wav.data_ptr()
    with pytest.raises(AudioError, match="from_pcm16"):
        audio.resample(torch.zeros(9, dtype=torch.int16), 8000, 16000)
    with pytest.raises(AudioError, match="-1 Hz"):
        audio.resample(wav, 8000, -1)


def test_pcm16_rounds_clips_and_inverts():
    every = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16)
    assert torch.equal(audio.to_pcm16(audio.from_pcm16(every)), every)
    assert audio.to_pcm16(torch.tensor([2.0, -2.0, 0.6 / 32768, 0.4 / 32768])).tolist() == [32767, -32768, 1, 0]


def test_the_recordings_are_speech_at_a_usable_level(recordings: list[Path]):
    for path in recordings:
        wav, rate = audio.load(path)
        assert rate >= 16000
        assert 1 < wav.shape[1] / rate < 30
        assert 0.005 < wav.square().mean().sqrt() < 0.5
