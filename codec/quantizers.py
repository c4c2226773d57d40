"""The quantizers of the codec: groups of codebooks behind linear projections.

`ProductQuantizer` is one level of the codec, `ResidualQuantizer` a stack of levels at one place. The single quantizers
that they are built of, one per group and level, are in `codebooks.py` and `finite_scalar.py`; QUANTIZERS names them.

Shapes: B batch, T frames, D vector dimension, G groups, L levels, d codebook dimension, K codebook entries.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from codec.codebooks import (
    GRADIENTS,
    AffineQuantizer,
    CosineQuantizer,
    EmaQuantizer,
    Quantized,
    Quantizer,
    SimVQQuantizer,
)
from codec.finite_scalar import FiniteScalarQuantizer
from engine.errors import ConfigError

__all__ = ["QUANTIZERS", "ProductQuantizer", "Quantized", "Quantizer", "ResidualQuantizer", "code_entropy"]

QUANTIZERS: dict[str, type[Quantizer]] = {
    "cosine": CosineQuantizer,
    "ema": EmaQuantizer,
    "simvq": SimVQQuantizer,
    "affine": AffineQuantizer,
    "fsq": FiniteScalarQuantizer,
}


class _Grouped(nn.Module):
    """The linear maps around G codebooks: D -> G x d and back, without bias.

    joint=False, published: D is cut into G contiguous parts (the last takes the rest), each with its own pair.
    joint=True: one Linear D -> G d and one G d -> D, started as an orthogonal pair (up is the transpose of down), so
    that the codec can start as a linear transform; rows g d .. (g + 1) d of `down.weight` belong to group g.
    """

    down: nn.Linear | nn.ModuleList
    up: nn.Linear | nn.ModuleList

    def __init__(
        self, dim: int, num_groups: int, codebook_dim: int, codebook_size: int, kind: str, joint: bool
    ) -> None:
        super().__init__()
        if kind not in QUANTIZERS:
            raise ConfigError(f"Unknown quantizer {kind!r}: choose one of {', '.join(QUANTIZERS)}.")
        if not 1 <= num_groups <= dim:
            raise ConfigError(f"Cannot cut a vector of dimension {dim} into {num_groups} groups.")
        self.dim, self.num_groups, self.joint = dim, num_groups, joint
        self.codebook_dim, self.codebook_size = codebook_dim, codebook_size
        part = dim // num_groups
        self.part_dims = [part] * (num_groups - 1) + [dim - part * (num_groups - 1)]
        if joint:
            self.down = nn.Linear(dim, num_groups * codebook_dim, bias=False)
            self.up = nn.Linear(num_groups * codebook_dim, dim, bias=False)
            nn.init.orthogonal_(self.down.weight)
            self.up.weight.data.copy_(self.down.weight.data.t())
        else:
            self.down = nn.ModuleList(nn.Linear(width, codebook_dim, bias=False) for width in self.part_dims)
            self.up = nn.ModuleList(nn.Linear(codebook_dim, width, bias=False) for width in self.part_dims)

    def _project(self, x: Tensor) -> list[Tensor]:
        """x (B, T, D) -> G tensors (B, T, d)."""
        if isinstance(self.down, nn.Linear):
            return list(self.down(x).split(self.codebook_dim, dim=-1))
        return [down(part) for down, part in zip(self.down, x.split(self.part_dims, dim=-1), strict=True)]

    def _restore(self, parts: list[Tensor]) -> Tensor:
        """G tensors (B, T, d) -> (B, T, D)."""
        if isinstance(self.up, nn.Linear):
            return self.up(torch.cat(parts, dim=-1))
        return torch.cat([up(part) for up, part in zip(self.up, parts, strict=True)], dim=-1)


class ProductQuantizer(_Grouped):
    """One level of the codec: a vector, G parts, G codebooks side by side (Jegou et al. 2011; ESC section 3)."""

    def __init__(
        self,
        dim: int,
        num_groups: int,
        codebook_dim: int,
        codebook_size: int,
        kind: str = "cosine",
        joint: bool = False,
        **options: Any,
    ) -> None:
        """`options` go to the codebooks: `gradient`, and what QUANTIZERS[kind] takes besides."""
        super().__init__(dim, num_groups, codebook_dim, codebook_size, kind, joint)
        make = QUANTIZERS[kind]
        self.codebooks = nn.ModuleList(make(codebook_dim, codebook_size, **options) for _ in range(num_groups))

    def forward(self, x: Tensor, bypass: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x (B, T, D) -> x_q (B, T, D), codes (B, G, T) int64, commitment and codebook loss (means over groups).

        bypass=True passes through the projections only: losses are 0 and all codes -1, "not quantized".
        """
        parts = self._project(x)
        if bypass:
            zero = x.new_zeros(())
            return self._restore(parts), _no_codes(x, self.num_groups), zero, zero
        results = [book(part.flatten(0, 1)) for book, part in zip(self._books(), parts, strict=True)]
        z_q = [result.z_q.view_as(part) for result, part in zip(results, parts, strict=True)]
        codes = torch.stack([result.codes.view(part.shape[:2]) for result, part in zip(results, parts, strict=True)], 1)
        commitment_loss = torch.stack([result.commitment_loss for result in results]).mean()
        codebook_loss = torch.stack([result.codebook_loss for result in results]).mean()
        return self._restore(z_q), codes, commitment_loss, codebook_loss

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, T, D) -> codes (B, G, T) int64 and x_q (B, T, D), equal to `decode(codes)`."""
        parts = self._project(x)
        codes = [
            book.encode(part.flatten(0, 1)).view(part.shape[:2])
            for book, part in zip(self._books(), parts, strict=True)
        ]
        stacked = torch.stack(codes, dim=1)
        return stacked, self.decode(stacked)

    def decode(self, codes: Tensor) -> Tensor:
        """codes (B, G, T) -> x_q (B, T, D)."""
        return self._restore([book.decode(code) for book, code in zip(self._books(), codes.unbind(1), strict=True)])

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Start every codebook from data, x (B, T, D): the more vectors the better."""
        for book, part in zip(self._books(), self._project(x), strict=True):
            book.initialize(part.flatten(0, 1))

    def _books(self) -> list[Quantizer]:
        return cast(list[Quantizer], list(self.codebooks))


class ResidualQuantizer(_Grouped):
    """All levels at one place: the codebooks of level l quantize what levels 0 .. l - 1 left over.

    The residual-quantization ablation of ESC: one down and one up projection per group serve all levels. Differs from
    it where its gradient breaks: each residual is taken against a detached z_q, so that every level's commitment
    loss reaches the encoder, and the gradient estimator spans the sum once, not each level.
    """

    def __init__(
        self,
        dim: int,
        num_levels: int,
        num_groups: int,
        codebook_dim: int,
        codebook_size: int,
        kind: str = "cosine",
        joint: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(dim, num_groups, codebook_dim, codebook_size, kind, joint)
        self.num_levels = num_levels
        make = QUANTIZERS[kind]
        self.codebooks = nn.ModuleList(
            nn.ModuleList(make(codebook_dim, codebook_size, **options) for _ in range(num_groups))
            for _ in range(num_levels)
        )

    def forward(
        self, x: Tensor, levels: int | None = None, bypass: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x (B, T, D) -> x_q (B, T, D), codes (B, L, G, T), losses summed over levels, averaged over groups.

        In training all levels run (their parameters and statistics need it) and return codes, but only the first
        `levels` count; in evaluation the others are skipped and L is `levels`. `bypass` as in ProductQuantizer.
        """
        levels = self._levels(levels)
        parts = self._project(x)
        if bypass:
            zero = x.new_zeros(())
            return self._restore(parts), _no_codes(x, self.num_levels, self.num_groups), zero, zero
        groups = [self._residual(group, part, levels) for group, part in enumerate(parts)]
        z_q, codes, commitment_losses, codebook_losses = zip(*groups, strict=True)
        losses = torch.stack(commitment_losses).mean(), torch.stack(codebook_losses).mean()
        return self._restore(list(z_q)), torch.stack(codes, dim=2), *losses

    def _residual(self, group: int, part: Tensor, levels: int) -> Quantized:
        """part (B, T, d) -> z_q (B, T, d), codes (B, L, T), losses summed over levels."""
        z = part.flatten(0, 1).float()
        total, residual = torch.zeros_like(z), z
        codes, losses = [], []
        for level in range(self.num_levels if self.training else levels):
            result = self._book(level, group).quantize(residual)
            used = float(level < levels)
            total = total + used * result.z_q
            losses.append(used * torch.stack([result.commitment_loss, result.codebook_loss]))
            codes.append(result.codes.view(part.shape[:2]))
            residual = residual - result.z_q.detach()
        estimate = GRADIENTS[self._book(0, group).gradient]
        commitment_loss, codebook_loss = torch.stack(losses).sum(0)
        return Quantized(estimate(z, total).view_as(part), torch.stack(codes, 1), commitment_loss, codebook_loss)

    def encode(self, x: Tensor, levels: int | None = None) -> tuple[Tensor, Tensor]:
        """x (B, T, D) -> codes (B, levels, G, T) int64 and x_q (B, T, D), equal to `decode(codes)`."""
        residuals = [part.flatten(0, 1) for part in self._project(x)]
        codes = []
        for level in range(self._levels(levels)):
            for group, residual in enumerate(residuals):
                book = self._book(level, group)
                codes.append(book.encode(residual))
                residuals[group] = residual - book.decode(codes[-1])
        stacked = torch.stack(codes).view(-1, self.num_groups, *x.shape[:2]).permute(2, 0, 1, 3)
        return stacked, self.decode(stacked)

    def decode(self, codes: Tensor) -> Tensor:
        """codes (B, L, G, T), the first L levels -> x_q (B, T, D)."""
        levels = range(self._levels(codes.shape[1]))
        parts = []
        for group in range(self.num_groups):
            total = torch.zeros((), device=codes.device)
            for level in levels:
                total = total + self._book(level, group).decode(codes[:, level, group])
            parts.append(total)
        return self._restore(parts)

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Start every codebook from data, x (B, T, D), each level on the residual of those before."""
        for group, part in enumerate(self._project(x)):
            residual = part.flatten(0, 1).float()
            for level in range(self.num_levels):
                book = self._book(level, group)
                book.initialize(residual)
                residual = residual - book.decode(book.encode(residual))

    def _book(self, level: int, group: int) -> Quantizer:
        return cast(Quantizer, cast(nn.ModuleList, self.codebooks[level])[group])

    def _levels(self, levels: int | None) -> int:
        levels = self.num_levels if levels is None else levels
        if not 1 <= levels <= self.num_levels:
            raise ConfigError(f"levels must be 1 .. {self.num_levels}, got {levels}.")
        return levels


def _no_codes(x: Tensor, *books: int) -> Tensor:
    return torch.full((x.shape[0], *books, x.shape[1]), -1, dtype=torch.int64, device=x.device)


def code_entropy(codes: Tensor, codebook_size: int) -> Tensor:
    """Return the usage entropy of each codebook in bits, at most log2(codebook_size).

    codes (B, ..., T) -> (...): one number per codebook over batch and time, (B, G, T) -> (G,), (B, L, G, T) -> (L, G).
    Negative codes ("not quantized") are left out.
    """
    books = codes.movedim(0, -1).flatten(-2)
    counts = torch.stack([torch.bincount(book[book >= 0], minlength=codebook_size) for book in books.flatten(0, -2)])
    shares = counts.double() / counts.sum(1, keepdim=True).clamp(min=1)
    return -torch.special.xlogy(shares, shares).sum(1).div(math.log(2)).view(books.shape[:-1]).float()
