"""Packets for networks that lose some: a few frames of codes behind a header of two bytes. Pure Python and numpy.

``docs/packets.md`` is the specification. Every packet can be decoded on its own; what a receiver must know beforehand
is the model (groups, bits per code) and how many frames a packet has. The header, big endian:

    sequence    10 bits   counts packet slots, modulo 1024; a slot in which nothing is sent counts, too
    levels       3 bits   1 to 7 levels of codes follow; 0: silence, and what follows describes the background
    redundancy   3 bits   0 to 7: the lowest level of that many frames before this packet rides along

Then the codes, most significant bit first: level after level, frame after frame, group after group; then the redundant
ones, oldest frame first; then zero bits to the byte. The frames k of a packet follow from its size: k = floor((8 x
bytes - redundancy x G x b) / (levels x G x b)), because the padding is always shorter than one code.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engine.errors import BitstreamError, ConfigError

HEADER_BYTES = 2
SEQUENCE_MODULUS = 1024
MAX_LEVELS = 7
MAX_REDUNDANCY = 7
MAX_SILENCE_BYTES = 16

Codes = NDArray[np.integer]


def _no_codes() -> Codes:
    return np.zeros((0, 0), dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Packet:
    """`codes` (L, G, k); `redundant` (N, G), the lowest level of the N frames before, oldest first.

    A packet of silence has no codes (None) and a few bytes that describe the background (`codec.silence`).
    """

    sequence: int
    codes: Codes | None
    redundant: Codes = field(default_factory=_no_codes)
    silence: bytes = b""

    @property
    def is_silence(self) -> bool:
        """Whether nobody speaks here."""
        return self.codes is None


@dataclass(frozen=True)
class PacketFormat:
    """What sender and receiver agree on beforehand."""

    num_groups: int = 3
    bits_per_code: int = 10

    def __post_init__(self) -> None:
        if not 1 <= self.num_groups <= 16 or not 8 <= self.bits_per_code <= 16:
            raise ConfigError(
                f"packets hold 1 to 16 groups of codes of 8 to 16 bits, not {self.num_groups} of {self.bits_per_code}"
            )

    def size(self, frames: int, levels: int, redundancy: int = 0) -> int:
        """Bytes of a packet."""
        codes = (frames * levels + redundancy) * self.num_groups
        return HEADER_BYTES + -(-codes * self.bits_per_code // 8)

    def pack(self, packet: Packet) -> bytes:
        """Packet -> bytes. Raises ConfigError for what no packet can hold."""
        if packet.codes is None:
            if len(packet.silence) > MAX_SILENCE_BYTES:
                raise ConfigError(f"a packet of silence has up to {MAX_SILENCE_BYTES} bytes, not {len(packet.silence)}")
            return self._header(packet.sequence, 0, 0) + packet.silence
        levels, groups, frames = packet.codes.shape
        redundancy = len(packet.redundant)
        if groups != self.num_groups or not 1 <= levels <= MAX_LEVELS or frames < 1 or redundancy > MAX_REDUNDANCY:
            raise ConfigError(
                f"a packet holds codes (1 to {MAX_LEVELS} levels, {self.num_groups} groups, frames) and up to "
                f"{MAX_REDUNDANCY} frames of redundancy, not {packet.codes.shape} and {redundancy}"
            )
        values = packet.codes.transpose(0, 2, 1).reshape(-1)
        if redundancy:
            values = np.concatenate([values, packet.redundant.reshape(-1)])
        if int(values.min()) < 0 or int(values.max()) >> self.bits_per_code:
            raise ConfigError(f"codes of {self.bits_per_code} bits are from 0 up, not {values.min()} to {values.max()}")
        bits = (values[:, None].astype(np.uint32) >> np.arange(self.bits_per_code - 1, -1, -1, dtype=np.uint32)) & 1
        return self._header(packet.sequence, levels, redundancy) + np.packbits(bits.astype(np.uint8)).tobytes()

    def unpack(self, data: bytes) -> Packet:
        """Bytes -> packet. Raises BitstreamError for bytes that are no packet of this format, and nothing else."""
        if len(data) < HEADER_BYTES:
            raise BitstreamError(f"a packet has a header of {HEADER_BYTES} bytes, this one has {len(data)} in all")
        head = int.from_bytes(data[:HEADER_BYTES], "big")
        sequence, levels, redundancy = head >> 6, head >> 3 & 7, head & 7
        if levels == 0:
            if redundancy or len(data) > HEADER_BYTES + MAX_SILENCE_BYTES:
                raise BitstreamError("a packet of silence has neither redundancy nor more than a few bytes")
            return Packet(sequence, None, silence=bytes(data[HEADER_BYTES:]))
        frame_bits = self.num_groups * self.bits_per_code
        bits = 8 * (len(data) - HEADER_BYTES)
        frames = (bits - redundancy * frame_bits) // (levels * frame_bits)
        used = (frames * levels + redundancy) * frame_bits
        spread = np.unpackbits(np.frombuffer(data, dtype=np.uint8, offset=HEADER_BYTES))
        if frames < 1 or bits - used >= 8 or spread[used:].any():
            raise BitstreamError(
                f"{len(data)} bytes are no packet of {levels} levels with {redundancy} frames of redundancy; "
                "it was cut short, damaged, or made for another model"
            )
        weights = 1 << np.arange(self.bits_per_code - 1, -1, -1)
        values = spread[:used].reshape(-1, self.bits_per_code).astype(np.int64) @ weights
        count = frames * levels * self.num_groups
        codes = values[:count].reshape(levels, frames, self.num_groups).transpose(0, 2, 1)
        return Packet(sequence, codes, values[count:].reshape(redundancy, self.num_groups))

    @staticmethod
    def _header(sequence: int, levels: int, redundancy: int) -> bytes:
        return ((sequence % SEQUENCE_MODULUS) << 6 | levels << 3 | redundancy).to_bytes(HEADER_BYTES, "big")


def sequence_distance(later: int, earlier: int) -> int:
    """How many slots `later` is after `earlier`, -512 to 511, across the wrap-around."""
    half = SEQUENCE_MODULUS // 2
    return (later - earlier + half) % SEQUENCE_MODULUS - half
