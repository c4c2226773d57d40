"""The published codec on a signal that comes in pieces: exact tiles (`codec.tiling`), as soon as their halo is there.

The codes and the sound are those of the whole signal. The price is the delay: a tile and a halo, seconds and not
milliseconds, on top of the model's own look-ahead. For calls there is `codec.live`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from codec.esc import Esc
from engine.errors import AudioError


class _Tiles:
    """Which code frames can be worked out, from how many are there."""

    def __init__(self, model: Esc, halo: int) -> None:
        grid = model.config.grid_frames
        self.size, self.halo = (-(-frames // grid) * grid for frames in (max(model.tile_frames or 256, grid), halo))
        self.start = 0

    def next(self, frames: int, last: bool) -> tuple[int, int, int, int] | None:
        """(left, start, stop, right) of the next tile that `frames` frames allow, all of them known if `last`."""
        start, stop = self.start, self.start + self.size
        if last:
            stop = min(stop, frames)
        if start >= stop or (not last and stop + self.halo > frames):
            return None
        self.start = stop
        return self.left(start), start, stop, min(stop + self.halo, frames) if last else stop + self.halo

    def left(self, start: int) -> int:
        """First frame that the tile beginning at `start` needs."""
        return max(start - self.halo, 0)


class EscEncodeStage:
    """(1, n) of any length -> codes (1, levels, G, k)."""

    def __init__(self, model: Esc, levels: int | None = None) -> None:
        self.model, self.levels = model, model.check_levels(levels)
        self._tiles = _Tiles(model, model._encoder_halo(self.levels))
        self._wav = model.stft_window.new_zeros(1, 0)  # on the model's device
        self._origin = 0  # code frame at which the samples that are kept begin
        self._reach = -(-model.config.n_fft // model.config.samples_per_frame)  # code frames of samples around a tile

    @torch.inference_mode()
    def push(self, item: Tensor) -> list[Tensor]:
        if len(item) != 1:
            raise AudioError(f"one signal at a time, got {len(item)}; give each its own stage")
        self._wav = torch.cat([self._wav, item], dim=1)
        return self._run(self._origin + self._wav.shape[1] // self.model.config.samples_per_frame - self._reach, False)

    @torch.inference_mode()
    def flush(self) -> list[Tensor]:
        if not self._wav.shape[1]:
            return []
        num_samples = self._origin * self.model.config.samples_per_frame + self._wav.shape[1]
        return self._run(self.model.num_frames(num_samples), True)

    def _run(self, frames: int, last: bool) -> list[Tensor]:
        codes = []
        while tile := self._tiles.next(frames, last):
            left, start, stop, right = (frame - self._origin for frame in tile)
            # Inside the signal nothing is mirrored, so that the number of frames does not matter before the last ones.
            spectrum = self.model.analyze(self._wav, left, right, frames - self._origin if last else right)
            codes.append(self.model.network.encode(spectrum, self.levels)[..., start - left : stop - left])
            keep = max(self._tiles.left(self._tiles.start) - self._reach, self._origin)
            self._wav = self._wav[:, (keep - self._origin) * self.model.config.samples_per_frame :].clone()
            self._origin = keep
        return codes


class EscDecodeStage:
    """Codes (1, L, G, k) -> (1, n), the samples that all codes determine; the padding at the end is not cut off."""

    def __init__(self, model: Esc) -> None:
        self.model = model
        self._tiles = _Tiles(model, model._decoder_halo())
        self._codes: Tensor | None = None
        self._origin = 0

    @torch.inference_mode()
    def push(self, item: Tensor) -> list[Tensor]:
        item = self.model.check_codes(item)
        self._codes = item if self._codes is None else torch.cat([self._codes, item], dim=-1)
        return self._run(False)

    @torch.inference_mode()
    def flush(self) -> list[Tensor]:
        return [] if self._codes is None else self._run(True)

    def _run(self, last: bool) -> list[Tensor]:
        assert self._codes is not None
        wav, size = [], self.model.config.samples_per_frame
        while tile := self._tiles.next(self._origin + self._codes.shape[-1], last):
            left, start, stop, right = (frame - self._origin for frame in tile)
            piece = self.model.synthesize(self.model.network.decode(self._codes[..., left:right]))
            wav.append(piece[:, (start - left) * size : (stop - left) * size])
            keep = self._tiles.left(self._tiles.start)
            self._codes = self._codes[..., keep - self._origin :].clone()
            self._origin = keep
        return wav
