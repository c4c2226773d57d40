"""Codes in, packets out: numbering, redundancy, and silence that is not sent."""

from __future__ import annotations

import torch
from torch import Tensor

from codec.packets import MAX_REDUNDANCY, Packet, PacketFormat
from codec.silence import ActivityDetector, describe
from codec.stream import EncodeStage, Live
from engine.errors import ConfigError

UPDATE_SECONDS = 0.4  # of silence between two descriptions of the background


class SendStage:
    """(1, k * samples_per_frame) at the model's rate -> packets (bytes), one for each call or none in silence.

    `levels` may be changed at any time. `redundancy` frames of the lowest level ride along in each packet. With `dtx`
    packets stop while nobody speaks, but for a description of the background now and then; the encoder runs on, so
    that speech begins as it would without.
    """

    def __init__(self, model: Live, levels: int | None = None, redundancy: int = 0, dtx: bool = False) -> None:
        if not 0 <= redundancy <= MAX_REDUNDANCY:
            raise ConfigError(f"redundancy is 0 to {MAX_REDUNDANCY} frames, not {redundancy}")
        self.redundancy = redundancy
        self.num_slots = self.num_silent = 0
        self._encode = EncodeStage(model, levels)
        self._format = PacketFormat(model.config.num_groups, model.config.code_bits)
        self._frame_rate, self._size = model.config.frame_rate, model.config.samples_per_frame
        self._detector = ActivityDetector() if dtx else None
        self._past = torch.zeros(model.config.num_groups, 0, dtype=torch.int64)
        self._silent_frames = 0

    @property
    def levels(self) -> int:
        """Levels that are sent, from the next packet on."""
        return self._encode.levels

    @levels.setter
    def levels(self, levels: int) -> None:
        self._encode.levels = self._encode.model.check_levels(levels)

    def push(self, item: Tensor) -> list[bytes]:
        (codes,) = self._encode.push(item)
        sequence = self.num_slots
        self.num_slots += 1
        redundant = self._past.T.numpy()
        self._past = (
            torch.cat([self._past, codes[0, 0]], dim=1)[:, -self.redundancy :] if self.redundancy else self._past
        )
        if self._detector is not None:
            speech = [self._detector.is_speech(frame) for frame in item[0].split(self._size)]
            if not any(speech):
                self.num_silent += 1
                return self._background(sequence, item)
        self._silent_frames = 0
        return [self._format.pack(Packet(sequence, codes[0].numpy(), redundant))]

    def flush(self) -> list[bytes]:
        return []

    def _background(self, sequence: int, item: Tensor) -> list[bytes]:
        """A description at the beginning of a pause and every so often in it."""
        frames, every = item.shape[1] // self._size, round(UPDATE_SECONDS * self._frame_rate)
        due = self._silent_frames % every < frames
        self._silent_frames += frames
        return [self._format.pack(Packet(sequence, None, silence=describe(item[0])))] if due else []
