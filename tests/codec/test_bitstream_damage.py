"""Every kind of damage: cut, flipped, moved, hostile; nothing but ``BitstreamError``, and no intact chunk lost."""

import itertools
import random
import tracemalloc
import zlib

import numpy as np
import pytest

from codec import bitstream
from codec.bitstream import Header, pack, read_header, truncate, unpack
from engine.errors import BitstreamError


def random_codes(header: Header, seed: int = 0) -> np.ndarray:
    shape = (header.channels, header.levels, header.num_groups, header.num_frames)
    return np.random.default_rng(seed).integers(0, 1 << header.bits_per_code, shape)


def make(frames: int = 22, **changes: object) -> tuple[Header, np.ndarray, bytes]:
    """A small file; by default 6 chunks of 4 frames, 20 bytes each with their CRC, the last one of 2 frames."""
    fields = {"levels": 2, "num_groups": 2, "bits_per_code": 8, "frames_per_chunk": 4, "model_name": "tiny"} | changes
    header = Header(sample_rate=16000, num_samples=frames * 320 - 7, num_frames=frames, **fields)
    codes = random_codes(header)
    return header, codes, pack(header, codes)


def spans(header: Header, chunks: list[int]) -> list[tuple[int, int]]:
    """Runs of frames of ascending chunk numbers."""
    frames = [f for k in chunks for f in range(k * header.frames_per_chunk, (k + 1) * header.frames_per_chunk)]
    runs: list[tuple[int, int]] = []
    for frame in (f for f in frames if f < header.num_frames):
        if runs and sum(runs[-1]) == frame:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((frame, 1))
    return runs


def check_recovered(header: Header, codes: np.ndarray, data: bytes, lost_chunks: list[int]) -> None:
    """Exactly these chunks are lost: -1 there, the codes as they were everywhere else."""
    found_header, found, lost = unpack(data, recover=True)
    expected = codes.copy()
    for first, count in spans(header, lost_chunks):
        expected[..., first : first + count] = -1
    assert found_header == header
    assert lost == spans(header, lost_chunks)
    np.testing.assert_array_equal(found, expected)


def test_every_prefix() -> None:
    """A cut file says so, says how much is there, and all complete chunks before the cut are recovered."""
    header, codes, data = make()
    for length in range(len(data)):
        with pytest.raises(BitstreamError) as caught:
            unpack(data[:length])
        message = str(caught.value)
        if length < header.size:
            assert ("empty" if length == 0 else "cut inside its header") in message
            with pytest.raises(BitstreamError):
                unpack(data[:length], recover=True)
            continue
        complete = sum(header.offset(k) + header.chunk_bytes(k) + 4 <= length for k in range(6))
        assert f"cut short: {length} of {len(data)} bytes; {complete} of 6 chunks are complete" in message
        assert "--recover" in message and f"before {complete * 0.08:.2f} s" in message
        check_recovered(header, codes, data[:length], list(range(complete, 6)))


def test_every_flipped_bit() -> None:
    """No single bit can flip unnoticed: in the header it is fatal, in a chunk it costs that chunk and no other."""
    header, codes, data = make()
    stride = header.chunk_bytes(0) + 4
    for position, bit in itertools.product(range(len(data)), range(8)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << bit
        if position < header.size:
            for recover in (False, True):
                with pytest.raises(BitstreamError):
                    unpack(bytes(flipped), recover=recover)
            continue
        chunk = (position - header.size) // stride
        with pytest.raises(BitstreamError, match=rf"^chunk {chunk + 1} of 6 \({chunk * 0.08:.2f} s to .* is damaged"):
            unpack(bytes(flipped))
        with pytest.raises(BitstreamError, match="damaged"):
            truncate(bytes(flipped), 1)
        check_recovered(header, codes, bytes(flipped), [chunk])


def test_bytes_removed_or_inserted_anywhere() -> None:
    """Chunks that moved are found again: only those that were hit are lost."""
    header, codes, data = make()
    generator = random.Random(3)
    ends = [header.offset(k) + header.chunk_bytes(k) + 4 for k in range(6)]
    chunks = [data[header.offset(k) : ends[k]] for k in range(6)]
    for position, size in itertools.product(range(header.size, len(data)), (1, 3, 19, 20, 21, 47)):
        inserted = generator.randbytes(size)
        for damaged in (data[:position] + inserted + data[position:], data[:position] + data[position + size :]):
            check_recovered(header, codes, damaged, [k for k in range(6) if chunks[k] not in damaged])


def test_many_chunks_removed_or_swapped() -> None:
    header, codes, data = make(400)
    at = header.offset
    removed = data[: at(20)] + data[at(60) :]
    check_recovered(header, codes, removed, list(range(20, 60)))
    shifted = data[: at(3) + 5] + data[at(4) + 7 : at(50)] + b"?" * 1234 + data[at(50) :]
    check_recovered(header, codes, shifted, [3, 4])
    swapped = data[: at(7)] + data[at(8) : at(9)] + data[at(7) : at(8)] + data[at(9) :]
    with pytest.raises(BitstreamError, match="chunk 8 of 100 .* nor does that of 1 more"):
        unpack(swapped)
    assert unpack(swapped, recover=True)[2] in ([(28, 4)], [(32, 4)])  # in order, only one of the two can be kept
    repeated = data[: at(4)] + bytes(20) + data[at(6) : at(7)] + data[at(5) : at(7)] + bytes(20) + data[at(9) :]
    check_recovered(header, codes, repeated, [4, 5, 7, 8])  # not 6, 5, 6


def test_stray_chunk_is_not_believed() -> None:
    """One fitting CRC far from its place is chance; two in a row are not."""
    header, codes, data = make(400)
    noise = random.Random(4).randbytes(len(data) - header.size)
    at = header.offset
    for count, believed in ((1, []), (2, [60, 61])):
        fake = data[: header.size] + noise[:333] + data[at(60) : at(60 + count)] + noise[333 + 20 * count :]
        check_recovered(header, codes, fake, [k for k in range(100) if k not in believed])


def test_search_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of budget, what stands in its place or ends the file is still found."""
    header, codes, data = make(400)
    at = header.offset
    monkeypatch.setattr(bitstream, "SEARCH_BUDGET", 5000)
    damaged = data[: at(3)] + bytes(20 * 40) + data[at(43) : at(50) + 1] + data[at(50) + 2 :]
    check_recovered(header, codes, damaged, [*range(3, 43), *range(50, 99)])


def test_messages_are_distinct() -> None:
    header, _, data = make()
    broken = {
        "empty": b"",
        "not an .esc file: it begins with 52 49 46 46": b"RIFF\x00\x00\x00\x00WAVEfmt ",
        "not an .esc file": b"Hello",
        "version 2, newer than version 1": data[:4] + b"\x02" + data[5:],
        "header is damaged.*--recover can't help": data[:6] + b"\x07" + data[7:],
        "header is damaged.*name of 200 bytes": data[:30] + b"\xc8" + data[31:],
        "cut inside its header": data[:33],
        "cut short": data[:-1],
        "chunk 2 of 6 .0.08 s to 0.16 s. is damaged": data[:70] + bytes([data[70] ^ 1]) + data[71:],
        "3 bytes of something else follow the end": data + b"abc",
        "and there are 2 bytes too many": data[:70] + b"ab" + data[70:],
    }
    for pattern, bad in broken.items():
        with pytest.raises(BitstreamError, match=pattern):
            unpack(bad)
    assert unpack(data + b"abc", recover=True)[2] == []
    for levels in (0, 3):
        with pytest.raises(BitstreamError, match="2 levels: keep 1 to 2"):
            truncate(data, levels)


def patched(header: Header, data: bytes, position: int, value: bytes) -> bytes:
    """Change header bytes and make the header's CRC right again."""
    head = bytearray(data[: header.size - 4])
    head[position : position + len(value)] = value
    return bytes(head) + zlib.crc32(head).to_bytes(4, "little") + data[header.size :]


def test_senseless_headers() -> None:
    header, _, data = make()
    senseless = [(p, b"\0") for p in (5, 6, 7, 8, 9)] + [(8, b"\x19"), (10, b"\0\0"), (12, b"\0\0\0"), (15, b"\0" * 5)]
    senseless += [(15, b"\xff" * 5), (20, b"\0" * 4), (31, b"\xff"), (31, b"\n")]
    for position, value in senseless:
        with pytest.raises(BitstreamError, match="header makes no sense"):
            unpack(patched(header, data, position, value), recover=True)
    with pytest.raises(BitstreamError, match="header is damaged"):
        unpack(patched(header, data, 4, b"\0"))  # there is no version 0


def test_sizes_are_bounded_before_allocating() -> None:
    """Whatever the header declares, memory stays within a fixed amount: here files of a hundred bytes."""
    header, _, data = make()
    values = [(5, b"\xff"), (6, b"\xff"), (7, b"\xff"), (8, b"\x18"), (9, b"\xff"), (9, b"\x01")]
    values += [(20, b"\xff\xff\xff\xff"), (20, b"\0\0\0\x01"), (20, b"\xff\xff\x1f\0")]
    tracemalloc.start()
    for size in (1, 2, 3):
        for changes in itertools.combinations(values, size):
            hostile = data
            for position, value in changes:
                hostile = patched(header, hostile, position, value)
            with pytest.raises(BitstreamError):
                unpack(hostile)
            if header.num_codes * 16 < read_header(hostile).num_codes < 1 << 23:
                continue  # allowed: reserves at most 64 MiB, tried once below
            try:
                unpack(hostile, recover=True)
            except BitstreamError as error:
                assert "too many to set aside" in str(error)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000
    largest = patched(header, data, 20, (bitstream.RECOVER_CODES // 4).to_bytes(4, "little"))
    assert unpack(largest, recover=True)[1].nbytes == 8 * bitstream.RECOVER_CODES


def mutate(generator: random.Random, header: Header, data: bytes) -> bytes:
    """Damage a file in one to four ways; half of the time the header's checksum is right all the same."""
    out = bytearray(data)
    for _ in range(generator.randint(1, 4)):
        position = generator.randrange(len(out)) if generator.random() < 0.6 else generator.randrange(header.size)
        position = min(position, len(out) - 1)
        kind = generator.randrange(6)
        if kind == 0:
            out[position] ^= 1 << generator.randrange(8)
        elif kind == 1:
            out[position] = generator.choice((0, 1, 0x7F, 0x80, 0xFF, generator.randrange(256)))
        elif kind == 2:
            del out[position : position + generator.randint(1, 30)]
        elif kind == 3:
            out[position:position] = generator.randbytes(generator.randint(1, 30))
        elif kind == 4:
            out[position : position + 8] = out[generator.randrange(len(out)) :][:8]
        else:
            del out[max(1, position) :]
        if not out:
            return b""
    if generator.random() < 0.5 and len(out) >= header.size:
        out[header.size - 4 : header.size] = zlib.crc32(out[: header.size - 4]).to_bytes(4, "little")
    return bytes(out)


def test_fuzz(monkeypatch: pytest.MonkeyPatch) -> None:
    """30,000 mutated files: codes that fit their header, or BitstreamError, and nothing else."""
    monkeypatch.setattr(bitstream, "RECOVER_CODES", 1 << 14)  # the real one takes 64 MiB, too slow to fill this often
    generator = random.Random(20261123)
    seeds = [make(9), make(3, channels=2), make(64, levels=3, bits_per_code=10, frames_per_chunk=64)]
    outcomes = {"strict": 0, "recovered": 0, "refused": 0}
    for number in range(30_000):
        header, _, data = seeds[number % len(seeds)]
        bad = mutate(generator, header, data)
        for recover in (False, True):
            try:
                found, codes, lost = unpack(bad, recover=recover)
            except BitstreamError as error:
                assert str(error)
                outcomes["refused"] += 1
                continue
            outcomes["recovered" if recover else "strict"] += 1
            assert codes.shape == (found.channels, found.levels, found.num_groups, found.num_frames)
            assert codes.size <= max(1 << 14, 16 * len(bad))
            missing = np.zeros(found.num_frames, dtype=bool)
            for first, count in lost:
                missing[first : first + count] = True
            assert (recover or not lost) and ((codes < 0) == missing).all()
            assert codes.max() < 1 << found.bits_per_code
    assert outcomes["recovered"] > 2000 and outcomes["refused"] > 2000, outcomes
