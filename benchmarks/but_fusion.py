"""BUT's VoxSRC 2019 system, small: four networks, a back end each, and their fusion (Zeinali et al., arXiv 1910.12592).

    python -m benchmarks.but_fusion --models FOLDER... --data MANIFEST --trials LIST... --root FOLDER [--write FILE...]

Of x-vector networks the mean is taken off, then LDA, length normalization and PLDA; of residual networks the mean and
cosine. Both are learned on the training speakers of MANIFEST. Scores are normalized by the nearest of the training
speakers' means. The fusion is learned on speakers that training has held out, by logistic regression; the test lists
decide nothing.

The gain is shown against that one of the systems which is the best on the list itself: by hindsight.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import speaker
from benchmarks import report
from benchmarks.verification import RATE, middle
from engine import audio
from engine.errors import SpeechError
from recipes.calibrate import embed, recordings_of_speakers, spoken
from recipes.harness.data import Utterance, build_cache, is_validation, labelled
from recipes.harness.pairs import pairs_within
from recipes.recipe import SpeakerRecipe
from speaker import plda
from speaker.backbones.xvector import XvectorConfig
from speaker.calibration import fit
from speaker.collections import speaker_means, speaker_of
from speaker.intervals import eer_percent, least_cost, paired_difference, speaker_bootstrap
from speaker.model import SpeakerEncoder
from speaker.scoring import Cosine, Floats, score
from speaker.trials import Trials, read_trials

LDA = 100  # dimensions


@dataclass
class System:
    """A network, what scores its embeddings, and the cohort (C, D) that normalizes the scores."""

    name: str
    encoder: SpeakerEncoder
    backend: Any  # a speaker.scoring.Backend
    cohort: Floats
    top: int

    def scores(self, trials: Trials, names: list[str], vectors: Floats) -> Floats:
        """(n,) of the list."""
        return score(trials, names, vectors, self.backend, cohort=self.cohort, top=self.top).values


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, help="folders of the networks, two or more")
    parser.add_argument("--data", action="append", required=True, help="manifest that they were trained on")
    parser.add_argument("--trials", nargs="+", type=Path, required=True)
    parser.add_argument("--root", type=Path, required=True, help="folder that the lists' paths start from")
    parser.add_argument("--seconds", nargs="+", type=float, default=[0, 3, 2, 1], help="0 leaves recordings whole")
    parser.add_argument("--top", type=int, default=300, help="cohort scores that normalization takes")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--percent", type=float, default=SpeakerRecipe(name="").validation_percent,
                        help="of the speakers that training held out")  # fmt: skip
    parser.add_argument("--write", nargs="+", type=Path, default=[], metavar="FILE")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        if len(options.models) < 2:
            raise SpeechError("a fusion is of two networks or more")
        lists = [read_trials(path) for path in options.trials]
        samples, utterances = build_cache(options.data, options.cache, RATE)
        known = labelled(utterances)
        train = [u for u in known if not is_validation(u.speaker, options.percent)]
        held_out = [u for u in known if is_validation(u.speaker, options.percent)]
        systems = [prepared(name, samples, train, options.top) for name in options.models]
        weights = learned(systems, samples, held_out)
        rows, gains = list[list[str]](), list[list[str]]()
        for path, trials in zip(options.trials, lists, strict=True):
            found = [of_list(systems, weights, trials, options.root, cut) for cut in options.seconds]
            more, gain = table_rows(path.stem, [s.name for s in systems], trials, found)
            rows, gains = rows + more, [*gains, gain]
        text = to_markdown(options.seconds, rows, gains)
        print(text)
        for path in options.write:
            report.write_sections(path, {"but": text})
    except SpeechError as error:
        print(f"but_fusion: error: {error}", file=sys.stderr)
        return 2
    return 0


def to_markdown(cuts: Sequence[float], rows: list[list[str]], gains: list[list[str]]) -> str:
    """Both tables."""
    columns = [f"{cut:g} s" if cut else "whole" for cut in cuts]
    return "\n\n".join(
        [
            report.table(["trials", "system", *columns], rows),
            "EER of the fusion minus that of the best single one:",
            report.table(["trials", *columns], gains),
            "EER % [95 %] / minDCF(0.01); intervals: bootstrap over speakers.",
        ]
    )


def prepared(name: str, samples: np.ndarray, train: list[Utterance], top: int) -> System:
    """Load a network and learn its back end."""
    encoder = speaker.load(name)
    if encoder.config.front_end.sample_rate != RATE:
        raise SpeechError(f"{name} takes {encoder.config.front_end.sample_rate} Hz; the networks share recordings of "
                          f"{RATE} Hz: fuse networks of that rate")  # fmt: skip
    names, vectors = recordings_of_speakers(encoder, samples, train)
    speakers, means = speaker_means(vectors, names)
    backend: Any = Cosine(means.mean(0))
    if isinstance(encoder.config.network, XvectorConfig):
        rows = np.unique(names, return_inverse=True)[1]
        backend = plda.train(vectors, rows, min(LDA, vectors.shape[1], len(speakers) - 1))
    return System(Path(name).name, encoder, backend, means, min(top, len(means)))


def learned(systems: list[System], samples: np.ndarray, held_out: list[Utterance]) -> Floats:
    """Fusion weights (S + 1,), the offset last, from pairs of held-out speakers' recordings within a corpus."""
    speakers, wavs = [], []
    for name, wav in spoken(samples, held_out, RATE, np.random.default_rng(0)):
        speakers.append(name)
        wavs.append(wav)
    first, second, labels = pairs_within(speakers)
    names = [str(number) for number in range(len(speakers))]
    trials = Trials([names[i] for i in first], [names[i] for i in second], labels.tolist())
    scores = [s.scores(trials, names, np.array([embed(s.encoder, wav) for wav in wavs])) for s in systems]
    found = fit([s.name for s in systems], np.stack(scores, axis=1), labels)
    print(f"fusion: {found.weights}, of {found.trials:,} trials, {found.targets:,} of one speaker", file=sys.stderr)
    return np.array([*found.weights, found.offset])


def of_list(systems: list[System], weights: Floats, trials: Trials, root: Path, cut: float) -> list[Floats]:
    """Scores (n,) of each system and of the fusion, recordings cut to their middle."""
    names = trials.recordings()
    wavs = [middle(audio.load(root / name, RATE, mono=True)[0][0].numpy(), cut) for name in names]
    single = [s.scores(trials, names, np.array([embed(s.encoder, wav) for wav in wavs])) for s in systems]
    return [*single, np.stack(single, axis=1) @ weights[:-1] + weights[-1]]


def table_rows(
    name: str, systems: list[str], trials: Trials, found: list[list[Floats]]
) -> tuple[list[list[str]], list[str]]:
    """A row a system and one for the fusion; and what the fusion gains on the best one of each column."""
    first, second = ([speaker_of(recording) for recording in side] for side in (trials.enrol, trials.test))
    rows, gains = [[name, system] for system in [*systems, "fusion"]], [name]
    for scores in found:
        values = []
        for row, each in zip(rows, scores, strict=True):
            error, cost = speaker_bootstrap(each, trials.labels, first, second, [eer_percent, least_cost()])
            row.append(f"{error.value:.2f} [{error.low:.2f}, {error.high:.2f}] / {cost.value:.3f}")
            values.append(error.value)
        best = scores[int(np.argmin(values[:-1]))]
        gap = paired_difference((scores[-1], best), trials.labels, first, second)
        gains.append(f"{gap.value:+.2f} [{gap.low:+.2f}, {gap.high:+.2f}]")
    for row in rows:
        print(*row, sep="\t", file=sys.stderr, flush=True)
    return rows, gains


if __name__ == "__main__":
    sys.exit(main())
