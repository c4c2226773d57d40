"""Samples from pipes: wav of every writer, raw, ragged reads, damage."""

import io
import logging
import struct

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import AudioError
from engine.pcm import PcmFormat, open_stream

RAW = PcmFormat(16000)


class Ragged(io.BytesIO):
    """Gives a few bytes at a time, as a pipe does."""

    def __init__(self, data, sizes=(3, 1, 700)):
        super().__init__(data)
        self.sizes, self.calls = sizes, 0

    def read1(self, size=-1):
        self.calls += 1
        few = self.sizes[self.calls % len(self.sizes)]
        return super().read1(few if size < 0 else min(few, size))


def tone(num_samples=3000, channels=1):
    t = np.arange(num_samples)[:, None] * (1 + np.arange(channels))
    return (0.5 * np.sin(0.05 * t)).astype(np.float32)


def wav_bytes(samples, subtype, rate=44100):
    buffer = io.BytesIO()
    buffer.name = "x.wav"
    soundfile.write(buffer, samples, rate, subtype=subtype, format="WAV")
    return bytearray(buffer.getvalue())


def padded_bytes(samples, rate=44100, upper=0):
    """What `arecord -f S24_LE` writes: 24 bits in the lower bytes of 32, `upper` 0xFF for the sign or 0 above."""
    words = (np.round(samples.astype(np.float64) * 2**23).astype("<i4")).view("<u4") & 0xFFFFFF
    words |= np.where(samples < 0, np.uint32(upper << 24), np.uint32(0))
    channels, data = samples.shape[1], words.astype("<u4").tobytes()
    fmt = struct.pack("<HHIIHH", 1, channels, rate, rate * 4 * channels, 4 * channels, 24)
    parts = b"WAVEfmt \x10\0\0\0" + fmt + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(parts)) + parts


def collect(data, raw=RAW, sizes=(3, 1, 700)):
    form, chunks = open_stream(Ragged(bytes(data), sizes), raw)
    parts = list(chunks)
    return form, torch.cat(parts, dim=1) if parts else torch.zeros(1, 0)


@pytest.mark.parametrize("subtype, digits", [("PCM_16", 4), ("PCM_24", 6), ("PCM_32", 7), ("FLOAT", 7), ("DOUBLE", 7)])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_wav_of_every_kind(subtype, digits, channels):
    samples = tone(channels=channels)
    form, wav = collect(wav_bytes(samples, subtype))
    assert (form.sample_rate, form.channels) == (44100, channels)
    np.testing.assert_allclose(wav[0], samples.mean(1), atol=10.0**-digits)


@pytest.mark.parametrize("upper", [0, 0xFF])
@pytest.mark.parametrize("channels", [1, 2])
def test_wav_with_24_bits_in_words_of_32(channels, upper):
    samples = tone(channels=channels)
    form, wav = collect(padded_bytes(samples, upper=upper))
    assert form == PcmFormat(44100, channels, 24, is_padded=True) and form.frame_bytes == 4 * channels
    np.testing.assert_allclose(wav[0], samples.mean(1), atol=2.0**-23)


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFFFFF - 36, 0x7FFFF000])
def test_sizes_that_writers_into_pipes_put(size):
    data = wav_bytes(tone(), "PCM_16")
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", size)
    assert collect(data)[1].shape == (1, 3000)


def test_a_credible_size_keeps_what_follows_out():
    data = wav_bytes(tone(), "PCM_16") + b"LIST\x04\x00\x00\x00junk"
    assert collect(data)[1].shape == (1, 3000)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=5), st.integers(0, 400))
def test_raw_samples_whatever_the_reads(sizes, count):
    integers = np.random.default_rng(count).integers(-32768, 32768, count, dtype=np.int16)
    if integers.tobytes()[:4] == b"RIFF":
        return
    form, wav = collect(integers.astype("<i2").tobytes(), sizes=sizes)
    assert form == RAW and torch.equal(wav[0] * 32768, torch.from_numpy(integers.astype(np.float32)))


def test_half_a_sample_at_the_end_is_dropped_and_said(caplog):
    with caplog.at_level(logging.WARNING):
        assert collect(b"\x01\x00\x02")[1].shape == (1, 1)
    assert "ends inside a sample (1 of 2 bytes)" in caplog.text


def test_nan_becomes_silence_and_is_said_once(caplog):
    samples = tone()
    samples[[5, 6, 2000]] = [[np.nan], [np.inf], [-np.inf]]
    with caplog.at_level(logging.WARNING):
        wav = collect(wav_bytes(samples, "FLOAT"))[1]
    assert wav.isfinite().all() and not wav[0, [5, 6, 2000]].any() and caplog.text.count("NaN") == 1


@pytest.mark.parametrize(
    "data, message",
    [
        (b"RIFF\0\0\0\0AVI ", "is none"),
        (bytes(wav_bytes(tone(), "PCM_16")[:15]), "ends inside its wav header"),
        (bytes(wav_bytes(tone(), "ULAW")), "not format 7"),
        (b"RIFF\0\0\0\0WAVEdata\0\0\0\0", "before their format"),
        (b"RIFF\0\0\0\0WAVEjunk\xff\xff\xff\xff", "is damaged"),
        (b"RIFF\0\0\0\0WAVEfmt \x02\0\0\0\1\0", "cut short"),
        (
            bytes(wav_bytes(tone(), "PCM_16")).replace(b"\x02\0\x10\0data", b"\x04\0\x10\0data"),
            "16 bits.* 4 bytes a sample",
        ),
        (
            bytes(wav_bytes(tone(), "PCM_24")).replace(b"\x03\0\x18\0data", b"\x08\0\x18\0data"),
            "24 bits.* 8 bytes a sample",
        ),
    ],
)
def test_damaged_headers_are_named(data, message):
    with pytest.raises(AudioError, match=message):
        collect(data)


def test_nothing_at_all():
    form, wav = collect(b"")
    assert form == RAW and wav.shape == (1, 0)
