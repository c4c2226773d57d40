"""Trials in groups, by what is known of the recordings: gender, signal-to-noise ratio, channel, language.

A table says it, one recording a line: `path` and any other columns. A number puts a trial where its lesser side is (the
noisier, the shorter), a word where both sides have the same one; trials whose sides differ are a group of their own,
and so are those where a cell is empty.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from engine.errors import ScoreError
from speaker.trials import Trials

# Columns of our manifests that would make a group of every recording, or of every corpus and speaker.
NOT_GROUPS = {"path", "speaker", "split", "licence", "sample_rate"}
PARTS = 3  # of a column of numbers, equally many trials in each
UNKNOWN = "unknown"
MOST = 12  # different words in a column; with more it is a name


def read_groups(path: Path, trials: Trials) -> dict[str, list[str]]:
    """{column: group of every trial}; ScoreError for recordings that the table does not have."""
    rows: list[dict[str, str]] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # a spreadsheet's byte order mark
            reader = csv.DictReader(file)
            for row in reader:
                if None in row:  # where DictReader puts what the heading has no name for
                    raise ScoreError(f"{path}, line {reader.line_num}: more cells than the heading has; a cell with a "
                                     "comma in it stands in quotes")  # fmt: skip
                rows.append(row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ScoreError(f"{path}: no table can be read from it ({error})") from error
    if not rows or "path" not in rows[0]:
        raise ScoreError(f"{path}: a table of recordings has the column path and others, such as gender or snr")
    known = {row["path"]: row for row in rows}
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


def _grouped(enrol: Sequence[str], test: Sequence[str]) -> list[str] | None:
    """A group for every trial, or None where the column does not tell any apart."""
    try:
        sides = np.array([[float(value or "nan") for value in side] for side in (enrol, test)])
    except ValueError:
        return _by_words(enrol, test)
    least = sides.min(0)
    known = np.isfinite(least)
    edges = np.unique(np.quantile(least[known], np.linspace(0, 1, PARTS + 1))) if known.any() else np.zeros(0)
    if len(edges) < 3 or len(np.unique(sides[np.isfinite(sides)])) < 3:  # too few values for parts: codes
        return _by_words(enrol, test)
    part = np.searchsorted(edges[1:-1], least, side="right")
    spans = [f"{low:g} to {high:g}" for low, high in pairwise(edges)]
    return [spans[place] if is_known else UNKNOWN for place, is_known in zip(part, known, strict=True)]


def _by_words(enrol: Sequence[str], test: Sequence[str]) -> list[str] | None:
    if not 1 < len({*enrol, *test}) <= MOST:
        return None
    return [UNKNOWN if not (a and b) else a if a == b else "different" for a, b in zip(enrol, test, strict=True)]
