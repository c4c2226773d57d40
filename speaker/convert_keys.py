"""What all conversions of other projects' weights share: renaming modules, strictly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from engine.errors import CheckpointError

__all__ = ["fitting", "rename", "shape"]


def rename(
    state: Mapping[str, Tensor], modules: Mapping[str, str], unused: tuple[str, ...], origin: str
) -> dict[str, Tensor]:
    """Their tensors under our names: `modules` says what each of their modules is called here.

    Names that start with one of `unused` are left out; any other module that is not listed is a CheckpointError.
    """
    renamed, unknown = {}, []
    for name, tensor in state.items():
        module, _, parameter = name.rpartition(".")
        if module in modules:
            renamed[f"{modules[module]}.{parameter}"] = tensor
        elif not name.startswith(unused):
            unknown.append(name)
    if unknown:
        raise CheckpointError(f"the weights are not those of {origin} as it is known here: unknown {_listed(unknown)}")
    return renamed


def fitting(
    build: Callable[[], nn.Module], renamed: dict[str, Tensor], modules: Mapping[str, str], origin: str
) -> dict[str, Tensor]:
    """The complete state dict of the model that `build` makes, or a CheckpointError that names what does not fit.

    Counters of batches seen, which older files lack and inference does not use, become 0.
    """
    with torch.device("meta"):  # names and shapes alone
        expected = build().state_dict()
    theirs = {ours: name for name, ours in modules.items()}

    def original(name: str) -> str:
        module, _, parameter = name.rpartition(".")
        return f"{theirs.get(module, module)}.{parameter}"

    state = {n: torch.zeros((), dtype=torch.long) for n in expected if n.endswith("num_batches_tracked")} | renamed
    missing = [original(name) for name in expected if name not in state]
    extra = [original(name) for name in state if name not in expected]
    problems = [f"{_listed(missing)} missing"] if missing else []
    problems += [f"unknown {_listed(extra)}"] if extra else []
    problems += [
        f"{original(name)} is {tuple(state[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ][:3]
    if problems:
        raise CheckpointError(f"the weights are not those of {origin}: {'; '.join(problems)}")
    return {name: state[name] for name in expected}


def shape(state: Mapping[str, Tensor], name: str, origin: str) -> tuple[int, ...]:
    """The shape of a tensor that must be there."""
    if name not in state:
        raise CheckpointError(f"the weights are not those of {origin}: {name} is missing")
    return tuple(state[name].shape)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
