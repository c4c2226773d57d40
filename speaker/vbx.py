"""Resegmentation by the Bayesian hidden Markov model of VBx (Landini et al. 2022, "Bayesian HMM clustering of x-vector
sequences (VBx) in speaker diarization", Computer Speech and Language 71).

States are speakers; what a state emits is what two-covariance PLDA says of a speaker's windows: in the space where the
covariance within speakers is I and that between them diag(psi), x = sqrt(psi) y + noise with y ~ N(0, I). Variational
inference takes turns at the speakers' posteriors q(y_s) and the windows' q(Z), a forward-backward pass. Equation
numbers are the paper's. Speakers without windows lose their prior and so vanish.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.errors import ConfigError
from speaker.scoring import Floats

__all__ = ["VbxConfig", "forward_backward", "vbx"]


@dataclass(frozen=True, kw_only=True)
class VbxConfig:
    """`fa` scales the evidence of windows, which overlap and so are not independent; `fb` the speakers' priors."""

    fa: float = 1.0
    fb: float = 6.0
    loop_prob: float = 0.5  # that the next window is of the same speaker, whatever the speakers' priors
    smoothing: float = 7.0  # of the labels that it starts from: the right speaker is e^7 times as probable
    iterations: int = 40
    tolerance: float = 1e-4  # of the evidence lower bound

    def __post_init__(self) -> None:
        if not (self.fa > 0 and self.fb > 0 and 0 <= self.loop_prob < 1):
            raise ConfigError(f"fa and fb are above 0 and loop_prob in [0, 1), got {self}")


def vbx(x: Floats, psi: Floats, labels: np.ndarray, config: VbxConfig | None = None) -> tuple[Floats, list[float]]:
    """Windows (T, K) as `Plda.prepare` gives them, (K,), (T,) first labels -> responsibilities (T, S), bounds.

    The bound never decreases but for rounding.
    """
    config = config or VbxConfig()
    num_speakers = int(labels.max()) + 1
    gamma = np.exp(config.smoothing * np.eye(num_speakers)[labels])
    gamma /= gamma.sum(1, keepdims=True)
    prior = np.full(num_speakers, 1 / num_speakers)
    constant = -0.5 * (np.square(x).sum(1) + x.shape[1] * np.log(2 * np.pi))  # (18)
    rho, scale, bounds = x * np.sqrt(psi), config.fa / config.fb, list[float]()
    for _ in range(config.iterations):
        var = 1 / (1 + scale * gamma.sum(0)[:, None] * psi)  # (17), diagonal
        mean = scale * var * (gamma.T @ rho)  # (16)
        emit = rho @ mean.T - 0.5 * (var + np.square(mean)) @ psi + constant[:, None]  # (23)
        gamma, entered, evidence = forward_backward(config.fa * emit, prior, config.loop_prob)
        divergence = 0.5 * (np.log(var) - var - np.square(mean) + 1).sum()
        bounds.append(float(evidence + config.fb * divergence))  # (25)
        prior = entered / entered.sum()  # (24)
        if len(bounds) > 1 and bounds[-1] - bounds[-2] < config.tolerance:
            break
    return gamma, bounds


def forward_backward(emit: Floats, prior: Floats, loop_prob: float) -> tuple[Floats, Floats, float]:
    """Log-likelihoods (T, S), priors (S,) -> responsibilities (T, S), times each state is entered (S,), evidence.

    From any state the next is the same with `loop_prob`, and otherwise drawn from the prior, which may give it again:
    the transition matrix is of rank one beside its diagonal, so a step costs S and not S^2.
    """
    num_windows = len(emit)
    top = emit.max(1, keepdims=True)
    likelihood = np.exp(emit - top)
    forward, backward = np.zeros_like(emit), np.ones_like(emit)
    scale = np.zeros(num_windows)
    predicted = prior
    for t in range(num_windows):
        forward[t] = predicted * likelihood[t]
        scale[t] = forward[t].sum()
        forward[t] /= scale[t]
        predicted = loop_prob * forward[t] + (1 - loop_prob) * prior
    for t in range(num_windows - 2, -1, -1):
        ahead = likelihood[t + 1] * backward[t + 1] / scale[t + 1]
        backward[t] = loop_prob * ahead + (1 - loop_prob) * (prior @ ahead)
    gamma = forward * backward
    drawn = (1 - loop_prob) * prior * likelihood[1:] * backward[1:] / scale[1:, None]
    return gamma, gamma[0] + drawn.sum(0), float(np.log(scale).sum() + top.sum())
