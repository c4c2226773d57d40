"""Coding as stages (`engine.pipeline`): samples in, codes out, and the reverse, piece by piece.

    encoder = live_encoder(model, sample_rate=48000)            # ragged chunks (1, n) -> codes (1, L, G, 1)
    decoder = live_decoder(model, sample_rate=48000)            # codes -> (1, n) at 48 kHz
    for chunk in microphone:
        for codes in encoder.push(chunk): ...

What comes out equals the offline result: the same codes, the same sound, from its first sample.
"""

from __future__ import annotations

import torch
from torch import Tensor

from codec.esc import Esc
from codec.esc_stream import EscDecodeStage, EscEncodeStage
from codec.live import CHUNK_FRAMES, DecoderState, EncoderState, EscLive
from codec.model import Codec
from codec.onnx_live import OnnxLive
from engine.errors import ConfigError
from engine.pipeline import Pipeline, Rebuffer, Resample

Live = EscLive | OnnxLive  # what codes live


class EncodeStage:
    """(B, k * samples_per_frame) -> codes (B, levels, G, k). `levels` may be changed between any two pieces."""

    def __init__(self, model: Live, levels: int | None = None, state: EncoderState | None = None) -> None:
        self.model = model
        self.levels = model.check_levels(levels)
        self.state = state or model.initial_encoder_state(1)

    @torch.inference_mode()
    def push(self, item: Tensor) -> list[Tensor]:
        return [self.model.encode(item, levels=self.levels, state=self.state)]

    def flush(self) -> list[Tensor]:
        return []  # the zeros that bring out the last samples come from the Rebuffer before


class DecodeStage:
    """Codes (B, L, G, k) -> (B, n): k frames, the first time less the codec's lag, so that output sample 0 is input
    sample 0; with a `state` given, all of it."""

    def __init__(self, model: Live, state: DecoderState | None = None) -> None:
        self.model = model
        self._lag = 0 if state else model.istft.delay
        self.state = state or model.initial_decoder_state(1)

    @torch.inference_mode()
    def push(self, item: Tensor) -> list[Tensor]:
        wav = self.model.decode(item, state=self.state)
        lag, self._lag = self._lag, 0
        return [wav[:, lag:]]

    def flush(self) -> list[Tensor]:
        return []


def encoder(model: Codec | OnnxLive, levels: int | None = None, frames: int = CHUNK_FRAMES) -> Pipeline:
    """A pipeline from ragged chunks (1, n) at the model's rate to codes (1, L, G, k), `frames` of them at a time."""
    if isinstance(model, Esc):
        return Pipeline(EscEncodeStage(model, levels))
    model = live(model)
    unit = model.config.samples_per_frame
    return Pipeline(Rebuffer(frames * unit, tail=model.istft.delay, unit=unit), EncodeStage(model, levels))


def decoder(model: Codec | OnnxLive) -> Pipeline:
    """A pipeline from codes (1, L, G, k) to (1, n) at the model's rate, with some padding after the signal's end."""
    return Pipeline(EscDecodeStage(model) if isinstance(model, Esc) else DecodeStage(live(model)))


def live_encoder(model: Codec | OnnxLive, sample_rate: int, levels: int | None = None, frames: int = 1) -> Pipeline:
    """A pipeline from ragged chunks (1, n) at `sample_rate` to codes (1, L, G, k), `frames` of them at a time."""
    return Pipeline(Resample(sample_rate, model.config.sample_rate), *encoder(live(model), levels, frames).stages)


def live_decoder(model: Codec | OnnxLive, sample_rate: int) -> Pipeline:
    """A pipeline from codes (1, L, G, k) to chunks (1, n) at `sample_rate`."""
    return Pipeline(*decoder(live(model)).stages, Resample(model.config.sample_rate, sample_rate))


def live(model: Codec | OnnxLive) -> Live:
    """The model, if it can code live; ConfigError if not."""
    if not isinstance(model, EscLive | OnnxLive):
        raise ConfigError(
            f"{model.name} ({model.kind}) looks {1000 * model.delay / model.config.sample_rate:.0f} ms ahead and "
            "cannot code live; take a model of the kind esc_live"
        )
    return model
