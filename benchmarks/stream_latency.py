"""Compute per frame of 20 ms, and how many live sessions one core holds, for each way to run a step.

    python -m benchmarks.stream_latency [--frames 500] [--sessions 8 16 32 64] [--write docs/streaming.md]

One thread. Latency: one session, each frame timed, percentiles over frames. Load: sessions in one batch, each with its
frame every 20 ms; a core holds as many as it can code, encode and decode, in that time. The backends take turns frame
by frame, so that whatever else the machine does hits all alike. TorchScript and torch.compile run the same step with
the states as arguments.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import codec
from benchmarks import report
from codec.live import EscLive
from codec.onnx_live import OnnxLive
from codec.stream import live
from engine.errors import SpeechError
from engine.streaming import rebuilt

Function = Callable[..., tuple[Tensor, ...]]
Duplex = Callable[[Tensor], tuple[float, float]]  # (B, 320) -> seconds of encode and of decode


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="esc_live")
    parser.add_argument("--frames", type=int, default=500, help="timed for one session (default: %(default)s)")
    parser.add_argument("--sessions", type=int, nargs="*", default=[8, 16, 32, 64])
    parser.add_argument("--backends", nargs="+", default=list(BACKENDS), choices=BACKENDS)
    parser.add_argument("--write", type=Path, help="document to write the tables into")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*(TracerWarning|torch.jit).*")

    def made() -> str:
        model = live(codec.load(options.model))
        assert isinstance(model, EscLive)  # codec.load makes no other live one
        return measure(model, options.backends, options.sessions, options.frames)

    return report.publish("stream_latency", "latency", made, [options.write])


@torch.inference_mode()
def measure(model: EscLive, backends: list[str], sessions: list[int], frames: int) -> str:
    """Two tables: latency, and how many sessions a core holds."""
    latency = []
    for name, times, opened in _measured(model, backends, 1, frames):
        encode, decode = 1000 * times.T
        cells = [_percentiles(values) for values in (encode, decode, encode + decode)]
        latency.append([name, *cells, f"{opened:.1f} s"])
    heading = ["backend", "encode ms, p50 / p95 / p99", "decode", "both", "set-up"]
    text = report.table(heading, latency) + "\n\nSessions that one core holds, by how many are in a batch:\n\n"
    text += report.table(["backend", *map(str, sessions)], capacity(model, backends, sessions, frames))
    return f"{text}\n\n{model.name}, all levels, one thread of {_processor()}; torch {torch.__version__}."


def capacity(model: EscLive, backends: list[str], sessions: list[int], frames: int) -> list[list[str]]:
    """A row for each backend that runs with any number of sessions; "-" where it does not."""
    rows = {name: [name] for name in backends}
    for batch in sessions:
        held = {name: f"{batch * 0.02 / np.median(times.sum(1)):.0f}"
                for name, times, _ in _measured(model, backends, batch, max(10, frames // batch))}  # fmt: skip
        for name, row in rows.items():
            row.append(held.get(name, "-"))
    return [row for row in rows.values() if {*row[1:]} - {"-"}]


def _percentiles(values: np.ndarray) -> str:
    return " / ".join(f"{np.percentile(values, share):.1f}" for share in (50, 95, 99))


def _measured(model: EscLive, names: list[str], batch: int, frames: int) -> Iterator[tuple[str, np.ndarray, float]]:
    """Each backend that runs here, with its times (frames, 2) in seconds and the seconds it took to set up."""
    running: dict[str, tuple[Duplex, float]] = {}
    wav = 0.1 * torch.randn(batch, model.config.samples_per_frame, generator=torch.Generator().manual_seed(0))
    for name in names:
        start = time.perf_counter()
        try:
            step = BACKENDS[name](model, batch)
            step(wav)
        except (SpeechError, RuntimeError) as error:
            print(f"{name} does not run here: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        running[name] = step, time.perf_counter() - start
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in running}
    for frame in range(frames + 5):
        for name, (step, _) in running.items():
            taken = step(wav.roll(37 * frame, 1))
            if frame >= 5:
                times[name].append(taken)
    for name, (_, opened) in running.items():
        yield name, np.array(times[name]), opened


def _stateful(live: EscLive | OnnxLive, batch: int) -> Duplex:
    encoder, decoder = live.initial_encoder_state(batch), live.initial_decoder_state(batch)

    def step(wav: Tensor) -> tuple[float, float]:
        start = time.perf_counter()
        codes = live.encode(wav, state=encoder)
        middle = time.perf_counter()
        live.decode(codes, state=decoder)
        return middle - start, time.perf_counter() - middle

    return step


class _Functional(nn.Module):
    """A step without side effects: input and states in, result and new states out."""

    def __init__(self, model: EscLive, encodes: bool, batch: int) -> None:
        super().__init__()
        self.model, self.encodes = model, encodes
        self.state = model.initial_encoder_state(batch) if encodes else model.initial_decoder_state(batch)

    def forward(self, x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        state = rebuilt(self.state, iter(tensors))
        if self.encodes:
            result = self.model._encode_chunk(x, self.model.config.levels, state)  # type: ignore[arg-type]
        else:
            result = self.model._decode_chunk(x, state)  # type: ignore[arg-type]
        return (result, *state.tensors())


def _functional(prepare: Callable[[nn.Module, tuple[Tensor, ...]], Function]) -> Callable[[EscLive, int], Duplex]:
    def make(model: EscLive, batch: int) -> Duplex:
        config = model.config
        examples = (
            torch.zeros(batch, config.samples_per_frame),
            torch.zeros(batch, config.levels, config.num_groups, 1, dtype=torch.int64),
        )
        modules = [_Functional(model, encodes, batch).eval() for encodes in (True, False)]
        states = [list(module.state.tensors()) for module in modules]
        steps = [prepare(m, (x, *s)) for m, x, s in zip(modules, examples, states, strict=True)]

        def step(wav: Tensor) -> tuple[float, float]:
            start = time.perf_counter()
            codes, *states[0] = steps[0](wav, *states[0])
            middle = time.perf_counter()
            _, *states[1] = steps[1](codes, *states[1])
            return middle - start, time.perf_counter() - middle

        return step

    return make


def _script(module: nn.Module, example: tuple[Tensor, ...]) -> Function:
    return torch.jit.freeze(torch.jit.trace(module, example, check_trace=False))


def _compiled(module: nn.Module, example: tuple[Tensor, ...]) -> Function:
    return torch.compile(module, dynamic=False)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


BACKENDS: dict[str, Callable[[EscLive, int], Duplex]] = {
    "PyTorch": _stateful,
    "TorchScript": _functional(_script),
    "torch.compile": _functional(_compiled),
    "ONNX Runtime": lambda model, batch: _stateful(OnnxLive(model), batch),
}

if __name__ == "__main__":
    sys.exit(main())
