"""Crops for speaker training: whose voice it is, and what a teacher makes of it.

Played faster or slower a voice is another one, with a label of its own (Yamamoto et al. 2019).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.errors import ConfigError
from recipes.directions import evened
from recipes.harness.augment import Augment, speed
from recipes.harness.data import SpeechCrops, Utterance, at_level, rms
from recipes.harness.recordings import UNLABELLED
from recipes.teach import Targets

EVENED_BY = 4  # recordings of a speaker


class SpeakerCrop(NamedTuple):
    """`label` is -1 where nobody knows who speaks; `taught` tells whether `target` is a teacher's embedding or 0."""

    wav: Tensor  # (N,)
    label: Tensor  # () int64
    target: Tensor  # (D,) of unit length
    taught: Tensor  # () bool


class SpeakerCrops(SpeechCrops):
    """Random crops with labels, and with targets where there are `targets`.

    Labels are speaker + speakers x speed. The target of a crop is that of its whole recording, at the same speed; where
    the speaker is known, `own_share` of it and the rest the mean of the speaker. Recordings shorter than a crop are
    repeated, or, where the speaker is known, joined with others.
    """

    def __init__(
        self, samples: np.ndarray, utterances: list[Utterance], num_samples: int, total: int, seed: int, *,
        speeds: tuple[float, ...] = (1.0,), targets: Targets | None = None, own_share: float = 1.0,
        unlabelled_share: float = 0.2, augment: Augment | None = None, levels: tuple[float, float] = (-38, -14),
        speaker_exponent: float = 0.5,
    ) -> None:  # fmt: skip
        unknown = sorted(set(speeds) - set(targets.speeds)) if targets else []
        if unknown:
            raise ConfigError(f"the teacher has not heard the speeds {unknown}; it has {sorted(targets.speeds)}")  # type: ignore[union-attr]
        if targets:
            utterances = [u for u in utterances if u.sha256 in targets.rows]
        if not utterances:
            raise ConfigError("none of these recordings is among those that the teacher has heard; run recipes.teach")
        self.speakers = sorted({u.speaker for u in utterances if not u.speaker.endswith(UNLABELLED)})
        # SpeechCrops weighs by speaker: to it every recording of an unknown speaker is a speaker.
        renamed = [_alone(u) if u.speaker.endswith(UNLABELLED) else u for u in utterances]
        super().__init__(samples, renamed, num_samples, total, seed, levels=levels, speaker_exponent=speaker_exponent,
                         join_short=True, read_samples=1)  # fmt: skip
        self.chain, self.speeds = augment, speeds
        self._share(unlabelled_share)
        self.labels = {speaker: number for number, speaker in enumerate(self.speakers)}
        self.dim = targets.embeddings.shape[2] if targets else 0
        self.targets = _targets(self.utterances, targets, speeds, own_share) if targets else None

    @property
    def num_labels(self) -> int:
        """Speakers, each as often as there are speeds."""
        return len(self.speakers) * len(self.speeds)

    def centres(self) -> NDArray[np.float32] | None:
        """(num_labels, D): what the teacher makes of each label, on average; None without a teacher."""
        if self.targets is None:
            return None
        centres = np.zeros((self.num_labels, self.dim), np.float32)
        for targets, utterance in zip(self.targets, self.utterances, strict=True):
            if utterance.speaker in self.labels:
                centres[self.labels[utterance.speaker] :: len(self.speakers)] += targets
        return _unit(centres)

    def of_each_label(self) -> Iterator[NDArray[np.float32]]:
        """(num_labels,) crops (N,), as recorded, of one recording of each label."""
        first = {u.speaker: u for u in sorted(self.utterances, key=lambda u: u.num_samples)}  # the longest
        rng = np.random.default_rng(self.seed)
        for factor in self.speeds:
            for speaker in self.speakers:
                yield self._cut(rng, first[speaker], factor)

    def _share(self, unlabelled: float) -> None:
        """Give the recordings of unknown speakers that share of the crops."""
        weight = np.diff(self.cumulative, prepend=0.0)
        nobody = np.array([u.speaker.endswith(UNLABELLED) for u in self.utterances])
        if nobody.any() and not nobody.all():
            weight[nobody] *= unlabelled / weight[nobody].sum()
            weight[~nobody] *= (1 - unlabelled) / weight[~nobody].sum()
            self.cumulative = np.cumsum(weight / weight.sum())

    def __getitem__(self, index: int) -> SpeakerCrop:  # type: ignore[override]
        rng = np.random.default_rng((self.seed, index))
        for _ in range(4):  # as in SpeechCrops
            pick = min(int(np.searchsorted(self.cumulative, rng.random())), len(self.utterances) - 1)
            number = int(rng.integers(len(self.speeds)))
            crop = self._cut(rng, self.utterances[pick], self.speeds[number])
            if rms(crop) > 1e-3:
                break
        level = rng.uniform(*self.levels)
        if self.chain:
            crop = self.chain(crop, rng)
        label = self.labels.get(self.utterances[pick].speaker, -1)
        label += len(self.speakers) * number if label >= 0 else 0
        target = self.targets[pick, number] if self.targets is not None else np.zeros(1, np.float32)
        wav = torch.from_numpy(at_level(crop, level))
        return SpeakerCrop(wav, torch.tensor(label), torch.from_numpy(target), torch.tensor(self.dim > 0))

    def _cut(self, rng: np.random.Generator, utterance: Utterance, factor: float) -> NDArray[np.float32]:
        count = math.ceil(self.num_samples * factor)
        spare = utterance.num_samples - count
        if spare >= 0:
            wav = self._read(utterance.start + int(rng.integers(spare + 1)), count)
        else:
            wav = self._joined_to(rng, utterance, count)
        wav = wav if factor == 1 else speed(wav, factor)
        return np.resize(wav, self.num_samples)

    def _joined_to(self, rng: np.random.Generator, utterance: Utterance, count: int) -> NDArray[np.float32]:
        """A short recording whole, then others of its speaker, then all of it again; begun at a random place."""
        parts, missing = [self._read(utterance.start, utterance.num_samples)], count - utterance.num_samples
        others = [u for u in self.of_speaker[utterance.speaker] if u is not utterance]
        for number in rng.permutation(len(others)):
            if missing <= 0:
                break
            parts.append(self._read(others[number].start, min(missing, others[number].num_samples)))
            missing -= len(parts[-1])
        return np.resize(np.roll(np.concatenate(parts), int(rng.integers(count))), count)


def centred(targets: Targets, utterances: list[Utterance]) -> Targets:
    """Take the mean over the speakers of `utterances` off a teacher's embeddings.

    Where they all point one way, most of what is imitated is that way, and cosines hardly tell speakers apart: of CAM++
    two speakers have 0.41 on average with the mean and 0.06 without, its equal error rate on held-out training speakers
    is 3.5 and 3.0 %.
    """
    found: dict[str, list[int]] = {}
    for u in utterances:
        if u.sha256 in targets.rows:
            found.setdefault(u.speaker, []).append(targets.rows[u.sha256])
    if not found:
        return targets
    mean = np.mean([targets.embeddings[rows].mean((0, 1)) for rows in found.values()], axis=0)
    return replace(targets, embeddings=targets.embeddings - mean)


def evened_targets(targets: Targets, utterances: list[Utterance], exponent: float, nuisance: int) -> Targets:
    """Turn a teacher's centred embeddings as `recipes.directions.evened` does, by a few recordings of each speaker.

    A teacher, too, is better so: the equal error rate of CAM++ on held-out training speakers falls from 3.3 to 2.7 %
    without 3 directions of the corpora and with an exponent of 0.25.
    """
    column = targets.speeds.index(1.0) if 1.0 in targets.speeds else 0
    names, rows, taken = [], [], dict[str, int]()
    for u in sorted(utterances, key=lambda u: u.sha256):
        if u.sha256 in targets.rows and not u.speaker.endswith(UNLABELLED) and taken.get(u.speaker, 0) < EVENED_BY:
            taken[u.speaker] = taken.get(u.speaker, 0) + 1
            names.append(u.speaker)
            rows.append(targets.rows[u.sha256])
    if len(rows) < targets.embeddings.shape[2]:
        raise ConfigError(
            f"{len(rows)} recordings of known speakers are too few to tell how a teacher's "
            f"{targets.embeddings.shape[2]} dimensions spread; set target_balance and target_nuisance to 0"
        )
    vectors = targets.embeddings[rows, column].astype(np.float64)
    matrix = evened(names, vectors, exponent, nuisance, option="target_nuisance")
    return replace(targets, embeddings=(targets.embeddings @ matrix.T).astype(np.float32))


def blurred(targets: Targets, weight: float) -> Targets:
    """Add to a teacher's embeddings those of the same recording at the next lower and the next higher speed.

    A mean of several hearings is nearer to the voice than one: the equal error rate of CAM++ on held-out training
    speakers falls from 2.5 to 2.3 % (certain labels), from 4.4 to 4.2 % (Common Voice), with half of 0.9 and of 1.1.
    """
    order = np.argsort(targets.speeds)
    vectors = _unit(targets.embeddings[:, order])
    mixed = vectors.copy()
    mixed[:, 1:] += weight * vectors[:, :-1]
    mixed[:, :-1] += weight * vectors[:, 1:]
    return replace(targets, embeddings=mixed[:, np.argsort(order)])


def _alone(utterance: Utterance) -> Utterance:
    return Utterance(
        utterance.path, f"{utterance.path}{UNLABELLED}", utterance.start, utterance.num_samples, utterance.sha256
    )


def _targets(
    utterances: list[Utterance], targets: Targets, speeds: tuple[float, ...], own_share: float
) -> NDArray[np.float32]:
    """(K, S, D) unit vectors: the recording's own embedding and the mean of its speaker, weighed by length."""
    columns = [targets.speeds.index(factor) for factor in speeds]
    own = _unit(targets.embeddings[[targets.rows[u.sha256] for u in utterances]][:, columns])
    speakers = {speaker: row for row, speaker in enumerate(dict.fromkeys(u.speaker for u in utterances))}
    rows = np.array([speakers[u.speaker] for u in utterances])
    sums = np.zeros((len(speakers), *own.shape[1:]), np.float32)
    seconds = np.array([min(u.num_samples / 16_000, 10.0) for u in utterances], np.float32)
    np.add.at(sums, rows, own * seconds[:, None, None])
    return _unit(own_share * own + (1 - own_share) * _unit(sums)[rows])


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    norm = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / np.maximum(norm, 1e-9)).astype(np.float32)
