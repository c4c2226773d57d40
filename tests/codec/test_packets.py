"""Packets and streams of them: exact sizes, round trips, damage of every kind."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec.packet_stream import PacketReader, PacketWriter, StreamHeader
from codec.packets import MAX_REDUNDANCY, Packet, PacketFormat, sequence_distance
from engine.errors import BitstreamError, ConfigError

FORMAT = PacketFormat()
HEADER = StreamHeader(model_id=b"abcdef", model_name="esc_live", sample_rate=48000, frames_per_packet=3)


def codes(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 1024, shape)


@given(
    st.integers(0, 5000), st.integers(1, 6), st.integers(1, 7), st.integers(0, MAX_REDUNDANCY),
    st.integers(1, 5), st.integers(8, 16),
)  # fmt: skip
def test_round_trip(sequence, frames, levels, redundancy, groups, bits):
    form = PacketFormat(groups, bits)
    rng = np.random.default_rng(sequence)
    sent = Packet(
        sequence, rng.integers(0, 1 << bits, (levels, groups, frames)), rng.integers(0, 1 << bits, (redundancy, groups))
    )
    data = form.pack(sent)
    assert len(data) == form.size(frames, levels, redundancy)
    got = form.unpack(data)
    assert got.sequence == sequence % 1024 and not got.is_silence
    assert np.array_equal(got.codes, sent.codes) and np.array_equal(got.redundant, sent.redundant)


def test_sizes_as_documented():
    """20 ms at 3 kbit/s: 60 bits of codes, 10 bytes on the wire; 120 ms at 9 kbit/s: 1,080 bits, 137 bytes."""
    assert FORMAT.size(1, 2) == 10 and FORMAT.size(6, 6) == 137 and FORMAT.size(2, 1, 3) == 2 + 19


def test_the_bits_are_where_the_document_puts_them():
    data = FORMAT.pack(Packet(0b1000000001, np.array([[[1], [2], [1023]]])))
    assert data.hex() == "8048" + f"{int('0000000001' + '0000000010' + '1111111111' + '00', 2):08x}"


def test_silence():
    got = FORMAT.unpack(FORMAT.pack(Packet(7, None, silence=b"\x30abc")))
    assert got.is_silence and got.silence == b"\x30abc" and got.sequence == 7
    with pytest.raises(ConfigError, match="up to 16 bytes"):
        FORMAT.pack(Packet(7, None, silence=bytes(17)))


@given(st.binary(max_size=80))
@settings(max_examples=500)
def test_any_bytes_are_a_packet_or_an_error(data):
    try:
        packet = FORMAT.unpack(data)
    except BitstreamError:
        return
    assert FORMAT.pack(packet) == data  # and a packet has one form only


@given(st.integers(0, 40), st.integers(1, 6), st.integers(0, 7))
def test_a_packet_cut_short_is_an_error_or_has_fewer_frames(cut, frames, redundancy):
    data = FORMAT.pack(Packet(1, codes(6, 3, frames), codes(redundancy, 3)))
    try:
        packet = FORMAT.unpack(data[: max(0, len(data) - 1 - cut)])
    except BitstreamError:
        return
    assert packet.codes.shape[2] < frames


@pytest.mark.parametrize(
    "packet, message",
    [
        (Packet(0, codes(6, 2, 1)), "3 groups"),
        (Packet(0, codes(8, 3, 1)), "1 to 7 levels"),
        (Packet(0, codes(6, 3, 0)), "frames"),
        (Packet(0, codes(6, 3, 1), codes(8, 3)), "7 frames of redundancy"),
        (Packet(0, codes(6, 3, 1) + 1024), "10 bits"),
        (Packet(0, codes(6, 3, 1) - 1024), "10 bits"),
    ],
)
def test_what_no_packet_holds(packet, message):
    with pytest.raises(ConfigError, match=message):
        FORMAT.pack(packet)
    with pytest.raises(ConfigError, match="1 to 16 groups"):
        PacketFormat(0)


def test_distance_across_the_wrap_around():
    assert sequence_distance(3, 1020) == 7 and sequence_distance(1020, 3) == -7 and sequence_distance(5, 5) == 0


class Dribble(io.BytesIO):
    """A pipe that gives a byte at a time."""

    def read(self, size=-1):
        return super().read(min(size, 1))


def stream(packets, end=None):
    file = io.BytesIO()
    writer = PacketWriter(file, HEADER)
    for packet in packets[:-1]:
        writer.write(packet)
    if end is not None:
        writer.end(end)
    for packet in packets[-1:]:
        writer.write(packet)
    return file.getvalue()


PACKETS = [FORMAT.pack(Packet(i, codes(1 + i % 6, 3, 3, seed=i))) for i in range(9)]


def test_stream_round_trip():
    reader = PacketReader(Dribble(stream(PACKETS, end=12345)))
    assert reader.header == HEADER and reader.num_samples is None
    assert list(reader) == PACKETS and reader.num_samples == 12345 and not reader.cut_off


def test_a_stream_cut_off_anywhere_gives_what_came():
    whole = stream(PACKETS, end=12345)
    start = len(HEADER.to_bytes())
    for size in range(start, len(whole)):
        reader = PacketReader(io.BytesIO(whole[:size]))
        got = list(reader)
        assert got == PACKETS[: len(got)]
        assert reader.cut_off or (len(got) == 8 and reader.num_samples == 12345)
    for size in range(start):
        with pytest.raises(BitstreamError, match="empty|inside its header"):
            PacketReader(io.BytesIO(whole[:size]))


def test_streams_of_others_are_named():
    good = HEADER.to_bytes()
    for data, message in [
        (b"RIFF" + bytes(40), "no stream of packets"),
        (b"\x8eESC" + bytes(40), "for .esc files there is `codec decode`"),
        (good[:4] + b"\x09" + good[5:], "newer than 1"),
        (good[:6] + b"\x0b" + good[7:], "damaged"),
    ]:
        with pytest.raises(BitstreamError, match=message):
            PacketReader(io.BytesIO(data))
    with pytest.raises(ConfigError, match="cannot hold"):
        StreamHeader(model_id=b"abc", model_name="x")


@given(st.binary(max_size=300))
def test_any_bytes_after_the_header_never_raise(data):
    for packet in PacketReader(io.BytesIO(HEADER.to_bytes() + data)):
        assert len(packet) >= 2
