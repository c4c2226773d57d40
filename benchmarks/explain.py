"""What the files that come out worst have in common: features of each recording, and how PESQ goes with them.

All features are simple enough to be read off the waveform. A frame is 40 ms, every 20 ms; it is active if its energy
is within 35 dB of the loudest twentieth of the frames.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.coders import RATE, Sample, Signal
from benchmarks.report import table
from codec.metrics import Interval

FRAME, HOP = 640, 320
PITCH_RANGE = (60, 500)  # Hz
FEATURES = {
    "level": "level dBFS",
    "snr": "estimated SNR dB",
    "pitch": "pitch Hz",
    "voiced": "voiced share",
    "high": "energy above 4 kHz dB",
    "active": "active share",
    "seconds": "seconds",
}
FORMS = {
    "level": ".0f",
    "snr": ".0f",
    "pitch": ".0f",
    "voiced": ".2f",
    "high": ".0f",
    "active": ".2f",
    "seconds": ".1f",
}

Values = NDArray[np.float64]


def features(wav: Signal) -> dict[str, float]:
    """Level of the active frames, their distance to the quietest tenth of all, median pitch, share of voiced frames
    among them, their energy above 4 kHz relative to all of it, share of active frames, length."""
    padded = np.pad(wav.astype(np.float64), (0, max(0, FRAME - len(wav))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, FRAME)[::HOP]
    power = (frames**2).mean(axis=1) + 1e-12
    active = power > np.quantile(power, 0.95) * 10**-3.5
    loud = frames[active]
    spectrum = np.abs(np.fft.rfft(loud * np.hanning(FRAME), axis=1)) ** 2
    pitches = _pitches(loud)
    floor = np.sort(power)[: max(1, len(power) // 10)].mean()
    return {
        "level": _db(power[active].mean()),
        "snr": _db(power[active].mean()) - _db(floor),
        "pitch": float(np.median(pitches)) if len(pitches) else float("nan"),
        "voiced": len(pitches) / len(loud),
        "high": _db(spectrum[:, FRAME * 4000 // RATE :].sum() / (spectrum.sum() + 1e-12)),
        "active": float(active.mean()),
        "seconds": len(wav) / RATE,
    }


def _db(power: float) -> float:
    return float(10 * np.log10(power + 1e-12))


def _pitches(frames: Values) -> Values:
    """Pitch in Hz of the voiced ones of (T, 640): the first peak of the autocorrelation near its highest."""
    low, high = RATE // PITCH_RANGE[1], RATE // PITCH_RANGE[0]
    centred = frames - frames.mean(axis=1, keepdims=True)
    spectrum = np.abs(np.fft.rfft(centred, 2 * FRAME, axis=1)) ** 2
    correlation = np.fft.irfft(spectrum, axis=1)[:, : high + 2]
    # a lag leaves fewer products: divide by their number
    correlation = correlation / (1 - np.arange(high + 2) / FRAME) / (correlation[:, :1] + 1e-12)
    is_peak = (correlation[:, 1:-1] >= correlation[:, :-2]) & (correlation[:, 1:-1] >= correlation[:, 2:])
    peaks = np.where(is_peak, correlation[:, 1:-1], 0)[:, low - 1 :]  # column i is lag low + i
    best = peaks.max(axis=1, initial=0, keepdims=True)
    # a period fits twice and three times over as well; the shortest lag that does nearly as well is the period
    lags = low + np.argmax(peaks >= 0.9 * best, axis=1)
    return RATE / lags[best[:, 0] > 0.5]


def spearman(a: Values, b: Values, groups: Sequence[str] | None = None) -> float:
    """Rank correlation; with `groups`, of what is left of the ranks after taking each group's mean away."""
    labels = np.asarray(groups if groups is not None else [""] * len(a))
    ranks = [_within(_ranks(x), labels) for x in (a, b)]
    norm = np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum())
    return float((ranks[0] * ranks[1]).sum() / norm) if norm else float("nan")


def _within(values: Values, labels: NDArray[np.str_]) -> Values:
    """Take each group's mean away."""
    left = values.astype(np.float64)
    for label in np.unique(labels):
        left[labels == label] -= left[labels == label].mean()
    return left


def _ranks(values: Values) -> Values:
    """Ranks from 1; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def spearman_interval(a: Values, b: Values, groups: Sequence[str] | None = None, n: int = 500) -> Interval:
    """The correlation with its 95 % bootstrap interval over files; pairs with a NaN are left out."""
    kept = ~(np.isnan(a) | np.isnan(b))
    a, b = a[kept], b[kept]
    labels = np.asarray(groups if groups is not None else [""] * len(kept))[kept]
    if len(a) < 3:
        return Interval(float("nan"), float("nan"), float("nan"), len(a))
    picks = np.random.default_rng(0).integers(0, len(a), (n, len(a)))
    draws = [spearman(a[pick], b[pick], list(labels[pick])) for pick in picks]
    low, high = np.nanpercentile(draws, (2.5, 97.5))
    return Interval(spearman(a, b, list(labels)), float(low), float(high), len(a))


def worst_table(samples: Sequence[Sample], scores: dict[str, list[float]], count: int = 10) -> str:
    """The files with the lowest of the first scores given, beside the other coders' and the features."""
    first = next(iter(scores.values()))
    order = sorted(range(len(samples)), key=lambda i: (np.isnan(first[i]), first[i]))[:count]
    rows = []
    for i in order:
        values = features(samples[i].wav)
        cells = [f"{values[name]:{form}}" for name, form in FORMS.items()]
        rows.append([f"{samples[i].group}/{samples[i].name}", *(f"{s[i]:.2f}" for s in scores.values()), *cells])
    everything = [features(sample.wav) for sample in samples]
    median = [f"{np.nanmedian([f[name] for f in everything]):{form}}" for name, form in FORMS.items()]
    rows.append(["median of all", *(f"{np.nanmedian(s):.2f}" for s in scores.values()), *median])
    return table(["file", *scores, *FEATURES.values()], rows)


def correlation_table(samples: Sequence[Sample], scores: dict[str, list[float]]) -> str:
    """Rank correlation of each coder's scores with each feature, over all files and within the folders, and a
    sentence for each coder: which features count, and how much all of them explain together."""
    everything = [features(sample.wav) for sample in samples]
    columns = {name: np.array([f[name] for f in everything]) for name in FEATURES}
    groups = [sample.group for sample in samples]
    rows = [[label] for label in FEATURES.values()]
    sentences = []
    for coder, score in scores.items():
        clear = {}
        for row, (name, label) in zip(rows, FEATURES.items(), strict=True):
            overall = spearman_interval(columns[name], np.array(score))
            within = spearman_interval(columns[name], np.array(score), groups)
            row += [_text(overall), _text(within)]
            if within.low * within.high > 0:  # the interval leaves zero out
                clear[label] = within.mean
        strongest = sorted(clear, key=lambda label: -abs(clear[label]))
        found = ", ".join(f"{label} ({clear[label]:+.2f})" for label in strongest) or "none of them"
        share = 100 * explained(list(columns.values()), np.array(score), groups)
        sentences.append(
            f"- {coder}: within folders PESQ-WB goes clearly with {found}; all features together account for "
            f"{share:.0f} % of the variance of its ranks."
        )
    heading = [text for name in scores for text in (name, "within folders")]
    return table(["rank correlation with", *heading], rows) + "\n\n" + "\n".join(sentences)


def explained(columns: Sequence[Values], score: Values, groups: Sequence[str]) -> float:
    """Share of the variance of the score's ranks within groups that a linear function of the features' ranks has.

    Corrected for the number of features (adjusted R squared): that many random ones would explain nothing.
    """
    kept = ~np.isnan(np.stack([*columns, score])).any(axis=0)
    labels = np.asarray(groups)[kept]
    target, *design = (_within(_ranks(x[kept]), labels) for x in (score, *columns))
    matrix = np.stack(design, axis=1)
    coefficients, *_ = np.linalg.lstsq(matrix, target, rcond=None)
    rest = ((target - matrix @ coefficients) ** 2).sum() / (target**2).sum()
    free = len(target) - len(np.unique(labels))
    return float(1 - rest * free / (free - len(columns))) if free > len(columns) else float("nan")


def _text(i: Interval) -> str:
    return f"{i.mean:+.2f} [{i.low:+.2f}, {i.high:+.2f}]"


def group_table(samples: Sequence[Sample], scores: dict[str, list[float]]) -> str:
    """Mean of each coder's scores in each folder."""
    rows = []
    for group in sorted({sample.group for sample in samples}):
        picked = [i for i, sample in enumerate(samples) if sample.group == group]
        rows.append([group, str(len(picked)), *(f"{np.nanmean([s[i] for i in picked]):.2f}" for s in scores.values())])
    return table(["folder", "n", *scores], rows)
