"""How far classes have collapsed to their means, and how evenly the means spread (Papyan et al. 2020).

An encoder whose training is over has classes that are points, at angles as wide as they can be. Of held-out speakers
this tells what has carried over, without a threshold and without pairs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LABELS = {
    "collapse": "spread within / between speakers",
    "norms": "spread of the speakers' distances to the middle",
    "angles": "cosines between speakers, 1 is as small as can be",
    "astray": "crops nearer to another speaker's mean, %",
}


def collapse(unit: NDArray[np.floating], label: NDArray[np.integer]) -> dict[str, float]:
    """Unit vectors (N, D) of labels (N,) -> what `LABELS` names; 0, 0, 1 and 0 where the collapse is complete.

    collapse: the trace of the scatter within over that between ("NC1" by traces).
    norms: of the means' distances to their middle, standard deviation over mean ("NC2").
    angles: root mean square of the cosines between means, as seen from their middle, over its least value, which is
        that of a simplex for up to D + 1 classes and Welch's bound (1974) for more ("NC2").
    astray: crops that are nearer to the mean of another class than to that of the other crops of theirs ("NC4"), of the
        classes with two or more; left out where there are none.
    Nothing is told of fewer than two classes, or where all means are one.
    """
    _, rows, counts = np.unique(label, return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), unit.shape[1]))
    np.add.at(sums, rows, unit)
    means = sums / counts[:, None]
    seen = means - means.sum(0) / max(len(counts), 1)
    between = np.square(seen).sum(1)
    if len(counts) < 2 or between.mean() < 1e-12:
        return {}
    lengths = np.sqrt(between)
    directions = seen / np.maximum(lengths[:, None], 1e-12)
    cosines = (directions @ directions.T)[~np.eye(len(counts), dtype=bool)]
    rank = min(unit.shape[1], len(counts) - 1)
    least = (len(counts) / rank - 1) / (len(counts) - 1)
    found = {
        "collapse": float(np.square(unit - means[rows]).sum(1).mean() / between.mean()),
        "norms": float(lengths.std() / lengths.mean()),
        "angles": float(np.sqrt(np.square(cosines).mean() / least)),
    }
    known = counts[rows] > 1
    if known.any():
        others = (sums[rows] - unit)[known] / (counts[rows] - 1)[known, None]
        # Squared distances but for the square of the crop itself, which is the same in all of them.
        own = np.square(others).sum(1) - 2 * (unit[known] * others).sum(1)
        all_ = np.square(means).sum(1) - 2 * unit[known] @ means.T
        all_[np.arange(len(own)), rows[known]] = np.inf
        found["astray"] = float(100 * (all_.min(1) < own - 1e-9).mean())
    return found
