"""Random disturbances of speech crops, shared by codec and speaker training: rooms, noise, bands, codecs, levels.

    augment = Augment(AugmentConfig(noise_probability=0.5, noise_paths=("noise/",)), sample_rate=16_000)
    disturbed = augment(wav, rng)  # (N,) float32 -> (N,) float32

A crop passes the effects in the order of sound on its way: speaking rate, room, other voices, noise, overdriven
microphone, band of the line, level, coding, polarity. The result depends on the crop and on the state of `rng` alone.
What must be aligned with a clean target stays aligned: no effect but speed delays or advances the signal.

Guide to cost, milliseconds for 1 s of 16 kHz on one core: clipping, mu-law, level or noise 0.1, babble or speed 0.4,
a band 0.6, reverberation 1, Vorbis 7, MP3 9, Opus 30, the live codec 50 to 70.
"""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import codec
from engine import audio
from engine.errors import ConfigError, SpeechError

log = logging.getLogger(__name__)
Wav = NDArray[np.float32]
Voices = Sequence[np.ndarray] | Callable[[np.random.Generator], np.ndarray]

SILENCE = 1e-9  # mean square; a signal below -90 dBFS has no level to relate anything to
TRANSITION = 200.0  # Hz between pass band and stop band of the band limits
TELEPHONE = (300.0, 3400.0)  # Hz
FILE_PEAK = 0.7  # of what is written to a lossy file, at most; full scale is 1
# Lossy file formats: suffix, and the range of libsndfile's compression level (0 best, 1 smallest). For 16 kHz speech
# Vorbis has 105 to 50 kbit/s, Opus 120 to 13 with its container, MP3 (which has nothing above 0.9) 67 to 32.
FILE_CODECS = {"vorbis": (".ogg", 0.0, 1.0), "opus": (".opus", 0.6, 1.0), "mp3": (".mp3", 0.0, 0.9)}


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Which effects, how often and how strong; ranges are uniform. Everything is off by default.

    Paths are sound files, folders of them, or CSV files with a column `path` (relative to the CSV) and perhaps
    `split`, of which the rows `noise` or `rir` are taken.
    """

    speed_probability: float = 0.0
    speed_factors: tuple[float, ...] = (0.9, 1.1)
    reverb_probability: float = 0.0
    reverb_paths: tuple[str, ...] = ()  # impulse responses; without any, synthetic ones of the two ranges below
    reverb_rt60: tuple[float, float] = (0.15, 0.8)  # s
    reverb_drr: tuple[float, float] = (-3.0, 12.0)  # dB, direct to reverberant
    babble_probability: float = 0.0
    babble_voices: tuple[int, int] = (3, 7)
    babble_snr: tuple[float, float] = (10.0, 20.0)  # dB
    noise_probability: float = 0.0
    noise_paths: tuple[str, ...] = ()
    noise_snr: tuple[float, float] = (0.0, 20.0)  # dB
    clipping_probability: float = 0.0
    clipping_depth: tuple[float, float] = (1.0, 12.0)  # dB below the peak
    band_limit_probability: float = 0.0
    band_limit_cutoff: tuple[float, float] = (2000.0, 7500.0)  # Hz
    telephone_probability: float = 0.0
    level_probability: float = 0.0
    level_dbfs: tuple[float, float] = (-38.0, -14.0)  # active speech
    file_codec_probability: float = 0.0
    file_codecs: tuple[str, ...] = ("mulaw", "vorbis", "opus", "mp3")
    neural_codec_probability: float = 0.0
    neural_codec: str = ""  # name or folder of a checkpoint
    polarity_probability: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name.endswith("_probability") and not 0 <= value <= 1:
                raise ConfigError(f"{name} must be 0 to 1, got {value}")
        for name in ("reverb_rt60", "reverb_drr", "babble_voices", "babble_snr", "noise_snr", "clipping_depth",
                     "band_limit_cutoff", "level_dbfs"):  # fmt: skip
            value = getattr(self, name)
            if len(value) != 2 or not all(map(math.isfinite, value)) or value[0] > value[1]:
                raise ConfigError(f"{name} must be two numbers, the lower first, got {value}")
        for name in ("reverb_rt60", "babble_voices", "band_limit_cutoff"):
            if getattr(self, name)[0] <= 0:
                raise ConfigError(f"{name} must be positive, got {getattr(self, name)}")
        if self.clipping_depth[0] < 0 or self.level_dbfs[1] > 0:
            raise ConfigError("clipping_depth must not be negative and level_dbfs not positive")
        if not self.speed_factors or not all(0.5 <= factor <= 2 for factor in self.speed_factors):
            raise ConfigError(f"speed_factors must be 0.5 to 2, at least one, got {self.speed_factors}")
        known = {"mulaw", *FILE_CODECS}
        if not self.file_codecs or not known.issuperset(self.file_codecs):
            raise ConfigError(f"file_codecs must be some of {', '.join(sorted(known))}, got {self.file_codecs}")


# Effects with given strength: (N,) float32 -> (N,) float32, the argument untouched. Peaks may pass full scale.


def active_power(wav: np.ndarray, sample_rate: int) -> float:
    """Mean square of (N,) over its active 20 ms frames: those less than 15.9 dB below the result.

    The margin is that of ITU-T P.56, without its smoothed envelope. The fixed point is reached from below: a higher
    threshold drops weak frames, which raises the mean.
    """
    starts = np.arange(0, len(wav), sample_rate // 50)
    sizes = np.diff(starts, append=len(wav))
    power = np.add.reduceat(np.square(wav, dtype=np.float64), starts) / sizes
    level = float(power.mean())
    while (higher := float(power[power >= level / 39].mean())) > level:
        level = higher
    return level


def add_noise(wav: Wav, noise: Wav, snr: float, sample_rate: int) -> Wav:
    """Add noise (N,) so that active speech is `snr` dB above it; silence on either side changes nothing."""
    speech, power = active_power(wav, sample_rate), float(np.mean(np.square(noise, dtype=np.float64)))
    if min(speech, power) < SILENCE:
        return wav
    return wav + noise * math.sqrt(speech / power * 10 ** (-snr / 10))


def reverberate(wav: Wav, rir: Wav) -> Wav:
    """Convolve with an impulse response that begins with its direct path, and restore the energy."""
    out = _convolve(wav, rir[: len(wav)], 0)  # what comes later falls beyond the end
    before, after = (float(np.sum(np.square(x, dtype=np.float64))) for x in (wav, out))
    return out * math.sqrt(before / after) if min(before, after) > SILENCE * len(wav) else wav


def synthetic_rir(rng: np.random.Generator, sample_rate: int, rt60: float, drr: float) -> Wav:
    """Impulse response (rt60 * sample_rate,): a direct path of 1, 2.5 ms later noise that decays 60 dB in `rt60` s.

    `drr` is the ratio of their energies in dB. The model is Moorer's (1979) of late reverberation.
    """
    start = sample_rate // 400
    time = np.arange(max(1, round(rt60 * sample_rate) - start)) / sample_rate
    tail = rng.standard_normal(len(time)) * 10 ** (-3 * time / rt60)
    tail *= math.sqrt(10 ** (-drr / 10) / float(tail @ tail))
    return np.concatenate([[1.0], np.zeros(start - 1), tail]).astype(np.float32)


def direct_path_first(rir: Wav) -> Wav:
    """Drop what comes before the largest peak, make that +1, and cut the end that holds a millionth of the energy."""
    peak = int(np.argmax(np.abs(rir)))
    rir = rir[peak:] / rir[peak]
    remaining = np.cumsum(np.square(rir[::-1], dtype=np.float64))[::-1]
    return rir[: int(np.count_nonzero(remaining > 1e-6 * remaining[0]))]


def speed(wav: Wav, factor: float) -> Wav:
    """Play `factor` times as fast: (N,) -> about (N / factor,), pitch and formants times `factor`, a new speaker."""
    rate = 10_000
    return audio.resample(torch.tensor(wav), round(rate * factor), rate).numpy()


def band_limit(wav: Wav, sample_rate: int, low: float, high: float) -> Wav:
    """Keep `low` to `high` Hz without delay; 60 dB less from `high` + 200 Hz on, and 200 Hz below `low` (0: from 0)."""
    taps = _band_taps(sample_rate, low, high)
    return _convolve(wav, taps, len(taps) // 2)


@lru_cache(maxsize=8)  # the telephone's; a random cutoff hardly ever returns
def _band_taps(sample_rate: int, low: float, high: float) -> Wav:
    """Symmetric windowed sinc; length and beta of its window by Kaiser's formulae (1974) for 60 dB."""
    half = math.ceil((60 - 7.95) / (2.285 * 2 * math.pi * TRANSITION / sample_rate) / 2)
    time = np.arange(-half, half + 1) / sample_rate
    edges = [high + TRANSITION / 2] + ([low - TRANSITION / 2] if low else [])
    sincs = [2 * edge / sample_rate * np.sinc(2 * edge * time) for edge in edges]
    ideal = sincs[0] - sincs[1] if low else sincs[0]
    return (ideal * np.kaiser(2 * half + 1, 0.1102 * (60 - 8.7))).astype(np.float32)


def clip(wav: Wav, depth: float) -> Wav:
    """Cut everything above `depth` dB below the peak."""
    limit = float(np.abs(wav).max()) * 10 ** (-depth / 20)
    return np.clip(wav, -limit, limit)


def set_level(wav: Wav, dbfs: float, sample_rate: int) -> Wav:
    """Remove the mean and bring active speech to `dbfs`, or as near as a peak of 0.99 allows; silence is left alone."""
    centred = wav - float(wav.mean(dtype=np.float64))
    power = active_power(centred, sample_rate)
    if power < SILENCE:
        return wav
    return centred * min(10 ** (dbfs / 20) / math.sqrt(power), 0.99 / float(np.abs(centred).max()))


def mulaw(wav: Wav) -> Wav:
    """Quantize to 8 bits on the mu-law scale (mu = 255, the continuous curve of ITU-T G.711) and back."""
    steps = np.round(np.log1p(255 * np.abs(wav)) * (127 / math.log(256)))
    return (np.sign(wav) * np.expm1(steps * (math.log(256) / 127)) / 255).astype(np.float32)


def _convolve(wav: Wav, taps: Wav, start: int) -> Wav:
    """(N,) and (M,) -> N samples of their convolution, from `start` on."""
    size = 1 << (len(wav) + len(taps) - 2).bit_length()
    product = np.fft.rfft(wav, size) * np.fft.rfft(taps, size)
    return np.fft.irfft(product, size)[start : start + len(wav)].astype(np.float32)


# Recordings to disturb with


def load_pool(field: str, paths: Sequence[str], sample_rate: int) -> list[np.ndarray]:
    """Decode recordings (see AugmentConfig) to int16 arrays (N,) of full scale: first channel, level not kept.

    Bad files are named and skipped. Raises ConfigError, naming the configuration's `field`, if nothing remains.
    """
    pool = []
    split = "rir" if field.startswith("reverb") else "noise"
    for path in [file for entry in paths for file in _files(field, Path(entry), split)]:
        try:
            wav, _ = audio.load(path, sample_rate)
        except SpeechError as error:
            log.warning("skipped: %s", error)
            continue
        peak = wav[0].abs().max()
        if peak > 0:
            pool.append(audio.to_pcm16(wav[0] / peak).numpy())
    if not pool:
        raise ConfigError(f"{field}: no recording to use in {list(paths)}; name files, folders or manifests with some")
    return pool


def _files(field: str, path: Path, split: str) -> Iterator[Path]:
    if path.is_dir():
        yield from sorted(file for file in path.rglob("*") if file.suffix.lower() in audio.FORMATS)
    elif not path.is_file():
        raise ConfigError(f"{field}: {path} does not exist")
    elif path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if "path" not in (reader.fieldnames or ()):
                raise ConfigError(f"{field}: {path} has no column 'path'")
            yield from (path.parent / row["path"] for row in reader if row.get("split", split) == split)
    else:
        yield path


def random_crop(recording: np.ndarray, num_samples: int, rng: np.random.Generator) -> Wav:
    """A random piece of a recording, float32 on its own scale; a shorter one is looped from a random point."""
    spare = len(recording) - num_samples
    if spare < 0:
        return np.resize(np.roll(recording, int(rng.integers(len(recording)))), num_samples).astype(np.float32)
    start = int(rng.integers(spare + 1))
    return recording[start : start + num_samples].astype(np.float32)


class Augment:
    """The chain. Recordings are decoded once, here; the object can be sent to worker processes.

    `babble` gives other speakers' voices: a list of recordings, or a function of `rng` that returns one (in worker
    processes that start afresh it has to be picklable). Raises ConfigError for an effect that lacks what it needs.
    """

    def __init__(self, config: AugmentConfig, sample_rate: int, babble: Voices = ()) -> None:
        self.config, self.sample_rate, self.babble = config, sample_rate, babble
        self.noises: list[np.ndarray] = []
        self.rirs: list[Wav] = []
        if config.noise_probability:
            self.noises = load_pool("noise_paths", config.noise_paths, sample_rate)
        if config.reverb_probability and config.reverb_paths:
            pool = load_pool("reverb_paths", config.reverb_paths, sample_rate)
            self.rirs = [direct_path_first(rir.astype(np.float32)) for rir in pool]
        if config.babble_probability and not callable(babble) and not len(babble):
            raise ConfigError("babble_probability is above 0 but babble is empty; give Augment some voices")
        limits = {"band_limit": config.band_limit_cutoff[1], "telephone": TELEPHONE[1]}
        for name, cutoff in limits.items():
            if getattr(config, f"{name}_probability") and cutoff + TRANSITION > sample_rate / 2:
                raise ConfigError(f"{name} up to {cutoff:g} Hz needs a sample rate above {sample_rate} Hz")
        self.codec = self._load_codec() if config.neural_codec_probability else None
        self.effects = (
            (config.reverb_probability, self._reverb),
            (config.babble_probability, self._babble),
            (config.noise_probability, self._noise),
            (config.clipping_probability, self._clipping),
            (config.band_limit_probability, self._band_limit),
            (config.telephone_probability, self._telephone),
            (config.level_probability, self._level),
            (config.file_codec_probability, self._file_codec),
            (config.neural_codec_probability, self._neural_codec),
            (config.polarity_probability, self._polarity),
        )

    def source_length(self, num_samples: int) -> int:
        """Samples to take from a recording so that speed never runs out of them."""
        fastest = max(1.0, *self.config.speed_factors) if self.config.speed_probability else 1.0
        return math.ceil(num_samples * fastest)

    def __call__(self, wav: Wav, rng: np.random.Generator, num_samples: int | None = None) -> Wav:
        """(M,) -> (num_samples,), by default as many as come in; with no effect drawn the samples are those of `wav`.

        Speed needs more than it gives: take `source_length(num_samples)` samples. What is too many is cut at the end;
        too few (the default) are looped, with a seam. The peak is at most 1, brought down as a whole, never cut.
        """
        num_samples = len(wav) if num_samples is None else num_samples
        assert wav.ndim == 1 and wav.dtype == np.float32 and len(wav), "one crop of float32 samples"
        if rng.random() < self.config.speed_probability:
            wav = _within_full_scale(speed(wav, float(rng.choice(self.config.speed_factors))))
        if len(wav) != num_samples:
            wav = np.resize(wav, num_samples)
        for probability, effect in self.effects:
            if rng.random() < probability:
                wav = _within_full_scale(effect(wav, rng))
        return wav

    def _reverb(self, wav: Wav, rng: np.random.Generator) -> Wav:
        if self.rirs:
            return reverberate(wav, self.rirs[rng.integers(len(self.rirs))])
        rt60, drr = rng.uniform(*self.config.reverb_rt60), rng.uniform(*self.config.reverb_drr)
        return reverberate(wav, synthetic_rir(rng, self.sample_rate, rt60, drr))

    def _babble(self, wav: Wav, rng: np.random.Generator) -> Wav:
        low, high = self.config.babble_voices
        total = np.zeros_like(wav)
        for _ in range(rng.integers(low, high + 1)):
            voice = self.babble(rng) if callable(self.babble) else self.babble[int(rng.integers(len(self.babble)))]
            crop = random_crop(voice, len(wav), rng)
            total += crop / math.sqrt(max(active_power(crop, self.sample_rate), SILENCE))  # equally loud
        return add_noise(wav, total, rng.uniform(*self.config.babble_snr), self.sample_rate)

    def _noise(self, wav: Wav, rng: np.random.Generator) -> Wav:
        noise = random_crop(self.noises[rng.integers(len(self.noises))], len(wav), rng) / np.float32(32768)
        return add_noise(wav, noise, rng.uniform(*self.config.noise_snr), self.sample_rate)

    def _clipping(self, wav: Wav, rng: np.random.Generator) -> Wav:
        return clip(wav, rng.uniform(*self.config.clipping_depth))

    def _band_limit(self, wav: Wav, rng: np.random.Generator) -> Wav:
        return band_limit(wav, self.sample_rate, 0.0, rng.uniform(*self.config.band_limit_cutoff))

    def _telephone(self, wav: Wav, rng: np.random.Generator) -> Wav:
        return band_limit(wav, self.sample_rate, *TELEPHONE)

    def _level(self, wav: Wav, rng: np.random.Generator) -> Wav:
        return set_level(wav, rng.uniform(*self.config.level_dbfs), self.sample_rate)

    def _file_codec(self, wav: Wav, rng: np.random.Generator) -> Wav:
        name = self.config.file_codecs[rng.integers(len(self.config.file_codecs))]
        if name == "mulaw":
            return mulaw(wav)
        suffix, best, smallest = FILE_CODECS[name]
        # Noise and rooms may have taken peaks past what a file holds, and resampling adds some.
        gain = min(1.0, FILE_PEAK / max(float(np.abs(wav).max()), 1e-9))
        level = rng.uniform(best, smallest)
        heard = audio.round_trip(torch.tensor(wav * gain), self.sample_rate, suffix, level).numpy()
        return np.asarray(heard / gain, dtype=np.float32)

    def _neural_codec(self, wav: Wav, rng: np.random.Generator) -> Wav:
        assert self.codec is not None
        codes = self.codec.encode(torch.tensor(wav)[None], levels=int(rng.integers(self.codec.config.levels)) + 1)
        return self.codec.decode(codes, len(wav))[0].numpy()

    def _polarity(self, wav: Wav, rng: np.random.Generator) -> Wav:
        return -wav

    def _load_codec(self) -> codec.Codec:
        if not self.config.neural_codec:
            raise ConfigError("neural_codec is empty but neural_codec_probability above 0; name a checkpoint")
        model = codec.load(self.config.neural_codec)
        if model.config.sample_rate != self.sample_rate:
            raise ConfigError(
                f"neural_codec works at {model.config.sample_rate} Hz, the crops at {self.sample_rate} Hz"
            )
        return model


def _within_full_scale(wav: Wav) -> Wav:
    peak = float(np.abs(wav).max())
    return wav / np.float32(peak) if peak > 1 else wav
