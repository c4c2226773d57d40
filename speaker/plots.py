"""Pictures of a system's scores: DET curve with its band, histograms, calibration, a map of embeddings. PNG files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import SpeechError
from speaker.intervals import Sweep, draws
from speaker.metrics import best_calibrated, error_rates, split
from speaker.scoring import Floats, unit

PAGES = ("det", "scores", "calibration", "map")
TICKS = (0.001, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6)


def check(folder: Path, force: bool) -> None:
    """SpeechError, before hours of work, for a folder that cannot be made or holds pictures, and without matplotlib."""
    _pyplot()
    nearest = next(each for each in (folder, *folder.resolve().parents) if each.exists())
    if not nearest.is_dir():
        raise SpeechError(f"--plots {folder}: {'it' if nearest == folder else nearest} is a file; name a folder")
    there = [f"{name}.png" for name in PAGES if (folder / f"{name}.png").exists()]
    if there and not force:
        raise SpeechError(f"{folder} holds {', '.join(there)}; --force overwrites them")


def save_all(
    folder: Path, scores: Floats, labels: NDArray[np.bool_], sides: tuple[list[str], list[str]], *,
    are_ratios: bool, vectors: Floats | None = None, speakers: list[str] | None = None,
) -> list[Path]:  # fmt: skip
    """Write det.png, scores.png, with log-likelihood ratios calibration.png, with embeddings map.png."""
    plt = _pyplot()
    folder.mkdir(parents=True, exist_ok=True)
    pages = {"det": lambda ax: det(ax, scores, labels, sides), "scores": lambda ax: histogram(ax, scores, labels)}
    if are_ratios:
        pages["calibration"] = lambda ax: calibration(ax, scores, labels)
    if vectors is not None and speakers is not None and len(set(speakers)) > 1:
        pages["map"] = lambda ax: embedding_map(ax, vectors, speakers)
    written = []
    for name, draw in pages.items():
        figure, ax = plt.subplots(figsize=(6, 5), layout="constrained")
        draw(ax)
        figure.savefig(folder / f"{name}.png", dpi=120)
        plt.close(figure)
        written.append(folder / f"{name}.png")
    return written


def det(ax: Any, scores: Floats, labels: NDArray[np.bool_], sides: tuple[list[str], list[str]], num: int = 100) -> None:
    """Misses over false acceptances on normal-deviate axes; the band holds 95 % of bootstraps over speakers."""
    rates = error_rates(*split(scores, labels))
    ax.plot(probit(rates.false_accept), probit(rates.miss), color="C0", label="all trials")
    sweep, grid, drawn = Sweep(scores, labels), np.geomspace(1e-3, 0.6, 60), []
    for weights in draws(*sides, num):
        again = sweep.rates(weights)
        if again is not None:
            drawn.append(np.interp(grid, again.false_accept[::-1], again.miss[::-1]))
    if drawn:
        low, high = np.percentile(drawn, (2.5, 97.5), axis=0)
        ax.fill_between(probit(grid), probit(low), probit(high), color="C0", alpha=0.2, label="95 %, over speakers")
    ax.axline((0, 0), slope=1, color="0.7", linewidth=0.8)
    ticks = probit(np.array(TICKS))
    ax.set_xticks(ticks, [f"{100 * t:g}" for t in TICKS])
    ax.set_yticks(ticks, [f"{100 * t:g}" for t in TICKS])
    ax.set(xlim=(ticks[0], ticks[-1]), ylim=(ticks[0], ticks[-1]), xlabel="false acceptances, %", ylabel="misses, %")
    ax.set_title("Detection error trade-off")
    if not (np.minimum(rates.miss, rates.false_accept) > 0).any():
        ax.text(0.5, 0.5, "a threshold without any error", transform=ax.transAxes, ha="center")
    ax.legend(loc="upper right")  # "best" looks at every point


def histogram(ax: Any, scores: Floats, labels: NDArray[np.bool_]) -> None:
    """Densities of both kinds of trials."""
    targets, others = split(scores, labels)
    bins = np.histogram_bin_edges(scores, 59)  # of equal scores too
    ax.hist(others, bins, density=True, alpha=0.6, label=f"different speakers ({len(others):,})")
    ax.hist(targets, bins, density=True, alpha=0.6, label=f"same speaker ({len(targets):,})")
    ax.set(xlabel="score", ylabel="density", title="Scores", ymargin=0.3)  # room for the legend
    ax.legend(loc="upper right")


def calibration(ax: Any, ratios: Floats, labels: NDArray[np.bool_]) -> None:
    """What the trials say a ratio should have been (isotonic regression) over what the system said."""
    targets, others = split(ratios, labels)
    said, true = np.concatenate([targets, others]), np.concatenate(best_calibrated(targets, others))
    order = np.argsort(said, kind="stable")
    limit = float(np.percentile(np.abs(said), 99))
    ax.plot(said[order], np.clip(true[order], -2 * limit, 2 * limit), label="this system")
    ax.axline((0, 0), slope=1, color="0.6", linewidth=0.8, label="calibrated")
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit), xlabel="log-likelihood ratio given", title="Calibration",
           ylabel="log-likelihood ratio borne out")  # fmt: skip
    ax.legend(loc="upper left")


def embedding_map(ax: Any, vectors: Floats, speakers: list[str], most: int = 20) -> None:
    """Two directions that separate the speakers with most recordings; a colour for each."""
    names, rows, counts = np.unique(speakers, return_inverse=True, return_counts=True)
    chosen = np.argsort(counts)[::-1][:most]
    kept = np.isin(rows, chosen)
    points, rows = unit(np.asarray(vectors, dtype=np.float64))[kept], rows[kept]
    means = np.stack([points[rows == row].mean(0) for row in np.unique(rows)])
    axes = np.linalg.svd(means - means.mean(0), full_matrices=False)[2][:2]
    flat = (points - means.mean(0)) @ axes.T
    colours = _pyplot().get_cmap("tab20")
    for number, row in enumerate(np.unique(rows)):
        label = str(names[row]).replace("$", r"\$")  # no formula
        ax.scatter(*flat[rows == row].T, s=10, color=colours(number % 20), label=label)
    ax.set(xlabel="first direction between speakers", ylabel="second", title="Embeddings by speaker")
    ax.legend(fontsize=6, ncol=2)


def probit(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Normal deviate of a probability, kept within +-4.3."""
    from scipy.special import ndtri

    return np.asarray(ndtri(np.clip(p, 1e-5, 1 - 1e-5)))


def _pyplot() -> Any:
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
        import scipy  # noqa: F401
    except ModuleNotFoundError as error:
        raise SpeechError("plots need matplotlib and scipy; install them with `pip install 'voxcode[eval]'`") from error
    return plt
