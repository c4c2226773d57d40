"""Live processing as stages: `push` takes what has come and returns what is ready, `flush` ends the signal.

    for packet in run(microphone, Resample(48000, 16000), Rebuffer(320), EncodeStage(model)):
        ...

A stage does no input or output of its own, so a test feeds it lists and a socket is somebody else's job (after httpx's
and h11's split). Waveforms are (C, n): C channels or sessions, n samples, ragged until a `Rebuffer` made them even.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from engine.audio import Resampler


class Stage(Protocol):
    """One step of a pipeline. After `flush` a stage is used up."""

    def push(self, item: Any) -> list[Any]:
        """Take the next item, return the outputs that are complete by now, none to many."""
        ...

    def flush(self) -> list[Any]:
        """End the signal, return the outputs that were still held back."""
        ...


class Pipeline:
    """Stages one after the other, themselves a stage."""

    def __init__(self, *stages: Stage) -> None:
        self.stages = stages

    def push(self, item: Any) -> list[Any]:
        return self._from(0, [item])

    def flush(self) -> list[Any]:
        out: list[Any] = []
        for i, stage in enumerate(self.stages):
            out += self._from(i + 1, stage.flush())  # what a stage held back still goes through those behind it
        return out

    def _from(self, first: int, items: list[Any]) -> list[Any]:
        for stage in self.stages[first:]:
            items = [out for item in items for out in stage.push(item)]
        return items


def run(source: Iterable[Any], *stages: Stage) -> Iterator[Any]:
    """Send everything of `source` through the stages, yield what comes out, as soon as it does."""
    pipeline = Pipeline(*stages)
    for item in source:
        yield from pipeline.push(item)
    yield from pipeline.flush()


class Rebuffer:
    """Ragged chunks (C, n) in, even pieces (C, size) out; the only stage that knows that chunks are ragged.

    At the end the rest is filled up with zeros to a multiple of `unit` (default: a whole piece), with at least `tail`
    zeros after the last sample: what a codec needs to bring all of the signal out. Counts `num_samples` that came in.
    """

    def __init__(self, size: int, tail: int = 0, unit: int | None = None) -> None:
        self.size, self.tail, self.unit = size, tail, unit or size
        self.num_samples = 0
        self._held: list[Tensor] = []
        self._num_held = 0

    def push(self, item: Tensor) -> list[Tensor]:
        self.num_samples += item.shape[1]
        self._num_held += item.shape[1]
        # Copies, of what goes out too: a producer may fill the same memory again.
        if self._num_held < self.size:
            self._held.append(item.clone())
            return []
        joined = torch.cat([*self._held, item], dim=1)
        whole = self._num_held - self._num_held % self.size
        # A copy: a view of a few samples would keep the whole chunk in memory.
        self._held, self._num_held = [joined[:, whole:].clone()], self._num_held - whole
        return list(joined[:, :whole].split(self.size, dim=1))

    def flush(self) -> list[Tensor]:
        if not self.num_samples:
            return []
        zeros = self._held[0].new_zeros(len(self._held[0]), self.tail + -(self._num_held + self.tail) % self.unit)
        return (
            list(torch.cat([*self._held, zeros], dim=1).split(self.size, dim=1))
            if self._num_held + zeros.shape[1]
            else []
        )


class Resample:
    """Another sample rate, chunk by chunk: joined, the results equal those of the whole signal."""

    def __init__(self, from_rate: int, to_rate: int, num_channels: int = 1) -> None:
        self._resampler = Resampler(from_rate, to_rate, num_channels)

    def push(self, item: Tensor) -> list[Tensor]:
        return self._some(self._resampler.push(item))

    def flush(self) -> list[Tensor]:
        return self._some(self._resampler.flush())

    @staticmethod
    def _some(wav: Tensor) -> list[Tensor]:
        return [wav] if wav.shape[1] else []


class Limit:
    """Passes on (C, n) until `num_samples` in all, once that is known; drops what follows (a codec's padding)."""

    def __init__(self, num_samples: int | None = None) -> None:
        self.num_samples = num_samples
        self.passed = 0

    def push(self, item: Tensor) -> list[Tensor]:
        if self.num_samples is not None:
            item = item[:, : max(0, self.num_samples - self.passed)]
        self.passed += item.shape[1]
        return [item] if item.shape[1] else []

    def flush(self) -> list[Tensor]:
        return []
