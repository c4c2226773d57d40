"""Give a trained encoder what verification, identification and streams need: a calibration and a cohort.

    python -m recipes.calibrate checkpoints/ecapa --data MANIFEST --noise MANIFEST

The calibration (speaker.evidence) is learned on speakers that training has held out (the same split): recordings of 1
to 10 s, most of them with noise at 0 to 30 dB. The cohort is a mean embedding for each training speaker. Both go into
the folder. With --near another map is written, which knows how near a voice is to those of the cohort: good where the
voices to come are of the same kind as the cohort's, and misleading where they are not (docs/speaker_training.md).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import speaker
from engine.errors import ConfigError, SpeechError
from recipes.balance import Change, check, improved, once_only
from recipes.harness.augment import Augment, AugmentConfig
from recipes.harness.data import Utterance, as_float, build_cache, is_validation, labelled
from recipes.harness.pairs import pairs_within
from recipes.harness.recordings import corpus_of
from recipes.harness.workers import on_each
from recipes.recipe import SpeakerRecipe
from speaker.adapt import mean_embeddings
from speaker.calibration import fit
from speaker.evidence import CALIBRATION, COHORT, VERIFICATION, cohort_of, nearness, system_of
from speaker.model import SpeakerEncoder
from speaker.quality import assess
from speaker.scoring import unit

SECONDS = (1.0, 10.0)
SNR = (0.0, 30.0)
NOISY = 0.75  # of the recordings
MOST = 30  # recordings of a speaker
COHORT_SECONDS = 20.0  # of a training speaker
DRAW = 0  # seed of the recordings that the calibration is learned on
FEW = ("no two held-out speakers of one corpus have recordings long enough, or none has two; raise --percent as in "
       "training, or give more speakers")  # fmt: skip
Wav = NDArray[np.float32]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of the encoder")
    parser.add_argument("--data", action="append", required=True, help="manifest that it was trained on")
    parser.add_argument("--noise", action="append", default=[], help="recordings or manifest of noise")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--percent", type=float, default=SpeakerRecipe(name="").validation_percent,
                        help="of the speakers that training held out")  # fmt: skip
    parser.add_argument("--centre", action="store_true", help="first move the mean of the training speakers to 0")
    parser.add_argument("--balance", type=float, metavar="EXPONENT",
                        help="centre, then narrow wide directions (recipes.directions); 0.5 is good")  # fmt: skip
    parser.add_argument("--nuisance", type=int, default=0, metavar="N",
                        help="with --balance: first take away N directions of the corpora; 3 is good")  # fmt: skip
    parser.add_argument("--balance-without", action="append", default=[], metavar="CORPUS",
                        help="its speakers count neither for the mean nor for how wide directions are")  # fmt: skip
    parser.add_argument("--leave-out", action="append", default=[], metavar="CORPUS",
                        help="from the calibration: a corpus whose labels are not certain")  # fmt: skip
    parser.add_argument("--near", action="store_true",
                        help="also a map that knows the cohort, for voices of its kind alone")  # fmt: skip
    parser.add_argument("--workers", type=int, default=1, help="processes that embed the training speakers")
    parser.add_argument("--prior", type=float, default=0.1, help="of a target")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        run(options)
    except SpeechError as error:
        print(f"calibrate: error: {error}", file=sys.stderr)
        return 2
    return 0


def run(options: argparse.Namespace) -> None:
    """Do what the options say. All that can be wrong with them is found before hours of embedding, or any writing."""
    if not 0 < options.prior < 1:
        raise ConfigError(f"the prior of a target lies between 0 and 1, got {options.prior:g}")
    change = None
    if options.centre or options.balance is not None or options.nuisance or options.balance_without:
        change = Change(options.balance, options.nuisance, tuple(options.balance_without))
    encoder = speaker.load(options.model)
    if change is not None:
        once_only((options.model / "README.md").read_text(encoding="utf-8"), change)
    rate, chain = encoder.config.front_end.sample_rate, None
    if options.noise:
        disturbed = AugmentConfig(noise_probability=NOISY, noise_paths=tuple(options.noise), noise_snr=SNR)
        chain = Augment(disturbed, rate)
    samples, utterances = build_cache(options.data, options.cache, rate)
    known = labelled(utterances, (*options.leave_out, *options.balance_without))
    held_out = [u for u in known if is_validation(u.speaker, options.percent)]
    held_out = [u for u in held_out if corpus_of(u.speaker) not in options.leave_out]
    train = [u for u in known if not is_validation(u.speaker, options.percent)]
    if not (speakers := [u.speaker for u in long_enough(train, rate)]):
        raise ConfigError("no training speaker has a recording of a second or more; give longer recordings")
    if change is not None:
        check(encoder, speakers, change)
    check_trials(samples, held_out, rate)
    names, vectors = recordings_of_speakers(encoder, samples, train, options.workers)
    if change is not None:
        encoder, vectors = improved(encoder, options.model, names, vectors, change)
    print(write_cohort(encoder, options.model, names, vectors))
    print(calibrate(encoder, options.model, samples, held_out, chain, options.prior, options.near))


def check_trials(samples: np.ndarray, utterances: list[Utterance], rate: int) -> None:
    """ConfigError unless recordings of `utterances` give `calibrate` pairs of one speaker and of two."""
    same = pairs_within([owner for owner, _ in spoken(samples, utterances, rate, np.random.default_rng(DRAW))])[2]
    if not same.any() or same.all():
        raise ConfigError(FEW)


def calibrate(
    encoder: SpeakerEncoder, folder: Path, samples: np.ndarray, utterances: list[Utterance], chain: Augment | None,
    prior: float, near: bool = False,
) -> str:  # fmt: skip
    """Write the calibration, and with `near` that which knows the cohort that lies there; returns a line about it.

    `chain` disturbs the recordings of `utterances`. Without `near` such a calibration of before is removed: it would be
    taken before the new one.
    """
    name = encoder.identity
    cohort = cohort_of(folder, name) if near else None
    if near and cohort is None:
        raise ConfigError(f"{folder / COHORT} holds no cohort of these weights; `python -m recipes.calibrate` makes it")
    rng, rate = np.random.default_rng((DRAW, 1)), encoder.config.front_end.sample_rate
    speakers, vectors, seconds = [], [], []
    for owner, wav in spoken(samples, utterances, rate, np.random.default_rng(DRAW)):
        wav = chain(wav, rng) if chain else wav
        speakers.append(owner)
        vectors.append(embed(encoder, wav))
        seconds.append(assess(wav, rate).seconds)
    first, second, labels = pairs_within(speakers)
    kept = np.minimum(*np.array(seconds)[[first, second]]) >= 0.3
    first, second, labels = first[kept], second[kept], labels[kept]
    directions = unit(np.array(vectors, dtype=np.float64))
    scores = np.einsum("nd,nd->n", directions[first], directions[second])[:, None]
    sides = np.array(seconds)[np.stack([first, second], 1)]
    quality = {"seconds": sides}
    found = fit([f"{name}:cosine"], scores, labels, quality, ("seconds",), prior)
    found.save(folder / CALIBRATION)
    if cohort is not None:
        nearby = nearness(unit(cohort.astype(np.float64)), np.array(vectors))
        quality["cohort"] = nearby[np.stack([first, second], 1)]
        fit([system_of(name)], scores, labels, quality, ("seconds", "cohort"), prior).save(folder / VERIFICATION)
    else:
        (folder / VERIFICATION).unlink(missing_ok=True)
    num_speakers = len(set(speakers))
    return f"{folder / CALIBRATION}: {found.trials:,} trials, {found.targets:,} of one speaker, {num_speakers} speakers"


def spoken(
    samples: np.ndarray, utterances: list[Utterance], rate: int, rng: np.random.Generator
) -> Iterator[tuple[str, Wav]]:
    """Recordings of 1 to 10 s, short ones joined; no two share a sample."""

    def length() -> int:
        return round(np.exp(rng.uniform(*np.log(SECONDS))) * rate)

    return joined(samples, utterances, rng, length, SECONDS[0] * rate, MOST)


def joined(
    samples: np.ndarray, utterances: list[Utterance], rng: np.random.Generator, length: Callable[[], int],
    least: float, most: int,
) -> Iterator[tuple[str, Wav]]:  # fmt: skip
    """Speaker and wav of up to `most` of each speaker, `least` to `length()` samples, short recordings joined.

    No two share a sample.
    """
    of: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        of.setdefault(utterance.speaker, []).append(utterance)
    for name, theirs in sorted(of.items()):
        order, at, given = rng.permutation(len(theirs)), 0, 0
        while at < len(order) and given < most:
            wanted, parts = length(), [np.zeros(0, samples.dtype)]
            while at < len(order) and sum(len(part) for part in parts) < wanted:
                u = theirs[order[at]]
                parts.append(samples[u.start : u.start + u.num_samples])
                at += 1
            wav = as_float(np.concatenate(parts)[:wanted])
            if len(wav) >= least:
                given += 1
                yield name, wav


def write_cohort(encoder: SpeakerEncoder, folder: Path, names: list[str], vectors: NDArray[np.float64]) -> str:
    """Write a mean embedding for each of the speakers `names` (n,) of embeddings (n, D); returns a line about it."""
    speakers, means = mean_embeddings(names, vectors)  # with their lengths, which a PLDA is for
    with (folder / COHORT).open("wb") as file:
        model = np.array(encoder.identity)
        # Each under a folder of its own, for the mean of a mean is the mean.
        labels = np.array([f"{name}/mean" for name in speakers])
        np.savez(file, names=labels, embeddings=means.astype(np.float32), model=model)
    return f"{folder / COHORT}: {len(speakers)} speakers"


def long_enough(utterances: list[Utterance], rate: int) -> list[Utterance]:
    """Those of a second or more."""
    return [u for u in utterances if u.num_samples >= rate]


def recordings_of_speakers(
    encoder: SpeakerEncoder, samples: np.ndarray, utterances: list[Utterance], workers: int = 1
) -> tuple[list[str], NDArray[np.float64]]:
    """Speaker and embedding of recordings from a second up, so many seconds of each speaker."""
    rate = encoder.config.front_end.sample_rate
    left: dict[str, float] = {}
    picked = []
    for u in long_enough(utterances, rate):
        if left.get(u.speaker, COHORT_SECONDS) > 0:
            left[u.speaker] = left.get(u.speaker, COHORT_SECONDS) - u.num_samples / rate
            picked.append(u)
    wavs = (samples[u.start : u.start + u.num_samples] for u in picked)
    return [u.speaker for u in picked], np.array(list(embedded(encoder, wavs, workers)), dtype=np.float64)


def embedded(encoder: SpeakerEncoder, wavs: Iterator[np.ndarray], workers: int) -> Iterator[Wav]:
    """(D,) of each recording (N,) int16, in order, by so many processes of one thread each."""
    yield from on_each(partial(_as_given, encoder), _embed_pcm, map(np.array, wavs), workers)


def _as_given(encoder: SpeakerEncoder) -> SpeakerEncoder:
    return encoder


def _embed_pcm(encoder: SpeakerEncoder, wav: np.ndarray) -> Wav:
    return embed(encoder, as_float(wav))


@torch.inference_mode()
def embed(encoder: SpeakerEncoder, wav: Wav) -> Wav:
    """(N,) -> (D,)."""
    return encoder(torch.from_numpy(np.ascontiguousarray(wav))[None])[0].numpy()


if __name__ == "__main__":
    sys.exit(main())
