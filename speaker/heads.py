"""What a speaker encoder is trained against: classifiers with a margin, and a teacher's embeddings.

Needed while training only; an encoder is used without.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.errors import ConfigError


class MarginClassifier(nn.Module):
    """Additive angular margin softmax (Deng et al. 2019) with sub-centres (Deng et al. 2020) and inter-top-k penalty.

    The logit of class c is scale cos(angle to c's nearest sub-centre); of the right class scale cos(angle + margin).
    With `top_k` the cosines of the k nearest wrong classes are raised by `top_k_penalty` (Zhao et al. 2021).
    With `fixed` the class vectors are not learned: an equiangular frame, all of them equally far from each other
    where there are dimensions enough, else the rows of a random orthogonal basis and its like (Papyan et al. 2020).
    """

    def __init__(
        self, dim: int, num_classes: int, *, scale: float = 32.0, sub_centres: int = 1, top_k: int = 0,
        top_k_penalty: float = 0.06, fixed: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        if num_classes < 2:
            raise ConfigError(f"a classifier needs two speakers or more, not {num_classes}")
        if sub_centres < 1 or top_k < 0 or top_k >= num_classes:
            raise ConfigError(f"sub_centres {sub_centres} must be 1 or more, top_k {top_k} below {num_classes} classes")
        if fixed and sub_centres > 1:
            raise ConfigError("a fixed classifier has one centre a class")
        self.num_classes, self.scale, self.sub_centres = num_classes, scale, sub_centres
        self.top_k, self.top_k_penalty = top_k, top_k_penalty
        centres = equiangular(num_classes, dim) if fixed else torch.randn(num_classes * sub_centres, dim)
        self.weight = nn.Parameter(F.normalize(centres), requires_grad=not fixed)

    @torch.no_grad()
    def start_from(self, centres: Tensor) -> None:
        """Take (C, D) directions as first class vectors, sub-centres a little apart; no effect where they are fixed."""
        if self.weight.requires_grad:
            apart = 0.1 * F.normalize(torch.randn_like(self.weight)) if self.sub_centres > 1 else 0.0
            self.weight.copy_(F.normalize(F.normalize(centres).repeat_interleave(self.sub_centres, 0) + apart))

    def cosines(self, embeddings: Tensor) -> Tensor:
        """(B, D) -> (B, C): cosine to the nearest sub-centre of each class."""
        every = F.linear(F.normalize(embeddings), F.normalize(self.weight))
        return every.unflatten(1, (self.num_classes, self.sub_centres)).amax(2)

    def forward(self, embeddings: Tensor, labels: Tensor, margin: float) -> Tensor:
        """(B, D), (B,) -> mean cross-entropy; nan-free for an empty batch (0)."""
        if not len(labels):
            return embeddings.sum() * 0
        cosines = self.cosines(embeddings.float())
        right = cosines.gather(1, labels[:, None])
        sine = (1 - right.square()).clamp_min(1e-9).sqrt()
        shifted = right * math.cos(margin) - sine * math.sin(margin)
        # Beyond pi the cosine would rise again: there a straight line goes on.
        shifted = torch.where(right > -math.cos(margin), shifted, right - margin * math.sin(margin))
        if self.top_k:
            wrong = cosines.scatter(1, labels[:, None], -2.0)
            nearest = wrong.topk(self.top_k, dim=1).indices
            cosines = cosines.scatter_add(1, nearest, torch.full_like(nearest, self.top_k_penalty, dtype=cosines.dtype))
        return F.cross_entropy(self.scale * cosines.scatter(1, labels[:, None], shifted), labels)


def equiangular(num: int, dim: int) -> Tensor:
    """(num, dim) unit vectors as far apart as can be had without a search; the same at every call.

    Up to dim + 1 of them form a simplex: all angles equal, cosine -1 / (num - 1). More of them are rows of several
    random orthogonal bases: orthogonal within one, at random angles between two.
    """
    rng = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(dim, dim, generator=rng)).Q
    if num <= dim:
        simplex = torch.eye(num) - 1 / num
        return F.normalize(simplex @ basis[:num])
    if num == dim + 1:  # in the space that is orthogonal to the vector of ones
        frame = torch.linalg.qr(torch.cat([torch.ones(num, 1), torch.eye(num)[:, :dim]], dim=1)).Q[:, 1:]
        return F.normalize(frame @ basis)
    bases = [torch.linalg.qr(torch.randn(dim, dim, generator=rng)).Q for _ in range(-(-num // dim))]
    return torch.cat(bases)[:num]


def imitation_loss(embeddings: Tensor, targets: Tensor) -> Tensor:
    """(B, D), (B, D) -> mean of 1 - cosine to the teacher's embedding of the same speech."""
    return (1 - F.cosine_similarity(embeddings.float(), targets)).mean()


def contrast_loss(embeddings: Tensor, targets: Tensor, others: Tensor, *, scale: float, alike: float) -> Tensor:
    """(B, D), (B, D), (K, D), all but the first of unit length -> cross entropy of telling each target from the others.

    By cosine times `scale` (van den Oord et al. 2018, the keys being a teacher's). The error that is left in an
    embedding is pushed to where it takes it to nobody else's; `others` may be more than a batch has. Those whose cosine
    with the target is above `alike` may be the same voice and are left out.
    """
    own = F.normalize(embeddings.float())
    right = (own * targets).sum(1, keepdim=True)
    wrong = (own @ others.mT).masked_fill(targets @ others.mT > alike, -torch.inf)
    first = torch.zeros(len(own), dtype=torch.long, device=own.device)
    return F.cross_entropy(scale * torch.cat([right, wrong], 1), first)


def relation_loss(embeddings: Tensor, targets: Tensor) -> Tensor:
    """(B, D), (B, E) -> mean squared difference of all cosines between two of a batch (Park et al. 2019).

    Unlike the imitation of single embeddings it counts what verification is about: how near two of them are.
    """
    if len(embeddings) < 2:
        return embeddings.sum() * 0
    own, other = F.normalize(embeddings.float()), F.normalize(targets)
    difference = own @ own.mT - other @ other.mT
    num = len(embeddings)
    return difference.square().sum() / (num * (num - 1))  # the diagonal is 0
