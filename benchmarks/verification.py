"""Verification on trial lists: EER and minDCF(0.01), whole and cut, our encoders beside those of others.

    python -m benchmarks.verification --trials LIST... --root FOLDER [--models ecapa] [--beside campplus ge2e]
        [--seconds 0 3 2 1] [--write FILE...]

Scores are cosines. Both sides are cut to their middle seconds; 0 leaves them whole. Intervals are 95 %, bootstrap over
speakers; where a list has few speakers they are wide. Speaker names are the folders of the recordings.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import speaker
from benchmarks import report
from engine import audio
from engine.errors import SpeechError
from recipes.teachers import load_teacher
from speaker.intervals import eer_percent, least_cost, paired_difference, speaker_bootstrap
from speaker.trials import Trials, read_trials

RATE = 16_000
Wav = NDArray[np.float32]
Embed = Callable[[Wav], NDArray[np.float32]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", nargs="+", type=Path, required=True)
    parser.add_argument("--root", type=Path, required=True, help="folder that the lists' paths start from")
    parser.add_argument("--models", nargs="+", default=["ecapa"], help="names or folders of encoders")
    parser.add_argument("--beside", nargs="*", default=[], help="encoders of others: campplus, ge2e")
    parser.add_argument("--seconds", nargs="+", type=float, default=[0, 3, 2, 1])
    parser.add_argument("--write", nargs="+", type=Path, default=[], metavar="FILE")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        encoders: dict[str, Embed] = {name: ours(name) for name in options.models}
        encoders |= {name: load_teacher(name) for name in options.beside}
        text = measure(options.trials, options.root, encoders, options.seconds)
        print(text)
        for path in options.write:
            report.write_sections(path, {"verification": text})
    except SpeechError as error:
        print(f"verification: error: {error}", file=sys.stderr)
        return 2
    return 0


def ours(name: str) -> Embed:
    """One of our encoders as a function of samples."""
    encoder = speaker.load(name)

    @torch.inference_mode()
    def embed(wav: Wav) -> NDArray[np.float32]:
        return encoder(torch.from_numpy(wav)[None])[0].numpy()

    return embed


def measure(lists: Sequence[Path], root: Path, encoders: dict[str, Embed], cuts: Sequence[float]) -> str:
    """A table for all lists: a row for each encoder, a column for each cut; then the differences to the first."""
    rows, pairs = [], []
    for path in lists:
        trials = read_trials(path)
        names = trials.recordings()
        wavs = {name: audio.load(root / name, RATE, mono=True)[0][0].numpy() for name in names}
        sides = [[Path(name).parent.name for name in side] for side in (trials.enrol, trials.test)]
        scores = {}
        for encoder, embed in encoders.items():
            cells = []
            for cut in cuts:
                vectors = {name: _unit(embed(middle(wav, cut))) for name, wav in wavs.items()}
                scores[encoder, cut] = cosines(trials, vectors)
                error, cost = speaker_bootstrap(
                    scores[encoder, cut], trials.labels, *sides, [eer_percent, least_cost()]
                )
                cells.append(f"{error.value:.2f} [{error.low:.2f}, {error.high:.2f}] / {cost.value:.3f}")
            rows.append([path.stem, encoder, *cells])
            print(*rows[-1], sep="\t", file=sys.stderr, flush=True)
        first, *others = encoders
        for other in others:
            gaps = [paired_difference((scores[first, cut], scores[other, cut]), trials.labels, *sides) for cut in cuts]
            pairs.append(
                [path.stem, f"{first} - {other}", *(f"{g.value:+.2f} [{g.low:+.2f}, {g.high:+.2f}]" for g in gaps)]
            )
    heading = [f"{cut:g} s" if cut else "whole" for cut in cuts]
    parts = [report.table(["trials", "encoder", *heading], rows)]
    if pairs:
        parts.append("Differences of the EER, the same speakers drawn for both:")
        parts.append(report.table(["trials", "EER %", *heading], pairs))
    counts = ", ".join(f"{path.stem} {sum(t.labels):,} + {len(t) - sum(t.labels):,}" for path in lists
                       for t in [read_trials(path)])  # fmt: skip
    parts.append(f"EER % [95 %] / minDCF(0.01), cosine. Trials (target + non-target): {counts}.")
    return "\n\n".join(parts)


def middle(wav: Wav, seconds: float) -> Wav:
    """The seconds in the middle; all of what is shorter, or for 0."""
    count = round(seconds * RATE) or len(wav)
    start = max(0, (len(wav) - count) // 2)
    return wav[start : start + count]


def cosines(trials: Trials, vectors: dict[str, NDArray[np.float32]]) -> NDArray[np.float64]:
    """(n,) of unit vectors."""
    first = np.stack([vectors[name] for name in trials.enrol])
    second = np.stack([vectors[name] for name in trials.test])
    return np.einsum("nd,nd->n", first, second).astype(np.float64)


def _unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    return vector / max(float(np.linalg.norm(vector)), 1e-9)


if __name__ == "__main__":
    sys.exit(main())
