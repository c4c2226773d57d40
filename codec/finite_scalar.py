"""Finite scalar quantization: rounding in place of a codebook.

Shapes: M vectors, d dimensions, K codes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from codec.codebooks import Gradient, Quantized, Quantizer
from codec.vectors import broadcast_
from engine.errors import ConfigError


class FiniteScalarQuantizer(Quantizer):
    """Rounds each dimension to a few levels: no codebook to learn, none to collapse (Mentzer et al. 2024, "FSQ").

    With h = (L - 1)(1 + 1e-3)/2, o = 1/2 for even L else 0 and t = atanh(o/h), a dimension of L levels becomes
    q = round(h tanh(z + t) - o), an integer, and the value q / (L//2). Codes count the q in mixed radix, first
    dimension fastest. As many levels as dimensions, their product the codebook size: by default 4,4,4,4,4 for
    d = 5, K = 1024 and 8,5,5,5 for d = 4, K = 1000.

    Differs from the paper only after `initialize`: z is then centred and scaled before tanh, and the values are the
    best linear read-out of z from q, so that z_q approximates z from the start, as it does with a learned codebook.
    """

    _DEFAULT_LEVELS = {(5, 1024): (4, 4, 4, 4, 4), (4, 1000): (8, 5, 5, 5)}
    half_width: Tensor
    offset: Tensor
    count: Tensor
    basis: Tensor
    centre: Tensor
    scale: Tensor
    gain: Tensor
    bias: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        gradient: Gradient = "straight_through",
        levels: Sequence[int] | None = None,
    ) -> None:
        super().__init__(dim, codebook_size, gradient=gradient)
        self.levels = self._check(tuple(levels or self._DEFAULT_LEVELS.get((dim, codebook_size), ())))
        count = torch.tensor(self.levels)
        half_width = (count - 1) * (1 + 1e-3) / 2
        offset = 0.5 * (count % 2 == 0)
        basis = torch.cumprod(torch.cat([torch.ones(1, dtype=torch.int64), count[:-1]]), 0)
        self.register_buffer("count", count, persistent=False)
        self.register_buffer("half_width", half_width, persistent=False)
        self.register_buffer("offset", offset, persistent=False)
        self.register_buffer("basis", basis, persistent=False)
        self.register_buffer("centre", -torch.atanh(offset / half_width))
        self.register_buffer("scale", torch.ones(dim))
        self.register_buffer("gain", 1.0 / (count // 2))
        self.register_buffer("bias", torch.zeros(dim))

    def _bounded(self, z: Tensor) -> Tensor:
        return self.half_width * torch.tanh((z - self.centre) / self.scale) - self.offset

    def _integers(self, z: Tensor) -> Tensor:
        q = self._bounded(z.detach().float()).round().long()
        return q.clamp(min=-(self.count // 2), max=(self.count - 1) // 2)

    def table(self) -> Tensor:
        return self.decode(torch.arange(self.codebook_size, device=self.basis.device))

    def encode(self, z: Tensor) -> Tensor:
        return ((self._integers(z) + self.count // 2) * self.basis).sum(-1)

    def decode(self, codes: Tensor) -> Tensor:
        q = codes.unsqueeze(-1) // self.basis % self.count - self.count // 2
        return self.gain * q + self.bias

    @torch.no_grad()
    def initialize(self, z: Tensor) -> None:
        z = z.float()
        mean = z.mean(0)
        self.centre.copy_(mean)
        # 1.25 standard deviations bring the thresholds of 4 to 8 levels near the Lloyd-Max ones of a Gaussian.
        self.scale.copy_(1.25 * z.std(0, correction=0).clamp(min=1e-6))
        q = self._integers(z).float()
        deviation = q - q.mean(0)
        power = deviation.square().mean(0)
        slope = (deviation * (z - mean)).mean(0) / power.clamp(min=1e-12)
        self.gain.copy_(torch.where(power > 0, slope, self.gain))
        self.bias.copy_(mean - self.gain * q.mean(0))
        broadcast_(self.centre, self.scale, self.gain, self.bias)

    def quantize(self, z: Tensor) -> Quantized:
        codes = self.encode(z)
        return Quantized(self.decode(codes), codes, z.new_zeros(()), z.new_zeros(()))

    def estimate(self, z: Tensor, z_q: Tensor) -> Tensor:
        # Only the rounding is bridged: the gradient goes through tanh.
        return super().estimate(self.gain * self._bounded(z) + self.bias, z_q)

    def _check(self, levels: tuple[int, ...]) -> tuple[int, ...]:
        given = f"dim={self.dim}, codebook_size={self.codebook_size}, levels={list(levels)}"
        if len(levels) != self.dim or math.prod(levels) != self.codebook_size:
            raise ConfigError(
                f"FSQ needs one number of levels per dimension, with the codebook size as their product; got {given}. "
                "For example dim=5, codebook_size=1024, levels=[4, 4, 4, 4, 4]."
            )
        if min(levels) < 3:
            # By the formula the only threshold of two levels lies at z = -3.8: a constant in practice.
            raise ConfigError(f"FSQ needs at least 3 levels in each dimension; got {given}.")
        return levels
