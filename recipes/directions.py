"""Move and turn what a trained encoder gives, by its last layer: the mean of the speakers to 0, weak directions up.

A cosine takes every direction for as good as its spread. Training leaves most of the spread in a few directions, and
those are not the only ones that tell voices apart: what was learned last is weak, not worthless.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from engine.errors import ConfigError
from speaker.model import SpeakerEncoder
from speaker.scoring import unit

Matrix = NDArray[np.float64]
FLOOR = 0.1  # of the mean variance, added to all: the weakest directions are noise


def mean_embeddings(names: list[str], vectors: Matrix) -> tuple[list[str], Matrix]:
    """Speakers, and the mean (S, D) of their embeddings (n, D) as they come, but for a few that are far too long.

    Of a recording that breaks off into digital silence the embedding may be fifty times as long as of others.
    """
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = vectors * np.minimum(1, 2 * np.median(length) / np.maximum(length, 1e-9))
    speakers, rows = np.unique(names, return_inverse=True)
    sums = np.zeros((len(speakers), vectors.shape[1]))
    np.add.at(sums, rows, vectors)
    return speakers.tolist(), sums / np.bincount(rows)[:, None]


def balanced(vectors: Matrix, exponent: float) -> Matrix:
    """Embeddings (n, D) around 0 -> (D, D) that turns embeddings to their principal directions, widest first.

    Each direction is divided by its spread to the power `exponent`: 0 turns only, 1 makes all about as wide. The first
    n dimensions of what comes out are the best n to keep, as with nested training.
    """
    variance, directions = np.linalg.eigh(np.cov(unit(vectors).T))
    variance, directions = variance[::-1], directions[:, ::-1]
    scale = (variance / variance.mean() + FLOOR) ** (-exponent / 2)
    return scale[:, None] * directions.T


def transform(encoder: SpeakerEncoder, matrix: Matrix, offset: Matrix) -> None:
    """Make the encoder, in eval mode, give matrix (D, D) @ embedding + offset (D,).

    The last layer is linear, or a batch normalization after a linear one, which then works for both. ConfigError,
    and nothing is changed, if the network ends otherwise.
    """
    layers = [module for module in encoder.backbone.modules() if isinstance(module, nn.Linear | nn.BatchNorm1d)]
    norm = layers[-1] if isinstance(layers[-1], nn.BatchNorm1d) else None
    linear = layers[-2 if norm else -1]
    refusal = ConfigError(f"the last layers of {type(encoder.backbone).__name__} cannot turn or shift the embeddings")
    if not isinstance(linear, nn.Linear) or linear.out_features != len(offset) or linear.bias is None:
        raise refusal
    wav = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, (1, 32_000)).astype(np.float32))
    with torch.inference_mode():
        expected = matrix @ _numbers(encoder(wav)[0]) + offset
    # Of the two layers together: scale * (weight x + bias) + shift.
    scale, shift = _affine(norm) if norm else (np.ones(len(offset)), np.zeros(len(offset)))
    before = _numbers(linear.weight), _numbers(linear.bias)
    _fill(linear, (matrix @ (scale[:, None] * before[0])) / scale[:, None],
          (matrix @ (scale * before[1] + shift) + offset - shift) / scale)  # fmt: skip
    with torch.inference_mode():
        found = _numbers(encoder(wav)[0])
    if not np.allclose(found, expected, atol=1e-3 * np.abs(expected).max()):
        _fill(linear, *before)
        raise refusal


def _fill(linear: nn.Linear, weight: Matrix, bias: Matrix) -> None:
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(weight))
        linear.bias.copy_(torch.from_numpy(bias))


def _affine(norm: nn.BatchNorm1d) -> tuple[Matrix, Matrix]:
    """Scale and shift of a batch normalization when it is not training."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = 1 / np.sqrt(_numbers(norm.running_var) + norm.eps)
    shift = -_numbers(norm.running_mean) * scale
    if norm.affine:
        weight = _numbers(norm.weight)
        return scale * weight, shift * weight + _numbers(norm.bias)
    return scale, shift


def _numbers(values: Tensor) -> Matrix:
    return values.detach().double().numpy()
