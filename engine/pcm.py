"""Samples from a pipe as they come: wav with whatever length its header promises, or raw 16-bit PCM.

`sox`, `ffmpeg` and `arecord` cannot go back to fill in a length when they write into a pipe, so the sizes in the header
are 0 or huge; libsndfile wants to know better. Here the data end where the pipe does, or where a credible size says.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from engine.errors import AudioError

log = logging.getLogger(__name__)

UNKNOWN_SIZE = 0x7FFF0000  # sizes from here on, and 0, are what writers into pipes put for "until it ends"
PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
MAX_FMT = 1 << 16
CONTAINERS = (b"fLaC", b"OggS", b"RF64", b"RIFX", b"FORM")  # first bytes of files that are neither wav nor raw samples


class Readable(Protocol):
    """What `sys.stdin.buffer` offers: `read1` returns as soon as there is anything, b"" at the end."""

    def read1(self, size: int = -1, /) -> bytes: ...


@dataclass(frozen=True)
class PcmFormat:
    """How samples lie in the bytes: little endian, channels interleaved."""

    sample_rate: int
    channels: int = 1
    bits: int = 16
    is_float: bool = False
    is_padded: bool = False  # 24 bits in the lower bytes of 32

    @property
    def frame_bytes(self) -> int:
        """Bytes of one sample of all channels."""
        return self.channels * (4 if self.is_padded else self.bits // 8)

    def samples(self, data: bytes) -> Tensor:
        """Whole frames of bytes -> (1, n) float32 at full scale +-1, channels averaged."""
        if self.is_float:
            values = np.frombuffer(data, dtype=f"<f{self.bits // 8}").astype(np.float32)
        elif self.is_padded:  # the shift moves the sign to its place, whatever the upper byte holds
            values = ((np.frombuffer(data, dtype="<i4") << 8) / 2.0**31).astype(np.float32)
        elif self.bits == 24:
            parts = np.frombuffer(data, dtype=np.uint8).reshape(-1, 3)
            wide = np.zeros((len(parts), 4), dtype=np.uint8)
            wide[:, 1:] = parts
            values = (wide.view("<i4")[:, 0] / 2.0**31).astype(np.float32)
        else:
            integers = np.frombuffer(data, dtype=f"<i{self.bits // 8}")
            values = (integers / 2.0 ** (self.bits - 1)).astype(np.float32)
        wav = torch.from_numpy(values).unflatten(0, (-1, self.channels))
        return wav.mean(1)[None]


def open_stream(source: Readable, raw: PcmFormat) -> tuple[PcmFormat, Iterator[Tensor]]:
    """Look at the first bytes: a wav header says its format, anything else is raw samples in the format `raw`.

    Returns the format and the chunks (1, n) as they come. A part of a sample at the end is dropped with a warning, NaN
    and infinity become 0 with a warning: a call must not end because of either. Raises AudioError for a wav header
    that is cut short or says what cannot be read here.
    """
    reader = _Reader(source)
    start = reader.exactly(4)
    if start in CONTAINERS or start[:3] == b"ID3":
        raise AudioError(f"this is no raw sound but a file that begins with {start!r}; wav and raw samples can be read "
                         "from a stream, others after `ffmpeg -i INPUT -f wav -`")  # fmt: skip
    if start != b"RIFF":
        return raw, _chunks(reader.rest(start), raw)
    form, size = _wav_header(reader)
    return form, _chunks(reader.rest(b"", size), form)


class _Reader:
    def __init__(self, source: Readable) -> None:
        self._source = source

    def exactly(self, size: int) -> bytes:
        """Up to `size` bytes, fewer only at the end."""
        data = b""
        while len(data) < size and (more := self._source.read1(size - len(data))):
            data += more
        return data

    def rest(self, start: bytes, size: int | None = None) -> Iterator[bytes]:
        """What came first and then everything as it comes, up to `size` bytes."""
        if start:
            yield start
        while (size is None or size > 0) and (
            data := self._source.read1(1 << 16 if size is None else min(size, 1 << 16))
        ):
            size = None if size is None else size - len(data)
            yield data


def _wav_header(reader: _Reader) -> tuple[PcmFormat, int | None]:
    """Read up to the first sample: the format and the bytes of data, None if not credible."""
    if reader.exactly(8)[4:] != b"WAVE":
        raise AudioError("the stream begins like a wav file, and is none (no WAVE after RIFF)")
    form = None
    while True:
        head = reader.exactly(8)
        if len(head) < 8:
            raise AudioError("the stream ends inside its wav header, before the first sample")
        name, size = head[:4], int.from_bytes(head[4:], "little")
        if name == b"data":
            if form is None:
                raise AudioError("the wav header has samples before their format; is the stream damaged?")
            return form, None if size == 0 or size >= UNKNOWN_SIZE else size
        if size > MAX_FMT:
            raise AudioError(f"the wav header has a part {name!r} of {size:,} bytes before the samples; it is damaged")
        body = reader.exactly(size + size % 2)
        if name == b"fmt ":
            form = _format(body)


class WavFields(NamedTuple):
    """The format part of a wav header; `align` is the bytes of one sample of all channels."""

    kind: int
    channels: int
    rate: int
    align: int
    bits: int

    @property
    def is_padded(self) -> bool:
        """Whether 24 bits lie in words of 32, as `arecord -f S24_LE` writes them."""
        return self.kind == PCM and self.bits == 24 and self.align == 4 * self.channels > 0


def wav_fields(body: bytes) -> WavFields:
    """Read the body of a `fmt ` part, of at least 16 bytes."""
    kind, channels, rate, _, align, bits = struct.unpack_from("<HHIIHH", body)
    if kind == EXTENSIBLE and len(body) >= 26:
        kind = int.from_bytes(body[24:26], "little")
    return WavFields(kind, channels, rate, align, bits)


def _format(body: bytes) -> PcmFormat:
    if len(body) < 16:
        raise AudioError("the wav header is damaged: its format is cut short")
    fields = wav_fields(body)
    kind, channels, rate, align, bits = fields
    known = (kind == PCM and bits in (16, 24, 32)) or (kind == FLOAT and bits in (32, 64))
    fits = align == channels * bits // 8 or fields.is_padded
    if not known or not fits or not channels or not rate:
        raise AudioError(
            f"a live wav stream has 16, 24 or 32 bit integers or floats, not format {kind} with {bits} bits, "
            f"{channels} channels at {rate} Hz, {align} bytes a sample; convert with: ffmpeg -i - -f s16le -"
        )
    return PcmFormat(rate, channels, bits, kind == FLOAT, fields.is_padded)


def _chunks(data: Iterator[bytes], form: PcmFormat) -> Iterator[Tensor]:
    held, warned = b"", False
    for piece in data:
        held += piece
        whole = len(held) - len(held) % form.frame_bytes
        if not whole:
            continue
        wav = form.samples(held[:whole])
        held = held[whole:]
        if form.is_float and not bool(wav.isfinite().all()):
            if not warned:
                log.warning("the stream holds NaN or infinity; such samples are taken as 0")
            warned, wav = True, wav.nan_to_num(0.0, 0.0, 0.0)
        yield wav
    if held:
        log.warning("the stream ends inside a sample (%d of %d bytes), which is dropped", len(held), form.frame_bytes)
