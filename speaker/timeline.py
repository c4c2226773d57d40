"""Who spoke when as a picture: a row for each speaker, a bar for each segment."""

from __future__ import annotations

import math
from pathlib import Path

from speaker.diarize import Diarization
from speaker.plots import pyplot

ROW_SECONDS = 600.0  # longer recordings go on in the next panel
MOST_PANELS = 12


def save(path: Path, found: Diarization, title: str) -> None:
    """Write a PNG; SpeechError where matplotlib is not installed."""
    plt = pyplot()
    panels = min(MOST_PANELS, math.ceil(found.seconds / ROW_SECONDS))
    span = found.seconds / panels
    height = 0.9 + panels * (0.5 + 0.28 * len(found.speakers))
    figure, axes = plt.subplots(panels, 1, figsize=(11, height), squeeze=False, layout="constrained")
    spoken = {name: sum(s.duration for s in found.segments if s.speaker == name) for name in found.speakers}
    for k, axis in enumerate(axes[:, 0]):
        begin = k * span
        for row, name in enumerate(found.speakers):
            bars = [(s.start, s.duration) for s in found.segments if s.speaker == name and s.end > begin]
            axis.broken_barh(bars, (row - 0.38, 0.76), color=f"C{row % 10}")
        axis.set_xlim(begin, begin + span)
        axis.set_ylim(len(found.speakers) - 0.5, -0.5)
        labels = [f"{name}  {spoken[name] / found.seconds:.0%}" for name in found.speakers]
        axis.set_yticks(range(len(found.speakers)), labels)
        axis.xaxis.set_major_formatter(lambda seconds, _: f"{int(seconds // 60)}:{int(seconds % 60):02d}")
        axis.grid(axis="x", alpha=0.3)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes[0, 0].set_title(f"{title}: who spoke when (share of the time)", loc="left")
    axes[-1, 0].set_xlabel("minutes:seconds")
    figure.savefig(path, dpi=120)
    plt.close(figure)
