"""What is wrong in a gallery: one voice under two names, two voices under one name, a print unlike the others.

Two names share a voice where their standardized score is one that only RATE of all galleries of this size would show
anywhere among their different voices. The prints of one name are linked where they score higher than all but one of ten
pairs of different people; a lone print without a link is an outlier, a group of its own is a second voice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from speaker.gallery import unit_rows
from speaker.identify import OpenSet
from speaker.store import Store

__all__ = ["Finding", "audit"]

RATE = 0.01
ROWS = 256
SMALL = 20  # speakers; among fewer a pair that is one voice would itself set what is usual
ALIKE = 0.9  # of pairs of different people, whose scores a pair of one voice is above


@dataclass(frozen=True, kw_only=True)
class Finding:
    """`names` of speakers, `prints` by number, and a sentence for people."""

    kind: Literal["duplicate", "outlier", "two voices"]
    names: list[str]
    prints: list[int]
    sentence: str


def audit(store: Store, decide: OpenSet) -> list[Finding]:
    """All findings, duplicates first."""
    return _duplicates(decide) + _strangers(store, decide)


def _duplicates(decide: OpenSet) -> list[Finding]:
    gallery, found = decide.gallery, []
    pairs = len(gallery) * (len(gallery) - 1) / 2
    if not pairs:
        return []
    threshold = (decide.threshold_of_cohort if len(gallery) < SMALL else decide.threshold)(RATE, pairs)
    for start in range(0, len(gallery), ROWS):
        z = decide.standardized(gallery.means[start : start + ROWS])
        for row, column in np.argwhere(z >= threshold):
            if start + row < column:
                names = [gallery.names[start + row], gallery.names[column]]
                cosine = float(gallery.means[start + row] @ gallery.means[column])
                text = (f"{names[0]} and {names[1]} sound like one person (cosine {cosine:.2f}); if so: "
                        f"`speaker store merge {names[1]!r} {names[0]!r}`")  # fmt: skip
                found.append(Finding(kind="duplicate", names=names, prints=[], sentence=text))
    return found


def _strangers(store: Store, decide: OpenSet) -> list[Finding]:
    """Prints that are unlike the rest of their speaker's."""
    found: list[Finding] = []
    rows_of: dict[str, list[tuple[int, np.ndarray]]] = {}
    for each in store.prints():
        rows_of.setdefault(each.speaker, []).append((each.id, each.vector))
    for name, rows in rows_of.items():
        if len(rows) < 2:
            continue
        vectors = unit_rows(np.stack([vector for _, vector in rows]))
        between = decide.between(vectors, vectors)
        linked = between >= decide.threshold(1 - ALIKE, 1)
        groups = _components(linked)
        if len(groups) == 1:
            continue
        sizes = sorted(groups, key=len, reverse=True)
        for group in sizes[1:]:
            numbers = [rows[i][0] for i in group]
            tie = len(group) == len(sizes[0])
            if len(group) > 1 or tie:
                text = (f"{name} may be two voices: prints {', '.join(map(str, numbers))} are unlike the other "
                        f"{len(rows) - len(group)}")  # fmt: skip
                found.append(Finding(kind="two voices", names=[name], prints=numbers, sentence=text))
            else:
                text = (f"{name}: print {numbers[0]} is unlike the other {len(rows) - 1}; if it is wrong: "
                        f"`speaker store delete {name!r} --print {numbers[0]}`")  # fmt: skip
                found.append(Finding(kind="outlier", names=[name], prints=numbers, sentence=text))
    return found


def _components(linked: np.ndarray) -> list[list[int]]:
    """Rows that hang together by links."""
    left, groups = set(range(len(linked))), []
    while left:
        group, todo = [], [min(left)]
        left.discard(todo[0])
        while todo:
            row = todo.pop()
            group.append(row)
            near = [other for other in left if linked[row, other]]
            left.difference_update(near)
            todo += near
        groups.append(sorted(group))
    return groups
