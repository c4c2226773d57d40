"""Are bad enrolment recordings told from good ones? Clips of two voices, and noise at known levels.

    python -m benchmarks.enrolment_quality --data MANIFEST [--split test] [--noise MANIFEST] [--clips 100] [--seed 0]

Clips of 10 s are joined from recordings of one speaker, or with 30 to 50 % of another one of the same corpus at either
end; reported is the area under the ROC curve of the agreement, for each corpus and over all, with a 95 % interval
(bootstrap over the speakers of the clips). Noise (`split` noise of the manifest) is added to clips of one voice at 0 to
30 dB, level of speech over level of noise; reported are correlation and mean error of the estimate. MANIFEST is a CSV
with path, split, corpus and speaker.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import speaker
from benchmarks import report
from engine import audio
from engine.errors import ConfigError, SpeechError
from recipes.harness.recordings import UNLABELLED
from speaker.enrolment import MIN_AGREEMENT, agreement, signal_to_noise, window_embeddings
from speaker.quality import FRAME, speech_frames

SECONDS, NOISY_SECONDS = 10.0, 5.0  # of a clip, and of one with noise
Wav = NDArray[np.float32]
Speakers = dict[str, dict[str, list[Path]]]  # corpus -> speaker -> files


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="MANIFEST")
    parser.add_argument("--split", default="test")
    parser.add_argument("--noise", type=Path, metavar="MANIFEST")
    parser.add_argument("--model", default="ecapa")
    parser.add_argument("--clips", type=int, default=100, help="of one voice, and as many of two, in each corpus")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        encoder, rng = speaker.load(options.model), np.random.default_rng(options.seed)
        corpora = read(options.data, options.split)
        print(voices(encoder, corpora, options.clips, rng), flush=True)
        if options.noise is not None:
            rate = encoder.config.front_end.sample_rate
            print("\n" + noises(corpora, read(options.noise, "noise"), options.clips, rng, rate))
    except SpeechError as error:
        print(f"enrolment_quality: error: {error}", file=sys.stderr)
        return 2
    return 0


def read(manifest: Path, split: str) -> Speakers:
    """The files of a split."""
    found: Speakers = defaultdict(lambda: defaultdict(list))
    with manifest.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["split"] == split and not row["speaker"].endswith(UNLABELLED):
                found[row["corpus"]][row["speaker"]].append(manifest.parent / row["path"])
    if not found:
        raise ConfigError(f"{manifest} has no rows of split {split!r}")
    return found


def joined(files: Sequence[Path], rng: np.random.Generator, seconds: float, rate: int) -> Wav | None:
    """So many seconds of a speaker's recordings, in random order, each at the same level; None where there is less."""
    parts: list[Wav] = []
    for index in rng.permutation(len(files)):
        wav = audio.load(files[index], rate, mono=True)[0][0].numpy()
        parts.append(wav * (0.05 / max(float(wav.std()), 1e-6)))
        if sum(map(len, parts)) >= seconds * rate:
            return np.concatenate(parts)[: round(seconds * rate)]
    return None


def contaminated(files: Sequence[Path], others: Sequence[Path], rng: np.random.Generator, rate: int) -> Wav | None:
    """A clip of which 30 to 50 % are another speaker's."""
    share = rng.uniform(0.3, 0.5) * SECONDS
    first, second = joined(files, rng, SECONDS - share, rate), joined(others, rng, share, rate)
    if first is None or second is None:
        return None
    return np.concatenate([first, second] if rng.random() < 0.5 else [second, first])


def voices(encoder: speaker.SpeakerEncoder, corpora: Speakers, clips: int, rng: np.random.Generator) -> str:
    """A table: area under the curve, and the agreement below which lie 5 % of the clips of one voice."""
    rows, everything, rate = [], [], encoder.config.front_end.sample_rate
    for corpus, speakers in corpora.items():
        found = []  # (agreement, two voices, speaker)
        names = [name for name, files in speakers.items() if joined(files, rng, SECONDS, rate) is not None]
        if len(names) < 2:
            continue
        for number in range(2 * clips):
            name, other = rng.choice(names, 2, replace=False)
            two = bool(number % 2)
            if two:
                wav = contaminated(speakers[name], speakers[other], rng, rate)
            else:
                wav = joined(speakers[name], rng, SECONDS, rate)
            if wav is not None:
                found.append((agreement(window_embeddings(encoder, wav, rate)), two, name))
        rows.append([corpus, *figures(found, rng)])
        everything += found
    if len(rows) != 1:
        rows.append(["all", *figures(everything, rng)])
    heading = [
        "corpus",
        "speakers",
        "clips of one voice + of two",
        "AUC [95 %]",
        "5 % of one voice below",
        "found then",
    ]
    return report.table(heading, rows)


def figures(found: Sequence[tuple[float, bool, str]], rng: np.random.Generator) -> list[str]:
    """Cells of a row."""
    found = [each for each in found if np.isfinite(each[0])]
    if not found:
        return ["0", "0 + 0", "-", "-", "-"]
    values, two, who = (np.array(column) for column in zip(*found, strict=True))
    names = np.unique(who)
    draws = []
    for _ in range(1000):
        weight = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))
        rows = np.repeat(np.arange(len(who)), weight[np.searchsorted(names, who)])
        if 0 < two[rows].sum() < len(rows):
            draws.append(area(values[rows], two[rows]))
    low, high = np.percentile(draws, [2.5, 97.5])
    below = [f"{100 * (values[kind] < MIN_AGREEMENT).mean():.0f} %" for kind in (~two, two)]
    return [str(len(names)), f"{(~two).sum()} + {two.sum()}", f"{area(values, two):.3f} [{low:.3f}, {high:.3f}]",
            f"{np.percentile(values[~two], 5):.3f}", ", ".join(below)]  # fmt: skip


def area(values: NDArray[np.float64], two: NDArray[np.bool_]) -> float:
    """Probability that two voices agree less than one; ties count half."""
    lower, higher = np.sort(values[two]), values[~two]
    wins = 0.5 * (np.searchsorted(lower, higher, "left") + np.searchsorted(lower, higher, "right"))
    return float(wins.mean() / len(lower))


def noises(corpora: Speakers, noise: Speakers, clips: int, rng: np.random.Generator, rate: int) -> str:
    """Sentences on the estimated signal-to-noise ratio."""
    files = [file for speakers in noise.values() for each in speakers.values() for file in each]
    people = [files for speakers in corpora.values() for files in speakers.values()]
    true, estimated, unsteady = [], [], []
    while len(true) < clips:
        if not (people and files):
            short = f"no speaker has {NOISY_SECONDS:g} s to add noise to; give more recordings of each"
            raise SpeechError("all of the noise is silent; give other recordings of it" if people else short)
        person = int(rng.integers(len(people)))
        clip = joined(people[person], rng, NOISY_SECONDS, rate)
        if clip is None:
            del people[person]  # nor will there be more of them another time
            continue
        number = int(rng.integers(len(files)))
        disturbance = audio.load(files[number], rate, mono=True)[0][0].numpy()
        disturbance = np.resize(disturbance, len(clip))
        level, speech = speech_frames(clip, rate)
        snr = rng.uniform(0, 30)
        loud = float(np.mean(10 ** (level[speech] / 10)))
        power = float(np.mean(disturbance[: len(speech) * round(FRAME * rate)] ** 2))
        if power < 1e-10:
            del files[number]  # as silent another time
            continue
        mixed = clip + disturbance * np.float32(np.sqrt(loud / power * 10 ** (-snr / 10)))
        true.append(snr)
        unsteady.append(float(np.std(speech_frames(disturbance, rate)[0])))
        estimated.append(signal_to_noise(mixed.astype(np.float32), rate))
    found, expected = np.array(estimated), np.array(true)
    steady = np.array(unsteady) <= np.median(unsteady)
    lines = []
    for name, rows in (("all noise", np.full(clips, True)), ("the steadier half", steady)):
        error, together = found[rows] - expected[rows], np.corrcoef(found[rows], expected[rows])[0, 1]
        lines.append(f"{name}, {rows.sum()} mixtures: correlation {together:.2f}, mean error {error.mean():+.1f} dB, "
                     f"mean absolute error {np.abs(error).mean():.1f} dB")  # fmt: skip
    return "Signal-to-noise ratio at 0 to 30 dB\n" + "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
