"""Recordings in, random speech crops out.

The recordings of the manifests are decoded once into a memory-mapped int16 cache. Crop number i of a run depends on
the seed and on i alone, so a resumed run sees exactly what an uninterrupted one would have seen, whatever the number
of workers.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from engine import audio
from engine.errors import ConfigError, SpeechError
from engine.files import replacing
from recipes.harness.manifests import read
from recipes.harness.recordings import UNLABELLED, Recording, corpus_of, whole_file
from recipes.harness.workers import in_order

log = logging.getLogger(__name__)
LAYOUT = 2  # of the cache files; another one is built anew
Augment = Callable[[NDArray[np.float32], np.random.Generator], NDArray[np.float32]]


@dataclass(frozen=True)
class Utterance:
    """One training recording: where it is in the cache, who speaks, and the sha256 of its samples (int16, hex)."""

    path: str
    speaker: str
    start: int
    num_samples: int
    sha256: str = ""


@dataclass(frozen=True)
class Cache:
    """Decoded recordings: `samples` (N,) int16 on disk, and (path, reason) of what could not be read."""

    path: Path
    samples: np.ndarray
    utterances: list[Utterance]
    skipped: list[tuple[str, str]]


def is_validation(speaker: str, percent: float) -> bool:
    """Decide by a hash of the name whether a speaker is held out: stable across machines, runs and manifests."""
    return int(hashlib.sha256(speaker.encode()).hexdigest()[:8], 16) / 2**32 * 100 < percent


def labelled(utterances: Iterable[Utterance], corpora: Iterable[str] = ()) -> list[Utterance]:
    """The utterances whose speaker is known; ConfigError unless some are of each of the `corpora`."""
    known = [u for u in utterances if not u.speaker.endswith(UNLABELLED)]
    there = {corpus_of(u.speaker) for u in known}
    if unknown := sorted({*corpora} - there):
        raise ConfigError(f"no speaker of {', '.join(unknown)}; there are {', '.join(sorted(there))}")
    return known


def data_digest(utterances: Iterable[Utterance]) -> str:
    """sha256 of who says what, in order; the same wherever the files lie and however they are stored."""
    listing = [(u.speaker, u.num_samples, u.sha256) for u in utterances]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def build_cache(
    manifests: Sequence[str | Path], folder: str | Path, sample_rate: int, workers: int = 1
) -> tuple[np.ndarray, list[Utterance]]:
    """Decode every recording to one int16 file under `folder` (once) and map it; bad files are named and skipped."""
    cache = open_cache(manifests, folder, sample_rate, workers)
    return cache.samples, cache.utterances


def open_cache(manifests: Sequence[str | Path], folder: str | Path, sample_rate: int, workers: int = 1) -> Cache:
    """Return the cache of the manifests, built first where it is not there or where a file has changed.

    The result does not depend on `workers`, the number of processes that decode (1: this one). ConfigError if nothing
    can be read.
    """
    recordings = [recording for manifest in manifests for recording in read(manifest)]
    stats = {file: _stat(file) for file in dict.fromkeys(r.source.file for r in recordings)}
    content = [(r.path, r.speaker, repr(r.source), stats[r.source.file]) for r in recordings]
    key = hashlib.sha256(json.dumps([LAYOUT, sample_rate, content]).encode()).hexdigest()
    listing, pcm = Path(folder) / f"{key[:16]}.json", Path(folder) / f"{key[:16]}.pcm"
    if not listing.exists():
        _build(recordings, listing, pcm, sample_rate, workers)
    facts = json.loads(listing.read_text())
    utterances = [Utterance(**utterance) for utterance in facts["utterances"]]
    samples = np.memmap(pcm, dtype=np.int16, mode="r")
    return Cache(pcm, samples, utterances, [(path, reason) for path, reason in facts["skipped"]])


def _stat(file: str) -> tuple[int, int] | None:
    """Size and time of the last change; None where there is no such file, so that one that comes later is noticed."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _build(recordings: Sequence[Recording], listing: Path, pcm: Path, sample_rate: int, workers: int) -> None:
    listing.parent.mkdir(parents=True, exist_ok=True)
    utterances: list[Utterance] = []
    skipped: list[tuple[str, str]] = []
    start, reported = 0, set[str]()
    with replacing(pcm) as partial, partial.open("wb") as file:
        results = _decoded(recordings, sample_rate, workers)
        for number, (recording, result) in enumerate(zip(recordings, results, strict=True), 1):
            if isinstance(result, str):
                skipped.append((recording.path, result))
                if result not in reported:  # many segments may lie in one bad file
                    reported.add(result)
                    log.warning("skipped: %s", result)
            else:
                file.write(result.tobytes())
                sha256 = hashlib.sha256(result.tobytes()).hexdigest()
                utterances.append(Utterance(recording.path, recording.speaker, start, len(result), sha256))
                start += len(result)
            if number % 1000 == 0:
                log.info("%d of %d recordings, %.2f h", number, len(recordings), start / sample_rate / 3600)
        if not utterances:
            raise ConfigError("no training recording could be read; see the warnings above")
    facts = {"utterances": [asdict(u) for u in utterances], "skipped": skipped}
    with replacing(listing) as partial:  # last: its presence says that the cache is whole
        partial.write_text(json.dumps(facts))


def _decoded(recordings: Sequence[Recording], sample_rate: int, workers: int) -> Iterator[NDArray[np.int16] | str]:
    """Yield samples (N,) of each recording in order, or the reason why there are none."""
    batches = _batches(recordings)
    if workers <= 1:
        for batch in batches:
            yield from _decode(batch, sample_rate)
        whole_file.cache_clear()  # an hour of sound takes 230 MB
        return
    # Spawned, not forked: a child of a process with computing threads may wait for them forever.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from in_order(pool, functools.partial(_decode, sample_rate=sample_rate), batches, 2 * workers)


def _batches(recordings: Sequence[Recording]) -> Iterator[list[Recording]]:
    """Up to 64 that lie in one file, so that a long recording is not decoded for each of its segments."""
    for _, group in itertools.groupby(recordings, lambda recording: recording.source.file):
        while batch := list(itertools.islice(group, 64)):
            yield batch


def _decode(batch: list[Recording], sample_rate: int) -> list[NDArray[np.int16] | str]:
    results: list[NDArray[np.int16] | str] = []
    for recording in batch:
        try:
            results.append(audio.to_pcm16(recording.load(sample_rate)).numpy())
        except SpeechError as error:
            results.append(str(error))
    return results


class SpeechCrops(Dataset[Tensor]):
    """Random crops (N,) at random levels. Speakers are drawn with weight hours^speaker_exponent, then by length.

    An exponent of 0 makes all speakers equal, 1 all hours. `levels` are the lowest and the highest in dBFS, wide since
    corpora differ by more than 20 dB and users' microphones too. `augment` changes a crop (N,) before its level is set,
    drawing from the generator of that crop. Recordings shorter than a crop are left out, or with `join_short` put
    between others of their speaker; a speaker with less than a crop in all is left out then too. `read_samples` is what
    `augment` is given where it needs more than it returns (speed).
    """

    def __init__(
        self,
        samples: np.ndarray,
        utterances: list[Utterance],
        num_samples: int,
        total: int,
        seed: int,
        *,
        augment: Augment | None = None,
        levels: tuple[float, float] = (-38, -14),
        speaker_exponent: float = 0.5,
        join_short: bool = False,
        read_samples: int | None = None,
    ) -> None:
        if not 0 <= speaker_exponent <= 1:
            raise ConfigError(f"speaker_exponent {speaker_exponent} should lie between 0 (equal) and 1 (by hours)")
        if levels[0] > levels[1] or levels[1] > 0:
            raise ConfigError(f"levels {levels} should be (lowest, highest) in dBFS, none above 0")
        read = read_samples or num_samples
        by_speaker: dict[str, float] = {}
        usable = [u for u in utterances if join_short or u.num_samples >= read]
        for utterance in usable:
            by_speaker[utterance.speaker] = by_speaker.get(utterance.speaker, 0.0) + utterance.num_samples
        usable = [u for u in usable if by_speaker[u.speaker] >= read]
        if not usable:
            hint = "" if join_short else "; join_short would join shorter ones of one speaker"
            raise ConfigError(f"no recording is as long as a crop of {read} samples{hint}")
        self.samples, self.num_samples, self.total, self.seed = samples, num_samples, total, seed
        self.read_samples = read
        self.augment, self.levels, self.utterances = augment, levels, usable
        lengths = np.array([u.num_samples for u in usable], dtype=np.float64)
        weight = lengths / np.array([by_speaker[u.speaker] for u in usable]) ** (1 - speaker_exponent)
        self.cumulative = np.cumsum(weight / weight.sum())
        self.of_speaker: dict[str, list[Utterance]] = {}
        for utterance in usable:
            self.of_speaker.setdefault(utterance.speaker, []).append(utterance)

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index: int) -> Tensor:
        rng = np.random.default_rng((self.seed, index))
        for _ in range(4):  # digital silence teaches little: draw again, but not forever
            crop = self._draw(rng)
            if rms(crop) > 1e-3:
                break
        else:
            return torch.from_numpy(crop[: self.num_samples])
        level = rng.uniform(*self.levels)  # before what `augment` draws: the same level with and without it
        if self.augment:
            crop = self.augment(crop, rng)
            assert crop.shape == (self.num_samples,) and crop.dtype == np.float32, f"{crop.dtype} {crop.shape}"
        return torch.from_numpy(at_level(crop, level))

    def _draw(self, rng: np.random.Generator) -> NDArray[np.float32]:
        pick = min(int(np.searchsorted(self.cumulative, rng.random())), len(self.utterances) - 1)
        utterance = self.utterances[pick]
        if utterance.num_samples < self.read_samples:
            return self._joined(rng, utterance)
        begin = utterance.start + int(rng.integers(utterance.num_samples - self.read_samples + 1))
        return self._read(begin, self.read_samples)

    def _joined(self, rng: np.random.Generator, utterance: Utterance) -> NDArray[np.float32]:
        """A short recording whole, at a random place between others of its speaker."""
        parts, missing = [self._read(utterance.start, utterance.num_samples)], self.read_samples - utterance.num_samples
        others = [u for u in self.of_speaker[utterance.speaker] if u is not utterance]
        for number in rng.permutation(len(others)):
            other = others[number]
            parts.append(self._read(other.start, min(missing, other.num_samples)))
            missing -= len(parts[-1])
            if not missing:
                break
        return np.roll(np.concatenate(parts), int(rng.integers(self.read_samples - utterance.num_samples + 1)))

    def _read(self, begin: int, count: int) -> NDArray[np.float32]:
        return as_float(self.samples[begin : begin + count])


def as_float(samples: NDArray[np.int16]) -> NDArray[np.float32]:
    """16-bit samples -> [-1, 1)."""
    return samples.astype(np.float32) / np.float32(32768)


def at_level(wav: NDArray[np.float32], dbfs: float) -> NDArray[np.float32]:
    """The samples at that level, or lower where they would not fit."""
    gain = 10 ** (dbfs / 20) / max(rms(wav), 1e-6)  # what disturbs speech may leave next to nothing of it
    return wav * np.float32(min(gain, 0.99 / max(float(np.abs(wav).max()), 1e-6)))


def rms(wav: NDArray[np.float32]) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(wav**2)))
