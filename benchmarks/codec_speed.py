"""Time the live codec, the published ESC-Base and EnCodec 24 kHz side by side, on one thread, in one run.

    python benchmarks/codec_speed.py [--model esc_live] [--seconds 10] [--repeats 5] [--json]

ESC-Base and EnCodec have random weights, which costs the same time. The models take turns, so that whatever else the
machine does hits all alike, and CPU time is counted rather than the clock's. Of the repeats the fastest stands: it is
the one least disturbed. RTF: CPU seconds per second of audio. MACs: torch's counter over matrix products,
convolutions and attention (neither FFT, nor LSTM, nor elementwise operations). All at their highest rate here:
9 kbit/s, EnCodec 6 (its usual) of 24.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from codec import files
from codec.config import EscLiveConfig
from codec.esc import Esc
from codec.esc_config import EscConfig
from codec.info import count_macs
from codec.live import EscLive
from codec.model import Codec
from engine.errors import CheckpointError, SpeechError

ENCODEC_RATE, ENCODEC_KBPS = 24000, 6.0


@dataclass(frozen=True)
class Contestant:
    """Two functions on a fixed noise of `seconds`, and what is known before timing."""

    name: str
    parameters: int
    macs: tuple[float, float]  # encode, decode; per second of audio
    encode: Callable[[], Any]
    decode: Callable[[], Any]


@dataclass(frozen=True)
class Result:
    """CPU seconds per second of audio, best of the repeats, and costs."""

    name: str
    parameters: int
    encode_gmacs: float
    decode_gmacs: float
    encode_rtf: float
    decode_rtf: float


def main() -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="esc_live", help="live model, name or folder (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        with torch.no_grad():
            contestants = [
                ours(live_model(arguments.model), arguments.seconds),
                ours(Esc(EscConfig()).eval(), arguments.seconds, "ESC-Base (random weights)"),
            ]
            contestants += encodec(arguments.seconds)
            results = race(contestants, arguments.seconds, arguments.repeats)
    except SpeechError as error:
        print(f"codec_speed: error: {error}", file=sys.stderr)
        return 2
    print(json.dumps([asdict(r) for r in results], indent=1) if arguments.json else to_text(results))
    return 0


def live_model(name: str) -> Codec:
    """The shipped model, or its preset with random weights where none is shipped yet."""
    try:
        return files.load_model(name)
    except CheckpointError as error:
        print(f"{error}: timing random weights instead", file=sys.stderr)
        return EscLive(EscLiveConfig()).eval()


def ours(model: Codec, seconds: float, name: str | None = None) -> Contestant:
    """A codec of this project, at all levels."""
    wav = 0.1 * torch.randn(1, round(seconds * model.config.sample_rate))
    codes = model.encode(wav)
    return Contestant(
        name or model.name,
        sum(p.numel() for p in model.parameters()),
        count_macs(model),
        lambda: model.encode(wav),
        lambda: model.decode(codes),
    )


def encodec(seconds: float) -> list[Contestant]:
    """EnCodec 24 kHz of `transformers` with random weights; nothing where that is not installed."""
    try:
        from transformers import EncodecConfig, EncodecModel
    except ImportError:
        print("transformers is not installed: no comparison with EnCodec", file=sys.stderr)
        return []
    from torch.utils.flop_counter import FlopCounterMode

    model = EncodecModel(EncodecConfig()).eval()
    wav = 0.1 * torch.randn(1, 1, round(seconds * ENCODEC_RATE))

    def encode() -> Any:
        return model.encode(wav, bandwidth=ENCODEC_KBPS)

    with FlopCounterMode(display=False) as counter:
        coded = encode()
    encode_macs = counter.get_total_flops() / 2 / seconds
    with FlopCounterMode(display=False) as counter:
        model.decode(coded.audio_codes, coded.audio_scales)
    decode_macs = counter.get_total_flops() / 2 / seconds
    return [
        Contestant(
            f"EnCodec 24 kHz, {ENCODEC_KBPS:g} kbit/s (random weights)",
            sum(p.numel() for p in model.parameters()),
            (encode_macs, decode_macs),
            encode,
            lambda: model.decode(coded.audio_codes, coded.audio_scales),
        )
    ]


def race(contestants: list[Contestant], seconds: float, repeats: int) -> list[Result]:
    """Let every contestant encode and decode once per round; keep each one's best."""
    best = {(c.name, side): float("inf") for c in contestants for side in ("encode", "decode")}
    for _ in range(repeats):
        for contestant in contestants:
            for side, work in (("encode", contestant.encode), ("decode", contestant.decode)):
                start = time.process_time()
                work()
                key = (contestant.name, side)
                best[key] = min(best[key], (time.process_time() - start) / seconds)
    return [
        Result(
            name=c.name,
            parameters=c.parameters,
            encode_gmacs=c.macs[0] / 1e9,
            decode_gmacs=c.macs[1] / 1e9,
            encode_rtf=best[c.name, "encode"],
            decode_rtf=best[c.name, "decode"],
        )
        for c in contestants
    ]


def to_text(results: list[Result]) -> str:
    """A table, and how many times faster the first is than each of the others."""
    lines = [
        "| codec | parameters M | GMAC/s encode | decode | RTF encode | decode | times real time encode | decode |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        costs = f"{r.parameters / 1e6:.2f} | {r.encode_gmacs:.2f} | {r.decode_gmacs:.2f}"
        times = f"{r.encode_rtf:.4f} | {r.decode_rtf:.4f} | {1 / r.encode_rtf:.1f} | {1 / r.decode_rtf:.1f}"
        lines.append(f"| {r.name} | {costs} | {times} |")
    first, *others = results
    for other in others:
        encode, decode = other.encode_rtf / first.encode_rtf, other.decode_rtf / first.decode_rtf
        both = (other.encode_rtf + other.decode_rtf) / (first.encode_rtf + first.decode_rtf)
        lines.append("")
        lines.append(
            f"{first.name} against {other.name}: encode {encode:.1f}, decode {decode:.1f}, both {both:.1f} times faster"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
