"""Order at the receiver: late, twice, never; what redundancy brings back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec.jitter import JitterBuffer
from codec.packets import Packet
from engine.errors import ConfigError

FRAMES = 2


def packet(i, redundancy=0):
    """Codes that tell their frame: frame f has the code f everywhere."""
    frames = np.arange(i * FRAMES, (i + 1) * FRAMES)
    past = np.arange(i * FRAMES - redundancy, i * FRAMES)
    return Packet(i % 1024, np.broadcast_to(frames, (2, 3, FRAMES)), np.broadcast_to(past[:, None], (redundancy, 3)))


def play(packets, depth):
    buffer = JitterBuffer(FRAMES, depth)
    slots = [slot for p in packets for slot in buffer.push(p)]
    return slots + buffer.flush(), buffer


def heard(slots):
    return [None if s.codes is None else s.codes[0, 0].tolist() for s in slots]


@given(st.sets(st.integers(1, 40)), st.integers(0, 4), st.integers(1000, 1030))
@settings(max_examples=60)
def test_every_slot_once_and_in_order(missing, depth, start):
    """Whatever is lost: as many slots as the sender had up to the last that came, each with its own frames or lost."""
    sent = [packet(start + i) for i in range(42) if i not in missing]
    slots, buffer = play(sent, depth)
    expected = [None if i in missing else [2 * (start + i), 2 * (start + i) + 1] for i in range(42)]
    assert heard(slots) == expected and buffer.num_dropped == 0


@given(st.lists(st.integers(0, 3), min_size=20, max_size=20))
def test_packets_late_by_no_more_than_the_depth_are_put_right(lateness):
    order = sorted(range(1, 20), key=lambda i: (i + lateness[i], i))
    slots, buffer = play([packet(0), *map(packet, order)], depth=3)
    assert heard(slots) == [[2 * i, 2 * i + 1] for i in range(20)] and buffer.num_dropped == 0


def test_twice_and_too_late_are_dropped_and_counted():
    slots, buffer = play([packet(i) for i in (0, 1, 1, 3, 2, 0, 4)], depth=0)
    assert heard(slots) == [[0, 1], [2, 3], None, [6, 7], [8, 9]] and buffer.num_dropped == 3


@pytest.mark.parametrize("redundancy, depth, missing", [
    (2, 0, [None, [8, 9]]), (4, 0, [[6, 7], [8, 9]]), (4, 1, [[6, 7], [8, 9]]), (1, 0, [None, None, [9]]),
    (3, 0, [None, [7], [8, 9]]),
])  # fmt: skip
def test_redundancy_brings_back_the_lowest_level(redundancy, depth, missing):
    """Packets 3 and 4 are lost; the next ones tell the last `redundancy` frames before them, also half a packet."""
    slots, _ = play([packet(i, redundancy) for i in (0, 1, 2, 5, 6, 7)], depth)
    assert heard(slots) == [[0, 1], [2, 3], [4, 5], *missing, [10, 11], [12, 13], [14, 15]]
    assert sum(slot.frames for slot in slots) == 16
    assert all(slot.codes.shape == (1, 3, slot.frames) for slot in slots[3:-3] if slot.codes is not None)


def test_silence_goes_on_until_somebody_speaks():
    quiet = Packet(2, None, silence=b"\x10")
    slots, _ = play([packet(0), packet(1), quiet, Packet(9, None, silence=b"\x20"), packet(12)], depth=0)
    assert [s.silence for s in slots] == [None, None, *[b"\x10"] * 7, *[b"\x20"] * 3, None]
    assert not any(s.is_lost for s in slots)


@pytest.mark.parametrize("order, depth", [((1, 2, 3), 0), ((1, 0, 2, 3), 1), ((3, 2, 1, 0), 3)])
def test_the_beginning_is_known_and_may_be_lost_or_late(order, depth):
    """Without `first` the packets before the first to come are too late, and the sound begins with it."""
    for first, begin in ((0, 0), (None, order[0])):
        buffer = JitterBuffer(FRAMES, depth, first=first)
        slots = [slot for i in order for slot in buffer.push(packet(i))] + buffer.flush()
        assert heard(slots) == [[2 * i, 2 * i + 1] if i in order else None for i in range(begin, 4)]
    assert heard(JitterBuffer(FRAMES, first=0).push(packet(600))) == [[1200, 1201]]  # another sender, not a loss


@pytest.mark.parametrize("gap", [800, 900, 1000])
def test_after_a_long_outage_the_receiver_hears_again(gap):
    """The numbers have come round and look like those of packets that are too late."""
    slots, buffer = play([packet(i) for i in (*range(50), *range(50 + gap, 50 + gap + 300))], depth=0)
    assert buffer.num_dropped < 30
    assert heard(slots)[-1] == [2 * (349 + gap), 2 * (349 + gap) + 1]
    # A few that are late all the same do not begin anything.
    slots, buffer = play([packet(i) for i in (*range(40), *range(20, 35), 40, 41)], depth=0)
    assert heard(slots) == [[2 * i, 2 * i + 1] for i in range(42)] and buffer.num_dropped == 15


def test_a_sender_that_begins_anew_is_followed():
    slots, _ = play([packet(0), packet(600), packet(601)], depth=2)
    assert heard(slots) == [[0, 1], [1200, 1201], [1202, 1203]]


def test_longer_packets_than_announced_do_not_play_into_the_next():
    buffer = JitterBuffer(1)
    assert buffer.push(packet(0))[0].codes.shape == (2, 3, 1)
    with pytest.raises(ConfigError, match="0 packets or more"):
        JitterBuffer(1, -1)
