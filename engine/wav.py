"""Wav headers that libsndfile takes wrongly or in silence: lengths never filled in, files cut short, padded samples.

A recorder that is killed leaves 0 as the number of bytes. `arecord -f S24_LE` puts 24 bits into words of 32, and
libsndfile 1.2.2 guesses from the loudness what that is: loud sound comes out 48 dB too quiet, quiet sound as noise.
Such files are shown to it with another header.
"""

from __future__ import annotations

import io
import os
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import numpy as np

from engine.pcm import MAX_FMT, PCM, UNKNOWN_SIZE, wav_fields

MAX_PARTS = 1000  # a file of zeros would be one empty part after the other


@dataclass(frozen=True)
class WavData:
    """What a header says of the samples: their format, the bytes of them that it announces, and those that are there.

    `announced` is None where the writer left it open: the samples end where the file does.
    """

    fmt: bytes
    start: int
    announced: int | None
    present: int
    size_is_zero: bool

    @property
    def is_cut_short(self) -> bool:
        """Whether at least one whole sample is missing."""
        align = max(1, wav_fields(self.fmt).align)
        return self.announced is not None and self.present // align < self.announced // align


def find_data(file: BinaryIO) -> WavData | None:
    """Where the samples of a wav file lie; None if it is no wav file or damaged. `file` stays at its position."""
    start = file.tell()
    try:
        return _find_data(file, start)
    finally:
        file.seek(start)


def rewritten(file: BinaryIO, data: WavData) -> BinaryIO | None:
    """`file` in a form that libsndfile reads rightly; None if it does so as it is."""
    fields = wav_fields(data.fmt)
    if not fields.is_padded and not (data.size_is_zero and data.announced is None):
        return None
    fmt, size = data.fmt, data.present if data.announced is None else min(data.announced, data.present)
    if fields.is_padded:
        size -= size % fields.align
        fmt = struct.pack("<HHIIHH", PCM, fields.channels, fields.rate, fields.rate * fields.align, fields.align, 32)
    # With 8 and 0 as sizes libsndfile takes all that follows as samples, beyond 4 GiB too.
    header = struct.pack("<4sI4s4sI", b"RIFF", 8, b"WAVE", b"fmt ", len(fmt)) + fmt + struct.pack("<4sI", b"data", 0)
    return cast(BinaryIO, _Rewritten(file, header, data.start, size, fields.is_padded))


def _find_data(file: BinaryIO, start: int) -> WavData | None:
    head = file.read(12)
    if head[:4] != b"RIFF" or head[8:] != b"WAVE":
        return None
    end = file.seek(0, os.SEEK_END)
    file.seek(start + len(head))
    fmt = b""
    for _ in range(MAX_PARTS):
        part = file.read(8)
        if len(part) < 8:
            return None
        size, at = int.from_bytes(part[4:], "little"), file.tell()
        if part[:4] == b"data":
            # A closed file may hold nothing but words about it; where the outer size fits, it was closed.
            closed = start + 8 + int.from_bytes(head[4:8], "little") in (end - 1, end)
            is_open = size >= UNKNOWN_SIZE or (size == 0 and not closed)
            return WavData(fmt, at, None if is_open else size, end - at, size == 0) if len(fmt) >= 16 else None
        if part[:4] == b"fmt ":
            fmt = file.read(min(size, MAX_FMT))
        file.seek(at + size + size % 2)
    return None


class _Rewritten(io.RawIOBase):
    """The header given and `size` bytes of `file` from `start` on, where `padded` 24 bits become the upper of 32."""

    def __init__(self, file: BinaryIO, header: bytes, start: int, size: int, padded: bool) -> None:
        self._file, self._header, self._start, self._padded = file, header, start, padded
        self._length = len(header) + size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill all of the buffer unless the end comes: libsndfile takes less as the end."""
        view = memoryview(buffer).cast("B")
        begin, end = self._position, min(self._position + len(view), self._length)
        data = self._header[begin:end]
        if end > len(self._header):
            data += self._samples(max(0, begin - len(self._header)), end - len(self._header))
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _samples(self, begin: int, end: int) -> bytes:
        if begin >= end:  # a read behind the end
            return b""
        if not self._padded:
            self._file.seek(self._start + begin)
            return self._file.read(end - begin)
        first = begin - begin % 4
        self._file.seek(self._start + first)
        words = np.frombuffer(self._file.read(end + -end % 4 - first), dtype="<u4") << np.uint32(8)
        return words.astype("<u4").tobytes()[begin - first : end - first]
