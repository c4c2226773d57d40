"""What is odd about a store: one voice under two names, a print unlike the others, two voices under one name.

Judged by calibrated log-likelihood ratios: what is more probable than not, by `margin` on the natural logarithm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from speaker.calibration import Calibration
from speaker.gallery import unit_rows
from speaker.store import Print

__all__ = ["Finding", "audit"]

MARGIN = 2.0
ROWS = 512
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Finding:
    """`duplicate`: `name` and `other` sound like one. `outlier`: print `print_id` is unlike the others of `name`.
    `mixture`: the prints of `name` fall into two voices, `print_ids` are the fewer ones. `llr` is that of one voice."""

    kind: Literal["duplicate", "outlier", "mixture"]
    name: str
    llr: float
    other: str | None = None
    print_ids: tuple[int, ...] = ()

    def as_text(self) -> str:
        """For people."""
        ids = ", ".join(map(str, self.print_ids))
        return {
            "duplicate": f"{self.name} and {self.other} may be one person (log-likelihood ratio {self.llr:+.1f})",
            "outlier": f"print {ids} of {self.name} is unlike the others (log-likelihood ratio {self.llr:+.1f})",
            "mixture": f"the prints of {self.name} are of two voices, {ids} of one of them ({self.llr:+.1f})",
        }[self.kind]


def audit(prints: Sequence[Print], calibration: Calibration, margin: float = MARGIN) -> list[Finding]:
    """Findings, the strongest of each kind first: duplicates, outliers, mixtures."""
    if not prints:
        return []
    directions = unit_rows(np.stack([p.vector for p in prints])).astype(np.float64)
    seconds = np.array([p.quality.get("seconds", 3.0) for p in prints], dtype=np.float64)
    names, owners = np.unique(np.array([p.speaker for p in prints], dtype=object), return_inverse=True)
    found = _duplicates(directions, seconds, names.tolist(), owners, calibration, margin)
    for number, name in enumerate(names.tolist()):
        mine = owners == number
        if mine.sum() > 1:
            ids = [p.id for p in prints if p.speaker == name]
            found += _within(name, directions[mine], seconds[mine], ids, calibration, margin)
    order = ("duplicate", "outlier", "mixture")
    return sorted(found, key=lambda each: (order.index(each.kind), -abs(each.llr)))


def _duplicates(
    directions: Floats, seconds: Floats, names: list[str], owners: NDArray[np.int64], calibration: Calibration,
    margin: float,
) -> list[Finding]:  # fmt: skip
    """Pairs of speakers whose mean directions are more probably one voice."""
    means = np.zeros((len(names), directions.shape[1]))
    np.add.at(means, owners, directions)
    means = unit_rows(means.astype(np.float32)).astype(np.float64)
    spoken = np.asarray(np.bincount(owners, weights=seconds), dtype=np.float64)
    found = []
    for start in range(0, len(names), ROWS):
        cosines = means[start : start + ROWS] @ means.T
        # Only the likely ones are calibrated: most of the pairs of a large store are far apart.
        rows, columns = np.nonzero(np.triu(cosines, k=start + 1) > 0.2)
        if not len(rows):
            continue
        sides: Floats = np.stack([spoken[rows + start], spoken[columns]], axis=1).astype(np.float64)
        ratios = _ratios(cosines[rows, columns], sides, calibration)
        for row, column, ratio in zip(rows + start, columns, ratios, strict=True):
            if ratio > margin:
                found.append(Finding("duplicate", names[row], float(ratio), names[column]))
    return found


def _within(
    name: str, directions: Floats, seconds: Floats, ids: list[int], calibration: Calibration, margin: float
) -> list[Finding]:
    """Cut the prints of a speaker in two where they fall apart most; one print alone is an outlier."""
    count = len(ids)
    cosines = directions @ directions.T
    pairs = np.unravel_index(np.argmin(cosines), cosines.shape)
    near = cosines[:, pairs[0]] >= cosines[:, pairs[1]]
    for _ in range(10):  # two means
        sides = [directions[near].sum(0), directions[~near].sum(0)]
        sides = [each / max(float(np.linalg.norm(each)), 1e-12) for each in sides]
        moved = directions @ sides[0] >= directions @ sides[1]
        if moved.all() or not moved.any() or (moved == near).all():
            break
        near = moved
    spoken = np.array([[seconds[near].sum(), seconds[~near].sum()]])
    ratio = float(_ratios(np.array([sides[0] @ sides[1]]), spoken, calibration)[0])
    if ratio > -margin:
        return []
    fewer = near if near.sum() <= count / 2 else ~near
    chosen = tuple(ids[i] for i in np.flatnonzero(fewer))
    kind: Literal["outlier", "mixture"] = "outlier" if len(chosen) == 1 and count > 2 else "mixture"
    return [Finding(kind, name, ratio, print_ids=chosen)]


def _ratios(cosines: Floats, seconds: Floats, calibration: Calibration) -> Floats:
    return calibration.llr(cosines[:, None], {"seconds": seconds})
