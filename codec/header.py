"""The header of an ``.esc`` file: what a file says about itself.  ``docs/bitstream.md`` is the specification."""

import struct
import zlib
from dataclasses import dataclass

from engine.errors import BitstreamError, ConfigError

MAGIC = b"\x8eESC"  # the first byte is not ASCII (nor valid UTF-8 there), so no text file starts like this
VERSION = 1
MAX_HEADER_SIZE = 48
MAX_NAME_BYTES = 13
CRC_SIZE = 4
_FIXED = struct.Struct("<4s6BH3s5sI6sB")  # every header field before the name: 31 bytes


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a file says about itself.  ``num_samples`` and ``num_frames`` count one channel."""

    sample_rate: int  # Hz of the original sound, up to 16,777,215; not the model's
    num_samples: int  # per channel at sample_rate
    num_frames: int  # code frames T per channel
    channels: int = 1
    levels: int = 6
    num_groups: int = 3
    bits_per_code: int = 10
    frames_per_chunk: int = 64
    frame_rate: float = 50.0  # code frames per second, rounded to 0.01
    model_id: bytes = b"\0" * 6  # first bytes of the SHA-256 of the model's weights
    model_name: str = ""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("channels", 1, 255),
            ("levels", 1, 255),
            ("num_groups", 1, 255),
            ("bits_per_code", 1, 24),
            ("frames_per_chunk", 1, 255),
            ("sample_rate", 1, 2**24 - 1),
            ("num_samples", 1, 2**40 - 1),
            ("num_frames", 1, 2**32 - 1),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or not low <= value <= high:
                raise ConfigError(f"an .esc header holds {name} from {low} to {high:,}, not {value!r}")
        if not 1 <= self.frame_rate <= 655.35:
            raise ConfigError(f"an .esc header holds a frame_rate from 1 to 655.35 Hz, not {self.frame_rate!r}")
        object.__setattr__(self, "frame_rate", round(self.frame_rate * 100) / 100)
        if not isinstance(self.model_id, bytes) or len(self.model_id) != 6:
            raise ConfigError(f"model_id must be 6 bytes (the start of the weights' SHA-256), not {self.model_id!r}")
        if not self.model_name.isprintable() or len(self.model_name.encode()) > MAX_NAME_BYTES:
            raise ConfigError(
                f"an .esc header holds a printable model name of at most {MAX_NAME_BYTES} UTF-8 bytes, "
                f"not {self.model_name!r}; fit_name() shortens one"
            )
        # The frames must cover the sound (8 frames and 1 % to spare): else a decoder would have to make up the rest,
        # and a few bytes could ask for hours of output.
        if self.num_samples * self.frame_rate > 1.01 * self.sample_rate * (self.num_frames + 8):
            raise ConfigError(
                f"{self.num_frames:,} frames at {self.frame_rate:g} Hz are too short for "
                f"{self.num_samples:,} samples at {self.sample_rate:,} Hz"
            )

    @property
    def size(self) -> int:
        """Bytes of the header itself, its CRC included."""
        return _FIXED.size + len(self.model_name.encode()) + CRC_SIZE

    @property
    def num_chunks(self) -> int:
        return -(-self.num_frames // self.frames_per_chunk)

    @property
    def file_size(self) -> int:
        """Bytes of the whole file."""
        return self.offset(self.num_chunks - 1) + self.chunk_bytes(self.num_chunks - 1) + CRC_SIZE

    @property
    def num_codes(self) -> int:
        return self.channels * self.levels * self.num_groups * self.num_frames

    @property
    def payload_bits(self) -> int:
        """Bits that carry codes: all channels, no padding, no overhead."""
        return self.num_codes * self.bits_per_code

    @property
    def bitrate(self) -> float:
        """Bit/s of codes per channel, as in ``CodecConfig.bitrate(levels)``."""
        return self.levels * self.num_groups * self.bits_per_code * self.frame_rate

    @property
    def duration(self) -> float:
        """Seconds of sound."""
        return self.num_samples / self.sample_rate

    def chunk_frames(self, index: int) -> int:
        """Frames in chunk ``index``: only the last chunk may be short."""
        return min(self.frames_per_chunk, self.num_frames - index * self.frames_per_chunk)

    def chunk_bytes(self, index: int) -> int:
        """Payload bytes of chunk ``index``, without its CRC."""
        bits = self.channels * self.num_groups * self.chunk_frames(index) * self.bits_per_code
        return self.levels * -(-bits // 8)

    def offset(self, index: int) -> int:
        """Where chunk ``index`` begins in an undamaged file."""
        return self.size + index * (self.chunk_bytes(0) + CRC_SIZE)

    def seconds(self, frame: int) -> float:
        """Time at which ``frame`` begins, not beyond the end of the sound."""
        return min(frame / self.frame_rate, self.duration)

    def to_bytes(self) -> bytes:
        name = self.model_name.encode()
        fixed = _FIXED.pack(
            MAGIC,
            VERSION,
            self.channels,
            self.levels,
            self.num_groups,
            self.bits_per_code,
            self.frames_per_chunk,
            round(self.frame_rate * 100),
            self.sample_rate.to_bytes(3, "little"),
            self.num_samples.to_bytes(5, "little"),
            self.num_frames,
            self.model_id,
            len(name),
        )
        return fixed + name + zlib.crc32(fixed + name).to_bytes(CRC_SIZE, "little")


def fit_name(name: str) -> str:
    """Shorten any name to one that a header holds, without cutting a character in two."""
    name = "".join(character if character.isprintable() else "?" for character in name)
    return name.encode()[:MAX_NAME_BYTES].decode(errors="ignore")


def read_header(data: bytes) -> Header:
    """Parse and check the header at the start of ``data``.

    Raises:
        BitstreamError: empty, not an .esc file, a newer version, cut inside the header, or a damaged header.
    """
    start = bytes(data[:MAX_HEADER_SIZE])
    if not start:
        raise BitstreamError("the file is empty; an .esc file begins with a header of 35 to 48 bytes")
    if not MAGIC.startswith(start[:4]):
        raise BitstreamError(f"not an .esc file: it begins with {start[:4].hex(' ')}, expected {MAGIC.hex(' ')}")
    if len(start) > 4 and start[4] > VERSION:
        raise BitstreamError(f"this is .esc version {start[4]}, newer than version {VERSION} read here; update voxcode")
    damaged = "the header is damaged; without it --recover can't help either, so fetch the file again"
    size = _FIXED.size + CRC_SIZE
    if len(start) >= _FIXED.size:
        size += start[_FIXED.size - 1]
        if size > MAX_HEADER_SIZE:
            raise BitstreamError(f"{damaged} (name of {size - _FIXED.size - CRC_SIZE} bytes)")
    if len(start) < size:
        raise BitstreamError(
            f"the file is cut inside its header ({len(start)} of {size} bytes): nothing to recover, fetch it again"
        )
    stored = int.from_bytes(start[size - CRC_SIZE : size], "little")
    if zlib.crc32(start[: size - CRC_SIZE]) != stored or start[4] != VERSION:
        raise BitstreamError(f"{damaged} (checksum)")
    fields = _FIXED.unpack_from(start)
    try:
        return Header(
            channels=fields[2],
            levels=fields[3],
            num_groups=fields[4],
            bits_per_code=fields[5],
            frames_per_chunk=fields[6],
            frame_rate=fields[7] / 100,
            sample_rate=int.from_bytes(fields[8], "little"),
            num_samples=int.from_bytes(fields[9], "little"),
            num_frames=fields[10],
            model_id=fields[11],
            model_name=start[_FIXED.size : size - CRC_SIZE].decode(),
        )
    except (ConfigError, UnicodeDecodeError) as error:
        raise BitstreamError(f"the header makes no sense, the program that wrote it is at fault: {error}") from None
