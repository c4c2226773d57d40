"""ESC made causal and cheap: one model for files and calls.

Cross-scale residual vector quantization of a complex spectrum as in ESC (Gu and Diao, EMNLP 2024, arXiv 2404.19441):
the encoder halves the frequency axis scale by scale; the decoder doubles it again and at each level adds the quantized
difference between the encoder's features and its own. What differs: attention over a bounded past instead of shifted
windows in time, 20 ms frames of the causal STFT (30 ms algorithmic delay), a power-compressed spectrum scaled to unit
variance, joint projections around the three codebooks of a level, several levels on one scale, and a start as a linear
transform codec (`codec.start`).

Tokens inside are (B, T, H, C): T frames of 20 ms, H patches in frequency, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from codec.causal import CausalBlock, CausalStage, FrequencyMerge, FrequencySplit
from codec.config import EscLiveConfig
from codec.model import Codec, CodecOutput
from codec.quantizers import ProductQuantizer
from engine.errors import AudioError
from engine.spectral import CausalISTFT, CausalSTFT, compress, expand
from engine.streaming import PastState, State, StateList

CHUNK_FRAMES = 500  # 10 s: long signals go through in pieces of this size, so memory stays flat


@dataclass
class DecoderState(State):
    """State of the decoder stages, and of the inverse STFT where audio comes out."""

    stages: StateList
    istft: PastState


@dataclass
class EncoderState(State):
    """State of the analysis; encoding follows the decoder up to the last level, hence its stages."""

    stft: PastState
    stages: StateList
    decoder: StateList


class EscLive(Codec):
    """The live codec. `state` in `encode` and `decode` carries a session from chunk to chunk."""

    kind = "esc_live"
    config: EscLiveConfig

    def __init__(self, config: EscLiveConfig) -> None:
        super().__init__(config)
        channels, heights = config.channels, [config.num_tokens >> s for s in range(len(config.channels))]
        self.stft = CausalSTFT(config.hop_length)
        self.istft = CausalISTFT(config.hop_length)
        self.register_buffer("spectrum_scale", torch.ones(()))  # brings the compressed spectrum to unit variance
        self.spectrum_scale: Tensor
        self.embed = nn.Linear(config.patch_size, channels[0])
        self.deembed = nn.Linear(channels[0], config.patch_size)
        nn.init.orthogonal_(self.embed.weight)
        nn.init.zeros_(self.embed.bias)
        nn.init.zeros_(self.deembed.bias)
        with torch.no_grad():
            self.deembed.weight.copy_(self.embed.weight.T)

        def stage(scale: int, depth: int) -> CausalStage:
            shape = (channels[scale], heights[scale], config.attention_bins, config.attention_frames)
            return CausalStage([CausalBlock(*shape, config.head_channels, config.mlp_ratio) for _ in range(depth)])

        self.encoder = nn.ModuleList(stage(s, depth) for s, depth in enumerate(config.encoder_depths))
        self.merges = nn.ModuleList(FrequencyMerge(c, d) for c, d in zip(channels, channels[1:], strict=False))
        self.splits = nn.ModuleList(FrequencySplit(merge) for merge in self.merges)  # type: ignore[arg-type]
        self.decoder = nn.ModuleList(
            stage(s, depth) for s, depth in zip(config.level_scales, config.decoder_depths, strict=True)
        )
        self.quantizers = nn.ModuleList(
            ProductQuantizer(
                heights[scale] * channels[scale],
                config.num_groups,
                dim,
                config.codebook_size,
                kind=config.quantizer,
                joint=True,
                **config.quantizer_options,
            )
            for scale, dim in zip(config.level_scales, config.codebook_dims, strict=True)
        )

    @property
    def delay(self) -> int:
        """One frame is collected, and its last hop is complete only with the next frame."""
        return self.config.samples_per_frame + self.istft.delay

    @property
    def lag(self) -> int:
        """One hop, of the inverse STFT."""
        return self.istft.delay

    def num_frames(self, num_samples: int) -> int:
        """Frames that complete the output up to `num_samples`."""
        return -(-(num_samples + self.config.hop_length) // self.config.samples_per_frame)

    # Transforms between waveform, tokens and scales

    def analyze(self, wav: Tensor, state: PastState | None = None) -> Tensor:
        """(B, T * samples_per_frame) -> compressed spectrum (B, 2 T, F) complex, without the Nyquist bin."""
        spectrum = self.stft(wav, state)[..., : self.config.hop_length]
        return compress(spectrum, self.config.exponent) * self.spectrum_scale

    def linear_spectrum(self, spectrum: Tensor) -> Tensor:
        """See `Codec.linear_spectrum`; without the Nyquist bin."""
        return expand(spectrum / self.spectrum_scale, self.config.exponent)

    def synthesize(self, spectrum: Tensor, state: PastState | None = None) -> Tensor:
        """Inverse of `analyze`, one hop late: (B, 2 T, F) -> (B, T * samples_per_frame)."""
        return self.istft(F.pad(self.linear_spectrum(spectrum), (0, 1)), state)

    def patches(self, spectrum: Tensor) -> Tensor:
        """(B, 2 T, F) complex -> (B, T, H, patch_size) real."""
        parts = torch.view_as_real(spectrum)
        return rearrange(
            parts, "b (t p) (h f) c -> b t h (p f c)", p=self.config.patch_frames, h=self.config.num_tokens
        )

    def unpatch(self, patches: Tensor) -> Tensor:
        """Inverse of `patches`."""
        shape = {"p": self.config.patch_frames, "f": self.config.patch_bins}
        return torch.view_as_complex(rearrange(patches, "b t h (p f c) -> b (t p) (h f) c", **shape).contiguous())

    def encoder_scales(self, spectrum: Tensor, state: StateList | None = None) -> list[Tensor]:
        """(B, 2 T, F) complex -> features (B, T, H, C) of every scale, finest first."""
        x, scales = self.embed(self.patches(spectrum)), []
        for scale, stage in enumerate(self.encoder):
            x = stage(x if scale == 0 else self.merges[scale - 1](x), state.children[scale] if state else None)
            scales.append(x)
        return scales

    def run_decoder(
        self, read: Callable[[int, Tensor | None], Tensor], levels: int, stages: int, state: StateList | None = None
    ) -> Tensor:
        """Run the first `stages` decoder stages. `read(level, features)` returns the quantized residual of a level.

        The features are None before level 0. Levels from `levels` on are not read, their stages run all the same.
        Returns the features at the scale where the next level attaches; after the last, at the finest.
        """
        x = read(0, None)
        scales = (*self.config.level_scales, 0)
        for level in range(stages):
            if 0 < level < levels:
                x = x + read(level, x)
            x = self.decoder[level](x, state.children[level] if state else None)
            for scale in range(scales[level], scales[level + 1], -1):
                x = self.splits[scale - 1](x)
        return x

    # What a user calls

    def initial_encoder_state(self, batch_size: int) -> EncoderState:
        """State of `batch_size` encoding sessions after silence."""
        return EncoderState(
            self.stft.initial_state(batch_size),
            StateList([stage.initial_state(batch_size) for stage in self.encoder]),  # type: ignore[operator]
            StateList([stage.initial_state(batch_size) for stage in self.decoder]),  # type: ignore[operator]
        )

    def initial_decoder_state(self, batch_size: int) -> DecoderState:
        """State of `batch_size` decoding sessions after silence."""
        stages = StateList([stage.initial_state(batch_size) for stage in self.decoder])  # type: ignore[operator]
        return DecoderState(stages, self.istft.initial_state(batch_size))

    @torch.no_grad()
    def encode(
        self,
        wav: Tensor,
        lengths: Tensor | None = None,
        levels: int | None = None,
        state: EncoderState | None = None,
    ) -> Tensor:
        """See `Codec.encode`. With a `state`, `wav` is the next whole frames of a live signal (no padding is added)."""
        self.check_wav(wav, lengths)
        wav = wav.to(self.embed.weight.dtype)
        levels = self.check_levels(levels)
        size = self.config.samples_per_frame
        if state is not None:
            if lengths is not None or wav.shape[1] % size:
                raise AudioError(f"a live chunk is a multiple of {size} samples without lengths, got {wav.shape[1]}")
            return self._encode_chunk(wav, levels, state)
        if lengths is not None:
            inside = torch.arange(wav.shape[1], device=wav.device) < lengths[:, None].to(wav.device)
            wav = torch.where(inside, wav, 0)
        frames = self.num_frames(wav.shape[1])
        wav = F.pad(wav, (0, frames * size - wav.shape[1]))
        state = self.initial_encoder_state(len(wav))
        codes = torch.cat([self._encode_chunk(c, levels, state) for c in wav.split(CHUNK_FRAMES * size, dim=1)], dim=-1)
        if lengths is not None:
            valid = torch.tensor([self.num_frames(n) for n in lengths.tolist()], device=codes.device)
            codes = codes * (torch.arange(frames, device=codes.device) < valid[:, None])[:, None, None]
        return codes

    def _encode_chunk(self, wav: Tensor, levels: int, state: EncoderState) -> Tensor:
        scales = self.encoder_scales(self.analyze(wav, state.stft), state.stages)
        codes: list[Tensor] = []

        def read(level: int, x: Tensor | None) -> Tensor:
            target = scales[self.config.level_scales[level]]
            code, x_q = self.quantizers[level].encode((target if x is None else target - x).flatten(2))  # type: ignore[operator]
            codes.append(code)
            return x_q.view_as(target)

        # The last level's residual is taken before its stage, so that stage need not run: stop one short, then read.
        last = levels - 1
        read(last, self.run_decoder(read, last, last, state.decoder) if last else None)
        return torch.stack(codes, dim=1)

    @torch.no_grad()
    def decode(self, codes: Tensor, num_samples: int | None = None, state: DecoderState | None = None) -> Tensor:
        """See `Codec.decode`. With a `state`: (B, T * samples_per_frame) samples, which lag one hop behind."""
        codes = self.check_codes(codes)
        if state is not None:
            if num_samples is not None:
                raise AudioError("num_samples belongs to whole signals; a live chunk gives all its samples")
            return self._decode_chunk(codes, state)
        available = codes.shape[-1] * self.config.samples_per_frame - self.istft.delay
        num_samples = available if num_samples is None else num_samples
        if not 0 <= num_samples <= available:
            raise AudioError(f"{codes.shape[-1]} frames hold up to {available} samples, {num_samples} were asked for")
        state = self.initial_decoder_state(len(codes))
        wav = torch.cat([self._decode_chunk(c, state) for c in codes.split(CHUNK_FRAMES, dim=-1)], dim=1)
        return wav[:, self.istft.delay : self.istft.delay + num_samples]

    def _decode_chunk(self, codes: Tensor, state: DecoderState) -> Tensor:
        def read(level: int, x: Tensor | None) -> Tensor:
            scale = self.config.level_scales[level]
            x_q = self.quantizers[level].decode(codes[:, level])  # type: ignore[operator]
            return x_q.unflatten(-1, (self.config.num_tokens >> scale, self.config.channels[scale]))

        x = self.run_decoder(read, codes.shape[1], self.config.levels, state.stages)
        return self.synthesize(self.unpatch(self.deembed(x)), state.istft)

    # Training

    def forward(self, wav: Tensor, levels: Tensor | int | None = None, bypass: bool = False) -> CodecOutput:
        """Encode, quantize and decode (B, N), N a multiple of `samples_per_frame`; the output lags one hop.

        `levels` (B,) gives each item its own number of levels; it must not rise, so that the items that use a level
        are the first rows. `bypass` leaves the quantization out, not the projections around it.
        """
        counts = torch.full((len(wav),), self.config.levels) if levels is None else torch.as_tensor(levels).cpu()
        counts = counts.expand(len(wav))
        assert bool((counts[:-1] >= counts[1:]).all()) and int(counts[-1]) >= 1, "levels must not rise"
        spectrum = self.analyze(wav)
        scales = self.encoder_scales(spectrum)
        codes: list[Tensor] = []
        losses = [torch.zeros(2, device=wav.device)]

        def read(level: int, x: Tensor | None) -> Tensor:
            rows = int((counts > level).sum())
            target = scales[self.config.level_scales[level]]
            residual = target[:rows] if x is None else target[:rows] - x[:rows]
            x_q, code, commitment, codebook = self.quantizers[level](residual.flatten(2), bypass=bypass)
            codes.append(code)
            losses.append(torch.stack([commitment, codebook]))
            return F.pad(x_q.view_as(residual), (0, 0, 0, 0, 0, 0, 0, len(wav) - rows))

        x = self.run_decoder(read, int(counts[0]), self.config.levels)
        decoded = self.unpatch(self.deembed(x))
        commitment, codebook = torch.stack(losses).sum(0)
        return CodecOutput(self.synthesize(decoded), decoded, spectrum, codes, commitment, codebook)
