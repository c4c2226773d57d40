"""Many live sessions on one model: they join and leave a running batch, and each sounds as if it were alone.

    sessions = Sessions(model.initial_encoder_state, lambda frames, state: model.encode(frames, state=state))
    alice, bob = sessions.open(), sessions.open()
    codes = sessions.step({alice: frame_a, bob: frame_b})      # one call of the model for all
    data = sessions.save(alice)                                # ... and `restore` elsewhere, in the middle of a word

The states of all sessions are rows of one batch, which doubles when it is full. A step in which every row takes part
runs in place; otherwise the rows that do are gathered and put back, which costs a copy of their states.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

import torch
from torch import Tensor

from engine.errors import CheckpointError, ConfigError
from engine.streaming import State

S = TypeVar("S", bound=State)


class Sessions(Generic[S]):
    """`run(items (B, ...), state of B rows) -> results (B, ...)`, one row a session, updates the state in place."""

    def __init__(self, initial_state: Callable[[int], S], run: Callable[[Tensor, S], Tensor]) -> None:
        self._initial_state, self._run = initial_state, run
        self._state = initial_state(1)
        self._rows: dict[int, int] = {}
        self._free = [0]
        self._next = 0

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def capacity(self) -> int:
        """Rows of the batch, in use or not."""
        return len(self._rows) + len(self._free)

    def open(self) -> int:
        """Begin a session after silence; return its number, which is never used again."""
        if not self._free:
            self._grow()
        row = self._free.pop()
        self._state.reset([row])
        self._next += 1
        self._rows[self._next] = row
        return self._next

    def close(self, session: int) -> None:
        """End a session and free its row."""
        self._free.append(self._row(session))
        del self._rows[session]
        if not self._rows:  # memory follows the load
            self._state, self._free = self._initial_state(1), [0]

    @torch.inference_mode()
    def step(self, items: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Run the model once for the sessions given, each with its next item of one common shape."""
        if not items:
            return {}
        ordered = sorted(items, key=self._row)
        rows = [self._row(session) for session in ordered]
        batch = torch.stack([items[session] for session in ordered])
        if len(rows) == self.capacity:
            results = self._run(batch, self._state)
        else:
            part = self._state.take(rows)
            results = self._run(batch, part)
            self._state.put(rows, part)
        return dict(zip(ordered, results.unbind(0), strict=True))

    def save(self, session: int) -> bytes:
        """The state of a session, for `restore` here or in another process with the same model."""
        return self._state.take([self._row(session)]).to_bytes()

    def restore(self, data: bytes) -> int:
        """Go on with a saved session; return its number here.

        Raises CheckpointError if the state is of another model, or of any number of sessions but one.
        """
        state = self._initial_state(1).load_bytes(data)
        if state.batch_size != 1:
            raise CheckpointError(
                f"the saved state is of {state.batch_size} sessions, not of one; `load_bytes` and `take([row])` "
                "of the state make one of it"
            )
        session = self.open()
        self._state.put([self._rows[session]], state)
        return session

    def _row(self, session: int) -> int:
        if session not in self._rows:
            raise ConfigError(f"there is no open session {session}; {len(self._rows)} are open")
        return self._rows[session]

    def _grow(self) -> None:
        old = self.capacity
        grown = self._initial_state(2 * old)
        grown.put(range(old), self._state)
        self._state, self._free = grown, list(range(2 * old - 1, old - 1, -1))
