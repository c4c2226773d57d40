"""Who spoke when: voice activity, embeddings of overlapping windows, clustering, and segments of what came out.

    found = diarize(speaker.load("ecapa"), wav)         # (N,) at 16 kHz
    for segment in found.segments: print(segment.start, segment.end, segment.speaker)

One speaker at a time: where two speak at once, the one that the window resembles more is named. With a PLDA model of
the encoder the clusters are refined by VBx (`speaker.vbx`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.errors import AudioError, ConfigError
from speaker import activity, clustering, vbx
from speaker.model import SpeakerEncoder
from speaker.plda import Plda
from speaker.rttm import Segment, write_rttm
from speaker.scoring import Floats, unit

__all__ = ["DiarizeConfig", "Diarization", "diarize", "name_speakers"]

BATCH = 16  # windows in one go through the network


@dataclass(frozen=True, kw_only=True)
class DiarizeConfig:
    """How to diarize, in seconds where nothing else is said. Defaults: best on conversations of training speakers."""

    vad: str = "energy"  # or "silero"
    window: float = 2.0
    hop: float = 0.5
    method: str = "ahc"  # or "spectral"
    threshold: float = 0.3  # least mean cosine of clusters that are one speaker
    least_speech: float = 2.0  # of a speaker, where their number is not given; less is given to the others
    stay: float = 0.9  # of VBx
    evidence: float = 0.3
    prior: float = 11.0

    def __post_init__(self) -> None:
        if not 0 < self.hop <= self.window:
            raise ConfigError(f"windows of {self.window:g} s cannot follow each other every {self.hop:g} s")


@dataclass(frozen=True)
class Diarization:
    """Segments by start, seconds of audio, and the mean embedding (S, D) of each of the `speakers`."""

    segments: list[Segment]
    seconds: float
    speakers: list[str]
    centres: Floats

    def write_rttm(self, path: Path, name: str) -> None:
        """Write the segments as those of the recording `name`."""
        write_rttm(path, name, self.segments)


def diarize(
    encoder: SpeakerEncoder, wav: Tensor, config: DiarizeConfig | None = None, num_speakers: int | None = None,
    plda: Plda | None = None, speech: Sequence[tuple[float, float]] | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> Diarization:  # fmt: skip
    """Find the speakers of wav (N,) at the encoder's rate; AudioError where there is no speech.

    `speech`: (start, end) in seconds, in place of voice activity; `progress` gets the share that is done.
    """
    config = config or DiarizeConfig()
    rate = encoder.config.front_end.sample_rate
    if not torch.isfinite(wav).all():
        raise AudioError("the samples contain NaN or infinity")
    if speech is None:
        speech = activity.regions(activity.speech_activity(wav.numpy(), rate, config.vad))
    if not speech:
        raise AudioError(f"no speech found in {len(wav) / rate:.1f} s")
    windows = make_windows(speech, config.window, config.hop)
    vectors = embed_windows(encoder, wav, windows, progress)
    labels = clustering.cluster(vectors, config.method, config.threshold, num_speakers)
    if plda is not None:
        labels = _refined(vectors, labels, plda, config, num_speakers)
    if num_speakers is None:
        labels = _without_small(vectors, labels, config)
    names = [f"speaker_{k + 1}" for k in range(labels.max() + 1)]
    centres = np.stack([unit(vectors)[labels == k].mean(0) for k in range(len(names))])
    return Diarization(to_segments(windows, labels, speech, names), len(wav) / rate, names, centres)


def make_windows(speech: Sequence[tuple[float, float]], size: float, hop: float) -> list[tuple[float, float]]:
    """(start, end) of windows inside of each region, the last one at its end; a short region is one window."""
    windows = []
    for start, end in speech:
        last = max(start, end - size)
        count = int(np.ceil((last - start) / hop - 1e-6)) + 1
        starts = [min(start + k * hop, last) for k in range(count)]
        windows += [(first, min(end, first + size)) for first in starts]
    return windows


@torch.inference_mode()
def embed_windows(
    encoder: SpeakerEncoder, wav: Tensor, windows: Sequence[tuple[float, float]],
    progress: Callable[[float], None] = lambda share: None,
) -> Floats:  # fmt: skip
    """(n, D): windows of one length together; those too short for the encoder are widened to what it needs."""
    rate, device = encoder.config.front_end.sample_rate, next(encoder.parameters()).device
    if len(wav) < encoder.min_samples:
        raise AudioError(f"{len(wav) / rate:.2f} s are too short; {encoder.min_samples / rate:.2f} s are needed")
    spans = []
    for start, end in windows:
        first, last = round(start * rate), round(end * rate)
        lack = max(0, encoder.min_samples - (last - first))
        first = max(0, min(first - lack // 2, len(wav) - (last - first) - lack))
        spans.append((first, min(len(wav), first + last - round(start * rate) + lack)))
    order = sorted(range(len(spans)), key=lambda i: spans[i][1] - spans[i][0])
    vectors: list[NDArray[np.float64]] = [np.zeros(0)] * len(spans)
    at = 0
    while at < len(order):
        length = spans[order[at]][1] - spans[order[at]][0]
        rows = [i for i in order[at : at + BATCH] if spans[i][1] - spans[i][0] == length]
        batch = torch.stack([wav[slice(*spans[i])] for i in rows]).to(device)
        for i, vector in zip(rows, encoder(batch).double().cpu().numpy(), strict=True):
            vectors[i] = vector
        at += len(rows)
        progress(at / len(order))
    return np.array(vectors)


def to_segments(
    windows: Sequence[tuple[float, float]], labels: NDArray[np.int64], speech: Sequence[tuple[float, float]],
    names: Sequence[str],
) -> list[Segment]:  # fmt: skip
    """Speech belongs to the window whose middle is nearest; neighbours of one speaker are one segment."""
    middles = np.array([(a + b) / 2 for a, b in windows])
    segments: list[Segment] = []
    for start, end in speech:
        inside = np.flatnonzero((middles >= start - 1e-6) & (middles <= end + 1e-6))
        edges = [start, *((middles[inside[1:]] + middles[inside[:-1]]) / 2), end]
        for k, row in enumerate(inside):
            last = segments[-1] if segments else None
            name = names[labels[row]]
            if last and last.speaker == name and abs(last.end - edges[k]) < 1e-6:
                segments[-1] = Segment(last.start, float(edges[k + 1]), name)
            else:
                segments.append(Segment(float(edges[k]), float(edges[k + 1]), name))
    return segments


def name_speakers(found: Diarization, enrolled: Mapping[str, Floats], threshold: float) -> Diarization:
    """Give clusters the names of the enrolled embeddings (D,) that they resemble, at a cosine from `threshold` on.

    Each name goes to one cluster at most, so that the sum of cosines is the highest; the others keep their numbers.
    """
    if not enrolled:
        return found
    optimize = clustering._scipy("optimize")
    names = list(enrolled)
    cosines = unit(found.centres) @ unit(np.stack([enrolled[name] for name in names])).T
    rows, columns = optimize.linear_sum_assignment(-np.where(cosines >= threshold, cosines, -1))
    new = dict(zip(found.speakers, found.speakers, strict=True))
    new |= {found.speakers[r]: names[c] for r, c in zip(rows, columns, strict=True) if cosines[r, c] >= threshold}
    segments = [Segment(each.start, each.end, new[each.speaker]) for each in found.segments]
    return Diarization(segments, found.seconds, [new[name] for name in found.speakers], found.centres)


def _refined(
    vectors: Floats, labels: NDArray[np.int64], plda: Plda, config: DiarizeConfig, num_speakers: int | None
) -> NDArray[np.int64]:
    """Labels by VBx, begun from these. With a given number none of them may die out: then they stay as they are."""
    start = np.full((len(labels), labels.max() + 1), 0.1 / (labels.max() + 1))
    start[np.arange(len(labels)), labels] += 0.9
    gamma, _, _ = vbx.resegment(
        plda.prepare(vectors), plda.psi, start, stay=config.stay, evidence=config.evidence, prior=config.prior
    )
    refined = gamma.argmax(1)
    if num_speakers is not None and len(set(refined.tolist())) < num_speakers:
        return labels
    return clustering.in_order(refined)


def _without_small(vectors: Floats, labels: NDArray[np.int64], config: DiarizeConfig) -> NDArray[np.int64]:
    """Clusters of less than `least_speech` are noises and overlaps more often than people: they go to the nearest."""
    directions = unit(vectors)
    counts = np.bincount(labels)
    large = np.flatnonzero(counts * config.hop >= config.least_speech)
    if not len(large):
        return np.zeros_like(labels)
    centres = unit(np.stack([directions[labels == k].mean(0) for k in large]))
    nearest = large[(directions @ centres.T).argmax(1)]
    return clustering.in_order(np.where(np.isin(labels, large), labels, nearest))
