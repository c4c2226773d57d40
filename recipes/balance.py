"""Centre and balance a trained encoder by its last layer, and say so in its card: part of `recipes.calibrate`."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import speaker
from engine.errors import ConfigError
from recipes.directions import check_corpora, evened
from recipes.harness.recordings import corpus_of
from speaker.adapt import mean_embeddings
from speaker.diarize import PLDA
from speaker.evidence import CALIBRATION, VERIFICATION
from speaker.last_layer import transform
from speaker.model import SpeakerEncoder

HEADING = "## Calibration\n"  # of the card
MOVED = "The mean over the training speakers was moved to 0"
NARROWED = "wide directions were narrowed"


@dataclass(frozen=True)
class Change:
    """What is done to the embeddings by the last layer: centred, and balanced with an `exponent`."""

    exponent: float | None = None
    nuisance: int = 0  # directions in which corpora differ, taken away before
    without: tuple[str, ...] = ()  # corpora whose speakers do not count

    def __post_init__(self) -> None:
        if (self.nuisance or self.without) and self.exponent is None:
            raise ConfigError("--nuisance and --balance-without go with --balance; --balance 0 narrows nothing")


def check(encoder: SpeakerEncoder, names: list[str], change: Change) -> None:
    """ConfigError if `improved` could not make the change with speakers `names` (n,)."""
    if all(corpus_of(name) in change.without for name in names):
        raise ConfigError("--balance-without leaves no speaker to take the mean of")
    check_corpora(names, change.nuisance)
    dim = encoder.embedding_dim
    transform(copy.deepcopy(encoder), np.eye(dim), np.zeros(dim))


def improved(
    encoder: SpeakerEncoder, folder: Path, names: list[str], vectors: NDArray[np.float64], change: Change
) -> tuple[SpeakerEncoder, NDArray[np.float64]]:
    """Save the encoder with the change; return it and what `vectors` (n, D) of speakers `names` (n,) have become."""
    check(encoder, names, change)
    counts = np.array([corpus_of(name) not in change.without for name in names])
    counted = [name for name, counts_too in zip(names, counts, strict=True) if counts_too]
    mean = mean_embeddings(counted, vectors[counts])[1].mean(0)
    matrix = np.eye(len(mean))
    if change.exponent is not None:
        matrix = evened(names, vectors - mean, change.exponent, change.nuisance, counts)
    transform(encoder, matrix, -matrix @ mean)
    speaker.save(folder, encoder, told((folder / "README.md").read_text(encoding="utf-8"), change))
    for stale in (CALIBRATION, VERIFICATION, PLDA):  # of the weights before: should what follows fail, none is better
        (folder / stale).unlink(missing_ok=True)
    return speaker.load(folder), (vectors - mean) @ matrix.T


def once_only(card: str, change: Change) -> None:
    """ConfigError if the card says that this was done: a second time it would narrow what is even already."""
    if change.exponent and NARROWED in card:
        raise ConfigError("this encoder is balanced already, its card says; leave --balance out, or balance a fresh "
                          "export of its run")  # fmt: skip


def told(card: str, change: Change) -> str:
    """The card, its part on calibration begun with what `improved` has done."""
    option = "--centre" if change.exponent is None else f"--balance {change.exponent:g}"
    done = [MOVED]
    if change.nuisance:
        done.append(f"{change.nuisance} directions in which corpora differ were taken away")
        option += f" --nuisance {change.nuisance}"
    if change.exponent:
        done.append(NARROWED)
    without = f"; mean and spread without the speakers of {', '.join(change.without)}" if change.without else ""
    line = f"{', '.join(done)} (`recipes.calibrate {option}`{without}).\n"
    kept = re.sub(rf"^{MOVED}.*\n", "", card, flags=re.MULTILINE)
    kept += "" if HEADING in kept else f"\n{HEADING}"
    return kept.replace(HEADING, HEADING + line, 1)
