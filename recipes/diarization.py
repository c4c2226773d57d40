"""Give an encoder the PLDA of windows that `speaker diarize --resegment` needs.

    python -m recipes.diarization checkpoints/ecapa --data MANIFEST

Windows of training speakers, a little longer than those of diarization, embedded, LDA, two-covariance PLDA.
Where conversations are to be measured on the speakers that training has held out, those are left out here as well.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import speaker
from engine.errors import ConfigError, SpeechError
from recipes.harness.data import Utterance, as_float, build_cache, is_validation, labelled
from recipes.recipe import SpeakerRecipe
from speaker import plda
from speaker.diarize import PLDA
from speaker.model import SpeakerEncoder
from speaker.scoring import Floats

SECONDS = 2.0  # of a window
MOST = 12  # windows of a speaker
LEAST = 4
BATCH = 12


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of the encoder")
    parser.add_argument("--data", action="append", required=True, help="manifest that it was trained on")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--percent", type=float, default=SpeakerRecipe(name="").validation_percent,
                        help="of the speakers that training held out")  # fmt: skip
    parser.add_argument("--dim", type=int, default=64, help="that LDA keeps")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        encoder = speaker.load(options.model)
        samples, utterances = build_cache(options.data, options.cache, encoder.config.front_end.sample_rate)
        train = [u for u in labelled(utterances) if not is_validation(u.speaker, options.percent)]
        vectors, rows = windows_of(encoder, samples, train)
        trained = plda.train(vectors, rows, min(options.dim, len(np.unique(rows)) - 1))
        replace(trained, model=encoder.identity).save(options.model / PLDA)
        print(f"{options.model / PLDA}: {len(rows):,} windows of {len(np.unique(rows))} speakers")
    except SpeechError as error:
        print(f"diarization: error: {error}", file=sys.stderr)
        return 2
    return 0


@torch.inference_mode()
def windows_of(
    encoder: SpeakerEncoder, samples: np.ndarray, utterances: list[Utterance], seed: int = 0
) -> tuple[Floats, np.ndarray]:
    """Embeddings (n, D) of windows cut from each speaker's recordings, and their speakers (n,)."""
    size = round(SECONDS * encoder.config.front_end.sample_rate)
    starts: dict[str, list[int]] = {}
    for u in utterances:
        starts.setdefault(u.speaker, []).extend(range(u.start, u.start + u.num_samples - size + 1, size))
    rng = np.random.default_rng(seed)
    kept = [(row, int(at)) for row, name in enumerate(sorted(starts)) if len(starts[name]) >= LEAST
            for at in rng.permutation(starts[name])[:MOST]]  # fmt: skip
    if not kept:
        raise ConfigError(f"no speaker has {LEAST} windows of {SECONDS:g} s within recordings; give longer recordings")
    vectors = []
    for first in range(0, len(kept), BATCH):
        wavs = np.stack([as_float(samples[at : at + size]) for _, at in kept[first : first + BATCH]])
        vectors.append(encoder(torch.from_numpy(wavs)).numpy())
    return np.concatenate(vectors).astype(np.float64), np.array([row for row, _ in kept])


if __name__ == "__main__":
    sys.exit(main())
