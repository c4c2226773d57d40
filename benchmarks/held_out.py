"""Errors on speakers that training held out, to choose between encoders before any test list is touched.

    python -m benchmarks.held_out MODEL... --data MANIFEST [--noise MANIFEST] [--apart CORPUS...] [--write FILE...]

Up to 12 crops of 4 s of each speaker, short recordings joined, no two of them with a sample in common; cut to 1, 2 and
4 s (or to --seconds, the last being the length of the crops); all pairs within one corpus, by cosine, the mean of all
crops taken off. Corpora named by --apart are a group of their own: those that were heard without labels too, or whose
labels are less certain. With --noise the same crops again, at 0 to 20 dB.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import speaker
from benchmarks import report
from engine.errors import ConfigError
from recipes.calibrate import joined
from recipes.harness.augment import Augment, AugmentConfig
from recipes.harness.data import Utterance, build_cache, is_validation, labelled
from recipes.harness.pairs import pairs_within
from recipes.harness.recordings import corpus_of
from recipes.recipe import SpeakerRecipe
from speaker.intervals import eer_percent, least_cost, speaker_bootstrap
from speaker.model import SpeakerEncoder
from speaker.scoring import Floats, unit

RATE = 16_000
CUTS = (1, 2, 4)  # seconds
MOST = 12  # crops of a speaker
BATCH = 32
SNR = (0.0, 20.0)
HEADING = ("encoder", "speakers of", "noise")
Wav = NDArray[np.float32]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="names or folders of encoders")
    parser.add_argument("--data", action="append", required=True, help="manifest that they were trained on")
    parser.add_argument("--noise", action="append", default=[], help="recordings or manifest of noise")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--percent", type=float, default=SpeakerRecipe(name="").validation_percent,
                        help="of the speakers that training held out")  # fmt: skip
    parser.add_argument("--seconds", nargs="+", type=float, default=CUTS)
    parser.add_argument("--apart", nargs="+", default=[], metavar="CORPUS")
    parser.add_argument("--leave-out", nargs="+", default=[], metavar="CORPUS")
    parser.add_argument("--write", nargs="+", type=Path, default=[], metavar="FILE")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    return report.publish("held_out", "held-out", lambda: measure(options), options.write)


def measure(options: argparse.Namespace) -> str:
    """The table, and a line on what is in it."""
    encoders = [(Path(name).name, speaker.load(name)) for name in options.models]  # folders may share a name
    if any(encoder.config.front_end.sample_rate != RATE for _, encoder in encoders):
        raise ConfigError(f"these figures are of encoders at {RATE} Hz")
    cuts = sorted(options.seconds)
    if not 0.1 <= cuts[0] <= cuts[-1] <= 60:
        raise ConfigError(f"--seconds from 0.1 to 60, not {cuts[0]:g} to {cuts[-1]:g}")
    samples, utterances = build_cache(options.data, options.cache, RATE)
    known = labelled(utterances, (*options.apart, *options.leave_out))
    held_out = [
        u for u in known if is_validation(u.speaker, options.percent) and corpus_of(u.speaker) not in options.leave_out
    ]
    apart = [corpus_of(u.speaker) in options.apart for u in held_out]
    groups = {
        name: crops(samples, [u for u, is_apart in zip(held_out, apart, strict=True) if is_apart == wanted], cuts[-1])
        for name, wanted in (("the corpora", False), (", ".join(options.apart), True))
    }
    groups = {name: (owners, wavs) for name, (owners, wavs) in groups.items() if len(set(owners)) > 1}
    if not groups:
        raise ConfigError(f"no two held-out speakers have {cuts[-1]:g} s of speech; raise --percent as in training")
    rows, counts = [], []
    for name, (owners, wavs) in groups.items():
        counts.append(f"{name}: {len(owners)} crops of {len(set(owners))} speakers")
        for noise, heard in ("no", wavs), *((("yes", noisy(wavs, options.noise)),) if options.noise else ()):
            for title, encoder in encoders:
                cells = [errors(embed(encoder, heard[:, : round(cut * RATE)]), owners) for cut in cuts]
                rows.append([title, name, noise, *cells])
                print(*rows[-1], sep="\t", file=sys.stderr, flush=True)
    identities = ", ".join(encoder.identity for _, encoder in encoders)
    heading = (*HEADING, *(f"{cut:g} s" for cut in cuts))
    return f"{report.table(heading, rows)}\n\nEER % [95 %] / minDCF(0.01). {'; '.join(counts)}. {identities}."


def crops(samples: NDArray[np.int16], utterances: list[Utterance], seconds: float) -> tuple[list[str], Wav]:
    """Speakers (n,) and crops (n, N), in an order that depends on the recordings alone."""
    wanted = round(seconds * RATE)
    found = list(joined(samples, utterances, np.random.default_rng(5), lambda: wanted, wanted, MOST))
    return [owner for owner, _ in found], np.array([wav for _, wav in found], np.float32).reshape(-1, wanted)


def noisy(wavs: Wav, noise: Sequence[str]) -> Wav:
    """The crops with noise, the same at every call."""
    chain = Augment(AugmentConfig(noise_probability=1.0, noise_paths=tuple(noise), noise_snr=SNR), RATE)
    rng = np.random.default_rng(7)
    return np.stack([chain(wav, rng)[: wavs.shape[1]] for wav in wavs])


@torch.inference_mode()
def embed(encoder: SpeakerEncoder, wavs: Wav) -> Floats:
    """(n, N) -> (n, D)."""
    parts = torch.from_numpy(np.ascontiguousarray(wavs)).split(BATCH)
    return torch.cat([encoder(part) for part in parts]).double().numpy()


def errors(vectors: Floats, owners: Sequence[str]) -> str:
    """Of all pairs within one corpus: EER with its interval, and minDCF."""
    directions = unit(vectors)
    centred = unit(directions - directions.mean(0))
    first, second, same = pairs_within(owners)
    if not same.any() or same.all():
        raise ConfigError("pairs of one speaker and of two speakers of a corpus are needed; give more recordings")
    cosines = (centred @ centred.T)[first, second]
    sides = [owners[i] for i in first], [owners[i] for i in second]
    rate, cost = speaker_bootstrap(cosines, same, *sides, [eer_percent, least_cost()], num=200)
    return f"{rate.value:.1f} [{rate.low:.1f}, {rate.high:.1f}] / {cost.value:.2f}"


if __name__ == "__main__":
    sys.exit(main())
