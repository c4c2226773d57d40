"""Known voices: which cluster of a recording is which enrolled speaker, one to one, and which is none of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from engine.errors import ScoreError, SpeechError
from speaker.calibration import Calibration
from speaker.scoring import Floats, unit

__all__ = ["match"]

ENROLLED_SECONDS = 10.0  # of speech that an enrolled embedding is taken to rest on, where nothing is known of it


def match(
    means: Floats, seconds: Floats, enrolled: Mapping[str, Floats], calibration: Calibration | None,
    enrolled_seconds: Mapping[str, float] | None = None,
) -> dict[int, tuple[str, float]]:  # fmt: skip
    """Clusters (K, D) with (K,) seconds of speech -> name and log-likelihood ratio of the rows that are known.

    The assignment with the greatest sum of ratios (Hungarian method), in which pairs that are not above the threshold
    stay unnamed. It is the logarithm of the number enrolled: a voice may well be a stranger's, and each who is enrolled
    is one more whom a stranger may be like by chance. `enrolled_seconds` of speech, NaN where not known. ScoreError
    without a calibration: a cosine is no evidence.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ModuleNotFoundError as error:
        raise SpeechError("naming speakers needs scipy; install it with `pip install 'voxcode[diarize]'`") from error
    if calibration is None:
        raise ScoreError("enrolled speakers are found by log-likelihood ratios and this model has no calibration")
    calibration.check_quality("seconds")
    names = list(enrolled)
    known = np.stack([np.asarray(enrolled[name], dtype=np.float64) for name in names])
    if known.shape[1] != means.shape[1]:
        raise ScoreError(f"enrolled embeddings have {known.shape[1]} numbers, those of this model {means.shape[1]}; "
                         "embed with the same model")  # fmt: skip
    cosines = unit(means) @ unit(known).T
    known_seconds = np.array([(enrolled_seconds or {}).get(name, np.nan) for name in names], dtype=np.float64)
    known_seconds = np.where(known_seconds > 0, known_seconds, ENROLLED_SECONDS)
    ratios = np.stack([
        calibration.of_scores(row, spoken, known_seconds) for row, spoken in zip(cosines, seconds, strict=True)
    ])  # fmt: skip
    threshold = np.log(len(names))
    # Below the threshold a pair is worth nothing: it must not keep two others apart.
    worth = np.maximum(ratios - threshold, 0)
    rows, columns = linear_sum_assignment(worth, maximize=True)
    return {
        int(row): (names[column], float(ratios[row, column]))
        for row, column in zip(rows, columns, strict=True)
        if worth[row, column] > 0
    }
