"""VBx: who spoke when, as a hidden Markov model whose states are speakers.

Landini, Profant, Diez and Burget, "Bayesian HMM clustering of x-vector sequences (VBx) in speaker diarization"
(Computer Speech and Language 2022). Embeddings are those of the PLDA model: identity within speakers, diag(psi)
between. A speaker is a Gaussian whose mean is drawn from the model's prior; one stays for the next window with
probability `stay`. The posteriors of means and of paths are found in turns (variational Bayes); each turn raises the
evidence lower bound. Speakers whose share falls to nothing are dropped, so one begins with too many.
"""

from __future__ import annotations

import math

import numpy as np

from speaker.scoring import Floats

__all__ = ["forward_backward", "resegment"]


def resegment(
    x: Floats, psi: Floats, start: Floats, *, stay: float = 0.99, evidence: float = 0.3, prior: float = 17.0,
    turns: int = 40, least_gain: float = 1e-4,
) -> tuple[Floats, Floats, list[float]]:  # fmt: skip
    """Embeddings x (T, K), psi (K,), `start` (T, S) responsibilities -> responsibilities, shares (S,), lower bounds.

    `evidence` (F_A) scales the likelihoods down, for overlapping windows are not independent; `prior` (F_B) weighs the
    prior of the means: the higher, the fewer speakers.
    """
    num, size = x.shape
    base = -0.5 * (np.square(x).sum(1, keepdims=True) + size * math.log(2 * math.pi))
    rho = x * np.sqrt(psi)
    gamma, shares = start / start.sum(1, keepdims=True), np.full(start.shape[1], 1 / start.shape[1])
    bounds: list[float] = []
    for _ in range(turns):
        precision = 1 + evidence / prior * gamma.sum(0)[:, None] * psi  # (S, K)
        mean = evidence / prior * (gamma.T @ rho) / precision
        likelihood = evidence * (rho @ mean.T - 0.5 * (1 / precision + np.square(mean)) @ psi + base)
        moves = stay * np.eye(len(shares)) + (1 - stay) * shares
        gamma, total, starts = forward_backward(likelihood, moves, shares, stay)
        divergence = 0.5 * (1 - np.log(precision) - 1 / precision - np.square(mean)).sum()
        bounds.append(float(total + prior * divergence))
        shares = gamma[0] + starts
        shares = shares / shares.sum()
        if len(bounds) > 1 and bounds[-1] - bounds[-2] < least_gain:
            break
    return gamma, shares, bounds


def forward_backward(likelihood: Floats, moves: Floats, shares: Floats, stay: float) -> tuple[Floats, float, Floats]:
    """Log-likelihoods (T, S), transition matrix (S, S), initial shares (S,) -> posteriors (T, S), log evidence, and how
    often each state is begun anew after the first window (S,), of all ways into it those that are no staying."""
    num, states = likelihood.shape
    top = likelihood.max(1)
    scaled = np.exp(likelihood - top[:, None])
    forward, norm = np.empty((num, states)), np.empty(num)
    step = shares * scaled[0]
    for t in range(num):
        if t:
            step = (forward[t - 1] @ moves) * scaled[t]
        norm[t] = step.sum()
        forward[t] = step / norm[t]
    backward = np.ones(states)
    gamma, starts = np.empty((num, states)), np.zeros(states)
    for t in range(num - 1, -1, -1):
        gamma[t] = forward[t] * backward
        if t:
            ahead = scaled[t] * backward / norm[t]
            starts += (1 - stay) * shares * ahead  # forward[t - 1] sums to 1
            backward = moves @ ahead
    return gamma / gamma.sum(1, keepdims=True), float(np.log(norm).sum() + top.sum()), starts
