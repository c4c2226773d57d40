"""Trials of held-out recordings: all pairs within one corpus."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from recipes.harness.recordings import corpus_of


def pairs_within(speakers: Sequence[str]) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.bool_]]:
    """Both sides (n,) of all pairs of recordings within a corpus, and whether both are of one speaker (n,).

    `speakers` (corpus/speaker) has an entry for each recording. Other corpora are other rooms and languages: telling
    those apart is not telling speakers apart.
    """
    owners = np.unique(np.asarray(speakers, dtype=str), return_inverse=True)[1]
    corpora = np.unique(np.array([corpus_of(name) for name in speakers], dtype=str), return_inverse=True)[1]
    first, second = np.triu_indices(len(owners), 1)
    within = corpora[first] == corpora[second]
    first, second = first[within], second[within]
    return first, second, owners[first] == owners[second]
