"""The ``.esc`` container: codes <-> bytes, in pure Python and numpy.  ``docs/bitstream.md`` is the specification.

A file is a header of at most 48 bytes and then chunks of 64 frames (1.28 s at 50 frames a second), each followed by a
CRC-32.  Why it looks the way it does:

* A code takes exactly ``bits_per_code`` bits, so a rate is what it says: 1 level x 3 groups x 10 bits x 50 frames/s =
  1,500 bit/s.  Code ``k`` of a level is bits ``k * b`` to ``k * b + b - 1`` of that level's bytes read as *one*
  little-endian integer, ``code = (integer >> k * b) & (2**b - 1)``; ``b * frames`` of a full chunk divides by 8, so
  padding can only occur in the last chunk.
* A chunk holds its levels one after the other, coarsest first, each on a byte boundary.  The first S levels of a
  chunk are therefore a prefix of it, and dropping levels means cutting every chunk short: no re-encoding.
* A chunk's CRC covers its index and then its payload.  Chunks cost 4 bytes each (1.67 % at 1.5 kbit/s), carry no
  index, and yet a chunk in the wrong place does not pass.  That also lets :func:`_search_gap` find a chunk that has
  moved: the CRC is linear over GF(2), so for payloads of one length ``crc(index + payload)`` is
  ``crc(0 + payload) ^ shift(index)``, and one CRC per offset tells *which* index would fit there, if any.
* All sizes follow from the header, whose own CRC is checked first, and are compared with the bytes there are before
  anything is allocated.
"""

import zlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from codec.header import CRC_SIZE, Header, fit_name, read_header
from engine.errors import BitstreamError

__all__ = ["ChunkWriter", "Header", "fit_name", "pack", "pieces", "read_header", "truncate", "unpack"]

# A damaged file may declare more than it holds.  What recovery allocates is bounded by these: 8 Mi codes are 2.6 hours
# at 9 kbit/s (64 MiB as int64); a longer file is recovered while about a twentieth of it is left (10 bits a code).
RECOVER_CODES = 1 << 23
RECOVER_CODES_PER_BYTE = 16
# Looking for moved chunks stops after this much work (bytes under a CRC, a few seconds), and isn't tried at all for
# more than 46 hours, where the table of indices would no longer be small.
SEARCH_BUDGET = 1 << 32
SEARCH_CHUNKS = 1 << 17

_BLOCK_CODES = 1 << 18  # codes (un)packed at a time: memory stays flat however long the file is


def pack(header: Header, codes: ArrayLike) -> bytes:
    """Write ``codes`` (C, L, G, T), integers in [0, 2**bits_per_code), as a whole file.

    Raises:
        ValueError: the codes are not integers, don't have the header's shape, or are out of range.
    """
    codes = np.asarray(codes)
    shape = (header.channels, header.levels, header.num_groups, header.num_frames)
    if codes.dtype.kind not in "iu":
        raise ValueError(f"codes must be integers, not {codes.dtype}")
    if codes.shape != shape:
        raise ValueError(f"codes have shape {codes.shape}, the header says {shape} (channels, levels, groups, frames)")
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >> header.bits_per_code:
        raise ValueError(
            f"codes must be in [0, {1 << header.bits_per_code}), found {low} to {high}"
            + (" (-1 marks what was lost and can't be packed)" if low == -1 else "")
        )
    parts = [header.to_bytes()]
    for first, count, frames in _blocks(header, range(header.num_chunks)):
        block = codes[..., first * header.frames_per_chunk :][..., : count * frames]
        parts.append(_chunks(block, first, count, header.bits_per_code))
    return b"".join(parts)


class ChunkWriter:
    """Packs codes that come piece by piece, for a file whose length is not known yet: the header is written last.

    What `add` and `finish` return, joined, is what `pack` puts behind the header.
    """

    def __init__(self, bits_per_code: int, frames_per_chunk: int) -> None:
        self.bits_per_code, self.frames_per_chunk = bits_per_code, frames_per_chunk
        self.num_frames = 0
        self._held: NDArray[np.integer] | None = None
        self._index = 0

    def add(self, codes: NDArray[np.integer]) -> bytes:
        """Take codes (C, L, G, k), return the chunks that are full by now."""
        self.num_frames += codes.shape[-1]
        joined = codes if self._held is None else np.concatenate([self._held, codes], axis=-1)
        count = joined.shape[-1] // self.frames_per_chunk
        whole = count * self.frames_per_chunk
        self._held = joined[..., whole:]
        return self._write(joined[..., :whole], count) if count else b""

    def finish(self) -> bytes:
        """Return the last chunk, if one is left."""
        if self._held is None or not self._held.shape[-1]:
            return b""
        return self._write(self._held, 1)

    def _write(self, codes: NDArray[np.integer], count: int) -> bytes:
        first, self._index = self._index, self._index + count
        return _chunks(codes, first, count, self.bits_per_code)


def unpack(data: bytes, recover: bool = False) -> tuple[Header, NDArray[np.int64], list[tuple[int, int]]]:
    """Read a whole file: header, codes (C, L, G, T), and what was lost as (first frame, number of frames).

    With ``recover`` every intact chunk of a damaged file is decoded and lost frames hold -1; without, damage is an
    error and nothing is ever lost.

    Raises:
        BitstreamError: the header can't be read (see :func:`read_header`); or, unless ``recover``, the file is cut
            short, damaged, or followed by other bytes.
    """
    header = read_header(data)
    view = memoryview(data)
    if recover:
        allowed = max(RECOVER_CODES, RECOVER_CODES_PER_BYTE * len(data))
        if header.num_codes > allowed:
            raise BitstreamError(
                f"the header declares {header.num_codes:,} codes, too many to set aside for the {len(data):,} bytes "
                f"that are left of {header.file_size:,} (at most {allowed:,})"
            )
        found = _find_chunks(header, view)
    else:
        _check_all(header, view)
        found = [(index, header.offset(index)) for index in range(header.num_chunks)]
    codes = np.full((header.channels, header.levels, header.num_groups, header.num_frames), -1, dtype=np.int64)
    position = 0
    for _, count, frames in _blocks(header, [index for index, _ in found]):
        block = found[position : position + count]
        position += count
        size = header.chunk_bytes(block[0][0])
        joined = b"".join(view[offset : offset + size] for _, offset in block)
        values = _unpack_block(joined, count, frames, header)
        for (index, _), value in zip(block, values, strict=True):
            codes[..., index * header.frames_per_chunk :][..., :frames] = value
    return header, codes, _lost(header, [index for index, _ in found])


def pieces(data: bytes) -> Iterator[NDArray[np.uint32]]:
    """Yield the codes of a whole file as (C, L, G, k), a few hundred thousand codes at a time.

    All checksums are checked before the first piece comes.  Raises BitstreamError as :func:`unpack`.
    """
    header = read_header(data)
    view = memoryview(data)
    _check_all(header, view)
    for first, count, frames in _blocks(header, range(header.num_chunks)):
        size = header.chunk_bytes(first)
        joined = b"".join(view[header.offset(index) :][:size] for index in range(first, first + count))
        block = _unpack_block(joined, count, frames, header)
        yield np.concatenate(list(block), axis=-1)


def truncate(data: bytes, levels: int) -> bytes:
    """Keep the first ``levels`` levels: the same bytes as packing only those.

    Raises:
        BitstreamError: the file is damaged (its errors would get fresh checksums) or has fewer levels.
    """
    header = read_header(data)
    if not 1 <= levels <= header.levels:
        raise BitstreamError(f"the file has {header.levels} levels: keep 1 to {header.levels} of them, not {levels}")
    view = memoryview(data)
    _check_all(header, view)
    kept = replace(header, levels=levels)
    parts: list[bytes | memoryview] = [kept.to_bytes()]
    for index in range(header.num_chunks):
        payload = view[header.offset(index) :][: kept.chunk_bytes(index)]
        parts += (payload, _crc(index, payload).to_bytes(CRC_SIZE, "little"))
    return b"".join(parts)


# ---------------------------------------------------------------------------------------------------- codes <-> bits


def _blocks(header: Header, indices: range | list[int]) -> Iterator[tuple[int, int, int]]:
    """Split ascending chunk indices into (position of the first, count, frames per chunk) of moderate size."""
    codes_per_chunk = header.channels * header.levels * header.num_groups * header.frames_per_chunk
    step = max(1, _BLOCK_CODES // codes_per_chunk)
    last_frames = header.chunk_frames(header.num_chunks - 1)
    short = bool(indices) and indices[-1] == header.num_chunks - 1 and last_frames < header.frames_per_chunk
    num_full = len(indices) - short
    for first in range(0, num_full, step):
        yield first, min(step, num_full - first), header.frames_per_chunk
    if short:
        yield num_full, 1, last_frames


def _chunks(codes: NDArray[np.integer], first: int, count: int, bits: int) -> bytes:
    """(C, L, G, count * F) -> ``count`` chunks with their checksums, the first one with index ``first``."""
    parts: list[bytes] = []
    for index, payload in enumerate(_pack_block(codes, count, bits), first):
        parts += (payload, _crc(index, payload).to_bytes(CRC_SIZE, "little"))
    return b"".join(parts)


def _pack_block(codes: NDArray[np.integer], count: int, bits: int) -> list[bytes]:
    """(C, L, G, count * F) -> ``count`` payloads of L x ceil(C * G * F * bits / 8) bytes."""
    C, L, G, T = codes.shape
    values = codes.reshape(C, L, G, count, T // count).transpose(3, 1, 0, 2, 4).astype(np.uint32)
    values = values.reshape(count, L, -1)
    spread = np.empty((*values.shape, bits), dtype=np.uint8)
    for bit in range(bits):
        spread[..., bit] = (values >> np.uint32(bit)) & np.uint32(1)
    packed = np.packbits(spread.reshape(count, L, -1), axis=-1, bitorder="little")
    return [payload.tobytes() for payload in packed]


def _unpack_block(payloads: bytes, count: int, frames: int, header: Header) -> NDArray[np.uint32]:
    """``count`` payloads -> (count, C, L, G, frames)."""
    C, L, G, bits = header.channels, header.levels, header.num_groups, header.bits_per_code
    packed = np.frombuffer(payloads, dtype=np.uint8).reshape(count, L, -1)
    spread = np.unpackbits(packed, axis=-1, count=C * G * frames * bits, bitorder="little")
    spread = spread.reshape(count, L, C, G, frames, bits)
    values = np.zeros(spread.shape[:-1], dtype=np.uint32)
    for bit in range(bits):
        values |= spread[..., bit].astype(np.uint32) << np.uint32(bit)
    return values.transpose(0, 2, 1, 3, 4)


# ---------------------------------------------------------------------------------------------- checking, recovering


def _crc(index: int, payload: bytes | memoryview) -> int:
    return zlib.crc32(payload, zlib.crc32(index.to_bytes(4, "little")))


def _intact(header: Header, data: memoryview, index: int, offset: int) -> bool:
    """Whether chunk ``index`` stands at ``offset``."""
    end = offset + header.chunk_bytes(index)
    stored = data[end : end + CRC_SIZE]
    return len(stored) == CRC_SIZE and _crc(index, data[offset:end]) == int.from_bytes(stored, "little")


def _in_place(header: Header, data: memoryview) -> list[int]:
    """Indices of the chunks that stand where they belong, intact."""
    stride = header.chunk_bytes(0) + CRC_SIZE
    there = min(header.num_chunks, (len(data) - header.size) // stride + 1)  # the last one may be short
    return [index for index in range(there) if _intact(header, data, index, header.offset(index))]


def _check_all(header: Header, data: memoryview) -> None:
    """Raise the error that describes what is wrong with the chunks, if anything is."""
    size, intact, total = header.file_size, _in_place(header, data), header.num_chunks
    extra = len(data) - size
    if extra == 0 and len(intact) == total:
        return
    if len(intact) == total:
        raise BitstreamError(
            f"{extra:,} bytes of something else follow the end of the file; "
            f"cut it to {size:,} bytes, or use --recover, which ignores them"
        )
    bad = next(i for i, index in enumerate([*intact, -1]) if i != index)
    first = bad * header.frames_per_chunk
    start, stop = header.seconds(first), header.seconds(first + header.chunk_frames(bad))
    if extra < 0:
        raise BitstreamError(
            f"the file is cut short: {len(data):,} of {size:,} bytes; {len(intact)} of {total} chunks are complete "
            f"(nothing is missing before {start:.2f} s); --recover decodes them"
        )
    raise BitstreamError(
        f"chunk {bad + 1} of {total} ({start:.2f} s to {stop:.2f} s) is damaged: its checksum does not match"
        + (f", nor does that of {total - len(intact) - 1} more" if total - len(intact) > 1 else "")
        + (f", and there are {extra:,} bytes too many" if extra else "")
        + f"; --recover decodes the {len(intact)} intact ones"
    )


def _find_chunks(header: Header, data: memoryview) -> list[tuple[int, int]]:
    """Find (index, offset) of every intact chunk, ascending in both, also where bytes were inserted or removed."""
    in_place = _in_place(header, data)
    last = header.num_chunks - 1
    found: list[tuple[int, int]] = []
    searchable = header.frames_per_chunk <= header.num_frames <= SEARCH_CHUNKS * header.frames_per_chunk
    budget = SEARCH_BUDGET if searchable else 0
    table: dict[int, int] = {}
    stride = header.chunk_bytes(0) + CRC_SIZE
    for index in [*in_place, header.num_chunks]:
        first = found[-1][0] + 1 if found else 0
        start = header.offset(first) if found else header.size
        stop = header.offset(index) if index <= last else len(data)
        # One chunk missing from a gap of one chunk is damaged where it stands: nothing else fits in there.
        if first < index and stop - start >= stride and (index - first > 1 or stop - start > stride) and budget > 0:
            table = table or _index_table(header)
            hits, budget = _search_gap(header, data, (start, stop), range(first, index), table, budget)
            found += hits
        if index <= last:
            found.append((index, header.offset(index)))
    if not found or found[-1][0] != last:  # a short last chunk has its own length; it ends the file or follows its
        after = found[-1][1] + stride if found else header.size  # neighbour
        for offset in (after, len(data) - header.chunk_bytes(last) - CRC_SIZE):
            if offset >= after and _intact(header, data, last, offset):
                return [*found, (last, offset)]
    return found


def _index_table(header: Header) -> dict[int, int]:
    """Map ``crc(index + payload) ^ crc(0 + payload)``, the same for every payload of full length, to the index."""
    zeros = bytes(header.chunk_bytes(0))
    base = _crc(0, zeros)
    return {_crc(index, zeros) ^ base: index for index in range(header.num_frames // header.frames_per_chunk)}


def _search_gap(
    header: Header, data: memoryview, gap: tuple[int, int], wanted: range, table: dict[int, int], budget: int
) -> tuple[list[tuple[int, int]], int]:
    """Look for full chunks with ``wanted`` indices at every offset of a gap; return them and the budget left.

    A CRC-32 fits by chance at one offset in 2**32 for each index looked for, so a chunk counts only if it has moved
    by at most a chunk since the one before (two indices to look for, not thousands) or if its successor follows it.
    """
    size = header.chunk_bytes(0)
    stride = size + CRC_SIZE
    seed, from_bytes = zlib.crc32(bytes(4)), int.from_bytes
    hits: list[tuple[int, int]] = []
    offset, moved, least = gap[0], 0, wanted.start
    while offset + stride <= gap[1] and least < wanted.stop and budget > 0:
        end = offset + size
        budget -= stride + 1024  # about what one round costs, in bytes under a CRC
        index = table.get(zlib.crc32(data[offset:end], seed) ^ from_bytes(data[end : end + CRC_SIZE], "little"), -1)
        if not least <= index < wanted.stop:
            offset += 1
            continue
        distance = abs(offset - header.offset(index) - moved)
        followed = index + 1 < header.num_chunks and _intact(header, data, index + 1, offset + stride)
        if followed or distance <= stride:
            hits.append((index, offset))
            offset, moved, least = offset + stride, offset - header.offset(index), index + 1
        else:
            offset += 1
    return hits, budget


def _lost(header: Header, found: list[int]) -> list[tuple[int, int]]:
    """Turn the ascending indices of the chunks that were found into the runs of frames that were not."""
    lost = []
    edges = [-1, *found, header.num_chunks]
    for before, after in zip(edges, edges[1:], strict=False):
        first = (before + 1) * header.frames_per_chunk
        end = min(after * header.frames_per_chunk, header.num_frames)
        if end > first:
            lost.append((first, end - first))
    return lost
