"""The codec as its users see it: waveform -> codes -> waveform. Read this first.

    codec = codec.load("esc_live")
    codes = codec.encode(wav)                      # (B, N) at 16 kHz -> (B, levels, groups, T)
    wav = codec.decode(codes[:, :2], num_samples)  # the first two levels are the 3 kbit/s codes

`Codec` holds what the published model (`codec.esc`) and the live one (`codec.live`) share: names, checks, and how
padded batches are treated. Each model says how many frames a length needs and does the transforms.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from codec.config import CodecConfig
from engine.errors import AudioError, ConfigError

FROM_ARRAY = "torch.from_numpy makes one of an array"


@dataclass
class CodecOutput:
    """What training needs. Spectra are as the network sees them; `Codec.linear_spectrum` makes them comparable."""

    wav: Tensor  # (B, N), `Codec.lag` samples late
    spectrum: Tensor
    spectrum_target: Tensor
    codes: list[Tensor]  # per level (rows that use it, groups, T)
    commitment_loss: Tensor
    codebook_loss: Tensor


class Codec(nn.Module, ABC):
    """Base of the codec models. Codes are int64 (B, L, G, T): L levels (coarsest first), G groups, T frames."""

    kind: str
    config: CodecConfig

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.config = config
        self.name = "unsaved"
        self.model_id = bytes(6)  # first bytes of the sha256 of the weights, set by `codec.load`

    @property
    @abstractmethod
    def delay(self) -> int:
        """Algorithmic delay in samples: oldest output sample to newest input needed, framing included."""

    @property
    @abstractmethod
    def lag(self) -> int:
        """Samples by which the waveform of `forward` comes late; what `decode` returns does not."""

    @abstractmethod
    def linear_spectrum(self, spectrum: Tensor) -> Tensor:
        """A spectrum of CodecOutput -> complex (B, T', F), neither compressed nor scaled."""

    @abstractmethod
    def num_frames(self, num_samples: int) -> int:
        """Code frames T of a signal of `num_samples` samples."""

    @abstractmethod
    def encode(self, wav: Tensor, lengths: Tensor | None = None, levels: int | None = None) -> Tensor:
        """Encode (B, N) float samples in [-1, 1] at `config.sample_rate` to codes (B, L, G, T).

        With `lengths` (B,) of a padded batch, item i has `num_frames(lengths[i])` valid frames, equal to those of the
        item encoded alone; the frames after them are 0. `levels` (default: all) keeps the coarsest ones; the codes of
        fewer levels are the first levels of more. Raises AudioError for empty, non-finite or non-float input.
        """

    @abstractmethod
    def decode(self, codes: Tensor, num_samples: int | None = None) -> Tensor:
        """Decode codes (B, L, G, T) to (B, N), N = `num_samples` (default: all that the codes determine)."""

    def check_wav(self, wav: Tensor, lengths: Tensor | None) -> None:
        """Raise AudioError unless `wav` is finite, floating, (B, N) with N > 0 and fits `lengths`."""
        if not isinstance(wav, Tensor):
            raise AudioError(f"expected a tensor of samples (batch, N), got {type(wav).__name__}; {FROM_ARRAY}")
        if wav.ndim != 2 or wav.numel() == 0:
            raise AudioError(f"expected samples (batch, N) with N > 0, got shape {tuple(wav.shape)}")
        if not wav.is_floating_point():
            raise AudioError(f"expected floating point samples in [-1, 1], got {wav.dtype}; divide int16 by 32768")
        if not torch.isfinite(wav).all():
            raise AudioError("the samples contain NaN or infinity")
        if lengths is None:
            return
        if lengths.shape != (len(wav),) or int(lengths.min()) < 1 or int(lengths.max()) > wav.shape[1]:
            raise AudioError(f"lengths must be {len(wav)} values between 1 and {wav.shape[1]}, got {lengths.tolist()}")

    def check_levels(self, levels: int | None) -> int:
        """Return the number of levels to use; ConfigError if the model does not have them."""
        levels = self.config.levels if levels is None else levels
        if not 1 <= levels <= self.config.levels:
            raise ConfigError(f"levels must be 1 to {self.config.levels}, got {levels}")
        return levels

    def check_codes(self, codes: Tensor) -> Tensor:
        """Return integer codes as int64; raise ConfigError unless they are of this model's shape and range."""
        if not isinstance(codes, Tensor):
            raise ConfigError(f"expected a tensor of codes, got {type(codes).__name__}; {FROM_ARRAY}")
        is_integer = not (codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool)
        batch_first = codes.ndim == 4 and codes.shape[2] == self.config.num_groups and codes.numel() > 0
        if not batch_first or not 1 <= codes.shape[1] <= self.config.levels or not is_integer:
            raise ConfigError(
                f"expected integer codes (batch, 1..{self.config.levels} levels, {self.config.num_groups} groups, T), "
                f"got {codes.dtype} {tuple(codes.shape)}"
            )
        codes = codes.long()
        low, high = int(codes.min()), int(codes.max())
        if low < 0 or high >= self.config.codebook_size:
            raise ConfigError(f"codes must be 0 to {self.config.codebook_size - 1}, got {low} to {high}")
        return codes
