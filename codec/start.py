"""Start a codec from data: principal components for the projections of the live one, k-means for the codebooks of both.

The residual branches of `EscLive` start at zero, so at the start the network is linear: a patch transform, merges, and
a quantizer at each level. Random orthogonal projections would throw away a random part of the signal at every merge;
the principal components of what arrives there (Karhunen-Loeve transform) lose the least possible energy. The decoder's
splits are the transposes. Each level's down-projection gets the principal components of the residual that the levels
before left, dealt to the groups in turn so that each group carries about the same energy, and its codebooks start as
k-means centres.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from codec.esc import Esc
from codec.live import EscLive
from codec.quantizers import ProductQuantizer


def principal_components(x: Tensor, count: int) -> Tensor:
    """(..., D) -> (count, D): orthonormal rows, most energy first (of the uncentred covariance)."""
    x = x.flatten(0, -2).double()
    return torch.linalg.eigh(x.T @ x).eigenvectors.flip(1)[:, :count].T.float()


@torch.no_grad()
def start_from_data(model: EscLive | Esc, wav: Tensor) -> None:
    """Set scale, projections and codebooks from speech (B, N), N a multiple of `samples_per_frame`; minutes in all.

    The published codec is far from linear; it gets its codebooks alone.
    """
    if isinstance(model, Esc):
        return start_quantizers(model, wav)
    spectrum = model.analyze(wav)
    energy = spectrum.real.square().mean() + spectrum.imag.square().mean()
    model.spectrum_scale /= (energy / 2).sqrt()
    patches = model.patches(model.analyze(wav))
    width, size = model.embed.weight.shape
    components = principal_components(patches, min(width, size))
    model.embed.weight.zero_()[: len(components)] = components
    model.deembed.weight.copy_(model.embed.weight.T)
    x = model.embed(patches)
    for merge, split in zip(model.merges, model.splits, strict=True):
        assert isinstance(merge.proj, nn.Linear) and isinstance(split.proj, nn.Linear)
        joined = rearrange(x, "b t (h two) c -> b t h (two c)", two=2)
        merge.proj.weight.copy_(principal_components(joined, merge.proj.out_features))
        split.proj.weight.copy_(merge.proj.weight.T)
        x = merge(x)
    start_quantizers(model, wav, projections=True)


@torch.no_grad()
def start_quantizers(model: EscLive | Esc, wav: Tensor, projections: bool = False) -> None:
    """Start every level's codebooks (and with `projections` its linear maps) on the residuals of speech (B, N)."""
    if isinstance(model, Esc):
        frames = model.num_frames(wav.shape[1])
        return model.network.start_codebooks(model.analyze(wav, 0, frames, frames))
    scales = model.encoder_scales(model.analyze(wav))

    def read(level: int, x: Tensor | None) -> Tensor:
        target = scales[model.config.level_scales[level]]
        residual = (target if x is None else target - x).flatten(2)
        quantizer = model.quantizers[level]
        assert isinstance(quantizer, ProductQuantizer)
        down, up = quantizer.down, quantizer.up
        assert isinstance(down, nn.Linear) and isinstance(up, nn.Linear), "the live codec joins its projections"
        if projections:
            groups, dim = model.config.num_groups, model.config.codebook_dims[level]
            rows = principal_components(residual, groups * dim)
            dealt = rearrange(rows, "(d g) n -> (g d) n", g=groups)
            down.weight.copy_(dealt)
            up.weight.copy_(dealt.T)
        quantizer.initialize(residual)
        return quantizer.encode(residual)[1].view_as(target)

    model.run_decoder(read, model.config.levels, model.config.levels)
