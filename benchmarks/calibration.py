"""Are the probabilities of `speaker verify` true? Trials cut to 1 to 10 s, with noise at 0 to 30 dB.

    python -m benchmarks.calibration --trials LIST... --root FOLDER --noise MANIFEST [--model ecapa] [--write FILE...]

Beside the model's calibration: one cosine threshold for all, the one with equal error rates on clean whole recordings
of the same lists, as a log-likelihood ratio through the affine map that is best for those.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

import speaker
from benchmarks import report
from engine import audio, checkpoint
from engine.errors import SpeechError
from recipes.harness.augment import Augment, AugmentConfig
from speaker.calibration import fit
from speaker.evidence import evidence_of
from speaker.metrics import Cost, act_dcf, cllr, eer, min_cllr, min_dcf, split
from speaker.quality import assess
from speaker.scoring import Cosine, score
from speaker.trials import read_trials

PRIORS = (0.01, 0.1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", nargs="+", type=Path, required=True)
    parser.add_argument("--root", type=Path, required=True, help="folder that the lists' paths start from")
    parser.add_argument("--noise", action="append", default=[], help="recordings or manifest of noise")
    parser.add_argument("--model", default="ecapa")
    parser.add_argument("--write", nargs="+", type=Path, default=[], metavar="FILE")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    made = partial(measure, options.trials, options.root, options.noise, options.model)
    return report.publish("calibration", "calibration", made, options.write)


def measure(lists: Sequence[Path], root: Path, noise: Sequence[str], model: str) -> str:
    """A table, a row for each list and method, and all lists pooled."""
    folder = checkpoint.find(model)
    encoder = speaker.load(folder)
    evidence = evidence_of(folder, encoder)
    if evidence is None:
        raise SpeechError(f"{folder} has no calibration; `python -m recipes.calibrate` makes one")
    rate = encoder.config.front_end.sample_rate
    chain = Augment(AugmentConfig(noise_probability=1.0 if noise else 0.0, noise_paths=tuple(noise),
                                  noise_snr=(0.0, 30.0)), rate)  # fmt: skip
    rng, parts = np.random.default_rng(0), []
    for path in lists:
        trials = read_trials(path)
        names = trials.recordings()
        clean, hard, seconds = [], [], []
        with torch.inference_mode():
            for name in names:
                wav = audio.load(root / name, rate, mono=True)[0][0].numpy()
                clean.append(encoder(torch.from_numpy(wav)[None])[0].double().numpy())
                count = min(len(wav), round(rng.uniform(1, 10) * rate))
                start = int(rng.integers(len(wav) - count + 1))
                wav = chain(np.ascontiguousarray(wav[start : start + count]), rng)
                hard.append(encoder(torch.from_numpy(wav)[None])[0].double().numpy())
                seconds.append(assess(wav, rate).seconds)
        labels = np.array(trials.labels)
        whole, cut = (score(trials, names, np.array(vectors), Cosine()).values for vectors in (clean, hard))
        known = evidence.side(np.array(hard), np.array(seconds))
        at = trials.rows(names)
        ratios = evidence.llr(cut, known.take(at[:, 0]), known.take(at[:, 1]))
        fixed = fit(["clean"], whole[:, None], labels)
        parts.append((path.stem, labels, ratios, fixed.llr(cut[:, None], {})))
        print(path.stem, 100 * eer(*split(whole, labels))[0], 100 * eer(*split(cut, labels))[0], file=sys.stderr)
    pooled = [np.concatenate(column) for column in list(zip(*parts, strict=True))[1:]]
    rows = []
    for name, labels, ratios, fixed_ratios in [*parts, ("all", *pooled)]:
        for method, values in (("calibrated", ratios), ("fixed threshold", fixed_ratios)):
            rows.append([name, method, *figures(values, labels)])
    heading = ["trials", "method", "EER %", *(f"actDCF / minDCF ({p:g})" for p in PRIORS), "Cllr", "Cllr - minCllr"]
    return report.table(heading, rows)


def figures(ratios: np.ndarray, labels: np.ndarray) -> list[str]:
    """Cells of a row."""
    targets, others = split(ratios, labels)
    cells = [f"{100 * eer(targets, others)[0]:.2f}"]
    for prior in PRIORS:
        actual, least = act_dcf(targets, others, Cost(prior)), min_dcf(targets, others, Cost(prior))[0]
        cells.append(f"{actual:.3f} / {least:.3f} = {actual / max(least, 1e-9):.2f}")
    value = cllr(targets, others)
    return [*cells, f"{value:.3f}", f"{value - min_cllr(targets, others):.3f}"]


if __name__ == "__main__":
    sys.exit(main())
