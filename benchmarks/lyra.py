"""Lyra v2 (github.com/google/lyra, Apache-2.0) through the three TFLite graphs that it publishes.

The folder given holds soundstream_encoder.tflite, quantizer.tflite and lyragan.tflite as in `lyra/model_coeffs`; the
package `ai-edge-litert` runs them. Frames of 20 ms at 16 kHz are 64 features each, coded by up to 46 residual
quantizers of 4 bits; the three rates are the first 16, 30 or 46 of them, one packet of 8, 15 or 23 bytes a frame.
Lyra has no file format: what it costs is its packets.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.coders import Coded, Coder, Signal
from engine.errors import SpeechError

HOP = 320
QUANTIZERS = {"Lyra v2 3.2": 16, "Lyra v2 6": 30, "Lyra v2 9.2": 46}
BITS = 4
TAIL = 1600  # samples of silence behind the signal, so that aligning never needs what was not decoded


def lyra(folder: Path) -> Coder:
    """Lyra v2 at its three rates; SpeechError if the graphs or the package are missing."""
    for name in ("soundstream_encoder", "quantizer", "lyragan"):
        if not (folder / f"{name}.tflite").is_file():
            raise SpeechError(f"{folder} has no {name}.tflite; it is in lyra/model_coeffs of github.com/google/lyra")
    quantizer = _interpreter(folder / "quantizer.tflite")
    encode, decode = (quantizer.get_signature_runner(name) for name in ("encode", "decode"))
    count_shape = encode.get_input_details()["num_quantizers"]["shape"]

    def code(signal: Signal) -> list[Coded]:
        frames = math.ceil(len(signal) / HOP)
        padded = np.pad(signal, (0, math.ceil((len(signal) + TAIL) / HOP) * HOP - len(signal)))
        features = _run(folder / "soundstream_encoder.tflite", padded.reshape(-1, 1, HOP))
        # Residual quantizers are nested: the first 16 of 46 codes are the 16 codes.
        most = np.full(count_shape, max(QUANTIZERS.values()), np.int32)
        codes = [
            encode(input_frames=frame.reshape(1, 1, -1), num_quantizers=most)["output_0"].reshape(-1)
            for frame in features
        ]
        coded = []
        for count in QUANTIZERS.values():
            kept = [np.where(np.arange(len(c)) < count, c, -1).astype(np.int32).reshape(-1, 1, 1) for c in codes]
            lossy = np.stack([decode(encoding_indices=k)["output_0"].reshape(1, 1, -1) for k in kept])
            wav = _run(folder / "lyragan.tflite", lossy).reshape(-1)
            pcm = np.clip(wav * 32768, -32768, 32767).astype(np.int16)  # truncated, as the C++ does
            bits = frames * count * BITS
            coded.append(Coded((pcm / np.float32(32768)).astype(np.float32), bits // 8, bits))
        return coded

    return Coder(list(QUANTIZERS), code, align=True)


def _run(path: Path, items: NDArray[np.float32]) -> NDArray[np.float32]:
    """Pass items through a graph one by one. A new interpreter for each stream: its state begins with silence."""
    graph = _interpreter(path)
    graph.allocate_tensors()
    source, target = graph.get_input_details()[0]["index"], graph.get_output_details()[0]["index"]
    results = []
    for item in items:
        graph.set_tensor(source, item.astype(np.float32))
        graph.invoke()
        results.append(graph.get_tensor(target))
    return np.stack(results)


def _interpreter(path: Path) -> Any:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise SpeechError("Lyra needs the package ai-edge-litert: pip install ai-edge-litert") from error
    return Interpreter(str(path), num_threads=1)
