"""Verification on trial lists: EER and minDCF(0.01), whole and cut, our encoders beside those of others.

    python -m benchmarks.verification --trials LIST... --root FOLDER [--models ecapa] [--beside campplus ge2e]
        [--fuse] [--seconds 0 3 2 1] [--write FILE...]

Scores are cosines; a row "NAME, verify" is by the log-likelihood ratio of `speaker verify`, where the model brings what
that needs: it also knows the seconds of speech. Both sides are cut to their middle seconds; 0 leaves them whole.
Intervals are 95 %, bootstrap over speakers; where a list has few speakers they are wide. Speaker names are the folders
of the recordings.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray

import speaker
from benchmarks import report
from engine import audio, checkpoint
from engine.errors import SpeechError
from recipes.teachers import load_teacher
from speaker.collections import speaker_of
from speaker.evidence import Evidence, evidence_of
from speaker.intervals import eer_percent, least_cost, paired_difference, speaker_bootstrap
from speaker.model import SpeakerEncoder
from speaker.quality import assess
from speaker.scoring import Cosine, score
from speaker.trials import Trials, read_trials

RATE = 16_000  # of the encoders of others
Wav = NDArray[np.float32]
Embed = Callable[[Wav], NDArray[np.float32]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", nargs="+", type=Path, required=True)
    parser.add_argument("--root", type=Path, required=True, help="folder that the lists' paths start from")
    parser.add_argument("--models", nargs="+", default=["ecapa"], help="names or folders of encoders")
    parser.add_argument("--beside", nargs="*", default=[], help="encoders of others: campplus, ge2e")
    parser.add_argument("--fuse", action="store_true", help="another row: the --models together, their cosines' mean")
    parser.add_argument("--seconds", nargs="+", type=float, default=[0, 3, 2, 1])
    parser.add_argument("--write", nargs="+", type=Path, default=[], metavar="FILE")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        loaded = {name: speaker.load(name) for name in options.models}
        judges = {name: evidence_of(checkpoint.find(name), encoder) for name, encoder in loaded.items()}
        encoders: dict[str, Embed] = {name: ours(encoder) for name, encoder in loaded.items()}
        encoders |= {name: load_teacher(name) for name in options.beside}
        fused = options.models if options.fuse else ()
        rates = {name: encoder.config.front_end.sample_rate for name, encoder in loaded.items()}
        text = measure(options.trials, options.root, encoders, options.seconds, fused, judges, rates)
        print(text)
        for path in options.write:
            report.write_sections(path, {"verification": text})
    except SpeechError as error:
        print(f"verification: error: {error}", file=sys.stderr)
        return 2
    return 0


def ours(encoder: SpeakerEncoder) -> Embed:
    """One of our encoders as a function of samples."""

    @torch.inference_mode()
    def embed(wav: Wav) -> NDArray[np.float32]:
        return encoder(torch.from_numpy(wav)[None])[0].numpy()

    return embed


def measure(
    lists: Sequence[Path], root: Path, encoders: dict[str, Embed], cuts: Sequence[float], fused: Sequence[str] = (),
    judges: Mapping[str, Evidence | None] = MappingProxyType({}), rates: Mapping[str, int] = MappingProxyType({}),
) -> str:  # fmt: skip
    """A table for all lists: a row for each encoder, a column for each cut; then the differences to the first of them.

    Where it has an entry in `judges` an encoder gets another row, as `speaker verify` scores. `rates`: Hz that an
    encoder takes; where it has none, 16,000, as the encoders of others do.

    `fused` encoders get a row together, the mean of their cosines.
    """
    rows, pairs, counts = [], [], []
    for path in lists:
        trials = read_trials(path)
        counts.append(f"{path.stem} {sum(trials.labels):,} + {len(trials) - sum(trials.labels):,}")
        owners = [[speaker_of(name) for name in side] for side in (trials.enrol, trials.test)]
        scores = cosines(trials, root, encoders, cuts, judges, rates)
        if fused:
            scores[" & ".join(fused)] = [np.mean([scores[name][k] for name in fused], axis=0) for k in range(len(cuts))]
        for name, values in scores.items():
            cells = []
            for each in values:
                error, cost = speaker_bootstrap(each, trials.labels, *owners, [eer_percent, least_cost()])
                cells.append(f"{error.value:.2f} [{error.low:.2f}, {error.high:.2f}] / {cost.value:.3f}")
            rows.append([path.stem, name, *cells])
            print(*rows[-1], sep="\t", file=sys.stderr, flush=True)
        ours_first = next(iter(encoders))
        mine = [name for name in (ours_first, judged(ours_first)) if name in scores]
        for first, other in [(a, b) for b in scores if b not in mine for a in mine]:
            both = zip(scores[first], scores[other], strict=True)
            gaps = [paired_difference(pair, trials.labels, *owners) for pair in both]
            pairs.append(
                [path.stem, f"{first} - {other}", *(f"{g.value:+.2f} [{g.low:+.2f}, {g.high:+.2f}]" for g in gaps)]
            )
    heading = [f"{cut:g} s" if cut else "whole" for cut in cuts]
    parts = [report.table(["trials", "encoder", *heading], rows)]
    if pairs:
        parts.append("Differences of the EER, the same speakers drawn for both:")
        parts.append(report.table(["trials", "EER %", *heading], pairs))
    scored = 'cosine; "verify": the log-likelihood ratio of `speaker verify`' if any(judges.values()) else "cosine"
    parts.append(f"EER % [95 %] / minDCF(0.01), {scored}. Trials (target + non-target): {', '.join(counts)}.")
    return "\n\n".join(parts)


def cosines(
    trials: Trials, root: Path, encoders: dict[str, Embed], cuts: Sequence[float],
    judges: Mapping[str, Evidence | None] = MappingProxyType({}), rates: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, list[NDArray[np.float64]]]:  # fmt: skip
    """Scores (n,) of every encoder, one array for each cut; with a judge log-likelihood ratios too."""
    names = trials.recordings()
    sounds: dict[int, list[Wav]] = {}  # by rate
    found: dict[str, list[NDArray[np.float64]]] = {}
    for encoder, embed in encoders.items():
        judge, rate = judges.get(encoder), rates.get(encoder, RATE)
        if rate not in sounds:
            sounds[rate] = [audio.load(root / name, rate, mono=True)[0][0].numpy() for name in names]
        for cut in cuts:
            parts = [middle(wav, cut, rate) for wav in sounds[rate]]
            vectors = np.stack([embed(part) for part in parts])
            values = score(trials, names, vectors, Cosine()).values
            found.setdefault(encoder, []).append(values)
            if judge is not None:
                known = judge.side(vectors, np.array([assess(part, rate).seconds for part in parts]))
                at = trials.rows(names)
                ratios = judge.llr(values, known.take(at[:, 0]), known.take(at[:, 1]))
                found.setdefault(judged(encoder), []).append(ratios)
    return found


def judged(name: str) -> str:
    """What an encoder's row is called that is scored as by `speaker verify`."""
    return f"{name}, verify"


def middle(wav: Wav, seconds: float, sample_rate: int = RATE) -> Wav:
    """The seconds in the middle; all of what is shorter, or for 0."""
    count = round(seconds * sample_rate) or len(wav)
    start = max(0, (len(wav) - count) // 2)
    return wav[start : start + count]


if __name__ == "__main__":
    sys.exit(main())
