"""A picture of who speaks when: a row for each speaker, time from left to right. PNG."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import SpeechError

if TYPE_CHECKING:
    from speaker.diarize import Diarization

__all__ = ["save"]


def save(path: Path, found: Diarization) -> None:
    """Write the timeline; each row tells the speaker's seconds of speech."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
        from matplotlib.ticker import FuncFormatter
    except ModuleNotFoundError as error:
        raise SpeechError("plots need matplotlib; install it with `pip install 'voxcode[eval]'`") from error
    names = found.speakers
    figure, ax = plt.subplots(figsize=(12, 1.4 + 0.45 * len(names)), layout="constrained")
    for row, name in enumerate(names):
        spans = [(s.start, s.end - s.start) for s in found.segments if s.speaker == name]
        ax.broken_barh(spans, (row - 0.36, 0.72), color=f"C{row % 10}")
    totals = [sum(s.end - s.start for s in found.segments if s.speaker == name) for name in names]
    labels = [f"{name}  {_clock(total)}" for name, total in zip(names, totals, strict=True)]
    ax.set_yticks(range(len(names)), labels)
    ax.set(
        xlim=(0, found.duration),
        ylim=(len(names) - 0.5, -0.5),
        xlabel="time",
        ylabel="speaker, time spoken",
        title=found.name,
    )
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _clock(x)))
    ax.grid(axis="x", color="0.85")
    ax.set_axisbelow(True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _clock(seconds: Any) -> str:
    """m:ss, or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
