"""A linear map of the embeddings put into the last layer of a trained encoder, so that it costs nothing."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from engine.errors import ConfigError
from speaker.model import SpeakerEncoder
from speaker.scoring import Floats

__all__ = ["transform"]


def transform(encoder: SpeakerEncoder, matrix: Floats, offset: Floats, vectors: Floats | None = None) -> None:
    """Make the encoder, in eval mode, give matrix (D, D) @ embedding + offset (D,).

    The last layer is linear, or a batch normalization after a linear one, which then works for both. With `vectors`
    (n, D), which it gives so far, the normalization does in training what it does after. ConfigError, and nothing is
    changed, if the network ends otherwise.
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
    before = [(values, values.clone()) for module in layers[-2:] for values in module.state_dict().values()]
    # Of the two layers together: scale * (weight x + bias) + shift.
    scale, shift = _affine(norm) if norm else (np.ones(len(offset)), np.zeros(len(offset)))
    weight = matrix @ (scale[:, None] * _numbers(linear.weight))
    bias = matrix @ (scale * _numbers(linear.bias) + shift) + offset
    if norm and norm.affine and vectors is not None:
        _expect(norm, vectors @ matrix.T + offset)
        scale, shift = _affine(norm)
    _fill(linear.weight, weight / scale[:, None])
    _fill(linear.bias, (bias - shift) / scale)
    with torch.inference_mode():
        found = _numbers(encoder(wav)[0])
    if not np.allclose(found, expected, atol=1e-3 * np.abs(expected).max()):
        for values, old in before:
            values.copy_(old)
        raise refusal


def _expect(norm: nn.BatchNorm1d, outputs: Floats) -> None:
    """Let the normalization expect (n, D), and give them back as they are."""
    assert norm.running_mean is not None and norm.running_var is not None
    _fill(norm.running_mean, outputs.mean(0))
    _fill(norm.running_var, outputs.var(0))
    _fill(norm.weight, np.sqrt(outputs.var(0) + norm.eps))
    _fill(norm.bias, outputs.mean(0))


def _fill(values: Tensor, numbers: Floats) -> None:
    with torch.no_grad():
        values.copy_(torch.from_numpy(numbers))


def _affine(norm: nn.BatchNorm1d) -> tuple[Floats, Floats]:
    """Scale and shift of a batch normalization when it is not training."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = 1 / np.sqrt(_numbers(norm.running_var) + norm.eps)
    shift = -_numbers(norm.running_mean) * scale
    if norm.affine:
        weight = _numbers(norm.weight)
        return scale * weight, shift * weight + _numbers(norm.bias)
    return scale, shift


def _numbers(values: Tensor) -> Floats:
    return values.detach().double().numpy()
