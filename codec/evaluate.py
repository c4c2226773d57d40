"""`codec evaluate`: pair two folders by file name, measure each pair, sum up."""

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec.metrics import METRICS, SAMPLE_RATE, Interval, bootstrap_interval, estimate_delay, measure
from codec.paths import AUDIO_SUFFIXES
from engine import audio
from engine.errors import AudioError
from engine.files import find_files

HEADINGS = {"pesq_wb": "PESQ-WB", "stoi": "STOI", "si_sdr": "SI-SDR dB", "mel_distance": "mel distance"}
DIGITS = {"pesq_wb": 2, "stoi": 3, "si_sdr": 1, "mel_distance": 2}

Signal = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class FileScore:
    """The measures of one pair; `length_difference` is decoded minus reference in samples at 16 kHz."""

    file: str
    seconds: float
    length_difference: int
    metrics: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All pairs of two folders; `unpaired` lists the files that had no partner."""

    files: list[FileScore]
    unpaired: list[str]
    delay: int

    def mean(self) -> dict[str, Interval]:
        """Mean of each metric over the files, with its 95 % bootstrap interval."""
        return {name: bootstrap_interval([f.metrics[name] for f in self.files]) for name in METRICS}

    def to_json(self) -> str:
        """All figures as JSON; a measure that is undefined for a file (NaN) is null."""
        files = [{"file": f.file, "seconds": f.seconds, **_nulls(f.metrics)} for f in self.files]
        mean = {name: _nulls(interval._asdict()) for name, interval in self.mean().items()}
        return json.dumps({"files": files, "mean": mean, "unpaired": self.unpaired, "delay": self.delay}, indent=1)

    def to_text(self) -> str:
        """A table, one line per file, the means with their intervals, and of how many files where not all count."""
        rows = [["file", "seconds", *HEADINGS.values()]]
        for f in self.files:
            rows.append([f.file, f"{f.seconds:.2f}", *(f"{f.metrics[m]:.{DIGITS[m]}f}" for m in METRICS)])
        means = self.mean()
        counts = [means[m].n for m in METRICS]
        of_all = counts == [len(self.files)] * len(METRICS)
        name = f"mean of {len(self.files)}" if of_all else "mean"
        rows.append([name, "", *(f"{means[m].mean:.{DIGITS[m]}f}" for m in METRICS)])
        ends = [f"[{means[m].low:.{DIGITS[m]}f}, {means[m].high:.{DIGITS[m]}f}]" for m in METRICS]
        rows.append(["95 % interval", "", *ends])
        if not of_all:  # a measure that is undefined for a file (NaN) is not in its mean
            rows.append(["files counted", "", *map(str, counts)])
        return align_columns(rows)


def evaluate(reference_dir: str | Path, decoded_dir: str | Path, *, align: bool = False) -> Evaluation:
    """Measure every audio file of `decoded_dir` against the file of the same stem in `reference_dir`.

    Anything is mixed to mono and resampled to 16 kHz. With `align` the one delay that fits the whole folder best is
    removed first (for other codecs; ours keeps the place of every sample); otherwise a shift costs what it costs.
    """
    references, decoded = _by_stem(Path(reference_dir)), _by_stem(Path(decoded_dir))
    stems = sorted(references.keys() & decoded.keys())
    unpaired = sorted(str(p) for d in (references, decoded) for stem, p in d.items() if stem not in stems)
    if not stems:
        raise AudioError(
            f"no file of {decoded_dir} has the name of one in {reference_dir}; files are paired by name without suffix"
        )
    paths = [(references[stem], decoded[stem]) for stem in stems]
    delay = estimate_delay((_load(ref), _load(dec)) for ref, dec in paths) if align else 0
    files = [_score(stem, ref, dec, delay) for stem, (ref, dec) in zip(stems, paths, strict=True)]
    return Evaluation(files=files, unpaired=unpaired, delay=delay)


def report_problems(evaluation: Evaluation) -> None:
    """Say on stderr what the figures do not show: files without partner, lengths that differ."""
    for path in evaluation.unpaired:
        print(f"codec: warning: {path} has no partner and is not counted", file=sys.stderr)
    for f in evaluation.files:
        if f.length_difference:
            longer = "longer" if f.length_difference > 0 else "shorter"
            difference = abs(f.length_difference)
            print(f"codec: warning: {f.file}: decoded is {difference} samples {longer} at 16 kHz", file=sys.stderr)


def align_columns(rows: list[list[str]]) -> str:
    """Join cells into lines with columns of equal width, the first flush left, the others flush right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _score(stem: str, reference: Path, decoded: Path, delay: int) -> FileScore:
    ref, dec = _load(reference), _load(decoded)
    difference = len(dec) - len(ref)
    dec = dec[delay:] if delay >= 0 else np.concatenate([np.zeros(-delay, dtype=dec.dtype), dec])
    # What the decoder left out at the end counts as silence; what it added is not speech and is cut.
    dec = np.pad(dec[: len(ref)], (0, max(0, len(ref) - len(dec))))
    return FileScore(file=stem, seconds=len(ref) / SAMPLE_RATE, length_difference=difference, metrics=measure(ref, dec))


def _load(path: Path) -> Signal:
    wav, _ = audio.load(path, sample_rate=SAMPLE_RATE, mono=True)
    return wav[0].numpy()


def _by_stem(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise AudioError(f"{folder} is not a directory; give the folder of references and the folder of decoded files")
    found: dict[str, Path] = {}
    for path in find_files(folder, AUDIO_SUFFIXES):
        stem = str(path.relative_to(folder).with_suffix(""))
        if stem in found:
            raise AudioError(f"{found[stem]} and {path} have the same name without suffix: which one is meant?")
        found[stem] = path
    return found


def _nulls(values: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}
