"""What `speaker adapt` brings: trials of one half of the speakers, with the mean of recordings of the other half.

    python -m benchmarks.adaptation --trials LIST... --root FOLDER [--model ecapa] [--people 10 20] [--write FILE...]

By the log-likelihood ratios of `speaker verify`, the lists as they are and all recordings as by telephone (300 to 3,400
Hz, mu-law). Each half adapts for the other, both halves' trials are counted together; those between the halves are left
out, and lists with fewer than 10 speakers in a half. Speaker names are the folders of the recordings.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import speaker
from benchmarks import report
from engine import audio, checkpoint
from engine.errors import SpeechError
from recipes.harness.augment import Augment, AugmentConfig
from speaker.adapt import LEAST, shift_of
from speaker.collections import speaker_of
from speaker.evidence import Evidence, evidence_of
from speaker.intervals import eer_percent, paired_difference, speaker_bootstrap
from speaker.metrics import cllr, min_cllr, split
from speaker.model import SpeakerEncoder
from speaker.quality import assess
from speaker.scoring import Cosine, Floats, score
from speaker.trials import Trials, read_trials

RECORDINGS = 4  # of each person
TELEPHONE = AugmentConfig(telephone_probability=1.0)
HEADING = ("trials", "people", "of their mean", "EER %", "difference", "Cllr", "Cllr - minCllr")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", nargs="+", type=Path, required=True)
    parser.add_argument("--root", type=Path, required=True, help="folder that the lists' paths start from")
    parser.add_argument("--model", default="ecapa")
    parser.add_argument("--people", nargs="+", type=int, default=[10, 20], help="that the mean is taken of")
    parser.add_argument("--write", nargs="+", type=Path, default=[], metavar="FILE")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        folder = checkpoint.find(options.model)
        encoder = speaker.load(folder)
        evidence = evidence_of(folder, encoder)
        if evidence is None:
            raise SpeechError(f"{folder} has no calibration; `python -m recipes.calibrate` makes one")
        rows = []
        for path in options.trials:
            trials = read_trials(path)
            people = {speaker_of(name) for name in trials.recordings()}
            halves = [sum(in_first_half(owner) == half for owner in people) for half in (True, False)]
            if min(halves) < LEAST:
                print(f"{path.stem} is left out: halves of {halves} people are too few", file=sys.stderr)
                continue
            for name, config in (("", AugmentConfig()), (", telephone", TELEPHONE)):
                vectors, seconds = embedded(encoder, trials, options.root, config)
                rows += measure(f"{path.stem}{name}", trials, vectors, seconds, evidence, options.people)
                print(*rows[-1], sep="\t", file=sys.stderr, flush=True)
        if not rows:
            raise SpeechError(f"no list is left: each half of the speakers needs {LEAST} people")
        text = report.table(HEADING, rows)
        print(text)
        for path in options.write:
            report.write_sections(path, {"adaptation": text})
    except SpeechError as error:
        print(f"adaptation: error: {error}", file=sys.stderr)
        return 2
    return 0


@torch.inference_mode()
def embedded(
    encoder: SpeakerEncoder, trials: Trials, root: Path, config: AugmentConfig
) -> tuple[Floats, NDArray[np.float64]]:
    """Embeddings (n, D) of the list's recordings, disturbed by `config`, and their seconds of speech (n,)."""
    rate, rng = encoder.config.front_end.sample_rate, np.random.default_rng(0)
    chain, vectors, seconds = Augment(config, rate), [], []
    for name in trials.recordings():
        wav = audio.load(root / name, rate, mono=True)[0][0].numpy()
        wav = wav if config == AugmentConfig() else np.ascontiguousarray(chain(wav, rng))
        vectors.append(encoder(torch.from_numpy(wav)[None])[0].double().numpy())
        seconds.append(assess(wav, rate).seconds)
    return np.array(vectors), np.array(seconds)


def measure(
    list_name: str, trials: Trials, vectors: Floats, seconds: NDArray[np.float64], evidence: Evidence,
    people: Sequence[int],
) -> list[list[str]]:  # fmt: skip
    """Rows of the table: as the model is, and for each number of people."""
    names, labels = trials.recordings(), np.array(trials.labels)
    owners = [[speaker_of(name) for name in side] for side in (trials.enrol, trials.test)]
    sides = np.array([[in_first_half(owner) for owner in side] for side in owners])
    kept = sides[0] == sides[1]
    kept_owners = [[owner for owner, keep in zip(side, kept, strict=True) if keep] for side in owners]
    at = trials.rows(names)

    def ratios(embeddings: Floats) -> Floats:
        cosines = score(trials, names, embeddings, Cosine()).values
        known = evidence.side(embeddings, seconds)
        return evidence.llr(cosines, known.take(at[:, 0]), known.take(at[:, 1]))

    plain, rows = ratios(vectors)[kept], []
    for count in [0, *people]:
        values, shares = plain.copy(), []
        for half in (True, False) if count else ():
            chosen = of_people(names, not half, count)
            shift = shift_of([names[row] for row in chosen], vectors[chosen])
            shares.append(shift.share)
            values[sides[0][kept] == half] = ratios(vectors - shift.offset)[kept][sides[0][kept] == half]
        (error,) = speaker_bootstrap(values, labels[kept], *kept_owners, [eer_percent])
        gap = paired_difference((values, plain), labels[kept], *kept_owners)
        total, least = (figure(*split(values, labels[kept])) for figure in (cllr, min_cllr))
        difference = f"{gap.value:+.2f} [{gap.low:+.2f}, {gap.high:+.2f}]" if count else ""
        rows.append([
            list_name, str(count or ""), ", ".join(f"{share:.2f}" for share in shares),
            f"{error.value:.2f} [{error.low:.2f}, {error.high:.2f}]", difference, f"{total:.3f}",
            f"{total - least:.3f}",
        ])  # fmt: skip
    return rows


def in_first_half(owner: str) -> bool:
    """Halves of the speakers by their names, alike in every list."""
    return hashlib.sha256(owner.encode()).digest()[0] < 128


def of_people(names: Sequence[str], half: bool, count: int) -> NDArray[np.int64]:
    """Rows of recordings of so many people of a half, some of each; fewer where there are no more."""
    rng, found = np.random.default_rng(0), dict[str, list[int]]()
    for row in rng.permutation(len(names)):
        owner = speaker_of(names[row])
        if in_first_half(owner) == half and (owner in found or len(found) < count):
            found.setdefault(owner, []).append(int(row))
    return np.array([row for rows in found.values() for row in rows[:RECORDINGS]])


if __name__ == "__main__":
    sys.exit(main())
