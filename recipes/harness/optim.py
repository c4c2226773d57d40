"""Parameter groups, learning-rate schedules, and an optimizer that orthogonalizes the steps of matrices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from engine.errors import ConfigError
from recipes.recipe import Recipe


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; vectors (norms, biases), position biases and codebooks do not."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_matrix = (
            parameter.ndim >= 2 and "quantizers" not in name and not name.endswith(("attention.bias", "position_bias"))
        )
        (decayed if is_matrix else plain).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def orthogonal_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The groups of `decay_groups`, with the matrices marked for orthogonalized steps.

    Kernels of convolutions are matrices too, outputs by all the rest. Class vectors of a classifier are not one map but
    many directions, and grouped kernels are many small filters: those stay with AdamW.
    """
    decayed, plain = decay_groups(model, weight_decay)
    classes = {id(p) for name, p in model.named_parameters() if "classifiers" in name}
    convolutions = (module for module in model.modules() if isinstance(module, nn.Conv1d | nn.Conv2d))
    kernels = {id(module.weight) for module in convolutions if module.groups == 1}
    chosen = [id(p) in kernels or (p.ndim == 2 and id(p) not in classes) for p in decayed["params"]]
    matrices = [p for p, is_chosen in zip(decayed["params"], chosen, strict=True) if is_chosen]
    others = [p for p, is_chosen in zip(decayed["params"], chosen, strict=True) if not is_chosen]
    return [
        {"params": matrices, "weight_decay": weight_decay, "orthogonal": True},
        {"params": others, "weight_decay": weight_decay},
        plain,
    ]


def orthogonalized(matrices: Tensor, iterations: int = 5) -> Tensor:
    """(M, R, C) -> the same with all singular values near 1: the orthogonal factor of the polar decomposition.

    Newton-Schulz with the quintic of Jordan et al. (2024, "Muon"): x <- a x + (b s + c s s) x, s = x x'. Its
    coefficients trade accuracy for speed, singular values end between 0.7 and 1.2. bfloat16 does.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    for _ in range(iterations):
        s = x @ x.mT
        x = a * x + (b * s + c * s @ s) @ x
    return (x.mT if tall else x).to(matrices.dtype).contiguous()  # a broadcast sends memory as it lies


class Muon(AdamW):
    """Orthogonalized Nesterov momentum for the groups marked `orthogonal`, AdamW for the others (Jordan et al. 2024).

    One optimizer, so that one schedule and one checkpoint serve both. Steps are scaled by 0.2 sqrt(max(R, C)), the
    root mean square of an AdamW step (Liu et al. 2025), so that learning rate and weight decay mean the same for all.
    Matrices of one shape are handled together. torch.optim.Muon takes matrices only and one at a time.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], momentum: float = 0.95, **options: Any) -> None:
        super().__init__(list(groups), **options)
        for group in self.param_groups:
            group.setdefault("orthogonal", False)
        self.momentum = momentum

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state; ConfigError where other parameters had orthogonalized steps."""
        sizes, own = ([len(group["params"]) for group in groups] for groups in
                      (state_dict["param_groups"], self.param_groups))  # fmt: skip
        if sizes != own:
            raise ConfigError(f"the run's optimizer had {sizes} parameters in its groups, here are {own}: it cannot "
                              "be resumed by this version; begin a run with --init and its export")  # fmt: skip
        super().load_state_dict(state_dict)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; with a `closure`, that computes the loss first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        marked = [group for group in self.param_groups if group["orthogonal"]]
        for group in marked:
            self._orthogonal_step(group)
        everything = self.param_groups
        self.param_groups = [group for group in everything if not group["orthogonal"]]
        try:
            super().step()
        finally:
            self.param_groups = everything
        return loss

    def _orthogonal_step(self, group: dict[str, Any]) -> None:
        found: dict[torch.Size, Tensor] = {}
        by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                by_shape.setdefault(parameter.flatten(1).shape, []).append((parameter, parameter.grad))
        # Processes that share a batch have the same gradients, so each does a part and sends it to the others.
        shared = distributed.is_available() and distributed.is_initialized()
        ranks, rank = (distributed.get_world_size(), distributed.get_rank()) if shared else (1, 0)
        load, owner = [0] * ranks, {}
        for shape, pairs in sorted(by_shape.items(), key=lambda item: -_cost(*item)):
            owner[shape] = load.index(min(load))
            load[owner[shape]] += _cost(shape, pairs)
            updates = []
            for parameter, gradient in pairs:
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros(())  # the parent looks for it when a state is loaded
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(gradient, 1 - self.momentum)
                updates.append(gradient.lerp(state["momentum"], self.momentum))  # Nesterov
            flat = torch.stack([update.flatten(1) for update in updates])
            found[shape] = orthogonalized(flat) if owner[shape] == rank else torch.empty_like(flat)
        for shape, steps in found.items():
            if ranks > 1:
                distributed.broadcast(steps, owner[shape])
            steps *= 0.2 * math.sqrt(max(shape))
            for (parameter, _), step in zip(by_shape[shape], steps, strict=True):
                decayed = parameter.mul_(1 - group["lr"] * group["weight_decay"])
                decayed.add_(step.view_as(parameter), alpha=-group["lr"])


def _cost(shape: torch.Size, matrices: Sequence[Any]) -> int:
    """What orthogonalizing so many matrices of a shape takes, in no particular unit."""
    return len(matrices) * min(shape) * math.prod(shape)


def make_optimizer(model: nn.Module, recipe: Recipe) -> Optimizer:
    """Return the recipe's optimizer over the model's parameters."""
    options: dict[str, Any] = {"lr": recipe.learning_rate, "betas": recipe.betas}
    if recipe.optimizer == "adamw":
        return AdamW(decay_groups(model, recipe.weight_decay), **options)
    if recipe.optimizer == "muon":
        return Muon(orthogonal_groups(model, recipe.weight_decay), **options)
    raise ConfigError(f"no optimizer {recipe.optimizer!r}; there are adamw and muon")


def warmup_stable_decay(optimizer: Optimizer, warmup: int, total: int, decay: int) -> LambdaLR:
    """Linear warm-up, a constant rate, linear decay to 0 over the last `decay` of `total` steps.

    A constant middle can be prolonged by resuming with a larger total, which a cosine cannot.
    """

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / max(1, warmup), max(0.0, (total - step) / max(1, decay)))

    return LambdaLR(optimizer, factor)


def warmup_cosine(optimizer: Optimizer, warmup: int, total: int) -> LambdaLR:
    """Linear warm-up, then half a cosine down to 0 (Loshchilov and Hutter 2017, without restarts)."""

    def factor(step: int) -> float:
        through = min(1.0, max(0, step - warmup) / max(1, total - warmup))
        return min(1.0, (step + 1) / max(1, warmup)) * 0.5 * (1 + math.cos(math.pi * through))

    return LambdaLR(optimizer, factor)


def cyclic(optimizer: Optimizer, period: int) -> LambdaLR:
    """Triangles of `period` steps, each half as high as the one before (Smith 2017, "triangular2")."""

    def factor(step: int) -> float:
        cycle, place = divmod(step, period)
        return 0.5**cycle * max(1e-4, 1 - abs(2 * place / period - 1))

    return LambdaLR(optimizer, factor)
