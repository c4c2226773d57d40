"""Where there is speech: an adaptive energy detector, and Silero's network as an option (extra `vad`).

    active = speech_activity(wav, 16000)     # (N,) -> (T,) bool at FRAME_RATE
    spans = segments(active)                 # (S, 2) seconds, pauses filled, blips dropped

Both work on blocks (`DETECTORS[method](rate)`, `push`, `finish`), so a file of hours is never in memory at once.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from engine import audio
from engine.errors import ConfigError, SpeechError

__all__ = ["DETECTORS", "FRAME_RATE", "Detector", "Method", "frames_in", "segments", "speech_activity"]

FRAME_RATE = 100  # decisions a second
Method = Literal["energy", "silero"]
Wav = NDArray[np.float32]
Active = NDArray[np.bool_]

WIN_SECONDS = 0.025
BANDS = 12  # of equal width: then noise keeps the same distance from its minimum in all of them
BAND_HZ = (150.0, 4000.0)
FLOOR_SECONDS = 5.0  # in which every band is expected to fall to the noise once: between words, or between sounds
# So far below its mean lies the minimum over FLOOR_SECONDS of noise averaged over 5 frames (white noise, simulated).
MINIMUM_DB = 3.5
ABSOLUTE_DB = -65.0  # dBFS of a band; below, it counts as silence, whatever digital silence may be below that
ON_DB, OFF_DB = 3.5, 2.0  # mean over bands of the distance to the noise: starts speech, keeps it on
BELOW_LOUD_DB = 38.0  # what is so far below the loud frames of the recording is no speech to be attributed


class Detector(Protocol):
    """Takes samples as they come, decides at the end."""

    def push(self, wav: Wav) -> None:
        """Take (n,) samples."""

    def finish(self) -> Active:
        """(T,) at FRAME_RATE of all that was pushed."""


def speech_activity(wav: Wav, rate: int, method: Method = "energy") -> Active:
    """(N,) samples -> (T,) whether there is speech, FRAME_RATE decisions a second, T = ceil(N * FRAME_RATE / rate).

    Frame t is the 10 ms from t / FRAME_RATE on. `energy` follows the noise and needs nothing; `silero` is a network.
    """
    detector = detector_of(method)(rate)
    detector.push(wav)
    return detector.finish()


def segments(
    active: Active, min_silence: float = 0.3, min_speech: float = 0.2, hangover: float = 0.05
) -> NDArray[np.float64]:
    """(T,) frames -> (S, 2) starts and ends in seconds.

    Pauses shorter than `min_silence` are filled, then speech shorter than `min_speech` is dropped, and what is left
    grows by `hangover` at both ends, for words begin and end softly.
    """
    starts, ends = _runs(active)
    if not len(starts):
        return np.zeros((0, 2))
    kept = (starts[1:] - ends[:-1]) >= round(min_silence * FRAME_RATE)
    starts, ends = starts[np.append(True, kept)], ends[np.append(kept, True)]
    long = (ends - starts) >= round(min_speech * FRAME_RATE)
    spans = np.stack([starts[long], ends[long]], axis=1) / FRAME_RATE
    room = np.minimum(hangover, (spans[1:, 0] - spans[:-1, 1]) / 2)  # neighbours may meet in the middle of a pause
    spans[:, 0] -= np.append(hangover, room)[: len(spans)]
    spans[:, 1] += np.append(room, hangover)[: len(spans)]
    return np.clip(spans, 0, len(active) / FRAME_RATE)


def frames_in(num_samples: int, rate: int) -> int:
    """Decisions for so many samples."""
    return -(-num_samples * FRAME_RATE // rate)


class EnergyActivity:
    """Distance of each band's power to its own noise, which is the minimum over the seconds around, decided by two
    thresholds: speech begins where the mean distance exceeds ON_DB and goes on while it exceeds OFF_DB.

    The minimum follows noise that changes within seconds (Martin 2001, without the optimal smoothing, but looking to
    both sides); a loud and a quiet speaker are measured against the same noise.
    """

    def __init__(self, rate: int) -> None:
        self.hop, self.size = rate / FRAME_RATE, max(round(WIN_SECONDS * rate), 8)
        self.n_fft = 1 << (self.size - 1).bit_length()
        frequency = np.fft.rfftfreq(self.n_fft, 1 / rate)
        edges = np.linspace(BAND_HZ[0], min(BAND_HZ[1], 0.48 * rate), BANDS + 1)
        inside = (frequency >= edges[:-1, None]) & (frequency < edges[1:, None])
        self.window = np.hanning(self.size + 2)[1:-1].astype(np.float32)
        # White noise of variance v has v in each band: levels are comparable to the samples'.
        self.bands = (inside / np.maximum(inside.sum(1, keepdims=True), 1)).T / np.square(self.window).sum()
        # A frame's window is centred in its 10 ms.
        self.held = np.zeros(int(self.size - self.hop) // 2, dtype=np.float32)
        self.first, self.total, self.power = -len(self.held), 0, list[NDArray[np.float32]]()

    def push(self, wav: Wav) -> None:
        """Take (n,) samples."""
        self.held = np.concatenate([self.held, wav])
        self.total += len(wav)
        self._measure(self.first + len(self.held) - self.size)

    def finish(self) -> Active:
        """(T,) at FRAME_RATE of all that was pushed."""
        num_frames = int(np.ceil(self.total / self.hop - 1e-9))
        if not num_frames:
            return np.zeros(0, dtype=bool)
        self.held = np.concatenate([self.held, np.zeros(2 * self.size, dtype=np.float32)])
        self._measure(self.first + len(self.held) - self.size)
        return decide(np.concatenate(self.power)[:num_frames])

    def _measure(self, last: int) -> None:
        """Band powers of the frames that begin at sample `last` or before."""
        lead, done = int(self.size - self.hop) // 2, sum(map(len, self.power))
        begins = np.arange(done, int((last + lead) / self.hop) + 1)
        begins = (begins * self.hop).astype(np.int64) - lead
        begins = begins[begins <= last]
        for chunk in np.array_split(begins, max(1, len(begins) // 2048)):
            if len(chunk):
                frames = self.held[chunk[:, None] - self.first + np.arange(self.size)]
                frames = (frames - frames.mean(1, keepdims=True)) * self.window
                spectrum = np.abs(np.fft.rfft(frames, self.n_fft, axis=1))
                self.power.append((np.square(spectrum) @ self.bands).astype(np.float32))
        if len(begins):
            keep = max(0, int(begins[-1]) - self.first)
            self.held, self.first = self.held[keep:], self.first + keep


def decide(power: NDArray[np.float32]) -> Active:
    """(T, BANDS) powers of full scale 1 -> (T,) speech."""
    level = 10 * np.log10(_around(power, 5, "mean") + 10 ** (ABSOLUTE_DB / 10))
    noise = -_around(-level, round(FLOOR_SECONDS * FRAME_RATE), "max") + MINIMUM_DB
    distance = np.maximum(level - noise, 0).mean(1)
    loudness = 10 * np.log10(power.mean(1) + 1e-10)
    loud = loudness > max(ABSOLUTE_DB, float(np.percentile(loudness, 98)) - BELOW_LOUD_DB)
    return hysteresis(distance, ON_DB, OFF_DB) & (_around(loud[:, None].astype(np.float32), 11, "max")[:, 0] > 0)


def hysteresis(values: NDArray[Any], on: float, off: float) -> Active:
    """(T,) -> the stretches above `off` that rise above `on` somewhere."""
    kept = np.zeros(len(values), dtype=bool)
    for start, end in zip(*_runs(values > off), strict=True):
        kept[start:end] = values[start:end].max() > on
    return kept


class SileroActivity:
    """Silero VAD, the 16 kHz network that the wheel of silero-vad brings (MIT), on ONNX Runtime.

    The file alone is used: importing the package would set torch's number of threads.
    """

    RATE, CHUNK, CONTEXT = 16_000, 512, 64
    CHUNKS = 512  # in a call
    ON, OFF = 0.5, 0.35  # Silero's own

    def __init__(self, rate: int) -> None:
        self.session = _silero_session()
        self.resampler = audio.Resampler(rate, self.RATE, 1)
        self.rate, self.total = rate, 0
        self.state = [np.zeros((1, 1, 128), dtype=np.float32) for _ in range(2)]
        self.held = np.zeros(self.CONTEXT, dtype=np.float32)  # context of the first chunk, then what is not a chunk yet
        self.speech: list[NDArray[np.float32]] = []

    def push(self, wav: Wav) -> None:
        """Take (n,) samples."""
        self.total += len(wav)
        self._feed(self.resampler.push(torch.from_numpy(np.ascontiguousarray(wav))[None])[0].numpy())

    def finish(self) -> Active:
        """(T,) at FRAME_RATE of all that was pushed."""
        self._feed(np.append(self.resampler.flush()[0].numpy(), np.zeros(self.CHUNK - 1, dtype=np.float32)))
        num_frames = frames_in(self.total, self.rate)
        if not num_frames:
            return np.zeros(0, dtype=bool)
        active = hysteresis(np.concatenate(self.speech), self.ON, self.OFF)
        chunk = ((np.arange(num_frames) + 0.5) * self.RATE / FRAME_RATE).astype(np.int64) // self.CHUNK
        return active[np.minimum(chunk, len(active) - 1)]

    def _feed(self, wav: Wav) -> None:
        self.held = np.concatenate([self.held, wav])
        count = (len(self.held) - self.CONTEXT) // self.CHUNK
        for first in range(0, count, self.CHUNKS):
            rows = np.arange(first, min(first + self.CHUNKS, count))[:, None] * self.CHUNK
            block = self.held[rows + np.arange(self.CONTEXT + self.CHUNK)]
            inputs = {"input": block, "h": self.state[0], "c": self.state[1]}
            probability, *self.state = self.session.run(["speech_probs", "hn", "cn"], inputs)
            self.speech.append(probability.reshape(-1))
        self.held = self.held[count * self.CHUNK :]


DETECTORS: dict[str, type[EnergyActivity] | type[SileroActivity]] = {
    "energy": EnergyActivity,
    "silero": SileroActivity,
}


def detector_of(method: str) -> type[EnergyActivity] | type[SileroActivity]:
    """The detector of that name; ConfigError if there is none."""
    if method not in DETECTORS:
        raise ConfigError(f"no voice activity detector {method!r}; there are {' and '.join(DETECTORS)}")
    return DETECTORS[method]


def _silero_session() -> Any:
    found = importlib.util.find_spec("silero_vad")
    try:
        import onnxruntime
    except ModuleNotFoundError:
        found = None
    if found is None or found.origin is None:
        raise SpeechError(
            "Silero's voice activity detector is not installed; `pip install 'voxcode[vad]'`, or use energy"
        )
    path = Path(found.origin).parent / "data" / "silero_vad_16k_sequence.onnx"
    if not path.is_file():
        raise SpeechError(f"{path} is missing; this needs silero-vad 6.2.3 or later: `pip install -U silero-vad`")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _around(x: NDArray[np.float32], width: int, what: Literal["mean", "max"]) -> NDArray[np.float32]:
    """(T, C) -> (T, C): mean or maximum of the `width` frames around each, fewer at the ends."""
    rows = torch.from_numpy(np.ascontiguousarray(x.T))[None]
    if what == "max":
        out = F.max_pool1d(rows, width | 1, stride=1, padding=width // 2)
    else:
        out = F.avg_pool1d(rows, width | 1, stride=1, padding=width // 2, count_include_pad=False)
    return np.ascontiguousarray(out[0].numpy().T)


def _runs(active: Active) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Starts and ends (one behind the last) of the stretches of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], active, [False]]).astype(np.int8)))
    return edges[::2], edges[1::2]
