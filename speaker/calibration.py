"""Scores -> log-likelihood ratios: logistic regression, for one system or several (fusion), with quality measures.

The ratio is an affine function of the scores and of what is known of the two recordings: log seconds of speech,
magnitude of the embeddings, mean against a cohort (Mandasari et al. 2013; BUT 2019). How much a score is worth depends
on how much speech it rests on, so the seconds also scale the scores. Natural logarithms.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.errors import ScoreError
from engine.files import replacing
from speaker.scoring import Floats

__all__ = ["QUALITIES", "Calibration", "fit", "load"]

QUALITIES = ("seconds", "magnitude", "cohort")
NORMS = {"as": "as", "cohort": "near"}  # what a system is called -> option of `speaker score`
ENROLMENTS = {"recordings": "single recordings", "models": "models of several recordings"}
SECONDS = (0.5, 20.0)  # beyond these more or less speech makes no difference


@dataclass(frozen=True)
class Calibration:
    """`systems` tells what the scores are (model digest, back end, normalization): others cannot be calibrated."""

    systems: list[str]
    quality: list[str]
    weights: list[float]  # of the columns of `features`
    offset: float
    prior: float  # of a target, at which the regression was done
    trials: int
    targets: int
    shortest: float  # seconds of speech of the least side among the trials; below, nothing is known
    enrolment: str = "recordings"  # what the first side of the trials was, of ENROLMENTS

    def llr(self, scores: Floats, quality: dict[str, Floats]) -> Floats:
        """(n, S) scores and (n, 2) quality measures of both sides -> (n,) log-likelihood ratios."""
        if scores.ndim != 2 or scores.shape[1] != len(self.systems):
            raise ScoreError(f"this calibration is for {len(self.systems)} systems ({', '.join(self.systems)}), got "
                             f"scores of shape {scores.shape}")  # fmt: skip
        return np.asarray(features(scores, quality, self.quality) @ np.array(self.weights) + self.offset)

    def of_scores(self, scores: Floats, first: Floats | float, second: Floats | float) -> Floats:
        """Log-likelihood ratios of (n,) scores; seconds of speech on either side, (n,) or one for all."""
        sides = np.stack([np.broadcast_to(each, scores.shape) for each in (first, second)], axis=1)
        return self.llr(scores[:, None], {"seconds": sides})

    def check_systems(self, systems: list[str]) -> None:
        """ScoreError if the scores are not those that it was made for."""
        if [_without_name(each) for each in systems] != [_without_name(each) for each in self.systems]:
            kind = re.search(r"\+(as|cohort)(\d+)$", self.systems[0])
            hint = f"score with `--norm {NORMS[kind[1]]} --top {kind[2]}`, or " if kind else ""
            what, command = ("fusion", "fuse --learn") if len(self.systems) > 1 else ("calibration", "calibrate")
            raise ScoreError(f"the {what} was made for {', '.join(self.systems)}, the scores are of "
                             f"{', '.join(systems)}; {hint}make one with `speaker {command}`")  # fmt: skip

    def doubt(self, enrolment: str) -> str:
        """A sentence where the trials are of another kind, of ENROLMENTS, than those learned from."""
        if enrolment == self.enrolment:
            return ""
        return (f"it was learned on {ENROLMENTS[self.enrolment]}, these are {ENROLMENTS[enrolment]}, whose scores "
                "spread otherwise: the log-likelihood ratios are off")  # fmt: skip

    def check_quality(self, *known: str) -> None:
        """ScoreError if it asks for other quality measures than these."""
        if unknown := [name for name in self.quality if name not in known]:
            raise ScoreError(
                f"the model's calibration asks for {' and '.join(unknown)}, and of voiceprints only "
                f"{' and '.join(known)} is known; make one with `speaker calibrate --quality seconds`"
            )

    def save(self, path: Path) -> None:
        """Write as JSON."""
        text = json.dumps({"kind": "calibration", **dataclasses.asdict(self)}, indent=1) + "\n"
        with replacing(path) as partial:
            partial.write_text(text, encoding="utf-8")


def _without_name(system: str) -> str:
    """A model is what its weights are: its folder may be renamed."""
    return re.sub(r"[^@:&()]*@", "@", system)


def load(path: Path) -> Calibration:
    """Read what `Calibration.save` wrote; ScoreError if it is something else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict) or values.pop("kind", None) != "calibration":
            raise ScoreError(f"{path} is no calibration; `speaker calibrate` makes one")
        found = Calibration(**values)
        if not np.isfinite([*found.weights, found.offset, found.shortest]).all():
            raise ScoreError(f"{path} has weights that are not finite; make it anew with `speaker calibrate`")
        if found.enrolment not in ENROLMENTS:
            raise ScoreError(f"{path}: enrolment is {' or '.join(ENROLMENTS)}, not {found.enrolment!r}")
        sides = {name: np.ones((1, 2)) for name in QUALITIES}
        found.llr(np.zeros((1, len(found.systems))), sides)  # refuses another number of weights
        return found
    except (OSError, ValueError, TypeError) as error:
        raise ScoreError(f"{path} is no calibration ({error}); `speaker calibrate` makes one") from error


def features(scores: Floats, quality: dict[str, Floats], names: list[str]) -> Floats:
    """(n, S) scores, (n, 2) of each quality -> (n, K): scores; of each quality the lesser and the greater side; and,
    with seconds, the scores times the logarithm of the lesser side."""
    columns = [scores]
    for name in names:
        if name not in quality:
            raise ScoreError(f"the calibration needs the quality measure {name!r} of both sides; score again with it, "
                             "or make one that does without")  # fmt: skip
        sides = np.sort(np.asarray(quality[name], dtype=np.float64), axis=1)
        if name == "seconds":
            sides = np.log(np.clip(sides, *SECONDS))
            columns.append(scores * sides[:, :1])
        elif name == "magnitude":
            sides = np.log(np.maximum(sides, 1e-9))
        columns.append(sides)
    return np.concatenate(columns, axis=1)


def fit(
    systems: list[str], scores: Floats, labels: NDArray[np.bool_], quality: dict[str, Floats] | None = None,
    names: tuple[str, ...] = (), prior: float = 0.5, enrolment: str = "recordings",
) -> Calibration:  # fmt: skip
    """Fit to trials with labels: scores (n, S) of the systems, (n, 2) of each quality in `names`.

    Targets and non-targets are weighted to the prior (Brummer and Preez 2006), whatever their numbers.
    """
    quality, labels = quality or {}, np.asarray(labels, dtype=bool)
    if not np.isfinite(scores).all():
        raise ScoreError(f"{int((~np.isfinite(scores)).any(1).sum())} of {len(scores)} trials have a score that is not "
                         "finite")  # fmt: skip
    for name in names:
        if name in quality and not np.isfinite(quality[name]).all():
            raise ScoreError(f"{name} is not known of both sides of all trials; calibrate without it")
    if labels.all() or not labels.any():
        raise ScoreError(f"calibration needs targets and non-targets; all {len(labels)} trials are of one kind")
    if not 0 < prior < 1:
        raise ScoreError(f"the prior of a target lies between 0 and 1, got {prior}")
    weights, offset = _logistic(features(scores, quality, list(names)), labels, prior)
    seconds = quality.get("seconds")
    return Calibration(
        systems, list(names), weights.tolist(), offset, prior, len(labels), int(labels.sum()),
        0.0 if seconds is None else _shortest(seconds), enrolment,
    )  # fmt: skip


def _shortest(seconds: Floats) -> float:
    """Least seconds (n, 2) of speech in a trial; recordings without any say nothing of those with little."""
    spoken = seconds[seconds > 0]
    return float(spoken.min()) if len(spoken) else 0.0


def _logistic(x: Floats, labels: NDArray[np.bool_], prior: float) -> tuple[Floats, float]:
    """Newton's method on standardized columns; a weak pull to zero keeps separable trials from infinite weights."""
    most = np.abs(x).max(0)
    most = np.where(most > 0, most, 1.0)  # squares of tiny and of huge scores do not fit into a double
    x = x / most
    mean, spread = x.mean(0), x.std(0)
    spread = np.where(spread > 1e-12, spread, 1.0)
    z = np.concatenate([(x - mean) / spread, np.ones((len(x), 1))], axis=1)
    share = np.where(labels, prior / labels.sum(), (1 - prior) / (~labels).sum())
    at_prior, sign = math.log(prior / (1 - prior)), np.where(labels, 1.0, -1.0)
    pull = 2e-6 * min(prior, 1 - prior)  # the loss is as small
    w = np.zeros(z.shape[1])

    def loss(w: Floats) -> float:
        return float((share * np.logaddexp(0, -sign * (z @ w + at_prior))).sum() + pull / 2 * w @ w)

    for _ in range(100):
        wrong = 1 / (1 + np.exp(np.clip(sign * (z @ w + at_prior), -500, 500)))
        gradient = -(z.T @ (share * sign * wrong)) + pull * w
        curvature = (z.T * (share * wrong * (1 - wrong))) @ z + pull * np.eye(len(w))
        step, size = np.linalg.solve(curvature, gradient), 1.0
        while loss(w - size * step) > loss(w) and size > 1e-8:
            size /= 2
        w = w - size * step
        if np.abs(gradient).max() < 1e-4 * pull:
            break
    return w[:-1] / spread / most, float(w[-1] - w[:-1] @ (mean / spread))
