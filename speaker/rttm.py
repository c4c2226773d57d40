"""Who spoke when, as a list of segments, and as the RTTM files that everybody's tools read.

NIST's Rich Transcription Time Marked format, one segment a line:
    SPEAKER <file> <channel> <start> <duration> <NA> <NA> <speaker> <NA> <NA>
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.errors import ScoreError
from engine.files import replacing

__all__ = ["Segment", "read_rttm", "write_rttm"]


@dataclass(frozen=True, order=True)
class Segment:
    """`start` and `end` in seconds."""

    start: float
    end: float
    speaker: str

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.end - self.start


def write_rttm(path: Path, name: str, segments: Sequence[Segment]) -> None:
    """Write the segments of one recording; a file that was there is replaced whole or not at all."""
    name = "_".join(name.split()) or "recording"  # fields are separated by blanks
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
        for each in sorted(segments):
            speaker = "_".join(each.speaker.split())
            file.write(f"SPEAKER {name} 1 {each.start:.3f} {each.duration:.3f} <NA> <NA> {speaker} <NA> <NA>\n")


def read_rttm(path: Path) -> dict[str, list[Segment]]:
    """{recording: segments by start}; ScoreError with the line that is none. Other kinds of lines are passed over."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ScoreError(f"{path}: no RTTM can be read from it ({error})") from error
    found: dict[str, list[Segment]] = {}
    for number, line in enumerate(lines, 1):
        fields = line.split()
        if not fields or fields[0] != "SPEAKER":
            continue
        try:
            start, duration = float(fields[3]), float(fields[4])
            segment = Segment(start, start + duration, fields[7])
        except (ValueError, IndexError) as error:
            raise ScoreError(f"{path}, line {number}: expected SPEAKER file channel start duration <NA> <NA> name, "
                             f"got {line!r}") from error  # fmt: skip
        if not (start >= 0 and 0 <= duration < float("inf")):
            raise ScoreError(f"{path}, line {number}: a segment of {duration} s from {start} s on")
        found.setdefault(fields[1], []).append(segment)
    if not found:
        raise ScoreError(f"{path} holds no segments")
    return {name: sorted(segments) for name, segments in found.items()}
