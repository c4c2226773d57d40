"""Rate-quality curves as a picture: one panel a metric, one line a coder, 95 % intervals of the means as bands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.report import NAMES
from engine.errors import SpeechError

if TYPE_CHECKING:
    from benchmarks.quality import Row

# Okabe and Ito's palette, which colour-blind eyes can tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
BETTER = {"mel_distance": "lower is better"}


def rate_quality(rows: list[Row], model_name: str, path: Path) -> None:
    """Draw PESQ-WB, STOI, mel distance and one more metric against the rate of the codes."""
    plt = import_pyplot()
    families: dict[str, list[Row]] = {}
    for row in rows:
        families.setdefault(model_name if row.coder == model_name else " ".join(row.coder.split()[:2]), []).append(row)
    measured = rows[0].scores[0]
    fourth = next(name for name in ("visqol", "estoi", "si_sdr") if name in measured)
    figure, axes = plt.subplots(2, 2, figsize=(10, 7.5), sharex=True, layout="constrained")
    ends: dict[Any, list[tuple[str, float, float, str]]] = {axis: [] for axis in axes.flat}
    for axis, metric in zip(axes.flat, ("pesq_wb", "stoi", "mel_distance", fourth), strict=True):
        for colour, (family, members) in zip(COLOURS, families.items(), strict=False):
            end = draw_line(axis, sorted(members, key=lambda r: r.payload), metric, colour)
            ends[axis].append((family, *end, colour))
        axis.set_title(f"{NAMES[metric]} ({BETTER.get(metric, 'higher is better')})", loc="left", fontsize=11)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xlim(0, 1.2 * max(row.payload for row in rows))  # room for the names at the ends of the lines
    for axis in axes[1]:
        axis.set_xlabel("rate of the codes, kbit/s (containers not counted)")
    extra = {name: sum(r.on_disk - r.payload for r in members) / len(members) for name, members in families.items()}
    containers = ", ".join(f"{name} +{kbps:.2f}" for name, kbps in extra.items())
    figure.suptitle(
        f"Mean over {len(rows[0].scores)} files, bands: 95 % bootstrap intervals. Files on disk: {containers} kbit/s.",
        fontsize=10,
    )
    figure.draw_without_rendering()  # the layout, which decides where names would meet
    for axis, named in ends.items():
        name_ends(axis, named)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_line(axis: Any, members: list[Row], metric: str, colour: str) -> tuple[float, float]:
    """Draw one coder's rates as points on a line; return where it ends."""
    rates = [row.payload for row in members]
    means = [row.mean(metric) for row in members]
    axis.plot(rates, [m.mean for m in means], "o-", color=colour, markersize=4)
    axis.fill_between(rates, [m.low for m in means], [m.high for m in means], color=colour, alpha=0.2, linewidth=0)
    return rates[-1], means[-1].mean


def name_ends(axis: Any, ends: list[tuple[str, float, float, str]]) -> None:
    """Write each coder's name beside the end (x, y) of its line, moved up where another name is in the way."""
    height, width = 18, 70  # pixels of a name
    placed: list[tuple[float, float]] = []
    for name, x, y, colour in sorted(ends, key=lambda end: end[2]):
        across, up = axis.transData.transform((x, y))
        place = max([up, *(there + height for other, there in placed if abs(other - across) < width)])
        placed.append((across, place))
        at = axis.transData.inverted().transform((across + 9, place))
        axis.text(*at, name, color=colour, va="center")


def import_pyplot() -> Any:
    """matplotlib.pyplot that draws without a screen; SpeechError where it is not installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise SpeechError("drawing needs matplotlib: pip install 'voxcode[eval]'") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
