"""Packets in a pipe or a file: a header that names the model, then each packet behind its length.

Transports that keep boundaries (UDP, RTP, data channels of WebRTC) carry the packets alone; see ``docs/packets.md``.
All numbers are big endian:

    magic          4 bytes   8e 45 53 50 ("ESP" behind a byte that no text begins with)
    version        1 byte    1
    groups, bits   1 byte each
    frames         1 byte    frames in a packet, at most
    frame rate     2 bytes   in 0.01 Hz
    sample rate    3 bytes   of the sound that went in
    model          6 bytes   first bytes of the SHA-256 of its weights
    name           1 byte length, up to 13 bytes of UTF-8
    CRC-32         4 bytes   of all before

    packet         2 bytes length (2 to 65,534), then the packet; again and again
    end            2 bytes ff ff, then 8 bytes: samples of the whole sound. It comes before the last packets, so that
                   who decodes knows how much of them is sound. A stream without it was cut off, and is heard to there.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from codec.header import MAX_NAME_BYTES
from codec.packets import HEADER_BYTES, PacketFormat
from engine.errors import BitstreamError, ConfigError

MAGIC = b"\x8eESP"
VERSION = 1
_FIXED = struct.Struct(">4sBBBBH3s6sB")
_END = b"\xff\xff"


@dataclass(frozen=True, kw_only=True)
class StreamHeader:
    """What a stream says before its first packet."""

    model_id: bytes
    model_name: str
    sample_rate: int = 16000
    frame_rate: float = 50.0
    frames_per_packet: int = 1
    num_groups: int = 3
    bits_per_code: int = 10

    def __post_init__(self) -> None:
        sound = 1 <= self.sample_rate < 1 << 24 and 1 <= self.frame_rate <= 655 and 1 <= self.frames_per_packet <= 50
        if not sound or len(self.model_id) != 6 or len(self.model_name.encode()) > MAX_NAME_BYTES:
            raise ConfigError(f"a stream header cannot hold {self}")
        PacketFormat(self.num_groups, self.bits_per_code)

    @property
    def packet_format(self) -> PacketFormat:
        """How its packets are laid out."""
        return PacketFormat(self.num_groups, self.bits_per_code)

    def to_bytes(self) -> bytes:
        """The header as it is written."""
        name = self.model_name.encode()
        fixed = _FIXED.pack(
            MAGIC, VERSION, self.num_groups, self.bits_per_code, self.frames_per_packet, round(100 * self.frame_rate),
            self.sample_rate.to_bytes(3, "big"), self.model_id, len(name),
        )  # fmt: skip
        return fixed + name + zlib.crc32(fixed + name).to_bytes(4, "big")


class PacketWriter:
    """Writes a stream into a binary file or pipe, each packet at once."""

    def __init__(self, file: BinaryIO, header: StreamHeader) -> None:
        self._file = file
        self._write(header.to_bytes())

    def write(self, packet: bytes) -> None:
        """Write one packet."""
        self._write(len(packet).to_bytes(2, "big") + packet)

    def end(self, num_samples: int) -> None:
        """Say how many samples the sound has, once that is known and before the last packets."""
        self._write(_END + num_samples.to_bytes(8, "big"))

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._file.flush()  # a frame that waits in a buffer is a frame late


class PacketReader:
    """Reads a stream: `header` at once, then the packets as they come. `num_samples` is None until the stream says it.

    Raises BitstreamError for what is no stream or ends inside its header. A stream that ends inside a packet is heard
    up to there: `cut_off` is then True.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.header = self._read_header()
        self.num_samples: int | None = None
        self.cut_off = False

    def __iter__(self) -> Iterator[bytes]:
        while size := self._exactly(2):
            body = self._exactly(8 if size == _END else int.from_bytes(size, "big"))
            if len(size) < 2 or len(body) < (8 if size == _END else int.from_bytes(size, "big")):
                self.cut_off = True
                return
            if size == _END:
                self.num_samples = int.from_bytes(body, "big")
            elif len(body) >= HEADER_BYTES:
                yield body
        self.cut_off = self.num_samples is None

    def _exactly(self, size: int) -> bytes:
        """Up to `size` bytes, fewer only at the end: a pipe gives what it has."""
        data = b""
        while len(data) < size and (more := self._file.read(size - len(data))):
            data += more
        return data

    def _read_header(self) -> StreamHeader:
        data = self._exactly(_FIXED.size)
        if not data:
            raise BitstreamError("the stream is empty; `codec stream encode` writes one")
        if not MAGIC.startswith(data[:4]):
            raise BitstreamError(
                f"this is no stream of packets: it begins with {data[:4].hex(' ')}, expected {MAGIC.hex(' ')}"
                + ("; for .esc files there is `codec decode`" if data.startswith(b"\x8eESC") else "")
            )
        if len(data) > 4 and data[4] > VERSION:
            raise BitstreamError(f"this is version {data[4]} of the stream, newer than {VERSION}; update voxcode")
        if len(data) == _FIXED.size:
            data += self._exactly(data[-1] + 4)
        if len(data) < _FIXED.size + 4 or len(data) < _FIXED.size + data[_FIXED.size - 1] + 4:
            raise BitstreamError("the stream ends inside its header")
        if zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "big"):
            raise BitstreamError("the header of the stream is damaged (checksum)")
        _, _, groups, bits, frames, frame_rate, sample_rate, model_id, _ = _FIXED.unpack_from(data)
        try:
            return StreamHeader(
                model_id=model_id, model_name=data[_FIXED.size : -4].decode(), num_groups=groups, bits_per_code=bits,
                sample_rate=int.from_bytes(sample_rate, "big"), frame_rate=frame_rate / 100, frames_per_packet=frames,
            )  # fmt: skip
        except (ConfigError, UnicodeDecodeError) as error:
            raise BitstreamError(f"the header of the stream makes no sense: {error}") from None
