"""Decide as soon as the evidence suffices: Wald's sequential probability ratio test on calibrated ratios.

Wald, "Sequential Tests of Statistical Hypotheses" (1945). After every piece of speech the log-likelihood ratio of all
there is so far either passes one of two bounds, or more is waited for. A ratio that is calibrated passes log(1 / a) for
a wrong speaker with probability a at most, however often it is looked at (Ville 1939); so the bounds follow from the
errors that are allowed, and there is nothing to tune.
"""

from __future__ import annotations

import math
from typing import Literal

from engine.errors import ConfigError

Decision = Literal["same", "different", "undecided"]


class SequentialTest:
    """Feed log-likelihood ratios (natural); the first to pass a bound decides for good."""

    def __init__(self, false_accept: float = 0.001, false_reject: float = 0.01) -> None:
        """Allowed probabilities of "same" for a wrong speaker, and of "different" for the right one."""
        if not 0 < false_accept < 1 or not 0 < false_reject < 1 or false_accept + false_reject >= 1:
            raise ConfigError(
                f"false accepts and false rejects are probabilities with a sum below 1, got {false_accept} and "
                f"{false_reject}"
            )
        self.accept = math.log((1 - false_reject) / false_accept)
        self.reject = math.log(false_reject / (1 - false_accept))
        self.decision: Decision = "undecided"

    def update(self, llr: float) -> Decision:
        """Take in the ratio as of now; what is decided stays decided."""
        if self.decision == "undecided":
            self.decision = "same" if llr >= self.accept else "different" if llr <= self.reject else "undecided"
        return self.decision
