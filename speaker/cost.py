"""What an encoder costs and how far it looks."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from speaker.model import SpeakerEncoder

WHOLE = ("ecapa_tdnn", "titanet")  # kinds whose squeeze-and-excitation takes means over the recording


@torch.no_grad()
def macs_per_second(encoder: SpeakerEncoder, seconds: int = 4) -> int:
    """Multiplications with additions of the network for a second of audio, on average over so many seconds."""
    front = encoder.config.front_end
    features, _ = encoder.front_end(torch.zeros(1, seconds * front.sample_rate, device=encoder.front_end.window.device))
    with FlopCounterMode(display=False) as counter:
        encoder.backbone(features)
    return counter.get_total_flops() // 2 // seconds


def receptive_field(encoder: SpeakerEncoder) -> float | None:
    """Seconds that a vector depends on before it is pooled; None where squeeze-and-excitation sees all of them."""
    if encoder.config.kind in WHOLE:
        return None
    front, frames = encoder.config.front_end, 2 * encoder.backbone.halo + encoder.backbone.shrink
    return (frames * front.hop_length + front.win_length) / front.sample_rate
