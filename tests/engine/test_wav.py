"""Wav headers that libsndfile alone takes wrongly: what was recorded comes out, and what is missing is said."""

import io
import logging
import os
import struct

import pytest
import soundfile
import torch

from engine import audio
from engine.errors import AudioError
from engine.wav import find_data, rewritten

PCM_16 = (1, 1, 16000, 32000, 2, 16)


def header(size, fmt=PCM_16, riff=36, before=b""):
    packed = struct.pack("<HHIIHH", *fmt)
    return b"RIFF" + struct.pack("<I", riff) + b"WAVE" + before + b"fmt \x10\0\0\0" + packed + b"data" + size


def noise(shape, scale, seed=0):
    """Integers of 24 bits (n, C)."""
    return torch.randint(-scale, scale, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.int32)


def padded(integers, upper, riff=36, announced=None):
    """What `arecord -f S24_LE` writes: 24 bits in the lower bytes of 32, `upper` the sign or zeros above."""
    rows, channels = integers.shape
    words = integers if upper == "sign" else integers & 0xFFFFFF
    data = words.numpy().astype("<i4").tobytes()
    size = struct.pack("<I", len(data) if announced is None else announced)
    return header(size, (1, channels, 48000, 48000 * 4 * channels, 4 * channels, 24), riff) + data


@pytest.mark.parametrize("upper", ["sign", "zeros"])
@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize(
    "scale", [2**23, 2**8]
)  # libsndfile recognises loud ones alone, and takes those as 48 dB lower
def test_24_bits_in_words_of_32_are_what_was_recorded(tmp_path, scale, channels, upper):
    integers = noise((70_001, channels), scale)
    (tmp_path / "a.wav").write_bytes(padded(integers, upper))
    expected = integers.T.float() / 2**23
    for source in (tmp_path / "a.wav", io.BytesIO(padded(integers, upper))):
        assert torch.equal(audio.load(source)[0], expected)
    assert audio.probe(tmp_path / "a.wav") == audio.AudioInfo(48000, 70_001, channels, "WAV PCM_32")
    assert torch.equal(torch.cat(list(audio.blocks(tmp_path / "a.wav", block_seconds=0.1)), dim=1), expected)


def test_what_follows_the_samples_stays_out_and_a_part_of_one_is_dropped(tmp_path):
    integers = noise((500, 1), 2**23)
    data = padded(integers, "sign")
    for changed, count in (
        (data + b"LIST\x04\0\0\0junk", 500),
        (data[:-3], 499),
        (padded(integers, "sign", 0, 0), 500),
    ):
        (tmp_path / "a.wav").write_bytes(changed)
        assert torch.equal(audio.load(tmp_path / "a.wav")[0], integers[:count].T.float() / 2**23)


@pytest.mark.parametrize("fmt", ["PCM_16", "PCM_24", "FLOAT", "ULAW"])
@pytest.mark.parametrize("riff", [0, 8, 36, 0xFFFFFFFF])
def test_a_recorder_that_was_killed_leaves_what_it_recorded(tmp_path, riff, fmt, caplog):
    wav = 0.1 * torch.randn(2, 5000, generator=torch.Generator().manual_seed(0))
    soundfile.write(tmp_path / "a.wav", wav.T.numpy(), 16000, subtype=fmt)
    expected = audio.load(tmp_path / "a.wav")[0]
    data = bytearray((tmp_path / "a.wav").read_bytes())
    at = data.index(b"data") + 4
    data[4:8], data[at : at + 4] = struct.pack("<I", riff), bytes(4)
    end = at + 4 + expected.numel() * {"PCM_16": 2, "PCM_24": 3, "FLOAT": 4, "ULAW": 1}[fmt]
    (tmp_path / "a.wav").write_bytes(data[:end])
    for source in (tmp_path / "a.wav", io.BytesIO(data[:end])):
        assert torch.equal(audio.load(source)[0], expected)
    assert audio.probe(tmp_path / "a.wav") == audio.AudioInfo(16000, 5000, 2, f"WAV {fmt}")
    assert not caplog.text


def test_a_closed_file_without_samples_holds_none(tmp_path):
    for data in (b"", b"LIST\x04\0\0\0junk"):
        (tmp_path / "a.wav").write_bytes(header(bytes(4), riff=36 + len(data)) + data)
        with pytest.raises(AudioError, match="holds no samples"):
            audio.load(tmp_path / "a.wav")
    (tmp_path / "a.wav").write_bytes(header(bytes(4), riff=0))  # killed before the first
    with pytest.raises(AudioError, match="holds no samples"):
        audio.load(tmp_path / "a.wav")


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "IMA_ADPCM"])
def test_a_wav_file_cut_short_is_said(tmp_path, caplog, subtype):
    soundfile.write(tmp_path / "a.wav", 0.1 * torch.randn(20_000).numpy(), 16000, subtype=subtype)
    data = (tmp_path / "a.wav").read_bytes()
    announced, cut = len(data) - data.index(b"data") - 8, data[: len(data) // 2 + 1]
    with caplog.at_level(logging.WARNING):
        assert audio.load(tmp_path / "a.wav")[0].shape == (1, audio.probe(tmp_path / "a.wav").num_samples)
        assert not caplog.text
        for source in (tmp_path / "a.wav", io.BytesIO(cut)):
            (tmp_path / "a.wav").write_bytes(cut)
            caplog.clear()
            assert 0 < sum(block.shape[1] for block in audio.blocks(source)) < 20_000
            missing = announced - len(data) + len(cut)
            assert f"is cut short: it announces {announced} bytes of samples, {missing} are there" in caplog.text


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFF0000])
def test_lengths_that_mean_until_the_end_are_no_cut(tmp_path, caplog, size):
    (tmp_path / "a.wav").write_bytes(header(struct.pack("<I", size)) + bytes(2000))
    assert audio.load(tmp_path / "a.wav")[0].shape == (1, 1000) and not caplog.text


def test_the_samples_are_found_behind_other_parts_and_nothing_is_found_in_damage():
    words = b"LIST\x03\0\0\0abc\0" + b"junk" + struct.pack("<I", 200_000) + bytes(200_000)
    file = io.BytesIO(b"before" + header(b"\x08\0\0\0", before=words) + bytes(8))
    file.seek(6)
    data = find_data(file)
    assert (data.start, data.announced, data.present, data.is_cut_short) == (6 + 44 + len(words), 8, 8, False)
    assert rewritten(file, data) is None and file.tell() == 6
    whole = header(b"\x08\0\0\0") + bytes(8)
    for damaged in (
        b"",
        whole[:30],
        whole[:42],
        b"RIFX" + whole[4:],
        whole[:12] + whole[36:],
        whole[:12] + bytes(10**6),
    ):
        assert find_data(io.BytesIO(damaged)) is None


def test_a_rewritten_file_reads_alike_in_any_pieces():
    data = padded(noise((100, 1), 2**23), "sign")
    file = rewritten(io.BytesIO(data), find_data(io.BytesIO(data)))
    whole = file.read()
    assert len(whole) == 44 + 400 and file.read(1) == b"" and file.tell() == 444
    for start in range(0, 444, 5):
        for size in (1, 2, 3, 4, 7, 400):
            assert file.seek(start) == start
            assert file.read(size) == whole[start : start + size]
    assert file.seek(-4, os.SEEK_END) == 440 and file.seek(2, os.SEEK_CUR) == 442
    file.seek(1000)
    assert file.read(4) == b""
