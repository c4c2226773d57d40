"""Streaming as an argument: one forward for whole signals and for live chunks.

A `StreamingModule` is causal in time. `forward(x, state)` consumes a chunk and updates `state` in place;
`state=None` means "the whole signal, after silence", so offline is one big chunk and nothing else. A state is a
dataclass of tensors and child states, one per live session (or one per batch of sessions: `reset` clears rows).
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn


@dataclass
class State:
    """Base of all states: a tree whose leaves are tensors with the batch in the first dimension."""

    def tensors(self) -> Iterator[Tensor]:
        """Yield every tensor of the tree, in a fixed order."""
        for field in fields(self):
            yield from _leaves(getattr(self, field.name))

    def reset(self, rows: Sequence[int] | Tensor | None = None) -> None:
        """Return the given batch rows (default: all) to silence, in place; other sessions are not touched."""
        for tensor in self.tensors():
            if rows is None:
                tensor.zero_()
            else:
                tensor[torch.as_tensor(rows, device=tensor.device)] = 0


def _leaves(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, State):
        yield from value.tensors()
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item)


@dataclass
class StateList(State):
    """The states of the children of a sequence, in their order."""

    children: list[State]


@dataclass
class PastState(State):
    """The last `past.shape[1]` time steps of a signal, (B, T_past, ...); zeros are silence."""

    past: Tensor

    def extend(self, x: Tensor) -> Tensor:
        """(B, T, ...) -> (B, T_past + T, ...): put the past in front of `x` and remember its end.

        The past is replaced, not copied into: during training the old one may still be part of a graph.
        """
        joined = torch.cat([self.past, x], dim=1)
        self.past = joined[:, joined.shape[1] - self.past.shape[1] :].detach().clone()
        return joined


S = TypeVar("S", bound=State)


class StreamingModule(nn.Module, ABC, Generic[S]):
    """A causal module with an explicit state. Children implement `initial_state` and `forward(x, state)`."""

    @abstractmethod
    def initial_state(self, batch_size: int) -> S:
        """Return the state of `batch_size` sessions after silence."""

    def _zeros(self, *shape: int) -> Tensor:
        """Zeros with the device and type of this module's parameters or buffers."""
        for like in itertools.chain(self.parameters(), self.buffers()):
            return like.new_zeros(shape)
        return torch.zeros(shape)
