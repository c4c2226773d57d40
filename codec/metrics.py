"""Objective measures of decoded speech against its reference, and intervals for their means.

PESQ-WB is ITU-T P.862.2 (package `pesq`), STOI is Taal et al. 2011 (package `pystoi`); both come with the
`eval` extra and are imported on first use. SI-SDR follows Le Roux et al. 2019. The mel distance is the one
of the ESC and DAC papers: seven scales, L1 between log10 squared magnitudes. These four are METRICS. MORE holds three
that are measured on demand: ESTOI (Jensen and Taal 2016, `pystoi` too), ViSQOL v3 in its speech mode (Chinen et al.
2020, package `visqol-python`) and DNSMOS P.835 overall (Reddy et al. 2022, packages `speechmos` and `onnxruntime`),
which hears the decoded signal alone.
All take one mono signal of 16 kHz as an array or a tensor (N,), reference first. Nothing is aligned, scaled
or trimmed here: the codec promises the same samples at the same place, so a shift must cost.
"""

import functools
import importlib.util
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from engine.errors import AudioError, SpeechError
from engine.spectral import mel_filterbank

SAMPLE_RATE = 16000
# window = n_fft and number of mel bands of each scale; hop is a quarter of the window
MEL_SCALES = ((32, 5), (64, 10), (128, 20), (256, 40), (512, 80), (1024, 160), (2048, 320))

Signal = NDArray[np.float64]


class Interval(NamedTuple):
    """A mean with the ends of its interval and the number of values behind it."""

    mean: float
    low: float
    high: float
    n: int


def pesq_wb(reference: ArrayLike, decoded: ArrayLike) -> float:
    """Return PESQ-WB (1.0 to 4.64), or NaN where P.862 is undefined: under 1/4 s, or no utterance in it."""
    pesq = _import("pesq")
    ref, dec = _pair(reference, decoded)
    # P.862 reads PCM16: rounding here makes a figure the same whether it came from memory or from a file.
    ref16, dec16 = (np.clip(np.round(x * 32768), -32768, 32767).astype(np.int16) for x in (ref, dec))
    if not ref16.any():
        return math.nan
    if not dec16.any():
        # The library divides by the level of the decoded side. Silence in place of speech must cost, not drop out
        # of the mean, so it is scored as the faintest sound there is.
        dec16[::2] = 1
    try:
        return float(pesq.pesq(SAMPLE_RATE, ref16, dec16, "wb"))
    except (pesq.NoUtterancesError, pesq.BufferTooShortError):
        return math.nan


def stoi(reference: ArrayLike, decoded: ArrayLike) -> float:
    """Return STOI (about 0 to 1), or NaN where it is undefined: under 30 frames (0.4 s) above silence."""
    return _stoi(reference, decoded, extended=False)


def estoi(reference: ArrayLike, decoded: ArrayLike) -> float:
    """Return extended STOI, which also hears what a narrower band takes away; NaN as for STOI."""
    return _stoi(reference, decoded, extended=True)


def _stoi(reference: ArrayLike, decoded: ArrayLike, *, extended: bool) -> float:
    pystoi = _import("pystoi")
    ref, dec = _pair(reference, decoded)
    if not ref.any():
        return math.nan
    # pystoi answers a too short input with 1e-5 and a warning; a made-up number must not enter a mean
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return float(pystoi.stoi(ref, dec, SAMPLE_RATE, extended=extended))
        except (RuntimeWarning, ValueError):
            return math.nan


def si_sdr(reference: ArrayLike, decoded: ArrayLike) -> float:
    """Return the scale-invariant signal-to-distortion ratio in dB, means removed; NaN for a silent reference."""
    ref, dec = _pair(reference, decoded)
    ref, dec = ref - ref.mean(), dec - dec.mean()
    target = np.dot(dec, ref) / (np.dot(ref, ref) + 1e-12) * ref
    noise = dec - target
    if not ref.any():
        return math.nan
    return float(10 * np.log10(np.dot(target, target) / (np.dot(noise, noise) + 1e-12) + 1e-12))


def mel_distance(reference: ArrayLike, decoded: ArrayLike) -> float:
    """Return the sum over seven scales of mean |log10 max(M, 1e-5)^2 - log10 max(M', 1e-5)^2|.

    M is the magnitude of a centred, reflect-padded Hann STFT through a Slaney mel filterbank (0 to 8 kHz,
    area-normalized). Signals shorter than half the longest window are padded with silence first.
    """
    ref, dec = (torch.from_numpy(np.pad(x, (0, max(0, 1025 - len(x))))) for x in _pair(reference, decoded))
    distance = 0.0
    for n_fft, n_mels in MEL_SCALES:
        difference = _log_mel(ref, n_fft, n_mels) - _log_mel(dec, n_fft, n_mels)
        distance += float(difference.abs().mean())
    return distance


def visqol(reference: ArrayLike, decoded: ArrayLike) -> float:
    """Return ViSQOL MOS-LQO (1 to 5, about 4.5 for identical signals); NaN under 1 s or where it finds no speech."""
    ref, dec = _pair(reference, decoded)
    if len(ref) < SAMPLE_RATE or not ref.any():
        return math.nan
    if not dec.any():
        return 1.0  # it sets the level of the decoded side itself, which silence has not
    try:
        return float(_visqol().measure_from_arrays(ref, dec, SAMPLE_RATE).moslqo)
    except ValueError:  # what the package raises where no patch can be scored
        return math.nan


@functools.lru_cache(maxsize=1)
def _visqol() -> Any:
    api = _import("visqol", "visqol-python[lattice]").VisqolApi()
    api.create(mode="speech")
    return api


def dnsmos(reference: ArrayLike, decoded: ArrayLike) -> float:
    """Return DNSMOS P.835 overall (1 to 5) of the decoded signal alone; NaN under 1 s."""
    _, dec = _pair(reference, decoded)
    if len(dec) < SAMPLE_RATE:
        return math.nan
    _import("onnxruntime", "speechmos onnxruntime librosa")
    package = _import("speechmos.dnsmos", "speechmos onnxruntime librosa")
    return float(package.run(np.clip(dec, -1, 1), SAMPLE_RATE)["ovrl_mos"])


METRICS: dict[str, Callable[[ArrayLike, ArrayLike], float]] = {
    "pesq_wb": pesq_wb,
    "stoi": stoi,
    "si_sdr": si_sdr,
    "mel_distance": mel_distance,
}
MORE: dict[str, Callable[[ArrayLike, ArrayLike], float]] = {"estoi": estoi, "visqol": visqol, "dnsmos": dnsmos}


def measure(reference: ArrayLike, decoded: ArrayLike, more: Sequence[str] = ()) -> dict[str, float]:
    """Return every metric of METRICS for one pair, and those of MORE that are named."""
    chosen = METRICS | {name: MORE[name] for name in more}
    return {name: metric(reference, decoded) for name, metric in chosen.items()}


def installed(name: str) -> bool:
    """Say whether the packages for a metric of MORE are here."""
    packages = {"estoi": ["pystoi"], "visqol": ["visqol"], "dnsmos": ["speechmos", "onnxruntime", "librosa"]}
    return all(importlib.util.find_spec(package) for package in packages[name])


def bootstrap_interval(values: Sequence[float], n: int = 2000, seed: int = 0) -> Interval:
    """Return mean and 95 % percentile bootstrap interval over files; NaN values are left out and not counted."""
    kept = np.asarray(values, dtype=np.float64)
    kept = kept[~np.isnan(kept)]
    if not len(kept):
        return Interval(math.nan, math.nan, math.nan, 0)
    picks = np.random.default_rng(seed).integers(0, len(kept), (n, len(kept)))
    low, high = np.percentile(kept[picks].mean(axis=1), (2.5, 97.5))
    return Interval(float(kept.mean()), float(low), float(high), len(kept))


def estimate_delay(pairs: Iterable[tuple[ArrayLike, ArrayLike]], max_delay: int = SAMPLE_RATE // 10) -> int:
    """Return the one delay in samples (positive: decoded is late) that correlates best over all pairs."""
    total = np.zeros(2 * max_delay + 1)
    for reference, decoded in pairs:
        ref, dec = (np.asarray(x, dtype=np.float64) for x in (reference, decoded))
        size = 1 << (len(ref) + len(dec) + max_delay).bit_length()
        circular = np.fft.irfft(np.conj(np.fft.rfft(ref, size)) * np.fft.rfft(dec, size), size)
        lags = np.concatenate([circular[-max_delay:], circular[: max_delay + 1]])
        # normalized, so that one loud file does not decide for the folder
        total += lags / (np.sqrt(np.dot(ref, ref) * np.dot(dec, dec)) + 1e-12)
    return int(np.argmax(total)) - max_delay


def _log_mel(wav: torch.Tensor, n_fft: int, n_mels: int) -> torch.Tensor:
    window = torch.hann_window(n_fft, dtype=wav.dtype)
    spectrum = torch.stft(wav, n_fft, n_fft // 4, window=window, center=True, pad_mode="reflect", return_complex=True)
    mel = spectrum.abs().T @ _filterbank(n_mels, n_fft)
    return 2 * torch.log10(mel.clamp(min=1e-5))


@functools.lru_cache(maxsize=len(MEL_SCALES))
def _filterbank(n_mels: int, n_fft: int) -> torch.Tensor:
    return torch.as_tensor(mel_filterbank(n_mels, n_fft, SAMPLE_RATE), dtype=torch.float64)


def _pair(reference: ArrayLike, decoded: ArrayLike) -> tuple[Signal, Signal]:
    ref, dec = (np.asarray(x, dtype=np.float64) for x in (reference, decoded))
    if ref.ndim != 1 or ref.shape != dec.shape or not len(ref):
        raise AudioError(
            f"metrics compare two mono signals of equal length, got shapes {ref.shape} and {dec.shape}; "
            "mix to mono and cut both to the common length first"
        )
    return ref, dec


def _import(package: str, install: str = "'voxcode[eval]'") -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise SpeechError(f"this needs the package {package}: pip install {install}") from error
