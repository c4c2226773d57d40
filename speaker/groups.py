"""Trials in groups, by what is known of the recordings: gender, signal-to-noise ratio, channel, language.

A table says it, one recording a line: `path` and any other columns. A number puts a trial where its lesser side is (the
noisier, the shorter), a word where both sides have the same one; trials whose sides differ are a group of their own,
and so are those where a cell is empty.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType

import numpy as np

from engine.errors import ScoreError
from speaker.trials import Trials

# Columns of our manifests that would make a group of every recording, or of every corpus and speaker.
NOT_GROUPS = {"path", "speaker", "split", "licence", "sample_rate"}
PARTS = 3  # of a column of numbers, equally many trials in each
UNKNOWN = "unknown"
MOST = 12  # different words in a column; with more it is a name


def read_groups(
    path: Path, trials: Trials, models: Mapping[str, Sequence[str]] = MappingProxyType({})
) -> dict[str, list[str]]:
    """{column: group of every trial}; ScoreError for recordings that the table does not have.

    One of `models`, enrolled from several recordings, is what all of them are, and of numbers the least.
    """
    rows: list[dict[str, str]] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # a spreadsheet's byte order mark
            reader = csv.DictReader(file)
            heading = list(reader.fieldnames or [])
            if twice := sorted({name for name in heading if heading.count(name) > 1}):
                raise ScoreError(f"{path} has several columns {twice[0]!r}; leave one of them")
            for row in reader:
                if None in row:  # where DictReader puts what the heading has no name for
                    raise ScoreError(f"{path}, line {reader.line_num}: more cells than the heading has; a cell with a "
                                     "comma in it stands in quotes")  # fmt: skip
                rows.append(row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ScoreError(f"{path}: no table can be read from it ({error})") from error
    if not rows or "path" not in rows[0]:
        raise ScoreError(f"{path}: a table of recordings has the column path and others, such as gender or snr")
    known: dict[str, dict[str, str]] = {}
    for row in rows:
        if known.setdefault(row["path"], row) != row:
            raise ScoreError(f"{path} says different things of {row['path']}; leave one of its lines")
    for model, utterances in models.items():
        if model not in known and all(name in known for name in utterances):
            known[model] = {column: _joined([known[name][column] for name in utterances]) for column in heading}
    missing = [name for name in trials.recordings() if name not in known]
    if missing:
        raise ScoreError(f"{path} does not have {len(missing)} of the recordings, the first is {missing[0]}")
    groups = {}
    for column in rows[0]:
        sides = [[(known[name][column] or "").strip() for name in side] for side in (trials.enrol, trials.test)]
        if column not in NOT_GROUPS and (found := _grouped(*sides)):
            groups[column] = found
    if not groups:
        raise ScoreError(f"{path} has no column that groups the trials: words of {MOST} kinds at most, or numbers")
    return groups


def _joined(cells: Sequence[str | None]) -> str:
    """What all of them say; of different numbers the least; else nothing."""
    said = {(cell or "").strip() for cell in cells}
    if len(said) == 1:
        return said.pop()
    try:
        return min(said, key=float)
    except ValueError:
        return ""


def _grouped(enrol: Sequence[str], test: Sequence[str]) -> list[str] | None:
    """A group for every trial, or None where the column does not tell any apart."""
    try:
        sides = np.array([[float(value or "nan") for value in side] for side in (enrol, test)])
    except ValueError:
        return _by_words(enrol, test)
    least = sides.min(0)
    known = ~np.isnan(least)
    finite = least[np.isfinite(least)]  # a ratio to no noise is infinite
    edges = np.unique(np.quantile(finite, np.linspace(0, 1, PARTS + 1))) if len(finite) else np.zeros(0)
    if len(edges) < 3 or len(np.unique(sides[np.isfinite(sides)])) < 3:  # too few values for parts: codes
        return _by_words(enrol, test)
    part = np.searchsorted(edges[1:-1], least, side="right")
    digits = next(n for n in range(6, 18) if len({f"{edge:.{n}g}" for edge in edges}) == len(edges))
    ends = [f"{edge:.{digits}g}" for edge in edges]
    ends[0] = "-inf" if np.isneginf(least).any() else ends[0]
    ends[-1] = "inf" if np.isposinf(least).any() else ends[-1]
    spans = [f"{low} to {high}" for low, high in pairwise(ends)]
    return [spans[place] if is_known else UNKNOWN for place, is_known in zip(part, known, strict=True)]


def _by_words(enrol: Sequence[str], test: Sequence[str]) -> list[str] | None:
    if not 1 < len({*enrol, *test}) <= MOST:
        return None
    return [UNKNOWN if not (a and b) else a if a == b else "different" for a, b in zip(enrol, test, strict=True)]
