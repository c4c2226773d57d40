"""What every codec model knows about its rates, and the configuration of the live model."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """Rates shared by the published and the live codec. Codes are (B, levels, num_groups, T)."""

    sample_rate: int = 16_000
    samples_per_frame: int = 320  # 20 ms: one code column
    levels: int = 6
    num_groups: int = 3
    codebook_size: int = 1024

    def __post_init__(self) -> None:
        if self.codebook_size < 2:
            raise ConfigError(f"codebook_size must be at least 2, got {self.codebook_size}")
        if not (1 <= self.levels <= 255 and 1 <= self.num_groups <= 255):
            raise ConfigError(f"levels and num_groups must be 1 to 255, got {self.levels} and {self.num_groups}")

    @property
    def frame_rate(self) -> float:
        """Code frames per second, Hz."""
        return self.sample_rate / self.samples_per_frame

    @property
    def code_bits(self) -> int:
        """Bits of one code."""
        return (self.codebook_size - 1).bit_length()

    @property
    def bits_per_frame(self) -> int:
        """Bits of one frame at one level."""
        return self.num_groups * self.code_bits

    def bitrate(self, levels: int | None = None) -> float:
        """Bit/s of the codes of `levels` levels (default: all), without any container."""
        return self.frame_rate * self.bits_per_frame * (self.levels if levels is None else levels)

    def levels_for(self, bitrate: float) -> int:
        """Levels of a bitrate in bit/s; ConfigError lists the rates there are."""
        rates = [self.bitrate(levels) for levels in range(1, self.levels + 1)]
        for levels, rate in enumerate(rates, start=1):
            if abs(rate - bitrate) < 0.5:
                return levels
        offered = ", ".join(f"{rate / 1000:g}" for rate in rates)
        raise ConfigError(f"no bitrate of {bitrate / 1000:g} kbit/s; this model offers {offered}")


@dataclass(frozen=True, kw_only=True)
class EscLiveConfig(CodecConfig):
    """The live codec: causal, 30 ms of algorithmic delay, one token a frame for every `patch_bins` frequency bins."""

    hop_length: int = 160
    patch_bins: int = 10
    exponent: float = 0.5  # magnitude compression of the spectrum
    channels: tuple[int, ...] = (64, 96, 128, 192)  # finest scale first; each merge halves the frequency axis
    encoder_depths: tuple[int, ...] = (1, 1, 2, 2)  # blocks per scale
    decoder_depths: tuple[int, ...] = (1, 1, 1, 1, 1, 2)  # blocks after each level
    level_scales: tuple[int, ...] = (3, 3, 2, 2, 1, 0)  # where each level attaches; 0 is the finest scale
    codebook_dims: tuple[int, ...] = (8, 8, 8, 8, 8, 8)
    head_channels: int = 16
    attention_frames: int = 8  # each token sees its own and the 7 frames before
    attention_bins: int = 4
    mlp_ratio: int = 3
    quantizer: str = "ema"
    quantizer_options: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        scales = len(self.channels)
        for name in ("encoder_depths", "decoder_depths", "level_scales", "codebook_dims"):
            expected = scales if name == "encoder_depths" else self.levels
            if len(getattr(self, name)) != expected:
                raise ConfigError(f"{name} needs {expected} entries, got {getattr(self, name)}")
        if sorted(self.level_scales, reverse=True) != list(self.level_scales) or self.level_scales[0] != scales - 1:
            raise ConfigError(f"level_scales must start at {scales - 1} and never rise, got {self.level_scales}")
        if self.samples_per_frame % self.hop_length or self.hop_length % self.patch_bins:
            raise ConfigError(
                f"samples_per_frame {self.samples_per_frame} must be a multiple of hop_length {self.hop_length}, "
                f"and that one of patch_bins {self.patch_bins}"
            )
        if self.num_tokens % 2 ** (scales - 1):
            raise ConfigError(f"{self.num_tokens} tokens a frame cannot be halved {scales - 1} times")
        if any(width % self.head_channels for width in self.channels):
            raise ConfigError(f"channels {self.channels} must be multiples of head_channels {self.head_channels}")
        if not 0 < self.exponent <= 1:
            raise ConfigError(f"exponent must be in (0, 1], got {self.exponent}")

    @property
    def patch_frames(self) -> int:
        """STFT frames in a token."""
        return self.samples_per_frame // self.hop_length

    @property
    def num_tokens(self) -> int:
        """Tokens of one frame at the finest scale."""
        return self.hop_length // self.patch_bins

    @property
    def patch_size(self) -> int:
        """Real numbers in a patch: bins x STFT frames x (real, imaginary)."""
        return self.patch_bins * self.patch_frames * 2
