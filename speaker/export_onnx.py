"""An encoder as one ONNX graph: waveforms and their lengths in, embeddings of unit length out, front end included.

    wav (batch, samples) float32, lengths (batch,) int64 -> embedding (batch, D) float32

Items of a batch may be padded; batch and time are free. The Fourier transform becomes two matrices, since runtimes
differ in what they make of ONNX's own.
"""

from __future__ import annotations

import json
import logging
import math
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.errors import SpeechError
from engine.files import replacing
from speaker.model import SpeakerEncoder

OPSET = 18


class Graph(nn.Module):
    """What is exported."""

    def __init__(self, encoder: SpeakerEncoder) -> None:
        super().__init__()
        self.front_end, self.backbone = encoder.front_end, encoder.backbone
        size, frame = encoder.config.front_end.n_fft, len(encoder.front_end.window)
        phase = 2 * math.pi / size * torch.outer(torch.arange(frame), torch.arange(size // 2 + 1)).double()
        self.register_buffer("cosine", phase.cos().float())
        self.register_buffer("sine", phase.sin().float())
        self.cosine: Tensor
        self.sine: Tensor

    def forward(self, wav: Tensor, lengths: Tensor) -> Tensor:
        """(B, N), (B,) -> (B, D)."""
        front = self.front_end
        original = front.power_spectrum
        front.power_spectrum = self.power_spectrum  # type: ignore[method-assign]
        try:
            features, num_frames = front(wav, lengths)
        finally:
            front.power_spectrum = original  # type: ignore[method-assign]
        return F.normalize(self.backbone(features, num_frames), dim=-1)

    def power_spectrum(self, frames: Tensor) -> Tensor:
        """As `FrontEnd.power_spectrum`."""
        return (frames @ self.cosine).square() + (frames @ self.sine).square()


def export(encoder: SpeakerEncoder, path: Path) -> None:
    """Write `encoder` to `path`; SpeechError where the packages for it are missing."""
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise SpeechError(f"export needs {error.name}: pip install 'voxcode[onnx]'") from error
    rate = encoder.config.front_end.sample_rate
    wav = torch.zeros(2, 2 * rate)
    lengths = torch.tensor([2 * rate, rate])
    batch, samples = torch.export.Dim("batch", min=1), torch.export.Dim("samples", min=encoder.min_samples)
    shapes: Any = {"wav": {0: batch, 1: samples}, "lengths": {0: batch}}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Graph(encoder).eval(), (wav, lengths), dynamo=True, dynamic_shapes=shapes, opset_version=OPSET,
            input_names=["wav", "lengths"], output_names=["embedding"], verbose=False,
        )  # fmt: skip
    assert program is not None
    model = program.model_proto
    facts = {"name": encoder.name, "weights": encoder.digest, "sample_rate": rate, "min_samples": encoder.min_samples}
    onnx.helper.set_model_props(model, {"voxcode": json.dumps(facts)})
    with replacing(path) as temporary:
        temporary.write_bytes(model.SerializeToString())
