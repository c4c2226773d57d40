"""Exact tiles: run a network with a bounded reach over a long signal piece by piece, with equal results.

A tile is a piece of the signal with a halo on both sides as long as the network's reach. The ends of the tile are
computed wrongly, because they lack their neighbours; the error stays inside the halo, which is thrown away. Tiles must
start where windows start, or the windows would hold other patches. At the ends of the signal there is no halo and no
error: there the tile ends as the signal does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tile:
    """Frames `start` to `stop` of batch row `row`, computed from frames `left` to `right`."""

    row: int
    start: int
    stop: int
    left: int
    right: int


def plan_tiles(num_frames: list[int], size: int, halo: int, grid: int) -> Iterator[list[Tile]]:
    """Cut rows of `num_frames` frames each into groups of tiles of equal width, no group larger than the rows.

    `size` and `halo` are rounded up to multiples of `grid`; all in frames. Rows of different lengths share groups where
    their tiles are equally wide, so nothing is ever padded.
    """
    size, halo = (-(-value // grid) * grid for value in (size, halo))
    size = max(size, grid)
    groups: dict[int, list[Tile]] = defaultdict(list)
    for start in range(0, max(num_frames), size):
        for row, frames in enumerate(num_frames):
            if start < frames:
                stop = min(start + size, frames)
                tile = Tile(row, start, stop, max(start - halo, 0), min(stop + halo, frames))
                groups[tile.right - tile.left].append(tile)
    for tiles in groups.values():
        for i in range(0, len(tiles), len(num_frames)):
            yield tiles[i : i + len(num_frames)]


def window_reach(shifts: Iterable[int], window: int) -> int:
    """Columns from the edge of a tile that are wrong after blocks of windows shifted by `shifts`, in this order.

    A window that holds a wrong column is wrong as a whole. Windows that start at the edge hold none at first;
    the one that a shift cuts at the edge always lacks its outer part.
    """
    wrong = 0
    for shift in shifts:
        wrong = -(-(wrong - shift) // window) * window + shift
    return wrong


def last_of_window(column: int, shift: int, window: int) -> int:
    """Last column of the window, shifted by `shift`, that holds `column`."""
    return (column - shift) // window * window + shift + window - 1


def mirrored(wav: Tensor, start: int, stop: int, length: int) -> Tensor:
    """Samples `start` to `stop` of `wav` (..., N), made `length` long with zeros and continued by mirroring.

    `start` may be negative and `stop` beyond `length`, by less than `length`. The end samples are not repeated.
    """
    num_samples = wav.shape[-1]
    if start >= 0 and stop <= num_samples:
        return wav[..., start:stop]
    index = torch.arange(start, stop, device=wav.device).abs()
    index = (length - 1) - ((length - 1) - index).abs()
    piece = wav[..., index.clamp(max=num_samples - 1)]
    return torch.where(index < num_samples, piece, 0)
