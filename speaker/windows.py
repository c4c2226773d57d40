"""Stretches of speech -> overlapping windows -> embeddings, read piece by piece and computed in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from speaker.model import SpeakerEncoder
from speaker.scoring import Floats

__all__ = ["Windows", "cut", "embed"]

BATCH_SECONDS = 24.0  # of audio in a batch, as for files (speaker.embed)


@dataclass(frozen=True)
class Windows:
    """`spans` (W, 2) seconds in order of time, and the stretch of speech (W,) that each belongs to."""

    spans: Floats
    stretch: NDArray[np.int64]

    @property
    def seconds(self) -> Floats:
        """(W,) lengths."""
        return np.asarray(self.spans[:, 1] - self.spans[:, 0])


def cut(stretches: Floats, size: float, hop: float, least: float, duration: float) -> Windows:
    """Windows of `size` seconds every `hop` in each of the (S, 2) stretches, the last one flush with its end.

    A stretch shorter than `size` is one window of its own length; one shorter than `least` takes in what is around it,
    within the `duration` of the recording.
    """
    spans, owners = [], []
    for number, (start, end) in enumerate(stretches):
        if end - start <= size:
            lack = max(0.0, least - (end - start)) / 2
            begin = min(max(0.0, start - lack), max(0.0, duration - least))
            spans.append((begin, min(duration, max(end + lack, begin + least))))
            owners.append(number)
            continue
        count = max(2, round((end - start - size) / hop) + 1)
        begins = np.linspace(start, end - size, count)
        spans += [(begin, begin + size) for begin in begins]
        owners += [number] * count
    return Windows(np.array(spans).reshape(-1, 2), np.array(owners, dtype=np.int64))


@torch.inference_mode()
def embed(
    encoder: SpeakerEncoder, blocks: Iterable[Tensor], windows: Windows, bfloat16: bool = False,
    progress: Callable[[float], None] = lambda seconds: None,
) -> Floats:  # fmt: skip
    """Blocks (1, n) of samples at the encoder's rate -> (W, D), each window as if it were alone.

    `progress` gets the seconds of the recording that are done.
    """
    rate = encoder.config.front_end.sample_rate
    device = next(encoder.parameters()).device
    vectors = np.zeros((len(windows.spans), encoder.embedding_dim))
    for rows, wavs in _batches(_samples(blocks, windows, rate, encoder.min_samples), BATCH_SECONDS * rate):
        lengths = torch.tensor([len(wav) for wav in wavs])
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            found = encoder(pad_sequence(wavs, batch_first=True).to(device), lengths)
        vectors[rows] = found.float().cpu().numpy()
        progress(float(windows.spans[max(rows), 1]))
    return vectors


def _samples(blocks: Iterable[Tensor], windows: Windows, rate: int, least: int) -> Iterator[Tensor]:
    """The samples (n,) of each window, in order of time; only what windows still need is kept."""
    held, first, source = torch.zeros(0), 0, iter(blocks)
    begins = np.round(windows.spans[:, 0] * rate).astype(np.int64)
    counts = np.maximum(np.round(windows.seconds * rate).astype(np.int64), least)
    # Windows of neighbouring short stretches may begin in another order than they are listed.
    needed = np.minimum.accumulate(begins[::-1])[::-1]
    for begin, count, keep in zip(begins.tolist(), counts.tolist(), needed.tolist(), strict=True):
        parts = [held]
        total = len(held)
        while first + total < begin + count and (block := next(source, None)) is not None:
            parts.append(block[0])
            total += block.shape[1]
        held = torch.cat(parts) if len(parts) > 1 else held
        start = max(0, min(begin - first, len(held) - count))
        yield held[start : start + count].clone()
        drop = max(0, keep - first)
        if drop > count:
            held, first = held[drop:], first + drop


def _batches(samples: Iterable[Tensor], most: float) -> Iterator[tuple[list[int], list[Tensor]]]:
    """Rows and samples: windows of one length together, so that nothing is padded, and short ones by themselves."""
    groups: dict[int, tuple[list[int], list[Tensor]]] = {}
    for row, wav in enumerate(samples):
        key = (len(wav) + 1600) // 3200  # of 0.2 s at 16 kHz; what is full comes in one of them
        rows, wavs = groups.setdefault(key, ([], []))
        rows.append(row)
        wavs.append(wav)
        if (len(wavs) + 1) * max(map(len, wavs)) > most:
            yield groups.pop(key)
    yield from groups.values()
