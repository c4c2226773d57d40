"""Does a converted encoder give the numbers of the original? Both embed the same signals, where the original is there.

SpeechBrain's ECAPA-TDNN is built from the weights alone. The other projects are not compared here: their packages build
a network from configuration files that do not lie beside the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from engine import audio
from speaker.model import SpeakerEncoder

__all__ = ["Parity", "compare", "signals_of_test"]

RECORDINGS = Path(audio.__file__).parent / "recordings"
Embed = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Parity:
    """Over all signals: the largest difference of a number of the embedding, and the lowest cosine."""

    signals: int
    difference: float
    cosine: float

    def __str__(self) -> str:
        return (
            f"{self.signals} signals beside the original: largest difference {self.difference:.1e}, lowest cosine "
            f"1 - {max(0.0, 1 - self.cosine):.1e}"
        )


def compare(encoder: SpeakerEncoder, origin: str, weights: Mapping[str, Tensor]) -> Parity | str:
    """Embed with both; a sentence where that cannot be done."""
    if origin != "speechbrain":
        return f"not compared: {origin} does not build its network from the weights alone"
    try:
        theirs = _speechbrain(encoder, weights)
    except ImportError:
        return "not compared: install speechbrain to compare (`pip install speechbrain`)"
    difference, cosine, signals = 0.0, 1.0, signals_of_test()
    with torch.inference_mode():
        for wav in signals:
            found, expected = encoder(wav).double(), theirs(wav).double()
            difference = max(difference, float((found - expected).abs().max()))
            cosine = min(cosine, float(torch.cosine_similarity(found, expected).min()))
    return Parity(len(signals), difference, cosine)


def signals_of_test() -> list[Tensor]:
    """(1, N) at 16 kHz: noise of two lengths, and the first seconds of the recordings that are bundled."""
    generator = torch.Generator().manual_seed(0)
    found = [0.1 * torch.randn(1, length, generator=generator) for length in (16000, 48123)]
    for path in sorted(RECORDINGS.glob("*.flac"))[:2]:
        found.append(audio.load(path, 16000, mono=True)[0][:, :48000])
    return found


def _speechbrain(encoder: SpeakerEncoder, weights: Mapping[str, Tensor]) -> Embed:
    from speechbrain.lobes.features import Fbank
    from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN

    config = encoder.config.network
    blocks = len(config.dilations)
    network = ECAPA_TDNN(
        config.num_bins, lin_neurons=config.embedding_dim,
        channels=[config.channels] * (blocks + 1) + [config.mfa_channels],
        kernel_sizes=[config.kernel] + [3] * blocks + [1], dilations=[1, *config.dilations, 1],
        groups=[1] * (blocks + 2),
        attention_channels=config.attention_channels, res2net_scale=config.res2_scale,
        se_channels=config.squeeze_channels,
    ).eval()  # fmt: skip
    network.load_state_dict(dict(weights))
    features = Fbank(n_mels=config.num_bins)

    def embed(wav: Tensor) -> Tensor:
        found = features(wav)
        result: Tensor = network(found - found.mean(1, keepdim=True))  # what its sentence normalization does
        return result[:, 0]

    return embed
