"""Files of scores: one trial a line, with its quality measures, and how they were made in the first line.

    # {"system": "...", "model": "...", ...}
    enrol <tab> test <tab> label <tab> score <tab> seconds_enrol <tab> seconds_test ...

`label` is 1 or 0, or - in every line where nobody tells. Calibration and fusion read these files.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import ScoreError
from engine.files import replacing
from speaker.calibration import QUALITIES
from speaker.scoring import Floats
from speaker.trials import Trials

FIXED = ("enrol", "test", "label", "score")
NOBODY_TELLS = "-"


@dataclass
class ScoreFile:
    """Scores (n,) of trials, quality measures (n, 2) by name, and facts such as the system that made them."""

    trials: Trials
    scores: Floats
    quality: dict[str, Floats] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def system(self) -> str:
        """Name of what made the scores: those of another cannot be calibrated alike."""
        return str(self.facts.get("system", "unknown"))

    def save(self, path: Path) -> None:
        """Write; a file that was there is replaced whole or not at all, and ScoreError for scores that are no numbers
        leaves it."""
        if broken := int((~np.isfinite(self.scores)).sum()):
            raise ScoreError(f"{broken} of {len(self.scores)} scores are not finite; {path} is not written")
        columns = [f"{name}_{side}" for name in self.quality for side in ("enrol", "test")]
        values = np.concatenate([self.scores[:, None], *self.quality.values()], axis=1)
        with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
            file.write(f"# {json.dumps(self.facts)}\n" + "\t".join([*FIXED, *columns]) + "\n")
            labels = [str(int(label)) for label in self.trials.labels] or [NOBODY_TELLS] * len(self.trials)
            sides = zip(self.trials.enrol, self.trials.test, labels, values.tolist(), strict=True)
            for enrol, test, label, row in sides:
                file.write("\t".join([enrol, test, label, *(f"{v:.9g}" for v in row)]) + "\n")


def read(path: Path) -> ScoreFile:
    """Read what `ScoreFile.save` wrote; ScoreError tells the line that is wrong."""
    try:
        first, *lines = path.read_text(encoding="utf-8").splitlines()
        facts = json.loads(first.removeprefix("# "))
        heading = lines.pop(0).split("\t")
    except (OSError, ValueError, IndexError) as error:
        raise ScoreError(f"{path} is no file of scores ({error}); `speaker score` writes them") from error
    names = [column.removesuffix("_enrol") for column in heading[len(FIXED) :: 2]]
    expected = [*FIXED, *(f"{name}_{side}" for name in names for side in ("enrol", "test"))]
    if not isinstance(facts, dict) or heading != expected or not set(names) <= set(QUALITIES):
        raise ScoreError(f"{path}, line 2: the columns are not those of a file of scores: {heading}")
    trials, rows = Trials([], [], []), []
    for number, line in enumerate(lines, 3):
        cells = line.split("\t")
        try:
            enrol, test, label, *values = cells
            rows.append([float(value) for value in values])
            if label != NOBODY_TELLS:
                trials.labels.append({"1": True, "0": False}[label])
        except (ValueError, KeyError) as error:
            raise ScoreError(f"{path}, line {number} is no trial: {line!r}") from error
        if len(cells) != len(heading):
            raise ScoreError(f"{path}, line {number} has {len(cells)} columns, expected {len(heading)}")
        trials.enrol.append(enrol)
        trials.test.append(test)
    if not rows:
        raise ScoreError(f"{path} holds no trials")
    if trials.labels and len(trials.labels) < len(rows):
        raise ScoreError(f"{path}: {len(rows) - len(trials.labels)} of {len(rows)} trials have no label, the others do")
    table = np.array(rows, dtype=np.float64)
    quality = {name: table[:, 1 + 2 * k : 3 + 2 * k] for k, name in enumerate(names)}
    return ScoreFile(trials, table[:, 0], quality, facts)


def labelled(path: Path) -> ScoreFile:
    """`read`; ScoreError for scores without labels, of which nothing can be learned or told."""
    file = read(path)
    if not file.trials.labels:
        raise ScoreError(f"{path} has no labels, of trials that nobody tells the truth of; errors cannot be counted")
    return file


def same_trials(files: list[ScoreFile]) -> None:
    """ScoreError unless the files hold the same trials in the same order, as fusion needs."""
    first = files[0].trials
    for number, other in enumerate(files[1:], 2):
        if other.trials != first:
            raise ScoreError(f"file {number} scores other trials than file 1, or in another order: score one list")
