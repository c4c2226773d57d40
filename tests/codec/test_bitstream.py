"""The container against a second decoder, written from ``docs/bitstream.md``, and golden files."""

import dataclasses
import itertools
import json
import re
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec import bitstream
from codec.bitstream import Header, fit_name, pack, truncate, unpack

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
GOLDEN = json.loads((DATA / "golden.json").read_text(encoding="utf-8"))


# ------------------------------------------------------------------------ the oracle: bit by bit, from the document


def slow_crc(data: bytes) -> int:
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (0xEDB88320 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


def slow_decode(data: bytes) -> tuple[dict[str, object], np.ndarray]:
    """Read a file without any of the code under test."""

    def number(start: int, size: int) -> int:
        return sum(byte << (8 * i) for i, byte in enumerate(data[start : start + size]))

    n = data[30]
    assert data[:5] == b"\x8eESC\x01" and number(31 + n, 4) == slow_crc(data[: 31 + n])
    channels, levels, groups, bits, per_chunk = data[5:10]
    frames = number(20, 4)
    fields = {
        "channels": channels,
        "levels": levels,
        "num_groups": groups,
        "bits_per_code": bits,
        "frames_per_chunk": per_chunk,
        "frame_rate": number(10, 2) / 100,
        "sample_rate": number(12, 3),
        "num_samples": number(15, 5),
        "num_frames": frames,
        "model_id": data[24:30],
        "model_name": data[31 : 31 + n].decode(),
    }
    codes = np.full((channels, levels, groups, frames), -1)
    position = 35 + n
    for chunk, first in enumerate(range(0, frames, per_chunk)):
        count = min(per_chunk, frames - first)
        start = position
        for level in range(levels):
            bit = 0
            for channel, group, frame in itertools.product(range(channels), range(groups), range(count)):
                code = 0
                for i in range(bits):
                    code |= ((data[position + (bit >> 3)] >> (bit & 7)) & 1) << i
                    bit += 1
                codes[channel, level, group, first + frame] = code
            position += (bit + 7) // 8
        assert number(position, 4) == slow_crc(chunk.to_bytes(4, "little") + data[start:position])
        position += 4
    assert position == len(data)
    return fields, codes


def random_codes(header: Header, seed: int = 0) -> np.ndarray:
    shape = (header.channels, header.levels, header.num_groups, header.num_frames)
    return np.random.default_rng(seed).integers(0, 1 << header.bits_per_code, shape)


def make(frames: int = 22, **changes: object) -> tuple[Header, np.ndarray, bytes]:
    """A small file; by default 6 chunks of 4 frames, 20 bytes each with their CRC, the last one of 2 frames."""
    fields = {"levels": 2, "num_groups": 2, "bits_per_code": 8, "frames_per_chunk": 4, "model_name": "tiny"} | changes
    header = Header(sample_rate=16000, num_samples=frames * 320 - 7, num_frames=frames, **fields)
    codes = random_codes(header)
    return header, codes, pack(header, codes)


# ------------------------------------------------------------------------------------------------- the code under test


def listings() -> list[bytes]:
    """The hex listings of the document, whose offsets are checked too."""
    files = []
    for block in re.findall(r"```esc\n(.*?)```", (ROOT / "docs" / "bitstream.md").read_text(encoding="utf-8"), re.S):
        data = b""
        for line in block.splitlines():
            offset, text = re.fullmatch(r"([0-9a-f]{4})  ((?:[0-9a-f]{2} ?)+)(?: .*)?", line).groups()  # type: ignore[union-attr]
            assert int(offset, 16) == len(data)
            data += bytes.fromhex(text)
        files.append(data)
    return files


def test_documented_example() -> None:
    whole, short = listings()
    header = Header(
        sample_rate=16000,
        num_samples=1910,
        num_frames=6,
        levels=2,
        num_groups=1,
        bits_per_code=3,
        frames_per_chunk=4,
        model_id=bytes([1, 2, 3, 4, 5, 6]),
        model_name="tiny",
    )
    codes = np.array([[[[5, 2, 7, 0, 1, 6]], [[3, 3, 4, 1, 0, 2]]]])
    assert pack(header, codes) == whole
    assert truncate(whole, 1) == short
    np.testing.assert_array_equal(slow_decode(whole)[1], codes)
    np.testing.assert_array_equal(slow_decode(short)[1], codes[:, :1])
    assert slow_crc(b"123456789") == 0xCBF43926


@pytest.mark.parametrize("name", sorted(path.stem for path in DATA.glob("golden_*.esc")))
def test_golden_files_decode_forever(name: str) -> None:
    data = (DATA / f"{name}.esc").read_bytes()
    fields = GOLDEN[name]["header"]
    fields = fields | {"model_id": bytes.fromhex(fields["model_id"])}
    codes = np.array(GOLDEN[name]["codes"])
    header, found, lost = unpack(data)
    assert dataclasses.asdict(header) == fields and lost == []
    np.testing.assert_array_equal(found, codes)
    assert pack(Header(**fields), codes) == data
    slow_fields, slow_codes = slow_decode(data)
    assert slow_fields == fields
    np.testing.assert_array_equal(slow_codes, codes)


def test_golden_files_are_there() -> None:
    assert sorted(GOLDEN) == sorted(path.stem for path in DATA.glob("golden_*.esc")) and len(GOLDEN) >= 3


@st.composite
def headers(draw: st.DrawFn) -> Header:
    frames = draw(st.integers(1, 150))
    rate = draw(st.sampled_from([8000, 11025, 16000, 44100, 192000]))
    frame_rate = draw(st.sampled_from([12.5, 50.0, 86.1328125]))
    return Header(
        sample_rate=rate,
        num_samples=draw(st.integers(1, max(1, int(frames / frame_rate * rate)))),
        num_frames=frames,
        channels=draw(st.integers(1, 3)),
        levels=draw(st.integers(1, 6)),
        num_groups=draw(st.integers(1, 4)),
        bits_per_code=draw(st.integers(1, 24)),
        frames_per_chunk=draw(st.sampled_from([1, 2, 5, 7, 64, 255])),
        frame_rate=frame_rate,
        model_id=draw(st.binary(min_size=6, max_size=6)),
        model_name=fit_name(draw(st.text(max_size=20))),
    )


@settings(max_examples=150)
@given(headers(), st.integers(0, 2**31), st.data())
def test_round_trip(header: Header, seed: int, data: st.DataObject) -> None:
    codes = random_codes(header, seed)
    packed = pack(header, codes.astype(data.draw(st.sampled_from([np.int64, np.int32, np.uint32]))))
    assert len(packed) == header.file_size and len(header.to_bytes()) == header.size <= 48
    for recover in (False, True):
        found_header, found, lost = unpack(packed, recover=recover)
        assert found_header == header and lost == [] and found.dtype == np.int64
        np.testing.assert_array_equal(found, codes)
    levels = data.draw(st.integers(1, header.levels))
    fewer = dataclasses.replace(header, levels=levels)
    assert truncate(packed, levels) == pack(fewer, codes[:, :levels])


@settings(max_examples=30)
@given(headers(), st.integers(0, 2**31))
def test_second_decoder_agrees(header: Header, seed: int) -> None:
    if header.num_codes * header.bits_per_code > 20_000:  # it is slow
        header = dataclasses.replace(header, num_frames=3, num_samples=1)
    codes = random_codes(header, seed)
    fields, found = slow_decode(pack(header, codes))
    assert fields == dataclasses.asdict(header)
    np.testing.assert_array_equal(found, codes)


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many chunks are (un)packed at a time, bytes and codes are the same."""
    header, codes, data = make(103)
    for size in (1, 40, 200):
        monkeypatch.setattr(bitstream, "_BLOCK_CODES", size)
        assert pack(header, codes) == data
        np.testing.assert_array_equal(unpack(data)[1], codes)


def test_rate_and_overhead() -> None:
    """1.5 kbit/s is 1.5 kbit/s: 10 s take 1,875 bytes, chunks add at most 2 %, and the header is at most 48 bytes."""
    header = Header(sample_rate=16000, num_samples=160_000, num_frames=500, levels=1, model_name="esc_live")
    assert (header.bitrate, header.duration, header.num_chunks, header.size) == (1500, 10, 8, 43)
    assert header.payload_bits == 15_000
    payload = sum(header.chunk_bytes(index) for index in range(header.num_chunks))
    assert payload == 1875
    data = pack(header, random_codes(header))
    assert (len(data) - header.size - payload) / payload <= 0.02
    full = dataclasses.replace(header, levels=6)
    assert [full.bitrate, full.chunk_bytes(0)] == [9000, 1440]
    stereo = dataclasses.replace(full, channels=2)  # the rate is per channel
    assert [stereo.bitrate, stereo.payload_bits] == [9000, 2 * full.payload_bits]


def test_one_hour_is_quick_and_small() -> None:
    header = Header(sample_rate=16000, num_samples=3600 * 16000, num_frames=180_000)
    codes = random_codes(header)
    tracemalloc.start()
    start = time.process_time()
    data = pack(header, codes)
    _, peak = tracemalloc.get_traced_memory()
    _, found, _ = unpack(data)
    elapsed = time.process_time() - start
    tracemalloc.stop()
    np.testing.assert_array_equal(found, codes)
    assert elapsed < 3  # 0.2 s on an idle core, without tracing
    assert peak < 4 * len(data) + 32_000_000


def test_codes_that_cannot_be_packed() -> None:
    header, codes, _ = make()
    for bad, message in (
        (codes.astype(np.float32), "must be integers"),
        (codes[:, :1], "the header says"),
        (np.where(codes == codes[0, 0, 0, 0], 256, codes), r"in \[0, 256\), found .* to 256"),
        (np.where(codes == codes[0, 0, 0, 0], -1, codes), "-1 marks what was lost"),
    ):
        with pytest.raises(ValueError, match=message):
            pack(header, bad)
    pack(header, codes.astype(np.uint64))
    pack(header, codes.tolist())
