"""One question answered: are two recordings of one speaker?"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from engine import checkpoint
from engine.errors import SpeechError
from speaker.embed import embed_files
from speaker.evidence import evidence_of
from speaker.metrics import Cost
from speaker.model import default, load
from speaker.scoring import unit

PRIOR = 0.1  # of one speaker, where nobody says: a voice that is taken for another's is the worse mistake


@dataclass
class Answer:
    """`llr` (natural), `posterior` and `same` are None where the model has no calibration (`same`: nor a threshold)."""

    cosine: float
    llr: float | None = None
    posterior: float | None = None
    same: bool | None = None
    seconds: tuple[float, float] = (0.0, 0.0)  # of speech
    threshold: float | None = None  # of the cosine, where it decides instead of the ratio
    warnings: list[str] = field(default_factory=list)
    uncalibrated: str = ""  # why there is no ratio though the model has a calibration

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def as_text(self) -> str:
        """For people."""
        decision = "" if self.same is None else ("same speaker" if self.same else "different speakers")
        if self.threshold is not None:
            decision += f" by the threshold {self.threshold:g}"
        if self.llr is None:
            why = self.uncalibrated or "not calibrated"
            return f"cosine {self.cosine:.3f}{', ' + decision if decision else ''} ({why}: no probability)"
        return (
            f"{decision}: log-likelihood ratio {self.llr:+.2f}, probability of one speaker {self.posterior:.1%} "
            f"(cosine {self.cosine:.3f}, {self.seconds[0]:.1f} s and {self.seconds[1]:.1f} s of speech)"
        )


def compare(
    first: Path, second: Path, model: str | None = None, prior: float = PRIOR, cost_miss: float = 1.0,
    cost_false: float = 1.0, threshold: float | None = None,
) -> Answer:  # fmt: skip
    """Embed both and compare; SpeechError for silence, or less speech than the calibration has seen."""
    folder = checkpoint.find(model or default())
    encoder = load(folder)
    evidence = evidence_of(folder, encoder)
    result = embed_files(encoder, [first, second] if first != second else [first])
    for reason in result.failed.values():
        raise SpeechError(reason)
    vectors = np.array((result.vectors * 2)[:2], dtype=np.float64)
    a, b = unit(vectors)
    quality = (result.quality * 2)[:2]
    shortest = 0.0 if evidence is None else evidence.calibration.shortest
    warnings = []
    for path, each in zip((first, second), quality, strict=True):
        if each.seconds == 0 or (threshold is None and each.seconds < shortest):
            least = f"; the calibration rests on {shortest:.2f} s and more" if evidence else ""
            raise SpeechError(f"{path}: not enough speech, {each.seconds:.2f} s{least}")
        warnings += [f"{path}: {sentence}" for sentence in each.warnings()]
    answer = Answer(float(a @ b), seconds=(quality[0].seconds, quality[1].seconds), threshold=threshold,
                    warnings=warnings)  # fmt: skip
    if threshold is not None:
        answer.same = answer.cosine >= threshold
    if evidence is not None and min(answer.seconds) < shortest:
        answer.uncalibrated = f"less speech than the {shortest:.2f} s that the calibration rests on"
    elif evidence is not None:
        one, other = (evidence.side(vectors[[k]], answer.seconds[k]) for k in (0, 1))
        answer.llr = float(evidence.llr(np.array([answer.cosine]), one, other)[0])
        answer.posterior = 1 / (1 + math.exp(-min(500.0, max(-500.0, answer.llr + math.log(prior / (1 - prior))))))
        if threshold is None:
            answer.same = answer.llr >= Cost(prior, cost_miss, cost_false).threshold
    return answer
