"""Conversations with known truth, mixed from recordings of single speakers; the same for the same seed."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine import audio
from engine.errors import SpeechError
from speaker.activity import regions, speech_activity
from speaker.rttm import Segment

RATE = 16_000
Wav = NDArray[np.float32]
Voices = dict[str, list[Wav]]


@dataclass(frozen=True)
class Conversation:
    """Samples (N,) at 16 kHz and who spoke when."""

    wav: Wav
    segments: list[Segment]

    @property
    def overlap(self) -> float:
        """Share of the speech time at which more than one speaks."""
        count = np.zeros(len(self.wav) // 160 + 1, dtype=int)
        for each in self.segments:
            count[round(each.start * 100) : round(each.end * 100)] += 1
        return float((count > 1).sum() / max(1, (count > 0).sum()))


def read_voices(manifest: Path, split: str, least_seconds: float = 25.0) -> dict[str, Voices]:
    """{corpus: {speaker: recordings}} of a split: speakers with enough speech, corpora with two of them or more."""
    with manifest.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == split and float(row["seconds"]) >= 1]
    seconds: dict[str, float] = {}
    for row in rows:
        seconds[row["speaker"]] = seconds.get(row["speaker"], 0.0) + float(row["seconds"])
    found: dict[str, Voices] = {}
    taken: dict[str, float] = {}
    for row in rows:
        name = row["speaker"]
        if seconds[name] < least_seconds or taken.get(name, 0.0) > 60:
            continue
        taken[name] = taken.get(name, 0.0) + float(row["seconds"])
        wav = audio.load(manifest.parent / row["path"], RATE, mono=True)[0][0].numpy()
        found.setdefault(row["corpus"], {}).setdefault(name, []).append(wav)
    found = {corpus: voices for corpus, voices in found.items() if len(voices) >= 2}
    if not found:
        raise SpeechError(f"{manifest}: no corpus of the split {split!r} has two speakers of {least_seconds:g} s")
    return found


def converse(
    voices: Voices, num_speakers: int, seconds: float, overlap: float, seed: int, noise: Sequence[Wav] = (),
    snr: float = 20.0,
) -> Conversation:  # fmt: skip
    """Speakers in turns, for about `seconds`: pauses of 0.1 to 1.2 s, or the next one cuts in so often that `overlap`
    of the speech is two at once; levels 6 dB apart at most; `noise` at `snr` dB."""
    if len(voices) < num_speakers:
        raise SpeechError(f"{num_speakers} speakers are asked for, there are {len(voices)}")
    rng = np.random.default_rng(seed)
    chosen = rng.choice(sorted(voices), num_speakers, replace=False)
    gains = {name: 10 ** (rng.uniform(-3, 3) / 20) for name in chosen}
    wav, segments = np.zeros(round((seconds + 30) * RATE), np.float32), []
    cursor, previous, both, spoken = 0.3, "", 0.0, 0.0
    order = list(chosen)  # everybody speaks
    while cursor < seconds or order:
        others = [each for each in chosen if each != previous] or list(chosen)
        name = order.pop(0) if order else str(rng.choice(others))
        piece = voices[name][rng.integers(len(voices[name]))]
        inside = regions(speech_activity(piece, RATE), edge=0.0)
        if not inside:
            continue
        piece = piece[round(inside[0][0] * RATE) : round(inside[-1][1] * RATE)]
        length, start = len(piece) / RATE, cursor + rng.uniform(0.1, 1.2)
        if previous and both < overlap * (spoken + length):
            start = max(0.0, cursor - rng.uniform(0.5, min(3.0, 0.8 * length)))
        first = round(start * RATE)
        if first + len(piece) > len(wav):
            break
        level = float(np.sqrt(np.square(piece).mean())) + 1e-6
        wav[first : first + len(piece)] += piece * (0.05 / level * gains[name])
        segments += [Segment(start + a - inside[0][0], start + b - inside[0][0], name) for a, b in inside]
        both += max(0.0, min(cursor, start + length) - start)
        spoken += length
        cursor, previous = max(cursor, start + length), name
    wav = wav[: round((cursor + 0.3) * RATE)]
    if noise:
        wav = wav + _noise(rng, noise, len(wav), 0.05 * 10 ** (-snr / 20))
    return Conversation(np.clip(wav, -1, 1).astype(np.float32), sorted(segments))


def _noise(rng: np.random.Generator, noise: Sequence[Wav], count: int, level: float) -> Wav:
    pieces: list[Wav] = []
    while sum(map(len, pieces)) < count:
        pieces.append(noise[rng.integers(len(noise))])
    joined = np.concatenate(pieces)[:count]
    return np.asarray(joined * (level / (np.sqrt(np.square(joined).mean()) + 1e-6)), dtype=np.float32)
