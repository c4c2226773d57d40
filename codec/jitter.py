"""What the receiver of packets does first: bring them in order, notice what is missing, use what rides along."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from codec.packets import SEQUENCE_MODULUS, Codes, Packet, sequence_distance
from engine.errors import ConfigError

# A longer jump, or a packet that comes later than that, is a new start, not a loss: a sender that was restarted.
MAX_GAP = 250
LATE_RUN = 25  # packets in a row that cannot all be late


@dataclass(frozen=True, eq=False)
class Slot:
    """Frames of one packet, all or some, as they are to be played: codes (L, G, k), or None: `silence` or a loss."""

    frames: int
    codes: Codes | None
    silence: bytes | None = None

    @property
    def is_lost(self) -> bool:
        """Whether nothing is known of these frames."""
        return self.codes is None and self.silence is None


class JitterBuffer:
    """Packets in any order in, every slot once and in order out.

    A gap is waited for until `depth` packets from behind it have come; then what redundancy can tell of the missing
    frames is used, and the rest is lost. Packets that come twice, or after they were given up, are dropped and counted.
    While the sender is silent (discontinuous transmission), missing packets are silence, not losses.

    `first` is the sequence number that the sender began with, where that is known (0 in a pipe or file): then a first
    packet that is missing or late is treated like any other. Without it the first to come is the first to play.
    """

    def __init__(self, frames_per_packet: int, depth: int = 0, first: int | None = None) -> None:
        if depth < 0:
            raise ConfigError(f"the depth of the buffer is 0 packets or more, not {depth}")
        self.frames, self.depth = frames_per_packet, depth
        self.num_dropped = 0
        self._held: dict[int, Packet] = {}  # by slots after the next one to play
        self._next = first
        self._silence: bytes | None = None
        self._late = 0  # packets in a row, each the next of the one before, that seemed too late
        self._latest = -1

    @property
    def silence(self) -> bytes | None:
        """What the last packet said of the silence that it began; None while there is sound."""
        return self._silence

    def push(self, packet: Packet) -> list[Slot]:
        """Take a packet, return the slots that can be played now."""
        if self._next is None:
            self._next = packet.sequence
        ahead = sequence_distance(packet.sequence, self._next)
        follows = packet.sequence == (self._latest + 1) % SEQUENCE_MODULUS
        self._late = (self._late * follows + 1) if ahead < 0 else 0
        self._latest = packet.sequence
        # After a long outage the numbers, which begin again every 1,024, may look like old ones.
        if abs(ahead) > MAX_GAP or self._late >= LATE_RUN:
            self._late = 0
            slots = self.flush()
            self._next, ahead = packet.sequence, 0
        elif ahead < 0 or ahead in self._held:
            self.num_dropped += 1
            return []
        else:
            slots = []
        self._held[ahead] = packet
        while self._held and (0 in self._held or len(self._held) > self.depth):
            slots += self._play()
        return slots

    def flush(self) -> list[Slot]:
        """No more packets come: return what is held, with the gaps in between."""
        slots = []
        while self._held:
            slots += self._play()
        return slots

    def _play(self) -> list[Slot]:
        packet = self._held.get(0)
        slots = self._recovered() if packet is None else [self._slot(packet)]
        assert self._next is not None
        self._held = {ahead - 1: later for ahead, later in self._held.items() if ahead}
        self._next += 1
        return slots

    def _slot(self, packet: Packet) -> Slot:
        self._silence = packet.silence if packet.is_silence else None
        # The last packet of a sound may have fewer frames; none has more, or it would play into the next one's time.
        codes = None if packet.codes is None else packet.codes[..., : self.frames]
        return Slot(self.frames if codes is None else codes.shape[-1], codes, self._silence)

    def _recovered(self) -> list[Slot]:
        """The missing packet from the redundancy of later ones: what they tell of it is known, the rest lost."""
        known: dict[int, Codes] = {}
        for ahead, packet in self._held.items():
            first = ahead * self.frames - len(packet.redundant)  # in frames after the beginning of the missing slot
            known |= {first + i: codes for i, codes in enumerate(packet.redundant) if 0 <= first + i < self.frames}
        if self._silence is not None and not known:
            return [Slot(self.frames, None, self._silence)]
        slots = []
        for told, run in itertools.groupby(range(self.frames), known.__contains__):
            frames = list(run)
            codes = np.stack([known[i] for i in frames], axis=-1)[None] if told else None
            slots.append(Slot(len(frames), codes))
        return slots
