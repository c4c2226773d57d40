"""Live embeddings as a stage (`engine.pipeline`): samples in, and every hop the embedding of the speech so far.

    stage = EmbedStage(LiveEncoder(encoder), hop_seconds=0.5)
    for found in run(microphone, Resample(48000, 16000), stage):
        found.seconds, found.speech[0], found.vectors[0]        # vector None: too little speech yet

Each of the C channels is a session of its own; all of them go through the network in one batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.errors import ConfigError
from speaker.live import LiveEncoder
from speaker.quality import BELOW_DB, FRAME, QUIET_DB

PAUSE_SECONDS = 0.2  # of a pause that still belong to the speech around it, on either side
DECAY_DB = 2.0  # by which the level that counts as loud falls in a second


class SpeechGate:
    """Lets pass what is speech by its level: near the loudest of late, and not quiet. Works on ragged pieces (n,).

    The rule is that of `speaker.quality`, with nothing but the past to go by. `speech` counts the seconds that were
    speech themselves; the edges of pauses pass, too, and nothing comes more than `PAUSE_SECONDS` late.
    """

    def __init__(self, sample_rate: int) -> None:
        self.size = round(FRAME * sample_rate)
        self._spoken = 0  # frames
        self._loud = QUIET_DB
        self._held = torch.zeros(0)  # less than a frame
        self._silent: list[Tensor] = []  # frames before speech that may yet be its edge
        self._after = 0  # frames after speech that still pass
        self._edge = round(PAUSE_SECONDS / FRAME)

    @property
    def speech(self) -> float:
        """Seconds of speech so far."""
        return round(self._spoken * FRAME, 2)

    def push(self, wav: Tensor) -> Tensor:
        """Samples (n,) -> those of them, and of earlier ones, that are speech: (m,)."""
        self._held = torch.cat([self._held, wav])
        whole = len(self._held) - len(self._held) % self.size
        frames, self._held = self._held[:whole].reshape(-1, self.size), self._held[whole:].clone()
        if not len(frames):
            return frames.flatten()
        centred = frames.double() - frames.double().mean(1, keepdim=True)
        passed: list[Tensor] = []
        for frame, level in zip(frames, (10 * (centred.square().mean(1) + 1e-12).log10()).tolist(), strict=True):
            self._loud = max(level, self._loud - DECAY_DB * FRAME)
            if level > max(QUIET_DB, self._loud - BELOW_DB):
                passed += [*self._silent, frame]
                self._silent, self._after = [], self._edge
                self._spoken += 1
            elif self._after:
                passed.append(frame)
                self._after -= 1
            else:
                self._silent = [*self._silent, frame][-self._edge :]
        return torch.cat(passed) if passed else frames[:0].flatten()


@dataclass(frozen=True)
class LiveEmbeddings:
    """After `seconds` of signal: speech so far and the embedding (D,) of each channel, not normalized."""

    seconds: float
    speech: list[float]
    vectors: list[NDArray[np.float32] | None]


class EmbedStage:
    """(C, n) samples at the encoder's rate -> `LiveEmbeddings` after every hop, and of the rest at the end."""

    def __init__(self, live: LiveEncoder, hop_seconds: float = 0.5, channels: int = 1, gate: bool = True) -> None:
        """`gate`: embed what is speech by its level, not the silence between; without it all counts as speech."""
        self.live = live
        self.rate = live.encoder.config.front_end.sample_rate
        self.hop = round(hop_seconds * self.rate)
        if self.hop < self.rate // 50:
            raise ConfigError(f"an embedding every {hop_seconds:g} s is too often; from 0.02 s up")
        self.sessions = [live.open() for _ in range(channels)]
        self.gates = [SpeechGate(self.rate) for _ in range(channels)] if gate else []
        self.vectors: list[NDArray[np.float32] | None] = [None] * channels
        self.num_samples = 0

    def push(self, item: Tensor) -> list[LiveEmbeddings]:
        found = []
        while item.shape[1]:
            part = item[:, : self.hop - self.num_samples % self.hop]
            item = item[:, part.shape[1] :]
            self.num_samples += part.shape[1]
            self._take(part)
            if self.num_samples % self.hop == 0:
                found.append(self._now())
        return found

    def flush(self) -> list[LiveEmbeddings]:
        return [self._now()] if self.num_samples % self.hop else []

    def _take(self, part: Tensor) -> None:
        for i, (session, wav) in enumerate(zip(self.sessions, part, strict=True)):
            session.push(self.gates[i].push(wav) if self.gates else wav)

    def _now(self) -> LiveEmbeddings:
        """Embed the channels that have enough speech and more of it than when they were last embedded."""
        due = [
            i
            for i, session in enumerate(self.sessions)
            if session.num_samples > session.embedded and session.num_samples >= self.live.encoder.min_samples
        ]
        if due:
            for i, vector in zip(due, self.live.embed([self.sessions[i] for i in due]), strict=True):
                self.vectors[i] = vector.float().cpu().numpy()
        speech = (
            [gate.speech for gate in self.gates]
            if self.gates
            else [session.num_samples / self.rate for session in self.sessions]
        )
        return LiveEmbeddings(self.num_samples / self.rate, speech, list(self.vectors))
