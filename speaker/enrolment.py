"""Is a recording good enough to enrol a speaker with? What is wrong with it, in sentences.

    quality = assess_enrolment(encoder, wav, 16000)
    if not quality.acceptable:
        print(*quality.reasons(), sep="\\n")

Without a model: seconds of speech, signal-to-noise ratio, clipping, band limit. With one also whether a second voice
speaks: the embeddings of overlapping windows of the speech are split into a stretch of time and the rest, and the split
whose means agree least (cosine) tells how far apart two parts of the recording are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine import audio
from engine.errors import AudioError
from speaker.model import SpeakerEncoder
from speaker.quality import FRAME, Quality, assess, speech_frames

__all__ = ["EnrolmentQuality", "agreement", "assess_enrolment", "signal_to_noise", "window_embeddings"]

MIN_SECONDS = 3.0  # of speech
MIN_SNR = 5.0  # dB; clean speech that is cut tightly, hardly a pause in it, reads as low as 9
MAX_SNR = 60.0  # what is said of digital silence between words
NOISE_PERCENT = 30
MAX_CLIPPED = 1e-3
NARROW_HZ = 4_100.0
WINDOW, HOP = 1.5, 0.75  # seconds of speech
LEAST_SHARE = 0.2  # of the windows, on either side of a split; fewer have means that are mostly chance
MIN_WINDOWS = 4
# Of the shipped encoder: 3 % of the clips of one of its training speakers lie below, 4 % of others
# (benchmarks.enrolment_quality).
MIN_AGREEMENT = 0.50


@dataclass(frozen=True)
class EnrolmentQuality:
    """`snr` in dB; `agreement` the cosine of the two parts that agree least, NaN for too little speech."""

    quality: Quality
    snr: float
    agreement: float

    def reasons(self) -> list[str]:
        """What speaks against enrolling it, a sentence each."""
        found = self._blocking()
        if 0 < self.quality.bandwidth < NARROW_HZ:
            found.append(f"nothing above {self.quality.bandwidth / 1000:.1f} kHz: recorded at 8 kHz or over a "
                         "telephone, and best compared with such recordings")  # fmt: skip
        return found

    @property
    def acceptable(self) -> bool:
        """Nothing of it misleads; a narrow band alone does not, where all recordings come over the telephone."""
        return not self._blocking()

    def _blocking(self) -> list[str]:
        if self.quality.seconds == 0:
            return ["no speech found, it is silence"]
        found = []
        if self.quality.seconds < MIN_SECONDS:
            found.append(f"only {self.quality.seconds:.1f} s of speech; {MIN_SECONDS:g} s are needed")
        if self.snr < MIN_SNR:
            found.append(f"noisy: speech is {self.snr:.0f} dB above the noise; {MIN_SNR:g} dB are needed")
        if self.quality.clipped > MAX_CLIPPED:
            found.append(f"{100 * self.quality.clipped:.1f} % of the samples are clipped; record it less loud")
        if self.agreement < MIN_AGREEMENT:
            found.append(f"it sounds like two voices: the cosine between two parts of it is {self.agreement:.2f}, of "
                         f"one voice mostly above {MIN_AGREEMENT:.2f}")  # fmt: skip
        return found


def assess_enrolment(encoder: SpeakerEncoder | None, wav: NDArray[np.float32] | Tensor, rate: int) -> EnrolmentQuality:
    """(N,) samples in [-1, 1] -> quality; without an encoder voices are not told apart.

    AudioError for another shape, and for what is not finite.
    """
    samples = np.asarray(wav, dtype=np.float32)
    if samples.ndim != 1:
        raise AudioError(f"expected samples (N,) of one channel, got shape {samples.shape}; of what audio.load gives, "
                         "(channels, N), take wav[0]")  # fmt: skip
    if not np.isfinite(samples).all():
        raise AudioError("the samples contain NaN or infinity")
    found = math.nan if encoder is None else agreement(window_embeddings(encoder, samples, rate))
    return EnrolmentQuality(assess(samples, rate), signal_to_noise(samples, rate), found)


def signal_to_noise(wav: NDArray[np.float32], rate: int) -> float:
    """Estimate, in dB: the power of the louder half of the frames over the level that 3 of 10 frames stay below.

    The louder half holds the noise too, which is taken off. Right for steady noise; too low where nobody pauses, too
    high where the noise itself does. 0 to MAX_SNR; 0 without speech.
    """
    level, speech = speech_frames(wav, rate)
    if not speech.any():
        return 0.0
    power = 10 ** (level / 10)
    noise = float(np.percentile(power, NOISE_PERCENT))
    ratio = float(power[power >= np.median(power)].mean()) / max(noise, 1e-12) - 1
    return min(MAX_SNR, max(0.0, 10 * math.log10(max(ratio, 1e-9))))


@torch.inference_mode()
def window_embeddings(encoder: SpeakerEncoder, wav: NDArray[np.float32], rate: int) -> NDArray[np.float64]:
    """(n, D): unit embeddings of overlapping windows of the speech, pauses left out; none where it is too short."""
    _, speech = speech_frames(wav, rate)
    size = round(FRAME * rate)
    spoken = torch.from_numpy(wav[: len(speech) * size].reshape(-1, size)[speech].reshape(1, -1))
    own = encoder.config.front_end.sample_rate
    if own != rate and spoken.numel():
        spoken = audio.resample(spoken, rate, own)
    length, hop = max(round(WINDOW * own), encoder.min_samples), round(HOP * own)
    if spoken.shape[1] < length:
        return np.zeros((0, encoder.embedding_dim))
    device = next(encoder.parameters()).device
    windows = spoken[0].unfold(0, length, hop)
    vectors = torch.cat([encoder(part.to(device)).cpu().double() for part in windows.split(16)]).numpy()
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))


def agreement(vectors: NDArray[np.float64]) -> float:
    """Least cosine between the mean of a stretch of windows and the mean of the others; NaN for too few windows."""
    total = len(vectors)
    if total < MIN_WINDOWS:
        return math.nan
    least = max(2, math.ceil(LEAST_SHARE * total))
    sums = np.concatenate([np.zeros((1, vectors.shape[1])), vectors.cumsum(0)])
    lowest = 1.0
    for start in range(total - least + 1):
        stops = np.arange(start + least, min(total, start + total - least) + 1)
        inside = sums[stops] - sums[start]
        outside = sums[-1] - inside
        norms = np.linalg.norm(inside, axis=1) * np.linalg.norm(outside, axis=1)
        cosines = (inside * outside).sum(1) / np.maximum(norms, 1e-12)
        lowest = min(lowest, float(cosines.min(initial=1.0)))
    return lowest
