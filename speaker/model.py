"""A speaker encoder: waveform -> front end -> network -> embedding. Read this first.

    encoder = speaker.load(FOLDER)
    embeddings = encoder(wav)                       # (B, N) at 16 kHz -> (B, D), not normalized
    embeddings = encoder(padded, lengths=lengths)   # each item as if it were alone

The networks are in `speaker.backbones`, one paper a file; the front ends, which differ from project to project and are
part of a model, in `engine.features`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine import checkpoint
from engine.devices import placed
from engine.errors import AudioError, CheckpointError, ConfigError
from engine.features import FrontEnd, FrontEndConfig
from speaker.backbones import BACKBONES

__all__ = ["SpeakerConfig", "SpeakerEncoder", "default", "load"]


@dataclass(frozen=True, kw_only=True)
class SpeakerConfig:
    """`network` is the configuration of one of the BACKBONES, whose kind its type tells."""

    front_end: FrontEndConfig = field(default_factory=FrontEndConfig)
    network: Any

    def __post_init__(self) -> None:
        if self.kind and self.network.num_bins != self.front_end.num_features:
            raise ConfigError(
                f"the network takes {self.network.num_bins} features a frame, the front end gives "
                f"{self.front_end.num_features}"
            )

    @property
    def kind(self) -> str:
        """Name of the backbone."""
        for name, (_, config) in BACKBONES.items():
            if isinstance(self.network, config):
                return name
        raise ConfigError(f"{type(self.network).__name__} configures none of {', '.join(BACKBONES)}")


class SpeakerEncoder(nn.Module):
    """(B, N) samples -> (B, D) embeddings, not normalized."""

    def __init__(self, config: SpeakerConfig) -> None:
        super().__init__()
        self.config = config
        self.front_end = FrontEnd(config.front_end)
        self.backbone = BACKBONES[config.kind][0](config.network)
        self.name = "unsaved"
        self.digest = ""  # beginning of the sha256 of the weights it was loaded from

    @property
    def identity(self) -> str:
        """`name@digest`: embeddings, stores, cohorts and calibrations are of the encoder that they name so.

        Without what names of systems of scores are taken apart by: "ecapa (1)" is a copy that a file manager makes.
        """
        return f"{re.sub(r'[@:&()]', '_', self.name)}@{self.digest}"

    @property
    def embedding_dim(self) -> int:
        """D."""
        return self.config.network.embedding_dim

    @property
    def min_samples(self) -> int:
        """The shortest signal that has an embedding."""
        front, frames = self.config.front_end, self.backbone.min_frames
        samples = front.min_samples
        while front.num_frames(samples) < frames:
            samples += front.hop_length - samples % front.hop_length if front.framing != "snip" else front.hop_length
        return samples

    def forward(self, wav: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Embed (B, N) float samples in [-1, 1], items of `lengths` (B,) samples, each as if it were alone.

        Raises AudioError for what is not finite, not floating point, or too short.
        """
        if not torch.compiler.is_compiling():
            self._check(wav, lengths)
            if wav.dtype == torch.float64 and next(self.parameters()).dtype != torch.float64:  # NumPy's, unasked
                wav = wav.float()
            if lengths is not None and not torch.jit.is_tracing() and int(lengths.min()) == wav.shape[1]:
                lengths = None  # nothing is padded: no masks, a tenth of the time
        with torch.autocast(wav.device.type, enabled=False):  # the network alone may compute in lower precision
            features, num_frames = self.front_end(wav, lengths)
        return self.backbone(features, None if lengths is None else num_frames)

    def _check(self, wav: Tensor, lengths: Tensor | None) -> None:
        if not isinstance(wav, Tensor):
            raise AudioError(f"expected a tensor (batch, N), got {type(wav).__name__}; torch.from_numpy makes one of "
                             "a NumPy array")  # fmt: skip
        if wav.ndim != 2 or wav.numel() == 0:
            raise AudioError(f"expected samples (batch, N) with N > 0, got shape {tuple(wav.shape)}")
        if not wav.is_floating_point():
            raise AudioError(f"expected floating point samples in [-1, 1], got {wav.dtype}; divide int16 by 32768")
        if not torch.isfinite(wav).all():
            raise AudioError("the samples contain NaN or infinity")
        if lengths is not None and (lengths.shape != (len(wav),) or int(lengths.max()) > wav.shape[1]):
            raise AudioError(f"lengths must be {len(wav)} values up to {wav.shape[1]}, got {lengths.tolist()}")
        shortest = wav.shape[1] if lengths is None else int(lengths.min())
        if shortest < self.min_samples:
            rate = self.config.front_end.sample_rate
            raise AudioError(
                f"{shortest / rate:.3f} s are too short for an embedding; {self.name} needs at least "
                f"{self.min_samples / rate:.3f} s ({self.min_samples} samples)"
            )


DEFAULT = "ecapa"


def default() -> str:
    """The encoder that commands take when none is named; CheckpointError where none is shipped."""
    if DEFAULT not in checkpoint.shipped():
        raise CheckpointError(
            "this installation comes without a trained encoder; convert one of another project (`speaker convert`) and "
            "give --model FOLDER"
        )
    return DEFAULT


def load(name_or_path: str | Path, device: str | torch.device = "cpu") -> SpeakerEncoder:
    """Load an encoder in evaluation mode by shipped name, folder, or `hf://owner/name`.

    Raises CheckpointError if there is none, if it was altered, or if its weights do not fit its configuration, and
    ConfigError for a device that does not compute here.
    """
    folder = checkpoint.find(name_or_path)
    kind, values, state, sha256 = checkpoint.read(folder)
    if kind not in BACKBONES:
        raise CheckpointError(f"{folder}: a model of kind {kind!r} is no speaker encoder: {', '.join(BACKBONES)} are")
    if values.keys() != {"front_end", "network"}:
        raise CheckpointError(f"{folder}: expected exactly front_end and network, got {', '.join(values)}")
    config = SpeakerConfig(
        front_end=checkpoint.load_config(FrontEndConfig, values["front_end"]),
        network=checkpoint.load_config(BACKBONES[kind][1], values["network"]),
    )
    encoder = SpeakerEncoder(config)
    try:
        encoder.backbone.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{folder}: the weights do not fit config.json: {error}") from error
    encoder.name, encoder.digest = folder.resolve().name, sha256[:12]
    return placed(encoder.eval().requires_grad_(False), device)


def save(folder: str | Path, encoder: SpeakerEncoder, card: str) -> str:
    """Write an encoder as a folder that `load` reads; return the sha256 of the weights."""
    config = encoder.config
    return checkpoint.save(folder, encoder.backbone, kind=config.kind, config=config, card=card)
