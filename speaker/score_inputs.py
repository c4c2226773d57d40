"""What `speaker score` needs before it can score, and what can be said of it beforehand."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine import checkpoint
from engine.console import progress
from engine.errors import ScoreError
from speaker import collections
from speaker import plda as plda_backend
from speaker.calibration import Calibration
from speaker.checks import warn
from speaker.collections import Collection
from speaker.embedding_files import BROKEN, reason
from speaker.evidence import COHORT, TOP
from speaker.model import DEFAULT, SpeakerEncoder, default
from speaker.scoring import Cosine
from speaker.store import same_model
from speaker.trials import Trials

OWN_COHORT = re.compile(r"\(\w{8}\)$")  # digest of a cohort of one's own, in the name of a system


def backend_of(name: str, file: Path | None) -> Any:
    """Cosine, or the PLDA of a file."""
    if name == "cosine" and file is None:
        return Cosine()
    if name == "plda" and file is not None:
        return plda_backend.load(file)
    raise ScoreError(f"--backend {name}: it is cosine, or plda together with --plda FILE")


def top_of(norm: str, top: int | None) -> int | None:
    """How many of the cohort count; ScoreError for an unknown way to normalize."""
    if norm not in ("none", "s", "as", "near"):
        raise ScoreError(f"--norm {norm}: there are none, s, as and near")
    if norm in ("none", "s"):
        if top is not None:
            raise ScoreError(f"--top is for --norm as and near, not for {norm}")
        return None
    if top is not None and top < 2:
        raise ScoreError(f"--top {top}: take 2 cohort scores or more")
    return top if top is not None else {"as": 200, "near": TOP}[norm]


def digest(rows: Any) -> str:
    """Eight characters that tell one array from another."""
    return hashlib.sha256(rows.tobytes()).hexdigest()[:8]


def check_calibration(map_: Calibration, system: str, own_cohort: bool) -> None:
    """ScoreError for a calibration of other scores; of a cohort of one's own, not embedded yet, nothing is known."""
    if own_cohort:
        told = OWN_COHORT.search(map_.systems[0])
        system += told[0] if told else "(own cohort)"
    map_.check_systems([system])


def cohort_file(cohort: Path | None, model: str | None) -> Path:
    """The cohort that was given, or the one beside the model."""
    if cohort is not None:
        return cohort
    shipped = checkpoint.find(model or default()) / COHORT
    if not shipped.is_file():
        raise ScoreError(f"{shipped.parent} brings no cohort; give --cohort, a folder of speakers or their embeddings")
    return shipped


def trained_on(model: str | None, of_model: str) -> list[str]:
    """Speakers, as `corpus/speaker`, of the training of `of_model`: those of the cohort that came with it.

    None where embeddings are of a model that is not at hand.
    """
    if model is None and DEFAULT not in checkpoint.shipped():
        return []
    shipped = checkpoint.find(model or DEFAULT) / COHORT
    if not shipped.is_file():
        return []
    try:
        with shipped.open("rb") as file, np.load(file, allow_pickle=False) as parts:
            if not same_model(str(parts["model"]), of_model):
                return []
            return [name.removesuffix("/mean") for name in parts["names"].tolist()]
    except BROKEN as error:
        warn(f"{shipped} does not tell whom the model was trained on ({reason(error)}); overlap is not looked for")
        return []


def names_of(trials: Trials, models: Mapping[str, Sequence[str]]) -> list[str]:
    """Recordings of a list and of its models, each once."""
    listed = [name for name in trials.recordings() if name not in models]
    return list(dict.fromkeys([*listed, *(name for utterances in models.values() for name in utterances)]))


def embedded(encoder: SpeakerEncoder, root: Path, names: list[str], seconds: float | None) -> Collection:
    """Embed recordings, with a bar on a terminal."""
    with progress(len(names)) as told:
        return collections.of_recordings(encoder, root, names, seconds, told)


def quality_of(found: Collection, sides: NDArray[np.intp]) -> dict[str, Any]:
    """Magnitudes and, where they are known of all, seconds of speech, (n, 2), of the rows (n, 2) of trials."""
    quality: dict[str, Any] = {"magnitude": np.linalg.norm(found.vectors, axis=1)[sides]}
    spoken = found.seconds[sides]
    if np.isfinite(spoken).all():
        quality["seconds"] = spoken
    elif np.isfinite(spoken).any():
        unknown = sorted({found.names[row] for row in sides[~np.isfinite(spoken)]})
        warn(f"the seconds of {len(unknown)} recordings are not known, the first is {unknown[0]}: no trial has them as "
             "a quality measure")  # fmt: skip
    return quality


def warn_of_little_speech(trials: Trials, found: Collection, map_: Calibration | None) -> None:
    """Warn of recordings of the list that hold no speech, or less than the calibration knows."""
    spoken = dict(zip(found.names, found.seconds.tolist(), strict=True))
    silent = [name for name in trials.recordings() if spoken.get(name) == 0]
    if silent:
        warn(f"{len(silent)} recordings hold no speech, such as {silent[0]}: their scores say nothing")
    least = 0.0 if map_ is None else map_.shortest
    short = [name for name in trials.recordings() if 0 < spoken.get(name, least) < least]
    if short:
        warn(f"{len(short)} recordings hold less speech than the {least:.2f} s that the calibration knows, such as "
             f"{short[0]}: their log-likelihood ratios are a guess")  # fmt: skip
