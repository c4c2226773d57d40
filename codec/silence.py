"""Discontinuous transmission: who is silent sends a few bytes now and then, and the other side hears the room.

Speech is what stands out of the noise floor: the level of a frame against the quietest of the last seconds (minimum
statistics after Martin 1994, on the level alone), with a hang-over so that word endings stay. A description of the
background is one byte of level and one byte for each of eight bands of a filter; from it the receiver makes noise that
sounds like the room, so that a pause is not taken for a broken line.
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NUM_BANDS = 8
N_FFT = 512
# A background is quieter than what the detector takes for speech in any room (its `loudest` and `threshold`). What says
# otherwise is damaged or hostile, and is not played louder than this; decibels below full scale.
LOUDEST_NOISE = -36.0


def describe(wav: Tensor, sample_rate: int = 16000) -> bytes:
    """(n,) samples of background, 20 ms or more -> 9 bytes: level and bands, in half decibels below full scale."""
    padded = torch.nn.functional.pad(wav, (0, -len(wav) % N_FFT))
    power = torch.fft.rfft(padded.unflatten(0, (-1, N_FFT))).abs().square().sum(0)[1:] / max(len(wav), 1) / N_FFT * 2
    bands = [float(part.sum()) for part in power.tensor_split(_edges(sample_rate))]
    return bytes([_to_byte(sum(bands)), *(_to_byte(band) for band in bands)])


def _edges(sample_rate: int) -> list[int]:
    """Bins at which bands begin, the first left out: narrow ones below, wide ones above, as hearing goes."""
    hz = 125 * 2 ** (np.arange(1, NUM_BANDS) * math.log2(sample_rate / 2 / 125) / NUM_BANDS)
    return [int(round(f * N_FFT / sample_rate)) for f in hz]


def _to_byte(power: float) -> int:
    return min(255, max(0, round(-20 * math.log10(max(power, 1e-12)))))


def _from_byte(value: int) -> float:
    return 10 ** (-value / 20)


class ComfortNoise:
    """Noise of a described level and colour, without seams from frame to frame; changes glide over half a second."""

    def __init__(self, sample_rate: int, seed: int = 0) -> None:
        self._sample_rate = sample_rate
        self._rng = np.random.default_rng(seed)
        self._powers: NDArray[np.float64] | None = None
        self._tail = np.zeros(0)  # made, not yet asked for
        self._overlap = np.zeros(N_FFT // 2)  # second half of the last block

    def restart(self) -> None:
        """Take the next description at once: a new pause need not sound like the last."""
        self._powers = None

    def frames(self, description: bytes, num_samples: int) -> Tensor:
        """The next `num_samples` of noise for a description; one that was cut short is silence."""
        known = len(description) == 1 + NUM_BANDS
        wanted = np.array([_from_byte(b) for b in description[1:]]) if known else np.zeros(NUM_BANDS)
        wanted *= min(1.0, 10 ** (LOUDEST_NOISE / 10) / max(wanted.sum(), 1e-12))
        out = self._tail
        while len(out) < num_samples:
            self._powers = wanted if self._powers is None else 0.9 * self._powers + 0.1 * wanted
            out = np.concatenate([out, self._block()])
        self._tail = out[num_samples:]
        return torch.from_numpy(out[:num_samples].astype(np.float32))

    def _block(self) -> NDArray[np.float64]:
        """Half an FFT of new noise: random phases, windowed by a sine and overlapped with what came before."""
        widths = np.diff([0, *_edges(self._sample_rate), N_FFT // 2])
        assert self._powers is not None
        power = np.repeat(self._powers / widths, widths)
        spectrum = np.zeros(N_FFT // 2 + 1, dtype=complex)
        spectrum[1:] = np.sqrt(power) * np.exp(2j * np.pi * self._rng.random(N_FFT // 2))
        block = np.fft.irfft(spectrum) * N_FFT / math.sqrt(2)
        window = np.sin(np.pi * (np.arange(N_FFT) + 0.5) / N_FFT)
        half = N_FFT // 2
        previous = self._overlap
        self._overlap = block[half:] * window[half:]
        return block[:half] * window[:half] + previous


class ActivityDetector:
    """Whether a frame of 20 ms is speech, from levels alone: causal, no look-ahead.

    `threshold` decibels above the noise floor begin speech, and it lasts `hang_over` frames longer than that. The floor
    is the quietest frame of the last `memory` frames, smoothed over three, so that it follows a room that gets louder,
    between the bounds `quietest` and `loudest`: somebody who speaks without a pause is no floor. All in dBFS.
    """

    def __init__(
        self,
        threshold: float = 9.0,
        hang_over: int = 12,
        memory: int = 150,
        quietest: float = -70.0,
        loudest: float = -45.0,
    ) -> None:
        self.threshold, self.hang_over, self.quietest, self.loudest = threshold, hang_over, quietest, loudest
        self._levels: deque[float] = deque(maxlen=3)
        self._history: deque[float] = deque(maxlen=memory)
        self._left = 0

    def is_speech(self, wav: Tensor) -> bool:
        """(n,) samples of a frame."""
        level = 10 * math.log10(float(wav.square().mean()) + 1e-12)
        self._levels.append(level)
        self._history.append(sum(self._levels) / len(self._levels))
        floor = min(max(min(self._history), self.quietest), self.loudest)
        if level > floor + self.threshold:
            self._left = self.hang_over
            return True
        self._left -= 1
        return self._left >= 0
