"""Voice activity: where in a recording there is speech.

`energy` needs nothing: the level against the noise floor and the loud frames around. `silero` is a small recurrent
network (Silero Team, MIT) that tells speech from other sounds; its weights come in the wheel of silero-vad.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import ConfigError

__all__ = ["FRAME", "METHODS", "regions", "speech_activity"]

METHODS = ("energy", "silero")
FRAME = 0.01  # seconds
AROUND = 5.0  # seconds before and after a frame that say what is loud and what is noise
QUIET_DB = -60.0  # dBFS; below, there is no speech however quiet the rest is
SHARE = 0.35  # of the way from the noise floor to the loud frames
LEAST_DB = 6.0  # by which speech stands out at least


def speech_activity(wav: NDArray[np.float32], rate: int, method: str = "energy") -> NDArray[np.bool_]:
    """Samples (N,) in [-1, 1] -> (T,), one for every whole 10 ms."""
    if method not in METHODS:
        raise ConfigError(f"voice activity by {method!r}: there are {', '.join(METHODS)}")
    return _energy(wav, rate) if method == "energy" else _silero(wav, rate)


def regions(
    active: NDArray[np.bool_], pause: float = 0.3, least: float = 0.2, edge: float = 0.05
) -> list[tuple[float, float]]:
    """Frames (T,) -> (start, end) in seconds: pauses up to `pause` are bridged, what is shorter than `least` dropped,
    and both ends widened by `edge`, since speech begins and ends quietly."""
    changes = np.flatnonzero(np.diff(np.concatenate([[0], active.astype(np.int8), [0]])))
    found: list[tuple[float, float]] = []
    for start, end in changes.reshape(-1, 2) * FRAME:
        if found and start - found[-1][1] <= pause + 1e-9:
            found[-1] = (found[-1][0], float(end))
        else:
            found.append((float(start), float(end)))
    total = len(active) * FRAME
    return [(max(0.0, a - edge), min(total, b + edge)) for a, b in found if b - a >= least - 1e-9]


def levels(wav: NDArray[np.float32], rate: int) -> NDArray[np.float64]:
    """Samples (N,) -> dBFS of every 10 ms, (T,)."""
    size = round(FRAME * rate)
    count = len(wav) // size
    found = np.empty(count)
    for first in range(0, count, 6000):  # a minute at a time
        frames = wav[first * size : min(count, first + 6000) * size].reshape(-1, size).astype(np.float64)
        found[first : first + len(frames)] = 10 * np.log10(frames.var(1) + 1e-12)
    return found


def _energy(wav: NDArray[np.float32], rate: int) -> NDArray[np.bool_]:
    level = levels(wav, rate)
    if not len(level):
        return np.zeros(0, dtype=bool)
    smooth = np.convolve(level, np.ones(5) / 5, mode="same") if len(level) >= 5 else level
    # Floor and loud level of blocks of half a second, over the ten seconds around each block.
    block = round(0.5 / FRAME)
    reach = round(AROUND / 0.5)
    count = -(-len(smooth) // block)
    low, high = np.empty(count), np.empty(count)
    for i in range(count):
        near = smooth[max(0, i - reach) * block : (i + reach + 1) * block]
        near = near[near > -110] if (near > -110).any() else near  # digital silence is no noise floor
        low[i], high[i] = np.percentile(near, 10), np.percentile(near, 95)
    low, high = (np.repeat(each, block)[: len(smooth)] for each in (low, high))
    bound = np.maximum(low + np.maximum(LEAST_DB, SHARE * (high - low)), QUIET_DB)
    # Nothing stands out: continuous speech and continuous noise look alike; what is loud counts as speech.
    flat = high - low < LEAST_DB
    return np.asarray(np.where(flat, smooth > -40.0, smooth > bound))


def _silero(wav: NDArray[np.float32], rate: int, bound: float = 0.5) -> NDArray[np.bool_]:
    """Probabilities of windows of 32 ms, each with the 4 ms before it, as the network was published."""
    if rate != 16_000:
        raise ConfigError(f"silero takes 16 kHz, not {rate} Hz")
    session = _silero_session()
    size, context = 512, 64
    padded = np.concatenate([np.zeros(context, np.float32), wav, np.zeros(-len(wav) % size, np.float32)])
    state, sampled = np.zeros((2, 1, 128), np.float32), np.array(rate, dtype=np.int64)
    active = np.zeros((len(padded) - context) // size, dtype=bool)
    for i in range(len(active)):
        piece = padded[None, i * size : (i + 1) * size + context].astype(np.float32)
        probability, state = session.run(None, {"input": piece, "state": state, "sr": sampled})
        active[i] = probability[0, 0] >= bound
    middle = ((np.arange(len(wav) // round(FRAME * rate)) + 0.5) * FRAME * rate / size).astype(np.int64)
    return active[middle]


def _silero_session() -> Any:
    try:
        import onnxruntime

        found = importlib.util.find_spec("silero_vad")  # not imported: that would bring torchaudio
        if found is None or found.origin is None:
            raise ImportError("silero_vad is not installed")
    except ImportError as error:
        raise ConfigError(f"voice activity by silero needs pip install 'voxcode[vad]' ({error})") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    path = Path(found.origin).parent / "data" / "silero_vad.onnx"
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
