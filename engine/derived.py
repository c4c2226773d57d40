"""A value derived from a weight, kept until the weight changes: what a live step must not compute anew every 20 ms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Derived(Generic[T]):
    """Remembers `compute()` for one tensor. With gradients on it remembers nothing: the value is part of the graph."""

    def __init__(self) -> None:
        self._key: tuple[Tensor, int, int] | None = None
        self._value: T

    def get(self, source: Tensor, compute: Callable[[], T]) -> T:
        """The value for `source` as it is now. In-place changes, new storage and new tensors all count as changes."""
        # Inference tensors do not count their changes; an exported graph has no memory.
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or source.is_inference():
            return compute()
        key = (source, source._version, source.data_ptr())
        # Holding the tensor itself: its address cannot be given to another one meanwhile.
        if self._key is None or self._key[0] is not source or self._key[1:] != key[1:]:
            self._key, self._value = key, compute()
        return self._value
