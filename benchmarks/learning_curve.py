"""Draw what more hours of training brought, and what they would bring if the curve went on: PESQ-WB against hours.

    python -m benchmarks.learning_curve RUN/metrics.csv [...] [--metric valid/pesq6] [--png FILE] [--write FILE...]

A line a + b log2(hours) is fitted to the second half of each curve; b is the gain of a doubling. The prediction for
twice and four times the hours is given with twice the standard error of that line, which does not know whether the
curve bends: it holds for more of the same (same learning rate, same data), and a falling rate at the end adds to it.
`--write` puts the table between the lines <!-- learning --> and <!-- /learning -->.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.plots import COLOURS, import_pyplot
from benchmarks.report import table, write_sections
from engine.errors import SpeechError
from recipes.harness import record

Values = NDArray[np.float64]


def main(arguments: Sequence[str] | None = None) -> int:
    """Fit, print and draw; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="METRICS.CSV")
    parser.add_argument("--metric", default="valid/pesq6", help="column (default: %(default)s)")
    parser.add_argument("--png", type=Path, metavar="FILE")
    parser.add_argument("--write", nargs="+", type=Path, default=[], metavar="FILE")
    options = parser.parse_args(arguments)
    try:
        names = run_names(options.runs)
        curves = {names[path]: read_curve(path, options.metric) for path in options.runs}
        text = to_markdown(curves, options.metric)
        print(text)
        if options.png:
            draw(curves, options.metric, options.png)
        for path in options.write:
            write_sections(path, {"learning": text})
    except SpeechError as error:
        print(f"learning_curve: error: {error}", file=sys.stderr)
        return 2
    return 0


def run_names(paths: Sequence[Path]) -> dict[Path, str]:
    """The folder's name of each run; of runs whose folders share one the whole path."""
    short = {path: path.absolute().parent.name for path in paths}
    return {path: str(path) if list(short.values()).count(name) > 1 else name for path, name in short.items()}


def read_curve(path: Path, metric: str) -> tuple[Values, Values]:
    """Hours of audio heard and the metric, where it was measured."""
    if not path.is_file():
        raise SpeechError(f"{path}: no such file; a run writes metrics.csv into its folder")
    rows = record.read_metrics(path)
    if rows and "hours_seen" not in rows[0]:
        raise SpeechError(f"{path} has no column hours_seen; give the metrics.csv that recipes.train writes")
    points = np.array([(float(row["hours_seen"] or "nan"), float(row[metric])) for row in rows if row.get(metric)])
    points = points.reshape(-1, 2)
    points = points[np.isfinite(points).all(axis=1) & (points[:, 0] > 0)]  # a metric may be undefined for a while
    if len(points) < 4:
        raise SpeechError(f"{path} has {len(points)} values of {metric!r}; a curve takes at least 4")
    hours, values = points.T
    if len(np.unique(hours[half(hours)])) < 2:
        raise SpeechError(f"{path}: the second half of {metric!r} is all at {hours[-1]:g} hours; a line needs another")
    return hours, values


def half(hours: Values) -> slice:
    """The part of a curve that the line is fitted to: the second half, all of a short one."""
    return slice(len(hours) // 2 if len(hours) >= 8 else 0, None)


def fit(hours: Values, values: Values) -> tuple[Values, Values]:
    """Coefficients (b, a) of a + b log2(hours) over the second half, and their covariance."""
    x, y = np.log2(hours[half(hours)]), values[half(hours)]
    design = np.stack([x, np.ones_like(x)], axis=1)
    coefficients, *_ = np.linalg.lstsq(design, y, rcond=None)
    variance = ((y - design @ coefficients) ** 2).sum() / max(1, len(x) - 2)
    return coefficients, variance * np.linalg.inv(design.T @ design)


def predict(hours: Values, values: Values, at: float) -> tuple[float, float]:
    """Value of the fitted line at `at` hours, and twice its standard error."""
    coefficients, covariance = fit(hours, values)
    x = np.array([np.log2(at), 1.0])
    return float(x @ coefficients), float(2 * np.sqrt(x @ covariance @ x))


def to_markdown(curves: dict[str, tuple[Values, Values]], metric: str) -> str:
    """A line for each run."""
    rows = []
    for name, (hours, values) in curves.items():
        (slope, _), covariance = fit(hours, values)
        cells = [f"{slope:+.3f} ± {2 * np.sqrt(covariance[0, 0]):.3f}"]
        for times in (2, 4):
            value, error = predict(hours, values, times * hours[-1])
            cells.append(f"{value:.2f} ± {error:.2f}")
        rows.append([name, f"{hours[-1]:.1f}", f"{values[-1]:.2f}", *cells])
    return table(["run", "hours heard", metric, "gain of a doubling", "line at twice the hours", "at four times"], rows)


def draw(curves: dict[str, tuple[Values, Values]], metric: str, path: Path) -> None:
    """All curves over hours on a logarithmic axis, the fitted lines dashed as far as four times the hours."""
    plt = import_pyplot()
    figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
    for i, (name, (hours, values)) in enumerate(curves.items()):
        colour = COLOURS[i % len(COLOURS)]
        axis.plot(hours, values, "o-", color=colour, markersize=3)
        axis.annotate(name, (hours[-1], values[-1]), xytext=(6, -12), textcoords="offset points", color=colour)
        ahead = np.geomspace(hours[len(hours) // 2], 4 * hours[-1], 50)
        line = np.array([predict(hours, values, at) for at in ahead])
        axis.plot(ahead, line[:, 0], "--", color=colour)
        axis.fill_between(ahead, line[:, 0] - line[:, 1], line[:, 0] + line[:, 1], color=colour, alpha=0.15)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(plt.FuncFormatter(lambda x, _: f"{x:g}"))
    axis.set_xlabel("hours of audio heard (dashed: a + b log2(hours), fitted to the second half)")
    axis.set_ylabel(f"{metric} on validation speakers")
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
