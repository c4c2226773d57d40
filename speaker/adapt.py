"""An encoder for other recordings than it was trained on: their mean embedding is taken off.

Rooms, microphones and manners of speaking move all embeddings of a collection to one side, and cosines of different
people rise. Recordings without labels tell by how much. The mean of a few voices is also that of those voices, so it is
shrunk towards what the encoder has for 0, by what its own spread says (James and Stein 1961): of voices from all of the
training data nothing is left of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from engine.checkpoint import drop_extras
from engine.errors import ScoreError
from engine.files import replacing
from speaker import plda
from speaker.collections import Collection, speaker_of
from speaker.diarize import PLDA
from speaker.embed import embed_files
from speaker.evidence import CALIBRATION, COHORT, VERIFICATION, calibration_of, cohort_of, system_of, verification_of
from speaker.last_layer import transform
from speaker.model import SpeakerEncoder, load, save
from speaker.scoring import Floats
from speaker.store import same_model

__all__ = ["Shift", "adapt", "embedded", "mean_embeddings", "shift_of", "with_speech"]

LEAST = 10  # people
LEAST_SPEECH = 0.5  # seconds of speech in a recording; silence has an embedding too, and it is nobody's


@dataclass(frozen=True)
class Shift:
    """What is taken off the embeddings (D,): `share` of the mean over that many people."""

    offset: Floats
    share: float
    people: int
    recordings: int


def mean_embeddings(names: list[str], vectors: Floats) -> tuple[list[str], Floats]:
    """Speakers, and the mean (S, D) of their embeddings (n, D) as they come, but for a few that are far too long.

    Of a recording that breaks off into digital silence the embedding may be fifty times as long as of others.
    """
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = vectors * np.minimum(1, 2 * np.median(length) / np.maximum(length, 1e-9))
    speakers, rows = np.unique(names, return_inverse=True)
    sums = np.zeros((len(speakers), vectors.shape[1]))
    np.add.at(sums, rows, vectors)
    return speakers.tolist(), sums / np.bincount(rows)[:, None]


def embedded(
    encoder: SpeakerEncoder, paths: Sequence[Path], progress: Callable[[int], None] = lambda done: None
) -> tuple[Collection, dict[str, str]]:
    """Embed files; those that cannot be embedded are returned with the reason. `progress` gets the files done."""
    found = embed_files(encoder, paths, progress)
    seconds = np.array([quality.seconds for quality in found.quality])
    vectors = np.array(found.vectors, dtype=np.float64).reshape(len(found.names), encoder.embedding_dim)
    return Collection(found.names, vectors, seconds, found.model), found.failed


def with_speech(recordings: Collection) -> tuple[Collection, dict[str, str]]:
    """Leave out recordings that are known to have hardly any speech; they are returned with the reason."""
    kept = [row for row, seconds in enumerate(recordings.seconds) if not seconds < LEAST_SPEECH]
    left = {
        name: f"{name}: {seconds:.2f} s of speech; {LEAST_SPEECH:g} s are needed"
        for name, seconds in zip(recordings.names, recordings.seconds, strict=True)
        if seconds < LEAST_SPEECH
    }
    names = [recordings.names[row] for row in kept]
    return Collection(names, recordings.vectors[kept], recordings.seconds[kept], recordings.model), left


def shift_of(names: list[str], vectors: Floats) -> Shift:
    """How far embeddings (n, D) of recordings lie to one side.

    People are the folders in the recordings' names; where all lie in one, each recording counts as somebody else's.
    ScoreError for fewer than 10.
    """
    speakers = [speaker_of(name) for name in names]
    speakers = speakers if len(set(speakers)) > 1 else list(names)
    if len(set(speakers)) < LEAST:
        raise ScoreError(f"recordings of {len(set(speakers))} people: their mean would be that of these voices. Give "
                         f"{LEAST} or more, each person's in a folder, or all in one folder")  # fmt: skip
    means = mean_embeddings(speakers, vectors)[1]
    mean = means.mean(0)
    # Of how long the mean is, this much is chance.
    chance = np.square(means - mean).sum() / (len(means) - 1) / len(means)
    share = max(0.0, 1.0 - float(chance / max(np.square(mean).sum(), 1e-30)))
    return Shift(share * mean, share, len(means), len(names))


def adapt(encoder: SpeakerEncoder, source: Path, recordings: Collection, out: Path) -> Shift:
    """Write to the folder `out` the encoder of the folder `source` for recordings such as these.

    Its calibration and its cohort come along as they are: centred, voices of another collection lie where those of the
    first did. The PLDA of diarization moves with the embeddings. ScoreError where the embeddings are of another
    encoder, or of too few people.
    """
    if not same_model(recordings.model, encoder.identity):
        raise ScoreError(f"the embeddings are of {recordings.model}, the model is {encoder.identity}")
    found = shift_of(recordings.names, recordings.vectors)
    calibration = calibration_of(source, encoder)
    near = verification_of(source, encoder)
    windows = plda.load(source / PLDA) if (source / PLDA).is_file() else None
    strangers = _cohort(source / COHORT, encoder)
    before = encoder.identity
    transform(encoder, np.eye(encoder.embedding_dim), -found.offset)
    card = (source / "README.md").read_text(encoding="utf-8") if (source / "README.md").is_file() else ""
    drop_extras(out)
    save(out, encoder, _card(out.name, before, found, card))
    identity = load(out).identity
    if calibration is not None:
        replace(calibration, systems=[f"{identity}:cosine"]).save(out / CALIBRATION)
    if near is not None:
        replace(near, systems=[system_of(identity)]).save(out / VERIFICATION)
    if strangers is not None:
        with replacing(out / COHORT) as partial, partial.open("wb") as file:
            np.savez(file, **{**strangers, "model": np.array(identity)})
    if windows is not None:
        replace(windows, centre=windows.centre - found.offset, model=identity).save(out / PLDA)
    return found


def _cohort(path: Path, encoder: SpeakerEncoder) -> dict[str, Any] | None:
    if not path.is_file() or cohort_of(path.parent, encoder.identity) is None:
        return None
    with path.open("rb") as file, np.load(file, allow_pickle=False) as parts:
        return dict(parts)


def _card(name: str, before: str, found: Shift, card: str) -> str:
    return (
        f"# {name}\n\n`{before}`, adapted to recordings of another kind: {found.share:.2f} of the mean embedding of "
        f"{found.people} people ({found.recordings} recordings) was taken off (`speaker adapt`). All figures below are "
        f"those of `{before}`, measured before.\n\n{card}"
    )
