"""Measure a codec model where it is expected to be weak, Opus beside it: children, music, languages, noise, levels.

    python -m benchmarks.weaknesses LABEL=FOLDER... [--speech FOLDER... [--noise FOLDER] [--snr 20 10 5]
        [--levels -14 -30 -46]] [--model esc_live] [--limit 40] [--write FILE...]

Each LABEL=FOLDER is a condition, as many as there is sound for. `--speech` is the clean speech to compare with; noise
is added to it at each signal-to-noise ratio (energies over the whole piece), and it is set to each level in dBFS (RMS,
held back where it would clip). The reference is always what the coders were given: with noise, a coder is measured by
how well it keeps speech and noise together. Pieces of `--seconds` are cut out of the files, and `--limit` of them
taken, evenly spread over all. PESQ was made for speech: of music it says little, the mel distance says more.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.coders import RATE, Sample, Signal, evenly, load_samples, opus, ours, rounded
from benchmarks.quality import Row, measure
from benchmarks.report import cell, count, table, write_sections
from codec import files, metrics
from codec.model import Codec
from engine.errors import SpeechError

OPUS = (6, 9)  # what opusenc is asked for; the codes take about 5.5 and 8.5 kbit/s
SHORTEST = 1.5  # seconds of a piece: PESQ and STOI need some speech


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("conditions", nargs="*", metavar="LABEL=FOLDER")
    parser.add_argument("--speech", nargs="+", type=Path, default=[], metavar="FOLDER", help="clean speech")
    parser.add_argument("--noise", type=Path, metavar="FOLDER", help="noise to add to the clean speech")
    parser.add_argument("--snr", nargs="+", type=float, default=[20, 10, 5], metavar="DB")
    parser.add_argument("--levels", nargs="*", type=float, default=[], metavar="DBFS")
    parser.add_argument("--model", default="esc_live", help="name or folder (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=40, help="pieces of each condition (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=8.0, help="of a piece at most (default: %(default)s)")
    parser.add_argument(
        "--write", nargs="+", type=Path, default=[], metavar="FILE", help="<!-- weaknesses --> in these"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        conditions = gather(options)
        model = files.load_model(options.model)
        text = to_markdown(model, {label: measure_condition(model, s) for label, s in conditions.items()})
        print(text)
        for path in options.write:
            write_sections(path, {"weaknesses": text})
    except SpeechError as error:
        print(f"weaknesses: error: {error}", file=sys.stderr)
        return 2
    return 0


def gather(options: argparse.Namespace) -> dict[str, list[Sample]]:
    """The signals of each condition by its label, clean speech first."""
    conditions: dict[str, list[Sample]] = {}
    if options.speech:
        clean = pieces(options.speech, options.seconds, options.limit)
        conditions["clean speech"] = clean
    for condition in options.conditions:
        label, equals, folder = condition.partition("=")
        if not (label and equals and folder):
            raise SpeechError(f"{condition!r} is no LABEL=FOLDER")
        conditions[label] = pieces([Path(folder)], options.seconds, options.limit)
    if (options.noise or options.levels) and not options.speech:
        raise SpeechError("--noise and --levels need --speech FOLDER to work on")
    if options.noise:
        noises = [sample.wav for sample in load_samples([options.noise]) if sample.wav.any()]
        if not noises:
            raise SpeechError(f"{options.noise} holds nothing but silence")
        for snr in options.snr:
            conditions[f"noise at {snr:g} dB SNR"] = [
                _changed(sample, with_noise(sample.wav, noises[i * 7919 % len(noises)], snr))
                for i, sample in enumerate(clean)
            ]
    for level in options.levels:
        conditions[f"level {level:g} dBFS"] = [_changed(sample, at_level(sample.wav, level)) for sample in clean]
    if not conditions:
        raise SpeechError("nothing to measure: give LABEL=FOLDER or --speech FOLDER")
    return conditions


def pieces(folders: Sequence[Path], seconds: float, limit: int) -> list[Sample]:
    """Cut the files of folders into pieces of at most `seconds` and take `limit` of those with sound, evenly spread."""
    size, least = round(seconds * RATE), round(SHORTEST * RATE)
    cut = [
        Sample(f"{sample.name} at {start // RATE} s", sample.group, part)
        for sample in load_samples(folders)
        for start in range(0, len(sample.wav), size)
        if len(part := sample.wav[start : start + size]) >= least and part.any()
    ]
    if not cut:
        raise SpeechError(f"no sound of at least {SHORTEST} s below {', '.join(map(str, folders))}")
    return evenly(cut, limit)


def with_noise(wav: Signal, noise: Signal, snr: float) -> Signal:
    """Add noise, repeated as often as needed, so that the energies have the ratio `snr` in dB.

    Silence that it begins with is left out: a piece as long as that would have no noise, and no level.
    """
    repeated = np.resize(np.trim_zeros(noise, "f"), len(wav)).astype(np.float64)
    gain = np.sqrt((wav.astype(np.float64) ** 2).mean() / (repeated**2).mean()) * 10 ** (-snr / 20)
    return _quieter_than_clipping(wav + gain * repeated)


def at_level(wav: Signal, level: float) -> Signal:
    """Bring the RMS to a level in dBFS, or as near as the peaks allow."""
    rms = np.sqrt((wav.astype(np.float64) ** 2).mean())
    return _quieter_than_clipping(wav.astype(np.float64) * 10 ** (level / 20) / rms)


def _quieter_than_clipping(wav: np.ndarray) -> Signal:
    return (wav * min(1.0, 0.99 / float(np.abs(wav).max()))).astype(np.float32)


def _changed(sample: Sample, wav: Signal) -> Sample:
    return Sample(sample.name, sample.group, rounded(torch.from_numpy(wav)))


def own_levels(model: Codec) -> list[int]:
    """Numbers of levels that are measured: two thirds and all."""
    return sorted({max(1, 2 * model.config.levels // 3), model.config.levels})


def measure_condition(model: Codec, samples: list[Sample]) -> list[Row]:
    """Rows of the model at two thirds and at all of its levels, then of Opus near these rates."""
    rows = measure(ours(model, own_levels(model)), samples, ())
    coder = opus(OPUS)
    return rows + (measure(coder, samples, ()) if coder else [])


def to_markdown(model: Codec, results: dict[str, list[Row]]) -> str:
    """One line for each condition: means at our highest rate with intervals, those of the others without."""
    first = next(iter(results.values()))
    peers = [row.coder for row in first if row.coder != model.name]
    num_own = len(first) - len(peers)
    # in the order of `measure_condition`; a peer is named by what it was asked for, its real rate is a column
    own = [f"{model.name} {model.config.bitrate(levels) / 1000:g}" for levels in own_levels(model)]
    heading = ["sound", "n", *(f"PESQ-WB {name}" for name in own + peers)]
    heading += [f"PESQ-WB {own[-1]} against {peers[-1]}"] if peers else []
    heading += [f"{metric} {name}" for metric in ("STOI", "mel distance") for name in own[-1:] + peers[-1:]]
    heading += [f"kbit/s of codes {name}" for name in peers]
    lines = []
    for label, rows in results.items():
        mine, others = rows[:num_own], rows[num_own:]
        ends = mine[-1:] + others[-1:]
        means = [row.mean("pesq_wb") for row in rows]
        means += [row.mean(name) for name in ("stoi", "mel_distance") for row in ends]
        cells = [label, count(means)]
        cells += [cell("pesq_wb", row.mean("pesq_wb")) for row in mine]
        cells += [f"{row.mean('pesq_wb').mean:.2f}" for row in others]
        if others:
            pairs = zip(mine[-1].values("pesq_wb"), others[-1].values("pesq_wb"), strict=True)
            cells += [cell("pesq_wb", metrics.bootstrap_interval([a - b for a, b in pairs]), sign=True)]
        cells += [f"{row.mean('stoi').mean:.3f}" for row in ends]
        cells += [f"{row.mean('mel_distance').mean:.2f}" for row in ends]
        lines.append([*cells, *(f"{row.payload:.1f}" for row in others)])
    return table(heading, lines)


if __name__ == "__main__":
    sys.exit(main())
