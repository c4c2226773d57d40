"""Trial lists: who is compared with whom, and whether they are the same person.

Read are, told apart by what a line looks like:
    1 enrol.wav test.wav            VoxCeleb, 1 target, 0 not
    enrol test target|nontarget     Kaldi; also `enrol test 1|0` of 3D-Speaker
A NIST list (`modelid segmentid side` with a heading, keys apart) has no labels: convert it with its key first.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine.errors import ScoreError

WORDS = {"target": True, "nontarget": False, "tgt": True, "imp": False, "1": True, "0": False}


@dataclass(frozen=True)
class Trials:
    """Two sides and a label for each trial."""

    enrol: list[str]
    test: list[str]
    labels: list[bool]

    def __len__(self) -> int:
        return len(self.labels)

    def recordings(self) -> list[str]:
        """Each name once, in order of appearance."""
        return list(dict.fromkeys(name for pair in zip(self.enrol, self.test, strict=True) for name in pair))


def read_trials(path: str | Path) -> Trials:
    """Read a list; ScoreError with the line that is none."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ScoreError(f"{path}: no trial list can be read from it ({error})") from error
    trials = Trials([], [], [])
    label_first: bool | None = None
    for number, line in enumerate(lines, 1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 3:
            raise ScoreError(f"{path}, line {number}: expected `1 enrol test` or `enrol test target`, got {line!r}")
        if label_first is None:
            label_first = fields[0] in ("0", "1") and fields[2] not in WORDS
        word, enrol, test = fields if label_first else (fields[2], fields[0], fields[1])
        if word not in WORDS:
            raise ScoreError(f"{path}, line {number}: {word!r} is no label; there are {', '.join(WORDS)}")
        trials.labels.append(WORDS[word])
        trials.enrol.append(enrol)
        trials.test.append(test)
    if not len(trials):
        raise ScoreError(f"{path} holds no trials")
    return trials


def audit(trials: Trials) -> list[str]:
    """What is odd about a list, in sentences: trials that stand twice, against themselves, or with both labels."""
    found = []
    pairs = [tuple(sorted(pair)) for pair in zip(trials.enrol, trials.test, strict=True)]
    alone = sum(first == second for first, second in pairs)
    labels: dict[tuple[str, ...], set[bool]] = {}
    for pair, label in zip(pairs, trials.labels, strict=True):
        labels.setdefault(pair, set()).add(label)
    both = [pair for pair, kinds in labels.items() if len(kinds) == 2]
    if alone:
        found.append(f"{alone} trials compare a recording with itself")
    if len(labels) < len(pairs):
        found.append(f"{len(pairs) - len(labels)} trials stand more than once, order of the sides aside")
    if both:
        found.append(f"{len(both)} pairs are a target in one line and none in another, such as {' and '.join(both[0])}")
    return found
