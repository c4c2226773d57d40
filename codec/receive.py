"""Slots in, sound out: decoding, concealment of losses and comfort noise, one session.

A lost frame is decoded from the codes of the last frame that came, and fades to silence; the decoder's memory runs on
through it, so that the return is smooth. (Playing the last three frames backwards and forwards instead measured the
same: PESQ-WB 2.14 at 10 % of single losses, where silence in place of lost frames gives 1.31.)
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from codec.jitter import Slot
from codec.live import DecoderState
from codec.silence import ComfortNoise
from codec.stream import Live


class ReceiveStage:
    """`Slot` -> samples (1, n), 20 ms a frame, the first time less the codec's lag."""

    HOLD, FADE = 1, 6  # frames of a loss at full level, and then until silence: 140 ms in all

    def __init__(self, model: Live, state: DecoderState | None = None) -> None:
        self.model = model
        self._lag = 0 if state else model.istft.delay
        self.state = state or model.initial_decoder_state(1)
        self._last: Tensor | None = None  # codes (1, L, G, 1) of the last frame that came
        self._num_lost = 0
        self._gain = 1.0
        self._noise = ComfortNoise(model.config.sample_rate)

    @torch.inference_mode()
    def push(self, item: Slot) -> list[Tensor]:
        if item.silence is not None:
            wav = self._silent(item)
        elif item.codes is None:
            wav = torch.cat([self._conceal() for _ in range(item.frames)], dim=1)
        else:
            wav = self._decode(torch.from_numpy(item.codes.astype(np.int64))[None])
        lag, self._lag = min(self._lag, wav.shape[1]), 0
        return [wav[:, lag:]]

    def flush(self) -> list[Tensor]:
        return []

    def _decode(self, codes: Tensor) -> Tensor:
        self._last = codes[..., -1:]
        self._num_lost = 0
        return self._faded(self.model.decode(codes, state=self.state), 1.0)

    def _conceal(self) -> Tensor:
        size = self.model.config.samples_per_frame
        self._num_lost += 1
        if self._last is None or self._num_lost > self.HOLD + self.FADE:
            if self._num_lost == self.HOLD + self.FADE + 1:
                self.state.reset()  # what follows a long gap has nothing to do with what was before it
                self._last = None
            self._gain = 0.0
            return torch.zeros(1, size)
        target = min(1.0, max(0.0, 1 - (self._num_lost - self.HOLD) / self.FADE))
        return self._faded(self.model.decode(self._last, state=self.state), target)

    def _silent(self, item: Slot) -> Tensor:
        """The end of what was said fades into noise of the level that the packet tells."""
        assert item.silence is not None
        if self._last is not None:
            self._noise.restart()
        noise = self._noise.frames(item.silence, item.frames * self.model.config.samples_per_frame)[None]
        if self._gain > 0 and self._last is not None:
            tail = self.model.decode(self._last, state=self.state)
            noise[:, : tail.shape[1]] += self._faded(tail, 0.0)
        self.state.reset()
        self._last, self._num_lost, self._gain = None, 0, 0.0
        return noise

    def _faded(self, wav: Tensor, target: float) -> Tensor:
        """Move the gain to `target` over a loss's frame, or within 5 ms when speech is back."""
        if self._gain == target == 1.0:
            return wav
        length = wav.shape[1] if target < self._gain else min(wav.shape[1], self.model.config.sample_rate // 200)
        gains = torch.full((wav.shape[1],), target)
        gains[:length] = torch.linspace(self._gain, target, length)
        self._gain = target
        return wav * gains
