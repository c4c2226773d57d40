"""How good a recording is for telling who speaks: seconds of speech, clipping, band limit. Energy, no network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FRAME = 0.02  # seconds
QUIET_DB = -60.0  # dBFS; a frame below is no speech however quiet the rest is
BELOW_DB = 25.0  # nor is one that far below the loud frames


@dataclass(frozen=True)
class Quality:
    """`seconds` of speech out of `duration`, share of samples that are `clipped`, highest frequency in use (Hz)."""

    seconds: float
    duration: float
    clipped: float
    bandwidth: float

    def warnings(self) -> list[str]:
        """What should keep a user from trusting a score, in sentences."""
        found = []
        if self.seconds == 0:
            found.append("no speech found, it is silence")
        elif self.seconds < 1:
            found.append(f"only {self.seconds:.1f} s of speech; scores are unreliable below 1 s")
        if self.clipped > 1e-3:
            found.append(f"{100 * self.clipped:.1f} % of the samples are clipped")
        if 0 < self.bandwidth < 4_100:
            found.append(f"nothing above {self.bandwidth / 1000:.1f} kHz: recorded at 8 kHz or over a telephone")
        return found


def assess(wav: NDArray[np.float32], rate: int) -> Quality:
    """(N,) samples in [-1, 1] -> what can be said without a model."""
    level, speech = speech_frames(wav, rate)
    if not len(level):
        return Quality(0.0, len(wav) / rate, 0.0, 0.0)
    frames = _frames(wav, rate)
    bandwidth = _bandwidth(frames[speech], rate) if speech.any() else 0.0
    return Quality(float(speech.sum() * FRAME), len(wav) / rate, clipped_share(wav), bandwidth)


def clipped_share(wav: NDArray[np.float32]) -> float:
    """Of samples (N,) as they were recorded: at another rate, or with channels mixed, nothing is at the peak any more.

    A peak that is hit once is a loud sample; many samples at it, side by side, are clipped ones.
    """
    peak = float(np.abs(wav).max(initial=0.0))
    top = np.abs(wav) >= 0.999 * peak
    return float((top[1:] & top[:-1]).mean()) if peak > 0.05 and len(wav) > 1 else 0.0


def speech_frames(wav: NDArray[np.float32], rate: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Level (dBFS) of each frame of FRAME seconds, and whether it is speech."""
    frames = _frames(wav, rate)
    level = 10 * np.log10(np.square(frames - frames.mean(1, keepdims=True)).mean(1) + 1e-12)
    loud = float(np.percentile(level, 95)) if len(level) else 0.0
    return level, level > max(QUIET_DB, loud - BELOW_DB)


def _frames(wav: NDArray[np.float32], rate: int) -> NDArray[np.float64]:
    size = round(FRAME * rate)
    return wav[: len(wav) // size * size].reshape(-1, size).astype(np.float64)


def _bandwidth(frames: NDArray[np.float64], rate: int) -> float:
    """Frequency above which there is 60 dB less power per bin than in the strongest bins, on average over frames."""
    power = np.square(np.abs(np.fft.rfft(frames * np.hanning(frames.shape[1]), axis=1))).mean(0)
    used = np.flatnonzero(power > power.max() * 1e-6)
    return float(used[-1] * rate / frames.shape[1]) if len(used) else 0.0
