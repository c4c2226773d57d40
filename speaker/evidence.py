"""What lies beside a model's weights, and turns a cosine into a log-likelihood ratio: calibration and cohort.

A model folder may hold

- `cohort.npz`: a mean embedding for each training speaker, voices in general;
- `calibration.json`: a map of cosines and seconds of speech;
- `verification.json`: one that also knows how near either side is to the voices of the cohort, the mean of its TOP
  highest cosines with them, "imposter mean" in Thienpondt et al. (2021) and the first half of adaptive normalization.
  Where it lies it is used before `calibration.json`, but for diarization.

The latter is worth much where the voices are of the kind of the cohort's, and misleads where they are not: see
docs/speaker_training.md. So none comes with the shipped model. `recipes.calibrate --near` makes one, or, of recordings
of one's own, `speaker score --norm near` and then `speaker calibrate --quality seconds,cohort --out
FOLDER/verification.json`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.errors import ScoreError
from speaker.calibration import Calibration
from speaker.calibration import load as load_calibration
from speaker.embedding_files import BROKEN, reason
from speaker.scoring import ROWS, Floats, unit
from speaker.store import same_model

if TYPE_CHECKING:
    from speaker.model import SpeakerEncoder

__all__ = [
    "CALIBRATION", "COHORT", "VERIFICATION", "Evidence", "Side", "calibration_of", "cohort_of", "evidence_of",
    "nearness",
]  # fmt: skip

CALIBRATION, VERIFICATION, COHORT = "calibration.json", "verification.json", "cohort.npz"
TOP = 50  # cohort scores that say how near a voice is to others


class Side(NamedTuple):
    """What is known of n recordings beside their directions; each (n,)."""

    seconds: Floats  # of speech
    magnitude: Floats | None  # length of the embedding; None where only directions are known
    cohort: Floats | None  # mean of the highest cosines with the cohort; None where no calibration asks for it

    def take(self, rows: NDArray[np.intp]) -> Side:
        """Those of the (m,) rows, for example one side of m trials."""
        return Side(*(None if each is None else each[rows] for each in self))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Evidence:
    """A calibration and the unit vectors (C, D) of the cohort, None where the calibration does not need them."""

    calibration: Calibration
    cohort: Floats | None = None

    def side(self, vectors: ArrayLike, seconds: ArrayLike, *, directions: bool = False) -> Side:
        """(n, D) embeddings as they come, or only their `directions`; (n,) seconds of speech or one for all."""
        rows = np.asarray(vectors)
        spoken = np.broadcast_to(np.asarray(seconds, dtype=np.float64), (len(rows),))
        lengths = None if directions else np.linalg.norm(rows, axis=1).astype(np.float64)
        if self.cohort is None or "cohort" not in self.calibration.quality:
            return Side(spoken, lengths, None)
        return Side(spoken, lengths, nearness(self.cohort, rows))

    def llr(self, cosines: Floats, first: Side, second: Side) -> Floats:
        """Log-likelihood ratios (n,) of (n,) cosines between n recordings and n others; a side may be one for all."""
        quality = {}
        for name, a, b in zip(Side._fields, first, second, strict=True):
            if a is not None and b is not None:
                quality[name] = np.stack([np.broadcast_to(each, cosines.shape) for each in (a, b)], axis=1)
        return self.calibration.llr(np.asarray(cosines, dtype=np.float64)[:, None], quality)


def nearness(cohort: Floats, rows: NDArray[Any]) -> Floats:
    """Unit vectors (C, D), embeddings (n, D) -> mean (n,) of the TOP highest cosines of each."""
    near, voices, top = np.empty(len(rows)), cohort.astype(np.float32), min(TOP, len(cohort))
    for start in range(0, len(rows), ROWS):  # in single precision: a gallery may have a million rows
        cosines = unit(rows[start : start + ROWS]).astype(np.float32) @ voices.T
        near[start : start + ROWS] = np.partition(cosines, len(voices) - top, axis=1)[:, -top:].mean(1)
    return near


def evidence_of(folder: Path, encoder: SpeakerEncoder) -> Evidence | None:
    """The best that came with a model; None without a calibration, ScoreError for one of other weights."""
    found = verification_of(folder, encoder)
    if found is not None:
        cohort = cohort_of(folder, encoder.identity)
        if cohort is None or cohort.ndim != 2 or len(cohort) < 2:
            raise ScoreError(f"{folder / VERIFICATION} needs the cohort of these weights, two voices or more, as "
                             f"{folder / COHORT}; `python -m recipes.calibrate --near` makes both")  # fmt: skip
        return Evidence(found, unit(cohort.astype(np.float64)))
    plain = calibration_of(folder, encoder)
    return None if plain is None else Evidence(plain)


def verification_of(folder: Path, encoder: SpeakerEncoder) -> Calibration | None:
    """The map that knows the cohort, which came with a model; ScoreError if it was made for other weights."""
    return _map_of(
        folder / VERIFICATION, system_of(encoder.identity), "; `python -m recipes.calibrate --near` makes it anew"
    )


def system_of(model: str) -> str:
    """What scores are called that come with the nearness to a cohort: `model` is name@digest."""
    return f"{model}:cosine+cohort{TOP}"


def calibration_of(folder: Path, encoder: SpeakerEncoder) -> Calibration | None:
    """The map of cosines and seconds that came with a model; ScoreError if it was made for other weights."""
    return _map_of(folder / CALIBRATION, f"{encoder.identity}:cosine")


def _map_of(path: Path, system: str, way_out: str = "") -> Calibration | None:
    if not path.is_file():
        return None
    found = load_calibration(path)
    try:
        found.check_systems([system])
    except ScoreError as error:
        raise ScoreError(f"{path}: {error}{way_out}") from error
    return found


def cohort_of(folder: Path, model: str) -> NDArray[np.float32] | None:
    """The cohort (C, D) beside a model's weights; None if there is none or it was made for other weights."""
    path = folder / COHORT
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as parts:
            made_for, vectors = str(parts["model"]), parts["embeddings"].astype(np.float32)
    except BROKEN as error:
        why = reason(error)
        raise ScoreError(f"{path} holds no cohort ({why}); `python -m recipes.calibrate` makes one") from error
    if not same_model(made_for, model):
        warnings.warn(f"{path} was made for {made_for}, not for {model}; it is not used", stacklevel=2)
        return None
    return vectors
