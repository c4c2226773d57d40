"""ESC, the published codec: Gu and Diao, "ESC: Efficient Speech Coding with Cross-Scale Residual Vector Quantized
Transformers" (EMNLP 2024, arXiv 2404.19441). The network itself is in `codec.esc_network`.

Codes and audio equal those of the authors' implementation, with their weights (`codec.import_esc`), for the lengths
that it returns whole: 80 (4 k - 1) samples. What differs: every other length comes back whole too, batches may mix
lengths, and long signals go through in exact tiles (`codec.tiling`), so that memory does not grow with them.

The model looks ahead by half a second and is no codec for calls; `codec.live` is.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from einops import rearrange
from torch import Tensor

from codec.esc_config import EscConfig
from codec.esc_network import EscNetwork
from codec.model import Codec, CodecOutput
from codec.tiling import Tile, last_of_window, mirrored, plan_tiles, window_reach
from codec.transformer import PatchDeembed
from engine.errors import AudioError


class Esc(Codec):
    """The published codec."""

    kind = "esc"
    config: EscConfig

    def __init__(self, config: EscConfig) -> None:
        super().__init__(config)
        self.network = EscNetwork(config)
        self.register_buffer("stft_window", torch.hann_window(config.win_length), persistent=False)
        self.stft_window: Tensor
        # Longer signals are cut into tiles of this many code frames (20 ms each); None: never. No number depends on
        # it, only memory: some 20 MB for a second of the base model. What stays in the caches is faster, too.
        self.tile_frames: int | None = 256

    # Lengths, delay and reach

    def num_frames(self, num_samples: int) -> int:
        """The smallest k whose `padded_length` holds the samples with a frame to spare at the end.

        k = ceil((ceil(N / hop) + 1) / h), h hops a code frame: the STFT of hop (h k - 1) samples has h k frames.
        """
        hops = -(-num_samples // self.config.hop_length) + 1
        return -(-hops * self.config.hop_length // self.config.samples_per_frame)

    def padded_length(self, frames: int) -> int:
        """Samples that `frames` code frames determine."""
        return frames * self.config.samples_per_frame - self.config.hop_length

    @property
    def delay(self) -> int:
        """See `Codec.delay`. Windows of 40 ms look ahead block after block: 540 ms in ESC-Base.

        Follows the newest sample that an output sample depends on backwards through the network.
        """
        config, half = self.config, self.config.win_length // 2
        encoder, decoder = self.network.encoder_shifts(1), self.network.decoder_shifts()
        delay = 0
        for sample in range(config.grid_frames * config.samples_per_frame):
            frame = (sample + half - 1) // config.hop_length + PatchDeembed.REACH_FRAMES
            column = frame // config.patch_frames + PatchDeembed.REACH_COLUMNS
            for shift in reversed(decoder):
                column = last_of_window(column, shift, config.window)
            column = last_of_window(column, 0, config.columns_per_frame)
            for shift in reversed(encoder):
                column = last_of_window(column, shift, config.window)
            newest = ((column + 1) * config.patch_frames - 1) * config.hop_length + half - 1
            delay = max(delay, newest - sample)
        return delay

    @property
    def lag(self) -> int:
        """None: frames are centred."""
        return 0

    def _encoder_halo(self, levels: int) -> int:
        """Code frames next to an inner end of a tile whose codes are wrong."""
        columns = window_reach(self.network.encoder_shifts(levels), self.config.window)
        return -(-columns // self.config.columns_per_frame)

    def _decoder_halo(self) -> int:
        """Code frames next to an inner end of a tile whose samples are wrong."""
        columns = window_reach(self.network.decoder_shifts(), self.config.window) + PatchDeembed.REACH_COLUMNS
        overlap = -(-self.config.win_length // (2 * self.config.hop_length))
        frames = columns * self.config.patch_frames + PatchDeembed.REACH_FRAMES + overlap
        return -(-frames * self.config.hop_length // self.config.samples_per_frame)

    def _tiles(self, frames: list[int], halo: int) -> Iterator[list[Tile]]:
        return plan_tiles(frames, self.tile_frames or max(frames), halo, self.config.grid_frames)

    # Between waveform and spectrum

    def analyze(self, wav: Tensor, left: int, right: int, frames: int) -> Tensor:
        """Spectrum (B, 2, F, T') of code frames `left` to `right` of wav (B, N), which has `frames` of them in all.

        STFT frames are centred; the signal is filled up with zeros and mirrored at its ends.
        """
        config, reach = self.config, self.config.n_fft // 2
        start, stop = left * config.samples_per_frame, right * config.samples_per_frame - config.hop_length
        wav = mirrored(wav, start - reach, stop + reach, self.padded_length(frames)).to(self.stft_window.dtype)
        window = self.stft_window
        spectrum = torch.stft(
            wav, config.n_fft, config.hop_length, config.win_length, window, center=False, return_complex=True
        )
        return rearrange(torch.view_as_real(spectrum), "b f t c -> b c f t")

    def linear_spectrum(self, spectrum: Tensor) -> Tensor:
        """See `Codec.linear_spectrum`."""
        return torch.view_as_complex(rearrange(spectrum, "b c f t -> b t f c").contiguous())

    def synthesize(self, spectrum: Tensor) -> Tensor:
        """(B, 2, F, T') -> (B, hop_length (T' - 1))."""
        config = self.config
        parts = rearrange(spectrum.to(self.stft_window.dtype), "b c f t -> b f t c").contiguous()
        spectra = torch.view_as_complex(parts)
        return torch.istft(spectra, config.n_fft, config.hop_length, config.win_length, self.stft_window)

    # What a user calls

    @torch.no_grad()
    def encode(self, wav: Tensor, lengths: Tensor | None = None, levels: int | None = None) -> Tensor:
        """See `Codec.encode`."""
        self.check_wav(wav, lengths)
        levels = self.check_levels(levels)
        num_samples = [wav.shape[1]] * len(wav) if lengths is None else lengths.tolist()
        frames = [self.num_frames(n) for n in num_samples]
        shape = (len(wav), levels, self.config.num_groups, self.num_frames(wav.shape[1]))
        codes = torch.zeros(shape, dtype=torch.int64, device=wav.device)
        for tiles in self._tiles(frames, self._encoder_halo(levels)):
            pieces = [
                self.analyze(wav[t.row : t.row + 1, : num_samples[t.row]], t.left, t.right, frames[t.row])
                for t in tiles
            ]
            for tile, piece in zip(tiles, self.network.encode(torch.cat(pieces), levels), strict=True):
                inner = slice(tile.start - tile.left, tile.stop - tile.left)
                codes[tile.row, :, :, tile.start : tile.stop] = piece[..., inner]
        return codes

    @torch.no_grad()
    def decode(self, codes: Tensor, num_samples: int | None = None, lengths: Tensor | None = None) -> Tensor:
        """See `Codec.decode`. With the `lengths` (B,) given to `encode`, each item ends there; what follows is 0."""
        codes = self.check_codes(codes)
        available = self.padded_length(codes.shape[-1])
        width = available if num_samples is None else num_samples
        counts = [width] * len(codes) if lengths is None else lengths.tolist()
        if len(counts) != len(codes):
            raise AudioError(f"expected {len(codes)} lengths, one for each item, got {len(counts)}")
        if not 0 <= min(counts) <= max(*counts, width) <= available:
            raise AudioError(
                f"{codes.shape[-1]} frames hold up to {available} samples, {max(*counts, width)} were asked for"
            )
        frames = [codes.shape[-1]] * len(codes) if lengths is None else [self.num_frames(n) for n in counts]
        wav = self.stft_window.new_zeros(len(codes), width)
        for tiles in self._tiles(frames, self._decoder_halo()):
            spectrum = self.network.decode(torch.stack([codes[t.row, ..., t.left : t.right] for t in tiles]))
            for tile, piece in zip(tiles, self.synthesize(spectrum), strict=True):
                start, stop, left = (i * self.config.samples_per_frame for i in (tile.start, tile.stop, tile.left))
                stop = max(start, min(stop, counts[tile.row], width))
                wav[tile.row, start:stop] = piece[start - left : stop - left]
        return wav

    def forward(self, wav: Tensor, levels: Tensor | int | None = None, bypass: bool = False) -> CodecOutput:
        """Encode, quantize and decode (B, N) to (B, N), with gradients, for training.

        `levels` (B,) gives each item its own number of levels; it must not rise, so that the items that use a level
        are the first rows. `bypass` (the authors' pre-training) leaves the quantization out, not the projections
        around it, and uses all levels.
        """
        counts = torch.as_tensor(self.config.levels if levels is None or bypass else levels).cpu().expand(len(wav))
        assert bool((counts[:-1] >= counts[1:]).all()) and int(counts[-1]) >= 1, "levels must not rise"
        frames = self.num_frames(wav.shape[1])
        spectrum = self.analyze(wav, 0, frames, frames)
        decoded, codes, (commitment, codebook) = self.network(spectrum, counts, bypass)
        return CodecOutput(self.synthesize(decoded)[:, : wav.shape[1]], decoded, spectrum, codes, commitment, codebook)
