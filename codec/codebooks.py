"""Learned codebooks: vectors to integer codes and back, with a gradient.

`Quantizer` is the protocol, and one class follows for each way to learn a codebook.
Losses are plain mean squared errors; whoever trains weighs them (published: 0.25 commitment, 1.0 codebook).

Shapes: M vectors, d codebook dimension, K codebook entries.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.vectors import (
    Prepared,
    all_reduce_,
    broadcast_,
    kmeans,
    nearest,
    prepare,
    rotate,
    search,
    statistics,
    straight_through,
)
from engine.derived import Derived
from engine.errors import ConfigError

Gradient = Literal["straight_through", "rotation"]
GRADIENTS = {"straight_through": straight_through, "rotation": rotate}


class Quantized(NamedTuple):
    """z_q (M, d), codes (M,) int64 and two scalar losses."""

    z_q: Tensor
    codes: Tensor
    commitment_loss: Tensor
    codebook_loss: Tensor


class Quantizer(nn.Module, ABC):
    """One codebook of K entries over vectors of dimension d.

    A new kind defines `table` and, if it differs, how it searches (`encode`), learns (`quantize`) and starts
    (`initialize`), and gets one line in `quantizers.QUANTIZERS`.
    """

    def __init__(self, dim: int, codebook_size: int, *, gradient: Gradient = "straight_through") -> None:
        super().__init__()
        if gradient not in GRADIENTS:
            raise ConfigError(f"Unknown gradient {gradient!r}: choose one of {', '.join(GRADIENTS)}.")
        if dim < 1 or codebook_size < 2:
            raise ConfigError(f"A codebook needs dim >= 1 and codebook_size >= 2, got {dim} and {codebook_size}.")
        self.dim, self.codebook_size, self.gradient = dim, codebook_size, gradient
        self._prepared: Derived[Prepared] = Derived()

    @abstractmethod
    def table(self) -> Tensor:
        """Return the entries as they are decoded, (K, d)."""

    def encode(self, z: Tensor) -> Tensor:
        """z (M, d) -> codes (M,) int64: the nearest entry, the lowest index on ties."""
        table = self.table()
        if self.training:
            return nearest(z, table)
        with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
            return search(z, self._prepared.get(table, lambda: prepare(table)))

    def decode(self, codes: Tensor) -> Tensor:
        """codes (...) -> entries (..., d)."""
        return F.embedding(codes, self.table())

    @torch.no_grad()
    def initialize(self, z: Tensor) -> None:
        """Start from data: z (M, d), the more the better (some 10 K vectors or more)."""

    def quantize(self, z: Tensor) -> Quantized:
        """Like `forward`, but z_q carries no gradient to z: the bare entries, for `estimate` to complete."""
        codes = self.encode(z)
        z_q = self.decode(codes)
        return Quantized(z_q.detach(), codes, F.mse_loss(z, z_q.detach()), F.mse_loss(z_q, z.detach()))

    def estimate(self, z: Tensor, z_q: Tensor) -> Tensor:
        """Return z_q, to the last bit, with a gradient to z."""
        return GRADIENTS[self.gradient](z, z_q)

    def forward(self, z: Tensor) -> Quantized:
        """z (M, d) -> z_q (M, d) with a gradient to z, codes (M,), commitment and codebook loss."""
        z = z.float()
        quantized = self.quantize(z)
        return quantized._replace(z_q=self.estimate(z, quantized.z_q))


class CosineQuantizer(Quantizer):
    """The published codebook of ESC and DAC (Kumar et al. 2023): found by angle, learned by gradient.

    Direction decides the code; value and losses keep the entry's own length.
    """

    def __init__(self, dim: int, codebook_size: int, *, gradient: Gradient = "straight_through") -> None:
        super().__init__(dim, codebook_size, gradient=gradient)
        self.embedding = nn.Embedding(codebook_size, dim)
        nn.init.kaiming_normal_(self.embedding.weight)

    def table(self) -> Tensor:
        return self.embedding.weight

    def encode(self, z: Tensor) -> Tensor:
        # The length of z scales all products alike, so only the entries need normalizing.
        directions = F.normalize(self.table().detach(), dim=-1)
        return nearest(z, directions, offset=directions.new_zeros(self.codebook_size))

    @torch.no_grad()
    def initialize(self, z: Tensor) -> None:
        # Cluster directions, as the search does; then each entry is the mean of the vectors that will choose it.
        directions, _ = kmeans(F.normalize(z.float(), dim=-1), self.codebook_size)
        directions = F.normalize(directions, dim=-1)
        codes = nearest(z, directions, offset=directions.new_zeros(self.codebook_size))
        counts, sums = statistics(z.detach().float(), codes, self.codebook_size)
        means = sums / counts.clamp(min=1)[:, None]
        typical = z.norm(dim=-1).mean()
        self.embedding.weight.copy_(torch.where(counts[:, None] > 0, means, directions * typical))
        broadcast_(self.embedding.weight)


class EmaQuantizer(Quantizer):
    """Entries that are moving averages of their vectors (van den Oord et al. 2017, appendix A.1), never dying.

    Starts by k-means on the first training batch (or on what `initialize` is given). Counts are in units of the
    uniform share: an entry chosen M/K times per batch of M has usage 1, so batches of any size weigh the same.
    An entry whose usage falls below `restart_below` becomes a random vector of the current batch, and both of its
    sums start over with `restart_usage`; restarting the entry alone (EnCodec) lets the old sum drag it back.

    In distributed training every rank must run every quantizer in every step: the statistics are summed over ranks
    and the k-means start and restarts are drawn on rank 0.
    """

    embedding: Tensor
    usage: Tensor
    embedding_sum: Tensor
    initialized: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        gradient: Gradient = "straight_through",
        decay: float = 0.99,
        epsilon: float = 1e-5,
        restart_below: float = 0.1,
        restart_usage: float = 1.0,
    ) -> None:
        super().__init__(dim, codebook_size, gradient=gradient)
        if not 0 <= decay < 1 or not 0 <= restart_below < restart_usage:
            raise ConfigError(
                f"Need 0 <= decay < 1 and 0 <= restart_below < restart_usage, "
                f"got {decay}, {restart_below} and {restart_usage}."
            )
        self.decay, self.epsilon = decay, epsilon
        self.restart_below, self.restart_usage = restart_below, restart_usage
        embedding = torch.randn(codebook_size, dim)
        self.register_buffer("embedding", embedding)
        self.register_buffer("usage", torch.ones(codebook_size))
        self.register_buffer("embedding_sum", embedding.clone())
        self.register_buffer("initialized", torch.tensor(False))

    def table(self) -> Tensor:
        return self.embedding

    @torch.no_grad()
    def initialize(self, z: Tensor) -> None:
        centres, counts = kmeans(z, self.codebook_size)
        usage = counts * (self.codebook_size / counts.sum())
        # A rare cluster is still worth an entry: let it live until training says otherwise.
        usage.clamp_(min=2 * self.restart_below)
        self.embedding.copy_(centres)
        self.usage.copy_(usage)
        self.embedding_sum.copy_(centres * usage[:, None])
        self.initialized.fill_(True)
        broadcast_(self.embedding, self.usage, self.embedding_sum)

    def quantize(self, z: Tensor) -> Quantized:
        if self.training and not self.initialized:
            self.initialize(z)
        codes = self.encode(z)
        z_q = self.decode(codes)
        if self.training:
            self._update(z.detach(), codes)
        return Quantized(z_q, codes, F.mse_loss(z, z_q), z.new_zeros(()))

    @torch.no_grad()
    def _update(self, z: Tensor, codes: Tensor) -> None:
        counts, sums = statistics(z, codes, self.codebook_size)
        all_reduce_(counts, sums)
        share = self.codebook_size / counts.sum()
        self.usage.lerp_(counts * share, 1 - self.decay)
        self.embedding_sum.lerp_(sums * share, 1 - self.decay)
        self._restart(z)
        # Laplace smoothing: no division by zero, total usage kept.
        total = self.usage.sum()
        smooth = (self.usage + self.epsilon) / (total + self.codebook_size * self.epsilon) * total
        self.embedding.copy_(self.embedding_sum / smooth[:, None])

    def _restart(self, z: Tensor) -> None:
        dead = self.usage < self.restart_below
        num_dead = int(dead.sum())
        if not num_dead:
            return
        # Distinct vectors while they last; a second copy loses every tie and restarts later.
        order = torch.randperm(len(z), device=z.device)
        replacement = z[order.repeat(-(-num_dead // len(z)))[:num_dead]]
        broadcast_(replacement)
        self.usage[dead] = self.restart_usage
        self.embedding_sum[dead] = replacement * self.restart_usage


class SimVQQuantizer(Quantizer):
    """A frozen Gaussian codebook seen through one learned linear map (Zhu et al. 2024, "SimVQ").

    Every step moves all entries at once, so none dies. Differs from the paper in that the map starts as the identity,
    and `initialize` gives the entries the mean and covariance of the data.
    """

    frozen: Tensor

    def __init__(self, dim: int, codebook_size: int, *, gradient: Gradient = "straight_through") -> None:
        super().__init__(dim, codebook_size, gradient=gradient)
        self.register_buffer("frozen", torch.randn(codebook_size, dim) * dim**-0.5)
        self.map = nn.Linear(dim, dim)
        nn.init.eye_(self.map.weight)
        nn.init.zeros_(self.map.bias)

    def table(self) -> Tensor:
        return self.map(self.frozen)

    @torch.no_grad()
    def initialize(self, z: Tensor) -> None:
        z = z.float()
        mean = z.mean(0)
        values, vectors = torch.linalg.eigh((z - mean).t() @ (z - mean) / len(z))
        # Frozen entries have covariance I / d, so the map is sqrt(d) times the symmetric root of the data's.
        root = vectors * values.clamp(min=0).sqrt() @ vectors.t()
        self.map.weight.copy_(math.sqrt(self.dim) * root)
        self.map.bias.copy_(mean)
        broadcast_(self.map.weight, self.map.bias)


class AffineQuantizer(Quantizer):
    """Gradient codebook with a shared affine map and synchronized commitment (Huh et al. 2023).

    c = (1 + a s) e + a b moves all entries with the data's scale s and bias b (d,), learned `affine_rate` a times
    faster than they would be alone. The task's gradient reaches the codebook too, `nu` times:
    z_q = z + sg(z_q - z) + nu (z_q - sg z_q), sg being "stop gradient".
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        gradient: Gradient = "straight_through",
        affine_rate: float = 10.0,
        nu: float = 0.2,
    ) -> None:
        super().__init__(dim, codebook_size, gradient=gradient)
        self.affine_rate, self.nu = affine_rate, nu
        self.embedding = nn.Embedding(codebook_size, dim)
        nn.init.kaiming_normal_(self.embedding.weight)
        self.scale = nn.Parameter(torch.zeros(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def table(self) -> Tensor:
        return (1 + self.affine_rate * self.scale) * self.embedding.weight + self.affine_rate * self.bias

    @torch.no_grad()
    def initialize(self, z: Tensor) -> None:
        self.embedding.weight.copy_(kmeans(z, self.codebook_size)[0])
        self.scale.zero_()
        self.bias.zero_()
        broadcast_(self.embedding.weight)

    def quantize(self, z: Tensor) -> Quantized:
        codes = self.encode(z)
        z_q = self.decode(codes)
        losses = F.mse_loss(z, z_q.detach()), F.mse_loss(z_q, z.detach())
        return Quantized(z_q.detach() + self.nu * (z_q - z_q.detach()), codes, *losses)
