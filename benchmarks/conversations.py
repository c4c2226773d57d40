"""Conversations with known truth, mixed from recordings of single speakers; reproducible from a seed.

Turns of 2 to 10 s are made of the recordings, in each of which only what is speech counts: frames within 30 dB of the
loud ones, pauses under 0.3 s filled. That rule is neither of the detectors', but is nearer to the one that goes by
energy. Each speaker has a level of his own, +-5 dB.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine import audio
from engine.errors import SpeechError
from recipes.harness.data import is_validation
from recipes.harness.recordings import UNLABELLED, corpus_of
from speaker.activity import FRAME_RATE, segments
from speaker.rttm import Segment

RATE = 16_000
TURN_SECONDS = (2.0, 10.0)
LEVEL_DB = 5.0
Wav = NDArray[np.float32]


@dataclass
class Conversation:
    """Samples (N,) at RATE and who speaks when in them."""

    wav: Wav
    truth: list[Segment]


def recordings(manifest: Path, split: str, held_out: float | None = None, seconds: float = 12.0) -> dict[str, list]:
    """Paths by speaker, of those with so many seconds at least; of training speakers the `held_out` percent only."""
    found: dict[str, list[Path]] = {}
    total: dict[str, float] = {}
    with manifest.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            name = row["speaker"]
            if row["split"] != split or name.endswith(UNLABELLED):
                continue
            if held_out is None or is_validation(name, held_out):
                found.setdefault(name, []).append(manifest.parent / row["path"])
                total[name] = total.get(name, 0.0) + float(row["seconds"])
    kept = {name: paths for name, paths in found.items() if total[name] >= seconds}
    if len(kept) < 2:
        raise SpeechError(f"{manifest}: {len(kept)} speakers of the split {split!r} have {seconds:g} s; 2 are needed")
    return kept


def converse(
    speakers: dict[str, list[Path]], rng: np.random.Generator, num_speakers: int, overlap: float,
    seconds: float = 90.0, snr: float | None = None,
) -> Conversation:  # fmt: skip
    """Mix `num_speakers` of one corpus; about the share `overlap` of the turns' time begins before the last one ends.

    `snr`: dB of coloured noise below the speech.
    """
    corpora: dict[str, list[str]] = {}
    for name in sorted(speakers):
        corpora.setdefault(corpus_of(name), []).append(name)
    large = [names for names in corpora.values() if len(names) >= num_speakers]
    if not large:
        raise SpeechError(f"no corpus has {num_speakers} speakers with enough speech")
    chosen = rng.choice(large[rng.integers(len(large))], num_speakers, replace=False)
    pools = {name: _turns(speakers[name], rng) for name in chosen}
    gains = {name: 10 ** (rng.uniform(-LEVEL_DB, LEVEL_DB) / 20) for name in chosen}
    wav, truth = np.zeros(round((seconds + 60) * RATE), dtype=np.float32), list[Segment]()
    at = before = 0.0
    order = [*chosen, *chosen]  # everybody speaks twice at least, if there is speech for it
    rng.shuffle(order)
    last = ""
    while True:
        order = [name for name in order if pools[name]]
        due = [name for name in order if name != last]
        # Where only who has just spoken is due, somebody else comes in between.
        names = due or [name for name in chosen if name != last and pools[name]]
        if not names or (at >= seconds and not order):
            break
        name = str(due[0] if due else rng.choice(names))
        if due:
            order.remove(name)
        turn, spans = pools[name].pop()
        length = len(turn) / RATE
        shared = min(2 * overlap * length, length / 2, (at - before) / 2) if rng.random() < 0.5 else 0.0
        start = at - shared if shared else at + rng.exponential(0.5)
        begin = round(start * RATE)
        if begin + len(turn) > len(wav):
            break
        wav[begin : begin + len(turn)] += gains[name] * turn
        truth += [Segment(start + a, start + b, name) for a, b in spans]
        before, at, last = start, start + length, name
    wav = wav[: round((at + 0.5) * RATE)]
    return Conversation(wav if snr is None else _noisy(wav, snr, rng), sorted(truth, key=lambda s: s.start))


def _turns(paths: Sequence[Path], rng: np.random.Generator) -> list[tuple[Wav, NDArray[np.float64]]]:
    """Pieces at one level, with the (S, 2) seconds of speech in each; not more than two minutes."""
    found, total = list[tuple[Wav, NDArray[np.float64]]](), 0.0
    parts, wanted = list[Wav](), 0.0
    for index in rng.permutation(len(paths)):
        wav = audio.load(paths[index], RATE, mono=True)[0][0].numpy()
        spans, start = segments(spoken(wav), hangover=0.0), 0
        wav = wav[round(spans[0, 0] * RATE) : round(spans[-1, 1] * RATE)] if len(spans) else wav[:0]
        while start < len(wav) and total < 120:
            wanted = wanted or float(np.exp(rng.uniform(*np.log(TURN_SECONDS)))) * RATE
            part = wav[start : start + round(wanted - sum(map(len, parts)))]
            parts.append(part * np.float32(0.05 / np.sqrt(np.square(part).mean() + 1e-9)))
            start += len(part)
            if sum(map(len, parts)) >= wanted - 1:
                turn = np.concatenate(parts)
                found.append((turn, segments(spoken(turn), hangover=0.0)))
                parts, wanted, total = [], 0.0, total + len(turn) / RATE
    if parts and sum(map(len, parts)) > RATE:
        found.append((turn := np.concatenate(parts), segments(spoken(turn), hangover=0.0)))
    return found


def spoken(wav: Wav, below: float = 30.0) -> NDArray[np.bool_]:
    """(N,) of a clean recording -> (T,) frames within so many dB of the loud ones."""
    size = RATE // FRAME_RATE
    frames = np.pad(wav, (0, -len(wav) % size)).reshape(-1, size)
    level = 10 * np.log10(np.square(frames).mean(1) + 1e-10)
    return level > max(-60.0, float(np.percentile(level, 95)) - below)


def _noisy(wav: Wav, snr: float, rng: np.random.Generator) -> Wav:
    """Add noise whose power falls by 3 dB an octave and swells by +-6 dB within some seconds."""
    spectrum = np.fft.rfft(rng.standard_normal(len(wav)))
    spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 1))
    noise = np.fft.irfft(spectrum, len(wav))
    knots = rng.uniform(-6, 6, len(wav) // (4 * RATE) + 2)
    noise *= 10 ** (np.interp(np.arange(len(wav)) / (4 * RATE), np.arange(len(knots)), knots) / 20)
    loud = np.abs(wav) > 0
    gain = np.sqrt(np.square(wav[loud]).mean() / np.square(noise).mean() / 10 ** (snr / 10))
    return (wav + gain * noise).astype(np.float32)
