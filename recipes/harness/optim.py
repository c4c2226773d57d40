"""Parameter groups and learning-rate schedules."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; vectors (norms, biases), position biases and codebooks do not."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim >= 2 and "quantizers" not in name and not name.endswith("attention.bias")
        (decayed if is_matrix else plain).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def warmup_stable_decay(optimizer: Optimizer, warmup: int, total: int, decay: int) -> LambdaLR:
    """Linear warm-up, a constant rate, linear decay to 0 over the last `decay` of `total` steps.

    A constant middle can be prolonged by resuming with a larger total, which a cosine cannot.
    """

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / max(1, warmup), max(0.0, (total - step) / max(1, decay)))

    return LambdaLR(optimizer, factor)
