"""Who spoke when, as files: NIST's Rich Transcription Time Marked format (RT-09 evaluation plan, appendix A).

    SPEAKER meeting 1 12.340 3.250 <NA> <NA> anna <NA> <NA>

A line is one stretch of one speaker: file, channel, start and length in seconds, name. Overlapping speech is lines that
overlap.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.errors import ScoreError
from engine.files import replacing
from speaker.file_names import text_of

__all__ = ["Segment", "format_rttm", "read_rttm", "write_rttm"]

# Of the other types of line that the format knows; they tell nothing of who speaks when.
OTHER_TYPES = frozenset(
    ("SEGMENT", "NOSCORE", "NO_RT_METADATA", "LEXEME", "NON-LEX", "NON-SPEECH", "FILLER", "EDIT", "IP", "SU", "CB",
     "A/P", "SPKR-INFO")
)  # fmt: skip
FIELDS = (9, 10)  # the last one, signal lookahead, came later


@dataclass(frozen=True)
class Segment:
    """Seconds from `start` to `end` in which `speaker` speaks."""

    start: float
    end: float
    speaker: str


def format_rttm(name: str, segments: Iterable[Segment]) -> str:
    """Lines of the recording `name`; white space, which separates fields, becomes _ in names."""
    file = _word(name)
    return "".join(
        f"SPEAKER {file} 1 {s.start:.3f} {s.end - s.start:.3f} <NA> <NA> {_word(s.speaker)} <NA> <NA>\n"
        for s in segments
    )


def write_rttm(path: Path, recordings: Mapping[str, Iterable[Segment]]) -> None:
    """Write the segments of recordings by name."""
    text = "".join(format_rttm(name, segments) for name, segments in recordings.items())
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_rttm(path: Path) -> dict[str, list[Segment]]:
    """Segments by recording, sorted by time; ScoreError names the line that is no RTTM.

    Lines of other types and comments (;;) are passed over. A file without a SPEAKER line is an error.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ScoreError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ScoreError(f"{path} cannot be read as RTTM ({error})") from error
    found: dict[str, list[Segment]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split()
        if not fields or fields[0].startswith(";;") or fields[0] in OTHER_TYPES:
            continue
        try:
            name, segment = _parsed(fields)
        except ValueError as error:
            raise ScoreError(f"{path}, line {number}: {error}") from error
        found.setdefault(name, []).append(segment)
    if not found:
        raise ScoreError(f"{path} holds no SPEAKER line")
    return {name: sorted(segments, key=lambda s: (s.start, s.end, s.speaker)) for name, segments in found.items()}


def _parsed(fields: list[str]) -> tuple[str, Segment]:
    """Recording and segment of a line; ValueError says what is wrong with it."""
    if fields[0] != "SPEAKER":
        raise ValueError(f"expected `SPEAKER file channel start duration <NA> <NA> name ...`, got {' '.join(fields)!r}")
    if len(fields) not in FIELDS:
        raise ValueError(f"expected 9 or 10 fields, got {len(fields)}; names must not contain white space")
    try:
        start, duration = float(fields[3]), float(fields[4])
    except ValueError:
        raise ValueError(f"start and duration must be seconds, got {fields[3]!r} and {fields[4]!r}") from None
    if not (math.isfinite(start) and math.isfinite(duration) and start >= 0 and duration > 0):
        raise ValueError(f"a segment starts at 0 or later and lasts longer than 0 s, got {fields[3]} and {fields[4]}")
    if fields[7] == "<NA>":
        raise ValueError("the speaker's name is missing (<NA>)")
    return fields[1], Segment(start, start + duration, fields[7])


def _word(name: str) -> str:
    return "_".join(text_of(name).split()) or "<NA>"
