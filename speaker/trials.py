"""Trial lists: who is compared with whom, and whether they are the same person.

Read are, told apart by what a line looks like:
    1 enrol.wav test.wav            VoxCeleb, 1 target, 0 not
    enrol test target|nontarget     Kaldi; also `enrol test 1|0` of 3D-Speaker
    enrol test                      without labels, as of an evaluation that others judge
    modelid segmentid side targettype   NIST's keys of SRE 2016 to 2024, with their heading, tabs or spaces
NIST's list without `targettype` has no labels; its key holds the same trials with them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from engine.errors import ScoreError

NIST = ["modelid", "segmentid", "side", "targettype"]
WORDS = {"target": True, "nontarget": False, "tgt": True, "imp": False, "1": True, "0": False}


@dataclass(frozen=True)
class Trials:
    """Two sides and a label for each trial; no labels at all where nobody tells."""

    enrol: list[str]
    test: list[str]
    labels: list[bool]

    def __len__(self) -> int:
        return len(self.enrol)

    def recordings(self) -> list[str]:
        """Each name once, in order of appearance."""
        return list(dict.fromkeys(name for pair in zip(self.enrol, self.test, strict=True) for name in pair))

    def rows(self, names: list[str]) -> NDArray[np.intp]:
        """(n, 2): where in `names` the two recordings of each trial are; ScoreError if one is not among them."""
        at = {name: row for row, name in enumerate(names)}
        missing = [name for name in self.recordings() if name not in at]
        if missing:
            raise ScoreError(f"{len(missing)} recordings of the list have no embedding, the first is {missing[0]}")
        return np.array([[at[name] for name in side] for side in (self.enrol, self.test)], dtype=np.intp).T

    def speakers(self) -> tuple[list[str], list[str]]:
        """Whose the recordings of either side are, as far as a list tells: a name for each trial.

        Of one person are recordings in one folder, and both sides of a target trial: in VoxCeleb's lists a folder is a
        video. Where a non-target trial has both sides in one folder, folders are no speakers, and target trials alone
        tell.
        """
        names = self.recordings()
        for owner in ({name: speaker_of(name) for name in names}, {name: name for name in names}):
            groups = _joined((owner[a], owner[b]) for a, b, same in
                             zip(self.enrol, self.test, self.labels, strict=True) if same)  # fmt: skip
            first, second = (
                [groups.get(owner[name], owner[name]) for name in side] for side in (self.enrol, self.test)
            )
            apart = zip(first, second, self.labels, strict=True)
            if all(same or a != b for a, b, same in apart):
                break
        return first, second


def speaker_of(name: str) -> str:
    """The folder that a recording is in; of a bare name, the name."""
    folder = PurePosixPath(name).parent.as_posix()
    return name if folder == "." else folder


def _joined(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Each name -> one of those that the pairs join it with, the same for all of them."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = name = parent[parent[name]]
        return name

    for first, second in pairs:
        parent[root(first)] = root(second)
    return {name: root(name) for name in list(parent)}


def read_trials(path: str | Path) -> Trials:
    """Read a list; ScoreError with the line that is none."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ScoreError(f"{path}: no trial list can be read from it ({error})") from error
    rows = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise ScoreError(f"{path} holds no trials")
    if rows[0][1].split()[:2] == NIST[:2]:
        return _nist(path, rows)
    trials = Trials([], [], [])
    label_first: bool | None = None
    for number, line in rows:
        fields = line.split()
        if len(fields) == 2 and not trials.labels and WORDS.keys().isdisjoint(fields):
            trials.enrol.append(fields[0])
            trials.test.append(fields[1])
            continue
        if len(fields) != 3 or len(trials) > len(trials.labels):
            raise ScoreError(f"{path}, line {number}: expected `1 enrol test` or `enrol test target` in every line, or "
                             f"`enrol test`, got {line!r}")  # fmt: skip
        if label_first is None:
            label_first = fields[0] in ("0", "1") and fields[2] not in WORDS
        word, enrol, test = fields if label_first else (fields[2], fields[0], fields[1])
        if word not in WORDS:
            raise ScoreError(f"{path}, line {number}: {word!r} is no label; there are {', '.join(WORDS)}")
        trials.labels.append(WORDS[word])
        trials.enrol.append(enrol)
        trials.test.append(test)
    return trials


def _nist(path: str | Path, rows: list[tuple[int, str]]) -> Trials:
    columns = rows[0][1].split()
    trials = Trials([], [], [])
    for number, line in rows[1:]:
        fields = line.split()
        row = dict(zip(columns, fields, strict=False))
        label = row.get("targettype")
        if len(fields) != len(columns) or ("targettype" in columns and label not in WORDS):
            raise ScoreError(f"{path}, line {number}: expected {', '.join(columns)}, got {line!r}")
        if row.get("side", "a") not in ("a", "-"):
            raise ScoreError(
                f"{path}, line {number}: side {row['side']} of a recording with two channels; split such recordings "
                "into a file for each side, and name that in the list"
            )
        if label is not None:
            trials.labels.append(WORDS[label])
        trials.enrol.append(row["modelid"])
        trials.test.append(row["segmentid"])
    if not len(trials):
        raise ScoreError(f"{path} holds no trials")
    return trials
