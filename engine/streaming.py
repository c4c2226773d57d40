"""Streaming as an argument: one forward for whole signals and for live chunks.

A `StreamingModule` is causal in time. `forward(x, state)` consumes a chunk and updates `state` in place;
`state=None` means "the whole signal, after silence", so offline is one big chunk and nothing else. A state is a
dataclass of tensors and child states, one per live session (or one per batch of sessions: `reset` clears rows).
"""

from __future__ import annotations

import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Generic, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from engine.errors import CheckpointError

Rows = Sequence[int] | Tensor
S = TypeVar("S", bound="State")


@dataclass
class State:
    """Base of all states: a tree whose leaves are tensors with the batch in the first dimension."""

    @property
    def batch_size(self) -> int:
        """Sessions in this state."""
        return len(next(self.tensors()))

    def tensors(self) -> Iterator[Tensor]:
        """Yield every tensor of the tree, in a fixed order."""
        for field in fields(self):
            yield from _leaves(getattr(self, field.name))

    @torch.inference_mode()  # states that were filled in this mode may be changed in no other
    def reset(self, rows: Rows | None = None) -> None:
        """Return the given batch rows (default: all) to silence, in place; other sessions are not touched."""
        for tensor in self.tensors():
            if rows is None:
                tensor.zero_()
            else:
                tensor[torch.as_tensor(rows, device=tensor.device)] = 0

    def take(self: S, rows: Rows) -> S:
        """Copy the given batch rows into a state of their own."""
        return rebuilt(self, iter([t[torch.as_tensor(rows, device=t.device)] for t in self.tensors()]))

    @torch.inference_mode()
    def put(self: S, rows: Rows, other: S) -> None:
        """Overwrite the given batch rows with the rows of another state of the same model, in place."""
        for mine, theirs in zip(self.tensors(), other.tensors(), strict=True):
            mine[torch.as_tensor(rows, device=mine.device)] = theirs

    def to_bytes(self, metadata: Mapping[str, str] | None = None) -> bytes:
        """Save as safetensors, so that a session can go on in another process; `load_bytes` is the inverse."""
        tensors = {str(i): tensor.detach().cpu().contiguous() for i, tensor in enumerate(self.tensors())}
        return safetensors.torch.save(tensors, metadata=dict(metadata or {}))

    def load_bytes(self: S, data: bytes) -> S:
        """Return a state of this one's form, of any number of sessions, from `to_bytes`; CheckpointError if unfit."""
        mine = list(self.tensors())
        try:
            theirs = safetensors.torch.load(data)
            found = [theirs[str(i)] for i in range(len(mine))]
        except (safetensors.SafetensorError, KeyError) as error:
            raise CheckpointError(f"this is no saved state of such a model ({error})") from error
        forms = zip(map(_form, mine), map(_form, found), strict=True)
        if len(theirs) != len(mine) or len({len(t) for t in found if t.ndim}) != 1 or any(a != b for a, b in forms):
            raise CheckpointError("the saved state belongs to a model of another shape; load it into the one it is of")
        return rebuilt(self, iter([b.to(a.device) for a, b in zip(mine, found, strict=True)]))


def saved_metadata(data: bytes) -> dict[str, str]:
    """The metadata given to `State.to_bytes`; CheckpointError if these bytes are no saved state."""
    try:
        size = int.from_bytes(data[:8], "little")
        tensors, header = safetensors.deserialize(data), json.loads(data[8 : 8 + size])
    except (safetensors.SafetensorError, ValueError) as error:
        raise CheckpointError(f"this is no saved state ({error})") from error
    if not tensors:
        raise CheckpointError("this is no saved state (it holds no tensors)")
    return header.get("__metadata__", {})


def _form(tensor: Tensor) -> tuple[object, ...]:
    return (tensor.dtype, *tensor.shape[1:])


def _leaves(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, State):
        yield from value.tensors()
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item)


def rebuilt(value: Any, leaves: Iterator[Tensor]) -> Any:
    """The same tree with other leaves."""
    if isinstance(value, Tensor):
        return next(leaves)
    if isinstance(value, State):
        return replace(value, **{f.name: rebuilt(getattr(value, f.name), leaves) for f in fields(value)})
    if isinstance(value, (list, tuple)):
        return type(value)(rebuilt(item, leaves) for item in value)
    return value


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
