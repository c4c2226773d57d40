"""The network of ESC, between complex spectrum and codes (Gu and Diao, EMNLP 2024, arXiv 2404.19441, sections 3.1-3.3).

The encoder halves the frequency axis stage by stage, e_0 to e_5. The decoder starts from the quantized coarsest
features and doubles the axis again; before each of its stages it adds the quantized difference between the encoder's
features of that scale and its own:

    x = Q_0(e_5);   x = stage_i(x + Q_{i+1}(e_{5-i} - x)),  i = 0..4;   spectrum = deembed(post(x))

Level l is left out by leaving out its term. In the ablation ("residual") six quantizers in a row make Q_0, and no
other term is there.

Tokens are (B, T, H, C): T patch columns of 10 ms, H rows in frequency, C channels. Codes are (B, L, G, K) with K code
frames of 20 ms.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from codec.esc_config import EscConfig
from codec.quantizers import ProductQuantizer, ResidualQuantizer
from codec.transformer import PatchDeembed, PatchEmbed, Stage, WindowBlock


class Encoder(nn.Module):
    """Spectrum -> features of every scale."""

    def __init__(self, config: EscConfig) -> None:
        super().__init__()
        channels, heads = config.channels, config.heads
        self.embed = PatchEmbed(channels[0], config.patch_bins, config.patch_frames)
        self.pre = Stage(channels[0], channels[0], "keep", heads[0], config.depth, config.window, config.mlp_ratio)
        self.stages = nn.ModuleList(
            Stage(c, d, "merge", h, config.depth, config.window, config.mlp_ratio)
            for c, d, h in zip(channels, channels[1:], heads, strict=False)
        )

    def forward(self, spectrum: Tensor) -> list[Tensor]:
        """(B, 2, F, T') -> features (B, T, H, C), finest scale first."""
        features = [self.pre(self.embed(spectrum))]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return features


class Decoder(nn.Module):
    """The stages back from the coarsest features, and a spectrum from the finest."""

    def __init__(self, config: EscConfig) -> None:
        super().__init__()
        channels, heads = config.channels[::-1], config.heads[::-1]
        self.stages = nn.ModuleList(
            Stage(c, d, "split", h, config.depth, config.window, config.mlp_ratio)
            for c, d, h in zip(channels, channels[1:], heads, strict=False)
        )
        self.post = Stage(channels[-1], channels[-1], "keep", heads[-1], config.depth, config.window, config.mlp_ratio)
        self.deembed = PatchDeembed(channels[-1], config.patch_bins, config.patch_frames)

    def forward(self, x: Tensor) -> Tensor:
        """Finest features (B, T, H, C) -> spectrum (B, 2, F, T')."""
        return self.deembed(self.post(x))


class EscNetwork(nn.Module):
    """Spectrum (B, 2, F, T') <-> codes (B, L, G, K)."""

    def __init__(self, config: EscConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        groups, size, dims = config.num_groups, config.codebook_size, config.codebook_dims
        if config.quantization == "residual":
            stack = ResidualQuantizer(config.vector_dim(self._scale(0)), config.levels, groups, dims[0], size)
            self.quantizers = nn.ModuleList([stack])
        else:
            self.quantizers = nn.ModuleList(
                ProductQuantizer(config.vector_dim(self._scale(level)), groups, dim, size)
                for level, dim in enumerate(dims)
            )

    def encode(self, spectrum: Tensor, levels: int) -> Tensor:
        """(B, 2, F, T') -> codes (B, levels, G, K)."""
        features = self.encoder(spectrum)
        if self.config.quantization == "residual":
            return self.quantizers[0].encode(self._vectors(features[-1]), levels)[0]  # type: ignore[operator]
        codes: list[Tensor] = []

        def read(level: int, x: Tensor | None) -> Tensor:
            target = features[self._scale(level)]
            code, x_q = self.quantizers[level].encode(self._vectors(target if x is None else target - x))  # type: ignore[operator]
            codes.append(code)
            return self._features(x_q, level)

        # The last level needs what the stages before it give, not its own.
        last = levels - 1
        read(last, self._refine(read, last, last - 1) if last else None)
        return torch.stack(codes, dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, L, G, K) -> spectrum (B, 2, F, T')."""
        levels = codes.shape[1]

        def read(level: int, x: Tensor | None) -> Tensor:
            one_level = codes if self.config.quantization == "residual" else codes[:, level]
            return self._features(self.quantizers[level].decode(one_level), level)  # type: ignore[operator]

        levels = 1 if self.config.quantization == "residual" else levels
        return self.decoder(self._refine(read, levels, len(self.decoder.stages)))

    def forward(self, spectrum: Tensor, counts: Tensor, bypass: bool) -> tuple[Tensor, list[Tensor], Tensor]:
        """Encode, quantize and decode (B, 2, F, T') with gradients.

        Item i uses `counts[i]` levels; counts must not rise. Returns the decoded spectrum, codes per level (rows that
        use it, G, K), and the commitment and codebook losses (2,): means over groups, sums over levels.
        """
        features = self.encoder(spectrum)
        codes: list[Tensor] = []
        losses: list[Tensor] = []

        def read(level: int, x: Tensor | None) -> Tensor:
            target = features[self._scale(level)]
            if self.config.quantization == "residual":
                x_q, loss = self._residual(self._vectors(target), counts, bypass, codes)
                losses.append(loss)
                return self._features(x_q, level)
            rows = int((counts > level).sum())
            residual = target[:rows] if x is None else target[:rows] - x[:rows]
            x_q, code, *loss = self.quantizers[level](self._vectors(residual), bypass=bypass)
            codes.append(code)
            losses.append(torch.stack(loss))
            return F.pad(self._features(x_q, level), (0, 0, 0, 0, 0, 0, 0, len(target) - rows))

        levels = 1 if self.config.quantization == "residual" else int(counts[0])
        decoded = self.decoder(self._refine(read, levels, len(self.decoder.stages)))
        return decoded, codes, torch.stack(losses).sum(0)

    @torch.no_grad()
    def start_codebooks(self, spectrum: Tensor) -> None:
        """Start every codebook on the residuals of speech (B, 2, F, T'), each level on what those before left."""
        features = self.encoder(spectrum)

        def read(level: int, x: Tensor | None) -> Tensor:
            target = features[self._scale(level)]
            vectors = self._vectors(target if x is None else target - x)
            self.quantizers[level].initialize(vectors)  # type: ignore[operator]
            return self._features(self.quantizers[level].encode(vectors)[1], level)  # type: ignore[operator]

        if self.config.quantization == "residual":
            self.quantizers[0].initialize(self._vectors(features[-1]))  # type: ignore[operator]
        else:
            last = self.config.levels - 1
            read(last, self._refine(read, last, last - 1) if last else None)

    def _refine(self, read: Callable[[int, Tensor | None], Tensor], levels: int, num_stages: int) -> Tensor:
        """Run the first `num_stages` decoder stages; `read(level, features)` returns the quantized residual."""
        x = read(0, None)
        for i, stage in enumerate(self.decoder.stages[:num_stages]):
            if i + 1 < levels:
                x = x + read(i + 1, x)
            x = stage(x)
        return x

    def _residual(self, x: Tensor, counts: Tensor, bypass: bool, codes: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Quantize x (B, K, D) at the bottleneck, rows with equal counts together; append the codes by level."""
        values, sizes = (each.tolist() for each in torch.unique_consecutive(counts, return_counts=True))
        parts: list[Tensor] = []
        codes_of: list[Tensor] = []
        losses: list[Tensor] = []
        for count, rows in zip(values, x.split(sizes), strict=True):
            x_q, code, *loss = self.quantizers[0](rows, count, bypass)
            parts.append(x_q)
            codes_of.append(code[:, :count])
            losses.append(torch.stack(loss) * len(rows) / len(x))
        for level in range(values[0]):
            codes.append(torch.cat([code[:, level] for code in codes_of if code.shape[1] > level]))
        return torch.cat(parts), torch.stack(losses).sum(0)

    def _scale(self, level: int) -> int:
        """Scale of the features that a level quantizes; the coarsest has two levels."""
        return len(self.config.channels) - max(level, 1)

    def _vectors(self, x: Tensor) -> Tensor:
        """Features (B, T, H, C) -> vectors to quantize (B, K, D)."""
        return rearrange(x, "b (k o) h c -> b k (o c h)", o=self.config.columns_per_frame)

    def _features(self, vectors: Tensor, level: int) -> Tensor:
        """Inverse of `_vectors`."""
        rows = self.config.rows(self._scale(level))
        return rearrange(vectors, "b k (o c h) -> b (k o) h c", o=self.config.columns_per_frame, h=rows)

    def encoder_shifts(self, levels: int) -> list[int]:
        """Shifts of the windows that encoding `levels` levels goes through, in order."""
        follows = max(levels - 2, 0) if self.config.quantization == "cross_scale" else 0
        return _shifts(self.encoder, *self.decoder.stages[:follows])

    def decoder_shifts(self) -> list[int]:
        """Shifts of the windows that decoding goes through, in order."""
        return _shifts(self.decoder)


def _shifts(*modules: nn.Module) -> list[int]:
    blocks = [m for module in modules for m in module.modules() if isinstance(m, WindowBlock)]
    return [block.attention.shift for block in blocks]
