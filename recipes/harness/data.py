"""Manifests in, random speech crops out.

A manifest is a CSV with the columns path (relative to the CSV), split, corpus, speaker, seconds. Its training rows are
decoded once into a memory-mapped int16 cache. Crop number i of a run depends on the seed and on i alone, so a resumed
run sees exactly what an uninterrupted one would have seen, whatever the number of workers.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from engine import audio
from engine.errors import ConfigError, SpeechError
from engine.files import replacing

log = logging.getLogger(__name__)
COLUMNS = {"path", "split", "corpus", "speaker", "seconds"}


@dataclass(frozen=True)
class Utterance:
    """One training recording: where it is in the cache and who speaks."""

    path: str
    speaker: str
    start: int
    num_samples: int


def read_manifest(path: str | Path) -> list[dict[str, str]]:
    """Return the rows of split `train`; ConfigError if the file is no manifest or has none."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such manifest")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = COLUMNS - set(reader.fieldnames or ())
        if missing:
            raise ConfigError(f"{path}: a manifest needs the columns {', '.join(sorted(missing))} too")
        rows = [row for row in reader if row["split"] == "train"]
    if not rows:
        raise ConfigError(f"{path}: no rows of split 'train'")
    return [{**row, "path": str(path.parent / row["path"])} for row in rows]


def is_validation(speaker: str, percent: float) -> bool:
    """Decide by a hash of the name whether a speaker is held out: stable across machines, runs and manifests."""
    return int(hashlib.sha256(speaker.encode()).hexdigest()[:8], 16) / 2**32 * 100 < percent


def build_cache(
    manifests: list[str | Path], folder: str | Path, sample_rate: int
) -> tuple[np.ndarray, list[Utterance]]:
    """Decode every training row to one int16 file under `folder` (once) and map it; bad files are named and skipped."""
    rows = [row for manifest in manifests for row in read_manifest(manifest)]
    key = json.dumps([sample_rate, [(r["path"], r["speaker"], r["seconds"]) for r in rows]])
    stem = Path(folder) / hashlib.sha256(key.encode()).hexdigest()[:16]
    if not stem.with_suffix(".json").exists():
        _decode(rows, stem, sample_rate)
    listing = json.loads(stem.with_suffix(".json").read_text())
    samples = np.memmap(stem.with_suffix(".pcm"), dtype=np.int16, mode="r")
    return samples, [Utterance(*item) for item in listing]


def _decode(rows: list[dict[str, str]], stem: Path, sample_rate: int) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    listing, start = [], 0
    with replacing(stem.with_suffix(".pcm")) as partial, partial.open("wb") as file:
        for row in rows:
            try:
                wav, _ = audio.load(row["path"], sample_rate=sample_rate, mono=True)
            except SpeechError as error:
                log.warning("skipped: %s", error)
                continue
            pcm = audio.to_pcm16(wav[0]).numpy()
            file.write(pcm.tobytes())
            listing.append((row["path"], row["speaker"], start, len(pcm)))
            start += len(pcm)
        if not listing:
            raise ConfigError("no training recording could be read; see the warnings above")
    stem.with_suffix(".json").write_text(json.dumps(listing))  # last: its presence says that the cache is whole


class SpeechCrops(Dataset[Tensor]):
    """Random crops (N,) at random levels. Speakers are drawn with weight hours^0.5, their recordings by length.

    Levels are drawn between -38 and -14 dBFS, since corpora differ by more than 20 dB and users' microphones too.
    """

    def __init__(
        self, samples: np.ndarray, utterances: list[Utterance], num_samples: int, total: int, seed: int
    ) -> None:
        usable = [u for u in utterances if u.num_samples >= num_samples]
        if not usable:
            raise ConfigError(f"no recording is as long as a crop of {num_samples} samples")
        self.samples, self.num_samples, self.total, self.seed = samples, num_samples, total, seed
        lengths = np.array([u.num_samples for u in usable], dtype=np.float64)
        by_speaker: dict[str, float] = {}
        for utterance in usable:
            by_speaker[utterance.speaker] = by_speaker.get(utterance.speaker, 0.0) + utterance.num_samples
        weight = lengths / np.sqrt([by_speaker[u.speaker] for u in usable])
        self.cumulative = np.cumsum(weight / weight.sum())
        self.utterances = usable

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index: int) -> Tensor:
        rng = np.random.default_rng((self.seed, index))
        crop: NDArray[np.float32] = np.zeros(self.num_samples, dtype=np.float32)
        for _ in range(4):  # digital silence teaches little: draw again, but not forever
            pick = min(int(np.searchsorted(self.cumulative, rng.random())), len(self.utterances) - 1)
            utterance = self.utterances[pick]
            begin = utterance.start + int(rng.integers(utterance.num_samples - self.num_samples + 1))
            crop = self.samples[begin : begin + self.num_samples].astype(np.float32) / np.float32(32768)
            rms = float(np.sqrt(np.mean(crop**2)))
            if rms > 1e-3:
                break
        else:
            return torch.from_numpy(crop)
        gain = 10 ** (rng.uniform(-38, -14) / 20) / rms
        return torch.from_numpy(crop * min(gain, 0.99 / float(np.abs(crop).max())))
